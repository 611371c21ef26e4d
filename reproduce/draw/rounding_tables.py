"""Tables of rounding: RTN against LPE-BSR, a block a network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lpe.records import COLUMNS, write_table
from reproduce.draw.summaries import (
    FP32,
    SCALED,
    Summary,
    What,
    counted_seeds,
    listed,
    megabits,
    read,
    substrates_by_size,
    system_bits,
    system_title,
)
from reproduce.draw.tables import Cell, mark_best, write_all
from reproduce.study.measurements import measure_all
from reproduce.study.records import record_name, selected
from reproduce.study.scale import Scale
from reproduce.study.session import Session
from reproduce.study.units import Unit
from reproduce.study.unrounded import RE_ESTIMATED, SYSTEMS

BITS = (6, 4)


WAYS = ("", RE_ESTIMATED)
"""With batch norm there is each method twice: as rounded, and with each member's statistics re-estimated."""


METHODS = (SCALED, *(f"{name}{way}" for way in WAYS for name in (FP32, "RTN", "LPE-BSR")))


HEADER = (
    "network",
    "parameters",
    "number system",
    "method",
    "members",
    "NLL (nats)",
    "NLL − FP32's",
    "ERR",
    "AMB (nats)",
    "memory (Mbit)",
)


NLL = HEADER.index("NLL (nats)")


def write_record(session: Session, figure: str, the_units: Sequence[Unit], systems: Sequence[str]) -> None:
    """Measure, and write the rows of the FP32 models and of these number systems (none: of all).

    LPE-BSR has the claims' size alone: what the tables show, and a third of the file.
    """
    measure_all(session, the_units)
    rows = selected(session, the_units, every_size=(), methods=METHODS)
    many = rows["method"].isin([f"LPE-BSR{way}" for way in WAYS])
    rows = rows[~many | (rows["size"] == session.scale.settings.claim_size)]
    if systems:
        rows = rows[rows["number_system"].isin([*SYSTEMS, *systems])]
    write_table(rows, session.out / record_name(figure), COLUMNS)


def block(summary: Summary, substrate: str, systems: Sequence[str], size: int) -> list[list[Cell]]:
    """Return a network's rows: the FP32 model, with temperature scaling too, RTN and LPE-BSR of each system.

    The lower NLL of RTN and LPE-BSR is bold. With batch norm FP32, RTN and LPE-BSR are there once more, with
    re-estimated statistics.
    """
    single = What(substrate, "SGD", FP32)
    parameters = round(summary.parameters(single))

    def row(what: What, title: str) -> list[Cell]:
        system = (
            summary.unrounded(substrate) if what.number_system == "fp32" else system_title(what.number_system)
        )
        return [
            substrate,
            parameters,
            system,
            title,
            what.size,
            summary.with_interval(what),
            None if what == single else summary.difference(what, single),
            summary.mean(what, "err"),
            summary.mean(what, "ambiguity", 5),
            megabits(summary.memory_bits(what)),
        ]

    rows = [row(single, "☆ single"), row(What(substrate, "SGD", SCALED), "single + temperature")]
    again = What(substrate, "SGD", f"{FP32}{RE_ESTIMATED}")
    if summary.has(again):
        rows.append(row(again, f"single{RE_ESTIMATED}"))
    for system in systems:
        for way in WAYS:
            nearest = What(substrate, "SGD", f"RTN{way}", system)
            if not way or summary.has(nearest):
                pair = [nearest, What(substrate, "SGD", f"LPE-BSR{way}", system, size)]
                means = [float(summary.values(what).mean()) for what in pair]
                rows += mark_best([row(what, what.method) for what in pair], NLL, means)
    return rows


def seeds_shown(summary: Summary) -> str:
    """Return the training seeds of the FP32 models."""
    return counted_seeds(
        [summary.seeds(What(name, "SGD", FP32)) for name in summary.record["substrate"].unique()]
    )


def rounding_notes(chosen: Scale, summary: Summary) -> list[str]:
    """List what holds of the tables of RTN against LPE-BSR."""
    again = summary.record["method"].str.endswith(RE_ESTIMATED).any()
    said = "Re-estimated: the batch-norm statistics of each member, over training batches."
    return [
        *chosen.conditions,
        *([said] if again else []),
        "NLL − FP32's: paired by training seed, against ☆ of the same network. Bold: the lower mean NLL of "
        "RTN and LPE-BSR, however little they differ.",
        "Memory: n stored members, scales and what stays in full precision counted once.",
    ]


def write_networks(
    folder: Path, chosen: Scale, figure: str, bits: Sequence[int]
) -> tuple[list[Path], Summary]:
    """Write the table of all networks at some bit widths, from its record."""
    summary = read(folder, figure)
    systems = sorted(
        (f"int{width}" for width in bits if f"int{width}" in set(summary.record["number_system"])),
        key=system_bits,
        reverse=True,
    )
    rows = [
        row
        for substrate in substrates_by_size(summary)
        for row in block(summary, substrate, systems, chosen.settings.claim_size)
    ]
    caption = (
        f"RTN against LPE-BSR of {chosen.settings.claim_size} members, "
        f"{listed([f'INT-{system_bits(system)}' for system in systems])}, scale {chosen.name}, "
        f"{seeds_shown(summary)}."
    )
    header, notes = ([*map(summary.named, texts)] for texts in (HEADER, rounding_notes(chosen, summary)))
    return write_all(folder, figure, header, rows, caption, notes), summary
