"""Selective prediction: who errs less where it is surer, who knows foreign examples, and cascades of two.

    python reproduce/selective.py --scale cifar10-small

Costs what ``reproduce/shift.py`` does, whose predictions it takes, and little beside. It prints the paths
written, and for each pair of networks the share of its gain that a cascade of the two has at 1.2 networks an
example. A deep ensemble that was trained on validation examples (given networks, of splits of their own) has
no cascade: its window would be fitted there.

    risk        the error of the most confident examples against their share, and the same less FP32's
    members     each member alone: its error, and on how many examples it and FP32 predict other classes (the
                diagram of Fort et al. 2019)
    cascades    two members, the second on a window of the first's confidences (Xia & Bouganis 2023): coverage
                at 5 % risk against networks an example
    dots        area under the risk-coverage curve (AURC), coverage at 5 % risk, risk at 80 % coverage; bars
                are 95 % intervals of the paired difference to FP32, around its mean
    AUROC       clean examples told from foreign ones, by the top probability, and by the mutual information
                of prediction and member
"""

from __future__ import annotations

import sys
from pathlib import Path

# A script runs its own checkout, whichever copy is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from reproduce import same_bits

if __name__ == "__main__":  # before torch and numpy are imported
    same_bits.begin(sys.argv[1:])

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
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
    mark,
    mean_cell,
    paired,
    read_compared,
    row_of,
    setting_cell,
    title,
)
from reproduce.draw.curves import signed
from reproduce.draw.summaries import counted_seeds, noun
from reproduce.draw.tables import Cell, mark_best, plain_number, write_all
from reproduce.judge.intervals import fieller_interval
from reproduce.study.beyond.names import (
    AUROC_INFORMATION,
    AUROC_PROBABILITY,
    CLEAN,
    COVERAGES,
    HEADLINE_SHARE,
    SHARES,
    Method,
    cascade_metric,
    member_metric,
    risk_metric,
    shown,
)
from reproduce.study.scale import Scale
from reproduce.study.session import Session
from reproduce.study.units import PREDICTIONS, Unit, beyond_units

BEST = {"aurc": "lowest", "cov_at_5_risk": "highest", "risk_at_80_cov": "lowest"}
"""The metrics of the dots, and which is best."""
DETECTED = (AUROC_PROBABILITY, AUROC_INFORMATION)
TITLES = {
    "aurc": ("AURC", "mean risk"),
    "cov_at_5_risk": ("coverage", "at 5 % risk"),
    "risk_at_80_cov": ("risk", "at 80 % coverage"),
    AUROC_PROBABILITY: ("AUROC", "by probability"),
    AUROC_INFORMATION: ("AUROC", "by information"),
}
"""What stands above a panel, and below its axis."""
AIM = "cov_at_5_risk"
"""What the cascades that are drawn are for."""
FOREIGN_MARKERS = "osD^vPX*"
PUBLISHED = 0.84
"""The share of a pair's gain in coverage at 5 % risk at about 1.2 networks an example, of EfficientNets on
ImageNet (Xia & Bouganis 2023, read off their picture)."""


def lacks(chosen: Scale) -> str:
    """Say what a scale lacks for the figure; "" where it has all."""
    return "" if chosen.beyond is not None else "settings of predictions"


def wanted(session: Session) -> list[Unit]:
    """Return the units that the figure shows."""
    return beyond_units(session.scale, PREDICTIONS, session.seeds)


def compute(session: Session) -> dict[str, object]:
    """Train, predict and score; write selective_record.csv."""
    clean = shown(session.scale.substrate, CLEAN)
    return compute_compared(
        session, "selective", lambda rows: (rows["substrate"] == clean) | rows["metric"].isin(DETECTED)
    )


def mean_level(compared: Compared, method: Method, metric: str, examples: str = CLEAN) -> float:
    """Return a metric's mean over the unrounded network's training seeds."""
    return level(*(compared.values(each, metric, examples) for each in (method, compared.single)))


def _risk_panel(axes: Axes, compared: Compared) -> None:
    for method in filter(in_curves, compared.methods):
        risks = [mean_level(compared, method, risk_metric(coverage)) for coverage in COVERAGES]
        # The legend has the marks, which the other panels have.
        axes.plot(COVERAGES, risks, label=title(method), markevery=[], **line(method))
    axes.set_xlabel("coverage")
    axes.set_ylabel("risk (share of errors)")
    axes.set_xlim(0, 1)
    axes.set_ylim(0)


def risk_differences(compared: Compared, method: Method) -> list[float]:
    """Return the risk less the unrounded network's at each coverage: means over the seeds of both."""
    return [
        paired(*(compared.values(each, risk_metric(coverage)) for each in (method, compared.single)))[0]
        for coverage in COVERAGES
    ]


def _difference_panel(axes: Axes, compared: Compared) -> None:
    for method in filter(in_curves, compared.methods):
        axes.plot(COVERAGES, risk_differences(compared, method), markevery=[], **line(method))
    axes.set_xlabel("coverage")
    axes.set_ylabel(f"risk − risk({compared.single.method})")
    axes.set_xlim(0, 1)
    axes.yaxis.set_major_formatter(FuncFormatter(signed))


def members_of(compared: Compared, method: Method) -> pd.DataFrame:
    """Tabulate every member of a method at every training seed.

    Returns:
        [members × seeds, (err, disagreement)]: its error, and its disagreement with the unrounded network.
    """
    found = []
    for member in itertools.count():
        pair = {
            metric: compared.values(method, member_metric(metric, member), size=1)
            for metric in ("err", "disagreement")
        }
        if not len(pair["err"]):
            break
        found.append(pd.DataFrame(pair))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=["err", "disagreement"])


def _members_panel(axes: Axes, compared: Compared) -> None:
    for method in filter(in_curves, compared.methods):
        members = members_of(compared, method)
        style = {**line(method), "linestyle": "none", "alpha": 0.7, "markeredgewidth": 0.6}
        if method != compared.single:
            style["markersize"] = 2.6
        axes.plot(members["err"], members["disagreement"], **style)
    axes.set_xlabel("error of a member")
    axes.set_ylabel(f"differs from {compared.single.method}")


def cascade_curve(compared: Compared, method: Method, aim: str = AIM) -> pd.DataFrame:
    """Tabulate a method's cascade of two members: [shares, (networks, value)], means over training seeds."""
    lines = [
        [compared.values(method, cascade_metric(metric, aim, share), size=2).mean() for share in SHARES]
        for metric in ("networks", aim)
    ]
    return pd.DataFrame({"networks": lines[0], "value": lines[1]}).dropna()


def _cascade_panel(axes: Axes, compared: Compared) -> None:
    axes.axvline(1 + HEADLINE_SHARE, color="0.85", linewidth=0.8, zorder=0)
    for method in filter(in_curves, compared.methods):
        curve = cascade_curve(compared, method)
        axes.plot(curve["networks"], curve["value"], **{**line(method), "markersize": 2.2})
    axes.set_xlabel("networks")
    axes.set_ylabel("coverage at 5 % risk")


def _dots_panel(axes: Axes, compared: Compared, metric: str) -> None:
    reference = compared.values(compared.single, metric)
    axes.axvline(float(reference.mean()), color=panels.BLACK, linestyle="--", linewidth=0.7, zorder=1)
    for row, method in enumerate(compared.methods):
        colour, marker = mark(method)
        mean, low, high = paired(compared.values(method, metric), reference)
        base = float(reference.mean())
        if np.isfinite([low, high]).all():
            axes.hlines(row, base + low, base + high, color=colour, linewidth=0.9, zorder=2)
        filled = line(method).get("markerfacecolor", colour)
        axes.plot(base + mean, row, color=colour, marker=marker, markerfacecolor=filled, zorder=3)
    _method_axis(axes, compared)


def _detected_panel(axes: Axes, compared: Compared, metric: str) -> None:
    for row, method in enumerate(compared.methods):
        for name, marker in zip(compared.foreign, itertools.cycle(FOREIGN_MARKERS)):
            axes.plot(
                mean_level(compared, method, metric, name),
                row,
                color=mark(method)[0],
                marker=marker,
                markerfacecolor="none",
                markeredgewidth=0.7,
            )
    _method_axis(axes, compared)


def _method_axis(axes: Axes, compared: Compared) -> None:
    """Name the methods down the panel, the first above."""
    axes.set_ylim(len(compared.methods) - 0.5, -0.5)
    axes.set_yticks(range(len(compared.methods)), list(map(title, compared.methods)))
    axes.grid(axis="y", color="0.93", linewidth=0.5, zorder=0)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(3))


def _foreign_legend(axes: Axes, compared: Compared) -> None:
    for name, marker in zip(compared.foreign, itertools.cycle(FOREIGN_MARKERS)):
        grey: dict[str, Any] = {"color": panels.GREY, "markerfacecolor": "none", "linestyle": "none"}
        axes.plot([], [], marker=marker, label=f"told from {name}", **grey)


def draw_figure(compared: Compared) -> Figure:
    """Draw the panels; the caller saves them."""
    detected = [metric for metric in DETECTED if compared.foreign]
    height = 0.155 * len(compared.methods) + 0.45
    figure = panels.plt.figure(figsize=(page.width(), 2.9 + height))
    outer = figure.add_gridspec(2, 1, height_ratios=[1.7, height])
    letters = panels.letters()
    above = {
        "risk-coverage": _risk_panel,
        "its change": _difference_panel,
        "members": _members_panel,
        "cascades": _cascade_panel,
    }
    top = row_of(outer[0], len(above))
    for axes, (named, draw_panel) in zip(top, above.items(), strict=True):
        draw_panel(axes, compared)
        panels.label_panel(axes, next(letters), named)
    below = row_of(outer[1], len(BEST) + len(detected), sharey=True)
    for axes, metric in zip(below, (*BEST, *detected), strict=True):
        (_dots_panel if metric in BEST else _detected_panel)(axes, compared, metric)
        named, where = TITLES[metric]
        panels.label_panel(axes, next(letters), named)
        axes.set_xlabel(where)
    if detected:
        _foreign_legend(below[-1], compared)
    explain(figure, compared, [*top, *below])
    return figure


def mean_over_foreign(compared: Compared, method: Method) -> pd.Series:
    """Return the AUROC by top probability, mean over the sets of foreign examples, by training seed."""
    columns = [compared.values(method, AUROC_PROBABILITY, name) for name in compared.foreign]
    return pd.concat(columns, axis=1).dropna().mean(axis=1)


Gain = tuple[float, float, float, float]
"""Networks an example, the share of the pair's gain, and its interval."""


def gain_share(compared: Compared, method: Method, aim: str = AIM) -> Gain | None:
    """Return what share of the pair's gain its cascade has, where a fifth of validation examples goes on.

    Returns:
        The networks run an example, the share (NaN where the pair gains nothing), and its 95 % interval by
        Fieller, paired by training seed; None where the method has no cascade.
    """
    first, at, pair = (
        compared.values(method, cascade_metric(aim, aim, share), size=2)
        for share in (SHARES[0], HEADLINE_SHARE, SHARES[-1])
    )
    if not len(at):
        return None
    networks = compared.values(method, cascade_metric("networks", aim, HEADLINE_SHARE), size=2)
    better = -1 if BEST.get(aim, "lowest") == "lowest" else 1
    gains, whole = (better * (each - first).to_numpy(float) for each in (at, pair))
    # A share of a loss would read as one of a gain.
    share = float(gains.mean() / whole.mean()) if whole.mean() > 0 else float("nan")
    return float(networks.mean()), share, *fieller_interval(gains, whole)


def gain_lines(compared: Compared) -> Iterator[str]:
    """Yield a line a method on its cascade at 1.2 networks an example."""
    for method in compared.methods:
        found = gain_share(compared, method)
        if found is not None:
            networks, share, low, high = found
            share_said = f"{_gain(share, low, high)} of the pair's gain"
            said = "the pair gains nothing" if np.isnan(share) else share_said
            yield (
                f"cascade of two, {title(method)}: {said} in coverage at 5 % risk at {networks:.2f} networks "
                "an example"
            )


def _gain(share: float, low: float, high: float) -> str:
    """Write a share and its interval."""
    ends = [plain_number(end, 2) if np.isfinite(end) else ("−" * (end < 0) + "∞") for end in (low, high)]
    said = plain_number(share, 2)
    return said if np.isnan([low, high]).any() else f"{said} [{ends[0]}, {ends[1]}]"


def table_rows(compared: Compared) -> tuple[list[str], list[list[Cell]]]:
    """Return the header and the rows of the table, a row a method."""
    single = compared.single
    header = ["method", "members", "seeds", "tuned to"]
    for metric in BEST:
        named = "AURC" if metric == "aurc" else " ".join(TITLES[metric])
        header += [named, f"{named} − {single.method}'s"]
    header += ["AUROC of errors", "disagreement"]
    header += [f"{' '.join(TITLES[metric])}, {name}" for metric in DETECTED for name in compared.foreign]
    if compared.foreign:
        named = " ".join(TITLES[AUROC_PROBABILITY])
        header += [f"{named}, mean − {single.method}'s"]
    header += [f"gain at {1 + HEADLINE_SHARE:g} networks"]
    rows: list[list[Cell]] = []
    for method in compared.methods:
        cells: list[Cell] = [title(method), compared.size(method), compared.seeds_of(method)]
        cells += [setting_cell(compared, method)]
        for metric in BEST:
            values, reference = compared.values(method, metric), compared.values(single, metric)
            cells += [interval_cell(values)]
            cells += [None if method == single else difference_cell(values, reference)]
        several = compared.size(method) > 1
        cells += [mean_cell(compared.values(method, "auroc_errors"))]
        cells += [mean_cell(compared.values(method, "disagreement")) if several else None]
        for metric in DETECTED:
            cells += [mean_cell(compared.values(method, metric, name)) for name in compared.foreign]
        if compared.foreign:
            told, reference = (mean_over_foreign(compared, each) for each in (method, single))
            cells += [None if method == single else difference_cell(told, reference)]
        found = gain_share(compared, method)
        cells += [None if found is None or np.isnan(found[1]) else _gain(*found[1:])]
        rows.append(cells)
    for place, (metric, best) in enumerate(BEST.items()):
        means = [mean_level(compared, method, metric) for method in compared.methods]
        rows = mark_best(rows, header.index("tuned to") + 1 + 2 * place, means, best)
    return header, rows


def draw(folder: Path, chosen: Scale) -> tuple[list[Path], list[str]]:
    """Draw selective.pdf and .png and write the table from selective_record.csv; the paths, and the gains."""
    compared = read_compared(folder, "selective", chosen)
    with panels.style():
        paths = panels.save(draw_figure(compared), folder, "selective")
    header, rows = table_rows(compared)
    caption = (
        f"Selective prediction: {compared.substrate}, scale {chosen.name}, {counted_seeds([compared.seeds])}."
    )
    notes = [
        *chosen.conditions,
        f"− {compared.single.method}'s: paired by training seed. Bold: the best of a column, however little "
        "methods differ, by that difference: means are over a method's own seeds.",
        f"AUROC: clean {noun(chosen)}s told from foreign ones by a higher top probability, or by a lower "
        "mutual information of prediction and member; ½ is chance.",
        f"Gain at {1 + HEADLINE_SHARE:g} networks: of a cascade of two members, the share of the pair's gain "
        "in coverage at 5 % risk over its first, with Fieller's interval; the window holds a fifth of the "
        f"validation {noun(chosen)}s. Xia & Bouganis 2023 have about {plain_number(PUBLISHED, 2)} "
        "(EfficientNets on ImageNet).",
    ]
    paths += write_all(folder, "selective", header, rows, caption, notes)
    return paths, list(gain_lines(compared))


SCRIPT = Script("selective", __doc__, lacks, wanted, compute, draw)

if __name__ == "__main__":
    sys.exit(run_figure(SCRIPT))
