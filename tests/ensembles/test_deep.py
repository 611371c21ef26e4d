"""Deep ensembles: the modules themselves, in eval mode."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lpe

INPUTS = torch.linspace(-1, 1, 12).view(3, 4)


def net(width: int = 5) -> nn.Module:
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Dropout(0.5), nn.Linear(width, 3))


def nets(count: int = 3) -> list[nn.Module]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return [net() for _ in range(count)]


def test_a_member_in_eval_mode_is_the_module_itself() -> None:
    models = [model.eval() for model in nets()]
    assert all(member is model for member, model in zip(lpe.DeepEnsemble(models), models, strict=True))


@pytest.mark.parametrize("part", ["whole", "dropout"])
def test_a_member_of_a_module_in_training_mode_is_in_eval_mode(part: str) -> None:
    models = [model.eval() for model in nets()]
    (models[1] if part == "whole" else models[1][2]).train()  # type: ignore[index]
    assert not any(module.training for module in lpe.DeepEnsemble(models)[1].modules())


def test_a_module_in_training_mode_is_left_in_it() -> None:
    models = nets()
    lpe.DeepEnsemble(models).predict(INPUTS)
    assert all(module.training for model in models for module in model.modules())


def test_a_member_of_a_module_in_training_mode_shares_its_tensors() -> None:
    models = nets()
    member = lpe.DeepEnsemble(models)[1]
    pairs = zip(member.parameters(), models[1].parameters(), strict=True)
    assert all(a.data_ptr() == b.data_ptr() for a, b in pairs)


def test_a_member_follows_later_training_of_its_module() -> None:
    models = nets()
    ensemble = lpe.DeepEnsemble(models)
    with torch.no_grad():
        models[0][3].bias.fill_(7.0)  # type: ignore[index]
    assert ensemble[0][3].bias.tolist() == [7.0, 7.0, 7.0]


def test_the_list_given_may_change_without_changing_the_ensemble() -> None:
    models = nets()
    ensemble = lpe.DeepEnsemble(models)
    models.pop()
    assert len(list(ensemble)) == 3


def test_one_module_predicts_what_it_predicts() -> None:
    model = nets()[0].eval()
    assert torch.equal(
        lpe.DeepEnsemble([model]).predict(INPUTS), model(INPUTS).detach().double().log_softmax(-1)
    )


def test_predict_averages_the_modules_probabilities() -> None:
    models = [model.eval() for model in nets()]
    probs = np.mean([m(INPUTS).detach().double().softmax(-1).numpy() for m in models], axis=0)
    np.testing.assert_allclose(lpe.DeepEnsemble(models).predict(INPUTS).exp().numpy(), probs, rtol=1e-13)


def test_members_are_stored() -> None:
    assert lpe.DeepEnsemble(nets()).members_are_stored


# Of one model: 4·5 + 5, four of 5 in the norm, 5·3 + 3, in float32; the norm's count of batches in int64.
MODEL_BITS = 32 * (25 + 20 + 18) + 64


@pytest.mark.parametrize("storage", ["members", "generator"])
@pytest.mark.parametrize("n", [1, 2, 3, None])
def test_n_members_take_n_whole_models_however_stored(n: int | None, storage: str) -> None:
    assert lpe.DeepEnsemble(nets()).memory_bits(n, storage) == (n or 3) * MODEL_BITS


def test_a_tied_tensor_is_counted_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    assert lpe.DeepEnsemble([model]).memory_bits() == 16 * 32


def test_half_precision_is_counted_at_16_bits() -> None:
    assert lpe.DeepEnsemble([nn.Linear(4, 4, bias=False).bfloat16()]).memory_bits() == 16 * 16


@pytest.mark.parametrize("n", [0, 4])
def test_a_number_of_members_out_of_range_is_refused_with_its_value(n: int) -> None:
    with pytest.raises(lpe.InputError, match=str(n)):
        lpe.DeepEnsemble(nets()).memory_bits(n)


def test_an_empty_list_is_refused() -> None:
    with pytest.raises(lpe.InputError):
        lpe.DeepEnsemble([])


@pytest.mark.parametrize(
    ("other", "name"),
    [
        (lambda: net(6), "0.weight"),
        (lambda: nn.Sequential(*net(), nn.Linear(3, 3)), "4.weight"),
        (nn.Identity, "0.weight"),
    ],
    ids=["another width", "more tensors", "no tensors"],
)
def test_a_module_of_another_architecture_is_refused_by_index_and_tensor(other: Any, name: str) -> None:
    with pytest.raises(lpe.InputError, match=f"model 2 .*'{name}'"):
        lpe.DeepEnsemble([*nets(2), other()])


def test_a_module_that_lacks_a_tensor_is_refused_by_the_tensor_that_it_lacks() -> None:
    whole = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    with pytest.raises(lpe.InputError, match="'1.weight'"):
        lpe.DeepEnsemble([whole, nn.Sequential(nn.Linear(2, 2, bias=False))])


def test_describe_has_a_row_for_each_tensor_of_one_member() -> None:
    rows = lpe.DeepEnsemble(nets()).describe().splitlines()[2:]
    expected = [*(name for name, _ in net().named_parameters()), *(name for name, _ in net().named_buffers())]
    assert [row.split()[0] for row in rows] == expected


def test_evaluate_takes_a_deep_ensemble() -> None:
    targets: Tensor = torch.tensor([0, 1, 2])
    assert list(lpe.evaluate(lpe.DeepEnsemble(nets()), [(INPUTS, targets)])["size"]) == [1, 2, 3]


def test_the_training_budget_is_the_running_sum_of_the_models_costs() -> None:
    ensemble = lpe.DeepEnsemble(nets(), backward_passes=[100, 40, 7])
    assert [ensemble.backward_passes(n) for n in (1, 2, 3)] == [100, 140, 147]


def test_without_costs_the_training_budget_is_unknown() -> None:
    assert lpe.DeepEnsemble(nets()).backward_passes() is None


@pytest.mark.parametrize("costs", [[], [1, 2], [1, 2, 3, 4], [1, -2, 3]])
def test_costs_that_are_not_one_from_0_for_each_model_are_refused(costs: list[int]) -> None:
    with pytest.raises(lpe.InputError, match="one number ≥ 0 for each of the 3 models"):
        lpe.DeepEnsemble(nets(), backward_passes=costs)
