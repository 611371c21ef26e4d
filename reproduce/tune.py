"""The sweep behind a scale's recipes: every method tuned by validation NLL.

    python -m reproduce.tune --jobs 2

Costs about an hour of one core for three training seeds of ``digits``. One setting at a time is varied around
the scale's. A row of figures/SCALE/sweep.csv is one setting at one training seed: method, setting ("chosen"
is the scale's own), seed, validation NLL and error of the point (the first member, for ensembles of several
networks) and of the ensemble: ten averaged draws of a posterior, ten noisy, masked or low precision members,
or all members of an ensemble of several networks. Test images are never looked at.

Rows that the file holds already are kept and not measured again; delete it to measure all anew. What is
printed is the mean over seeds, the best first.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from concurrent.futures import as_completed
from dataclasses import replace
from pathlib import Path

from reproduce import same_bits

if __name__ == "__main__":  # before torch and numpy are imported
    same_bits.choose(sys.argv[1:])

import pandas as pd
import torch

from lpe.command_line import Parser
from lpe.errors import InputError
from lpe.provenance import REPOSITORY
from lpe.records import write_table
from lpe.tracking import Tracker
from lpe.writing import check_writable
from reproduce.command import opened
from reproduce.scales import find, own
from reproduce.study.parallel import workers
from reproduce.study.scale import Setting
from reproduce.study.session import Session

KEY = ("method", "setting", "seed")
COLUMNS = (*KEY, "point_nll", "point_err", "ensemble_nll", "ensemble_err")


def settings(session: Session, seed: int) -> Iterable[Setting]:
    """Return every setting of the scale's sweep at one tuning seed."""
    assert session.scale.sweep is not None
    return session.scale.sweep(session, seed)


def _measured(session: Session, method: str, words: str, seed: int) -> dict[str, object]:
    """Measure one row of the sweep."""
    if session.threads is not None:
        torch.set_num_threads(session.threads)
    setting = next(each for each in settings(session, seed) if (each.method, each.words) == (method, words))
    single, ensemble = setting.make()
    one = setting.data.evaluate(single, ()).iloc[-1]
    many = one if ensemble is single else setting.data.evaluate(ensemble, ()).iloc[-1]
    values = (method, words, seed, one["nll"], one["err"], many["nll"], many["err"])
    return dict(zip(COLUMNS, values, strict=True))


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
        rows = [{str(k): v for k, v in row.items()} for row in pd.read_csv(path).to_dict("records")]
    there = {tuple(row[column] for column in KEY) for row in rows}
    asked = [(each.method, each.words, seed) for seed in session.seeds for each in settings(session, seed)]
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
            with workers(jobs, own.in_another_process()) as pool:
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
    options.add_argument("--scale", default=find.DEFAULT, help="(default: %(default)s)")
    options.add_argument("--seeds", type=int, default=3, help="training seeds 0 … N-1 (default: 3)")
    options.add_argument("--out", type=Path, help="folder of sweep.csv (default: figures/SCALE)")
    options.add_argument("--jobs", type=int, default=1, help="processes, one thread each (default: 1)")
    options.add_argument("--only", help="methods, by commas (default: all)")
    asked = options.parse_args(arguments)
    try:
        chosen = find.scale(asked.scale)
        if chosen.sweep is None:
            raise InputError(f"scale {chosen.name} has nothing to tune; its recipes have other sources")
        only = None if asked.only is None else asked.only.split(",")
        if asked.jobs < 1:
            raise InputError(f"--jobs must be 1 or more, not {asked.jobs}")
        out = asked.out or REPOSITORY / "figures" / chosen.name
        check_writable(out)
        with opened("tune", chosen, asked.seeds, out, "disabled") as session:
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
