"""The scales of CIFAR-10 that options make."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from lpe.errors import InputError
from lpe.substrates.cifar import CifarImages
from reproduce import fig2, fig4, fig5, fig6, fig7, fig9, table5
from reproduce.command import run_figure, seedless
from reproduce.judge.claims import Settings, all_claims
from reproduce.scales import find
from reproduce.scales.cifar10.points import GivenNetwork
from reproduce.scales.cifar10.settings import cifar10
from reproduce.scales.cifar10.small import cifar10_small
from reproduce.scales.find import Options
from reproduce.study.session import Session
from reproduce.study.units import LARGE, units

NAME = "CIFAR-10 (made up)"


def session_of(scale: object) -> Session:
    """A session over five training seeds in which nothing runs."""
    return replace(seedless(scale), seeds=[0, 1, 2, 3, 4], claim_seeds=[0, 1, 2, 3, 4])  # type: ignore[arg-type]


def test_the_scale_is_made_again_of_what_a_record_keeps(there: CifarImages, folder: Path) -> None:
    made = cifar10({"images": 500})
    assert cifar10(json.loads(json.dumps(made.options))) == made


def test_a_records_scale_needs_neither_points_nor_images(
    there: CifarImages, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = cifar10({"images": 500})
    record = tmp_path / "fig2.json"
    record.write_text(json.dumps({"config": {"scale": {"options": made.options}}}))
    monkeypatch.delenv("LPE_POINTS")
    monkeypatch.setattr("reproduce.scales.cifar10.images.found", lambda: None)
    assert find.scale("cifar10", recorded=record) == made


def test_records_of_several_options_are_refused(tmp_path: Path) -> None:
    for name, images in (("fig2", 500), ("fig3", 1000)):
        options = {"data": NAME, "points": {}, "images": images, "batch": 256}
        (tmp_path / f"{name}.json").write_text(json.dumps({"config": {"scale": {"options": options}}}))
    with pytest.raises(InputError, match=r"records of several options: fig2\.json with .*; fig3\.json with"):
        find.scale("cifar10", recorded=tmp_path)


def test_units_are_of_the_seeds_that_there_are_points_of(there: CifarImages, folder: Path) -> None:
    scale = cifar10({})
    found = units([scale.main], ["SGD", "SWAG", "DE"], range(5))
    assert [(unit.what, unit.seed) for unit in found] == [
        *(("SGD", seed) for seed in range(4)),
        ("SWAG", 0),
        ("DE", 0),
    ]


def test_points_alone_are_measured_on_all_test_images(there: CifarImages, folder: Path) -> None:
    scale = cifar10({})
    assert scale.whole is not None and scale.main is not None
    assert {unit.substrate for unit in fig2.wanted(session_of(scale))} == {scale.whole.name}
    assert {unit.substrate for unit in fig5.wanted(session_of(scale))} == {scale.main.name}
    assert (scale.whole.source.test, scale.main.source.test) == (10_000, 2000)


@pytest.mark.parametrize(
    ("kind", "augmentation", "optimiser"),
    [("sgdnoaug", False, "SGD"), ("adamw", True, "AdamW"), ("adamwnoaug", False, "AdamW")],
)
def test_every_kind_of_network_has_its_row_in_tables_1_and_4(
    there: CifarImages, folder: Path, kind: str, augmentation: bool, optimiser: str
) -> None:
    shutil.copy(folder / "sgd-1.safetensors", folder / f"{kind}-0.safetensors")
    scale = cifar10({})
    (row,) = (
        each
        for each in scale.sizes
        if each.subject is not None
        and (each.subject.augmentation, each.subject.optimiser) == (augmentation, optimiser)
    )
    assert isinstance(row.points["SGD"], GivenNetwork)
    assert [file.name for file in row.points["SGD"].files] == [f"{kind}-0"]
    assert row in scale.sizes and scale.sizes[-1] is scale.main


def test_with_all_test_images_everywhere_there_is_one_network(there: CifarImages, folder: Path) -> None:
    scale = cifar10({"images": 10_000})
    assert scale.whole is None
    assert scale.of_points is scale.main


def test_records_and_titles_say_that_points_are_given_and_on_which_images(
    there: CifarImages, folder: Path
) -> None:
    scale = cifar10({"images": 500})
    for name in (scale.substrate, scale.points_substrate, scale.title, scale.heading):
        assert NAME in name and "given points" in name
    assert "500 test images" in scale.substrate
    assert scale.heading.endswith("; 500 test images")
    assert scale.points_heading.endswith("; 10,000 test images")
    assert fig2.SCRIPT.heading(scale) == scale.points_heading
    assert fig9.SCRIPT.heading(scale) == scale.heading


def test_a_figure_is_not_offered_where_its_points_are_not_given(there: CifarImages, folder: Path) -> None:
    assert fig6.lacks(cifar10({})) == ""
    for file in folder.glob("ivon-*"):
        file.unlink()
    assert fig6.lacks(cifar10({})) != ""


def test_where_no_run_of_sse_is_given_there_is_none(there: CifarImages, folder: Path) -> None:
    assert fig4.lacks(cifar10({})) == ""
    (folder / "sse-0.safetensors").unlink()
    scale = cifar10({})
    assert scale.main is not None and "SSE" not in scale.main.families
    assert fig4.lacks(scale) != ""


def test_without_points_the_pieces_say_how_to_have_them(
    there: CifarImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LPE_POINTS", raising=False)
    scale = cifar10({})
    assert scale.main is not None and scale.main.pieces is not None
    assert any("python -m reproduce.scales.cifar10" in line for line in scale.main.pieces.missing())


def test_without_points_a_figure_ends_with_what_is_missing(
    there: CifarImages, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("LPE_POINTS", raising=False)
    monkeypatch.setenv("LPE_DATA", str(tmp_path))
    monkeypatch.setattr("lpe.substrates.cifar.described", lambda place: (NAME, "0" * 64))
    asked = ["--scale", "cifar10", "--out", str(tmp_path / "out")]
    assert run_figure(fig2.SCRIPT, asked, quiet=True) == 2
    assert "missing: trained points: a GPU trains them here" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.csv"))


def test_an_option_that_a_scale_does_not_take_is_refused() -> None:
    with pytest.raises(InputError, match="--images is for --scale cifar10, not digits"):
        find.scale("digits", Options(images=500))


def test_a_number_of_images_that_is_no_divisor_is_refused(there: CifarImages, folder: Path) -> None:
    with pytest.raises(InputError, match="3000 test images are not every k-th"):
        find.scale("cifar10", Options(images=3000))


def test_options_reach_other_processes_by_the_environment(
    there: CifarImages, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LPE_POINTS", "elsewhere")
    monkeypatch.setenv("LPE_DATA", "elsewhere")
    find.scale("cifar10", Options(points=folder, data=folder))
    assert (os.environ["LPE_POINTS"], os.environ["LPE_DATA"]) == (str(folder), str(folder))


def test_families_of_the_small_scale_have_fewer_seeds(there: CifarImages) -> None:
    scale = cifar10_small({})
    wanted = table5.wanted(session_of(scale))

    def seeds(what: str) -> set[int]:
        return {unit.seed for unit in wanted if unit.what == what}

    assert seeds("SGD") == {0, 1, 2, 3, 4}
    assert all(seeds(name) == {0, 1, 2} for name in ("DE", "SSE", "CSGLD"))
    assert all(seeds(name) == {0} for name in ("MultiIVON", "BE"))


def test_the_small_scales_slope_is_over_its_vits(there: CifarImages) -> None:
    scale = cifar10_small({})
    judged = Settings.of(scale)
    assert [name.partition(",")[0] for name in judged.of_one_kind] == ["ViT-T", "ViT-S", "ViT-B", "ViT-L"]
    assert len(judged.networks) == 6
    (slope,) = (claim for claim in all_claims(judged) if claim.name == "C1c")
    assert "ViT-L" in slope.statistic and "R8-GN" not in slope.statistic
    # The ResNet is no size of the ViTs: nothing is larger than it.
    assert scale.own_size is scale.main and scale.next_larger is None


def test_the_small_scale_trains_on_4000_images_and_tests_on_all(there: CifarImages) -> None:
    scale = cifar10_small({})
    assert scale.main is not None
    data = scale.main.source.load(0)
    assert data.train is not None
    assert (len(data.train[1]), data.test_count) == (4000, 10_000)
    assert NAME in scale.main.name


def test_large_models_of_the_small_scale_are_said_to_be_the_digits(there: CifarImages) -> None:
    scale = cifar10_small({})
    assert all(each.name.startswith("digits ") for group in scale.large.values() for each in group)
    large = [unit for unit in fig7.wanted(session_of(scale)) if unit.what == LARGE]
    assert {unit.seed for unit in large} == {0}
    assert scale.compared is not None and scale.compared.name in {unit.substrate for unit in large}
