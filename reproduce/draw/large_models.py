"""What figure 7 and table 3 share: the large models' units, and their rows."""

from __future__ import annotations

from collections.abc import Collection

import pandas as pd

from reproduce.study.measurements import measure_all
from reproduce.study.records import selected
from reproduce.study.session import Session
from reproduce.study.units import LARGE, Unit, units
from reproduce.study.unrounded import FP32, SCALED, SYSTEMS

METHODS = (FP32, SCALED, "RTN", "LPE-BSR")


def large_units(session: Session) -> list[Unit]:
    """Return the large models' units: table 6's at every training seed that it is measured at."""
    scale = session.scale
    every = [each for group in scale.large.values() for each in group]
    compared = units([scale.compared], [LARGE], session.claim_seeds)
    return list(dict.fromkeys([*units(every, [LARGE], session.seeds), *compared]))


def large_rows(session: Session, every_size: Collection[str]) -> pd.DataFrame:
    """Train and measure the large models; return the rows of the unrounded ones and of the one bit width.

    Args:
        every_size: metrics that are kept at every size.
    """
    wanted = large_units(session)
    measure_all(session, wanted)
    rows = selected(session, wanted, every_size=every_size, methods=METHODS)
    systems = [*SYSTEMS, f"int{session.scale.settings.large_bits}"]
    return rows[rows["number_system"].isin(systems)]
