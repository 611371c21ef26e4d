"""The cost picture on real pre-trained weights: ResNet-20, and ResNet-32 as the next larger single model.

5,000 of CIFAR-10's test images as the assets have them, evenly spread over the classes: those at even
positions validate temperatures and windows, those at odd positions are scored. There is one checkpoint, so
intervals are over blocks of scored images, dealt out in turn; a row of the record is of one block, which is
named in the column "point". stories260k is left out: its examples are tokens, which share a forward pass, and
a cascade needs examples that can go on one by one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

import lpe
from benchmarks import cifar_resnet
from benchmarks.command import assets_folder
from lpe.command_line import Parser
from lpe.ensembles.base import Ensemble
from lpe.errors import InputError
from lpe.records import COLUMNS, REPOSITORY, check_writable, write_provenance, write_table
from lpe.store import Store
from reproduce import cost_times, panels
from reproduce.command import source_hash
from reproduce.cost_measures import (
    CASCADED,
    Known,
    Prediction,
    low_precision_predictions,
    rows_of_predictions,
    single_predictions,
)
from reproduce.cost_verdicts import Picture

SCALE = "assets"
BITS = (5, 4)
SIZE, FEW = 20, 5
SEED = 0
IMAGES = 5000
BLOCKS = 20
BATCH = 100
TIMED = 100
"""Images of the timed batch, evenly spread over the scored ones."""
DEPTHS = (20, 32)
CODE = (
    "lpe/modules.py",
    "lpe/ensembles/selection.py",
    "lpe/number_systems/grids.py",
    "lpe/number_systems/layouts.py",
    "lpe/number_systems/streams.py",
    "benchmarks/cifar_resnet.py",
)
"""What log-probabilities depend on. Not the kernels: whichever is used, the codes are the same."""


def substrate(depth: int) -> str:
    """As the record has it."""
    return f"ResNet-{depth}, {cifar_resnet.DATASET}"


def picture() -> Picture:
    """What the assets' picture is of."""
    own, larger = map(substrate, DEPTHS)
    return Picture(
        own, larger, BITS, SIZE, ("ResNet-20", "ResNet-32"), ("point", f"{BLOCKS} blocks of images")
    )


@dataclass(frozen=True)
class Images:
    """All test images with their targets, and what is known of ensembles on them, kept in the store."""

    images: Tensor
    targets: Tensor
    store: Store
    bar: tqdm

    def known(self, ensemble: Ensemble, depth: int) -> Known:
        """An ensemble of ResNets of a depth with its members' log-probabilities."""
        config: dict[str, object] = {
            "phase": "log-probabilities of the cost picture",
            "depth": depth,
            "images": len(self.targets),
            "members": len(ensemble),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "code": source_hash(*CODE),
        }
        if isinstance(ensemble, lpe.LowPrecisionEnsemble):
            config |= {
                "number_system": ensemble.system.name,
                "rounding": ensemble.rounding,
                "seed": ensemble.seed,
            }

        def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
            batches = list(zip(self.images.split(BATCH), self.targets.split(BATCH), strict=True))
            return {"log_probs": lpe.member_log_probs(ensemble, batches)[0]}, {}

        log_probs = self.store.get_or_make(config, make).tensors["log_probs"]
        self.bar.update(len(ensemble))
        even, odd = log_probs[:, ::2], log_probs[:, 1::2]
        return Known(ensemble, even, self.targets[::2], odd, self.targets[1::2])


def measure(nets: Sequence[nn.Module], images: Images) -> list[dict[str, object]]:
    """Rows of the record."""
    scored = images.targets[1::2]
    own, larger = (
        images.known(lpe.DeepEnsemble([net]), depth) for net, depth in zip(nets, DEPTHS, strict=True)
    )
    found: list[tuple[str, list[Prediction]]] = [
        (substrate(DEPTHS[0]), [*single_predictions(own)]),
        (substrate(DEPTHS[1]), [next(single_predictions(larger))]),
    ]
    for bits in BITS:
        drawn = low_precision_predictions(
            nets[0], bits, SIZE, FEW, SEED, own, lambda ensemble: images.known(ensemble, DEPTHS[0])
        )
        found.append((substrate(DEPTHS[0]), [*drawn]))
    rows: list[dict[str, object]] = []
    for name, predictions in found:
        for (method, system, rounding), of_key in rows_of_predictions([predictions], scored, BLOCKS).items():
            named = {"scale": SCALE, "substrate": name, "method": method, "seed": SEED}
            rows += [{**named, "number_system": system, "rounding": rounding, **row} for row in of_key]
    return rows


def measure_times(nets: Sequence[nn.Module], images: Images, out: Path) -> None:
    """Write cost_times.csv and its conditions."""
    started = time.time()
    inputs = images.images[1 :: len(images.targets) // TIMED][:TIMED]
    own = images.known(lpe.DeepEnsemble([nets[0]]), DEPTHS[0])
    members = []
    for bits in BITS:
        pair = [
            lpe.LowPrecisionEnsemble(nets[0], lpe.Int(bits), size, SEED, rounding)
            for size, rounding in ((SIZE, CASCADED), (1, "nearest"))
        ]
        drawn, nearest = (images.known(ensemble, DEPTHS[0]) for ensemble in pair)
        members.append((drawn, nearest))
    named = [(substrate(depth), net) for depth, net in zip(DEPTHS, nets, strict=True)]
    items = cost_times.timed_methods(named[0], named[1], None, BITS, SIZE, inputs, SEED)
    items += cost_times.timed_cascades(named[0][0], own, None, members, FEW, inputs, SEED, all_targets=True)
    rows = cost_times.rows_of_times(items, len(inputs), images.bar)
    command = ["reproduce/cost.py", "--assets", "--time"]
    cost_times.write(rows, out, command, len(inputs), [SEED], started)


def run(arguments: Sequence[str], again: bool) -> int:
    """Measure what the store lacks, write the record, draw it; 2 after one line about bad input."""
    from reproduce.cost import TIMES, draw_picture

    options = Parser(prog="reproduce/cost.py --assets", description=__doc__)
    options.add_argument(
        "--out", type=Path, default=REPOSITORY / "figures" / SCALE, help="folder of the results"
    )
    options.add_argument("--plot-only", action="store_true", help="redraw from the record in the folder")
    try:
        asked = options.parse_args(arguments)
        started = time.time()
        torch.set_num_threads(1)
        if not asked.plot_only:
            assets = assets_folder()
            check_writable(asked.out)
            nets = [cifar_resnet.load_resnet(assets, depth) for depth in DEPTHS]
            total = len(DEPTHS) + len(BITS) * (1 + 2 * SIZE)
            with tqdm(total=total, desc="members", leave=False, file=sys.stderr) as bar:
                images = Images(*cifar_resnet.test_images(assets, IMAGES), Store(), bar)
                write_table(measure(nets, images), asked.out / "cost.csv", COLUMNS)
                if again or not (asked.out / TIMES).is_file():
                    measure_times(nets, images, asked.out)
            config = {
                "depths": DEPTHS,
                "bits": BITS,
                "members": SIZE,
                "few": FEW,
                "images": IMAGES,
                "blocks": BLOCKS,
            }
            command = ["reproduce/cost.py", "--assets", *arguments]
            write_provenance(asked.out / "cost.json", command, config, "cpu", [SEED], 1, started)
        record = panels.read_record(asked.out / "cost.csv", COLUMNS)
        times = panels.read_record(asked.out / TIMES, cost_times.COLUMNS)
        _, lines = draw_picture(record, times, picture(), asked.out)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines))
    return 0
