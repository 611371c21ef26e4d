"""Whole models on a GPU: the benchmark's part, on a Llama of two layers, a tiny ViT and CLIP on the CPU.

No time is looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

import lpe
from benchmarks import gpu_calls, gpu_models
from benchmarks.gpu_timer import Timer
from lpe.ensembles import on_the_fly
from lpe.errors import InputError
from reproduce.scales.paper.models import LLAMA_3_8B

for package in ("timm", "open_clip", "transformers"):
    pytest.importorskip(package)

SHAPE = {
    **LLAMA_3_8B,
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
VISION = {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16}
TEXT = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 3}
CLIP = {"embed_dim": 12, "vision_cfg": VISION, "text_cfg": TEXT}
IMAGES = (2, 3, 32, 32)
VIT = partial(
    gpu_calls.of_timm,
    "vit_tiny_patch16_224",
    img_size=32,
    embed_dim=24,
    depth=1,
    num_heads=2,
    num_classes=5,
)

MODELS = {
    "LLaMa-3-8B": gpu_models.Model(
        partial(gpu_models.llama, SHAPE), partial(gpu_models.tokens, (1, 6), 64), False
    ),
    "ViT-L/16": gpu_models.Model(VIT, partial(gpu_models.noise, IMAGES), True),
    "CLIP-ViT-g/14": gpu_models.Model(
        partial(gpu_models.clip, CLIP, 4), partial(gpu_models.noise, IMAGES), True
    ),
}
SMALL = {
    "digits ViT": gpu_models.Small(
        partial(gpu_models.digits_vit, 16, 1), partial(gpu_models.noise, (2, 1, 8, 8)), 3
    )
}
CASES = ("LLaMa-3-8B, 1 token", "LLaMa-3-8B, 6 tokens", "ViT-L/16", "CLIP-ViT-g/14")
MEMBERS = 2


def timer_on(device: str) -> Timer:
    return Timer(torch.device(device), repeats=1, least_seconds=0.0)


@pytest.fixture(
    scope="module",
    params=[
        "cpu",
        pytest.param(
            "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
        ),
    ],
)
def measured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    gpu_models.measure(timer_on(request.param), folder, MODELS, SMALL, MEMBERS)
    return folder


def test_every_model_has_a_row_each_way(measured: Path) -> None:
    table = pd.read_csv(measured / gpu_models.MODEL_FILE)
    expected = {(model, way) for model in CASES for way in gpu_models.WAYS}
    assert set(zip(table["model"], table["what"], strict=True)) == expected and len(table) == len(expected)
    assert table["why"].isna().all(), table["why"].dropna().to_list()
    assert (table["ms_an_example"] > 0).all() and (table["members"] == MEMBERS).all()


def test_times_are_of_the_same_models_plain_passes(measured: Path) -> None:
    table = pd.read_csv(measured / gpu_models.MODEL_FILE)
    plain = table[table["what"] == gpu_models.PLAIN].set_index("model")["ms_an_example"]
    expected = [
        each / plain[model] for each, model in zip(table["ms_an_example"], table["model"], strict=True)
    ]
    assert table["times_plain"].to_list() == pytest.approx(expected)


def test_making_a_member_is_timed_where_it_is_made(measured: Path) -> None:
    table = pd.read_csv(measured / gpu_models.MODEL_FILE).groupby("what")["making_seconds"]
    made = {way for way, seconds in table if seconds.notna().all() and (seconds > 0).all()}
    assert made == {gpu_models.EACH, gpu_models.IN_TURN, gpu_models.PLANES}


def test_the_language_model_is_bfloat16_and_images_are_autocast(measured: Path) -> None:
    table = pd.read_csv(measured / gpu_models.MODEL_FILE).set_index("model")["compute"]
    assert set(table[CASES[0]]) == {"as stored"} and set(table[CASES[3]]) == {"bfloat16 autocast"}
    net = gpu_calls.made_on(torch.device("cpu"), MODELS["LLaMa-3-8B"].make)
    assert {parameter.dtype for parameter in net.parameters()} == {torch.bfloat16}
    assert gpu_models.tokens((1, 6), 64, torch.device("cpu"))["6 tokens"].shape == (1, 6)


def test_the_image_tower_is_the_whole_tower_without_text() -> None:
    import open_clip

    net = gpu_models.clip(CLIP, 4)
    tower = open_clip.CLIP(**CLIP).visual
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in tower.parameters())
    assert not any("text" in name or "token_embedding" in name for name, _ in net.named_parameters())


def test_members_side_by_side_have_a_row_each_way(measured: Path) -> None:
    table = pd.read_csv(measured / gpu_models.SIDE_FILE)
    ways = {
        (gpu_models.ONE_BY_ONE, "launched"),
        (gpu_models.VMAP, "launched"),
        (gpu_models.TOGETHER, "launched"),
    }
    if torch.cuda.is_available() and len(table) > 3:
        ways |= {(way, "graph") for way in (gpu_models.ONE_BY_ONE, gpu_models.STREAMS, gpu_models.VMAP)}
    assert set(zip(table["what"], table["run"], strict=True)) == ways
    assert table["why"].isna().all() and (table["median_seconds"] > 0).all()
    assert table["times_one_by_one"][0] == 1


def test_the_tables_tell_models_members_and_what_is_not_counted(measured: Path) -> None:
    texts = gpu_models.tables(measured)
    assert len(texts) == len(CASES) + len(SMALL)
    assert texts[0].startswith("LLaMa-3-8B, 1 token") and "2 members, 1 examples" in texts[0]
    assert texts[-1].startswith("digits ViT: 3 members side by side, 2 examples")


class Refused(nn.Module):
    """A model that mixes an example with those before it: its members cannot run at once."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.linear(inputs + inputs.cumsum(dim=0))
        return outputs


def test_a_way_that_the_library_refuses_has_a_row_that_says_why() -> None:
    model = gpu_models.Model(Refused, partial(gpu_models.noise, (3, 8)), False)
    rows = {row["what"]: row for row in gpu_models.model_rows(timer_on("cpu"), "refused", model, MEMBERS)}
    assert set(rows) == set(gpu_models.WAYS)
    for way in (gpu_models.DRAWN, gpu_models.IN_SMALL_BLOCKS, gpu_models.PLANES):
        assert rows[way]["ms_an_example"] is None and "take the members one by one" in str(rows[way]["why"])
    assert rows[gpu_models.IN_TURN]["why"] == "" and rows[gpu_models.IN_TURN]["times_plain"] is not None


def test_a_way_that_fails_on_the_device_has_a_row_that_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(ensemble: lpe.LowPrecisionEnsemble, storage: str = "generator") -> nn.Module:
        raise torch.OutOfMemoryError("out of memory\nand much more")

    monkeypatch.setattr(lpe.LowPrecisionEnsemble, "as_module", full)
    model = gpu_models.Model(lambda: nn.Linear(8, 4), partial(gpu_models.noise, (3, 8)), False)
    rows = {row["what"]: row["why"] for row in gpu_models.model_rows(timer_on("cpu"), "full", model, MEMBERS)}
    assert rows[gpu_models.PLANES] == rows[gpu_models.DRAWN] == "out of memory"
    assert rows[gpu_models.IN_TURN] == rows[gpu_models.PLAIN] == ""


def test_the_blocks_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = on_the_fly.BLOCK_BYTES
    with pytest.raises(InputError), gpu_models._blocks(gpu_models.DRAWN):
        assert on_the_fly.BLOCK_BYTES == gpu_models.BLOCK_BYTES != before
        raise InputError("")
    with gpu_models._blocks(gpu_models.IN_SMALL_BLOCKS):
        assert on_the_fly.BLOCK_BYTES == before
    assert on_the_fly.BLOCK_BYTES == before


@pytest.mark.parametrize(("first", "calls"), [(4.0, 1 + gpu_models.REPEATS), (6.0, 1)])
def test_a_slow_way_is_called_once(first: float, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Callable[[], object]] = []

    def seconds(self: Timer, run: Callable[[], object], count: int, own_clock: bool = True) -> float:
        made.append(run)
        return first if len(made) == 1 else 1.0

    monkeypatch.setattr(Timer, "seconds", seconds)
    timer = Timer(torch.device("cpu"))
    assert gpu_models._median(timer, lambda: None) == (first if calls == 1 else 1.0)
    assert len(made) == calls and timer.first_calls == first


def test_a_model_whose_package_is_missing_is_left_out_with_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> nn.Module:
        raise ImportError("No module named 'timm'")

    model = gpu_models.Model(missing, partial(gpu_models.noise, (1,)), False)
    gpu_models.measure(timer_on("cpu"), tmp_path, {"ViT-L/16": model}, {}, MEMBERS)
    assert capsys.readouterr().out == "left out: ViT-L/16 (No module named 'timm')\n"
    assert pd.read_csv(tmp_path / gpu_models.MODEL_FILE).empty


def test_the_models_are_the_papers() -> None:
    assert list(gpu_models.MODELS) == ["LLaMa-3-8B", "ViT-L/16", "CLIP-ViT-g/14"]
    with torch.device("meta"):
        net = gpu_models.MODELS["LLaMa-3-8B"].make()
    assert sum(parameter.numel() for parameter in net.parameters()) == 8_030_261_248
