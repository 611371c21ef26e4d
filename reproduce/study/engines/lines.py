"""Landscapes whose lines are measured elsewhere, many at once, and taken up one after another."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lpe.evaluation.landscape import Plane, Surface

Line = list[dict[str, float]]
"""A surface's values at the points of a line of constant y, in the order of x."""


def measured_line(surface: Surface, plane: Plane, xs: Sequence[float], y: float) -> Line:
    """Measure a line of a plane's grid."""
    return [surface.measure(plane.at(x, y)) for x in xs]


class _Lines:
    """The values of a surface along the lines of a grid, asked for in the order of ``measure_grid``.

    That leaves out points that are on disk, the first ones. So nothing is submitted before a value is asked
    for: then its line is, and all that follow.

    Args:
        submit: (y) → a function that waits for the line's values.
    """

    def __init__(
        self,
        plane: Plane,
        xs: Sequence[float],
        ys: Sequence[float],
        submit: Callable[[float], Callable[[], Line]],
    ) -> None:
        self._plane, self._xs, self._submit = plane, xs, submit
        self._ys = deque(ys)
        self._waiting: deque[Callable[[], Line]] = deque()
        self._line: deque[dict[str, float]] = deque()

    def measure(self, weights: Tensor) -> dict[str, float]:
        """Return the surface's values at the next point, whose weights these are."""
        if not self._line:
            self._line.extend(self._line_of(weights))
        return self._line.popleft()

    def _line_of(self, first: Tensor) -> Line:
        """Return the values of a line from these weights on; lines and points before them are let go."""
        while self._ys:
            line = (self._plane.at(x, self._ys[0]) for x in self._xs)
            place = next((place for place, at in enumerate(line) if torch.equal(at, first)), None)
            if place is not None and not self._waiting:
                self._waiting.extend(map(self._submit, self._ys))
            self._ys.popleft()
            values = self._waiting.popleft() if self._waiting else None
            if place is not None and values is not None:
                return values()[place:]
        raise LookupError("these weights are no further point of the grid")


def ahead(
    surface: Surface,
    plane: Plane,
    xs: Sequence[float],
    ys: Sequence[float],
    submit: Callable[[float], Callable[[], Line]],
) -> Surface:
    """Return the surface for one ``measure_grid`` of a plane, its values measured elsewhere.

    It is of the same class, and so are the keys of what is measured with it.

    Args:
        submit: (y) → a function that waits for the line's values; see :func:`measured_line`.
    """
    known = copy.copy(surface)
    vars(known)["measure"] = _Lines(plane, xs, ys, submit).measure
    return known
