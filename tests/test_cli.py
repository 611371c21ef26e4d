"""The ``lpe`` command: what it prints, writes and refuses, with each kind of model from files of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import lpe
from lpe import cli, notices
from lpe.cli.models import placed
from lpe.cli.options import ModelOptions
from lpe.evaluation.predictions import read_predictions as predictions_in
from lpe.files.container import VERSION
from lpe.substrates import imagenet, timm_models
from lpe.substrates.imagenet import data_config, evaluation_transform, validation

VIT = "test_vit.r160_in1k"  # timm's own for tests: 371,000 weights
CLASSES = ("ant", "bee", "cat")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images of three classes, and the weights of a ViT with as many classes."""
    root = tmp_path_factory.mktemp("cli")
    pixels = np.random.default_rng(0).integers(256, size=(6, 32, 32, 3), dtype=np.uint8)
    for index, image in enumerate(pixels):
        place = root / "images" / CLASSES[index % 3]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{index}.png")
    model = timm_models._created(VIT, num_classes=3)
    with torch.no_grad():
        model.get_parameter("head.weight").mul_(20)  # timm's heads begin near 0, and members agree
    save_file(model.state_dict(), root / "vit.safetensors")
    return root


Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command; its standard output."""

    def run(*arguments: object) -> str:
        code = cli.main([str(each) for each in arguments])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return printed.out

    return run


@pytest.fixture
def error_of(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command, which is to fail with code 2; its one line."""

    def error_of(*arguments: object) -> str:
        try:
            code = cli.main([str(each) for each in arguments])
        except SystemExit as end:  # of the argument parser
            code = int(str(end.code))
        printed = capsys.readouterr()
        # What was loaded may have been said before.
        said = "".join(line for line in printed.err.splitlines(True) if not line.startswith("loaded: "))
        assert code == 2 and printed.out == "" and said.count("\n") == 1
        assert said.startswith("error: ")
        return said

    return error_of


def timm_arguments(folder: Path) -> list[object]:
    model = [f"timm/{VIT}", "--checkpoint", folder / "vit.safetensors"]
    return ["evaluate", *model, "--data", folder / "images", "--workers", 0, "--batch-size", 4]


def cells(printed: str) -> list[list[str]]:
    """The printed table's rows, its methods' names as one cell."""
    lines = printed.splitlines()[2:]
    return [[cell for cell in line.split("  ") if cell] for line in lines if "  " in line]


def test_a_timm_model_is_evaluated_as_the_library_evaluates_it(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    run(*timm_arguments(folder), "--system", "int4", "--size", 3, "--seed", 5, "--csv", tmp_path / "r.csv")
    table = pd.read_csv(tmp_path / "r.csv")
    model = imagenet.load_model(VIT, folder / "vit.safetensors")
    data = validation(folder / "images", evaluation_transform(data_config(model)), 4, classes=3)
    wanted = lpe.evaluate(lpe.LowPrecisionEnsemble(model, lpe.Int(4), 3, seed=5), data)
    found = table[table["method"] == "LPE-BSR"].reset_index(drop=True)
    # The file has 12 significant digits.
    pd.testing.assert_frame_equal(found[list(wanted.columns)], wanted, rtol=1e-11)


def test_the_rows_are_the_model_it_with_a_temperature_rtn_and_every_size(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    run(*timm_arguments(folder), "--size", 3, "--csv", tmp_path / "r.csv")
    table = pd.read_csv(tmp_path / "r.csv", keep_default_na=False)
    rows = [tuple(row) for row in table[["method", "number_system", "rounding", "size"]].to_numpy()]
    assert rows == [
        ("FP32", "fp32", "", 1),
        ("FP32 + temperature", "fp32", "", 1),
        ("RTN", "int5", "nearest", 1),
        *(("LPE-BSR", "int5", "bernoulli", size) for size in (1, 2, 3)),
    ]


def test_a_row_under_the_wrong_seed_is_seen(run: Run, folder: Path, tmp_path: Path) -> None:
    # The injected fault: members of another seed.
    for seed in (0, 1):
        run(
            *timm_arguments(folder),
            "--system",
            "int3",
            "--size",
            1,
            "--seed",
            seed,
            "--csv",
            tmp_path / f"{seed}.csv",
        )
    first, second = (pd.read_csv(tmp_path / f"{seed}.csv")["nll"] for seed in (0, 1))
    assert (first[:3] == second[:3]).all() and first[3] != second[3]


def test_the_table_has_the_sizes_1_2_5_10_and_the_last_with_memory_and_time(run: Run, folder: Path) -> None:
    printed = run(*timm_arguments(folder), "--size", 7, "--limit", 2)
    assert printed.splitlines()[0] == "timm/test_vit, weights of vit.safetensors, 2 images of 3 classes"
    assert printed.splitlines()[1].split() == [
        *("method numbers size NLL ERR ECE AMB MB ms per example".split()),
    ]
    rows = cells(printed)
    assert [row[0] for row in rows] == ["FP32", "FP32 + temperature", "RTN", *["LPE-BSR"] * 4]
    assert [row[2].strip() for row in rows[3:]] == ["1", "2", "5", "7"]
    model = imagenet.load_model(VIT, folder / "vit.safetensors")
    bits = lpe.LowPrecisionEnsemble(model, lpe.Int(5), 7).memory_bits()
    assert rows[-1][-2].strip() == f"{bits / 8e6:.4g}"
    times = [float(row[-1]) for row in rows[3:]]
    assert times == sorted(times) and 0 < times[0] < times[-1]


def test_the_json_has_the_rows_and_where_they_come_from(run: Run, folder: Path, tmp_path: Path) -> None:
    run(
        *timm_arguments(folder),
        "--size",
        2,
        "--limit",
        4,
        "--json",
        tmp_path / "r.json",
        "--csv",
        tmp_path / "r.csv",
    )
    told = json.loads((tmp_path / "r.json").read_text())
    table = pd.read_csv(tmp_path / "r.csv", keep_default_na=False)
    assert [row["method"] for row in told["rows"]] == list(table["method"])
    where = told["provenance"]
    assert where["command"].startswith(f"lpe evaluate timm/{VIT} --checkpoint vit.safetensors")
    assert where["config"]["data_config"]["input_size"] == [3, 160, 160]
    assert where["config"]["images"] == 4 and where["config"]["ensemble"]["system"] == "int5"
    assert where["seeds"] == [0] and where["device"]["device"] == "cpu" and "timm" in where["packages"]


def test_preprocessing_and_arguments_of_the_architecture_are_printed_and_recorded(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    given = [*("--mean", 0.1, 0.2, 0.3), *("--std", 0.4, 0.5, 0.6), *("--interpolation", "bilinear")]
    given += [*("--crop-pct", 0.8), *("--input-size", 96, 128), *("--model-kwargs", "drop_rate=0.5")]
    printed = run(*timm_arguments(folder), "--size", 1, "--limit", 2, *given, "--json", tmp_path / "r.json")
    assert (
        f"images as timm/{VIT} has them (test size) but for input_size, mean, std, interpolation, crop_pct: "
        "96 x 128, crop 0.8 (center), bilinear, mean 0.1 0.2 0.3, std 0.4 0.5 0.6; "
        "model arguments: drop_rate=0.5, img_size=(96, 128)\n"
    ) in printed
    config = json.loads((tmp_path / "r.json").read_text())["provenance"]["config"]
    assert config["data_config"]["mean"] == [0.1, 0.2, 0.3]
    assert config["data_config"]["input_size"] == [3, 96, 128]
    assert config["preprocessing"]["crop_pct"] == 0.8 and config["size"] == "test"
    assert config["model_kwargs"] == {"drop_rate": 0.5, "img_size": [96, 128]}


def test_preprocessing_that_is_given_reaches_the_images(run: Run, folder: Path, tmp_path: Path) -> None:
    tables = []
    for given in ([], ["--mean", 0.1, 0.2, 0.3], ["--std", 2, 2, 2], ["--crop-pct", 0.5]):
        run(*timm_arguments(folder), "--size", 1, *given, "--csv", tmp_path / "r.csv")
        tables.append(pd.read_csv(tmp_path / "r.csv")["nll"][0])
    assert len(set(tables)) == 4


def test_the_size_is_that_of_tests_and_on_request_that_of_training(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    name = "resnet10t.c3_in1k"
    save_file(timm_models._created(name, num_classes=3).state_dict(), tmp_path / "w.safetensors")
    arguments = ["evaluate", f"timm/{name}", "--checkpoint", tmp_path / "w.safetensors"]
    arguments += ["--data", folder / "images", "--workers", 0, "--limit", 2, "--size", 1]
    for given, size, pixels in (([], "test", 224), (["--train-size"], "training", 176)):
        printed = run(*arguments, *given, "--json", tmp_path / "r.json")
        assert f"images as timm/{name} has them ({size} size): {pixels} x {pixels}" in printed
        assert json.loads((tmp_path / "r.json").read_text())["provenance"]["config"]["size"] == size


def test_a_tag_whose_weights_were_not_used_is_no_title(run: Run, folder: Path, tmp_path: Path) -> None:
    printed = run(*timm_arguments(folder), "--size", 1, "--limit", 2, "--json", tmp_path / "r.json")
    assert printed.startswith("timm/test_vit, weights of vit.safetensors, 2 images")
    config = json.loads((tmp_path / "r.json").read_text())["provenance"]["config"]
    assert config["model"] == "timm/test_vit" and config["data_config_of"] == f"timm/{VIT}"


def test_notes_are_recorded_beside_the_rows(run: Run, folder: Path, tmp_path: Path) -> None:
    (folder / "images" / "ant" / "thumbnail.gif").touch()
    run(*timm_arguments(folder), "--size", 1, "--limit", 2, "--json", tmp_path / "r.json")
    (folder / "images" / "ant" / "thumbnail.gif").unlink()
    config = json.loads((tmp_path / "r.json").read_text())["provenance"]["config"]
    assert config["notes"] == [f"left out of {folder / 'images'}: 1 .gif"]


def test_class_names_in_another_order_leave_a_result_as_it_is(run: Run, folder: Path, tmp_path: Path) -> None:
    # Classes of the head in another order, and their names in a file.
    order = [2, 0, 1]
    weights = timm_models.load_model(VIT, folder / "vit.safetensors").state_dict()
    for key in ("head.weight", "head.bias"):
        weights[key] = weights[key][order].clone()
    save_file(weights, tmp_path / "vit.safetensors")
    (tmp_path / "names").write_text("\n".join(CLASSES[k] for k in order))
    run(*timm_arguments(folder), "--size", 1, "--csv", tmp_path / "plain.csv")
    arguments = [
        tmp_path / each.name if each == folder / "vit.safetensors" else each
        for each in timm_arguments(folder)
    ]  # type: ignore[attr-defined]
    run(*arguments, "--class-names", tmp_path / "names", "--size", 1, "--csv", tmp_path / "named.csv")
    first, second = (pd.read_csv(tmp_path / f"{name}.csv")["nll"][0] for name in ("plain", "named"))
    assert first == pytest.approx(second, rel=1e-6)


def test_members_together_have_the_rows_of_members_one_by_one(run: Run, folder: Path, tmp_path: Path) -> None:
    tables = []
    for members in ("one-by-one", "together"):
        run(*timm_arguments(folder), "--size", 2, "--members", members, "--csv", tmp_path / "r.csv")
        tables.append(pd.read_csv(tmp_path / "r.csv").drop(columns="ms_per_example"))
    pd.testing.assert_frame_equal(*tables, rtol=1e-4)


def test_the_json_tells_how_the_passes_ran(run: Run, folder: Path, tmp_path: Path) -> None:
    options = ["--members", "together", "--autocast", "--channels-last"]
    for given, told in (([], ("one-by-one", False, False)), (options, ("together", True, True))):
        run(*timm_arguments(folder), "--size", 2, "--limit", 2, *given, "--json", tmp_path / "r.json")
        config = json.loads((tmp_path / "r.json").read_text())["provenance"]["config"]
        found = tuple(config[key] for key in ("members", "autocast", "channels_last"))
        assert found == told and config["pin_memory"] is False


def test_autocast_reaches_every_row_of_the_model(run: Run, folder: Path, tmp_path: Path) -> None:
    tables = []
    for options in ([], ["--autocast"]):
        run(*timm_arguments(folder), "--size", 1, *options, "--csv", tmp_path / "r.csv")
        tables.append(pd.read_csv(tmp_path / "r.csv").set_index("method")["nll"])
    assert (tables[0] != tables[1]).all()
    assert list(tables[1]) == pytest.approx(list(tables[0]), rel=0.05)


def test_no_rounding_leaves_the_models_own_rows(run: Run, folder: Path) -> None:
    assert [row[0] for row in cells(run(*timm_arguments(folder), "--system", "fp32"))] == [
        "FP32",
        "FP32 + temperature",
    ]


def test_nearest_rounding_is_the_row_rtn(run: Run, folder: Path) -> None:
    rows = cells(run(*timm_arguments(folder), "--rounding", "nearest"))
    assert [row[0] for row in rows] == ["FP32", "FP32 + temperature", "RTN"]


@pytest.mark.parametrize(
    ("options", "title"),
    [
        (["--method", "gaussian"], "Gaussian"),
        (["--method", "gaussian", "--std", "0.01", "--system", "fp32"], "Gaussian"),
        (["--method", "mc-dropout", "--rate", "0.2"], "MC-dropout"),
        (["--rounding", "coupled", "--scale-axis", "block:32"], "LPE, coupled rounding"),
        (["--system", "nf4", "--include", "blocks.*"], "LPE-BSR"),
    ],
)
def test_other_methods_have_their_rows(run: Run, folder: Path, options: list[str], title: str) -> None:
    assert cells(run(*timm_arguments(folder), "--size", 2, *options))[-1][0] == title


def test_the_command_alone_prints_its_help(run: Run) -> None:
    printed = run()
    assert printed.startswith("usage: lpe ") and "lpe score FILE" in printed


def test_what_is_loaded_and_where_is_said_before_the_first_pass(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ends(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(lpe.EvaluationOptions, "logits", ends)
    assert cli.main([str(each) for each in (*timm_arguments(folder), "--size", 3)]) == 130
    said = capsys.readouterr().err.splitlines()[0]
    threads = torch.get_num_threads()
    assert said == (
        "loaded: timm/test_vit, weights of vit.safetensors, 6 images of 3 classes; 306,435 parameters, FP32; "
        f"3 members of lpe int5; batches of 4, on cpu, {threads} thread{'s' if threads > 1 else ''}"
    )


def test_kernels_are_warm_before_a_row_is_timed(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A compiler that starts at the first rounding of each kind; whether a clock runs then.
    own, own_clock = lpe.LowPrecisionEnsemble.member, lpe.MemberTimer.member
    started: dict[str, bool] = {}
    running: list[int] = []

    @contextmanager
    def clock(self: lpe.MemberTimer, index: int) -> Iterator[None]:
        running.append(index)
        with own_clock(self, index):
            yield
        running.pop()

    def compiled(self: lpe.LowPrecisionEnsemble, index: int) -> torch.nn.Module:
        if self.rounds:
            started.setdefault(self.rounding, bool(running))
        return own(self, index)

    monkeypatch.setattr(lpe.LowPrecisionEnsemble, "member", compiled)
    monkeypatch.setattr(lpe.MemberTimer, "member", clock)
    run(*timm_arguments(folder), "--size", 1, "--limit", 2)
    assert started == {"nearest": False, "bernoulli": False}


def test_options_of_a_file_are_those_of_the_command_line(run: Run, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(
        f"""
        model = "timm/{VIT}"
        checkpoint = {json.dumps(str(folder / "vit.safetensors"))}
        data = {json.dumps(str(folder / "images"))}
        workers = 0
        batch-size = 4
        size = 7
        std = [0.4, 0.5, 0.6]
        model_kwargs = ["drop_rate=0.5"]
        calibrated = false
        metrics = ["aurc", "disagreement"]
        """
    )
    given = ["--std", 0.4, 0.5, 0.6, "--model-kwargs", "drop_rate=0.5", "--metrics", "aurc,disagreement"]
    # What is given on the command line goes before.
    run("evaluate", "--config", tmp_path / "run.toml", "--size", 2, "--csv", tmp_path / "a.csv")
    run(*timm_arguments(folder), *given, "--size", 2, "--csv", tmp_path / "b.csv")
    assert table_without_times(tmp_path / "a.csv") == table_without_times(tmp_path / "b.csv")


def test_the_options_in_the_json_are_a_file_of_options_that_gives_the_same(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    arguments = ["evaluate", f"timm/{VIT}", "--checkpoint", "vit.safetensors", "--data", "images"]
    arguments += ["--batch-size", "auto", "--std", 0.4, 0.5, 0.6, "--method", "gaussian", "--std", 0.01]
    arguments += ["--size", 2, "--limit", 3, "--exclude", "head.*", "--exclude", "*.bias"]
    run(*arguments, "--json", tmp_path / "r.json", "--csv", tmp_path / "a.csv")
    options = json.loads((tmp_path / "r.json").read_text())["provenance"]["config"]["options"]
    assert options["batch_size"] == 64 and options["device"] == "cpu" and options["dtype"] == "float32"
    assert options["system"] == "int5" and options["std"] == [[0.01], [0.4, 0.5, 0.6]]
    options |= {"csv": str(tmp_path / "b.csv"), "json": str(tmp_path / "b.json")}
    lines = [f"{key} = {json.dumps(value)}" for key, value in options.items()]
    (tmp_path / "run.toml").write_text("\n".join(lines))
    run("evaluate", "--config", tmp_path / "run.toml")
    assert table_without_times(tmp_path / "a.csv") == table_without_times(tmp_path / "b.csv")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("sise = 3", "run.toml: lpe evaluate has no option 'sise'; the nearest is 'size'"),
        ("batch_sizes = 3", "the nearest is 'batch_size'"),
        ("config = 'x'", "has no option 'config'"),
        (
            "size = 'two'",
            "--size: 'two' is no whole number in the digits 0-9 (options are also those of",
        ),
        ("[size]\nx = 1", "run.toml: size takes text, a number or a list of them, not a table"),
        ("size = true", "run.toml: size takes text, a number or a list of them, not True"),
        ("size = 2026-01-01", "not datetime.date(2026, 1, 1)"),
        ("calibrated = 1", "run.toml: calibrated is true or false, not 1"),
        ("size = [1, 2]", "run.toml: size takes text, a number or a list of them, not [1, 2]"),
        ("size = ", "run.toml is no TOML file of options (Invalid value"),
        ("a = " + "[" * 3000, "run.toml is no TOML file of options"),
        ("#" * (1 << 20), "run.toml has 1,048,576 bytes or more"),
        ("system = ''", "the value of '--system' is empty"),
        ("seed = 0", "the following arguments are required: MODEL (options are also those of"),
    ],
)
def test_what_is_wrong_with_a_file_of_options_is_one_line(
    error_of: Run, tmp_path: Path, text: str, wanted: str
) -> None:
    (tmp_path / "run.toml").write_text(text)
    assert wanted in error_of("evaluate", "--config", tmp_path / "run.toml")


def test_predictions_of_float16_have_half_the_bytes_and_say_where_they_are_from(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    sizes = {}
    for options in ([], ["--float16"]):
        file = tmp_path / f"p{len(options)}"
        predictions_of(run, folder, file, "--size", 2, *options)
        held = predictions_in(file)
        sizes[held.about["dtype"]] = held.log_probs(0, 0, 6).element_size()
        assert held.targets.tolist() == [0, 0, 1, 1, 2, 2] and len(set(held.examples.tolist())) == 6
        record = held.about["record"]
        assert record["model"] == "timm/test_vit" and record["data"] == "images"
        assert record["ensemble"]["system"] == "int4" and "revision" in record["git"]
    assert sizes == {"float32": 4, "float16": 2}


def test_calibrated_nll_is_a_column_where_asked(run: Run, folder: Path) -> None:
    printed = run(*timm_arguments(folder), "--size", 2, "--calibrated")
    assert "calibrated NLL" in printed.splitlines()[1]


def predictions_of(run: Run, folder: Path, file: Path, *options: object) -> str:
    return run(*timm_arguments(folder), "--system", "int4", "--predictions", file, *options)


@pytest.fixture(scope="module")
def predictions(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The predictions of three members."""
    file = tmp_path_factory.mktemp("predictions") / "p.safetensors"
    arguments = [*timm_arguments(folder), "--system", "int4", "--size", 3, "--predictions", file]
    assert cli.main([str(each) for each in arguments]) == 0
    return file


def test_predictions_are_those_of_the_ensembles_members(run: Run, folder: Path, tmp_path: Path) -> None:
    said = predictions_of(
        run, folder, tmp_path / "p", "--size", 3, "--metrics", "aurc", "--csv", tmp_path / "r.csv"
    )
    assert f"predictions: {tmp_path / 'p'}" in said and "AURC" in said
    table = pd.read_csv(tmp_path / "r.csv")
    found = table[table["method"] == "LPE-BSR"].reset_index(drop=True)
    wanted = lpe.score(tmp_path / "p", metrics=["nll", "err", "aurc"])
    pd.testing.assert_frame_equal(found[list(wanted.columns)], wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "row"),
    [(["--rounding", "nearest"], "RTN"), (["--system", "fp32"], "FP32")],
    ids=["nearest", "fp32"],
)
def test_predictions_of_one_network_are_those_of_its_row(
    run: Run, folder: Path, tmp_path: Path, options: list[str], row: str
) -> None:
    predictions_of(run, folder, tmp_path / "p", "--csv", tmp_path / "r.csv", *options)
    table = pd.read_csv(tmp_path / "r.csv").set_index("method")
    assert float(lpe.score(tmp_path / "p")["nll"].iloc[0]) == pytest.approx(table.loc[row, "nll"], rel=1e-6)


def test_predictions_that_are_there_are_scored_without_times(run: Run, folder: Path, tmp_path: Path) -> None:
    first = cells(predictions_of(run, folder, tmp_path / "p", "--size", 2))
    again = cells(predictions_of(run, folder, tmp_path / "p", "--size", 2))
    assert [row[:-1] for row in first[3:]] == again[3:]


def test_a_file_that_is_no_predictions_is_refused_before_a_model_is_loaded(
    error_of: Run, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "p").write_text("x")
    arguments = ["evaluate", "timm/no_model", "--data", folder, "--predictions", tmp_path / "p"]
    assert str(tmp_path / "p") in error_of(*arguments)
    assert "there is no folder" in error_of(*arguments[:-1], tmp_path / "none" / "p")


def test_a_score_is_the_librarys(run: Run, predictions: Path, tmp_path: Path) -> None:
    printed = run("score", predictions, "--metrics", "all", "--csv", tmp_path / "s.csv")
    wanted = lpe.score(predictions, metrics="all")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "s.csv"), wanted, rtol=1e-11)
    title, header, *rows = printed.splitlines()
    assert title == "3 members, 6 examples"
    assert "coverage at 5 % risk" in header and "AUROC of errors" in header
    assert [row.split()[:2] for row in rows[:3]] == [
        [str(size), f"{nll:.4f}"] for size, nll in zip(wanted["size"], wanted["nll"], strict=True)
    ]


def test_a_score_of_some_sizes_and_metrics_of_a_mixture(run: Run, predictions: Path) -> None:
    printed = run("score", predictions, predictions, "--sizes", "4,6", "--metrics", "brier,calibrated_nll")
    title, header, *rows = printed.splitlines()
    assert title == "6 members of 2 files, 6 examples"
    assert header.split() == ["size", "Brier", "calibrated", "NLL", "MB"]
    assert [row.split()[0] for row in rows] == ["4", "6"]


def test_networks_that_see_the_examples_in_other_ways_are_a_mixture_where_that_is_asked_for(
    run: Run, error_of: Run, predictions: Path, tmp_path: Path
) -> None:
    held = predictions_in(predictions)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        other = lpe.DeepEnsemble([torch.nn.Linear(4, held.classes)])
        lpe.evaluate(other, [(torch.randn(len(held.targets), 4), held.targets)], predictions=tmp_path / "q")
    assert "inputs='any' asks" in error_of("score", predictions, tmp_path / "q")
    printed = run("score", predictions, tmp_path / "q", "--inputs", "any")
    assert printed.splitlines()[0] == "4 members of 2 files, 6 examples"


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--metrics", "f1"], "a metric must be one of nll, "),
        (["--sizes", "1,x"], "--sizes takes integers with commas between, such as 1,5,20, not '1,x'"),
        (["--sizes", "9"], "sizes must be integers from 1 to 3"),
        (["--csv", "."], ". is a folder"),
        (["nowhere"], "there is no file nowhere"),
    ],
)
def test_what_cannot_be_scored_is_answered_in_one_line(
    error_of: Run, predictions: Path, options: list[str], wanted: str
) -> None:
    assert wanted in error_of("score", predictions, *options)


def test_a_truncated_file_of_predictions_is_answered_in_one_line(
    error_of: Run, predictions: Path, tmp_path: Path
) -> None:
    (tmp_path / "p").write_bytes(predictions.read_bytes()[:-8])
    assert str(tmp_path / "p") in error_of("score", tmp_path / "p")


def test_weights_of_another_dtype_say_so_in_their_rows(run: Run, folder: Path) -> None:
    printed = run(*timm_arguments(folder), "--size", 1, "--dtype", "bfloat16")
    assert [row[0] for row in cells(printed)[:2]] == ["BF16", "BF16 + temperature"]


def test_random_weights_need_no_file_and_are_named(run: Run, folder: Path, tmp_path: Path) -> None:
    thousand = tmp_path / "imagenet"
    for name in imagenet.wnids():
        (thousand / name).mkdir(parents=True)
        (thousand / name / "0.JPEG").symlink_to(folder / "images" / "ant" / "0.png")
    printed = run(
        "evaluate", f"timm/{VIT}", "--random-weights", "--data", thousand, "--limit", 3, "--workers", 0
    )
    assert printed.startswith("timm/test_vit, random weights, 3 images of 1,000 classes")


# Batch-norm statistics

RESNET = "test_resnet.r160_in1k"  # timm's own for tests, with batch norm


@pytest.fixture(scope="module")
def resnet(folder: Path) -> list[object]:
    """The arguments that evaluate a network with batch norm on the images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm_models._created(RESNET, num_classes=3)
    save_file(model.state_dict(), folder / "resnet.safetensors")
    training = folder / "training" / "some" / "where"
    training.mkdir(parents=True)
    pixels = np.random.default_rng(1).integers(256, size=(5, 32, 32, 3), dtype=np.uint8)
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(training / f"{index}.png")
    model_arguments = [f"timm/{RESNET}", "--checkpoint", folder / "resnet.safetensors"]
    data = ["--data", folder / "images", "--workers", 0, "--batch-size", 4]
    return ["evaluate", *model_arguments, *data, "--system", "int3", "--size", 2]


@pytest.mark.parametrize("form", ["relative", "absolute"])
def test_re_estimated_rows_are_beside_those_of_the_models_statistics(
    run: Run, resnet: list[object], folder: Path, tmp_path: Path, form: str
) -> None:
    arguments = ["--refresh", folder / "training", "--refresh-form", form, "--csv", tmp_path / "r.csv"]
    run(*resnet, *arguments)
    table = pd.read_csv(tmp_path / "r.csv", keep_default_na=False)
    kind = f", re-estimated ({form})"
    assert list(table["method"]) == [
        "FP32",
        "FP32 + temperature",
        *(["FP32" + kind] if form == "absolute" else []),
        "RTN",
        "RTN" + kind,
        *["LPE-BSR"] * 2,
        *["LPE-BSR" + kind] * 2,
    ]
    model = imagenet.load_model(RESNET, folder / "resnet.safetensors")
    transform = evaluation_transform(data_config(model))
    data = validation(folder / "images", transform, 4, classes=3)
    training = list(imagenet.unlabelled(folder / "training", transform, 4))
    ensemble = lpe.LowPrecisionEnsemble(model, lpe.Int(3), 2, batches=training, refresh=form)
    found = table[table["method"] == "LPE-BSR" + kind]["nll"]
    assert list(found) == pytest.approx(list(lpe.evaluate(ensemble, data)["nll"]), rel=1e-9)


def test_refresh_auto_takes_the_folder_train_beside_the_data(
    run: Run, resnet: list[object], folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "train").symlink_to(folder / "training")
    (tmp_path / "val").symlink_to(folder / "images")
    run(*resnet, "--data", tmp_path / "val", "--refresh", "auto", "--json", tmp_path / "r.json")
    told = json.loads((tmp_path / "r.json").read_text())["provenance"]["config"]
    assert told["refresh_images"] == 5


def test_a_note_says_once_that_statistics_are_as_the_network_has_them(
    run: Run, resnet: list[object], caplog: pytest.LogCaptureFixture
) -> None:
    notices.forget()
    run(*resnet)
    said = [line for line in caplog.messages if "batch-norm statistics" in line]
    assert len(said) == 1 and "--refresh" in said[0]


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--refresh", "/nowhere"], "there is no folder /nowhere"),
        (["--refresh", "auto"], "train; give a folder of training images"),
        (["--refresh-form", "absolute"], "--refresh-form says how --refresh DIR is done; give both"),
        (["--refresh-limit", "9"], "--refresh-limit says how --refresh DIR is done; give both"),
        (["--refresh", ".", "--refresh-limit", "1"], "--refresh-limit must be 2 or more, not 1"),
        (["--packed", "vit.lpe", "--refresh", "somewhere"], "--refresh is settled by the packed file"),
    ],
)
def test_what_is_wrong_with_refresh_is_said_before_anything_runs(
    error_of: Run, folder: Path, arguments: list[str], wanted: str
) -> None:
    assert wanted in error_of(*timm_arguments(folder), *arguments)


def test_a_model_without_batch_norm_has_nothing_to_refresh(error_of: Run, folder: Path) -> None:
    said = error_of(*timm_arguments(folder), "--refresh", folder / "images")
    assert "has no batch norms, so there is nothing to --refresh" in said


def test_describe_lists_every_tensor_and_the_memory(run: Run) -> None:
    printed = run("describe", f"timm/{VIT}", "--random-weights", "--system", "int4", "--size", 3)
    ensemble = lpe.LowPrecisionEnsemble(imagenet.random_model(VIT), lpe.Int(4), 3)
    described, memory = printed.rstrip().rsplit("\n", 1)
    assert described == ensemble.describe()
    planes = ensemble.memory_bits(storage="planes")
    assert memory.startswith(
        f"memory: {ensemble.memory_bits() / 8e6:.4g} MB of 3 members, "
        f"{planes / 8e6:.4g} MB of them as planes, "
    )
    nearest = run("describe", f"timm/{VIT}", "--random-weights", "--system", "int4", "--rounding", "nearest")
    assert "planes" not in nearest


def test_systems_lists_every_number_system_with_its_levels(run: Run) -> None:
    lines = {line.split()[0]: line.split() for line in run("systems").splitlines()[2:]}
    assert lines.keys() >= {*lpe.number_systems.naming.names()}
    assert lines["int5"][1:4] == ["5", "31", "15"]
    assert lines["fp8_e4m3"][1:4] == ["8", "253", "448"]


@pytest.mark.parametrize(
    ("size", "shown"),
    [(1, [1]), (10, [1, 2, 5, 10]), (16, [1, 2, 5, 10, 16]), (100, [1, 2, 5, 10, 20, 50, 100])],
)
def test_shown_sizes_are_1_2_5_of_each_decade_and_the_last(size: int, shown: list[int]) -> None:
    assert cli.shown_sizes(size) == shown


# Packed files.

PACK = ["pack", f"timm/{VIT}", "--random-weights", "--system", "int5", "--size", 3, "--seed", 4]


def random_ensemble(size: int = 3) -> lpe.LowPrecisionEnsemble:
    return lpe.LowPrecisionEnsemble(imagenet.random_model(VIT), lpe.Int(5), size, seed=4)


def cells_of_file(printed: str) -> dict[str, int]:
    """The bytes of each part, from the table of what was written."""
    rows = [[cell for cell in line.split("  ") if cell] for line in printed.splitlines()[3:-1]]
    return {row[0]: int(row[-1].replace(",", "")) for row in rows}


def test_pack_writes_what_save_writes(run: Run, tmp_path: Path) -> None:
    for kind in ("members", "seeded", "planes"):
        run(*PACK, "--kind", kind, "-o", tmp_path / "packed")
        lpe.save(random_ensemble(), tmp_path / "saved", kind)
        assert (tmp_path / "packed").read_bytes() == (tmp_path / "saved").read_bytes()


def test_pack_writes_members_unless_told(run: Run, tmp_path: Path) -> None:
    assert ", members: 3 members of int5" in run(*PACK, "-o", tmp_path / "e").splitlines()[0]


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        (["--kind", "members"], "codes of 3 members"),
        (["--kind", "seeded"], "weights as int8"),
        (["--kind", "seeded", "--base", "bf16"], "weights as bf16"),
        (["--kind", "seeded", "--base", "fp32"], "weights as fp32"),
    ],
)
def test_pack_tells_the_bytes_of_weights_scales_and_leftovers(
    run: Run, tmp_path: Path, options: list[str], weights: str
) -> None:
    printed = run(*PACK, *options, "-o", tmp_path / "e")
    told = cells_of_file(printed)
    ensemble = random_ensemble()
    quantised = sum(planned.numel for planned in ensemble.plan if planned.quantised)
    scales = sum(ensemble.scales(planned.name).numel() for planned in ensemble.plan if planned.quantised)
    a_weight = {
        "codes of 3 members": 3 * 5,
        "weights as int8": 8,
        "weights as bf16": 16,
        "weights as fp32": 32,
    }
    scale_bytes = 4 * scales if a_weight[weights] < 16 else 0
    assert told[weights] == quantised * a_weight[weights] // 8
    assert told.get("scales", 0) == scale_bytes
    assert told["leftovers"] == sum(p.numel * 4 for p in ensemble.plan if p.saved and not p.quantised)
    assert sum(told.values()) == (tmp_path / "e").stat().st_size
    bits = 8 * (told[weights] + scale_bytes) / quantised
    assert printed.splitlines()[-1].startswith(f"{bits:.3f} bits a quantised weight")


def test_pack_tells_the_bytes_of_lower_neighbours_and_planes(run: Run, tmp_path: Path) -> None:
    printed = run(*PACK, "--kind", "planes", "-o", tmp_path / "e")
    told, ensemble = cells_of_file(printed), random_ensemble()
    quantised = sum(planned.numel for planned in ensemble.plan if planned.quantised)
    assert (told["lower neighbours"], told["planes of 3 members"]) == (quantised * 5 // 8, quantised * 3 // 8)
    assert sum(told.values()) == (tmp_path / "e").stat().st_size
    bits = 8 + 8 * told["scales"] / quantised
    assert printed.splitlines()[-1].startswith(f"{bits:.3f} bits a quantised weight")


def test_several_systems_by_name_are_packed_and_evaluated_as_the_library_does(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    name = "*mlp*=int3-mse,*qkv*=fp32,*proj*=int8*11.3,*=nf4 per block of 16 inputs"
    model = imagenet.load_model(VIT, folder / "vit.safetensors")
    systems = {
        "*mlp*": lpe.Int(3, clip="mse"),
        "*qkv*": lpe.FullPrecision(),
        "*proj*": lpe.Int(8, spread=11.3),
        "*": lpe.NF4(lpe.PerBlock(16)),
    }
    expected = lpe.LowPrecisionEnsemble(model, systems, 2, seed=5)
    source = [f"timm/{VIT}", "--checkpoint", folder / "vit.safetensors"]
    for kind in ("members", "seeded", "planes"):
        run(
            "pack", *source, "--system", name, "--size", 2, "--seed", 5, "--kind", kind, "-o", tmp_path / kind
        )
        lpe.save(expected, tmp_path / "saved", kind)
        assert (tmp_path / kind).read_bytes() == (tmp_path / "saved").read_bytes()
        run(*timm_arguments(folder), "--packed", tmp_path / kind, "--csv", tmp_path / "r.csv")
        table = pd.read_csv(tmp_path / "r.csv", keep_default_na=False)
        named = set(table["number_system"]) - {"fp32"}
        assert named == {name} and all(lpe.number_system(each) == expected.system for each in named)


def test_pack_writes_other_methods_members(run: Run, tmp_path: Path) -> None:
    model = [f"timm/{VIT}", "--random-weights", "--size", 2]
    for method in ("gaussian", "mc-dropout"):
        printed = run("pack", *model, "--method", method, "-o", tmp_path / "e")
        assert printed.startswith(f"wrote {tmp_path / 'e'}: {(tmp_path / 'e').stat().st_size:,} bytes")
        assert len(lpe.load(tmp_path / "e", imagenet.random_model(VIT))) == 2


def test_pack_writes_over_a_packed_file(run: Run, tmp_path: Path) -> None:
    run(*PACK, "-o", tmp_path / "e")
    run(*PACK, "--kind", "seeded", "-o", tmp_path / "e")
    assert isinstance(lpe.load(tmp_path / "e", imagenet.random_model(VIT)), lpe.LowPrecisionEnsemble)


def test_pack_leaves_any_other_file_alone(error_of: Run, folder: Path, tmp_path: Path) -> None:
    weights = tmp_path / "vit.safetensors"
    weights.write_bytes((folder / "vit.safetensors").read_bytes())
    before = weights.read_bytes()
    said = error_of("pack", f"timm/{VIT}", "--checkpoint", weights, "-o", weights)
    assert f"{weights} is there and is no packed ensemble" in said
    assert weights.read_bytes() == before and list(tmp_path.iterdir()) == [weights]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ([], "required: -o/--output"),
        (["--system", "int8", "--kind", "seeded", "-o", "e"], "base='int8' cannot hold members of int8"),
        (["--system", "fp8_e4m3", "--kind", "seeded", "-o", "e"], "take base='bf16' or 'fp32'"),
        (["--system", "fp32", "--kind", "seeded", "-o", "e"], "fp32 does not round"),
        (["--base", "bf16", "-o", "e"], "base='bf16' is for kind='seeded'"),
        (["--kind", "seeded", "--base", "int4", "-o", "e"], "invalid choice: 'int4'"),
        (["--kind", "zip", "-o", "e"], "invalid choice: 'zip'"),
        (["--kind", "planes", "--method", "gaussian", "-o", "e"], "--kind planes is for --method lpe, not"),
        (["--kind", "planes", "--rounding", "nearest", "-o", "e"], "those to the nearest are all alike"),
        (["--kind", "planes", "--system", "fp32", "-o", "e"], "fp32 does not round"),
        (["--kind", "planes", "--base", "bf16", "-o", "e"], "a file of planes holds no base"),
        (["--kind", "seeded", "--method", "gaussian", "-o", "e"], "--kind seeded is for --method lpe, not"),
        (["--system", "int9", "-o", "e"], "9 bits; integers take 2 to 8"),
        (["-o", "."], ". is a folder; give a file to write to"),
        (["--checkpoint", "no/where", "-o", "e"], "there is no file no/where"),
    ],
)
def test_pack_answers_what_it_cannot_do_in_one_line_and_writes_nothing(
    error_of: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], wanted: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert wanted in error_of("pack", f"timm/{VIT}", *options)
    assert list(tmp_path.iterdir()) == []


def test_two_results_in_one_file_are_refused_before_anything_is_measured(
    error_of: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ("--random-weights", "--data", "no", "--csv", "r", "--json", "./r")
    assert "--csv and --json are both r; give two files" in error_of("evaluate", f"timm/{VIT}", *options)
    assert list(tmp_path.iterdir()) == []


def test_a_pack_that_is_interrupted_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors.torch

    def interrupted(tensors: object, path: Path, metadata: object) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(safetensors.torch, "save_file", interrupted)
    assert cli.main([str(each) for each in (*PACK, "-o", tmp_path / "e")]) == 130
    assert capsys.readouterr().err == "interrupted; nothing was written\n"
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def packed(folder: Path) -> Path:
    """The seeded file of the images' ViT."""
    model = imagenet.load_model(VIT, folder / "vit.safetensors")
    lpe.save(lpe.LowPrecisionEnsemble(model, lpe.Int(4), 2, seed=5), folder / "vit.lpe", kind="seeded")
    return folder / "vit.lpe"


def test_a_packed_file_is_evaluated_beside_its_model(
    run: Run, folder: Path, packed: Path, tmp_path: Path
) -> None:
    run(*timm_arguments(folder), "--packed", packed, "--csv", tmp_path / "r.csv")
    table = pd.read_csv(tmp_path / "r.csv", keep_default_na=False)
    rows = [tuple(row) for row in table[["method", "number_system", "rounding", "size"]].to_numpy()]
    assert rows == [
        ("FP32", "fp32", "", 1),
        ("FP32 + temperature", "fp32", "", 1),
        ("LPE-BSR", "int4", "bernoulli", 1),
        ("LPE-BSR", "int4", "bernoulli", 2),
    ]
    model = imagenet.load_model(VIT, folder / "vit.safetensors")
    data = validation(folder / "images", evaluation_transform(data_config(model)), 4, classes=3)
    wanted = lpe.evaluate(lpe.load(packed, model), data)
    found = table[table["method"] == "LPE-BSR"].reset_index(drop=True)
    pd.testing.assert_frame_equal(found[list(wanted.columns)].astype(wanted.dtypes), wanted, rtol=1e-11)


def test_more_members_of_a_seeded_file_are_evaluated(run: Run, folder: Path, packed: Path) -> None:
    rows = cells(run(*timm_arguments(folder), "--packed", packed, "--size", 4, "--limit", 2))
    assert [row[2].strip() for row in rows] == ["1", "1", "1", "2", "4"]


def test_an_architecture_alone_has_no_rows_of_its_own(run: Run, folder: Path, packed: Path) -> None:
    # A thousand classes, as an architecture without weights has.
    model = imagenet.random_model(VIT)
    lpe.save(lpe.DeepEnsemble([model]), packed.parent / "thousand.lpe")
    thousand = packed.parent / "thousand"
    for name in imagenet.wnids():
        (thousand / name).mkdir(parents=True)
        (thousand / name / "0.JPEG").symlink_to(folder / "images" / "ant" / "0.png")
    arguments = [
        "evaluate",
        f"timm/{VIT}",
        "--random-weights",
        "--data",
        thousand,
        "--limit",
        2,
        "--workers",
        0,
    ]
    rows = cells(run(*arguments, "--packed", packed.parent / "thousand.lpe"))
    assert [row[0] for row in rows] == ["packed"]


def test_the_json_of_a_packed_file_names_it_and_what_it_holds(
    run: Run, folder: Path, packed: Path, tmp_path: Path
) -> None:
    run(*timm_arguments(folder), "--packed", packed, "--limit", 2, "--json", tmp_path / "r.json")
    told = json.loads((tmp_path / "r.json").read_text())["provenance"]
    wanted = {"size": 2, "seed": 5, "rounding": "bernoulli", "system": "int4"}
    assert {key: told["config"]["ensemble"][key] for key in wanted} == wanted
    assert told["seeds"] == [5] and told["config"]["ensemble"]["packed"].endswith("vit.lpe")


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--system", "int4"], "--system is settled by the packed file"),
        (["--system", "int5"], "--system is settled by the packed file"),  # also the default, spelled out
        (["--seed", "0"], "--seed is settled by the packed file"),
        (["--method", "lpe"], "--method is settled by the packed file"),
        (["--scale-axis", "channel"], "--scale-axis is settled by the packed file"),
        (["--rounding", "bernoulli"], "--rounding is settled by the packed file"),
        (["--exclude", "head*"], "--exclude is settled by the packed file"),
        (["--size", "0"], "positive integer, not 0"),
    ],
)
def test_options_that_a_packed_file_settles_are_refused(
    error_of: Run, folder: Path, packed: Path, options: list[str], wanted: str
) -> None:
    assert wanted in error_of(*timm_arguments(folder), "--packed", packed, *options)


def test_a_missing_packed_file_is_named_before_a_model_is_loaded(error_of: Run, folder: Path) -> None:
    said = error_of("evaluate", "timm/resnet51", "--data", folder / "images", "--packed", "no/where")
    assert "there is no file no/where; lpe pack writes one" in said


def spoil(packed: Path, how: str) -> bytes:
    whole = packed.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    return {
        "truncated": whole[:-100],
        "header": whole.replace(b'\\"seed\\": 5', b'\\"seed\\": 6', 1),
        "data": whole[:header] + bytes([whole[header] ^ 1]) + whole[header + 1 :],
        "newer": whole.replace(b'\\"version\\": 2', f'\\"version\\": {VERSION + 1}'.encode(), 1),
    }[how]


@pytest.mark.parametrize(
    ("how", "wanted"),
    [
        ("truncated", "is no whole safetensors file"),
        ("header", "was altered"),
        ("data", "was altered"),
        ("newer", f"is of version {VERSION + 1}, this lpe reads up to {VERSION}"),
    ],
)
def test_a_spoiled_packed_file_is_refused_and_nothing_is_written(
    folder: Path,
    packed: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    how: str,
    wanted: str,
    error_of: Run,
) -> None:
    assert spoil(packed, how) != packed.read_bytes()
    (tmp_path / "e").write_bytes(spoil(packed, how))
    said = error_of(*timm_arguments(folder), "--packed", tmp_path / "e", "--csv", tmp_path / "r.csv")
    assert wanted in said and list(tmp_path.iterdir()) == [tmp_path / "e"]


def test_another_models_packed_file_is_refused(error_of: Run, folder: Path, tmp_path: Path) -> None:
    lpe.save(random_ensemble(), tmp_path / "e")  # of a thousand classes
    said = error_of(*timm_arguments(folder), "--packed", tmp_path / "e")
    assert "is of another model: 'head.weight' is [1000, 64] there, [3, 64] here" in said


def test_a_model_of_other_weights_than_were_packed_is_refused(
    error_of: Run, folder: Path, packed: Path
) -> None:
    other = timm_models._created(VIT, num_classes=3)
    save_file(other.state_dict(), folder / "other.safetensors")
    arguments = [
        folder / "other.safetensors" if each == folder / "vit.safetensors" else each
        for each in timm_arguments(folder)
    ]
    assert "was made of other weights than this VisionTransformer's" in error_of(
        *arguments, "--packed", packed
    )


def test_more_members_than_a_packed_file_holds_are_refused(
    error_of: Run, folder: Path, tmp_path: Path
) -> None:
    model = imagenet.load_model(VIT, folder / "vit.safetensors")
    lpe.save(lpe.LowPrecisionEnsemble(model, lpe.Int(4), 2), tmp_path / "e")
    assert "holds 2 members, not 3" in error_of(
        *timm_arguments(folder), "--packed", tmp_path / "e", "--size", 3
    )


# What is refused: one line, code 2, nothing written.


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["evaluate"], "MODEL"),
        (
            ["evaluate", "resnet50"],
            "a model is timm/NAME, open_clip/ARCHITECTURE:WEIGHTS or hf/FOLDER_OR_NAME",
        ),
        (["evaluate", "tim/resnet50"], "not 'tim/resnet50'"),
        (["evaluate", "timm/"], "not 'timm/'"),
        (["evaluate", "timm/resnet50"], "--data DIR"),
        (["evaluate", "hf/x"], "--tasks A,B"),
        (["evaluate", "timm/resnet50", "--tasks", "x"], "--tasks is for hf models, not for timm"),
        (["evaluate", "hf/x", "--data", "x"], "--data is for timm and open_clip models"),
        (["evaluate", "timm/resnet50", "--data", "no/where"], "there is no folder no/where"),
        (["evaluate", "timm/resnet50", "--data", ".", "--system", "int9"], "9 bits; integers take 2 to 8"),
        (["evaluate", "timm/resnet50", "--data", ".", "--scale-axis", "row"], "unknown scale axis 'row'"),
        (["evaluate", "timm/resnet50", "--data", ".", "--scale-axis", "block:0"], "positive integer, not 0"),
        (["evaluate", "timm/resnet50", "--data", ".", "--size", "0"], "positive integer, not 0"),
        (["evaluate", "timm/resnet50", "--data", ".", "--size", "two"], "'two' is no whole number"),
        (["evaluate", "timm/resnet50", "--data", ".", "--limit", "0"], "--limit must be 1 or more"),
        (
            ["evaluate", "timm/resnet50", "--data", ".", "--members", "together", "--method", "gaussian"],
            "--members together is for --method lpe, not gaussian",
        ),
        (
            ["evaluate", "timm/resnet50", "--data", ".", "--pin-memory", "--device", "cpu"],
            "--pin-memory is for batches on their way to a GPU, not to --device cpu",
        ),
        (["evaluate", "hf/x", "--autocast"], "--autocast is for timm and open_clip models, not for hf"),
        (["evaluate", "timm/resnet50", "--data", ".", "--batch-size", "0"], "--batch-size must be 1 or more"),
        (["evaluate", "timm/resnet50", "--data", ".", "--rounding", "nearest", "--size", "3"], "all alike"),
        (["evaluate", "timm/resnet50", "--data", ".", "--system", "fp32", "--size", "3"], "all alike"),
        (["evaluate", "timm/resnet50", "--data", ".", "--std", "1"], "--std is for --method gaussian"),
        (
            ["evaluate", "timm/resnet50", "--data", ".", "--device", "cuda:99"],
            "cannot compute on --device cuda:99",
        ),
        (["evaluate", "timm/resnet50", "--data", ".", "--device", "tpu7"], "cannot compute on --device tpu7"),
        (
            ["evaluate", "timm/resnet50", "--data", ".", "--device", "mps"],
            "cannot compute on --device mps (",
        ),
        (["evaluate", "timm/resnet50", "--data", ".", "--csv", "."], "is a folder"),
        (["evaluate", "timm/resnet50", "--data", ".", "--batch-size", "x"], "'x' is no whole number"),
        (["evaluate", "timm/resnet50", "--data", ".", "--float16"], "--float16 is how --predictions FILE"),
        (["evaluate", "--config", "no/where"], "there is no file no/where of options"),
        (["evaluate", "--config", "."], ". is no file; give a TOML file of options"),
        (["score", "x", "--stages", "1,2"], "--stages is of a cascade; give --cascade LOW,HIGH as well"),
        (["score", "x", "--first", "y"], "--first is of a cascade"),
        (["score", "x", "--cascade", "0"], "--cascade takes two top probabilities, such as 0,0.8, not '0'"),
        (["score", "x", "--cascade", "0,1", "--sizes", "1"], "--sizes is not for a cascade"),
        (["score", "x", "--cascade", "0,1", "--stages", "1;2"], "--stages takes integers with commas"),
        (["score", "x", "--temperature", "-1"], "--temperature takes a positive number or fit, not '-1'"),
        (["score", "x", "--temperature", "2", "--validation", "y"], "gives it; leave one out"),
        (["evaluate", "timm/resnet50", "--data", ".", "--metrics", "f1"], "a metric must be one of nll, "),
        (
            ["evaluate", "timm/resnet50", "--data", ".", "--csv", "x", "--predictions", "x"],
            "--csv and --predictions are both x; give two files",
        ),
        (["score"], "FILE"),
        (["evaluate", "timm/resnet50", "--data", ".", "--random-weights", "--checkpoint", "x"], "not both"),
        (["evaluate", "timm/resnet51", "--data", "."], "timm has no model 'resnet51'; near it"),
        (["evaluate", "timm/resnet50", "--data", ".", "--checkpoint", "x"], "there is no file x"),
        (["describe", "timm/resnet50", "--checkpoint", "x"], "there is no file x"),
        (["describe", "timm/resnet50", "--model-kwargs", "pad"], "takes KEY=VALUE, each key once, not 'pad'"),
        (["describe", "timm/resnet50", "--random-weights", "--model-kwargs", "pad=1"], "made with pad=1: "),
        (
            ["evaluate", "timm/resnet50", "--data", ".", "--std", "1", "2"],
            "--std takes the noise's one number",
        ),
        (["evaluate", "timm/resnet50", "--data", ".", "--std", *"012"], "the std must be positive"),
        (
            ["evaluate", "timm/resnet50", "--data", ".", "--input-size", *"123"],
            "one number or height and width",
        ),
        (["evaluate", "timm/resnet50", "--data", ".", "--interpolation", "x"], "unknown interpolation 'x'"),
        (["evaluate", "hf/x", "--mean", *"123"], "--mean is for timm and open_clip models, not for hf"),
        (["evaluate", "hf/x", "--std", *"123"], "--std is for timm and open_clip models, not for hf"),
        (["evaluate", "open_clip/x", "--crop-pct", "1"], "--crop-pct is for timm models, not for open_clip"),
    ],
)
def test_bad_arguments_are_answered_in_one_line(error_of: Run, arguments: list[str], wanted: str) -> None:
    assert wanted in error_of(*arguments)


def test_a_truncated_image_is_named_and_nothing_is_written(
    error_of: Run, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    for name in CLASSES:
        (tmp_path / "images" / name).mkdir()
        whole = (folder / "images" / name / f"{CLASSES.index(name)}.png").read_bytes()
        (tmp_path / "images" / name / "0.png").write_bytes(whole[: len(whole) // (2 if name == "cat" else 1)])
    arguments = [
        each if each != folder / "images" else tmp_path / "images" for each in timm_arguments(folder)
    ]
    out = tmp_path / "results"
    assert "cat/0.png is not a whole image" in error_of(
        *arguments, "--csv", out / "r.csv", "--json", out / "r.json"
    )
    assert list(out.iterdir()) == []


class Kill(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def dies_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], list[int]]:
    """Let a command die after so many passes (None: not); returns a list with an entry for each pass."""
    own = lpe.EvaluationOptions.logits

    def choose(passes: int | None) -> list[int]:
        taken: list[int] = []

        def counted(*asked: Any) -> Any:
            if not asked[2].any():  # a pass on nothing, which warms kernels up
                return own(*asked)
            if len(taken) == passes:
                raise Kill
            taken.append(len(taken))
            return own(*asked)

        monkeypatch.setattr(lpe.EvaluationOptions, "logits", counted)
        return taken

    return choose


def table_without_times(path: Path) -> str:
    return pd.read_csv(path, dtype=str).drop(columns="ms_per_example").to_csv()


def test_a_killed_evaluation_goes_on_between_two_passes_to_the_same_results(
    run: Run, folder: Path, tmp_path: Path, dies_after: Callable[[int | None], list[int]]
) -> None:
    # Two batches: of the model, of RTN and of three members.
    arguments = [*timm_arguments(folder), "--system", "int4", "--size", 3]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for out in (whole, parts):
        out.mkdir()
    told = (("--predictions", "p.safetensors"), ("--csv", "r.csv"))
    dies_after(None)
    run(*arguments, *(each for option, name in told for each in (option, whole / name)))
    options = [each for option, name in told for each in (option, parts / name)]
    done = 0
    for more in (1, 2, 2, 3):
        dies_after(more)
        with pytest.raises(Kill):
            cli.main([str(each) for each in (*arguments, *options)])
        done += more
    last = dies_after(None)
    run(*arguments, *options)
    assert (done, len(last)) == (8, 2)
    assert sorted(path.name for path in parts.glob("[!.]*")) == ["p.safetensors", "r.csv"]
    assert (parts / "p.safetensors").read_bytes() == (whole / "p.safetensors").read_bytes()
    assert table_without_times(parts / "r.csv") == table_without_times(whole / "r.csv")


def test_without_predictions_a_killed_evaluation_goes_on_at_a_row(
    run: Run, folder: Path, tmp_path: Path, dies_after: Callable[[int | None], list[int]]
) -> None:
    arguments = [*timm_arguments(folder), "--system", "int4", "--size", 3, "--csv"]
    dies_after(None)
    run(*arguments, tmp_path / "whole.csv")
    dies_after(7)  # two batches as it is, two for its temperature, two by RTN
    with pytest.raises(Kill):
        cli.main([str(each) for each in (*arguments, tmp_path / "parts.csv")])
    last = dies_after(None)
    run(*arguments, tmp_path / "parts.csv")
    assert len(last) == 6
    assert table_without_times(tmp_path / "parts.csv") == table_without_times(tmp_path / "whole.csv")
    assert sorted(path.name for path in tmp_path.glob("[!.]*.csv*")) == ["parts.csv", "whole.csv"]


def test_what_another_command_kept_is_said_and_not_taken(
    run: Run,
    folder: Path,
    tmp_path: Path,
    dies_after: Callable[[int | None], list[int]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [*timm_arguments(folder), "--size", 3, "--csv", tmp_path / "r.csv", "--system"]
    dies_after(7)
    with pytest.raises(Kill):
        cli.main([str(each) for each in (*arguments, "int4")])
    capsys.readouterr()
    last = dies_after(None)
    assert cli.main([str(each) for each in (*arguments, "int5")]) == 0
    assert "r.csv.rows is of another command or damaged; it begins anew\n" in capsys.readouterr().err
    assert len(last) == 12


def test_an_interrupt_ends_with_130_and_no_trace(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "evaluate", interrupted)
    assert cli.main([str(each) for each in timm_arguments(folder)]) == 130
    assert capsys.readouterr().err == "interrupted; nothing was written\n"


def shell(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lpe", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_the_command_itself_ends_with_2_and_one_line_on_stderr() -> None:
    ended = shell("evaluate", "resnet50")
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)


def test_the_command_itself_prints_its_help_with_an_example() -> None:
    ended = shell("evaluate", "--help")
    assert ended.returncode == 0
    assert "lpe evaluate timm/vit_small_patch16_224.augreg_in21k_ft_in1k --data imagenet" in ended.stdout


# The other two kinds.


@pytest.fixture
def tiny_clip(monkeypatch: pytest.MonkeyPatch) -> str:
    """An architecture of open_clip's with 16 wide towers."""
    import open_clip.factory

    config: dict[str, Any] = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", config)
    return "tiny"


def test_an_open_clip_classifier_is_packed_with_its_zero_shot_head(
    run: Run, folder: Path, tmp_path: Path, tiny_clip: str
) -> None:
    (tmp_path / "names").write_text("ant\nbee\ncat\n")
    (tmp_path / "templates").write_text("a {}\n")
    texts = ["--class-names", tmp_path / "names", "--templates", tmp_path / "templates"]
    model = [f"open_clip/{tiny_clip}", "--random-weights", *texts]
    run("pack", *model, "--kind", "seeded", "--size", 2, "-o", tmp_path / "e", "--device", "cpu")
    images = ["--data", folder / "images", "--workers", 0]
    rows = cells(run("evaluate", *model, *images, "--packed", tmp_path / "e"))
    assert [row[0] for row in rows] == ["LPE-BSR"] * 2


def test_an_open_clip_model_is_evaluated_zero_shot_on_classes_of_ones_own(
    run: Run, folder: Path, tmp_path: Path, tiny_clip: str
) -> None:
    from lpe.substrates import clip

    model = clip.random_model(tiny_clip).model
    torch.save(model.state_dict(), tmp_path / "clip.pt")
    (tmp_path / "names.txt").write_text("\n".join(CLASSES))
    (tmp_path / "templates.txt").write_text("a photo of a {}.\n")
    run(
        *("evaluate", f"open_clip/{tiny_clip}", "--checkpoint", tmp_path / "clip.pt", "--no-quick-gelu"),
        *("--data", folder / "images", "--workers", 0, "--size", 2, "--csv", tmp_path / "r.csv"),
        *("--class-names", tmp_path / "names.txt", "--templates", tmp_path / "templates.txt"),
        *("--json", tmp_path / "r.json"),
    )
    loaded = clip.random_model(tiny_clip)
    head = clip.zero_shot_head(loaded.model, loaded.tokenizer, CLASSES, ["a photo of a {}."])
    data = validation(folder / "images", loaded.preprocess, 64, classes=3)
    ensemble = lpe.LowPrecisionEnsemble(clip.ZeroShotClassifier(loaded.model, head), lpe.Int(5), 2)
    wanted = lpe.evaluate(ensemble, data)
    found = pd.read_csv(tmp_path / "r.csv").iloc[3:].reset_index(drop=True)
    pd.testing.assert_frame_equal(found[list(wanted.columns)], wanted, rtol=1e-5)
    config = json.loads((tmp_path / "r.json").read_text())["provenance"]["config"]
    assert config["clip"]["image_activation"] == "GELU"


def test_a_zero_shot_model_needs_the_names_of_classes_of_ones_own(
    error_of: Run, folder: Path, tmp_path: Path, tiny_clip: str
) -> None:
    for number in range(1000):  # as many as ImageNet has, and none of its classes
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "x.png").symlink_to(folder / "images" / "ant" / "0.png")
    said = error_of("evaluate", f"open_clip/{tiny_clip}", "--random-weights", "--data", tmp_path)
    assert said.endswith(
        "has classes of its own, and a zero-shot model needs their names: give --class-names\n"
    )


def test_open_clip_s_preprocessing_can_be_given_and_is_printed(
    run: Run, folder: Path, tmp_path: Path, tiny_clip: str
) -> None:
    (tmp_path / "names").write_text("\n".join(CLASSES))
    (tmp_path / "templates").write_text("a {}\n")
    printed = run(
        *("evaluate", f"open_clip/{tiny_clip}", "--random-weights", "--data", folder / "images"),
        *("--workers", 0, "--size", 1, "--limit", 2, "--class-names", tmp_path / "names"),
        *("--templates", tmp_path / "templates", "--mean", 0.1, 0.2, 0.3, "--interpolation", "bilinear"),
    )
    assert printed.startswith("open_clip/tiny, random weights, 2 images of 3 classes")
    assert "open_clip/tiny has them but for mean, interpolation: 32 x 32, shortest, bilinear, " in printed
    assert "mean 0.1 0.2 0.3, std" in printed


def test_a_template_without_a_place_for_the_name_is_refused(
    error_of: Run, folder: Path, tmp_path: Path, tiny_clip: str
) -> None:
    (tmp_path / "templates.txt").write_text("a photo\n")
    message = error_of(
        *("evaluate", f"open_clip/{tiny_clip}", "--random-weights", "--data", folder / "images"),
        *("--templates", tmp_path / "templates.txt"),
    )
    assert "the template 'a photo'" in message


def llama(folder: Path) -> Path:
    """A folder of a language model in transformers' format: 32 characters are its tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = ["<s>", *"0123456789+=. abcdefghijklmnopq"]
    tokenizer = Tokenizer(models.WordLevel({letter: index for index, letter in enumerate(letters)}, "<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>").save_pretrained(
        folder
    )
    config = LlamaConfig(
        vocab_size=len(letters),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


TASK = """\
task: sums
dataset_path: json
dataset_kwargs:
  data_files:
    validation: {data}
validation_split: validation
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
doc_to_choice: ["1", "2", "3"]
num_fewshot: 0
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


def test_a_language_model_is_evaluated_on_a_task_of_ones_own(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [
        {"question": "0+1=", "answer": 0},
        {"question": "1+1=", "answer": 1},
        {"question": "1+2=", "answer": 2},
    ]
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "sums.yaml").write_text(TASK.format(data=tmp_path / "sums.jsonl"))
    printed = run(
        *(
            "evaluate",
            f"hf/{llama(tmp_path / 'llama')}",
            "--tasks",
            "sums",
            "--include-path",
            tmp_path / "tasks",
        ),
        *("--system", "int4", "--size", 2, "--csv", tmp_path / "r.csv"),
    )
    assert printed.splitlines()[0].endswith("llama, sums")
    table = pd.read_csv(tmp_path / "r.csv", keep_default_na=False)
    assert list(table["method"]) == ["FP32", "FP32 + temperature", "RTN", "LPE-BSR", "LPE-BSR"]
    assert list(table["task"].unique()) == ["sums"] and (table["nll"] > 0).all()
    assert (table["ms_per_example"].drop(1).astype(float) > 0).all()
    task = ["--tasks", "sums", "--include-path", tmp_path / "tasks", "--size", 1]
    run("evaluate", f"hf/{tmp_path / 'llama'}", *task, "--num-fewshot", 1, "--json", tmp_path / "one.json")
    one = json.loads((tmp_path / "one.json").read_text())
    assert one["provenance"]["config"]["num_fewshot"] == 1 and one["rows"][0]["nll"] != table["nll"][0]


TEXTS = """\
task: texts
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
num_fewshot: 0
metric_list:
  - metric: word_perplexity
    aggregation: weighted_perplexity
    higher_is_better: false
"""


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Arguments: a language model on a task that is not multiple choice."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "texts.jsonl").write_text(json.dumps({"text": "a bad cafe"}))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "texts.yaml").write_text(TEXTS.format(data=tmp_path / "texts.jsonl"))
    model = f"hf/{llama(tmp_path / 'llama')}"
    return ["evaluate", model, "--tasks", "texts", "--include-path", tmp_path / "tasks", "--size", 1]


def test_a_text_has_its_perplexity_and_no_calibration_error(run: Run, texts: list[object]) -> None:
    header = run(*texts).splitlines()[1].split()
    assert "perplexity" in header and "ECE" not in header


def test_ece_of_a_task_that_is_not_multiple_choice_is_refused(
    texts: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*map(str, texts), "--metrics", "nll,ece"]) == 2
    # Above it stand the progress bars of transformers and datasets.
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(
        "error: texts is of type loglikelihood_rolling, not multiple choice, and has no ece"
    )


@pytest.mark.parametrize("option", [("--system", "int4"), ("--scale-axis", "tensor")], ids=" ".join)
def test_how_to_round_is_refused_where_nothing_is_rounded(
    option: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["evaluate", "timm/test_vit", "--random-weights", "--method", "mc-dropout", *option]
    assert cli.main(given) == 2
    assert capsys.readouterr().err == (
        f"error: {option[0]} says how weights are rounded, and mc-dropout rounds none\n"
    )


def test_a_dtype_that_does_not_hold_the_weights_is_refused() -> None:
    model = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(model.bias, 1e5)
    asked = ModelOptions(model="timm/some", dtype="float16")
    with pytest.raises(lpe.InputError, match="--dtype float16 does not hold .* 'bias' would be infinite"):
        placed(model, torch.device("cpu"), asked)


# One member as a checkpoint of its library.


def logits_of(net: torch.nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        said: Any = net.eval()(*inputs)
    logits: torch.Tensor = getattr(said, "logits", said)
    return logits


def test_a_timm_model_s_member_is_what_timm_loads(run: Run, folder: Path, tmp_path: Path) -> None:
    import timm

    model = [f"timm/{VIT}", "--checkpoint", folder / "vit.safetensors"]
    printed = run("export", *model, "--system", "int3", "--member", 3, "-o", tmp_path / "m")
    files = sorted(path.name for path in (tmp_path / "m").iterdir())
    assert files == ["config.json", "lpe_member.json", "model.safetensors"]
    assert printed.startswith(f"wrote member 3 to {tmp_path / 'm'}: ")
    base = imagenet.load_model(VIT, folder / "vit.safetensors")
    images = torch.rand(2, 3, 160, 160)
    member = lpe.LowPrecisionEnsemble(base, lpe.Int(3), 4)[3]
    found = timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True)
    assert torch.equal(logits_of(found, images), logits_of(member, images))
    assert not torch.equal(logits_of(base, images), logits_of(member, images))
    about = json.loads((tmp_path / "m" / "lpe_member.json").read_text())
    assert about["member"] == 3 and "int3" in about["ensemble"] and about["checkpoint"] == "vit.safetensors"


@pytest.mark.parametrize("kind", ["members", "seeded"])
def test_a_packed_file_s_member_is_exported(run: Run, folder: Path, tmp_path: Path, kind: str) -> None:
    base = imagenet.load_model(VIT, folder / "vit.safetensors")
    lpe.save(lpe.LowPrecisionEnsemble(base, lpe.Int(4), 2, seed=7), tmp_path / "e.lpe", kind=kind)
    wanted = 1 if kind == "members" else 5  # a seeded file has as many as one likes
    member = lpe.load(tmp_path / "e.lpe", base, wanted + 1)[wanted]
    model = [f"timm/{VIT}", "--checkpoint", folder / "vit.safetensors", "--packed", tmp_path / "e.lpe"]
    run("export", *model, "--member", wanted, "--format", "state-dict", "-o", tmp_path / "m")
    held = load_file(tmp_path / "m" / "model.safetensors")
    assert {*held} == {*base.state_dict()}
    base.load_state_dict(held)
    images = torch.rand(2, 3, 160, 160)
    assert torch.equal(logits_of(base, images), logits_of(member, images))


def test_a_language_model_s_member_is_what_transformers_loads(run: Run, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = llama(tmp_path / "llama")
    run("export", f"hf/{place}", "--system", "int4", "--member", 1, "-o", tmp_path / "m")
    base = AutoModelForCausalLM.from_pretrained(place)
    ids = torch.arange(6)[None] + 3
    member = lpe.LowPrecisionEnsemble(base, lpe.Int(4), 2)[1]
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert torch.equal(logits_of(found, ids), logits_of(member, ids))
    assert not torch.equal(logits_of(base, ids), logits_of(member, ids))
    assert AutoTokenizer.from_pretrained(tmp_path / "m")("a b")["input_ids"]


def test_an_open_clip_model_s_member_is_what_open_clip_loads(
    run: Run, tmp_path: Path, tiny_clip: str
) -> None:
    import open_clip

    from lpe.substrates import clip

    run("export", f"open_clip/{tiny_clip}", "--random-weights", "--member", 2, "-o", tmp_path / "m")
    loaded = clip.random_model(tiny_clip)
    network = clip.ZeroShotClassifier(loaded.model, torch.rand(16, 3))
    images, texts = torch.rand(2, 3, 32, 32), open_clip.get_tokenizer(tiny_clip)(["a", "dog"])
    member = lpe.LowPrecisionEnsemble(network, lpe.Int(5), 3)[2]
    if hasattr(open_clip.factory, "LOCAL_DIR_PREFIX"):
        found = open_clip.create_model(f"local-dir:{tmp_path / 'm'}")
    else:  # a version that loads weights from files alone
        found = open_clip.create_model(tiny_clip, str(tmp_path / "m" / "open_clip_model.safetensors"))
    with torch.no_grad():
        found.eval()
        assert torch.equal(found.encode_image(images), member.visual(images))  # type: ignore[operator]
        assert torch.equal(found.encode_text(texts), loaded.model.encode_text(texts))  # type: ignore[operator]
        assert not torch.equal(found.encode_image(images), network.visual(images))


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--member", -1], "--member must be 0 to 1,048,575, not -1"),
        (["--member", 3, "--size", 3], "--member must be an integer from 0 to 2, not 3"),
        (["--member", 1, "--rounding", "nearest"], "members of nearest rounding are all alike"),
        (["--member", 0, "--method", "mc-dropout"], "is a mask or a view and has the model's own weights"),
        (["--member", 0, "--packed", "no/where"], "there is no file no/where; lpe pack writes one"),
        (["--member", 0, "--packed", "x", "--seed", 1], "--seed is settled by the packed file"),
    ],
)
def test_what_cannot_be_exported_is_said_and_nothing_is_written(
    error_of: Run, tmp_path: Path, options: list[object], wanted: str
) -> None:
    said = error_of("export", f"timm/{VIT}", "--random-weights", *options, "-o", tmp_path / "m")
    assert wanted in said and list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_left_alone(error_of: Run, tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    said = error_of("export", f"timm/{VIT}", "--random-weights", "--member", 0, "-o", tmp_path)
    assert "is there and is not empty; give a folder that is new" in said
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
