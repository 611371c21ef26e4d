"""Recipes of given points: trained networks and posteriors that lie in a folder, each in a file of its own.

A file KIND-SEED.safetensors is of one training seed, whose training images are those of
``lpe.substrates.cifar.split_indices``; its metadata, or the JSON in their entry ``training``, say the
``updates`` and the ``batch``:

    sgd, sgdnoaug, adamw, adamwnoaug    the network's weights
    swag                                mean/NAME, variance/NAME, deviations/NAME
    ivon                                mean/NAME, std/NAME; metadata l2, and hess_init and beta2 where they
                                        are not IVON_DEFAULTS
    sse, csgld                          0/NAME, 1/NAME, …: in the order in which they were left; metadata
                                        backward_passes, of each, by commas, where they are not a cycle's last
                                        epochs, of CYCLES cycles
    be                                  the BatchEnsemble's weights

A point's key is the hash of its file. Nothing is trained.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

import lpe
from lpe.checks import shown
from lpe.ensembles.base import Ensemble
from lpe.ensembles.ivon import IVONEnsemble, forgetting_std
from lpe.ensembles.swag import SWAGEnsemble, SWAGStatistics
from lpe.errors import InputError
from lpe.modules import PLAIN_DTYPES
from lpe.store import Store
from lpe.substrates import cifar
from reproduce.scales.cifar10.recipes import TRAINING
from reproduce.study.keys import determinants
from reproduce.study.points import CURVATURE_NETWORKS, mean_curvature, training_examples
from reproduce.study.run import Run
from reproduce.study.scale import Family, Point, Substrate, bare, digest_of

KINDS = ("sgd", "sgdnoaug", "adamw", "adamwnoaug", "swag", "ivon", "sse", "csgld", "be")
IVON_DEFAULTS = {"hess_init": 1.0, "beta2": 0.9999}
NUMBERS = ("updates", "batch", "l2", *IVON_DEFAULTS)
"""Of a file's metadata."""
CYCLES = 4
SWAG_SCALE = 0.5  # Maddox et al. 2019
REPLICAS = 1_000_000
"""Distance between the draw seeds of two posteriors of one ensemble."""


@dataclass(frozen=True)
class GivenFile:
    """A file of the folder.

    Args:
        name: without its ending, such as "sgd-0". sha256: of its content.
    """

    name: str
    sha256: str


Files = tuple[GivenFile, ...]
"""Of training seeds 0, 1, …"""


def given_folder() -> Path | None:
    """Return the folder of given points: LPE_POINTS; None where it is not set."""
    return Path(os.environ["LPE_POINTS"]) if os.environ.get("LPE_POINTS") else None


def trained_root() -> Path:
    """Return the folder in which points that are trained here have folders."""
    return Store().root.parent / "points"


def hashes(where: Path) -> dict[str, str]:
    """Return the sha256 of each file of the folder, by its name without the ending.

    Raises:
        InputError: there is no such folder, nothing in it, a file of no known kind, or one that is damaged.
    """
    if not where.is_dir():
        raise InputError(f"there is no folder {where}; give the folder of the given points")
    files = sorted(where.glob("*.safetensors"))
    if not files:
        raise InputError(f"{where} has no *.safetensors; give the folder of the given points")
    for file in files:
        if not re.fullmatch(rf"({'|'.join(KINDS)})-\d+", file.stem):
            raise InputError(f"{file.name} is of no known kind; {', '.join(KINDS)}, each with -SEED, are")
    for file in files:
        _check(file)
    return {file.stem: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def _check(path: Path) -> None:
    """Check a file before anything is made of it.

    Raises:
        InputError: it is no whole safetensors file, holds tensors of other kinds than networks', or its
            metadata are no text and numbers.
    """
    try:
        if not path.is_file():
            raise InputError(f"{path} is no file; give a folder of points' files alone")
        with safe_open(path, "pt") as stored:
            kinds = {name: stored.get_tensor(name).dtype for name in stored.keys()}  # noqa: SIM118
            metadata = dict(stored.metadata() or {})
        told = json.loads(metadata.get(TRAINING, "{}"))
    except InputError:
        raise
    except Exception as error:  # which one depends on where the damage is
        why = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{path} is no whole safetensors file of a point ({why}); copy it again") from None
    if other := next((name for name, kind in kinds.items() if kind not in PLAIN_DTYPES), None):
        raise InputError(f"{path}: {other} is of {kinds[other]}, which no network's tensor is")
    if not isinstance(told, dict):
        raise InputError(f"{path} has {TRAINING} {shown(told)} in its metadata; an object is expected")
    for name in NUMBERS:
        text = str(told.get(name, metadata.get(name)) or 0)
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number) or number < 0:
            raise InputError(f"{path} has {name!r} {text!r} in its metadata; a number from 0 is expected")


def files_of(kind: str, known: Mapping[str, str]) -> Files:
    """List the files of a kind, of training seeds 0, 1, … as far as there is one of each."""
    found: list[GivenFile] = []
    while (name := f"{kind}-{len(found)}") in known:
        found.append(GivenFile(name, known[name]))
    return tuple(found)


@dataclass(frozen=True)
class Content:
    """What a file holds.

    Args:
        tensors: by name, of floating ones float32. metadata: as they were written.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str]

    def number(self, name: str, file: GivenFile, default: float | None = None) -> float:
        """Return a number of the metadata.

        Raises:
            InputError: it is not there, and there is no default; or it is no number.
        """
        text = self.metadata.get(name)
        if text is None and default is not None:
            return default
        try:
            return float(text or "")
        except ValueError:
            raise InputError(
                f"{file.name}.safetensors has {name!r} {text!r} in its metadata, no number"
            ) from None

    def part(self, head: str, file: GivenFile) -> dict[str, Tensor]:
        """Return the tensors under "head/"; InputError where there are none."""
        found = {
            name.removeprefix(f"{head}/"): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(f"{head}/")
        }
        if not found:
            first = ", ".join(list(self.tensors)[:3])
            raise InputError(f"{file.name}.safetensors has no tensors {head}/…; it begins with {first}")
        return found


@functools.lru_cache(maxsize=8)
def content(file: GivenFile) -> Content:
    """Read a file.

    Raises:
        InputError: no folder is given, it is not there, it has changed, or it is damaged.
    """
    given = given_folder()
    folders = sorted(trained_root().glob("*")) if given is None else [given]
    paths = [path for each in folders if (path := each / f"{file.name}.safetensors").is_file()]
    if not paths:
        raise InputError(f"there is no {file.name}.safetensors; say in which folder it lies with --points")
    digests = {hashlib.sha256(path.read_bytes()).hexdigest(): path for path in paths}
    if file.sha256 not in digests:
        raise InputError(
            f"{paths[0]} has another sha256 than {file.sha256[:12]}…, which was read before; run anew"
        )
    path = digests[file.sha256]
    try:
        with safe_open(path, "pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
            metadata = dict(stored.metadata() or {})
        metadata |= {name: str(value) for name, value in json.loads(metadata.get(TRAINING, "{}")).items()}
    except SafetensorError as error:
        raise InputError(f"{path} is no whole safetensors file ({error}); copy it again") from None
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise InputError(f"{path}: {name} has values that are not finite; copy it again")
    return Content({name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}, metadata)


def passes(file: GivenFile) -> int:
    """Return the updates of a file's training: one minibatch each."""
    return int(content(file).number("updates", file))


BATCH = 256
"""Images of an update, where there is no point."""


def batch_of(files: Files) -> int:
    """Return the images of an update of these points; of none, BATCH."""
    return int(content(files[0]).number("batch", files[0])) if files else BATCH


def filled(net: nn.Module, weights: Mapping[str, Tensor], file: GivenFile) -> nn.Module:
    """Return a network with these weights, in eval mode.

    Raises:
        InputError: they are another network's.
    """
    own = net.state_dict()
    missing, foreign = ([name for name in a if name not in b] for a, b in ((own, weights), (weights, own)))
    if missing or foreign:
        said = [
            f"{what} {', '.join(names[:3])}{' …' if len(names) > 3 else ''}"
            for what, names in (("lacks", missing), ("has", foreign))
            if names
        ]
        raise InputError(f"{file.name}.safetensors is of another network: it {' and '.join(said)}")
    for name, tensor in weights.items():
        if tensor.shape != own[name].shape:
            raise InputError(
                f"{file.name}.safetensors is of another network: {name} is {list(tensor.shape)}, "
                f"{list(own[name].shape)} is expected"
            )
    net.load_state_dict(dict(weights))
    return net.eval()


def new_network(run: Run, substrate: Substrate) -> nn.Module:
    """Return a network of the substrate, to be filled, where the run computes."""
    source: Any = substrate.source
    net: nn.Module = source.network(source.classes, 0)
    return net.to(run.device)


def of_seed(files: Files, seed: int) -> GivenFile:
    """Return the file of a training seed; InputError where there is none."""
    if seed >= len(files):
        raise InputError(
            f"no point of training seed {seed} is given; there are {', '.join(each.name for each in files)}"
        )
    return files[seed]


def on_device(tensors: Mapping[str, Tensor], run: Run) -> dict[str, Tensor]:
    """Return tensors where the run computes."""
    return {name: tensor.to(run.device) for name, tensor in tensors.items()}


@dataclass(frozen=True)
class GivenNetwork:
    """A trained network.

    Args:
        name: of the point in the record. batch: images of an update.
    """

    name: str
    files: Files
    batch: int
    has_posterior: ClassVar[bool] = False

    def point(self, run: Run, substrate: Substrate, seed: int, replica: int = 0) -> Point:
        """Return the network of a training seed."""
        file = of_seed(self.files, seed)
        net = filled(new_network(run, substrate), content(file).tensors, file)
        return Point(self.name, net, None, passes(file), {})


@dataclass(frozen=True)
class GivenSWAG:
    """A SWAG posterior; its point is its mean."""

    files: Files
    has_posterior: ClassVar[bool] = True

    def point(self, run: Run, substrate: Substrate, seed: int, replica: int = 0) -> Point:
        """Return the mean and the posterior of a training seed."""
        file = of_seed(self.files, seed)
        statistics = SWAGStatistics.from_tensors(on_device(content(file).tensors, run))
        net = filled(new_network(run, substrate), statistics.mean, file)

        def posterior(size: int, draw_seed: int) -> SWAGEnsemble:
            return SWAGEnsemble(net, statistics, size, draw_seed, SWAG_SCALE)

        return Point("SWAG", net, posterior, passes(file), {})


@dataclass(frozen=True)
class GivenIVON:
    """An IVON posterior; its point is its mean."""

    files: Files
    has_posterior: ClassVar[bool] = True

    def point(self, run: Run, substrate: Substrate, seed: int, replica: int = 0) -> Point:
        """Return the mean and the posterior of a training seed, and whether it was learnt."""
        solution, std = self.drawn(run, substrate, seed)
        info = _learnt(run, substrate, seed, of_seed(self.files, seed), solution.net, std)
        return replace(solution, info=info)

    def drawn(self, run: Run, substrate: Substrate, seed: int) -> tuple[Point, dict[str, Tensor]]:
        """Return the mean and the posterior of a training seed, and the posterior's std."""
        file = of_seed(self.files, seed)
        held = content(file)
        net = filled(new_network(run, substrate), held.part("mean", file), file)
        std = on_device(held.part("std", file), run)

        def posterior(size: int, draw_seed: int) -> IVONEnsemble:
            return IVONEnsemble(net, std, size, draw_seed)

        return Point("IVON", net, posterior, passes(file), {}), std


def _learnt(
    run: Run, substrate: Substrate, seed: int, file: GivenFile, net: nn.Module, std: dict[str, Tensor]
) -> dict[str, float]:
    """Return whether a posterior was learnt, by medians over weights; the curvature is kept in the store."""
    held = content(file)
    hess_init, beta2 = (held.number(name, file, value) for name, value in IVON_DEFAULTS.items())
    weight_decay, ess = held.number("l2", file), float(cifar.TRAINING_IMAGES)

    def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
        draws = IVONEnsemble(net, std, CURVATURE_NETWORKS, seed)
        return {"curvature": mean_curvature(draws, training_examples(substrate, seed)[0], seed)}, {}

    config = {
        "phase": "curvature of a given posterior",
        "file": file,
        "source": substrate.source,
        "seed": seed,
        **determinants(
            mean_curvature,
            bare(substrate.source),
            data=digest_of(substrate.source, seed),
            device=run.device,
            threads=run.threads,
        ),
    }
    curvature = run.store.get_or_make(config, make, run.device).tensors["curvature"]
    values = torch.cat([value.flatten() for value in std.values()])
    expected = 1 / (ess * (curvature.to(values.device) + weight_decay)).sqrt()
    left = forgetting_std(hess_init, beta2, weight_decay, ess, passes(file))
    return {
        "median_posterior_std": float(values.median()),
        "std_over_forgetting": float(values.median()) / left,
        "std_over_expected": float((values / expected).median()),
    }


@dataclass(frozen=True)
class GivenDeepEnsemble:
    """DE: given networks of several trainings, each of which has validation images of its own.

    Args:
        members: the files of each training seed's ensemble.

    Attributes:
        saw_validation: what validates the ensemble's seed trained all of its networks but one, or all.
    """

    saw_validation: ClassVar[bool] = True

    members: tuple[Files, ...]

    def family(self, run: Run, substrate: Substrate, seed: int) -> Family:
        """Return DE."""
        files = self.members[seed]
        nets = [filled(new_network(run, substrate), content(file).tensors, file) for file in files]
        ensemble = lpe.DeepEnsemble(nets, backward_passes=[passes(file) for file in files])
        return Family("DE", lambda _: ensemble, draws=False, info={})


@dataclass(frozen=True)
class GivenMultiPosterior:
    """MultiIVON: members drawn from several given posteriors.

    Args:
        of: the recipe of one. members: how many, those of training seeds 0, 1, … draws: of each.
    """

    of: GivenIVON
    members: int
    draws: int

    def family(self, run: Run, substrate: Substrate, seed: int) -> Family:
        """Return the mixture of the posteriors' draws."""
        places = range(seed * self.members, (seed + 1) * self.members)
        points = [self.of.drawn(run, substrate, place)[0] for place in places]

        def make(draw_seed: int) -> Ensemble:
            parts = []
            for replica, solution in enumerate(points):
                assert solution.posterior is not None
                part = solution.posterior(self.draws, draw_seed + REPLICAS * replica)
                part.training_budget = solution.backward_passes
                parts.append(part)
            return lpe.Mixture.of(parts)

        return Family("MultiIVON", make, draws=True, info={})


@dataclass(frozen=True)
class GivenCycles:
    """SSE or CSGLD: the networks that a given cyclical run left.

    Args:
        name: "SSE" or "CSGLD".
    """

    name: str
    files: Files

    def family(self, run: Run, substrate: Substrate, seed: int) -> Family:
        """Return the ensemble of all that the run left."""
        file = of_seed(self.files, seed)
        held = content(file)
        count = len({name.partition("/")[0] for name in held.tensors})
        samples = [held.part(str(place), file) for place in range(count)]
        net = new_network(run, substrate)
        for sample in samples[1:]:
            filled(net, sample, file)
        filled(net, samples[0], file)
        make: Callable[..., Ensemble] = (
            lpe.SnapshotEnsemble if self.name == "SSE" else lpe.CyclicalSGLDEnsemble
        )
        ensemble = make(net, [on_device(sample, run) for sample in samples])
        ensemble.training_budget = budgets(file, count)
        return Family(self.name, lambda _: ensemble, draws=False, info={})


def budgets(file: GivenFile, count: int) -> list[int]:
    """Return the backward passes after which each network was left."""
    held, total = content(file), passes(file)
    if text := held.metadata.get("backward_passes"):
        found = [int(number) for number in text.split(",")]
        if len(found) != count:
            raise InputError(f"{file.name}.safetensors says {len(found)} backward_passes of {count} networks")
        return found
    each, left = divmod(count, CYCLES)
    if left:
        raise InputError(f"{file.name}.safetensors has {count} networks, which are no {CYCLES} cycles' alike")
    epoch = cifar.TRAINING_IMAGES // int(held.number("batch", file))
    ends = [total * (cycle + 1) // CYCLES for cycle in range(CYCLES)]
    return [end - epoch * (each - 1 - place) for end in ends for place in range(each)]


@dataclass(frozen=True)
class GivenBatchEnsemble:
    """BE: given shared weights with rank-1 fast weights."""

    files: Files

    def family(self, run: Run, substrate: Substrate, seed: int) -> Family:
        """Return BE."""
        file = of_seed(self.files, seed)
        held = content(file)
        members = int(held.number("members", file))
        ensemble = lpe.BatchEnsemble(new_network(run, substrate), members, seed=seed)
        filled(ensemble.module, held.tensors, file)
        ensemble.module.to(run.device)
        # A step evaluates the gradient of one minibatch for every member.
        ensemble.training_budget = members * passes(file)
        return Family("BE", lambda _: ensemble, draws=False, info={})
