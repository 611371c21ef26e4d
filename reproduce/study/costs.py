"""What results cost: the seconds of training and of measuring behind them, by machine.

Beside each working record lies a JSON: what measuring it took, run by run, and what making the stored weights
took that it was measured on, whenever that was. A figure sums those of the records that it shows.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lpe.provenance import machine
from lpe.store import Store
from lpe.writing import write_text_atomic


def _file(record: Path) -> Path:
    return record.with_name(f"{record.name}.json")


def _read(record: Path) -> dict[str, Any]:
    try:
        read: dict[str, Any] = json.loads(_file(record).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {"finished": False, "measuring": [], "training": {}}
    return read


def is_finished(record: Path) -> bool:
    """Tell whether a working record is whole: it is there, and what measured it came to its end."""
    return record.is_file() and bool(_read(record)["finished"])


@contextmanager
def measuring(record: Path, store: Store, device: str) -> Iterator[None]:
    """Keep what the block takes, training aside, and which stored weights it uses; also where it fails.

    Args:
        record: that the block measures. device: that it computes on, as torch names it.
    """
    started, finished = time.perf_counter(), False
    with store.use() as use:
        try:
            yield
            finished = True
        finally:
            known = _read(record)
            seconds = round(time.perf_counter() - started - use.seconds, 3)
            known["measuring"].append({"seconds": seconds, **machine(device)})
            known["training"] |= use.made
            known["finished"] = finished
            write_text_atomic(_file(record), json.dumps(known))


def summed(
    records: Iterable[Path], weights: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    """Sum what working records cost, and stored weights that were used beside them, each once.

    Args:
        weights: what making them took, by their keys; see ``lpe.store.Use``.

    Returns:
        "training" and "measuring": for each machine the seconds, and of how many trainings or runs.
    """
    training, runs = dict(weights), []
    for record in sorted(set(records)):
        known = _read(record)
        training |= known["training"]
        runs += known["measuring"]
    return {"training": _by_machine(training.values()), "measuring": _by_machine(runs)}


def _by_machine(parts: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    sums: dict[str, dict[str, Any]] = {}
    for part in parts:
        where = {key: value for key, value in part.items() if key != "seconds"}
        sums.setdefault(json.dumps(where, sort_keys=True), {"seconds": 0.0, "of": 0, **where})
        one = sums[json.dumps(where, sort_keys=True)]
        one["seconds"] = round(one["seconds"] + part.get("seconds", 0.0), 3)
        one["of"] += 1
    return list(sums.values())
