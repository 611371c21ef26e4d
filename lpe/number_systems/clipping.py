"""Steps of integers other than absmax's: per scale group the one whose nearest rounding has the least error.

The error of a group under a step Δ is Σ (w − Δ·c)², c = clamp(w/Δ rounded, −q, q). A step below absmax's
clips the largest weights and serves all others better; one above it leaves the outer codes out.

With S = Σ w·c and T = Σ c², the best step of given codes is S/T, which lowers the error from Σ w² by S²/T. As
Δ falls, the code of a weight grows by one at Δ = |w|/(j + ½), j = 0 … q − 1: that adds |w| to S and 2j + 1 to
T. So one pass for each j, into bins of Δ, gives S and T under every step that ends a bin. The largest S²/T is
taken, absmax's among them, and the step S/T three times replaced by that of the codes which it gives itself.
Steps below q·Δ = mean|w|/2 are left out: twice such a step is no worse.

The search's resolution: a bin is 1.6 % of its step wide at most, from INT-6 on .4 %. The error was at most
1 % above the least one of 4,000 steps at 2 to 6 bits, in groups of 8 to 768 weights; at 7 and 8 bits, where
rounding errs little under any step, 3 %, and up to 13 % in groups of up to 32. At INT-4 the search takes as
long as a dozen roundings.

Sums are of whole numbers, |w| in units of max|w|·2⁻ᵏ, k as large as 62 bits allow, and bins are cut by the
bits of a float32: so a step is the same on every device, with any number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from lpe.number_systems.grids import ScaleAxis
from lpe.number_systems.layouts import Layout

REFINEMENTS = 3

CHUNK = 1 << 16
"""Weights, or bins, at a time: bounds the temporaries at a few MB."""

OCTAVES = 12
"""Octaves of bins that are reckoned with where CHUNK is kept; long tails take more."""


def least_squares_steps(weight: Tensor, largest_code: int, layout: Layout, axis: ScaleAxis) -> Tensor:
    """Return the step of each scale group: float32, of shape ``layout.scale_shape(axis)``.

    Args:
        weight: of the layout's shape, any floating dtype, finite. largest_code: q.
    """
    grouped = _grouped(layout.matrix(weight), layout, axis)
    if not grouped.numel():
        return torch.zeros(layout.scale_shape(axis), dtype=torch.float32, device=weight.device)
    parts = grouped.split(max(1, CHUNK // max(grouped.shape[1], OCTAVES << _digits(largest_code))))
    return torch.cat([_steps(part, largest_code) for part in parts]).view(layout.scale_shape(axis))


def _grouped(matrix: Tensor, layout: Layout, axis: ScaleAxis) -> Tensor:
    """Return a weight [rows, columns] as [groups, weights of a group], short groups filled with zeros.

    Zeros have no error under any step.
    """
    rows, columns = layout.scale_shape(axis)
    row_extent, column_extent = axis.extent(layout.rows, layout.columns)
    # A single group may be said to extend beyond the weight.
    row_extent = layout.rows if rows == 1 else row_extent
    column_extent = layout.columns if columns == 1 else column_extent
    missing = (0, columns * column_extent - layout.columns, 0, rows * row_extent - layout.rows)
    padded = F.pad(matrix, missing) if any(missing) else matrix
    blocks = padded.unflatten(1, (columns, column_extent)).unflatten(0, (rows, row_extent))
    return blocks.transpose(1, 2).reshape(rows * columns, row_extent * column_extent)


def _steps(part: Tensor, q: int) -> Tensor:
    """Return the steps of some groups [groups, size]: float32 [groups]."""
    device, size = part.device, part.shape[1]
    absmax = torch.maximum(part.amax(dim=1), -part.amin(dim=1)).float().abs()
    unit = 1.0 / absmax
    usable = unit.isfinite()
    unit = torch.where(usable, unit, 0.0)[:, None]
    whole = 2.0 ** (62 - (q * size).bit_length())

    def number(value: float) -> Tensor:
        # A tensor: CUDA divides by a number as a product with its reciprocal, which rounds twice.
        return torch.tensor(value, dtype=torch.float32, device=device)

    def sizes() -> Iterator[tuple[Tensor, Tensor]]:
        """Yield |w| / max|w|, and as a whole number."""
        for piece in part.split(CHUNK, dim=1):
            values = (piece.float() * unit).abs()
            yield values, (values * whole).round().long()

    total = torch.stack([wholes.sum(dim=1) for _, wholes in sizes()]).sum(dim=0)
    mean = (total.double() / whole).float() / number(size)
    least = torch.where(usable, mean / number(4 * q), 1.0).amin()
    highest, lowest = (int(_bin(each, q)) for each in (number(2.0), least))
    bins = highest - lowest + 1
    products = torch.zeros(len(part), bins, dtype=torch.int64, device=device)
    squares = torch.zeros_like(products)
    for values, wholes in sizes():
        for j in range(q):
            place = (highest - _bin(values / number(j + 0.5), q)).clamp_(max=bins - 1)
            products.scatter_add_(1, place, wholes)
            squares.scatter_add_(1, place, torch.full_like(wholes, 2 * j + 1))
    # The last bin also has what lies below it.
    s, t = products.cumsum(dim=1)[:, :-1], squares.cumsum(dim=1)[:, :-1]
    gain = s.double().square() / t.clamp(min=1)
    best = gain.argmax(dim=1, keepdim=True)
    s, t = s.gather(1, best)[:, 0], t.gather(1, best)[:, 0]

    def codes_under(step: Tensor) -> tuple[Tensor, Tensor]:
        """Return S and T of the codes under each group's step, in units of max|w|."""
        inverse = torch.where(step > 0, 1.0 / step, 0.0)[:, None]
        s, t = torch.zeros(2, len(part), dtype=torch.int64, device=device)
        for values, wholes in sizes():
            codes = (values * inverse).round_().clamp_(max=q).long()
            s += (wholes * codes).sum(dim=1)
            t += codes.square_().sum(dim=1)
        return s, t

    of_absmax = codes_under((1.0 / number(q)).expand(len(part)))
    is_less = gain.gather(1, best)[:, 0] < of_absmax[0].double().square() / of_absmax[1].clamp(min=1)
    s, t = torch.where(is_less, of_absmax[0], s), torch.where(is_less, of_absmax[1], t)
    for _ in range(REFINEMENTS):
        s, t = codes_under((s.double() / whole / t.clamp(min=1)).float())
    step = (s.double() / whole / t.clamp(min=1) * absmax).float()
    return torch.where(usable & (t > 0), step, absmax / number(q))


def _digits(q: int) -> int:
    """Count the bits of a step's mantissa that tell bins apart: six to INT-4, one more each further bit."""
    return min(8, max(6, q.bit_length() + 3))


def _bin(step: Tensor, q: int) -> Tensor:
    """Return the bin that a positive float32 lies in: int64, growing with it."""
    return (step.view(torch.int32) >> (23 - _digits(q))).long()
