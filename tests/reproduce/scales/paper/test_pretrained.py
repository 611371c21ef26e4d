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
from reproduce.scales import find
from reproduce.scales.paper import loading, settings
from reproduce.scales.paper import models as paper
from reproduce.scales.paper.loading import Checkpoint
from reproduce.scales.paper.models import PaperModel
from reproduce.scales.paper.settings import PAPER
from reproduce.study.measurements import tuned
from reproduce.study.measurer import Measurer
from reproduce.study.records import record_name
from reproduce.study.scale import Rivals, Scale, Substrate

IMAGES, STRIDE = 12, 3
RIVALS = Rivals(stds=(1e-4, 10.0), rates=(0.01, 0.9))


def small_one(name: str, tag: str, data: str, example: str, rivals: Rivals | None) -> Substrate:
    model = PaperModel(tag, "a licence", data, {})
    made = settings.substrate(name, model, example, rivals)
    return replace(made, source=Checkpoint(model, batch=5, tuning_stride=STRIDE))


VIT = small_one("ViT-T", "timm/test_vit.r160_in1k", "imagenet", "image", None)
CLIP = small_one("CLIP-L", "open_clip/small:own", "imagenet", "image", RIVALS)
LLAMA = small_one("Llama-8B", "hf/own", "mmlu", "question", None)
SMALL = replace(
    PAPER,
    sizes=(VIT,),
    large={"": (CLIP, LLAMA)},
    compared=CLIP,
    settings=replace(PAPER.settings, size=3, claim_size=2, table_sizes=(1, 3), draws=2, bits=(5, 3)),
)


def three_channels(image: Image.Image) -> torch.Tensor:
    """A picture as the small CLIP sees it."""
    return torch.from_numpy(np.asarray(image.resize((8, 8)), np.float32) / 255).permute(2, 0, 1)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Scale]:
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
    monkeypatch.setitem(find.SCALES, "paper", SMALL)
    loading._kept.cache_clear()  # what is kept in memory is of another test's pictures
    monkeypatch.setattr(paper, "_missing_weights", lambda *_: "")
    monkeypatch.setattr(paper, "_missing_data", lambda *_: "")
    monkeypatch.setattr(loading, "content", lambda source, data: f"{source} on {data}")
    monkeypatch.setenv("LPE_STORE", str(tmp_path / "work" / "store"))
    yield SMALL
    loading._kept.cache_clear()


@pytest.fixture
def rendered(small: Scale, tmp_path: Path) -> Iterator[Callable[[object], pd.DataFrame]]:
    """A figure or table at the small scale; its record."""

    def rendered(module: object) -> pd.DataFrame:
        name = module.__name__.rsplit(".", 1)[-1]  # type: ignore[attr-defined]
        arguments = ["--scale", "paper", "--out", str(tmp_path / "out"), "--wandb", "disabled"]
        assert run_figure(module.SCRIPT, arguments, quiet=True) == 0  # type: ignore[attr-defined]
        return pd.read_csv(tmp_path / "out" / record_name(name), keep_default_na=False)

    yield rendered


@pytest.mark.usefixtures("small")
def test_an_example_that_tunes_is_not_scored() -> None:
    loaded = VIT.source.loaded()
    parts = (loaded.test, loaded.tuning)
    scored, held = ([int(label) for _, labels in data.test for label in labels] for data in parts)  # type: ignore[attr-defined]
    assert held == list(range(0, IMAGES, STRIDE))
    assert sorted([*scored, *held]) == list(range(IMAGES))
    assert list(loaded.test.validation.labels) == held  # type: ignore[attr-defined]


@pytest.mark.usefixtures("small")
def test_a_llama_is_tuned_on_tuning_questions_and_scored_on_the_others() -> None:
    loaded = LLAMA.source.loaded()
    assert (loaded.test.on_tuning, loaded.tuning.on_tuning) == (False, True)


def test_table_1_has_rtn_and_lpe_bsr_of_each_network(
    rendered: Callable[[object], pd.DataFrame], tmp_path: Path
) -> None:
    rows = rendered(table1)
    assert set(rows["substrate"]) == {"paper ViT-T"} and set(rows["seed"]) == {0}
    assert set(rows["method"]) == {"FP32", "FP32 + temperature", "RTN", "LPE-BSR"}
    assert set(rows["number_system"]) == {"fp32", "int6", "int4"}
    provenance = json.loads((tmp_path / "out" / "table1.json").read_text())
    seen = provenance["config"]["models"]["paper ViT-T"]
    assert seen["source"] == "timm/test_vit.r160_in1k"
    assert {"crop_pct", "interpolation", "mean", "std"} <= set(seen["data_config"])
    assert "One checkpoint of each model" in (tmp_path / "out" / "table1.md").read_text()


def test_table_6_has_the_rivals_at_the_settings_that_the_tuning_examples_chose(
    rendered: Callable[[object], pd.DataFrame], tmp_path: Path
) -> None:
    rows = rendered(table6)
    chosen = rows[rows["metric"] == "setting"].set_index("method")["value"]
    assert set(chosen.index) == {"Gaussian", "MC-dropout"}
    assert chosen["Gaussian"] in RIVALS.stds and chosen["MC-dropout"] in RIVALS.rates
    loaded = CLIP.source.loaded()
    expected = [
        loaded.test.evaluate(
            lpe.GaussianEnsemble(loaded.net, lpe.Int(5), SMALL.settings.size, draw, std=chosen["Gaussian"]),
            (),
        )["nll"].iloc[-1]
        for draw in range(SMALL.settings.draws)
    ]
    noisy = rows[
        (rows["method"] == "Gaussian") & (rows["metric"] == "nll") & (rows["size"] == SMALL.settings.size)
    ]
    assert noisy["value"].tolist() == pytest.approx([np.mean(expected)])
    text = (tmp_path / "out" / "table6.md").read_text()
    assert f"std {chosen['Gaussian']:g}; MC-dropout: rate {chosen['MC-dropout']:g}" in text


def test_a_run_killed_before_the_setting_was_written_goes_on(
    rendered: Callable[[object], pd.DataFrame], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    add = Measurer.add

    def killed(self: Measurer, *arguments: Any) -> None:
        if arguments[3][0].get("metric") == "setting":
            raise SystemExit
        add(self, *arguments)

    with monkeypatch.context() as patched, pytest.raises(SystemExit):
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
    rendered: Callable[[object], pd.DataFrame], tmp_path: Path
) -> None:
    rows = rendered(table3)
    llama = rows[rows["substrate"] == "paper Llama-8B"]
    assert set(llama["method"]) == {"BF16", "BF16 + temperature", "RTN", "LPE-BSR"}
    net = LLAMA.source.loaded().net
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
    assert fig7.title_of(summary, "paper Llama-8B", "Llama-8B").endswith(" parameters, BF16")
    assert fig7.title_of(summary, "paper CLIP-L", "CLIP-L").endswith(" parameters")


def test_the_setting_with_the_least_nll_is_taken() -> None:
    class Data:
        def evaluate(self, ensemble: float, calibrated: object) -> pd.DataFrame:
            return pd.DataFrame({"nll": [9.0, (ensemble - 0.3) ** 2]})

    assert tuned(lambda value, size, seed: value, (0.1, 0.25, 0.6), 2, Data()) == 0.25  # type: ignore[arg-type, return-value]


def _content_at(
    monkeypatch: pytest.MonkeyPatch, folder: Path, commit: str, picture: str, name: str = "imagenet"
) -> str:
    """Return the content of a model whose weights are of that commit, on one image."""
    monkeypatch.setenv("LPE_DATA", str(folder))
    monkeypatch.setattr(paper, "_cached", lambda repository, file, kind: f"/hub/snapshots/{commit}/{file}")
    (folder / "imagenet" / "val").mkdir(parents=True, exist_ok=True)
    (folder / "imagenet" / "val" / "picture").write_text(picture)
    return paper.content.__wrapped__("timm/test_vit.r160_in1k", name)


def test_other_weights_and_other_images_are_another_content(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = _content_at(monkeypatch, tmp_path, "abc", "cat")
    assert _content_at(monkeypatch, tmp_path, "abc", "cat") == before
    assert _content_at(monkeypatch, tmp_path, "def", "cat") != before
    assert _content_at(monkeypatch, tmp_path, "abc", "dog") != before


def test_what_is_scored_on_the_hubs_data_does_not_depend_on_images(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = _content_at(monkeypatch, tmp_path, "abc", "cat", "mmlu")
    assert _content_at(monkeypatch, tmp_path, "abc", "dog", "mmlu") == before
