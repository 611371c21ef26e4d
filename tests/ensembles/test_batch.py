"""BatchEnsemble: the layers' formula, one pass against the members one at a time, and its training."""

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
from lpe.ensembles import batch
from lpe.ensembles.batch import tile
from lpe.modules import named_tensors
from lpe.training.loop import train

MEMBERS = 3
SIGMAS = 5.0
"""Standard errors that a statistic may be off; fast weights are keyed, so a test passes or fails for good."""


def numbers(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def filled(model: nn.Module) -> nn.Module:
    """The model in eval mode with weights from a seed."""
    for seed, parameter in enumerate(model.parameters()):
        parameter.data.copy_(0.5 * numbers(tuple(parameter.shape), seed))
    return model.eval()


def perturbed(ensemble: lpe.BatchEnsemble) -> lpe.BatchEnsemble:
    """As after training: no two members' biases alike."""
    for seed, parameter in enumerate(ensemble.module.parameters()):
        parameter.data.add_(0.3 * numbers(tuple(parameter.shape), 100 + seed))
    return ensemble


class ConvNet(nn.Module):
    """Convolutions, one of them grouped, one without a bias; a batch norm with statistics; a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.wide = nn.Conv2d(4, 6, 3, groups=2)
        self.head = nn.Linear(6, 5)
        self.norm.running_mean.copy_(numbers((4,), 30))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.wide(self.norm(self.conv(inputs)).relu()).mean(dim=(2, 3)))


def conv_net() -> ConvNet:
    model = ConvNet()
    filled(model)
    return model


def mlp() -> nn.Module:
    """Square layers: a swap of r and s has fitting shapes."""
    return filled(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)))


def vision_transformer() -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return filled(
        VisionTransformer(
            img_size=8, patch_size=4, in_chans=1, num_classes=5, embed_dim=8, depth=1, num_heads=2
        )
    )


def pooled(layer: nn.Module) -> nn.Module:
    """A layer on its own, its output flattened to [examples, everything]."""
    return filled(nn.Sequential(layer, nn.Flatten()))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear layers": (mlp, (2, 4)),
    "linear layers on tokens": (lambda: pooled(nn.Linear(4, 3)), (2, 5, 4)),
    "conv 1d": (lambda: pooled(nn.Conv1d(4, 3, 2)), (2, 4, 5)),
    "conv 2d": (lambda: pooled(nn.Conv2d(4, 3, 2, padding=1, padding_mode="reflect")), (2, 4, 5, 5)),
    "conv 3d": (lambda: pooled(nn.Conv3d(4, 3, 2)), (2, 4, 3, 3, 3)),
    "grouped conv": (lambda: pooled(nn.Conv2d(4, 6, 2, groups=2)), (2, 4, 5, 5)),
    "depthwise conv": (lambda: pooled(nn.Conv2d(4, 8, 3, groups=4)), (2, 4, 5, 5)),
    "transposed conv": (lambda: pooled(nn.ConvTranspose2d(4, 3, 2, stride=2)), (2, 4, 3, 3)),
    "grouped transposed conv": (lambda: pooled(nn.ConvTranspose2d(4, 6, 2, groups=2)), (2, 4, 3, 3)),
    "conv net": (conv_net, (2, 1, 8, 8)),
    "vision transformer": (vision_transformer, (2, 1, 8, 8)),
}


def check_one_pass_equals_the_members(ensemble: lpe.BatchEnsemble, inputs: Tensor) -> None:
    """Sums of below 100 float32 terms of size 1, a few layers deep: 2⁻²⁴ each."""
    one_pass = ensemble.forward_all(inputs)
    assert one_pass.shape[:2] == (len(ensemble), len(inputs))
    one_at_a_time = torch.stack([member(inputs) for member in ensemble]).detach()
    torch.testing.assert_close(one_pass, one_at_a_time, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_one_pass_equals_the_members_one_at_a_time(name: str) -> None:
    model, shape = MODELS[name]
    check_one_pass_equals_the_members(perturbed(lpe.BatchEnsemble(model(), MEMBERS)), numbers(shape, 50))


def test_r_and_s_swapped_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    ensemble = perturbed(lpe.BatchEnsemble(mlp(), MEMBERS))
    monkeypatch.setattr(
        batch,
        "_member_weight",
        lambda layer, m: (layer.weight * torch.outer(layer.batch_r[m], layer.batch_s[m])).detach(),
    )
    with pytest.raises(AssertionError):
        check_one_pass_equals_the_members(ensemble, numbers((2, 4), 50))


def test_a_bias_that_is_scaled_with_the_output_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def misplaced(self: Any, layer: Any, inputs: Any, output: Tensor) -> Tensor:
        alone = self.batch.alone
        rows = (
            layer.batch_bias.repeat_interleave(len(output) // MEMBERS, dim=0)
            if alone is None
            else layer.batch_bias[alone]
        )
        return self._times(output + rows, layer.batch_s)

    monkeypatch.setattr(batch._FastWeights, "scale_outputs", misplaced)
    with pytest.raises(AssertionError):
        check_one_pass_equals_the_members(perturbed(lpe.BatchEnsemble(mlp(), MEMBERS)), numbers((2, 4), 50))


def test_a_bias_that_all_members_share_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def shared(self: Any, layer: Any, inputs: Any, output: Tensor) -> Tensor:
        return self._times(output, layer.batch_s, layer.batch_bias[:1].expand(MEMBERS, -1))

    monkeypatch.setattr(batch._FastWeights, "scale_outputs", shared)
    with pytest.raises(AssertionError):
        check_one_pass_equals_the_members(perturbed(lpe.BatchEnsemble(mlp(), MEMBERS)), numbers((2, 4), 50))


def test_examples_tiled_one_by_one_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    ensemble = perturbed(lpe.BatchEnsemble(mlp(), MEMBERS))
    monkeypatch.setattr(batch, "tile", lambda inputs, m: (inputs[0].repeat_interleave(m, dim=0),))
    with pytest.raises(lpe.InputError, match="other logits for a member among all members"):
        check_one_pass_equals_the_members(ensemble, numbers((2, 4), 50))


# The formula


def test_a_layer_is_inputs_times_r_times_the_weight_times_s_plus_the_members_bias() -> None:
    ensemble = perturbed(lpe.BatchEnsemble(filled(nn.Linear(4, 3)), MEMBERS))
    parameters = {name: p.detach().double() for name, p in ensemble.module.network.named_parameters()}
    inputs = numbers((2, 4), 50)
    expected = [
        ((inputs.double() * parameters["batch_r"][m]) @ parameters["weight"].T) * parameters["batch_s"][m]
        + parameters["batch_bias"][m]
        for m in range(MEMBERS)
    ]
    torch.testing.assert_close(
        ensemble.forward_all(inputs).double(), torch.stack(expected), rtol=1e-5, atol=1e-5
    )


def test_a_members_weight_is_the_shared_one_times_the_outer_product() -> None:
    ensemble = perturbed(lpe.BatchEnsemble(filled(nn.Linear(4, 3)), MEMBERS))
    layer = ensemble.module.network
    expected = layer.weight * torch.outer(layer.batch_s[1], layer.batch_r[1])
    torch.testing.assert_close(ensemble[1].weight, expected, check_stride=False)


def test_members_start_from_the_models_biases() -> None:
    model = mlp()
    members = lpe.BatchEnsemble(model, MEMBERS)
    assert all(torch.equal(member[2].bias, model[2].bias) for member in members)


@pytest.mark.parametrize("name", MODELS)
def test_with_unit_fast_weights_every_member_is_the_model(name: str) -> None:
    model, shape = MODELS[name]
    ensemble = lpe.BatchEnsemble(model(), MEMBERS, std=0)
    inputs = numbers(shape, 50)
    expected = model()(inputs).detach()
    assert all(torch.equal(member(inputs), expected) for member in ensemble)
    for logits in ensemble.forward_all(inputs):
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)


def test_members_of_random_fast_weights_differ() -> None:
    ensemble = lpe.BatchEnsemble(conv_net(), MEMBERS)
    logits = ensemble.forward_all(numbers((2, 1, 8, 8), 50))
    assert all(not torch.allclose(logits[a], logits[b], atol=1e-3) for a, b in ((0, 1), (0, 2), (1, 2)))


def test_the_logits_of_the_module_are_member_by_member() -> None:
    ensemble = lpe.BatchEnsemble(mlp(), MEMBERS)
    inputs = numbers((2, 4), 50)
    assert torch.equal(ensemble.module(inputs).unflatten(0, (MEMBERS, 2)), ensemble.forward_all(inputs))


def test_predict_averages_the_members_probabilities() -> None:
    ensemble = lpe.BatchEnsemble(mlp(), MEMBERS)
    inputs = numbers((2, 4), 50)
    probabilities = ensemble.forward_all(inputs).double().softmax(dim=-1).mean(dim=0)
    torch.testing.assert_close(ensemble.predict(inputs).exp(), probabilities, rtol=1e-4, atol=1e-6)


# The fast weights' distribution, over 2 layers · 50 members · (30 + 30) values = 6,000


STD = 0.5
SIZE, WIDTH = 50, 30


def fast_weights(std: float = STD, seed: int = 0) -> Tensor:
    """float64 [vectors: r and s of two layers, members, width]."""
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH))
    network = lpe.BatchEnsemble(model, SIZE, seed, std).module.network
    vectors = [vector for layer in network for vector in (layer.batch_r, layer.batch_s)]
    return torch.stack(vectors).detach().double()


def check_mean_and_std(found: Tensor) -> None:
    """Of n normal draws the mean is off by STD/√n, the variance by STD²·√(2/n)."""
    n = found.numel()
    assert abs(float(found.mean()) - 1) <= SIGMAS * STD / math.sqrt(n)
    assert abs(float((found - 1).square().mean()) - STD**2) <= SIGMAS * STD**2 * math.sqrt(2 / n)


def check_vectors_and_members_are_independent(found: Tensor) -> None:
    """The mean of n products of independent standardised draws has the standard error 1/√n."""
    z = (found - 1) / STD
    between_vectors = torch.einsum("amw,bmw->ab", z, z).fill_diagonal_(0.0) / (SIZE * WIDTH)
    assert (between_vectors.abs() <= SIGMAS / math.sqrt(SIZE * WIDTH)).all()
    successive = (z[:, 1:] * z[:, :-1]).mean()
    assert abs(float(successive)) <= SIGMAS / math.sqrt(len(z) * (SIZE - 1) * WIDTH)


def test_fast_weights_are_drawn_around_one_with_the_std() -> None:
    check_mean_and_std(fast_weights())


@pytest.mark.parametrize("std", [STD**2, STD**0.5], ids=["variance for std", "std for variance"])
def test_fast_weights_of_another_std_are_caught(std: float) -> None:
    with pytest.raises(AssertionError):
        check_mean_and_std(fast_weights(std))


def test_fast_weights_around_zero_are_caught() -> None:
    with pytest.raises(AssertionError):
        check_mean_and_std(fast_weights() - 1)


def test_fast_weights_of_layers_members_and_sides_are_independent() -> None:
    check_vectors_and_members_are_independent(fast_weights())


KEY_FAULTS: dict[str, Callable[[str, str, int], tuple[str, str, int]]] = {
    "r is s": lambda purpose, name, member: ("", name, member),
    "every layer the same": lambda purpose, name, member: (purpose, "", member),
    "every member the same": lambda purpose, name, member: (purpose, name, 0),
}


@pytest.mark.parametrize("fault", KEY_FAULTS)
def test_fast_weights_drawn_under_too_poor_a_key_are_caught(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = batch.normal

    def poorer(purpose: str, seed: int, name: str, member: int, shape: Any) -> Tensor:
        purpose, name, member = KEY_FAULTS[fault](purpose, name, member)
        return real(purpose, seed, name, member, shape)

    monkeypatch.setattr(batch, "normal", poorer)
    with pytest.raises(AssertionError):
        check_vectors_and_members_are_independent(fast_weights())


def test_seeds_draw_other_fast_weights() -> None:
    assert not (fast_weights(seed=0) == fast_weights(seed=1)).any()


def test_a_larger_ensemble_begins_with_the_fast_weights_of_a_smaller() -> None:
    small, large = (lpe.BatchEnsemble(mlp(), size).module.network[0].batch_r for size in (2, 4))
    assert torch.equal(large[:2], small)


def test_making_an_ensemble_leaves_the_global_generator_alone() -> None:
    model = mlp()
    before = torch.get_rng_state()
    lpe.BatchEnsemble(model, MEMBERS)[0]
    assert torch.equal(torch.get_rng_state(), before)


# Training


def labelled(epoch: int) -> list[tuple[Tensor, Tensor]]:
    """Two batches of 16 whose class is their greatest input; targets tiled."""
    return [(x, tile(x.argmax(dim=1), MEMBERS)) for x in (numbers((16, 4), 80 + k) for k in range(2))]


def trained(ensemble: lpe.BatchEnsemble, epochs: int = 20) -> list[float]:
    """The losses, epoch by epoch."""
    groups = ensemble.parameter_groups(lr=0.1, fast_lr=0.05, weight_decay=5e-4)
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    run = train(ensemble.module, labelled, optimizer, lambda step: 0.1, epochs, seed=0)
    return [row["loss"] for row in run.curve]


def test_the_loss_is_the_mean_of_the_members_cross_entropies() -> None:
    ensemble = perturbed(lpe.BatchEnsemble(mlp(), MEMBERS))
    inputs, targets = numbers((5, 4), 60), torch.tensor([0, 1, 2, 1, 0])
    losses = [nn.functional.cross_entropy(member(inputs), targets) for member in ensemble]
    torch.testing.assert_close(ensemble.loss(inputs, targets), torch.stack(losses).mean())


def test_training_by_the_loss_is_training_on_tiled_targets() -> None:
    given, tiled = lpe.BatchEnsemble(mlp(), MEMBERS), lpe.BatchEnsemble(mlp(), MEMBERS)
    once = [(inputs, inputs.argmax(dim=1)) for inputs, _ in labelled(0)]
    optimizer = torch.optim.SGD(given.parameter_groups(lr=0.1, fast_lr=0.05, weight_decay=5e-4), momentum=0.9)
    train(given.module, once, optimizer, 0.1, epochs=3, loss=given.loss)
    trained(tiled, epochs=3)
    for mine, other in zip(given.module.parameters(), tiled.module.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_training_without_the_loss_is_refused_and_names_it() -> None:
    ensemble = lpe.BatchEnsemble(mlp(), MEMBERS)
    optimizer = torch.optim.SGD(ensemble.module.parameters(), lr=0.1)
    with pytest.raises(lpe.InputError, match=r"for 5 targets; .*loss=ensemble\.loss"):
        train(ensemble.module, [(numbers((5, 4), 60), torch.zeros(5, dtype=torch.int64))], optimizer, 0.1, 1)


def test_the_loss_refuses_targets_that_are_tiled_already() -> None:
    ensemble = lpe.BatchEnsemble(mlp(), MEMBERS)
    with pytest.raises(lpe.InputError, match="15 targets for 5 examples; the loss takes"):
        ensemble.loss(numbers((5, 4), 60), torch.zeros(15, dtype=torch.int64))


def test_training_reduces_the_loss() -> None:
    losses = trained(lpe.BatchEnsemble(mlp(), MEMBERS))
    assert losses[-1] < 0.5 * losses[0]


def test_after_training_one_pass_equals_the_members() -> None:
    ensemble = lpe.BatchEnsemble(mlp(), MEMBERS)
    trained(ensemble, epochs=3)
    check_one_pass_equals_the_members(ensemble, numbers((2, 4), 50))


@pytest.mark.parametrize("model", [mlp, conv_net, vision_transformer])
def test_gradients_reach_every_parameter(model: Callable[[], nn.Module]) -> None:
    ensemble = lpe.BatchEnsemble(model(), MEMBERS)
    inputs = numbers((2, 4) if model is mlp else (2, 1, 8, 8), 50)
    nn.functional.cross_entropy(ensemble.module(inputs), tile(torch.tensor([1, 2]), MEMBERS)).backward()
    for name, parameter in ensemble.module.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_a_members_gradient_does_not_reach_anothers_fast_weights() -> None:
    ensemble = lpe.BatchEnsemble(mlp(), MEMBERS)
    ensemble.module(numbers((2, 4), 50))[2:4].sum().backward()
    for layer in (ensemble.module.network[0], ensemble.module.network[2]):
        for vectors in (layer.batch_r, layer.batch_s, layer.batch_bias):
            assert [bool(row.any()) for row in vectors.grad] == [False, True, False]


def test_the_fast_group_has_its_own_rate_and_no_weight_decay() -> None:
    shared, fast = lpe.BatchEnsemble(mlp(), MEMBERS).parameter_groups(0.1, 0.05, 5e-4)
    assert (shared["lr"], shared["weight_decay"]) == (0.1, 5e-4)
    assert (fast["lr"], fast["weight_decay"], fast["lr_factor"]) == (0.05, 0.0, 0.5)


def test_the_groups_hold_every_parameter_once_and_r_and_s_are_the_fast_ones() -> None:
    ensemble = lpe.BatchEnsemble(conv_net(), MEMBERS)
    names = {id(parameter): name for name, parameter in ensemble.module.named_parameters()}
    shared, fast = ([names[id(p)] for p in g["params"]] for g in ensemble.parameter_groups(0.1, 0.05, 0.0))
    assert sorted(shared + fast) == sorted(names.values())
    assert sorted(fast) == sorted(name for name in names.values() if name.endswith(("batch_r", "batch_s")))


@pytest.mark.parametrize("rates", [(0.0, 0.1), (0.1, -1.0), (math.nan, 0.1), (0.1, math.inf)])
def test_a_learning_rate_that_is_none_is_refused(rates: tuple[float, float]) -> None:
    with pytest.raises(lpe.InputError, match="lr must be a finite number above 0"):
        lpe.BatchEnsemble(mlp(), MEMBERS).parameter_groups(*rates, weight_decay=0.0)


def test_a_parameter_that_the_model_does_not_train_is_not_trained() -> None:
    model = mlp()
    model[0].weight.requires_grad_(False)
    ensemble = lpe.BatchEnsemble(model, MEMBERS)
    shared = ensemble.parameter_groups(0.1, 0.05, 0.0)[0]["params"]
    assert not any(parameter is ensemble.module.network[0].weight for parameter in shared)
    assert not ensemble.module.network[0].weight.requires_grad
    assert ensemble.module.network[2].weight.requires_grad


def test_a_batch_norm_in_training_sees_all_members_examples() -> None:
    ensemble = lpe.BatchEnsemble(conv_net(), MEMBERS)
    network, inputs = ensemble.module.network, numbers((4, 1, 8, 8), 50)
    seen: list[Tensor] = []
    network.norm.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    network.norm.momentum = 1.0
    ensemble.module.train()
    ensemble.module(inputs)
    # Before the first training pass the module learns in two where its layers have the batch.
    assert len(seen[-1]) == MEMBERS * 4
    torch.testing.assert_close(network.norm.running_mean, seen[-1].mean(dim=(0, 2, 3)))


def test_members_have_the_trained_batch_norm_statistics() -> None:
    ensemble = lpe.BatchEnsemble(conv_net(), MEMBERS)
    ensemble.module.train()
    ensemble.module(numbers((4, 1, 8, 8), 50))
    assert all(torch.equal(m.norm.running_mean, ensemble.module.network.norm.running_mean) for m in ensemble)
    assert not torch.equal(ensemble[0].norm.running_mean, conv_net().norm.running_mean)


# What is converted


def converted(ensemble: lpe.BatchEnsemble) -> set[str]:
    named = ensemble.module.network.named_modules()
    return {name for name, module in named if "batch_r" in module._parameters}


class Tied(nn.Module):
    """A language model's shape: the head's weight is the embedding's."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 5)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.body(self.embed(tokens)).mean(dim=1))


TOKENS = torch.tensor([[0, 1, 2], [3, 4, 0]])


def test_a_weight_tied_to_an_embedding_stays_tied_and_is_not_converted() -> None:
    ensemble = lpe.BatchEnsemble(filled(Tied()), MEMBERS)
    network = ensemble.module.network
    assert network.head.weight is network.embed.weight
    assert converted(ensemble) == {"body"}
    assert ensemble[0].head.weight.data_ptr() == ensemble[0].embed.weight.data_ptr()


def test_one_pass_of_a_model_with_a_tie_equals_its_members() -> None:
    check_one_pass_equals_the_members(perturbed(lpe.BatchEnsemble(filled(Tied()), MEMBERS)), TOKENS)


def test_a_layer_that_is_used_twice_is_converted_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.again = self.layer

        def forward(self, inputs: Tensor) -> Tensor:
            return self.again(self.layer(inputs).tanh())

    ensemble = perturbed(lpe.BatchEnsemble(filled(Twice()), MEMBERS))
    assert converted(ensemble) == {"layer"}
    check_one_pass_equals_the_members(ensemble, numbers((2, 4), 50))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.encoder(inputs).mean(dim=1))


def test_torchs_attention_keeps_its_bare_weights_and_the_one_it_uses_without_calling_it() -> None:
    ensemble = perturbed(lpe.BatchEnsemble(filled(Attention()), MEMBERS))
    assert converted(ensemble) == {"encoder.linear1", "encoder.linear2", "head"}
    check_one_pass_equals_the_members(ensemble, numbers((2, 3, 4), 50))


class Doubled(nn.Linear):
    def forward(self, inputs: Tensor) -> Tensor:
        return nn.functional.linear(inputs, self.weight.square(), self.bias)


def test_a_layer_with_a_forward_of_its_own_is_not_converted() -> None:
    ensemble = lpe.BatchEnsemble(filled(nn.Sequential(Doubled(4, 4), nn.Linear(4, 3))), MEMBERS)
    assert converted(ensemble) == {"1"}


def test_a_layer_whose_weight_is_computed_is_not_converted() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    ensemble = perturbed(lpe.BatchEnsemble(nn.Sequential(layer, nn.Linear(4, 3)).eval(), MEMBERS))
    assert converted(ensemble) == {"1"}
    check_one_pass_equals_the_members(ensemble, numbers((2, 4), 50))


def test_a_hook_of_the_models_own_sees_the_layers_whole_output() -> None:
    model = mlp()
    model[0].register_forward_hook(lambda module, inputs, output: output.clamp(-0.5, 0.5))
    check_one_pass_equals_the_members(perturbed(lpe.BatchEnsemble(model, MEMBERS)), numbers((2, 4), 50))


# Members and the given model


def test_the_given_model_is_left_as_it_was_by_training() -> None:
    model = conv_net().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ensemble = lpe.BatchEnsemble(model, MEMBERS)
    optimizer = torch.optim.SGD(ensemble.module.parameters())
    data = [(numbers((4, 1, 8, 8), 50), tile(torch.arange(4), MEMBERS))]
    train(ensemble.module, lambda epoch: data, optimizer, lambda step: 0.1, 1, seed=0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert model.wide.bias is not None


def test_a_member_has_the_given_models_tensors_by_name_and_shape() -> None:
    model = conv_net()
    member = lpe.BatchEnsemble(model, MEMBERS)[1]
    found = [(e.name, e.tensor.shape, e.tensor.dtype) for e in named_tensors(member)]
    assert found == [(e.name, e.tensor.shape, e.tensor.dtype) for e in named_tensors(model)]


def test_members_share_what_is_not_converted_with_the_module() -> None:
    ensemble = lpe.BatchEnsemble(conv_net(), MEMBERS)
    network = ensemble.module.network
    for member in ensemble:
        assert member.norm.weight.data_ptr() == network.norm.weight.data_ptr()
        assert member.norm.running_var.data_ptr() == network.norm.running_var.data_ptr()


def test_members_are_in_eval_mode_also_while_the_module_trains() -> None:
    ensemble = lpe.BatchEnsemble(conv_net(), MEMBERS)
    ensemble.module.train()
    assert not any(module.training for module in ensemble[0].modules())


def test_members_are_not_stored() -> None:
    assert not lpe.BatchEnsemble(mlp(), MEMBERS).members_are_stored


@pytest.mark.parametrize("training", [True, False])
def test_one_pass_leaves_the_training_flags_as_they_were(training: bool) -> None:
    ensemble = lpe.BatchEnsemble(conv_net(), MEMBERS)
    ensemble.module.train(training)
    before = ensemble.module.network.norm.running_mean.clone()
    ensemble.forward_all(numbers((4, 1, 8, 8), 50))
    assert all(module.training is training for module in ensemble.module.modules())
    assert torch.equal(ensemble.module.network.norm.running_mean, before)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_a_copy_of_the_module_is_one_of_its_own(copied: Callable[[nn.Module], nn.Module]) -> None:
    module = lpe.BatchEnsemble(mlp(), MEMBERS).module
    inputs = numbers((2, 4), 50)
    before = module(inputs)
    other = copied(module)
    assert torch.equal(other(inputs), before)
    with torch.no_grad():
        other.network[0].batch_s.zero_()
    assert torch.equal(module(inputs), before) and not torch.equal(other(inputs), before)


def test_the_modules_state_dict_holds_the_fast_weights() -> None:
    one, other = (lpe.BatchEnsemble(mlp(), MEMBERS, seed=seed) for seed in (0, 1))
    other.module.load_state_dict(one.module.state_dict())
    inputs = numbers((2, 4), 50)
    assert torch.equal(other.forward_all(inputs), one.forward_all(inputs))


def test_a_saved_ensemble_predicts_as_before(tmp_path: Any) -> None:
    ensemble = perturbed(lpe.BatchEnsemble(conv_net(), MEMBERS))
    inputs = numbers((2, 1, 8, 8), 50)
    lpe.save(ensemble, tmp_path / "ensemble")
    assert torch.equal(lpe.load(tmp_path / "ensemble", conv_net()).predict(inputs), ensemble.predict(inputs))


# Inputs


class Keyed(nn.Module):
    """Takes two tensors and a flag, gives an object with logits, as language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, features: Tensor, mask: Tensor, scale: float = 1.0) -> Any:
        from types import SimpleNamespace

        return SimpleNamespace(logits=self.layer(features * mask) * scale)


FEATURES, MASK = numbers((2, 4), 50), (numbers((2, 4), 51) > 0).float()


@pytest.mark.parametrize(
    "inputs",
    [(FEATURES, MASK, 2.0), [FEATURES, MASK, 2.0], {"mask": MASK, "features": FEATURES, "scale": 2.0}],
    ids=["tuple", "list", "dict"],
)
def test_inputs_of_every_kind_are_tiled(inputs: Any) -> None:
    ensemble = lpe.BatchEnsemble(filled(Keyed()), MEMBERS)
    expected = torch.stack([member(FEATURES, MASK, 2.0).logits for member in ensemble]).detach()
    torch.testing.assert_close(ensemble.forward_all(inputs), expected)


def test_tiling_repeats_the_batch_member_by_member() -> None:
    assert tile(torch.tensor([1, 2]), 3).tolist() == [1, 2, 1, 2, 1, 2]


def test_inputs_by_position_and_by_keyword_at_once_are_refused() -> None:
    with pytest.raises(lpe.InputError, match="by position or by keyword"):
        lpe.BatchEnsemble(filled(Keyed()), MEMBERS).module(FEATURES, mask=MASK)


def test_a_layer_called_by_keyword_is_scaled() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.layer(input=inputs)

    check_one_pass_equals_the_members(perturbed(lpe.BatchEnsemble(filled(Named()), MEMBERS)), FEATURES)


class BatchSecond(nn.Module):
    """Sequence first, inside."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs.transpose(0, 1)).mean(dim=0)


@pytest.mark.parametrize("tokens", [9, 2, 6, 12], ids=lambda n: f"{n} tokens")
def test_a_layer_may_have_the_batch_in_another_dimension(tokens: int) -> None:
    # Of 2 examples and 3 members: as many tokens as examples, as in the tiled batch, as twice as many.
    ensemble = perturbed(lpe.BatchEnsemble(filled(BatchSecond()), MEMBERS))
    check_one_pass_equals_the_members(ensemble, numbers((2, tokens, 4), 50))


def test_batches_of_other_sizes_follow_one_another() -> None:
    ensemble = perturbed(lpe.BatchEnsemble(filled(BatchSecond()), MEMBERS))
    for shape in ((2, 9, 4), (5, 9, 4), (1, 6, 4)):
        check_one_pass_equals_the_members(ensemble, numbers(shape, 50))


def test_a_layer_that_is_called_in_two_layouts_has_both() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.layer(self.layer(inputs).transpose(0, 1)).mean(dim=0)

    check_one_pass_equals_the_members(
        perturbed(lpe.BatchEnsemble(filled(Both()), MEMBERS)), numbers((2, 6, 4), 50)
    )


class Folded(nn.Module):
    """Time and batch in one dimension, time the slower: members' values lie mixed."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        steps, examples = inputs.shape[1], len(inputs)
        return self.layer(inputs.transpose(0, 1).flatten(0, 1)).unflatten(0, (steps, examples)).mean(dim=0)


def test_a_layer_in_which_members_lie_mixed_is_refused() -> None:
    ensemble = lpe.BatchEnsemble(filled(Folded()), MEMBERS)
    with pytest.raises(lpe.InputError, match="other logits for a member among all members than for it alone"):
        ensemble.module(numbers((2, 9, 4), 50))


class ByWeight(nn.Module):
    """Uses a layer's weight without calling the layer; another layer it does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(8, 6)
        self.head = nn.Linear(6, 3)
        self.spare = nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(nn.functional.linear(inputs, self.body.weight, self.body.bias))
        return logits


def test_a_layer_whose_weight_is_used_without_calling_it_is_refused_by_name() -> None:
    ensemble = lpe.BatchEnsemble(filled(ByWeight()), 3)
    weights = {name: value.clone() for name, value in ensemble.module.state_dict().items()}
    with pytest.raises(lpe.InputError, match="the weight of 'body' is used without calling the layer"):
        ensemble.loss(numbers((4, 8), 0), torch.tensor([0, 1, 2, 0]))
    assert all(torch.equal(value, weights[name]) for name, value in ensemble.module.state_dict().items())


class AttentionPool2d(nn.Module):
    """As open_clip's: hands its layers' weights to torch's function."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(4, 4) for _ in range(3))
        self.c_proj = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        layers = (self.q_proj, self.k_proj, self.v_proj)
        query, key, value = (nn.functional.linear(inputs, each.weight, each.bias) for each in layers)
        pooled = nn.functional.scaled_dot_product_attention(query, key, value).mean(dim=1)
        return nn.functional.linear(pooled, self.c_proj.weight, self.c_proj.bias)


def test_layers_that_attention_pooling_uses_without_calling_them_are_not_converted() -> None:
    ensemble = lpe.BatchEnsemble(filled(nn.Sequential(nn.Linear(5, 4), AttentionPool2d())), 3)
    assert ensemble.converted == ["0"]
    check_one_pass_equals_the_members(ensemble, numbers((4, 6, 5), 0))


def test_a_layer_that_sees_no_examples_is_refused_by_name() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.position, self.layer = nn.Linear(1, 4), nn.Linear(4, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.layer(inputs + self.position(torch.arange(9.0)[:, None])).mean(dim=1)

    with pytest.raises(lpe.InputError, match=r"'position' is given \[9, 1\].*tiled batch of 6"):
        lpe.BatchEnsemble(filled(Shared()), MEMBERS).module(numbers((2, 9, 4), 50))


def test_a_model_that_gives_the_examples_second_is_refused() -> None:
    net = nn.Sequential(nn.Linear(4, 3))
    net.register_forward_hook(lambda module, inputs, output: output.transpose(0, 1))
    with pytest.raises(lpe.InputError, match=r"logits of shape \[9, 6, 3\] for a batch of 6 examples"):
        lpe.BatchEnsemble(filled(net), MEMBERS).module(numbers((2, 9, 4), 50))


def test_the_network_called_past_the_module_is_refused() -> None:
    ensemble = lpe.BatchEnsemble(mlp(), MEMBERS)
    ensemble.module(FEATURES)
    with pytest.raises(lpe.InputError, match=r"called as ensemble.module\(inputs\)"):
        ensemble.module.network(FEATURES)


# Memory: conv 4·9, norm 4·4 and a count, wide 6·2·9, head 5·6 are shared.
SHARED_BITS = 32 * (36 + 16 + 108 + 30) + 64
# r: 1 + 4 + 6; s: 4 + 6 + 5; biases: 6 + 5 (conv has none).
VECTOR_BITS = 32 * (11 + 15 + 11)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("storage", ["members", "generator"])
def test_the_memory_is_the_shared_weights_once_and_vectors_a_member(storage: str, n: int) -> None:
    found = lpe.BatchEnsemble(conv_net(), MEMBERS).memory_bits(n, storage)
    assert found == SHARED_BITS + n * VECTOR_BITS


def test_the_memory_of_all_members_is_that_of_the_modules_state() -> None:
    ensemble = lpe.BatchEnsemble(conv_net(), MEMBERS)
    state = ensemble.module.state_dict().values()
    assert ensemble.memory_bits() == sum(8 * value.numel() * value.element_size() for value in state)


# Descriptions and refusals


def test_describe_lists_every_tensor_of_a_member() -> None:
    title, _, *rows, footer = lpe.BatchEnsemble(conv_net(), MEMBERS, seed=7).describe().splitlines()
    assert "3 members" in title and "3 layers" in title and "std 0.5" in title and "seed 7" in title
    found = {row.split()[0]: row.split()[2] for row in rows}
    own = {"wide.bias", "head.bias"}
    assert found == {e.name: "own" if e.name in own else "shared" for e in named_tensors(conv_net())}
    assert "37 values" in footer


@pytest.mark.parametrize(
    ("model", "start", "reason"),
    [
        (Tied, "embed.weight", "Embedding"),
        (Tied, "head.bias", "tied: embed.weight, head.weight"),
        (Attention, "encoder.self_attn.in_proj_weight", "parameter of MultiheadAttention"),
        (Attention, "encoder.self_attn.out_proj.weight", "without calling it"),
        (lambda: nn.Sequential(Doubled(4, 4), nn.Linear(4, 3)), "0.weight", "forward of its own"),
    ],
)
def test_describe_says_why_a_tensor_is_shared(
    model: Callable[[], nn.Module], start: str, reason: str
) -> None:
    rows = lpe.BatchEnsemble(filled(model()), MEMBERS).describe().splitlines()
    row = next(row for row in rows if row.startswith(start + " "))
    assert "shared" in row and reason in row


@pytest.mark.parametrize("std", [-0.1, math.nan, math.inf, True, "0.5"])
def test_a_std_that_is_no_finite_number_is_refused_with_its_value(std: Any) -> None:
    with pytest.raises(lpe.InputError, match=f"std must be a finite number ≥ 0, not.*{std}"):
        lpe.BatchEnsemble(mlp(), MEMBERS, std=std)


@pytest.mark.parametrize(("setting", "value"), [("size", 0), ("seed", -1)])
def test_a_setting_that_is_none_is_refused_with_its_value(setting: str, value: int) -> None:
    with pytest.raises(lpe.InputError, match=str(value)):
        lpe.BatchEnsemble(mlp(), **{"size": 2, setting: value})


@pytest.mark.parametrize("model", [nn.ReLU(), nn.Embedding(3, 4), Doubled(4, 4)], ids=str)
def test_a_model_without_a_layer_to_convert_is_refused_by_name(model: nn.Module) -> None:
    with pytest.raises(lpe.InputError, match=f"{type(model).__name__} has no Linear or Conv layer"):
        lpe.BatchEnsemble(model, 2)
