"""Memory that a process keeps; counted in pages that the system had to clear, never in seconds."""

import os
import platform
import subprocess
import sys

import pytest

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
