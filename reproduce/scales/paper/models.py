"""The paper's own models: ImageNet-1k with timm and open_clip, LLaMa-3-8B with lm-eval.

Their weights and data are public but not small, and none is shipped here. ``--scale paper`` says in one line
per missing piece what to put where; with all of them it measures them as the scale ``digits`` measures its
networks. ``--random-weights`` rehearses the same code at the true shapes with random weights and synthetic
inputs for a few batches, and prints memory, time per example and bits per member; it writes nothing.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lpe.extras import needs
from lpe.provenance import REPOSITORY
from reproduce.study.keys import data_hash


@dataclass(frozen=True)
class PaperModel:
    """A pre-trained model.

    Args:
        source: as the ``lpe`` command takes it. licence: of the weights. data: a key of DATA.
        shape: of a language model whose configuration cannot be read without its weights' licence:
            transformers' configuration, for the rehearsal.
    """

    source: str
    licence: str
    data: str
    shape: Mapping[str, object]


@dataclass(frozen=True)
class PaperData:
    """The source of test data.

    Args:
        what: in words. licence: its terms. place: a folder below the data folder; or hub: a data set of the
            hub, and tasks: lm-eval's on it.
    """

    what: str
    licence: str
    place: str = ""
    hub: str = ""
    tasks: tuple[str, ...] = ()


DATA = {
    "imagenet": PaperData(
        "ImageNet-1k validation: 1,000 folders named by wnid, 50,000 JPEGs",
        "ImageNet terms of access (non-commercial research)",
        place="imagenet/val",
    ),
    # Which task the paper scores LLaMa-3 on is not known; MMLU, 0-shot, is what its first author's code has.
    "mmlu": PaperData("MMLU, 57 subjects, 0-shot", "MIT", hub="cais/mmlu", tasks=("mmlu",)),
}

LLAMA_3_8B = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}


def data_folder() -> Path:
    """Return the folder of the scale ``paper``'s data: LPE_DATA, else data/ in the repository."""
    return Path(os.environ.get("LPE_DATA") or REPOSITORY / "data")


@dataclass(frozen=True)
class PaperPieces:
    """The pieces of one model: its weights, and its test data.

    Args:
        name: of the model in the scale, such as "ViT-B".
    """

    name: str
    model: PaperModel

    def needed(self) -> tuple[str, str]:
        """Return a line for the weights and one for the data, with their licences."""
        data = DATA[self.model.data]
        weights = f"{self.name}: weights {self.model.source} ({self.model.licence})"
        return weights, f"{data.what} ({data.licence}){_where(data)}"

    def missing(self) -> tuple[str, str]:
        """Return what is to be done for the weights and for the data; "" for what is there."""
        return _missing_weights(self.name, self.model), _missing_data(DATA[self.model.data])


def _where(data: PaperData) -> str:
    return f", in {_shown(data_folder() / data.place)}" if data.place else ""


def _shown(path: Path) -> str:
    inside = path.is_relative_to(REPOSITORY)
    return str(path.relative_to(REPOSITORY)) if inside else str(path)


def _missing_weights(name: str, model: PaperModel) -> str:
    """Say what is to be done for a model's weights; "" where they are there."""
    repository, files = hub_files(model.source)
    if any(_cached(repository, file, "model") for file in files):
        return ""
    return (
        f"{name}: {files[0]} of the hub's {repository} ({model.licence}) is not in the cache; run "
        f"hf download {repository}, or copy its folder of the cache from a machine that has it (HF_HOME)"
    )


def hub_files(source: str) -> tuple[str, tuple[str, ...]]:
    """Return a model's hub repository, and the files any of which says that its weights are there."""
    kind, _, tag = source.partition("/")
    if kind == "timm":
        return f"timm/{tag}", ("model.safetensors", "pytorch_model.bin")
    if kind == "hf":
        return tag, ("model.safetensors.index.json", "model.safetensors")
    needs("open_clip")

    import open_clip

    settings = open_clip.get_pretrained_cfg(*tag.split(":"))
    files = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors")
    return settings["hf_hub"].rstrip("/"), files


def _missing_data(data: PaperData) -> str:
    """Say what is to be done for test data; "" where it is there."""
    named = f"{data.what} ({data.licence})"
    if data.place:
        folder = data_folder() / data.place
        # Which of the layouts it has, and whether it is whole, says the substrate when it reads the folder.
        if folder.is_dir() and any(folder.iterdir()):
            return ""
        place = f"put it into {_shown(folder)}, or set LPE_DATA to the folder that has {data.place}"
        return f"{named}: {place}"
    if _cached(data.hub, "README.md", "dataset"):
        return ""
    return (
        f"{named} is not in the cache; run hf download --repo-type dataset {data.hub}, or copy its folder of "
        "the cache from a machine that has it (HF_HOME)"
    )


def _cached(repository: str, file: str, kind: str) -> str | None:
    """Return where a file of a hub's repository lies; None where it does not."""
    needs("huggingface_hub")

    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, file, repo_type=kind)
    return found if isinstance(found, str) else None


@functools.cache
def content(source: str, named: str) -> str:
    """Return a hash of a model's weights and its data: of images the files, of the hub's files their commit.

    Args:
        source: of the weights, see :class:`PaperModel`. named: a key of DATA.
    """
    (repository, files), data = hub_files(source), DATA[named]
    found = [_commit(_cached(repository, file, "model")) for file in files]
    if data.place:
        return data_hash(found, data_folder() / data.place)
    return data_hash(found, _commit(_cached(data.hub, "README.md", "dataset")), data.tasks)


def _commit(file: str | None) -> str | None:
    """Return the commit of a file in the hub's cache: the name of its folder of snapshots."""
    if file is None:
        return None
    parts = Path(file).parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else data_hash(Path(file))
