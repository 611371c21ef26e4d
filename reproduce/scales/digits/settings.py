"""Every hyper-parameter of a scale, in one place, each with its source.

Sources, beside each value:

    sweep        validation NLL in figures/SCALE/sweep.csv, which ``python -m reproduce.tune`` writes: kept
                 where no neighbour was better by more than twice the paired standard error
    exploration  validation NLL over one or two training seeds, before there was a sweep; not recorded
    budget       chosen for the time of a run on two cores
    otherwise    a publication, its code, or a library's default

Nothing is chosen on a seed's own test images. All images are tested in turn, so an image that validates one
seed is a test image of another.
"""

from __future__ import annotations

from dataclasses import replace

from lpe.number_systems.grids import PerBlock, PerChannel, PerTensor
from lpe.substrates.arithmetic import LlamaShape
from lpe.substrates.captioned_digits import DigitsCLIP
from lpe.substrates.digits import DigitsNetwork, Jitter
from reproduce.study.recipes import (
    BatchEnsembleTraining,
    CLIPTraining,
    CyclicalSGLDTraining,
    IVONTraining,
    LlamaTraining,
    PreTraining,
    SGDTraining,
    SnapshotTraining,
    SWAGTraining,
)
from reproduce.study.scale import Landscape, Scale

VIT = DigitsNetwork(patch=4, width=64, depth=2, heads=4, mlp_ratio=2.0, position_std=1.0)

DIGITS = Scale(
    name="digits",
    unit="same images",  # 20 seeds are 4 permutations of 1,797 images, cut into 5 folds each
    standing="It is the quick scale: its verdicts are for 1,797 images and tiny networks, and show that the "
    "suite works; the evidence comes from CIFAR-10.",
    substrate="digits ViT",
    threads=1,  # a network this small is slower with two, by far where the machine is busy
    seeds=5,  # every image tested once
    # exploration: patch 2 stalls, width 96 at depth 3 is no better, and timm's positional std of .02 is worse
    network=VIT,
    jitter=Jitter(copies=24, degrees=10.0, scaling=0.1, pixels=1.0),
    pre_training=PreTraining(),
    sgd=SGDTraining(),
    swag=SWAGTraining(),
    ivon=IVONTraining(),
    size=20,
    table_sizes=(1, 5, 10, 20),
    draws=3,  # budget
    bits=(5, 4, 3),
    best_bits=5,  # sweep: the fewest bits whose summed NLL at the three points is within 1 % of the best
    claim_size=10,  # fixed before the run: C1's size
    landscape=Landscape(),
    snapshot=SnapshotTraining(),
    cyclical_sgld=CyclicalSGLDTraining(),
    batch_ensemble=BatchEnsembleTraining(),
    members=4,  # giung2's BatchEnsemble; DE, MultiIVON and MultiSWAG are given the same budget
    draws_per_posterior=5,
    expansion=5,  # members of each X + LPE-BSR member: 4 × 5 are the 20 of the other figures
    gaussian_std=0.01,  # sweep
    dropout_rate=0.01,  # sweep
    memory_models=2,  # fixed before the run
    claim_seeds=20,  # the least for a claim that needs no training: seeds differ far more than methods
    cost_seeds=10,  # at each the deep ensemble and the next larger network are trained as well
    # One recipe for all four, tuned for B, which is the network of the other figures; T, S and L
    # have a sixth, two fifths and three times its weights.
    networks={
        "T": replace(VIT, width=24),
        "S": replace(VIT, width=40),
        "B": VIT,
        "L": replace(VIT, width=112),
    },
    table_bits=(8, 7, 6, 5, 4, 3),
    scale_axes=(PerTensor(), PerChannel(16), PerChannel(), PerBlock(16)),
    axis_bits=(5, 4, 3),
    large_bits=5,  # the paper's figure 7
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
    llama=LlamaTraining(),
    # One recipe for all three, whose weights go as 1 : 3.8 : 15. The shape is Llama's but for the MLP: twice
    # the width, not 2.7 times.
    llamas={
        "S": LlamaShape(width=16, depth=2, heads=2, hidden=32),
        "M": LlamaShape(width=32, depth=2, heads=4, hidden=64),
        "L": LlamaShape(width=64, depth=2, heads=4, hidden=128),
    },
    clip=CLIPTraining(),
    # The smallest first. One recipe for all three, tuned for L, which is table 6's.
    clips={
        "S": DigitsCLIP(patch=4, width=24, depth=2, text_depth=1, heads=4, mlp_ratio=2.0),
        "M": DigitsCLIP(patch=4, width=48, depth=2, text_depth=1, heads=4, mlp_ratio=2.0),
        "L": DigitsCLIP(patch=4, width=96, depth=3, text_depth=1, heads=4, mlp_ratio=2.0),
    },
    clip_gaussian_std=0.001,  # sweep: the least there is; validation likes no noise at all as well
    clip_dropout_rate=0.01,  # sweep
)
