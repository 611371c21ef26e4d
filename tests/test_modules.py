"""Inputs of a model: tensors in containers of any kind, on any device."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from transformers import BatchEncoding

import lpe
from lpe.ensembles.batch_norm import refresh
from lpe.ensembles.tiling import examples_of, tile
from lpe.modules import tensors_in, to_device, tree_map
from lpe.training.loop import train

Pair = namedtuple("Pair", "first second")
A = torch.arange(3.0)


def doubled(values: Tensor) -> Tensor:
    return 2 * values


@pytest.mark.parametrize(
    "inputs",
    [
        (A, "text"),
        [A, None],
        Pair(A, 1),
        {"x": A},
        OrderedDict(x=A),
        BatchEncoding({"x": A}),
        {"x": [BatchEncoding({"y": (Pair(A, A),)})]},
    ],
    ids=lambda inputs: type(inputs).__name__,
)
def test_a_container_keeps_its_kind_and_what_is_no_tensor(inputs: Any) -> None:
    mapped = tree_map(doubled, inputs)
    assert type(mapped) is type(inputs)
    assert str(mapped) == str(inputs).replace("[0., 1., 2.]", "[0., 2., 4.]")


def test_the_given_container_is_left_as_it_is() -> None:
    inputs = BatchEncoding({"x": A})
    tree_map(doubled, inputs)
    assert inputs["x"] is A


def test_a_mapping_that_cannot_be_written_becomes_a_dict() -> None:
    mapped = tree_map(doubled, MappingProxyType({"x": A}))
    assert list(mapped) == ["x"] and torch.equal(mapped["x"], 2 * A)


def test_tensors_are_found_in_their_order() -> None:
    found = list(tensors_in([{"a": A}, Pair(A + 1, "text"), BatchEncoding({"b": A + 2})]))
    assert [values[0].item() for values in found] == [0.0, 1.0, 2.0]


def test_the_examples_of_a_batch_encoding_are_counted() -> None:
    assert examples_of(BatchEncoding({"input_ids": torch.zeros(5, 7)})) == 5


def test_a_batch_encoding_is_tiled() -> None:
    assert tile(BatchEncoding({"x": A}), 2)["x"].tolist() == [0.0, 1.0, 2.0, 0.0, 1.0, 2.0]


def test_a_packed_sequence_is_moved_whole() -> None:
    packed = pack_sequence([A])
    assert isinstance(to_device(packed, torch.device("cpu")), PackedSequence)


class Elsewhere(nn.Module):
    """A network that takes its inputs on the device that has no memory, and notes where they were."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.empty(2, 2, device="meta"))
        self.norm = nn.BatchNorm1d(2)
        self.fc = nn.Linear(2, 2)
        self.seen: set[str] = set()

    def forward(self, inputs: Tensor) -> Tensor:
        self.seen.add(inputs.device.type)
        logits: Tensor = self.fc(self.norm(torch.ones(inputs.shape)))
        return logits


def test_predict_moves_the_inputs_to_the_members_device() -> None:
    model = Elsewhere().eval()
    lpe.DeepEnsemble([model]).predict(torch.ones(3, 2))
    assert model.seen == {"meta"}


def test_refresh_moves_the_inputs_to_the_models_device() -> None:
    model = Elsewhere()
    refresh(model, [(torch.ones(3, 2), None)])
    assert model.seen == {"meta"}


def test_training_moves_the_inputs_to_the_models_device() -> None:
    model = Elsewhere()
    optimizer = torch.optim.SGD(model.fc.parameters(), 0.1)
    batches = [(torch.ones(3, 2), torch.zeros(3).long())]
    with pytest.raises(lpe.InputError):  # the targets are there too, and the logits are not
        train(model, batches, optimizer, lambda step: 0.1, 1, 0)
    assert model.seen == {"meta"}
