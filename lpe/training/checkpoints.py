"""Trainings that are under way, in files: a killed one goes on from there, to the same numbers.

Whoever keeps what a training leaves, such as :class:`lpe.store.Store`, runs it under :func:`kept`. The
training loop then writes all that changes (weights, optimiser, place in the data, random streams, what is
collected) every ``SECONDS``, and takes it up where it is there. Each training that runs under it has a file
of its own, in their order. A file says what it is of, and has a hash: one that is damaged or of another
training is said in a line, and the training begins anew.
"""

from __future__ import annotations

import glob
import hashlib
import io
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lpe.errors import InputError
from lpe.training import processes
from lpe.writing import make_writable, read_file, remove_leftovers, replacing

UNDER_WAY = "under_way"
"""The folder, in one of results, in which what leads to them has its checkpoints until they are there."""

SECONDS = 10.0
"""From one writing to the next, at least; where writing takes long, up to ``MOST``."""

MOST = 20.0
AT_END = 1.0
"""Seconds of work that are written when it ends: others may follow before what all of them leave is kept."""

ABANDONED = 30 * 86400.0
"""Seconds: under another key, as code and packages change, nobody comes back for a checkpoint."""

_MAGIC = b"lpe training 1\n"


class Checkpoints:
    """The files of the trainings that run one after another under one name.

    Args:
        place: the files are called so, with a number.
    """

    def __init__(self, place: Path) -> None:
        self._place = place
        self._begun = 0
        self._stopped = False
        self._pause = SECONDS
        self._written = time.monotonic()

    def of_next(self, settings: Mapping[str, object], noun: str = "training") -> Checkpoint:
        """Return the file of what begins, a ``noun``; ``settings``: plain data that tell it from others."""
        path = self._place.with_name(f"{self._place.name}-{self._begun}.{noun}")
        self._begun += 1
        return Checkpoint(path, json.dumps(settings, sort_keys=True), self, noun)

    def is_due(self, at_end: bool = False) -> bool:
        """Tell whether it is time to write; ``at_end``: of what will not be asked again."""
        pause = min(self._pause, AT_END) if at_end else self._pause
        return not self._stopped and time.monotonic() - self._written >= pause

    def wrote(self, seconds: float) -> None:
        """Note that something was written, and what it took."""
        self._written = time.monotonic()
        self._pause = min(max(SECONDS, 4 * seconds), MOST)

    def stop(self) -> None:
        """Write no more: the disk is full, or what changes cannot be written."""
        self._stopped = True

    def remove(self) -> None:
        """Remove the files, once what was trained is kept; and what killed writers left of them."""
        name, folder = glob.escape(self._place.name), self._place.parent
        for path in folder.glob(f"{name}-[0-9]*.*"):
            path.unlink(missing_ok=True)
        remove_leftovers(folder)


def remove_abandoned(folder: Path) -> None:
    """Remove checkpoints of trainings that nobody has gone on with for ``ABANDONED`` seconds."""
    for path in folder.glob("*-[0-9]*.*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > ABANDONED:
                path.unlink()


class Checkpoint:
    """The file of one training, or of other work; see :class:`Checkpoints`, which makes it."""

    def __init__(self, path: Path, settings: str, all_of: Checkpoints, noun: str) -> None:
        self.path = path
        self._settings = settings
        self._all = all_of
        self._noun = noun

    def is_due(self, at_end: bool = False) -> bool:
        """Tell whether it is time to write; see :class:`Checkpoints`."""
        return self._all.is_due(at_end)

    def write(self, state: Mapping[str, Any]) -> None:
        """Write the state, whole or not at all, over the one before.

        Args:
            state: tensors and numbers, texts, None, in dicts, lists and tuples. Of anything else nothing is
                written, now and later: its training begins anew when it is killed.
        """
        began = time.monotonic()
        content = io.BytesIO()
        try:
            torch.save({"settings": self._settings, "state": _plain(state)}, content)
            make_writable(self.path.parent)
            with replacing(self.path) as temporary, open(temporary, "wb") as file:
                payload = content.getbuffer()
                file.write(_MAGIC + hashlib.sha256(payload).hexdigest().encode() + b"\n")
                file.write(payload)
        except TypeError:
            self._all.stop()
        except InputError as error:
            self._all.stop()
            why = str(error).rpartition(";")[0]
            print(f"{why}; a killed {self._noun} begins anew", file=sys.stderr)
        self._all.wrote(time.monotonic() - began)

    def read(self) -> dict[str, Any] | None:
        """Return the state, on the CPU; None where there is none, or none of this training, which is said."""
        try:
            content = read_file(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self._refuse(f"cannot be read ({error.strerror})")
            return None
        start = len(_MAGIC) + 65
        payload = memoryview(content)[start:]
        if content[:start] != _MAGIC + hashlib.sha256(payload).hexdigest().encode() + b"\n":
            self._refuse("is damaged")
            return None
        held = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
        if held["settings"] != self._settings:
            self._refuse("is of another training")
            return None
        state: dict[str, Any] = held["state"]
        return state

    def _refuse(self, why: str) -> None:
        print(f"checkpoint {self.path.name} {why}; the {self._noun} begins anew", file=sys.stderr)


def of_next(settings: Mapping[str, object], noun: str) -> Checkpoint | None:
    """Return the file of what begins under :func:`kept`; None outside."""
    checkpoints = _current.get()
    return None if checkpoints is None else checkpoints.of_next(settings, noun)


_current: ContextVar[Checkpoints | None] = ContextVar("checkpoints", default=None)


@contextmanager
def kept(place: Path) -> Iterator[Checkpoints]:
    """Keep checkpoints of the trainings that run in the block; ``place``: their files are called so."""
    checkpoints = Checkpoints(place)
    token = _current.set(checkpoints)
    try:
        yield checkpoints
    finally:
        _current.reset(token)


@dataclass
class Place:
    """Where a training is.

    Args:
        epoch: from 0. batches: that are done in it. total: of their losses. rate: the last learning rate.
        step: that comes next, from 0. curve: a row for each epoch that is done.
    """

    epoch: int = 0
    batches: int = 0
    total: float = 0.0
    rate: float = 0.0
    step: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)


class Course:
    """All that changes in a training, in a file of its own while it runs under :func:`kept`.

    Of processes that train together the first one has the file; what it reads of it goes to the others.

    Args:
        model, optimizer, collector: what is trained, and what collects it. A collector has ``state()``, of
            tensors and plain data, and ``restore(state)``; with one that has not, nothing is written.
        streams: the random generators that training draws from. place: where it is; changed when it goes on.
        settings: plain data that tell the training from others, beside its start and its optimiser.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        collector: Any,
        streams: Sequence[torch.Generator],
        place: Place,
        settings: Mapping[str, object],
    ) -> None:
        self._model, self._optimizer, self._collector = model, optimizer, collector
        self._streams, self._place = streams, place
        self._at_epoch: list[Tensor] = []
        self._later: list[Tensor] | None = None
        checkpoints = _current.get()
        resumable = collector is None or (hasattr(collector, "state") and hasattr(collector, "restore"))
        self._file: Checkpoint | None = None
        together = processes.active()
        held = None
        if checkpoints is not None and resumable and (together is None or together.is_first):
            start = {"start": _digest(self._tensors()), "optimizer": _told(optimizer), **settings}
            if together is not None:
                start["processes"] = together.count
            self._file = checkpoints.of_next(start)
            held = self._file.read()
        if together is not None and resumable:
            held = together.of_first(held)
        if held is not None:
            self._restore(held)

    def begin_epoch(self) -> None:
        """Note the random streams as they are when an epoch begins; of one that goes on, as they were."""
        if self._later is None:
            self._at_epoch = self._states()
        else:
            self._set(self._at_epoch)

    def go_on(self) -> None:
        """Set the random streams as they were after the last batch that is skipped."""
        assert self._later is not None
        self._set(self._later)
        self._later = None

    def write(self, at_end: bool = False) -> None:
        """Write all that changes, if it is time; call it between two steps, and ``at_end``."""
        if self._file is None or not self._file.is_due(at_end):
            return
        self._file.write(
            {
                "place": vars(self._place),
                "tensors": self._tensors(),
                "optimizer": self._optimizer.state_dict(),
                "numbers": _numbers(self._optimizer),
                "collector": None if self._collector is None else self._collector.state(),
                "at_epoch": self._at_epoch,
                "streams": self._states(),
            }
        )

    @torch.no_grad()
    def _restore(self, held: Mapping[str, Any]) -> None:
        own = self._tensors()
        for name, tensor in own.items():
            tensor.copy_(held["tensors"][name])
        self._optimizer.load_state_dict(held["optimizer"])
        for group in self._optimizer.param_groups:
            device = group["params"][0].device
            group |= {name: on_device(device, value) for name, value in group.items() if name != "params"}
        for name, number in held["numbers"].items():
            setattr(self._optimizer, name, number)
        if self._collector is not None:
            device = next(iter(own.values())).device
            self._collector.restore(on_device(device, held["collector"]))
        for name, value in held["place"].items():
            setattr(self._place, name, value)
        self._at_epoch, self._later = held["at_epoch"], held["streams"]
        self._model.eval()

    def _tensors(self) -> dict[str, Tensor]:
        named = [*self._model.named_parameters(), *self._model.named_buffers()]
        return {name: tensor.detach() for name, tensor in named}

    def _states(self) -> list[Tensor]:
        return [stream.get_state() for stream in self._streams]

    def _set(self, states: Sequence[Tensor]) -> None:
        for stream, state in zip(self._streams, states, strict=True):
            stream.set_state(state)


def _numbers(optimizer: torch.optim.Optimizer) -> dict[str, int | float]:
    """Return what an optimiser counts in attributes, beside its ``state_dict``: IVON its steps."""
    return {
        name: value
        for name, value in vars(optimizer).items()
        if isinstance(value, int | float) and not name.startswith("_")
    }


def _told(optimizer: torch.optim.Optimizer) -> list[object]:
    """Return an optimiser's class and settings, for each group of its parameters."""
    scalars = (int, float, str, tuple)
    groups = [
        {name: value for name, value in group.items() if isinstance(value, scalars)}
        for group in optimizer.param_groups
    ]
    return [type(optimizer).__name__, [repr(sorted(group.items())) for group in groups]]


def on_device(device: torch.device, value: Any) -> Any:
    """Return a value with its tensors on a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: on_device(device, each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(on_device(device, each) for each in value)
    return value


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Return a hash of tensors' names, types, shapes and contents: 32 hexadecimal digits."""
    whole = hashlib.sha256()
    for name, tensor in tensors.items():
        flat = tensor.cpu().contiguous().reshape(-1)
        whole.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        whole.update(flat.view(torch.uint8).numpy().data)
    return whole.hexdigest()[:32]


def _plain(value: Any) -> Any:
    """Return a value as it is written: numbers of other packages as Python's own; TypeError for an object."""
    if isinstance(value, Tensor):
        return value.detach()
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, Mapping):
        return {_plain(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        parts = [_plain(each) for each in value]
        return tuple(parts) if isinstance(value, tuple) else parts
    if hasattr(value, "__index__"):
        return int(value)
    if hasattr(value, "__float__"):
        return float(value)
    raise TypeError(f"{type(value).__name__} is no plain data")
