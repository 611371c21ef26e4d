"""What a scale is: substrates, each a network on data with the recipes of its trainings, and settings.

Everything that is not a scale's own value asks these for what they offer: which points, posteriors and
families the main substrate has, of which sizes there are networks, which large models there are.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import pandas as pd
from torch import Tensor, nn

import lpe
from lpe.ensembles.base import Ensemble
from lpe.errors import InputError
from lpe.evaluation.examples import ExampleMetrics
from lpe.evaluation.predict import evaluate_temperature_scaled
from lpe.number_systems.grids import ScaleAxis
from reproduce.study.closure import Without
from reproduce.study.keys import data_hash
from reproduce.study.run import Run
from reproduce.study.subjects import Subject

Batch = tuple[Any, Tensor]
Split = tuple[Tensor, Tensor]
"""Examples [examples, …] and their classes, int64 [examples]."""


# Data.


class TestData(Protocol):
    """The data that an ensemble is scored on."""

    def evaluate(
        self, ensemble: Ensemble, calibrated: Collection[int], examples: ExampleMetrics | None = None
    ) -> pd.DataFrame:
        """Return a row per size 1 … M with every metric, the calibrated NLL at some sizes.

        Args:
            examples: takes up the values of each example, whose means are the metrics.
        """
        ...

    def evaluate_scaled(self, ensemble: Ensemble) -> dict[str, float]:
        """Return the metrics of the whole ensemble at a temperature that was fitted on other examples."""
        ...


@dataclass(frozen=True)
class Classification:
    """Test data of batches (inputs, class indices), read anew for each ensemble.

    Args:
        test: scored. validation: for the temperature.
    """

    test: Iterable[Any]
    validation: Iterable[Any]

    def evaluate(
        self, ensemble: Ensemble, calibrated: Collection[int], examples: ExampleMetrics | None = None
    ) -> pd.DataFrame:
        """Return a row per size; see :func:`lpe.evaluate`."""
        return lpe.evaluate(ensemble, self.test, calibrated=calibrated, examples=examples)

    def evaluate_scaled(self, ensemble: Ensemble) -> dict[str, float]:
        """Return the metrics of the whole ensemble at the temperature of the validation batches."""
        return evaluate_temperature_scaled(ensemble, self.test, self.validation)


@dataclass(frozen=True)
class Data:
    """The data of one training seed.

    Args:
        scored: what rows are scored on. tuning: examples that no row is scored on.
        train: the training examples; None: they are no tensors, or there are none.
        validation, test: batches of the other two, readable again and again; empty: they are no tensors.
        statistics: training batches on which the batch-norm statistics of members are re-estimated; None: the
            networks have no batch norm.
        images: int64 [test examples]: which example of the whole data set each is, the same at every seed;
            None: every seed has examples of its own.
        planes: batches that landscapes are drawn on; None: those of ``test``.
    """

    scored: TestData
    tuning: TestData
    train: Split | None
    validation: Sequence[Batch]
    test: Sequence[Batch]
    statistics: Sequence[Batch] | None
    images: Tensor | None
    planes: Sequence[Batch] | None = None

    @property
    def test_count(self) -> int:
        """The number of test examples."""
        return sum(len(targets) for _, targets in self.test)


class Source(Protocol):
    """A network on data. A dataclass: its fields are part of every key."""

    def load(self, seed: int) -> Data:
        """Return the data of a training seed."""
        ...


def digest_of(source: Any, seed: int) -> str:
    """Return a hash of a source's data at a training seed, for keys.

    It is ``source.digest(seed)`` of a source that hashes what it loads itself, for not all are tensors, or
    large weights come with them; else of all that it loads.
    """
    return str(source.digest(seed)) if hasattr(source, "digest") else _digest_of_loaded(source, seed)


@functools.cache
def _digest_of_loaded(source: Source, seed: int) -> str:
    data = source.load(seed)
    kind = type(source).__name__
    if data.train is None and not data.test:
        raise InputError(f"{kind} loads no tensors; give it digest(seed), a hash of its data")
    parts = {field.name: getattr(data, field.name) for field in dataclasses.fields(data)}
    try:
        return data_hash(parts)
    except InputError as error:
        raise InputError(f"{kind}: {error}; or give it digest(seed), a hash of its data") from None


def bare(source: Source) -> Without:
    """Return a source's class for a key, without its methods ``load`` and ``digest``.

    The key has a hash of the data, so that other code which loads the same data makes no new key.
    """
    return Without(type(source), ("load", "digest"))


def held(value: object) -> frozenset[type]:
    """Return the classes of all dataclasses that a source or recipe holds, whose methods make results too."""
    if isinstance(value, Mapping):
        inside: Iterable[object] = value.values()
    elif isinstance(value, list | tuple):
        inside = value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        inside = [getattr(value, field.name) for field in dataclasses.fields(value)]
    else:
        return frozenset()
    found = {type(each) for each in inside if dataclasses.is_dataclass(type(each))}
    return frozenset(found).union(*(held(each) for each in inside))


class Trainable(Source, Protocol):
    """A source whose networks are trained here."""

    @property
    def classes(self) -> int:
        """The number of classes."""
        ...

    def network(self, classes: int, seed: int) -> nn.Module:
        """Return a freshly initialised network; the global generator is left as it was."""
        ...

    def batches(self, split: Split, batch: int, seed: int) -> Callable[[int], Iterable[Batch]]:
        """Return a function: epoch → shuffled batches, augmented where the source does so."""
        ...


# Trained networks.


@dataclass(frozen=True)
class Point:
    """A solution: its network in eval mode, its posterior where it has one, and what it cost.

    Args:
        posterior: (size, seed) → ensemble of draws; None for a point estimate.
        backward_passes: of the pre-training and the fine-tuning, one minibatch each.
        info: what the store keeps beside the weights.
    """

    name: str
    net: nn.Module
    posterior: Callable[[int, int], Ensemble] | None
    backward_passes: int
    info: Mapping[str, Any]


@dataclass(frozen=True)
class Family:
    """An ensemble of several trained networks.

    Args:
        make: seed of draws → the ensemble, its training budget set.
        draws: whether the members are drawn: if not, ``make`` gives the same for every seed.
        info: what the store keeps of it beside the weights.
    """

    name: str
    make: Callable[[int], Ensemble]
    draws: bool
    info: Mapping[str, Any]


class PointRecipe(Protocol):
    """A recipe of a point: all that determines it beside the source, its data and the seed."""

    has_posterior: ClassVar[bool]

    def point(self, run: Run, substrate: Substrate, seed: int, replica: int = 0) -> Point:
        """Return the point of a training seed; replicas share what they start from."""
        ...


class FamilyRecipe(Protocol):
    """A recipe of an ensemble of several trained networks.

    One that has a ``saw_validation`` that is true trains members on validation examples of the seed: nothing
    of the ensemble is fitted there.
    """

    def family(self, run: Run, substrate: Substrate, seed: int) -> Family:
        """Return the family of a training seed."""
        ...


@dataclass(frozen=True)
class Started:
    """A network that a training starts from.

    Args:
        backward_passes: that it took. key: all that determines it beside the seed; None: nothing does.
    """

    net: nn.Module
    backward_passes: int
    key: Mapping[str, object] | None


class StartRecipe(Protocol):
    """A recipe of what all trainings of a seed start from."""

    def start(self, run: Run, substrate: Substrate, seed: int, replica: int) -> Started:
        """Return a network of a trained trunk and a new head."""
        ...


# Substrates and scales.

INTERVAL_UNITS = ("seed", "same images", "example")
"""What an interval is of; see ``reproduce.judge.verdicts``."""


@dataclass(frozen=True)
class Rivals:
    """Settings of the ensembles that need no training but tuning.

    Args:
        stds: of Gaussian noise. rates: of MC-dropout. One of a kind: it was chosen before the run (see
            ``reproduce.tune``). More: the run chooses that of the least NLL on the tuning examples.
    """

    stds: tuple[float, ...]
    rates: tuple[float, ...]


@dataclass(frozen=True)
class Shifted:
    """What networks are shown beside the test examples.

    Args:
        clean: those of the test examples that are corrupted, as they are. corrupted: by (kind, severity),
            made when asked for. foreign: examples of no class, by name, their targets 0 and not looked at.
    """

    clean: Sequence[Batch]
    corrupted: Mapping[tuple[str, int], Sequence[Batch]]
    foreign: Mapping[str, Sequence[Batch]]


class Shifts(Protocol):
    """Corrupted and foreign examples of a substrate. A dataclass: its fields are part of keys."""

    def load(self, seed: int) -> Shifted:
        """Return those of a training seed."""
        ...

    def digest(self, seed: int) -> str:
        """Return a hash of them, for keys."""
        ...

    @property
    def words(self) -> str:
        """How many examples are shown corrupted, such as "corrupted: 1,000"."""
        ...


@dataclass(frozen=True)
class Beyond:
    """Settings of what goes beyond the paper: the spread, shift, selective prediction, rivals, why it works.

    The three grids are of one length, so that each method is tuned by as many ensembles.

    Args:
        size: members of every ensemble. seeds: training seeds, the first ones.
        spread_bits: width of the codes whose step is spread. spreads, stds, rates: grids of the spread, of
            Gaussian noise's std and of MC-dropout's rate, tuned on the tuning examples.
        pool: members of which the best ``size`` by NLL on the tuning examples are selected.
        calibration: training examples that error feedback sees.
        views: of test-time augmentation, which crops and flips; 0: it is left out, as where flips change the
            class. sensitivity: members a layer that is rounded alone.
        shifts: corrupted and foreign examples; None: the data offer none.
    """

    size: int
    seeds: int
    spread_bits: int
    spreads: tuple[float, ...]
    stds: tuple[float, ...]
    rates: tuple[float, ...]
    pool: int
    calibration: int
    views: int
    sensitivity: int
    shifts: Shifts | None


class Pieces(Protocol):
    """Weights and data that lie elsewhere."""

    def needed(self) -> tuple[str, ...]:
        """Return a line for each piece, with its licence."""
        ...

    def missing(self) -> tuple[str, ...]:
        """Return, for each piece, what is to be done; "" for one that is there."""
        ...


@dataclass(frozen=True)
class Substrate:
    """A network on data.

    Args:
        name: as records have it. short: without the scale. example: the noun of every text: image, question,
            token. start: what trainings start from; None: a new network.
        points: recipes by name, the point estimate first. families: recipes by name.
        rivals: None: no noise, no dropout. pieces: None: nothing lies elsewhere. has_training: whether its
            data have training examples. remarks: notes of the tables that show it.
        most_seeds: training seeds of what has fewer than the scale, by a unit's ``what``: the first ones.
        subject: as published tables have it, for ``reproduce.external``; None: no table has.
    """

    name: str
    short: str
    example: str
    source: Any
    start: StartRecipe | None
    points: Mapping[str, PointRecipe]
    families: Mapping[str, FamilyRecipe]
    rivals: Rivals | None
    pieces: Pieces | None
    has_training: bool
    remarks: tuple[str, ...]
    most_seeds: Mapping[str, int]
    subject: Subject | None

    @property
    def estimate(self) -> str:
        """The name of the point estimate: the first point."""
        return next(iter(self.points))

    @property
    def posteriors(self) -> tuple[str, ...]:
        """The names of the points that have a posterior."""
        return tuple(name for name, recipe in self.points.items() if recipe.has_posterior)

    def point(self, run: Run, name: str, seed: int, replica: int = 0) -> Point:
        """Return the point of that name at a training seed."""
        return self.points[name].point(run, self, seed, replica)

    def family(self, run: Run, name: str, seed: int) -> Family:
        """Return the family of that name at a training seed."""
        return self.families[name].family(run, self, seed)


def saw_validation(substrate: Substrate, name: str) -> bool:
    """Tell whether members of a family, or a point, were trained on validation examples of the training seed.

    So it is where they are trainings of several seeds, each of which validates on other examples.
    """
    return bool(getattr(substrate.families.get(name), "saw_validation", False))


@dataclass(frozen=True)
class Landscape:
    """Settings of the landscapes and member clouds of one training seed.

    Args:
        resolution: lines of a grid along each axis. margin: around the points, as a share of their extent.
        cloud: members of each method that are projected on a plane.
        split: "test" or "validation": whose examples the planes are measured on. examples: how many; None:
            all of the split.
    """

    seed: int
    resolution: int
    margin: float
    cloud: int
    split: str
    examples: int | None


@dataclass(frozen=True)
class Settings:
    """Settings of what is measured and shown.

    Args:
        size: members of the largest ensembles drawn from one network. table_sizes: sizes that tables show.
        draws: ensembles of other rounding or posterior seeds that are averaged within a training seed.
        bits: widths of LPE-BSR. best_bits: of what is shown and judged at one width.
        claim_size: members where a claim's size is not given by a budget.
        memory_models: equal memory is the memory of this many members of the FP32 method.
        noise_share: rounding and noise of its variance are the same (claim C12) within this share of
            LPE-BSR's gain over FP32; None: within 1 % of FP32's NLL.
        expansion: members of each X + LPE-BSR member.
        table_bits: widths of tables 1 and 4. axis_bits: widths under other ``scale_axes``.
        number_systems: names, in table 7. large_bits: figure 7's width. large_size: members there.
        equal_bits: whether members are compared with one network of as many bits (claim C13).
    """

    size: int
    table_sizes: tuple[int, ...]
    draws: int
    bits: tuple[int, ...]
    best_bits: int
    claim_size: int
    memory_models: int
    noise_share: float | None
    expansion: int
    table_bits: tuple[int, ...]
    scale_axes: tuple[ScaleAxis, ...]
    axis_bits: tuple[int, ...]
    number_systems: tuple[str, ...]
    large_bits: int
    large_size: int
    equal_bits: bool
    landscape: Landscape


@dataclass(frozen=True)
class Setting:
    """A setting of a sweep.

    Args:
        method: what is tuned. words: the setting. kept: whether it is the scale's own. make: returns the
            single model, the ensemble, and what is known of its posterior, by column of the sweep.
        data: the examples that decide; no row is scored on them.
    """

    method: str
    words: str
    kept: bool
    make: Callable[[], tuple[Ensemble, Ensemble, Mapping[str, float]]]
    data: TestData


class Sweep(Protocol):
    """The settings of a scale's sweep; see ``reproduce.tune``."""

    def __call__(self, run: Run, seed: int) -> Iterable[Setting]:
        """Yield the settings of one tuning seed."""
        ...


@dataclass(frozen=True)
class Scale:
    """All that determines the numbers of a scale.

    Args:
        title: what it is. result: what it reaches. launch: the line that runs it, on what, how long.
        main: the network of most figures; None: there is none. sizes: of it, the smallest first.
        whole: the main network with all test examples, for what is of its points alone, where ``main`` has a
            part of them; None: ``main`` has them all.
        large: models of figure 7, the smallest first, by what they have in common.
        compared: of the large ones, that of table 6; None: there is none.
        seeds: training seeds. claim_seeds: of what a training-free claim is judged on. cost_seeds: of the
            cost picture. unit: what an interval is of, one of ``INTERVAL_UNITS``. standing: a sentence on
            what its verdicts are worth; "": none.
        threads: None: as many as torch takes. device: "cpu", or "auto": the GPU where there is one.
        heading: a line above every figure; "": none. points_heading: above those of points alone.
        conditions: notes of every table. sweep: None: nothing is tuned here.
        options: of the command line, from which the scale is made again; see ``reproduce.scales.find``.
        prepare: trains what all units need and returns the scale with it; None: nothing is needed.
        rehearse: runs substrates without their weights; None: there is nothing to rehearse.
        beyond: of the main network, what goes beyond the paper; None: that is not measured.
    """

    name: str
    title: str
    result: str
    launch: str
    main: Substrate | None
    whole: Substrate | None
    sizes: tuple[Substrate, ...]
    large: Mapping[str, tuple[Substrate, ...]]
    compared: Substrate | None
    settings: Settings
    seeds: int
    claim_seeds: int
    cost_seeds: int
    unit: str
    standing: str
    threads: int | None
    device: str
    heading: str
    points_heading: str
    conditions: tuple[str, ...]
    sweep: Sweep | None
    rehearse: Callable[[Sequence[Substrate]], None] | None
    options: Mapping[str, object]
    prepare: Callable[[], Scale] | None
    beyond: Beyond | None

    @property
    def of_points(self) -> Substrate | None:
        """The network of the figures that are of points alone: ``whole``, else ``main``."""
        return self.whole or self.main

    @property
    def substrate(self) -> str:
        """The name of the main substrate; the scale's own where it has none."""
        return self.name if self.main is None else self.main.name

    @property
    def points_substrate(self) -> str:
        """The name of ``of_points``; the scale's own where there is none."""
        return self.name if self.of_points is None else self.of_points.name

    @property
    def substrates(self) -> dict[str, Substrate]:
        """Every substrate by its name."""
        every = [each for each in (self.main, self.whole) if each is not None] + [*self.sizes]
        every += [substrate for group in self.large.values() for substrate in group]
        return {substrate.name: substrate for substrate in every}

    @property
    def points(self) -> tuple[str, ...]:
        """The names of the main substrate's points."""
        return () if self.main is None else tuple(self.main.points)

    @property
    def posteriors(self) -> tuple[str, ...]:
        """The names of the main substrate's points that have a posterior."""
        return () if self.main is None else self.main.posteriors

    @property
    def families(self) -> tuple[str, ...]:
        """The names of the main substrate's families."""
        return () if self.main is None else tuple(self.main.families)

    @property
    def own_size(self) -> Substrate | None:
        """The one of ``sizes`` that is the main network: the same source, and the same point estimate."""
        main = self.main
        if main is None or not main.points:
            return None

        def same(size: Substrate) -> bool:
            return size.source == main.source and size.points.get(size.estimate) == main.points[main.estimate]

        return next(filter(same, self.sizes), None)

    @property
    def next_larger(self) -> Substrate | None:
        """The one of ``sizes`` that follows the main network; None: there is none."""
        if self.own_size is None:
            return None
        following = self.sizes[self.sizes.index(self.own_size) + 1 :]
        return following[0] if following else None

    def described(self) -> dict[str, object]:
        """Return what determines its numbers, as data, for keys and provenance."""
        return {
            "name": self.name,
            "settings": self.settings,
            "substrates": {
                name: {
                    "source": each.source,
                    "start": each.start,
                    "points": dict(each.points),
                    "families": dict(each.families),
                    "rivals": each.rivals,
                }
                for name, each in self.substrates.items()
            },
            "seeds": {"training": self.seeds, "claims": self.claim_seeds, "cost": self.cost_seeds},
            "threads": self.threads,
            "beyond": self.beyond,
            "options": dict(self.options),
        }
