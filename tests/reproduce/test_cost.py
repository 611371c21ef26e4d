"""The cost picture: what is measured, what is timed, what is said, and from nothing to the picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

import lpe
from lpe.evaluation.metrics import nll, temperature_scaled
from lpe.records import COLUMNS
from reproduce import cost
from reproduce.command import opened
from reproduce.draw import cost_picture, cost_verdicts, panels
from reproduce.draw.cost_verdicts import Picture, Series, front, levels, share_of_gain
from reproduce.scales.digits.settings import DIGITS
from reproduce.study import cost_measures, cost_times
from reproduce.study.cost_measures import HEADLINE, Known, Prediction, Target, known
from reproduce.study.scale import Scale

CLASSES = 4


def network(seed: int) -> nn.Module:
    numbers = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, CLASSES)).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=numbers))
    return net


def batch(seed: int, examples: int = 80) -> tuple[Tensor, Tensor]:
    numbers = torch.Generator().manual_seed(seed)
    inputs = torch.randn(examples, 6, generator=numbers)
    return inputs, torch.randint(CLASSES, (examples,), generator=numbers)


def known_of(ensemble: Any) -> Known:
    return known(ensemble, [batch(1)], [batch(2)])


@pytest.fixture
def members() -> Known:
    return known_of(lpe.LowPrecisionEnsemble(network(0), lpe.Int(3), 6, rounding="coupled"))


@pytest.fixture
def nearest() -> Known:
    return known_of(lpe.LowPrecisionEnsemble(network(0), lpe.Int(3), 1, rounding="nearest"))


# What is measured.


@pytest.mark.parametrize("target", [HEADLINE, Target(going=0.2)], ids=str)
@pytest.mark.parametrize("has_first", [True, False], ids=["from RTN", "from member 0"])
def test_a_cascade_from_known_log_probabilities_is_what_lpe_cascade_predicts(
    target: Target, has_first: bool, members: Known, nearest: Known
) -> None:
    first = nearest if has_first else None
    cascade = cost_measures.tuned_cascade(members, first, target)
    log_probs, networks = cost_measures.cascade_prediction(cascade, members, first)
    torch.testing.assert_close(cascade.predict(batch(2)[0]), log_probs, rtol=0, atol=1e-6)
    assert cascade.members_per_example == float(networks.double().mean())


def test_a_window_is_tuned_on_validation_examples_alone(members: Known, nearest: Known) -> None:
    other_test = replace(members, test=members.test.flip(1), test_targets=1 - members.test_targets)
    windows = [cost_measures.tuned_cascade(of, nearest, HEADLINE).windows for of in (members, other_test)]
    assert windows[0] == windows[1] != (lpe.ensembles.cascade.NOTHING,)


def test_the_temperature_is_fitted_on_validation_examples_and_costs_one_number() -> None:
    single = known_of(lpe.DeepEnsemble([network(0)]))
    plain, scaled = cost_measures.single_predictions(single)
    validation = single.validation[0]
    losses = [
        nll((validation / temperature).log_softmax(-1), single.validation_targets)
        for temperature in (0.8, 1.0, 1.25)
    ]
    ratio = (plain.log_probs[0, 0] - plain.log_probs[0, 1]) / (
        scaled.log_probs[0, 0] - scaled.log_probs[0, 1]
    )
    fitted = nll((validation / float(ratio)).log_softmax(-1), single.validation_targets)
    assert fitted < min(losses)
    assert scaled.memory_bits == plain.memory_bits + 32


def test_the_least_confident_validation_examples_go_on_whatever_their_labels(
    members: Known, nearest: Known
) -> None:
    ((low, high),) = cost_measures.tuned_cascade(members, nearest, Target(going=0.1)).windows
    confidence = nearest.validation[0].amax(-1).exp()
    inside = (confidence >= low) & (confidence <= high)
    assert int(inside.sum()) == 8
    assert float(confidence[inside].max()) < float(confidence[~inside].min())


def test_low_precision_predictions_have_every_size_and_cascades_of_all_and_of_few_members() -> None:
    single = known_of(lpe.DeepEnsemble([network(0)]))
    found = list(cost_measures.low_precision_predictions(network(0), 3, 4, 2, 0, single, known_of))
    keys = [each.key for each in found]
    assert len(set(keys)) == len(keys)
    sizes = {
        rounding: [key[3] for key in keys if key[:3] == ("LPE-BSR", "int3", rounding)]
        for rounding in ("bernoulli", "coupled")
    }
    assert sizes == {"bernoulli": [1, 2, 3, 4], "coupled": [1, 2, 3, 4]}
    assert ("RTN", "int3", "nearest", 1) in keys
    assert {key[3] for key in keys if key[0] == "cascade from RTN: 95 % of the gain"} == {2, 4}
    assert {key[3] for key in keys if key[0] == "cascade from FP32: 95 % of the gain"} == {4}


def prediction(log_probs: Tensor, networks: Tensor, **given: Any) -> Prediction:
    return Prediction("LPE-BSR", "int3", "coupled", 3, log_probs, networks, 10, 8, **given)


def test_rows_are_means_over_draws_of_metrics_on_all_examples(members: Known) -> None:
    drawn = [members.test[0], members.test[1]]
    targets = members.test_targets
    networks = torch.arange(80) % 3
    rows = cost_measures.rows_of_predictions([[prediction(each, networks)] for each in drawn], targets)
    (of_key,) = rows.values()
    values = {row["metric"]: row["value"] for row in of_key}
    calibrated = np.mean([nll(temperature_scaled(each, targets), targets) for each in drawn])
    assert values["nll"] == pytest.approx(np.mean([nll(each, targets) for each in drawn]))
    assert values["calibrated_nll"] == pytest.approx(calibrated)
    assert values["members_per_example"] == pytest.approx(float(networks.double().mean()))
    assert values["generator_bits"] == 8


def test_blocks_are_dealt_out_in_turn_and_their_mean_is_that_of_all(members: Known) -> None:
    each = prediction(members.test[0], torch.ones(80))
    (whole,) = cost_measures.rows_of_predictions([[each]], members.test_targets).values()
    (blocks,) = cost_measures.rows_of_predictions([[each]], members.test_targets, blocks=4).values()
    of_blocks = [row for row in blocks if row["metric"] == "nll"]
    assert [row["point"] for row in of_blocks] == [f"block {block} of 4" for block in range(4)]
    assert of_blocks[1]["value"] == pytest.approx(nll(members.test[0, 1::4], members.test_targets[1::4]))
    total = next(row["value"] for row in whole if row["metric"] == "nll")
    assert np.mean([float(str(row["value"])) for row in of_blocks]) == pytest.approx(total)


def test_the_next_larger_network_of_digits_is_the_one_after_its_own() -> None:
    larger = DIGITS.next_larger
    assert larger is not None and DIGITS.main is not None and larger.short == "ViT-L"
    assert larger.source.shape.width > DIGITS.main.source.shape.width


def test_the_same_network_at_another_point_is_neither_the_main_network_nor_larger() -> None:
    # cifar10 has rows of the same ResNet trained without augmentation, and by AdamW, before its own.
    main = DIGITS.main
    assert main is not None
    (_, recipe), *_ = main.points.items()
    other = replace(main, points={"SGD": replace(recipe, learning_rate=recipe.learning_rate / 2)})
    scale = replace(DIGITS, sizes=(other, main))
    assert scale.own_size is main
    assert scale.next_larger is None


# What is timed.


def test_times_are_medians_of_rounds_in_which_everything_runs_once_after_an_uncounted_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cost_times, "REPEATS", 3)
    ran: list[str] = []

    def item(name: str, seconds: Sequence[float]) -> cost_times.Timed:
        of_rounds = iter(seconds)

        def run() -> list[float]:
            ran.append(name)
            return [next(of_rounds)]

        return cost_times.Timed([("s", name, "fp32", "", 1, 0, "kept")], run)

    items = [item("a", [99.0, 1.0, 5.0, 2.0]), item("b", [99.0, 4.0, 3.0, 8.0])]
    rows = cost_times.rows_of_times(items, 10, tqdm(disable=True))
    assert ran == ["a", "b"] * 4
    assert [(row["method"], row["ms_per_example"]) for row in rows] == [("a", 200.0), ("b", 400.0)]


def test_making_members_is_part_of_their_time_and_kept_members_are_not_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cost_times, "REPEATS", 1)
    made, member = [], lpe.LowPrecisionEnsemble.member

    def slow(self: lpe.LowPrecisionEnsemble, index: int) -> nn.Module:
        made.append(index)
        return member(self, index)

    clock = iter(range(10_000))
    monkeypatch.setattr(lpe.LowPrecisionEnsemble, "member", slow)
    monkeypatch.setattr(cost_times.time, "perf_counter", lambda: float(next(clock)))
    net = network(0)
    items = cost_times.timed_methods(("own", net), ("larger", net), None, (3,), 3, batch(2)[0], 0)
    made.clear()
    rows = pd.DataFrame(cost_times.rows_of_times(items, 1000, tqdm(disable=True)))
    # A step of the clock to make a member, and one to run it.
    lpe_rows = rows[(rows["method"] == "LPE-BSR") & (rows["rounding"] == "coupled")]
    found = lpe_rows.set_index(["members", "size"])["ms_per_example"].to_dict()
    assert found == {
        **{("made", n): 2.0 * n for n in (1, 2, 3)},
        **{("kept", n): 1.0 * n for n in (1, 2, 3)},
    }
    # Twice through RTN's one member and two ensembles of three.
    assert len(made) == 2 * (1 + 3 + 3)


def test_every_cascade_is_timed_with_members_made_and_kept_under_the_record_s_names(
    members: Known, nearest: Known
) -> None:
    single = known_of(lpe.DeepEnsemble([network(0)]))
    deep = known_of(lpe.DeepEnsemble([network(seed) for seed in range(3)]))
    items = cost_times.timed_cascades("s", single, deep, [(members, nearest)], 2, batch(2)[0], 0, True)
    keys = {key for item in items for key in item.keys}
    named = {
        each.key
        for each in cost_measures.low_precision_predictions(network(0), 3, 6, 2, 0, single, known_of)
        if each.method.startswith("cascade")
    }
    assert {key[1:5] for key in keys if key[-1] == "made"} == named
    deep_names = {key[1] for key in keys if key[2] == "fp32"}
    assert deep_names == {f"cascade from DE: {target}" for target in cost_measures.TARGETS}
    assert all(key[-1] == "kept" for key in keys if key[2] == "fp32")
    fewer = cost_times.timed_cascades("s", single, deep, [(members, nearest)], 2, batch(2)[0], 1, False)
    assert {key[1] for item in fewer for key in item.keys} == {
        f"cascade from {first}: 95 % of the gain" for first in ("RTN", "FP32", "DE")
    }
    for item in items:
        assert all(seconds > 0 for seconds in item.seconds())


# What is said.


def test_the_front_leaves_out_what_another_point_equals_or_undercuts_in_both() -> None:
    costs = np.array([3.0, 1.0, 2.0, 2.0, 4.0, math.nan, 3.0])
    values = np.array([0.5, 1.0, 0.7, 0.9, 0.5, 0.1, 0.6])
    assert front(costs, values) == [1, 2, 0]


def test_the_limits_of_a_share_are_where_its_t_statistic_is_the_quantile() -> None:
    numbers = np.random.default_rng(0)
    whole = 1 + 0.3 * numbers.standard_normal(12)
    gained = 0.8 * whole + 0.1 * numbers.standard_normal(12)
    share, low, high = share_of_gain(gained, whole)
    assert share == pytest.approx(gained.mean() / whole.mean())
    for limit in (low, high):
        rest = gained - limit * whole
        # 2.201: the quantile .975 of Student's t with 11 degrees of freedom
        assert abs(rest.mean()) / (rest.std(ddof=1) / np.sqrt(12)) == pytest.approx(2.201, abs=1e-3)
    assert low < share < high


@pytest.mark.parametrize("whole", [[0.1, -0.1, 0.2, -0.15], [0.5]], ids=["no gain", "one unit"])
def test_a_share_of_a_gain_that_may_be_0_has_no_interval(whole: list[float]) -> None:
    _, low, high = share_of_gain(np.array(whole) / 2, np.array(whole))
    assert math.isnan(low) and math.isnan(high)


PICTURE = Picture("own", "larger", (3,), 4, ("B", "L"))


def record_of(
    values: dict[tuple[str, str, str, str, int], Sequence[float]], networks: float = 2.0
) -> pd.DataFrame:
    """A record with these NLLs, one a seed, and calibrated NLLs half as large."""
    rows = []
    for (substrate, method, system, rounding, size), of_seeds in values.items():
        for seed, value in enumerate(of_seeds):
            per_example = networks if method.startswith("cascade") else size
            metrics = {
                "nll": value,
                "calibrated_nll": value / 2,
                "members_per_example": per_example,
                "generator_bits": 8e6,
            }
            for metric, number in metrics.items():
                rows.append(
                    (
                        "tiny",
                        substrate,
                        "SGD",
                        method,
                        system,
                        rounding,
                        size,
                        seed,
                        metric,
                        number,
                        10**6 * size,
                        1,
                    )
                )
    return pd.DataFrame(rows, columns=list(COLUMNS))


RTN_NLL = np.array([1.0, 1.2, 0.9, 1.1, 1.05, 0.95])
NOISE = np.array([0.01, -0.01, 0.02, 0.0, -0.02, 0.01])


def whole_record(gain: float, share: float, fp32: np.ndarray = RTN_NLL) -> pd.DataFrame:
    """RTN, 4 coupled members that gain over it, and cascades that have a share of that."""
    gains = gain * (1 + NOISE)
    return record_of(
        {
            ("own", "FP32", "fp32", "", 1): fp32,
            ("own", "FP32 + temperature", "fp32", "", 1): fp32 - 0.1,
            ("larger", "FP32", "fp32", "", 1): fp32[:3] - 0.2,
            ("own", "RTN", "int3", "nearest", 1): RTN_NLL,
            ("own", "LPE-BSR", "int3", "coupled", 4): RTN_NLL - gains,
            ("own", "LPE-BSR", "int3", "bernoulli", 4): RTN_NLL - gains,
            ("own", "cascade from RTN: 95 % of the gain", "int3", "coupled", 4): RTN_NLL - share * gains,
            ("own", "cascade from RTN: 20 % go on", "int3", "coupled", 4): RTN_NLL - 0.5 * gains,
            ("own", "cascade from FP32: 95 % of the gain", "int3", "coupled", 4): fp32,
        }
    )


def times_of(record: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for key in record[cost_verdicts.KEY].drop_duplicates().itertuples(index=False, name=None):
        for seed in (0, 1):
            rows.append((*key, seed, "kept", 0.5 + seed))
            if key[2] != "fp32":
                rows.append((*key, seed, "made", 2.0 + seed))
    return pd.DataFrame(rows, columns=list(cost_times.COLUMNS))


def line_of(substrate: str, method: str, record: pd.DataFrame, times: pd.DataFrame) -> pd.Series:
    """Return the one line of the levels that is of a method."""
    at = levels(Series(record, PICTURE), times)
    (line,) = (row for _, row in at.iterrows() if (row["substrate"], row["method"]) == (substrate, method))
    return line


def test_a_level_is_fp32s_mean_plus_the_mean_paired_difference() -> None:
    record = whole_record(0.2, 0.9)
    row = line_of("larger", "FP32", record, times_of(record))
    # Measured at three seeds, whose FP32 is worse than the mean of all six.
    assert row["nll"] == pytest.approx(RTN_NLL.mean() - 0.2)
    assert row["nll_low"] == pytest.approx(row["nll"]) and row["nll_high"] == pytest.approx(row["nll"])


def test_the_time_is_with_members_made_where_there_are_members_to_make() -> None:
    record = whole_record(0.2, 0.9)
    times = times_of(record)
    assert tuple(line_of("own", "RTN", record, times)[["ms", "ms_kept"]]) == (2.5, 1.0)
    assert tuple(line_of("own", "FP32", record, times)[["ms", "ms_kept"]]) == (1.0, 1.0)


def test_a_temperature_takes_the_single_models_time() -> None:
    record = whole_record(0.2, 0.9)
    times = times_of(record)
    others = times[times["method"] != "FP32 + temperature"]
    assert line_of("own", "FP32 + temperature", record, others)["ms"] == 1.0


def said_of(record: pd.DataFrame) -> str:
    times = times_of(record)
    series = Series(record, PICTURE)
    at = levels(series, times)
    lines = [*cost_verdicts.gain_lines(series, at), *cost_verdicts.cascade_lines(series, at, times)]
    return "\n".join(lines)


def test_a_gain_that_is_the_same_at_every_seed_is_not_called_one() -> None:
    assert "B FP32 + temperature: NLL .1000: no spread to tell it by; " in said_of(whole_record(0.2, 0.9))


def test_a_sure_gain_is_said_with_the_cascades_share_its_networks_and_its_milliseconds() -> None:
    said = said_of(whole_record(0.2, 0.9))
    assert "over RTN .2003 [.1972, .2034]: a gain" in said
    assert "cascade from RTN to 4 coupled members, INT-3: all 4 members gain .2003" in said
    # A share that is the same at every seed has no interval.
    assert "a gain (n = 6); tuned for 95 %: 90 % of it, 90 % of the calibrated" in said
    assert "2.500 [-3.853, 8.853] ms members made or 1.000" in said
    # Half of the gain with 2 networks and all of it with 5: 95 % in between.
    assert "50 % with 2.00 networks an example; 95 % first with 4.70" in said
    # All take as long here: RTN, the cascade (and with all members, RTN and they).
    assert "with 4.70, 4.75 ms made (all members: 5) or 1.9 ms kept (all members: 2)" in said


def test_a_level_is_crossed_where_it_is_first_reached_and_where_it_is_kept_from() -> None:
    polygon = [(1.0, 0.0), (2.0, 1.0), (3.0, 0.9), (5.0, 1.0)]
    assert cost_verdicts.crossings(polygon, 0.95) == pytest.approx((1.95, 4.0))
    assert cost_verdicts.crossings(polygon[:2], 0.95) == pytest.approx((1.95, 1.95))


def test_a_gain_that_may_be_0_is_said_and_its_share_has_no_interval() -> None:
    said = said_of(whole_record(0.2, 0.9, fp32=RTN_NLL - 0.199 + 20 * NOISE))
    (line,) = [line for line in said.splitlines() if "cascade from FP32" in line]
    assert "no gain told from 0 (n = 6); tuned for 95 %: 0 % of it, 2.00" in line


def test_a_loss_has_no_share() -> None:
    said = said_of(whole_record(0.2, 0.9, fp32=RTN_NLL - 0.3))
    (line,) = [line for line in said.splitlines() if "cascade from FP32" in line]
    assert "a loss (n = 6); nothing to have a share of" in line


def test_a_record_without_a_methods_rows_says_which_and_what_to_do() -> None:
    record = whole_record(0.2, 0.9)
    record = record[record["method"] != "RTN"]
    with pytest.raises(
        lpe.InputError, match="no rows: own, RTN, int3, nearest, 1, nll; run reproduce/cost.py"
    ):
        said_of(record)


ALONE = Picture("own", None, (3,), 4, ("B",), example="token", stem="cost_alone")


def drawn_figure(
    picture: Picture, record: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> tuple[Figure, list[str], str]:
    """The figure, what is said, and the stem of the files."""
    saved: list[tuple[Figure, str]] = []
    monkeypatch.setattr(panels, "save", lambda figure, _, name: saved.append((figure, name)))
    _, said = cost_picture.draw_picture(record, times_of(record), picture, tmp_path)
    ((figure, name),) = saved
    panels.plt.close(figure)
    return figure, said, name


def test_a_picture_without_a_next_larger_model_has_all_but_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    record = whole_record(0.2, 0.9)
    both, both_said, _ = drawn_figure(PICTURE, record, monkeypatch, tmp_path)
    alone, said, stem = drawn_figure(ALONE, record[record["substrate"] == "own"], monkeypatch, tmp_path)
    texts, of_both = ([text.get_text() for text in each.legends[0].get_texts()] for each in (alone, both))
    assert [text for text in of_both if text not in texts] == ["L, FP32"]
    assert [line for line in both_said if line not in said and not line.startswith("own")] == [
        line for line in both_said if "L FP32" in line
    ]
    assert stem == "cost_alone"


def test_the_legend_has_no_cascade_that_the_record_lacks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """DE has none where its networks have seen the validation examples."""
    deep: Any = {("own", "DE", "fp32", "", size): RTN_NLL - 0.1 * size for size in (1, 2)}
    cascades = {
        ("own", f"cascade from DE: {target}", "fp32", "", 2): RTN_NLL - 0.2
        for target in ("20 % go on", "95 % of the gain")
    }
    rest = whole_record(0.2, 0.9)
    whole, less = (pd.concat([rest, record_of(values)]) for values in (deep | cascades, deep))
    of_whole, of_less = (
        [
            text.get_text()
            for text in drawn_figure(PICTURE, of, monkeypatch, tmp_path)[0].legends[0].get_texts()
        ]
        for of in (whole, less)
    )
    assert [text for text in of_whole if text not in of_less] == ["cascade from DE's first"]


def test_members_as_planes_take_a_bit_a_weight_and_what_else_they_take_is_as_before() -> None:
    values: Any = {("own", "FP32", "fp32", "", 1): [0.1, 0.2]}
    values |= {("own", "LPE-BSR", "int3", "coupled", size): [0.1, 0.2] for size in (1, 2, 4)}
    values |= {("own", "cascade from FP32: 20 % go on", "int3", "coupled", 4): [0.1, 0.2]}
    record = record_of(values)
    # 3 bits of each of 1,000 weights, and 700 bits of batch-norm statistics that each member has; once 500.
    low = record["method"] == "LPE-BSR"
    record.loc[low, "memory_bits"] = 500 + 3700 * record["size"]
    drawn_from = low & (record["metric"] == "generator_bits")
    record.loc[drawn_from, "value"] = 8500 + 700 * record["size"]
    at = levels(Series(record, replace(PICTURE, larger=None)), times_of(record))
    planes = {(row.method, row.size): row.planes_bits for row in at.itertuples()}
    assert [planes["LPE-BSR", n] for n in (1, 2, 4)] == [500 + 3000 + 1700 * n for n in (1, 2, 4)]
    assert planes["FP32", 1] == 10**6
    # The same less as of the members alone.
    saved = 500 + 3700 * 4 - (500 + 3000 + 1700 * 4)
    assert planes["cascade from FP32: 20 % go on", 4] == 4 * 10**6 - saved


def test_members_whose_first_is_not_recorded_have_no_place_among_planes() -> None:
    at = levels(Series(whole_record(0.2, 0.9), PICTURE), times_of(whole_record(0.2, 0.9)))
    low = at["method"].eq("LPE-BSR") | at["method"].str.startswith("cascade from RTN")
    assert at[low]["planes_bits"].isna().all()
    assert (at[at["method"] == "RTN"]["planes_bits"] == 10**6).all()


@pytest.mark.parametrize("cost_shown", ["ms", "memory_bits"])
def test_a_cascade_from_which_nothing_goes_on_is_not_drawn_beside_its_first_stage(cost_shown: str) -> None:
    record = whole_record(0.2, 0.9)
    nothing = record["method"].str.startswith("cascade from FP32") & (
        record["metric"] == "members_per_example"
    )
    for networks, shown in ((1.0, False), (1.1, True)):
        changed = record.assign(value=record["value"].mask(nothing, networks))
        at = levels(Series(changed, PICTURE), times_of(record))
        methods = set(cost_picture._drawn(at, PICTURE, cost_shown)["method"])
        assert ("cascade from FP32: 95 % of the gain" in methods) == shown
        assert "cascade from RTN: 95 % of the gain" in methods


def test_nats_are_said_to_be_per_what_an_example_of_the_picture_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    record = whole_record(0.2, 0.9)
    for picture, expected in ((PICTURE, "image"), (ALONE, "token")):
        own = record if picture.larger else record[record["substrate"] == "own"]
        figure, _, _ = drawn_figure(picture, own, monkeypatch, tmp_path)
        labels = [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()]
        assert labels == [f"test NLL (nats per {expected})", f"calibrated NLL (nats per {expected})"]


def test_without_a_next_larger_model_the_others_are_timed_all_the_same() -> None:
    net, inputs = network(0), batch(2)[0]
    alone, both = (
        [
            key
            for item in cost_times.timed_methods(("own", net), larger, None, (3,), 3, inputs, 0)
            for key in item.keys
        ]
        for larger in (None, ("larger", net))
    )
    assert alone == [key for key in both if key[0] == "own"]


# From nothing to the picture.


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost_times, "REPEATS", 1)


ONE_SEED = ("--seeds", "1")


@pytest.mark.parametrize(("count", "expected"), [(None, 10), (1, 1), (7, 7), (20, 20)])
def test_the_picture_has_its_own_number_of_seeds_unless_another_is_asked_for(
    count: int | None, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LPE_STORE", str(tmp_path / "store"))
    threads = torch.get_num_threads()
    try:
        with opened("cost", DIGITS, count, tmp_path, "disabled", quiet=True) as session:
            assert cost.seeds_of(session) == list(range(expected))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.usefixtures("quick")
def test_the_figure_writes_record_times_provenance_and_pictures_and_redraws_them(
    tiny: Scale, figure: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert figure(cost, out) == 0
    names = {path.name for path in out.iterdir()}
    assert names == {f"cost.{kind}" for kind in ("csv", "json", "pdf", "png")} | {
        "cost_times.csv",
        "cost_times.json",
    }
    said = capsys.readouterr().out
    assert "gain over FP32" in said and "cascade from RTN to 3 coupled members, INT-4" in said
    record = pd.read_csv(out / "cost.csv", keep_default_na=False)
    assert tuple(record.columns) == COLUMNS
    # All methods at the picture's seeds: what is compared is paired by seed.
    assert tiny.cost_seeds < tiny.claim_seeds
    assert set(record[record["method"] == "LPE-BSR"]["seed"]) == set(range(tiny.cost_seeds))
    assert set(record[record["method"] == "DE"]["seed"]) == set(range(tiny.cost_seeds))
    times = pd.read_csv(out / "cost_times.csv", keep_default_na=False)
    assert set(times[times["method"].str.startswith("cascade")]["seed"]) == set(range(tiny.cost_seeds))
    drawn = (out / "cost.png").read_bytes()
    (out / "cost.png").unlink()
    assert figure(cost, out, "--plot-only") == 0
    assert (out / "cost.png").read_bytes() == drawn


@pytest.mark.usefixtures("quick")
def test_two_runs_from_nothing_give_the_same_record_byte_for_byte(
    figure: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for run in ("first", "second"):
        monkeypatch.setenv("LPE_STORE", str(tmp_path / run / "store"))
        assert figure(cost, tmp_path / run, *ONE_SEED) == 0
    assert (tmp_path / "first" / "cost.csv").read_bytes() == (tmp_path / "second" / "cost.csv").read_bytes()


@pytest.mark.usefixtures("quick")
def test_a_second_run_measures_and_times_nothing_again_until_it_is_asked_to(
    tiny: Scale, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--scale", "tiny", "--out", str(tmp_path / "out"), "--wandb", "disabled", *ONE_SEED]
    assert cost.main(arguments) == 0
    conditions = tmp_path / "out" / "cost_times.json"
    written = conditions.stat().st_mtime_ns

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something was measured that was there already")

    with monkeypatch.context() as patched:
        patched.setattr("lpe.member_log_probs", refuse)
        patched.setattr(cost_times, "rows_of_times", refuse)
        assert cost.main(arguments) == 0
    assert conditions.stat().st_mtime_ns == written
    assert cost.main([*arguments, "--time"]) == 0
    assert conditions.stat().st_mtime_ns > written


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--assets"], "LPE_ASSETS is not set"),
        (["--assets", "--scale", "digits"], "unrecognized arguments: --scale digits"),
        (["--assets", "--only", "stories"], "LPE_ASSETS is not set"),
        (["--assets", "--only", "vits"], "invalid choice: 'vits' (choose from"),
        (["--assets", "--plot-only"], "cost.csv"),
        (["--assets", "--only", "stories", "--plot-only"], "cost_stories.csv"),
        (["--scale", "huge"], "unknown scale 'huge'"),
    ],
    ids=["assets", "option", "assets of one", "picture", "record", "record of one", "scale"],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("LPE_ASSETS", raising=False)
    try:
        code = cost.main([*arguments, "--out", str(tmp_path / "out")])
    except SystemExit as left:
        code = int(str(left.code))
    assert code == 2
    message = capsys.readouterr().err
    assert said in message and message.count("\n") == 1


def test_no_point_lies_below_a_panel() -> None:
    # Two members may be the best there is.
    rows = pd.DataFrame({"method": ["LPE-BSR", "FP32", "RTN"], "size": [2, 1, 1], "nll": [0.05, 0.06, 0.07]})
    figure, axes = panels.plt.subplots()
    cost_picture._limit(axes, rows, "nll")
    bottom = axes.get_ylim()[0]
    panels.plt.close(figure)
    assert bottom < 0.05
