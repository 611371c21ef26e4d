"""Figures of budgets: X, with and without LPE-BSR, against training and memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from lpe.records import COLUMNS, write_table
from reproduce.draw import panels
from reproduce.draw.summaries import FP32, SCALED, Summary, What, claim_lines, pass_size, read
from reproduce.study.measurements import measure_all, posteriors
from reproduce.study.records import MEGABIT, selected
from reproduce.study.scale import Scale
from reproduce.study.session import Session
from reproduce.study.units import Unit, units

COLUMNS_SHOWN = (("nll", "training"), ("ece", "training"), ("nll", "memory"), ("ece", "memory"))


TITLES = {"nll": "NLL", "ece": "ECE"}


Y_LABELS = {"nll": "test NLL (nats)", "ece": "ECE (15 bins)"}


BASE_STYLE = (panels.VERMILION, "^")


LOW_STYLE = (panels.BLUE, "o")


THOUSAND = 1e3


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
    methods = [FP32, SCALED, *families, *(f"{name} + LPE-BSR" for name in families)]
    rows = selected(session, the_units, every_size=("nll", "ece"), methods=methods)
    write_table(rows, session.out / f"{figure}.csv", COLUMNS)
    return {"backward_pass": pass_size(session.scale), "posteriors": posteriors(session, [], families)}


def budget_panel(
    axes: Axes,
    summary: Summary,
    base: What,
    expanded: What,
    metric: str,
    budget: str,
    labels: tuple[str, str],
) -> None:
    """Draw one metric of X and X + LPE-BSR against one budget, and the single FP32 model."""
    column, factor = ("backward_passes", THOUSAND) if budget == "training" else ("memory_bits", MEGABIT)
    single = What(base.substrate, "SGD", FP32)
    reference = summary.values(single, metric)
    curves = []
    for what, (colour, marker), label in ((base, BASE_STYLE, labels[0]), (expanded, LOW_STYLE, labels[1])):
        curve = panels.budget_table(summary.every_size(what, metric), reference, column)
        if budget == "training":
            curve = panels.all_paid_for(curve)
        panels.draw_budget(axes, curve, colour, marker, label, factor)
        curves.append(curve)
    level = float(reference.mean())
    scaled = float(summary.values(What(base.substrate, "SGD", SCALED), metric).mean())
    cost = summary.backward_passes(single) if budget == "training" else summary.memory_bits(single)
    panels.single_models(axes, cost / factor, level, scaled, "cost")
    panels.limit_values(axes, curves, [level, scaled])
    if budget == "memory":
        panels.memory_axis(axes)
    else:
        axes.set_xlabel("training (10³ passes)")


def draw_budgets(
    folder: Path, chosen: Scale, figure: str, families: Sequence[str], claim: str
) -> tuple[list[Path], list[str]]:
    """Draw families × (NLL, ECE) × (training, memory) from the record; paths, and lines to print."""
    summary = read(folder, figure)
    system = f"int{chosen.settings.best_bits}"
    letters = iter("abcdefghijklmnopqrst")
    with panels.style():
        drawn, rows = panels.plt.subplots(
            len(families), 4, figsize=(panels.TEXT_WIDTH, 0.55 + 1.62 * len(families)), squeeze=False
        )
        for axes, name in zip(rows, families, strict=True):
            base = What(chosen.substrate, name, name)
            expanded = What(chosen.substrate, name, f"{name} + LPE-BSR", system)
            for ax, (metric, budget) in zip(axes, COLUMNS_SHOWN, strict=True):
                labels = ("X, FP32 members", f"X + LPE-BSR, INT-{chosen.settings.best_bits}")
                budget_panel(ax, summary, base, expanded, metric, budget, labels)
                panels.label_panel(ax, next(letters), f"{name}: {TITLES[metric]}")
                ax.set_ylabel(Y_LABELS[metric])
        panels.legend_below(drawn, list(rows.flat))
        said = f"X: the panel's method; {pass_size(chosen)}; memory: of n stored members"
        drawn.legends[0].set_title(said)
        drawn.legends[0].get_title().set_fontsize(6)
        paths = panels.save(drawn, folder, figure)
    return paths, [*claim_lines(summary.record, chosen, [claim]), pass_size(chosen)]
