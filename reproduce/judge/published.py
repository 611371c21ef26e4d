"""Published numbers, as their sources print them, each with what it was measured on.

A number is text: ".138", or a mean with the least and the greatest of its trials, ".138 [.132, .144]". Its
decimals are the source's. Accuracies are kept as accuracies and read as errors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from reproduce.study.subjects import (
    ADAMW,
    CIFAR,
    IMAGENET,
    R20,
    RESNET50,
    SGD,
    TEST,
    WRN28X1,
    WRN28X10,
)
from reproduce.study.unrounded import FP32, SCALED


@dataclass(frozen=True)
class Ours:
    """Our rows of what a source calls by another name.

    Args:
        largest: our largest ensemble stands for it where we have none of its size.
        optimiser: of our point estimate.
    """

    point: str
    method: str
    largest: bool = False
    optimiser: str = SGD


POINT = Ours("SGD", FP32)
TEMPERED = Ours("SGD", SCALED)
BY_ADAMW = Ours("SGD", FP32, optimiser=ADAMW)
IVON = Ours("IVON", FP32)
DE, BE, SSE = (Ours(name, name) for name in ("DE", "BE", "SSE"))
CSGLD = Ours("CSGLD", "CSGLD", largest=True)
DROPOUT = Ours("SGD", "MC-dropout", largest=True)

TRAINED_WITH_DROPOUT = "dropout in their training, none in ours"


@dataclass(frozen=True)
class Row:
    """A row of a published table.

    Args:
        method: as the source calls it. ours: None: the suite has no such method.
        numbers: by metric. differs: what else is different, in words.
        weights: the published ones that it is of, by their source's name; "": of no name.
    """

    method: str
    members: int
    ours: Ours | None
    numbers: Mapping[str, str]
    differs: str = ""
    weights: str = ""


@dataclass(frozen=True)
class Table:
    """A published table: rows, and what they share.

    Args:
        trials: trainings behind a number; None: the source does not say.
        updates: gradient steps a member; None: not said. scored: the examples of the metrics.
        augmentation: whether by crops and flips; None: not said.
        beside: networks of ours that it may stand beside where we have none of its own.
    """

    repository: str
    file: str
    network: str
    data: str
    augmentation: bool | None
    trials: int | None
    updates: int | None
    rows: tuple[Row, ...]
    scored: str = TEST
    beside: tuple[str, ...] = ()


@dataclass(frozen=True)
class Published:
    """A published number, in the record's metrics.

    Args:
        low, high: the least and the greatest of its trials; None: the source prints one number.
        decimals: that the source prints.
    """

    table: Table = field(repr=False)
    row: Row
    metric: str
    value: float
    low: float | None
    high: float | None
    decimals: int

    @property
    def backward_passes(self) -> int | None:
        """The gradient steps of all members; None: the source does not say."""
        return None if self.table.updates is None else self.table.updates * self.row.members


BDLX = ("cs-giung/bdlx", "examples/cifar/README.md")
GIUNG2 = ("cs-giung/giung2", "projects/CIFAR-Baselines/README.md")
BASELINES = "google/uncertainty-baselines"
ENSEMBLES = ("SamsungLabs/pytorch-ensembles", "notebooks/tabsles.ipynb")
AUGREG = "augreg_in21k_ft_in1k"
HELD_OUT = "the last 9,040 training examples"


ACCURACY, PERCENT = ("acc", "nll", "ece"), ("nll", "acc %", "ece")
"""The order of a source's columns."""


def _row(
    columns: tuple[str, ...], method: str, members: int, ours: Ours | None, numbers: str, differs: str = ""
) -> Row:
    """Return a row of numbers in the order of these columns."""
    return Row(method, members, ours, dict(zip(columns, numbers.split(), strict=True)), differs)


def _sizes(method: str, ours: Ours | None, metric: str, numbers: Mapping[int, str]) -> tuple[Row, ...]:
    """Return a row a size, of one metric."""
    return tuple(Row(method, members, ours, {metric: number}) for members, number in numbers.items())


TABLES = (
    Table(
        *BDLX,
        network=R20,
        data=CIFAR,
        augmentation=False,
        trials=8,
        updates=50_000,
        scored=HELD_OUT,
        rows=(
            Row("momentum SGD", 1, POINT, {"err": ".151", "nll": ".646"}),
            Row("AdamW", 1, BY_ADAMW, {"err": ".138 [.132, .144]", "nll": ".539 [.513, .560]"}),
            Row("IVON", 1, IVON, {"err": ".135 [.130, .139]", "nll": ".462 [.445, .474]"}),
        ),
    ),
    Table(
        *BDLX,
        network=R20,
        data=CIFAR,
        augmentation=False,
        trials=8,
        updates=5_000,
        scored=HELD_OUT,
        rows=(
            Row(
                "cyclical SGLD",
                100,
                CSGLD,
                {"err": ".153 [.148, .158]", "nll": ".473 [.456, .488]", "ambiguity": ".182 [.171, .192]"},
            ),
            Row(
                "cyclical SGHMC",
                100,
                None,
                {"err": ".132 [.130, .137]", "nll": ".409 [.400, .415]", "ambiguity": ".181 [.171, .189]"},
            ),
        ),
    ),
    Table(
        *BDLX,
        network=R20,
        data=CIFAR,
        augmentation=False,
        trials=None,
        updates=None,
        scored=HELD_OUT,
        rows=(
            Row(
                "HMC",
                240,
                None,
                {"err": ".101 [.099, .102]", "nll": ".309 [.308, .311]", "ambiguity": ".484 [.476, .492]"},
            ),
        ),
    ),
    Table(
        *BDLX,
        network=R20,
        data=CIFAR,
        augmentation=True,
        trials=8,
        updates=50_000,
        scored=HELD_OUT,
        rows=(
            Row("momentum SGD", 1, POINT, {"err": ".096", "nll": ".414"}),
            Row("AdamW", 1, BY_ADAMW, {"err": ".089 [.085, .093]", "nll": ".374 [.359, .385]"}),
            Row("IVON", 1, IVON, {"err": ".088 [.081, .092]", "nll": ".297 [.280, .311]"}),
        ),
    ),
    Table(
        *GIUNG2,
        network=R20,
        data=CIFAR,
        augmentation=False,
        trials=None,
        updates=None,
        rows=(
            _row(ACCURACY, "SGD", 1, POINT, ".8477 .5855 .0899"),
            Row("SGD, temperature", 1, TEMPERED, {"nll": ".4974"}),
            *(
                _row(ACCURACY, f"DE-{members}", members, DE, numbers)
                for members, numbers in {
                    2: ".8670 .4446 .0329",
                    4: ".8822 .3762 .0175",
                    8: ".8882 .3445 .0169",
                    16: ".8917 .3276 .0157",
                    64: ".8920 .3186 .0186",
                    256: ".8943 .3143 .0226",
                    512: ".8937 .3147 .0216",
                }.items()
            ),
            _row(ACCURACY, "MC-dropout", 30, DROPOUT, ".8723 .3803 .0098", TRAINED_WITH_DROPOUT),
            _row(ACCURACY, "HMC", 30, None, ".8998 .3222 .0423"),
            _row(ACCURACY, "HMC", 120, None, ".9026 .3114 .0488"),
            _row(ACCURACY, "HMC", 720, None, ".9071 .3067 .0592"),
        ),
    ),
    Table(
        *GIUNG2,
        network=WRN28X1,
        data=CIFAR,
        augmentation=True,
        trials=None,
        updates=None,
        beside=(R20,),
        rows=(
            _row(ACCURACY, "SGD", 1, POINT, ".9231 .2801 .0396"),
            _row(ACCURACY, "DE-2", 2, DE, ".9423 .1997 .0141"),
            _row(ACCURACY, "DE-4", 4, DE, ".9460 .1701 .0086"),
            _row(ACCURACY, "DE-8", 8, DE, ".9507 .1543 .0118"),
            _row(ACCURACY, "MC-dropout", 30, DROPOUT, ".9361 .2215 .0226", TRAINED_WITH_DROPOUT),
            _row(ACCURACY, "BE-4", 4, BE, ".9318 .2949 .0413"),
        ),
    ),
    Table(
        BASELINES,
        "baselines/cifar/README.md",
        network=WRN28X10,
        data=CIFAR,
        augmentation=True,
        trials=None,
        updates=None,
        beside=(R20,),
        rows=(
            _row(PERCENT, "deterministic", 1, POINT, ".159 96.0 .0231"),
            _row(PERCENT, "BatchEnsemble", 4, BE, ".136 96.3 .0177"),
            _row(PERCENT, "MC-dropout", 30, DROPOUT, ".145 96.1 .019", TRAINED_WITH_DROPOUT),
            _row(PERCENT, "ensemble", 4, DE, ".114 96.6 .010"),
        ),
    ),
    Table(
        BASELINES,
        "baselines/imagenet/README.md",
        network=RESNET50,
        data=IMAGENET,
        augmentation=None,
        trials=None,
        updates=None,
        rows=(
            _row(PERCENT, "deterministic", 1, POINT, ".939 76.2 .032"),
            _row(PERCENT, "BatchEnsemble", 4, BE, ".922 76.8 .037"),
            _row(PERCENT, "MC-dropout", 10, DROPOUT, ".919 76.6 .026", TRAINED_WITH_DROPOUT),
            _row(PERCENT, "ensemble", 4, DE, ".857 77.9 .017"),
        ),
    ),
    Table(
        *ENSEMBLES,
        network=RESNET50,
        data=IMAGENET,
        augmentation=None,
        trials=None,
        updates=None,
        rows=(
            Row("single", 1, POINT, {"calibrated_nll": ".938"}),
            *_sizes("DE", DE, "calibrated_nll", {1: ".935", 5: ".823", 10: ".805", 50: ".788"}),
            *_sizes("SSE", SSE, "calibrated_nll", {1: ".983", 5: ".865", 10: ".843", 50: ".830"}),
            *_sizes("FGE", None, "calibrated_nll", {1: ".929", 5: ".921", 10: ".916", 50: ".904"}),
            *_sizes("SSE", SSE, "dee", {1: "1.0", 5: "2.2", 10: "3.2", 25: "4.0", 50: "4.2"}),
            *_sizes("FGE", None, "dee", {1: "1.1", 5: "1.2", 10: "1.3", 25: "1.4", 50: "1.5"}),
            *_sizes("VI", None, "dee", {1: "1.0", 5: "1.1", 10: "1.2", 25: "1.2", 50: "1.2"}),
        ),
    ),
    *(
        Table(
            "huggingface/pytorch-image-models",
            "results/results-imagenet.csv",
            network=network,
            data=IMAGENET,
            augmentation=None,
            trials=1,
            updates=None,
            rows=(Row(AUGREG, 1, POINT, {"acc %": accuracy}, weights=AUGREG),),
        )
        for network, accuracy in {
            "ViT-T": "75.452",
            "ViT-S": "81.402",
            "ViT-B": "84.534",
            "ViT-L": "85.856",
        }.items()
    ),
    *(
        Table(
            "mlfoundations/open_clip",
            "docs/openclip_results.csv",
            network=network,
            data=IMAGENET,
            augmentation=None,
            trials=1,
            updates=None,
            rows=tuple(
                Row(tag, 1, POINT, {"acc": accuracy}, weights=tag) for tag, accuracy in several.items()
            ),
        )
        for network, several in {
            "CLIP-L": {"ViT-L-14, openai": ".7554"},
            "CLIP-g": {
                "ViT-g-14, laion2b_s12b_b42k": ".7663",
                "ViT-g-14, laion2b_s34b_b88k": ".7847",
            },
        }.items()
    ),
    *(
        Table(
            "Guoxoug/window-early-exit",
            "imagenet-sc-results.png (read off the picture, ± .002)",
            network=f"EfficientNet-B{size}",
            data=IMAGENET,
            augmentation=None,
            trials=None,
            updates=None,
            rows=(
                Row("single", 1, POINT, {"coverage %": single}),
                Row("pair", 2, DE, {"coverage %": pair}),
                Row("window cascade of the pair", 2, None, {"coverage %": cascade}),
            ),
        )
        for size, (single, pair, cascade) in enumerate(
            [
                ("54.3", "57.5", "57.0"),
                ("57.1", "60.5", "59.8"),
                ("59.0", "62.1", "61.7"),
                ("60.0", "63.2", "62.7"),
                ("62.1", "65.3", "64.9"),
            ]
        )
    ),
)

_PRINTED = re.compile(r"(\d*\.\d+)(?: \[(\d*\.\d+), (\d*\.\d+)\])?")


def read(table: Table, row: Row, metric: str, text: str) -> Published:
    """Return a number as the record's metric: accuracies as errors, percents as shares of 1.

    Raises:
        ValueError: the text is no number, or its mean lies outside its range.
    """
    match = _PRINTED.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no number; '.138' or '.138 [.132, .144]' is expected")
    decimals = len(match[1].partition(".")[2])
    numbers = [float(each) for each in match.groups() if each is not None]
    if metric.endswith(" %"):
        metric, decimals = metric.removesuffix(" %"), decimals + 2
        numbers = [number / 100 for number in numbers]
    if metric == "acc":
        metric, numbers = "err", [1 - number for number in numbers]
    metric = {"coverage": "cov_at_5_risk"}.get(metric, metric)
    value, *limits = [round(number, decimals) for number in numbers]
    low, high = sorted(limits) if limits else (None, None)
    if low is not None and high is not None and not low <= value <= high:
        raise ValueError(f"{text!r}: the mean lies outside its range")
    return Published(table, row, metric, value, low, high, decimals)


PUBLISHED = tuple(
    read(table, row, metric, text)
    for table in TABLES
    for row in table.rows
    for metric, text in row.numbers.items()
)
