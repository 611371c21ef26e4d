"""The scale ``cifar10-small``: trained here, on two cores, from nothing.

A ResNet-8 with group norms on 4,000 images of CIFAR-10 without augmentation, tested on all 10,000, and small
ViTs. With the weight decay of the sweep the ResNet is calibrated; tables 1 and 4 have it with a tenth of that
too, over-confident. It takes the kernels of the CPU that it finds: those that every make of CPU has take 1.4
times as long for the ResNet, 2.2 times for the ViTs. Sources, beside each value:

    sweep        of the settings in ``figures/cifar10-small/sweep.csv``, by validation NLL at seed 100 (SGD:
                 100 and 101), on which no claim is judged
    budget       chosen for the time of a run on two cores
    otherwise    a publication, its code, or a library's default
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from lpe.number_systems.grids import PerBlock, PerChannel, PerTensor
from lpe.substrates.cifar_networks import RESNET8, VITS
from reproduce.scales.cifar10 import sweep
from reproduce.scales.cifar10.images import (
    CifarImages,
    CifarNetwork,
    CifarPieces,
    GroupNormResNet,
    SmallViT,
    data_name,
)
from reproduce.scales.cifar10.shifts import CifarShifts
from reproduce.scales.digits.settings import DIGITS
from reproduce.study.families import (
    BatchEnsembleTraining,
    CyclicalSGLDTraining,
    DeepEnsembleTraining,
    MultiPosteriorTraining,
    SnapshotTraining,
)
from reproduce.study.points import IVONTraining, SGDTraining, SWAGTraining
from reproduce.study.scale import Beyond, Landscape, PointRecipe, Rivals, Scale, Settings, Substrate
from reproduce.study.units import AXES, COST, COST_RIVALS, DISAGREEMENT_UNIT, LARGE, ROUNDING

NAME = "cifar10-small"
TRAINING = 4000
FAMILY_SEEDS = 3
COST_SEEDS = 2  # budget
LAST_FAMILY_SEEDS = 1  # budget: of MultiIVON, MultiSWAG and BE
SIZE_SEEDS = 3  # budget: of tables 1 and 4
CONTRAST_SEEDS = 1  # budget: of the over-confident network
AXIS_SEEDS = 1  # budget: of table 7, which decides nothing
LARGE_SEEDS = 1  # budget: digits' CLIPs and Llamas, which digits has at five seeds
DRAWS = 3  # of each of MultiIVON's and MultiSWAG's posteriors: as many members as CSGLD has
MEMBERS = 4  # giung2's BatchEnsemble; all families have the same budget
RESNET = GroupNormResNet(RESNET8, groups=8)

SGD = SGDTraining(
    epochs=25,  # budget
    batch=50,  # budget
    learning_rate=0.05,  # sweep
    momentum=0.9,  # pytorch-ensembles
    weight_decay=5e-3,  # sweep
    clip_norm=None,
)
OVER_CONFIDENT = replace(SGD, weight_decay=5e-4)  # pytorch-ensembles; ten times less than the sweep's
SWAG = SWAGTraining(
    sgd=SGD,
    start_epoch=13,  # half of the run, as 160 of 300 in pytorch-ensembles; twelve iterates
    learning_rate=0.005,  # sweep
    rank=10,  # of Maddox et al.'s 20, half: there are twelve iterates
    scale=0.5,  # Maddox et al. 2019
)
IVON = IVONTraining(
    epochs=25,  # SGD's
    batch=50,  # SGD's
    learning_rate=0.3,  # sweep
    hess_init=0.1,  # not swept
    beta1=0.9,  # ivon-opt
    beta2=0.9975,  # 1 - 5 / steps: h0's weight is e^-5 at the end
    temperature=0.003,  # sweep; hotter ones learn no posterior, and at 1 not even a network
    weight_decay=5e-3,  # SGD's
)
SSE = SnapshotTraining(
    cycles=MEMBERS,
    epochs_per_cycle=25,  # SGD's
    batch=50,  # SGD's
    learning_rate=0.05,  # sweep
    momentum=0.9,  # SGD's
    weight_decay=5e-3,  # SGD's
)
CSGLD = CyclicalSGLDTraining(
    cycles=MEMBERS,
    epochs_per_cycle=25,  # SGD's
    sampling_steps=1500,  # sweep
    samples_per_cycle=3,  # pytorch-ensembles
    spacing=80,  # an epoch
    batch=50,  # SGD's
    learning_rate=0.5,  # sweep
    sampling_rate=0.2,  # sweep
    temperature=0.01,  # sweep
    weight_decay=5e-3,  # SGD's
)
BE = BatchEnsembleTraining(
    members=MEMBERS,
    epochs=25,  # SGD's
    batch=50,  # SGD's
    learning_rate=0.05,  # sweep
    fast_factor=0.5,  # giung2
    std=0.5,  # sweep; also giung2's from scratch
    momentum=0.9,  # SGD's
    weight_decay=5e-3,  # SGD's; 0 for the fast weights, as giung2
)
VIT = SGDTraining(
    epochs=40,  # budget: a third of the ResNet's operations an image
    batch=50,  # SGD's
    learning_rate=0.05,  # sweep
    momentum=0.9,  # SGD's
    weight_decay=5e-4,  # sweep
    clip_norm=1.0,  # usual for ViTs (Dosovitskiy et al. 2021)
)

SETTINGS = Settings(
    size=10,  # budget
    table_sizes=(1, 5, 10),
    draws=1,  # budget; 10,000 images decide more than further draws
    bits=(5, 4, 3),
    best_bits=4,  # prototypes; fixed before any run
    claim_size=10,
    memory_models=2,
    noise_share=0.2,  # fixed before the run
    expansion=5,
    table_bits=(8, 7, 6, 5, 4, 3),
    scale_axes=(PerTensor(), PerChannel(16), PerChannel(), PerBlock(16)),
    axis_bits=(4,),
    number_systems=("int4", "int4-mse", "fp4_e2m1", "nf4", "int6", "fp6_e3m2", "fp6_e2m3"),
    large_bits=5,  # the paper's figure 7
    large_size=20,  # the paper's figure 7
    equal_bits=True,
    landscape=Landscape(seed=0, resolution=17, margin=0.3, cloud=20, split="validation", examples=1000),
)

BEYOND = Beyond(
    size=10,  # Settings'
    seeds=FAMILY_SEEDS,
    spread_bits=8,  # where a spread of 8.5 has INT-5's step, of 18.1 INT-4's, of 42.3 INT-3's
    spreads=(2.0, 4.0, 8.0, 11.3, 16.0, 22.6),  # lower than cifar10's: the network is calibrated
    stds=(0.00125, 0.0025, 0.005, 0.01, 0.02, 0.03),  # likewise
    rates=(0.0025, 0.005, 0.01, 0.02, 0.05, 0.1),  # likewise
    pool=100,  # RandOpt has 5,000, of which 50 vote; budget
    calibration=128,  # Frantar et al. 2023
    views=10,  # as many as members
    sensitivity=2,  # budget
    shifts=None,
)
SHIFTED_EVERY = 10  # budget: of the test images, 1,000 are shown under corruptions


def cifar10_small(options: Mapping[str, object]) -> Scale:
    """Return the scale on the images that are there, or that a record names."""
    recorded = options.get("data")
    images = recorded if isinstance(recorded, str) else data_name()

    def substrate(short: str, shape: CifarNetwork, of: Mapping[str, PointRecipe], **more: Any) -> Substrate:
        held: dict[str, Any] = {"families": {}, "rivals": None, "most_seeds": {}} | more
        return Substrate(
            name=f"{short}, {TRAINING:,} images of {images}",
            short=short,
            example="image",
            source=CifarImages(
                shape=shape,
                images=images,
                augment=False,
                training=TRAINING,
                validation=2000,  # for temperatures
                tuning=2000,  # for the sweep
                test=10_000,
                planes=1000,
                planes_of="validation",
            ),
            start=None,
            points=of,
            pieces=CifarPieces(),
            has_training=True,
            remarks=(),
            # No table has these networks on so few images.
            subject=None,
            **held,
        )

    families = {
        "DE": DeepEnsembleTraining("SGD", MEMBERS),
        "SSE": SSE,
        "CSGLD": CSGLD,
        "MultiIVON": MultiPosteriorTraining("IVON", MEMBERS, draws=DRAWS),
        "MultiSWAG": MultiPosteriorTraining("SWAG", MEMBERS, draws=DRAWS),
        "BE": BE,
    }
    main = substrate(
        "R8-GN",
        RESNET,
        {"SGD": SGD, "SWAG": SWAG, "IVON": IVON},
        families=families,
        rivals=Rivals(stds=(0.005,), rates=(0.01,)),  # sweep; the least of each grid
        most_seeds=dict.fromkeys((*families, DISAGREEMENT_UNIT), FAMILY_SEEDS)
        | dict.fromkeys((COST, COST_RIVALS), COST_SEEDS)
        | dict.fromkeys(("MultiIVON", "MultiSWAG", "BE"), LAST_FAMILY_SEEDS)
        | {ROUNDING: SIZE_SEEDS, AXES: AXIS_SEEDS},
    )
    over_confident = substrate(
        "R8-GN, weight decay .0005", RESNET, {"SGD": OVER_CONFIDENT}, most_seeds={ROUNDING: CONTRAST_SEEDS}
    )
    of_widths = {ROUNDING: SIZE_SEEDS, AXES: AXIS_SEEDS}
    widths = tuple(
        substrate(f"ViT-{name}", SmallViT(shape), {"SGD": VIT}, most_seeds=of_widths)
        for name, shape in VITS.items()
    )

    def fewer(of: Substrate) -> Substrate:
        return replace(of, most_seeds={**of.most_seeds, LARGE: LARGE_SEEDS})

    large = {kind: tuple(map(fewer, group)) for kind, group in DIGITS.large.items()}
    assert DIGITS.compared is not None
    compared = next(of for group in large.values() for of in group if of.name == DIGITS.compared.name)
    heading = f"ResNet-8-GroupNorm and small ViTs on 4,000 images of {images}; CLIPs, Llamas: as at digits"
    return Scale(
        name=NAME,
        title=f"ResNet-8 with group norms (78,042 weights) on 4,000 images of {images}, without augmentation",
        result="FP32 at NLL 1.23, error .449; figures 1 to 9, tables 1 to 4, 6 and 7",
        launch="python -m reproduce --scale cifar10-small --data DIR --jobs 2",
        main=main,
        whole=None,
        sizes=(*widths, over_confident, main),
        large=large,
        compared=compared,
        settings=SETTINGS,
        seeds=5,
        claim_seeds=5,
        cost_seeds=COST_SEEDS,
        unit="seed",
        standing="",
        threads=1,  # two processes of one thread
        device="cpu",
        heading=heading,
        points_heading=heading,
        conditions=(
            "Means over training seeds; in brackets the two-sided 95 % interval of Student's t. NLL in nats "
            "(natural logarithm) a test example, ERR and ECE as shares of 1; ECE in 15 bins.",
            f"{images}: 4,000 training images of each seed without augmentation, all 10,000 test images. "
            f"CLIPs and Llamas are the scale digits' own, on its data, at {LARGE_SEEDS} of its seeds.",
        ),
        sweep=partial(sweep.settings, main, widths),
        rehearse=None,
        beyond=replace(BEYOND, shifts=CifarShifts(main.source, SHIFTED_EVERY)),
        options={"data": images},
        prepare=None,
    )
