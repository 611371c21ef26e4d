"""``import lpe`` brings in none of the heavy libraries that only some of its rooms need."""

from __future__ import annotations

import subprocess
import sys

HEAVY = {
    "timm",
    "torchvision",
    "open_clip",
    "lm_eval",
    "transformers",
    "wandb",
    "matplotlib",
    "sklearn",
    "scipy",
    "pandas",
    "ivon",
    "numba",
    "triton",
}


def test_importing_lpe_imports_no_heavy_library() -> None:
    listing = "import sys, lpe; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", listing], capture_output=True, text=True, check=True)
    assert HEAVY.isdisjoint(loaded.stdout.split())


def test_every_public_name_is_there() -> None:
    import lpe

    assert [name for name in lpe.__all__ if not hasattr(lpe, name)] == []
