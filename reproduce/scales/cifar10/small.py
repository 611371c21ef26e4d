"""The scale ``cifar10-small``: trained here, on two cores, from nothing.

A ResNet-8 with group norms on 4,000 images of CIFAR-10 without augmentation, tested on all 10,000: it is
over-confident, as the paper's networks are not, and small enough for five seeds. It takes the kernels of the
CPU that it finds: those that every make of CPU has take 1.4 times as long for the ResNet, 2.2 times for the
ViTs. **Not tuned yet**: neither :mod:`reproduce.scales.cifar10.sweep` nor the scale has been run.
Sources, beside each value:

    untuned      a first value, which the sweep varies or is to vary
    budget       chosen for the time of a run on two cores
    otherwise    a publication, its code, or a library's default
"""

from __future__ import annotations

from collections.abc import Mapping
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
from reproduce.scales.digits.settings import DIGITS
from reproduce.study.families import (
    BatchEnsembleTraining,
    CyclicalSGLDTraining,
    DeepEnsembleTraining,
    MultiPosteriorTraining,
    SnapshotTraining,
)
from reproduce.study.points import IVONTraining, SGDTraining, SWAGTraining
from reproduce.study.scale import Landscape, PointRecipe, Rivals, Scale, Settings, Substrate

NAME = "cifar10-small"
TRAINING = 4000
FAMILY_SEEDS = 3
MEMBERS = 4  # giung2's BatchEnsemble; all families have the same budget
RESNET = GroupNormResNet(RESNET8, groups=8)

SGD = SGDTraining(
    epochs=25,  # budget
    batch=50,  # untuned
    learning_rate=0.05,  # untuned
    momentum=0.9,  # pytorch-ensembles
    weight_decay=5e-4,  # untuned; also pytorch-ensembles'
    clip_norm=None,
)
SWAG = SWAGTraining(
    sgd=SGD,
    start_epoch=13,  # half of the run, as 160 of 300 in pytorch-ensembles; twelve iterates
    learning_rate=0.02,  # untuned
    rank=10,  # of Maddox et al.'s 20, half: there are twelve iterates
    scale=0.5,  # Maddox et al. 2019
)
IVON = IVONTraining(
    epochs=25,  # SGD's
    batch=50,  # SGD's
    learning_rate=0.1,  # untuned; bdlx without augmentation
    hess_init=0.1,  # untuned
    beta1=0.9,  # ivon-opt
    beta2=0.9975,  # 1 - 5 / steps: h0's weight is e^-5 at the end
    temperature=1.0,  # untuned
    weight_decay=1e-3,  # untuned; bdlx without augmentation
)
SSE = SnapshotTraining(
    cycles=MEMBERS,
    epochs_per_cycle=25,  # SGD's
    batch=50,  # SGD's
    learning_rate=0.05,  # untuned
    momentum=0.9,  # SGD's
    weight_decay=5e-4,  # SGD's
)
CSGLD = CyclicalSGLDTraining(
    cycles=MEMBERS,
    epochs_per_cycle=25,  # SGD's
    sampling_steps=1000,  # untuned
    samples_per_cycle=3,  # pytorch-ensembles
    spacing=80,  # an epoch
    batch=50,  # SGD's
    learning_rate=0.2,  # untuned
    sampling_rate=0.1,  # untuned
    temperature=1.0,  # untuned
    weight_decay=1e-3,  # untuned
)
BE = BatchEnsembleTraining(
    members=MEMBERS,
    epochs=25,  # SGD's
    batch=50,  # SGD's
    learning_rate=0.05,  # untuned
    fast_factor=0.5,  # giung2
    std=0.5,  # giung2, from scratch
    momentum=0.9,  # SGD's
    weight_decay=5e-4,  # giung2; 0 for the fast weights
)
VIT = SGDTraining(
    epochs=40,  # budget: a third of the ResNet's operations an image
    batch=50,  # SGD's
    learning_rate=0.02,  # untuned
    momentum=0.9,  # SGD's
    weight_decay=5e-4,  # untuned
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
    landscape=Landscape(seed=0, resolution=21, margin=0.3, cloud=30, split="validation", examples=1000),
)


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
                validation=2000,  # for temperatures, and for the sweep
                test=10_000,
                planes=1000,
                planes_of="validation",
            ),
            start=None,
            points=of,
            pieces=CifarPieces(),
            has_training=True,
            remarks=(),
            **held,
        )

    families = {
        "DE": DeepEnsembleTraining("SGD", MEMBERS),
        "SSE": SSE,
        "CSGLD": CSGLD,
        "MultiIVON": MultiPosteriorTraining("IVON", MEMBERS, draws=5),
        "MultiSWAG": MultiPosteriorTraining("SWAG", MEMBERS, draws=5),
        "BE": BE,
    }
    main = substrate(
        "R8-GN",
        RESNET,
        {"SGD": SGD, "SWAG": SWAG, "IVON": IVON},
        families=families,
        rivals=Rivals(stds=(0.02,), rates=(0.05,)),  # untuned
        most_seeds=dict.fromkeys((*families, "disagreement", "cost", "cost rivals"), FAMILY_SEEDS),
    )
    widths = tuple(substrate(f"ViT-{name}", SmallViT(shape), {"SGD": VIT}) for name, shape in VITS.items())
    return Scale(
        name=NAME,
        title=f"ResNet-8 with group norms (78,042 weights) on 4,000 images of {images}, without augmentation",
        result="not run yet",
        launch="python -m reproduce --scale cifar10-small --data DIR --jobs 2",
        main=main,
        whole=None,
        sizes=widths,
        large=DIGITS.large,
        compared=DIGITS.compared,
        settings=SETTINGS,
        seeds=5,
        claim_seeds=5,
        cost_seeds=FAMILY_SEEDS,
        unit="seed",
        standing="",
        threads=1,  # two processes of one thread
        device="cpu",
        heading=f"ResNet-8-GroupNorm and small ViTs on 4,000 images of {images}; CLIPs, Llamas: as at digits",
        conditions=(
            "Means over training seeds; in brackets the two-sided 95 % interval of Student's t. NLL in nats "
            "(natural logarithm) a test example, ERR and ECE as shares of 1; ECE in 15 bins.",
            f"{images}: 4,000 training images of each seed without augmentation, all 10,000 test images. "
            "CLIPs and Llamas are the scale digits' own, on its data.",
        ),
        sweep=partial(sweep.settings, main, widths),
        rehearse=None,
        options={"data": images},
        prepare=None,
    )
