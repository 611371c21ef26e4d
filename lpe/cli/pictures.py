"""Draws curves with matplotlib, an extra: a panel a measure and axis, one legend."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lpe.cli.curves import Curve
from lpe.cli.tables import shown_sizes
from lpe.errors import InputError
from lpe.extras import needs
from lpe.writing import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".png", ".pdf", ".svg")
SHOWN = ("size", "bits", "ms", "reliability", "risk")
"""What can be drawn: NLL and ECE against members, memory and time; reliability; risk against coverage."""

# Okabe & Ito's palette, which is told apart with any of the usual colour-vision deficiencies.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#777777", "#000000")
MARKERS = "osD^vPX*"
PANEL = (2.7, 2.2)
"""Inches."""

STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
}

AXES = {"size": "members", "bits": "memory (MB)", "ms": "time (ms an example)"}
MEASURES = {"nll": "NLL (nats)", "ece": "ECE (15 bins)"}

Draw = Callable[["Axes", Sequence[Curve]], None]


def draw(curves: Sequence[Curve], shown: Sequence[str] | None, path: Path) -> None:
    """Draw curves to a file, whole or not at all.

    Args:
        shown: of SHOWN; None: all that the curves have. path: its suffix is one of FORMATS.

    Raises:
        InputError: matplotlib is not installed; nothing of what is to be shown is there; the file cannot be
            written.
    """
    needs("matplotlib")
    import matplotlib
    from matplotlib.figure import Figure

    columns = [column for each in (shown or SHOWN) if (column := _column(each, curves))]
    if not columns:
        what = ", ".join(shown or SHOWN)
        raise InputError(
            f"the files have nothing of {what}; times are in what lpe evaluate --csv writes, confidences in "
            "what --predictions does"
        )
    columns = _packed(columns)
    rows = max(len(column) for column in columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(
            figsize=(PANEL[0] * len(columns), PANEL[1] * rows + 0.25 * _legend_rows(curves, len(columns))),
            layout="constrained",
        )
        axes: Any = figure.subplots(rows, len(columns), squeeze=False)
        for place, column in enumerate(columns):
            for row in range(rows):
                if row < len(column):
                    column[row](axes[row][place], curves)
                else:
                    axes[row][place].set_axis_off()
        handles: dict[str, Any] = {}
        for each in axes.flat:
            for handle, label in zip(*each.get_legend_handles_labels(), strict=True):
                handles.setdefault(label, handle)
        ordered = [curve.label for curve in curves if curve.label in handles]
        figure.legend(
            [handles[label] for label in ordered],
            ordered,
            loc="outside lower center",
            ncols=_legend_columns(curves, len(columns)),
        )
        try:
            with replacing(path) as temporary:
                figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=200)
        except OSError as error:
            raise InputError(f"cannot write {path} ({error.strerror})") from None


def _column(name: str, curves: Sequence[Curve]) -> list[Draw]:
    """Return the panels of one of SHOWN that the curves have."""
    if name in AXES:
        there = [each for each in curves if name == "size" or name in each.values]
        return [
            _against(name, measure) for measure in MEASURES if any(measure in each.values for each in there)
        ]
    if not any(each.confidence for each in curves):
        return []
    return [_reliability if name == "reliability" else _risk]


def _packed(columns: list[list[Draw]]) -> list[list[Draw]]:
    """Put two columns of one panel each above one another, where others have two."""
    if not any(len(column) == 2 for column in columns):
        return columns
    single = [column[0] for column in columns if len(column) == 1]
    return [
        *(column for column in columns if len(column) == 2),
        *(single[place : place + 2] for place in range(0, len(single), 2)),
    ]


def _legend_columns(curves: Sequence[Curve], panels: int) -> int:
    widest = max(len(curve.label) for curve in curves)
    return max(1, min(len(curves), int(PANEL[0] * panels / (0.5 + 0.065 * widest))))


def _legend_rows(curves: Sequence[Curve], panels: int) -> int:
    return math.ceil(len(curves) / _legend_columns(curves, panels))


def _mark(place: int) -> dict[str, Any]:
    return {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)]}


def _against(axis: str, measure: str) -> Draw:
    """Return what draws a measure against an axis, on a scale of powers where that spans a decade or more."""

    def panel(axes: Axes, curves: Sequence[Curve]) -> None:
        needs("matplotlib")
        from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

        everything: list[float] = []
        for place, curve in enumerate(curves):
            x = list(map(float, curve.sizes)) if axis == "size" else curve.values.get(axis)
            y = curve.values.get(measure)
            if x is None or y is None:
                continue
            x = [each / 8e6 for each in x] if axis == "bits" else x
            there = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(a) and math.isfinite(b)]
            if not there:
                continue
            mark = {**_mark(place), "label": curve.label}
            if axis == "size" and len(there) == 1:
                # A network alone has no members: a line to compare with.
                axes.axhline(there[0][1], color=mark["color"], linestyle="--")
                axes.plot([], [], linestyle="--", **mark)
            else:
                # Markers of many sizes would be a band: a few, at equal distances on the scale.
                every = sorted({round(len(there) ** (k / 8)) - 1 for k in range(9)})
                axes.plot(*zip(*there, strict=True), markevery=every, **mark)
                everything += [a for a, _ in there]
        if everything and min(everything) > 0 and max(everything) >= 8 * min(everything):
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
            if axis == "size":
                axes.set_xticks([each for each in shown_sizes(int(max(everything))) if _is_round(each)])
        elif axis == "size":
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel(AXES[axis])
        axes.set_ylabel(MEASURES[measure])

    return panel


def _is_round(size: int) -> bool:
    """Tell whether a size is 1, 2 or 5 times a power of ten."""
    return str(size).rstrip("0") in ("1", "2", "5")


def _reliability(axes: Axes, curves: Sequence[Curve]) -> None:
    axes.plot([0, 1], [0, 1], color="#BBBBBB", linewidth=0.8, zorder=0)
    for place, curve in enumerate(curves):
        if curve.confidence is None:
            continue
        confidence, right, share = zip(*curve.confidence.bins, strict=True)
        mark = _mark(place)
        axes.plot(confidence, right, label=curve.label, clip_on=False, **mark)
        # The area of a ring is the bin's share of the examples.
        axes.scatter(
            confidence,
            right,
            [300 * each for each in share],
            facecolors="none",
            edgecolors=mark["color"],
            linewidths=0.6,
            clip_on=False,
        )
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="confidence (mean of a bin)", ylabel="share right")


def _risk(axes: Axes, curves: Sequence[Curve]) -> None:
    for place, curve in enumerate(curves):
        if curve.confidence is not None:
            colour = _mark(place)["color"]
            axes.plot(curve.confidence.coverage, curve.confidence.risk, color=colour, label=curve.label)
    axes.set(xlim=(0, 1.02), xlabel="coverage", ylabel="risk (share wrong)")
    axes.set_ylim(bottom=0)
