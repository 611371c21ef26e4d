"""LPE-BSR on a pre-trained language model; skipped without LPE_ASSETS.

About 50 s on one thread. The assets' README gives an FP32 NLL of 1.3226 on "80 stories"; it does not say
which, and neither the first nor any other 80 in a row give it. The values here are of the first 80, and of
the first 16 where 16 members are evaluated; they were recorded with this code.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import lpe
from lpe.substrates import stories

FP32 = 1.393789
FP32_OF_16 = 1.395054
MEMBERS = 16


@pytest.fixture(scope="session")
def net(assets: Path) -> nn.Module:
    return stories.load_stories260k(assets)


@pytest.fixture(scope="session")
def tokens(assets: Path) -> list[torch.Tensor]:
    return stories.story_tokens(assets)


@pytest.fixture(scope="session")
def batches(tokens: list[torch.Tensor]) -> list[stories.Batch]:
    return stories.token_batches(tokens)


def rtn_nll(net: nn.Module, bits: int, batches: list[stories.Batch]) -> float:
    ensemble = lpe.LowPrecisionEnsemble(net, lpe.Int(bits), 1, rounding="nearest")
    return float(lpe.evaluate(ensemble, batches)["nll"][0])


def test_fp32_has_its_recorded_nll_a_token(net: nn.Module, batches: list[stories.Batch]) -> None:
    assert lpe.evaluate(lpe.DeepEnsemble([net]), batches)["nll"][0] == pytest.approx(FP32, abs=2e-6)


def test_fp32_agrees_with_the_loss_of_transformers(net: nn.Module, tokens: list[torch.Tensor]) -> None:
    story = tokens[0][None]
    with torch.no_grad():
        theirs = float(net.language_model(input_ids=story, labels=story).loss)
    ours = lpe.evaluate(lpe.DeepEnsemble([net]), stories.token_batches([tokens[0]]))["nll"][0]
    assert ours == pytest.approx(theirs, abs=1e-5)


def test_padding_does_not_change_the_nll(net: nn.Module, tokens: list[torch.Tensor]) -> None:
    uneven = [story[: 40 + 60 * place] for place, story in enumerate(tokens[:4])]
    together, alone = (
        lpe.evaluate(lpe.DeepEnsemble([net]), stories.token_batches(uneven, size))["nll"][0]
        for size in (4, 1)
    )
    assert together == pytest.approx(alone, abs=1e-6)


def test_every_token_but_a_storys_first_is_a_target(
    tokens: list[torch.Tensor], batches: list[stories.Batch]
) -> None:
    targets = torch.cat([targets for _, targets in batches])
    assert torch.equal(targets, torch.cat([story[1:] for story in tokens]))


def test_the_projections_are_quantised_and_nothing_else(net: nn.Module) -> None:
    plan = lpe.LowPrecisionEnsemble(net, lpe.Int(4), 1).plan
    projections = {
        f"language_model.model.layers.{layer}.{projection}.weight"
        for layer in range(5)
        for projection in (
            *(f"self_attn.{each}_proj" for each in "qkvo"),
            *(f"mlp.{each}_proj" for each in ("gate", "up", "down")),
        )
    }
    assert {planned.name for planned in plan if planned.quantised} == projections


def test_the_embedding_is_left_out_because_it_is_the_tied_lm_head(net: nn.Module) -> None:
    plan = lpe.LowPrecisionEnsemble(net, lpe.Int(4), 1).plan
    reasons = {planned.name: planned.reason for planned in plan}
    assert reasons["language_model.model.embed_tokens.weight"].startswith("LM head; tied")


@pytest.mark.parametrize(
    ("bits", "recorded"), [(8, 1.39396), (6, 1.39848), (5, 1.42400), (4, 1.55506), (3, 3.19569)]
)
def test_rtn_has_its_recorded_nll(
    net: nn.Module, batches: list[stories.Batch], bits: int, recorded: float
) -> None:
    # Room for a weight near a tie that rounds the other way elsewhere.
    assert rtn_nll(net, bits, batches) == pytest.approx(recorded, abs=2e-4)


# Mean and standard deviation, over seeds 0 to 4, of the NLL of 16 members on the first 16 stories. Four
# standard deviations, known from five draws only, hold 98 % of other seeds; the one here is fixed and inside.
@pytest.mark.parametrize(
    ("bits", "mean", "std"), [(6, 1.39567, 0.00078), (5, 1.40341, 0.00158), (4, 1.55120, 0.00486)]
)
def test_sixteen_members_have_the_nll_of_other_draws(
    net: nn.Module, batches: list[stories.Batch], bits: int, mean: float, std: float
) -> None:
    ensemble = lpe.LowPrecisionEnsemble(net, lpe.Int(bits), MEMBERS, seed=5)
    assert lpe.evaluate(ensemble, batches[:2])["nll"].iloc[-1] == pytest.approx(mean, abs=4 * std)


def test_sixteen_int5_members_lose_less_than_half_of_what_rtn_loses(
    net: nn.Module, batches: list[stories.Batch]
) -> None:
    sixteen = lpe.evaluate(lpe.LowPrecisionEnsemble(net, lpe.Int(5), MEMBERS, seed=6), batches[:2])
    lost_by_rtn = rtn_nll(net, 5, batches[:2]) - FP32_OF_16
    assert sixteen["nll"].iloc[-1] - FP32_OF_16 < lost_by_rtn / 2
