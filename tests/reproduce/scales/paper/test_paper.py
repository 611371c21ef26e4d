"""The scale of the paper's own models: what it needs, and its rehearsal, without their weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from torch import nn

import lpe
from lpe.errors import InputError
from reproduce import __main__ as everything
from reproduce import fig2, fig7, table1
from reproduce.command import run_figure, substrates_of
from reproduce.judge.claims import Settings
from reproduce.scales.paper import models as paper
from reproduce.scales.paper import rehearsal
from reproduce.scales.paper.models import DATA, PaperModel
from reproduce.scales.paper.settings import PAPER

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
"""A Llama of 2 × 1,024 weights in its embedding and head, 16 in its last norm, and 2,336 in each layer."""
ENDS, LAYER = 2 * 64 * 16 + 16, 16 * (16 + 8 + 8 + 16) + 3 * 16 * 32 + 2 * 16


@pytest.fixture
def nothing_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No data, and an empty cache of the hub: its folder."""
    cache = tmp_path / "cache"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("LPE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("LPE_STORE", str(tmp_path / "work" / "store"))
    return cache


def run_table1(folder: Path, *further: str) -> int:
    arguments = ["--scale", "paper", "--out", str(folder), "--wandb", "disabled", *further]
    return run_figure(table1.SCRIPT, arguments)


def put_into_cache(cache: Path, repository: str, file: str) -> None:
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "snapshots" / "abc" / file).touch()
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")


def test_every_missing_piece_has_one_line_that_names_it_and_its_place(
    nothing_there: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_table1(tmp_path / "out") == 2
    *missing, last = capsys.readouterr().err.splitlines()
    for line, size in zip(missing, ("tiny", "small", "base", "large"), strict=False):
        assert f"hf download timm/vit_{size}_patch16_224.augreg_in21k_ft_in1k" in line
    assert [line.split(":")[1] for line in missing[:4]] == [" ViT-T", " ViT-S", " ViT-B", " ViT-L"]
    assert "put it into" in missing[4] and str(tmp_path / "data" / "imagenet" / "val") in missing[4]
    assert len(missing) == 5
    assert last == "error: 5 pieces are missing, nothing was run; --random-weights rehearses without"


def test_nothing_is_written_where_a_piece_is_missing(nothing_there: Path, tmp_path: Path) -> None:
    run_table1(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tags_data_and_licences_are_named(
    nothing_there: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_table1(tmp_path / "out")
    said = capsys.readouterr().out
    assert "ViT-B: weights timm/vit_base_patch16_224.augreg_in21k_ft_in1k (Apache-2.0)" in said
    assert DATA["imagenet"].licence in said


def test_weights_in_the_cache_are_not_missing(
    nothing_there: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_into_cache(nothing_there, "timm/vit_small_patch16_224.augreg_in21k_ft_in1k", "pytorch_model.bin")
    assert run_table1(tmp_path / "out") == 2
    assert "missing: ViT-S" not in (said := capsys.readouterr().err)
    assert "missing: ViT-T" in said


@pytest.mark.parametrize("held", ["n01440764/a.JPEG", "ILSVRC2012_val_00000001.JPEG"])
def test_a_data_folder_in_either_layout_is_not_missing(
    held: str, nothing_there: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "data" / "imagenet" / "val" / held
    image.parent.mkdir(parents=True)
    image.touch()
    run_table1(tmp_path / "out")
    assert "ImageNet-1k" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "repository"),
    [
        ("timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k", "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"),
        ("open_clip/ViT-g-14:laion2b_s34b_b88k", "laion/CLIP-ViT-g-14-laion2B-s34B-b88K"),
        ("hf/meta-llama/Meta-Llama-3-8B", "meta-llama/Meta-Llama-3-8B"),
    ],
)
def test_a_model_s_repository_is_that_of_its_library(source: str, repository: str) -> None:
    assert paper.hub_files(source)[0] == repository


def test_a_figure_of_trainings_does_not_exist_at_paper(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_figure(fig2.SCRIPT, ["--scale", "paper"]) == 2
    assert capsys.readouterr().err == "error: fig2 needs a main network; scale paper has none\n"


def test_everything_at_paper_knows_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert everything.main(["--scale", "paper", "--only", "table1,fig9"]) == 2
    assert capsys.readouterr().err.startswith("error: fig9 needs ")


def test_everything_at_paper_refuses_several_processes(capsys: pytest.CaptureFixture[str]) -> None:
    assert everything.main(["--scale", "paper", "--jobs", "2"]) == 2
    said = "error: scale paper runs one model at a time; leave --jobs 2 out\n"
    assert capsys.readouterr().err == said


def test_a_rehearsal_of_digits_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--scale", "digits", "--random-weights"]
    assert run_figure(table1.SCRIPT, arguments) == 2
    assert capsys.readouterr().err == "error: --random-weights is for --scale paper, not digits\n"


def test_the_claims_networks_are_the_models_of_the_figures() -> None:
    settings = Settings.of(PAPER)
    of_table, of_figure = (
        tuple(each.name for each in substrates_of([script], PAPER)) for script in (table1.SCRIPT, fig7.SCRIPT)
    )
    assert settings.networks == of_table == tuple(f"paper ViT-{letter}" for letter in "TSBL")
    assert settings.large_networks[""] == of_figure == ("paper CLIP-L", "paper CLIP-g", "paper Llama-8B")


@pytest.mark.parametrize(("layers", "spare"), [(1, 0), (2, 0), (2, LAYER - 1), (6, 100 * LAYER)])
def test_a_llama_is_cut_to_the_layers_that_fit_with_a_member(layers: int, spare: int) -> None:
    weights = ENDS + layers * LAYER + spare
    bytes_there = round(4 * weights / rehearsal.HEADROOM + 1)
    net, kept, whole = rehearsal.cut_llama(SHAPE, bytes_there, torch.device("cpu"))
    assert (kept, whole) == (layers, 6)
    assert sum(parameter.numel() for parameter in net.parameters()) == ENDS + layers * LAYER


def test_a_llama_of_which_not_one_layer_fits_is_refused() -> None:
    with pytest.raises(InputError, match="take a larger machine"):
        rehearsal.cut_llama(SHAPE, round(4 * (ENDS + LAYER - 1) / rehearsal.HEADROOM), torch.device("cpu"))


def test_a_llama_is_made_where_it_runs() -> None:
    net, layers, _ = rehearsal.cut_llama(SHAPE, 2**30, torch.device("meta"))
    assert layers == 6 and {parameter.device.type for parameter in net.parameters()} == {"meta"}


def test_llama_3_8b_is_whole_on_a_gpu_of_80_gb() -> None:
    net, layers, whole = rehearsal.cut_llama(dict(paper.LLAMA_3_8B), 79 * 10**9, torch.device("meta"))
    assert layers == whole == 32
    assert sum(parameter.numel() for parameter in net.parameters()) == 8_030_261_248


def test_a_rehearsals_members_are_those_of_an_evaluation_and_all_are_timed() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 4))
    ensemble = rehearsal._TimedEnsemble(net, lpe.Int(5), 3)
    memory = set()
    for index, member in enumerate(ensemble.in_turn()):
        weight = member.get_parameter("1.weight")
        memory.add(weight.data_ptr())
        assert torch.equal(weight, ensemble.member(index).get_parameter("1.weight"))
    # Each is rounded into the memory of the first, which is not made anew.
    assert len(memory) == 1
    assert len(ensemble.making.seconds) == 3 and all(seconds > 0 for seconds in ensemble.making.seconds)


TINY_MODELS = {
    "ViT": PaperModel("timm/test_vit.r160_in1k", "Apache-2.0", "imagenet", {}),
    "Llama": PaperModel("hf/none", "", "mmlu", {**SHAPE, "vocab_size": 256}),
}


@pytest.mark.parametrize("name", TINY_MODELS)
def test_a_rehearsal_prints_what_a_member_takes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    done = rehearsal.rehearsed(name, TINY_MODELS[name], bits=5)
    row = dict(zip(rehearsal.HEADER, done.cells, strict=True))
    assert row["bits a rounded weight"] == "5.00"
    assert float(row["make a member (s)"]) >= 0
    assert float(row["unrounded (MB)"].replace(",", "")) >= float(row["a member (MB)"])
    assert row["dtype"] == {"ViT": "FP32", "Llama": "BF16"}[name]
    assert replace(done, cells=()).note
