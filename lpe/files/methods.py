"""Methods whose members are stored as what makes them: MC-dropout, BatchEnsemble and test-time augmentation.

Their headers lack "system": a reader that knows no methods refuses the file, instead of taking it for plain
members.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lpe.checks import check_integer
from lpe.ensembles.augmented import AugmentedEnsemble, CropAndFlip
from lpe.ensembles.base import Ensemble
from lpe.ensembles.batch import BatchEnsemble
from lpe.ensembles.mc_dropout import MCDropoutEnsemble
from lpe.errors import InputError
from lpe.files.container import check_same, owned, shaped
from lpe.files.members import full_precision
from lpe.modules import named_tensors, tensor_bits, with_tensors
from lpe.surroundings import apart

LARGEST_PADDING = 1 << 20
"""Pixels of a margin in a file; no image is larger."""


class StoredDropoutEnsemble(MCDropoutEnsemble):
    """MC-dropout whose members' batch-norm statistics lie in a file's tensors; made by :func:`load`."""

    def __init__(
        self, model: nn.Module, rate: float, size: int, seed: int, statistics: Sequence[Mapping[str, Tensor]]
    ) -> None:
        super().__init__(model, rate, size, seed)
        self._statistics = statistics

    @apart()
    def member(self, index: int) -> nn.Module:
        """Return member ``index``: the model with its masks and its statistics."""
        return with_tensors(super().member(index), self._statistics[index])

    def memory_bits(self, n: int | None = None, storage: str = "members") -> int:
        """Count the model once and n members' statistics; there are no batches to draw them from anew."""
        n = self._check_storage(n, storage)
        return super().memory_bits() + (n - 1) * sum(map(tensor_bits, self._statistics[0].values()))


def dropout(ensemble: MCDropoutEnsemble) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the model once, its masks by rate, seed and places; the members' batch-norm statistics each."""
    tensors, about = full_precision(list(ensemble))
    return tensors, {
        "method": "mc dropout",
        "shapes": about["shapes"],
        "own": about["own"],
        "rate": ensemble.rate,
        "seed": ensemble.seed,
        "places": _masked_places(ensemble),
    }


def dropout_of(model: nn.Module, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Ensemble:
    """Return the MC-dropout ensemble of a header and tensors on the model's device."""
    own, shapes = header["own"], header["shapes"]
    # Without statistics of their own there is nothing to hold of a member.
    statistics = [
        {name: shaped(tensors, f"member {index}/{name}", shapes[name]) for name in own}
        for index in range(header["size"] if own else 1)
    ]
    shared = {
        name: shaped(tensors, f"shared/{name}", shape) for name, shape in shapes.items() if name not in own
    }
    net = with_tensors(model, {**shared, **statistics[0]})
    about = (header["rate"], header["size"], header["seed"])
    ensemble = StoredDropoutEnsemble(net, *about, statistics) if own else MCDropoutEnsemble(net, *about)
    # No tensor tells where a model has dropout.
    check_same("dropout masks", header["places"], _masked_places(ensemble))
    return ensemble


def _masked_places(ensemble: MCDropoutEnsemble) -> list[list[Any]]:
    return [[place.name, place.at, place.spatial] for place in ensemble.places if place.at]


def batch(ensemble: BatchEnsemble) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the shared tensors once, and every member's r, s and biases."""
    network = [entry for entry in named_tensors(ensemble.module.network) if entry.saved]
    return {f"network/{entry.name}": owned(entry.tensor) for entry in network}, {
        "method": "batch",
        "shapes": {
            entry.name: list(entry.tensor.shape) for entry in named_tensors(ensemble.model) if entry.saved
        },
        "layers": ensemble.converted,
        "seed": ensemble.seed,
        "std": ensemble.std,
    }


def batch_of(model: nn.Module, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Ensemble:
    """Return the BatchEnsemble of a header and tensors on the model's device, trained as it was."""
    vectors: dict[str, Tensor] = {}
    replaced: dict[str, Tensor] = {}
    for layer in header["layers"]:
        prefix = f"{layer}." if layer else ""
        biased = f"{prefix}bias" in header["shapes"]
        for vector in ("batch_r", "batch_s", *(("batch_bias",) if biased else ())):
            stored = tensors[f"network/{prefix}{vector}"]
            # Before the ensemble is made, which draws vectors for all members.
            if stored.dim() != 2 or len(stored) < header["size"]:
                raise InputError(
                    f"the file is damaged: 'network/{prefix}{vector}' is of shape {list(stored.shape)}, for "
                    f"{header['size']} members"
                )
            vectors[f"{prefix}{vector}"] = stored[: header["size"]]
        if biased:
            replaced[f"{prefix}bias"] = vectors[f"{prefix}batch_bias"][0]
    for name in header["shapes"]:
        if name not in replaced:
            replaced[name] = shaped(tensors, f"network/{name}", header["shapes"][name])
    net = with_tensors(model, replaced)
    for own, given in zip(net.parameters(), model.parameters(), strict=True):
        own.requires_grad_(given.requires_grad)
    ensemble = BatchEnsemble(net, header["size"], header["seed"], header["std"])
    check_same("converted layers", header["layers"], ensemble.converted)
    for entry in named_tensors(ensemble.module.network):
        if entry.name in vectors:
            stored = vectors[entry.name]
            # A grouped layer may have the weight's shape of another with more inputs.
            check_same("fast weights", [[entry.name, *stored.shape]], [[entry.name, *entry.tensor.shape]])
            entry.tensor.data = stored
    return ensemble


def views(ensemble: AugmentedEnsemble) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the model once, its views by their seed and the standard view's settings.

    Raises:
        InputError: the view is a function of one's own.
    """
    view = ensemble.view
    if type(view) is not CropAndFlip:
        raise InputError(
            "a file holds the standard view, lpe.CropAndFlip, and no function of one's own; save "
            "lpe.DeepEnsemble([model]) and make the AugmentedEnsemble of it when it is loaded"
        )
    tensors, about = full_precision([ensemble.model])
    return tensors, {
        "method": "views",
        "version": 4,  # who does not know of views would take the model as it is
        "shapes": about["shapes"],
        "seed": ensemble.seed,
        "padding": view.padding,
        "flip": view.flip,
    }


def views_of(model: nn.Module, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Ensemble:
    """Return the ensemble of views of a header and tensors on the model's device."""
    shapes = header["shapes"].items()
    net = with_tensors(model, {name: shaped(tensors, f"shared/{name}", shape) for name, shape in shapes})
    view = CropAndFlip(check_integer("padding", header["padding"], 0, LARGEST_PADDING), header["flip"])
    return AugmentedEnsemble(net, header["size"], header["seed"], view)
