"""Why it works: which layers pay and bring, and whether it is the rounding or only noise of its size.

    python reproduce/why.py --scale cifar10-small

Costs, for each training seed and beside its trainings, on the test examples: 18 ensembles of the grids of
``Scale.beyond``, three for each bit width, one for each posterior, and ``Scale.beyond.sensitivity`` members
for each layer; and the predictions that ``reproduce/shift.py`` takes. It prints the paths written and what
the panels come to.

    layers    LPE-BSR that rounds one tensor alone, few members: its NLL less FP32's, and the ambiguity that
              it brings
    noise     members' average loss less FP32's, ambiguity, and the ensemble's NLL less FP32's against the
              size of the noise, for every method whose members lie around one network: the distance of a
              member's weights, over all that LPE-BSR rounds, as a share of their length
    members   the share of single LPE-BSR members that are better than RTN (claim C14)
    order     the NLL of members that are each calibrated and then pooled, less that of members that are
              pooled and then calibrated (Rahaman & Thiery 2021)

Differences are paired by training seed, with 95 % intervals. MC-dropout's noise is the expected one; see
``reproduce/study/beyond/why_units.py``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

# A script runs its own checkout, whichever copy is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from reproduce import same_bits

if __name__ == "__main__":  # before torch and numpy are imported
    same_bits.begin(sys.argv[1:])

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

import lpe
from lpe.errors import InputError
from lpe.records import COLUMNS, write_table
from reproduce.command import Script, run_figure
from reproduce.draw import page, panels
from reproduce.draw.compared import Compared, mark, paired, title
from reproduce.draw.curves import difference_axis, signed
from reproduce.draw.style import (
    BIT_STYLES,
    BMA_STYLE,
    DROPOUT_STYLE,
    GAUSSIAN_STYLE,
    MATCHED_STYLE,
    RTN_MARKER,
    SPREAD_STYLE,
    SWAG_STYLE,
    Mark,
)
from reproduce.draw.summaries import FP32, Summary, What, claim_lines, noun, training_seeds
from reproduce.draw.tables import Cell, mean_and_interval, plain_number, write_all
from reproduce.judge.intervals import student_interval
from reproduce.study.beyond.names import (
    BMA,
    CALIBRATED_THEN_POOLED,
    CLEAN,
    LPE_BSR,
    MATCHED,
    NOISE,
    POOLED_THEN_CALIBRATED,
    RTN,
    dropped,
    layer_of,
    noise_name,
    shown,
)
from reproduce.study.beyond.predictions_unit import files
from reproduce.study.beyond.why_units import LAYER, RELATIVE_NOISE
from reproduce.study.measurements import measure_all
from reproduce.study.records import BETTER_THAN_RTN, log_sizes, record_name, rows_of
from reproduce.study.scale import Scale
from reproduce.study.session import Session
from reproduce.study.units import PREDICTIONS, WHY, Unit, beyond_units, units

ORDER_METRICS = (CALIBRATED_THEN_POOLED, POOLED_THEN_CALIBRATED)
CLOSE = 0.115
"""Inches a line of a panel whose lines are named."""
MOST_NAMED = 60
"""Layers that each have their name; of more, some that lie evenly."""
WIDE = 30.0
"""Ends of a logarithmic axis, one over the other, beyond which 1 and 3 times powers of ten are written."""
HEADER = (
    "method",
    "setting",
    "members",
    "noise / weights",
    "average loss − FP32's",
    "ambiguity (nats)",
    "NLL − FP32's",
)


def lacks(chosen: Scale) -> str:
    """Say what a scale lacks for the figure; "" where it has all."""
    has_points = chosen.main is not None and bool(chosen.main.points)
    return "" if chosen.beyond is not None and has_points else "the settings of Scale.beyond"


def wanted(session: Session) -> list[Unit]:
    """Return the units that the figure shows."""
    chosen = session.scale
    return [
        *beyond_units(chosen, WHY, session.seeds),
        *beyond_units(chosen, PREDICTIONS, session.seeds),
        *_of_points(session),
    ]


def _of_points(session: Session) -> list[Unit]:
    of_points = session.scale.of_points
    assert of_points is not None
    return units([of_points], [of_points.estimate], session.seeds)


def compute(session: Session) -> dict[str, object]:
    """Train and measure; write why_record.csv. Returns the files of predictions behind it, by unit."""
    chosen = session.scale
    measure_all(session, wanted(session))
    why = rows_of(session, beyond_units(chosen, WHY, session.seeds))
    better = rows_of(session, _of_points(session))
    better = better[(better["metric"] == BETTER_THAN_RTN) & (better["method"] == LPE_BSR)]
    predicted = beyond_units(chosen, PREDICTIONS, session.seeds)
    order = rows_of(session, predicted)
    is_clean = order["substrate"] == shown(chosen.substrate, CLEAN)
    order = order[is_clean & order["metric"].isin(["nll", *ORDER_METRICS])]
    rows = pd.concat([why, better, order], ignore_index=True)
    log_sizes(session, rows)
    write_table(rows, session.out / record_name("why"), COLUMNS)
    return {"predictions": files(session, predicted)}


@dataclass(frozen=True)
class Kind:
    """Settings of one method that a curve joins.

    Args:
        name: of the curve. mark: its colour and marker. line: its style; "": points alone.
        shown: what is on it, with the setting in words.
    """

    name: str
    mark: Mark
    line: str
    shown: tuple[tuple[What, str], ...]


def kinds(summary: Summary, chosen: Scale) -> list[Kind]:
    """List the curves of the panels against noise: those that the record has rows of."""
    main, beyond = chosen.main, chosen.beyond
    assert main is not None and beyond is not None
    substrate = shown(chosen.substrate, NOISE)

    def at(method: str, system: str = "fp32", point: str = main.estimate) -> What | None:
        what = What(substrate, point, method, system)
        sizes = summary.sizes(what)
        return what.at(sizes[-1]) if sizes else None

    def listed(pairs: Sequence[tuple[What | None, str]]) -> tuple[tuple[What, str], ...]:
        return tuple((what, setting) for what, setting in pairs if what is not None)

    bits = [(f"int{width}", f"INT-{width}") for width in chosen.settings.bits]
    codes = [(lpe.Int(beyond.spread_bits, spread=each).name, f"spread {each:g}") for each in beyond.spreads]
    blue = BIT_STYLES[chosen.settings.best_bits]
    every = [
        Kind("LPE-BSR, by bits", blue, "-", listed([(at(LPE_BSR, system), s) for system, s in bits])),
        Kind("LPE-BSR, by spread", SPREAD_STYLE, "-", listed([(at(LPE_BSR, name), s) for name, s in codes])),
        Kind(
            "RTN, by bits", (blue[0], RTN_MARKER), "-.", listed([(at(RTN, system), s) for system, s in bits])
        ),
        Kind(
            "Gaussian noise of LPE-BSR's variance",
            MATCHED_STYLE,
            "--",
            listed([(at(MATCHED, system), s) for system, s in bits]),
        ),
        Kind(
            "Gaussian noise, by std",
            GAUSSIAN_STYLE,
            "--",
            listed([(at(noise_name(std)), f"std {std:g}") for std in beyond.stds]),
        ),
        Kind(
            "MC-dropout, by rate",
            DROPOUT_STYLE,
            ":",
            listed([(at(dropped(rate)), f"rate {rate:g}") for rate in beyond.rates]),
        ),
        *(
            Kind(
                f"{point}, {BMA}",
                SWAG_STYLE if point == "SWAG" else BMA_STYLE,
                "",
                listed([(at(BMA, point=point), "")]),
            )
            for point in main.posteriors
        ),
    ]
    return [kind for kind in every if kind.shown]


def layers(record: pd.DataFrame, chosen: Scale) -> list[str]:
    """List the layers that are rounded alone, in the network's order."""
    places = record[record["metric"] == LAYER]
    names = places["substrate"].map(lambda name: layer_of(chosen.substrate, name))
    order = places["value"].groupby(names).mean().sort_values()
    return [str(name) for name in order.index]


def of_layer(chosen: Scale, summary: Summary, layer: str) -> What:
    """Return what the rows of a layer that is rounded alone are of."""
    assert chosen.main is not None
    substrate = shown(chosen.substrate, f"{layer} alone")
    what = What(substrate, chosen.main.estimate, LPE_BSR, f"int{chosen.settings.best_bits}")
    return what.at(summary.sizes(what)[-1])


def reference(summary: Summary, chosen: Scale, point: str) -> pd.Series:
    """Return the unrounded network's NLL, which is its only member's loss, by training seed."""
    return summary.values(What(shown(chosen.substrate, NOISE), point, FP32))


def level(values: pd.Series) -> tuple[float, float, float]:
    """Return the mean over training seeds and its 95 % interval (NaN with one seed)."""
    return float(values.mean()), *student_interval(values.to_numpy(float))


def noise_table(summary: Summary, chosen: Scale, kind: Kind, metric: str) -> pd.DataFrame:
    """Tabulate one metric of a curve against the noise.

    Args:
        metric: "ambiguity" as it is; "average_loss" and "nll" less the NLL of the unrounded network at the
            same point, paired by training seed.

    Returns:
        [settings, (setting, noise, mean, low, high)], by noise.
    """
    lines = []
    for what, setting in kind.shown:
        values, noise = summary.values(what, metric), float(summary.values(what, RELATIVE_NOISE).mean())
        found = (
            level(values) if metric == "ambiguity" else paired(values, reference(summary, chosen, what.point))
        )
        lines.append((setting, noise, *found))
    table = pd.DataFrame(lines, columns=["setting", "noise", "mean", "low", "high"])
    return table.sort_values("noise", ignore_index=True)


def order_table(compared: Compared) -> pd.DataFrame:
    """Tabulate what it costs to calibrate first and pool then, for every ensemble of two members or more.

    Returns:
        [methods, (method, colour, mean, low, high)], paired by training seed; method: its title.
    """
    lines = []
    for method in compared.methods:
        first, then = (compared.values(method, metric) for metric in ORDER_METRICS)
        if compared.size(method) > 1 and len(first) and len(then):
            lines.append((title(method), mark(method)[0], *paired(first, then)))
    return pd.DataFrame(lines, columns=["method", "colour", "mean", "low", "high"])


def _bars(axes: Axes, xs: np.ndarray, table: pd.DataFrame, colour: str, marker: str, **style: Any) -> None:
    """Draw means with their intervals, upright; with one seed there are none."""
    mean = table["mean"].to_numpy(float)
    ends = np.abs(table[["low", "high"]].to_numpy(float) - mean[:, None]).T
    bars = ends if np.isfinite(ends).all() else None
    drawn: dict[str, Any] = {"markersize": 3.2, "linewidth": 1.0, "elinewidth": 0.7, "zorder": 3, **style}
    axes.errorbar(xs, mean, yerr=bars, color=colour, marker=marker, **drawn)


def _dots(axes: Axes, table: pd.DataFrame, colours: Sequence[str], names: Sequence[str]) -> None:
    """Draw means with their intervals, a line each, from the top."""
    for place, (_, row) in enumerate(table.iterrows()):
        if np.isfinite(row["low"]):
            axes.plot([row["low"], row["high"]], [place, place], color=colours[place], linewidth=0.8)
        axes.plot(row["mean"], place, color=colours[place], marker="o", markersize=2.8)
    step = max(1, -(-len(names) // MOST_NAMED))
    axes.set_yticks(range(0, len(names), step), names[::step])
    axes.set_ylim(len(table) - 0.4, -0.6)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.grid(axis="y", color="0.92", linewidth=0.5)
    axes.set_axisbelow(True)


def _layer_panels(pair: Sequence[Axes], summary: Summary, chosen: Scale, names: Sequence[str]) -> None:
    assert chosen.main is not None
    colour = BIT_STYLES[chosen.settings.best_bits][0]
    single = reference(summary, chosen, chosen.main.estimate)
    for axes, metric in zip(pair, ("nll", "ambiguity"), strict=True):
        values = [summary.values(of_layer(chosen, summary, name), metric) for name in names]
        found = [level(each) if metric == "ambiguity" else paired(each, single) for each in values]
        table = pd.DataFrame(found, columns=["mean", "low", "high"])
        _dots(axes, table, [colour] * len(names), names)
        axes.set_xlabel(f"nats per {noun(chosen)}")
    pair[0].axvline(0.0, color=panels.BLACK, linestyle="--", linewidth=0.8, zorder=1)
    pair[0].xaxis.set_major_formatter(FuncFormatter(signed))
    pair[1].tick_params(labelleft=False)
    pair[1].set_xlim(left=min(0.0, pair[1].get_xlim()[0]))


def _noise_panel(axes: Axes, summary: Summary, chosen: Scale, metric: str) -> None:
    assert chosen.main is not None
    means: list[float] = []
    for kind in kinds(summary, chosen):
        if metric == "ambiguity" and kind.shown[0][0].size == 1:
            continue  # one network has none
        table = noise_table(summary, chosen, kind, metric)
        means += list(table["mean"])
        colour, marker = kind.mark
        _bars(axes, table["noise"].to_numpy(), table, colour, marker, label=kind.name, linestyle=kind.line)
    axes.set_xscale("log")
    panels.plain_log(axes.xaxis)
    if axes.get_xlim()[1] > WIDE * axes.get_xlim()[0]:
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axes.set_xlabel("noise / weights")
    if metric == "ambiguity":
        axes.set_yscale("log")
        if positive := [mean for mean in means if mean > 0]:
            # An interval that reaches 0 must not press the means together.
            axes.set_ylim(min(positive) / 2, 2 * max(positive))
        return
    single = float(reference(summary, chosen, chosen.main.estimate).mean())
    axes.axhline(0.0, color=panels.BLACK, linestyle="--", linewidth=0.8, zorder=2)
    difference_axis(axes, single, summary.unrounded(shown(chosen.substrate, NOISE)))


def better_table(summary: Summary, chosen: Scale) -> pd.DataFrame:
    """Tabulate the share of members that are better than RTN.

    Returns:
        [widths, (bits, mean, low, high)], the fewest bits first; empty where the record has no such rows.
    """
    lines = []
    for bits in sorted(chosen.settings.bits):
        size = chosen.settings.claim_size
        what = What(chosen.points_substrate, "SGD", LPE_BSR, f"int{bits}", size)
        if summary.has(what, BETTER_THAN_RTN):
            lines.append((bits, *level(summary.values(what, BETTER_THAN_RTN))))
    return pd.DataFrame(lines, columns=["bits", "mean", "low", "high"])


def other_seeds(summary: Summary, chosen: Scale, seeds: int) -> dict[str, int]:
    """Return what is of another number of training seeds than the network is: the number by name."""
    counts: dict[str, int] = {}
    for bits in chosen.settings.bits:
        what = What(chosen.points_substrate, "SGD", LPE_BSR, f"int{bits}", chosen.settings.claim_size)
        if summary.has(what, BETTER_THAN_RTN):
            counts["share of members"] = len(summary.values(what, BETTER_THAN_RTN))
    for kind in kinds(summary, chosen):
        counts[kind.name] = max(len(summary.values(what)) for what, _ in kind.shown)
    return {name: count for name, count in counts.items() if count != seeds}


def _better_panel(axes: Axes, table: pd.DataFrame) -> None:
    axes.axhline(0.5, color=panels.GREY, linewidth=0.7, zorder=1)
    for place, (_, row) in enumerate(table.iterrows()):
        colour, marker = BIT_STYLES[int(row["bits"])]
        _bars(axes, np.array([place]), row.to_frame().T, colour, marker, linestyle="")
    axes.set_xticks(range(len(table)), [f"INT-{int(bits)}" for bits in table["bits"]])
    axes.set_xlim(-0.6, len(table) - 0.4)
    axes.set_ylim(-0.03, 1.03)
    axes.set_ylabel("share of members")


def _side_by_side(figure: Figure, place: SubplotSpec, count: int) -> list[Axes]:
    cells = place.subgridspec(1, count)
    return [figure.add_subplot(cells[0, column]) for column in range(count)]


def draw_figure(summary: Summary, order: pd.DataFrame, chosen: Scale) -> Figure:
    """Draw the panels; the caller saves them.

    Args:
        order: see :func:`order_table`; empty: the record has no predictions, and there is no such panel.
    """
    names = layers(summary.record, chosen)
    heights = [0.5 + CLOSE * max(8, min(len(names), MOST_NAMED)), 1.9, 0.55 + 0.13 * max(9, len(order))]
    figure = panels.plt.figure(figsize=(page.width(), 0.6 + sum(heights)))
    rows = figure.add_gridspec(3, 1, height_ratios=heights)
    letters = panels.letters()
    by_layer = _side_by_side(figure, rows[0], 2)
    _layer_panels(by_layer, summary, chosen, names)
    single, best = summary.common_name(), chosen.settings.best_bits
    panels.label_panel(by_layer[0], next(letters), f"one layer at INT-{best}: NLL − {single}'s")
    panels.label_panel(by_layer[1], next(letters), "its ambiguity")
    against = _side_by_side(figure, rows[1], 3)
    for axes, (metric, text) in zip(
        against,
        (
            ("average_loss", f"members' loss − {single}'s"),
            ("ambiguity", "ambiguity"),
            ("nll", f"NLL − {single}'s"),
        ),
        strict=True,
    ):
        _noise_panel(axes, summary, chosen, metric)
        panels.label_panel(axes, next(letters), text)
    against[0].set_ylabel(f"nats per {noun(chosen)}")
    better = better_table(summary, chosen)
    # One row of two panels, of which a record may have one alone.
    widths = [width for width, table in ((1.0, better), (1.7, order)) if len(table)]
    last = rows[2].subgridspec(1, max(1, len(widths)), width_ratios=widths or [1.0])
    place = 0
    if len(better):
        axes = figure.add_subplot(last[0, place])
        _better_panel(axes, better)
        panels.label_panel(axes, next(letters), "members better than RTN")
        place += 1
    if len(order):
        axes = figure.add_subplot(last[0, place])
        _dots(axes, order, list(order["colour"]), list(order["method"]))
        axes.axvline(0.0, color=panels.BLACK, linestyle="--", linewidth=0.8, zorder=1)
        axes.xaxis.set_major_formatter(FuncFormatter(signed))
        axes.set_xlabel(f"nats per {noun(chosen)}; above 0 pooling first is better")
        panels.label_panel(axes, next(letters), "calibrate, then pool: change of NLL")
    assert chosen.main is not None
    seeds = len(reference(summary, chosen, chosen.main.estimate))
    others = "".join(f"; {name}: over {count}" for name, count in other_seeds(summary, chosen, seeds).items())
    means = "mean and 95 % interval" if seeds > 1 else "mean"
    said = (
        f"{means} over {training_seeds(seeds)}{others}; noise: root mean square distance of a "
        "member's weights to the network's, over all that LPE-BSR rounds, as a share of their length"
    )
    panels.legend_below(
        figure, against, title=textwrap.fill(said, int(17 * page.width()), break_on_hyphens=False)
    )
    return figure


def table_rows(summary: Summary, chosen: Scale) -> list[list[Cell]]:
    """Return the rows of the table: every method that lies around a point, at every setting."""

    def cell(values: pd.Series) -> str:
        return mean_and_interval(values.dropna().to_numpy(float), 4)

    rows: list[list[Cell]] = []
    for kind in kinds(summary, chosen):
        for what, setting in kind.shown:
            single = reference(summary, chosen, what.point)
            rows.append(
                [
                    kind.name.partition(", by ")[0],
                    setting,
                    what.size,
                    plain_number(float(summary.values(what, RELATIVE_NOISE).mean()), 4),
                    cell(summary.values(what, "average_loss") - single),
                    cell(summary.values(what, "ambiguity")),
                    cell(summary.values(what) - single),
                ]
            )
    return rows


def lines_of(summary: Summary, chosen: Scale) -> list[str]:
    """Say what the panels come to: layers together, and rounding against noise of its variance."""
    assert chosen.main is not None
    point, substrate, best = chosen.main.estimate, shown(chosen.substrate, NOISE), chosen.settings.best_bits
    single = reference(summary, chosen, point)
    name = summary.unrounded(substrate)
    lines = []
    names = layers(summary.record, chosen)
    whole = What(substrate, point, LPE_BSR, f"int{best}")
    if names and summary.sizes(whole):
        whole = whole.at(summary.sizes(whole)[-1])
        by_layer = [of_layer(chosen, summary, each) for each in names]
        losses = [float((summary.values(what, "average_loss") - single).mean()) for what in by_layer]
        most = names[int(np.argmax(losses))]
        together = float((summary.values(whole, "average_loss") - single).mean())
        lines.append(
            f"one layer at a time at INT-{best}: members' loss less {name}'s adds up to {sum(losses):+.4f} "
            f"nats over {len(names)} layers, all rounded {together:+.4f}; most of one layer: {most}, "
            f"{max(losses):+.4f}"
        )
    for bits in chosen.settings.bits:
        pair = [What(substrate, point, method, f"int{bits}") for method in (LPE_BSR, MATCHED)]
        if not all(summary.sizes(what) for what in pair):
            continue
        low, noise = (what.at(summary.sizes(what)[-1]) for what in pair)
        changes = [summary.difference(low, noise, metric) for metric in ("average_loss", "ambiguity", "nll")]
        lines.append(
            f"INT-{bits}, LPE-BSR less noise of its variance: members' loss {changes[0]}, ambiguity "
            f"{changes[1]}, NLL {changes[2]} nats"
        )
    return lines


def draw(folder: Path, chosen: Scale) -> tuple[list[Path], list[str]]:
    """Draw why.pdf and why.png and write its table from why_record.csv; returns paths, and lines to print."""
    assert chosen.main is not None
    record = panels.read_record(folder / record_name("why"), COLUMNS)
    clean = shown(chosen.substrate, CLEAN)
    summary = Summary("why", record[record["substrate"] != clean].reset_index(drop=True))
    if not layers(summary.record, chosen):
        raise InputError(
            f"{record_name('why')} has no rows of layers of {chosen.substrate}; run python reproduce/why.py "
            "without --plot-only"
        )
    predicted = record[record["substrate"] == clean]
    order = pd.DataFrame()
    if predicted["metric"].isin(ORDER_METRICS).any():
        order = order_table(Compared("why", chosen.substrate, predicted.reset_index(drop=True)))
    with panels.style():
        paths = panels.save(draw_figure(summary, order, chosen), folder, "why")
    single = reference(summary, chosen, chosen.main.estimate)
    nll = plain_number(float(single.mean()), 4)
    caption = (
        f"Average loss and ambiguity against the size of the noise, {chosen.substrate}, scale {chosen.name}, "
        f"{training_seeds(len(single))}."
    )
    notes = [
        "Means over training seeds, of one ensemble each; in brackets the 95 % interval of Student's t.",
        "Noise / weights: the root mean square distance of a member's weights to the point's, over all that "
        f"LPE-BSR rounds, as a share of their length. NLL of {summary.common_name()}: {nll} at "
        f"{chosen.main.estimate}; differences are to the point that a method's members lie around, paired by "
        "training seed.",
    ]
    header = [summary.named(text) for text in HEADER]
    paths += write_all(folder, "why", header, table_rows(summary, chosen), caption, notes)
    lines = [*lines_of(summary, chosen), *claim_lines(summary.record, chosen, ["C14"])]
    return paths, lines


SCRIPT = Script("why", __doc__, lacks, wanted, compute, draw)

if __name__ == "__main__":
    sys.exit(run_figure(SCRIPT))
