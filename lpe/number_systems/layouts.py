"""How a weight is seen as a matrix [out, everything else], and which scale each of its elements uses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lpe.errors import InputError
from lpe.number_systems.grids import PerTensor, ScaleAxis


@dataclass(frozen=True)
class Layout:
    """How a weight is seen as a matrix [out, everything else], and which scale each element uses.

    Args:
        shape: the weight's shape.
        output_axis: the dimension that is "output": 0, or 1 (GPT-2's Conv1D, ConvTranspose, open_clip's
            projections).
        channel_groups: for a grouped ConvTranspose [in, out / groups, …], its number of groups.
    """

    shape: tuple[int, ...]
    output_axis: int = 0
    channel_groups: int = 1

    def __post_init__(self) -> None:
        if self.output_axis not in (0, 1) or (self.output_axis == 1 and len(self.shape) < 2):
            raise InputError(f"output_axis {self.output_axis!r} does not fit the shape {list(self.shape)}")
        if not isinstance(self.channel_groups, int) or self.channel_groups < 1:
            raise InputError(f"channel_groups must be a positive integer, not {self.channel_groups!r}")
        if self.output_axis == 1 and self.shape[0] % self.channel_groups:
            raise InputError(f"{self.channel_groups} channel groups do not divide {self.shape[0]} inputs")

    @property
    def rows(self) -> int:
        """Output channels."""
        if not self.shape:
            return 1
        return self.shape[0] if self.output_axis == 0 else self.shape[1] * self.channel_groups

    @property
    def columns(self) -> int:
        """Weights of one output channel."""
        return self.numel // self.rows if self.rows else 0

    @property
    def numel(self) -> int:
        """Number of weights."""
        return int(torch.Size(self.shape).numel())

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight as [out, everything else]; a view where memory allows."""
        if self.output_axis == 0:
            return weight.reshape(self.rows, self.columns)
        grouped = weight.unflatten(0, (self.channel_groups, self.shape[0] // self.channel_groups))
        return grouped.transpose(1, 2).reshape(self.rows, self.columns)

    def position(self, start: int, stop: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Row and column of the elements start … stop − 1 (row-major, as stored): int64 each."""
        element = torch.arange(start, stop, dtype=torch.int64, device=device)
        if self.output_axis == 0:
            return element // self.columns, element % self.columns
        inputs = self.shape[0] // self.channel_groups
        outputs = self.shape[1]
        kernel = self.numel // (self.shape[0] * outputs)
        first = element // (outputs * kernel)
        row = first // inputs * outputs + element // kernel % outputs
        return row, first % inputs * kernel + element % kernel

    def scale_shape(self, axis: ScaleAxis) -> tuple[int, int]:
        """Shape of the scales: [groups along the outputs, groups along the inputs]."""
        return axis.groups(self.rows, self.columns)

    def scale_group(self, axis: ScaleAxis, start: int, stop: int, device: torch.device) -> Tensor:
        """Index into the flattened scales of the elements start … stop − 1: int64 [stop − start]."""
        if isinstance(axis, PerTensor):
            return torch.zeros(1, dtype=torch.int64, device=device).expand(stop - start)
        row_extent, column_extent = axis.extent(self.rows, self.columns)
        row, column = self.position(start, stop, device)
        return row // row_extent * self.scale_shape(axis)[1] + column // column_extent
