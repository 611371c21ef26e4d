"""What is told of where a record comes from."""

from __future__ import annotations

import pytest

from reproduce.draw import told


@pytest.mark.parametrize(("threads", "said"), [(1, "1 thread"), (2, "2 threads")])
def test_one_thread_is_told_as_one(threads: int, said: str) -> None:
    device = {"device": "cpu", "cpu": "A processor", "cores": 2}
    assert told.machine({"device": device, "threads": threads}) == f"A processor, 2 cores, {said}"
