"""The scale ``cifar10``: ResNet-20-FRN-SiLU, from points that a GPU has trained, or that are given.

The protocol is that of ``reproduce.scales.cifar10``'s ``python -m``: 40,960 training images, crops and flips
(and without), 19,840 updates of 256. Nothing is trained by the scale itself: ``--points DIR`` reads points,
see :mod:`reproduce.scales.cifar10.points`. What the folder lacks, the figures lack.

Points alone, with their posteriors, are measured on all 10,000 test images; everything else on every k-th
(``--images``), landscapes on every tenth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lpe.errors import InputError
from lpe.number_systems.grids import PerBlock, PerChannel, PerTensor
from lpe.store import Store
from lpe.substrates import cifar
from lpe.substrates.cifar_networks import RESNET20
from reproduce.scales.cifar10 import points
from reproduce.scales.cifar10.images import (
    CifarImages,
    CifarPieces,
    FRNResNet,
    data_name,
    every_kth,
    place,
    sha256,
)
from reproduce.scales.cifar10.recipes import GROUPS, PROTOCOL, RECIPES, Protocol
from reproduce.scales.cifar10.shifts import CifarShifts
from reproduce.scales.cifar10.trained import train_points
from reproduce.scales.cifar10.training import train_group
from reproduce.study.keys import determinants
from reproduce.study.run import device_of
from reproduce.study.scale import (
    Beyond,
    FamilyRecipe,
    Landscape,
    PointRecipe,
    Rivals,
    Scale,
    Settings,
    Substrate,
)
from reproduce.study.subjects import ADAMW, CIFAR, R20, SGD, Subject
from reproduce.study.units import AXES, COST, COST_RIVALS, DISAGREEMENT_UNIT, ROUNDING

NAME = "cifar10"
IMAGES = 2000  # every fifth: a pass takes 5 s of one core
MEMBERS = 4  # giung2's BatchEnsemble; DE and MultiIVON have as many
DRAWS = 5  # of each of MultiIVON's posteriors
SHIFTED = 1000  # every tenth test image; some 130 members run over 20 sets of as many

SETTINGS = Settings(
    size=10,  # budget: of all test images a pass takes 25 s of one core
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
    large_size=20,
    equal_bits=True,
    landscape=Landscape(seed=0, resolution=17, margin=0.3, cloud=10, split="test", examples=1000),  # budget
)

BEYOND = Beyond(
    size=10,  # Settings'
    seeds=4,  # the points that are given
    spread_bits=8,  # where a spread of 8.5 has INT-5's step, of 18.1 INT-4's, of 42.3 INT-3's
    spreads=(5.7, 8.0, 11.3, 16.0, 22.6, 32.0),  # fixed before the run
    stds=(0.005, 0.01, 0.015, 0.02, 0.03, 0.04),  # fixed before the run
    rates=(0.003, 0.01, 0.02, 0.03, 0.05, 0.1),  # fixed before the run
    pool=100,  # RandOpt has 5,000, of which 50 vote; budget
    calibration=128,  # Frantar et al. 2023
    views=10,  # as many as members
    sensitivity=2,  # budget
    shifts=None,
)


@dataclass(frozen=True)
class Chosen:
    """What the options come to.

    Args:
        data: the images' name. files: sha256 of each given point. images: test images of most figures.
        batch: images of an update of theirs. given: whether they were trained elsewhere.
    """

    data: str
    files: Mapping[str, str]
    images: int
    batch: int
    given: bool

    @property
    def options(self) -> dict[str, object]:
        """As a record holds them, from which the scale is made again."""
        held = {"data": self.data, "points": dict(self.files), "images": self.images}
        return {**held, "batch": self.batch, "given": self.given}

    @property
    def words(self) -> str:
        """Where the points come from."""
        return "given points" if self.given else "points trained here"


def chosen_of(options: Mapping[str, object]) -> Chosen:
    """Return what options of a command line (folders), or of a record (names and hashes), come to."""
    recorded = options.get("points")
    if isinstance(recorded, Mapping):
        images, batch = (int(str(options[key])) for key in ("images", "batch"))
        return Chosen(str(options["data"]), recorded, images, batch, bool(options["given"]))
    images = int(str(options.get("images", IMAGES)))
    every_kth(images)  # or an error
    where = points.given_folder()
    if given := where is not None:
        if "updates" in options:
            raise InputError("--updates is of points that are trained here; leave it out, or --points")
        files = points.hashes(where)
    else:
        trained = trained_folder(options)
        files = points.hashes(trained) if trained is not None and any(trained.glob("*.safetensors")) else {}
    return Chosen(data_name(), files, images, points.batch_of(points.files_of("sgd", files)), given)


def trained_folder(options: Mapping[str, object]) -> Path | None:
    """Return the folder of the points that are trained here; None without images, which its name is of."""
    data = sha256()
    if data is None:
        return None
    key = {
        "recipes": RECIPES,
        "protocol": protocol_of(options),
        **determinants(train_group, data=data, device=device_of("auto"), threads=None),
    }
    return points.trained_root() / Store.key(key)[:16]


def protocol_of(options: Mapping[str, object]) -> Protocol:
    """Return the protocol of trainings here."""
    return replace(PROTOCOL, updates=int(str(options.get("updates", PROTOCOL.updates))))


def train_here(options: Mapping[str, object]) -> Scale:
    """Train the points that are not there yet, on the GPU, and return the scale with them."""
    for line in filter(None, CifarPieces().missing()):
        raise InputError(line)
    folder = trained_folder(options)
    assert folder is not None
    folder.mkdir(parents=True, exist_ok=True)
    images = cifar.load(place())
    train_points(folder, images, protocol_of(options), GROUPS, torch.device("cuda"), math.inf, print)
    return cifar10(options)


@dataclass(frozen=True)
class GivenPieces:
    """The images, and the points."""

    has_points: bool

    def needed(self) -> tuple[str, ...]:
        """Return a line for each."""
        return (*CifarPieces().needed(), "trained points of ResNet-20-FRN-SiLU")

    def missing(self) -> tuple[str, ...]:
        """Return what is to be done for each; "" for what is there."""
        train = (
            "trained points: a GPU trains them here, in 10 minutes; with none, give --points DIR "
            "(python -m reproduce.scales.cifar10 --points DIR trains them elsewhere)"
        )
        return (*CifarPieces().missing(), "" if self.has_points else train)


def cifar10(options: Mapping[str, object]) -> Scale:
    """Return the scale that options come to."""
    chosen = chosen_of(options)

    def files(kind: str) -> points.Files:
        return points.files_of(kind, chosen.files)

    total = cifar.IMAGES["test"]

    def substrate(
        short: str,
        images: int,
        of: Mapping[str, PointRecipe],
        augmentation: bool = True,
        optimiser: str = SGD,
        **more: Any,
    ) -> Substrate:
        held: dict[str, Any] = {"families": {}, "rivals": None, "most_seeds": {}} | more
        return Substrate(
            name=f"{short}, {chosen.data}, {images:,} test images, {chosen.words}",
            short=short,
            example="image",
            source=CifarImages(
                shape=FRNResNet(RESNET20),
                images=chosen.data,
                augment=True,
                training=4096,  # nothing is trained: for a posterior's curvature and figure 1's gradients
                validation=2000,  # for a temperature
                tuning=1000,  # budget; for noise's std and dropout's rate
                test=images,
                planes=1000,
                planes_of="test",
            ),
            start=None,
            points=of,
            pieces=GivenPieces(bool(chosen.files)),
            has_training=True,
            remarks=(),
            subject=Subject(
                network=R20,
                data_set=CIFAR,
                data=chosen.data,
                augmentation=augmentation,
                optimiser=optimiser,
                scored=None if images == total else images,
                weights="",
            ),
            **held,
        )

    sgd, swag, ivon = files("sgd"), files("swag"), files("ivon")
    recipes: dict[str, PointRecipe] = {"SGD": points.GivenNetwork("SGD", sgd, chosen.batch)}
    seeds = {"SGD": len(sgd), **dict.fromkeys((ROUNDING, AXES, COST), len(sgd))}
    if swag:
        recipes["SWAG"], seeds["SWAG"] = points.GivenSWAG(swag), len(swag)
    if ivon:
        recipes["IVON"], seeds["IVON"] = points.GivenIVON(ivon), len(ivon)
    families: dict[str, FamilyRecipe] = {}
    if len(sgd) >= MEMBERS:
        whole = len(sgd) // MEMBERS
        parts = tuple(sgd[MEMBERS * each : MEMBERS * (each + 1)] for each in range(whole))
        families["DE"], seeds["DE"] = points.GivenDeepEnsemble(parts), whole
    for name in ("SSE", "CSGLD"):
        if of := files(name.lower()):
            families[name], seeds[name] = points.GivenCycles(name, of), len(of)
    if len(ivon) >= MEMBERS:
        families["MultiIVON"] = points.GivenMultiPosterior(points.GivenIVON(ivon), MEMBERS, DRAWS)
        seeds["MultiIVON"] = len(ivon) // MEMBERS
    if of := files("be"):
        families["BE"], seeds["BE"] = points.GivenBatchEnsemble(of), len(of)
    seeds |= {DISAGREEMENT_UNIT: seeds.get("SSE", 0), COST_RIVALS: seeds.get("DE", 0)}
    rivals = Rivals(stds=(0.005, 0.01, 0.015, 0.02, 0.03), rates=(0.003, 0.01, 0.03, 0.1))
    if not chosen.files:
        seeds = {}  # so that what is wanted can say what it lacks
    main = substrate(
        "R20-FRN-SiLU", chosen.images, recipes, families=families, rivals=rivals, most_seeds=seeds
    )
    sizes = [main]
    for kind, short, augmentation, optimiser in (
        ("sgdnoaug", "R20-FRN-SiLU without augmentation", False, SGD),
        ("adamw", "R20-FRN-SiLU by AdamW", True, ADAMW),
        ("adamwnoaug", "R20-FRN-SiLU by AdamW without augmentation", False, ADAMW),
    ):
        if of := files(kind):
            made = {"SGD": points.GivenNetwork("SGD", of, chosen.batch)}
            rounding = {ROUNDING: len(of)}
            other = substrate(short, chosen.images, made, augmentation, optimiser, most_seeds=rounding)
            sizes.insert(0, other)
    heading = f"ResNet-20-FRN-SiLU on {chosen.data}, {chosen.words}"
    return Scale(
        name=NAME,
        title=f"ResNet-20-FRN-SiLU (272,474 weights) on {chosen.data}, {chosen.words}",
        result="given points: FP32 at NLL .473, error .133; figures 2, 5, 6, 8, 9, spread; tables 1, 2, 4, 5",
        launch="python -m reproduce --scale cifar10 --data DIR, on a GPU; with --points DIR, on two cores",
        main=main,
        whole=None if chosen.images == total else substrate("R20-FRN-SiLU", total, recipes, most_seeds=seeds),
        sizes=tuple(sizes),
        large={},
        compared=None,
        settings=SETTINGS,
        seeds=max(1, len(sgd)),
        claim_seeds=max(1, len(sgd)),
        cost_seeds=max(1, len(sgd)),
        unit="seed",
        standing="The points are given: trained elsewhere, by recipes that the suite does not know."
        if chosen.given
        else "",
        threads=1,  # two processes of one are faster than one of two
        device="auto",
        heading=f"{heading}; {chosen.images:,} test images",
        points_heading=f"{heading}; {total:,} test images",
        conditions=(
            "Means over training seeds; in brackets the two-sided 95 % interval of Student's t. NLL in nats "
            "(natural logarithm) a test image, ERR and ECE as shares of 1; ECE in 15 bins.",
            f"{chosen.data}; {chosen.words}. {chosen.images:,} test images, evenly spread"
            + ("." if chosen.images == total else f"; {total:,} where points alone are shown."),
        ),
        sweep=None,
        rehearse=None,
        beyond=replace(BEYOND, shifts=CifarShifts(main.source, max(1, chosen.images // SHIFTED))),
        options=chosen.options,
        prepare=partial(train_here, dict(options))
        if not chosen.given and torch.cuda.is_available()
        else None,
    )
