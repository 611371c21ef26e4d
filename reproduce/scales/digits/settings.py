"""The scale ``digits``: every hyper-parameter in one place, each with its source.

Sources, beside each value:

    sweep        validation NLL at two tuning seeds (three of IVON's settings) in figures/digits/sweep.csv,
                 which ``python -m reproduce.tune`` writes. Its column "role" tells what is kept from what is
                 best: kept where no neighbour is better by more than twice the paired standard error. IVON
                 and CSGLD: under the bounds on their posteriors of ``reproduce.tune``
    exploration  validation NLL over one or two seeds; not recorded
    budget       chosen for the time of a run on two cores
    otherwise    a publication, its code, or a library's default

The sweep's seeds are 100 and up, on which no claim is judged, and nothing is chosen on a seed's own test
images. But all images are tested in turn, so an image that validates one seed is a test image of another.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from lpe.number_systems.grids import PerBlock, PerChannel, PerTensor
from lpe.substrates.arithmetic import LlamaShape
from lpe.substrates.captioned_digits import DigitsCLIP
from lpe.substrates.digits import DigitsNetwork, Jitter
from reproduce.scales.digits import sweep
from reproduce.scales.digits.clips import CaptionedDigits, CLIPTraining
from reproduce.scales.digits.images import DigitsImages, PreTraining
from reproduce.scales.digits.llamas import ArithmeticQuestions, LlamaTraining
from reproduce.study.families import (
    BatchEnsembleTraining,
    CyclicalSGLDTraining,
    DeepEnsembleTraining,
    MultiPosteriorTraining,
    SnapshotTraining,
)
from reproduce.study.points import IVONTraining, SGDTraining, SWAGTraining
from reproduce.study.scale import Beyond, Landscape, Rivals, Scale, Settings, Substrate


@dataclass(frozen=True)
class Values:
    """What may differ between two scales on the digits: the suite's own, and smaller ones for tests.

    Args:
        networks: of tables 1 and 4 by name, the smallest first. members: of DE, MultiIVON and MultiSWAG.
        draws_per_posterior: of MultiIVON's and MultiSWAG's. clip_rivals: of the largest CLIP.
    """

    name: str
    seeds: int
    claim_seeds: int
    cost_seeds: int
    network: DigitsNetwork
    networks: dict[str, DigitsNetwork]
    jitter: Jitter
    pre_training: PreTraining
    sgd: SGDTraining
    swag: SWAGTraining
    ivon: IVONTraining
    snapshot: SnapshotTraining
    cyclical_sgld: CyclicalSGLDTraining
    batch_ensemble: BatchEnsembleTraining
    members: int
    draws_per_posterior: int
    rivals: Rivals
    clip: CLIPTraining
    clips: dict[str, DigitsCLIP]
    clip_rivals: Rivals
    llama: LlamaTraining
    llamas: dict[str, LlamaShape]
    settings: Settings
    beyond: Beyond


def scale_of(values: Values) -> Scale:
    """Return the scale of these values."""

    def vit(name: str, short: str, network: DigitsNetwork) -> Substrate:
        return Substrate(
            name=f"{values.name} {name}",
            short=short,
            example="image",
            source=DigitsImages(network, values.jitter),
            start=values.pre_training,
            points={"SGD": values.sgd},
            families={},
            rivals=None,
            pieces=None,
            has_training=True,
            remarks=(),
            most_seeds={},
            subject=None,
        )

    main = replace(
        vit("ViT", "ViT", values.network),
        points={"SGD": values.sgd, "SWAG": values.swag, "IVON": values.ivon},
        families={
            "DE": DeepEnsembleTraining("SGD", values.members),
            "SSE": values.snapshot,
            "CSGLD": values.cyclical_sgld,
            "MultiIVON": MultiPosteriorTraining("IVON", values.members, values.draws_per_posterior),
            "MultiSWAG": MultiPosteriorTraining("SWAG", values.members, values.draws_per_posterior),
            "BE": values.batch_ensemble,
        },
        rivals=values.rivals,
    )
    clips = tuple(
        Substrate(
            name=f"{values.name} CLIP-{size}",
            short=f"CLIP-{size}",
            example="image",
            source=CaptionedDigits(shape, values.jitter),
            start=None,
            points={"SGD": values.clip},
            families={},
            rivals=values.clip_rivals,
            pieces=None,
            has_training=True,
            remarks=(
                "CLIP: zero-shot classification of test images; members differ in the image tower; the head, "
                "made of captions of the class names, is computed once at full precision; the text tower, "
                "which classifying does not need, is not counted in the memory.",
            ),
            most_seeds={},
            subject=None,
        )
        for size, shape in values.clips.items()
    )
    llamas = tuple(
        Substrate(
            name=f"{values.name} Llama-{size}",
            short=f"Llama-{size}",
            example="question",
            source=ArithmeticQuestions(shape),
            start=None,
            points={"SGD": values.llama},
            families={},
            rivals=None,
            pieces=None,
            has_training=True,
            remarks=(
                "Llama: a question's choices are the classes, and a member's logits their summed "
                "log-likelihoods.",
            ),
            most_seeds={},
            subject=None,
        )
        for size, shape in values.llamas.items()
    )
    return Scale(
        name=values.name,
        title="small networks on scikit-learn's digits (1,797 scans of 8 × 8 pixels)",
        result="FP32 at NLL .041, error .013; effects of rounding are near the noise: the quick scale",
        launch="python -m reproduce --jobs 2: 74 minutes on 2 cores; --seeds 1: 9 minutes",
        main=main,
        whole=None,
        sizes=tuple(vit(f"ViT-{name}", f"ViT-{name}", shape) for name, shape in values.networks.items()),
        large={"CLIP": clips, "Llama": llamas},
        compared=clips[-1],
        settings=values.settings,
        seeds=values.seeds,
        claim_seeds=values.claim_seeds,
        cost_seeds=values.cost_seeds,
        unit="same images",  # 20 seeds are 4 permutations of 1,797 images, cut into 5 folds each
        standing="It is the quick scale: its verdicts are for 1,797 images and tiny networks, and show that "
        "the suite works; the evidence comes from CIFAR-10.",
        threads=1,  # a network this small is slower with two, by far where the machine is busy
        device="cpu",
        heading="",
        points_heading="",
        conditions=(
            "Means over training seeds; in brackets the two-sided 95 % interval of Student's t. NLL in nats "
            "(natural logarithm) a test example, ERR and ECE as shares of 1; ECE in 15 bins.",
            f"Within a training seed, {values.settings.draws} ensembles of other rounding or posterior seeds "
            "are averaged where members are drawn. Temperature scaling: fitted on the validation examples.",
        ),
        sweep=partial(sweep.settings, main, clips[-1]),
        rehearse=None,
        beyond=values.beyond,
        options={},
        prepare=None,
    )


# exploration: patch 2 stalls, width 96 at depth 3 is no better, and timm's positional std of .02 is worse
VIT = DigitsNetwork(patch=4, width=64, depth=2, heads=4, mlp_ratio=2.0, position_std=1.0)

SGD = SGDTraining(
    epochs=40,  # budget
    batch=25,  # exploration: 25, 32, 50
    learning_rate=0.05,  # sweep
    momentum=0.9,  # pytorch-ensembles
    weight_decay=5e-4,  # sweep; also pytorch-ensembles'
    clip_norm=None,  # exploration: no gain
)

VALUES = Values(
    name="digits",
    seeds=5,  # every image tested once
    claim_seeds=20,  # the least for a claim that needs no training: seeds differ far more than methods
    cost_seeds=10,  # at each the deep ensemble and the next larger network are trained as well
    network=VIT,
    # One recipe for all four, tuned for B, which is the network of the other figures; T, S and L
    # have a sixth, two fifths and three times its weights.
    networks={
        "T": replace(VIT, width=24),
        "S": replace(VIT, width=40),
        "B": VIT,
        "L": replace(VIT, width=112),
    },
    jitter=Jitter(copies=24, degrees=10.0, scaling=0.1, pixels=1.0),
    pre_training=PreTraining(
        task="instances",  # sweep: rotations, at the same cost, are worse than no pre-training
        epochs=50,  # sweep
        batch=50,  # budget
        learning_rate=3e-3,  # sweep
        weight_decay=0.05,  # usual for ViTs under AdamW (Dosovitskiy et al. 2021)
    ),
    sgd=SGD,
    swag=SWAGTraining(
        sgd=SGD,
        start_epoch=20,  # half of the run, as 160 of 300 in pytorch-ensembles
        learning_rate=0.02,  # sweep
        rank=20,  # Maddox et al. 2019
        scale=0.5,  # Maddox et al. 2019
    ),
    ivon=IVONTraining(
        epochs=40,  # SGD's
        batch=25,  # SGD's
        learning_rate=0.2,  # sweep; also ivon-experiments'
        hess_init=0.05,  # exploration: .02 is worse, one seed
        beta1=0.9,  # ivon-opt
        beta2=0.997,  # 1 - 5 / steps, rounded: h0's weight is e^-5 at the end
        # sweep. At 1 the posterior of 69,000 weights is nearly the prior, and the network lost (NLL 2.1); at
        # .1 it is .25
        temperature=0.005,
        weight_decay=2e-3,  # exploration: 1e-3 is worse, one seed
    ),
    snapshot=SnapshotTraining(
        cycles=4,  # DE's members: equal training budgets
        epochs_per_cycle=40,  # SGD's; also pytorch-ensembles' cycle
        batch=25,  # SGD's
        learning_rate=0.025,  # sweep; exploration: .1 diverges
        momentum=0.9,  # SGD's
        weight_decay=5e-4,  # SGD's
    ),
    cyclical_sgld=CyclicalSGLDTraining(
        cycles=4,  # DE's members: equal training budgets
        # Samples have nine tenths of the posterior's variance at the typical curvature, .0021, after some
        # 560 / sampling_rate steps: more than three times SGD's.
        epochs_per_cycle=130,
        sampling_steps=4085,  # 95 epochs
        samples_per_cycle=3,  # pytorch-ensembles
        spacing=215,  # 5 epochs
        batch=25,  # SGD's
        learning_rate=0.25,  # exploration; pytorch-ensembles has .5, at which this network is lost
        sampling_rate=0.15,  # exploration: .25 is worse; at .1 the run is 1.5 times as long
        temperature=0.001,  # sweep
        weight_decay=2e-3,  # IVON's; at SGD's, 5e-4, the same share takes three times the steps
    ),
    batch_ensemble=BatchEnsembleTraining(
        members=4,  # giung2
        epochs=40,  # SGD's
        batch=25,  # SGD's
        learning_rate=0.05,  # sweep
        fast_factor=0.5,  # giung2
        std=0.1,  # sweep; giung2 has .5, from scratch
        momentum=0.9,  # SGD's
        weight_decay=5e-4,  # giung2; 0 for the fast weights
    ),
    members=4,  # giung2's BatchEnsemble; DE, MultiIVON and MultiSWAG are given the same budget
    draws_per_posterior=5,
    rivals=Rivals(stds=(0.01,), rates=(0.01,)),  # sweep
    clip=CLIPTraining(
        epochs=60,  # budget
        batch=50,  # sweep: 25 is worse; exploration: 100 at twice the cost is no better
        learning_rate=1.5e-3,  # sweep
        weight_decay=0.05,  # sweep
    ),
    # The smallest first. One recipe for all three, tuned for L, which is table 6's.
    clips={
        "S": DigitsCLIP(patch=4, width=24, depth=2, text_depth=1, heads=4, mlp_ratio=2.0),
        "M": DigitsCLIP(patch=4, width=48, depth=2, text_depth=1, heads=4, mlp_ratio=2.0),
        "L": DigitsCLIP(patch=4, width=96, depth=3, text_depth=1, heads=4, mlp_ratio=2.0),
    },
    # sweep; the std is the least there is: validation likes no noise at all as well
    clip_rivals=Rivals(stds=(0.001,), rates=(0.01,)),
    llama=LlamaTraining(
        epochs=8,  # budget
        batch=32,  # exploration, one seed at 5e-3: 64 is worse for L, alike for S and M
        learning_rate=3e-3,  # exploration: at 5e-3 one of three seeds of L is far worse
        beta2=0.98,  # Vaswani et al. 2017
        weight_decay=0.1,  # usual for language models (Brown et al. 2020)
        clip_norm=1.0,  # usual for language models (Brown et al. 2020)
    ),
    # One recipe for all three, whose weights go as 1 : 3.8 : 15. The shape is Llama's but for the MLP: twice
    # the width, not 2.7 times.
    llamas={
        "S": LlamaShape(width=16, depth=2, heads=2, hidden=32),
        "M": LlamaShape(width=32, depth=2, heads=4, hidden=64),
        "L": LlamaShape(width=64, depth=2, heads=4, hidden=128),
    },
    settings=Settings(
        size=20,
        table_sizes=(1, 5, 10, 20),
        draws=3,  # budget
        bits=(5, 4, 3),
        best_bits=5,  # sweep: the fewest bits whose summed NLL at the three points is within 1 % of the best
        claim_size=10,  # fixed before the run: C1's size
        noise_share=None,  # there is next to no gain to take a share of
        memory_models=2,  # fixed before the run
        expansion=5,  # members of each X + LPE-BSR member: 4 × 5 are the 20 of the other figures
        table_bits=(8, 7, 6, 5, 4, 3),
        scale_axes=(PerTensor(), PerChannel(16), PerChannel(), PerBlock(16)),
        axis_bits=(5, 4, 3),
        # All there are with a neighbour of equal bits: those of 8, of 6 and of 4; and where absmax is a weak
        # baseline, integers with steps of least squared error.
        number_systems=(
            "int8",
            "fp8_e4m3",
            "fp8_e5m2",
            "int6",
            "fp6_e3m2",
            "fp6_e2m3",
            "int4",
            "int4-mse",
            "fp4_e2m1",
            "nf4",
            "int3-mse",
        ),
        large_bits=5,  # the paper's figure 7
        large_size=20,
        equal_bits=False,  # from CIFAR-10 on
        landscape=Landscape(seed=0, resolution=21, margin=0.3, cloud=30, split="test", examples=None),
    ),
    beyond=Beyond(
        size=10,  # claim_size
        seeds=5,  # every image tested once
        spread_bits=8,  # where a spread of 8.5 has INT-5's step, of 18.1 INT-4's, of 42.3 INT-3's
        spreads=(4.0, 8.0, 11.3, 16.0, 22.6, 32.0),  # around INT-4's step, the best of the sweep
        stds=(0.001, 0.003, 0.005, 0.01, 0.02, 0.03),  # the sweep's, without those that are far off
        rates=(0.005, 0.01, 0.02, 0.03, 0.05, 0.1),  # the sweep's
        pool=100,  # RandOpt has 5,000, of which 50 vote; budget
        calibration=128,  # Frantar et al. 2023
        views=0,  # a flipped digit is none
        sensitivity=2,  # budget
        shifts=None,  # corruptions are of images of 32 × 32 pixels
    ),
)

DIGITS = scale_of(VALUES)
