"""Members: what they share and own, what they leave alone, and how much memory they take."""

from __future__ import annotations

import copy
import functools
import hashlib
import pickle
import random
import warnings
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.utils import parametrize, prune
from torch.utils._python_dispatch import TorchDispatchMode

import lpe
from lpe.ensembles.batch_norm import refresh
from lpe.ensembles.swag import SWAGCollector
from lpe.evaluation.metrics import mean_log_probs
from lpe.modules import apply, named_tensors, with_tensors
from lpe.number_systems.kernels import reference

INT4 = lpe.Int(4)


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


class Net(nn.Module):
    """Convolution, batch norm, dropout, an embedding tied to the head, and a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.embed = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5)
        self.head.weight = self.embed.weight
        self.register_buffer("offset", torch.ones(4), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.drop(self.norm(self.conv(inputs)).relu()).mean(dim=(2, 3))
        return self.head(features + self.offset)


def net() -> Net:
    model = seeded(Net)
    assert isinstance(model, Net)
    return model


IMAGES = torch.linspace(-1, 1, 3 * 36).view(3, 1, 6, 6)


def ensemble_of(model: nn.Module, size: int = 3, **settings: Any) -> lpe.LowPrecisionEnsemble:
    return lpe.LowPrecisionEnsemble(model, INT4, size, **settings)


def checksum(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for entry in named_tensors(model):
        digest.update(entry.name.encode())
        digest.update(entry.tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {entry.name: entry.tensor.detach().clone() for entry in named_tensors(model)}


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


# A member shares what it does not own


OWN = {"conv.weight", "embed.weight"}


def test_a_member_shares_the_memory_of_every_tensor_that_it_does_not_own() -> None:
    model = net()
    base = {entry.name: entry.tensor.data_ptr() for entry in named_tensors(model)}
    member = {entry.name: entry.tensor.data_ptr() for entry in named_tensors(ensemble_of(model)[0])}
    assert {name for name in base if member[name] == base[name]} == set(base) - OWN


def test_two_members_share_no_memory_of_their_own_weights() -> None:
    ensemble = ensemble_of(net())
    first, second = ensemble[0], ensemble[1]
    pointers = [
        {entry.tensor.data_ptr() for entry in named_tensors(m) if entry.name in OWN} for m in (first, second)
    ]
    assert not pointers[0] & pointers[1]


def test_a_member_has_the_bases_tensors_under_the_same_names_in_the_same_order() -> None:
    model = net()
    assert list(ensemble_of(model)[0].state_dict()) == list(model.state_dict())


def test_a_member_is_of_the_bases_class() -> None:
    assert type(ensemble_of(net())[0]) is Net


def test_tied_weights_remain_one_tensor_in_a_member() -> None:
    member = ensemble_of(net())[0]
    assert member.head.weight is member.embed.weight


def test_weights_tied_by_memory_remain_tied_by_memory_in_a_member() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = nn.Parameter(model[0].weight.data)
    member = ensemble_of(model)[0]
    assert member[0].weight.data_ptr() == member[1].weight.data_ptr() != model[0].weight.data_ptr()


def test_a_module_held_under_two_names_is_held_under_both_in_a_member() -> None:
    shared = nn.Linear(4, 4)
    member = ensemble_of(nn.Sequential(shared, nn.ReLU(), shared))[0]
    assert member[0] is member[2] is not shared


def test_a_buffer_that_is_not_saved_is_not_saved_in_a_member() -> None:
    assert "offset" not in ensemble_of(net())[0].state_dict()


# A member modifies nothing


def test_a_members_forward_pass_leaves_the_base_unmodified() -> None:
    model = net()
    before = checksum(model)
    ensemble_of(model)[0](IMAGES)
    assert checksum(model) == before


def test_edits_of_a_members_own_weights_leave_the_base_unmodified() -> None:
    model = net()
    before = checksum(model)
    member = ensemble_of(model)[0]
    with torch.no_grad():
        member.conv.weight.fill_(7.0)
        member.head.weight.zero_()
    assert checksum(model) == before


def test_edits_of_a_members_own_weights_leave_another_member_unmodified() -> None:
    ensemble = ensemble_of(net())
    first, second = ensemble[0], ensemble[1]
    before = checksum(second)
    with torch.no_grad():
        first.conv.weight.fill_(7.0)
        first.head.weight.zero_()
    assert checksum(second) == before


def test_a_member_replaced_layer_leaves_the_base_with_its_own() -> None:
    model = net()
    kept = model.conv
    ensemble_of(model)[0].conv = nn.Identity()
    assert model.conv is kept


@pytest.mark.parametrize(
    ("generator", "state"),
    [
        ("torch", lambda: torch.get_rng_state().tolist()),
        ("numpy", lambda: np.random.get_state()[1].tolist()),  # type: ignore[index]
        ("python", random.getstate),
    ],
    ids=["torch", "numpy", "python"],
)
def test_the_global_generators_are_left_as_they_were(generator: str, state: Callable[[], Any]) -> None:
    before = state()
    for member in ensemble_of(net()):
        member(IMAGES)
    assert state() == before


def test_the_training_flags_of_the_base_are_left_as_they_were() -> None:
    model = net().train()
    model.drop.eval()
    before = [module.training for module in model.modules()]
    ensemble_of(model)[0](IMAGES)
    assert [module.training for module in model.modules()] == before


def test_a_member_of_a_base_in_training_mode_is_in_eval_mode_throughout() -> None:
    assert not any(module.training for module in ensemble_of(net().train())[0].modules())


def test_a_member_of_a_base_in_training_mode_predicts_as_of_one_in_eval_mode() -> None:
    assert torch.equal(ensemble_of(net().train())[0](IMAGES), ensemble_of(net().eval())[0](IMAGES))


# A member is used as the nn.Module that it is


def of_every_method(model: nn.Module) -> dict[str, lpe.ensembles.base.Ensemble]:
    """Ensembles whose members are made from a base when asked for."""
    names = [entry.name for entry in named_tensors(model) if entry.kind == "parameter"]
    parameters = dict(model.named_parameters())
    std = {name: torch.full_like(parameters[name], 0.01) for name in names}
    collector = SWAGCollector(2)
    for _ in range(3):
        collector.collect(model)
    batches = [(IMAGES, None)]
    return {
        "LPE": ensemble_of(model),
        "RTN": ensemble_of(model, rounding="nearest"),
        "unrounded": lpe.LowPrecisionEnsemble(model, lpe.FullPrecision(), 2),
        "Gaussian": lpe.GaussianEnsemble(model, INT4, 2),
        "MC-dropout": lpe.MCDropoutEnsemble(model, 0.3, 2),
        "views": lpe.AugmentedEnsemble(model, 2),
        "selection": lpe.SelectedEnsemble(ensemble_of(model), [2, 0]),
        "SWAG": lpe.SWAGEnsemble(model, collector.statistics(), 2, batches=batches),
        "IVON": lpe.IVONEnsemble(model, std, 2, batches=batches),
        "BatchEnsemble": lpe.BatchEnsemble(model, 2),
        "mixture": lpe.Mixture(
            lpe.DeepEnsemble([model]),
            lambda base, first: lpe.LowPrecisionEnsemble(base, INT4, 2, first_member=first),
        ),
    }


METHODS = tuple(of_every_method(net()))


def optimised(member: nn.Module) -> None:
    member.train()
    free = [parameter for parameter in member.parameters() if parameter.requires_grad]
    loss = member(IMAGES).sum()
    if loss.requires_grad:
        loss.backward()
        torch.optim.SGD(free, 0.1).step()


USES: dict[str, Callable[[nn.Module], Any]] = {
    "double": lambda member: member.double(),
    "half": lambda member: member.half(),
    "to": lambda member: member.to("meta"),
    "training": lambda member: member.train()(IMAGES + 3),
    "training of a part": lambda member: member.get_submodule("norm").train()(IMAGES.expand(3, 4, 6, 6)),
    "refresh": lambda member: refresh(member, [(IMAGES + 3, None)]),
    "optimiser step": optimised,
    "no gradients": lambda member: member.requires_grad_(False),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("method", METHODS)
def test_what_is_done_to_a_member_leaves_the_base_and_another_member_as_they_were(
    method: str, use: str
) -> None:
    model = net().eval()
    ensemble = of_every_method(model)[method]
    members = [ensemble[0], ensemble[1]]
    before = [(checksum(each), [p.requires_grad for p in each.parameters()]) for each in (model, members[1])]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        USES[use](members[0])
    after = [(checksum(each), [p.requires_grad for p in each.parameters()]) for each in (model, members[1])]
    assert after == before
    ensemble[1](IMAGES)


def test_a_copy_of_a_member_can_be_trained() -> None:
    model = net()
    before = checksum(model)
    copied = copy.deepcopy(ensemble_of(model)[2]).requires_grad_()
    start = weights_of(copied)
    optimised(copied)
    moved = [name for name, value in weights_of(copied).items() if not torch.equal(value, start[name])]
    assert {"conv.weight", "conv.bias", "norm.running_mean", "embed.weight"} <= set(moved)
    assert checksum(model) == before


def test_a_member_is_pickled() -> None:
    member = ensemble_of(net())[1]
    read = pickle.loads(pickle.dumps(member))
    assert same(weights_of(read), weights_of(member)) and torch.equal(read(IMAGES), member(IMAGES))


@pytest.mark.parametrize("use", ["double", "to", "training", "refresh"])
def test_in_turn_come_the_right_members_whatever_is_done_to_the_one_before(use: str) -> None:
    ensemble = ensemble_of(net())
    expected = [weights_of(ensemble[index]) for index in range(3)]
    for index, member in enumerate(ensemble.in_turn()):
        assert same(weights_of(member), expected[index]) and not member.training
        USES[use](member)


class Keeps(nn.Linear):
    """A layer that keeps what it computed from its weight, and says so to whoever copies it."""

    kept: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "kept": None}

    def forward(self, inputs: Tensor) -> Tensor:
        if self.kept is None:
            self.kept = self.weight.detach().clone()
        return nn.functional.linear(inputs, self.kept, self.bias)


def test_in_turn_no_member_computes_with_what_the_one_before_kept() -> None:
    ensemble = lpe.LowPrecisionEnsemble(seeded(lambda: Keeps(3, 2)), lpe.Int(2), 4)
    outputs = [member(A) for member in ensemble.in_turn()]
    assert all(torch.equal(a, ensemble[i](A)) for i, a in enumerate(outputs))
    assert not torch.equal(outputs[0], outputs[1])


def test_a_copy_is_made_as_getstate_says() -> None:
    model = seeded(lambda: Keeps(3, 2))
    base = model(A)
    assert not torch.equal(ensemble_of(model)[0](A), base)


def test_a_network_compiled_in_place_has_members_that_are_not() -> None:
    model = net().eval()
    expected = [member(IMAGES) for member in ensemble_of(model)]
    model.compile(backend="eager")
    model.conv.compile(backend="eager")
    model(IMAGES)
    assert all(torch.equal(a(IMAGES), b) for a, b in zip(ensemble_of(model), expected, strict=True))
    assert ensemble_of(model)[0]._compiled_call_impl is None


@pytest.mark.parametrize("whole", [True, False])
def test_a_compiled_networks_masks_are_called_also_after_it_ran_without_gradients(whole: bool) -> None:
    model = net().eval()
    expected = lpe.MCDropoutEnsemble(model, 0.5, 2).predict(IMAGES)
    compiled = torch.compile(model, backend="eager")
    if not whole:
        model.drop = torch.compile(model.drop, backend="eager")
        compiled = model
    with torch.no_grad():
        compiled(IMAGES)
    ensemble = lpe.MCDropoutEnsemble(compiled, 0.5, 2)
    assert torch.equal(ensemble.predict(IMAGES), expected)
    with torch.no_grad():
        assert not torch.equal(ensemble[0](IMAGES), model(IMAGES))


def test_a_parameter_keeps_what_is_noted_on_it() -> None:
    model = net()
    model.conv.bias.no_weight_decay = True
    assert ensemble_of(model)[0].conv.bias.no_weight_decay


# The base is as it was when the ensemble was made


def trained(model: nn.Module) -> None:
    with torch.no_grad():
        model.get_parameter("conv.bias").add_(1)


CHANGES: dict[str, Callable[[nn.Module], Any]] = {
    "load_state_dict": lambda model: model.load_state_dict(model.state_dict()),
    "a training step": trained,
    "half": lambda model: model.half(),
    "to": lambda model: model.to("meta"),
    "a pass in training mode": lambda model: model.train()(IMAGES),
    "a new parameter": lambda model: setattr(model, "embed", nn.Embedding(5, 4)),
    "data of another memory": lambda model: setattr(model.get_parameter("conv.bias"), "data", torch.ones(4)),
    "another module": lambda model: setattr(model, "drop", nn.Dropout(0.1)),
}
NOT_OF_THE_BASE = ("BatchEnsemble", "mixture")
"""Members made of weights that the ensemble has for itself, or of an ensemble's that has the base."""


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("method", [method for method in METHODS if method not in NOT_OF_THE_BASE])
def test_a_base_that_changed_is_refused(method: str, change: str) -> None:
    model = net().eval()
    ensemble = of_every_method(model)[method]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        CHANGES[change](model)
    if method == "SWAG" and change not in ("half", "to", "a new parameter", "another module"):
        ensemble[0]  # the statistics have all that changed
        return
    with pytest.raises(lpe.InputError, match="after the ensemble was made.*make the ensemble anew") as caught:
        ensemble[0]
    assert "\n" not in str(caught.value)


USED: dict[str, Callable[[lpe.LowPrecisionEnsemble], Any]] = {
    "predict": lambda ensemble: ensemble.predict(IMAGES),
    "in_turn": lambda ensemble: list(ensemble.in_turn()),
    "evaluate": lambda ensemble: lpe.evaluate(ensemble, [(IMAGES, torch.zeros(3).long())]),
    "as_module": lambda ensemble: ensemble.as_module()(IMAGES),
    "save": lambda ensemble: lpe.save(ensemble, "never written"),
}


@pytest.mark.parametrize("use", USED)
def test_a_base_that_changed_is_refused_wherever_members_are_made(use: str) -> None:
    model = net().eval()
    ensemble = ensemble_of(model)
    trained(model)
    with pytest.raises(lpe.InputError, match="make the ensemble anew"):
        USED[use](ensemble)


def test_a_module_of_all_members_is_refused_once_the_base_has_changed() -> None:
    model = net().eval()
    module = ensemble_of(model).as_module()
    module(IMAGES)
    trained(model)
    with pytest.raises(lpe.InputError, match="make the ensemble anew"):
        module(IMAGES)


def test_in_turn_a_base_that_changes_in_between_is_refused() -> None:
    model = net().eval()
    turn = ensemble_of(model).in_turn()
    next(turn)
    trained(model)
    with pytest.raises(lpe.InputError, match="make the ensemble anew"):
        next(turn)


def test_an_edit_through_data_is_not_seen() -> None:
    model = net()
    ensemble = ensemble_of(model)
    model.conv.bias.data.add_(1)
    assert torch.equal(ensemble[0].conv.bias, model.conv.bias)


def test_a_table_that_a_pass_replaces_is_no_change() -> None:
    model = net()
    ensemble = ensemble_of(model)
    model.offset = torch.full((4,), 2.0)
    assert torch.equal(ensemble[0].offset, model.offset)


def test_a_base_made_in_inference_mode_has_members() -> None:
    with torch.inference_mode():
        model = net().eval()
    ensemble = ensemble_of(model)
    with torch.inference_mode():
        assert not torch.equal(ensemble[0](IMAGES), model(IMAGES))


def test_a_copied_ensemble_has_members_of_its_own_base() -> None:
    ensemble = ensemble_of(net())
    copied = copy.deepcopy(ensemble)
    trained(ensemble.model)
    assert torch.equal(copied[0].conv.bias, copied.model.conv.bias)


# Networks that have no copies


def message_of(make: Callable[[], object]) -> str:
    with pytest.raises(lpe.InputError) as caught:
        make()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def parametrised(register: Callable[[nn.Module], object]) -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        register(model[0])
    return model


COMPUTED: dict[str, tuple[Callable[[nn.Module], object], str]] = {
    "weight_norm": (nn.utils.parametrizations.weight_norm, "remove_parametrizations(model.0"),
    "spectral_norm": (nn.utils.parametrizations.spectral_norm, "remove_parametrizations(model.0"),
    "old weight_norm": (nn.utils.weight_norm, "remove_weight_norm(model.0"),
    "old spectral_norm": (nn.utils.spectral_norm, "remove_spectral_norm(model.0"),
    "pruned": (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), "prune.remove(model.0"),
}


@pytest.mark.parametrize("of", [lpe.LowPrecisionEnsemble, lpe.GaussianEnsemble])
@pytest.mark.parametrize("how", COMPUTED)
def test_a_weight_that_is_computed_is_refused_with_what_makes_it_plain(
    how: str, of: Callable[..., object]
) -> None:
    register, remedy = COMPUTED[how]
    message = message_of(lambda: of(parametrised(register), INT4, 2))
    assert message.startswith("'0.weight' is ") and remedy in message


def test_a_weight_that_is_computed_may_be_left_out() -> None:
    model = parametrised(nn.utils.parametrizations.weight_norm)
    member = lpe.LowPrecisionEnsemble(model, INT4, 2, exclude="0.*")[0]
    assert torch.equal(member.get_submodule("0")(torch.ones(1, 4)), model[0](torch.ones(1, 4)))


def test_once_it_is_made_plain_the_weight_is_rounded() -> None:
    model = parametrised(nn.utils.parametrizations.weight_norm)
    weight = model[0].weight.detach()
    parametrize.remove_parametrizations(model[0], "weight")
    member = lpe.LowPrecisionEnsemble(model, INT4, 2)[0]
    expected = lpe.round_weights(weight, INT4, name="0.weight")
    assert torch.equal(member.get_parameter("0.weight"), expected)


class Offloaded(nn.Linear):
    """As accelerate leaves a module whose weights it holds elsewhere."""

    def __init__(self) -> None:
        super().__init__(2, 2, device="meta")
        self._hf_hook = SimpleNamespace(offload=True)


WITHOUT_COPIES: dict[str, tuple[Callable[[], Any], str]] = {
    "scripted": (lambda: quietly(torch.jit.script, nn.Linear(2, 2)), "scripted or traced"),
    "traced": (lambda: quietly(torch.jit.trace, nn.Linear(2, 2), torch.ones(1, 2)), "scripted or traced"),
    "a traced part": (
        lambda: nn.Sequential(quietly(torch.jit.trace, nn.Linear(2, 2), torch.ones(1, 2)), nn.Linear(2, 2)),
        "0 is a ",
    ),
    "quantised": (
        lambda: quietly(
            torch.ao.quantization.quantize_dynamic,
            nn.Sequential(nn.Linear(2, 2), nn.Embedding(2, 2)),
            {nn.Linear},
        ),
        "before torch.ao quantised it",
    ),
    "offloaded": (lambda: nn.Sequential(Offloaded()), "accelerate has offloaded"),
    "meta": (lambda: nn.Linear(2, 2, device="meta"), "meta device"),
    "lazy": (lambda: nn.LazyLinear(2), "has no shape yet"),
    "no module": (lambda: [nn.Linear(2, 2)], "must be a torch.nn.Module, not list"),
}


def quietly(make: Callable[..., Any], *args: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(*args)


@pytest.mark.parametrize("what", WITHOUT_COPIES)
def test_a_network_without_copies_is_refused_with_what_to_give(what: str) -> None:
    make, says = WITHOUT_COPIES[what]
    model = make()
    for of in (lpe.LowPrecisionEnsemble, lpe.GaussianEnsemble):
        assert says in message_of(lambda of=of: of(model, INT4, 2))  # type: ignore[misc]
    assert says in message_of(lambda: lpe.MCDropoutEnsemble(model, 0.1, 2))


# Members are determined by their index


def test_a_member_does_not_depend_on_which_were_asked_for_before() -> None:
    forwards, backwards = ensemble_of(net()), ensemble_of(net())
    first = [weights_of(forwards[index]) for index in (0, 1, 2)]
    second = [weights_of(backwards[index]) for index in (2, 1, 0)][::-1]
    assert all(same(a, b) for a, b in zip(first, second, strict=True))


def test_a_member_does_not_depend_on_the_global_generator() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        first = weights_of(ensemble_of(net())[1])
        torch.manual_seed(2)
        second = weights_of(ensemble_of(net())[1])
    assert same(first, second)


def test_members_differ() -> None:
    ensemble = ensemble_of(net())
    assert not same(weights_of(ensemble[0]), weights_of(ensemble[1]))


def test_the_length_is_the_size() -> None:
    assert len(ensemble_of(net(), size=3)) == 3


def test_a_negative_index_counts_from_the_end() -> None:
    ensemble = ensemble_of(net())
    assert same(weights_of(ensemble[-1]), weights_of(ensemble[2]))


def test_iteration_gives_the_members_in_order() -> None:
    ensemble = ensemble_of(net())
    expected = [weights_of(ensemble[index]) for index in range(3)]
    assert all(same(weights_of(m), e) for m, e in zip(ensemble, expected, strict=True))


@pytest.mark.parametrize("rounding", ["bernoulli", "coupled", "nearest"])
def test_in_turn_come_the_members_in_order(rounding: str) -> None:
    ensemble = ensemble_of(net(), rounding=rounding)
    expected = [weights_of(ensemble[index]) for index in range(3)]
    assert all(same(weights_of(m), e) for m, e in zip(ensemble.in_turn(), expected, strict=True))


def test_in_turn_come_models_as_they_are_where_nothing_is_rounded() -> None:
    model = net()
    ensemble = lpe.LowPrecisionEnsemble(model, lpe.FullPrecision(), 2)
    assert [same(weights_of(m), weights_of(model)) for m in ensemble.in_turn()] == [True, True]


def test_members_in_turn_take_the_memory_of_the_first() -> None:
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    pointers = [[e.tensor.data_ptr() for e in named_tensors(m)] for m in ensemble_of(model).in_turn()]
    base = [entry.tensor.data_ptr() for entry in named_tensors(model)]
    assert pointers[0] == pointers[1] == pointers[2]
    assert [a == b for a, b in zip(pointers[0], base, strict=True)] == [False, True, False, True]


def test_members_in_turn_of_a_network_of_ones_own_are_modules_of_their_own() -> None:
    turn = ensemble_of(net()).in_turn()
    first = next(turn)
    assert next(turn) is not first


def test_in_turn_come_the_members_that_a_subclass_makes() -> None:
    class Negated(lpe.LowPrecisionEnsemble):
        def member(self, index: int) -> nn.Module:
            member = super().member(index)
            return with_tensors(member, {"conv.weight": -member.get_parameter("conv.weight").detach()})

    ensemble = Negated(net(), INT4, 2)
    assert all(same(weights_of(m), weights_of(ensemble[i])) for i, m in enumerate(ensemble.in_turn()))


def test_members_in_turn_leave_the_base_as_it_was() -> None:
    model = net()
    before = checksum(model)
    for member in ensemble_of(model).in_turn():
        member(IMAGES)
    assert checksum(model) == before


@pytest.mark.parametrize("cut", [slice(None), slice(1, None), slice(None, None, -2), slice(5, 9)])
def test_a_slice_gives_the_members_of_its_indices(cut: slice) -> None:
    ensemble = ensemble_of(net())
    found = [weights_of(member) for member in ensemble[cut]]
    expected = [weights_of(ensemble[index]) for index in list(range(3))[cut]]
    assert len(found) == len(expected)
    assert all(same(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("index", [3, -4, 100])
def test_an_index_out_of_range_is_an_index_error_that_names_it(index: int) -> None:
    with pytest.raises(IndexError, match=str(index)):
        ensemble_of(net())[index]


@pytest.mark.parametrize("size", [0, -1, 2.0, True, "3", None])
def test_a_size_that_is_no_positive_integer_is_refused_with_its_value(size: Any) -> None:
    with pytest.raises(lpe.InputError) as caught:
        ensemble_of(net(), size=size)
    assert repr(size) in str(caught.value)


# Models that hold more than registered modules


class Referring(nn.Module):
    """Holds bound methods, plain references to itself and its parts, and modules that are not registered."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.activation = self.relu
        self.parts = [self.fc]
        self.whole = [self]
        self.hidden = {"aside": [nn.Linear(4, 4)]}
        self.weight_cache = (self.fc.weight * 2,)

    def relu(self, inputs: Tensor) -> Tensor:
        return self.fc(inputs).relu()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.activation(inputs)


@functools.cache
def referring() -> tuple[Referring, Referring]:
    model = seeded(Referring)
    member = ensemble_of(model)[0]
    assert isinstance(model, Referring) and isinstance(member, Referring)
    return model, member


def test_a_bound_method_that_a_model_holds_is_bound_to_the_member() -> None:
    member = referring()[1]
    assert member.activation.__self__ is member  # type: ignore[attr-defined]


def test_a_plain_reference_to_a_part_points_to_the_members_part() -> None:
    member = referring()[1]
    assert member.parts[0] is member.fc


def test_a_plain_reference_to_the_model_points_to_the_member() -> None:
    member = referring()[1]
    assert member.whole[0] is member


def test_the_output_of_a_model_with_bound_methods_is_that_of_its_rounded_weights() -> None:
    model, member = referring()
    inputs = torch.linspace(-1, 1, 8).view(2, 4)
    weight = lpe.round_weights(model.fc.weight, INT4, name="fc.weight")
    assert torch.equal(member(inputs), nn.functional.linear(inputs, weight, model.fc.bias).relu())


def test_a_module_that_is_not_registered_shares_its_tensors_with_the_member() -> None:
    model, member = referring()
    pair = [m.hidden["aside"][0].weight.data_ptr() for m in (model, member)]
    assert pair[0] == pair[1]


def test_a_tensor_in_a_plain_container_is_shared_also_where_it_has_a_graph() -> None:
    model, member = referring()
    assert member.weight_cache[0] is model.weight_cache[0]


def test_an_lstm_members_flat_weights_are_its_own() -> None:
    model = seeded(lambda: nn.LSTM(4, 3))
    member = ensemble_of(model, include="weight_*")[0]
    assert [id(w) for w in member._flat_weights] == [
        id(getattr(member, n)) for n in member._flat_weights_names
    ]


def test_an_lstm_member_computes_with_its_rounded_weights() -> None:
    model = seeded(lambda: nn.LSTM(4, 3))
    member = ensemble_of(model, include="weight_*")[0]
    expected = nn.LSTM(4, 3)
    expected.load_state_dict(
        {
            name: value if "bias" in name else lpe.round_weights(value, INT4, name=name)
            for name, value in model.state_dict().items()
        }
    )
    inputs = torch.linspace(-1, 1, 40).view(5, 2, 4)
    assert torch.equal(member(inputs)[0], expected(inputs)[0])


def test_a_hooks_closure_still_runs_in_a_member() -> None:
    calls: list[int] = []
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].register_forward_hook(lambda *_: calls.append(1))
    ensemble_of(model)[0](torch.ones(1, 2))
    assert calls == [1]


def test_a_state_of_its_own_in_a_member_is_not_the_bases() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model.extra_state = {"seen": [0]}  # type: ignore[assignment]
    ensemble_of(model)[0].extra_state["seen"].append(1)
    assert model.extra_state == {"seen": [0]}


def open_clip_model() -> nn.Module:
    from open_clip.model import CLIP

    vision = {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16}
    text = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
    return CLIP(embed_dim=12, vision_cfg=vision, text_cfg=text)


def loaded_with_members_weights(build: Callable[[], nn.Module], member: nn.Module) -> nn.Module:
    """An ordinary model with a member's weights copied into it."""
    model = seeded(build).eval()
    model.load_state_dict(member.state_dict())
    return model


def test_an_open_clip_members_encode_image_uses_its_weights() -> None:
    member = ensemble_of(seeded(open_clip_model))[1]
    images = torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)
    plain = loaded_with_members_weights(open_clip_model, member)
    # Attention's kernel depends on which weights need a gradient, hence not bit for bit.
    torch.testing.assert_close(member.encode_image(images), plain.encode_image(images), rtol=1e-5, atol=1e-5)


def test_an_open_clip_members_encode_text_uses_its_weights() -> None:
    member = ensemble_of(seeded(open_clip_model))[1]
    text = torch.arange(16).view(2, 8)
    plain = loaded_with_members_weights(open_clip_model, member)
    # Attention's kernel depends on which weights need a gradient, hence not bit for bit.
    torch.testing.assert_close(member.encode_text(text), plain.encode_text(text), rtol=1e-5, atol=1e-5)


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": 40, "n_positions": 12, "n_embd": 16, "n_layer": 1, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))


def test_a_transformers_members_logits_are_those_of_its_weights() -> None:
    member = ensemble_of(seeded(gpt2))[1]
    tokens = torch.arange(8).view(1, 8)
    plain = loaded_with_members_weights(gpt2, member)
    assert torch.equal(member(input_ids=tokens).logits, plain(input_ids=tokens).logits)


def test_a_transformers_members_generate_uses_its_weights() -> None:
    member = ensemble_of(seeded(gpt2))[1]
    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    tokens = torch.arange(4).view(1, 4)
    settings["attention_mask"] = torch.ones_like(tokens)
    plain = loaded_with_members_weights(gpt2, member)
    assert torch.equal(member.generate(tokens, **settings), plain.generate(tokens, **settings))


# with_tensors


def test_with_tensors_puts_the_replacement_in_without_a_copy() -> None:
    new = torch.zeros(4, 1, 3, 3)
    assert with_tensors(net(), {"conv.weight": new}).conv.weight.data_ptr() == new.data_ptr()


def test_with_tensors_replaces_a_buffer() -> None:
    mean = torch.full((4,), 3.0)
    assert with_tensors(net(), {"norm.running_mean": mean}).norm.running_mean is mean


def test_with_tensors_replaces_tied_tensors_together_under_their_other_name() -> None:
    new = torch.zeros(5, 4)
    copy = with_tensors(net(), {"head.weight": new})
    assert copy.embed.weight is copy.head.weight and copy.embed.weight.data_ptr() == new.data_ptr()


def test_with_tensors_refuses_a_name_that_the_model_does_not_have_and_names_it() -> None:
    with pytest.raises(lpe.InputError, match="'convolution.weight'"):
        with_tensors(net(), {"convolution.weight": torch.zeros(1)})


def test_with_tensors_refuses_a_shape_that_does_not_fit_and_names_both() -> None:
    with pytest.raises(lpe.InputError, match=r"'conv.weight' has shape \[4, 1, 3, 3\], not \[4, 1, 3\]"):
        with_tensors(net(), {"conv.weight": torch.zeros(4, 1, 3)})


# Inputs and outputs of a model


class Adder(nn.Module):
    def __init__(self, wrap: Callable[[Tensor], Any] = lambda logits: logits) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)
        self.wrap = wrap

    def forward(self, a: Tensor, b: Tensor | None = None) -> Any:
        return self.wrap(self.fc(a if b is None else a - b))


A, B = torch.linspace(0, 1, 6).view(2, 3), torch.linspace(1, 3, 6).view(2, 3)


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [(A, A), ((A, B), A - B), ([A, B], A - B), ({"b": B, "a": A}, A - B)],
    ids=["tensor", "tuple", "list", "dict"],
)
def test_inputs_reach_the_model_as_their_kind_says(inputs: Any, expected: Tensor) -> None:
    model = Adder()
    assert torch.equal(apply(model, inputs), model.fc(expected))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda logits: SimpleNamespace(logits=logits, loss=None),
        lambda logits: {"loss": None, "logits": logits},
        lambda logits: (logits,),
        lambda logits: [logits, (logits,)],
        lambda logits: (logits, logits.new_zeros(2, 5)),
        lambda logits: (logits.sum(), logits),
    ],
    ids=["object", "dict", "tuple", "list with states", "tuple with features", "tuple after a loss"],
)
def test_logits_are_taken_from_an_output(wrap: Callable[[Tensor], Any]) -> None:
    model = Adder(wrap)
    assert torch.equal(apply(model, A), model.fc(A))


@pytest.mark.parametrize("output", [None, (), {"out": A}, SimpleNamespace(logits=None)], ids=str)
def test_an_output_without_logits_is_an_error_that_names_its_type(output: Any) -> None:
    with pytest.raises(lpe.InputError, match=type(output).__name__):
        apply(Adder(lambda logits: output), A)


def test_an_output_of_two_tensors_of_one_shape_does_not_say_which_are_the_logits() -> None:
    with pytest.raises(lpe.InputError, match="two of shape"):
        apply(Adder(lambda logits: (logits, logits + 1)), A)


def test_predict_is_the_log_of_the_mean_of_the_members_probabilities() -> None:
    ensemble = ensemble_of(net())
    probs = np.mean([m(IMAGES).detach().double().softmax(-1).numpy() for m in ensemble], axis=0)
    np.testing.assert_allclose(ensemble.predict(IMAGES).exp().numpy(), probs, rtol=1e-13)


def test_predict_needs_no_gradient() -> None:
    assert not ensemble_of(net()).predict(IMAGES).requires_grad


def test_predict_is_finite_for_logits_whose_probabilities_vanish() -> None:
    model = nn.Linear(1, 2, bias=False)
    model.weight = nn.Parameter(torch.tensor([[1e4], [-1e4]]))
    log_probs = lpe.LowPrecisionEnsemble(model, INT4, 2).predict(torch.ones(1, 1))
    assert log_probs.tolist() == [[0.0, -2e4]]


def test_mean_log_probs_averages_probabilities_over_the_first_dimension() -> None:
    probs = torch.tensor([[[0.2, 0.8]], [[0.6, 0.4]]], dtype=torch.float64)
    torch.testing.assert_close(mean_log_probs(probs.log()).exp(), torch.tensor([[0.4, 0.6]]).double())


# Memory


class LiveBytes(TorchDispatchMode):
    """The most bytes of tensor memory alive after any operation: the base's, and what was made since."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.bound = 0  # of the bytes alive, from above; counted anew where it could be a new peak
        for entry in named_tensors(base):
            self.see(entry.tensor)
        self.base = self.peak = self.bound

    def see(self, tensor: Any) -> None:
        if isinstance(tensor, Tensor):
            storage = tensor.untyped_storage()
            weak = StorageWeakRef(storage)
            if weak.cdata not in self.alive or self.alive[weak.cdata][0].expired():
                self.alive[weak.cdata] = (weak, storage.nbytes())
                self.bound += storage.nbytes()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            self.see(tensor)
        if self.bound > self.peak:
            self.alive = {key: kept for key, kept in self.alive.items() if not kept[0].expired()}
            self.bound = sum(size for _, size in self.alive.values())
            self.peak = max(self.peak, self.bound)
        return result


LAYERS, WIDTH = 12, 512
MEMBER_BYTES = LAYERS * WIDTH * WIDTH * 4


def check_peak_is_one_member_over_the_base(
    use: Callable[[lpe.LowPrecisionEnsemble], object], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The rounding's temporaries are bounded by this and not by the model, which is small for a model.
    monkeypatch.setattr(reference, "CHUNK", 1 << 15)
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))
    # To the nearest and per tensor: a member of the same size in a tenth of the time.
    system = lpe.Int(4, scale=lpe.PerTensor())
    live = LiveBytes(model)
    ensemble = lpe.LowPrecisionEnsemble(model, system, size=size, rounding="nearest")
    with live:
        use(ensemble)
    assert live.base == MEMBER_BYTES
    assert live.base + MEMBER_BYTES <= live.peak <= live.base + 1.1 * MEMBER_BYTES


def batches() -> list[tuple[Tensor, Tensor]]:
    return [(torch.ones(2, WIDTH), torch.tensor([0, 1])) for _ in range(2)]


@pytest.mark.parametrize(
    ("use", "size"),
    [
        (lambda ensemble: lpe.evaluate(ensemble, batches()), 20),
        (lambda ensemble: lpe.member_log_probs(ensemble, batches()), 3),
        (lambda ensemble: ensemble.predict(torch.ones(2, WIDTH)), 3),
    ],
    ids=["evaluate", "member_log_probs", "predict"],
)
def test_peak_memory_is_the_base_and_one_member(
    use: Callable[[lpe.LowPrecisionEnsemble], object], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_peak_is_one_member_over_the_base(use, size, monkeypatch)


def test_the_memory_check_catches_members_that_are_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError):
        check_peak_is_one_member_over_the_base(lambda ensemble: ensemble[:], 2, monkeypatch)


def test_the_memory_check_catches_an_ensemble_that_copies_the_base(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def copies(ensemble: lpe.LowPrecisionEnsemble) -> None:
        with torch.no_grad():
            kept = [parameter.clone() for parameter in ensemble.model.parameters()]
        ensemble.member(0)
        del kept

    with pytest.raises(AssertionError):
        check_peak_is_one_member_over_the_base(copies, 2, monkeypatch)


def test_budget_of_one_training_is_the_same_for_every_size() -> None:
    ensemble = lpe.LowPrecisionEnsemble(torch.nn.Linear(3, 2), lpe.Int(4), 3)
    assert ensemble.backward_passes() is None
    ensemble.training_budget = 7
    assert [ensemble.backward_passes(n) for n in (1, 2, 3)] == [7, 7, 7]


def test_budget_of_separate_trainings_grows_with_the_size() -> None:
    ensemble = lpe.LowPrecisionEnsemble(torch.nn.Linear(3, 2), lpe.Int(4), 3)
    ensemble.training_budget = [5, 10, 15]
    assert [ensemble.backward_passes(n) for n in (1, 2, 3, None)] == [5, 10, 15, 15]
    with pytest.raises(lpe.InputError, match="no 4 members"):
        ensemble.backward_passes(4)
