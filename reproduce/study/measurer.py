"""What all measurements have in common: a writer of a unit's rows.

Rounding seeds and posterior draws are averaged within a training seed: a row's value is the mean over
``settings.draws`` ensembles. NLL and ECE are kept at every size, the other metrics at the sizes that tables
and claims look at.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

import lpe
from lpe.ensembles.base import Ensemble
from lpe.evaluation.examples import ExampleMetrics, Table
from lpe.evaluation.metrics import METRICS
from lpe.modules import dtype_name, parameter_count
from lpe.number_systems.naming import Systems
from lpe.records import Records
from reproduce.study.examples import keep
from reproduce.study.records import BETTER_THAN_RTN
from reproduce.study.scale import Batch, Data
from reproduce.study.session import Session
from reproduce.study.units import Unit, draw_seed, reported_sizes
from reproduce.study.unrounded import PARAMETERS, RE_ESTIMATED
from reproduce.study.unrounded import scaled as scaled_name

MEASURED = [*METRICS, "calibrated_nll"]
EVERY_SIZE = ("nll", "ece")


class Measurer:
    """Measures the methods of one unit and writes their rows; of a method whose rows are there, nothing.

    Args:
        point: the record's name of what is measured: a point's, or a family's.
        substrate: the record's name of it; None: the unit's.
    """

    def __init__(self, session: Session, unit: Unit, point: str, substrate: str | None = None) -> None:
        self.settings = session.scale.settings
        self.working = session.working
        self.records = Records(session.records[unit])
        self.draws = [draw_seed(unit.seed, draw) for draw in range(self.settings.draws)]
        self.seed = unit.seed
        self.data: Data = session.scale.substrates[unit.substrate].source.load(unit.seed)
        self.common: dict[str, object] = {
            "scale": session.scale.name,
            "substrate": substrate or unit.substrate,
            "point": point,
            "seed": unit.seed,
        }

    def lacks(self, method: str, system: str = "fp32", rounding: str = "", **further: object) -> bool:
        """Tell whether there are no rows of this method yet; ``further`` columns narrow them."""
        keys = {**self.common, "method": method, "number_system": system, "rounding": rounding}
        return not self.records.has(**keys, **further)

    def add(self, method: str, system: str, rounding: str, rows: Iterable[dict[str, object]]) -> None:
        """Keep rows that have size, metric, value, memory_bits and backward_passes."""
        named = {**self.common, "method": method, "number_system": system, "rounding": rounding}
        self.records.add([{**named, **row} for row in rows])

    def measure(
        self,
        method: str,
        system: str,
        rounding: str,
        make: Callable[[int], Ensemble],
        drawn: bool = True,
        sizes: Collection[int] | None = None,
        beaten: float | None = None,
    ) -> None:
        """Measure a method that the record lacks, averaged over ensembles.

        Args:
            make: seed of draws → ensemble. drawn: whether that seed matters.
            sizes: which get a calibrated NLL and every metric; None: ``reported_sizes``.
            beaten: an NLL; the record gets the share of members that are below it. None: it does not.
        """
        if not self.lacks(method, system, rounding):
            return
        frames, examples = [], []
        for seed in self.draws if drawn else self.draws[:1]:
            ensemble = make(seed)
            if sizes is None:
                sizes = reported_sizes(self.settings, len(ensemble))
            examples.append(ExampleMetrics())
            frames.append(self.data.scored.evaluate(ensemble, sizes, examples[-1]))
        assert sizes is not None
        # First the examples, then the rows: what the record has, the examples' intervals have as well.
        self.keep_examples(method, system, rounding, [each.tables() for each in examples])
        values = np.mean([frame[MEASURED].to_numpy() for frame in frames], axis=0)
        rows: list[dict[str, object]] = []
        for n in range(1, len(ensemble) + 1):
            costs = {
                "size": n,
                "memory_bits": ensemble.memory_bits(n),
                "backward_passes": ensemble.backward_passes(n) or 0,
            }
            for column, metric in enumerate(MEASURED):
                if n in sizes or metric in EVERY_SIZE:
                    rows.append({**costs, "metric": metric, "value": float(values[n - 1, column])})
            bits = ensemble.memory_bits(n, storage="generator")
            rows.append({**costs, "metric": "generator_bits", "value": float(bits)})
            if beaten is not None and n == self.settings.claim_size:
                better = np.mean([_member_nlls(frame)[:n] < beaten for frame in frames])
                rows.append({**costs, "metric": BETTER_THAN_RTN, "value": float(better)})
        self.add(method, system, rounding, rows)

    def keep_examples(
        self, method: str, system: str, rounding: str, draws: Sequence[Mapping[str, Table]]
    ) -> None:
        """Keep the values of each test example, averaged over ensembles as the rows are.

        Args:
            draws: each ensemble's values by metric.
        """
        named = {**self.common, "method": method, "number_system": system, "rounding": rounding}
        averaged = {
            metric: (sizes, torch.stack([each[metric][1] for each in draws]).double().mean(dim=0))
            for metric, (sizes, _) in draws[0].items()
        }
        count = next(iter(averaged.values()))[1].shape[1]
        images = self.data.images
        if images is None:
            images = torch.arange(count) + (self.seed << 32)
        keep(self.working, named, images, averaged)

    def known(self, method: str, metric: str, value: float) -> None:
        """Write a number that training reported, such as a posterior's std, as a metric of size 1."""
        if self.lacks(method, metric=metric):
            row = {"size": 1, "metric": metric, "value": value, "memory_bits": 0, "backward_passes": 0}
            self.add(method, "fp32", "", [row])

    def file_bytes(self, method: str, system: str, rounding: str, make: Callable[[int], Ensemble]) -> None:
        """Measure the bytes of real files of ensembles of the tables' sizes, at training seed 0."""
        keys = {**self.common, "method": method, "number_system": system, "rounding": rounding}
        if self.seed or self.records.has(**keys, metric="file_bytes"):
            return
        rows: list[dict[str, object]] = []
        with tempfile.TemporaryDirectory() as folder:
            for size in self.settings.table_sizes:
                ensemble = make(size)
                written = lpe.save(ensemble, Path(folder) / "ensemble.safetensors")
                rows.append(
                    {
                        "size": size,
                        "metric": "file_bytes",
                        "value": float(written),
                        "memory_bits": ensemble.memory_bits(),
                        "backward_passes": ensemble.backward_passes() or 0,
                    }
                )
        self.add(method, system, rounding, rows)

    def single(self, net: nn.Module, backward_passes: int) -> None:
        """Measure the single model, as it is and with temperature scaling, and count its parameters.

        It is called by its dtype: FP32, BF16 … A network with batch norms is measured once more with their
        statistics re-estimated, as those of its members are.
        """
        name = dtype_name(net)
        ensemble = lpe.DeepEnsemble([net], backward_passes=[backward_passes])
        self.measure(name, name.lower(), "", lambda _: ensemble, drawn=False)
        if self.lacks(scaled_name(name), name.lower()):
            scaled = self.data.scored.evaluate_scaled(ensemble)
            # One number more than the model: the temperature.
            costs = {"memory_bits": ensemble.memory_bits() + 32, "backward_passes": backward_passes}
            rows = [{"size": 1, "metric": m, "value": value, **costs} for m, value in scaled.items()]
            self.add(scaled_name(name), name.lower(), "", rows)
        if self.lacks(name, name.lower(), metric=PARAMETERS):
            costs = {"memory_bits": ensemble.memory_bits(), "backward_passes": 0}
            row = {"size": 1, "metric": PARAMETERS, "value": float(parameter_count(net)), **costs}
            self.add(name, name.lower(), "", [row])
        if self.data.statistics is not None:
            unrounded = lpe.FullPrecision()

            def again(_: int) -> Ensemble:
                made = lpe.LowPrecisionEnsemble(
                    net, unrounded, 1, 0, "nearest", batches=self.data.statistics, refresh="absolute"
                )
                made.training_budget = backward_passes
                return made

            self.measure(f"{name}{RE_ESTIMATED}", name.lower(), "", again, drawn=False)

    def low_precision(
        self, net: nn.Module, systems: Iterable[Systems], size: int, backward_passes: int
    ) -> None:
        """Measure RTN and LPE-BSR of a network under several number systems.

        With batch norms there are both once more, each member's statistics re-estimated.
        """
        ways: list[tuple[str, Sequence[Batch] | None]] = [("", None)]
        if self.data.statistics is not None:
            ways.append((RE_ESTIMATED, self.data.statistics))
        for system in systems:
            for method, rounding, members in (("RTN", "nearest", 1), ("LPE-BSR", "bernoulli", size)):
                for suffix, statistics in ways:

                    def make(
                        seed: int,
                        system: Systems = system,
                        rounding: str = rounding,
                        members: int = members,
                        statistics: Sequence[Batch] | None = statistics,
                    ) -> Ensemble:
                        made = lpe.LowPrecisionEnsemble(
                            net, system, members, seed, rounding, batches=statistics
                        )
                        made.training_budget = backward_passes
                        return made

                    drawn = rounding == "bernoulli"
                    beaten = self._rtn_nll(f"RTN{suffix}", system.name) if drawn else None
                    self.measure(f"{method}{suffix}", system.name, rounding, make, drawn=drawn, beaten=beaten)

    def _rtn_nll(self, method: str, system: str) -> float:
        keys = {**self.common, "method": method, "number_system": system, "size": 1, "metric": "nll"}
        return float(self.records.select(**keys)["value"].iloc[0])


def _member_nlls(frame: pd.DataFrame) -> np.ndarray:
    """Return each member's own NLL [members], from the means over the first 1 … M."""
    totals = frame["average_loss"].to_numpy() * frame["size"].to_numpy()
    return np.diff(totals, prepend=0.0)
