"""Packing: codes come back, in as few bytes as they need, in the stated order of bits."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

import lpe
from lpe.number_systems import packing
from lpe.number_systems.grids import LowPrecision, grid_of


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 1000])
def test_codes_come_back_from_as_few_bytes_as_they_need(bits: int, count: int) -> None:
    system = lpe.Int(bits)
    q = system.largest_code
    codes = torch.randint(-q, q + 1, (count,), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    packed = packing.pack(codes, system)
    assert packed.dtype == torch.uint8 and len(packed) == -(-count * bits // 8)
    assert torch.equal(packing.unpack(packed, (count,), system), codes)


OTHERS = [
    lpe.Codebook([-1, 1]),
    lpe.Codebook(range(5)),
    lpe.Codebook(range(256)),
    lpe.NF4(),
    lpe.Float(2, 1),
    lpe.Float(2, 3),
    lpe.Float(4, 3),
]


@pytest.mark.parametrize("system", OTHERS, ids=lambda system: system.name)
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 1000])
def test_codes_of_other_systems_come_back_from_as_few_bytes_as_they_need(
    system: LowPrecision, count: int
) -> None:
    codes = (torch.arange(count) * 7 % len(system.levels)).to(torch.uint8)
    packed = packing.pack(codes, system)
    assert packed.dtype == torch.uint8 and len(packed) == -(-count * system.bits // 8)
    unpacked = packing.unpack(packed, (count,), system)
    assert unpacked.dtype == torch.uint8 and torch.equal(unpacked, codes)


def test_a_codebook_of_two_levels_takes_a_bit_a_weight() -> None:
    packed = packing.pack(torch.tensor([1, 0, 0, 1, 1, 0, 0, 0, 1], dtype=torch.uint8), lpe.Codebook([-1, 1]))
    assert packed.tolist() == [0b00011001, 0b1]


def test_a_code_that_straddles_a_chunk_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_CHUNK", 8)
    system = lpe.Int(5)
    codes = torch.arange(-15, 16, dtype=torch.int8)
    assert torch.equal(packing.unpack(packing.pack(codes, system), (31,), system), codes)


def test_the_lowest_bit_of_the_first_code_is_the_lowest_of_the_first_byte() -> None:
    # INT-3 codes -3, 0, 3 are stored as 0, 3, 6: 0b110_011_000 over two bytes, little-endian.
    packed = packing.pack(torch.tensor([-3, 0, 3], dtype=torch.int8), lpe.Int(3))
    assert packed.tolist() == [0b10011000, 0b1]


def test_too_few_bytes_are_refused() -> None:
    with pytest.raises(lpe.InputError, match="2 bytes do not hold 4 codes of 5 bits; 3 are needed"):
        packing.unpack(torch.zeros(2, dtype=torch.uint8), (4,), lpe.Int(5))


@pytest.mark.parametrize(
    ("system", "byte"),
    [(lpe.Int(8), 255), (lpe.Float(4, 3), 253), (lpe.Float(2, 1), 15), (lpe.Codebook([0, 1, 2]), 3)],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_code_outside_the_system_is_refused(system: lpe.Int | lpe.Float | lpe.Codebook, byte: int) -> None:
    with pytest.raises(lpe.InputError, match=f"a code that {system.name} does not have"):
        packing.unpack(torch.tensor([byte], dtype=torch.uint8), (1,), system)


def test_codes_of_a_spread_are_packed_in_the_bits_that_their_levels_take() -> None:
    # INT-8 at 40 times its step: codes −4 … 4, nine levels, four bits; −4, 0, 4 are stored as 0, 4, 8.
    system = lpe.Int(8, spread=40)
    packed = packing.pack(torch.tensor([-4, 0, 4], dtype=torch.int8), system)
    assert packed.tolist() == [0x40, 0x08] and packing.packed_bytes(3, system) == 2
    assert packing.unpack(packed, (3,), system).tolist() == [-4, 0, 4]
    with pytest.raises(lpe.InputError, match="codes of int8.40 are -4 to 4; there is -5 to 5"):
        packing.pack(torch.tensor([-5, 5], dtype=torch.int8), system)
    with pytest.raises(lpe.InputError, match="a code that int8.40 does not have"):
        packing.unpack(torch.tensor([0x09], dtype=torch.uint8), (1,), system)


# The fast path against the definition: every system, and counts that are no multiples of 8.

SPREAD = [lpe.Int(8, spread=spread) for spread in (1.5, 2.1, 5.7, 11.3, 32, 127)]
SYSTEMS = [*(lpe.Int(bits) for bits in range(2, 9)), *SPREAD, *OTHERS]
COUNTS = [0, 1, 7, 8, 9, 15, 1000, packing.FAST, packing.FAST + 3]


def codes_of(system: LowPrecision, count: int) -> torch.Tensor:
    grid = grid_of(system)
    indices = torch.randint(len(grid.levels), (count,), generator=torch.Generator().manual_seed(count))
    return (indices + grid.lowest_code).to(torch.int8 if grid.uniform else torch.uint8)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
def test_fast_packing_writes_the_bytes_of_the_definition(
    system: LowPrecision, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = codes_of(system, count)
    wanted = packing.packed_with_numpy(
        codes.view(torch.uint8).numpy(), grid_of(system).lowest_code, grid_of(system).code_bits
    )
    monkeypatch.setattr(packing, "FAST", 0)
    monkeypatch.setattr(packing, "packed_with_numpy", None)
    assert packing.pack(codes, system).numpy().tobytes() == wanted.tobytes()


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
def test_fast_unpacking_reads_what_the_definition_packed(
    system: LowPrecision, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = codes_of(system, count)
    packed = packing.packed_with_numpy(
        codes.view(torch.uint8).numpy(), grid_of(system).lowest_code, grid_of(system).code_bits
    )
    monkeypatch.setattr(packing, "FAST", 0)
    monkeypatch.setattr(packing, "unpacked_with_numpy", None)
    found = packing.unpack(torch.from_numpy(packed), (count,), system)
    assert found.dtype == codes.dtype and torch.equal(found, codes)


@pytest.mark.parametrize("place", [0, 8, 16])
def test_fast_unpacking_refuses_a_code_outside_the_system_wherever_it_stands(
    place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "FAST", 0)
    packed = torch.zeros(17, dtype=torch.uint8)
    packed[place] = 255
    with pytest.raises(lpe.InputError, match="a code that int8 does not have"):
        packing.unpack(packed, (17,), lpe.Int(8))


def test_both_paths_read_arbitrary_bytes_alike() -> None:
    from lpe.number_systems import fast_packing

    raw = np.random.default_rng(0).integers(256, size=5 * 125, dtype=np.uint8)
    codes = np.empty(1000, np.uint8)
    largest = fast_packing.unpack_into(codes, raw, -15 % 256, 5)
    wanted, wanted_largest = packing.unpacked_with_numpy(raw, 1000, -15, 5)
    assert (codes == wanted).all() and largest == wanted_largest == 31


def test_small_tensors_are_packed_without_numba() -> None:
    program = (
        "import sys, torch, lpe; from lpe.number_systems.packing import pack, unpack; "
        "unpack(pack(torch.zeros(9, dtype=torch.int8), lpe.Int(5)), (9,), lpe.Int(5)); "
        "print('numba' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout == "False\n"


def test_without_a_place_for_machine_code_it_is_made_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from lpe.number_systems import fast_packing

    true_compiler = fast_packing.njit

    def refusing(**options: object) -> object:
        if options.pop("cache", False):
            raise RuntimeError("cannot cache function: no locator available")
        return true_compiler(**options)

    monkeypatch.setattr(fast_packing, "njit", refusing)
    assert fast_packing._compiled(lambda a, b: a + b)(1, 2) == 3
