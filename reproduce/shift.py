"""Shift: NLL and calibration of corrupted images, by kind and severity.

    python reproduce/shift.py --scale cifar10-small

Costs, for each training seed and beside its trainings, the predictions of every method: some 130 networks,
where a scale offers all methods, on the validation and test examples and on each corrupted and foreign set.
Before that the methods are tuned on the tuning examples: the three grids, six precisions and two pools of
``Scale.beyond``. All this serves ``reproduce/selective.py`` as well. It prints the paths written.

    top      NLL, ECE and signed ECE (confidence less accuracy: above 0 a network is over-confident) against
             severity, mean over the kinds of corruption. A line a method
    below    the NLL less FP32's, a panel a kind: paired by training seed, bars are 95 % intervals
    table    NLL and its paired difference by severity; ECE and signed ECE on clean examples and at the
             greatest severity. Every method
"""

from __future__ import annotations

import sys
from pathlib import Path

# A script runs its own checkout, whichever copy is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from reproduce import same_bits

if __name__ == "__main__":  # before torch and numpy are imported
    same_bits.begin(sys.argv[1:])

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from reproduce.command import Script, run_figure
from reproduce.draw import page, panels
from reproduce.draw.compared import (
    Compared,
    compute_compared,
    difference_cell,
    explain,
    in_curves,
    interval_cell,
    level,
    line,
    mean_cell,
    paired,
    read_compared,
    row_of,
    setting_cell,
    shown_corrupted,
    title,
)
from reproduce.draw.curves import signed
from reproduce.draw.summaries import counted_seeds, noun
from reproduce.draw.tables import Cell, mark_best, write_all
from reproduce.study.beyond.names import UNCORRUPTED, Method
from reproduce.study.beyond.predictions_unit import SETTING
from reproduce.study.scale import Scale
from reproduce.study.session import Session
from reproduce.study.units import PREDICTIONS, Unit, beyond_units

METRICS = ("nll", "ece", "signed_ece")
RECORDED = (*METRICS, "err", SETTING)
TITLES = {"nll": "NLL", "ece": "ECE", "signed_ece": "signed ECE"}
COLUMNS_OF_KINDS = 5
"""Panels side by side."""


def lacks(chosen: Scale) -> str:
    """Say what a scale lacks for the figure; "" where it has all."""
    return "" if chosen.beyond is not None and chosen.beyond.shifts is not None else "corrupted examples"


def wanted(session: Session) -> list[Unit]:
    """Return the units that the figure shows."""
    return beyond_units(session.scale, PREDICTIONS, session.seeds)


def compute(session: Session) -> dict[str, object]:
    """Train, predict and score; write shift_record.csv."""
    return compute_compared(session, "shift", lambda rows: rows["metric"].isin(RECORDED))


def severities(compared: Compared) -> list[int]:
    """Return the severities that every kind of corruption has, 0 for the same examples as they are first."""
    by_kind = [set(of_kind) for of_kind in compared.corruptions.values()]
    return [0, *sorted(set.intersection(*by_kind))] if by_kind else [0]


def mean_level(compared: Compared, method: Method, metric: str, severity: int) -> float:
    """Return a metric's mean over kinds and over the unrounded network's training seeds."""
    return level(*(compared.mean_over_kinds(each, metric, severity) for each in (method, compared.single)))


def _level_panel(axes: Axes, compared: Compared, metric: str) -> None:
    levels = severities(compared)
    for method in filter(in_curves, compared.methods):
        means = [mean_level(compared, method, metric, severity) for severity in levels]
        axes.plot(levels, means, label=title(method), **line(method))
    if metric == "signed_ece":
        axes.axhline(0.0, color="0.85", linewidth=0.8, zorder=0)
    _severity_axis(axes, levels)


def kind_table(compared: Compared, method: Method, kind: str) -> pd.DataFrame:
    """Tabulate the NLL less the unrounded network's on corrupted examples of one kind.

    Returns:
        [severities, (severity, mean, low, high)], paired by training seed; 0: the same examples as they are.
    """
    lines = []
    for severity in severities(compared):
        name = compared.corruptions[kind][severity] if severity else UNCORRUPTED
        values = [compared.values(each, "nll", name) for each in (method, compared.single)]
        lines.append((severity, *paired(*values)))
    return pd.DataFrame(lines, columns=["severity", "mean", "low", "high"])


def _kind_panel(axes: Axes, compared: Compared, kind: str) -> None:
    axes.axhline(0.0, color=panels.BLACK, linestyle="--", linewidth=0.8, zorder=2)
    for method in filter(in_curves, compared.methods):
        if method == compared.single:
            continue
        table = kind_table(compared, method, kind)
        style = {**line(method), "markersize": 2.4}
        axes.plot(table["severity"], table["mean"], label=title(method), **style)
        axes.vlines(table["severity"], table["low"], table["high"], color=style["color"], linewidth=0.6)
    _severity_axis(axes, severities(compared))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(signed))


def _severity_axis(axes: Axes, levels: list[int]) -> None:
    axes.set_xticks(levels)
    axes.set_xlabel("severity (0: none)")


def draw_figure(compared: Compared, chosen: Scale) -> Figure:
    """Draw the panels; the caller saves them."""
    kinds = list(compared.corruptions)
    across = min(max(len(kinds), len(METRICS)), COLUMNS_OF_KINDS)
    below = -(-len(kinds) // across)
    figure = panels.plt.figure(figsize=(page.width(), 2.9 + 1.6 * below))
    outer = figure.add_gridspec(1 + below, 1, height_ratios=[1.35, *[1.0] * below])
    letters = panels.letters()
    top = row_of(outer[0], len(METRICS))
    for axes, metric in zip(top, METRICS, strict=True):
        _level_panel(axes, compared, metric)
        panels.label_panel(axes, next(letters), f"{TITLES[metric]}, all kinds")
    top[0].set_ylabel(f"nats per {noun(chosen)}")
    first: Axes | None = None
    for row in range(below):
        cells = outer[1 + row].subgridspec(1, across)
        for column, kind in enumerate(kinds[row * across : (row + 1) * across]):
            axes = figure.add_subplot(cells[column], sharey=first)
            first = first or axes
            _kind_panel(axes, compared, kind)
            panels.label_panel(axes, next(letters), kind)
            axes.tick_params(labelleft=not column)
            if not column:
                axes.set_ylabel(f"NLL − NLL({compared.single.method}) (nats)")
    explain(figure, compared, top)
    return figure


def table_rows(compared: Compared) -> tuple[list[str], list[list[Cell]]]:
    """Return the header and the rows of the table, a row a method."""
    levels, single = severities(compared), compared.single
    names = {severity: f"severity {severity}" if severity else UNCORRUPTED for severity in levels}
    ends = list(dict.fromkeys((0, levels[-1])))
    header = ["method", "members", "seeds", "tuned to"]
    for severity in levels:
        header += [f"NLL, {names[severity]} (nats)", f"NLL − {single.method}'s, {names[severity]}"]
    header += [f"{TITLES[metric]}, {names[severity]}" for metric in METRICS[1:] for severity in ends]
    rows: list[list[Cell]] = []
    for method in compared.methods:
        cells: list[Cell] = [title(method), compared.size(method), compared.seeds_of(method)]
        cells += [setting_cell(compared, method)]
        for severity in levels:
            values, reference = (compared.mean_over_kinds(each, "nll", severity) for each in (method, single))
            cells += [interval_cell(values)]
            cells += [None if method == single else difference_cell(values, reference)]
        for metric in METRICS[1:]:
            cells += [mean_cell(compared.mean_over_kinds(method, metric, severity)) for severity in ends]
        rows.append(cells)
    for severity in levels:
        means = [mean_level(compared, method, "nll", severity) for method in compared.methods]
        rows = mark_best(rows, header.index(f"NLL, {names[severity]} (nats)"), means)
    return header, rows


def draw(folder: Path, chosen: Scale) -> tuple[list[Path], list[str]]:
    """Draw shift.pdf and shift.png and write the table from shift_record.csv; returns the paths."""
    compared = read_compared(folder, "shift", chosen)
    with panels.style():
        paths = panels.save(draw_figure(compared, chosen), folder, "shift")
    header, rows = table_rows(compared)
    kinds = ", ".join(compared.corruptions)
    caption = (
        f"Corrupted {noun(chosen)}s: {compared.substrate}, scale {chosen.name}, "
        f"{counted_seeds([compared.seeds])}."
    )
    shown = f"; {counted} test {noun(chosen)}s" if (counted := shown_corrupted(chosen)) else ""
    notes = [
        *chosen.conditions,
        f"Mean over kinds of corruption: {kinds}{shown}.",
        f"NLL − {compared.single.method}'s: paired by training seed. Bold: the lowest NLL of a column, "
        "however little methods differ, by that difference: means are over a method's own seeds.",
        f"What is fitted or tuned is so on clean {noun(chosen)}s that are not scored.",
    ]
    return [*paths, *write_all(folder, "shift", header, rows, caption, notes)], []


SCRIPT = Script("shift", __doc__, lacks, wanted, compute, draw, further=shown_corrupted)

if __name__ == "__main__":
    sys.exit(run_figure(SCRIPT))
