"""A causal language model and its tokenizer, from a folder in transformers' format or from the hub."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lpe.errors import InputError
from lpe.substrates import hub
from lpe.substrates.loading import load_weights, parameter_bytes, require_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
DOWNLOADED = ("*.json", "*.safetensors", "*.model", "*.txt")
"""What is fetched of a hub's repository: never a pickle."""


def load_model(
    source: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str] | None = None,
    dtype: torch.dtype | str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in eval mode, on the CPU, and its tokenizer.

    Args:
        source: a folder in transformers' format, or a name on the hub, which is looked up in the local cache
            first. No code from there is run, and pickles are read with ``weights_only``.
        checkpoint: a file of weights (safetensors, or a state dict of ``torch.save``) instead of the
            folder's own.
        dtype: of the weights; None: the configuration's, as lm-eval's ``hf`` model has it.

    Raises:
        InputError: a file that is not there, by name, with where to put it; a damaged one; weights that do
            not fit the configuration; a tokenizer that lacks tokens or has more than the model's embedding;
            a model that is larger than the free memory (said before it is loaded).
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = _folder(source, weights=checkpoint is None)
    with one_line(f"{folder} has no configuration of a causal language model that transformers knows"):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        wanted = _dtype(dtype) or getattr(config, "dtype", None) or torch.float32
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(config, dtype=wanted, trust_remote_code=False)
    require_memory(parameter_bytes(skeleton), f"{type(skeleton).__name__} from {source} in {wanted}")
    tokenizer = _load_tokenizer(folder)
    check_tokenizer(tokenizer, skeleton)
    if checkpoint is not None:
        model = AutoModelForCausalLM.from_config(config, dtype=wanted, trust_remote_code=False)
        load_weights(model, checkpoint)
        return model.eval(), tokenizer
    with one_line(f"cannot read the weights in {folder}"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=wanted,
            local_files_only=True,
            trust_remote_code=False,
            weights_only=True,
            use_safetensors=any((folder / name).is_file() for name in WEIGHTS[:2]),
            output_loading_info=True,
        )
    model, loading = loaded
    _check_loading(loading, folder, type(model).__name__)
    return model.eval(), tokenizer


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise InputError(f"unknown dtype {dtype!r}; take float32, bfloat16 or float16")
    return found


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".: ") if lines else type(error).__name__


@contextmanager
def one_line(what: str) -> Iterator[None]:
    """Whatever a library raises within is an InputError of one line: which one depends on the damage."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        raise InputError(f"{what}: {_first_line(error)}") from None


def _folder(source: str | os.PathLike[str], weights: bool) -> Path:
    """The local folder of a model's files; those of a hub's repository are fetched where that is possible."""
    folder = Path(source)
    if folder.is_dir():
        _check_files(folder, weights, f"put it into {folder}")
        return folder
    name = str(source)
    if not name or folder.is_absolute() or name.count("/") > 1 or name.startswith((".", "~")):
        raise InputError(f"there is no folder {name}; give a folder in transformers' format or a hub's name")
    return _hub_folder(name, weights)


def _hub_folder(name: str, weights: bool) -> Path:
    from huggingface_hub import constants, snapshot_download

    # The patterns leave out subfolders, where some repositories keep their weights a second time.
    patterns: dict[str, Any] = {"allow_patterns": list(DOWNLOADED), "ignore_patterns": ["*/*"]}
    where = (
        f"without a network, copy the repository's files ({', '.join(('config.json', *WEIGHTS[:2]))}, "
        f"{TOKENIZERS[0]}, tokenizer_config.json) into a folder and give that folder, or fill the cache "
        f"{constants.HF_HUB_CACHE}"
    )
    try:
        cached = Path(snapshot_download(name, local_files_only=True, **patterns))
        _check_files(cached, weights, where)
        return cached
    except Exception as error:  # not there, or not whole: the next place is the hub itself
        missing = str(error) if isinstance(error, InputError) else ""
    if not hub.hub_answers():
        raise InputError(
            missing or f"{name} is no folder, and neither the cache nor the hub can be had; {where}"
        )
    with one_line(f"cannot fetch {name} from {constants.ENDPOINT}"):
        fetched = Path(snapshot_download(name, **patterns))
    _check_files(fetched, weights, "the repository lacks it; take another")
    return fetched


def _check_files(folder: Path, weights: bool, remedy: str) -> None:
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} has no config.json; {remedy}")
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise InputError(
            f"{folder} has no tokenizer ({TOKENIZERS[0]} and tokenizer_config.json, or {TOKENIZERS[1]}); "
            + remedy
        )
    if not weights:
        return
    found = next((name for name in WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        raise InputError(
            f"{folder} has no weights (model.safetensors, or its parts with model.safetensors.index.json); "
            f"{remedy}"
        )
    if found.endswith(".index.json"):
        with one_line(f"{folder / found} is no index of weights"):
            parts = sorted(
                set(json.loads((folder / found).read_text(encoding="utf-8"))["weight_map"].values())
            )
        missing = [part for part in parts if not (folder / part).is_file()]
        if missing:
            raise InputError(
                f"{folder} has {len(parts) - len(missing)} of {len(parts)} parts of the weights and lacks "
                f"{missing[0]}; {remedy}"
            )


def _check_loading(loading: Mapping[str, Any], folder: Path, model: str) -> None:
    """Refuse what transformers only warns of: tensors that keep their random start, or that go unused."""
    kinds = []
    for kind in ("missing", "unexpected", "mismatched"):
        names = sorted(str(name) for name in loading.get(f"{kind}_keys", ()))
        if names:
            shown = ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
            kinds.append(f"{len(names)} {kind}: {shown}")
    if kinds:
        raise InputError(f"the weights in {folder} do not fit {model}: {'; '.join(kinds)}")


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    with one_line(f"{folder} has no whole tokenizer"):
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, model: nn.Module) -> None:
    """InputError unless a tokenizer's tokens are the model's, with one from which a text can begin."""
    ids = tokenizer.get_vocab().values()
    if not ids:
        raise InputError("the tokenizer has no tokens; is its tokenizer.json whole?")
    embedding = getattr(model, "get_input_embeddings", lambda: None)()
    rows = len(embedding.weight) if embedding is not None else None
    if rows is not None and max(ids) >= rows:
        raise InputError(
            f"the tokenizer's tokens go up to {max(ids)}, and the model's embedding has {rows} rows; "
            "is it another model's tokenizer?"
        )
    if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
        raise InputError(
            "the tokenizer has neither a bos_token nor an eos_token, and lm-eval needs one to begin a text "
            "with; name one in its tokenizer_config.json"
        )
