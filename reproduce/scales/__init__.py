"""The scales: the only room that knows one by name."""

DEFAULT = "digits"
SAME_BITS = frozenset({"digits"})
"""Scales whose runs compute the same bits on every make of CPU; see :mod:`reproduce.same_bits`.

They are named here, not in a scale's settings, because it must be known before torch is imported.
"""
