"""The cost pictures of pre-trained models: what ``reproduce/cost.py`` shows, on real weights and data.

    LPE_ASSETS=<folder> python reproduce/cost.py --assets [--only NAME] [--time]

Costs, on one core of an AMD EPYC and with the times of each, the minutes that stand below. It prints what
``reproduce/cost.py`` prints, once a picture, and writes into figures/assets/.

    resnets               cost               20    ResNet-20 and ResNet-32 on CIFAR-10's test images
    resnets-relative      cost_relative      18    these, batch-norm statistics re-estimated relative to FP32
    resnets-re-estimated  cost_re_estimated  22    these, batch-norm statistics re-estimated for all
    stories               cost_stories       14    stories260k on contexts of TinyStories, the next token

There are no training seeds. The scored examples are dealt out in turn to blocks, and a row of the record is
of one block, which is named in its column "point". Two of the pictures have the times of the first one.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

import lpe
from lpe.command_line import Parser, complain
from lpe.ensembles.base import Ensemble
from lpe.errors import InputError
from lpe.mirror import open_store
from lpe.provenance import REPOSITORY, write_provenance
from lpe.records import COLUMNS, write_table
from lpe.store import Store
from lpe.substrates.assets import assets_folder
from lpe.writing import check_writable
from reproduce.command import add_accept_edited, add_width, check_accepting, said_of_edited
from reproduce.draw import page, panels
from reproduce.draw.cost_picture import draw_picture
from reproduce.draw.cost_verdicts import Picture
from reproduce.scales import assets
from reproduce.scales.assets import SUBJECTS, Examples, Model, Subject
from reproduce.study import cost_times
from reproduce.study.cost_measures import (
    CASCADED,
    Known,
    Prediction,
    low_precision_predictions,
    rows_of_predictions,
    single_predictions,
)
from reproduce.study.intact import check, keep_accepted, vouched_by
from reproduce.study.keys import data_hash, determinants

SCALE = "assets"
BITS = (5, 4)
SIZE, FEW = 20, 5
"""Most members, where a subject has no fewer, and members of the smaller cascade."""
SEED = 0
BLOCKS = 20
BATCH = 100
TIMED = 100
"""Examples of the timed batch, evenly spread over the scored ones."""


def size_of(subject: Subject) -> int:
    """Return the number of members of a subject's largest ensembles."""
    return min(SIZE, subject.size)


def picture(subject: Subject) -> Picture:
    """Return what the picture of a subject is of."""
    return Picture(
        subject.own.substrate,
        None if subject.larger is None else subject.larger.substrate,
        BITS,
        size_of(subject),
        tuple(model.name for model in subject.models),
        ("point", f"{BLOCKS} blocks of {subject.units}"),
        subject.example,
        subject.stem,
    )


@dataclass(frozen=True)
class Measuring:
    """A subject with its examples and networks; the store keeps what is known of ensembles on them.

    Args:
        nets: of ``subject.models``, in their order. training: see ``Subject.training``.
    """

    subject: Subject
    examples: Examples
    nets: Sequence[nn.Module]
    store: Store
    bar: tqdm
    training: list[Any] | None = None

    @property
    def weights(self) -> list[Tensor]:
        """All tensors of the networks."""
        return [tensor for net in self.nets for tensor in net.state_dict().values()]

    def known(self, ensemble: Ensemble, model: Model) -> Known:
        """Return an ensemble of networks of a model with its members' log-probabilities."""
        examples = self.examples
        config: dict[str, object] = {
            "phase": "log-probabilities of the cost picture",
            **model.config,
            self.subject.examples: len(examples.targets),
            "members": len(ensemble),
            **determinants(
                Measuring,
                lpe.LowPrecisionEnsemble,
                assets,
                data=data_hash(examples.inputs, examples.targets, *self.weights),
                threads=torch.get_num_threads(),
            ),
        }
        if isinstance(ensemble, lpe.LowPrecisionEnsemble):
            config |= {
                "number_system": ensemble.system.name,
                "rounding": ensemble.rounding,
                "seed": ensemble.seed,
            }

        def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
            batches = list(zip(examples.inputs.split(BATCH), examples.targets.split(BATCH), strict=True))
            return {"log_probs": lpe.member_log_probs(ensemble, batches)[0]}, {}

        log_probs = self.store.get_or_make(config, make).tensors["log_probs"]
        self.bar.update(len(ensemble))
        validating, scored = examples.validating, examples.scored
        return Known(
            ensemble,
            log_probs[:, validating],
            examples.targets[validating],
            log_probs[:, scored],
            examples.targets[scored],
        )

    def known_own(self, ensemble: Ensemble) -> Known:
        """Return an ensemble of the subject's own model with its members' log-probabilities."""
        return self.known(ensemble, self.subject.own)


def predictions(measuring: Measuring) -> Iterator[tuple[str, Iterator[Prediction]]]:
    """Yield what is predicted on the scored examples, by substrate."""
    models, nets, size = measuring.subject.models, measuring.nets, size_of(measuring.subject)
    own, *larger = (
        measuring.known(lpe.DeepEnsemble([net]), model) for net, model in zip(nets, models, strict=True)
    )
    yield models[0].substrate, single_predictions(own)
    for model, single in zip(models[1:], larger, strict=True):
        yield model.substrate, iter([next(single_predictions(single))])
    for bits in BITS:
        drawn = low_precision_predictions(
            nets[0], bits, size, FEW, SEED, own, measuring.known_own, measuring.training
        )
        yield models[0].substrate, drawn


def measure(measuring: Measuring) -> list[dict[str, object]]:
    """Return rows of the record.

    Raises:
        InputError: what is scored makes no blocks of whole images or stories.
    """
    units, scored = measuring.examples.units, measuring.examples.scored
    if units % BLOCKS:
        raise InputError(f"{units} {measuring.subject.units} are scored, which make no {BLOCKS} equal blocks")
    targets = measuring.examples.targets[scored]
    rows: list[dict[str, object]] = []
    for name, found in predictions(measuring):
        for (method, system, rounding), of_key in rows_of_predictions([found], targets, BLOCKS).items():
            named = {"scale": SCALE, "substrate": name, "method": method, "seed": SEED}
            rows += [{**named, "number_system": system, "rounding": rounding, **row} for row in of_key]
    return rows


def measure_times(measuring: Measuring, name: str, out: Path) -> None:
    """Write the times and their conditions.

    Args:
        name: the subject's, for --only.
    """
    started = time.time()
    subject, nets = measuring.subject, measuring.nets
    scored = measuring.examples.inputs[measuring.examples.scored]
    inputs = scored[:: len(scored) // TIMED][:TIMED]
    own = measuring.known_own(lpe.DeepEnsemble([nets[0]]))
    members = []
    for bits in BITS:
        drawn, nearest = (
            measuring.known_own(lpe.LowPrecisionEnsemble(nets[0], lpe.Int(bits), size, SEED, rounding))
            for size, rounding in ((size_of(subject), CASCADED), (1, "nearest"))
        )
        members.append((drawn, nearest))
    named = [(model.substrate, net) for model, net in zip(subject.models, nets, strict=True)]
    larger = named[1] if len(named) > 1 else None
    items = cost_times.timed_methods(named[0], larger, None, BITS, size_of(subject), inputs, SEED)
    items += cost_times.timed_cascades(named[0][0], own, None, members, FEW, inputs, SEED, all_targets=True)
    rows = cost_times.rows_of_times(items, len(inputs), measuring.bar)
    command = ["reproduce/cost.py", "--assets", "--only", name, "--time"]
    cost_times.write(rows, out, command, len(inputs), [SEED], started, subject.stem)


def measure_subject(name: str, assets: Path, out: Path, arguments: Sequence[str], again: bool) -> None:
    """Write a subject's record, its provenance, and its times where there are none, or ``again``."""
    started, subject = time.time(), SUBJECTS[name]
    nets = [model.load(assets) for model in subject.models]
    training = None if subject.training is None else subject.training(assets)
    total = len(nets) + len(BITS) * (1 + 2 * size_of(subject))
    with tqdm(total=total, desc=f"{name}, members", leave=False, file=sys.stderr) as bar:
        measuring = Measuring(subject, subject.load(assets), nets, open_store(), bar, training)
        write_table(measure(measuring), out / f"{subject.stem}.csv", COLUMNS)
        times = out / f"{subject.stem}_times.csv"
        if subject.timed_as is None and cost_times.are_wanted(times, again):
            measure_times(measuring, name, out)
    config = {
        **subject.config,
        "bits": BITS,
        "members": size_of(subject),
        "few": FEW,
        subject.examples: len(measuring.examples.targets),
        "blocks": BLOCKS,
    }
    command = ["reproduce/cost.py", "--assets", *arguments]
    records = vouched_by(out, subject.stem)
    write_provenance(
        out / f"{subject.stem}.json", command, config, "cpu", [SEED], 1, started, records=records
    )


def records_of(subject: Subject, folder: Path) -> list[Path]:
    """List the CSV files that a subject's picture is drawn from."""
    timed = subject if subject.timed_as is None else SUBJECTS[subject.timed_as]
    return [folder / f"{subject.stem}.csv", folder / f"{timed.stem}_times.csv"]


def draw(subject: Subject, folder: Path) -> list[str]:
    """Draw a subject's picture from its record and times; returns what there is to say."""
    record = panels.read_record(folder / f"{subject.stem}.csv", COLUMNS)
    timed = subject if subject.timed_as is None else SUBJECTS[subject.timed_as]
    times = panels.read_record(folder / f"{timed.stem}_times.csv", cost_times.COLUMNS)
    names = [[each.substrate for each in of.models] for of in (timed, subject)]
    times["substrate"] = times["substrate"].replace(dict(zip(*names, strict=True)))
    return draw_picture(record, times, picture(subject), folder)[1]


def run(arguments: Sequence[str], again: bool) -> int:
    """Measure what the store lacks, write the records, draw them; 2 after one line about bad input."""
    options = Parser(
        prog="reproduce/cost.py --assets",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("--only", choices=tuple(SUBJECTS), help="one of the pictures (default: all)")
    options.add_argument(
        "--out", type=Path, default=REPOSITORY / "figures" / SCALE, help="folder of the results"
    )
    options.add_argument("--plot-only", action="store_true", help="redraw from the records in the folder")
    add_accept_edited(options)
    add_width(options, page.BOTH_COLUMNS)
    try:
        asked = options.parse_args(arguments)
        check_accepting(asked)
        page.check_width(asked.width)
        torch.set_num_threads(1)
        for name in [asked.only] if asked.only else SUBJECTS:
            if not asked.plot_only:
                place = assets_folder()
                check_writable(asked.out)
                measure_subject(name, place, asked.out, arguments, again)
            records = [path for path in records_of(SUBJECTS[name], asked.out) if path.is_file()]
            edited = check(records, asked.accept_edited)
            with page.page(asked.width, edited=bool(edited)):
                lines = draw(SUBJECTS[name], asked.out)
            if edited:
                keep_accepted(records)
            print("\n".join([*lines, *said_of_edited(edited)]), flush=True)
    except InputError as error:
        complain(error)
        return 2
    return 0
