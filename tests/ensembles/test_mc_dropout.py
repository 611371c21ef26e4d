"""MC-dropout: the masks' distribution and keys, where they are put, and what members share."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lpe
from lpe.ensembles import mc_dropout
from lpe.ensembles.batch_norm import refresh
from lpe.modules import named_tensors

MEMBERS = 300
FEATURES = 40
RATE = 0.2
SIGMAS = 5.0
"""Standard errors that a statistic may be off; masks are keyed, so a test passes or fails for good."""


def numbers(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def filled(model: nn.Module) -> nn.Module:
    """The model in eval mode with weights from a seed."""
    for seed, parameter in enumerate(model.parameters()):
        parameter.data.copy_(0.5 * numbers(tuple(parameter.shape), seed))
    return model.eval()


class TwoDropouts(nn.Module):
    """What two dropout modules make of one input: [examples, 2·features]."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Dropout(0.9)  # a p of its own, which is not the rate
        self.two = nn.Dropout(0.0)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.cat([self.one(inputs), self.two(inputs)], dim=-1)


def masks(rate: float = RATE, examples: int = 1) -> Tensor:
    """What the members make of ones: float64 [members, examples, layers, features]."""
    ensemble = lpe.MCDropoutEnsemble(TwoDropouts(), rate, MEMBERS)
    outputs = torch.stack([member(torch.ones(examples, FEATURES)) for member in ensemble])
    return outputs.double().unflatten(-1, (2, FEATURES))


# The masks' distribution. 300 members · 2 layers · 40 features are 24,000 draws.


def check_kept_share(found: Tensor) -> None:
    """A share of n Bernoulli draws has the standard error √(rate(1 − rate)/n)."""
    share = float((found != 0).double().mean())
    assert abs(share - (1 - RATE)) <= SIGMAS * math.sqrt(RATE * (1 - RATE) / found.numel())


def check_kept_features_are_scaled(found: Tensor) -> None:
    """Every kept one is 1/(1 − rate), to float32's rounding."""
    kept = found[found != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - RATE)), rtol=1e-6, atol=0)


def check_one_mask_for_all_examples(found: Tensor) -> None:
    assert torch.equal(found, found[:, :1].expand_as(found))


def standardised(found: Tensor) -> Tensor:
    """Kept or not, of mean 0 and variance 1: [members, layers, features]."""
    return ((found[:, 0] != 0).double() - (1 - RATE)) / math.sqrt(RATE * (1 - RATE))


def check_layers_are_independent(found: Tensor) -> None:
    """The mean of n products of independent standardised draws has the standard error 1/√n."""
    z = standardised(found)
    assert abs(float((z[:, 0] * z[:, 1]).mean())) <= SIGMAS / math.sqrt(MEMBERS * FEATURES)


def check_members_are_independent(found: Tensor) -> None:
    """The same, of one member and the next; their products are uncorrelated too."""
    z = standardised(found)
    assert abs(float((z[1:] * z[:-1]).mean())) <= SIGMAS / math.sqrt((MEMBERS - 1) * 2 * FEATURES)


def check_features_are_independent(found: Tensor) -> None:
    """The same, of one feature and the next."""
    z = standardised(found)
    products = z[..., 1:] * z[..., :-1]
    assert abs(float(products.mean())) <= SIGMAS / math.sqrt(products.numel())


def test_features_are_kept_at_one_minus_the_rate() -> None:
    check_kept_share(masks())


def test_kept_features_are_scaled_by_one_over_one_minus_the_rate() -> None:
    check_kept_features_are_scaled(masks())


def test_all_examples_get_a_members_one_mask() -> None:
    check_one_mask_for_all_examples(masks(examples=3))


def test_layers_masks_are_independent() -> None:
    check_layers_are_independent(masks())


def test_members_masks_are_independent() -> None:
    check_members_are_independent(masks())


def test_features_are_dropped_independently() -> None:
    check_features_are_independent(masks())


def rekeyed(monkeypatch: pytest.MonkeyPatch, key: Callable[[int, str, int], tuple[int, str, int]]) -> None:
    """Masks drawn under another key than (seed, layer, member)."""
    real = mc_dropout.uniform
    monkeypatch.setattr(
        mc_dropout, "uniform", lambda purpose, *given: real(purpose, *key(*given[:3]), *given[3:])
    )


def test_dropping_what_should_be_kept_is_caught() -> None:
    with pytest.raises(AssertionError):
        check_kept_share(masks(rate=1 - RATE))


def test_a_rate_off_by_a_tenth_is_caught() -> None:
    with pytest.raises(AssertionError):
        check_kept_share(masks(rate=1.1 * RATE))


def test_masks_that_are_not_scaled_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    real = mc_dropout._Mask.factors
    monkeypatch.setattr(mc_dropout._Mask, "factors", lambda self, n: real(self, n) * (1 - self.rate))
    with pytest.raises(AssertionError):
        check_kept_features_are_scaled(masks())


def test_a_mask_for_every_example_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        mc_dropout._Mask,
        "masked",
        lambda self, values: torch.stack([row * self.factors(n + 1)[0] for n, row in enumerate(values)]),
    )
    stream = torch.Generator().manual_seed(0)
    monkeypatch.setattr(mc_dropout, "uniform", lambda *key: torch.rand(key[-1], generator=stream))
    with pytest.raises(AssertionError):
        check_one_mask_for_all_examples(masks(examples=3))


def test_the_same_mask_in_every_layer_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    rekeyed(monkeypatch, lambda seed, name, member: (seed, "", member))
    with pytest.raises(AssertionError):
        check_layers_are_independent(masks())


def test_the_same_mask_in_every_member_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    rekeyed(monkeypatch, lambda seed, name, member: (seed, name, 0))
    with pytest.raises(AssertionError):
        check_members_are_independent(masks())


def test_one_draw_for_all_features_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    real = mc_dropout._Mask.factors
    monkeypatch.setattr(mc_dropout._Mask, "factors", lambda self, n: real(self, 1).expand(n))
    with pytest.raises(AssertionError):
        check_features_are_independent(masks())


# Keys


def member_of(seed: int = 0, index: int = 3) -> nn.Module:
    return lpe.MCDropoutEnsemble(TwoDropouts(), RATE, 5, seed)[index]


ONES = torch.ones(1, FEATURES)


def test_a_member_is_the_same_when_it_is_asked_for_again() -> None:
    assert torch.equal(member_of()(ONES), member_of()(ONES))


def test_seeds_draw_different_masks() -> None:
    assert not torch.equal(member_of(seed=0)(ONES), member_of(seed=1)(ONES))


def test_a_wrappers_prefix_does_not_change_the_masks() -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = TwoDropouts()

        def forward(self, inputs: Tensor) -> Tensor:
            return self.module(inputs)

    assert torch.equal(lpe.MCDropoutEnsemble(Wrapper(), RATE, 5)[3](ONES), member_of()(ONES))


def test_making_and_running_a_member_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    member_of()(ONES)
    assert torch.equal(torch.get_rng_state(), before)


# Where the masks are put


def vision_transformer() -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return filled(
        VisionTransformer(
            img_size=8, patch_size=4, in_chans=1, num_classes=5, embed_dim=8, depth=1, num_heads=2
        )
    )


def places(model: nn.Module) -> dict[str, str]:
    """Module → "output" or "input" of it, or "" where it is left as it is."""
    return {place.name: place.at for place in lpe.MCDropoutEnsemble(model, RATE, 2).places}


SCANS = numbers((4, 1, 8, 8), 50)


def test_a_vision_transformer_is_masked_at_its_own_dropouts_but_attention_probabilities() -> None:
    assert places(vision_transformer()) == {
        "pos_drop": "output",
        "blocks.0.attn.attn_drop": "",
        "blocks.0.attn.proj_drop": "output",
        "blocks.0.mlp.drop1": "output",
        "blocks.0.mlp.drop2": "output",
        "head_drop": "output",
    }


def test_attention_that_calls_its_dropout_keeps_its_probabilities() -> None:
    model = vision_transformer()
    fused = lpe.MCDropoutEnsemble(model, RATE, 2)[1](SCANS)
    for block in model.blocks:
        block.attn.fused_attn = False
    torch.testing.assert_close(lpe.MCDropoutEnsemble(model, RATE, 2)[1](SCANS), fused)


def test_a_vision_transformers_masks_change_its_output() -> None:
    model = vision_transformer()
    outputs = [member(SCANS) for member in lpe.MCDropoutEnsemble(model, RATE, 2)]
    assert not torch.allclose(outputs[0], model(SCANS), atol=1e-3)
    assert not torch.allclose(outputs[0], outputs[1], atol=1e-3)


class AttentionNamed(nn.Module):
    """A BERT-like attention, which calls its dropout of probabilities ``dropout``."""

    def __init__(self) -> None:
        super().__init__()
        self.self = TinySelfAttention()
        self.output = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.output(self.self(inputs))


class TinySelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.1)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.dropout((inputs @ inputs.mT).softmax(dim=-1)) @ inputs


def test_a_self_attentions_dropout_is_left_as_it_is() -> None:
    assert places(AttentionNamed()) == {"self.dropout": "", "output.1": "output"}


class Recorded(nn.Module):
    """Gives what its one layer makes of the inputs, the layer after another."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers[-1](inputs)


MASKED = [
    # The layers before it, the dropout, the shape of what it is given, and the dimension of its features.
    ("vectors", (nn.Linear(6, 6), nn.Dropout()), (2, 6), 1),
    ("tokens", (nn.Linear(6, 6), nn.Dropout()), (2, 3, 6), 2),
    ("channels last after a Linear", (nn.Conv2d(6, 6, 1), nn.Linear(6, 6), nn.Dropout()), (2, 3, 3, 6), 3),
    ("maps after a Conv", (nn.Conv2d(6, 6, 1), nn.ReLU(), nn.Dropout()), (2, 6, 3, 3), 1),
    ("maps of a Conv1d", (nn.Conv1d(6, 6, 1), nn.Dropout()), (2, 6, 3), 1),
    ("maps of a Conv3d", (nn.Conv3d(6, 6, 1), nn.Dropout()), (2, 6, 3, 3, 3), 1),
    ("patches of a Conv as tokens", (nn.Conv2d(1, 6, 2), nn.Dropout()), (2, 3, 6), 2),
    ("pooled maps", (nn.Conv2d(6, 6, 1), nn.Dropout()), (2, 6), 1),
    ("maps with no layer before", (nn.Dropout(),), (2, 6, 3, 3), 1),
    ("channel dropout 1d", (nn.Dropout1d(),), (2, 6, 3), 1),
    ("channel dropout 2d", (nn.Linear(6, 6), nn.Dropout2d()), (2, 6, 3, 3), 1),
    ("channel dropout 3d", (nn.Dropout3d(),), (2, 6, 3, 3, 3), 1),
]


@pytest.mark.parametrize(
    ("layers", "shape", "dimension"), [row[1:] for row in MASKED], ids=[r[0] for r in MASKED]
)
def test_a_mask_is_over_the_features(layers: Any, shape: tuple[int, ...], dimension: int) -> None:
    ensemble = lpe.MCDropoutEnsemble(Recorded(*layers), 0.5, 8)
    outputs = torch.stack([member(torch.ones(shape)) for member in ensemble]).movedim(dimension + 1, 1)
    flat = outputs.reshape(8, 6, -1)
    assert torch.equal(flat, flat[..., :1].expand_as(flat))
    assert set(flat.unique().tolist()) == {0.0, 2.0}


def check_insertion_before(layer: nn.Module, shape: tuple[int, ...], dimension: int) -> None:
    """A layer's outputs under a member are its outputs on masked inputs."""
    model = filled(nn.Sequential(nn.Identity(), Ignored(), layer))
    inputs = numbers(shape, 60)
    member = lpe.MCDropoutEnsemble(model, 0.5, 8)[2]
    place = mc_dropout.Place("2", "", "input", "", 0)
    factors = mc_dropout._Mask(place, 0.5, 0, 2).factors(6)
    assert 0 < int(factors.count_nonzero()) < 6
    view = [1] * inputs.dim()
    view[dimension] = 6
    torch.testing.assert_close(member(inputs), layer(inputs * factors.view(view)))


class Ignored(nn.Module):
    """Holds a first Linear that it does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs


INSERTED = [
    (nn.Linear(6, 3), (2, 6), 1),
    (nn.Linear(6, 3), (2, 5, 6), 2),
    (nn.Conv1d(6, 3, 2), (2, 6, 5), 1),
    (nn.Conv2d(6, 4, 2, groups=2), (2, 6, 5, 5), 1),
    (nn.Conv2d(6, 3, 2), (6, 5, 5), 0),
    (nn.Conv3d(6, 3, 2), (2, 6, 3, 3, 3), 1),
    (nn.ConvTranspose2d(6, 3, 2), (2, 6, 3, 3), 1),
]


@pytest.mark.parametrize(("layer", "shape", "dimension"), INSERTED)
def test_without_dropout_the_features_of_a_layers_inputs_are_masked(
    layer: nn.Module, shape: tuple[int, ...], dimension: int
) -> None:
    check_insertion_before(layer, shape, dimension)


def test_a_mask_on_another_dimension_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mc_dropout, "feature_dimension", lambda place, dimensions: 0)
    with pytest.raises((AssertionError, RuntimeError)):
        check_insertion_before(nn.Linear(6, 3), (6, 6), 1)


class ConvNet(nn.Module):
    """No dropout; a batch norm; a first layer, a grouped one and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.wide = nn.Conv2d(4, 6, 3, groups=2)
        self.head = nn.Linear(6, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.wide(self.norm(self.conv(inputs)).relu()).mean(dim=(2, 3)))


def conv_net() -> ConvNet:
    model = ConvNet()
    filled(model)
    return model


def test_the_first_layer_which_sees_raw_inputs_is_not_masked() -> None:
    assert places(conv_net()) == {"conv": "", "wide": "input", "head": "input"}


def test_after_an_embedding_every_layer_is_masked() -> None:
    assert places(nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3))) == {"1": "input"}


def test_the_only_layer_is_masked() -> None:
    assert places(nn.Linear(4, 3)) == {"": "input"}


def test_a_layer_whose_weight_is_used_without_calling_it_is_not_masked() -> None:
    model = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    bare = nn.ModuleList([model.self_attn, model.linear1, model.linear2])
    assert places(bare) == {"0.out_proj": "", "1": "", "2": "input"}


def test_torchs_quick_path_of_transformers_does_not_pass_the_masks_by() -> None:
    model = filled(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True))
    inputs = numbers((2, 3, 4), 61)
    member = lpe.MCDropoutEnsemble(model, 0.5, 2)[0]
    with torch.no_grad():
        quick = member(inputs)
        assert not torch.allclose(quick, model(inputs), atol=1e-2)
    torch.testing.assert_close(quick, member(inputs))


def test_the_mask_is_applied_to_an_input_given_by_keyword() -> None:
    member = lpe.MCDropoutEnsemble(filled(nn.Linear(6, 3)), 0.5, 2)[0]
    inputs = numbers((2, 6), 62)
    assert torch.equal(member(input=inputs), member(inputs))


def test_a_layer_that_is_used_twice_has_one_mask() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.1)
            self.again = self.drop

        def forward(self, inputs: Tensor) -> Tensor:
            return torch.stack([self.drop(inputs), self.again(inputs)])

    outputs = lpe.MCDropoutEnsemble(Twice(), 0.5, 2)[0](ONES)
    assert torch.equal(outputs[0], outputs[1]) and set(outputs.unique().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize("kind", [nn.AlphaDropout, nn.FeatureAlphaDropout])
def test_another_kind_of_dropout_is_listed_and_left_as_it_is(kind: type[nn.Module]) -> None:
    assert places(nn.Sequential(nn.Linear(3, 3), kind(), nn.Dropout())) == {"1": "", "2": "output"}


def test_a_model_of_nothing_but_another_kind_of_dropout_is_masked_before_its_layers() -> None:
    found = places(nn.Sequential(nn.Linear(3, 3), nn.AlphaDropout(), nn.Linear(3, 3)))
    assert found == {"1": "", "0": "", "2": "input"}


# Members


def test_an_examples_logits_do_not_depend_on_its_batch() -> None:
    # Other shapes may sum in another order: float32's rounding is allowed.
    member = lpe.MCDropoutEnsemble(vision_transformer(), RATE, 2)[1]
    torch.testing.assert_close(member(SCANS)[2:3], member(SCANS[2:3]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model", [vision_transformer, conv_net], ids=["own dropout", "inserted"])
def test_at_rate_zero_a_member_is_the_model(model: Callable[[], nn.Module]) -> None:
    assert torch.equal(lpe.MCDropoutEnsemble(model(), 0, 2)[1](SCANS), model()(SCANS))


def test_the_model_is_left_as_it_was() -> None:
    model = conv_net().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    lpe.MCDropoutEnsemble(model, RATE, 2, batches=[(SCANS, None)]).predict(SCANS)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_members_share_all_tensors_with_the_model() -> None:
    model = conv_net()
    member = lpe.MCDropoutEnsemble(model, RATE, 2)[1]
    pairs = zip(named_tensors(member), named_tensors(model), strict=True)
    assert all(a.tensor.data_ptr() == b.tensor.data_ptr() for a, b in pairs)


def test_members_are_in_eval_mode() -> None:
    assert not any(
        module.training for module in lpe.MCDropoutEnsemble(conv_net().train(), RATE, 2)[0].modules()
    )


def test_members_that_are_alive_together_keep_their_own_masks() -> None:
    ensemble = lpe.MCDropoutEnsemble(conv_net(), RATE, 2)
    first = ensemble[0]
    before = first(SCANS)
    second = ensemble[1]
    assert torch.equal(first(SCANS), before) and not torch.equal(second(SCANS), before)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_a_copy_of_a_member_predicts_as_it_does(copied: Callable[[nn.Module], nn.Module]) -> None:
    member = lpe.MCDropoutEnsemble(vision_transformer(), RATE, 2)[1]
    assert torch.equal(copied(member)(SCANS), member(SCANS))


def test_another_ensembles_members_of_a_member_keep_its_masks() -> None:
    member = lpe.MCDropoutEnsemble(conv_net(), RATE, 2)[1]
    again = lpe.LowPrecisionEnsemble(member, lpe.FullPrecision(), 1)[0]
    assert torch.equal(again(SCANS), member(SCANS))


def test_a_member_that_ran_in_inference_mode_gives_gradients_afterwards() -> None:
    member = lpe.MCDropoutEnsemble(conv_net(), RATE, 2)[0]
    with torch.inference_mode():
        member(SCANS)
    inputs = SCANS.clone().requires_grad_()
    member(inputs).sum().backward()
    assert inputs.grad is not None and inputs.grad.any()


def test_masks_take_the_type_of_the_features() -> None:
    member = lpe.MCDropoutEnsemble(conv_net().bfloat16(), RATE, 2)[0]
    assert member(SCANS.bfloat16()).dtype == torch.bfloat16


def test_an_ensemble_of_one_predicts_what_its_member_predicts() -> None:
    ensemble = lpe.MCDropoutEnsemble(conv_net(), RATE, 1)
    assert torch.equal(ensemble.predict(SCANS), ensemble[0](SCANS).detach().double().log_softmax(dim=-1))


def test_without_batches_batch_norm_statistics_are_the_models() -> None:
    model = conv_net()
    model.norm.running_mean.copy_(numbers((4,), 9))
    member = lpe.MCDropoutEnsemble(model, RATE, 1)[0]
    assert torch.equal(member.norm.running_mean, numbers((4,), 9))


def test_with_batches_batch_norm_statistics_are_those_under_the_masks() -> None:
    # A net whose batch norm comes after a mask.
    model = filled(nn.Sequential(nn.Linear(3, 6), nn.Dropout(), nn.Linear(6, 4), nn.BatchNorm1d(4)))
    data = [(numbers((20, 3), 70), None)]
    ensemble = lpe.MCDropoutEnsemble(model, 0.5, 2, batches=data, refresh="absolute")
    found = ensemble[1][3].running_mean
    masked, plain = copy.deepcopy(lpe.MCDropoutEnsemble(model, 0.5, 2)[1]), copy.deepcopy(model)
    refresh(masked, data)
    refresh(plain, data)
    torch.testing.assert_close(found, masked[3].running_mean)
    assert not torch.allclose(found, plain[3].running_mean, atol=1e-2)


# Memory: conv 4·9 + 4, norm 4·4 and a count, wide 6·2·9 + 6, head 5·6 + 5.
MODEL_BITS = 32 * (40 + 8 + 114 + 35)
STATISTICS_BITS = 32 * 8 + 64


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("storage", ["members", "generator"])
def test_the_memory_is_one_model_whatever_the_members(storage: str, n: int) -> None:
    found = lpe.MCDropoutEnsemble(conv_net(), RATE, 3).memory_bits(n, storage)
    assert found == MODEL_BITS + STATISTICS_BITS


@pytest.mark.parametrize(("storage", "copies"), [("members", 3), ("generator", 1)])
def test_stored_members_take_their_re_estimated_statistics_each(storage: str, copies: int) -> None:
    ensemble = lpe.MCDropoutEnsemble(conv_net(), RATE, 3, batches=[(SCANS, None)])
    assert ensemble.memory_bits(3, storage) == MODEL_BITS + copies * STATISTICS_BITS


# Descriptions and refusals


def test_describe_lists_what_is_masked_and_what_is_not_and_why() -> None:
    title, _, *rows, _ = lpe.MCDropoutEnsemble(vision_transformer(), RATE, 3, seed=7).describe().splitlines()
    assert "3 members" in title and "rate 0.2" in title and "seed 7" in title
    found = {row.split()[0]: row.split()[2] for row in rows}
    assert found == {name: "yes" if at else "no" for name, at in places(vision_transformer()).items()}
    assert any("attn_drop" in row and "attention probabilities" in row for row in rows)


def test_describe_lists_the_first_layer_with_its_reason() -> None:
    rows = lpe.MCDropoutEnsemble(conv_net(), RATE, 3).describe().splitlines()
    assert any(row.startswith("conv ") and "raw inputs" in row for row in rows)


@pytest.mark.parametrize("rate", [-0.1, 1, 1.5, math.nan, True, "0.1"])
def test_a_rate_outside_zero_to_one_is_refused_with_its_value(rate: Any) -> None:
    with pytest.raises(lpe.InputError, match=f"rate must be.*{rate}"):
        lpe.MCDropoutEnsemble(conv_net(), rate, 2)


@pytest.mark.parametrize(("setting", "value"), [("size", 0), ("seed", -1)])
def test_a_setting_that_is_none_is_refused_with_its_value(setting: str, value: int) -> None:
    with pytest.raises(lpe.InputError, match=str(value)):
        lpe.MCDropoutEnsemble(conv_net(), **{"rate": RATE, "size": 2, setting: value})


@pytest.mark.parametrize("model", [nn.ReLU(), nn.Embedding(3, 4), nn.MultiheadAttention(4, 2)], ids=str)
def test_a_model_with_nowhere_to_mask_is_refused_by_name(model: nn.Module) -> None:
    with pytest.raises(lpe.InputError, match=f"{type(model).__name__} has neither dropout nor a Linear"):
        lpe.MCDropoutEnsemble(model, RATE, 2)


def test_the_pooling_of_a_clip_resnet_uses_its_layers_without_calling_them() -> None:
    from open_clip.modified_resnet import ModifiedResNet

    net = ModifiedResNet(layers=[1, 1, 1, 1], output_dim=8, heads=2, image_size=32, width=4).eval()
    table = lpe.MCDropoutEnsemble(net, 0.1, 1).describe()
    pooling = [line for line in table.splitlines() if line.startswith("attnpool.") and "_proj" in line]
    assert len(pooling) == 4
    assert all("its weight is used without calling it" in line for line in pooling)


@pytest.mark.parametrize("layer", ["attnpool.q_proj", "attnpool.c_proj"])
def test_a_layer_said_to_be_uncalled_is_uncalled(layer: str) -> None:
    from open_clip.modified_resnet import ModifiedResNet

    net = ModifiedResNet(layers=[1, 1, 1, 1], output_dim=8, heads=2, image_size=32, width=4).eval()
    called: list[object] = []
    net.get_submodule(layer).register_forward_hook(lambda *_: called.append(1))
    net(torch.zeros(1, 3, 32, 32))
    assert not called
