"""The cost pictures on pre-trained weights: contexts, who is scored, and from nothing to the pictures.

Networks, images and stories are made up here, but for the last test, which is skipped without LPE_ASSETS.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lpe
from lpe.evaluation.metrics import mean_log_probs, nll
from lpe.substrates import stories
from reproduce import cost
from reproduce import cost_given as cost_assets
from reproduce.scales import assets as cost_subjects
from reproduce.study import cost_times

VOCABULARY = 30


def random_weights(net: nn.Module, seed: int) -> nn.Module:
    numbers = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=numbers))
    return net.eval()


def image_network(seed: int) -> nn.Module:
    return random_weights(nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4)), seed)


def images() -> tuple[Tensor, Tensor]:
    numbers = torch.Generator().manual_seed(3)
    return torch.randn(64, 6, generator=numbers), torch.randint(4, (64,), generator=numbers)


class LanguageModel(nn.Module):
    """Of the mean over all tokens so far; called as transformers' models are."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 8)
        self.layer = nn.Linear(8, 8)
        self.lm_head = nn.Linear(8, VOCABULARY)

    def forward(self, input_ids: Tensor, use_cache: bool, logits_to_keep: int = 0) -> SimpleNamespace:
        assert not use_cache
        counts = torch.arange(1, input_ids.shape[1] + 1)[:, None]
        mean = self.embedding(input_ids).cumsum(dim=1) / counts
        hidden = F.relu(self.layer(mean))
        return SimpleNamespace(logits=self.lm_head(hidden[:, -logits_to_keep:]))


def language_model() -> nn.Module:
    return random_weights(LanguageModel(), 7)


def numbered_stories(count: int, shortest: int = 80) -> list[Tensor]:
    """Stories of unequal length whose tokens say where they are from: 10,000 a story, 1 a place."""
    return [10_000 * story + torch.arange(shortest + 7 * story) for story in range(count)]


def made_up_stories(count: int) -> list[Tensor]:
    numbers = torch.Generator().manual_seed(5)
    return [torch.randint(VOCABULARY, story.shape, generator=numbers) for story in numbered_stories(count)]


# Contexts of stories.


def test_contexts_of_two_stories_by_hand() -> None:
    told = [torch.arange(100, 110), torch.arange(200, 207)]
    inputs, targets = stories.contexts(told, tokens=3, per_story=2)
    assert inputs.tolist() == [[101, 102, 103], [201, 202, 203], [105, 106, 107], [203, 204, 205]]
    assert targets.tolist() == [104, 204, 108, 206]


def test_the_targets_of_a_story_are_spread_evenly_over_what_has_a_whole_context_before_it() -> None:
    _, targets = stories.contexts([torch.arange(1000)], tokens=40, per_story=12)
    # 960 tokens in 12 stretches of 80, of each the middle.
    assert targets.tolist() == [40 + 40 + 80 * place for place in range(12)]


def test_the_shortest_story_that_has_enough_contexts_has_each_once() -> None:
    inputs, targets = stories.contexts([torch.arange(14)], tokens=10, per_story=4)
    assert targets.tolist() == [10, 11, 12, 13] and inputs[-1].tolist() == list(range(3, 13))


def test_a_story_with_too_few_tokens_is_named_with_what_it_would_need() -> None:
    with pytest.raises(lpe.InputError, match="story 1 has 13 tokens; 4 contexts of 10 tokens need 14"):
        stories.contexts([torch.arange(14), torch.arange(13)], tokens=10, per_story=4)


def test_the_last_token_s_logits_are_those_of_the_whole_pass() -> None:
    model, tokens = language_model(), torch.arange(24).view(3, 8)
    whole = stories.NextToken(model)(tokens, torch.ones(3, 8, dtype=torch.bool)).view(3, 8, VOCABULARY)
    last = stories.LastToken(model)(tokens)
    assert last.shape == (3, VOCABULARY)
    torch.testing.assert_close(last, whole[:, -1])


# Who validates and who is scored.


def test_every_context_is_followed_by_its_target_and_nothing_is_padding() -> None:
    examples = cost_subjects.examples_of_stories(numbered_stories(9))
    assert examples.inputs.shape == (9 * stories.CONTEXTS, stories.CONTEXT)
    steps = torch.cat([examples.inputs, examples.targets[:, None]], dim=1).diff(dim=1)
    assert bool((steps == 1).all())


def test_no_story_both_validates_and_is_scored_and_none_is_left_out() -> None:
    examples = cost_subjects.examples_of_stories(numbered_stories(9))
    told = examples.targets // 10_000
    validating, scored = set(told[examples.validating].tolist()), set(told[examples.scored].tolist())
    assert not validating & scored
    assert validating | scored == set(range(9))
    assert len(scored) == len(validating) + 1 == examples.units
    assert len(told[examples.validating]) + len(told[examples.scored]) == len(told)


@pytest.mark.parametrize("parts", [4, 2], ids=["blocks", "halves of the calibrated NLL"])
def test_scored_stories_are_dealt_out_whole(parts: int) -> None:
    examples = cost_subjects.examples_of_stories(numbered_stories(16))
    told = (examples.targets // 10_000)[examples.scored]
    dealt = [set(told[part::parts].tolist()) for part in range(parts)]
    assert [len(part) for part in dealt] == [8 // parts] * parts
    assert len(set.union(*dealt)) == 8


def test_a_context_goes_on_alone_in_a_cascade() -> None:
    net = stories.LastToken(language_model()).eval()
    examples = cost_subjects.examples_of_stories(made_up_stories(4))
    ensemble = lpe.LowPrecisionEnsemble(net, lpe.Int(4), 3, rounding="coupled")
    first = lpe.DeepEnsemble([net])
    alone = first.predict(examples.inputs)
    confidence = alone.amax(-1).exp()
    window = (0.0, float(confidence.median()))
    found = lpe.Cascade(ensemble, window, first=first).predict(examples.inputs)
    goes_on = confidence <= window[1]
    assert 0 < int(goes_on.sum()) < len(goes_on)
    expected = torch.where(goes_on[:, None], ensemble.predict(examples.inputs), alone)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


# From nothing to the pictures.


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cost_times, "REPEATS", 1)
    settings = {"SIZE": 3, "FEW": 2, "BITS": (4,), "BLOCKS": 4, "TIMED": 8}
    for name, value in settings.items():
        monkeypatch.setattr(cost_assets, name, value)
    monkeypatch.setenv("LPE_STORE", str(tmp_path / "work" / "store"))


@pytest.fixture
def made_up(quick: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    del quick
    monkeypatch.setattr(cost_assets, "assets_folder", lambda: tmp_path)
    monkeypatch.setattr(cost_subjects.cifar_resnet, "load_resnet", lambda _, depth: image_network(depth))
    monkeypatch.setattr(cost_subjects.cifar_resnet, "test_images", lambda *_: images())
    monkeypatch.setattr(cost_subjects.cifar_resnet, "training_images", lambda *_: images())
    monkeypatch.setattr(stories, "load_stories260k", lambda _: stories.NextToken(language_model()))
    monkeypatch.setattr(stories, "story_tokens", lambda *_: made_up_stories(15))


def values(out: Path, record: str, **keys: object) -> list[float]:
    table = pd.read_csv(out / record, keep_default_na=False)
    table = table[(table["metric"] == "nll") & (table[list(keys)] == pd.Series(keys)).all(axis=1)]
    return table["value"].tolist()


@pytest.mark.usefixtures("made_up")
def test_the_resnets_record_is_of_blocks_of_the_images_at_odd_positions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cost.main(["--assets", "--only", "resnets", "--out", str(tmp_path / "out")]) == 0
    assert "ResNet-32 FP32" in capsys.readouterr().out
    inputs, targets = images()
    log_probs = lpe.DeepEnsemble([image_network(20)]).predict(inputs)
    expected = [nll(log_probs[1::2][block::4], targets[1::2][block::4]) for block in range(4)]
    substrate = "ResNet-20, CIFAR-10 (JPEG q75)"
    found = values(tmp_path / "out", "cost.csv", substrate=substrate, method="FP32")
    assert found == pytest.approx(expected)
    ensemble = lpe.LowPrecisionEnsemble(image_network(20), lpe.Int(4), 3, 0, "coupled")
    together = mean_log_probs(lpe.member_log_probs(ensemble, [(inputs, targets)])[0])
    found = values(tmp_path / "out", "cost.csv", method="LPE-BSR", rounding="coupled", size=3)
    expected = [nll(together[1::2][block::4], targets[1::2][block::4]) for block in range(4)]
    assert found == pytest.approx(expected)


class WithBatchNorm(nn.Module):
    """An image network whose statistics are not those of its images."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 4))
        random_weights(self.layers, seed)
        self.eval()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs)


@pytest.mark.usefixtures("made_up")
@pytest.mark.parametrize(
    ("name", "record", "form"),
    [
        ("resnets-relative", "cost_relative.csv", "relative"),
        ("resnets-re-estimated", "cost_re_estimated.csv", "absolute"),
    ],
)
def test_re_estimated_records_are_of_members_with_statistics_of_the_training_images(
    name: str, record: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost_subjects.cifar_resnet, "load_resnet", lambda _, depth: WithBatchNorm(depth))
    inputs, targets = images()
    training = [(part, None) for part in inputs.split(100)]
    out = str(tmp_path / "out")
    assert cost.main(["--assets", "--only", "resnets", "--out", out]) == 0  # whose times these have
    assert cost.main(["--assets", "--only", name, "--out", out]) == 0
    for method, system, keys in (
        ("LPE-BSR", lpe.Int(4), {"rounding": "coupled", "size": 3}),
        ("FP32", lpe.FullPrecision(), {"substrate": cost_subjects.SUBJECTS[name].own.substrate}),
    ):
        ensemble = lpe.LowPrecisionEnsemble(
            WithBatchNorm(20), system, 3, 0, "coupled", batches=training, refresh=form
        )
        together = ensemble.predict(inputs)
        expected = [nll(together[1::2][block::4], targets[1::2][block::4]) for block in range(4)]
        found = values(tmp_path / "out", record, method=method, **keys)
        assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.usefixtures("made_up")
def test_the_stories_record_is_of_blocks_of_the_stories_at_even_positions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cost.main(["--assets", "--only", "stories", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "stories260k FP32 + temperature" in said and "4 blocks of stories" in said
    net = stories.LastToken(language_model()).eval()
    ensemble = lpe.LowPrecisionEnsemble(net, lpe.Int(4), 3, 0, "coupled")
    told = made_up_stories(15)[::2]
    for predictor, keys in (
        (lpe.DeepEnsemble([net]), {"method": "FP32"}),
        (ensemble, {"method": "LPE-BSR", "rounding": "coupled", "size": 3}),
    ):
        expected = []
        for block in range(4):
            inputs, targets = stories.contexts(told[block::4])
            expected.append(nll(predictor.predict(inputs), targets))
        assert values(tmp_path / "out", "cost_stories.csv", **keys) == pytest.approx(expected)
    assert not (tmp_path / "out" / "cost.csv").exists()


@pytest.mark.usefixtures("made_up")
def test_stories_that_make_no_whole_blocks_are_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stories, "story_tokens", lambda *_: made_up_stories(17))
    assert cost.main(["--assets", "--only", "stories", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == "error: 9 stories are scored, which make no 4 equal blocks"


@pytest.mark.usefixtures("made_up")
def test_without_a_choice_all_are_measured_timed_and_drawn_and_from_the_store_the_second_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert cost.main(["--assets", "--out", str(out)]) == 0
    kinds = (".csv", ".json", ".pdf", ".png", "_times.csv", "_times.json")
    names = {stem + kind for stem in ("cost", "cost_stories") for kind in kinds}
    re_estimated = ("cost_relative", "cost_re_estimated")  # as fast as the others
    names |= {stem + kind for stem in re_estimated for kind in kinds if "times" not in kind}
    assert {path.name for path in out.iterdir()} == names
    before = {name: (out / name).read_bytes() for name in names}

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("members ran that have run already")

    monkeypatch.setattr("lpe.member_log_probs", refuse)
    stems = ("cost", "cost_stories", *re_estimated)
    for stem in stems:
        (out / f"{stem}.csv").unlink()
    assert cost.main(["--assets", "--out", str(out)]) == 0
    kept = [name for name in names if name not in {f"{stem}.json" for stem in stems}]
    assert {name: (out / name).read_bytes() for name in kept} == {name: before[name] for name in kept}


@pytest.mark.usefixtures("made_up")
def test_redrawing_one_needs_no_store_and_leaves_the_other_s_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert cost.main(["--assets", "--only", "stories", "--out", str(out)]) == 0
    drawn = (out / "cost_stories.png").read_bytes()
    (out / "cost_stories.png").unlink()
    monkeypatch.setenv("LPE_STORE", str(tmp_path / "elsewhere" / "store"))
    assert cost.main(["--assets", "--plot-only", "--only", "stories", "--out", str(out)]) == 0
    assert (out / "cost_stories.png").read_bytes() == drawn
    assert not (tmp_path / "elsewhere").exists() and not (out / "cost.png").exists()


@pytest.mark.usefixtures("made_up")
def test_times_of_one_are_measured_again_when_asked_for(tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["--assets", "--only", "stories", "--out", str(out)]
    assert cost.main(arguments) == 0
    conditions = out / "cost_stories_times.json"
    written = conditions.stat().st_mtime_ns
    assert cost.main(arguments) == 0
    assert conditions.stat().st_mtime_ns == written
    assert cost.main([*arguments, "--time"]) == 0
    assert conditions.stat().st_mtime_ns > written


@pytest.mark.usefixtures("made_up")
def test_times_that_were_altered_are_said_and_measured_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["--assets", "--only", "stories", "--out", str(out)]
    assert cost.main(arguments) == 0
    times = out / "cost_stories_times.csv"
    first, _, rest = times.read_text().partition("\n")
    times.write_text(f"{first}\n{rest.partition(chr(10))[2]}")
    assert cost.main([*arguments, "--plot-only"]) == 2
    message = capsys.readouterr().err
    assert "cost_stories_times.csv is not what cost_stories_times.json has the hash of" in message
    assert cost.main(arguments) == 0
    assert "cost_stories_times.csv is not as it was measured, or has no hash" in capsys.readouterr().err
    assert cost.main([*arguments, "--plot-only"]) == 0


@pytest.mark.usefixtures("quick")
def test_the_pre_trained_language_model_from_its_files_to_the_picture(
    assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = stories.story_tokens(assets, None, None)
    # All of the asset's stories have their contexts, without padding, in blocks of whole stories.
    examples = cost_subjects.examples_of_stories(every)
    assert examples.inputs.shape == (199 * stories.CONTEXTS, stories.CONTEXT) and examples.units == 100
    monkeypatch.setattr(stories, "story_tokens", lambda *_: every[:8])
    assert cost.main(["--assets", "--only", "stories", "--out", str(tmp_path / "out")]) == 0
    model = stories.load_stories260k(assets).language_model
    expected = []
    for story in every[:8:2]:
        inputs, targets = stories.contexts([story])
        with torch.no_grad():
            logits = model(input_ids=inputs).logits[:, -1]
        expected.append(float(F.cross_entropy(logits.double(), targets)))
    found = values(tmp_path / "out", "cost_stories.csv", method="FP32")
    assert found == pytest.approx(expected, abs=1e-5)
