"""``lpe score``: metrics out of files of predictions, of any size and mixture, without a model."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path

from lpe.cli.options import Commands, add_command, options_of
from lpe.cli.tables import COLUMNS, decimals, megabytes, shown_sizes
from lpe.ensembles.base import text_table
from lpe.errors import InputError
from lpe.evaluation.predictions import CHOICES, CLASSES, TOKENS, checked_predictions
from lpe.evaluation.score import score as scores
from lpe.records import write_table
from lpe.writing import check_writable

SCORE = """\
Metrics of every ensemble size out of predictions that lpe evaluate --predictions (or lpe.evaluate) wrote.
Several files are one mixture: the members of the first, then those of the second.

  lpe score vit.safetensors
  lpe score vit.safetensors --metrics all --sizes 1,5,20
  lpe score vit.safetensors resnet.safetensors --inputs any --metrics nll,aurc --csv mixture.csv

All metrics are nll, err, ece, average_loss, ambiguity, ensemble_loss, brier, and of the confidence
signed_ece, adaptive_ece, aurc, cov_at_5_risk, risk_at_80_cov, auroc_errors, and disagreement; calibrated_nll
where it is named. Of a text's tokens there are nll, average_loss and perplexity.
"""

HEADINGS = {**COLUMNS, "average_loss": "average loss", "ensemble_loss": "ensemble loss", "brier": "Brier"}

EXAMPLES = {CLASSES: "examples", CHOICES: "questions", TOKENS: "tokens"}
"""What the rows of a file are, by its kind."""


@dataclass(frozen=True)
class ScoreOptions:
    """Options of what is scored.

    Args:
        files: of predictions. metrics: with commas between, or "all"; None: those of ``lpe evaluate``.
        sizes: of prefixes, with commas between; None: all, of which the table has 1, 2, 5, 10 ….
        inputs: "same", or "any": the files' networks see the same examples in other ways. csv: a file.
    """

    files: list[str]
    metrics: str | None = None
    sizes: str | None = None
    inputs: str = "same"
    csv: Path | None = None

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
        if self.sizes is None:
            return None
        given = [each for each in self.sizes.split(",") if each]
        if not given or not all(re.fullmatch("[0-9]{1,18}", each.strip()) for each in given):
            raise InputError(
                f"--sizes takes integers with commas between, such as 1,5,20, not {self.sizes!r}"
            )
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
        help="(same) any: the networks see the same examples in other ways",
    )
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
    sizes = options.asked_sizes()
    files = [checked_predictions(each) for each in options.files]
    table = scores(options.files, options.asked_metrics(), sizes, options.inputs)
    members = sum(each.size for each in files)
    rows = table.to_dict("records")
    metrics = [name for name in table.columns if name not in ("size", "memory_bits")]
    shown = shown_sizes(members) if sizes is None else sizes
    cells = [
        (str(row["size"]), *(decimals(row[name]) for name in metrics), megabytes(row["memory_bits"]))
        for row in rows
        if row["size"] in shown
    ]
    of_mixture = "" if len(files) == 1 else f" of {len(files)} files"
    kind = str(files[0].about["kind"])
    title = f"{members} members{of_mixture}, {len(files[0].targets):,} {EXAMPLES[kind]}"
    printed = text_table(title, ("size", *(HEADINGS.get(name, name) for name in metrics), "MB"), cells)
    if options.csv is None:
        return printed
    try:
        write_table(table, options.csv, list(table.columns))
    except OSError as error:
        raise InputError(f"cannot write {options.csv} ({error.strerror})") from None
    return f"{printed}\nwrote {options.csv}"
