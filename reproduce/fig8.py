"""Figure 8: NLL against memory, for the points found by SGD, SWAG and IVON.

    python reproduce/fig8.py

Costs about 7 minutes of one core (Intel Xeon) for the five training seeds of ``digits``, from nothing, and
seconds after figure 2. It prints the paths written and the verdicts of claim C7.

    top      n stored members, for n = 1 … M: a curve. Open markers lie at the sizes of real files of such
             ensembles (those of training seed 0)
    middle   the paired difference to the single FP32 model: even within 1 % of FP32's NLL, logarithmic beyond
    bottom   that difference against the smallest thing from which the members can be drawn, which does not
             grow with n: from one member, hollow, to all. Every bit width of LPE-BSR is drawn from one copy
             in 8 bits

Dash-dotted, at the top and in the middle: LPE-BSR's members stored as planes, b + n bits a weight.
"""

from __future__ import annotations

import sys
from pathlib import Path

# A script runs its own checkout, whichever copy is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from reproduce import same_bits

if __name__ == "__main__":  # before torch and numpy are imported
    same_bits.begin(sys.argv[1:])

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from lpe.records import COLUMNS, write_table
from reproduce.command import Script, run_figure
from reproduce.draw import panels
from reproduce.draw.curves import difference_axis, difference_curve, draw_planes, paired_table
from reproduce.draw.style import BIT_STYLES, BMA_STYLE, METHODS, PLANES_LINE, RE_ESTIMATED_LINE
from reproduce.draw.summaries import FP32, SCALED, Summary, What, claim_lines, noun, read
from reproduce.study.measurements import measure_all
from reproduce.study.records import MEGABIT, selected
from reproduce.study.scale import Scale
from reproduce.study.session import Session
from reproduce.study.units import Unit, units
from reproduce.study.unrounded import RE_ESTIMATED


def lacks(chosen: Scale) -> str:
    """Say what a scale lacks for the figure; "" where it has all."""
    return "" if chosen.points else "a main network"


def wanted(session: Session) -> list[Unit]:
    """Return the units that the figure shows."""
    return units([session.scale.of_points], session.scale.points, session.seeds)


def compute(session: Session) -> dict[str, object]:
    """Train and measure; write fig8.csv."""
    measure_all(session, wanted(session))
    rows = selected(session, wanted(session), every_size=("nll", "generator_bits"), methods=METHODS)
    write_table(rows, session.out / "fig8.csv", COLUMNS)
    return {}


def curves_of(chosen: Scale, point: str) -> list[tuple[What, str, str, str]]:
    """List what a point's panels show: (what, colour, marker, label)."""
    shown = (
        [(What(chosen.points_substrate, point, "BMA"), *BMA_STYLE, "BMA, FP32")]
        if point in chosen.posteriors
        else []
    )
    for bits in chosen.settings.bits:
        what = What(chosen.points_substrate, point, "LPE-BSR", f"int{bits}")
        shown.append((what, *BIT_STYLES[bits], f"LPE-BSR, INT-{bits}"))
    return shown


def generator_table(summary: Summary, what: What) -> pd.DataFrame:
    """Return [sizes, (size, bits)]: the smallest thing to draw the members from, mean over seeds."""
    rows = summary.every_size(what, "generator_bits")
    return rows.groupby("size")["value"].mean().rename("bits").reset_index()


def _again(what: What) -> What:
    return replace(what, method=f"{what.method}{RE_ESTIMATED}")


def planes_of(summary: Summary, what: What, curve: pd.DataFrame) -> list[float | None]:
    """Return the bits of a curve's members stored as planes, by its sizes."""
    return [summary.planes_bits(what.at(int(size))) for size in curve["size"]]


def _members_panel(axes: Axes, summary: Summary, chosen: Scale, point: str, reference: pd.Series) -> None:
    curves = []
    for what, colour, marker, label in curves_of(chosen, point):
        curve = panels.budget_table(summary.every_size(what), reference, "memory_bits")
        panels.draw_budget(axes, curve, colour, marker, label, MEGABIT)
        draw_planes(axes, curve, planes_of(summary, what, curve), colour, MEGABIT)
        curves.append(curve)
        if summary.sizes(_again(what)):
            again = panels.budget_table(summary.every_size(_again(what)), reference, "memory_bits")
            dashed = {"color": colour, "label": f"{label}{RE_ESTIMATED}", **RE_ESTIMATED_LINE}
            axes.plot(again["budget"] / MEGABIT, again["mean"], **dashed)
            curves.append(again)
        at = curve.set_index("size")["mean"]
        for size in summary.sizes(what, "file_bytes"):
            bits = 8 * float(summary.values(what.at(size), "file_bytes").mean())
            axes.plot(
                bits / MEGABIT,
                at[size],
                marker=marker,
                color=colour,
                markerfacecolor="white",
                markersize=5,
                markeredgewidth=0.8,
                linestyle="none",
                zorder=4,
            )
    single = What(chosen.points_substrate, point, FP32)
    level = float(summary.values(single).mean())
    scaled = float(summary.values(What(chosen.points_substrate, point, SCALED)).mean())
    panels.single_models(axes, summary.memory_bits(single) / MEGABIT, level, scaled, "memory")
    panels.limit_values(axes, curves, [level, scaled])
    panels.memory_axis(axes, "n stored members (Mbit)")


def _difference_panel(axes: Axes, summary: Summary, chosen: Scale, point: str, reference: pd.Series) -> None:
    for what, colour, marker, label in curves_of(chosen, point):
        for each in [what, _again(what)] if summary.sizes(_again(what)) else [what]:
            rows = summary.every_size(each)
            curve = difference_curve(rows, reference, rows.groupby("size")["memory_bits"].mean())
            if each == what:
                panels.draw_budget(axes, curve, colour, marker, label, MEGABIT)
                draw_planes(axes, curve, planes_of(summary, what, curve), colour, MEGABIT)
            else:
                axes.plot(curve["budget"] / MEGABIT, curve["mean"], color=colour, **RE_ESTIMATED_LINE)
    _finish_differences(axes, summary, chosen, point, reference)
    panels.memory_axis(axes, "n stored members (Mbit)")


def _generator_panel(axes: Axes, summary: Summary, chosen: Scale, point: str, reference: pd.Series) -> None:
    """Draw differences against the memory to draw from: of one member, hollow, down to all members, filled.

    Widths of LPE-BSR have one memory, so they stand on one line: the fewer bits, the wider is theirs.
    """
    shown = curves_of(chosen, point)
    for place, (what, colour, marker, label) in enumerate(shown):
        curve = paired_table(summary.every_size(what), reference)
        bits = generator_table(summary, what)["bits"].to_numpy() / MEGABIT
        means = curve["difference"].to_numpy()
        wide = 1.0 + 2.0 * place / max(len(shown) - 1, 1)
        axes.plot(bits, means, color=colour, linewidth=wide, alpha=0.7, zorder=3 - 0.1 * place)
        hollow: dict[str, Any] = {"color": colour, "markerfacecolor": "white", "markeredgewidth": 0.8}
        axes.plot(bits[0], means[0], marker, markersize=4, zorder=4, **hollow)
        axes.plot(bits[-1], means[-1], marker, color=colour, markersize=4.5, label=label, zorder=5)
        ends = curve[["low", "high"]].iloc[-1]
        if np.isfinite(ends).all():
            axes.plot([bits[-1]] * 2, ends, "_", color=colour, markersize=7, zorder=4)
    _finish_differences(axes, summary, chosen, point, reference)
    panels.memory_axis(axes, "to draw from (Mbit)")


def _finish_differences(
    axes: Axes, summary: Summary, chosen: Scale, point: str, reference: pd.Series
) -> None:
    """Draw the single FP32 models as lines, the first with its memory; make y an axis of differences."""
    scaled = (summary.values(What(chosen.points_substrate, point, SCALED)) - reference).dropna()
    memory = summary.memory_bits(What(chosen.points_substrate, point, FP32)) / MEGABIT
    panels.single_models(axes, memory, 0.0, float(scaled.mean()), "memory")
    difference_axis(axes, float(reference.mean()))


def _explain(axes: list[Axes]) -> None:
    """Give the legend what hollow marks and dashes mean, which have the colours of their methods."""
    hollow: dict[str, Any] = {"color": panels.GREY, "markerfacecolor": "white", "linestyle": "none"}
    axes[0].plot([], [], "o", markersize=5, label="stored members, hollow: size of a real file", **hollow)
    axes[0].plot([], [], color=panels.GREY, label="LPE-BSR, members as planes", **PLANES_LINE)
    axes[2].plot([], [], "o", markersize=4, label="to draw from, hollow: one member (filled: all)", **hollow)
    axes[2].plot(
        [], [], "_", markersize=7, color=panels.GREY, label="to draw from, dashes: 95 % interval of all"
    )


def draw(folder: Path, chosen: Scale) -> tuple[list[Path], list[str]]:
    """Draw fig8.pdf and fig8.png from fig8.csv; returns their paths and claim C7's verdicts."""
    summary = read(folder, "fig8")
    titles = []
    with panels.style():
        figure, columns = panels.paired_grid(len(chosen.points), 3)
        for point, axes in zip(chosen.points, columns, strict=True):
            reference = summary.values(What(chosen.points_substrate, point, FP32))
            _members_panel(axes[0], summary, chosen, point, reference)
            _difference_panel(axes[1], summary, chosen, point, reference)
            _generator_panel(axes[2], summary, chosen, point, reference)
            limits = [limit for ax in axes for limit in ax.get_xlim()]
            for ax, title in zip(axes, ("stored members", "difference", "to draw from"), strict=True):
                ax.set_xlim(min(limits), max(limits))
                titles.append((ax, f"{point}: {title}"))
            if panels.leftmost(axes[0]):
                axes[0].set_ylabel(f"test NLL (nats per {noun(chosen)})")
            for ax in axes[1:]:
                if panels.leftmost(ax) or len(chosen.points) == 1:
                    ax.set_ylabel("NLL − NLL(FP32) (nats)")
        panels.label_rows(titles)
        figure.align_ylabels([ax for axes in columns for ax in axes])
        _explain(columns[0])
        panels.legend_below(figure, [ax for axes in columns[::-1] for ax in axes])
        paths = panels.save(figure, folder, "fig8")
    return paths, claim_lines(summary.record, chosen, ["C7"])


SCRIPT = Script("fig8", __doc__, lacks, wanted, compute, draw, of_points=True)

if __name__ == "__main__":
    sys.exit(run_figure(SCRIPT))
