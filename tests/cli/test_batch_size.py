"""``--batch-size auto``: the largest batch that has room."""

from __future__ import annotations

import argparse

import pytest
import torch

from lpe.cli.batch_size import LARGEST, batch_size, fitting, largest


class Card:
    """A GPU of which a pass of n examples takes 10 n bytes, and more than ``most`` examples have no room."""

    def __init__(self, most: int) -> None:
        self.most, self.taken = most, 0

    def run(self, examples: int) -> None:
        if examples > self.most:
            raise torch.OutOfMemoryError("out of memory")
        self.taken = max(self.taken, 10 * examples)

    def peak(self) -> int:
        return self.taken


@pytest.mark.parametrize(
    ("most", "room", "found"), [(10**6, 10**9, LARGEST), (100, 10**9, 64), (10**6, 330, 32), (10**6, 1, 1)]
)
def test_the_largest_power_of_two_that_has_room_is_found(most: int, room: int, found: int) -> None:
    card = Card(most)
    assert largest(card.run, card.peak, room) == found


def test_where_no_example_has_room_the_error_is_the_cards() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        largest(Card(0).run, Card(0).peak, 100)


def test_on_a_cpu_it_is_the_usual_size_and_nothing_is_run() -> None:
    assert fitting(Card(0).run, torch.device("cpu"), 64) == 64


def test_the_option_takes_a_number_or_auto() -> None:
    assert batch_size("auto") == "auto" and batch_size("32") == 32
    with pytest.raises(argparse.ArgumentTypeError, match="'x' is no whole number .*, nor auto"):
        batch_size("x")
