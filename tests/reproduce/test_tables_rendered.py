"""Tables 1, 2, 4, 5, 6 and 7 from synthetic records whose numbers are known."""

from __future__ import annotations

import csv
import functools
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import lpe
from lpe import tracking
from lpe.errors import InputError
from lpe.records import COLUMNS, KEY, Records
from lpe.store import Store
from reproduce import table1, table2, table4, table5, table6, table7
from reproduce.draw import metric_tables, rounding_tables
from reproduce.draw.summaries import FP32, SCALED, Summary, What, listed, megabits, system_bits, system_title
from reproduce.draw.tables import mean_and_interval, plain_number
from reproduce.judge.intervals import student_interval
from reproduce.scales.digits.settings import DIGITS
from reproduce.study.records import record_name
from reproduce.study.scale import Scale
from reproduce.study.session import Session

SEEDS = 4
MEMBERS = 4
"""Of DE, SSE and BE."""
WEIGHTS = {"T": 12_000, "S": 30_000, "B": 69_000, "L": 206_000}
FULL = ("nll", "err", "ece", "average_loss", "ambiguity", "ensemble_loss", "brier", "calibrated_nll")
CLIP, CLIP_WEIGHTS = "digits CLIP-L", 240_000
FIRST, FURTHER = 2770, 1720
ALL = (table1, table2, table4, table5, table6, table7)
EVERY_TABLE = pytest.mark.parametrize("module", ALL, ids=lambda module: module.__name__.rpartition(".")[2])


class Rows:
    """Rows of a record; the values of a method differ from metric to metric and from seed to seed."""

    def __init__(self) -> None:
        self.rows: list[tuple[object, ...]] = []
        self.noise = np.random.default_rng(0)

    def add(
        self,
        point: str,
        method: str,
        level: float,
        weights: int,
        system: str = "fp32",
        size: int = 1,
        substrate: str = DIGITS.substrate,
        seeds: int = SEEDS,
        cost: int = FIRST,
        metrics: tuple[str, ...] = FULL,
    ) -> None:
        """A method's rows: its NLL is ``level``, and .01 more a training seed, but for noise of 1e-5."""
        rounding = "nearest" if "RTN" in method else "bernoulli" * (method == "LPE-BSR")
        bits = 32 if system == "fp32" else system_bits(system)
        stored = bits * weights * size + (method == SCALED) * 32
        for seed in range(seeds):
            key = ("digits", substrate, point, method, system, rounding, size, seed)
            for metric in metrics:
                share = 1.0 if metric.endswith("nll") else 0.3
                value = share * (level + 0.01 * seed) + 1e-5 * self.noise.normal()
                self.rows.append((*key, metric, value, stored, cost))
            if method != SCALED:
                drawn_from = weights * (8 if bits < 32 else 32)
                self.rows.append((*key, "generator_bits", float(drawn_from), stored, cost))

    def single(self, point: str, weights: int, substrate: str = DIGITS.substrate) -> None:
        """The FP32 model, and it with temperature scaling."""
        self.add(point, FP32, 0.06, weights, substrate=substrate)
        few = ("nll", "err", "ece", "brier")
        self.add(point, SCALED, 0.062, weights, substrate=substrate, metrics=few)

    def table(self) -> pd.DataFrame:
        """As read from a record."""
        return pd.DataFrame(self.rows, columns=list(COLUMNS))


def rounded_pairs(rows: Rows, weights: int, substrate: str, systems: list[str]) -> None:
    """RTN and LPE-BSR, the better one LPE-BSR."""
    for system in systems:
        loss = 0.1 / 2 ** system_bits(system)
        rows.add("SGD", "RTN", 0.06 + loss, weights, system, 1, substrate)
        rows.add("SGD", "LPE-BSR", 0.059 + loss / 4, weights, system, DIGITS.settings.claim_size, substrate)


@functools.cache
def record(name: str) -> pd.DataFrame:
    """A table's record."""
    rows = Rows()
    if name in ("table1", "table4"):
        for letter, weights in WEIGHTS.items():
            rows.single("SGD", weights, f"digits ViT-{letter}")
            shown = rounding_tables.BITS if name == "table1" else table4.bits(DIGITS)
            rounded_pairs(rows, weights, f"digits ViT-{letter}", [f"int{bits}" for bits in shown])
    elif name == "table7":
        rows.single("SGD", 69_000, "digits ViT, scale axes")
        systems = ["nf4", "fp8_e4m3", "int8", "int5 per tensor", "int5", "int4 per tensor", "int4", "int3"]
        rounded_pairs(rows, 69_000, "digits ViT, scale axes", systems)
    elif name == "table6":
        rows.single("SGD", CLIP_WEIGHTS, CLIP)
        for size in (DIGITS.settings.claim_size, DIGITS.settings.size):
            for place, method in enumerate(("Gaussian", "MC-dropout")):
                rows.add("SGD", method, 0.055 + 0.001 * place, CLIP_WEIGHTS, "fp32", size, CLIP)
            for bits in DIGITS.settings.bits:
                level = 0.05 + 0.01 / bits + 0.01 / size
                rows.add("SGD", "LPE-BSR", level, CLIP_WEIGHTS, f"int{bits}", size, CLIP)
    else:
        for point in ("SGD", "SWAG", "IVON"):
            rows.single(point, 69_000)
            for size in DIGITS.settings.table_sizes:
                for bits in DIGITS.settings.bits:
                    rows.add(point, "LPE-BSR", 0.058 + 0.01 / bits / size, 69_000, f"int{bits}", size)
                if point != "SGD":
                    rows.add(point, "BMA", 0.059 + 0.01 / size, 69_000, "fp32", size)
    if name == "table5":
        for method in ("Gaussian", "MC-dropout"):
            rows.add("SGD", method, 0.0595, 69_000, "fp32", DIGITS.settings.claim_size)
        for bits in DIGITS.settings.bits:
            rows.add("SGD", "Gaussian, matched", 0.0585, 69_000, f"int{bits}", DIGITS.settings.claim_size)
        for family in table5.FAMILIES:
            for size in range(1, MEMBERS + 1):
                cost = FIRST + FURTHER * (size - 1)
                # DE starts as the FP32 model, at every training seed, and has two training seeds fewer.
                level = 0.06 - 0.004 * (size - 1)
                rows.add(family, family, level, 69_000, "fp32", size, seeds=SEEDS - 2, cost=cost)
                for system in ("int8", "int4"):
                    few = f"{family} by RTN"
                    rows.add(family, few, level + 0.001, 69_000, system, size, seeds=SEEDS - 2, cost=cost)
        table = rows.table()
        keys = ["seed", "metric"]
        single = table[(table["method"] == FP32) & (table["point"] == "SGD")].set_index(keys)["value"]
        first = (table["method"] == "DE") & (table["size"] == 1)
        places = pd.MultiIndex.from_frame(table.loc[first, keys])
        table.loc[first, "value"] = single.loc[places].to_numpy()
        return table
    return rows.table()


Table = tuple[list[dict[str, str]], list[str], Path]


def rendered(module: object, table: pd.DataFrame, folder: Path, scale: Scale = DIGITS) -> Table:
    """The rows of a table's CSV by column name, the lines that are printed, and the folder."""
    name = module.__name__.rpartition(".")[2]  # type: ignore[attr-defined]
    table.to_csv(folder / record_name(name), index=False)
    paths, lines = module.draw(folder, scale)  # type: ignore[attr-defined]
    assert [path.name for path in paths] == [f"{name}.{kind}" for kind in ("csv", "md", "tex")]
    with (folder / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file)), lines, folder


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Callable[[object], Table]:
    """module → its table of the whole record, rendered once."""

    def once(module: object) -> Table:
        name = module.__name__.rpartition(".")[2]  # type: ignore[attr-defined]
        return rendered(module, record(name), tmp_path_factory.mktemp(name))

    return functools.cache(once)


def values(name: str, metric: str = "nll", **equal: object) -> pd.Series:
    """A record's values with these keys, by training seed."""
    here = record(name)
    for column, value in {**equal, "metric": metric}.items():
        here = here[here[column] == value]
    return here.set_index("seed")["value"]


def with_interval(numbers: pd.Series) -> str:
    """Mean and interval to four decimals."""
    low, high = student_interval(numbers.to_numpy())
    return f"{plain_number(float(numbers.mean()), 4)} [{plain_number(low, 4)}, {plain_number(high, 4)}]"


def only(rows: list[dict[str, str]], **equal: str) -> dict[str, str]:
    """The one row with these cells; names with underscores for spaces."""
    wanted = {column.replace("_", " "): cell for column, cell in equal.items()}
    (found,) = [row for row in rows if all(row[column] == cell for column, cell in wanted.items())]
    return found


@pytest.mark.parametrize("letter", WEIGHTS)
def test_table_1_marks_the_fp32_model_with_a_star_and_its_own_nll(
    letter: str, table: Callable[[object], Table]
) -> None:
    row = only(table(table1)[0], network=f"digits ViT-{letter}", method="☆ single")
    expected = values("table1", substrate=f"digits ViT-{letter}", method=FP32)
    assert row["NLL (nats)"] == with_interval(expected)


def test_table_1_has_the_networks_by_size_with_their_parameters(table: Callable[[object], Table]) -> None:
    networks = dict.fromkeys((row["network"], row["parameters"]) for row in table(table1)[0])
    assert list(networks) == [(f"digits ViT-{letter}", str(WEIGHTS[letter])) for letter in WEIGHTS]


def test_table_1_says_the_paired_difference_to_its_own_network(table: Callable[[object], Table]) -> None:
    row = only(table(table1)[0], network="digits ViT-S", method="LPE-BSR", number_system="INT-4, per channel")
    here = {"substrate": "digits ViT-S"}
    difference = values("table1", method="LPE-BSR", number_system="int4", **here) - values(
        "table1", method=FP32, **here
    )
    assert row["NLL − FP32's"] == with_interval(difference)


def test_table_1_sets_the_lower_nll_of_each_pair_bold(table: Callable[[object], Table]) -> None:
    _, _, folder = table(table1)
    marked = [line for line in (folder / "table1.md").read_text().splitlines() if "**" in line]
    assert len(marked) == len(WEIGHTS) * len(rounding_tables.BITS)
    assert all("LPE-BSR" in line for line in marked)


def test_tables_1_and_4_share_out_the_bit_widths(table: Callable[[object], Table]) -> None:
    shown = [
        {row["number system"].partition(",")[0] for row in table(module)[0]} - {"FP32"}
        for module in (table1, table4)
    ]
    assert shown == [{"INT-6", "INT-4"}, {"INT-8", "INT-7", "INT-5", "INT-3"}]


def test_table_1_judges_every_c1_and_no_c10(table: Callable[[object], Table]) -> None:
    names = [line.partition(":")[0] for line in table(table1)[1]]
    networks = [f"digits ViT-{letter}" for letter in WEIGHTS]
    assert names == [*(f"C1{half} ({network})" for half in "ab" for network in networks), "C1c"]
    assert not [line for line in table(table1)[1] if "not run" in line]


def test_table_2_has_every_size_of_every_method_and_bma_only_of_posteriors(
    table: Callable[[object], Table],
) -> None:
    found = [(row["point"], row["method"], int(row["members"])) for row in table(table2)[0]]
    expected = []
    for point in ("SGD", "SWAG", "IVON"):
        several = [
            *(["BMA, FP32"] if point != "SGD" else []),
            *(f"LPE-BSR, INT-{b}" for b in DIGITS.settings.bits),
        ]
        expected += [(point, "☆ single FP32", 1), (point, SCALED, 1)]
        expected += [(point, method, size) for method in several for size in DIGITS.settings.table_sizes]
    assert found == expected


@pytest.mark.parametrize(("column", "metric"), metric_tables.MEASURED.items())
def test_table_2_shows_each_metric_under_its_name(
    column: str, metric: str, table: Callable[[object], Table]
) -> None:
    row = only(table(table2)[0], point="IVON", method="BMA, FP32", members="10")
    expected = values("table2", metric, point="IVON", method="BMA", size=10)
    assert row[column] == plain_number(float(expected.mean()), 5 if column == "AMB" else 4)


def test_table_2_leaves_the_decomposition_of_the_scaled_model_empty(
    table: Callable[[object], Table],
) -> None:
    row = only(table(table2)[0], point="SWAG", method=SCALED)
    assert [row[column] for column in ("average loss", "AMB", "ensemble loss")] == ["", "", ""]


def test_table_2_judges_claims_2_and_5(table: Callable[[object], Table]) -> None:
    names = [line.partition(":")[0] for line in table(table2)[1]]
    assert names == ["C2 (SWAG)", "C2 (IVON)", *(f"C5 (INT-{bits})" for bits in DIGITS.settings.bits)]


@pytest.mark.parametrize("size", range(1, MEMBERS + 1))
def test_the_equivalent_of_a_deep_ensemble_is_its_own_size(
    size: int, table: Callable[[object], Table]
) -> None:
    assert only(table(table5)[0], method="DE", members=str(size))["DEE"] == f"{size}.0"


def test_the_equivalent_of_map_is_one_although_it_has_more_training_seeds_than_de(
    table: Callable[[object], Table],
) -> None:
    # Over its own four seeds MAP's calibrated NLL is .01 higher than over DE's two, which would be "<1".
    row = only(table(table5)[0], method="☆ MAP")
    assert row["DEE"] == "1.0"


def test_table_5_is_over_the_training_seeds_that_every_row_has(table: Callable[[object], Table]) -> None:
    _, _, folder = table(table5)
    record = pd.read_csv(folder / "table5_record.csv", keep_default_na=False)
    few = set(record[record["method"] == "DE"]["seed"])
    single = record[(record["method"] == "FP32") & (record["metric"] == "nll") & (record["point"] == "SGD")]
    assert len(few) < single["seed"].nunique()
    expected = mean_and_interval(single[single["seed"].isin(few)]["value"].to_numpy(), 4)
    assert only(table(table5)[0], method="☆ MAP")["NLL (nats)"] == expected


def test_table_5_shows_lpe_at_every_table_size_with_both_memories(table: Callable[[object], Table]) -> None:
    rows = [row for row in table(table5)[0] if row["method"] == f"LPE-BSR, INT-{DIGITS.settings.best_bits}"]
    found = [(row["members"], row["stored (Mbit)"], row["to draw from (Mbit)"]) for row in rows]
    expected = [
        (str(size), megabits(DIGITS.settings.best_bits * 69_000 * size), megabits(8 * 69_000))
        for size in DIGITS.settings.table_sizes
    ]
    assert found == expected


def test_table_5_shows_the_memory_of_planes_of_lpe_alone(table: Callable[[object], Table]) -> None:
    best = DIGITS.settings.best_bits
    for row in table(table5)[0]:
        if row["method"] == f"LPE-BSR, INT-{best}":
            assert row["as planes (Mbit)"] == megabits((best + int(row["members"])) * 69_000)
        elif not row["method"].startswith("LPE-BSR"):
            assert row["as planes (Mbit)"] == ""


def test_table_5_says_what_each_size_of_de_costs_to_train(table: Callable[[object], Table]) -> None:
    costs = [row["backward passes"] for row in table(table5)[0] if row["method"] == "DE"]
    assert costs == [str(FIRST + FURTHER * n) for n in range(MEMBERS)]


def test_table_5_shows_batch_ensemble_whole(table: Callable[[object], Table]) -> None:
    assert [row["members"] for row in table(table5)[0] if row["method"] == "BE"] == [str(MEMBERS)]


def test_table_5_judges_claims_9_to_12(table: Callable[[object], Table]) -> None:
    lines = table(table5)[1]
    assert list(dict.fromkeys(re.split("[:, ]", line)[0] for line in lines)) == [
        "C9",
        "C10",
        "C11",
        "C12",
    ]
    assert not [line for line in lines if "not run" in line]


def test_table_5_judges_no_claim_on_the_clip(table: Callable[[object], Table]) -> None:
    assert not [line for line in table(table5)[1] if CLIP in line]


def test_table_6_shows_the_single_models_and_then_each_method_at_both_sizes(
    table: Callable[[object], Table],
) -> None:
    found = [(row["method"], row["members"]) for row in table(table6)[0]]
    several = [
        "Gaussian, tuned",
        "MC-dropout, tuned",
        *(f"LPE-BSR, INT-{bits}" for bits in DIGITS.settings.bits),
    ]
    sizes = (DIGITS.settings.claim_size, DIGITS.settings.size)
    expected = [(method, str(size)) for size in sizes for method in several]
    assert found == [("☆ single", "1"), ("single + temperature", "1"), *expected]


@pytest.mark.parametrize(
    ("title", "method", "system"),
    [
        ("Gaussian, tuned", "Gaussian", "fp32"),
        ("MC-dropout, tuned", "MC-dropout", "fp32"),
        ("LPE-BSR, INT-4", "LPE-BSR", "int4"),
    ],
)
def test_table_6_shows_each_method_s_own_numbers(
    title: str, method: str, system: str, table: Callable[[object], Table]
) -> None:
    row = only(table(table6)[0], method=title, members="10")

    def own(metric: str = "nll") -> pd.Series:
        return values("table6", metric, method=method, number_system=system, size=10)

    assert row["NLL (nats)"] == with_interval(own())
    assert row["NLL − FP32's"] == with_interval(own() - values("table6", method=FP32))
    for column, metric in (("ERR", "err"), ("ECE", "ece")):
        assert row[column] == plain_number(float(own(metric).mean()), 4)


def test_table_6_has_both_memories(table: Callable[[object], Table]) -> None:
    row = only(table(table6)[0], method="LPE-BSR, INT-5", members="20")
    found = (row["stored (Mbit)"], row["to draw from (Mbit)"])
    assert found == (megabits(5 * CLIP_WEIGHTS * 20), megabits(8 * CLIP_WEIGHTS))


def test_table_6_sets_the_lowest_nll_of_each_size_bold(table: Callable[[object], Table]) -> None:
    _, _, folder = table(table6)
    marked = [line for line in (folder / "table6.md").read_text().splitlines() if "**" in line]
    # 10 members: .05 + .01/5 + .01/10 = .053, and .055 of Gaussian; with 20 it is .0525.
    assert [line.split("|")[1].strip() for line in marked] == ["LPE-BSR, INT-5"] * 2


def test_table_6_judges_c10_on_the_clip(table: Callable[[object], Table]) -> None:
    names = [line.partition(":")[0] for line in table(table6)[1]]
    rivals = ("Gaussian", "MC-dropout")
    assert names == [
        f"C10 ({CLIP}, {rival}, INT-{bits})" for rival in rivals for bits in DIGITS.settings.bits
    ]
    assert not [line for line in table(table6)[1] if "not run" in line]


def test_table_7_stands_systems_of_equal_bits_together_the_integers_first(
    table: Callable[[object], Table],
) -> None:
    shown = [row["number system"] for row in table(table7)[0] if row["method"] == "RTN"]
    expected = ["int8", "fp8_e4m3", "int5", "int5 per tensor", "int4", "int4 per tensor", "nf4", "int3"]
    assert shown == [system_title(name) for name in expected]


def test_table_7_shows_another_number_system_that_is_in_the_record(tmp_path: Path) -> None:
    rows = Rows()
    rounded_pairs(rows, 69_000, "digits ViT, scale axes", ["fp4_e2m1"])
    shown, _, _ = rendered(table7, pd.concat([record("table7"), rows.table()]), tmp_path)
    named = [row["method"] for row in shown if row["number system"] == "FP4 E2M1, per channel"]
    assert named == ["RTN", "LPE-BSR"]


@pytest.mark.parametrize(
    ("system", "bits", "title"),
    [
        (lpe.Int(5), 5, "INT-5, per channel"),
        (lpe.Int(3, lpe.PerBlock(16)), 3, "INT-3, per block of 16 inputs"),
        (lpe.Float(4, 3), 8, "FP8 E4M3, per channel"),
        (lpe.Float(2, 1, lpe.PerTensor()), 4, "FP4 E2M1, per tensor"),
        (lpe.NF4(), 4, "NF4, per channel"),
        (lpe.NF4(lpe.PerBlock(64)), 4, "NF4, per block of 64 inputs"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_number_systems_name_says_its_bits_and_title(
    system: lpe.Int | lpe.Float | lpe.NF4, bits: int, title: str
) -> None:
    assert (system_bits(system.name), system_title(system.name)) == (bits, title)


@pytest.mark.parametrize("levels", [2, 3, 16, 17, 256])
def test_a_codebooks_name_says_its_bits(levels: int) -> None:
    system = lpe.Codebook(range(levels))
    assert system_bits(system.name) == system.bits


def test_a_codebooks_title_tells_it_from_another_of_as_many_levels() -> None:
    first, second = (system_title(lpe.Codebook(levels).name) for levels in ([-1, 1], [0, 1]))
    assert first != second and first.startswith("codebook ") and first.endswith(" of 2, per channel")


@EVERY_TABLE
def test_the_caption_says_the_number_of_training_seeds(
    module: object, table: Callable[[object], Table]
) -> None:
    _, _, folder = table(module)
    name = module.__name__.rpartition(".")[2]  # type: ignore[attr-defined]
    said = "n = 2 training seeds" if module is table5 else "n = 4 training seeds"
    assert said in (folder / f"{name}.md").read_text().splitlines()[0]


@EVERY_TABLE
def test_the_latex_has_balanced_braces_and_as_many_cells_in_every_row(
    module: object, table: Callable[[object], Table]
) -> None:
    _, _, folder = table(module)
    name = module.__name__.rpartition(".")[2]  # type: ignore[attr-defined]
    text = (folder / f"{name}.tex").read_text(encoding="utf-8")
    bare = re.sub(r"\\[{}]", "", text)
    assert bare.count("{") == bare.count("}")
    header = module.HEADER if hasattr(module, "HEADER") else rounding_tables.HEADER
    cells = {len(re.split(r"(?<!\\)&", line)) for line in text.splitlines() if " & " in line}
    assert cells == {len(header)}


@EVERY_TABLE
def test_the_latex_has_no_character_that_its_fonts_lack(
    module: object, table: Callable[[object], Table]
) -> None:
    _, _, folder = table(module)
    name = module.__name__.rpartition(".")[2]  # type: ignore[attr-defined]
    text = (folder / f"{name}.tex").read_text(encoding="utf-8")
    assert sorted({character for character in text if ord(character) > 126}) == []


@pytest.mark.parametrize(
    ("module", "method"),
    [
        (table1, "RTN"),
        (table2, "BMA"),
        (table4, "LPE-BSR"),
        (table5, "MC-dropout"),
        (table6, "Gaussian"),
        (table7, SCALED),
    ],
)
def test_missing_rows_are_one_line_that_says_what_to_run(module: object, method: str, tmp_path: Path) -> None:
    name = module.__name__.rpartition(".")[2]  # type: ignore[attr-defined]
    whole = record(name)
    with pytest.raises(InputError) as raised:
        rendered(module, whole[whole["method"] != method], tmp_path)
    said = str(raised.value)
    assert "\n" not in said
    assert f"{name}_record.csv has no rows: nll of {method}" in said
    assert f"run python reproduce/{name}.py" in said


def test_one_training_seed_is_shown_without_intervals(tmp_path: Path) -> None:
    whole = record("table1")
    rows, _, _ = rendered(table1, whole[whole["seed"] == 0], tmp_path)
    assert not [row for row in rows if "[" in row["NLL (nats)"] + row["NLL − FP32's"]]


def test_methods_without_a_common_training_seed_are_not_compared(tmp_path: Path) -> None:
    whole = record("table1")
    late = whole.assign(seed=whole["seed"].where(whole["method"] != "RTN", whole["seed"] + 100))
    with pytest.raises(InputError, match="share no training seed; run with the same --seeds"):
        rendered(table1, late, tmp_path)


def test_the_tables_follow_the_scale_that_they_are_given(tmp_path: Path) -> None:
    scale = replace(DIGITS, settings=replace(DIGITS.settings, table_sizes=(5,)))
    rows, _, _ = rendered(table2, record("table2"), tmp_path, scale)
    assert {row["members"] for row in rows} == {"1", "5"}


@pytest.mark.parametrize(("bits", "text"), [(426_752, ".427"), (2_210_112, "2.21"), (48_600_000, "48.6")])
def test_memory_is_said_to_three_digits(bits: float, text: str) -> None:
    assert megabits(bits) == text


def test_a_summary_looks_up_exactly_what_is_asked_for() -> None:
    summary = Summary("table2", record("table2"))
    what = What(DIGITS.substrate, "SWAG", "LPE-BSR", "int4", 5)
    expected = values("table2", "ece", point="SWAG", method="LPE-BSR", number_system="int4", size=5)
    pd.testing.assert_series_equal(summary.values(what, "ece"), expected)


def test_a_list_is_read_as_a_sentence_reads_it() -> None:
    assert [listed(texts) for texts in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    """A session of two training seeds and three for training-free claims, in which nothing is measured."""
    monkeypatch.setattr(rounding_tables, "measure_all", lambda *_: None)
    return Session(
        store=Store(tmp_path / "store"),
        tracker=tracking.Tracker(None),
        threads=1,
        device="cpu",
        quiet=True,
        scale=DIGITS,
        seeds=[0, 1],
        claim_seeds=[0, 1, 2],
        out=tmp_path / "out",
        working=tmp_path / "working",
    )


@pytest.mark.parametrize("module", [table1, table4])
def test_the_record_of_the_networks_keeps_the_bit_widths_that_its_table_shows(
    module: object, session: Session
) -> None:
    whole = pd.concat([record("table1"), record("table4")]).drop_duplicates(list(KEY))
    for unit in table1.wanted(session):
        here = whole[whole["substrate"] == unit.substrate]
        session.records[unit] = session.working / f"{unit.file}.csv"
        Records(session.records[unit]).add(here[here["seed"] == unit.seed].to_dict("records"))
    module.compute(session)  # type: ignore[attr-defined]
    name = module.__name__.rpartition(".")[2]  # type: ignore[attr-defined]
    kept = Records(session.out / record_name(name)).select()
    bits = rounding_tables.BITS if module is table1 else table4.bits(DIGITS)
    assert set(kept["number_system"]) == {"fp32", *(f"int{width}" for width in bits)}
    assert set(kept["seed"]) == set(session.claim_seeds)


@pytest.mark.parametrize(
    ("module", "seeds"),
    [(table1, {0, 1, 2}), (table2, {0, 1}), (table4, {0, 1, 2}), (table7, {0, 1, 2})],
)
def test_only_what_needs_no_training_is_measured_at_the_seeds_of_its_claims(
    module: object, seeds: set[int], session: Session
) -> None:
    assert {unit.seed for unit in module.wanted(session)} == seeds  # type: ignore[attr-defined]


def test_table_5_measures_the_point_at_the_seeds_of_claims_and_all_else_at_the_others(
    session: Session,
) -> None:
    found = {(unit.what, unit.seed) for unit in table5.wanted(session)}
    families = {(family, seed) for family in (*table5.FAMILIES, "spread") for seed in (0, 1)}
    assert found == families | {("SGD", seed) for seed in (0, 1, 2)}
