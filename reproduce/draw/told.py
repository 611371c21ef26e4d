"""What a figure's JSON tells of where it comes from, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def facts(provenance: Mapping[str, Any]) -> dict[str, str]:
    """Return the command, seeds, revision, time, machine and seconds behind a record, each in words."""
    return {
        "command": f"python {provenance['command']}",
        "training seeds": counted(provenance["seeds"]),
        "revision": provenance["git"]["revision"][:12] + " (edited)" * provenance["git"]["dirty"],
        "written": provenance["utc"],
        "machine": machine(provenance),
        "seconds": seconds(provenance),
    }


def seconds(provenance: Mapping[str, Any]) -> str:
    """Return the seconds of training and measuring behind a record, by machine, and those of drawing."""
    parts = [
        f"{what} {each['seconds']:.0f} ({each['of']} of them, {each.get('cpu', each['device'])}, "
        f"{each.get('cores', '?')} cores)"
        for what in ("training", "measuring")
        for each in provenance.get("cost", {}).get(what, [])
    ]
    last = "drawing" if parts else "in all"
    return "; ".join([*parts, f"{last} {provenance['wall_seconds']:.0f}"])


def machine(provenance: Mapping[str, Any]) -> str:
    """Return the machine that wrote a record: processor, cores and threads."""
    device = provenance["device"]
    threads = provenance.get("threads")
    of_them = "1 thread" if threads == 1 else f"{threads} threads"
    return f"{device.get('cpu', device['device'])}, {device.get('cores', '?')} cores, {of_them}"


def counted(seeds: Sequence[int]) -> str:
    """Return training seeds as "20 (0 … 19)"."""
    return f"{len(seeds)} ({seeds[0]} … {seeds[-1]})" if len(seeds) > 1 else f"1 ({seeds[0]})"
