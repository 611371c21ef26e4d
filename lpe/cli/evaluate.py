"""``lpe evaluate``: every ensemble size's metrics, memory and time, printed and written."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import torch

from lpe.cli.kept import rows_kept
from lpe.cli.options import (
    Commands,
    EnsembleOptions,
    add_command,
    add_ensemble,
    add_model,
    add_place,
    device_of_name,
    given,
    model_options,
    options_of,
)
from lpe.cli.rows import rows_of, rows_of_packed, system_name
from lpe.cli.subjects import (
    DataOptions,
    Subject,
    add_data,
    add_passes,
    add_preprocessing,
    add_refresh,
    subject,
)
from lpe.cli.tables import tables
from lpe.ensembles.base import Ensemble, check_size
from lpe.ensembles.gaussian import GaussianEnsemble
from lpe.ensembles.low_precision import LowPrecisionEnsemble
from lpe.ensembles.mc_dropout import MCDropoutEnsemble
from lpe.errors import InputError
from lpe.evaluation.predictions import check_place, checked_predictions
from lpe.files.container import weights_hash
from lpe.files.ensembles import load
from lpe.notices import said
from lpe.provenance import provenance
from lpe.records import write_table
from lpe.writing import check_writable, write_text_atomic

EVALUATE = """\
NLL, error, calibration (ECE) and ambiguity of the model as it is, of the model with a temperature, rounded to
nearest (RTN), and of ensembles of 1 … SIZE members, with memory and milliseconds per example.

  lpe evaluate timm/vit_small_patch16_224.augreg_in21k_ft_in1k --data imagenet --system int5 --size 20
  lpe evaluate open_clip/ViT-L-14:openai --data imagenet --system int5
  lpe evaluate hf/my-llama --tasks arithmetic --include-path my_tasks --system int4 --csv results.csv

--packed FILE measures the ensemble of a file of lpe pack; the model must be the one that was packed
(--random-weights: its architecture alone, and only the file's own rows).

  lpe evaluate timm/vit_small_patch16_224 --random-weights --packed vit.lpe --size 50 --data imagenet

Images (--data): ImageNet's validation set as 1,000 class folders (also under val/) or as a flat folder with
its labels, or a folder per class of your own, as many as the model has classes: in timm's order of names
(natural, capitals ignored), or in that of --class-names. timm's models see the size of timm's own tests.

--predictions FILE writes what every member says of every image (hf: a folder, a file a task), from which
lpe score has any metric of any size without the model. A run that was killed goes on where it was; with --csv
or --json alone, at the row of the table where it was.

  lpe evaluate timm/vit_small_patch16_224 --data imagenet --system int4 --predictions vit.safetensors

--refresh DIR, for a model with batch norm: each member's statistics are re-estimated on training images, and
RTN and the ensemble have rows of both kinds.

  lpe evaluate timm/efficientnet_lite0 --data imagenet --refresh imagenet/train --system int5
"""


@dataclass(frozen=True)
class RunOptions:
    """Options that say where an evaluation runs and what it writes.

    Args:
        packed: a file of ``lpe pack``, instead of an ensemble's options. device: None: the GPU where there is
            one. csv, json: files of the result. predictions: a file of every member's predictions; hf: a
            folder.
    """

    packed: str | None = None
    device: str | None = None
    csv: Path | None = None
    json: Path | None = None
    predictions: Path | None = None


def add_evaluate(commands: Commands) -> None:
    """Add the subcommand and its options."""
    parser = add_command(commands, "evaluate", EVALUATE)
    add_model(parser)
    add_ensemble(parser)
    parser.add_argument("--packed", metavar="FILE", help="the ensemble of a file of lpe pack")
    data = parser.add_argument_group("data")
    add_data(data)
    add_place(data)
    add_refresh(parser.add_argument_group("batch-norm statistics"))
    add_preprocessing(parser.add_argument_group("preprocessing of images (the model's own)"))
    add_passes(parser.add_argument_group("forward passes on images"))
    output = parser.add_argument_group("output")
    output.add_argument("--calibrated", action="store_true", help="also the NLL under a fitted temperature")
    output.add_argument("--csv", type=Path, metavar="FILE", help="every size, every metric")
    output.add_argument("--json", type=Path, metavar="FILE", help="the same, with where it comes from")
    output.add_argument(
        "--predictions",
        type=Path,
        metavar="FILE",
        help="every member's predictions, for lpe score (hf: a folder)",
    )


def evaluate(asked: argparse.Namespace, arguments: Sequence[str]) -> None:
    """Measure, print and write what was asked for; ``arguments`` are the command's own, for the record."""
    started = time.time()
    model_asked = model_options(asked)
    ensemble_asked = options_of(EnsembleOptions, asked)
    data_asked = options_of(DataOptions, asked)
    run = options_of(RunOptions, asked)
    if run.packed is not None:
        _check_packed(run.packed, asked)
    for path in (run.csv, run.json):
        if path is not None:
            if path.is_dir():
                raise InputError(f"{path} is a folder; give a file to write to")
            check_writable(path.parent)
    _check_apart(run)
    if run.predictions is not None and model_asked.kind != "hf":
        check_place(run.predictions)
        if run.predictions.exists():
            checked_predictions(run.predictions)
    for option in ("refresh_form", "refresh_limit"):
        if hasattr(asked, option) and data_asked.refresh is None:
            raise InputError(f"--{option.replace('_', '-')} says how --refresh DIR is done; give both")
    data_asked.check()
    if run.packed is None:
        ensemble_asked.check()
    if data_asked.members == "together" and ensemble_asked.method != "lpe":
        raise InputError(f"--members together is for --method lpe, not {ensemble_asked.method}")
    device = device_of_name(run.device)
    if data_asked.pin_memory and device.type != "cuda":
        raise InputError(f"--pin-memory is for batches on their way to a GPU, not to --device {device}")
    measured = subject(model_asked, data_asked, device)
    if run.packed is None:
        ensemble = ensemble_asked.ensemble(measured.model)
        settings = _settings(ensemble, ensemble_asked)
    else:
        weights = "any" if model_asked.random_weights else "same"
        ensemble = load(run.packed, measured.model, ensemble_asked.size, weights)
        settings = _packed_settings(ensemble, run.packed)
    beside = run.predictions or run.json or run.csv
    told: dict[str, object] = {"record": measured.record, "ensemble": settings, "device": str(device)}
    told |= {"calibrated": data_asked.calibrated, "metrics": data_asked.metrics}
    if beside is not None:
        told["model"] = weights_hash(measured.model)
    # A file of images' predictions is large: those of other rows have room where one was asked for.
    roomy = run.predictions is not None or model_asked.kind == "hf"
    with rows_kept(beside, told, roomy) as kept:
        if run.packed is None:
            rows = rows_of(measured, ensemble, ensemble_asked, data_asked.calibrated, run.predictions, kept)
        else:
            own = not model_asked.random_weights
            rows = rows_of_packed(measured, ensemble, own, data_asked.calibrated, run.predictions, kept)
        _write(run, measured, rows, settings, ensemble, ensemble_asked.seed, arguments, device, started)
        kept.remove()


def _write(
    run: RunOptions,
    measured: Subject,
    rows: list[dict[str, object]],
    settings: Mapping[str, object],
    ensemble: Ensemble,
    seed: int,
    arguments: Sequence[str],
    device: torch.device,
    started: float,
) -> None:
    """Print the result, and write what was asked for."""
    print(tables(measured.title, rows))
    if measured.how:
        print(measured.how)
    if run.predictions is not None:
        print(f"predictions: {run.predictions}")
    told = provenance(
        ["lpe", *arguments],
        {**measured.record, "ensemble": settings, "notes": said()},
        str(device),
        [getattr(ensemble, "seed", seed)],
        torch.get_num_threads(),
        started,
    )
    print(
        f"{told['device'].get('gpu') or told['device']['cpu']}, {told['threads']} threads; torch "
        f"{told['packages']['torch']}; {told['wall_seconds']:.0f} s"
    )
    try:
        if run.csv:
            write_table(rows, run.csv, list(rows[0]))
            print(f"wrote {run.csv}")
        if run.json:
            content = {"rows": rows, "provenance": told}
            write_text_atomic(
                run.json, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
            )
            print(f"wrote {run.json}")
    except OSError as error:
        raise InputError(f"cannot write {error.filename or 'the results'} ({error.strerror})") from None


def _check_apart(run: RunOptions) -> None:
    """Raise InputError where two of the files to write are one."""
    files = {name: getattr(run, name) for name in ("csv", "json", "predictions")}
    there = [(name, path) for name, path in files.items() if path is not None]
    for (name, path), (other, its_path) in combinations(there, 2):
        if path.resolve() == its_path.resolve():
            raise InputError(f"--{name} and --{other} are both {path}; give two files")


def _check_packed(packed: str, asked: argparse.Namespace) -> None:
    """Check the options beside a packed file, before a model is loaded."""
    options = given(EnsembleOptions, asked)
    size = options.pop("size", None)
    options |= {
        option: None for option in ("refresh", "refresh_form", "refresh_limit") if hasattr(asked, option)
    }
    for option in options:
        raise InputError(f"--{option.replace('_', '-')} is settled by the packed file; leave it out")
    if size is not None:
        check_size(size)
    if not Path(packed).is_file():
        raise InputError(f"there is no file {packed}; lpe pack writes one")


def _settings(ensemble: Ensemble, asked: EnsembleOptions) -> dict[str, object]:
    return {
        "method": asked.method,
        "size": len(ensemble),
        "seed": asked.seed,
        "include": asked.include,
        "exclude": asked.exclude,
        **(
            {"rate": ensemble.rate}
            if isinstance(ensemble, MCDropoutEnsemble)
            else {"system": asked.number_system().name}
        ),
        **({"std": ensemble.std} if isinstance(ensemble, GaussianEnsemble) else {}),
        **({"rounding": ensemble.rounding} if isinstance(ensemble, LowPrecisionEnsemble) else {}),
    }


def _packed_settings(ensemble: Ensemble, packed: str) -> dict[str, object]:
    return {
        "packed": packed,
        "size": len(ensemble),
        **{key: getattr(ensemble, key) for key in ("seed", "rounding") if hasattr(ensemble, key)},
        "system": system_name(ensemble),
    }
