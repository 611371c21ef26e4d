"""``lpe score``: metrics out of files of predictions, of any size and mixture, without a model."""

from __future__ import annotations

import argparse
import math
import re
from dataclasses import dataclass
from pathlib import Path

from lpe.cli.options import Commands, add_command, options_of
from lpe.cli.tables import COLUMNS, decimals, megabytes, shown_sizes
from lpe.command_line import number
from lpe.ensembles.base import text_table
from lpe.errors import InputError
from lpe.evaluation.predictions import CHOICES, CLASSES, TOKENS, checked_predictions
from lpe.evaluation.score import FIT, cascaded
from lpe.evaluation.score import score as scores
from lpe.records import write_table
from lpe.writing import check_writable

SCORE = """\
Metrics of every ensemble size out of predictions that lpe evaluate --predictions (or lpe.evaluate) wrote.
Several files are one mixture: the members of the first, then those of the second.

  lpe score vit.safetensors
  lpe score vit.safetensors --metrics all --sizes 1,5,20
  lpe score vit.safetensors resnet.safetensors --inputs any --metrics nll,aurc --csv mixture.csv
  lpe score vit.safetensors --temperature fit
  lpe score vit.safetensors --cascade 0,0.8 --stages 1,5,20 --first fp32.safetensors

All metrics are nll, err, ece, average_loss, ambiguity, ensemble_loss, brier, and of the confidence
signed_ece, adaptive_ece, aurc, cov_at_5_risk, risk_at_80_cov, auroc_errors, and disagreement; calibrated_nll
where it is named. Of a text's tokens there are nll, average_loss and perplexity.

--temperature divides the logs of the mean's probabilities: by a number, or, with fit, each fold of the
examples by the temperature of the others; with --validation FILE by that of other examples, fitted anew at
every size. What is of single members (average_loss, ambiguity, ensemble_loss, disagreement) has no
temperature and is left out.

--cascade LOW,HIGH: an example goes on to the next stage where its top probability is from LOW to HIGH. A row
a stage, with the networks that are run an example; --first FILE is what predicts in the first stage instead
of member 0, such as the unrounded network.
"""

HEADINGS = {**COLUMNS, "average_loss": "average loss", "ensemble_loss": "ensemble loss", "brier": "Brier"}
HEADINGS |= {"members_per_example": "networks an example"}

EXAMPLES = {CLASSES: "examples", CHOICES: "questions", TOKENS: "tokens"}
"""What the rows of a file are, by its kind."""


@dataclass(frozen=True)
class ScoreOptions:
    """Options of what is scored.

    Args:
        files: of predictions. metrics: with commas between, or "all"; None: those of ``lpe evaluate``.
        sizes: of prefixes, with commas between; None: all, of which the table has 1, 2, 5, 10 ….
        inputs: "same", or "any": the files' networks see the same examples in other ways. csv: a file.
        temperature: a number or "fit"; None: 1. validation: files of the same members on the examples that
            a temperature is fitted on.
        cascade: LOW,HIGH. stages: with commas between; None: 1 and all. first: a file of one network.
    """

    files: list[str]
    metrics: str | None = None
    sizes: str | None = None
    inputs: str = "same"
    csv: Path | None = None
    temperature: str | None = None
    validation: list[str] | None = None
    cascade: str | None = None
    stages: str | None = None
    first: str | None = None

    def check(self) -> None:
        """Raise InputError for options of which one needs or excludes the other."""
        for option in ("stages", "first"):
            if getattr(self, option) is not None and self.cascade is None:
                raise InputError(f"--{option} is of a cascade; give --cascade LOW,HIGH as well")
        if self.validation is not None and self.temperature not in (None, FIT):
            raise InputError(
                f"--validation fits the temperature, and --temperature {self.temperature} gives it; leave "
                "one out"
            )
        if self.cascade is not None:
            for option in ("sizes", "temperature", "validation", "metrics"):
                if getattr(self, option) is not None:
                    raise InputError(f"--{option} is not for a cascade; leave it out, or --cascade")

    def asked_temperature(self) -> float | str | None:
        """Return the temperature: a number, FIT or None.

        Raises:
            InputError: what is neither.
        """
        if self.validation is not None or self.temperature in (None, FIT):
            return FIT if self.validation is not None else self.temperature
        assert self.temperature is not None
        try:
            value = number(self.temperature)
        except argparse.ArgumentTypeError:
            value = 0.0
        if not 0 < value < math.inf:
            raise InputError(f"--temperature takes a positive number or {FIT}, not {self.temperature!r}")
        return value

    def asked_window(self) -> tuple[float, float]:
        """Return the cascade's window.

        Raises:
            InputError: what is no pair of numbers.
        """
        assert self.cascade is not None
        try:
            low, high = (number(each) for each in self.cascade.split(","))
        except (ValueError, argparse.ArgumentTypeError):
            raise InputError(
                f"--cascade takes two top probabilities, such as 0,0.8, not {self.cascade!r}"
            ) from None
        return low, high

    def asked_metrics(self) -> list[str] | str | None:
        """Return what ``metrics`` names."""
        if self.metrics is None or self.metrics == "all":
            return self.metrics
        return [each for each in self.metrics.split(",") if each]

    def asked_sizes(self) -> list[int] | None:
        """Return the sizes that are given.

        Raises:
            InputError: what is no integer.
        """
        return None if self.sizes is None else integers("sizes", self.sizes)


def integers(option: str, text: str) -> list[int]:
    """Return the integers of an option, with commas between.

    Raises:
        InputError: there are none, or others.
    """
    given = [each for each in text.split(",") if each]
    if not given or not all(re.fullmatch("[0-9]{1,18}", each.strip()) for each in given):
        raise InputError(f"--{option} takes integers with commas between, such as 1,5,20, not {text!r}")
    return [int(each) for each in given]


def add_score(commands: Commands) -> None:
    """Add the subcommand and its options."""
    parser = add_command(commands, "score", SCORE)
    parser.add_argument("files", metavar="FILE", nargs="+", help="of predictions; several are one mixture")
    parser.add_argument("--metrics", metavar="A,B", help="names, or all (those of lpe evaluate)")
    parser.add_argument("--sizes", metavar="N,N", help="(all; the table has 1, 2, 5, 10 … of them)")
    parser.add_argument(
        "--inputs",
        choices=("same", "any"),
        help="(same), or any: files of networks that see the same examples in other ways",
    )
    parser.add_argument("--temperature", metavar="T", help="a number, or fit: cross-fitted (1)")
    parser.add_argument(
        "--validation",
        metavar="FILE",
        nargs="+",
        help="of the same members, to fit a temperature on",
    )
    cascade = parser.add_argument_group("cascade")
    cascade.add_argument(
        "--cascade", metavar="LOW,HIGH", help="the top probabilities with which an example goes on"
    )
    cascade.add_argument("--stages", metavar="N,N", help="members of each stage (1 and all)")
    cascade.add_argument("--first", metavar="FILE", help="of one network, for the first stage (member 0)")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="every size")


def score(asked: argparse.Namespace) -> str:
    """Return the table of what was asked for; write it whole where that was asked.

    Raises:
        InputError: as :func:`lpe.score`; sizes that are no integers; a file that cannot be written.
    """
    options = options_of(ScoreOptions, asked)
    if options.csv is not None:
        if options.csv.is_dir():
            raise InputError(f"{options.csv} is a folder; give a file to write to")
        check_writable(options.csv.parent)
    options.check()
    sizes, temperature = options.asked_sizes(), options.asked_temperature()
    window = None if options.cascade is None else options.asked_window()
    stages = None if options.stages is None else integers("stages", options.stages)
    files = [
        checked_predictions(each)
        for each in (*options.files, *(options.validation or ()), *([options.first] if options.first else ()))
    ][: len(options.files)]
    if window is None:
        table = scores(
            options.files, options.asked_metrics(), sizes, options.inputs, temperature, options.validation
        )
    else:
        table = cascaded(options.files, window, stages, options.first, options.inputs)
    members = sum(each.size for each in files)
    rows = table.to_dict("records")
    metrics = [name for name in table.columns if name not in ("size", "memory_bits")]
    shown = table["size"].tolist() if sizes is not None or window is not None else shown_sizes(members)
    cells = [
        (str(row["size"]), *(decimals(row[name]) for name in metrics), megabytes(row["memory_bits"]))
        for row in rows
        if row["size"] in shown
    ]
    of_mixture = "" if len(files) == 1 else f" of {len(files)} files"
    kind = str(files[0].about["kind"])
    if temperature is not None:
        title_end = ", temperature " + (FIT if temperature == FIT else f"{temperature:g}")
    else:
        title_end = "" if window is None else f", cascade of {window[0]:g} to {window[1]:g}"
    title = f"{members} members{of_mixture}, {len(files[0].targets):,} {EXAMPLES[kind]}{title_end}"
    printed = text_table(title, ("size", *(HEADINGS.get(name, name) for name in metrics), "MB"), cells)
    if options.csv is None:
        return printed
    try:
        write_table(table, options.csv, list(table.columns))
    except OSError as error:
        raise InputError(f"cannot write {options.csv} ({error.strerror})") from None
    return f"{printed}\nwrote {options.csv}"
