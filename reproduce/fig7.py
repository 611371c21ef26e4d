"""Figure 7: pre-trained models of several sizes: NLL against ensemble size and against memory, INT-5.

    python reproduce/fig7.py
    python reproduce/fig7.py --scale paper [--random-weights]

At ``digits``: three CLIPs trained on captioned digits, classifying without a head of their own (zero-shot),
and three Llamas trained on sums, answering a multiple-choice task through lm-eval. Costs about 42 minutes of
one core (Intel Xeon) for the twenty training seeds of ``digits``, from nothing. At ``paper``: CLIP-ViT-L/14,
CLIP-ViT-g/14 and LLaMa-3-8B, whose weights and data it names where they are missing.

It prints the paths written and the verdicts of claims C6a and C6b.

    top      NLL against the number of members
    bottom   the same against the memory of n stored members, with the single FP32 model at its own;
             dash-dotted: members stored as planes, b + n bits a weight
    last     how far the NLL of the largest ensemble lies above FP32's (a cost above 0, a gain below), against
             the number of parameters
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

# A script runs its own checkout, whichever copy is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from reproduce import same_bits

if __name__ == "__main__":  # before torch and numpy are imported
    same_bits.begin(sys.argv[1:])

import numpy as np
from matplotlib.axes import Axes
from matplotlib.gridspec import SubplotSpec

from lpe.records import COLUMNS, write_table
from reproduce.command import Script, run_figure
from reproduce.draw import page, panels
from reproduce.draw.curves import draw_planes, nll_panel
from reproduce.draw.large_models import large_rows, large_units
from reproduce.draw.style import BIT_STYLES, PLANES_LINE
from reproduce.draw.summaries import FP32, SCALED, Summary, What, claim_lines, read
from reproduce.judge.intervals import student_interval
from reproduce.study.records import MEGABIT
from reproduce.study.scale import Scale
from reproduce.study.session import Session
from reproduce.study.units import Unit


def lacks(chosen: Scale) -> str:
    """Say what a scale lacks for the figure; "" where it has all."""
    return "" if chosen.large else "large models"


def wanted(session: Session) -> list[Unit]:
    """Return the units that the figure shows: table 6's CLIP at every training seed it is measured at."""
    return large_units(session)


def compute(session: Session) -> dict[str, object]:
    """Train and measure; write fig7.csv."""
    rows = large_rows(session, ("nll",))
    write_table(rows, session.out / "fig7.csv", COLUMNS)
    return {}


def title_of(summary: Summary, substrate: str, short: str) -> str:
    """Return the two lines "CLIP-L" and "0.14 M parameters", say; with its dtype unless that is float32."""
    parameters = summary.parameters(What(substrate, "SGD", FP32))
    name = summary.unrounded(substrate)
    dtype = "" if name == FP32 else f", {name}"
    return f"{short}\n{_parameters(parameters)} parameters{dtype}"


def _parameters(number: float) -> str:
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g} {letter}"
    return f"{number:g}"


def _bsr(chosen: Scale, substrate: str, size: int = 1) -> What:
    return What(substrate, "SGD", "LPE-BSR", f"int{chosen.settings.large_bits}", size)


def _sizes_panel(axes: Axes, summary: Summary, chosen: Scale, substrate: str) -> None:
    rows = summary.record[(summary.record["substrate"] == substrate) & (summary.record["metric"] == "nll")]
    single = summary.values(What(substrate, "SGD", FP32))
    nll_panel(axes, rows, single, [chosen.settings.large_bits], summary.unrounded(substrate))


def _memory_panel(axes: Axes, summary: Summary, chosen: Scale, substrate: str) -> None:
    single = What(substrate, "SGD", FP32)
    reference = summary.values(single)
    colour, marker = BIT_STYLES[chosen.settings.large_bits]
    curve = panels.budget_table(summary.every_size(_bsr(chosen, substrate)), reference, "memory_bits")
    panels.draw_budget(axes, curve, colour, marker, f"LPE-BSR, INT-{chosen.settings.large_bits}", MEGABIT)
    planes = [summary.planes_bits(_bsr(chosen, substrate, int(size))) for size in curve["size"]]
    draw_planes(axes, curve, planes, colour, MEGABIT)
    name = summary.unrounded(substrate)
    level, scaled = float(reference.mean()), float(summary.values(What(substrate, "SGD", SCALED)).mean())
    panels.single_models(axes, summary.memory_bits(single) / MEGABIT, level, scaled, "memory", name)
    panels.limit_values(axes, [curve], [level, scaled])
    panels.memory_axis(axes, "n stored members (Mbit)")


def _change_panel(axes: Axes, summary: Summary, chosen: Scale, substrates: Sequence[str]) -> None:
    """Draw the largest ensemble's NLL less FP32's, with its interval, against the number of parameters."""
    colour, marker = BIT_STYLES[chosen.settings.large_bits]
    parameters, means, lows, highs = [], [], [], []
    for substrate in substrates:
        single = What(substrate, "SGD", FP32)
        change = (
            summary.values(_bsr(chosen, substrate, chosen.settings.large_size)) - summary.values(single)
        ).dropna()
        low, high = student_interval(change.to_numpy())
        parameters.append(summary.parameters(single))
        means.append(float(change.mean()))
        lows.append(low)
        highs.append(high)
    axes.axhline(0.0, color=panels.BLACK, linestyle="--", linewidth=0.9)
    axes.plot(parameters, means, color=colour, marker=marker, linewidth=0.9, zorder=3)
    if np.isfinite(lows).all():
        axes.vlines(parameters, lows, highs, color=colour, alpha=0.4, linewidth=3)
    axes.set_xscale("log")
    axes.set_xlabel("parameters")
    axes.set_xticks(parameters, [_parameters(number) for number in parameters])
    axes.minorticks_off()
    axes.set_xlim(0.6 * min(parameters), 1.7 * max(parameters))
    axes.set_ylabel(f"{chosen.settings.large_size} members − {summary.common_name()} (nats)")


def draw(folder: Path, chosen: Scale) -> tuple[list[Path], list[str]]:
    """Draw fig7.pdf and fig7.png from fig7.csv; returns their paths and claim C6's verdicts."""
    summary = read(folder, "fig7")
    letters = panels.letters()
    most = max(len(group) for group in chosen.large.values())
    # Models one by one stand side by side with what is drawn of them.
    columns, heights = (3, len(chosen.large))
    if most > 1:
        columns, heights = max(most, len(chosen.large)), 2 * len(chosen.large) + 1
    with panels.style():
        figure = panels.plt.figure(figsize=(page.width(), 1.5 * heights + 0.45))
        grid = figure.add_gridspec(heights, columns)
        shown: list[Axes] = []
        changes: list[tuple[str, list[str], SubplotSpec]] = []
        for block, (group, models) in enumerate(chosen.large.items()):
            for row, panel in enumerate((_sizes_panel, _memory_panel)):
                for column, model in enumerate(models):
                    place = grid[2 * block + row, column] if most > 1 else grid[block, row]
                    axes = figure.add_subplot(place)
                    panel(axes, summary, chosen, model.name)
                    panels.label_panel(axes, next(letters), title_of(summary, model.name, model.short))
                    if not column:
                        axes.set_ylabel(f"test NLL (nats per {model.example})")
                    shown.append(axes)
            place = grid[heights - 1, block] if most > 1 else grid[block, 2]
            changes.append((group, [model.name for model in models], place))
        for group, names, place in changes:
            axes = figure.add_subplot(place)
            _change_panel(axes, summary, chosen, names)
            above = f"NLL above {summary.common_name()}'s"
            panels.label_panel(axes, next(letters), f"{group}: {above}" if group else above)
        shown[0].plot([], [], color=panels.GREY, label="LPE-BSR, members as planes", **PLANES_LINE)
        panels.legend_below(figure, shown)
        paths = panels.save(figure, folder, "fig7")
    return paths, claim_lines(summary.record, chosen, ["C6"])


SCRIPT = Script("fig7", __doc__, lacks, wanted, compute, draw)

if __name__ == "__main__":
    sys.exit(run_figure(SCRIPT))
