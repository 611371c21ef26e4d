"""Our numbers beside published ones: from records in folders to the table."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from lpe.records import Records
from reproduce import external
from reproduce.judge.external import Comparison, compare_all
from reproduce.judge.published import PUBLISHED
from reproduce.scales import find
from reproduce.scales.digits.settings import DIGITS
from reproduce.scales.paper.settings import PAPER
from reproduce.study.subjects import Subject

SCALE = "small"
WITHOUT, AUGMENTED, LOSSLESS, PART, ADAMW, OTHER = "one", "two", "three", "four", "five", "six"
"""Substrates whose names say nothing of what they are."""
SUBJECT = Subject(
    network="R20-FRN-SiLU",
    data_set="CIFAR-10",
    data="CIFAR-10 (JPEG q75)",
    augmentation=False,
    optimiser="SGD",
    scored=None,
    weights="",
)
SUBJECTS = {
    WITHOUT: SUBJECT,
    AUGMENTED: replace(SUBJECT, augmentation=True),
    LOSSLESS: replace(SUBJECT, data="CIFAR-10"),
    PART: replace(SUBJECT, scored=2000),
    ADAMW: replace(SUBJECT, optimiser="AdamW"),
    OTHER: None,
}
MAIN = DIGITS.substrates[DIGITS.substrate]
MADE_UP = replace(
    DIGITS,
    main=None,
    sizes=tuple(replace(MAIN, name=name, subject=subject) for name, subject in SUBJECTS.items()),
    large={},
)


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two scales of these substrates."""
    for name in (SCALE, "other"):
        monkeypatch.setitem(find.SCALES, name, replace(MADE_UP, name=name))


def row(seed: int, value: float, **columns: object) -> dict[str, object]:
    told = {"substrate": WITHOUT, "point": "IVON", "method": "FP32", "number_system": "fp32", "size": 1}
    told |= {"scale": SCALE, "metric": "nll", "memory_bits": 320, "backward_passes": 19_840}
    return {**told, "seed": seed, "value": value, **columns}


def record(*values: float, **columns: object) -> list[dict[str, object]]:
    return [row(seed, value, **columns) for seed, value in enumerate(values)]


@pytest.fixture
def figures(tmp_path: Path) -> Path:
    return tmp_path / "figures"


@pytest.fixture(autouse=True)
def vouched(monkeypatch: pytest.MonkeyPatch, vouch: Callable[[Path], None]) -> None:
    """What these tests write by hand is as measured whenever it is read."""
    read = external.main

    def main(arguments: list[str]) -> int:
        for folder in Path(arguments[1]).glob("*/"):
            vouch(folder)
        return read(arguments)

    monkeypatch.setattr(external, "main", main)


def put(figures: Path, rows: list[dict[str, object]], file: str = "table2_record.csv") -> None:
    folder = figures / SCALE
    folder.mkdir(parents=True, exist_ok=True)
    Records(folder / file).add(rows)


def all_of(figures: Path) -> list[Comparison]:
    records = external.records_of(figures)
    return compare_all(PUBLISHED, records, external.subjects_of(figures, records)[0])


def compared(
    figures: Path, method: str, augmentation: bool | None = False, metric: str = "nll"
) -> list[Comparison]:
    return [
        each
        for each in all_of(figures)
        if (each.published.row.method, each.published.metric) == (method, metric)
        and each.published.table.augmentation == augmentation
    ]


def only(figures: Path, method: str, augmentation: bool | None = False, metric: str = "nll") -> Comparison:
    (found,) = compared(figures, method, augmentation, metric)
    return found


def test_ours_is_the_mean_over_seeds_with_students_interval(figures: Path) -> None:
    put(figures, record(0.45, 0.46, 0.47))
    ours = only(figures, "IVON").ours
    assert ours is not None and ours.seeds == 3
    # t(.975, 2) · .01 / √3 = .0248414
    assert (ours.value, ours.low, ours.high) == pytest.approx((0.46, 0.4351586, 0.4848414), abs=1e-7)


def test_equal_values_have_no_interval_that_could_hold_anything_or_not(figures: Path) -> None:
    put(figures, record(0.11, 0.11, metric="err"))
    found = only(figures, "momentum SGD", metric="err")
    assert found.ours is None
    put(figures, record(0.11, 0.11, metric="err", point="SGD"))
    found = only(figures, "momentum SGD", metric="err")
    assert found.ours is not None and "interval" not in found.verdict
    assert pd.isna(found.ours.low) and found.ours.seeds == 2


def test_each_metric_stands_beside_its_own(figures: Path) -> None:
    put(figures, record(0.46) + record(0.13, metric="err"))
    ours = only(figures, "IVON", metric="err").ours
    assert ours is not None and ours.value == 0.13


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.460, "inside the published min–max; "),
        (0.4744, "inside the published min–max; "),  # .474 to the source's three decimals
        (0.500, "outside: .026 above the published min–max; "),
        (0.4, "outside: .045 below the published min–max; "),
    ],
)
def test_the_verdict_is_by_the_published_range_at_its_own_decimals(
    figures: Path, value: float, said: str
) -> None:
    put(figures, record(value))
    assert only(figures, "IVON").verdict.startswith(said)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((0.58, 0.60), "one number is published, which our 95 % interval holds: ours is .0045 above it; "),
        (
            (0.6999, 0.7001),
            "one number is published, which our 95 % interval does not hold: ours is .1145 above it; ",
        ),
        ((0.5,), "one number is published: ours is .0855 below it; "),
        ((0.5855,), "one number is published: ours is the same; "),
    ],
)
def test_beside_one_number_the_verdict_says_how_far_and_whether_our_interval_holds_it(
    figures: Path, values: tuple[float, ...], said: str
) -> None:
    put(figures, record(*values, point="SGD"))
    assert only(figures, "SGD").verdict.startswith(said)


def test_other_data_are_said(figures: Path) -> None:
    put(figures, record(0.46))
    assert "data (CIFAR-10 (JPEG q75), theirs CIFAR-10)" in only(figures, "IVON").verdict


def test_the_same_data_are_not_called_different(figures: Path) -> None:
    put(figures, record(0.46, substrate=LOSSLESS))
    assert "data (" not in only(figures, "IVON").verdict


def test_other_examples_to_score_on_are_said(figures: Path) -> None:
    put(figures, record(0.46))
    said = "scored on (test examples, theirs the last 9,040 training examples)"
    assert said in only(figures, "IVON").verdict


def test_another_network_is_said(figures: Path) -> None:
    put(figures, record(0.3, point="SGD", substrate=AUGMENTED))
    said = "network (R20-FRN-SiLU, theirs WRN28x1-BN-ReLU)"
    assert said in only(figures, "SGD", True).verdict


def test_another_training_budget_is_said(figures: Path) -> None:
    put(figures, record(0.46))
    assert "backward passes (19840, theirs 50000)" in only(figures, "IVON").verdict


def test_the_same_training_budget_is_not_called_different(figures: Path) -> None:
    put(figures, record(0.46, backward_passes=50_000))
    assert "backward passes" not in only(figures, "IVON").verdict


def test_the_substrate_of_the_same_augmentation_is_taken(figures: Path) -> None:
    put(figures, record(0.46) + record(0.3, substrate=AUGMENTED))
    without, augmented = only(figures, "IVON"), only(figures, "IVON", True)
    assert without.ours is not None and augmented.ours is not None
    assert (without.ours.value, augmented.ours.value) == (0.46, 0.3)
    assert "augmentation (" not in without.verdict + augmented.verdict


def test_where_there_is_another_augmentation_alone_it_is_said(figures: Path) -> None:
    put(figures, record(0.3, substrate=AUGMENTED))
    assert "augmentation (crops and flips, theirs none)" in only(figures, "IVON").verdict


def test_where_there_is_nothing_that_differs_the_verdict_says_so(figures: Path) -> None:
    put(figures, record(0.58, point="SGD", substrate=LOSSLESS))
    assert only(figures, "SGD").verdict.endswith("; no known difference")


def test_the_temperatures_number_stands_beside_the_scaled_networks(figures: Path) -> None:
    put(figures, record(0.58, point="SGD") + record(0.49, point="SGD", method="FP32 + temperature"))
    ours = only(figures, "SGD, temperature").ours
    assert ours is not None and ours.value == 0.49


def test_a_rounded_network_is_not_taken_for_the_unrounded_one(figures: Path) -> None:
    put(figures, record(0.46, number_system="int4", method="RTN", rounding="nearest"))
    assert only(figures, "IVON").ours is None


def test_a_deep_ensemble_stands_beside_one_of_its_own_size(figures: Path) -> None:
    rows = [each for size in (1, 2) for each in record(0.5 - size / 20, point="DE", method="DE", size=size)]
    put(figures, rows)
    two, four = only(figures, "DE-2"), only(figures, "DE-4")
    assert two.ours is not None and two.ours.value == 0.4
    assert four.verdict.startswith("not run: no rows: nll of DE, fp32, size 4")


def test_our_largest_chain_stands_for_one_of_another_size_and_says_so(figures: Path) -> None:
    sizes = {6: 0.5, 12: 0.48}
    columns = {"point": "CSGLD", "method": "CSGLD"}
    put(figures, [each for size, nll in sizes.items() for each in record(nll, size=size, **columns)])
    found = only(figures, "cyclical SGLD")
    assert found.ours is not None and found.ours.value == 0.48
    assert "members (12, theirs 100)" in found.verdict


def test_what_no_record_measures_is_not_run(figures: Path) -> None:
    put(figures, record(0.46))
    found = only(figures, "SGD")
    assert (found.ours, found.outcome) == (None, "not run")
    assert found.verdict.startswith("not run: no rows: nll of FP32")


def test_a_network_trained_by_adamw_stands_beside_adamws_number_and_no_other(figures: Path) -> None:
    # Records call every point estimate SGD.
    put(figures, record(0.5, substrate=ADAMW, point="SGD"))
    ours = only(figures, "AdamW").ours
    assert ours is not None and ours.value == 0.5
    assert only(figures, "momentum SGD").verdict == "not run: no record of a network trained by SGD"


def test_a_network_trained_by_sgd_does_not_stand_beside_adamws_number(figures: Path) -> None:
    put(figures, record(0.5, point="SGD"))
    assert only(figures, "AdamW").verdict == "not run: no record of a network trained by AdamW"


def test_all_test_examples_stand_before_a_part_of_them(figures: Path) -> None:
    put(figures, record(0.5, substrate=PART) + record(0.46))
    ours = only(figures, "IVON").ours
    assert ours is not None and ours.value == 0.46


def test_where_there_is_a_part_of_the_test_examples_alone_it_is_said(figures: Path) -> None:
    put(figures, record(0.5, substrate=PART, point="SGD"))
    said = "scored on (2,000 of the test examples, theirs test examples)"
    assert said in only(figures, "SGD").verdict


def test_published_weights_stand_beside_their_own_number_and_the_others_are_said(figures: Path) -> None:
    (figures / "paper").mkdir(parents=True)
    rows = record(0.2, scale="paper", substrate="paper CLIP-g", point="SGD", metric="err")
    Records(figures / "paper" / "fig7.csv").add(rows)
    own, other = (
        only(figures, f"ViT-g-14, laion2b_{tag}", None, "err").verdict for tag in ("s34b_b88k", "s12b_b42k")
    )
    assert "weights (" not in own
    assert "weights (ViT-g-14, laion2b_s34b_b88k, theirs ViT-g-14, laion2b_s12b_b42k)" in other


def test_every_model_of_imagenet_stands_beside_a_published_one() -> None:
    tables = {each.table.network for each in PUBLISHED}
    models = {each.subject.network for each in PAPER.substrates.values() if each.subject is not None}
    assert models == {"ViT-T", "ViT-S", "ViT-B", "ViT-L", "CLIP-L", "CLIP-g"} and models <= tables


def test_a_scale_is_made_again_of_its_records_options(figures: Path) -> None:
    options = {"data": "CIFAR-10 (made up)", "points": {"sgd-0": "0" * 64}, "images": 500}
    options |= {"batch": 256, "given": True}
    (figures / "cifar10").mkdir(parents=True)
    for substrate, value in (("500", 0.5), ("10,000", 0.4)):
        name = f"R20-FRN-SiLU, CIFAR-10 (made up), {substrate} test images, given points"
        rows = record(value, scale="cifar10", substrate=name, point="SGD")
        Records(figures / "cifar10" / "fig2.csv").add(rows)
    held = json.dumps({"config": {"scale": {"options": options}}})
    (figures / "cifar10" / "fig2.json").write_text(held)
    ours = only(figures, "momentum SGD", True).ours
    assert ours is not None and ours.value == 0.4
    assert (ours.subject.data, ours.subject.data_set) == ("CIFAR-10 (made up)", "CIFAR-10")


def test_records_of_substrates_that_their_options_do_not_make_are_one_line(
    figures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(figures, record(0.46, substrate="seven"))
    assert external.main(["--figures", str(figures)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "has records of 'seven' and of no substrate that scale" in message
    assert not (figures / "external.csv").exists()


def test_a_scale_of_ones_own_is_compared_with_nothing_and_named(figures: Path) -> None:
    (figures / "mine").mkdir(parents=True)
    Records(figures / "mine" / "fig2.csv").add(record(0.5, scale="mine"))
    assert set(written(figures)["outcome"]) == {"not run"}
    assert "- Not of this repository, so compared with nothing: mine." in (
        (figures / "external.md").read_text().splitlines()
    )


def test_a_method_that_the_suite_lacks_says_so(figures: Path) -> None:
    put(figures, record(0.46))
    assert only(figures, "cyclical SGHMC").verdict == "not run: the suite has no such method"


def test_records_of_other_data_leave_every_row_not_run(figures: Path) -> None:
    put(figures, record(0.46, substrate=OTHER))
    found = all_of(figures)
    assert len(found) == len(PUBLISHED) and {each.outcome for each in found} == {"not run"}
    assert only(figures, "IVON").verdict == "not run: no record of R20-FRN-SiLU on CIFAR-10"


def test_every_scale_that_has_the_rows_is_a_row(figures: Path) -> None:
    put(figures, record(0.46))
    (figures / "other").mkdir()
    Records(figures / "other" / "fig2.csv").add(record(0.5, scale="other"))
    scales = [each.ours.scale for each in compared(figures, "IVON") if each.ours is not None]
    assert scales == ["other", SCALE]


def written(figures: Path) -> pd.DataFrame:
    assert external.main(["--figures", str(figures)]) == 0
    return pd.read_csv(figures / "external.csv")


def test_the_table_is_read_again_with_all_that_was_compared(figures: Path) -> None:
    put(figures, record(0.45, 0.46, 0.47))
    table = written(figures)
    assert tuple(table.columns) == external.HEADER and len(table) == len(PUBLISHED)
    mine = table[table["our scale"].notna() & (table["metric"] == "nll")].iloc[0]
    told = (mine["method"], mine["ours"], mine["our n"], mine["published min"], mine["published max"])
    assert told == ("IVON", 0.46, 3, 0.445, 0.474)
    assert (mine["our data"], mine["published data"]) == ("CIFAR-10 (JPEG q75)", "CIFAR-10")
    assert (mine["repository"], mine["file"]) == ("cs-giung/bdlx", "examples/cifar/README.md")


def test_the_file_that_a_number_is_read_from_is_named(figures: Path) -> None:
    put(figures, record(0.46))
    put(figures, record(0.58, point="SGD"), file="table5_record.csv")
    table = written(figures)
    mine = table[(table["metric"] == "nll") & table["ours"].notna()]
    files = {(method, file) for method, file in zip(mine["method"], mine["our record"], strict=True)}
    assert ("IVON", f"{SCALE}/table2_record.csv") in files and ("SGD", f"{SCALE}/table5_record.csv") in files


def test_one_seed_has_no_interval(figures: Path) -> None:
    put(figures, record(0.46))
    table = written(figures)
    mine = table[table["ours"].notna()]
    assert len(mine) and mine["ours 95 % low"].isna().all() and mine["ours 95 % high"].isna().all()


def test_the_page_shows_ours_beside_theirs(figures: Path) -> None:
    put(figures, record(0.45, 0.46, 0.47))
    written(figures)
    lines = (figures / "external.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    (mine,) = [line for line in cells if line[2] == "IVON" and line[7].startswith(".462")]
    assert mine[5:9] == [".4600 [.4352, .4848]", "3", ".462 [.445–.474]", "8"]


def test_the_page_has_what_is_run_before_what_is_not(figures: Path) -> None:
    put(figures, record(0.46))
    written(figures)
    rows = [line for line in (figures / "external.md").read_text().splitlines() if line.startswith("|")][2:]
    run = ["not run: " not in line for line in rows]
    assert any(run) and run == sorted(run, reverse=True)


def test_a_second_run_writes_the_same_bytes(figures: Path) -> None:
    put(figures, record(0.45, 0.46, 0.47))
    names = ["external.csv", "external.md"]
    written(figures)
    first = [(figures / name).read_bytes() for name in names]
    written(figures)
    assert [(figures / name).read_bytes() for name in names] == first


def test_without_any_record_every_row_is_not_run(figures: Path) -> None:
    figures.mkdir()
    assert set(written(figures)["outcome"]) == {"not run"}


def test_every_row_of_the_csv_has_as_many_fields_as_the_header(figures: Path) -> None:
    put(figures, record(0.46))
    written(figures)
    with (figures / "external.csv").open(newline="") as file:
        assert {len(fields) for fields in csv.reader(file)} == {len(external.HEADER)}


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert external.main(["--figures", str(tmp_path / "nothing")]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and message.startswith("error: there is no folder ")


def test_rows_in_another_scales_folder_are_one_line(
    figures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(figures, record(0.46, scale="other"))
    assert external.main(["--figures", str(figures)]) == 2
    assert "has rows of scale 'other'; 'small' is expected" in capsys.readouterr().err
    assert not (figures / "external.csv").exists()
