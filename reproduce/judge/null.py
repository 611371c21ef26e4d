"""The null: the unrounded network in LPE-BSR's place.

What a claim says of LPE-BSR may hold of the network that it rounds: two draws of a posterior, say, are worse
than its mean, rounded or not. So beside every verdict stands that of the same statistic with "FP32 instead":

    LPE-BSR          the single unrounded network, of the same point and seed; also where the spread is tuned
    X + LPE-BSR      X's own members, as many as the bases that the members come from
    disagreement     0: the unrounded first snapshot decides as it does

Memory and training budgets stay those of LPE-BSR, so that the same sizes are compared.
"""

from __future__ import annotations

import pandas as pd

from reproduce.judge.statistics import Sum
from reproduce.study.beyond.names import TUNED_SPREAD
from reproduce.study.unrounded import NAMES

LOW = "LPE-BSR"
EXPANDED = f" + {LOW}"
DISAGREEMENT = "disagreement"

ZERO = -1
"""The label of a stand-in whose value is 0."""
MISSING = -2
"""The label of a stand-in that the record lacks."""

_KEY = ["substrate", "point", "seed"]


def stand_ins(record: pd.DataFrame) -> pd.Series:
    """Return the label of the row in each row's place: its own, but for low precision ensembles.

    Args:
        record: long-form rows, labels 0 …

    Returns:
        Labels, by label; ZERO or MISSING where no row stands in.
    """
    found = pd.Series(record.index, index=record.index)
    # Every rounding of one network has one stand-in: found once.
    unrounded = record[record["method"].isin(NAMES) & (record["size"] == 1)]
    low = record[record["method"].isin((LOW, TUNED_SPREAD))]
    found.loc[low.index] = _looked_up(low, unrounded, [*_KEY, "metric"])
    found.loc[low.index[low["metric"] == "ambiguity"]] = ZERO  # one member agrees with itself
    expanded = record[record["method"].str.endswith(EXPANDED)]
    if len(expanded):
        bases = expanded.assign(method=expanded["method"].str.removesuffix(EXPANDED))
        named = [*_KEY, "method"]
        members = bases.groupby(named)["size"].transform("max")
        most = record.groupby(named)["size"].max().rename("bases")
        models = bases[named].join(most, on=named)["bases"]
        # Of k members a base, the first n come from the first ⌈n / k⌉ bases.
        bases["size"] = -(-bases["size"] * models // members)
        found.loc[bases.index] = _looked_up(bases, record, [*named, "size", "metric"])
    disagreeing = record[(record["method"] == DISAGREEMENT) & (record["rounding"] != "")]
    found.loc[disagreeing.index] = ZERO
    return found.astype(int)


def _looked_up(rows: pd.DataFrame, among: pd.DataFrame, key: list[str]) -> pd.Series:
    labels = pd.Series(among.index, index=pd.MultiIndex.from_frame(among[key]), name="row")
    labels = labels[~labels.index.duplicated()]
    return rows[key].join(labels, on=key)["row"].fillna(MISSING)


def vanishes(terms: Sum) -> bool:
    """Tell whether a sum is 0 whatever its rows' values are: they cancel at each seed, or are ZERO.

    That a network is no better than itself is known, and needs no interval.
    """
    for place in range(len(terms[0].rows)):
        left: dict[int, float] = {}
        for term in terms:
            label = int(term.rows.iloc[place])
            left[label] = left.get(label, 0.0) + float(term.weights.iloc[place])
        if any(weight != 0 for label, weight in left.items() if label != ZERO):
            return False
    return True


def with_absent(values: pd.Series) -> pd.Series:
    """Return a record's values by label, with those of ZERO and MISSING (NaN)."""
    return pd.concat([values, pd.Series([0.0, float("nan")], index=[ZERO, MISSING])])
