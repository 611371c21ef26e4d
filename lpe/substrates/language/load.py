"""A causal language model and its tokenizer, from a folder in transformers' format or from the hub."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lpe.checks import shown
from lpe.errors import InputError
from lpe.extras import needs
from lpe.modules import apply, device_of, named_tensors
from lpe.notices import note
from lpe.substrates import hub
from lpe.substrates.loading import check_pickle, parameter_bytes, read_weights, require_memory

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
DOWNLOADED = ("*.json", "*.safetensors", "*.model", "*.txt")
"""Patterns of the files that are fetched of a hub's repository: never a pickle."""


DERIVED = re.compile(r"(^|\.)(rotary_emb\.inv_freq|position_ids|(?P<mask>(attn|attention)\.(masked_)?bias))$")
"""Names of tensors that files of older versions have and models work out for themselves."""

STORED = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "BOOL": torch.bool,
}
"""safetensors' names of dtypes."""


def load_model(
    source: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str] | None = None,
    dtype: torch.dtype | str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a causal language model in eval mode, on the CPU, and its tokenizer.

    Tensors that the model works out for itself may be in the file (the rotary ``inv_freq``, GPT-2's masks
    ``attn.bias``), and others that transformers leaves out for the model's class.

    Args:
        source: a folder in transformers' format, or a name on the hub, which is looked up in the local cache
            first. No code from there is run, and pickles are read with ``weights_only``.
        checkpoint: a file of weights (safetensors, or a state dict of ``torch.save``) instead of the
            folder's own.
        dtype: of the weights; None: the configuration's, as lm-eval's ``hf`` model has it, and where it names
            none the file's. A note says where that is not the file's.

    Raises:
        InputError: a file that is not there, by name, with where to put it; a damaged one; an adapter, a
            quantised model, an encoder-decoder; weights that do not fit the configuration, and integers where
            the model has floating numbers; a tokenizer that lacks tokens or has more than the model's
            embedding; a model that is larger than the free memory (said before it is loaded).
    """
    needs("transformers")

    from transformers import AutoConfig, AutoModelForCausalLM

    asked = _dtype(dtype)
    folder = _folder(source, weights=checkpoint is None)
    unknown = f"{folder} has no configuration of a causal language model that transformers knows"
    with one_line(unknown):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    check_decoder(config, f"the model in {folder}")
    _check_quantised(config, folder)
    origin = folder if checkpoint is None else Path(checkpoint)
    weights = None if checkpoint is None else read_weights(checkpoint)
    wanted = asked or getattr(config, "dtype", None) or _dtypes(_stored(folder, weights)).most_common(1)[0][0]
    with one_line(unknown), torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config, dtype=wanted, trust_remote_code=False)
    require_memory(parameter_bytes(skeleton), f"{type(skeleton).__name__} from {source} in {wanted}")
    tokenizer = _load_tokenizer(folder)
    check_tokenizer(tokenizer, skeleton)
    stored = _stored(folder, weights)
    with one_line(f"cannot read the weights in {origin}"), _quiet_transformers():
        loaded: Any = type(skeleton).from_pretrained(
            folder if weights is None else None,
            config=config,
            state_dict=weights,
            dtype=wanted,
            local_files_only=True,
            trust_remote_code=False,
            weights_only=True,
            use_safetensors=any((folder / name).is_file() for name in WEIGHTS[:2]),
            ignore_mismatched_sizes=True,  # they are told with the others, and refused
            output_loading_info=True,
        )
    model, loading = loaded
    _check_loading(loading, stored, origin, model)
    _say_what_differs(model, stored, origin, wanted if asked is None else None)
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
    """Turn any exception of a library within into a one-line InputError: which it is depends on the
    damage.
    """
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        raise InputError(f"{what}: {_first_line(error)}") from None


def _folder(source: str | os.PathLike[str], weights: bool) -> Path:
    """Return the local folder of a model's files; a hub's repository is fetched where that is possible."""
    if not isinstance(source, str | os.PathLike):
        raise InputError(f"a model is named by its folder or its name on the hub, not by {shown(source)}")
    folder = Path(source)
    if folder.is_dir():
        _check_files(folder, weights, f"put it into {folder}")
        return folder
    name = str(source)
    if not name or folder.is_absolute() or name.count("/") > 1 or name.startswith((".", "~")):
        raise InputError(f"there is no folder {name}; give a folder in transformers' format or a hub's name")
    return _hub_folder(name, weights)


def _hub_folder(name: str, weights: bool) -> Path:
    needs("huggingface_hub")

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
    if (folder / "adapter_config.json").is_file():
        raise InputError(
            f"{folder} has an adapter (adapter_config.json), which is no model; merge it into its model "
            "(peft's merge_and_unload) and give the folder of that"
        )
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


def _check_quantised(config: PretrainedConfig, folder: Path) -> None:
    for part in (config, config.get_text_config()):
        for key in ("quantization_config", "compression_config"):
            if found := getattr(part, key, None):
                told = found if isinstance(found, dict) else vars(found)
                method = told.get("quant_method", "of a kind that it does not name")
                raise InputError(
                    f"the model in {folder} is quantised ({getattr(method, 'value', method)}; {key} in "
                    "config.json), and its values are another number system's; give the unquantised model"
                )


def _check_loading(
    loading: Mapping[str, Any], stored: Mapping[str, Tensor], origin: Path, model: PreTrainedModel
) -> None:
    """Refuse what transformers only warns of, or does without a word.

    That are tensors that keep their random start, those of another shape, those that go unused, integers that
    become weights, and numbers that become infinite.
    """
    unexpected = [
        name
        for name in loading["unexpected_keys"]
        if name not in stored or not _is_derived(name, stored[name])
    ]
    misshapen = [
        f"{name} {list(its)} (the model: {list(ours)})" for name, its, ours in loading["mismatched_keys"]
    ]
    kinds = [
        f"{len(names)} {kind}: {some(sorted(names))}"
        for kind, names in (
            ("missing", loading["missing_keys"]),
            ("unexpected", unexpected),
            ("misshapen", misshapen),
        )
        if names
    ]
    if kinds:
        raise InputError(f"the weights in {origin} do not fit {type(model).__name__}: {'; '.join(kinds)}")
    whole = {
        entry.name.rpartition(".")[2]
        for entry in named_tensors(model)
        if not entry.tensor.is_floating_point()
    }
    ignored = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    codes = [
        name
        for name, tensor in stored.items()
        if not tensor.is_floating_point()
        and name.rpartition(".")[2] not in whole
        and not DERIVED.search(name)
        and not any(re.search(each, name) for each in ignored)
    ]
    if codes:
        raise InputError(
            f"{origin} has integers ({_plain(stored[codes[0]].dtype)}) where {type(model).__name__} has "
            f"floating numbers: {some(codes)}; codes of a quantised model? give its values"
        )
    if model.dtype == torch.float16 and set(_dtypes(stored)) != {torch.float16}:
        over = [name for name, its in model.named_parameters() if not bool(torch.isfinite(its).all())]
        if over:
            raise InputError(
                f"float16 does not hold all numbers of {origin}: {some(over)} would be infinite; take "
                "bfloat16 or float32"
            )


def _is_derived(name: str, tensor: Tensor) -> bool:
    """Tell whether an unexpected tensor is one that old transformers versions saved and worked out anew."""
    found = DERIVED.search(name)
    # A mask is [1, 1, tokens, tokens] and its filling a number; a vector of that name would be a bias.
    return found is not None and (not found["mask"] or tensor.ndim in (0, 4))


def _say_what_differs(
    model: PreTrainedModel, stored: Mapping[str, Tensor], origin: Path, dtype: torch.dtype | None
) -> None:
    """Note what of a file is not in the model as it is stored.

    Args:
        dtype: of the model; None: it was asked for.
    """
    floating = _dtypes(stored)
    for its, count in floating.items():
        if dtype is not None and its != dtype:
            note(
                f"{count} of {sum(floating.values())} tensors in {origin} are {_plain(its)} and are loaded "
                f"as {_plain(dtype)}, the dtype of config.json; ask for a dtype to choose it"
            )
    own = model.state_dict().keys()
    ignored = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    renamed = [
        name
        for name, tensor in stored.items()
        if name not in own
        and not _is_derived(name, tensor)
        and not any(re.search(each, name) for each in ignored)
    ]
    if renamed:
        note(
            f"{len(renamed)} of {len(stored)} tensors in {origin} have other names than "
            f"{type(model).__name__}'s, and transformers loads them under those: {some(sorted(renamed))}"
        )
    words, head = model.get_input_embeddings(), model.get_output_embeddings()
    if (
        model.config.get_text_config().tie_word_embeddings
        and head is not None
        and words.weight is not head.weight
    ):
        note(f"{origin} has an LM head and an embedding that differ, which config.json ties; they stay two")
    frequencies = {name for name in stored if name.endswith("rotary_emb.inv_freq")}
    ours = [each for name, each in model.named_buffers() if name.endswith("inv_freq")]
    if frequencies and ours:
        values = _values(origin, frequencies)
        off = [
            name
            for name in sorted(values)
            # Where they are stored in bfloat16, they are off by 2⁻⁸.
            if not any(
                each.shape == values[name].shape and torch.allclose(each, values[name].float(), rtol=1e-2)
                for each in ours
            )
        ]
        if off:
            note(
                f"{origin} has other rotary frequencies than config.json gives ({some(off)}); the latter are "
                "taken, as from_pretrained has it"
            )


def _stored(folder: Path, weights: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Return the tensors of a file or of a folder's files by name, on the meta device: dtypes and shapes."""
    if weights is not None:
        return {name: tensor.to("meta") for name, tensor in weights.items()}
    with one_line(f"cannot read the weights in {folder}"):
        return {name: each for path in _weight_files(folder) for name, each in _tensors(path, None).items()}


def _values(origin: Path, names: set[str]) -> dict[str, Tensor]:
    with one_line(f"cannot read the weights in {origin}"):
        files = _weight_files(origin) if origin.is_dir() else [origin]
        return {name: each for path in files for name, each in _tensors(path, names).items()}


def _weight_files(folder: Path) -> list[Path]:
    found = next(name for name in WEIGHTS if (folder / name).is_file())
    if not found.endswith(".index.json"):
        return [folder / found]
    parts = json.loads((folder / found).read_text(encoding="utf-8"))["weight_map"].values()
    return [folder / part for part in sorted(set(parts))]


def _tensors(path: Path, names: set[str] | None) -> dict[str, Tensor]:
    """Return a file's tensors of these names; None: all, without their values (on the meta device)."""
    import safetensors

    if path.suffix != ".safetensors":
        check_pickle(path)
        held = torch.load(path, map_location="meta" if names is None else "cpu", weights_only=True)
        return {name: each for name, each in held.items() if names is None or name in names}
    with safetensors.safe_open(path, "pt") as file:
        if names is not None:
            return {name: file.get_tensor(name) for name in names.intersection(file.keys())}
        headers = {name: file.get_slice(name) for name in file.keys()}
        return {
            # Of a kind that torch lacks, whatever it is: codes.
            name: torch.empty(
                each.get_shape(), dtype=STORED.get(each.get_dtype(), torch.uint8), device="meta"
            )
            for name, each in headers.items()
        }


def _dtypes(stored: Mapping[str, Tensor]) -> Counter[torch.dtype]:
    """Count the tensors of each floating dtype; one of float32 where there are none."""
    found = Counter(tensor.dtype for tensor in stored.values() if tensor.is_floating_point())
    return found or Counter([torch.float32])


def some(names: Sequence[str]) -> str:
    """Return the first three names."""
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Silence transformers' report of a loading, which is said here in a line or refused."""
    needs("transformers")

    from transformers.utils import logging as theirs

    level = theirs.get_verbosity()
    theirs.set_verbosity_error()
    try:
        yield
    finally:
        theirs.set_verbosity(level)


def check_decoder(config: Any, name: str) -> None:
    """Raise InputError for an encoder-decoder, by the configuration of the model of that name."""
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(
            f"{name} is an encoder-decoder (is_encoder_decoder in its config); a decoder alone is needed, "
            "such as Llama or GPT-2"
        )


@torch.no_grad()
def check_causal(model: nn.Module, length: int) -> None:
    """Raise InputError where a model's predictions depend on later tokens; run it on two texts of 8 tokens.

    Args:
        model: of transformers, in eval mode. length: tokens that it reads at most.
    """
    config: Any = model.config
    half = min(8, length) // 2
    texts = torch.arange(2 * half).repeat(2, 1)
    texts[1, half:] += 2 * half
    texts = texts.remainder(config.get_text_config().vocab_size).to(device_of(model))
    first, second = (apply(model, text[None])[0, :half] for text in texts)
    # Far above what another order of summation makes, far below what a token that is seen does.
    room = 1e-3 if first.dtype in (torch.float32, torch.float64) else 0.05
    if half and (first - second).abs().max() > room * first.std():
        raise InputError(
            f"{type(model).__name__} is no causal language model: what it predicts for a token depends on "
            "later ones; take a decoder, or give an encoder is_decoder in its config"
        )


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    needs("transformers")

    from transformers import AutoTokenizer

    with one_line(f"{folder} has no whole tokenizer"):
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, model: nn.Module) -> None:
    """Raise InputError unless a tokenizer's tokens are the model's, with one from which a text can begin."""
    needs("transformers")

    from transformers import PreTrainedTokenizerBase

    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise InputError(f"the tokenizer must be one of transformers, not {shown(tokenizer)}")
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
