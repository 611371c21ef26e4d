"""A whole scale in one file: a small network with batch norm on three classes of made-up images."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from lpe.number_systems.grids import PerChannel, PerTensor
from reproduce.study import families, points
from reproduce.study.scale import (
    Beyond,
    Classification,
    Data,
    Landscape,
    Rivals,
    Scale,
    Settings,
    Shifted,
    Split,
    Substrate,
)


@dataclass(frozen=True)
class Stripes:
    """Noisy stripes of three directions, 120 images of each seed, and a convolutional network."""

    width: int
    classes: int = 3

    def load(self, seed: int) -> Data:
        """Draw 120 images: the first 60 train, the next 30 validate, the last 30 test."""
        draws = torch.Generator().manual_seed(seed)
        labels = torch.arange(120) % 3
        wave = torch.arange(6.0).sin()
        kinds = torch.stack([wave.repeat(6, 1), wave.repeat(6, 1).T, torch.outer(wave, wave)])
        images = kinds[labels][:, None] + torch.randn(120, 1, 6, 6, generator=draws)
        train, validation, test = ((images[s], labels[s]) for s in (slice(60), slice(60, 90), slice(90, 120)))
        scored, tuning = Classification([test], [validation]), Classification([validation], [validation])
        return Data(scored, tuning, train, [validation], [test], [train], torch.arange(90, 120))

    def network(self, classes: int, seed: int) -> nn.Module:
        """Make a convolution with batch norm and a head."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            stem = [nn.Conv2d(1, self.width, 3), nn.BatchNorm2d(self.width), nn.ReLU()]
            return nn.Sequential(*stem, nn.Flatten(), nn.Linear(16 * self.width, classes))

    def batches(self, split: Split, batch: int, seed: int) -> Callable[[int], Iterator[Split]]:
        """Shuffle anew in every epoch."""

        def of(epoch: int) -> Iterator[Split]:
            order = torch.randperm(60, generator=torch.Generator().manual_seed(1000 * seed + epoch))
            return ((split[0][part], split[1][part]) for part in order.split(batch))

        return of


@dataclass(frozen=True)
class Noisier:
    """The test images under more noise, and noise alone."""

    source: Stripes

    def load(self, seed: int) -> Shifted:
        """Add noise of two sizes."""
        images, labels = self.source.load(seed).test[0]
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
        under = {("noise", level): [(images + level * noise, labels)] for level in (1, 2)}
        return Shifted([(images, labels)], under, {"noise alone": [(noise, torch.zeros_like(labels))]})

    def digest(self, seed: int) -> str:
        """Name what is drawn: the code that draws it has no edits."""
        return f"{self.source} {seed}"

    @property
    def words(self) -> str:
        """All of the test images."""
        return f"corrupted: {sum(len(labels) for _, labels in self.source.load(0).test):,}"


SGD = points.SGDTraining(2, 20, 0.05, 0.9, 1e-4, None)
SWAG = points.SWAGTraining(points.SGDTraining(3, 20, 0.05, 0.9, 1e-4, None), 1, 0.02, 2, 0.5)
IVON = points.IVONTraining(2, 20, 0.1, 1.0, 0.9, 0.99, 1.0, 1e-3)


def network(name: str, width: int, **more: object) -> Substrate:
    """Make one size of the network."""
    fixed = {"start": None, "points": {"SGD": SGD}, "families": {}, "rivals": None, "pieces": None} | more
    fixed |= {"has_training": True, "remarks": (), "most_seeds": {}, "subject": None}
    return Substrate(f"toy {name}", name, "picture", Stripes(width), **fixed)  # type: ignore[arg-type]


MAIN = network(
    "net",
    4,
    points={"SGD": SGD, "SWAG": SWAG, "IVON": IVON},
    families={
        "DE": families.DeepEnsembleTraining("SGD", 2),
        "SSE": families.SnapshotTraining(2, 1, 20, 0.05, 0.9, 1e-4),
        "CSGLD": families.CyclicalSGLDTraining(2, 2, 3, 1, 1, 20, 0.05, 0.02, 1.0, 1e-3),
        "MultiIVON": families.MultiPosteriorTraining("IVON", 2, 2),
        "BE": families.BatchEnsembleTraining(2, 1, 20, 0.05, 0.5, 0.1, 0.9, 1e-4),
    },
    rivals=Rivals((0.01, 0.1), (0.1,)),
)
SIZES = (network("net-4", 4), network("net-8", 8, rivals=Rivals((0.01,), (0.1,))))
SCALE = Scale(
    name="toy",
    title="a toy",
    result="nothing",
    launch="a test",
    main=MAIN,
    whole=None,
    sizes=SIZES,
    large={"": SIZES},
    compared=SIZES[1],
    settings=Settings(
        size=3,
        table_sizes=(1, 3),
        draws=2,
        bits=(4, 3),
        best_bits=4,
        claim_size=3,
        memory_models=2,
        noise_share=0.2,
        expansion=2,
        table_bits=(6, 4, 3),
        scale_axes=(PerTensor(), PerChannel()),
        axis_bits=(4,),
        number_systems=("int4", "nf4"),
        large_bits=4,
        large_size=3,
        equal_bits=True,
        landscape=Landscape(seed=0, resolution=3, margin=0.3, cloud=3, split="test", examples=None),
    ),
    seeds=2,
    claim_seeds=2,
    cost_seeds=2,
    unit="seed",
    standing="",
    threads=1,
    device="cpu",
    heading="",
    points_heading="",
    conditions=(),
    sweep=None,
    rehearse=None,
    beyond=Beyond(
        size=3,
        seeds=2,
        spread_bits=8,
        spreads=(8.0, 16.0),
        stds=(0.01, 0.1),
        rates=(0.1, 0.3),
        pool=5,
        calibration=30,
        views=3,
        sensitivity=1,
        shifts=Noisier(MAIN.source),
    ),
    options={},
    prepare=None,
)
