"""Figure 8: NLL against memory, for the points found by SGD, SWAG and IVON.

    python reproduce/fig8.py

Costs about 10 minutes on 2 busy cores for the five training seeds of ``digits``, from nothing, and seconds
after figure 2. It prints the paths written and the verdicts of claim C7.

    top      n stored members, for n = 1 … M: a curve. Open markers lie at the sizes of real files of such
             ensembles (those of training seed 0)
    bottom   the smallest thing from which the members can be drawn, which does not grow with n: from the
             mean NLL of one member, small marker, down to that of all. Every bit width of LPE-BSR is drawn
             from one copy in 8 bits; the widths stand side by side to be seen
"""

from __future__ import annotations

import sys
from pathlib import Path

# A script runs its own checkout, whichever copy is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from reproduce import same_bits

if __name__ == "__main__":  # before torch and numpy are imported
    same_bits.choose(sys.argv[1:])

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from lpe.records import COLUMNS, write_table
from reproduce.command import Script, run_figure
from reproduce.draw import panels
from reproduce.draw.style import BIT_STYLES, BMA_STYLE, METHODS
from reproduce.draw.summaries import FP32, SCALED, Summary, What, claim_lines, noun, read
from reproduce.study.measurements import measure_all
from reproduce.study.records import MEGABIT, selected
from reproduce.study.scale import Scale
from reproduce.study.session import Session
from reproduce.study.units import Unit, units

BESIDE = 1.12
"""Distance, as a factor, between two curves of one memory."""


def lacks(chosen: Scale) -> str:
    """Say what a scale lacks for the figure; "" where it has all."""
    return "" if chosen.points else "a main network"


def wanted(session: Session) -> list[Unit]:
    """Return the units that the figure shows."""
    return units([session.scale.main], session.scale.points, session.seeds)


def compute(session: Session) -> dict[str, object]:
    """Train and measure; write fig8.csv."""
    measure_all(session, wanted(session))
    rows = selected(session, wanted(session), every_size=("nll", "generator_bits"), methods=METHODS)
    write_table(rows, session.out / "fig8.csv", COLUMNS)
    return {}


def curves_of(chosen: Scale, point: str) -> list[tuple[What, str, str, str]]:
    """List what a point's panels show: (what, colour, marker, label)."""
    shown = (
        [(What(chosen.substrate, point, "BMA"), *BMA_STYLE, "BMA, FP32")]
        if point in chosen.posteriors
        else []
    )
    for bits in chosen.settings.bits:
        what = What(chosen.substrate, point, "LPE-BSR", f"int{bits}")
        shown.append((what, *BIT_STYLES[bits], f"LPE-BSR, INT-{bits}"))
    return shown


def generator_table(summary: Summary, what: What) -> pd.DataFrame:
    """Return [sizes, (size, bits)]: the smallest thing to draw the members from, mean over seeds."""
    rows = summary.every_size(what, "generator_bits")
    return rows.groupby("size")["value"].mean().rename("bits").reset_index()


def _members_panel(axes: Axes, summary: Summary, chosen: Scale, point: str, reference: pd.Series) -> None:
    curves = []
    for what, colour, marker, label in curves_of(chosen, point):
        curve = panels.budget_table(summary.every_size(what), reference, "memory_bits")
        panels.draw_budget(axes, curve, colour, marker, label, MEGABIT)
        curves.append(curve)
        at = curve.set_index("size")["mean"]
        for size in summary.sizes(what, "file_bytes"):
            bits = 8 * float(summary.values(what.at(size), "file_bytes").mean())
            axes.plot(
                bits / MEGABIT,
                at[size],
                marker=marker,
                color=colour,
                markerfacecolor="white",
                markersize=6,
                markeredgewidth=0.8,
                linestyle="none",
                zorder=4,
            )
    _finish(axes, summary, chosen, point, curves)
    panels.memory_axis(axes, "memory of n stored members (Mbit)")


def _generator_panel(axes: Axes, summary: Summary, chosen: Scale, point: str, reference: pd.Series) -> None:
    shown = curves_of(chosen, point)
    low = [what.number_system for what, *_ in shown if what.method == "LPE-BSR"]
    curves = []
    for what, colour, marker, label in shown:
        curve = panels.budget_table(summary.every_size(what), reference, "memory_bits")
        bits = generator_table(summary, what)["bits"].to_numpy() / MEGABIT
        if what.number_system in low:
            bits = bits * BESIDE ** (low.index(what.number_system) - (len(low) - 1) / 2)
        means = curve["mean"].to_numpy()
        axes.plot(bits, means, color=colour, zorder=3)
        axes.plot(bits[0], means[0], color=colour, marker=marker, markersize=2.5, zorder=3)
        axes.plot(bits[-1], means[-1], color=colour, marker=marker, markersize=4.5, label=label, zorder=3)
        if np.isfinite(curve["low"].iloc[-1]):
            axes.vlines(
                bits[-1], curve["low"].iloc[-1], curve["high"].iloc[-1], color=colour, alpha=0.3, linewidth=3
            )
        # What limits the panel: the mean at every size, and the interval that is drawn, at the last.
        inner = np.arange(len(curve)) < len(curve) - 1
        for limit in ("low", "high"):
            curve[limit] = curve[limit].mask(inner, curve["mean"])
        curves.append(curve)
    _finish(axes, summary, chosen, point, curves)
    panels.memory_axis(axes, "memory to draw members from (Mbit)")


def _finish(axes: Axes, summary: Summary, chosen: Scale, point: str, curves: list[pd.DataFrame]) -> None:
    """Draw the single FP32 models as lines, the first with its cost; set the limits of y."""
    single = What(chosen.substrate, point, FP32)
    level = float(summary.values(single).mean())
    scaled = float(summary.values(What(chosen.substrate, point, SCALED)).mean())
    panels.single_models(axes, summary.memory_bits(single) / MEGABIT, level, scaled, "memory")
    panels.limit_values(axes, curves, [level, scaled])


def draw(folder: Path, chosen: Scale) -> tuple[list[Path], list[str]]:
    """Draw fig8.pdf and fig8.png from fig8.csv; returns their paths and claim C7's verdicts."""
    summary = read(folder, "fig8")
    with panels.style():
        count = len(chosen.points)
        figure, rows = panels.plt.subplots(2, count, figsize=(panels.TEXT_WIDTH, 3.9), squeeze=False)
        for place, point in enumerate(chosen.points):
            reference = summary.values(What(chosen.substrate, point, FP32))
            _members_panel(rows[0][place], summary, chosen, point, reference)
            panels.label_panel(rows[0][place], "abcdefgh"[place], f"{point}: stored members")
            _generator_panel(rows[1][place], summary, chosen, point, reference)
            panels.label_panel(
                rows[1][place], "abcdefghijklmnop"[count + place], f"{point}: smallest to draw from"
            )
            limits = [limit for ax in rows[:, place] for limit in ax.get_xlim()]
            for ax in rows[:, place]:
                ax.set_xlim(min(limits), max(limits))
        for first in rows[:, 0]:
            first.set_ylabel(f"test NLL (nats per {noun(chosen)})")
        rows[0][-1 if count < 2 else 1].plot(
            [],
            [],
            marker="o",
            color="grey",
            markerfacecolor="white",
            linestyle="none",
            label="size of a real file",
        )
        panels.legend_in_columns(figure, [rows[0][1], rows[0][0]] if count > 1 else [rows[0][0]], 4)
        paths = panels.save(figure, folder, "fig8")
    return paths, claim_lines(summary.record, chosen, ["C7"])


SCRIPT = Script("fig8", __doc__, lacks, wanted, compute, draw)

if __name__ == "__main__":
    sys.exit(run_figure(SCRIPT))
