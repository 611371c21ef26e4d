"""A method and a number system that ``lpe`` finds by this package's entry points.

    pip install ./examples/plugin
    lpe systems
    lpe evaluate MODEL --data DIR --method noisy-rounding --system ternary

The first takes seconds. The second has a row ``ternary`` then, and names the method below the table.
"""

from __future__ import annotations

from typing import Any

from torch import nn

import lpe

TERNARY = (-1.0, 0.0, 1.0)
"""The levels of a number system, at scale 1: its bits, scales and rounding follow."""


def noisy_rounding(model: nn.Module, system: Any, size: int, seed: int) -> lpe.Mixture:
    """Return an ensemble whose members are rounded at random after noise of a hundredth.

    Args:
        system: number system, or systems by name pattern, that ``--system`` names. size: members.
    """
    noisy = lpe.GaussianEnsemble(model, system, size, seed, std=0.01)
    return lpe.Mixture(
        noisy,
        lambda net, first_member: lpe.LowPrecisionEnsemble(
            net, system, size=1, seed=seed, first_member=first_member
        ),
    )
