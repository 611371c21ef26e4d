"""Figures of budgets: X, with and without LPE-BSR, against training and memory."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from lpe.errors import InputError
from lpe.records import COLUMNS, write_table
from reproduce.draw import page, panels
from reproduce.draw.curves import signed
from reproduce.draw.style import BIT_STYLES, FAMILY_STYLES, RTN_MARKER
from reproduce.draw.summaries import FP32, SCALED, Summary, What, claim_lines, noun, pass_size, read
from reproduce.judge.intervals import student_interval
from reproduce.study.measurements import measure_all, posteriors
from reproduce.study.records import MEGABIT, STORED_BITS, by_rtn, selected
from reproduce.study.scale import Scale
from reproduce.study.session import Session
from reproduce.study.units import Unit, units

COLUMNS_SHOWN = (("nll", "training"), ("ece", "training"), ("nll", "memory"), ("ece", "memory"))
TITLES = {"nll": "NLL", "ece": "ECE"}
BUDGETS = {"training": ("backward_passes", 1e3), "memory": ("memory_bits", MEGABIT)}
"""The record's column and its unit on the axis."""
STORED_LINE = "--"
"""Of members that are stored by RTN, in the colour of their width."""


def families_of(chosen: Scale, families: Sequence[str]) -> list[str]:
    """Return those of these families that the scale has."""
    return [name for name in families if name in chosen.families]


def units_of(session: Session, families: Sequence[str]) -> list[Unit]:
    """Return the units of the families, and of the single FP32 model that they are compared with."""
    scale = session.scale
    assert scale.main is not None
    return units([scale.main], (scale.main.estimate, *families_of(scale, families)), session.seeds)


def compute_budgets(session: Session, figure: str, families: Sequence[str]) -> dict[str, object]:
    """Train and measure; write the figure's record."""
    the_units = units_of(session, families)
    measure_all(session, the_units)
    families = families_of(session.scale, families)
    methods = [FP32, SCALED, *families, *map(by_rtn, families), *(f"{name} + LPE-BSR" for name in families)]
    rows = selected(session, the_units, every_size=("nll", "ece"), methods=methods)
    write_table(rows, session.out / f"{figure}.csv", COLUMNS)
    return {"backward_pass": pass_size(session.scale), "posteriors": posteriors(session, [], families)}


def budget_panel(
    axes: Axes, summary: Summary, base: What, expanded: What, metric: str, budget: str, bits: int
) -> None:
    """Draw one metric of X and X + LPE-BSR against one budget, and the single FP32 model.

    Against memory also X's members stored by RTN, where the record has them.
    """
    column, factor = BUDGETS[budget]
    single = What(base.substrate, "SGD", FP32)
    # Of the seeds at which there is the family: there may be fewer.
    seeds = summary.every_size(base, metric)["seed"].unique()

    def shared(method: str) -> pd.Series:
        values = summary.values(What(base.substrate, "SGD", method), metric)
        return values[values.index.isin(seeds)]

    reference = shared(FP32)
    curves = []
    shown = [
        (base, FAMILY_STYLES[base.method], f"{base.method}, FP32 members", "-"),
        (expanded, BIT_STYLES[bits], f"X + LPE-BSR, INT-{bits}", "-"),
    ]
    if budget == "memory":
        shown += [
            (what, (BIT_STYLES[width][0], RTN_MARKER), f"X, INT-{width} members by RTN", STORED_LINE)
            for width, what in stored_of(summary, base, metric).items()
        ]
    for what, (colour, marker), label, line in shown:
        curve = panels.budget_table(summary.every_size(what, metric), reference, column)
        if budget == "training":
            curve = panels.all_paid_for(curve)
        panels.draw_budget(axes, curve, colour, marker, label, factor, line)
        curves.append(curve)
    level = float(reference.mean())
    scaled = float(shared(SCALED).mean())
    cost = summary.backward_passes(single) if budget == "training" else summary.memory_bits(single)
    panels.single_models(axes, cost / factor, level, scaled, "cost")
    panels.limit_values(axes, curves, [level, scaled])


def stored_of(summary: Summary, base: What, metric: str) -> dict[int, What]:
    """Return X's members stored by RTN, by width: those that the record has."""
    every = {
        bits: replace(base, method=by_rtn(base.method), number_system=f"int{bits}") for bits in STORED_BITS
    }
    return {bits: what for bits, what in every.items() if summary.sizes(what, metric)}


def pairs_of(summary: Summary, base: What, expanded: What, metric: str, budget: str) -> pd.DataFrame:
    """Tabulate what X + LPE-BSR changes at the budgets of X.

    Args:
        budget: "training": against X's members that a budget pays for, all their low precision members;
            "memory": against each number of members of X, the largest prefix that takes no more memory.

    Returns:
        [sizes of X, (size, budget, mean, low, high)]: the mean over training seeds of the paired difference,
        and its 95 % interval (NaN with one seed).
    """
    theirs, ours = summary.every_size(base, metric), summary.every_size(expanded, metric)
    each, left = divmod(int(ours["size"].max()), int(theirs["size"].max()))
    if left:
        raise InputError(f"{expanded.method} has no whole number of members for each of {base.method}")
    column, _ = BUDGETS[budget]
    lines = []
    for size, stored in theirs.set_index("seed").groupby("size"):
        if budget == "training":
            low = ours[ours["size"] == each * int(str(size))]
        else:
            limit = ours["seed"].map(stored["memory_bits"])
            low = ours[ours["memory_bits"] <= limit].sort_values("size").drop_duplicates("seed", keep="last")
        difference = (low.set_index("seed")["value"] - stored["value"]).dropna()
        if len(difference):
            interval = student_interval(difference.to_numpy())
            lines.append((size, float(stored[column].mean()), float(difference.mean()), *interval))
    table = pd.DataFrame(lines, columns=["size", "budget", "mean", "low", "high"])
    return panels.all_paid_for(table) if budget == "training" else table


def difference_panel(
    axes: Axes, summary: Summary, base: What, expanded: What, metric: str, budget: str, bits: int
) -> None:
    """Draw what LPE-BSR changes, paired by training seed, at equal budgets; see :func:`pairs_of`.

    Against memory also what it changes at the budgets of X's members in the fewest bits, where the record
    has them.
    """
    table = pairs_of(summary, base, expanded, metric, budget)
    colour, marker = BIT_STYLES[bits]
    axes.axhline(0.0, color=panels.GREY, linewidth=0.7, zorder=1)
    label = f"X + LPE-BSR, INT-{bits}"
    factor = BUDGETS[budget][1]
    panels.draw_budget(axes, table, colour, marker, label, factor)
    if budget == "memory" and (stored := stored_of(summary, base, metric)):
        width = min(stored)
        fewer = pairs_of(summary, stored[width], expanded, metric, budget)
        against = f"change from X's INT-{width} members by RTN"
        if len(fewer):
            panels.draw_budget(axes, fewer, BIT_STYLES[width][0], RTN_MARKER, against, factor, STORED_LINE)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(signed))


def draw_budgets(
    folder: Path, chosen: Scale, figure: str, families: Sequence[str], claim: str
) -> tuple[list[Path], list[str]]:
    """Draw families × (NLL, ECE) × (training, memory) from the record; paths, and lines to print."""
    summary = read(folder, figure)
    families, bits = families_of(chosen, families), chosen.settings.best_bits
    letters = panels.letters()
    with panels.style():
        rows = 2 * len(families)
        drawn, cells = panels.plt.subplots(
            rows, 4, figsize=(page.width(), 0.6 + 1.15 * rows), sharex=False, squeeze=False
        )
        for place, name in enumerate(families):
            base = What(chosen.substrate, name, name)
            expanded = What(chosen.substrate, name, f"{name} + LPE-BSR", f"int{bits}")
            for ax, below, (metric, budget) in zip(
                cells[2 * place], cells[2 * place + 1], COLUMNS_SHOWN, strict=True
            ):
                budget_panel(ax, summary, base, expanded, metric, budget, bits)
                difference_panel(below, summary, base, expanded, metric, budget, bits)
                for each in (ax, below):
                    if budget == "memory":
                        panels.memory_axis(each, "")
                    each.set_xlim(ax.get_xlim())
                    if budget == "memory" and ax.get_xlim()[1] > 30 * ax.get_xlim()[0]:
                        each.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
                ax.tick_params(labelbottom=False)
                below.set_xlabel("memory (Mbit)" if budget == "memory" else "training (10³ passes)")
                panels.label_panel(ax, next(letters), f"{name} {TITLES[metric]}")
            for below, (metric, _) in zip(cells[2 * place + 1], COLUMNS_SHOWN, strict=True):
                panels.label_panel(below, next(letters), f"{TITLES[metric]} change")
            cells[2 * place, 0].set_ylabel(f"nats per {noun(chosen)}")
            cells[2 * place + 1, 0].set_ylabel("change")
        drawn.align_ylabels(list(cells[:, 0]))
        said = f"X: the panel's method; ECE as shares of 1; {pass_size(chosen)}; memory: of n stored members"
        panels.legend_below(
            drawn, list(cells.flat), title=textwrap.fill(said, int(17 * page.width()), break_on_hyphens=False)
        )
        paths = panels.save(drawn, folder, figure)
    return paths, [*claim_lines(summary.record, chosen, [claim]), pass_size(chosen)]
