"""What all measurements have in common: data, and a writer of a unit's rows."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from torch import nn

import lpe
from lpe.ensembles.base import Ensemble
from lpe.evaluation.metrics import METRICS
from lpe.evaluation.predict import evaluate_temperature_scaled
from lpe.modules import dtype_name, parameter_count
from lpe.number_systems.naming import Systems
from lpe.records import Records
from lpe.substrates import digits
from reproduce.study.session import Session
from reproduce.study.units import Unit, draw_seed, reported_sizes
from reproduce.study.unrounded import PARAMETERS
from reproduce.study.unrounded import scaled as scaled_name

MEASURED = [*METRICS, "calibrated_nll"]


EVERY_SIZE = ("nll", "ece")


class TestData(Protocol):
    """The data that an ensemble is scored on."""

    def evaluate(self, ensemble: Ensemble, calibrated: Collection[int]) -> pd.DataFrame:
        """Return a row per size 1 … M with the columns MEASURED, the calibrated NLL at some sizes."""
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

    def evaluate(self, ensemble: Ensemble, calibrated: Collection[int]) -> pd.DataFrame:
        """Return a row per size; see :func:`lpe.evaluate`."""
        return lpe.evaluate(ensemble, self.test, calibrated=calibrated)

    def evaluate_scaled(self, ensemble: Ensemble) -> dict[str, float]:
        """Return the metrics of the whole ensemble at the temperature of the validation batches."""
        return evaluate_temperature_scaled(ensemble, self.test, self.validation)


class Measurer:
    """A writer of the rows of one unit: what all of them have in common, and what is there already.

    Args:
        data: what is scored; None: the digits images of the unit's seed.
    """

    def __init__(
        self,
        session: Session[Any],
        unit: Unit,
        point_name: str,
        substrate: str | None = None,
        data: TestData | None = None,
    ) -> None:
        self.scale = session.scale
        self.records = Records(session.working / unit.file)
        self.draws = [draw_seed(unit.seed, draw) for draw in range(self.scale.draws)]
        self.seed = unit.seed
        self.data = data or digits_data(unit.seed)
        self.common: dict[str, object] = {
            "scale": self.scale.name,
            "substrate": substrate or self.scale.substrate,
            "point": point_name,
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
    ) -> None:
        """Measure a method that the record lacks, averaged over ensembles.

        Args:
            make: seed of draws → ensemble. drawn: whether that seed matters.
            sizes: which get a calibrated NLL and every metric; None: ``reported_sizes``.
        """
        if not self.lacks(method, system, rounding):
            return
        frames = []
        for seed in self.draws if drawn else self.draws[:1]:
            ensemble = make(seed)
            if sizes is None:
                sizes = reported_sizes(self.scale, len(ensemble))
            frames.append(self.data.evaluate(ensemble, sizes))
        assert sizes is not None
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
        self.add(method, system, rounding, rows)

    def file_bytes(self, method: str, system: str, rounding: str, make: Callable[[int], Ensemble]) -> None:
        """Measure the bytes of real files of ensembles of the tables' sizes, at training seed 0."""
        keys = {**self.common, "method": method, "number_system": system, "rounding": rounding}
        if self.seed or self.records.has(**keys, metric="file_bytes"):
            return
        rows: list[dict[str, object]] = []
        with tempfile.TemporaryDirectory() as folder:
            for size in self.scale.table_sizes:
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
        """Measure the single model, as it is and with temperature scaling (fitted on validation examples).

        It is called by its dtype: FP32, BF16 …
        """
        ensemble = lpe.DeepEnsemble([net], backward_passes=[backward_passes])
        name = dtype_name(net)
        self.measure(name, name.lower(), "", lambda _: ensemble, drawn=False)
        if self.lacks(scaled_name(name), name.lower()):
            scaled = self.data.evaluate_scaled(ensemble)
            # One number more than the model: the temperature.
            costs = {"memory_bits": ensemble.memory_bits() + 32, "backward_passes": backward_passes}
            rows = [{"size": 1, "metric": m, "value": value, **costs} for m, value in scaled.items()]
            self.add(scaled_name(name), name.lower(), "", rows)

    def parameters(self, net: nn.Module) -> None:
        """Record how many parameters the single model has."""
        name = dtype_name(net)
        if self.lacks(name, name.lower(), metric=PARAMETERS):
            costs = {"memory_bits": lpe.DeepEnsemble([net]).memory_bits(), "backward_passes": 0}
            row = {"size": 1, "metric": PARAMETERS, "value": float(parameter_count(net)), **costs}
            self.add(name, name.lower(), "", [row])

    def low_precision(
        self, net: nn.Module, systems: Iterable[Systems], size: int, backward_passes: int
    ) -> None:
        """Measure RTN and LPE-BSR of a network under several number systems."""
        for system in systems:
            for method, rounding, members in (("RTN", "nearest", 1), ("LPE-BSR", "bernoulli", size)):

                def make(
                    seed: int, system: Systems = system, rounding: str = rounding, members: int = members
                ) -> Ensemble:
                    made = lpe.LowPrecisionEnsemble(net, system, members, seed, rounding)
                    made.training_budget = backward_passes
                    return made

                self.measure(method, system.name, rounding, make, drawn=rounding == "bernoulli")


def digits_data(seed: int) -> Classification:
    """Return the test and validation images of a training seed, one batch each."""
    data = digits.load(seed)
    return Classification([data.test], [data.validation])
