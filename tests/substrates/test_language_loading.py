"""Weights of language models: loaded as they are stored, noted where that cannot be, or refused in a line."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import (
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

import lpe
from lpe import notices
from lpe.errors import InputError
from lpe.substrates.language import EnsembleLM, load_model
from lpe.substrates.language.load import check_causal

VOCABULARY, CONTEXT = 16, 24
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.6,
}
GPT2 = GPT2Config(
    vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=2, n_positions=CONTEXT, bos_token_id=1, eos_token_id=2
)


def made(kind: Any, config: PretrainedConfig) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(config).eval()


def llama(**further: Any) -> Any:
    return made(LlamaForCausalLM, LlamaConfig(**{**SMALL, "num_key_value_heads": 1, **further}))


def a_tokenizer() -> Any:
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {
        letter: 3 + place for place, letter in enumerate("abcd")
    }
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")


def folder_of(model: PreTrainedModel, weights: dict[str, Tensor], folder: Path, **config: Any) -> Path:
    """A folder in transformers' format with these weights, ``config`` on top of the model's own."""
    model.config.save_pretrained(folder)
    told = {**json.loads((folder / "config.json").read_text(encoding="utf-8")), **config}
    (folder / "config.json").write_text(json.dumps(told), encoding="utf-8")
    a_tokenizer().save_pretrained(folder)
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "model.safetensors")
    return folder


def state(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def refused(*arguments: Any, **further: Any) -> str:
    with pytest.raises(InputError) as error:
        load_model(*arguments, **further)
    assert "\n" not in str(error.value)
    return str(error.value)


def loads_as(model: PreTrainedModel, *arguments: Any, **further: Any) -> bool:
    found = load_model(*arguments, **further)[0]
    return all(torch.equal(value, found.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Any:
    """The notes since the test began."""
    notices.forget()
    caplog.set_level(logging.WARNING, logger="lpe")
    return lambda: [each.getMessage() for each in caplog.records if each.name == "lpe"]


# Tensors that a model works out for itself.


@pytest.fixture
def old_llama(tmp_path: Path) -> Path:
    """As older versions of transformers saved one."""
    weights = state(llama())
    frequencies = 10000 ** -(torch.arange(0, 8, 2) / 8)
    weights |= {
        f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": frequencies.clone() for layer in (0, 1)
    }
    return folder_of(llama(), weights, tmp_path)


@pytest.mark.parametrize("as_checkpoint", [False, True])
def test_rotary_frequencies_in_the_file_are_no_fault(old_llama: Path, said: Any, as_checkpoint: bool) -> None:
    assert loads_as(llama(), old_llama, old_llama / "model.safetensors" if as_checkpoint else None)
    assert said() == []


def test_rotary_frequencies_that_are_not_the_configurations_are_noted(old_llama: Path, said: Any) -> None:
    told = json.loads((old_llama / "config.json").read_text(encoding="utf-8"))
    told["rope_parameters"]["rope_theta"] = 500.0
    (old_llama / "config.json").write_text(json.dumps(told), encoding="utf-8")
    load_model(old_llama)
    (line,) = said()
    assert "other rotary frequencies than config.json gives (model.layers.0.self_attn.rotary_emb" in line


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.float32])
@pytest.mark.parametrize("as_checkpoint", [False, True])
def test_gpt2s_masks_in_the_file_are_no_fault(
    tmp_path: Path, dtype: torch.dtype, as_checkpoint: bool
) -> None:
    model = made(GPT2LMHeadModel, GPT2)
    # As the hub's: without the prefix, and without the head that is tied to the embedding.
    weights = {
        name.removeprefix("transformer."): value
        for name, value in state(model).items()
        if "lm_head" not in name
    }
    weights["h.0.attn.bias"] = torch.ones(1, 1, CONTEXT, CONTEXT).tril().to(dtype)
    weights["h.0.attn.masked_bias"] = torch.tensor(-1e4)
    folder = folder_of(model, weights, tmp_path)
    assert loads_as(model, folder, folder / "model.safetensors" if as_checkpoint else None)


def test_a_vector_with_a_masks_name_is_refused(tmp_path: Path) -> None:
    weights = state(llama()) | {"model.layers.0.attention.bias": torch.ones(16)}
    assert "1 unexpected: model.layers.0.attention.bias" in refused(folder_of(llama(), weights, tmp_path))


@pytest.mark.parametrize("as_checkpoint", [False, True])
def test_other_extra_tensors_are_refused_with_the_first_three_names(
    tmp_path: Path, as_checkpoint: bool
) -> None:
    weights = state(llama()) | {f"extra.{letter}": torch.ones(2) for letter in "dcba"}
    folder = folder_of(llama(), weights, tmp_path)
    line = refused(folder, folder / "model.safetensors" if as_checkpoint else None)
    assert "do not fit LlamaForCausalLM: 4 unexpected: extra.a, extra.b, extra.c …" in line


def test_a_tensor_of_another_shape_is_named_with_both(tmp_path: Path) -> None:
    weights = state(llama()) | {"model.norm.weight": torch.ones(5)}
    line = refused(folder_of(llama(), weights, tmp_path))
    assert "1 misshapen: model.norm.weight [5] (the model: [16])" in line


# Tied tensors.


def test_a_tied_head_need_not_be_in_the_file(tmp_path: Path) -> None:
    model = llama(tie_word_embeddings=True)
    weights = {name: value for name, value in state(model).items() if name != "lm_head.weight"}
    assert loads_as(model, folder_of(model, weights, tmp_path))


@pytest.mark.parametrize("as_checkpoint", [False, True])
def test_a_head_that_is_tied_and_differs_stays_as_it_is_stored(
    tmp_path: Path, said: Any, as_checkpoint: bool
) -> None:
    folder = folder_of(llama(), state(llama()), tmp_path, tie_word_embeddings=True)
    assert loads_as(llama(), folder, folder / "model.safetensors" if as_checkpoint else None)
    assert "an LM head and an embedding that differ, which config.json ties" in said()[0]


# Dtypes.


def half(model: PreTrainedModel, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    return {name: value.to(dtype) for name, value in state(model).items()}


@pytest.mark.parametrize("as_checkpoint", [False, True])
def test_a_file_of_another_dtype_than_the_configurations_is_noted(
    tmp_path: Path, said: Any, as_checkpoint: bool
) -> None:
    folder = folder_of(llama(), half(llama()), tmp_path, dtype="bfloat16")
    model, _ = load_model(folder, folder / "model.safetensors" if as_checkpoint else None)
    assert model.dtype == torch.bfloat16
    (line,) = said()
    assert "21 of 21 tensors in" in line and "are float16 and are loaded as bfloat16" in line


def test_of_a_file_of_two_dtypes_what_is_cast_is_noted(tmp_path: Path, said: Any) -> None:
    weights = half(llama(), torch.bfloat16) | {"model.norm.weight": torch.ones(16)}
    load_model(folder_of(llama(), weights, tmp_path, dtype="bfloat16"))
    (line,) = said()
    assert "1 of 21 tensors in" in line and "are float32 and are loaded as bfloat16" in line


def test_names_that_transformers_changes_are_noted(tmp_path: Path, said: Any) -> None:
    weights = {name.removeprefix("model."): value for name, value in state(llama()).items()}
    net, _ = load_model(folder_of(llama(), weights, tmp_path))
    assert torch.equal(net.state_dict()["model.norm.weight"], weights["norm.weight"])
    (line,) = said()
    assert "20 of 21 tensors in" in line and "have other names than LlamaForCausalLM's" in line
    assert "embed_tokens.weight" in line


def test_a_dtype_that_is_asked_for_is_taken_without_a_note(tmp_path: Path, said: Any) -> None:
    folder = folder_of(llama(), half(llama()), tmp_path, dtype="float16")
    assert load_model(folder, dtype="float32")[0].dtype == torch.float32
    assert said() == []


def test_where_the_configuration_names_no_dtype_it_is_the_files(tmp_path: Path, said: Any) -> None:
    folder = folder_of(llama(), half(llama()), tmp_path, dtype=None)
    assert load_model(folder)[0].dtype == torch.float16
    assert said() == []


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32])
@pytest.mark.parametrize("as_checkpoint", [False, True])
def test_integers_in_the_place_of_weights_are_refused(
    tmp_path: Path, dtype: torch.dtype, as_checkpoint: bool
) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    weights = state(llama())
    weights[name] = (weights[name] * 50).abs().to(dtype)
    folder = folder_of(llama(), weights, tmp_path)
    line = refused(folder, folder / "model.safetensors" if as_checkpoint else None)
    assert f"where LlamaForCausalLM has floating numbers: {name}; codes of a quantised model?" in line


def test_they_are_refused_of_a_model_that_ignores_nothing_as_transformers_5_0_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    post_init = LlamaForCausalLM.post_init

    def without(model: LlamaForCausalLM) -> None:
        post_init(model)
        model._keys_to_ignore_on_load_unexpected = None

    monkeypatch.setattr(LlamaForCausalLM, "post_init", without)
    weights = state(llama()) | {"model.norm.weight": torch.ones(16, dtype=torch.int8)}
    assert "has integers (int8)" in refused(folder_of(llama(), weights, tmp_path))


@pytest.mark.parametrize("as_checkpoint", [False, True])
def test_numbers_that_float16_does_not_hold_are_refused(tmp_path: Path, as_checkpoint: bool) -> None:
    weights = state(llama()) | {"model.norm.weight": torch.full((16,), 7e4)}
    folder = folder_of(llama(), weights, tmp_path)
    line = refused(folder, folder / "model.safetensors" if as_checkpoint else None, "float16")
    assert "float16 does not hold all numbers of" in line and "model.norm.weight would be infinite" in line


def test_integers_in_a_pickled_folder_are_refused(tmp_path: Path) -> None:
    weights = {name: (50 * value).to(torch.int8) for name, value in state(llama()).items()}
    folder_of(llama(), {}, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    assert "has integers (int8)" in refused(tmp_path)


def test_a_pickled_folder_loads(tmp_path: Path) -> None:
    folder_of(llama(), {}, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(state(llama()), tmp_path / "pytorch_model.bin")
    assert loads_as(llama(), tmp_path)


def test_weights_in_several_files_load(tmp_path: Path) -> None:
    weights = state(llama())
    folder_of(llama(), {}, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    names = sorted(weights)
    files = {"model-1.safetensors": names[:9], "model-2.safetensors": names[9:]}
    for file, its in files.items():
        save_file({name: weights[name] for name in its}, tmp_path / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, its in files.items() for name in its}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert loads_as(llama(), tmp_path)


# What is no model of its own.


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "torchao", "compressed-tensors", "fp8"])
def test_a_quantised_model_is_refused_with_its_method(tmp_path: Path, method: str) -> None:
    config = {"quantization_config": {"quant_method": method, "bits": 4}}
    line = refused(folder_of(llama(), state(llama()), tmp_path, **config))
    assert f"is quantised ({method}; quantization_config in config.json)" in line


@pytest.mark.parametrize("beside_a_model", [False, True])
def test_an_adapter_is_refused(tmp_path: Path, beside_a_model: bool) -> None:
    if beside_a_model:
        folder_of(llama(), state(llama()), tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}', encoding="utf-8")
    assert "has an adapter (adapter_config.json), which is no model; merge it" in refused(tmp_path)


def test_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    config = T5Config(vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    model = made(T5ForConditionalGeneration, config)
    weights = {"shared.weight": model.shared.weight.detach()}
    line = refused(folder_of(model, weights, tmp_path))
    assert "is an encoder-decoder (is_encoder_decoder in its config); a decoder alone is needed" in line
    with pytest.raises(InputError, match="T5ForConditionalGeneration is an encoder-decoder"):
        EnsembleLM(lpe.DeepEnsemble([model]), a_tokenizer())


@pytest.mark.parametrize("std", [0.02, 0.6])
def test_an_encoder_whose_tokens_see_later_ones_is_refused(std: float) -> None:
    model = made(BertLMHeadModel, BertConfig(**{**SMALL, "initializer_range": std}))
    with pytest.raises(
        InputError, match="BertLMHeadModel is no causal language model: .* give .* is_decoder"
    ):
        EnsembleLM(lpe.DeepEnsemble([model]), a_tokenizer())


MIXTRAL = MixtralConfig(**{**SMALL, "num_key_value_heads": 1, "num_local_experts": 4})
MISTRAL = MistralConfig(**{**SMALL, "num_key_value_heads": 1, "sliding_window": 3})
MAMBA = MambaConfig(vocab_size=VOCABULARY, hidden_size=16, state_size=4, num_hidden_layers=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (BertLMHeadModel, BertConfig(**SMALL, is_decoder=True)),
        (GPT2LMHeadModel, GPT2),
        (MambaForCausalLM, MAMBA),
        (MistralForCausalLM, MISTRAL),
        (MixtralForCausalLM, MIXTRAL),
    ],
)
def test_decoders_are_taken_for_what_they_are(kind: Any, config: Any, dtype: torch.dtype) -> None:
    check_causal(made(kind, config).to(dtype), CONTEXT)


def test_a_model_of_a_sliding_window_answers_for_a_batch_as_for_each_alone() -> None:
    from lm_eval.api.instance import Instance

    requests = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in ("ab", "a" * 20, "abcd" * 12)]
    lm = [
        EnsembleLM(lpe.DeepEnsemble([made(MistralForCausalLM, MISTRAL)]), a_tokenizer(), size)
        for size in (1, 8)
    ]
    assert lm[0].loglikelihood_rolling(requests) == pytest.approx(lm[1].loglikelihood_rolling(requests))
