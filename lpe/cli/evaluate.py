"""``lpe evaluate``: every ensemble size's metrics, memory and time, printed and written."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import torch

from lpe.cli.config import in_file
from lpe.cli.kept import rows_kept
from lpe.cli.options import (
    SYSTEM,
    Commands,
    EnsembleOptions,
    ModelOptions,
    add_command,
    add_ensemble,
    add_model,
    add_place,
    device_of_name,
    model_options,
    options_of,
)
from lpe.cli.packed import check_packed
from lpe.cli.rows import rows_of, rows_of_packed, system_name
from lpe.cli.subjects import (
    DataOptions,
    Subject,
    Written,
    add_data,
    add_passes,
    add_preprocessing,
    add_refresh,
    loaded,
    subject,
)
from lpe.cli.tables import tables
from lpe.ensembles.base import Ensemble
from lpe.ensembles.gaussian import GaussianEnsemble
from lpe.ensembles.low_precision import LowPrecisionEnsemble
from lpe.ensembles.mc_dropout import MCDropoutEnsemble
from lpe.errors import InputError
from lpe.evaluation.predictions import check_place, checked_predictions
from lpe.evaluation.sharded import Ranks, RayTasks, Sharing, launched
from lpe.files.container import weights_hash
from lpe.files.ensembles import load
from lpe.notices import said
from lpe.provenance import kernels, provenance, revision, without_folders
from lpe.ray_cluster import connected
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

Under torchrun or accelerate launch every process runs a share of the images, and the first one has the rows
of one process; with --engine ray the shares are tasks of a Ray cluster (docs/scale_out.md).

  torchrun --nproc-per-node 4 --no-python lpe evaluate timm/vit_base_patch16_224 --data imagenet --system int5

--refresh DIR, for a model with batch norm: each member's statistics are re-estimated on training images, and
RTN and the ensemble have rows of both kinds.

  lpe evaluate timm/efficientnet_lite0 --data imagenet --refresh imagenet/train --system int5
"""


ENGINES = ("local", "ray")
MOST_PROCESSES = 4096


@dataclass(frozen=True)
class RunOptions:
    """Options that say where an evaluation runs and what it writes.

    Args:
        packed: a file of ``lpe pack``, instead of an ensemble's options. device: None: the GPU where there is
            one. csv, json: files of the result. predictions: a file of every member's predictions; hf: a
            folder. float16: of half the bytes.
        engine: one of ENGINES. address: of a Ray cluster that runs; None: one is started. processes: of Ray.
    """

    packed: str | None = None
    device: str | None = None
    csv: Path | None = None
    json: Path | None = None
    predictions: Path | None = None
    float16: bool = False
    engine: str = ENGINES[0]
    address: str | None = None
    processes: int | None = None

    @property
    def predictions_dtype(self) -> str:
        """The type of the predictions that are written."""
        return "float16" if self.float16 else "float32"


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
    several = parser.add_argument_group("several processes (images)")
    several.add_argument("--engine", choices=ENGINES, help="(local), or ray: tasks of a Ray cluster")
    several.add_argument("--address", help="ray: of a cluster that runs, such as auto (one is started here)")
    several.add_argument("--processes", type=int, metavar="N", help="ray: shares of the images (2)")
    output = parser.add_argument_group("output")
    output.add_argument("--calibrated", action="store_true", help="also the NLL under a fitted temperature")
    output.add_argument("--csv", type=Path, metavar="FILE", help="every size, every metric")
    output.add_argument(
        "--json", type=Path, metavar="FILE", help="the same, with options, versions and machine"
    )
    output.add_argument(
        "--predictions",
        type=Path,
        metavar="FILE",
        help="every member's predictions, for lpe score (hf: a folder)",
    )
    output.add_argument(
        "--float16", action="store_true", help="predictions in half the bytes: 3 digits, where float32 has 7"
    )


def evaluate(asked: argparse.Namespace, arguments: Sequence[str]) -> None:
    """Measure, print and write what was asked for; ``arguments`` are the command's own, for the record."""
    run = options_of(RunOptions, asked)
    _check_engine(run)
    with launched() as ranks:
        _evaluate(asked, arguments, run, ranks)


def _evaluate(
    asked: argparse.Namespace, arguments: Sequence[str], run: RunOptions, ranks: Ranks | None
) -> None:
    started = time.time()
    if ranks is None:
        device, model_asked, ensemble_asked, data_asked = _checked(asked, run, None)
    else:
        device, model_asked, ensemble_asked, data_asked = ranks.agreed(lambda: _checked(asked, run, ranks))
    sharing: Sharing | None = ranks
    connection: AbstractContextManager[None] = nullcontext()
    if run.engine == "ray":
        count = 2 if run.processes is None else run.processes
        sharing = RayTasks(count, device)
        connection = connected(run.address, None if run.address else _cpus(count), _environment())

    def made() -> tuple[Subject, Ensemble]:
        measured = subject(model_asked, data_asked, device, sharing)
        if run.packed is None:
            return measured, ensemble_asked.ensemble(measured.model)
        weights = "any" if model_asked.random_weights else "same"
        return measured, load(run.packed, measured.model, ensemble_asked.size, weights)

    with connection:
        measured, ensemble = made() if sharing is None else sharing.agreed(made)
        if run.packed is None:
            settings = _settings(ensemble, ensemble_asked)
        else:
            settings = _packed_settings(ensemble, run.packed)
        options = _resolved(model_asked, ensemble_asked, measured, run, ensemble, device)
        if sharing is None or sharing.is_first:
            print(loaded(measured, device, _members(ensemble, settings)), file=sys.stderr, flush=True)
        # What several processes measure is kept by none of them.
        beside = (run.predictions or run.json or run.csv) if sharing is None else None
        told: dict[str, object] = {"record": measured.record, "ensemble": settings, "device": str(device)}
        told |= {"calibrated": data_asked.calibrated, "metrics": data_asked.metrics}
        told |= {"float16": run.float16}
        if beside is not None:
            told["model"] = weights_hash(measured.model)
        # A file of images' predictions is large: those of other rows have room where one was asked for.
        roomy = run.predictions is not None or model_asked.kind == "hf"
        written = None
        if run.predictions is not None:
            record = {**measured.record, "ensemble": settings, "git": revision()}
            written = Written(run.predictions, run.predictions_dtype, without_folders(record))
        with rows_kept(beside, told, roomy) as kept:
            if run.packed is None:
                rows = rows_of(measured, ensemble, ensemble_asked, data_asked.calibrated, written, kept)
            else:
                own = not model_asked.random_weights
                rows = rows_of_packed(measured, ensemble, own, data_asked.calibrated, written, kept)
            if sharing is None or sharing.is_first:
                seed = ensemble_asked.seed
                config = {"ensemble": settings, "options": options}
                _write(run, measured, rows, config, ensemble, seed, arguments, device, started)
                kept.remove()


def _write(
    run: RunOptions,
    measured: Subject,
    rows: list[dict[str, object]],
    config: Mapping[str, object],
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
        {**measured.record, **config, "notes": said()},
        str(device),
        [getattr(ensemble, "seed", seed)],
        torch.get_num_threads(),
        started,
    )
    plural = "" if told["threads"] == 1 else "s"
    print(
        f"{told['device'].get('gpu') or told['device']['cpu']}, {told['threads']} thread{plural}; torch "
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


def _checked(
    asked: argparse.Namespace, run: RunOptions, ranks: Ranks | None
) -> tuple[torch.device, ModelOptions, EnsembleOptions, DataOptions]:
    """Return the device and the options, checked before anything is loaded.

    Raises:
        InputError: of an option, or a place to write to.
    """
    model_asked = model_options(asked)
    ensemble_asked = options_of(EnsembleOptions, asked)
    data_asked = options_of(DataOptions, asked)
    if run.packed is not None:
        check_packed(run.packed, asked)
    for path in (run.csv, run.json):
        if path is not None and (ranks is None or ranks.is_first):
            if path.is_dir():
                raise InputError(f"{path} is a folder; give a file to write to")
            check_writable(path.parent)
    _check_apart(run)
    if run.float16 and run.predictions is None:
        raise InputError("--float16 is how --predictions FILE are written; give both")
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
    if ranks is not None or run.engine == "ray":
        _check_shared(model_asked, data_asked, run)
    name = run.device
    if name is None and ranks is not None and torch.cuda.is_available():
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    device = device_of_name(name)
    if data_asked.pin_memory and device.type != "cuda":
        raise InputError(f"--pin-memory is for batches on their way to a GPU, not to --device {device}")
    return device, model_asked, ensemble_asked, data_asked


def _check_engine(run: RunOptions) -> None:
    """Raise InputError for options of another engine."""
    for option, value in (("address", run.address), ("processes", run.processes)):
        if value is not None and run.engine != "ray":
            raise InputError(f"--{option} {value} is of a Ray cluster; give --engine ray as well")
    if run.processes is not None and not 1 <= run.processes <= MOST_PROCESSES:
        raise InputError(f"--processes must be 1 to {MOST_PROCESSES}, not {run.processes}")
    if run.engine == "ray" and int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise InputError("--engine ray starts its own processes; leave out torchrun, or --engine ray")


def _check_shared(model: ModelOptions, data: DataOptions, run: RunOptions) -> None:
    """Raise InputError for what one process does alone."""
    if model.kind == "hf" and run.engine == "ray":
        raise InputError("hf models are not for --engine ray; share their tasks by torchrun, or run it alone")
    if run.predictions is not None:
        raise InputError("--predictions is written by one process; leave it out, or run lpe evaluate alone")
    if data.members == "together":
        raise InputError("--members together is for one process; several run members one by one")


def _cpus(count: int) -> int:
    """Return the CPUs of a Ray cluster for so many processes: as many threads each as this one has."""
    return count * torch.get_num_threads()


def _environment() -> dict[str, str]:
    """Return the variables that are the same in Ray's workers: they choose kernels."""
    kept = {name: value for name, value in os.environ.items() if name.startswith("LPE_")}
    if os.environ.get("PYTHONPATH"):
        kept["PYTHONPATH"] = os.environ["PYTHONPATH"]
    return kept | {name: str(value) for name, value in kernels()["variables"].items()}


def _check_apart(run: RunOptions) -> None:
    """Raise InputError where two of the files to write are one."""
    files = {name: getattr(run, name) for name in ("csv", "json", "predictions")}
    there = [(name, path) for name, path in files.items() if path is not None]
    for (name, path), (other, its_path) in combinations(there, 2):
        if path.resolve() == its_path.resolve():
            raise InputError(f"--{name} and --{other} are both {path}; give two files")


def _members(ensemble: Ensemble, settings: Mapping[str, object]) -> str:
    """Return how many members there are, and of what."""
    count = "1 member" if len(ensemble) == 1 else f"{len(ensemble):,} members"
    if "packed" in settings:
        return f"{count} of {Path(str(settings['packed'])).name}"
    return f"{count} of {settings['method']} {settings.get('system', '')}".rstrip()


def _resolved(
    model: ModelOptions,
    asked: EnsembleOptions,
    measured: Subject,
    run: RunOptions,
    ensemble: Ensemble,
    device: torch.device,
) -> dict[str, object]:
    """Return the options as a file of --config has them; what was not given has the value that was taken."""
    given = {**asdict(model), **asdict(measured.options), **asdict(run)}
    if measured.options.refresh is None:
        del given["refresh_form"], given["refresh_limit"]
    given |= {"device": str(device), "dtype": measured.record["dtype"], "size": len(ensemble)}
    if run.packed is None:
        settings = _settings(ensemble, asked)
        given |= {
            **asdict(asked),
            **{name: settings.get(name) for name in ("size", "std", "rate", "rounding")},
        }
        if "system" in settings:
            given["system"] = asked.system or SYSTEM
    return in_file(given)


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
