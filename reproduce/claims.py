"""The claims, as data, and the one test of them.

A claim is a statistic, a direction and a threshold fixed before the run. It *holds* if the 95 % interval
lies wholly on the claimed side, *fails* if it lies wholly on the other, and is *undecided* otherwise. The
unit is a training seed; rounding seeds and draws are averaged within it. Intervals are Student's t.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

LEVEL = 0.95


@dataclass(frozen=True)
class Verdict:
    """A claim's outcome.

    Args:
        claim: its identity, such as "C2 (SWAG)". statistic: in words.
        effect, low, high: the mean over training seeds and its interval; NaN limits with one seed.
        threshold: the claimed side is below it. n: training seeds. verdict: holds, fails or undecided.
        reference: what the effect is a share of, and unit.
    """

    claim: str
    statistic: str
    effect: float
    low: float
    high: float
    threshold: float
    n: int
    verdict: str

    def line(self) -> str:
        """One line for the terminal."""
        interval = f"[{self.low:+.5f}, {self.high:+.5f}]" if self.n > 1 else "(no interval from 1 seed)"
        return (
            f"{self.claim}: {self.verdict}. {self.statistic} = {self.effect:+.5f} nats, 95 % {interval}, "
            f"claimed below {self.threshold:+.5f}, n = {self.n} training seeds"
        )


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of values [n], Student's t; NaN with fewer than two."""
    from scipy.stats import t

    n = len(values)
    if n < 2:
        return float("nan"), float("nan")
    half = float(t.ppf(0.5 + LEVEL / 2, n - 1)) * float(np.std(values, ddof=1)) / np.sqrt(n)
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def judge(claim: str, statistic: str, values: np.ndarray, threshold: float) -> Verdict:
    """Test "the mean of values [n] lies below the threshold"."""
    low, high = interval(values)
    verdict = "holds" if high < threshold else "fails" if low > threshold else "undecided"
    return Verdict(claim, statistic, float(np.mean(values)), low, high, threshold, len(values), verdict)


def by_seed(record: pd.DataFrame, **equal: object) -> pd.Series:
    """The values of the rows with these column values, indexed by training seed."""
    rows = record
    for column, value in equal.items():
        rows = rows[rows[column] == value]
    return rows.set_index("seed")["value"].sort_index()


C2_MARGIN = 0.01
"""Non-inferiority: the share of the single FP32 model's NLL that LPE-BSR may be worse by."""


def c2(record: pd.DataFrame, number_system: str, size: int) -> list[Verdict]:
    """C2: NLL(LPE-BSR) − NLL(BMA), same point and size, for SWAG and IVON each: non-inferiority.

    Args:
        record: long-form rows. number_system: LPE-BSR's. size: members of both.
    """
    verdicts = []
    for point in ("SWAG", "IVON"):
        single = by_seed(record, point=point, method="FP32", metric="nll")
        bma = by_seed(record, point=point, method="BMA", metric="nll", size=size)
        lpe = by_seed(
            record, point=point, method="LPE-BSR", number_system=number_system, metric="nll", size=size
        )
        verdicts.append(
            judge(
                f"C2 ({point})",
                f"NLL(LPE-BSR {number_system.upper().replace('INT', 'INT-')}, {size}) − NLL(BMA {size})",
                (lpe - bma).to_numpy(),
                C2_MARGIN * float(single.mean()),
            )
        )
    return verdicts
