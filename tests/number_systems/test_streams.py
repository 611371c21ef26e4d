"""Random bits: Philox against its published vectors, the counter's layout, names and keyed generators."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import lpe
from lpe.number_systems import streams

# Random123's known answers for philox4x32-10 (kat_vectors): counter, key, output.
KNOWN_ANSWERS = {
    "zeros": (
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    "ones": (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    "pi": ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
}


def words(text: str) -> tuple[int, ...]:
    return tuple(int(word, 16) for word in text.split())


def philox_of_integers(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """Philox4x32-10 in Python's integers, from Salmon et al. 2011: shares no line with the library."""
    x0, x1, x2, x3 = counter
    k0, k1 = key
    for round_index in range(10):
        if round_index:
            k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
        high0, low0 = divmod(0xD2511F53 * x0, 2**32)
        high1, low1 = divmod(0xCD9E8D57 * x2, 2**32)
        x0, x1, x2, x3 = high1 ^ x1 ^ k0, low1, high0 ^ x3 ^ k1, low0
    return x0, x1, x2, x3


def lane_of_integers(seed: int, name: str, member: int, element: int) -> int:
    """The 16 bits of one element, from the text of the layout."""
    block, lane = divmod(element, 8)
    identity = int(hashlib.blake2s(name.encode()).hexdigest()[:8], 16).to_bytes(4, "big")
    counter = (block % 2**32, block // 2**32, int.from_bytes(identity, "little"), member)
    word = philox_of_integers(counter, (seed % 2**32, seed // 2**32))[lane // 2]
    return word // 65536 if lane % 2 else word % 65536


def one_line(caught: pytest.ExceptionInfo[lpe.InputError]) -> str:
    message = str(caught.value)
    assert message and "\n" not in message
    return message


# Philox


@pytest.mark.parametrize("case", KNOWN_ANSWERS)
def test_philox_gives_the_published_known_answer(case: str) -> None:
    counter, key, answer = (words(text) for text in KNOWN_ANSWERS[case])
    c0, c1, c2, c3 = (torch.tensor([word]) for word in counter)
    got = streams.philox((key[0], key[1]), (c0, c1, c2, c3))
    assert tuple(int(word) for word in got) == answer


@pytest.mark.parametrize("case", KNOWN_ANSWERS)
def test_the_independent_philox_gives_the_published_known_answer(case: str) -> None:
    counter, key, answer = (words(text) for text in KNOWN_ANSWERS[case])
    assert philox_of_integers(counter, key) == answer


def test_philox_equals_the_independent_philox_on_random_counters() -> None:
    generator = torch.Generator().manual_seed(0)
    counters = torch.randint(0, 2**32, (4, 200), generator=generator)
    key = (0xDEADBEEF, 0x80000001)
    c0, c1, c2, c3 = counters
    got = torch.stack(streams.philox(key, (c0, c1, c2, c3)), dim=1).tolist()
    assert got == [list(philox_of_integers(tuple(column), key)) for column in counters.T.tolist()]


# The counter's layout


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**32, 3 * 2**32 + 5, 2**64 - 1])
def test_lanes_follow_the_layout_for_every_half_of_the_seed(seed: int) -> None:
    got = streams.random_lanes(seed, "layer.weight", 0, 0, 37).tolist()
    assert got == [lane_of_integers(seed, "layer.weight", 0, element) for element in range(37)]


@pytest.mark.parametrize("member", [0, 1, 7, 2**32 - 1])
def test_lanes_follow_the_layout_for_every_member(member: int) -> None:
    got = streams.random_lanes(9, "layer.weight", member, 0, 21).tolist()
    assert got == [lane_of_integers(9, "layer.weight", member, element) for element in range(21)]


@pytest.mark.parametrize("name", ["", "a", "encoder.layers.0.weight", "größe"])
def test_lanes_follow_the_layout_for_every_name(name: str) -> None:
    got = streams.random_lanes(9, name, 2, 0, 21).tolist()
    assert got == [lane_of_integers(9, name, 2, element) for element in range(21)]


def test_a_range_that_starts_later_gives_the_same_lanes() -> None:
    whole = streams.random_lanes(5, "w", 3, 0, 100)
    assert torch.equal(streams.random_lanes(5, "w", 3, 48, 77), whole[48:77])


def test_blocks_beyond_32_bits_use_the_second_counter_word() -> None:
    start = 8 * (2**32 - 1)
    got = streams.random_lanes(5, "w", 3, start, start + 19).tolist()
    assert got == [lane_of_integers(5, "w", 3, element) for element in range(start, start + 19)]


def test_an_empty_range_has_no_lanes() -> None:
    assert streams.random_lanes(0, "w", 0, 0, 0).shape == (0,)


def test_a_start_inside_a_block_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 8"):
        streams.random_lanes(0, "w", 0, 4, 12)


def test_the_first_lanes_are_pinned() -> None:
    pinned = [39081, 28632, 23047, 884, 40341, 27975, 27778, 6425, 17930, 48646]
    assert streams.random_lanes(0, "weight", 0, 0, 10).tolist() == pinned


# Lanes as random numbers

LANES_DRAWN = 2**16


def check_every_bit_is_balanced(draw: Callable[[int], Tensor]) -> None:
    """A fair bit's mean over n draws has the standard error 0.5/√n; five of them are allowed."""
    lanes = draw(LANES_DRAWN)
    bits = lanes[:, None] >> torch.arange(16) & 1
    assert (bits.double().mean(dim=0) - 0.5).abs().max() <= 5 * 0.5 / math.sqrt(LANES_DRAWN)


def test_every_bit_of_a_lane_is_balanced() -> None:
    check_every_bit_is_balanced(lambda n: streams.random_lanes(1, "w", 0, 0, n))


def test_a_stuck_bit_is_caught() -> None:
    with pytest.raises(AssertionError):
        check_every_bit_is_balanced(lambda n: streams.random_lanes(1, "w", 0, 0, n) & ~0x0010)


# Names


def test_the_tensor_id_is_the_first_four_bytes_of_blake2s_little_endian() -> None:
    digest = hashlib.blake2s(b"layer1.0.conv1.weight").digest()
    assert streams.tensor_id("layer1.0.conv1.weight") == (
        digest[0] + digest[1] * 256 + digest[2] * 65536 + digest[3] * 16777216
    )


def test_the_tensor_id_of_the_empty_name_is_the_published_blake2s_of_nothing() -> None:
    # BLAKE2s-256("") begins 69217a30 (RFC 7693's reference implementation).
    assert streams.tensor_id("") == 0x307A2169


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("weight", "weight"),
        ("module.weight", "weight"),
        ("_orig_mod.weight", "weight"),
        ("_orig_mod.module.layer.weight", "layer.weight"),
        ("module._orig_mod.layer.weight", "layer.weight"),
        ("module.module.weight", "weight"),
        ("layer._orig_mod.weight", "layer.weight"),
        ("submodule.weight", "submodule.weight"),
        ("module_list.0.weight", "module_list.0.weight"),
        ("", ""),
    ],
)
def test_canonical_names_are_without_what_wrappers_add(name: str, canonical: str) -> None:
    assert streams.canonical_namer([name])(name) == canonical


def test_a_component_beside_which_others_lie_is_the_models_own() -> None:
    names = ["fc.weight", "module.fc.weight"]
    assert [streams.canonical_namer(names)(name) for name in names] == names


def test_a_wrapper_may_have_tensors_of_its_own() -> None:
    canonical = streams.canonical_namer(["n_averaged", "module.weight"])
    assert [canonical("n_averaged"), canonical("module.weight")] == ["n_averaged", "weight"]


def test_two_tensors_never_come_to_share_a_name() -> None:
    names = ["weight", "module.weight"]
    assert [streams.canonical_namer(names)(name) for name in names] == names


def test_a_module_is_named_as_its_tensors_are() -> None:
    canonical = streams.canonical_namer(["module.blocks.0._orig_mod.weight", "module.blocks.1.weight"])
    found = [canonical(name) for name in ("module", "module.blocks", "module.blocks.0._orig_mod.drop")]
    assert found == ["", "blocks", "blocks.0.drop"]


def test_names_with_ids_of_their_own_pass() -> None:
    streams.check_tensor_ids(f"layers.{index}.weight" for index in range(1000))


def test_two_names_with_one_tensor_id_are_refused_by_name() -> None:
    # Found by trying blocks.0.weight, blocks.1.weight, …
    first, second = "blocks.106193.weight", "blocks.137855.weight"
    with pytest.raises(lpe.InputError) as caught:
        streams.check_tensor_ids(["weight", first, "bias", second])
    message = one_line(caught)
    assert first in message and second in message


def test_one_name_for_two_tensors_is_refused() -> None:
    names = ["a.weight", "a.weight"]
    with pytest.raises(lpe.InputError) as caught:
        streams.check_tensor_ids(names)
    assert "two tensors have the canonical name 'a.weight'" in one_line(caught)


# Seeds and members


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**64 - 1])
def test_seeds_of_64_bits_pass(seed: int) -> None:
    assert streams.check_seed(seed) == seed


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, True, None, "0"])
def test_other_seeds_are_refused_with_their_value(seed: object) -> None:
    with pytest.raises(lpe.InputError) as caught:
        streams.check_seed(seed)  # type: ignore[arg-type]
    assert repr(seed) in one_line(caught)


@pytest.mark.parametrize("member", [0, 1, 2**32 - 1])
def test_members_of_32_bits_pass(member: int) -> None:
    assert streams.check_member(member) == member


@pytest.mark.parametrize("member", [-1, 2**32, 1.0, True, None, "0"])
def test_other_members_are_refused_with_their_value(member: object) -> None:
    with pytest.raises(lpe.InputError) as caught:
        streams.check_member(member)  # type: ignore[arg-type]
    assert repr(member) in one_line(caught)


# Keyed generators, for draws that are not roundings

BASE_KEY = ("gaussian", 3, "layer.weight", 1)


def test_one_key_gives_the_same_normal_draws_again() -> None:
    assert torch.equal(streams.normal(*BASE_KEY, (50,)), streams.normal(*BASE_KEY, (50,)))


@pytest.mark.parametrize(
    "other",
    [
        ("dropout", 3, "layer.weight", 1),
        ("gaussian", 3 + 2**32, "layer.weight", 1),
        ("gaussian", 3, "layer.bias", 1),
        ("gaussian", 3, "layer.weight", 2),
    ],
    ids=["purpose", "seed", "name", "member"],
)
def test_every_part_of_the_key_changes_the_normal_draws(other: tuple[str, int, str, int]) -> None:
    assert not torch.equal(streams.normal(*BASE_KEY, (50,)), streams.normal(*other, (50,)))


def of_32_bits(purpose: str, seed: int, name: str, member: int) -> Tensor:
    """Draws of a generator that ``manual_seed`` made of the key: it takes 64 bits and uses 32."""
    digest = hashlib.blake2s(f"{purpose}\0{seed}\0{name}\0{member}".encode()).digest()
    draws = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    return torch.randn(50, generator=draws)


def test_keys_that_are_one_in_32_bits_draw_differently() -> None:
    keys = [("gaussian", seed, "layer.weight", 1) for seed in (23056, 34217)]
    assert torch.equal(of_32_bits(*keys[0]), of_32_bits(*keys[1]))  # such keys they are
    assert not torch.equal(streams.normal(*keys[0], (50,)), streams.normal(*keys[1], (50,)))


def test_a_keyed_generator_is_numpys_mersenne_twister_in_the_state_that_the_key_hashes_to() -> None:
    digest = hashlib.shake_256("\0".join(map(str, BASE_KEY)).encode()).digest(4 * 624)
    twister = np.random.MT19937()
    words = np.frombuffer(digest, dtype="<u4")
    twister.state = {"bit_generator": "MT19937", "state": {"key": words, "pos": 624}}
    drawn = torch.empty(2000, dtype=torch.int64).random_(2**24, generator=streams.generator(*BASE_KEY))
    assert drawn.tolist() == [int(word) % 2**24 for word in twister.random_raw(2000)]


def test_uniform_draws_are_float32_from_0_up_to_but_not_1() -> None:
    draws = streams.uniform(*BASE_KEY, NORMALS_DRAWN)
    assert draws.dtype == torch.float32 and 0 <= draws.min() and draws.max() < 1
    assert (draws.double().mean() - 0.5).abs() <= 5 / math.sqrt(12 * NORMALS_DRAWN)


def test_normal_draws_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    streams.normal(*BASE_KEY, (50,))
    assert torch.equal(torch.get_rng_state(), before)


def test_normal_draws_are_float32_of_the_shape_asked_for() -> None:
    draws = streams.normal(*BASE_KEY, (3, 4, 2))
    assert (draws.dtype, tuple(draws.shape)) == (torch.float32, (3, 4, 2))


NORMALS_DRAWN = 10_000


def check_standard_normal(draw: Callable[[int], Tensor]) -> None:
    """Mean 0 ± 5/√n; variance 1 ± 5·√(2/n); fourth moment 3 ± 5·√(96/n)."""
    n = NORMALS_DRAWN
    values = draw(n).double()
    assert values.mean().abs() <= 5 / math.sqrt(n)
    assert (values.square().mean() - 1).abs() <= 5 * math.sqrt(2 / n)
    assert (values.pow(4).mean() - 3).abs() <= 5 * math.sqrt(96 / n)


def test_normal_draws_have_the_moments_of_a_standard_normal() -> None:
    check_standard_normal(lambda n: streams.normal(*BASE_KEY, (n,)))


@pytest.mark.parametrize(
    "fault",
    [
        lambda values: values + 0.1,
        lambda values: values * 1.1,
        lambda values: values.sign(),
    ],
    ids=["shifted", "too wide", "signs only"],
)
def test_normal_draws_with_a_wrong_moment_are_caught(fault: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(AssertionError):
        check_standard_normal(lambda n: fault(streams.normal(*BASE_KEY, (n,))))
