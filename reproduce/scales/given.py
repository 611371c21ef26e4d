"""A recipe of given weights: nothing is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import nn

from lpe.provenance import plain_data
from reproduce.study.run import Run
from reproduce.study.scale import Point, Substrate


class LoadedNetwork(Protocol):
    """What a source of given weights has loaded: a network in eval mode, and how it sees its data."""

    @property
    def net(self) -> nn.Module:
        """The network, where it runs."""
        ...

    @property
    def record(self) -> Mapping[str, object]:
        """Its source and how it sees its data, for the provenance."""
        ...


class GivenSource(Protocol):
    """A source whose network has its weights."""

    def loaded(self) -> LoadedNetwork:
        """Return the network with its data."""
        ...


@dataclass(frozen=True)
class Given:
    """A recipe of what is given: nothing is trained."""

    has_posterior: ClassVar[bool] = False

    def point(self, run: Run, substrate: Substrate, seed: int, replica: int = 0) -> Point:
        """Return the source's network; its point goes by SGD's name, the record's for an estimate."""
        source: GivenSource = substrate.source
        loaded = source.loaded()
        described = plain_data(loaded.record, substrate.name)
        return Point("SGD", loaded.net, None, 0, {"described": described})
