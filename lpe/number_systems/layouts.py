"""Layouts: a weight seen as a matrix [out, everything else], and the scale that each of its elements uses."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lpe.errors import InputError
from lpe.number_systems.grids import PerTensor, ScaleAxis


@dataclass(frozen=True)
class Layout:
    """A weight seen as a matrix [out, everything else], and the scale that each element uses.

    The dimensions before the output's are taken as one, and so are those after it: [before, out, after].

    Args:
        shape: the weight's shape.
        output_axis: the dimension that is "output": 0, or another (1 of GPT-2's Conv1D, ConvTranspose and
            open_clip's projections).
        channel_groups: how many outputs of its own each index of the output dimension stands for: the
            dimensions before it are cut into so many groups, or those after it where there is none before.
            Of a grouped ConvTranspose [in, out / groups, …] the number of groups; of experts
            [experts, in, out] or [experts, out, in] that of experts; of experts that are a row each
            [experts, out · in] that of outputs.
    """

    shape: tuple[int, ...]
    output_axis: int = 0
    channel_groups: int = 1

    def __post_init__(self) -> None:
        dimensions = len(self.shape)
        if type(self.output_axis) is not int or not 0 <= self.output_axis < max(dimensions, 1):
            raise InputError(f"output_axis {self.output_axis!r} does not fit the shape {list(self.shape)}")
        if type(self.channel_groups) is not int or self.channel_groups < 1:
            raise InputError(f"channel_groups must be a positive integer, not {self.channel_groups!r}")
        cut = self.before if self.output_axis else self.after
        if cut % self.channel_groups:
            raise InputError(f"{self.channel_groups} channel groups do not divide {cut} inputs")

    @property
    def before(self) -> int:
        """Weights along the dimensions before the output's."""
        return math.prod(self.shape[: self.output_axis])

    @property
    def outputs(self) -> int:
        """Size of the output dimension."""
        return self.shape[self.output_axis] if self.shape else 1

    @property
    def after(self) -> int:
        """Weights along the dimensions after the output's."""
        return math.prod(self.shape[self.output_axis + 1 :])

    @property
    def inputs(self) -> int:
        """Weights along the dimensions before the output's, of one channel group."""
        return self.before // self.channel_groups

    @property
    def by_rows(self) -> bool:
        """True where an output channel's weights lie side by side in memory."""
        return self.output_axis == 0 or self.inputs == 1

    @property
    def rows(self) -> int:
        """Output channels."""
        return self.outputs * self.channel_groups

    @property
    def columns(self) -> int:
        """Weights of one output channel."""
        return self.numel // self.rows if self.rows else 0

    @property
    def numel(self) -> int:
        """Number of weights."""
        return int(torch.Size(self.shape).numel())

    def matrix(self, weight: Tensor) -> Tensor:
        """Return the weight as [out, everything else]; a view where memory allows."""
        if self.by_rows:
            return weight.reshape(self.rows, self.columns)
        grouped = weight.reshape(self.channel_groups, self.inputs, self.outputs, self.after)
        return grouped.transpose(1, 2).reshape(self.rows, self.columns)

    def position(self, start: int, stop: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the row and column of the elements start … stop − 1 (row-major, as stored): int64 each."""
        element = torch.arange(start, stop, dtype=torch.int64, device=device)
        if self.by_rows:
            return element // self.columns, element % self.columns
        first = element // (self.outputs * self.after)
        row = first // self.inputs * self.outputs + element // self.after % self.outputs
        return row, first % self.inputs * self.after + element % self.after

    def scale_shape(self, axis: ScaleAxis) -> tuple[int, int]:
        """Return the shape of the scales: [groups along the outputs, groups along the inputs]."""
        return axis.groups(self.rows, self.columns)

    def scale_group(self, axis: ScaleAxis, start: int, stop: int, device: torch.device) -> Tensor:
        """Return the elements' indices, start … stop − 1, into the flattened scales: int64 [stop − start]."""
        if isinstance(axis, PerTensor):
            return torch.zeros(1, dtype=torch.int64, device=device).expand(stop - start)
        row_extent, column_extent = axis.extent(self.rows, self.columns)
        row, column = self.position(start, stop, device)
        return row // row_extent * self.scale_shape(axis)[1] + column // column_extent
