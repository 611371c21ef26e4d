"""Render figures of a scale, in an order in which each finds the trained weights of those before it.

python -m reproduce --scale digits
python -m reproduce --only fig3 --seeds 1
"""

from __future__ import annotations

import sys
import time
from importlib import import_module

from lpe.errors import InputError
from reproduce.command import parser, run_figure
from reproduce.scales import scale

FIGURES = ("fig2", "fig3")


def main(arguments: list[str]) -> int:
    """Run every figure asked for; the exit code is the first that is not 0."""
    options = parser("__main__", __doc__)
    options.prog = "python -m reproduce"
    options.add_argument("--only", help=f"figures, by commas, of {', '.join(FIGURES)}")
    asked = options.parse_args(arguments)
    wanted = list(FIGURES) if asked.only is None else asked.only.split(",")
    try:
        chosen = scale(asked.scale)
        for name in wanted:
            if name not in FIGURES:
                raise InputError(f"unknown figure {name!r}; there are {', '.join(FIGURES)}")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    passed_on = ["--scale", chosen.name]
    if asked.seeds is not None:
        passed_on += ["--seeds", str(asked.seeds)]
    if asked.out is not None:
        passed_on += ["--out", str(asked.out)]
    if asked.wandb is not None:
        passed_on += ["--wandb", asked.wandb]
    if asked.plot_only:
        passed_on += ["--plot-only"]
    times = []
    for name in wanted:
        module = import_module(f"reproduce.{name}")
        started = time.time()
        if code := run_figure(name, module.__doc__, module.compute, module.draw, passed_on):
            return code
        times.append((name, time.time() - started))
    for name, seconds in times:
        print(f"{name:8} {seconds:7.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
