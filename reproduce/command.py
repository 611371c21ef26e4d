"""Shared parts of the figure scripts: what a script is, its options, and how it runs and ends."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from lpe import interruption, tracking
from lpe.command_line import Parser, complain
from lpe.errors import InputError
from lpe.mirror import MirroredStore, open_store
from lpe.provenance import REPOSITORY, kernels, write_provenance
from lpe.store import Store
from lpe.training import processes
from lpe.writing import check_writable
from reproduce import same_bits
from reproduce.draw import page
from reproduce.scales import find
from reproduce.study.costs import summed
from reproduce.study.intact import check, drawn_from, keep_accepted, vouched_by
from reproduce.study.measurements import working_folder
from reproduce.study.mirrored import landscapes
from reproduce.study.origins import mixture, scales_of, seeds_of
from reproduce.study.records import OTHER_TABLES, checked_rows, record_name
from reproduce.study.scale import Scale, Substrate, digest_of
from reproduce.study.session import Engine, Session, open_session, seeds_asked
from reproduce.study.units import Unit


@dataclass(frozen=True)
class Script:
    """A figure or table.

    Args:
        name: such as "fig3". description: its docstring, for ``--help``.
        lacks: what a scale lacks for it, in words; "": nothing.
        wanted: the units that it shows. compute: measures and writes the record's CSV files into
            ``session.out``; returns what the provenance should hold beside the scale.
        draw: (folder, scale) → paths written and lines to print, from the record alone.
        of_points: whether it shows points alone, which some scales measure on more examples.
        add_options: gives a parser the options that it has beside every figure's; it reads them itself.
        further: what the heading says beyond the scale's; None: nothing.
    """

    name: str
    description: str | None
    lacks: Callable[[Scale], str]
    wanted: Callable[[Session], list[Unit]]
    compute: Callable[[Session], Mapping[str, object]]
    draw: Callable[[Path, Scale], tuple[list[Path], list[str]]]
    of_points: bool = False
    add_options: Callable[[Parser], None] | None = None
    further: Callable[[Scale], str] | None = None

    def heading(self, chosen: Scale) -> str:
        """Return the line above the figure."""
        scale = chosen.points_heading if self.of_points else chosen.heading
        return "; ".join(filter(None, (scale, self.further(chosen) if self.further else "")))

    def check(self, chosen: Scale) -> None:
        """Raise InputError for a scale that does not have it."""
        if lacking := self.lacks(chosen):
            raise InputError(f"{self.name} needs {lacking}; scale {chosen.name} has none")


SAME_BITS = (
    "LPE_SAME_BITS=0 in the environment: kernels of this kind of CPU, not those of every CPU with AVX2"
)


class _TellsOfScales(Parser):
    """A parser whose help ends with the scales, which are made when it is asked for."""

    def format_help(self) -> str:
        told = map(_told_of, find.names())
        self.epilog = "\n".join(["scales, with what they reach and how to run them:", *told, SAME_BITS])
        return super().format_help()


def _told_of(name: str) -> str:
    """Return what a scale says of itself, or what it lacks."""
    try:
        chosen = find.scale(name)
        lines = [chosen.title, chosen.result, chosen.launch]
    except InputError as error:
        lines = [str(error)]
    return "\n    ".join([f"  {name}", *lines]) + "\n"


def parser(figure: str, description: str | None) -> Parser:
    """Return a parser of every figure script's options."""
    made = _TellsOfScales(
        prog=f"reproduce/{figure}.py",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--scale",
        default=find.DEFAULT,
        metavar="NAME or FILE",
        help=f"networks, data and settings: {', '.join(find.names())}, or a file of your own, mine.toml (see "
        f"docs/own_scale.md) or mine.py (default: {find.DEFAULT})",
    )
    made.add_argument(
        "--seeds",
        type=int,
        metavar="N",
        help="training seeds 0 … N-1 (default: the scale's, more for training-free claims)",
    )
    add_scale_options(made)
    made.add_argument("--out", type=Path, help="folder of the results (default: figures/SCALE)")
    made.add_argument("--plot-only", action="store_true", help="redraw from the record in the folder")
    add_accept_edited(made)
    add_width(made, page.BOTH_COLUMNS)
    made.add_argument(
        "--overwrite",
        action="store_true",
        help="replace records in the folder that have more training seeds or are of another scale",
    )
    made.add_argument(
        "--wandb",
        choices=tracking.MODES,
        help="Weights & Biases (default: WANDB_MODE; else online with WANDB_API_KEY; else offline)",
    )
    made.add_argument(
        "--random-weights",
        action="store_true",
        help="where weights are given: rehearse at the true shapes, with random weights and synthetic inputs",
    )
    return made


def add_scale_options(made: argparse.ArgumentParser) -> None:
    """Give a parser the options of which some scales are made; see :func:`scale_options`."""
    taken = {
        option: ", ".join(name for name, takes in find.TAKEN.items() if option in takes)
        for option in vars(find.Options())
    }
    made.add_argument(
        "--data",
        type=Path,
        help=f"scales {taken['data']}: folder or file of the data (default: LPE_DATA, else data/)",
    )
    made.add_argument(
        "--points",
        type=Path,
        help=f"scale {taken['points']}: folder of given trained points (default: LPE_POINTS; without either "
        "they are trained)",
    )
    made.add_argument(
        "--images",
        type=int,
        metavar="N",
        help=f"scale {taken['images']}: test images of all but the figures of points alone, which have all",
    )
    made.add_argument(
        "--updates", type=int, metavar="N", help=f"scale {taken['updates']}: optimiser steps of a training"
    )


def add_accept_edited(made: argparse.ArgumentParser) -> None:
    """Give a parser the option ``--accept-edited``; see :mod:`reproduce.study.intact`."""
    made.add_argument(
        "--accept-edited",
        action="store_true",
        help="take records that are not as they were measured, or have no hash; what is made of them says so",
    )


def scale_options(asked: argparse.Namespace) -> find.Options:
    """Return the options of a command line by which a scale is made."""
    return find.Options(asked.data, asked.points, asked.images, asked.updates)


def scale_arguments(options: find.Options) -> list[str]:
    """Return the options as a command line has them."""
    return [text for name, value in options.given.items() for text in (f"--{name}", str(value))]


def add_width(made: argparse.ArgumentParser, default: float) -> None:
    """Give a parser the option ``--width``; its value is for :func:`reproduce.draw.page.page`."""
    made.add_argument(
        "--width",
        type=float,
        default=default,
        metavar="INCHES",
        help="of the pictures: 7 for both columns of a page, 5.5 for a page of one; the text keeps its size "
        f"(default: {default:g})",
    )


@contextmanager
def opened(
    name: str,
    chosen: Scale,
    count: int | None,
    out: Path,
    wandb_mode: str | None,
    quiet: bool = False,
    engine: Engine | None = None,
) -> Iterator[Session]:
    """Open a session on the store and the scale's working records."""
    store = open_store()
    working = working_folder(chosen, store)
    if isinstance(store, MirroredStore):
        store.mirror.check()
    with (
        open_session(name, chosen, count, out, wandb_mode, working, store, quiet, engine) as session,
        landscapes(store, working),
    ):
        yield session


def prepared(chosen: Scale) -> Scale:
    """Return the scale with what all its units need, which is trained where it is not there.

    Raises:
        InputError: that goes into a folder beside the store, and the store is in no folder.
    """
    if chosen.prepare is None:
        return chosen
    if isinstance(open_store(), MirroredStore):
        raise InputError(
            f"scale {chosen.name} keeps its points in a folder beside the store; give it trained points by "
            "--points, or set LPE_STORE to a folder"
        )
    return chosen.prepare()


def seedless(chosen: Scale) -> Session:
    """Return a session that nothing can be trained or measured in: to ask which units a figure wants."""
    seeds, claim_seeds = seeds_asked(chosen, 1)
    nowhere = Path()
    return Session(
        store=Store(),
        tracker=tracking.Tracker(None),
        threads=chosen.threads,
        device="cpu",
        scale=chosen,
        seeds=seeds,
        claim_seeds=claim_seeds,
        out=nowhere,
        working=nowhere,
    )


def substrates_of(scripts: Iterable[Script], chosen: Scale) -> list[Substrate]:
    """List the substrates that figures show, each once."""
    session = seedless(chosen)
    names = dict.fromkeys(unit.substrate for script in scripts for unit in script.wanted(session))
    return [chosen.substrates[name] for name in names]


def all_there(script: Script, chosen: Scale) -> bool:
    """Print what a figure needs that lies elsewhere, on stderr a line for each missing piece.

    Returns:
        Whether nothing is missing.
    """
    pieces = [each.pieces for each in substrates_of([script], chosen) if each.pieces is not None]
    if not pieces:
        return True
    print(f"{script.name} at scale {chosen.name} needs")
    for line in _once(each.needed() for each in pieces):
        print(f"  {line}")
    missing = _once(each.missing() for each in pieces)
    for line in missing:
        print(f"missing: {line}", file=sys.stderr)
    if missing:
        counted = f"{len(missing)} piece{'s are' if len(missing) > 1 else ' is'} missing, nothing was run"
        way_out = "; --random-weights rehearses without" if chosen.rehearse else ""
        print(f"error: {counted}{way_out}", file=sys.stderr)
    return not missing


def check_sources(scripts: Iterable[Script], chosen: Scale) -> None:
    """Load, once, what the sources of figures' substrates load themselves, such as a user's checkpoints.

    So it is said before anything is measured that one of them is damaged, or does not fit its network or
    data, and not when its turn comes. What is hashed here is hashed for the keys as well, and not again.

    Raises:
        InputError: of the source.
    """
    # The main network is measured first, and a source may keep what it loaded last.
    for substrate in reversed(substrates_of(scripts, chosen)):
        if hasattr(substrate.source, "digest"):
            digest_of(substrate.source, 0)


def _once(lines: Iterable[tuple[str, ...]]) -> list[str]:
    """List lines, each once and none empty: the first of every tuple, then the second of every tuple."""
    return [
        line for line in dict.fromkeys(line for kind in zip(*lines, strict=True) for line in kind) if line
    ]


def check_options(asked: argparse.Namespace) -> None:
    """Raise InputError for options that a redrawing would ignore."""
    given = {"--seeds": asked.seeds, "--wandb": asked.wandb}
    given |= {f"--{name}": value for name, value in scale_options(asked).given.items()}
    ignored = [f"{option} {value}" for option, value in given.items() if value is not None]
    ignored += ["--overwrite"] * asked.overwrite + ["--random-weights"] * asked.random_weights
    if asked.plot_only and ignored:
        raise InputError(
            f"--plot-only draws what the folder's records hold and would ignore {' and '.join(ignored)}; "
            "leave one or the other out"
        )
    check_accepting(asked)


def check_alone(figure: str) -> None:
    """Raise InputError where several processes were launched for one script: it does not train together."""
    if processes.were_launched() and processes.active() is None:
        raise InputError(
            f"processes of torchrun or accelerate launch train together by -m reproduce --only {figure}; "
            "launch that"
        )


def check_accepting(asked: argparse.Namespace) -> None:
    """Raise InputError where records are to be accepted as edited, and would be measured."""
    if asked.accept_edited and not asked.plot_only:
        raise InputError("--accept-edited is for records that are drawn again; give --plot-only as well")


def check_kept(script: Script, session: Session) -> None:
    """Raise InputError where the folder has a record that this run would replace by another or a lesser one.

    That is one of another scale, or of more training seeds than this run would leave.
    """
    record = session.out / record_name(script.name)
    way_out = "give another folder with --out, or --overwrite"
    if others := [name for name in scales_of(record) if name != session.scale.name]:
        raise InputError(
            f"{_shown(record)} is of scale {others[0]!r}, this run is of {session.scale.name!r}; {way_out}"
        )
    there = seeds_of(record)
    ours = {unit.seed for unit in script.wanted(session)}
    if len(there) > max(1, len(ours)):
        raise InputError(
            f"{_shown(record)} has {len(there)} training seeds, this run would leave {max(1, len(ours))}; "
            f"{way_out}"
        )


def rehearse(scripts: Sequence[Script], chosen: Scale) -> None:
    """Rehearse the models of figures, each once; InputError at a scale that has nothing to rehearse."""
    if chosen.rehearse is None:
        able = [name for name, scale in find.SCALES.items() if scale.rehearse is not None]
        raise InputError(f"--random-weights is for --scale {' and '.join(able)}, not {chosen.name}")
    chosen.rehearse(substrates_of(scripts, chosen))


def run_figure(
    script: Script,
    arguments: Sequence[str] | None = None,
    quiet: bool = False,
    notes: bool = True,
    engine: Engine | None = None,
) -> int:
    """Run a figure script: measure what is not measured yet, write the record, draw it, say the verdict.

    Args:
        arguments: the command line; None: this process's. quiet: no progress bars.
        notes: say where the folder's records come from several machines or commits. engine: that measures
            the lines of landscapes; None: this process.

    Returns:
        The exit code: 0, 2 after one line about bad input, 130 or 143 when interrupted.
    """
    if arguments is None:
        return interruption.answered(lambda: _run_figure(script, None, quiet, notes, engine))
    return _run_figure(script, arguments, quiet, notes, engine)


def _run_figure(
    script: Script, arguments: Sequence[str] | None, quiet: bool, notes: bool, engine: Engine | None
) -> int:
    figure = script.name
    try:
        options = parser(figure, script.description)
        if script.add_options is not None:
            script.add_options(options)
        asked = options.parse_args(arguments)
        check_options(asked)
        check_alone(figure)
        page.check_width(asked.width)
        recorded = (asked.out or find.folder_of(asked.scale)) / f"{figure}.json"
        # First of all: the scale is made of what the JSON says.
        edited = check_records(figure, recorded.parent, asked.accept_edited) if asked.plot_only else []
        chosen = find.scale(asked.scale, scale_options(asked), recorded if asked.plot_only else None)
        if not (asked.plot_only or asked.random_weights):
            chosen = prepared(chosen)
        script.check(chosen)
        seeds_asked(chosen, asked.seeds)
        out = asked.out or REPOSITORY / "figures" / chosen.name
        started, begun = time.time(), time.monotonic()
        if asked.random_weights:
            rehearse([script], chosen)
            return 0
        check_writable(out)
        if not asked.plot_only:
            if not all_there(script, chosen):
                return 2
            with opened(figure, chosen, asked.seeds, out, asked.wandb, quiet, engine) as session:
                if not asked.overwrite:
                    check_kept(script, session)
                check_sources([script], chosen)
                with session.store.use() as use:
                    extra = dict(script.compute(session))
                if models := session.descriptions():
                    extra["models"] = models
                record = out / record_name(figure)
                landscape = [] if chosen.main is None else [chosen.settings.landscape.seed]
                write_provenance(
                    out / f"{figure}.json",
                    sys.argv if arguments is None else [f"reproduce/{figure}.py", *arguments],
                    {"scale": chosen.described(), "bits": same_bits.bits(kernels()), **extra},
                    session.device,
                    _seeds_of(record) or landscape,
                    torch.get_num_threads(),
                    started,
                    summed(session.measured, use.made),
                    vouched_by(out, figure),
                )
                with page.page(asked.width, script.heading(chosen)):
                    paths, lines = script.draw(out, chosen)
                written = [record, out / f"{figure}.json", *paths]
                session.tracker.artifact(f"{figure}-{chosen.name}", "figure", written)
        else:
            if not (out / record_name(figure)).is_file():
                raise InputError(
                    f"there is no record {record_name(figure)} in {out}; run without --plot-only first"
                )
            if record_name(figure) not in OTHER_TABLES:
                checked_rows(out / record_name(figure), chosen.name)
            with page.page(asked.width, script.heading(chosen), edited=bool(edited)):
                try:
                    written, lines = script.draw(out, chosen)
                except InputError:
                    raise
                except Exception as error:
                    if not edited:
                        raise
                    said = f"{type(error).__name__}: {error}"
                    raise InputError(
                        f"{', '.join(edited)}, edited after measuring, can't be drawn ({said}); measure again"
                    ) from None
            if edited:
                keep_accepted(drawn_from(out, figure))
                lines = [*lines, *said_of_edited(edited)]
    except InputError as error:
        if processes.is_first_launched():
            complain(error)
        return 2
    except KeyboardInterrupt:
        return interruption.say()
    for path in written:
        print(f"wrote {_shown(path)}")
    for line in [*lines, *(mixture(out) if notes else [])]:
        print(line)
    print(f"{figure} at scale {chosen.name}: {time.monotonic() - begun:.0f} s")
    return 0


def check_records(figure: str, folder: Path, accept: bool) -> list[str]:
    """Return which files that a figure is drawn from are accepted as edited; none where there is no record.

    Raises:
        InputError: one is not as it was measured; see :func:`intact.check`.
    """
    records = drawn_from(folder, figure)
    return check(records, accept) if records[0].is_file() else []


def said_of_edited(edited: Sequence[str]) -> list[str]:
    """Return a line that says which files were edited after measuring; none where none was."""
    return [f"note: {page.EDITED}, or without a hash: {', '.join(edited)}"] if edited else []


def _seeds_of(record: Path) -> list[int]:
    """Return the training seeds of a record's rows; none where it has no such column."""
    import pandas as pd

    table = pd.read_csv(record, keep_default_na=False)
    return sorted(map(int, table["seed"].unique())) if "seed" in table else []


def _shown(path: Path) -> str:
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
