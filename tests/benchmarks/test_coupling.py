"""The coupling study: its statistics by hand, its theory by drawing, and outcomes that are planted.

The planted networks sum weights to exactly 0 in full precision, so that a member's output z is the sum of its
rounding errors. Both labels are equally frequent, so NLL is log 2 but for the distance of the ensemble's mean
probability from ½. Where the logit is z, that is of first order in the errors, and coupling must win; where
it is z² less its mean, of second order, and coupling must lose.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import lpe
from benchmarks import coupling
from benchmarks.coupling import Kind, Substrate
from reproduce.judge.intervals import student_interval

INPUTS = 128
EXAMPLES = 200
SEEDS = 4


class Planted(nn.Module):
    """Logits (0, f(z)) of z = inputs · weights, which rounding alone moves from 0.

    Args:
        logit: f, of z over its standard deviation under rounding.
    """

    def __init__(self, logit: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        draws = torch.Generator().manual_seed(3)
        half = torch.rand(INPUTS // 2, generator=draws) * 2 - 1
        self.layer = nn.Linear(INPUTS, 1, bias=False)
        with torch.no_grad():
            # Pairs of equal weights meet inputs of opposite sign.
            self.layer.weight.copy_(torch.cat([half, half])[None])
        self.logit = logit
        step = float(half.abs().max()) / 7  # of INT-4
        fraction = (half / step) % 1
        self.std = float((2 * step**2 * (fraction * (1 - fraction)).sum()).sqrt())

    def forward(self, inputs: Tensor) -> Tensor:
        z = self.layer(inputs) / self.std
        return torch.cat([torch.zeros_like(z), self.logit(z)], dim=1)


def examples() -> list[tuple[Tensor, Tensor]]:
    """Each input under both labels."""
    signs = torch.randint(0, 2, (EXAMPLES, INPUTS // 2), generator=torch.Generator().manual_seed(4)) * 2.0 - 1
    inputs = torch.cat([signs, -signs], dim=1)
    return [(inputs, torch.full((EXAMPLES,), label)) for label in (0, 1)]


def substrate(logit: Callable[[Tensor], Tensor] = lambda z: z, **settings: Any) -> Substrate:
    return Substrate("planted", "test", "", lambda _: (Planted(logit).eval(), examples()), **settings)


@pytest.fixture(autouse=True)
def few_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coupling, "BITS", (4,))
    monkeypatch.setattr(coupling, "BASES", (8,))


def measured(folder: Path, planted: Substrate, seeds: int = SEEDS) -> pd.DataFrame:
    coupling.run("digits", [planted], folder, seeds)
    return pd.read_csv(coupling.record_path("digits", folder), keep_default_na=False)


# NLL of runs


def test_nll_of_runs_is_the_mean_over_disjoint_runs_of_the_nll_of_the_mean_probability() -> None:
    probs = torch.tensor([[0.2, 0.5], [0.4, 0.1], [0.6, 0.8], [0.8, 0.4], [0.9, 0.9]], dtype=torch.float64)
    # Runs of two: (.2, .4), (.6, .8) and (.5, .1), (.8, .4); the fifth member is in none.
    expected = -np.mean(np.log([0.3, 0.7, 0.3, 0.6]))
    assert coupling.nll_of_runs(probs.log(), 2) == pytest.approx(expected, rel=1e-12)


def test_more_members_than_there_are_are_refused_with_both_numbers() -> None:
    with pytest.raises(lpe.InputError, match="an ensemble of 3 has no run of 4 members"):
        coupling.nll_of_runs(torch.zeros(3, 1), 4)


def test_the_nll_of_all_members_is_that_of_evaluate() -> None:
    ensemble = lpe.LowPrecisionEnsemble(Planted(lambda z: z).eval(), lpe.Int(3), 5)
    found = coupling.nll_of_runs(coupling.target_log_probs(ensemble, examples()), 5)
    assert found == pytest.approx(lpe.evaluate(ensemble, examples())["nll"].iloc[-1], rel=1e-6)


# Verdicts. t(.975, 3) = 3.182446; of (−1, 0, 1, 2) the mean is ½ and the standard error √(5/3)/2 = .645497.
FOUR = np.array([-1.0, 0.0, 1.0, 2.0])
HALF = 3.182446 * 0.645497


@pytest.mark.parametrize(
    ("shift", "margin", "expected"),
    [
        (-0.5 - HALF - 1e-4, 0.0, "better"),
        (-0.5 - HALF + 1e-4, 0.0, "undecided"),
        (-0.5 - HALF + 1e-4, 0.001, "no worse"),
        (0.0, 0.5 + HALF + 1e-4, "no worse"),
        (0.0, 0.5 + HALF - 1e-4, "undecided"),
        (-0.5 + HALF - 1e-4, 0.0, "undecided"),
        (-0.5 + HALF + 1e-4, 0.0, "worse"),
        (-0.5 + HALF + 1e-4, 2 * HALF + 1e-3, "no worse"),
    ],
)
def test_a_verdict_is_where_the_interval_lies(shift: float, margin: float, expected: str) -> None:
    assert coupling.verdict(FOUR + shift, margin) == expected


def test_one_seed_decides_nothing() -> None:
    assert coupling.verdict(np.array([-1.0]), 1.0) == "undecided"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (5.0, 1.0),
        (3.0, 2.0),
        (2.5, 8 / 3),  # halfway between 1/2 and 1/4 is 3/8
        (2.0, 4.0),
        (5.1, 0.0),
        (1.9, math.inf),
    ],
)
def test_members_are_worth_what_lies_between_two_sizes_linear_in_one_over_size(
    value: float, expected: float
) -> None:
    assert coupling.worth([1, 2, 4], [5.0, 3.0, 2.0], value) == pytest.approx(expected)


def test_a_rise_of_nll_with_the_size_counts_as_its_least_so_far() -> None:
    assert coupling.worth([1, 2, 4, 8], [5.0, 3.0, 3.5, 2.0], 2.5) == pytest.approx(1 / (1 / 8 + 1 / 16))


def verdicts(*words: str, column: str = "verdict") -> pd.DataFrame:
    return pd.DataFrame({"members": [2] * len(words), column: words})


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("better", "no worse"), "coupled"),
        (("no worse", "no worse"), "bernoulli"),
        (("better", "undecided"), "bernoulli"),
        (("better", "worse"), "bernoulli"),
    ],
)
def test_coupling_is_recommended_where_it_wins_once_and_loses_nowhere(
    words: tuple[str, ...], expected: str
) -> None:
    assert coupling.recommended(verdicts(*words)) == {2: expected}


@pytest.mark.parametrize(
    ("words", "expected"), [(("better", "no worse"), [2]), (("better", "undecided"), [])]
)
def test_coupling_is_worth_doubling_where_it_is_so_in_every_row(
    words: tuple[str, ...], expected: list[int]
) -> None:
    assert coupling.worth_doubling(verdicts(*words, column="verdict_2m")) == expected


# Theory, against weights that are rounded


def mean_square(rounding: str, members: int, order: int) -> float:
    """Of the members' mean of a product of ``order`` weights' errors, over that of one member's product."""
    weight = torch.rand((4, 1 << 16), generator=torch.Generator().manual_seed(5)) * 12 - 6
    weight[:, 0] = 7
    codes = [
        lpe.encode(weight, lpe.Int(4, lpe.PerTensor()), rounding, 1, "w", member)[0]
        for member in range(members)
    ]
    errors = torch.stack(codes).double() - weight.double()
    # Neighbouring elements of a row are the factors of a product.
    products = errors[..., : (1 << 16) // order * order].unflatten(2, (-1, order)).prod(dim=3)
    return float(products.mean(dim=0).square().mean()) * 6**order


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("members", [2, 3, 8, 13])
def test_coupled_members_average_a_term_as_the_theory_says(members: int, order: int) -> None:
    # Over 2¹⁸ weights, 2¹⁸/order products of them: the relative standard error is below 2 %.
    found = 1 / mean_square("coupled", members, order)
    assert found == pytest.approx(coupling.lattice_worth(members, order), rel=0.06)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_independent_members_are_worth_their_number_at_any_order(order: int) -> None:
    assert 1 / mean_square("bernoulli", 8, order) == pytest.approx(8, rel=0.06)


def test_no_number_of_coupled_members_is_worth_more_than_five_at_second_order() -> None:
    assert coupling.lattice_worth(1000, 2) == pytest.approx(5, rel=0.01)


# Planted outcomes


def test_coupling_wins_where_the_logit_is_linear_in_the_errors(tmp_path: Path) -> None:
    compared = coupling.comparisons(measured(tmp_path, substrate()))
    assert set(compared["verdict"]) == {"better"}


def test_coupling_is_as_good_as_twice_as_many_where_the_logit_is_linear(tmp_path: Path) -> None:
    compared = coupling.comparisons(measured(tmp_path, substrate()))
    assert {2, 3, 4, 5, 8} <= set(coupling.worth_doubling(compared))


def test_coupling_loses_where_the_logit_is_quadratic_in_the_errors(tmp_path: Path) -> None:
    compared = coupling.comparisons(measured(tmp_path, substrate(lambda z: (z.square() - 1) / 2)))
    large = compared[compared["members"] >= 8]
    assert set(large["verdict"]) == {"worse"}


def test_an_8_bit_copy_is_no_worse_where_bits_are_few(tmp_path: Path) -> None:
    drawn = coupling.seeded_differences(measured(tmp_path, substrate()))
    assert set(drawn["verdict"]) == {"no worse"}


def test_a_copy_whose_members_lose_more_than_the_margin_is_worse(tmp_path: Path) -> None:
    record = measured(tmp_path, substrate())
    spoilt = record["method"] == coupling.from_base(8)
    record.loc[spoilt, "value"] += 0.05
    assert set(coupling.seeded_differences(record)["verdict"]) == {"worse"}


# Pairs

LEVELS = (0.5, 0.9, 0.2, 0.7)
"""NLL of independent members, a value a seed: seeds lie further apart than ways of drawing."""
CHANGES = (0.010, 0.012, 0.011, 0.009)


def seeds_far_apart() -> pd.DataFrame:
    """A record in which coupled members, and those drawn from 8 bits, are off by CHANGES."""
    ways = [("LPE-BSR", "bernoulli", 0), ("LPE-BSR", "coupled", 1), (coupling.from_base(8), "bernoulli", 1)]
    rows = [
        {"method": method, "rounding": rounding, "size": size, "seed": seed, "value": level + off * change}
        for method, rounding, off in ways
        for size in (2, 4)
        for seed, (level, change) in enumerate(zip(LEVELS, CHANGES, strict=True))
    ]
    single = {"method": "FP32", "rounding": "", "size": 1, "seed": 0, "value": 0.1}
    common = {"scale": "test", "substrate": "planted", "number_system": "int4", "metric": "nll"}
    return pd.DataFrame([single, *rows]).assign(**common, memory_bits=8)


@pytest.mark.parametrize("compare", [coupling.comparisons, coupling.seeded_differences])
def test_ways_of_drawing_are_compared_within_a_seed(
    compare: Callable[[pd.DataFrame], pd.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coupling, "SIZES", (2,))
    row = compare(seeds_far_apart()).iloc[0]
    assert (row["low"], row["high"]) == pytest.approx(student_interval(np.array(CHANGES)))


# The record


def test_a_finished_record_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = measured(tmp_path, substrate(), seeds=2)
    monkeypatch.setattr(coupling, "measured_rows", None)
    assert measured(tmp_path, substrate(), seeds=2).equals(first)


def test_a_killed_run_goes_on_to_the_same_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(tmp_path / "whole", substrate(), seeds=2)
    true_rows, done = coupling.measured_rows, []

    def killed_at_the_fourth(unit: coupling.Unit, *arguments: Any) -> list[dict[str, object]]:
        done.append(unit)
        if len(done) == 4:
            raise KeyboardInterrupt
        return true_rows(unit, *arguments)

    monkeypatch.setattr(coupling, "measured_rows", killed_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path / "killed", substrate(), seeds=2)
    measured(tmp_path / "killed", substrate(), seeds=2)
    whole, killed = (coupling.record_path("digits", tmp_path / name) for name in ("whole", "killed"))
    assert killed.read_bytes() == whole.read_bytes()


def test_what_was_measured_before_a_kill_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_rows, done = coupling.measured_rows, []

    def killed_at_the_fourth(unit: coupling.Unit, *arguments: Any) -> list[dict[str, object]]:
        done.append((unit.kind, unit.number_system, unit.seed))
        if len(done) == 4:
            raise KeyboardInterrupt
        return true_rows(unit, *arguments)

    monkeypatch.setattr(coupling, "measured_rows", killed_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path, substrate(), seeds=2)
    measured(tmp_path, substrate(), seeds=2)
    twice = [each for each in done if done.count(each) > 1]
    assert twice == [done[3]] * 2


def test_rounding_seeds_are_averaged_within_a_seed(tmp_path: Path) -> None:
    averaged = measured(tmp_path, substrate(draws=2), seeds=1)
    net, batches = Planted(lambda z: z).eval(), examples()
    kind = Kind("LPE-BSR", "coupled", 3, (3,))
    alone = [
        coupling.nll_of_runs(
            coupling.target_log_probs(
                lpe.LowPrecisionEnsemble(net, lpe.Int(4), 20, seed, kind.rounding), batches
            ),
            3,
        )
        for seed in (0, 1)
    ]
    row = averaged[(averaged["rounding"] == "coupled") & (averaged["size"] == 3)]
    assert float(row["value"].iloc[0]) == pytest.approx(np.mean(alone), rel=1e-10)


# The command


@pytest.fixture
def planted_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Digits are the planted network; the others are as they are."""
    monkeypatch.setitem(coupling.TABLES, "digits", lambda: [substrate()])


@pytest.mark.usefixtures("planted_tables")
class TestCommand:
    def test_without_assets_it_measures_digits_and_says_what_is_left_out(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.delenv("LPE_ASSETS", raising=False)
        assert coupling.main(["--out", str(tmp_path), "--seeds", "2"]) == 0
        said = capsys.readouterr()
        assert "planted, INT-4" in said.out
        assert "stories: skipped, LPE_ASSETS is not set" in said.err

    def test_a_table_that_is_asked_for_by_name_needs_its_assets(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.delenv("LPE_ASSETS", raising=False)
        assert coupling.main(["--out", str(tmp_path), "--only", "stories"]) == 2
        assert capsys.readouterr().err.startswith("error: LPE_ASSETS is not set")

    def test_plot_only_draws_from_the_record_and_measures_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert coupling.main(["--out", str(tmp_path), "--only", "digits", "--seeds", "2"]) == 0
        (tmp_path / "coupling.png").unlink()
        monkeypatch.setattr(coupling, "run", None)
        assert coupling.main(["--out", str(tmp_path), "--plot-only", "--seeds", "2"]) == 0
        assert (tmp_path / "coupling.png").read_bytes().startswith(b"\x89PNG")

    def test_the_recommendation_printed_is_the_rules(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert coupling.main(["--out", str(tmp_path), "--only", "digits", "--seeds", str(SEEDS)]) == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("all ")]
        assert set(line.split()[1:]) == {"coupled"}

    def test_the_conditions_stand_beside_the_record(self, tmp_path: Path) -> None:
        assert coupling.main(["--out", str(tmp_path), "--only", "digits", "--seeds", "2"]) == 0
        assert '"threads": 1' in (tmp_path / "coupling_digits.json").read_text(encoding="utf-8")

    def test_plot_only_without_a_record_is_refused(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert coupling.main(["--out", str(tmp_path), "--plot-only"]) == 2
        assert "there is no record" in capsys.readouterr().err

    def test_no_seeds_are_refused(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert coupling.main(["--out", str(tmp_path), "--seeds", "0"]) == 2
        assert "--seeds must be 1 or more, not 0" in capsys.readouterr().err
