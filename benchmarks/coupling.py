"""Are coupled members worth more than independent ones, and is an 8-bit copy enough to draw members from?

    LPE_ASSETS=<folder> python -m benchmarks.coupling
    python -m benchmarks.coupling --only digits
    python -m benchmarks.coupling --plot-only

Took, on one core of a machine busy with other work: digits 19 minutes, after 8 for the training of 24
networks, which the store keeps; stories 35; resnets 60. What was measured is not measured again, so a run
that was stopped goes on. Without LPE_ASSETS the last two are left out, with a line that says so. It writes
coupling_<table>.csv under benchmarks/results/, each with its conditions in a JSON beside it, and from them
coupling_comparisons.csv, coupling_seeded.csv and coupling.png. It prints, with the number of seeds:

- for each network, bit width and size M: NLL of M independent and of M coupled members, the paired difference
  with its 95 % interval (Student's t) and verdict, the same against 2 M independent members, and how many
  independent members the M coupled ones are worth;
- NLL of members drawn from the weights in 8, 7 and 6 bits against from FP32;
- what theory says (below), and for each M the rounding that the rule ``recommended`` finds. It should find
  "bernoulli" at every M over all bit widths (at M = 2 and 3, 16 of 18 rows are better or no worse, 2
  undecided), and stories260k at INT-5 as good as twice as many independent members at M = 3, 4, 5 and 8.

The unit is a training seed on digits (rounding seeds averaged within it), and a rounding seed where there is
one checkpoint: those intervals are of the rounding alone, with this network and these examples given.
NLL at size M is the mean over the disjoint runs of M consecutive members of one ensemble. For coupled members
too a run is an ensemble like any other, whichever the first index: u_0 is uniform, and so is u_0 + i·φ. The
range must be consecutive, though: every other member is another lattice, with other gaps.

**Theory.** Weight a of member i is off by a function e_a of u_a + i·φ (mod 1), and u_a is uniform and
independent of all others. Averaged over where w lies between its neighbours (uniform), in steps:

    E e_a(i) e_a(j) = k(i − j),   k(d) = {dφ}² − {dφ} + 1/6   (independent members: 1/6 where i = j, else 0).

A member's probabilities are a function of very many such errors, and so a sum of terms of first order in
them, of second order (products of the errors of two weights), and so on. The mean over the members of a term
of order r has the variance of one member's times M⁻² Σ_ij (6 k(i − j))^r: M coupled members average it as n_r
independent ones would (``lattice_worth``):

    M             2     3     4     5     8    13    16    20    ∞
    n_1         3.4   7.7   9.5    21    54   141   141   196    ∞
    n_2         1.7   2.4   3.1   3.5   4.2   4.7   4.7   4.8    5
    n_3         2.2   3.3   4.5   5.9   9.4    13    13    15   17

So coupling gains where an error of the weights moves the prediction in proportion, and never on the second
order, which it leaves at that of 5 independent members whatever M: all weights walk along the same lattice,
so that the products of their errors hardly average. NLL's excess over that of infinitely many members is
about the sum over r of c_r/M for independent and of c_r/n_r for coupled members. So few coupled members win
and many lose, from the smaller an M on the larger c_2 is: at few bits, where a member alone is bad.
"""

from __future__ import annotations

import functools
import io
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

import lpe
from benchmarks.command import conditions, one_line_of_bad_input, parser
from lpe.ensembles.base import Ensemble, text_table
from lpe.errors import InputError
from lpe.interruption import answered
from lpe.modules import apply
from lpe.number_systems.kernels.reference import COUPLING
from lpe.provenance import write_provenance
from lpe.records import Records, write_table
from lpe.store import Store
from lpe.substrates import cifar_resnet, stories
from lpe.substrates.assets import assets_folder
from lpe.tracking import Tracker
from lpe.writing import check_writable, replacing
from reproduce.judge.intervals import by_seed, student_interval
from reproduce.scales.digits.settings import DIGITS
from reproduce.study.run import Run
from reproduce.study.units import draw_seed

SIZES = (2, 3, 4, 5, 8, 13, 16, 20)
"""Members, M."""
SEEDED_SIZES = (10, 20)
BITS = (5, 4, 3)
BASES = (8, 7, 6)
"""Bits of the copies from which members are drawn."""
SEEDS = 8
DRAWS = 3
"""Rounding seeds that are averaged within a training seed of digits."""
NETWORKS = ("T", "S", "B")
IMAGES = 200
STORIES = 16
THREADS = 1

# The rules of the verdicts, fixed before the run.
MARGIN = 0.25
"""Share of what doubling M gains with independent members: a loss below it is "no worse"."""
SEEDED_MARGIN = 0.01
"""Share of the NLL of members drawn from FP32, below which a loss is no worse: claim C12's."""
GOOD = ("better", "no worse")

COMPARISONS = (
    *("substrate", "bits", "members", "seeds", "independent", "coupled"),
    *("difference", "low", "high", "verdict"),
    *("difference_2m", "low_2m", "high_2m", "verdict_2m", "worth_in_independent_members"),
)
SEEDED = (
    *("substrate", "bits", "base_bits", "members", "seeds", "from_fp32", "from_base"),
    *("difference", "low", "high", "verdict"),
)


@dataclass(frozen=True)
class Kind:
    """A way in which members are drawn.

    Args:
        method: as the record has it. rounding: "nearest", "bernoulli" or "coupled".
        members: of the ensemble whose runs are measured. sizes: at which NLL is kept.
        base_bits: members are drawn from the weights rounded to nearest at these bits; None: from FP32.
    """

    method: str
    rounding: str
    members: int
    sizes: tuple[int, ...]
    base_bits: int | None = None


@dataclass(frozen=True)
class Substrate:
    """A model with its data.

    Args:
        name, scale, point: as the record has them.
        load: seed → network and batches. base_members: of the ensembles drawn from a copy in few bits.
        draws: rounding seeds averaged within a seed; None: the seed is that of the rounding.
    """

    name: str
    scale: str
    point: str
    load: Callable[[int], tuple[nn.Module, list[Any]]]
    base_members: int = max(SEEDED_SIZES)
    draws: int | None = None

    def rounding_seeds(self, seed: int) -> list[int]:
        """Return the seeds of the ensembles that make up one unit."""
        return [seed] if self.draws is None else [draw_seed(seed, draw) for draw in range(self.draws)]


@dataclass(frozen=True)
class Unit:
    """A unit of what is measured in one go and then written."""

    substrate: Substrate
    kind: Kind
    number_system: str
    seed: int

    @property
    def keys(self) -> dict[str, object]:
        """The columns that all rows of the unit share."""
        return {
            "scale": self.substrate.scale,
            "substrate": self.substrate.name,
            "point": self.substrate.point,
            "method": self.kind.method,
            "number_system": self.number_system,
            "rounding": self.kind.rounding if self.number_system != "fp32" else "",
            "seed": self.seed,
        }

    @property
    def passes(self) -> int:
        """The number of members that run over the data."""
        drawn = self.kind.rounding in ("bernoulli", "coupled")
        return self.kind.members * (len(self.substrate.rounding_seeds(self.seed)) if drawn else 1)


def from_base(bits: int) -> str:
    """Name the method of members drawn from a copy in few bits."""
    return f"LPE-BSR from int{bits}"


def kinds(substrate: Substrate) -> list[Kind]:
    """List the kinds of members that are measured at each bit width."""
    most = 2 * max(SIZES)
    independent = tuple(sorted({1, *SEEDED_SIZES, *SIZES, *(2 * size for size in SIZES)}))
    seeded = tuple(size for size in SEEDED_SIZES if size <= substrate.base_members)
    return [
        Kind("RTN", "nearest", 1, (1,)),
        Kind("LPE-BSR", "bernoulli", most, independent),
        Kind("LPE-BSR", "coupled", max(SIZES), (1, *SIZES)),
        *(Kind(from_base(bits), "bernoulli", substrate.base_members, seeded, bits) for bits in BASES),
    ]


def units(substrate: Substrate, seeds: int) -> Iterator[Unit]:
    """Yield the units that are measured of a substrate, seed by seed."""
    for seed in range(seeds):
        yield Unit(substrate, Kind("FP32", "nearest", 1, (1,)), "fp32", seed)
        for bits in BITS:
            for kind in kinds(substrate):
                yield Unit(substrate, kind, f"int{bits}", seed)


@torch.no_grad()
def target_log_probs(
    ensemble: Ensemble, batches: Sequence[Any], after_member: Callable[[], object] = lambda: None
) -> Tensor:
    """Return every member's log p_m(y | x), float64 [members, examples]: all that a subset's NLL needs."""
    rows = []
    for index in range(len(ensemble)):
        net = ensemble.member(index)
        parts = []
        for inputs, targets in batches:
            logits = apply(net, inputs).double()
            parts.append(logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(dim=1))
        rows.append(torch.cat(parts))
        after_member()
    return torch.stack(rows)


def nll_of_runs(log_probs: Tensor, size: int) -> float:
    """Return the NLL of ``size`` members' mean probabilities, mean over the disjoint runs of so many members.

    Args:
        log_probs: see :func:`target_log_probs`; members beyond the last whole run are left out.

    Raises:
        InputError: fewer members than ``size``.
    """
    runs = len(log_probs) // size
    if not runs:
        raise InputError(f"an ensemble of {len(log_probs)} has no run of {size} members")
    of_runs = log_probs[: runs * size].unflatten(0, (runs, size)).logsumexp(dim=1) - math.log(size)
    return -float(of_runs.mean())


def measured_rows(
    unit: Unit, net: nn.Module, batches: Sequence[Any], after_member: Callable[[], object]
) -> list[dict[str, object]]:
    """Return rows of the record: NLL at the kind's sizes, mean over the unit's rounding seeds."""
    kind, system = unit.kind, lpe.number_system(unit.number_system)
    if kind.base_bits is not None:
        net = lpe.LowPrecisionEnsemble(net, lpe.Int(kind.base_bits), 1, rounding="nearest")[0]
    seeds = unit.substrate.rounding_seeds(unit.seed) if kind.rounding != "nearest" else [0]
    values = []
    for seed in seeds:
        ensemble = lpe.LowPrecisionEnsemble(net, system, kind.members, seed, kind.rounding)
        log_probs = target_log_probs(ensemble, batches, after_member)
        values.append([nll_of_runs(log_probs, size) for size in kind.sizes])
    means = np.mean(values, axis=0)
    return [
        {
            **unit.keys,
            "size": size,
            "metric": "nll",
            "value": float(value),
            "memory_bits": ensemble.memory_bits(size),
        }
        for size, value in zip(kind.sizes, means, strict=True)
    ]


# The substrates


def _digits_vit(letter: str) -> Substrate:
    def load(seed: int) -> tuple[nn.Module, list[Any]]:
        network = DIGITS.substrates[f"digits ViT-{letter}"]
        run = Run(
            store=Store(), tracker=Tracker(None), threads=DIGITS.threads, device=DIGITS.device, quiet=True
        )
        return network.point(run, "SGD", seed).net, list(network.source.load(seed).test)

    return Substrate(f"digits ViT-{letter}", "digits", "SGD", load, draws=DRAWS)


def _resnet(assets: Path, depth: int) -> Substrate:
    @functools.cache
    def loaded() -> tuple[nn.Module, list[Any]]:
        return cifar_resnet.load_resnet(assets, depth), cifar_resnet.test_batches(assets, IMAGES, 25)

    name = f"ResNet-{depth}, {cifar_resnet.DATASET}, {IMAGES} images evenly spread"
    return Substrate(name, "assets", "", lambda _: loaded(), base_members=min(SEEDED_SIZES))


def _stories260k(assets: Path) -> Substrate:
    @functools.cache
    def loaded() -> tuple[nn.Module, list[Any]]:
        tokens = stories.story_tokens(assets, STORIES)
        return stories.load_stories260k(assets), stories.token_batches(tokens)

    name = f"stories260k, the first {STORIES} TinyStories cut to {stories.TOKENS} tokens"
    return Substrate(name, "assets", "", lambda _: loaded())


TABLES: dict[str, Callable[[], list[Substrate]]] = {
    "digits": lambda: [_digits_vit(letter) for letter in NETWORKS],
    "resnets": lambda: [_resnet(assets_folder(), depth) for depth in (20, 32)],
    "stories": lambda: [_stories260k(assets_folder())],
}
"""The substrates of each table; InputError without the assets that they need."""


def record_path(table: str, out: Path) -> Path:
    """Return the record of a table."""
    return out / f"coupling_{table}.csv"


def run(table: str, substrates: Sequence[Substrate], out: Path, seeds: int) -> None:
    """Measure what the table's record lacks; write it after every unit."""
    started = time.time()
    records = Records(record_path(table, out))
    todo = [unit for each in substrates for unit in units(each, seeds) if not records.has(**unit.keys)]
    passes = sum(unit.passes for unit in todo)
    if not passes:
        return
    bar_format = "{desc} {percentage:3.0f} % |{bar}| {elapsed}, {remaining} left{postfix}"
    with tqdm(total=passes, desc=table, bar_format=bar_format, mininterval=1, file=sys.stderr) as bar:
        loaded: tuple[tuple[str, int], tuple[nn.Module, list[Any]]] | None = None
        for unit in todo:
            wanted = (unit.substrate.name, unit.seed)
            if loaded is None or loaded[0] != wanted:
                loaded = wanted, unit.substrate.load(unit.seed)
            bar.set_postfix_str(f"{wanted[0].partition(',')[0]} {unit.kind.method} {unit.number_system}")
            records.add(measured_rows(unit, *loaded[1], bar.update))
    write_provenance(
        out / f"coupling_{table}.json",
        ["benchmarks/coupling.py", "--only", table, "--seeds", str(seeds)],
        {
            "substrates": [
                {"name": each.name, "base_members": each.base_members, "rounding_seeds": each.draws or 1}
                for each in substrates
            ],
            "bits": BITS,
            "sizes": SIZES,
            "base_bits": BASES,
            "margin": MARGIN,
            "seeded_margin": SEEDED_MARGIN,
            "passes_measured_by_this_command": passes,
        },
        "cpu",
        list(range(seeds)),
        THREADS,
        started,
    )


# What the record says


def verdict(difference: np.ndarray, margin: float) -> str:
    """Say what the paired differences of NLL mean for a challenger; the first that applies.

    "better": the 95 % interval of the mean lies below 0; "no worse": below the margin; "worse": above 0;
    else, and with fewer than two differences, "undecided".

    Args:
        difference: challenger − champion, one a seed. margin: 0 or more.
    """
    low, high = student_interval(difference)
    if high < 0:
        return "better"
    if high < margin:
        return "no worse"
    return "worse" if low > 0 else "undecided"


def worth(sizes: Sequence[int], nll: Sequence[float], value: float) -> float:
    """Return how many independent members have this NLL: between two sizes it is linear in 1/size.

    Args:
        sizes, nll: of independent members, by size. Where NLL rises with the size, its least so far counts.

    Returns:
        0 where it is above that of the smallest ensemble, infinity below that of the largest.
    """
    falling = np.minimum.accumulate(np.asarray(nll, float))
    if value > falling[0]:
        return 0.0
    if value < falling[-1]:
        return math.inf
    inverse = np.interp(value, falling[::-1], 1 / np.asarray(sizes, float)[::-1])
    return float(1 / inverse)


def lattice_worth(members: int, order: int) -> float:
    """Return n_r: how many independent members average a term of this order as so many coupled ones do.

    Of a term of order r in the weights' errors (see the module's theory): 1 / (M⁻² Σ_ij (6 k(i − j))^r).
    """
    index = np.arange(members)
    lag = (index[:, None] - index) * COUPLING % 65536 / 65536
    correlation = 6 * (lag**2 - lag) + 1
    return float(1 / np.mean(correlation**order))


def _values(record: pd.DataFrame, substrate: str, bits: int, method: str, rounding: str) -> pd.DataFrame:
    """Return the NLL [seeds, sizes]."""
    rows = record[
        (record["substrate"] == substrate)
        & (record["number_system"] == f"int{bits}")
        & (record["method"] == method)
        & (record["rounding"] == rounding)
        & (record["metric"] == "nll")
    ]
    return rows.pivot(index="seed", columns="size", values="value")


def by_size(record: pd.DataFrame) -> list[str]:
    """Return the substrates, that with the fewest weights first, those of one scale together."""
    single = record[record["method"] == "FP32"].drop_duplicates("substrate")
    scales = list(record["scale"].unique())
    ordered = single.assign(place=single["scale"].map(scales.index)).sort_values(["place", "memory_bits"])
    return list(ordered["substrate"])


def comparisons(record: pd.DataFrame) -> pd.DataFrame:
    """Compare coupled with as many and with twice as many independent members; the columns COMPARISONS."""
    rows = []
    for substrate in by_size(record):
        for bits in BITS:
            independent = _values(record, substrate, bits, "LPE-BSR", "bernoulli")
            coupled = _values(record, substrate, bits, "LPE-BSR", "coupled")
            means = independent.mean()
            for size in sorted(set(SIZES) & set(coupled.columns)):
                row: dict[str, object] = {
                    "substrate": substrate,
                    "bits": bits,
                    "members": size,
                    "seeds": len(coupled),
                    "independent": means[size],
                    "coupled": coupled[size].mean(),
                }
                margin = MARGIN * max(0.0, means[size] - means[2 * size])
                for against, ending in ((size, ""), (2 * size, "_2m")):
                    difference = (coupled[size] - independent[against]).dropna().to_numpy()
                    low, high = student_interval(difference)
                    row[f"difference{ending}"] = float(difference.mean())
                    row[f"low{ending}"], row[f"high{ending}"] = low, high
                    row[f"verdict{ending}"] = verdict(difference, margin)
                row["worth_in_independent_members"] = worth(
                    [int(each) for each in independent.columns], means.to_list(), float(coupled[size].mean())
                )
                rows.append(row)
    return pd.DataFrame(rows, columns=list(COMPARISONS))


def seeded_differences(record: pd.DataFrame) -> pd.DataFrame:
    """Compare members drawn from a copy in few bits with those drawn from FP32; the columns SEEDED."""
    rows = []
    for substrate in by_size(record):
        for bits in BITS:
            independent = _values(record, substrate, bits, "LPE-BSR", "bernoulli")
            for base in BASES:
                drawn = _values(record, substrate, bits, from_base(base), "bernoulli")
                for size in drawn.columns:
                    difference = (drawn[size] - independent[size]).dropna().to_numpy()
                    low, high = student_interval(difference)
                    rows.append(
                        {
                            "substrate": substrate,
                            "bits": bits,
                            "base_bits": base,
                            "members": size,
                            "seeds": len(difference),
                            "from_fp32": independent[size].mean(),
                            "from_base": drawn[size].mean(),
                            "difference": float(difference.mean()),
                            "low": low,
                            "high": high,
                            "verdict": verdict(difference, SEEDED_MARGIN * float(independent[size].mean())),
                        }
                    )
    return pd.DataFrame(rows, columns=list(SEEDED))


def recommended(compared: pd.DataFrame) -> dict[int, str]:
    """Return the rounding to take by default, by size.

    "coupled" where it is better or no worse than as many independent members in every row of that size, and
    better in one at least; else "bernoulli".
    """
    found = {}
    for size, rows in compared.groupby("members"):
        wins = rows["verdict"].isin(GOOD).all() and (rows["verdict"] == "better").any()
        found[int(str(size))] = "coupled" if wins else "bernoulli"
    return found


def worth_doubling(compared: pd.DataFrame, least: Sequence[str] = GOOD) -> list[int]:
    """List the sizes at which coupled members are as good as twice as many independent ones, in every row."""
    return [
        int(str(size))
        for size, rows in compared.groupby("members")
        if rows["verdict_2m"].isin(list(least)).all()
    ]


# What is printed and drawn


def _signed(value: float) -> str:
    return f"{value:+.5f}"


def comparison_text(compared: pd.DataFrame) -> str:
    """Return a table of one network at one bit width."""
    first = compared.iloc[0]
    header = (
        "M",
        "independent",
        "coupled",
        "coupled − independent M",
        "",
        "coupled − independent 2M",
        "",
        "worth",
    )
    rows = []
    for row in compared.to_dict("records"):
        rows.append(
            (
                str(row["members"]),
                f"{row['independent']:.5f}",
                f"{row['coupled']:.5f}",
                f"{_signed(row['difference'])} [{_signed(row['low'])}, {_signed(row['high'])}]",
                row["verdict"],
                f"{_signed(row['difference_2m'])} [{_signed(row['low_2m'])}, {_signed(row['high_2m'])}]",
                row["verdict_2m"],
                _worth_text(row["worth_in_independent_members"]),
            )
        )
    title = f"{first['substrate']}, INT-{first['bits']}, NLL (nats), n = {first['seeds']} seeds"
    doubled = worth_doubling(compared)
    told = ", ".join(map(str, doubled)) or "none"
    return text_table(title, header, rows, f"as good as twice as many independent members at M = {told}")


def _worth_text(members: float) -> str:
    if members == 0:
        return "<1"
    return f">{2 * max(SIZES)}" if math.isinf(members) else f"{members:.1f}"


def seeded_text(drawn: pd.DataFrame) -> str:
    """Return a table of one network: every bit width, base and size."""
    first = drawn.iloc[0]
    header = ("numbers", "base", "M", "from FP32", "from the base", "difference", "")
    rows = [
        (
            f"INT-{row['bits']}",
            f"INT-{row['base_bits']}",
            str(row["members"]),
            f"{row['from_fp32']:.5f}",
            f"{row['from_base']:.5f}",
            f"{_signed(row['difference'])} [{_signed(row['low'])}, {_signed(row['high'])}]",
            row["verdict"],
        )
        for row in drawn.to_dict("records")
    ]
    return text_table(f"{first['substrate']}, NLL (nats), n = {first['seeds']} seeds", header, rows)


def theory_text() -> str:
    """Say how many independent members M coupled ones are worth, by the order of the term."""
    rows = [
        (f"order {order}", *(f"{lattice_worth(size, order):.3g}" for size in SIZES)) for order in (1, 2, 3)
    ]
    return text_table(
        "Theory: M coupled members average a term of the weights' errors as so many independent ones would",
        ("M", *map(str, SIZES)),
        rows,
    )


def recommendation_text(compared: pd.DataFrame) -> str:
    """Say for each M the rounding that the rule finds over all networks, at all bit widths and at each."""
    scopes: list[tuple[str, pd.DataFrame]] = [("all", compared)]
    scopes += [(f"INT-{bits}", compared[compared["bits"] == bits]) for bits in BITS]
    rows = []
    for name, part in scopes:
        by_size = recommended(part)
        rows.append((name, *(by_size[size] for size in sorted(by_size))))
    lines = [
        text_table(
            "Default rounding by the rule (coupled only where it is better or no worse everywhere)",
            ("over", *(f"M = {size}" for size in sorted(recommended(compared)))),
            rows,
        )
    ]
    for size, part in compared.groupby("members"):
        counts = part["verdict"].value_counts()
        told = ", ".join(
            f"{counts[word]} {word}" for word in (*GOOD, "undecided", "worse") if counts.get(word, 0)
        )
        lower = int((part["difference"] < 0).sum())
        lines.append(f"M = {size}: of {len(part)} rows coupling is: {told}; its mean is lower in {lower}")
    return "\n".join(lines)


def draw(record: pd.DataFrame, path: Path) -> None:
    """Draw NLL against M, a row a network, a column a bit width; write it as PNG, whole or not at all."""
    from reproduce.draw import panels

    substrates = by_size(record)
    with panels.style():
        figure, axes = panels.plt.subplots(
            len(substrates),
            len(BITS),
            figsize=(panels.TEXT_WIDTH, 0.5 + 1.55 * len(substrates)),
            squeeze=False,
        )
        for row, substrate in enumerate(substrates):
            for column, bits in enumerate(BITS):
                _draw_panel(axes[row, column], f"{'abcdefghij'[row]}{column + 1}", record, substrate, bits)
            axes[row, 0].set_ylabel("NLL (nats)")
        for ax in axes[-1]:
            ax.set_xlabel("members M")
        panels.legend_below(figure, [*axes.flat])
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=115, metadata={"Software": None})
        panels.plt.close(figure)
    with replacing(path) as temporary:
        temporary.write_bytes(content.getvalue())


def _draw_panel(ax: Any, letter: str, record: pd.DataFrame, substrate: str, bits: int) -> None:
    """Draw a panel. Bands: the 95 % interval of the paired difference to FP32, around FP32's mean."""
    from reproduce.draw import panels

    single = by_seed(record[record["substrate"] == substrate], method="FP32", metric="nll")
    fp32 = float(single.mean())
    rtn = float(_values(record, substrate, bits, "RTN", "nearest")[1].mean())
    low, high = math.inf, -math.inf
    for label, rounding, colour, marker in (
        ("independent", "bernoulli", panels.BLUE, "o"),
        ("coupled", "coupled", panels.VERMILION, "D"),
    ):
        values = _values(record, substrate, bits, "LPE-BSR", rounding).drop(columns=1)
        differences = [(values[size] - single).to_numpy() for size in values.columns]
        band = fp32 + np.array([student_interval(of_size) for of_size in differences])
        means = values.mean().to_numpy()
        ax.plot(values.columns, means, color=colour, marker=marker, markersize=2.5, label=label)
        ax.fill_between(values.columns, *band.T, color=colour, alpha=0.2, linewidth=0)
        low, high = min(low, np.nanmin([*means, *band.flat])), max(high, np.nanmax([*means, *band.flat]))
    reach = 0.5 * (high - low)
    for value, line, label in ((fp32, "--", "FP32"), (rtn, ":", "RTN")):
        # Farther off it would press the curves together; its value is in the panel all the same.
        if low - reach < value < high + reach:
            ax.axhline(value, color=panels.BLACK, linestyle=line, linewidth=0.8, label=label)
    ax.set_xscale("log")
    ax.set_xticks([2, 3, 5, 8, 13, 20, 40], labels=["2", "3", "5", "8", "13", "20", "40"])
    ax.minorticks_off()
    panels.label_panel(ax, letter, f"{substrate.partition(',')[0]}, INT-{bits}")
    box = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1}
    singles = f"FP32 {fp32:.3g}, RTN {rtn:.3g}"
    ax.text(0.98, 0.97, singles, transform=ax.transAxes, ha="right", va="top", fontsize=5.5, bbox=box)


def _record(out: Path, seeds: int) -> pd.DataFrame:
    """Return the rows of the first ``seeds`` seeds of all tables that are there, and their table's name."""
    found = [
        Records(record_path(table, out)).select().assign(table=table)
        for table in TABLES
        if record_path(table, out).exists()
    ]
    if not found:
        raise InputError(f"there is no record under {out}; run without --plot-only")
    every = pd.concat(found, ignore_index=True)
    return every[every["seed"] < seeds]


def report(tables: Sequence[str], out: Path, seeds: int) -> None:
    """Print tables from their records; write the summaries and the picture from all records there are."""
    record = _record(out, seeds)
    compared, drawn = comparisons(record), seeded_differences(record)
    write_table(compared, out / "coupling_comparisons.csv", COMPARISONS)
    write_table(drawn, out / "coupling_seeded.csv", SEEDED)
    draw(record, out / "coupling.png")
    asked = set(record[record["table"].isin(list(tables))]["substrate"])
    for _, part in compared[compared["substrate"].isin(asked)].groupby(["substrate", "bits"], sort=False):
        print(comparison_text(part), end="\n\n")
    for _, part in drawn[drawn["substrate"].isin(asked)].groupby("substrate", sort=False):
        print(seeded_text(part), end="\n\n")
    print(theory_text(), end="\n\n")
    print(recommendation_text(compared), end="\n\n")
    for table in record["table"].unique():
        if (out / f"coupling_{table}.json").exists():
            print(f"{table}: {conditions(out / f'coupling_{table}.json')}")


@one_line_of_bad_input
def main(arguments: Sequence[str]) -> int:
    """Measure, then print the tables; 2 after one line about bad input."""
    options = parser("coupling", __doc__)
    options.add_argument("--only", choices=tuple(TABLES), help="one of the tables (default: all)")
    options.add_argument("--seeds", type=int, default=SEEDS, help="seeds 0 … N-1 (default: %(default)s)")
    options.add_argument(
        "--plot-only", action="store_true", help="print and draw from the records, measure nothing"
    )
    asked = options.parse_args(arguments)
    torch.set_num_threads(THREADS)
    if asked.seeds < 1:
        raise InputError(f"--seeds must be 1 or more, not {asked.seeds}")
    check_writable(asked.out)
    tables = [asked.only] if asked.only else list(TABLES)
    if not asked.plot_only:
        for table in tables:
            try:
                substrates = TABLES[table]()
            except InputError as error:
                if asked.only:
                    raise
                print(f"{table}: skipped, {error}", file=sys.stderr)
                continue
            run(table, substrates, asked.out, asked.seeds)
    report(tables, asked.out, asked.seeds)
    return 0


if __name__ == "__main__":
    sys.exit(answered(lambda: main(sys.argv[1:]), "interrupted"))
