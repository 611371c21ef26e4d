"""The metrics that are means over examples, example by example: what intervals over examples need."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

Table = tuple[Tensor, Tensor]
"""Sizes, int64 [sizes], and values, float32 [sizes, examples]."""


@dataclass
class ExampleMetrics:
    """The values of single examples, filled by :func:`lpe.evaluate`.

    ``nll`` is kept at every size; ``ambiguity`` and ``calibrated_nll`` at the sizes at which a temperature is
    fitted. Each example's ambiguity is −logsumexp over classes of (mean over members of log p). The values
    are on the CPU, in the order of the batches, 4 bytes each; their mean is the metric's value up to the
    rounding of float32.
    """

    _parts: dict[tuple[str, int], list[Tensor]] = field(default_factory=dict)

    def add(self, metric: str, size: int, values: Tensor) -> None:
        """Add the values of further examples [examples]."""
        self._parts.setdefault((metric, size), []).append(values.float().cpu())

    def tables(self) -> dict[str, Table]:
        """Return the values by metric, by increasing size."""
        found: dict[str, Table] = {}
        for metric in dict.fromkeys(name for name, _ in self._parts):
            sizes = sorted(size for name, size in self._parts if name == metric)
            values = torch.stack([torch.cat(self._parts[metric, size]) for size in sizes])
            found[metric] = torch.tensor(sizes), values
        return found
