"""Masks lie on features, in every layout in which torch's modules pass on what they make."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import lpe
from lpe.ensembles.feature_axis import Trail, _Made

RATE = 0.5
B, T, F_, H, W = 4, 6, 8, 3, 5
"""All different, and none divides another but by chance."""


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def filled(model: nn.Module) -> nn.Module:
    for seed, parameter in enumerate(model.parameters()):
        parameter.data.copy_(0.5 * numbers(*parameter.shape, seed=seed))
    return model.eval()


class Net(nn.Module):
    """A body, a rearrangement of what it makes, and dropout: of interest is what dropout has let through."""

    def __init__(self, body: nn.Module, rearrange: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body = body
        self.drop = nn.Dropout(0.1)
        self.rearrange = rearrange

    def forward(self, inputs: Tensor) -> Tensor:
        made = self.body(inputs)
        return self.drop(self.rearrange(made[0] if isinstance(made, tuple) else made))


def same(values: Tensor) -> Tensor:
    return values


class Permuted(nn.Module):
    """ConvNeXt's: a convolution, and a Linear over channels that lie last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(2, F_, 1), nn.Linear(F_, F_)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.conv(x).permute(0, 2, 3, 1))


LAYOUTS: dict[str, tuple[nn.Module, Callable[[Tensor], Tensor], tuple[int, ...], int]] = {
    # The body, how its output is rearranged, the shape of the inputs, and where the features then are.
    "vectors": (nn.Linear(3, F_), same, (B, 3), 1),
    "tokens": (nn.Linear(3, F_), same, (B, T, 3), 2),
    "tokens first": (nn.Linear(3, F_), same, (T, B, 3), 2),
    "tokens transposed": (nn.Linear(3, F_), lambda x: x.transpose(1, 2), (B, T, 3), 1),
    "tokens as many as features": (nn.Linear(3, F_), torch.exp, (B, F_, 3), 2),
    "examples as many as features": (nn.Linear(3, F_), same, (F_, T, 3), 2),
    "examples second, as many as features": (nn.Linear(3, F_), same, (T, F_, 3), 2),
    "half of a gate": (nn.Linear(3, 2 * F_), lambda x: x.chunk(2, dim=-1)[0], (B, T, 3), 2),
    "maps 1d": (nn.Conv1d(2, F_, 1), same, (B, 2, T), 1),
    "maps 2d": (nn.Conv2d(2, F_, 1), same, (B, 2, H, W), 1),
    "maps 3d": (nn.Conv3d(2, F_, 1), same, (B, 2, 2, H, W), 1),
    "maps of a transposed convolution": (nn.ConvTranspose2d(2, F_, 1), same, (B, 2, H, W), 1),
    "maps as wide as features": (nn.Conv2d(2, F_, 1), torch.exp, (B, 2, F_, F_), 1),
    "maps with channels last in memory": (
        nn.Conv2d(2, F_, 1).to(memory_format=torch.channels_last),
        torch.exp,
        (B, 2, H, W),
        1,
    ),
    "pooled maps": (nn.Conv2d(2, F_, 1), lambda x: x.mean(dim=(2, 3)), (B, 2, H, W), 1),
    "flattened maps": (nn.Conv2d(2, F_, 1), lambda x: x.flatten(1), (B, 2, H, W), 1),
    "maps as tokens": (nn.Conv2d(2, F_, 1), lambda x: x.flatten(2).transpose(1, 2), (B, 2, H, W), 2),
    "maps, places in a row": (nn.Conv2d(2, F_, 1), lambda x: x.flatten(2), (B, 2, H, W), 1),
    "maps with channels last": (nn.Conv2d(2, F_, 1), lambda x: x.permute(0, 2, 3, 1), (B, 2, H, W), 3),
    "ConvNeXt's": (Permuted(), same, (B, 2, H, W), 3),
    "after a batch norm": (nn.Sequential(nn.Conv2d(2, F_, 1), nn.BatchNorm2d(F_)), same, (B, 2, H, W), 1),
    "after a group norm": (nn.Sequential(nn.Conv2d(2, F_, 1), nn.GroupNorm(2, F_)), same, (B, 2, H, W), 1),
    "after a layer norm": (nn.Sequential(nn.Linear(3, F_), nn.LayerNorm(F_)), same, (B, T, 3), 2),
    "LSTM, time first": (nn.LSTM(3, F_), same, (T, B, 3), 2),
    "LSTM, batch first": (nn.LSTM(3, F_, batch_first=True), same, (B, T, 3), 2),
    "GRU, both ways": (nn.GRU(3, F_ // 2, bidirectional=True), same, (T, B, 3), 2),
    "LSTM, as many steps as features": (nn.LSTM(3, F_, batch_first=True), same, (B, F_, 3), 2),
}


def check_masked(outputs: Tensor, plain: Tensor, dimension: int) -> None:
    """Each member [members, …] is the plain output times one vector over ``dimension``, of 0 and 2."""
    factors = (outputs / plain).movedim(dimension + 1, 1).flatten(2)
    torch.testing.assert_close(factors, factors[..., :1].expand_as(factors))
    assert set(factors[..., 0].round(decimals=3).unique().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_mask_lies_on_the_features_wherever_they_are(layout: str) -> None:
    body, rearrange, shape, dimension = LAYOUTS[layout]
    net = filled(Net(body, rearrange))
    inputs = 1 + numbers(*shape).abs()
    members = torch.stack([member(inputs) for member in lpe.MCDropoutEnsemble(net, RATE, 8)])
    check_masked(members, net(inputs), dimension)


def test_a_mask_over_another_dimension_is_caught() -> None:
    plain = numbers(B, T, F_)
    tokens = torch.tensor([0.0, 2.0, 2.0, 0.0, 2.0, 0.0])[None, :, None]
    with pytest.raises(AssertionError):
        check_masked((plain * tokens)[None], plain, 2)


def test_packed_sequences_are_masked_by_features_whatever_the_lengths() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.drop = nn.LSTM(3, F_, batch_first=True), nn.Dropout(0.1)

        def forward(self, inputs: Tensor, lengths: Tensor) -> Tensor:
            packed, _ = self.lstm(pack_padded_sequence(inputs, lengths, batch_first=True))
            return self.drop(pad_packed_sequence(packed, batch_first=True)[0])

    net = filled(Packed())
    inputs, lengths = numbers(B, T, 3), torch.tensor([6, 5, 5, 2])
    plain = net(inputs, lengths)
    members = torch.stack([member(inputs, lengths) for member in lpe.MCDropoutEnsemble(net, RATE, 8)])
    check_masked(members[:, :, :2], plain[:, :2], 2)


def test_which_of_two_dimensions_has_the_features_is_not_guessed() -> None:
    net = filled(Net(nn.Linear(3, F_), lambda x: x.transpose(1, 2).contiguous().unsqueeze(1)))
    with pytest.raises(lpe.InputError, match=r"dropout 'drop' is given \[4, 1, 8, 8\] after 'body'"):
        lpe.MCDropoutEnsemble(net, RATE, 1)[0](numbers(B, F_, 3))


def test_a_batch_of_another_size_tells_and_is_remembered() -> None:
    net = filled(Net(nn.Linear(3, F_), lambda x: x.unsqueeze(1)))
    ensemble = lpe.MCDropoutEnsemble(net, RATE, 8)
    ensemble[0](numbers(B, T, 3))
    inputs = numbers(B, F_, 3)
    check_masked(torch.stack([member(inputs) for member in ensemble]), net(inputs), 3)


def test_where_no_dimension_has_the_features_it_is_said() -> None:
    net = filled(Net(nn.Linear(3, F_), lambda x: x.unflatten(-1, (2, 4))))
    with pytest.raises(lpe.InputError, match="no dimension has 8, so which has the features is not told"):
        lpe.MCDropoutEnsemble(net, RATE, 1)[0](numbers(B, T, 3))


def test_probabilities_of_an_attention_by_any_name_are_left_as_they_are() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project, self.thin_out = nn.Linear(F_, F_), nn.Dropout(0.1)

        def forward(self, x: Tensor) -> Tensor:
            heads = self.project(x).unflatten(-1, (2, -1)).transpose(1, 2)
            return self.thin_out((heads @ heads.mT).softmax(dim=-1))

    net = filled(Attends())
    inputs = numbers(B, T, F_)
    assert torch.equal(lpe.MCDropoutEnsemble(net, RATE, 2)[1](inputs), net(inputs))


def test_features_that_were_permuted_among_equals_are_not_taken_for_those_that_were_made() -> None:
    made = numbers(B, F_, F_)
    trail = Trail(made=_Made("layer", tuple(made.shape), made.stride(), 2))
    with pytest.raises(lpe.InputError, match="more than one dimension has 8"):
        trail.dimension("drop", made.transpose(1, 2), 2)


@pytest.mark.parametrize("beside_the_examples", [False, True])
def test_tokens_as_many_as_the_features_of_heads_are_not_taken_for_features(
    beside_the_examples: bool,
) -> None:
    made = numbers(B, F_, F_)
    trail = Trail(made=_Made("layer", tuple(made.shape), made.stride(), 2))
    heads = made.unflatten(-1, (2, -1)).transpose(1, 2)
    with pytest.raises(lpe.InputError, match="one dimension has 8, and others are as many together"):
        trail.dimension("drop", heads.flatten(0, 1) if beside_the_examples else heads, 2)


def test_examples_that_were_folded_have_their_features_where_they_were() -> None:
    made = numbers(2 * B, F_, 4, 4)
    trail = Trail(made=_Made("layer", tuple(made.shape), made.stride(), 1))
    assert trail.dimension("drop", made.unflatten(0, (B, 2)), 2) == 2


# What no mask reaches is named


def reasons(net: nn.Module) -> dict[str, str]:
    return {place.name: place.reason for place in lpe.MCDropoutEnsemble(net, RATE, 1).places if not place.at}


def test_dropout_in_a_modules_own_code_is_named() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(nn.functional.dropout(self.one(x), 0.1, self.training))

    assert reasons(nn.Sequential(Functional()))["0"] == "calls F.dropout itself, which no mask reaches"


def test_dropout_between_the_layers_of_an_lstm_is_named() -> None:
    net = nn.ModuleDict({"rnn": nn.LSTM(3, 4, num_layers=2, dropout=0.1), "head": nn.Linear(4, 2)})
    assert "between its layers" in reasons(net)["rnn"]


# Torch's transformer with a padding mask


class Encoder(nn.Module):
    def __init__(self, batch_first: bool = True, norm: bool = False, **settings: Any) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=batch_first, **settings)
        self.body = nn.TransformerEncoder(layer, 2, nn.LayerNorm(16) if norm else None)
        self.head = nn.Linear(16, 5)
        self.batch_first = batch_first

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if not self.batch_first:
            x = x.transpose(0, 1)
        made = self.body(x, src_key_padding_mask=mask)
        return self.head(made.mean(dim=1 if self.batch_first else 0))


def padding(*lengths: int) -> Tensor:
    return torch.arange(T) >= torch.tensor(lengths)[:, None]


MASKS = {
    "none": None,
    "at the end": padding(6, 4, 2, 6),
    "shorter than the batch": padding(3, 4, 2, 1),
    "inside": torch.arange(T) == torch.tensor([0, 3, 2, 1])[:, None],
}
ENCODERS: dict[str, Callable[[], nn.Module]] = {
    "batch first": Encoder,
    "with a norm": lambda: Encoder(norm=True),
    "norms first": lambda: Encoder(norm_first=True),
    "tokens first": lambda: Encoder(batch_first=False),
}
METHODS: dict[str, Callable[[nn.Module], Any]] = {
    "dropout": lambda net: lpe.MCDropoutEnsemble(net, 0.0, 2),
    "batch": lambda net: lpe.BatchEnsemble(net, 2, std=0.0),
}


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("method", METHODS)
def test_members_that_differ_in_nothing_are_torchs_encoder(method: str, encoder: str, mask: str) -> None:
    net = filled(ENCODERS[encoder]())
    inputs = (numbers(B, T, 16), MASKS[mask])
    ensemble = METHODS[method](net)
    # With gradients torch takes another way, whose outputs at padded places are others.
    with torch.no_grad():
        expected = net(*inputs)
        torch.testing.assert_close(ensemble[1](*inputs), expected, rtol=1e-4, atol=1e-5)
    if method == "batch":
        torch.testing.assert_close(
            ensemble.forward_all(inputs), expected.expand(2, -1, -1), rtol=1e-4, atol=1e-5
        )


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_all_members_of_an_encoder_at_once_are_the_members(encoder: str, mask: str) -> None:
    net = filled(ENCODERS[encoder]())
    inputs = (numbers(B, T, 16), MASKS[mask])
    ensemble = lpe.BatchEnsemble(net, 3)
    with torch.no_grad():
        alone = torch.stack([member(*inputs) for member in ensemble])
    torch.testing.assert_close(ensemble.forward_all(inputs), alone, rtol=1e-4, atol=1e-5)
