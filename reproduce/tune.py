"""The sweep behind ``reproduce/scales/digits/settings.py``: every method tuned by validation NLL.

    python -m reproduce.tune --jobs 2

Costs about an hour of one core for the three training seeds. One setting at a time is varied around the
scale's. A row of figures/SCALE/sweep.csv is one setting at one training seed: method, setting ("chosen" is
the scale's own), seed, validation NLL and error of the point (the first member, for ensembles of several
networks) and of the ensemble: ten averaged draws of a posterior, ten noisy, masked or low precision members,
or all members of an ensemble of several networks. Test images are never looked at.

Rows that the file holds already are kept and not measured again; delete it to measure all anew. What is
printed is the mean over seeds, the best first.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import as_completed
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import lpe
from lpe.command_line import Parser
from lpe.ensembles.base import Ensemble
from lpe.errors import InputError
from lpe.provenance import REPOSITORY
from lpe.records import write_table
from lpe.substrates import captioned_digits, digits
from lpe.tracking import Tracker
from lpe.writing import check_writable
from reproduce.scales.digits.clips import clip_point
from reproduce.scales.find import scale
from reproduce.study.families import batch_ensemble_family, cyclical_sgld_family, snapshot_family
from reproduce.study.parallel import workers
from reproduce.study.points import POINTS, ivon_point, point, sgd_point, swag_point
from reproduce.study.recipes import CLIPTraining
from reproduce.study.session import Session, open_session

MEMBERS = 10
KEY = ("method", "setting", "seed")
COLUMNS = (*KEY, "point_nll", "point_err", "ensemble_nll", "ensemble_err")

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
SSE: Changes = (
    {"learning_rate": 0.0125},
    {"learning_rate": 0.05},
)
CSGLD: Changes = (
    {"learning_rate": 0.125},
    {"learning_rate": 0.5},
    {"temperature": 0.1},
)
BE: Changes = (
    {"learning_rate": 0.1},
    {"std": 0.03},
    {"std": 0.3},
)
CLIP: Changes = (
    {"learning_rate": 7.5e-4},
    {"learning_rate": 3e-3},
    {"weight_decay": 0.01},
    {"weight_decay": 0.2},
    {"batch": 25, "epochs": 30},
)
STDS = (0.003, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1)
CLIP_STDS = (0.001, 0.002, *STDS)
RATES = (0.005, 0.01, 0.02, 0.05, 0.1)

Setting = tuple[str, str, Callable[[], tuple[Ensemble, Ensemble]]]
"""A setting: method, setting in words, and what makes the single model and the ensemble."""


def _words(change: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in change.items()) or "chosen"


def _sgd(session: Session, seed: int) -> tuple[Ensemble, Ensemble]:
    single = lpe.DeepEnsemble([sgd_point(session, seed).net])
    return single, single


def settings(session: Session, seed: int) -> Iterator[Setting]:
    """Yield every setting of the sweep."""
    chosen = session.scale

    def varied(method: str, changes: Changes, make: Callable[..., Any], recipe: Any) -> Iterator[Setting]:
        def made(changed: Any) -> tuple[Ensemble, Ensemble]:
            if method in POINTS:
                solution = make(session, seed, changed)
                single = lpe.DeepEnsemble([solution.net])
                return single, solution.posterior(MEMBERS, seed) if solution.posterior else single
            ensemble = make(session, seed, changed).make(seed)
            return lpe.DeepEnsemble([ensemble[0]]), ensemble

        keys = dict.fromkeys(key for change in changes for key in change)
        for change in ({}, *changes):
            changed = replace(recipe, **change)
            # Points' settings are named by what is changed, the others' by the values: a row stays true when
            # another setting is chosen.
            named = change if method in POINTS else {key: getattr(changed, key) for key in keys}
            yield method, _words(named), partial(made, changed)

    for change in PRE_TRAINING:
        changed = replace(chosen, pre_training=replace(chosen.pre_training, **change))
        yield "SGD", f"pre-training: {_words(change)}", partial(_sgd, replace(session, scale=changed), seed)
    yield from varied("SGD", SGD, sgd_point, chosen.sgd)
    yield from varied("SWAG", SWAG, swag_point, chosen.swag)
    yield from varied("IVON", IVON, ivon_point, chosen.ivon)
    yield from varied("SSE", SSE, snapshot_family, chosen.snapshot)
    yield from varied("CSGLD", CSGLD, cyclical_sgld_family, chosen.cyclical_sgld)
    yield from varied("BE", BE, batch_ensemble_family, chosen.batch_ensemble)

    def around(name: str, make: Callable[..., Ensemble], *arguments: Any) -> tuple[Ensemble, Ensemble]:
        net = point(session, name, seed).net
        return lpe.DeepEnsemble([net]), make(net, *arguments)

    for name in POINTS:
        for bits in range(2, 9):
            low = partial(lpe.LowPrecisionEnsemble, system=lpe.Int(bits), size=MEMBERS, seed=seed)
            yield "LPE-BSR", f"INT-{bits} at {name}", partial(around, name, low)
    for std in STDS:
        noisy = partial(lpe.GaussianEnsemble, system=lpe.Int(5), size=MEMBERS, seed=seed, std=std)
        yield "Gaussian", f"std {std}", partial(around, "SGD", noisy)
    for rate in RATES:
        masked = partial(lpe.MCDropoutEnsemble, rate=rate, size=MEMBERS, seed=seed)
        yield "MC-dropout", f"rate {rate}", partial(around, "SGD", masked)
    yield from _clip_settings(session, seed)


def _clip_settings(session: Session, seed: int) -> Iterator[Setting]:
    """Yield the settings of the largest digits CLIP, table 6's: its training, noise and dropout."""
    size, recipe = list(session.scale.clips)[-1], session.scale.clip

    def made(changed: CLIPTraining, ensemble: Callable[..., Ensemble] | None) -> tuple[Ensemble, Ensemble]:
        net = clip_point(session, seed, size, changed).net
        single = lpe.DeepEnsemble([net])
        return single, single if ensemble is None else ensemble(net, size=MEMBERS, seed=seed)

    keys = dict.fromkeys(key for change in CLIP for key in change)
    for change in ({}, *CLIP):
        changed = replace(recipe, **change)
        words = _words({key: getattr(changed, key) for key in keys})
        yield f"CLIP-{size}", words, partial(made, changed, None)
    for std in CLIP_STDS:
        noisy = partial(lpe.GaussianEnsemble, system=lpe.Int(5), std=std)
        yield f"CLIP-{size} Gaussian", f"std {std}", partial(made, recipe, noisy)
    for rate in RATES:
        masked = partial(lpe.MCDropoutEnsemble, rate=rate)
        yield f"CLIP-{size} MC-dropout", f"rate {rate}", partial(made, recipe, masked)


def _measured(session: Session, method: str, setting: str, seed: int) -> dict[str, object]:
    """Measure one row of the sweep."""
    torch.set_num_threads(session.scale.threads)
    make = next(m for name, words, m in settings(session, seed) if (name, words) == (method, setting))
    single, ensemble = make()
    data = captioned_digits if method.startswith("CLIP") else digits
    validation = [data.load(seed).validation]
    one = lpe.evaluate(single, validation).iloc[-1]
    many = one if ensemble is single else lpe.evaluate(ensemble, validation).iloc[-1]
    values = (method, setting, seed, one["nll"], one["err"], many["nll"], many["err"])
    return dict(zip(COLUMNS, values, strict=True))


def sweep(session: Session, path: Path, jobs: int, only: list[str] | None = None) -> pd.DataFrame:
    """Run the sweep, or some methods': a row a setting and training seed; the file grows with every row.

    Raises:
        InputError: ``only`` names a method that the sweep does not have.
    """
    known = list(dict.fromkeys(method for method, _, _ in settings(session, session.seeds[0])))
    for method in only or []:
        if method not in known:
            raise InputError(f"the sweep has no method {method!r}; there are {', '.join(known)}")
    rows: list[dict[str, object]] = []
    if path.is_file():
        rows = [{str(k): v for k, v in row.items()} for row in pd.read_csv(path).to_dict("records")]
    there = {tuple(row[column] for column in KEY) for row in rows}
    asked = [
        (method, setting, seed) for seed in session.seeds for method, setting, _ in settings(session, seed)
    ]
    lacking = [key for key in dict.fromkeys(asked) if key not in there and (only is None or key[0] in only)]
    places = {key: place for place, key in enumerate(dict.fromkeys(asked))}

    def keep(row: dict[str, object]) -> None:
        rows.append(row)
        rows.sort(key=lambda row: places.get(tuple(row[column] for column in KEY), len(places)))  # type: ignore[arg-type]
        write_table(rows, path, COLUMNS)

    with session.progress(len(lacking), "settings") as bar:
        if jobs == 1:
            for key in lacking:
                keep(_measured(session, *key))
                bar.update()
        else:
            bare = replace(session, tracker=Tracker(None), quiet=True)
            with workers(jobs) as pool:
                for future in as_completed([pool.submit(_measured, bare, *key) for key in lacking]):
                    keep(future.result())
                    bar.update()
    return pd.read_csv(path)


def main(arguments: list[str]) -> int:
    """Run the sweep, write it, print its means."""
    options = Parser(
        prog="python -m reproduce.tune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("--scale", default="digits", help="(default: digits)")
    options.add_argument("--seeds", type=int, default=3, help="training seeds 0 … N-1 (default: 3)")
    options.add_argument("--out", type=Path, help="folder of sweep.csv (default: figures/SCALE)")
    options.add_argument("--jobs", type=int, default=1, help="processes, one thread each (default: 1)")
    options.add_argument("--only", help="methods, by commas (default: all)")
    asked = options.parse_args(arguments)
    try:
        chosen = scale(asked.scale)
        only = None if asked.only is None else asked.only.split(",")
        if asked.jobs < 1:
            raise InputError(f"--jobs must be 1 or more, not {asked.jobs}")
        out = asked.out or REPOSITORY / "figures" / chosen.name
        check_writable(out)
        with open_session("tune", chosen, asked.seeds, out, "disabled") as session:
            table = sweep(session, out / "sweep.csv", asked.jobs, only)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    means = table.drop(columns="seed").groupby(["method", "setting"]).mean().reset_index()
    print(means.sort_values(["method", "ensemble_nll"]).to_string(index=False, float_format="%.4f"))
    print(f"wrote {out / 'sweep.csv'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
