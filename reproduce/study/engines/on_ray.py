"""Pieces of work as Ray tasks, on one machine or many.

What tasks share is the store with the working records beside it, in a folder that all machines see or at a
URL; they send nothing but small results. A task whose process dies runs again, and finds what was finished.

Every machine has this repository at the same commit and the same packages: a task whose machine would make
results of another key ends the run with a line that says what differs.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lpe import ray_cluster
from lpe.allocator import keep_freed_memory
from lpe.errors import InputError
from lpe.evaluation.landscape import Plane, Surface
from lpe.mirror import MirroredStore, open_store
from lpe.provenance import REPOSITORY, kernels, plain_data
from lpe.store import Store
from lpe.tracking import Tracker
from reproduce.study.costs import is_finished
from reproduce.study.engines import lines
from reproduce.study.engines.pieces import Training, train, waited_for
from reproduce.study.keys import determinants
from reproduce.study.landscapes import grid_table
from reproduce.study.measurements import determined_by, measure, record_of
from reproduce.study.mirrored import fetch_unit
from reproduce.study.parallel import Collected
from reproduce.study.session import Session
from reproduce.study.units import Unit

Logged = list[dict[str, float]]
Determinants = Mapping[str, object]


# What runs in the workers.


def check_same(there: Determinants, here: Determinants, what: object) -> None:
    """Raise InputError where this machine would make a result of another key than the one asked for.

    Args:
        there, here: what determines the result where it was asked for, as plain data, and on this machine.
    """
    here = plain_data(dict(here), "determinants")
    differ = [name for name in there if there[name] != here.get(name)]
    if not differ:
        return
    first = f"{differ[0]} is {_shown(here.get(differ[0]))} there and {_shown(there[differ[0]])} here"
    raise InputError(
        f"{socket.gethostname()} would make another result of {what}: {', '.join(differ)} differ ({first}); "
        "give every machine this repository at the same commit, the same packages and the same data"
    )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]} …"


def _alone(session: Session) -> Session:
    keep_freed_memory()
    assert session.threads is not None
    torch.set_num_threads(session.threads)
    return replace(session, tracker=Collected(), quiet=True)


def _logged(session: Session) -> Logged:
    assert isinstance(session.tracker, Collected)
    return session.tracker.logged


def _trained(session: Session, training: Training, of: Unit, asked: Determinants) -> Logged:
    session = _alone(session)
    check_same(asked, determined_by(session, of), of)
    train(session, training)
    return _logged(session)


def _measured(session: Session, unit: Unit, asked: Determinants) -> Logged:
    session = _alone(session)
    check_same(asked, determined_by(session, unit), unit)
    measure(session, unit)
    return _logged(session)


def _line(
    surface: Surface,
    plane: Plane,
    xs: Sequence[float],
    device: str,
    threads: int,
    asked: Determinants,
    y: float,
) -> lines.Line:
    torch.set_num_threads(threads)
    check_same(asked, _of_lines(device, threads), "a landscape")
    return lines.measured_line(surface, plane, xs, y)


def _of_lines(device: str, threads: int) -> Determinants:
    determined = determinants(grid_table, Surface, Plane, data="", device=device, threads=threads)
    kept: Determinants = plain_data(determined, "determinants")
    return kept


# What runs here.


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster that this process is connected to.

    Args:
        prepare: run first in every worker, such as loading the file in which a scale's classes are defined.
    """

    prepare: Callable[[], object]

    def measure(self, session: Session, wanted: Iterable[Unit]) -> None:
        """Train and measure units, with one progress bar; training curves go to W&B as they come.

        Raises:
            InputError: of a piece of work; a worker of other code, packages, data or device than here; one
                whose process died again and again.
        """
        session = _everywhere(session)
        wanted = [unit for unit in wanted if not _is_there(session, unit)]
        asked = {unit: plain_data(determined_by(session, unit), "determinants") for unit in wanted}
        bare = replace(session, tracker=Tracker(None), records={}, measured=set(), engine=None)
        training_call = ray_cluster.put(partial(_trained, bare))
        unit_call = ray_cluster.put(partial(_measured, bare))
        call = partial(ray_cluster.submit, self.prepare, _request(session))
        trainings: dict[Training, Any] = {}
        labels: dict[Any, str] = {}
        for unit, first in waited_for(session.scale, wanted).items():
            for training in first:
                if training not in trainings:
                    before = [task for other, task in trainings.items() if training.starts_from(other)]
                    task = call(training_call, training, unit, asked[unit], after=before)
                    trainings[training] = task
                    labels[task] = str(training)
            task = call(unit_call, unit, asked[unit], after=[trainings[training] for training in first])
            labels[task] = str(unit)
        with session.progress(len(labels), "trainings and units") as bar:
            for label, logged in ray_cluster.results(labels):
                for values in logged:
                    session.tracker.log(values)
                bar.set_postfix_str(label)
                bar.update()

    def ahead(
        self, session: Session, surface: Surface, plane: Plane, xs: np.ndarray, ys: np.ndarray
    ) -> Surface:
        """Return the surface, whose values on a grid of a plane are measured by tasks, one a line."""
        session = _everywhere(session)
        assert session.threads is not None
        asked = _of_lines(session.device, session.threads)
        line = partial(_line, surface, plane, xs.tolist(), session.device, session.threads, asked)
        resources = _request(session)
        shared: list[Any] = []

        def submit(y: float) -> Callable[[], lines.Line]:
            if not shared:
                shared.append(ray_cluster.put(line))
            task = ray_cluster.submit(self.prepare, resources, shared[0], y)
            return partial(ray_cluster.result, task, f"the landscape's line at {y:g}")

        return lines.ahead(surface, plane, xs.tolist(), ys.tolist(), submit)


def _everywhere(session: Session) -> Session:
    """Return the session as other processes can take it: as many threads as here, whole paths."""
    threads = torch.get_num_threads() if session.threads is None else session.threads
    is_elsewhere = isinstance(session.store, MirroredStore)
    store = session.store if is_elsewhere else Store(session.store.root.resolve())
    return replace(session, threads=threads, store=store, working=session.working.resolve())


def _request(session: Session) -> dict[str, float]:
    """Return what a piece of work takes of a machine: a CPU a thread, and a GPU where it uses one."""
    assert session.threads is not None
    return {"num_cpus": session.threads, "num_gpus": int(session.device != "cpu")}


def _is_there(session: Session, unit: Unit) -> bool:
    """Tell whether a unit is measured, on this machine or where the store is."""
    record = record_of(session, unit)
    fetch_unit(session.store, record)
    return is_finished(record)


def _environment() -> dict[str, str]:
    """Return the variables that are the same in workers: they choose kernels, and say where data lie."""
    kept = {name: value for name, value in os.environ.items() if name.startswith("LPE_")}
    for name in ("LPE_DATA", "LPE_POINTS", "LPE_ASSETS"):
        if kept.get(name):
            kept[name] = str(Path(kept[name]).resolve())
    # A machine that sees this checkout runs it, one that does not its own.
    places = [str(REPOSITORY), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    kept["PYTHONPATH"] = os.pathsep.join(filter(None, places))
    kept["LPE_STORE"] = str(open_store().root.resolve())
    return kept | {name: str(value) for name, value in kernels()["variables"].items()}


@contextlib.contextmanager
def cluster(address: str | None, cpus: int | None, prepare: Callable[[], object]) -> Iterator[Cluster]:
    """Connect to a Ray cluster, or start one here; see :func:`lpe.ray_cluster.connected`.

    Args:
        prepare: see :class:`Cluster`.
    """
    with ray_cluster.connected(address, cpus, _environment()):
        yield Cluster(prepare)
