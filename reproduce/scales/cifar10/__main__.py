"""The points of the scale ``cifar10``, trained on one GPU and written as files.

    python -m reproduce.scales.cifar10 --data <folder or .npz> --points <folder> --minutes 10

ResNet-20-FRN-SiLU, 40,960 training images, 19,840 updates of 256 (``--updates`` for less), four networks
side by side (``lpe.training.resident``), in this order: SGD of seeds 0 to 3, IVON 0 to 3, then SWAG 0 and 1,
SSE and CSGLD, BatchEnsemble of 4, SGD 4 to 7 (for deep ensembles), SGD 0 to 3 without crops and flips, AdamW
0 and 1 with and without. With ``--minutes`` a group that would not end in time is not begun, and it says so.

What is in the folder already is not trained again. A run that was stopped goes on where its last checkpoint
was, ten seconds and an epoch ago at most, and on a CPU ends with the same bytes. What the files hold is told
in ``reproduce.scales.cifar10.training``; the JSON beside each has recipe, protocol, data, machine and cost.

**Expected time.** A group is 4 networks · 19,840 updates · 256 images = 20.3 M images. On an H200 the
benchmark ``gpu_training`` measured 369,000 images/s for SGD, 360,000 for IVON, 367,000 for SWAG, SSE and
CSGLD, and 346,000 for BatchEnsemble (benchmarks/results/gpu_training.csv): 55 to 59 s a group, 336 s for the
first six. AdamW was not measured; at SGD's speed it takes 55 s. With 20 s for reading the images, compiling
and writing: **7 minutes on an H200**. On an H100 nothing was measured. Were a step to wait for memory alone,
which has 3.35 TB/s there for the H200's 4.8, it would take 1.43 times as long: **10 minutes at most**, by
that estimate.

Without a CUDA device it trains on the CPU, in float32: about 300 images/s a free core, so 5 hours a network.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from lpe.command_line import Parser, complain
from lpe.errors import InputError
from lpe.interruption import answered
from lpe.substrates import cifar
from lpe.substrates.assets import assets_folder
from lpe.writing import check_writable
from reproduce.scales.cifar10.recipes import GROUPS, PROTOCOL, RECIPES, check_updates
from reproduce.scales.cifar10.trained import train_points

BUNDLE = "cifar10_jpeg_q75.npz"


def main(arguments: Sequence[str]) -> int:
    """Train what is asked for; 2 after one line about bad input."""
    options = Parser(
        prog="python -m reproduce.scales.cifar10",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("--data", type=Path, help="CIFAR-10 (default: LPE_ASSETS' file of JPEGs)")
    options.add_argument("--points", type=Path, required=True, metavar="FOLDER", help="of the points' files")
    options.add_argument(
        "--updates", type=int, default=PROTOCOL.updates, help="of a training (default: %(default)s)"
    )
    options.add_argument(
        "--minutes", type=float, default=math.inf, help="in which all of it ends (default: no limit)"
    )
    asked = options.parse_args(arguments)
    started = time.monotonic()
    try:
        protocol = replace(PROTOCOL, updates=asked.updates)
        check_updates(protocol, GROUPS, RECIPES)
        if not asked.minutes > 0:
            raise InputError(f"--minutes must be above 0, not {asked.minutes:g}")
        check_writable(asked.points)
        images = cifar.load(asked.data or _bundle())
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        where = torch.cuda.get_device_name() if device.type == "cuda" else "the CPU, in float32"
        print(f"{images.name}, ResNet-20-FRN-SiLU, {protocol.updates:,} updates, on {where}", flush=True)
        left = asked.minutes - (time.monotonic() - started) / 60
        train_points(asked.points, images, protocol, GROUPS, device, left, _say)
    except InputError as error:
        complain(error)
        return 2
    return 0


def _bundle() -> Path:
    try:
        return assets_folder() / BUNDLE
    except InputError as error:
        raise InputError(
            f"no CIFAR-10: give --data a folder that holds {cifar.FOLDER}, or an .npz file of its JPEGs "
            f"({error})"
        ) from None


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(answered(lambda: main(sys.argv[1:])))
