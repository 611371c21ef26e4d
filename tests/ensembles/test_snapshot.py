"""Snapshot ensembles: which weights of a run are kept, from the run to the ensemble."""

from __future__ import annotations

import torch
from torch import nn

import lpe
from lpe.ensembles.snapshot import SnapshotCollector
from lpe.training.loop import train
from lpe.training.schedules import cyclical_cosine

INPUTS = torch.linspace(-1, 1, 12).view(4, 3)
BATCHES = [(INPUTS[:2], torch.tensor([0, 1])), (INPUTS[2:], torch.tensor([1, 0]))]


def network() -> nn.Module:
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.copy_(torch.arange(6.0).view(2, 3) / 6)
        model.bias.zero_()
    return model


def trained(epochs: int, collector: SnapshotCollector) -> nn.Module:
    model = network()
    train(
        model,
        lambda epoch: BATCHES,
        torch.optim.SGD(model.parameters(), 1.0),
        cyclical_cosine(0.5, 2 * collector.epochs_per_cycle),
        epochs,
        seed=0,
        after_epoch=lambda epoch: collector.collect(model, epoch),
    )
    return model


def test_a_snapshot_is_kept_at_the_end_of_each_cycle() -> None:
    assert [epoch for epoch in range(9) if SnapshotCollector(3).keeps(epoch)] == [2, 5, 8]


def test_a_run_leaves_a_member_a_cycle_with_the_weights_at_its_end() -> None:
    collector = SnapshotCollector(2)
    trained(6, collector)
    ensemble = lpe.SnapshotEnsemble(network(), collector.snapshots)
    for cycles in (1, 2, 3):
        # The schedule is periodic, so the shorter run is the longer one's beginning.
        shorter = trained(2 * cycles, SnapshotCollector(2))
        assert torch.equal(ensemble[cycles - 1].weight, shorter.weight)
    assert len(ensemble) == 3


def test_a_member_costs_a_cycle() -> None:
    collector = SnapshotCollector(2)
    model = trained(6, collector)
    ensemble = lpe.SnapshotEnsemble(model, collector.snapshots)
    ensemble.training_budget = collector.training_budget(len(BATCHES))
    assert [ensemble.backward_passes(n) for n in (1, 2, 3)] == [4, 8, 12]
