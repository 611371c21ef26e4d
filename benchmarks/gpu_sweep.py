"""The sweep that chooses the recipes of CIFAR-10's points, on one GPU; validation images decide.

    python -m benchmarks.gpu_sweep --data <folder or .npz> --minutes 8.5

ResNet-20-FRN-SiLU on the training images of seeds 100 and 101, which no claim is judged on; test images are
not looked at. Every training of a method has the same start, images and crops, so that settings are compared
in pairs. It goes through ``STAGES`` in their order: IVON at 8,000 updates, its best four at the whole 19,840
with the other seed, then SSE, CSGLD (whole: their cycles have the length that counts), BatchEnsemble of 4,
SWAG, SGD, AdamW at 8,000, with and without crops and flips; last, the best of SSE and CSGLD with the other
seed. A stage that would not end in time is not begun; results are written after each.

What decides is the NLL of the validation images: of the method's ensemble (10 draws of IVON's and SWAG's
posterior, all snapshots, samples and members), of the network where there is no ensemble. An IVON counts only
where its posterior is learnt: at least 5/(1 − β2) updates, and at most half of the precision h + wd is h0's
remainder, so that its std is at most √½ of that remainder's. For CSGLD the table has the share of the
posterior's variance that a cycle's noise has reached at curvatures .01, .1 and 1 (``variance_share``).

On an H200 it took 9 minutes. SSE needs a warm-up in each cycle: four snapshots .367 (mean of the seeds), .394
at half the peak without. CSGLD at temperature 1, whose samples have .99 of the posterior's variance at
curvature .01, has .695. No IVON was learnt by that test, so none ran at the whole length: at h0 = 1 and 6
times 1/(1 − β2), the best (.477, draws .496), the median weight's precision is 5 % more than h0's remainder
and the prior; at 12 times it is the prior's (``std_to_prior`` .99 and more), and the NLL .87 to 1.84. ess = N
leaves little to learn about most of 272,474 weights. SGD's and AdamW's weight decays without crops and flips
are the grid's largest. Two seeds of one setting differ by .001 to .02: smaller differences say nothing.

It writes ``gpu_sweep.csv``, a row a training, and ``gpu_sweep.json``: card, versions, every hyper-parameter,
and the chosen settings.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

import lpe
from benchmarks.command import check_minutes, one_line_of_bad_input, parser
from benchmarks.gpu_training import Measured, mean_of, networks_of
from lpe.ensembles.base import text_table
from lpe.ensembles.ivon import forgetting_std
from lpe.interruption import answered
from lpe.provenance import write_provenance
from lpe.records import write_table
from lpe.substrates import cifar
from lpe.substrates.assets import assets_folder
from lpe.substrates.cifar_networks import resnet_frn
from lpe.training.flat import FlatLayout, Gradient
from lpe.training.resident import ResidentImages, predictions
from lpe.training.sgld import variance_share
from lpe.writing import check_writable
from reproduce.scales.cifar10.recipes import (
    PROTOCOL,
    RECIPES,
    SGD,
    Protocol,
    Recipe,
    learning_rate,
    noise,
)
from reproduce.scales.cifar10.training import (
    Collected,
    GroupRun,
    fast_gradient,
    layout_of,
    put,
    train_group,
)

SEED, OTHER_SEED = 100, 101
SHORT = 8_000
"""Updates of a training whose schedule may be cut: 50 epochs, of which SWAG collects from 20."""

DRAWS = 10
CURVATURES = (0.01, 0.1, 1.0)
LEARNT = math.sqrt(0.5)
"""A learnt posterior's median std is at most this share of the std that h0's remainder alone would have."""

LENGTHS = 5
"""Updates of a training, at least, in units of 1/(1 − β2)."""

SHARES = tuple(f"share_{curvature:g}" for curvature in CURVATURES)
COLUMNS = (
    "method",
    "augment",
    "setting",
    "seed",
    "updates",
    "train_loss",
    "point",
    "validation_nll",
    "validation_err",
    "networks",
    "ensemble_nll",
    "ensemble_err",
    "median_std",
    "std_to_start",
    "std_to_prior",
    *SHARES,
    "learnt",
    "images_per_second",
    "seconds",
)
MARGIN = 8.0
"""Seconds that a stage takes beside its epochs, at most: its capture, and measuring its networks."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """A training of the sweep.

    Args:
        method: "ivon", "sse", …; with ``recipe.augment`` it names what is chosen. recipe: its settings.
        varied: names of the fields of ``recipe`` that the sweep varies. updates, seed: of the training.
    """

    method: str
    recipe: Recipe
    varied: tuple[str, ...]
    updates: int = SHORT
    seed: int = SEED

    @property
    def setting(self) -> str:
        """The varied settings, as JSON."""
        return json.dumps({name: getattr(self.recipe, name) for name in self.varied})


def settings(method: str, base: Recipe, updates: int, *varied: Mapping[str, Any]) -> tuple[Trial, ...]:
    """Return a trial for each set of changes of a recipe; all of them name the same fields."""
    return tuple(Trial(method, replace(base, **each), tuple(varied[0]), updates) for each in varied)


def forgetting(lengths: float, updates: int) -> float:
    """Return β2 at which so many updates are ``lengths`` times 1/(1 − β2)."""
    return 1 - lengths / updates


def _ivon(augment: bool, *grid: tuple[float, float, float, float]) -> tuple[Trial, ...]:
    """Return IVONs by lr, h0, weight decay and the run's length in units of 1/(1 − β2)."""
    base = replace(RECIPES["ivon"], augment=augment)
    return settings(
        "ivon",
        base,
        SHORT,
        *(
            {"lr": lr, "hess_init": h0, "weight_decay": decay, "beta2": forgetting(lengths, SHORT)}
            for lr, h0, decay, lengths in grid
        ),
    )


def at_full_length(trial: Trial, seed: int, updates: int = PROTOCOL.updates) -> Trial:
    """Return a trial of the whole length; IVON's β2 such that it forgets h0 as much."""
    recipe = trial.recipe
    if recipe.rule == "ivon":
        lengths = (1 - recipe.beta2) * trial.updates
        recipe = replace(recipe, beta2=forgetting(lengths, updates))
    return replace(trial, recipe=recipe, updates=updates, seed=seed)


def _rates(final: float, *peaks: float) -> list[dict[str, float]]:
    return [{"lr": peak, "final": final / peak} for peak in peaks]


IVON = _ivon(
    True,
    (0.3, 1.0, 1e-4, 6.0),
    (0.3, 0.3, 1e-4, 6.0),
    (0.3, 0.1, 1e-4, 6.0),
    (0.1, 0.1, 1e-4, 6.0),
    (0.3, 0.3, 1e-4, 12.0),
    (0.3, 0.1, 1e-4, 12.0),
    (0.3, 0.1, 5e-4, 6.0),
    (0.3, 0.3, 5e-4, 12.0),
)
IVON_PLAIN = _ivon(
    False, (0.3, 0.1, 1e-4, 6.0), (0.1, 0.1, 1e-4, 6.0), (0.3, 0.1, 5e-4, 12.0), (0.1, 0.3, 1e-3, 12.0)
)
SSE = settings(
    "sse",
    replace(SGD, cycles=4),
    PROTOCOL.updates,
    {"lr": 0.02, "warm_cycles": False},
    {"lr": 0.05, "warm_cycles": False},
    {"lr": 0.1, "warm_cycles": False},
    {"lr": 0.1, "warm_cycles": True},
)
# A cycle has 31 epochs, the last 15.5 with noise, and leaves samples after 7.5, 11.5 and 15.5 of them.
SAMPLED = replace(RECIPES["csgld"], cycles=4, noise=0.5, kept=3, kept_every=4)
CSGLD = settings(
    "csgld", SAMPLED, PROTOCOL.updates, *_rates(0.01, 0.4), *_rates(0.03, 0.1, 0.4), *_rates(0.1, 0.4)
)
BATCH_ENSEMBLE = settings(
    "be",
    replace(SGD, members=4),
    SHORT,
    {"lr": 0.1, "fast_lr": 0.05, "fast_std": 0.5},
    {"lr": 0.1, "fast_lr": 0.05, "fast_std": 1.0},
    {"lr": 0.1, "fast_lr": 0.2, "fast_std": 1.0},
    {"lr": 0.2, "fast_lr": 0.1, "fast_std": 0.5},
)
SWAG = settings(
    "swag", replace(SGD, swag_from=0.6), SHORT, *({"final": share} for share in (0.05, 0.1, 0.2, 0.5))
)
SGD_PLAIN = settings(
    "sgd", replace(SGD, augment=False), SHORT, *({"weight_decay": wd} for wd in (5e-4, 1e-3, 2e-3, 4e-3))
)
ADAMW = replace(SGD, rule="adamw", lr=1e-3, momentum=0.0, weight_decay=0.1)
_ADAMW_GRID = tuple({"lr": lr, "weight_decay": decay} for lr in (1e-3, 4e-3) for decay in (0.05, 0.3))
SGD_GRID = settings(
    "sgd",
    SGD,
    SHORT,
    {"lr": 0.1, "weight_decay": 5e-4},
    {"lr": 0.1, "weight_decay": 1e-3},
    {"lr": 0.2, "weight_decay": 5e-4},
    {"lr": 0.05, "weight_decay": 1e-3},
)

Stage = Callable[[Sequence[Row], Mapping[str, Trial]], Sequence[Trial]]
"""(rows so far, trials by their rows' keys) → the trials to run side by side; they share the rule, the number
of updates and of members."""


def _given(*trials: Trial) -> Stage:
    return lambda rows, known: trials


def best_again(**methods: int) -> Stage:
    """Return the stage that repeats the best so many of each method, whole and with the other seed."""

    def stage(rows: Sequence[Row], known: Mapping[str, Trial]) -> Sequence[Trial]:
        found = []
        for method, count in methods.items():
            ranked = ranking(rows, method, True)[:count]
            found += [at_full_length(known[key(row)], OTHER_SEED) for row in ranked]
        return found

    return stage


STAGES: tuple[Stage, ...] = (
    _given(*IVON),
    best_again(ivon=4),
    _given(*SSE),
    _given(*CSGLD),
    _given(*BATCH_ENSEMBLE[:2]),
    _given(*BATCH_ENSEMBLE[2:]),
    _given(*SWAG, *SGD_PLAIN),
    _given(*IVON_PLAIN),
    _given(
        *settings("adamw", ADAMW, SHORT, *_ADAMW_GRID),
        *settings("adamw", replace(ADAMW, augment=False), SHORT, *_ADAMW_GRID),
    ),
    _given(*SGD_GRID),
    best_again(sse=2, csgld=2),
)


def key(row: Row) -> str:
    """Return what names a training in the table."""
    return "|".join(str(row[each]) for each in ("method", "augment", "setting", "seed", "updates"))


def score(row: Row) -> float:
    """Return the NLL that decides: of the ensemble where there is one."""
    return float(row["ensemble_nll"] if row["networks"] > 1 else row["validation_nll"])


def ranking(rows: Sequence[Row], method: str, augment: bool) -> list[Row]:
    """Return a method's trainings that count, the best first: those of most updates, learnt, not lost."""
    own = [row for row in rows if row["method"] == method and row["augment"] == augment]
    longest = max((row["updates"] for row in own), default=0)
    counted = [
        row
        for row in own
        if row["updates"] == longest and row["learnt"] is not False and math.isfinite(score(row))
    ]
    return sorted(counted, key=score)


def chosen(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the best setting of each method by name, with its score."""
    found = {}
    for method, augment in sorted({(row["method"], row["augment"]) for row in rows}):
        ranked = ranking(rows, method, augment)
        # A setting that was run with two seeds counts by their mean.
        scores = {
            row["setting"]: [score(each) for each in ranked if each["setting"] == row["setting"]]
            for row in ranked
        }
        if not scores:
            continue
        most = max(len(each) for each in scores.values())
        means = {name: sum(each) / most for name, each in scores.items() if len(each) == most}
        best = min(means, key=lambda name: means[name])
        found[method if augment else f"{method}, no crops or flips"] = {
            "setting": json.loads(best),
            "validation_nll": round(means[best], 4),
            "seeds": most,
        }
    return found


def draws(recipe: Recipe, point: Collected, protocol: Protocol, count: int = DRAWS) -> list[Tensor]:
    """Return draws of a SWAG's or an IVON's posterior, as flat vectors."""
    layout, net = layout_of(recipe, protocol), resnet_frn(protocol.shape)
    made: lpe.SWAGEnsemble | lpe.IVONEnsemble
    if point.swag is not None:
        statistics = point.swag
        moved = {name: value.cpu() for name, value in statistics.tensors().items()}
        made = lpe.SWAGEnsemble(net, type(statistics).from_tensors(moved), count)
    else:
        assert point.std is not None
        put(net, layout, point.weights.cpu())
        made = lpe.IVONEnsemble(net, layout.views(point.std.cpu()), count)
    return [layout.vector(made.weights(index)) for index in range(count)]


def posterior_columns(recipe: Recipe, updates: int, std: Tensor) -> Row:
    """Return how far IVON's posterior is from h0's remainder and from the prior."""
    median = float(std.median())
    start = forgetting_std(recipe.hess_init, recipe.beta2, recipe.weight_decay, recipe.ess, updates)
    to_start = median / start
    long_enough = updates * (1 - recipe.beta2) >= LENGTHS
    return {
        "median_std": median,
        "std_to_start": to_start,
        "std_to_prior": median * math.sqrt(recipe.ess * recipe.weight_decay),
        "learnt": long_enough and to_start <= LEARNT,
    }


def share_columns(recipe: Recipe, protocol: Protocol) -> Row:
    """Return the shares of the posterior's variance at the end of a cycle's noise."""
    rate, std = learning_rate(recipe, protocol), noise(recipe, protocol)
    last = range(protocol.updates - protocol.updates // recipe.cycles, protocol.updates)
    rates = [rate(step) for step in last if std(step)]
    return {
        name: variance_share(rates, curvature) for name, curvature in zip(SHARES, CURVATURES, strict=True)
    }


class Sweep:
    """A sweep on one device, and its table.

    Args:
        images: the data. protocol: of all trainings, their number of updates aside. device: where.
        gradient: of plain networks. dtype: of the images there.
    """

    def __init__(
        self,
        images: cifar.CifarImages,
        protocol: Protocol,
        device: torch.device,
        gradient: Gradient,
        dtype: torch.dtype,
    ) -> None:
        self.images, self.protocol, self.device, self.gradient = images, protocol, device, gradient
        self.train = cifar.standardised(images.train)
        self.data = ResidentImages.of(self.train, images.train_labels, device, dtype)
        self.module = resnet_frn(protocol.shape).to(device).eval()
        self.rows: list[Row] = []
        self.trials: dict[str, Trial] = {}
        self.speed: float | None = None

    def seconds(self, trials: Sequence[Trial]) -> float | None:
        """Return what trainings side by side will take, by the speed of those before; None: unknown."""
        images = sum(trial.updates * self.protocol.batch * trial.recipe.members for trial in trials)
        return None if self.speed is None else images / self.speed

    def run(self, trials: Sequence[Trial]) -> GroupRun:
        """Train side by side, and add a row each."""
        protocol = replace(self.protocol, updates=trials[0].updates)
        recipes = {f"{place} {trial.method}": trial.recipe for place, trial in enumerate(trials)}
        group = [(name, trial.seed) for name, trial in zip(recipes, trials, strict=True)]
        run = train_group(group, protocol, self.data, self.gradient, self.device, recipes)
        self.speed = run.images_per_second
        for point, trial in zip(group, trials, strict=True):
            self._measure(trial, protocol, run.points[point], run)
        return run

    def _measure(self, trial: Trial, protocol: Protocol, point: Collected, run: GroupRun) -> None:
        recipe = trial.recipe
        row: Row = dict.fromkeys(COLUMNS)
        row |= {"method": trial.method, "augment": recipe.augment, "setting": trial.setting}
        row |= {"seed": trial.seed, "updates": trial.updates, "train_loss": point.loss}
        row |= {"seconds": round(run.seconds, 2), "images_per_second": round(run.images_per_second)}
        row |= {"validation_nll": math.nan, "ensemble_nll": math.nan, "networks": 1}
        self.rows.append(row)
        self.trials[key(row)] = trial
        if point.std is not None:
            row |= posterior_columns(recipe, trial.updates, point.std)
        if recipe.noise:
            row |= share_columns(recipe, protocol)
        held = [point.weights] if point.std is None else [point.weights, point.std]
        if not all(bool(each.isfinite().all()) for each in held):
            row["point"] = "lost"
            return
        parts = networks_of(recipe, point, protocol)
        what, first = next(iter(parts.items()))
        row["point"] = what
        row["validation_nll"], row["validation_err"] = self._scores(trial.seed, first)
        ensemble = parts.get("all kept") or parts.get("all members")
        if point.swag is not None or point.std is not None:
            ensemble = draws(recipe, point, protocol)
        if ensemble is not None:
            row["networks"] = len(ensemble)
            row["ensemble_nll"], row["ensemble_err"] = self._scores(trial.seed, ensemble)

    def _scores(self, seed: int, networks: Sequence[Tensor]) -> tuple[float, float]:
        """Return NLL and error of networks' mean probabilities, of a seed's validation images."""
        indices = cifar.split_indices(seed)[1]
        images = self.train[indices].to(self.device).contiguous(memory_format=torch.channels_last)
        layout, parts = FlatLayout.of(self.module), []
        for vector in networks:
            put(self.module, layout, vector)
            parts.append(predictions(self.module, images))
        labels = self.images.train_labels[indices].to(self.device)
        return Measured(images, labels).scores(mean_of(parts))

    def write(self, out: Path, started: float) -> None:
        """Write the table and the conditions."""
        write_table(pd.DataFrame(self.rows), out / "gpu_sweep.csv", COLUMNS)
        config = {
            "data": self.images.name,
            "data_sha256": self.images.sha256,
            "protocol": self.protocol,
            "draws": DRAWS,
            "recipes": {name: trial.recipe for name, trial in self.trials.items()},
            "chosen": chosen(self.rows),
        }
        write_provenance(
            out / "gpu_sweep.json",
            ["benchmarks/gpu_sweep.py"],
            config,
            str(self.device),
            sorted({row["seed"] for row in self.rows}),
            torch.get_num_threads(),
            started,
        )


def run_stages(
    sweep: Sweep, stages: Sequence[Stage], out: Path, started: float, left: Callable[[], float]
) -> None:
    """Run the stages that end in time, and write after each; say which are not run.

    Args:
        started: ``time.time()`` at the start. left: the seconds that are left.
    """
    for stage in stages:
        trials = list(stage(sweep.rows, sweep.trials))
        if not trials:
            continue
        names = " ".join(sorted({trial.method for trial in trials}))
        needed = sweep.seconds(trials)
        if needed is not None and needed > left():
            print(f"not run: {len(trials)} of {names} ({needed:.0f} s; {left():.0f} s are left)", flush=True)
            continue
        run = sweep.run(trials)
        sweep.write(out, started)
        print(table_text(f"{names}: {run.images_per_second:,.0f} images/s", sweep.rows[-len(trials) :]))
        print(f"{time.time() - started:.0f} s since the start", flush=True)


def table_text(title: str, rows: Sequence[Row]) -> str:
    """Return rows of the table, for the screen."""

    def cell(value: object) -> str:
        if value is None:
            return ""
        return f"{value:.4f}" if isinstance(value, float) else str(value)

    shown = tuple(
        column
        for column in COLUMNS
        if column not in ("point", "networks", "std_to_prior", "learnt", "images_per_second", "seconds")
    )
    return text_table(title, shown, [tuple(cell(row[column]) for column in shown) for row in rows])


@one_line_of_bad_input
def main(arguments: Sequence[str]) -> int:
    """Run the sweep, print what it chose; 2 after one line about bad input."""
    options = parser("gpu_sweep", __doc__)
    options.add_argument("--data", type=Path, help="CIFAR-10 (default: LPE_ASSETS' file of JPEGs)")
    options.add_argument(
        "--minutes", type=float, default=math.inf, help="in which all of it ends (default: no limit)"
    )
    asked = options.parse_args(arguments)
    started = time.time()
    check_minutes(asked.minutes)
    if not torch.cuda.is_available():
        raise lpe.InputError("there is no CUDA device; the sweep trains on one")
    check_writable(asked.out)
    # Networks are measured in whole float32.
    torch.backends.cudnn.allow_tf32 = False
    device, protocol = torch.device("cuda"), PROTOCOL
    images = cifar.load(asked.data or assets_folder() / "cifar10_jpeg_q75.npz")
    sweep = Sweep(images, protocol, device, *fast_gradient(protocol, device))
    print(f"{images.name} after {time.time() - started:.1f} s", flush=True)
    run_stages(
        sweep, STAGES, asked.out, started, lambda: 60 * asked.minutes - (time.time() - started) - MARGIN
    )
    print(json.dumps(chosen(sweep.rows), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(answered(lambda: main(sys.argv[1:]), "interrupted"))
