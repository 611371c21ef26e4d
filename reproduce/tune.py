"""The sweep behind a scale's recipes: every method tuned by validation NLL.

    python -m reproduce.tune --jobs 2

Costs about half an hour of one core for each tuning seed of ``digits``. It prints the mean over tuning seeds
of every setting, the best first, and writes them, seed by seed, to figures/SCALE/sweep.csv. One setting at a
time is varied around the scale's. Test images are never looked at. The columns are

    method, setting, seed, role
    point_nll, point_err        validation NLL and error of the point: of ensembles of several networks, the
                                first member
    ensemble_nll, ensemble_err  of ten draws of a posterior, of ten noisy, masked or low precision members, or
                                of all members of an ensemble of several networks
    and what is known of the posterior

A setting's role is its place among those of its method, by the mean NLL of the ensemble over the seeds at
which all of them were measured:

    kept        the scale's own
    best        the lowest NLL; "kept, best" where that is the scale's own
    excluded    the posterior is not what it is called, whatever its NLL: outside of BOUNDS
    swept       another

Tuning seeds are 100, 101 …: no claim is judged on them, so that no seed chooses its own recipe. Rows that
the file holds already are kept and not measured again; delete it to measure all anew.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Collection, Iterable
from concurrent.futures import as_completed
from dataclasses import replace
from pathlib import Path

from reproduce import same_bits

if __name__ == "__main__":  # before torch and numpy are imported
    same_bits.begin(sys.argv[1:])

import pandas as pd
import torch

from lpe.command_line import Parser, complain
from lpe.errors import InputError
from lpe.interruption import answered
from lpe.provenance import REPOSITORY
from lpe.records import read_table, write_table
from lpe.tracking import Tracker
from lpe.writing import check_writable
from reproduce.command import add_scale_options, opened, scale_options
from reproduce.scales import find, own
from reproduce.study.parallel import check_jobs, workers
from reproduce.study.scale import Setting
from reproduce.study.session import TUNING_SEED, Session, seeds_asked

KEY = ("method", "setting", "seed")
BOUNDS = {
    "std_over_forgetting": (0.0, 0.9),
    "std_over_expected": (2 / 3, 3 / 2),
    "variance_share": (0.9, math.inf),
}
"""What the mean over seeds must lie in, fixed before the sweep: IVON's median posterior std over what h0
alone would have left, and over the one that the curvature asks for; the share that CSGLD's samples have of
the posterior's variance at the network's typical curvature."""
COLUMNS = (*KEY, "role", "point_nll", "point_err", "ensemble_nll", "ensemble_err", *BOUNDS)


def settings(session: Session, seed: int) -> Iterable[Setting]:
    """Return every setting of the scale's sweep at one tuning seed."""
    assert session.scale.sweep is not None
    return session.scale.sweep(session, seed)


def _measured(session: Session, method: str, words: str, seed: int) -> dict[str, object]:
    """Measure one row of the sweep."""
    if session.threads is not None:
        torch.set_num_threads(session.threads)
    setting = next(each for each in settings(session, seed) if (each.method, each.words) == (method, words))
    single, ensemble, known = setting.make()
    one = setting.data.evaluate(single, ()).iloc[-1]
    many = one if ensemble is single else setting.data.evaluate(ensemble, ()).iloc[-1]
    losses = {"point_nll": one["nll"], "point_err": one["err"]}
    losses |= {"ensemble_nll": many["nll"], "ensemble_err": many["err"]}
    return {"method": method, "setting": words, "seed": seed, **losses, **known}


def roles(rows: pd.DataFrame, kept: Collection[tuple[str, str]]) -> list[str]:
    """Return the role of each row of a sweep; see the module.

    Args:
        rows: with the columns of KEY, ensemble_nll and BOUNDS. kept: (method, setting) of the scale's own.
    """
    of: dict[tuple[str, str], str] = {}
    for method, here in rows.groupby("method"):
        means = here.groupby("setting")[list(BOUNDS)].mean()
        outside = {
            setting
            for name, (low, high) in BOUNDS.items()
            for setting, value in means[name].items()
            if value < low or value > high
        }
        shared = here.pivot(index="seed", columns="setting", values="ensemble_nll").dropna()
        within = shared.drop(columns=list(outside)).mean().dropna()
        best = within.idxmin() if len(within) else None
        for setting in means.index:
            names = ["kept"] * ((method, setting) in kept) + ["best"] * (setting == best)
            of[str(method), str(setting)] = ", ".join(names) or (
                "excluded" if setting in outside else "swept"
            )
    return [
        of[str(method), str(words)] for method, words in zip(rows["method"], rows["setting"], strict=True)
    ]


def sweep(session: Session, path: Path, jobs: int, only: list[str] | None = None) -> pd.DataFrame:
    """Run the sweep, or some methods': a row a setting and training seed; the file grows with every row.

    Raises:
        InputError: ``only`` names a method that the sweep does not have.
    """
    known = list(dict.fromkeys(each.method for each in settings(session, session.seeds[0])))
    for method in only or []:
        if method not in known:
            raise InputError(f"the sweep has no method {method!r}; there are {', '.join(known)}")
    rows: list[dict[str, object]] = []
    if path.is_file():
        rows = [{str(k): v for k, v in row.items()} for row in read_table(path).to_dict("records")]
    there = {tuple(row[column] for column in KEY) for row in rows}
    asked = [(each.method, each.words, seed) for seed in session.seeds for each in settings(session, seed)]
    lacking = [key for key in dict.fromkeys(asked) if key not in there and (only is None or key[0] in only)]
    places = {key: place for place, key in enumerate(dict.fromkeys(asked))}

    kept = {(e.method, e.words) for e in settings(session, session.seeds[0]) if e.kept}

    def keep(row: dict[str, object]) -> None:
        rows.append(dict.fromkeys(COLUMNS, math.nan) | row)
        rows.sort(key=lambda row: places.get(tuple(row[column] for column in KEY), len(places)))  # type: ignore[arg-type]
        for each, role in zip(rows, roles(pd.DataFrame(rows), kept), strict=True):
            each["role"] = role
        write_table(rows, path, COLUMNS, grows=True)

    with session.progress(len(lacking), "settings") as bar:
        if jobs == 1:
            for key in lacking:
                keep(_measured(session, *key))
                bar.update()
        else:
            bare = replace(session, tracker=Tracker(None), quiet=True)
            with workers(jobs, own.in_another_process()) as pool:
                for future in as_completed([pool.submit(_measured, bare, *key) for key in lacking]):
                    keep(future.result())
                    bar.update()
    return read_table(path)


def main(arguments: list[str]) -> int:
    """Run the sweep, write it, print its means."""
    options = Parser(
        prog="python -m reproduce.tune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("--scale", default=find.DEFAULT, help="whose recipes (default: %(default)s)")
    options.add_argument(
        "--seeds",
        type=int,
        default=10,
        help=f"tuning seeds {TUNING_SEED} … {TUNING_SEED}+N-1, on which nothing is judged "
        "(default: %(default)s)",
    )
    add_scale_options(options)
    options.add_argument("--out", type=Path, help="folder of sweep.csv (default: figures/SCALE)")
    options.add_argument("--jobs", type=int, default=1, help="processes, one thread each (default: 1)")
    options.add_argument("--only", help="methods of the sweep, by commas (default: all)")
    asked = options.parse_args(arguments)
    try:
        chosen = find.scale(asked.scale, scale_options(asked))
        if chosen.sweep is None:
            raise InputError(f"scale {chosen.name} has nothing to tune; its recipes have other sources")
        only = None if asked.only is None else asked.only.split(",")
        check_jobs(asked.jobs)
        seeds_asked(chosen, asked.seeds)
        out = asked.out or REPOSITORY / "figures" / chosen.name
        check_writable(out)
        with opened("tune", chosen, asked.seeds, out, "disabled") as session:
            session.seeds = [TUNING_SEED + seed for seed in session.seeds]
            table = sweep(session, out / "sweep.csv", asked.jobs, only)
    except InputError as error:
        complain(error)
        return 2
    means = table.drop(columns="seed").groupby(["method", "setting", "role"]).mean().reset_index()
    print(means.sort_values(["method", "ensemble_nll"]).to_string(index=False, float_format="%.4f"))
    print(f"wrote {out / 'sweep.csv'}")
    return 0


if __name__ == "__main__":
    sys.exit(answered(lambda: main(sys.argv[1:])))
