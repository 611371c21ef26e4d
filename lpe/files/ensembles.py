"""Ensembles as files: one safetensors file, read back on the architecture it was made of.

Three kinds:

    members   every member's own tensors (low precision ones packed, b bits a weight), and once what they
              share; this is what ``memory_bits(storage="members")`` counts
    planes    low precision ensembles that are rounded at random, and mixtures of them, only: the lower
              neighbours once and one bit a weight and member, from which the members follow to the bit.
              ``memory_bits(storage="planes")``
    seeded    low precision ensembles, and mixtures of them, only: the weights once (in each part of a
              mixture) with the seed, as a base that is finer than the members; these are drawn from it when
              asked for, without limit. ``memory_bits(storage="generator")``

The base of the seeded kind is INT-8, to the nearest, with scales of the members' axis; or bfloat16 (which a
system of 8 bits needs), or float32. From float32 the members are those of the ensemble that was saved, to the
bit. From the others they are not: the base is within half a step of the weights, and the members' scales are
those of its values (of INT-8 level·s in float32, which no dtype of the model's cuts short). Where tensors
have
number systems of their own, one base serves all: the finest that one of them needs.

The file says of which weights a low precision, Gaussian or MC-dropout ensemble was made, by their hash.

Three methods' members are stored as what makes them, and read back as the method's own ensemble:

    MC-dropout      the model once; the masks follow from rate and seed, which stand in the header with the
                    places that they lie at. Members' re-estimated batch-norm statistics are stored each
    BatchEnsemble   the shared tensors once, and every member's r, s and biases
    test-time augmentation   the model once; the views follow from the seed and the standard view's settings

A mask or a view is a hook and no tensor, so no other ensemble of such networks can be written: it is refused.
Other hooks are taken to be the architecture's, which the model given to :func:`load` has too.

An ensemble composed of others (``lpe.Mixture``) is stored part by part, each as it would be alone: the codes
of low precision parts are packed, with scales and leftovers a part. It is read back as the parts' union.

A selection (``lpe.select``) of an ensemble is stored as the ensemble would be, with the kept members alone
and their indices: packed, or the base once, from which these members and no others are drawn.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lpe.checks import check_integer, shown
from lpe.ensembles.augmented import AugmentedEnsemble, has_view
from lpe.ensembles.base import Ensemble, check_size
from lpe.ensembles.batch import BatchEnsemble
from lpe.ensembles.cascade import Cascade
from lpe.ensembles.feedback import FeedbackEnsemble
from lpe.ensembles.gaussian import GaussianEnsemble
from lpe.ensembles.low_precision import LowPrecisionEnsemble
from lpe.ensembles.mc_dropout import MCDropoutEnsemble, has_masks
from lpe.ensembles.mixture import CompositeEnsemble, Mixture
from lpe.ensembles.selected import SelectedEnsemble
from lpe.errors import InputError
from lpe.files.container import check_path, read, weights_hash, write
from lpe.files.header import check_header, check_kinds
from lpe.files.kinds import KINDS, check_kind
from lpe.files.members import StoredEnsemble, full_precision, low_precision
from lpe.files.methods import batch, batch_of, dropout, dropout_of, views, views_of
from lpe.files.planes import PlanesEnsemble, planes_of
from lpe.files.seeded import SeededEnsemble, drawable
from lpe.modules import NamedTensor, named_tensors
from lpe.surroundings import apart


def save(
    ensemble: Ensemble, path: str | os.PathLike[str], kind: str = "members", base: str | None = None
) -> int:
    """Write an ensemble to a file, whole or not at all.

    Args:
        ensemble: any ensemble; the seeded kind takes a ``LowPrecisionEnsemble`` of a system that rounds, or
            a mixture of such, and so do planes, of "bernoulli" and "coupled" rounding.
        path: the file, written over where there is one. kind: "members", "seeded" or "planes".
        base: what a seeded file holds of each weight: "int8" (the default), "bf16" or "fp32".

    Returns:
        The file's size in bytes.

    Raises:
        InputError: what is no ensemble; an unknown kind or base, or one that the ensemble cannot have: INT-8
            is no finer than members of 8 bits; a mixture of two architectures; members with dropout masks or
            views in an ensemble that is not of that method itself; a view that is a function of one's own; a
            seeded file, or planes, of an ensemble with error feedback; planes of members to the nearest; a
            seeded file of what was read from planes; a selection of a mixture, of a BatchEnsemble or of what
            was read from a file of members; a place that cannot be written to.
    """
    base = check_kind(kind, base)
    if not isinstance(ensemble, Ensemble):
        raise InputError(f"save takes an ensemble such as LowPrecisionEnsemble, not {_described(ensemble)}")
    path, budget = check_path(path), _training_budget(ensemble)
    ensemble.check_unchanged()
    if isinstance(ensemble, CompositeEnsemble):
        tensors, about = _composite(ensemble, kind, base)
    else:
        tensors, about = _single(ensemble, kind, base)
    return write(path, tensors, {"kind": kind, "size": len(ensemble), **about, **budget})


def _described(given: object) -> str:
    """Describe what was given in an ensemble's place, and what of it can be saved."""
    if isinstance(given, Cascade):
        return "a Cascade, which holds no weights of its own; save the ensemble that it is made of"
    if isinstance(given, nn.Module):
        return f"the model {type(given).__name__}; lpe.DeepEnsemble([model]) is one of it alone"
    if isinstance(given, list | tuple):
        return (
            f"a {type(given).__name__}; lpe.DeepEnsemble makes an ensemble of models, lpe.Mixture.of one of "
            "ensembles"
        )
    return shown(given)


def _training_budget(ensemble: Ensemble) -> dict[str, Any]:
    """Return a header's entry on the training's cost; empty where it is not known."""
    try:
        costs = [ensemble.backward_passes(n) for n in range(1, len(ensemble) + 1)]
        known = [check_integer("training_budget", cost, 0) for cost in costs if cost is not None]
    except (TypeError, LookupError):
        raise InputError(
            f"training_budget must be an integer, or one for each of {len(ensemble)} sizes, not "
            f"{shown(ensemble.training_budget)}"
        ) from None
    if len(known) < len(costs):
        return {}
    return {"training_budget": known[0] if len(set(known)) == 1 else known}


@apart()
def load(
    path: str | os.PathLike[str], model: nn.Module, size: int | None = None, base: str = "any"
) -> Ensemble:
    """Read an ensemble from a file.

    Args:
        path: a file of :func:`save`. model: a module of the architecture, on any device; the ensemble is
            placed as it is. Its weights are not used, only what the file does not hold (buffers that are not
            saved).
        size: members (None: those that were saved). A seeded file of one ensemble gives any number, any
            other at most those that it holds.
        base: "any", or "same": ``model`` must have the weights that the ensemble was made of.

    Raises:
        InputError: no such file, a truncated or altered one, one of a newer version or of another model; a
            size that the file does not have; under base="same" other weights, or a file that does not tell
            its own; a model that is a member of an ``MCDropoutEnsemble`` or an ``AugmentedEnsemble``, masks
            or view and all.
    """
    if not isinstance(base, str) or base not in ("any", "same"):
        raise InputError(f"base must be 'any' (the architecture will do) or 'same', not {shown(base)}")
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module of the file's architecture, not {shown(model)}")
    if has_masks(model):
        raise InputError(
            f"this {type(model).__name__} has dropout masks of an MCDropoutEnsemble's member, which would be "
            "every member's; give the network without them"
        )
    if has_view(model):
        raise InputError(
            f"this {type(model).__name__} has the view of an AugmentedEnsemble's member, which would be "
            "every member's; give the network without it"
        )
    if size is not None:
        check_size(size)
    path = check_path(path)
    header, tensors = read(path)
    own = {entry.name: entry for entry in named_tensors(model)}
    try:
        check_header(header)
        _check_architecture(path, header["shapes"], own, type(model).__name__)
        parts = _parts(path, header, tensors, size)
        if base == "same":
            _check_weights(path, [about.get("base_hash") for about, _ in parts], model)
        for about, held in parts:
            check_kinds(about, held, own)
        made = [_made(model, about, held, own) for about, held in parts]
        ensemble = made[0] if "parts" not in header else Mixture.of(made)
        ensemble.training_budget = _read_budget(header.get("training_budget"), len(ensemble))
        return ensemble
    except InputError as error:
        # What a part refuses does not know the file.
        raise error if str(path) in str(error) else InputError(f"{path}: {error}") from None
    except KeyError as missing:
        raise InputError(f"{path} is damaged: it lacks {missing}") from None
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        # Only a header of another form leads here, and which line meets it first is chance.
        why = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{path} is damaged: {why}") from None


def _read_budget(told: Any, size: int) -> int | list[int] | None:
    if told is None or (type(told) is int and told >= 0):
        return told
    if not isinstance(told, list) or not all(type(cost) is int and cost >= 0 for cost in told):
        raise InputError(f"the file is damaged: its training budget is {shown(told)}")
    # What further members cost that a seeded file gives was not said.
    return told[:size] if size <= len(told) else None


def _check_architecture(
    path: Path, shapes: Mapping[str, list[int]], own: Mapping[str, NamedTensor], model: str
) -> None:
    for name, shape in shapes.items():
        if name not in own:
            raise InputError(f"{path} is of another model: it has {name!r}, {model} has not")
        if list(own[name].tensor.shape) != shape:
            raise InputError(
                f"{path} is of another model: {name!r} is {shape} there, {list(own[name].tensor.shape)} here"
            )
    if absent := [name for name, entry in own.items() if entry.saved and name not in shapes]:
        raise InputError(f"{path} is of another model: it has no {absent[0]!r}")
    if empty := [name for name, entry in own.items() if not entry.saved and entry.tensor.is_meta]:
        raise InputError(
            f"{model} has no values for {empty[0]!r}, which no file holds; make it elsewhere than on meta"
        )


def _check_weights(path: Path, hashes: Sequence[str | None], model: nn.Module) -> None:
    here = weights_hash(model)
    for there in hashes:
        if there is None:
            raise InputError(f"{path} does not tell the weights that it was made of; give base='any'")
        if there != here:
            raise InputError(
                f"{path} was made of other weights than this {type(model).__name__}'s (hash {there[:12]} "
                f"there, {here[:12]} here); give the model that was packed, or base='any' to take its "
                "architecture alone"
            )


def _parts(
    path: Path, header: Mapping[str, Any], tensors: dict[str, Tensor], size: int | None
) -> list[tuple[dict[str, Any], dict[str, Tensor]]]:
    """Return header and tensors of each part (the whole is one without parts), down to ``size`` members."""
    held = check_size(header["size"])
    if header["kind"] not in KINDS:
        raise InputError(f"{path} is damaged: its kind is {header['kind']!r}")
    if "parts" not in header:
        wanted = held if size is None else check_size(size)
        if wanted > held and "selected" in header:
            raise InputError(f"{path} holds a selection of {held} members, not {wanted}")
        if wanted > held and header["kind"] != "seeded":
            raise InputError(f"{path} holds {held} members, not {wanted}; a seeded file gives any number")
        return [({**header, "size": wanted}, tensors)]
    left = held if size is None else check_size(size)
    if left > held:
        raise InputError(
            f"{path} holds a mixture of {held} members, not {left}; only a seeded file of one "
            "ensemble gives any number"
        )
    parts: list[tuple[dict[str, Any], dict[str, Tensor]]] = []
    for index, part in enumerate(header["parts"]):
        if left:
            taken = min(left, check_size(part["size"]))
            left -= taken
            parts.append(({**header, **part, "size": taken}, _under(f"part {index}/", tensors)))
    if left:
        raise InputError(f"{path} is damaged: its parts have {held - left} members, not {held}")
    return parts


def _made(
    model: nn.Module,
    header: Mapping[str, Any],
    tensors: dict[str, Tensor],
    own: Mapping[str, NamedTensor],
) -> Ensemble:
    """Return the ensemble, or a mixture's part, of a header and its tensors."""
    # A model on the meta device gives the architecture alone.
    devices = {
        name: torch.device("cpu") if entry.tensor.is_meta else entry.tensor.device
        for name, entry in own.items()
    }
    if header["kind"] == "seeded":
        if "selected" not in header:
            return SeededEnsemble(model, header, tensors, devices)
        chosen = header["selected"][: header["size"]]
        return SelectedEnsemble(
            SeededEnsemble(model, {**header, "size": max(chosen) + 1}, tensors, devices), chosen
        )
    if header["kind"] == "planes":
        return PlanesEnsemble(model, header, tensors, devices)
    if "method" not in header:
        return StoredEnsemble(model, header, tensors, devices)
    placed = {
        key: tensor.to(devices.get(key.partition("/")[2], devices[next(iter(devices))]))
        for key, tensor in tensors.items()
    }
    of_method = {"mc dropout": dropout_of, "batch": batch_of, "views": views_of}
    return of_method[header["method"]](model, header, placed)


def _composite(ensemble: CompositeEnsemble, kind: str, base: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors: dict[str, Tensor] = {}
    parts: list[dict[str, Any]] = []
    shapes: dict[str, list[int]] = {}
    versions: set[int] = set()
    for index, part in enumerate(_leaves(ensemble)):
        held, about = _single(part, kind, base)
        own_shapes = about.pop("shapes")
        if "version" in about:
            versions.add(about.pop("version"))
        if own_shapes != (shapes := shapes or own_shapes):
            name = next(n for n in {**shapes, **own_shapes} if shapes.get(n) != own_shapes.get(n))
            raise InputError(
                f"a file holds members of one architecture; part {index} differs from part 0 "
                f"at tensor {name!r}"
            )
        tensors |= {f"part {index}/{key}": tensor for key, tensor in held.items()}
        parts.append({"size": len(part), **about})
    version = {"version": max(versions)} if versions else {}
    return tensors, {**version, "shapes": shapes, "parts": parts}


def _leaves(ensemble: Ensemble) -> Iterator[Ensemble]:
    """Yield the parts, and the parts' parts, down to ensembles that are not composed of others."""
    if not isinstance(ensemble, CompositeEnsemble):
        yield ensemble
        return
    for part in ensemble.parts():
        yield from _leaves(part)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under a prefix, taken out."""
    return {key.removeprefix(prefix): tensors.pop(key) for key in list(tensors) if key.startswith(prefix)}


def _single(ensemble: Ensemble, kind: str, base: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if isinstance(ensemble, SelectedEnsemble):
        tensors, about = _selection(ensemble, kind, base)
        ensemble = ensemble.ensemble
    else:
        tensors, about = _contents(ensemble, kind, base)
    if isinstance(ensemble, SeededEnsemble | PlanesEnsemble):
        about["base_hash"] = ensemble.base_hash
    elif isinstance(ensemble, LowPrecisionEnsemble | GaussianEnsemble | MCDropoutEnsemble):
        about["base_hash"] = weights_hash(ensemble.model)
    return tensors, about


def _selection(ensemble: SelectedEnsemble, kind: str, base: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    of = ensemble.ensemble
    if isinstance(of, CompositeEnsemble | BatchEnsemble | StoredEnsemble):
        raise InputError(
            f"a file holds no selection of a {type(of).__name__}; save lpe.DeepEnsemble(list(ensemble)), its "
            "members at full precision"
        )
    chosen = list(ensemble.members)
    if isinstance(of, LowPrecisionEnsemble) and of.rounds and kind != "seeded":
        _check_unmasked(of, [of.model])
        written = planes_of if kind == "planes" else low_precision
        tensors, about = written(of, ensemble.members)
        if isinstance(of, PlanesEnsemble) and of.selected is not None:
            chosen = [of.selected[index] for index in chosen]
    elif isinstance(of, LowPrecisionEnsemble) and of.rounds:
        if of.batch_norm is not None:
            raise InputError(
                "a seeded file of a selection holds no re-estimated batch-norm statistics; save it with "
                "kind='members'"
            )
        tensors, about = _contents(of, kind, base)
        # Version 4: who does not know of selections would draw the first members.
        about["version"] = max(4, about.get("version", 2))
    elif kind != "members":
        tensors, about = _contents(of, kind, base)
    else:
        members = list(ensemble)
        _check_unmasked(of, members)
        tensors, about = full_precision(members)
    return tensors, {**about, "selected": chosen}


def _contents(ensemble: Ensemble, kind: str, base: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if isinstance(ensemble, LowPrecisionEnsemble) and ensemble.rounds:
        _check_unmasked(ensemble, [ensemble.model])
        if isinstance(ensemble, FeedbackEnsemble) and kind == "seeded":
            raise InputError(
                "a seeded file draws members from weights and a seed, and error feedback needs the layers' "
                "inputs too; save it with kind='members'"
            )
        if not isinstance(ensemble, PlanesEnsemble):
            if kind == "seeded":
                return drawable(ensemble, base=base)
            return planes_of(ensemble) if kind == "planes" else low_precision(ensemble)
        if kind == "seeded":
            raise InputError(
                "a seeded file draws members from weights, and this ensemble has the planes that were drawn; "
                "save it with kind='planes'"
            )
        tensors, about = planes_of(ensemble) if kind == "planes" else low_precision(ensemble)
        return tensors, {**about, **({} if ensemble.selected is None else {"selected": [*ensemble.selected]})}
    if kind != "members":
        what = "a seeded file holds" if kind == "seeded" else "planes are of"
        raise InputError(f"{what} a low precision ensemble that rounds, not {type(ensemble).__name__}")
    if isinstance(ensemble, StoredEnsemble):
        return ensemble.written()
    if isinstance(ensemble, MCDropoutEnsemble):
        _check_unmasked(ensemble, [ensemble.model])
        return dropout(ensemble)
    if isinstance(ensemble, BatchEnsemble):
        _check_unmasked(ensemble, [ensemble.model])
        return batch(ensemble)
    if isinstance(ensemble, AugmentedEnsemble):
        _check_unmasked(ensemble, [ensemble.model])
        return views(ensemble)
    # All at once: which tensors they share is told by where these lie in memory.
    members = list(ensemble)
    _check_unmasked(ensemble, members)
    return full_precision(members)


def _check_unmasked(ensemble: Ensemble, models: Sequence[nn.Module]) -> None:
    for has, what, method in (
        (has_masks, "dropout masks", "MCDropoutEnsemble"),
        (has_view, "views of their inputs", "AugmentedEnsemble"),
    ):
        if any(map(has, models)):
            raise InputError(
                f"this {type(ensemble).__name__} is made of networks with {what}, which are no tensors: a "
                f"file would lose them; save the {method} itself and make this one of it when it is loaded"
            )
