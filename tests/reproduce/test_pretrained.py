"""The measurements of the scale ``paper``, on small models in the places of its own."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from PIL import Image

import lpe
from lpe.substrates import arithmetic, captioned_digits, clip, imagenet, language
from lpe.substrates.captioned_digits import DigitsCLIP
from lpe.substrates.imagenet import LabelledImages
from reproduce import fig7, table1, table3, table6
from reproduce.command import run_figure
from reproduce.draw.summaries import read
from reproduce.scales.paper import models as paper
from reproduce.scales.paper.loading import load, tuned
from reproduce.scales.paper.models import PAPER, PaperModel, PaperScale
from reproduce.study.measurer import Measurer
from reproduce.study.records import record_name

IMAGES, STRIDE = 12, 3
SMALL = replace(
    PAPER,
    batch=5,
    tuning_stride=STRIDE,
    size=3,
    claim_size=2,
    table_sizes=(1, 3),
    draws=2,
    bits=(5, 3),
    gaussian_stds=(1e-4, 10.0),
    dropout_rates=(0.01, 0.9),
    networks={"T": PaperModel("timm/test_vit.r160_in1k", "Apache-2.0", "imagenet")},
    clips={"L": PaperModel("open_clip/small:own", "MIT", "imagenet")},
    llamas={"8B": PaperModel("hf/own", "", "mmlu")},
)


def three_channels(image: Image.Image) -> torch.Tensor:
    """A picture as the small CLIP sees it."""
    return torch.from_numpy(np.asarray(image.resize((8, 8)), np.float32) / 255).permute(2, 0, 1)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> PaperScale:
    """A scale ``paper`` of small random models, a dozen pictures and arithmetic questions."""
    noise = np.random.default_rng(0)
    paths = []
    for number in range(IMAGES):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(noise.integers(256, size=(32, 32, 3), dtype=np.uint8)).save(paths[-1])
    labels = tuple(range(IMAGES))

    def pictures(
        folder: Path, transform: Callable[..., torch.Tensor], batch: int, **_: int
    ) -> LabelledImages:
        return LabelledImages(tuple(paths), labels, tuple(map(str, labels)), transform, batch)

    shape = DigitsCLIP(patch=4, width=8, depth=1, text_depth=1, heads=2, mlp_ratio=1.0)
    tokenizer = captioned_digits.CaptionTokenizer()
    loaded = clip.LoadedCLIP(captioned_digits.network(shape, 0).eval(), tokenizer, three_channels, {})
    llama = arithmetic.network(arithmetic.LlamaShape(width=8, depth=1, heads=2, hidden=8), 0).eval()
    llama.to(torch.bfloat16)  # as LLaMa-3-8B is
    monkeypatch.setattr(imagenet, "load_model", imagenet.random_model)
    monkeypatch.setattr(imagenet, "validation", pictures)
    monkeypatch.setattr(clip, "load_model", lambda tag: loaded)
    monkeypatch.setattr(open_clip, "IMAGENET_CLASSNAMES", (list(captioned_digits.CLASS_NAMES) * 2)[:IMAGES])
    monkeypatch.setattr(open_clip, "OPENAI_IMAGENET_TEMPLATES", list(captioned_digits.TEMPLATES))
    monkeypatch.setattr(language, "load_model", lambda name: (llama, arithmetic.tokenizer()))
    # The task by its name, as MMLU's; lm-eval looks for it in the folder of the suite's own.
    monkeypatch.setitem(paper.DATA, "mmlu", replace(paper.DATA["mmlu"], tasks=(arithmetic.TASK,)))
    asked = language.choices
    own = functools.partial(asked, include_path=arithmetic.TASKS)
    monkeypatch.setattr(language, "choices", own)
    monkeypatch.setattr(paper, "PAPER", SMALL)
    monkeypatch.setattr(paper, "_missing_weights", lambda *_: "")
    monkeypatch.setattr(paper, "_missing_data", lambda *_: "")
    monkeypatch.setenv("LPE_STORE", str(tmp_path / "work" / "store"))
    return SMALL


@pytest.fixture
def rendered(small: PaperScale, tmp_path: Path) -> Iterator[Callable[[object], pd.DataFrame]]:
    """A figure or table at the small scale; its record."""

    def rendered(module: object) -> pd.DataFrame:
        name = module.__name__.rsplit(".", 1)[-1]  # type: ignore[attr-defined]
        arguments = ["--scale", "paper", "--out", str(tmp_path / "out"), "--wandb", "disabled"]
        assert run_figure(name, module.__doc__, module.compute, module.draw, arguments, quiet=True) == 0  # type: ignore[attr-defined]
        return pd.read_csv(tmp_path / "out" / record_name(name), keep_default_na=False)

    yield rendered


def test_an_example_that_tunes_is_not_scored(small: PaperScale) -> None:
    loaded = load(small, small.networks["T"])
    parts = (loaded.test, loaded.tuning)
    scored, held = ([int(label) for _, labels in data.test for label in labels] for data in parts)  # type: ignore[attr-defined]
    assert held == list(range(0, IMAGES, STRIDE))
    assert sorted([*scored, *held]) == list(range(IMAGES))
    assert list(loaded.test.validation.labels) == held  # type: ignore[attr-defined]


def test_table_1_has_rtn_and_lpe_bsr_of_each_network(
    rendered: Callable[[object], pd.DataFrame], tmp_path: Path
) -> None:
    rows = rendered(table1)
    assert set(rows["substrate"]) == {"paper ViT-T"} and set(rows["seed"]) == {0}
    assert set(rows["method"]) == {"FP32", "FP32 + temperature", "RTN", "LPE-BSR"}
    assert set(rows["number_system"]) == {"fp32", "int6", "int4"}
    provenance = json.loads((tmp_path / "out" / "table1.json").read_text())
    seen = provenance["config"]["models"]["ViT-T"]
    assert seen["source"] == "timm/test_vit.r160_in1k"
    assert {"crop_pct", "interpolation", "mean", "std"} <= set(seen["data_config"])
    assert "One checkpoint of each model" in (tmp_path / "out" / "table1.md").read_text()


def test_table_6_has_the_rivals_at_the_settings_that_the_tuning_examples_chose(
    rendered: Callable[[object], pd.DataFrame], tmp_path: Path
) -> None:
    rows = rendered(table6)
    settings = rows[rows["metric"] == "setting"].set_index("method")["value"]
    assert set(settings.index) == {"Gaussian", "MC-dropout"}
    assert settings["Gaussian"] in SMALL.gaussian_stds and settings["MC-dropout"] in SMALL.dropout_rates
    loaded = load(SMALL, SMALL.clips["L"])
    expected = [
        loaded.test.evaluate(
            lpe.GaussianEnsemble(loaded.net, lpe.Int(5), SMALL.size, draw, std=settings["Gaussian"]), ()
        )["nll"].iloc[-1]
        for draw in range(SMALL.draws)
    ]
    noisy = rows[(rows["method"] == "Gaussian") & (rows["metric"] == "nll") & (rows["size"] == SMALL.size)]
    assert noisy["value"].tolist() == pytest.approx([np.mean(expected)])
    text = (tmp_path / "out" / "table6.md").read_text()
    assert f"std {settings['Gaussian']:g}; MC-dropout: rate {settings['MC-dropout']:g}" in text


def test_a_run_killed_before_the_setting_was_written_goes_on(
    rendered: Callable[[object], pd.DataFrame], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    add = Measurer.add

    def killed(self: Measurer, *arguments: Any) -> None:
        if arguments[3][0].get("metric") == "setting":
            raise KeyboardInterrupt
        add(self, *arguments)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Measurer, "add", killed)
        rendered(table6)
    rows = rendered(table6)
    assert set(rows[rows["metric"] == "setting"]["method"]) == {"Gaussian", "MC-dropout"}


def test_figure_7_and_table_3_show_the_clip_and_the_llama(
    rendered: Callable[[object], pd.DataFrame], tmp_path: Path
) -> None:
    for module in (fig7, table3):
        rows = rendered(module)
        assert set(rows["substrate"]) == {"paper CLIP-L", "paper Llama-8B"}
        assert set(rows["number_system"]) == {"fp32", "bf16", "int5"}
    assert (tmp_path / "out" / "fig7.pdf").stat().st_size > 10_000


def test_a_bfloat16_network_is_called_so_and_its_parameters_are_counted(
    small: PaperScale, rendered: Callable[[object], pd.DataFrame], tmp_path: Path
) -> None:
    rows = rendered(table3)
    llama = rows[rows["substrate"] == "paper Llama-8B"]
    assert set(llama["method"]) == {"BF16", "BF16 + temperature", "RTN", "LPE-BSR"}
    net = load(small, small.llamas["8B"]).net
    weights = sum(parameter.numel() for parameter in net.parameters())
    assert llama[llama["metric"] == "parameters"]["value"].tolist() == [weights]
    # The injected fault: parameters from the bits, as of float32.
    assert llama[llama["method"] == "BF16"]["memory_bits"].iloc[0] / 32 < 0.6 * weights
    table = pd.read_csv(tmp_path / "out" / "table3.csv")
    shown = table[table["model"] == "paper Llama-8B"]
    assert set(shown["parameters"]) == {weights}
    assert shown["method"].tolist()[:2] == ["☆ single BF16", "BF16 + temperature"]
    assert "NLL − ☆'s" in table.columns  # the other network is in float32


def test_figure_7_titles_a_bfloat16_network_so(
    rendered: Callable[[object], pd.DataFrame], tmp_path: Path
) -> None:
    rendered(fig7)
    summary = read(tmp_path / "out", "fig7")
    assert fig7.title_of(summary, "paper Llama-8B").endswith(" parameters, BF16")
    assert fig7.title_of(summary, "paper CLIP-L").endswith(" parameters")


def test_the_setting_with_the_least_nll_is_taken() -> None:
    class Data:
        def evaluate(self, ensemble: float, calibrated: object) -> pd.DataFrame:
            return pd.DataFrame({"nll": [9.0, (ensemble - 0.3) ** 2]})

    assert tuned(lambda value, size, seed: value, (0.1, 0.25, 0.6), 2, Data()) == 0.25  # type: ignore[arg-type, return-value]
