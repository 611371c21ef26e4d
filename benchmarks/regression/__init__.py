"""Metric regression: have NLL, ERR, ECE or AMB of any method moved?

    python -m benchmarks regression
    python -m benchmarks regression --update --reason "why the numbers are expected to move"
    python -m benchmarks regression --only cifar10-small

Costs about three minutes of one core. Every method is trained and measured from nothing at a reduced size
over three training seeds, at two scales: at digits, and at cifar10-small, with convolutions, group norms and
a small ViT, on made-up images. At digits the methods of shift and selective prediction are among them, on
the clean images. With LPE_ASSETS a given point of cifar10 is measured, too: FP32, RTN and
LPE-BSR on 250 real images; without, it says that it is not. The means over the seeds are compared with
expected.csv, beside this file. It prints a table of what moved (metric, expected, got, tolerance) and exits
with 1, or says that nothing moved and exits with 0.

Tolerances. The same seeds are measured again, with kernels that give the same bits on every x86-64 CPU with
AVX2 (reproduce/same_bits.py), also at the scales that do not ask for them: a change of code that should
change nothing leaves every digit, and how many metrics it left so is printed. Other versions of packages, and
code that is the same in exact arithmetic, move last bits, and training amplifies that. A tolerance is
TOLERANCE of the standard deviation over the training seeds, and at least FLOOR, for ERR the flip of two
predictions in all and for ECE half of one. ``--update`` measures the amplification, too: it trains once more
from weights that were moved by one part in 10⁶, and writes how much of the tolerances that uses up. What it
cannot measure for want of LPE_ASSETS stays expected as it was.

Two kinds of rows are of no method: confidences that lie exactly on the edges of ECE's bins, which networks
never show, and the temperature itself, in which NLL is too flat to tell that it is off.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from reproduce import same_bits

if "torch" not in sys.modules:
    same_bits.choose([])

import pandas as pd

from benchmarks.command import parser
from benchmarks.regression import cifar10_given, cifar10_small, digits
from benchmarks.regression.measuring import (
    COLUMNS,
    CROSSING,
    FLIPS,
    FLOOR,
    KEY,
    TOLERANCE,
    Part,
    measured,
    moved,
    summary,
    unmoved,
)
from lpe.command_line import complain
from lpe.ensembles.base import text_table
from lpe.errors import InputError
from lpe.hashes import with_hashes
from lpe.records import write_table
from lpe.writing import write_text_atomic
from reproduce.study.intact import was_altered

FOLDER = Path(__file__).parent
PARTS = (digits.PART, cifar10_small.PART, cifar10_given.PART)


def main(arguments: Sequence[str]) -> int:
    """Compare, or write what is expected; 1 where a metric moved, 2 after one line about bad input."""
    options = parser("regression", __doc__)
    options.set_defaults(out=FOLDER)
    options.add_argument("--update", action="store_true", help="write what was measured as expected")
    options.add_argument("--reason", help="why it changes: kept in expected.json (with --update)")
    options.add_argument(
        "--only",
        choices=[part.scale for part in PARTS],
        help="measure one scale; what is expected of others stays",
    )
    asked = options.parse_args(arguments)
    try:
        if asked.update and not (asked.reason or "").strip():
            raise InputError('--update needs a reason, such as --reason "ECE counts empty bins"')
        if asked.reason and not asked.update:
            raise InputError("--reason goes with --update")
        path = asked.out / "expected.csv"
        if not asked.update and not path.is_file():
            raise InputError(f"there is no {path}; write it with --update")
        if path.is_file():
            check_expected(path)
        here = parts_here(asked.only)
        got = summary(measured(here))
        if asked.update:
            _write(asked.out, here, got, asked.reason.strip())
            return 0
        expected, _ = expectations(path, here)
    except InputError as error:
        complain(error)
        return 2
    rows = moved(expected, got)
    if not rows:
        exact = unmoved(expected, got)
        print(f"{len(expected)} metrics of every method are as expected, {exact} of them in every digit")
        return 0
    header = ("what", "size", "metric", "expected", "got", "tolerance")
    print(text_table(f"{len(rows)} of {len(expected)} metrics moved", header, rows))
    return 1


def parts_here(only: str | None) -> list[Part]:
    """List the parts that can be measured here, or one of them; say which cannot, and why.

    Raises:
        InputError: the one that is asked for cannot be measured.
    """
    found = []
    for part in PARTS:
        if only not in (None, part.scale):
            continue
        if reason := part.missing():
            if only is not None:
                raise InputError(f"{part.scale} cannot be measured: {reason}")
            print(f"{part.scale} is not measured: {reason}")
        else:
            found.append(part)
    return found


def check_expected(path: Path) -> None:
    """Raise InputError where what is expected is not what the JSON beside it has the hash of."""
    if was_altered(path):
        raise InputError(
            f"{path} is not what {path.stem}.json has the hash of: it was edited or damaged; have it back "
            "from git, or delete it and write it with --update"
        )


def expectations(path: Path, parts: Sequence[Part]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read what is expected of these parts, and of the others."""
    table = pd.read_csv(path, keep_default_na=False)
    # The row of no scale is measured with any.
    here = table["scale"].isin(["", *(part.scale for part in parts)])
    return table[here], table[~here]


def _write(folder: Path, parts: Sequence[Part], got: pd.DataFrame, reason: str) -> None:
    path, about = folder / "expected.csv", folder / "expected.json"
    told = json.loads(about.read_text(encoding="utf-8")) if about.is_file() else {}
    use = {**told.get("weights_moved_by_a_millionth_use_of_the_tolerances", {}), **_used(parts, got)}
    told = {
        "tolerance": f"{TOLERANCE} of the standard deviation over training seeds, "
        f"at least {FLOOR}; for err at least {FLIPS}.5 and for ece {CROSSING} predictions in all",
        "training_seeds": {part.scale: list(part.seeds) for part in PARTS},
        "weights_moved_by_a_millionth_use_of_the_tolerances": use,
        "reasons": [
            *told.get("reasons", []),
            {"utc": datetime.now(UTC).date().isoformat(), "reason": reason},
        ],
    }
    if path.is_file():
        got = pd.concat([got, expectations(path, parts)[1]]).sort_values(list(KEY))
    write_table(got, path, COLUMNS)
    told = with_hashes(told, about.name, [path])
    write_text_atomic(about, json.dumps(told, indent=2, ensure_ascii=False) + "\n")
    print(f"wrote {len(got)} expectations to {path}")


def _used(parts: Sequence[Part], got: pd.DataFrame) -> dict[str, dict[str, float | str]]:
    """Return how much of the tolerances trainings that start a part in 10⁶ apart use up, by scale."""
    trained = [part for part in parts if part.nudged is not None]
    both = got.merge(summary(measured(trained, nudged=True)), on=list(KEY), suffixes=("", "_nudged"))
    both["used"] = (both["expected_nudged"] - both["expected"]).abs() / both["tolerance"]
    found: dict[str, dict[str, float | str]] = {}
    for part in trained:
        here = both[both["scale"] == part.scale].sort_values("used", ignore_index=True)
        found[part.scale] = {
            "median": float(here["used"].median()),
            "largest": float(here["used"].iloc[-1]),
            "largest_at": " ".join(str(here[column].iloc[-1]) for column in KEY[1:]),
        }
    return found
