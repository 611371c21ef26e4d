"""What snapshot and cyclical SGLD ensembles share: their members, statistics, memory and files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lpe
from lpe.ensembles.collected import CollectedEnsemble
from lpe.ensembles.cyclical_sgld import CyclicalSGLDCollector
from lpe.ensembles.snapshot import SnapshotCollector
from lpe.modules import named_tensors

Weights = dict[str, Tensor]
Kind = Callable[..., CollectedEnsemble]

both = pytest.mark.parametrize("kind", [lpe.SnapshotEnsemble, lpe.CyclicalSGLDEnsemble])


class Net(nn.Module):
    """23 parameters, a batch norm's buffers (6 float32 and a counter), and other buffers."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.first = nn.utils.skip_init(nn.Linear, 2, 3)
        self.norm = nn.BatchNorm1d(3)
        self.last = nn.utils.skip_init(nn.Linear, 3, 2)
        self.register_buffer("temperature", torch.ones(4))
        self.register_buffer("cache", torch.ones(100), persistent=False)
        numbers = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for tensor in (*self.parameters(), self.norm.running_mean):
                assert tensor is not None
                tensor.copy_(torch.randn(tensor.shape, generator=numbers))
        self.eval()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.norm(self.first(inputs)).relu()) / self.temperature.mean()


INPUTS = torch.linspace(-1, 2, 16).view(8, 2)
BATCHES = [(INPUTS, torch.zeros(8, dtype=torch.int64))]


def weights(seed: int, buffers: bool = True) -> Weights:
    return {
        entry.name: entry.tensor.detach().clone()
        for entry in named_tensors(Net(seed))
        if entry.saved and (buffers or entry.kind == "parameter")
    }


def snapshots(count: int = 3, buffers: bool = True) -> list[Weights]:
    return [weights(seed, buffers) for seed in range(1, count + 1)]


# Members


@both
def test_a_member_predicts_what_the_network_that_was_collected_does(kind: Kind) -> None:
    ensemble = kind(Net(), snapshots())
    assert all(torch.equal(ensemble[index](INPUTS), Net(index + 1)(INPUTS)) for index in range(3))


def test_a_tensor_that_was_not_collected_is_the_models_own() -> None:
    model = Net()
    given = [{name: t for name, t in each.items() if name != "last.weight"} for each in snapshots()]
    assert lpe.SnapshotEnsemble(model, given)[1].last.weight.data_ptr() == model.last.weight.data_ptr()


def test_the_model_is_left_as_it_was() -> None:
    model = Net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    lpe.SnapshotEnsemble(model, snapshots(), BATCHES).predict(INPUTS)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_snapshots_are_left_as_they_were() -> None:
    given = snapshots()
    lpe.SnapshotEnsemble(Net(), given, BATCHES).predict(INPUTS)
    assert all(torch.equal(given[1][name], tensor) for name, tensor in snapshots()[1].items())


def test_a_member_is_in_eval_mode_also_of_a_model_in_training() -> None:
    member = lpe.SnapshotEnsemble(Net().train(), snapshots())[0]
    assert not any(module.training for module in member.modules())


def test_members_are_stored_and_the_same_each_time() -> None:
    ensemble = lpe.SnapshotEnsemble(Net(), snapshots())
    assert ensemble.members_are_stored and ensemble[1] is ensemble[1]


def test_a_tied_tensor_may_be_given_under_either_of_its_names() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    member = lpe.SnapshotEnsemble(model, [{"1.weight": torch.full((2, 2), 3.0)}])[0]
    assert member[0].weight.tolist() == member[1].weight.tolist() == [[3.0, 3.0], [3.0, 3.0]]


# Batch-norm statistics


def reestimated(seed: int) -> Tensor:
    """The mean over the batch of what the norm gets in the network of that seed: float32 [3]."""
    return Net(seed).first(INPUTS).mean(dim=0).detach()


@both
def test_statistics_that_were_not_collected_are_reestimated_for_each_member(kind: Kind) -> None:
    ensemble = kind(Net(), snapshots(buffers=False), BATCHES)
    for index in range(3):
        torch.testing.assert_close(ensemble[index].norm.running_mean, reestimated(index + 1))


def test_collected_statistics_are_replaced_where_batches_are_given() -> None:
    ensemble = lpe.CyclicalSGLDEnsemble(Net(), snapshots(), BATCHES)
    torch.testing.assert_close(ensemble[1].norm.running_mean, reestimated(2))


@both
def test_neither_statistics_nor_batches_is_refused(kind: Kind) -> None:
    with pytest.raises(lpe.InputError, match="Net has batch norms; .* need batches="):
        kind(Net(), snapshots(buffers=False))


@both
def test_batches_that_are_read_once_do_not_do_for_several(kind: Kind) -> None:
    with pytest.raises(lpe.InputError, match="batches= is read once a member"):
        kind(Net(), snapshots(buffers=False), iter(BATCHES))


def test_statistics_of_some_norms_only_are_refused_without_batches() -> None:
    given = [{name: t for name, t in each.items() if name != "norm.running_var"} for each in snapshots()]
    with pytest.raises(lpe.InputError, match="need batches="):
        lpe.SnapshotEnsemble(Net(), given)


# Memory. A network has 2·3 + 3, 3 + 3, 3·2 + 2 parameters; its norm 3 + 3 and a 64-bit counter; 4 are shared.

PARAMETERS, STATISTICS, SHARED = 32 * 23, 32 * 6 + 64, 32 * 4


@both
@pytest.mark.parametrize("storage", ["members", "generator"])
@pytest.mark.parametrize("n", [1, 2, None])
def test_whole_networks_take_n_times_their_bits_however_stored(
    kind: Kind, n: int | None, storage: str
) -> None:
    bits = kind(Net(), snapshots()).memory_bits(n, storage)
    assert bits == (n or 3) * (PARAMETERS + STATISTICS + SHARED)


def test_what_was_not_collected_is_counted_once() -> None:
    given = [{name: t for name, t in each.items() if name != "temperature"} for each in snapshots()]
    bits = lpe.SnapshotEnsemble(Net(), given).memory_bits(2)
    assert bits == 2 * (PARAMETERS + STATISTICS) + SHARED


def test_reestimated_statistics_are_each_members_own() -> None:
    bits = lpe.SnapshotEnsemble(Net(), snapshots(buffers=False), BATCHES).memory_bits(2)
    assert bits == 2 * (PARAMETERS + STATISTICS) + SHARED


@both
@pytest.mark.parametrize("buffers", [True, False])
def test_a_file_holds_the_bits_and_the_members(kind: Kind, buffers: bool, tmp_path: Path) -> None:
    ensemble = kind(Net(), snapshots(buffers=buffers), None if buffers else BATCHES)
    size = lpe.save(ensemble, tmp_path / "e")
    header = 8 + int.from_bytes((tmp_path / "e").read_bytes()[:8], "little")
    assert 8 * (size - header) == ensemble.memory_bits()
    assert torch.equal(lpe.load(tmp_path / "e", Net(9)).predict(INPUTS), ensemble.predict(INPUTS))


def test_describe_says_of_each_tensor_whether_it_is_a_members_own() -> None:
    rows = lpe.SnapshotEnsemble(Net(), snapshots(buffers=False), BATCHES).describe().splitlines()[2:]
    own = {row.split()[0]: row.split()[2] for row in rows}
    assert list(own) == [entry.name for entry in named_tensors(Net())]
    assert own["first.weight"] == own["norm.running_mean"] == "own"
    assert own["temperature"] == "shared"


# Refusals


@both
def test_no_weights_are_refused(kind: Kind) -> None:
    with pytest.raises(lpe.InputError, match="there are no (snapshots|samples)"):
        kind(Net(), [])


def test_a_name_that_the_model_has_not_is_refused() -> None:
    with pytest.raises(lpe.InputError, match="snapshots 1: the model has no tensor named 'other'"):
        lpe.SnapshotEnsemble(Net(), [weights(1), {**weights(2), "other": torch.zeros(2)}])


def test_a_tensor_of_another_shape_is_refused() -> None:
    with pytest.raises(lpe.InputError, match=r"'last.bias' is .* \[3\]; the model's is .* \[2\]"):
        lpe.SnapshotEnsemble(Net(), [{**weights(1), "last.bias": torch.zeros(3)}])


def test_a_tensor_of_another_dtype_is_refused() -> None:
    with pytest.raises(lpe.InputError, match=r"'last.bias' is torch.float16"):
        lpe.SnapshotEnsemble(Net(), [{**weights(1), "last.bias": torch.zeros(2).half()}])


def test_mappings_of_different_names_are_refused_naming_the_tensor() -> None:
    lacking = weights(2)
    del lacking["last.bias"]
    with pytest.raises(lpe.InputError, match="snapshots 0 and 1 do not hold the same tensors: .*'last.bias'"):
        lpe.SnapshotEnsemble(Net(), [weights(1), lacking])


# Collectors: both keep copies in the last epochs of a cycle

collectors = pytest.mark.parametrize(
    "make", [SnapshotCollector, lambda epochs: CyclicalSGLDCollector(epochs, 1)], ids=["snapshot", "sgld"]
)


@collectors
def test_a_cycle_longer_than_the_run_is_refused(make: Any) -> None:
    with pytest.raises(lpe.InputError, match="a cycle of 6 epochs is longer than the run of 5"):
        make(6).check(5)


@collectors
def test_a_run_of_no_whole_number_of_cycles_is_refused_naming_those_around_it(make: Any) -> None:
    with pytest.raises(lpe.InputError, match="7 epochs is no whole number of cycles of 3; train for 6 or 9"):
        make(3).check(7)


@collectors
@pytest.mark.parametrize("epochs", [3, 9])
def test_a_whole_number_of_cycles_is_accepted(make: Any, epochs: int) -> None:
    make(3).check(epochs)


@collectors
@pytest.mark.parametrize("epochs_per_cycle", [0, -1, True, 2.0])
def test_a_cycle_of_no_epochs_is_refused(make: Any, epochs_per_cycle: Any) -> None:
    with pytest.raises(lpe.InputError, match="epochs_per_cycle must be a positive integer"):
        make(epochs_per_cycle).check(10)


@collectors
def test_without_an_epoch_each_call_ends_the_next_one(make: Any) -> None:
    counted, told = make(3), make(3)
    for epoch in range(6):
        counted.collect(Net())
        told.collect(Net(), epoch)
    assert counted.epochs == told.epochs == [2, 5]


@collectors
def test_a_call_without_an_epoch_goes_on_from_the_last_one_with_it(make: Any) -> None:
    collector = make(3)
    collector.collect(Net(), 4)
    collector.collect(Net())
    assert collector.epochs == [5]


def test_a_copy_holds_every_saved_tensor() -> None:
    collector = SnapshotCollector(1)
    collector.collect(Net(), 0)
    assert set(collector.snapshots[0]) == set(Net().state_dict())


def test_a_copy_does_not_follow_later_training() -> None:
    model, collector = Net(1), SnapshotCollector(1)
    collector.collect(model, 0)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.zero_()
    assert all(torch.equal(tensor, weights(1)[name]) for name, tensor in collector.snapshots[0].items())


def test_the_training_budget_of_a_copy_is_the_run_up_to_it() -> None:
    collector = CyclicalSGLDCollector(3, 2)
    for epoch in range(6):
        collector.collect(Net(), epoch)
    # Kept at the end of epochs 1, 2, 4 and 5 (from 0), after 2, 3, 5 and 6 epochs of 10 steps.
    assert collector.training_budget(10) == [20, 30, 50, 60]
