"""A scale's trainings in the processes that torchrun or accelerate launch started, each batch shared.

All processes go through the same trainings, one after the other. The first one has the store: it says of each
whether it is there, and stores what was trained. Once all are there the others end, and the first one
measures and draws alone. What was trained by several processes has their number in its key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from lpe.errors import InputError
from lpe.store import Entry, Store
from lpe.tracking import Tracker
from lpe.training.processes import Processes
from reproduce.study.engines.pieces import train, trainings_of
from reproduce.study.session import Session
from reproduce.study.units import Unit

MAKE, ERROR, ENTRY = "make", "error", "entry"


class SharedStore(Store):
    """The first process's store, that all processes ask together, for the same in the same order.

    Args:
        of: the store. together: the processes.
    """

    def __init__(self, of: Store, together: Processes) -> None:
        super().__init__(of.root)
        self._of, self._together = of, together

    def get_or_make(
        self,
        config: Mapping[str, object],
        make: Callable[[], tuple[dict[str, Tensor], dict[str, Any]]],
        device: str = "cpu",
    ) -> Entry:
        """Return the first process's entry; where there is none, all make it and the first one stores it.

        Raises:
            InputError: as :meth:`Store.get_or_make` in the first process; the processes differ in what
                determines the entry.
        """
        key = self.key(config)
        keys = self._together.gathered(key)
        if len(set(keys)) > 1:
            other = next(rank for rank, each in enumerate(keys) if each != keys[0])
            raise InputError(
                f"process {other} would train something else than the first one: its code, packages, data or "
                "device differ; start all processes alike"
            )
        if not self._together.is_first:
            return self._as_told(make)
        making: list[bool] = []

        def shared() -> tuple[dict[str, Tensor], dict[str, Any]]:
            self._together.of_first((MAKE, None))
            making.append(True)
            made = make()
            making.clear()
            return made

        try:
            entry = self._of.get_or_make(config, shared, device)
        except InputError as error:
            if not making:  # else it is the training's, which all have
                self._together.of_first((ERROR, str(error)))
            raise
        self._together.of_first((ENTRY, entry))
        return entry

    def _as_told(self, make: Callable[[], tuple[dict[str, Tensor], dict[str, Any]]]) -> Entry:
        what, told = self._together.of_first(None)
        if what == MAKE:
            make()
            what, told = self._together.of_first(None)
        if what == ERROR:
            raise InputError(told)
        entry: Entry = told
        return entry


def train_together(session: Session, wanted: Iterable[Unit], together: Processes) -> None:
    """Train all that units are measured on, as far as the store lacks it, in all processes.

    Args:
        session, wanted: the same in all processes.
    """
    tracker = session.tracker if together.is_first else Tracker(None)
    session = replace(session, store=SharedStore(session.store, together), tracker=tracker)
    for training in dict.fromkeys(each for unit in wanted for each in trainings_of(session.scale, unit)):
        train(session, training)
