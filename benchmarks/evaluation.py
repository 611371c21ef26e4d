"""What an evaluation of 20 members takes, against 20 plain forward passes and against 20 deep copies.

    python -m benchmarks.evaluation

Costs about nine minutes on two cores of an AMD EPYC. A timm ViT-S/16 (22 M weights, random, 1,000 classes)
and one batch of 32 images at 224×224, in memory. In turn, three times each: 20 forward passes of the plain
network; ``lpe.evaluate`` of 20 LPE-BSR members at INT-5, every metric of every size included; 20 deep copies,
each made, its weights rounded in plain torch, and run. Peak memory of the same is ``benchmarks.memory``'s.

It prints the seconds of each, and in units of the plain passes: 1.02 for the evaluation, 1.15 for the copies.
It promises at most 1.05 for the evaluation, says where that is broken, and exits with 1 then.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

import lpe
from benchmarks.command import conditions, one_line_of_bad_input, parser, write_results
from benchmarks.peers import plain_bsr
from benchmarks.timing import medians
from benchmarks.vit import NAME, image_batch, vit_small
from lpe.ensembles.base import text_table
from lpe.interruption import answered
from lpe.writing import check_writable

MEMBERS = 20
BATCH = 32
BITS = 5
REPEATS = 3
PROMISE = 1.05
PLAIN = f"{MEMBERS} plain forward passes"
MEMBER = f"lpe.evaluate of {MEMBERS} LPE-BSR members"
COPIES = f"{MEMBERS} deep copies, rounded in plain torch and run"
COLUMNS = ("what", "batch", "members", "repeats", "median_seconds", "times_plain")


@torch.no_grad()
def _passes(net: nn.Module, images: Tensor) -> None:
    for _ in range(MEMBERS):
        net(images)


@torch.no_grad()
def _copies(net: nn.Module, images: Tensor, names: set[str]) -> None:
    for _ in range(MEMBERS):
        made = copy.deepcopy(net)
        for name, parameter in made.named_parameters():
            if name in names:
                parameter.copy_(plain_bsr(parameter, lpe.Int(BITS).largest_code))
        made(images)


def measure() -> list[dict[str, object]]:
    """Measure the three, a row each."""
    net = vit_small()
    images, labels = image_batch(BATCH)
    ensemble = lpe.LowPrecisionEnsemble(net, lpe.Int(BITS), MEMBERS)
    names = {planned.name for planned in ensemble.plan if planned.quantised}
    seconds = medians(
        {
            PLAIN: lambda _: _passes(net, images),
            MEMBER: lambda _: lpe.evaluate(ensemble, [(images, labels)]),
            COPIES: lambda _: _copies(net, images, names),
        },
        REPEATS,
        warm=False,
    )
    return [
        {
            "what": name,
            "batch": BATCH,
            "members": MEMBERS,
            "repeats": REPEATS,
            "median_seconds": taken,
            "times_plain": taken / seconds[PLAIN],
        }
        for name, taken in seconds.items()
    ]


@one_line_of_bad_input
def main(arguments: Sequence[str]) -> int:
    """Measure, write, print; 1 where the promise is broken, 2 after one line about bad input."""
    asked = parser("evaluation", __doc__).parse_args(arguments)
    check_writable(asked.out)
    started = time.time()
    config = {"network": f"timm {NAME}", "system": lpe.Int(BITS), "batch": BATCH, "promise": PROMISE}
    write_results(asked.out, "evaluation", {"evaluation": measure()}, COLUMNS, config, started)
    print(table_text(asked.out))
    return 0 if _of_members(pd.read_csv(asked.out / "evaluation.csv")) <= PROMISE else 1


def _of_members(table: pd.DataFrame) -> float:
    return float(table.set_index("what")["times_plain"][MEMBER])


def table_text(folder: Path) -> str:
    """Return the table with its conditions and the verdict, from the files alone."""
    table = pd.read_csv(folder / "evaluation.csv")
    rows = [
        (str(row["what"]), f"{row['median_seconds']:.2f}", f"{row['times_plain']:.3f}")
        for _, row in table.iterrows()
    ]
    found = _of_members(table)
    verdict = f"promise of at most {PROMISE} times plain: {'kept' if found <= PROMISE else 'broken'}"
    title = f"ViT-S/16, a batch of {BATCH} images; medians of {REPEATS}"
    footer = f"{verdict}\n{conditions(folder / 'evaluation.json')}"
    return text_table(title, ("what", "seconds", "times plain"), rows, footer)


if __name__ == "__main__":
    sys.exit(answered(lambda: main(sys.argv[1:]), "interrupted"))
