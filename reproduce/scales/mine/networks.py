"""The networks of a scale's file, by where their architecture comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lpe.errors import InputError
from lpe.extras import needs
from lpe.substrates import hub
from lpe.substrates.loading import load_weights
from reproduce.scales.mine.tables import SOURCES, NetworkTable
from reproduce.study.functions import called, is_function

Transform = Callable[[Any], Tensor]


@dataclass(frozen=True)
class Network:
    """A network as it was loaded.

    Args:
        net: in eval mode, on the CPU. transform: how it sees images, PIL image → tensor; None: not known.
        class_names: of its classes, where it has them. record: how it sees images, for the provenance.
    """

    net: nn.Module
    transform: Transform | None
    class_names: Sequence[str] | None
    record: Mapping[str, object]


def load(table: NetworkTable, folder: Path) -> Network:
    """Load a network.

    Args:
        folder: of the scale's file, which its paths are relative to.

    Raises:
        InputError: an unknown name or argument; weights that are not there or do not fit.
    """
    weights = None if table.weights is None else folder / table.weights
    if is_function(table.source):
        return _own(table, folder, weights)
    kind, _, name = table.source.partition("/")
    loaders: Mapping[str, Callable[[str, Path | None, Mapping[str, Any]], Network]] = {
        "timm": _timm,
        "torchvision": _torchvision,
        "hf": partial(_hugging_face, folder),
    }
    if kind not in loaders or not name:
        raise InputError(f"unknown source {table.source!r} of a network; there are {', '.join(SOURCES)}")
    return loaders[kind](name, weights, table.arguments)


def _own(table: NetworkTable, folder: Path, weights: Path | None) -> Network:
    net = called(table.source, folder, table.arguments)
    if not isinstance(net, nn.Module):
        raise InputError(f"{table.source} returned a {type(net).__name__}; a torch.nn.Module is expected")
    if weights is not None:
        load_weights(net, weights)
    return Network(net.eval(), None, None, {})


def _timm(name: str, weights: Path | None, arguments: Mapping[str, Any]) -> Network:
    from lpe.substrates import timm_models

    net = timm_models.load_model(name, weights, arguments)
    config = timm_models.data_config(net)
    return Network(net, timm_models.evaluation_transform(config), None, {"data_config": config})


def _torchvision(name: str, weights: Path | None, arguments: Mapping[str, Any]) -> Network:
    needs("torchvision")

    from torchvision import models

    try:
        given = models.get_model_weights(name).DEFAULT
        net: nn.Module = models.get_model(name, weights=None, **arguments)
    except (ValueError, TypeError) as error:
        raise InputError(f"torchvision/{name} cannot be made: {error}") from None
    if weights is not None:
        load_weights(net, weights)
    else:
        try:
            net.load_state_dict(given.get_state_dict(progress=False, check_hash=True))
        except OSError as error:
            raise InputError(
                f"{given.url} cannot be fetched ({error}); fetch it elsewhere and name the file as weights"
            ) from None
        except RuntimeError as error:
            first = str(error).partition("\n\t")[2].partition("\n")[0].strip() or str(error)
            raise InputError(f"the weights {given} do not fit torchvision/{name}: {first}") from None
    return Network(net.eval(), given.transforms(), None, {"transforms": str(given.transforms())})


@dataclass(frozen=True)
class _Processed:
    """Transformers' processor of images as a transform."""

    processor: Any

    def __call__(self, image: Any) -> Tensor:
        pixels: Tensor = self.processor(image, return_tensors="pt")["pixel_values"][0]
        return pixels


def _hugging_face(folder: Path, name: str, weights: Path | None, arguments: Mapping[str, Any]) -> Network:
    needs("transformers")

    from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

    place = str(folder / name) if (folder / name).is_dir() else name
    with hub.hub_or_cache() as answers:
        try:
            offline = {"local_files_only": not answers, "trust_remote_code": False}
            processor = AutoImageProcessor.from_pretrained(place, **offline)
            if weights is None:
                net, loading = AutoModelForImageClassification.from_pretrained(
                    place, output_loading_info=True, **offline, **arguments
                )
            else:
                config = AutoConfig.from_pretrained(place, **offline, **arguments)
                net, loading = AutoModelForImageClassification.from_config(config), {}
        except (OSError, ValueError, TypeError) as error:
            why = str(error).partition("\n")[0]
            raise InputError(f"hf/{name} is no image classifier that can be loaded: {why}") from None
    wrong = [*loading.get("missing_keys", ()), *loading.get("mismatched_keys", ())]
    if wrong:
        raise InputError(f"the weights of hf/{name} lack {len(wrong)} of its tensors, such as {wrong[0]}")
    if weights is not None:
        load_weights(net, weights)
    names = [str(net.config.id2label[label]) for label in range(net.config.num_labels)]
    return Network(net.eval(), _Processed(processor), names, {"processor": type(processor).__name__})
