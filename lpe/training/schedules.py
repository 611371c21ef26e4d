"""Learning-rate schedules: step (0, 1, 2, …) → learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable

from lpe.checks import check_finite, is_integer, is_number, shown
from lpe.errors import InputError

Schedule = Callable[[int], float]


def constant(value: float) -> Schedule:
    """Return ``value`` at every step."""
    return lambda step: value


def warmup_cosine(peak: float, steps: int, warmup: float = 0.1, final: float = 0.0) -> Schedule:
    """Return a linear warm-up over a fraction of the steps, then half a cosine from ``peak`` to ``final``.

    Loshchilov & Hutter 2017, "SGDR".
    """
    if not is_integer(steps) or steps < 1 or not is_number(warmup) or not 0 <= warmup < 1:
        raise InputError(
            f"a schedule needs steps ≥ 1 and 0 ≤ warmup < 1, not {shown(steps)} and {shown(warmup)}"
        )
    peak, final = check_finite("peak", peak), check_finite("final", final)
    warm = round(warmup * steps)

    def learning_rate(step: int) -> float:
        if step < warm:
            return peak * (step + 1) / warm
        done = (step - warm) / max(1, steps - warm)
        return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    return learning_rate


def then_constant(first: Schedule, switch: int, value: float) -> Schedule:
    """Return ``first`` until step ``switch``, then ``value``: SWAG's schedule while it collects."""
    return lambda step: first(step) if step < switch else value


def cyclical_cosine(peak: float, steps_per_cycle: int) -> Schedule:
    """Repeat half a cosine from ``peak`` towards 0: peak/2 · (cos(π · (t mod c)/c) + 1), t from 0.

    Huang et al. 2017, "Snapshot ensembles"; Zhang et al. 2020, "Cyclical stochastic gradient MCMC".
    """
    if not is_integer(steps_per_cycle) or steps_per_cycle < 1:
        raise InputError(f"a cycle must have at least 1 step, not {shown(steps_per_cycle)}")
    peak = check_finite("peak", peak)
    return lambda step: peak / 2 * (math.cos(math.pi * (step % steps_per_cycle) / steps_per_cycle) + 1)
