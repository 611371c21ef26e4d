"""Counter-based random bits: (seed, tensor name, element, member) → bits, with no hidden state.

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"). One call turns a key of
two 32-bit words and a counter of four into four random words, and nothing is carried from one call to the
next. So a member of an ensemble is determined by (base weights, seed, index) on every machine, whatever the
number of threads, and whichever members were asked for before.

The layout, which every backend follows bit for bit:

    key     = (seed mod 2³², seed div 2³²)
    counter = (block mod 2³², block div 2³², tensor id, member),  block = e div 8
    lane 2j = low half of output word j, lane 2j + 1 = its high half; element e takes lane e mod 8

where e is the element's index in the contiguous row-major parameter.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lpe.checks import is_integer, shown
from lpe.errors import InputError

LANES = 8
"""Random 16-bit lanes in one Philox block."""

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_TWISTER_WORDS = slice(3, 3 + 624)
"""Place of the twister's words in ``torch.Generator.get_state()``, read as integers of 64 bits."""
_WRAPPERS = frozenset({"module", "_orig_mod"})


def check_seed(seed: int) -> int:
    """Return the seed as an int; InputError unless 0 ≤ seed < 2⁶⁴."""
    if not is_integer(seed) or not 0 <= seed < 2**64:
        raise InputError(f"seed must be an integer from 0 to 2**64 - 1, not {shown(seed)}")
    return int(seed)


def check_member(member: int) -> int:
    """Return the member's index as an int; InputError unless 0 ≤ member < 2³²."""
    if not is_integer(member) or not 0 <= member < 2**32:
        raise InputError(f"member must be an integer from 0 to 2**32 - 1, not {shown(member)}")
    return int(member)


def canonical_namer(names: Iterable[str]) -> Callable[[str], str]:
    """Return a function that takes out of a model's tensors' and modules' names what wrappers put there.

    A component ``module`` or ``_orig_mod`` is a wrapper's, and dropped, where no other module with tensors
    lies beside it. Elsewhere the model is built so, and it stays.

    Args:
        names: of all the model's tensors.

    Returns:
        name of a tensor or module → canonical name; two tensors never come to share one.
    """
    names = set(names)
    if not any(wrapper in name for name in names for wrapper in _WRAPPERS):
        return lambda name: name
    paths = [tuple(name.split(".")) for name in names]
    modules: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for path in paths:
        for depth in range(len(path) - 1):
            modules[path[:depth]].add(path[depth])
    dropped = {
        (*path, *inside) for path, inside in modules.items() if len(inside) == 1 and inside <= _WRAPPERS
    }

    def canonical(name: str) -> str:
        parts = name.split(".")
        return ".".join(part for depth, part in enumerate(parts) if tuple(parts[: depth + 1]) not in dropped)

    # A wrapper may have tensors of its own (an average's counter), unless their names are taken inside.
    is_one_to_one = len({canonical(name) for name in names}) == len(names)
    return canonical if is_one_to_one else lambda name: name


def tensor_id(name: str) -> int:
    """Return the 32 bits of a parameter: the first 4 bytes, little-endian, of BLAKE2s of its name."""
    return int.from_bytes(hashlib.blake2s(name.encode()).digest()[:4], "little")


def check_tensor_ids(names: Iterable[str]) -> None:
    """Raise InputError if two names have one id, or are one name: their tensors would share random bits."""
    seen: dict[int, str] = {}
    for name in names:
        identity = tensor_id(name)
        if seen.get(identity) == name:
            raise InputError(f"two tensors have the canonical name {name!r}; rename one of them")
        if identity in seen:
            raise InputError(
                f"the names {seen[identity]!r} and {name!r} have one tensor id; rename one of them"
            )
        seen[identity] = name


def philox(key: tuple[int, int], counter: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Run Philox4x32-10.

    Args:
        key: two 32-bit words.
        counter: four int64 tensors of one shape, each holding 32-bit words.

    Returns:
        Four int64 tensors of that shape, each holding 32-bit words.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # int64 products wrap modulo 2**64, which leaves all 64 bits of the unsigned product in place.
        product0 = c0 * _MULTIPLIERS[0]
        product1 = c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((product1 >> 32) & _MASK) ^ c1 ^ k0,
            product1 & _MASK,
            ((product0 >> 32) & _MASK) ^ c3 ^ k1,
            product0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def random_lanes(
    seed: int,
    name: str,
    member: int,
    start: int,
    stop: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return the 16-bit random numbers of elements start … stop − 1 of a tensor; ``start`` a multiple of 8.

    Returns:
        int64 tensor of shape [stop − start], values 0 … 65535.
    """
    if start % LANES:
        raise ValueError(f"start must be a multiple of {LANES}, not {start}")
    blocks = torch.arange(start // LANES, -(-stop // LANES), dtype=torch.int64, device=device)
    words = philox(
        (seed & _MASK, seed >> 32),
        (
            blocks & _MASK,
            blocks >> 32,
            torch.full_like(blocks, tensor_id(name)),
            torch.full_like(blocks, member),
        ),
    )
    lanes = torch.stack([half for word in words for half in (word & 0xFFFF, word >> 16)], dim=1)
    return lanes.flatten()[: stop - start]


def generator(purpose: str, seed: int, name: str, member: int) -> torch.Generator:
    """Return a CPU generator of its own for (purpose, seed, name, member): for draws that are not roundings.

    Gaussian noise, dropout masks and posterior samples are keyed like the rounding, so that they too depend
    on nothing that was drawn before. ``purpose`` keeps two methods on one tensor apart.

    The generator is torch's Mersenne twister, whose whole state, 624 words, is SHAKE-256 of the key.
    ``manual_seed`` would not do: of the 64 bits that it takes it uses 32, so that 77,000 keys would be enough
    for two equal streams with probability ½.
    """
    key = f"{purpose}\0{check_seed(seed)}\0{name}\0{check_member(member)}"
    state = _fresh_twister().copy()
    state[_TWISTER_WORDS] = np.frombuffer(hashlib.shake_256(key.encode()).digest(4 * 624), dtype="<u4")
    made = torch.Generator(device="cpu")
    made.set_state(torch.from_numpy(state.view(np.uint8)))
    return made


@cache
def _fresh_twister() -> NDArray[np.uint64]:
    """Return the state of a CPU generator that was just seeded: its next draw mixes all words first."""
    return torch.Generator(device="cpu").manual_seed(0).get_state().numpy().view(np.uint64)


def normal(purpose: str, seed: int, name: str, member: int, shape: Iterable[int]) -> Tensor:
    """Draw standard normal float32 of ``shape``, keyed by (purpose, seed, name, member), on the CPU."""
    draws = generator(purpose, seed, name, member)
    return torch.randn(tuple(shape), generator=draws, dtype=torch.float32, device="cpu")


def uniform(purpose: str, seed: int, name: str, member: int, count: int) -> Tensor:
    """Draw uniform float32 [count] of [0, 1), keyed by (purpose, seed, name, member), on the CPU."""
    draws = generator(purpose, seed, name, member)
    return torch.rand(count, generator=draws, dtype=torch.float32, device="cpu")
