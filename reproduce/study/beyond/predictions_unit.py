"""The unit whose predictions are kept: every method's, of every set of examples, each in a file.

The files lie in the folder beside the unit's working record, ``predictions/METHOD/EXAMPLES.safetensors``, as
:func:`lpe.evaluate` writes them. What is whole there is not run again, and a file that was begun is gone on
with, so that a run that is killed loses next to nothing. The unit's rows are computed from the files alone.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from torch import nn

import lpe
from lpe.ensembles.base import Ensemble
from lpe.errors import InputError
from lpe.evaluation.predictions import read_predictions
from lpe.records import Records
from reproduce.study.beyond.methods import backward_passes, chosen_settings, methods
from reproduce.study.beyond.names import CLEAN, UNCORRUPTED, VALIDATION, Method, corruption_name, shown
from reproduce.study.beyond.scored import rows
from reproduce.study.beyond.tuning import beyond_of
from reproduce.study.examples import place_of
from reproduce.study.scale import Batch, Data, Shifted, saw_validation
from reproduce.study.session import Session
from reproduce.study.units import Unit

FOLDER = "predictions"
"""Of the folder beside a working record."""

SETTING = "setting"
"""The metric that is a method's tuned setting."""

Examples = dict[str, Callable[[], Sequence[Batch]]]


class KeptMembers(Ensemble):
    """An ensemble whose members are made once and stay, for those that take long to make.

    Args:
        ensemble: what they are members of.
    """

    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__(len(ensemble))
        self.ensemble = ensemble
        self._made: dict[int, nn.Module] = {}

    def member(self, index: int) -> nn.Module:
        """Return member ``index``, the same module each time."""
        if index not in self._made:
            self._made[index] = self.ensemble.member(index)
        return self._made[index]

    def memory_bits(self, n: int | None = None, storage: str = "members") -> int:
        """Return the ensemble's."""
        return self.ensemble.memory_bits(n, storage)

    def backward_passes(self, n: int | None = None) -> int | None:
        """Return the ensemble's."""
        return self.ensemble.backward_passes(n)

    def describe(self) -> str:
        """Return the ensemble's table."""
        return self.ensemble.describe()

    def notes(self) -> list[str]:
        """List the ensemble's notes."""
        return self.ensemble.notes()

    def check_unchanged(self) -> None:
        """Raise InputError if the network that members are made of is not what it was."""
        self.ensemble.check_unchanged()

    def _see(self, inputs: Any) -> None:
        self.ensemble.check_reach(inputs)

    @property
    def members_are_stored(self) -> bool:
        """True: asking again costs nothing."""
        return True


def measure_predictions(session: Session, unit: Unit) -> None:
    """Write the predictions of every method at one training seed, and the rows that are computed from them.

    Raises:
        InputError: the scale has no ``beyond``; as :func:`lpe.evaluate`.
    """
    substrate = session.scale.substrates[unit.substrate]
    shifted = _shifted(session, unit.seed)
    examples = examples_of(substrate.source.load(unit.seed), shifted)
    made = methods(session, unit)
    written = {method: {name: file_of(session.working, method, name) for name in examples} for method in made}
    _check_apart(written)
    with session.progress(len(made) * len(examples), f"seed {unit.seed}: predictions") as bar:
        for method, make in made.items():
            bar.set_postfix_str(method.method)
            predict(make, written[method], examples)
            bar.update(len(examples))
    corrupted = [] if shifted is None else list(shifted.corrupted)
    foreign = [] if shifted is None else list(shifted.foreign)
    size = beyond_of(session).size
    unfitted = [method for method in made if saw_validation(substrate, method.point)]
    scored = rows(written, corrupted, foreign, sorted({1, size}), unfitted)
    settings = chosen_settings(session, substrate, unit.seed)
    tuned = (
        (method, CLEAN, {"size": size, "metric": SETTING, "value": value, "memory_bits": 0})
        for method, value in settings.items()
    )
    budget = functools.cache(functools.partial(backward_passes, session, substrate, unit.seed))
    Records(session.records[unit]).add(
        {
            "scale": session.scale.name,
            "substrate": shown(unit.substrate, name),
            "point": method.point,
            "method": method.method,
            "number_system": method.number_system,
            "rounding": method.rounding,
            "seed": unit.seed,
            "backward_passes": budget(method.point, int(str(row["size"]))),
            **row,
        }
        for method, name, row in chain(scored, tuned)
    )


def examples_of(data: Data, shifted: Shifted | None) -> Examples:
    """Return the sets of examples that predictions are made of, each with what gives its batches.

    They are the validation examples, the test examples, those of them that are corrupted, as they are and
    under each corruption, and the foreign ones.
    """
    found: Examples = {VALIDATION: lambda: data.validation, CLEAN: lambda: data.test}
    if shifted is None:
        return found
    if shifted.corrupted:
        found[UNCORRUPTED] = lambda: shifted.clean
    for key in shifted.corrupted:
        found[corruption_name(*key)] = lambda key=key: shifted.corrupted[key]  # type: ignore[misc]
    for name in shifted.foreign:
        found[name] = lambda name=name: shifted.foreign[name]  # type: ignore[misc]
    return found


def file_of(working: Path, method: Method, examples: str) -> Path:
    """Return the file of a method's predictions of some examples.

    Args:
        working: the folder beside the unit's working record.
    """
    named = (method.point, method.method, method.number_system, method.rounding)
    return working / FOLDER / _slug("-".join(filter(None, named))) / f"{_slug(examples)}.safetensors"


def _check_apart(written: Mapping[Method, Mapping[str, Path]]) -> None:
    """Raise InputError where two sets of predictions would have one file: the first is served for both."""
    of: dict[Path, str] = {}
    for method, by_examples in written.items():
        for examples, path in by_examples.items():
            said = f"{method.method} at {method.point} on {examples!r}"
            if of.setdefault(path, said) != said:
                raise InputError(
                    f"predictions of {said} and of {of[path]} have one file, {path.parent.name}/{path.name}; "
                    "give one of them another name"
                )


def _slug(text: str) -> str:
    return re.sub(r"[^\w.+]+", "-", text).strip("-")


def files(session: Session, wanted: Iterable[Unit]) -> dict[str, list[str]]:
    """List the files of predictions behind units that were measured, by unit, for the provenance of figures.

    Their places are in the scale's working folder.
    """
    return {
        str(unit): sorted(
            str(file.relative_to(session.working).as_posix())
            for file in (place_of(session.records[unit]) / FOLDER).rglob("*.safetensors")
        )
        for unit in wanted
    }


def _shifted(session: Session, seed: int) -> Shifted | None:
    shifts = beyond_of(session).shifts
    return None if shifts is None else shifts.load(seed)


def predict(make: Callable[[], Ensemble], written: Mapping[str, Path], examples: Examples) -> None:
    """Write the predictions of one ensemble that are not there, of each set of examples.

    The ensemble is made where a file is lacking, and its members once, but for those that may run together
    and are made in no time: plain rounding's, and last-layer Laplace's.

    Args:
        written: the files, by the name of the examples.
    """
    lacking = dict(_lacking(written))
    if not lacking:
        return
    ensemble = make()
    if type(ensemble) not in (lpe.LowPrecisionEnsemble, lpe.LaplaceEnsemble):
        ensemble = KeptMembers(ensemble)
    for name, path in lacking.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        lpe.evaluate(ensemble, examples[name](), predictions=path)


def _lacking(written: Mapping[str, Path]) -> Iterator[tuple[str, Path]]:
    """Yield the files that are not whole; what is damaged is removed, and said on stderr."""
    for name, path in written.items():
        if path.exists():
            try:
                read_predictions(path)
                continue
            except InputError as error:
                print(f"{error}; it is made again", file=sys.stderr)
                path.unlink()
        yield name, path
