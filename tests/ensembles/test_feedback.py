"""Error feedback: the textbook solve, the output error, the members' law, files, memory, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lpe
from lpe.ensembles import feedback
from lpe.ensembles.feedback import DAMPING
from lpe.modules import named_tensors
from lpe.number_systems.rounding import encode

OUTPUTS, COLUMNS, EXAMPLES = 5, 9, 60
SIGMAS = 5.0
"""Standard errors that a statistic may be off; draws are keyed, so a test passes or fails for good."""
MEMBERS = 400


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# Inputs that depend on each other, as those of a network's layers do.
INPUTS = drawn(0, EXAMPLES, COLUMNS) @ drawn(1, COLUMNS, COLUMNS)
BATCHES = [(INPUTS[:25], None), (INPUTS[25:], None)]


Network = TypeVar("Network", bound=nn.Module)


def filled(net: Network, seed: int = 2) -> Network:
    with torch.no_grad():
        for place, parameter in enumerate(net.parameters()):
            parameter.copy_(0.4 * drawn(seed + place, *parameter.shape))
    return net.eval()


def linear() -> nn.Sequential:
    return filled(nn.Sequential(nn.Linear(COLUMNS, OUTPUTS)))


def made(rounding: str = "nearest", size: int = 1, bits: int = 3, **settings: Any) -> lpe.FeedbackEnsemble:
    return lpe.FeedbackEnsemble(linear(), lpe.Int(bits), size, BATCHES, rounding=rounding, **settings)


def hessian(inputs: Tensor) -> Tensor:
    """2 Σ x xᵀ + λ I by its definition, float64."""
    gram = 2 * inputs.double().T @ inputs.double()
    return gram + DAMPING * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)


def textbook(weight: Tensor, h: Tensor, steps: Tensor, largest: int) -> Tensor:
    """OBQ in order of the columns, without a Cholesky factor: after each column the remaining weights are
    solved for anew, as those of least error given all that was rounded so far."""
    rounded = weight.double().clone()
    for row in range(len(weight)):
        target, step = weight[row].double(), float(steps[row])
        current = target.clone()
        for column in range(len(target)):
            code = float((current[column] / step).round().clamp(-largest, largest))
            current[column] = code * step
            fixed, rest = slice(0, column + 1), slice(column + 1, None)
            change = current[fixed] - target[fixed]
            current[rest] = target[rest] - torch.linalg.solve(h[rest, rest], h[rest, fixed] @ change)
        rounded[row] = current
    return rounded


def weight_of(net: nn.Module, name: str = "0.weight") -> Tensor:
    return {entry.name: entry.tensor.detach() for entry in named_tensors(net)}[name]


def output_error(net: nn.Module, base: nn.Module, inputs: Tensor) -> float:
    with torch.no_grad():
        return float((net(inputs) - base(inputs)).double().square().sum())


# The method.


def test_nearest_is_the_textbook_solve() -> None:
    ensemble = made()
    expected = textbook(weight_of(linear()), hessian(INPUTS), ensemble.scales("0.weight")[:, 0], 3)
    torch.testing.assert_close(weight_of(ensemble[0]).double(), expected, rtol=1e-6, atol=0)


def test_blocks_change_nothing_but_the_order_of_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = made().codes("0.weight", 0)[0]
    monkeypatch.setattr(feedback, "BLOCK", 2)
    assert torch.equal(made().codes("0.weight", 0)[0], whole)


# As in a network: many columns that follow few causes.
WIDE = drawn(6, 100, 6) @ drawn(7, 6, 48) + 0.3 * drawn(8, 100, 48)


def test_the_outputs_are_nearer_than_those_of_nearest_rounding() -> None:
    base = filled(nn.Sequential(nn.Linear(48, 24)))
    nearest = lpe.LowPrecisionEnsemble(base, lpe.Int(3), 1, rounding="nearest")[0]
    fed = lpe.FeedbackEnsemble(base, lpe.Int(3), 1, [(WIDE, None)], rounding="nearest")[0]
    assert output_error(fed, base, WIDE) < 0.5 * output_error(nearest, base, WIDE)


def test_the_damped_output_error_is_that_of_the_formula() -> None:
    """Σ e_j² / U_jj² of the docstring, with each e_j read off the members' weights."""
    ensemble, h = made(), hessian(INPUTS)
    upper = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)
    change = (weight_of(ensemble[0]) - weight_of(linear())).double()
    errors = torch.linalg.solve(upper.T / upper.diagonal(), change.T)  # (w − q) = e U_ij / U_ii
    expected = (errors.square() / upper.diagonal().square()[:, None]).sum()
    torch.testing.assert_close((change @ h * change).sum(), expected, rtol=1e-9, atol=0)


def test_inputs_that_are_all_alike_in_energy_and_independent_give_nearest_rounding() -> None:
    batches = [(torch.eye(COLUMNS), None)]
    ensemble = lpe.FeedbackEnsemble(linear(), lpe.Int(3), 1, batches, rounding="nearest")
    nearest = encode(weight_of(linear()), lpe.Int(3), "nearest")[0]
    assert torch.equal(ensemble.codes("0.weight", 0)[0], nearest)


def test_inputs_that_are_never_there_are_rounded_by_themselves() -> None:
    inputs = INPUTS.clone()
    inputs[:, 4] = 0
    ensemble = lpe.FeedbackEnsemble(linear(), lpe.Int(3), 1, [(inputs, None)], rounding="nearest")
    nearest = encode(weight_of(linear()), lpe.Int(3), "nearest")[0]
    codes = ensemble.codes("0.weight", 0)[0]
    assert torch.equal(codes[:, 4], nearest[:, 4])
    assert not torch.equal(codes, nearest)


def test_batches_that_are_all_zero_give_nearest_rounding() -> None:
    ensemble = lpe.FeedbackEnsemble(linear(), lpe.Int(3), 1, [(0 * INPUTS, None)], rounding="nearest")
    nearest = encode(weight_of(linear()), lpe.Int(3), "nearest")[0]
    assert torch.equal(ensemble.codes("0.weight", 0)[0], nearest)


# Convolutions.

CONVOLUTIONS: dict[str, Callable[[], Any]] = {
    "strided, dilated": lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(2, 1), dilation=(2, 1)),
    "grouped": lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2),
    "depthwise": lambda: nn.Conv2d(4, 8, 3, groups=4),
    "reflecting": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
    "same": lambda: nn.Conv2d(4, 6, (5, 3), padding="same"),
    "one-dimensional": lambda: nn.Conv1d(4, 6, 3, padding=1),
    "three-dimensional": lambda: nn.Conv3d(4, 6, 2, padding=1),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_unfolded_inputs_times_the_weight_are_the_outputs(kind: str) -> None:
    layer = filled(CONVOLUTIONS[kind]())
    inputs = drawn(9, 2, 4, *[5] * len(layer.kernel_size))
    windows = feedback.multiplied(layer, inputs)  # [groups, positions, columns]
    weight = layer.weight.reshape(layer.groups, -1, windows.shape[2])
    products = (windows @ weight.transpose(1, 2)).transpose(0, 1).flatten(1)  # [positions, outputs]
    expected = layer(inputs) - layer.bias.view(-1, *[1] * len(layer.kernel_size))
    torch.testing.assert_close(products, expected.movedim(1, -1).reshape(products.shape))


def test_each_group_of_a_convolution_has_the_solve_of_its_own_inputs() -> None:
    base: Any = filled(nn.Sequential(nn.Conv2d(4, 4, 2, groups=2), nn.Flatten(), nn.Linear(16, 3)))
    images = drawn(5, 30, 4, 3, 3)
    images = images + images.roll(1, dims=3)
    ensemble = lpe.FeedbackEnsemble(base, lpe.Int(3), 1, [(images, None)], rounding="nearest")
    member = weight_of(ensemble[0])
    windows = feedback.multiplied(base[0], images)
    for group in range(2):
        rows = slice(2 * group, 2 * group + 2)
        steps = ensemble.scales("0.weight")[rows, 0]
        expected = textbook(weight_of(base)[rows].flatten(1), hessian(windows[group]), steps, 3)
        torch.testing.assert_close(member[rows].flatten(1).double(), expected, rtol=1e-6, atol=0)


def test_windows_are_summed_over_parts_as_over_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    base = filled(nn.Sequential(nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(54, 3)))
    batches = [(drawn(5, 12, 4, 5, 5), None)]

    def codes() -> Tensor:
        return lpe.FeedbackEnsemble(base, lpe.Int(3), 1, batches, rounding="nearest").codes("0.weight", 0)[0]

    whole = codes()
    monkeypatch.setattr(feedback, "WINDOW_NUMBERS", 1000)
    assert torch.equal(codes(), whole)


# The members' law.


def members_weights(bits: int, size: int = MEMBERS) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of the members [members, …], the base's and the steps; no weight is near the grid's ends."""
    base: Any = linear()
    with torch.no_grad():
        base[0].weight[:, 0] = 4.0  # the largest: the grid ends far from all others
    ensemble = lpe.FeedbackEnsemble(base, lpe.Int(bits), size, BATCHES)
    codes = torch.stack([ensemble.codes("0.weight", index)[0] for index in range(size)])
    steps = ensemble.scales("0.weight")[:, :1]
    assert int(codes[:, :, 1:].abs().max()) < lpe.Int(bits).largest_code
    return codes * steps, weight_of(base), steps


def is_unbiased(members: Tensor, weight: Tensor) -> bool:
    error = members.double().std(dim=0) / math.sqrt(len(members))
    return bool(((members.double().mean(dim=0) - weight).abs() <= SIGMAS * error + 1e-4).all())


def test_random_members_are_unbiased() -> None:
    members, weight, _ = members_weights(5)
    assert is_unbiased(members, weight)


def test_a_bias_is_seen() -> None:
    members, weight, steps = members_weights(5)
    assert not is_unbiased(members + 0.5 * steps, weight)


def test_a_column_is_drawn_as_bsr_draws_it_from_what_it_took_up() -> None:
    """The first column takes up nothing, so that its codes are BSR's own; the second takes e_0 U_01/U_00."""
    ensemble, weight = made("bernoulli", 3, seed=11), weight_of(linear())
    h = hessian(INPUTS)
    upper = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)
    for member in range(3):
        codes, steps = ensemble.codes("0.weight", member)
        plain = encode(weight, lpe.Int(3), "bernoulli", 11, "0.weight", member)[0]
        assert torch.equal(codes[:, 0], plain[:, 0])
        error = weight[:, 0] - codes[:, 0] * steps[:, 0]
        taken = weight.clone()
        taken[:, 1] -= error * float(upper[0, 1] / upper[0, 0])
        # As encode would round it, at the base's own steps: a larger weight would change them.
        v = taken[:, 1] / steps[:, 0]
        lanes = feedback.random_lanes(11, "0.weight", member, 0, weight.numel()).view(weight.shape)[:, 1]
        up = lanes < ((v - v.floor()) * 65536).round()
        assert torch.equal(codes[:, 1].float(), (v.floor() + up).clamp(-3, 3))


def test_members_vary_less_in_their_outputs_and_more_in_their_weights_than_bsr() -> None:
    members, weight, steps = members_weights(5, 100)
    base: Any = linear()
    with torch.no_grad():
        base[0].weight.copy_(weight)
    plain = lpe.LowPrecisionEnsemble(base, lpe.Int(5), 100)
    bsr = torch.stack([plain.codes("0.weight", index)[0] for index in range(100)]) * steps

    def variance(weights: Tensor) -> Tensor:
        return (weights @ INPUTS.T).var(dim=0).mean()

    assert variance(members) < 0.8 * variance(bsr)
    assert members.var(dim=0).mean() > bsr.var(dim=0).mean()


@pytest.mark.parametrize("of_last", [lpe.Int(3, clip="mse"), lpe.Int(8, spread=11.3)], ids=["mse", "spread"])
def test_every_selected_tensor_lies_on_its_grid(of_last: lpe.Int) -> None:
    base = filled(nn.Sequential(nn.Conv2d(1, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)))
    system: dict[str, Any] = {"0.*": lpe.NF4(lpe.PerBlock(2)), "*": of_last}
    ensemble = lpe.FeedbackEnsemble(base, system, 2, [(drawn(5, 20, 1, 3, 3), None)])
    for planned in ensemble.plan:
        if planned.rounds:
            codes, scales = ensemble.codes(planned.name, 1)
            values = lpe.decode(codes, scales, planned.rounded_to)
            assert torch.equal(weight_of(ensemble[1], planned.name), values)


def test_bfloat16_members_hand_on_the_error_of_what_they_hold() -> None:
    base = linear().to(torch.bfloat16)
    ensemble = lpe.FeedbackEnsemble(
        base, lpe.Int(3), 1, [(INPUTS.bfloat16(), None)], rounding="nearest", damping=1.0
    )
    assert weight_of(ensemble[0]).dtype == torch.bfloat16
    assert output_error(ensemble[0], base, INPUTS.bfloat16()) > 0


# What determines a member.


def test_a_member_is_the_same_whichever_was_asked_for_before() -> None:
    one, other = made("bernoulli", 3), made("bernoulli", 3)
    other.member(0)
    assert torch.equal(weight_of(one[2]), weight_of(other[2]))
    turn = [weight_of(net).clone() for net in one.in_turn()]
    assert torch.equal(turn[2], weight_of(one[2]))


@pytest.mark.parametrize("change", [{"seed": 1}, {"first_member": 5}], ids=["seed", "first member"])
def test_members_differ_by_seed_and_first_member(change: dict[str, int]) -> None:
    assert not torch.equal(weight_of(made("bernoulli", 1, **change)[0]), weight_of(made("bernoulli", 1)[0]))


def test_first_member_only_moves_the_index() -> None:
    moved = made("bernoulli", 1, first_member=2)
    assert torch.equal(weight_of(moved[0]), weight_of(made("bernoulli", 3)[2]))


def test_members_depend_on_the_batches() -> None:
    other = lpe.FeedbackEnsemble(linear(), lpe.Int(3), 1, [(INPUTS[:5], None)], rounding="nearest")
    assert not torch.equal(weight_of(other[0]), weight_of(made()[0]))


def test_the_base_and_its_hooks_are_left_alone() -> None:
    base = linear()
    before = weight_of(base).clone()
    ensemble = lpe.FeedbackEnsemble(base, lpe.Int(3), 1, BATCHES)
    assert torch.equal(weight_of(base), before)
    assert not any(module._forward_pre_hooks for net in (base, ensemble[0]) for module in net.modules())


def test_evaluation_runs_the_members_of_the_ensemble_and_no_others() -> None:
    """Ten members of a small network would run together, drawn on the fly, were they plain roundings."""
    ensemble = made("bernoulli", 10)
    targets = torch.arange(EXAMPLES) % OUTPUTS
    with torch.no_grad():
        log_probs = torch.stack([net(INPUTS).double().log_softmax(dim=1) for net in ensemble])
    expected = F.nll_loss(log_probs.logsumexp(dim=0) - math.log(10), targets)
    assert lpe.evaluate(ensemble, [(INPUTS, targets)]).nll.iloc[-1] == pytest.approx(float(expected))


# What takes no part.


class Standardised(nn.Linear):
    """A layer whose weight is not what it multiplies by."""

    def forward(self, inputs: Tensor) -> Tensor:
        return F.linear(inputs, self.weight / self.weight.std(), self.bias)


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(COLUMNS, OUTPUTS)
        self.idle = nn.Linear(COLUMNS, OUTPUTS)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.used(inputs)


@pytest.mark.parametrize(
    ("net", "name", "why"),
    [
        (nn.Sequential(nn.Linear(COLUMNS, 4), Standardised(4, 3)), "1.weight", "way of its own"),
        (Unused(), "idle.weight", "no input reached"),
    ],
    ids=["a way of its own", "no input"],
)
def test_what_takes_no_part_is_rounded_plainly_and_named(net: nn.Module, name: str, why: str) -> None:
    base = filled(net)
    ensemble = lpe.FeedbackEnsemble(base, lpe.Int(3), 1, BATCHES, seed=4)
    plain = encode(weight_of(base, name), lpe.Int(3), "bernoulli", 4, name)[0]
    assert torch.equal(ensemble.codes(name, 0)[0], plain)
    assert why in ensemble.without_feedback[name]
    assert why in next(line for line in ensemble.describe().splitlines() if line.startswith(name))
    assert any(name in note and "without error feedback" in note for note in ensemble.notes())


class OfOneRow(nn.Module):
    """Multiplies what a layer makes of a row without an axis of examples."""

    def __init__(self) -> None:
        super().__init__()
        self.row = nn.Parameter(torch.zeros(COLUMNS))
        self.layer = nn.Linear(COLUMNS, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs[:, :4] * self.layer(self.row)


def test_a_linear_layer_of_one_row_without_an_axis_of_examples_has_that_input() -> None:
    base = filled(OfOneRow())
    ensemble = lpe.FeedbackEnsemble(base, lpe.Int(3), 1, BATCHES, rounding="nearest")
    row = base.row.detach()[None].expand(len(BATCHES), -1)
    expected = textbook(
        weight_of(base, "layer.weight"), hessian(row), ensemble.scales("layer.weight")[:, 0], 3
    )
    torch.testing.assert_close(weight_of(ensemble[0], "layer.weight").double(), expected, rtol=1e-6, atol=0)


def test_a_weight_of_two_layers_takes_the_inputs_of_both() -> None:
    base = filled(nn.Sequential(nn.Linear(COLUMNS, COLUMNS), nn.Tanh(), nn.Linear(COLUMNS, COLUMNS)))
    base[2].weight = base[0].weight
    with torch.no_grad():
        both = torch.cat([INPUTS, base[:2](INPUTS)])
    ensemble = lpe.FeedbackEnsemble(base, lpe.Int(3), 1, BATCHES, rounding="nearest")
    expected = textbook(weight_of(base), hessian(both), ensemble.scales("0.weight")[:, 0], 3)
    torch.testing.assert_close(weight_of(ensemble[0]).double(), expected, rtol=1e-6, atol=0)


def test_members_statistics_are_their_own_where_batches_are_given() -> None:
    base: Any = filled(nn.Sequential(nn.Linear(COLUMNS, OUTPUTS), nn.BatchNorm1d(OUTPUTS)))
    with torch.no_grad():
        base[1].running_var.fill_(1.0)
    ensemble = lpe.FeedbackEnsemble(base, lpe.Int(3), 2, BATCHES, statistics=BATCHES)
    assert not torch.equal(ensemble[0][1].running_mean, ensemble[1][1].running_mean)


# Memory and files.


def test_members_take_the_memory_of_low_precision_members() -> None:
    ensemble, plain = made("bernoulli", 4), lpe.LowPrecisionEnsemble(linear(), lpe.Int(3), 4)
    assert [ensemble.memory_bits(n) for n in (1, 4)] == [plain.memory_bits(n) for n in (1, 4)]


def test_a_generator_needs_the_triangle_of_the_hessian_too() -> None:
    ensemble, plain = made("bernoulli", 4), lpe.LowPrecisionEnsemble(linear(), lpe.Int(3), 4)
    triangle = 32 * COLUMNS * (COLUMNS + 1) // 2
    assert ensemble.memory_bits(storage="generator") == plain.memory_bits(storage="generator") + triangle


def test_to_the_nearest_the_generator_is_the_network() -> None:
    assert made().memory_bits(storage="generator") == made().memory_bits()


@pytest.mark.parametrize("rounding", feedback.ROUNDINGS)
def test_a_file_of_members_has_their_weights(rounding: str, tmp_path: Path) -> None:
    ensemble = made(rounding, 2)
    lpe.save(ensemble, tmp_path / "a.lpe")
    read = lpe.load(tmp_path / "a.lpe", linear())
    assert all(
        torch.equal(weight_of(there), weight_of(here)) for there, here in zip(read, ensemble, strict=True)
    )
    assert read.rounding == f"error feedback, {rounding}"  # type: ignore[attr-defined]
    assert read.memory_bits() == ensemble.memory_bits()


def test_a_file_of_a_selection_has_the_chosen_members(tmp_path: Path) -> None:
    ensemble = made("bernoulli", 4)
    lpe.save(lpe.SelectedEnsemble(ensemble, [3, 1]), tmp_path / "a.lpe")
    assert torch.equal(weight_of(lpe.load(tmp_path / "a.lpe", linear())[0]), weight_of(ensemble[3]))


# Refusals.


def not_finite() -> nn.Module:
    net: Any = linear()
    with torch.no_grad():
        net[0].weight[0, 0] = math.inf
    return net


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: made("coupled"), "rounding must be one of nearest, bernoulli, not 'coupled'"),
        (lambda: made(damping=0.0), "damping must be a finite number above 0, not 0.0"),
        (
            lambda: lpe.FeedbackEnsemble(linear(), lpe.Int(3), 1, [(INPUTS[:1], None)], damping=1e-30),
            "more",
        ),
        (lambda: lpe.FeedbackEnsemble(linear(), lpe.Int(3), 1, []), "the batches are empty"),
        (lambda: lpe.FeedbackEnsemble(linear(), lpe.Int(3), 1, [INPUTS]), "must be a pair"),
        (lambda: lpe.FeedbackEnsemble(linear(), lpe.Int(3), 1, [(INPUTS / 0, None)]), "NaN"),
        (lambda: lpe.FeedbackEnsemble(not_finite(), lpe.Int(3), 1, BATCHES), "NaN or infinite"),
        (lambda: made().as_module(), "not drawn on the fly"),
        (lambda: lpe.save(made(), "a.lpe", kind="seeded"), "the layers' inputs too"),
        (
            lambda: lpe.save(lpe.SelectedEnsemble(made("bernoulli", 2), [1]), "a.lpe", kind="seeded"),
            "the layers' inputs too",
        ),
        (
            lambda: lpe.evaluate(made(), [(INPUTS, torch.zeros(EXAMPLES).long())], members="together"),
            "cannot run together",
        ),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_what_cannot_be_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(lpe.InputError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
