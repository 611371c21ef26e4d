"""Figure 7: pre-trained models of several sizes: NLL against ensemble size and against memory, INT-5.

    python reproduce/fig7.py
    python reproduce/fig7.py --scale paper [--random-weights]

At ``digits``: three CLIPs trained on captioned digits, classifying without a head of their own (zero-shot),
and three Llamas trained on sums, answering a multiple-choice task through lm-eval. Costs about 25 minutes on
2 cores for the training seeds of ``digits``, from nothing. At ``paper``: CLIP-ViT-L/14, CLIP-ViT-g/14 and
LLaMa-3-8B, whose weights and data it names where they are missing.

It prints the paths written and the verdicts of claims C6a and C6b.

    top      NLL against the number of members
    bottom   the same against the memory of n stored members, with the single FP32 model at its own
    last     what the largest ensemble gains over FP32, against the number of parameters
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

# A script runs its own checkout, whichever copy is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from reproduce import same_bits

if __name__ == "__main__":  # before torch and numpy are imported
    same_bits.choose(sys.argv[1:])

import numpy as np
from matplotlib.axes import Axes

from lpe.records import COLUMNS, write_table
from reproduce.command import Script, run_figure
from reproduce.draw import panels
from reproduce.draw.large_models import large_rows, large_units
from reproduce.draw.style import BIT_STYLES
from reproduce.draw.summaries import FP32, SCALED, Summary, What, claim_lines, read
from reproduce.judge.intervals import student_interval
from reproduce.study.records import MEGABIT
from reproduce.study.scale import Scale
from reproduce.study.session import Session
from reproduce.study.units import Unit

COLUMNS_SHOWN = 3


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


def title_of(summary: Summary, substrate: str) -> str:
    """Return "CLIP-L, 0.14 M parameters" of "digits CLIP-L", say; with its dtype unless that is float32."""
    parameters = summary.parameters(What(substrate, "SGD", FP32))
    name = summary.unrounded(substrate)
    dtype = "" if name == FP32 else f", {name}"
    return f"{substrate.split(' ', 1)[1]}, {_parameters(parameters)} parameters{dtype}"


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
    name = summary.unrounded(substrate)
    panels.nll_panel(
        axes, rows, single, [chosen.settings.large_bits], BIT_STYLES, (panels.VERMILION, "^"), name
    )


def _memory_panel(axes: Axes, summary: Summary, chosen: Scale, substrate: str) -> None:
    single = What(substrate, "SGD", FP32)
    reference = summary.values(single)
    colour, marker = BIT_STYLES[chosen.settings.large_bits]
    curve = panels.budget_table(summary.every_size(_bsr(chosen, substrate)), reference, "memory_bits")
    panels.draw_budget(axes, curve, colour, marker, f"LPE-BSR, INT-{chosen.settings.large_bits}", MEGABIT)
    name = summary.unrounded(substrate)
    level, scaled = float(reference.mean()), float(summary.values(What(substrate, "SGD", SCALED)).mean())
    panels.single_models(axes, summary.memory_bits(single) / MEGABIT, level, scaled, "memory", name)
    panels.limit_values(axes, [curve], [level, scaled])
    panels.memory_axis(axes, "memory of n stored members (Mbit)")


def _gain_panel(axes: Axes, summary: Summary, chosen: Scale, substrates: Sequence[str]) -> None:
    """Draw the largest ensemble's NLL less FP32's, with its interval, against the number of parameters."""
    colour, marker = BIT_STYLES[chosen.settings.large_bits]
    parameters, means, lows, highs = [], [], [], []
    for substrate in substrates:
        single = What(substrate, "SGD", FP32)
        gain = (
            summary.values(_bsr(chosen, substrate, chosen.settings.size)) - summary.values(single)
        ).dropna()
        low, high = student_interval(gain.to_numpy())
        parameters.append(summary.parameters(single))
        means.append(float(gain.mean()))
        lows.append(low)
        highs.append(high)
    axes.axhline(0.0, color=panels.BLACK, linestyle="--", linewidth=0.9)
    axes.plot(parameters, means, color=colour, marker=marker, linewidth=0.9)
    if np.isfinite(lows).all():
        axes.vlines(parameters, lows, highs, color=colour, alpha=0.4, linewidth=3)
    axes.set_xscale("log")
    axes.set_xlabel("parameters")
    axes.set_xticks(parameters, [_parameters(number) for number in parameters])
    axes.minorticks_off()
    axes.set_xlim(0.6 * min(parameters), 1.7 * max(parameters))
    axes.set_ylabel(f"NLL({chosen.settings.size} members)\n− NLL({summary.common_name()})")


def draw(folder: Path, chosen: Scale) -> tuple[list[Path], list[str]]:
    """Draw fig7.pdf and fig7.png from fig7.csv; returns their paths and claim C6's verdicts."""
    summary = read(folder, "fig7")
    groups = {group: [each.name for each in of] for group, of in chosen.large.items()}
    heights = 2 * len(groups) + 1
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    with panels.style():
        figure = panels.plt.figure(figsize=(panels.TEXT_WIDTH, 1.75 * heights))
        grid = figure.add_gridspec(heights, COLUMNS_SHOWN)
        first = None
        for block, substrates in enumerate(groups.values()):
            for row, panel in enumerate((_sizes_panel, _memory_panel)):
                for column, substrate in enumerate(substrates):
                    axes = figure.add_subplot(grid[2 * block + row, column])
                    panel(axes, summary, chosen, substrate)
                    panels.label_panel(axes, next(letters), title_of(summary, substrate))
                    if not column:
                        axes.set_ylabel("test NLL (nats)")
                    first = first or axes
        for column, (group, substrates) in enumerate(groups.items()):
            axes = figure.add_subplot(grid[heights - 1, column])
            _gain_panel(axes, summary, chosen, substrates)
            panels.label_panel(
                axes, next(letters), f"gain over {summary.common_name()}{': ' + group if group else ''}"
            )
        assert first is not None
        panels.legend_below(figure, [first])
        paths = panels.save(figure, folder, "fig7")
    return paths, claim_lines(summary.record, chosen, ["C6"])


SCRIPT = Script("fig7", __doc__, lacks, wanted, compute, draw)

if __name__ == "__main__":
    sys.exit(run_figure(SCRIPT))
