"""A pre-trained language model through lm-eval: LPE-BSR on whole stories and on pairs of sentences.

    LPE_ASSETS=<folder> python -m benchmarks.language

stories260k (see lpe/substrates/stories.py) on lm-eval tasks from local files, benchmarks/tasks: the
likelihood of the first 80 TinyStories, and the first 300 pairs of two BLiMP paradigms, which of two
sentences is grammatical. FP32, RTN, and LPE-BSR of 1 to 16 members at INT-8 to INT-3. What was measured is
not measured again.

Costs about 8 minutes of one core of an Intel Xeon. It writes benchmarks/results/assets_language.csv, and
beside it the JSON with the milliseconds an example (of a story's own tokens). It prints NLL a token of the
stories (FP32 1.4230 over 59,247 tokens) and as lm-eval has it, which scores the mark of a beginning as well
(1.4344 over 59,327), and error and NLL of each paradigm's choices (FP32's error on
determiner_noun_agreement_1 is .320).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import lpe
from benchmarks.command import conditions, one_line_of_bad_input, parser
from lpe.ensembles.base import Ensemble, text_table
from lpe.evaluation.timing import MemberTimer
from lpe.interruption import answered
from lpe.provenance import write_provenance
from lpe.records import Records
from lpe.substrates import stories
from lpe.substrates.assets import assets_folder
from lpe.writing import check_writable

SCALE = "assets"
RECORD = "assets_language"
BITS = (8, 7, 6, 5, 4, 3)
MEMBERS = 16
SIZES = (1, 2, 4, 8, 16)
"""Sizes that are printed; every size is in the record."""
BATCH = 16
THREADS = 1
SEED = 0

FOLDER = Path(__file__).parent / "tasks"
"""The tasks on the assets, for lm-eval's ``include_path``."""
PARADIGMS = ("determiner_noun_agreement_1", "regular_plural_subject_verb_agreement_1")
TASKS = {"tinystories": stories.STORIES, **{f"blimp_{paradigm}": 300 for paradigm in PARADIGMS}}
"""Number of each task's first examples."""


@dataclass(frozen=True)
class Measurement:
    """A method in a number system, of a size."""

    method: str
    number_system: str
    rounding: str
    size: int

    def make(self, net: torch.nn.Module) -> Ensemble:
        """Make the ensemble."""
        system = lpe.number_system(self.number_system)
        return lpe.LowPrecisionEnsemble(net, system, self.size, SEED, self.rounding or "nearest")


def measurements() -> list[Measurement]:
    """Return the rows of a task's table, in its order."""
    rows = [Measurement("FP32", "fp32", "", 1)]
    for bits in BITS:
        rows.append(Measurement("RTN", f"int{bits}", "nearest", 1))
        rows.append(Measurement("LPE-BSR", f"int{bits}", "bernoulli", MEMBERS))
    return rows


def _substrate(task: str) -> str:
    return f"stories260k, {task}, the first {TASKS[task]}"


def measured_rows(
    task: str, measurement: Measurement, net: Any, tokenizer: Any
) -> tuple[list[dict[str, object]], list[float]]:
    """Return rows of the record, and the milliseconds an example of every size."""
    from lpe.substrates import language

    timer = MemberTimer(measurement.size)
    table = language.evaluate(
        measurement.make(net), tokenizer, task, FOLDER, BATCH, limit=TASKS[task], timer=timer
    )
    named = {
        "scale": SCALE,
        "substrate": _substrate(task),
        "method": measurement.method,
        "number_system": measurement.number_system,
        "rounding": measurement.rounding,
        "seed": SEED,
    }
    metrics = [name for name in table.columns if name not in ("task", "size", "memory_bits")]
    rows: list[dict[str, object]] = [
        {
            **named,
            "size": row["size"],
            "metric": metric,
            "value": row[metric],
            "memory_bits": row["memory_bits"],
        }
        for row in table.to_dict("records")
        for metric in metrics
    ]
    return rows, timer.milliseconds_per_example(TASKS[task])


def run(assets: Path, out: Path) -> None:
    """Measure what the record lacks; write it and its times after every row of a table."""
    from lpe.substrates import language

    started = time.time()
    records = Records(out / f"{RECORD}.csv")
    provenance = out / f"{RECORD}.json"
    times: dict[str, dict[str, list[float]]] = {}
    if provenance.exists():
        times = json.loads(provenance.read_text(encoding="utf-8"))["config"]["milliseconds_per_example"]
    net, tokenizer = language.load_model(assets / "stories260k")
    for task in TASKS:
        for row in measurements():
            keys = {"method": row.method, "number_system": row.number_system, "size": row.size}
            if records.has(substrate=_substrate(task), **keys):
                continue
            rows, milliseconds = measured_rows(task, row, net, tokenizer)
            name = f"{row.method} {row.number_system}"
            times.setdefault(task, {})[name] = [round(each, 3) for each in milliseconds]
            write_provenance(
                provenance,
                ["benchmarks/language.py"],
                {"tasks": TASKS, "batch": BATCH, "milliseconds_per_example": times},
                "cpu",
                [SEED],
                THREADS,
                started,
            )
            # After its times: a row that is there is not measured again.
            records.add(rows)


def table_text(task: str, out: Path) -> str:
    """Return the task's table, from the record and its times."""
    records = Records(out / f"{RECORD}.csv")
    told = json.loads((out / f"{RECORD}.json").read_text(encoding="utf-8"))
    times = told["config"]["milliseconds_per_example"][task]
    columns = {"nll": "NLL", "err": "error", "ece": "ECE", "ambiguity": "ambiguity"}
    if task == "tinystories":
        columns = {
            "nll": "NLL a token",
            "average_loss": "of a member",
            "lm_eval_nll": "NLL by lm-eval",
            "word_perplexity": "word perplexity by lm-eval",
        }
    rows = [cells for row in measurements() for cells in _cells(task, row, records, times, list(columns))]
    header = ("method", "numbers", *columns.values(), "ms an example")
    return text_table(_substrate(task), header, rows)


def _cells(
    task: str, row: Measurement, records: Records, times: dict[str, list[float]], metrics: Sequence[str]
) -> Iterator[tuple[str, ...]]:
    for size in SIZES if row.size > 1 else (1,):
        found = records.select(
            substrate=_substrate(task), method=row.method, number_system=row.number_system, size=size
        ).set_index("metric")["value"]
        yield (
            f"{row.method} ({size})" if row.size > 1 else row.method,
            row.number_system.upper().replace("INT", "INT-"),
            *(f"{found[metric]:.4f}" for metric in metrics),
            f"{times[f'{row.method} {row.number_system}'][size - 1]:.1f}",
        )


@one_line_of_bad_input
def main(arguments: Sequence[str]) -> int:
    """Measure, then print the tables; 2 after one line about bad input."""
    asked = parser("language", __doc__).parse_args(arguments)
    torch.set_num_threads(THREADS)
    assets = assets_folder()
    check_writable(asked.out)
    run(assets, asked.out)
    for task in TASKS:
        print(table_text(task, asked.out), end="\n\n")
    print(conditions(asked.out / f"{RECORD}.json"))
    return 0


if __name__ == "__main__":
    sys.exit(answered(lambda: main(sys.argv[1:]), "interrupted"))
