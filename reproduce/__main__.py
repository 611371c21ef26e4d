"""Everything of a scale: measured once, rendered, and its claims judged.

    python -m reproduce --scale digits --jobs 2
    python -m reproduce --only fig5,table2 --seeds 1
    python -m reproduce claims --scale digits
    python -m reproduce report --scale digits
    python -m reproduce --scale digits --engine ray --address auto
    torchrun --nproc-per-node 2 -m reproduce --scale digits

All that the figures and tables need is trained and measured first, each thing once, in units that run in
N processes (--jobs N, one thread each); then every figure and table is rendered, and the claims are judged.
With --engine ray they are tasks of a Ray cluster (docs/scale_out.md): one started here, of N processes, or
the one at --address. Under torchrun or accelerate launch its processes share the batches of each training;
then the first one measures and renders alone.
At the end comes a table of what was rendered and how long each took. A run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import time

from reproduce import same_bits

if __name__ == "__main__":  # before torch and numpy are imported
    same_bits.begin(sys.argv[1:])

import torch

from lpe import interruption
from lpe.command_line import complain
from lpe.ensembles.base import text_table
from lpe.errors import InputError
from lpe.provenance import REPOSITORY
from lpe.training import processes
from lpe.writing import check_writable
from reproduce import ledger, rendering, report
from reproduce.command import (
    Script,
    all_there,
    check_kept,
    check_options,
    check_sources,
    opened,
    parser,
    prepared,
    rehearse,
    run_figure,
    scale_arguments,
    scale_options,
)
from reproduce.draw import page
from reproduce.rendering import Rendered
from reproduce.scales import find, own
from reproduce.study import parallel
from reproduce.study.engines import in_processes, on_ray
from reproduce.study.measurements import measure_all
from reproduce.study.origins import mixture
from reproduce.study.run import device_of
from reproduce.study.scale import Scale
from reproduce.study.session import Session, seeds_asked
from reproduce.study.units import Unit

FIGURES = (
    *(f"fig{number}" for number in range(1, 10)),
    *(f"table{number}" for number in range(1, 8)),
    "cost",
    "spread",
    "shift",
    "selective",
    "why",
)
ENGINES = ("local", "ray")


def main(arguments: list[str]) -> int:
    """Run what is asked for; the exit code is the first that is not 0, 130 or 143 when interrupted."""
    if arguments[:1] == ["claims"]:
        return ledger.main(arguments[1:])
    if arguments[:1] == ["report"]:
        return report.main(arguments[1:])
    options = parser("__main__", __doc__)
    options.prog = "python -m reproduce"
    options.add_argument("--only", help=f"figures and tables, by commas, of {', '.join(FIGURES)}")
    options.add_argument(
        "--jobs",
        type=int,
        help="processes, one thread each (default: 1; of --engine ray: as many as there are CPUs for)",
    )
    options.add_argument(
        "--engine",
        choices=ENGINES,
        default=ENGINES[0],
        help="where what is trained and measured runs: processes of this machine, or tasks of a Ray cluster",
    )
    options.add_argument(
        "--address", help="--engine ray: of a cluster that runs, such as auto (default: one is started here)"
    )
    try:
        asked = options.parse_args(arguments)
        check_options(asked)
        _check_engine(asked.engine, asked.address, asked.jobs, asked.plot_only)
        width = page.check_width(asked.width)
        options_of_scale = scale_options(asked)
        recorded = asked.out or find.folder_of(asked.scale)
        chosen = find.scale(asked.scale, options_of_scale, recorded if asked.plot_only else None)
        launched = processes.were_launched()
        if launched:
            _check_launched(asked, chosen)
        if not (asked.plot_only or asked.random_weights):
            chosen = prepared(chosen)
        seeds_asked(chosen, asked.seeds)
        uses_ray = asked.engine == "ray"
        jobs = 1 if asked.jobs is None else asked.jobs
        parallel.check_jobs(jobs)
        scripts = [rendering.script_of(name) for name in FIGURES]
        if asked.only is None:
            scripts = [script for script in scripts if not script.lacks(chosen)]
        else:
            names = list(dict.fromkeys(asked.only.split(",")))
            for name in names:
                if name not in FIGURES:
                    raise InputError(f"unknown figure or table {name!r}; there are {', '.join(FIGURES)}")
            scripts = [rendering.script_of(name) for name in names]
            for script in scripts:
                script.check(chosen)
        if jobs > 1 and not uses_ray and (chosen.threads is None or device_of(chosen.device) != "cpu"):
            raise InputError(f"scale {chosen.name} runs one model at a time; leave --jobs {asked.jobs} out")
        if asked.random_weights:
            rehearse(scripts, chosen)
            return 0
        out = asked.out or REPOSITORY / "figures" / chosen.name
        check_writable(out)
        passed_on = ["--scale", asked.scale, "--out", str(out)]
        passed_on += ["--width", f"{width:g}"]
        for option in ("seeds", "wandb"):
            if getattr(asked, option) is not None:
                passed_on += [f"--{option}", str(getattr(asked, option))]
        passed_on += [*scale_arguments(options_of_scale), *["--overwrite"] * asked.overwrite]
        accepting = ["--accept-edited"] * asked.accept_edited
        started = time.monotonic()
        pool = (
            parallel.workers(jobs, own.in_another_process())
            if jobs > 1 and not uses_ray
            else contextlib.nullcontext()
        )
        cluster: contextlib.AbstractContextManager[on_ray.Cluster | None] = contextlib.nullcontext()
        if uses_ray:
            cpus = None if asked.jobs is None else asked.jobs * (chosen.threads or torch.get_num_threads())
            cluster = on_ray.cluster(asked.address, cpus, own.in_another_process())
        with contextlib.ExitStack() as stack:
            workers, engine = stack.enter_context(pool), stack.enter_context(cluster)
            together = None
            if launched:
                on_cpu = device_of(chosen.device) == "cpu"
                together = stack.enter_context(processes.joined(cpu=on_cpu))
            if asked.plot_only:
                passed_on += ["--plot-only", *accepting]
            else:
                first = together is None or together.is_first
                with contextlib.nullcontext() if first else contextlib.redirect_stderr(io.StringIO()):
                    there = all([all_there(script, chosen) for script in scripts])
                if not there:
                    return 2
                mode = asked.wandb if first else "disabled"
                with opened("all", chosen, asked.seeds, out, mode, quiet=not first) as session:
                    if not asked.overwrite:
                        for script in scripts:
                            check_kept(script, session)
                    check_sources(scripts, chosen)
                    wanted = list(
                        dict.fromkeys(unit for script in scripts for unit in script.wanted(session))
                    )
                    if together is not None:
                        in_processes.train_together(session, wanted, together)
                        if not together.is_first:
                            return 0
                        stack.enter_context(processes.after(together))
                    _measure(wanted, session, workers, engine)
            measured = time.monotonic() - started
            rendered = _render(scripts, passed_on, workers, engine)
            codes = [each.code for each in rendered if each.code]
            if not codes and asked.only is None:
                judged = ledger.main(["--scale", asked.scale, "--out", str(out), *accepting])
                codes = [judged] * bool(judged)
    except InputError as error:
        if processes.is_first_launched():  # the others have the same
            complain(error)
        return 2
    except KeyboardInterrupt:
        return interruption.say() if processes.is_first_launched() else interruption.code()
    rows = [(each.figure, f"{each.seconds:.1f}", "failed" if each.code else "") for each in rendered]
    print(
        text_table(
            f"rendered at scale {chosen.name}, into {out}",
            ("what", "seconds", ""),
            [("training and measuring", f"{measured:.1f}", ""), *rows],
            f"in all {time.monotonic() - started:.1f} s, {'on Ray' if uses_ray else _counted(jobs)}",
        )
    )
    if asked.only is not None:
        for line in mixture(out):
            print(line)
    return codes[0] if codes else 0


def _counted(jobs: int) -> str:
    return f"{jobs} process{'es' * (jobs > 1)}"


def _check_engine(engine: str, address: str | None, jobs: int | None, plot_only: bool) -> None:
    """Raise InputError for options of another engine."""
    if address is not None and engine != "ray":
        raise InputError(f"--address {address} is a Ray cluster's; give --engine ray as well")
    if address is not None and jobs is not None:
        raise InputError(f"the cluster at --address {address} has its own processes; leave --jobs {jobs} out")
    if engine == "ray" and plot_only:
        raise InputError("--plot-only measures nothing and would ignore --engine ray; leave one of them out")


def _check_launched(asked: argparse.Namespace, chosen: Scale) -> None:
    """Raise InputError for what several processes that were launched do not do together."""
    options = {"--plot-only": asked.plot_only, "--random-weights": asked.random_weights}
    options |= {f"--jobs {asked.jobs}": (asked.jobs or 1) > 1, "--engine ray": asked.engine == "ray"}
    for option in (name for name, given in options.items() if given):
        raise InputError(
            f"{option} is not for processes of torchrun or accelerate launch, which train together; leave "
            "one of them out"
        )
    if chosen.prepare is not None:
        raise InputError(
            f"scale {chosen.name} trains its points by itself, in one process; leave out torchrun or "
            "accelerate launch, or give it trained points by --points"
        )


def _measure(
    wanted: list[Unit],
    session: Session,
    pool: parallel.ProcessPoolExecutor | None,
    engine: on_ray.Cluster | None,
) -> None:
    """Measure all units of the figures, each once."""
    if engine is not None:
        engine.measure(session, wanted)
    elif pool is not None:
        parallel.measure_units(session, wanted, pool)
    else:
        measure_all(session, wanted)


def _render(
    scripts: list[Script],
    arguments: list[str],
    pool: parallel.ProcessPoolExecutor | None,
    engine: on_ray.Cluster | None,
) -> list[Rendered]:
    """Render every figure and table; print what each printed."""
    rendered = []
    if pool is not None:
        for each in rendering.render([script.name for script in scripts], arguments, pool):
            print(each.said, end="", file=sys.stderr if each.code else sys.stdout, flush=True)
            rendered.append(each)
        return rendered
    for script in scripts:
        started = time.monotonic()
        code = run_figure(script, arguments, notes=False, engine=engine)
        rendered.append(Rendered(script.name, code, time.monotonic() - started, ""))
    return rendered


if __name__ == "__main__":
    sys.exit(interruption.answered(lambda: main(sys.argv[1:])))
