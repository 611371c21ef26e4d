"""LPE-BSR on real pre-trained weights and real data: a language model, and two CIFAR-10 ResNets.

    LPE_ASSETS=<folder> python -m benchmarks.assets
    LPE_ASSETS=<folder> python -m benchmarks.assets --only stories

Costs about 9 minutes (stories) and 130 minutes (resnets) of one core of an AMD EPYC. A measured row is not
measured again, so a run that was stopped goes on. It prints, from benchmarks/results/assets_*.csv, NLL a
token of the FP32 model, RTN and 16 LPE-BSR members at INT-8 to INT-3 on 80 TinyStories (FP32 1.394; INT-5 RTN
1.424, LPE-BSR 1.404), and NLL, error, ECE and ambiguity of the FP32 network, RTN and 16 LPE-BSR members at
INT-8 to INT-3 on CIFAR-10's 10,000 test images, stored as JPEG of quality 75 (ResNet-20: NLL FP32 .879, INT-4
RTN 1.069, 10 LPE-BSR members .608); and the milliseconds per example, of every size in assets_*_times.csv.

The ResNets have batch norm, and their weights were trained on images that were no JPEGs. Rows are of the
statistics as they are, and of statistics re-estimated on JPEG training images: relative to the FP32 network,
which keeps its own, or absolute, which moves the FP32 network to the JPEGs too. The FP32 network's accuracy
on the JPEGs of its own training images says how large the shift is.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

import lpe
from benchmarks.command import conditions, one_line_of_bad_input, parser
from lpe.ensembles.base import Ensemble, text_table
from lpe.ensembles.batch_norm import FORMS
from lpe.evaluation.metrics import METRICS
from lpe.evaluation.predict import evaluate_temperature_scaled
from lpe.evaluation.timing import MemberTimer
from lpe.interruption import answered
from lpe.provenance import write_provenance
from lpe.records import Records, read_table, write_table
from lpe.substrates import cifar_resnet, stories
from lpe.substrates.assets import assets_folder
from lpe.writing import check_writable

SCALE = "assets"
SCALED = "FP32 + temperature"
ON_TRAINING = "FP32, on training images"
TIMES = ("substrate", "method", "number_system", "size", "ms_per_example")
REFRESHED = 1000
"""Training images on which statistics are re-estimated, evenly spread."""
TRAINING = 10_000
"""Training images on which the FP32 network is measured, evenly spread."""
IMAGES = (REFRESHED, TRAINING)
THREADS = 1
SEED = 0


@dataclass(frozen=True)
class Substrate:
    """A pre-trained model with its data, and what is measured on it.

    Args:
        name: as the record has it. load: model and batches from the assets' folder.
        bits: of the integer number systems. members: size of the LPE-BSR ensembles.
        columns: metric → heading of the printed table.
        training: training batches from the assets' folder, so many images; None where there is no batch norm.
        refreshed: the bits whose statistics are re-estimated too, with ``few`` members.
    """

    name: str
    load: Callable[[Path], tuple[nn.Module, list[Any]]]
    bits: tuple[int, ...]
    members: int
    columns: tuple[tuple[str, str], ...]
    training: Callable[[Path, int], list[Any]] | None = None
    refreshed: tuple[int, ...] = ()
    few: int = 4


@dataclass(frozen=True)
class Measurement:
    """A row of the table: a method in a number system, of a size.

    Args:
        make: (network, batches to re-estimate statistics on) → the ensemble.
        refresh: how statistics are re-estimated, if they are. on_training: measured on training images.
    """

    method: str
    number_system: str
    rounding: str
    size: int
    make: Callable[[nn.Module, list[Any]], Ensemble]
    refresh: str = ""
    on_training: bool = False


def _load_stories(assets: Path) -> tuple[nn.Module, list[Any]]:
    return stories.load_stories260k(assets), stories.token_batches(stories.story_tokens(assets))


def _resnet(depth: int) -> Substrate:
    def load(assets: Path) -> tuple[nn.Module, list[Any]]:
        return cifar_resnet.load_resnet(assets, depth), cifar_resnet.test_batches(assets)

    columns = (("nll", "NLL"), ("err", "error"), ("ece", "ECE"), ("ambiguity", "ambiguity"))
    return Substrate(
        f"ResNet-{depth}, {cifar_resnet.DATASET}",
        load,
        (8, 7, 6, 5, 4, 3),
        16,
        columns,
        cifar_resnet.training_batches,
        (4, 3) if depth == 20 else (4,),
    )


SUBSTRATES: dict[str, tuple[Substrate, ...]] = {
    "stories": (
        Substrate(
            f"stories260k, the first {stories.STORIES} TinyStories cut to {stories.TOKENS} tokens",
            _load_stories,
            (8, 7, 6, 5, 4, 3),
            16,
            (("nll", "NLL a token"), ("average_loss", "of a member"), ("ambiguity", "ambiguity")),
        ),
    ),
    "resnets": (_resnet(20), _resnet(32)),
}


def measurements(substrate: Substrate) -> list[Measurement]:
    """Return the rows of a substrate's table, in its order."""

    def single(form: str) -> Callable[[nn.Module, list[Any]], Ensemble]:
        if not form:
            return lambda net, _: lpe.DeepEnsemble([net])
        return lambda net, batches: lpe.LowPrecisionEnsemble(
            net, lpe.FullPrecision(), 1, batches=batches, refresh=form
        )

    def rounded(bits: int, size: int, rounding: str, form: str) -> Measurement:
        def make(net: nn.Module, batches: list[Any]) -> Ensemble:
            settings: dict[str, Any] = {"batches": batches, "refresh": form} if form else {}
            return lpe.LowPrecisionEnsemble(net, lpe.Int(bits), size, SEED, rounding, **settings)

        method = "RTN" if rounding == "nearest" else "LPE-BSR"
        return Measurement(method + _named(form), f"int{bits}", rounding, size, make, form)

    rows = [Measurement(name, "fp32", "", 1, single("")) for name in ("FP32", SCALED)]
    for bits in substrate.bits:
        rows.append(rounded(bits, 1, "nearest", ""))
        rows.append(rounded(bits, substrate.members, "bernoulli", ""))
    if substrate.training is None:
        return rows
    rows.append(Measurement(ON_TRAINING, "fp32", "", 1, single(""), on_training=True))
    for name in ("FP32", SCALED):  # relative to itself it is as it was
        rows.append(Measurement(name + _named("absolute"), "fp32", "", 1, single("absolute"), "absolute"))
    for bits in substrate.refreshed:
        for form in FORMS:
            rows.append(rounded(bits, 1, "nearest", form))
            rows.append(rounded(bits, substrate.few, "bernoulli", form))
    return rows


def _named(form: str) -> str:
    """Return a method's name with its statistics re-estimated."""
    return f", re-estimated ({form})" if form else ""


def measured_rows(
    substrate: Substrate,
    measurement: Measurement,
    net: nn.Module,
    batches: Sequence[Any],
    training: list[Any],
    timer: MemberTimer,
) -> Iterator[dict[str, object]]:
    """Yield rows of the record: every metric of every prefix size; the timer takes the members' time.

    Args:
        training: batches to re-estimate statistics on.
    """
    ensemble = measurement.make(net, training)
    if measurement.method.startswith(SCALED):
        values = evaluate_temperature_scaled(ensemble, batches)
        table = pd.DataFrame([{"size": 1, "memory_bits": ensemble.memory_bits(), **values}])
    else:
        table = lpe.evaluate(ensemble, batches, timer=timer)
    for row in table.to_dict("records"):
        for metric in METRICS:
            if metric in row:
                yield {
                    "scale": SCALE,
                    "substrate": substrate.name,
                    "method": measurement.method,
                    "number_system": measurement.number_system,
                    "rounding": measurement.rounding,
                    "size": row["size"],
                    "seed": SEED if measurement.rounding == "bernoulli" else 0,
                    "metric": metric,
                    "value": row[metric],
                    "memory_bits": row["memory_bits"],
                }


def times_file(table: str, out: Path) -> Path:
    """Return the file of milliseconds per example, which lies beside the record: no timing is in it."""
    return out / f"assets_{table}_times.csv"


def _add_times(path: Path, substrate: Substrate, measurement: Measurement, timer: MemberTimer) -> None:
    rows: list[dict[Any, Any]] = read_table(path).to_dict("records") if path.exists() else []
    identity = (substrate.name, measurement.method, measurement.number_system)
    kept = [row for row in rows if tuple(row[column] for column in TIMES[:3]) != identity]
    milliseconds = timer.milliseconds_per_example()
    added = [
        dict(zip(TIMES, (*identity, n, float(f"{value:.4g}")), strict=True))
        for n, value in enumerate(milliseconds, start=1)
    ]
    write_table([*kept, *added], path, TIMES, grows=True)


def run(table: str, assets: Path, out: Path) -> None:
    """Measure what the record ``assets_<table>.csv`` lacks; write it after every row of the table."""
    started = time.time()
    records = Records(out / f"assets_{table}.csv")

    def there(substrate: Substrate, row: Measurement) -> bool:
        return records.has(
            substrate=substrate.name, method=row.method, number_system=row.number_system, size=row.size
        )

    todo = [
        (substrate, [row for row in measurements(substrate) if not there(substrate, row)])
        for substrate in SUBSTRATES[table]
    ]
    passes = sum(row.size for _, rows in todo for row in rows)
    # Beside the members', the passes over the training images, the unrounded network's too.
    refreshing = sum(row.size + (row.refresh == FORMS[0]) for _, rows in todo for row in rows if row.refresh)
    if not passes:
        return
    bar_format = "{desc} {percentage:3.0f} % |{bar}| {elapsed}, {remaining} left{postfix}"
    share = REFRESHED / cifar_resnet.TEST_IMAGES
    with tqdm(
        total=passes + share * refreshing, desc=table, bar_format=bar_format, mininterval=1, file=sys.stderr
    ) as bar:
        for substrate, rows in todo:
            if not rows:
                continue
            net, batches = substrate.load(assets)
            training, trained = (
                ([], []) if substrate.training is None else map(partial(substrate.training, assets), IMAGES)
            )
            # Members are structural copies, and a copy keeps the hook: it sees every batch of every member.
            hook = net.register_forward_hook(_advancing(bar, 1 / len(batches)))
            for row in rows:
                bar.set_postfix_str(f"{substrate.name.partition(',')[0]} {row.method} {row.number_system}")
                timer = MemberTimer(row.size)
                chosen = trained if row.on_training else batches
                measured = list(measured_rows(substrate, row, net, chosen, training, timer))
                # A member takes as long whatever its statistics are.
                if timer.examples and not row.refresh and not row.on_training:
                    _add_times(times_file(table, out), substrate, row, timer)
                records.add(measured)
            hook.remove()
    write_provenance(
        out / f"assets_{table}.json",
        ["benchmarks/assets.py", "--only", table],
        {
            "substrates": [
                {
                    "name": each.name,
                    "bits": each.bits,
                    "members": each.members,
                    **(
                        {}
                        if each.training is None
                        else {
                            "re_estimated_bits": each.refreshed,
                            "re_estimated_members": each.few,
                            "re_estimated_on_training_images": REFRESHED,
                            "measured_training_images": TRAINING,
                        }
                    ),
                }
                for each in SUBSTRATES[table]
            ],
            "passes_measured_by_this_command": passes,
        },
        "cpu",
        [SEED],
        THREADS,
        started,
    )


def _advancing(bar: tqdm, share: float) -> Callable[..., None]:
    def hook(*_: object) -> None:
        bar.update(share)

    return hook


def table_text(substrate: Substrate, records: Records, times: Path) -> str:
    """Return the substrate's table, from the record and the times beside it."""
    rows = []
    taken: dict[tuple[Any, ...], float] = {}
    if times.exists():
        taken = {row[:-1]: row[-1] for row in read_table(times).itertuples(index=False, name=None)}
    for row in measurements(substrate):
        found = records.select(
            substrate=substrate.name, method=row.method, number_system=row.number_system, size=row.size
        ).set_index("metric")["value"]
        cells = [f"{found[metric]:.4f}" if metric in found else "" for metric, _ in substrate.columns]
        milliseconds = taken.get((substrate.name, row.method, row.number_system, row.size))
        cells.append("" if milliseconds is None else f"{milliseconds:.3g}")
        size = f" ({row.size})" if row.method.startswith("LPE-BSR") else ""
        rows.append((row.method + size, row.number_system.upper().replace("INT", "INT-"), *cells))
    header = ("method", "numbers", *(heading for _, heading in substrate.columns), "ms per example")
    return text_table(substrate.name, header, rows)


@one_line_of_bad_input
def main(arguments: Sequence[str]) -> int:
    """Measure, then print the tables; 2 after one line about bad input."""
    options = parser("assets", __doc__)
    options.add_argument("--only", choices=tuple(SUBSTRATES), help="one of the tables (default: all)")
    asked = options.parse_args(arguments)
    torch.set_num_threads(THREADS)
    assets = assets_folder()
    check_writable(asked.out)
    for table in [asked.only] if asked.only else SUBSTRATES:
        run(table, assets, asked.out)
        records = Records(asked.out / f"assets_{table}.csv")
        for substrate in SUBSTRATES[table]:
            print(table_text(substrate, records, times_file(table, asked.out)), end="\n\n")
        print(conditions(asked.out / f"assets_{table}.json"), end="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(answered(lambda: main(sys.argv[1:]), "interrupted"))
