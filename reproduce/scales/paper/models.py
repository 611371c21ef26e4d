"""The paper's own models: ImageNet-1k with timm and open_clip, LLaMa-3-8B with lm-eval.

Their weights and data are public but not small, and none is shipped here. ``--scale paper`` says in one line
per missing piece what to put where; with all of them it measures them as the scale ``digits`` measures its
networks. ``--random-weights`` rehearses the same code at the true shapes with random weights and synthetic
inputs for a few batches, and prints memory, time per example and bits per member; it writes nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lpe.errors import InputError
from lpe.provenance import REPOSITORY
from reproduce.study.scale import Scale


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
    shape: Mapping[str, object] = field(default_factory=dict)


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
AUGREG = "augreg_in21k_ft_in1k"  # the recipe of Steiner et al. 2021 in timm


@dataclass(frozen=True)
class PaperScale:
    """The scale ``paper``: one checkpoint of each model, no training."""

    name: str = "paper"
    unit: str = "example"
    standing: str = ""
    substrate: str = "paper ViT-B"
    seeds: int = 1  # one checkpoint
    claim_seeds: int = 1
    size: int = 20
    table_sizes: tuple[int, ...] = (1, 5, 10, 20)
    draws: int = 3
    bits: tuple[int, ...] = (5, 4, 3)
    best_bits: int = 5
    claim_size: int = 10
    memory_models: int = 2
    large_bits: int = 5
    table_bits: tuple[int, ...] = (6, 4)
    batch: int = 128
    # Every 25th validation example is scored by no row: it fits temperatures and tunes noise and dropout.
    tuning_stride: int = 25
    gaussian_stds: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3)
    dropout_rates: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1)  # giung2 has .1
    networks: Mapping[str, PaperModel] = field(
        default_factory=lambda: {
            letter: PaperModel(f"timm/vit_{size}_patch16_224.{AUGREG}", "Apache-2.0", "imagenet")
            for letter, size in {"T": "tiny", "S": "small", "B": "base", "L": "large"}.items()
        }
    )
    clips: Mapping[str, PaperModel] = field(
        default_factory=lambda: {
            "L": PaperModel("open_clip/ViT-L-14:openai", "MIT", "imagenet"),
            "g": PaperModel("open_clip/ViT-g-14:laion2b_s34b_b88k", "MIT", "imagenet"),
        }
    )
    llamas: Mapping[str, PaperModel] = field(
        default_factory=lambda: {
            "8B": PaperModel(
                "hf/meta-llama/Meta-Llama-3-8B", "Meta Llama 3 Community License", "mmlu", LLAMA_3_8B
            )
        }
    )

    @property
    def large_networks(self) -> dict[str, tuple[str, ...]]:
        """The substrates of figure 7: one group, for the paper has one model of each kind and size."""
        names = [*(f"CLIP-{size}" for size in self.clips), *(f"Llama-{size}" for size in self.llamas)]
        return {"": tuple(f"{self.name} {name}" for name in names)}

    @property
    def compared_clip(self) -> str:
        """The substrate of table 6."""
        return self.large_networks[""][0]

    @property
    def models(self) -> dict[str, PaperModel]:
        """Every model by the name of the unit that measures it, such as "ViT-B", "CLIP-L" or "Llama-8B"."""
        kinds = {"ViT": self.networks, "CLIP": self.clips, "Llama": self.llamas}
        return {f"{kind}-{size}": model for kind, of in kinds.items() for size, model in of.items()}

    @property
    def figures(self) -> dict[str, tuple[str, ...]]:
        """The figures that the scale renders, and the models of each."""
        large = tuple(name.removeprefix(f"{self.name} ") for name in self.large_networks[""])
        networks = tuple(f"ViT-{size}" for size in self.networks)
        return {"fig7": large, "table1": networks, "table3": large, "table6": large[:1]}


PAPER = PaperScale()


def data_folder() -> Path:
    """Return the folder of the scale ``paper``'s data: LPE_DATA, else data/ in the repository."""
    return Path(os.environ.get("LPE_DATA") or REPOSITORY / "data")


def all_there(figure: str, chosen: PaperScale) -> bool:
    """Print what a figure needs, on stderr a line for each missing piece; tell whether there is none."""
    models = {name: chosen.models[name] for name in chosen.figures[figure]}
    print(f"{figure} at scale {chosen.name} needs")
    for name, model in models.items():
        print(f"  {name}: weights {model.source} ({model.licence})")
    needed = dict.fromkeys(model.data for model in models.values())
    for data in needed:
        print(f"  {DATA[data].what} ({DATA[data].licence}){_where(DATA[data])}")
    missing = [line for name, model in models.items() if (line := _missing_weights(name, model))]
    missing += [line for data in needed if (line := _missing_data(DATA[data]))]
    for line in missing:
        print(f"missing: {line}", file=sys.stderr)
    if missing:
        pieces = f"{len(missing)} piece{'s are' if len(missing) > 1 else ' is'} missing, nothing was run"
        print(f"error: {pieces}; --random-weights rehearses without", file=sys.stderr)
    return not missing


def rehearse(figures: Iterable[str], chosen: Scale | PaperScale) -> None:
    """Rehearse the models of figures, each once; InputError at a scale that has nothing to rehearse."""
    if isinstance(chosen, Scale):
        raise InputError(f"--random-weights is for --scale {PAPER.name}, not {chosen.name}")
    from reproduce.scales.paper import rehearsal

    names = dict.fromkeys(name for figure in figures for name in chosen.figures[figure])
    rehearsal.rehearse({name: chosen.models[name] for name in names}, chosen.large_bits)


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


def _cached(repository: str, file: str, kind: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repository, file, repo_type=kind), str)
