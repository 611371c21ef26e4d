"""An unrounded network in a record: called by its dtype, its parameters counted.

Figures, tables and claims ask for the methods "FP32" and "FP32 + temperature" and for the number system
"fp32" of every network. A record has these names of networks in float32 only; of others it has "BF16", "bf16"
and so on, and here the one is found for the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pandas as pd

from lpe.errors import InputError
from lpe.modules import DTYPE_NAMES

FP32 = "FP32"
SCALED = "FP32 + temperature"
RE_ESTIMATED = ", re-estimated"
"""Appended to the methods whose batch-norm statistics are re-estimated."""
PARAMETERS = "parameters"
"""The metric of the unrounded network that is the number of its parameters."""

NAMES = tuple(DTYPE_NAMES.values())
SYSTEMS = tuple(name.lower() for name in NAMES)


def scaled(name: str) -> str:
    """Return an unrounded network's name with a temperature."""
    return f"{name} + temperature"


def other_names(record: pd.DataFrame) -> dict[str, str]:
    """Return the names of unrounded networks that are not in float32, by substrate."""
    named = record.loc[record["method"].isin(NAMES), ["substrate", "method"]].drop_duplicates()
    return {
        substrate: method for substrate, method in named.itertuples(index=False, name=None) if method != FP32
    }


def own_names(names: Mapping[str, str], substrate: str, method: str, system: str) -> tuple[str, str]:
    """Return a method and a number system under the names that this substrate's record has.

    Args:
        names: see :func:`other_names`.
    """
    name = names.get(substrate)
    if name is None:
        return method, system
    again = {f"{FP32}{RE_ESTIMATED}": f"{name}{RE_ESTIMATED}"}
    method = {FP32: name, SCALED: scaled(name), **again}.get(method, method)
    return method, name.lower() if system == FP32.lower() else system


def every_name(methods: Iterable[str]) -> list[str]:
    """List methods, with all names of the unrounded ones among them."""
    found: list[str] = []
    for method in methods:
        again = {f"{FP32}{RE_ESTIMATED}": tuple(f"{name}{RE_ESTIMATED}" for name in NAMES)}
        of = {FP32: NAMES, SCALED: tuple(map(scaled, NAMES)), **again}.get(method, (method,))
        found += of
    return found


def parameters(counted: pd.DataFrame | None, single: pd.DataFrame, what: object) -> float:
    """Return the number of a network's parameters.

    Args:
        counted: rows of the metric ``PARAMETERS``; None: the record has none, and the network is in float32:
            then its bits tell. single: rows of the unrounded network. what: for the error.

    Raises:
        InputError: it is not one positive number.
    """
    found = single["memory_bits"] / 32 if counted is None else counted["value"]
    if found.nunique() != 1 or found.iloc[0] <= 0:
        raise InputError(f"{what}: the parameters are {sorted(set(found))}; one positive number is expected")
    return float(found.iloc[0])
