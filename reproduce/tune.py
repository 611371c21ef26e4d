"""The sweep behind ``reproduce/scales.py``: every method tuned by validation NLL.

    python -m reproduce.tune

One setting at a time is varied around the scale's, over the first training seeds. A row of
figures/SCALE/sweep.csv is one training: method, setting ("chosen" is the scale's own), seed, validation NLL
and error of the point and, for posteriors, of ten averaged draws; for LPE-BSR the bit width on each point, of
ten members. Test images are never looked at. Trained weights are kept, so a second run is quick. What is
printed is the mean over seeds, the best first.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

import lpe
from lpe.command_line import Parser
from lpe.ensembles.base import Ensemble
from lpe.errors import InputError
from lpe.records import REPOSITORY, check_writable, write_table
from lpe.substrates import digits
from reproduce.command import Session, open_session
from reproduce.points import POINTS, Point, ivon_point, point, sgd_point, swag_point
from reproduce.scales import Scale, scale

MEMBERS = 10
COLUMNS = ("method", "setting", "seed", "point_nll", "point_err", "ensemble_nll", "ensemble_err")

Changes = tuple[dict[str, Any], ...]

PRE_TRAINING: Changes = (
    {"epochs": 0},
    {"task": "rotations", "epochs": 12},
    {"epochs": 25},
    {"learning_rate": 1e-3},
    {"learning_rate": 6e-3},
)
SGD: Changes = (
    {"learning_rate": 0.025},
    {"learning_rate": 0.1},
    {"weight_decay": 1e-4},
    {"weight_decay": 2e-3},
)
SWAG: Changes = (
    {"learning_rate": 0.01},
    {"learning_rate": 0.05},
)
IVON: Changes = (
    {"learning_rate": 0.1},
    {"learning_rate": 0.5},
    {"hess_init": 1.0},
    {"hess_init": 5.0},
    {"beta2": 0.9999},
    {"weight_decay": 1e-4},
    {"weight_decay": 2e-3},
)


def trainings(session: Session, seed: int) -> Iterator[tuple[str, str, Point]]:
    """Every point of the sweep: method, setting in words, and the point."""
    chosen = session.scale

    def words(change: dict[str, Any]) -> str:
        return ", ".join(f"{key} {value}" for key, value in change.items())

    yield "SGD", "chosen", sgd_point(session, seed)
    for change in PRE_TRAINING:
        changed = replace(chosen, pre_training=replace(chosen.pre_training, **change))
        yield "SGD", f"pre-training: {words(change)}", sgd_point(replace(session, scale=changed), seed)
    for change in SGD:
        yield "SGD", words(change), sgd_point(session, seed, replace(chosen.sgd, **change))
    yield "SWAG", "chosen", swag_point(session, seed)
    for change in SWAG:
        yield "SWAG", words(change), swag_point(session, seed, replace(chosen.swag, **change))
    yield "IVON", "chosen", ivon_point(session, seed)
    for change in IVON:
        yield "IVON", words(change), ivon_point(session, seed, replace(chosen.ivon, **change))


def sweep(session: Session) -> pd.DataFrame:
    """The whole sweep: a row a training, or a bit width on a point."""
    rows = []
    for seed in session.seeds:
        validation = [digits.load(seed).validation]

        def row(
            method: str,
            setting: str,
            solution: Point,
            ensemble: Ensemble | None,
            seed: int = seed,
            batches: list[digits.Split] = validation,
        ) -> dict[str, object]:
            single = lpe.evaluate(lpe.DeepEnsemble([solution.net]), batches).iloc[-1]
            many = single if ensemble is None else lpe.evaluate(ensemble, batches).iloc[-1]
            measured = (single["nll"], single["err"], many["nll"], many["err"])
            return dict(zip(COLUMNS, (method, setting, seed, *measured), strict=True))

        for method, setting, solution in trainings(session, seed):
            posterior = solution.posterior
            rows.append(row(method, setting, solution, posterior(MEMBERS, seed) if posterior else None))
        for name in POINTS:
            solution = point(session, name, seed)
            for bits in range(2, 9):
                ensemble = lpe.LowPrecisionEnsemble(solution.net, lpe.Int(bits), MEMBERS, seed=seed)
                rows.append(row("LPE-BSR", f"INT-{bits} at {name}", solution, ensemble))
    return pd.DataFrame(rows)


def main(arguments: list[str]) -> int:
    """Run the sweep, write it, print its means."""
    options = Parser(prog="python -m reproduce.tune", description=__doc__)
    options.add_argument("--scale", default="digits", help="(default: digits)")
    options.add_argument("--seeds", type=int, default=3, help="training seeds 0 … N-1 (default: 3)")
    options.add_argument("--out", type=Path, help="folder of sweep.csv (default: figures/SCALE)")
    asked = options.parse_args(arguments)
    try:
        chosen: Scale = scale(asked.scale)
        if asked.seeds < 1:
            raise InputError(f"--seeds must be 1 or more, not {asked.seeds}")
        out = asked.out or REPOSITORY / "figures" / chosen.name
        check_writable(out)
        with open_session("tune", chosen, asked.seeds, out, "disabled") as session:
            table = sweep(session)
        write_table(table, out / "sweep.csv", COLUMNS)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    means = table.drop(columns="seed").groupby(["method", "setting"]).mean().reset_index()
    print(means.sort_values(["method", "ensemble_nll"]).to_string(index=False, float_format="%.4f"))
    print(f"wrote {out / 'sweep.csv'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
