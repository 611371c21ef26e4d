"""Codes: int8, −q … q, of integers; uint8, the index of a level, of other number systems.

Of integers with a spread S they are −⌈q/S⌉ … ⌈q/S⌉.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lpe.checks import shown
from lpe.errors import InputError
from lpe.number_systems.grids import LowPrecision, grid_of
from lpe.number_systems.kernels.reference import code_type


def check_codes(codes: Tensor, system: LowPrecision) -> None:
    """Raise InputError unless codes are a dense tensor of the system's dtype, and each that of a level."""
    grid = grid_of(system)
    check_dense("codes", codes, system, code_type(grid))
    if not codes.numel():
        return
    first, last = grid.lowest_code, grid.lowest_code + len(grid.levels) - 1
    lowest, highest = (int(code) for code in torch.aminmax(codes))
    if not first <= lowest <= highest <= last:
        raise InputError(f"codes of {system.name} are {first} to {last}; there is {lowest} to {highest}")


def check_dense(what: str, tensor: Tensor, system: LowPrecision, dtype: torch.dtype) -> None:
    """Raise InputError unless a tensor is one, with values, dense and of the dtype that ``encode`` gives."""
    if not isinstance(tensor, Tensor):
        raise InputError(f"{what} must be a torch tensor, not {shown(tensor)}")
    if tensor.dtype != dtype or tensor.layout != torch.strided or tensor.is_meta:
        kind = "on the meta device" if tensor.is_meta else f"{tensor.dtype}, {tensor.layout}"
        raise InputError(f"{what} of {system.name} are {dtype} and dense, as encode gives them, not {kind}")
