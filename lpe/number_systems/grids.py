"""Number systems: the grid of each, and the group of weights that shares one scale of it.

A number system is a grid of levels, given at scale 1, and a *scale axis*: the weights that share one scale
s = max|w| / max|level|; a weight becomes level·s.

    Int(bits)                  the whole numbers −q … q; s is then the step size Δ
    Int(bits, spread=S)        the same range in steps S times as large: −⌈q/S⌉ … ⌈q/S⌉
    Float(exponent, mantissa)  the finite values of FP8, FP6 and FP4
    NF4()                      QLoRA's 16 quantiles of a normal distribution
    Codebook(levels)           any 2 to 256 numbers

Integers may take a smaller step, and clip what is beyond the last code: Int(bits, clip="mse").

A weight is seen as a matrix [out, everything else]. The word "group" means two things in the literature, so
the axes here say which dimension they cut:

    PerTensor()             one scale for the tensor
    PerChannel(channels=k)  one scale for k output channels, that is k rows (k = 1: the usual per-channel)
    PerBlock(inputs=k)      one scale for k contiguous inputs of one row; a row's last block may be shorter
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from lpe.checks import check_choice, check_finite, check_integer, is_integer, shown
from lpe.errors import InputError

CLIPS = ("absmax", "mse")
"""Ways to choose the step of integers; the first is the default."""


def _settle(system: object, **fields: object) -> None:
    """Set checked fields of a frozen dataclass: integers of numpy become Python's."""
    for name, value in fields.items():
        object.__setattr__(system, name, value)


@dataclass(frozen=True)
class PerTensor:
    """One scale for the whole tensor."""

    def groups(self, rows: int, columns: int) -> tuple[int, int]:
        """Return how many scales a [rows, columns] weight has, along each dimension."""
        return (1, 1)

    def extent(self, rows: int, columns: int) -> tuple[int, int]:
        """Return how many rows and columns one scale covers."""
        return (max(rows, 1), max(columns, 1))

    def __str__(self) -> str:
        return "per tensor"


@dataclass(frozen=True)
class PerChannel:
    """One scale for ``channels`` consecutive output channels (rows); the last group may be smaller."""

    channels: int = 1

    def __post_init__(self) -> None:
        _settle(self, channels=check_integer("PerChannel(channels=…)", self.channels, 1))

    def groups(self, rows: int, columns: int) -> tuple[int, int]:
        """Return how many scales a [rows, columns] weight has, along each dimension."""
        return (-(-rows // self.channels), 1)

    def extent(self, rows: int, columns: int) -> tuple[int, int]:
        """Return how many rows and columns one scale covers."""
        return (self.channels, max(columns, 1))

    def __str__(self) -> str:
        return "per channel" if self.channels == 1 else f"per {self.channels} output channels"


@dataclass(frozen=True)
class PerBlock:
    """One scale for ``inputs`` contiguous inputs of one row; a row's last block may be shorter."""

    inputs: int = 128

    def __post_init__(self) -> None:
        _settle(self, inputs=check_integer("PerBlock(inputs=…)", self.inputs, 1))

    def groups(self, rows: int, columns: int) -> tuple[int, int]:
        """Return how many scales a [rows, columns] weight has, along each dimension."""
        return (rows, -(-columns // self.inputs))

    def extent(self, rows: int, columns: int) -> tuple[int, int]:
        """Return how many rows and columns one scale covers."""
        return (1, self.inputs)

    def __str__(self) -> str:
        return f"per block of {self.inputs} inputs"


ScaleAxis = PerTensor | PerChannel | PerBlock

_PER_CHANNEL = PerChannel()


def _check_scale(scale: object) -> None:
    if not isinstance(scale, PerTensor | PerChannel | PerBlock):
        raise InputError(f"scale must be PerTensor(), PerChannel() or PerBlock(), not {shown(scale)}")


def _full_name(short: str, scale: ScaleAxis) -> str:
    """Return a system's name with its scale axis; the default one is not spelled out."""
    return short if scale == _PER_CHANNEL else f"{short} {scale}"


@dataclass(frozen=True)
class Int:
    """Symmetric uniform integers INT-b: codes −q … q with q = 2^(b−1) − 1, step Δ = max|w| / q.

    There is no zero point, and the code −2^(b−1) is never used.

    Under ``spread=S`` the step is S·max|w| / q and the codes are −c … c with c = ⌈q/S⌉: a coarser grid of the
    same range, in steps as fine as one likes, where bits only halve and double. A code is counted and packed
    in the bits that tell 2c + 1 levels apart. BSR stays without bias: c steps reach max|w| and a little more.

    Under ``clip="mse"`` the step of each group is instead the one whose nearest rounding has the least
    squared error (see ``number_systems.clipping`` for how it is found). Weights beyond q·Δ become q·Δ: there
    BSR is biased, and its error is no longer below Δ. With a spread as well, that step is taken S times: the
    codes −c … c reach q·Δ, up to a step more.

    Args:
        bits: 2 … 8.
        scale: the weights that share a step.
        clip: "absmax", no weight is clipped, or "mse".
        spread: S, 1 … q. ``Int(bits, spread=1)`` is ``Int(bits)``.
    """

    bits: int
    scale: ScaleAxis = field(default_factory=PerChannel)
    clip: str = CLIPS[0]
    spread: float = 1.0

    def __post_init__(self) -> None:
        if not is_integer(self.bits) or not 2 <= self.bits <= 8:
            raise InputError(f"Int(bits) takes 2 to 8 bits, not {shown(self.bits)}")
        _settle(self, bits=int(self.bits))
        _check_scale(self.scale)
        check_choice("clip", self.clip, CLIPS)
        _settle(self, spread=check_finite("spread", self.spread, 1.0))
        if self.spread > self.q:
            raise InputError(
                f"spread must be at most q = {self.q} of int{self.bits}, not {self.spread:g}, which leaves "
                "fewer than three levels inside the weights' range"
            )

    @property
    def q(self) -> int:
        """q = 2^(b−1) − 1, the largest code without spread."""
        return 2 ** (self.bits - 1) - 1

    @property
    def largest_code(self) -> int:
        """The largest code, ⌈q / spread⌉."""
        # A quotient that is meant to be whole may lie a bit above; far less than float32 tells in a weight.
        return math.ceil(round(self.q / self.spread, 9))

    @property
    def levels(self) -> tuple[float, ...]:
        """The grid at scale 1, ascending."""
        return tuple(float(code) for code in range(-self.largest_code, self.largest_code + 1))

    @property
    def name(self) -> str:
        """The short name, as the records have it; the default scale axis is not spelled out."""
        clip = "" if self.clip == CLIPS[0] else f"-{self.clip}"
        spread = "" if self.spread == 1 else f"*{self.spread!r}".removesuffix(".0")
        return _full_name(f"int{self.bits}{clip}{spread}", self.scale)


# (exponent bits, mantissa bits) → largest finite value. The two of eight bits give codes away: E4M3 (OCP's
# "FN") those of the largest mantissa to NaN, E5M2 those of the largest exponent to infinities and NaN.
FLOATS = {(4, 3): 448.0, (5, 2): 57344.0, (3, 2): 28.0, (2, 3): 7.5, (2, 1): 6.0}


@dataclass(frozen=True)
class Float:
    """The finite values of a float of 8, 6 or 4 bits, subnormals included; the two zeros are one level.

    Scales are float32 and of max|w|, not the powers of two of the MX formats. Source of the formats: OCP
    8-bit Floating Point Specification 1.0 (E4M3, E5M2); OCP Microscaling Formats 1.0 (E3M2, E2M3, E2M1).

    Args:
        exponent, mantissa: bits of each: E4M3 (largest value 448), E5M2 (57344), E3M2 (28), E2M3 (7.5) and
            E2M1 (6) there are.
        scale: the weights that share a scale.
    """

    exponent: int
    mantissa: int
    scale: ScaleAxis = field(default_factory=PerChannel)

    def __post_init__(self) -> None:
        sizes = (self.exponent, self.mantissa)
        if not all(map(is_integer, sizes)) or sizes not in FLOATS:
            known = ", ".join(f"E{exponent}M{mantissa}" for exponent, mantissa in FLOATS)
            raise InputError(
                f"Float takes the exponent and mantissa bits of {known}, "
                f"not exponent={shown(self.exponent)}, mantissa={shown(self.mantissa)}"
            )
        _settle(self, exponent=int(self.exponent), mantissa=int(self.mantissa))
        _check_scale(self.scale)

    @property
    def bits(self) -> int:
        """Bits a weight, scales aside: sign, exponent and mantissa."""
        return 1 + self.exponent + self.mantissa

    @property
    def levels(self) -> tuple[float, ...]:
        """The grid at scale 1, ascending."""
        bias, steps = 2 ** (self.exponent - 1) - 1, 2**self.mantissa
        subnormal = [step * 2.0 ** (1 - bias - self.mantissa) for step in range(1, steps)]
        normal = [
            (1 + step / steps) * 2.0 ** (stored - bias)
            for stored in range(1, 2**self.exponent)
            for step in range(steps)
        ]
        largest = FLOATS[self.exponent, self.mantissa]
        positive = [value for value in (*subnormal, *normal) if value <= largest]
        return (*(-value for value in reversed(positive)), 0.0, *positive)

    @property
    def name(self) -> str:
        """The short name, as the records have it; the default scale axis is not spelled out."""
        return _full_name(f"fp{self.bits}_e{self.exponent}m{self.mantissa}", self.scale)


@dataclass(frozen=True)
class NF4:
    """NormalFloat of 4 bits: 16 levels from −1 to 1, 0 among them, denser where a normal distribution is.

    Source: Dettmers et al. 2023, "QLoRA: Efficient Finetuning of Quantized LLMs", appendix E. There the
    scale is of blocks of 64 inputs: ``NF4(PerBlock(64))``.

    Args:
        scale: the weights that share a scale; per channel unless told.
    """

    scale: ScaleAxis = field(default_factory=PerChannel)

    def __post_init__(self) -> None:
        _check_scale(self.scale)

    @property
    def bits(self) -> int:
        """Bits a weight, scales aside."""
        return 4

    @property
    def levels(self) -> tuple[float, ...]:
        """The grid at scale 1, ascending; each a float32."""
        return _NF4_LEVELS

    @property
    def name(self) -> str:
        """The short name, as the records have it; the default scale axis is not spelled out."""
        return _full_name("nf4", self.scale)


CODEBOOK_RANGE = 2.0**60
"""A codebook's largest |level| and its inverse may be no larger, lest usual weights' scales leave float32."""


@dataclass(frozen=True)
class Codebook:
    """A number system of any 2 to 256 levels; the scale is s = max|w| / max|level|, whatever the levels are.

    Beyond the levels' ends a weight becomes the end. Where the ends are −a and a no weight lies there; where
    they are not, the weights beyond the smaller end are rounded with a bias. A codebook need not have the
    level 0; then zeros in a group that is not all zeros are rounded without bias to its neighbours.

    Args:
        levels: numbers in any order, finite and distinct as float32, which they are rounded to; kept in
            ascending order. A factor common to all makes no difference, but for rounding: the scale takes it
            up.
        scale: the weights that share a scale.
    """

    levels: tuple[float, ...]
    scale: ScaleAxis = field(default_factory=PerChannel)

    def __init__(self, levels: Iterable[float], scale: ScaleAxis = _PER_CHANNEL) -> None:
        _check_scale(scale)
        # What is given need not be sorted, nor a tuple.
        _settle(self, levels=_codebook_levels(levels), scale=scale)

    @property
    def bits(self) -> int:
        """Bits a weight, scales aside: ⌈log₂(number of levels)⌉."""
        return (len(self.levels) - 1).bit_length()

    @property
    def name(self) -> str:
        """All levels, each in the fewest digits that give its float32: such as "codebook:-1:0:0.5"."""
        levels = (str(np.float32(level)).removesuffix(".0") for level in self.levels)
        return _full_name(":".join(("codebook", *levels)), self.scale)


@dataclass(frozen=True)
class NamedCodebook(Codebook):
    """A codebook that another package brings under a name, by which records and command lines have it.

    Files hold its levels, so that whoever lacks the package reads them, as a :class:`Codebook`.

    Args:
        levels, scale: see :class:`Codebook`. called: its name.
    """

    called: str = ""

    def __init__(self, levels: Iterable[float], scale: ScaleAxis, called: str) -> None:
        super().__init__(levels, scale)
        _settle(self, called=called)

    @property
    def name(self) -> str:
        """The short name, as the records have it; the default scale axis is not spelled out."""
        return _full_name(self.called, self.scale)


def _codebook_levels(levels: Iterable[float]) -> tuple[float, ...]:
    """Return the levels as float32 has them, ascending; InputError where they make no codebook."""
    try:
        given = [float(level + 0) for level in levels]  # a character plus 0 is a TypeError
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last: a row of a tensor
        given_text = " ".join(repr(levels).split())
        raise InputError(f"a codebook's levels must be numbers, not {given_text}") from None
    if not 2 <= len(given) <= 256:
        raise InputError(f"a codebook has 2 to 256 levels, not {len(given)}")
    with np.errstate(over="ignore"):
        # Adding 0 makes −0 the 0 that it equals.
        rounded = [float(np.float32(level)) + 0.0 for level in given]
    for level, kept in zip(given, rounded, strict=True):
        if not math.isfinite(kept):
            raise InputError(f"a codebook's levels must be finite as float32; {level!r} is not")
    ascending = tuple(sorted(rounded))
    for level, following in zip(ascending, ascending[1:], strict=False):
        if level == following:
            raise InputError(f"a codebook's levels must differ as float32; {level!r} is there twice")
    largest = max(map(abs, ascending))
    if not 1 / CODEBOOK_RANGE <= largest <= CODEBOOK_RANGE:
        raise InputError(
            f"a codebook's largest |level| must be between 2**-60 and 2**60, not {largest!r}; multiply all "
            "levels by one factor, which the scale takes up again"
        )
    return ascending


# As float32; the published constants have more digits than it.
_NF4_LEVELS = tuple(
    float(np.float32(level))
    for level in (
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    )
)


@dataclass(frozen=True)
class FullPrecision:
    """The system without rounding: weights as they are, at their own precision."""

    @property
    def bits(self) -> int:
        """Bits a weight of a float32 model."""
        return 32

    @property
    def levels(self) -> tuple[float, ...]:
        """None: a float has too many to list."""
        return ()

    @property
    def name(self) -> str:
        """The short name, as the records have it."""
        return "fp32"


LowPrecision = Int | Float | NF4 | Codebook
"""The number systems that round."""

NumberSystem = LowPrecision | FullPrecision


@dataclass(frozen=True)
class Grid:
    """The facts of a number system that a rounding rule needs.

    Args:
        levels: at scale 1, ascending, each a float32.
        zero: index of the level nearest to 0, of two such the positive one. Weights whose scale has no finite
            inverse become it, and ties go to the levels an even number of places from it: to even codes of
            integers, even mantissas of floats.
        uniform: whether the levels are the whole numbers −zero … zero. A code is then the level itself; else
            its index.
    """

    levels: tuple[float, ...]
    zero: int
    uniform: bool

    @property
    def code_bits(self) -> int:
        """Bits in which a code is counted and packed: ⌈log₂(number of levels)⌉.

        They are the system's own, but for integers with a spread.
        """
        return (len(self.levels) - 1).bit_length()

    @property
    def lowest_code(self) -> int:
        """The code of the lowest level; each further level's is one more."""
        return -self.zero if self.uniform else 0

    @property
    def largest(self) -> float:
        """The largest |level|."""
        return max(-self.levels[0], self.levels[-1])


@cache
def grid_of(system: LowPrecision) -> Grid:
    """Return the grid of a number system."""
    levels = system.levels
    zero = min(range(len(levels)), key=lambda index: (abs(levels[index]), -levels[index]))
    return Grid(levels, zero, isinstance(system, Int))
