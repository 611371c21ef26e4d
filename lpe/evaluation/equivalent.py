"""Deep-ensemble equivalent: Ashukha et al. 2020, "Pitfalls of in-domain uncertainty estimation".

How many members a deep ensemble needs to be as good as a method, by calibrated NLL:

    DEE(method) = min { l ≥ 1 : curve(l) ≤ calibrated NLL(method) },

with the curve of the deep ensembles of 1 … M members interpolated linearly between them. A measured curve may
rise in places. It is taken as it is, and the least l is where it *first* reaches the value; nothing is
smoothed or sorted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lpe.checks import check_list, is_number, shown
from lpe.errors import InputError


@dataclass(frozen=True)
class DeepEnsembleEquivalent:
    """A deep-ensemble equivalent.

    Args:
        members: 1 … largest, or −∞ where the single network is better than the method, or ∞ where no deep
            ensemble measured is as good: so equivalents can be sorted.
        largest: members of the largest deep ensemble measured, M.
    """

    members: float
    largest: int

    def text(self, digits: int = 1) -> str:
        """Return the number as text, such as "2.8"; "<1" below the curve and ">M" beyond it."""
        if self.members == -math.inf:
            return "<1"
        return f">{self.largest}" if self.members == math.inf else f"{self.members:.{digits}f}"


def deep_ensemble_equivalent(value: float, curve: Sequence[float]) -> DeepEnsembleEquivalent:
    """Return the members of a deep ensemble that is as good as a method.

    Args:
        value: the method's calibrated NLL, in nats.
        curve: calibrated NLL of deep ensembles of 1, 2, … M members [M], in nats.

    Raises:
        InputError: an empty curve, or a number that is not finite.
    """
    given = check_list("curve", curve, "numbers")
    if not given:
        raise InputError("the curve of deep ensembles is empty; give the calibrated NLL of 1 … M members")
    for name, number in [("value", value), *((f"curve[{n}]", each) for n, each in enumerate(given))]:
        if not is_number(number) or not math.isfinite(number):
            raise InputError(f"{name} is {shown(number)}; a finite calibrated NLL is expected")
    points = [float(each) for each in given]
    if value > points[0]:
        return DeepEnsembleEquivalent(-math.inf, len(points))
    if value == points[0]:
        return DeepEnsembleEquivalent(1.0, len(points))
    for members, (before, here) in enumerate(zip(points, points[1:], strict=False), start=1):
        if here <= value:
            # Every earlier point lies above the value, so this segment falls and crosses it.
            return DeepEnsembleEquivalent(members + (before - value) / (before - here), len(points))
    return DeepEnsembleEquivalent(math.inf, len(points))
