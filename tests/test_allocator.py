"""Memory that a process keeps; counted in pages that the system had to clear, never in seconds."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lpe import allocator

PROGRAM = """
import resource, sys
import torch
from lpe.allocator import keep_freed_memory

if sys.argv[1] == "kept":
    print(keep_freed_memory())
torch.zeros(2**23)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.zeros(2**23)  # 32 MiB: 8,192 pages
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")


def _run(what: str, **variables: str) -> list[str]:
    own = ("GLIBC_TUNABLES", *allocator.VARIABLES)
    bare = {name: value for name, value in os.environ.items() if name not in own}
    command = [sys.executable, "-c", PROGRAM, what]
    done = subprocess.run(command, env=bare | variables, capture_output=True, text=True, check=True)
    return done.stdout.split()


@glibc
def test_freed_memory_is_used_again() -> None:
    (given_back,) = _run("given back")
    was_set, kept = _run("kept")
    assert was_set == "True"
    # The first blocks are new to the process either way. With huge pages both are 512 times fewer.
    assert int(given_back) > 5 * int(kept)


@glibc
def test_what_the_environment_sets_stays() -> None:
    (bare,) = _run("given back", MALLOC_MMAP_THRESHOLD_="1000000")
    was_set, asked = _run("kept", MALLOC_MMAP_THRESHOLD_="1000000")
    assert was_set == "False"
    assert int(asked) == pytest.approx(int(bare), rel=0.1)


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GLIBC_TUNABLES", *allocator.VARIABLES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: pytest.fail("another C library was set"))
    assert not allocator.keep_freed_memory()


ADVISED = """
import re, sys
import torch
from lpe.allocator import new_memory

made = new_memory((2**23,), torch.float32, "cpu") if sys.argv[1] == "new" else torch.empty(2**23)
start, end = made.data_ptr(), made.data_ptr() + made.nbytes
advised, inside = 0, 0
for line in open("/proc/self/smaps"):
    if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
        inside = max(0, min(int(found[2], 16), end) - max(int(found[1], 16), start))
    elif line.startswith("VmFlags:") and "hg" in line.split():
        advised += inside
print(advised)
"""


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(),
    reason="the system has no transparent huge pages",
)
def test_huge_pages_are_asked_for_where_new_memory_is_large() -> None:
    # What is asked for, and not what the system then has at hand.
    plain, new = (
        int(subprocess.run([sys.executable, "-c", ADVISED, what], capture_output=True, check=True).stdout)
        for what in ("plain", "new")
    )
    # All of 32 MiB but for a part of a page at both ends.
    assert plain == 0 and 2**25 - 2 * 2**16 <= new <= 2**25


@pytest.mark.parametrize("shape", [(), (0,), (3, 5), (2**20, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_new_memory_is_of_the_shape_and_dtype(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    made = allocator.new_memory(shape, dtype, "cpu")
    assert made.shape == shape and made.dtype is dtype and made.is_contiguous()
    made.fill_(1)
    assert bool((made == 1).all())


def test_without_huge_pages_memory_is_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "_madvise", lambda: None)
    assert allocator.new_memory((2**22,), torch.float32, "cpu").nbytes == 2**24
