"""Which tensors are quantised and along which axis, on real architectures built at random."""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn

import lpe
from lpe import notices
from lpe.ensembles.selection import Coverage, PlannedTensor, select_tensors
from lpe.modules import named_tensors
from lpe.number_systems import streams

INT4 = lpe.Int(4)


def timm_vit() -> nn.Module:
    import timm

    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, embed_dim=24, depth=1, num_heads=2, num_classes=5, reg_tokens=2
    )


def timm_resnet() -> nn.Module:
    from timm.models.resnet import BasicBlock, ResNet

    return ResNet(BasicBlock, (1, 1, 1, 1), channels=(8, 8, 16, 16), stem_width=8, num_classes=5)


def timm_swin() -> nn.Module:
    import timm

    settings = {"embed_dim": 16, "depths": (2, 1), "num_heads": (2, 2), "num_classes": 5}
    return timm.create_model("swin_tiny_patch4_window7_224", img_size=32, window_size=4, **settings)


def attention() -> nn.Module:
    return nn.MultiheadAttention(8, 2, add_bias_kv=True)


def cross_attention() -> nn.Module:
    return nn.MultiheadAttention(8, 2, kdim=6, vdim=4)


def plain_kinds() -> nn.Module:
    return nn.ModuleDict(
        {
            "up": nn.ConvTranspose2d(4, 6, 3, groups=2),
            "conv": nn.Conv1d(4, 6, 3, groups=2),
            "words": nn.Embedding(7, 4),
            "bag": nn.EmbeddingBag(7, 4),
            "pair": nn.Bilinear(3, 4, 5),
            "norm": nn.LayerNorm((4, 6)),
            "memory": nn.LSTM(4, 3, proj_size=2),
        }
    )


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": 40, "n_positions": 12, "n_embd": 16, "n_layer": 1, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))


def llama(tied: bool) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "max_position_embeddings": 12}
    layers = {"num_hidden_layers": 1, "num_attention_heads": 2, "tie_word_embeddings": tied}
    tokens = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    return LlamaForCausalLM(LlamaConfig(**sizes, **layers, **tokens))


def open_clip_model() -> nn.Module:
    from open_clip.model import CLIP

    vision = {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16}
    text = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
    return CLIP(embed_dim=12, vision_cfg=vision, text_cfg=text)


LLAMA_LAYER = {
    f"model.layers.0.{part}.weight": 0
    for part in (
        *(f"self_attn.{letter}_proj" for letter in "qkvo"),
        *(f"mlp.{which}_proj" for which in ("gate", "up", "down")),
    )
}

# Architecture → (builder, quantised tensor → output axis). Written by hand, from the papers' definition.
ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], dict[str, int]]] = {
    "timm ViT": (
        timm_vit,
        {
            "patch_embed.proj.weight": 0,
            "blocks.0.attn.qkv.weight": 0,
            "blocks.0.attn.proj.weight": 0,
            "blocks.0.mlp.fc1.weight": 0,
            "blocks.0.mlp.fc2.weight": 0,
            "head.weight": 0,
        },
    ),
    "timm ResNet": (
        timm_resnet,
        {
            "conv1.weight": 0,
            "fc.weight": 0,
            **{f"layer{i}.0.conv{j}.weight": 0 for i in range(1, 5) for j in (1, 2)},
            **{f"layer{i}.0.downsample.0.weight": 0 for i in range(1, 5)},
        },
    ),
    "timm Swin": (
        timm_swin,
        {
            "patch_embed.proj.weight": 0,
            "layers.1.downsample.reduction.weight": 0,
            "head.fc.weight": 0,
            **{
                f"layers.{block}.{part}.weight": 0
                for block in ("0.blocks.0", "0.blocks.1", "1.blocks.0")
                for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
            },
        },
    ),
    "attention": (attention, {"in_proj_weight": 0, "out_proj.weight": 0}),
    "cross-attention": (
        cross_attention,
        {"q_proj_weight": 0, "k_proj_weight": 0, "v_proj_weight": 0, "out_proj.weight": 0},
    ),
    "plain kinds": (
        plain_kinds,
        {
            **{"up.weight": 1, "conv.weight": 0, "words.weight": 0, "bag.weight": 0, "pair.weight": 0},
            **{f"memory.weight_{which}_l0": 0 for which in ("ih", "hh", "hr")},
        },
    ),
    "GPT-2": (
        gpt2,
        {
            f"transformer.h.0.{part}.weight": 1
            for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
        },
    ),
    "Llama": (functools.partial(llama, False), {"model.embed_tokens.weight": 0, **LLAMA_LAYER}),
    "tied Llama": (functools.partial(llama, True), LLAMA_LAYER),
    "open_clip": (
        open_clip_model,
        {
            "visual.proj": 1,
            "text_projection": 1,
            "visual.conv1.weight": 0,
            "token_embedding.weight": 0,
            **{
                f"{tower}transformer.resblocks.0.{part}": 0
                for tower in ("", "visual.")
                for part in (
                    "attn.in_proj_weight",
                    "attn.out_proj.weight",
                    "mlp.c_fc.weight",
                    "mlp.c_proj.weight",
                )
            },
        },
    ),
}
EVERY_ARCHITECTURE = pytest.mark.parametrize("architecture", ARCHITECTURES)


@functools.cache
def model_of(architecture: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ARCHITECTURES[architecture][0]().eval()


@functools.cache
def plan_of(architecture: str) -> dict[str, PlannedTensor]:
    return {planned.name: planned for planned in select_tensors(model_of(architecture), INT4)}


def quantised(plan: Iterable[PlannedTensor]) -> set[str]:
    return {planned.name for planned in plan if planned.quantised}


def message_of(caught: pytest.ExceptionInfo[lpe.InputError]) -> str:
    message = str(caught.value)
    assert "\n" not in message
    return message


@EVERY_ARCHITECTURE
def test_the_quantised_tensors_are_exactly_the_weights_that_multiply(architecture: str) -> None:
    assert quantised(plan_of(architecture).values()) == set(ARCHITECTURES[architecture][1])


@EVERY_ARCHITECTURE
def test_the_output_axis_of_each_quantised_tensor_is_that_of_its_kind(architecture: str) -> None:
    expected = ARCHITECTURES[architecture][1]
    assert {name: plan_of(architecture)[name].layout.output_axis for name in expected} == expected


@EVERY_ARCHITECTURE
def test_every_parameter_and_buffer_is_listed_once(architecture: str) -> None:
    model = model_of(architecture)
    tensors = [*model.named_parameters(), *model.named_buffers()]
    assert sorted(plan_of(architecture)) == sorted(name for name, _ in tensors)


@EVERY_ARCHITECTURE
def test_describe_has_a_row_for_each_tensor_with_its_shape_verdict_and_reason(architecture: str) -> None:
    rows = lpe.LowPrecisionEnsemble(model_of(architecture), INT4, 1).describe().splitlines()[2:-1]
    # Columns are two spaces apart, and no cell has two spaces in a row.
    cells = {row.split()[0]: [cell.strip() for cell in row.split("  ") if cell.strip()] for row in rows}
    expected = {
        name: [
            name,
            "×".join(map(str, planned.shape)) or "scalar",
            "yes" if planned.quantised else "no",
            planned.reason + ("" if planned.saved else ", not saved"),
            "4" if planned.quantised else str(planned.bits),
        ]
        for name, planned in plan_of(architecture).items()
    }
    assert len(rows) == len(cells)
    assert all(planned.reason for planned in plan_of(architecture).values())
    assert cells == expected


@pytest.mark.parametrize(
    ("architecture", "name", "reason"),
    [
        ("timm ViT", "cls_token", "token"),
        ("timm ViT", "reg_token", "token"),
        ("timm ViT", "pos_embed", "position"),
        ("timm ViT", "head.bias", "one-dimensional"),
        ("timm ResNet", "bn1.weight", "one-dimensional"),
        ("timm ResNet", "bn1.running_var", "buffer"),
        ("timm ResNet", "bn1.num_batches_tracked", "buffer"),
        ("timm Swin", "layers.0.blocks.0.attn.relative_position_bias_table", "position"),
        ("timm Swin", "layers.0.blocks.0.attn.relative_position_index", "buffer"),
        ("attention", "bias_k", "bias"),
        ("attention", "bias_v", "bias"),
        ("plain kinds", "norm.weight", "norm (LayerNorm)"),
        ("plain kinds", "norm.bias", "bias"),
        ("plain kinds", "memory.bias_ih_l0", "one-dimensional"),
        ("GPT-2", "transformer.wpe.weight", "position"),
        ("GPT-2", "transformer.wte.weight", "LM head; tied: lm_head.weight"),
        ("Llama", "lm_head.weight", "LM head"),
        ("tied Llama", "model.embed_tokens.weight", "LM head; tied: lm_head.weight"),
        ("open_clip", "positional_embedding", "position"),
        ("open_clip", "visual.positional_embedding", "position"),
        ("open_clip", "visual.class_embedding", "one-dimensional"),
        ("open_clip", "logit_scale", "one-dimensional"),
        ("open_clip", "attn_mask", "buffer"),
    ],
)
def test_a_tensor_left_out_has_its_reason(architecture: str, name: str, reason: str) -> None:
    assert plan_of(architecture)[name].reason == reason


def test_a_t5_relative_attention_bias_is_a_position_though_an_embedding_holds_it() -> None:
    block = nn.Module()
    block.relative_attention_bias = nn.Embedding(8, 2)
    block.q = nn.Linear(4, 4)
    assert quantised(select_tensors(block, INT4)) == {"q.weight"}


@pytest.mark.parametrize(
    "name",
    [
        *("pos_embed", "pos_embed1", "position_embeddings", "wpe", "embed_positions", "rel_pos", "rel_pos_h"),
        *(
            "rel_embeddings",
            "x_position_embeddings",
            "relative_position_bias_table",
            "pos_emb",
            "position_enc",
        ),
        *("positional_embedding", "image_positions", "memory_temporal_positional_encoding", "pos"),
    ],
)
def test_an_embedding_of_positions_is_left_out(name: str) -> None:
    model = nn.ModuleDict({name: nn.Embedding(8, 2), "fc": nn.Linear(4, 4)})
    assert quantised(select_tensors(model, INT4)) == {"fc.weight"}


@pytest.mark.parametrize(
    "name",
    [
        "position_mlp",
        "token_type_embeddings",
        "composition",
        "deposit",
        "pos_tagger",
        "pos_embed_mlp",
        "positive",
    ],
)
def test_a_weight_that_multiplies_is_quantised_whatever_its_name_resembles(name: str) -> None:
    kind = nn.Linear(8, 2) if "mlp" in name or "pos" in name[2:] else nn.Embedding(8, 2)
    assert quantised(select_tensors(nn.ModuleDict({name: kind}), INT4)) == {f"{name}.weight"}


def test_a_grouped_transposed_convolution_has_a_scale_for_each_output_channel_of_each_group() -> None:
    planned = plan_of("plain kinds")["up.weight"]
    assert (planned.shape, planned.layout.scale_shape(INT4.scale)) == ((4, 3, 3, 3), (6, 1))


def test_a_tied_embedding_without_a_head_is_listed_under_its_first_name_with_the_other() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    planned = {p.name: p.reason for p in select_tensors(model, INT4) if p.quantised}
    assert planned == {"0.weight": "Linear; tied: 1.weight"}


def test_tensors_tied_by_memory_and_not_by_object_are_one() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = nn.Parameter(model[0].weight.data)
    assert [entry.name for entry in named_tensors(model)] == ["0.weight"]


def test_a_weight_tied_to_a_position_table_stays_at_full_precision() -> None:
    model = nn.ModuleDict({"fc": nn.Linear(4, 4), "other": nn.Linear(4, 4), "wpe": nn.Embedding(4, 4)})
    model["wpe"].weight = model["fc"].weight
    assert quantised(select_tensors(model, INT4)) == {"other.weight"}


class Wrapped(nn.Module):
    """As torch.compile wraps, without its cost."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._orig_mod = model

    def forward(self, inputs: Tensor) -> Tensor:
        return self._orig_mod(inputs)


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "module.": nn.DataParallel,
    "_orig_mod.": Wrapped,
    "module._orig_mod.": lambda model: nn.DataParallel(Wrapped(model)),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_the_members_of_a_wrapped_model_are_those_of_the_model(wrapper: str) -> None:
    model = model_of("timm ViT")
    bare = lpe.LowPrecisionEnsemble(model, INT4, 2)[1]
    wrapped = lpe.LowPrecisionEnsemble(WRAPPERS[wrapper](model), INT4, 2)[1]
    # Wrappers that only forward are no part of a member; one of the user's own is.
    kept = wrapper.removeprefix("module.")
    expected = {kept + name: value for name, value in bare.state_dict().items()}
    found = wrapped.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_plan_of_a_wrapped_model_has_names_without_the_wrapper() -> None:
    plan = select_tensors(nn.DataParallel(Wrapped(model_of("timm ViT"))), INT4)
    assert [planned.name for planned in plan] == list(plan_of("timm ViT"))


def test_two_names_with_one_tensor_id_are_an_error_that_names_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "tensor_id", lambda name: 7)
    with pytest.raises(lpe.InputError) as caught:
        select_tensors(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), INT4)
    assert "'0.weight'" in message_of(caught) and "'1.weight'" in message_of(caught)


def test_modules_that_only_bear_a_wrappers_name_keep_it() -> None:
    model = nn.Sequential()
    model.add_module("module", nn.Linear(2, 2))
    model.add_module("_orig_mod", nn.Linear(2, 2))
    names = [planned.name for planned in select_tensors(model, INT4) if planned.quantised]
    assert names == ["module.weight", "_orig_mod.weight"]


# Experts, routers and what else multiplies in its own way: tensor → the axis that is output, and its scales.

TINY = {
    **{"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1},
    **{"num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0},
}


def mixtral() -> nn.Module:
    from transformers import MixtralConfig, MixtralForCausalLM

    return MixtralForCausalLM(MixtralConfig(**TINY, num_local_experts=4))


def gpt_oss() -> nn.Module:
    from transformers import GptOssConfig, GptOssForCausalLM

    return GptOssForCausalLM(GptOssConfig(**TINY, num_local_experts=4, head_dim=8))


def llama4() -> nn.Module:
    from transformers.models.llama4.modeling_llama4 import Llama4TextConfig, Llama4TextExperts

    return Llama4TextExperts(Llama4TextConfig(**TINY, num_local_experts=4))


def jetmoe() -> nn.Module:
    from transformers.models.jetmoe.modeling_jetmoe import JetMoeParallelExperts

    return JetMoeParallelExperts(4, 16, 24)


def dbrx() -> nn.Module:
    from types import SimpleNamespace

    from transformers.models.dbrx.modeling_dbrx import DbrxExpertGLU

    sizes = {"hidden_size": 16, "ffn_hidden_size": 24, "moe_num_experts": 4, "ffn_act_fn": {"name": "silu"}}
    return DbrxExpertGLU(SimpleNamespace(**sizes))


def conditional_convolution() -> nn.Module:
    from timm.layers.cond_conv2d import CondConv2d

    return CondConv2d(6, 8, 3, groups=2, num_experts=4)


def cells() -> nn.Module:
    return nn.ModuleDict({"lstm": nn.LSTMCell(4, 3), "gru": nn.GRU(4, 3, num_layers=2, bidirectional=True)})


# Architecture, tensor: (output axis, number of scales under one an output channel).
OUTPUTS: list[tuple[Callable[[], nn.Module], str, tuple[int, int]]] = [
    (mixtral, "model.layers.0.mlp.experts.gate_up_proj", (1, 4 * 48)),
    (mixtral, "model.layers.0.mlp.experts.down_proj", (1, 4 * 16)),
    (mixtral, "model.layers.0.mlp.gate.weight", (0, 4)),
    (gpt_oss, "model.layers.0.mlp.experts.gate_up_proj", (2, 4 * 48)),
    (gpt_oss, "model.layers.0.mlp.experts.down_proj", (2, 4 * 16)),
    (gpt_oss, "model.layers.0.mlp.router.weight", (0, 4)),
    (llama4, "gate_up_proj", (2, 4 * 48)),
    (llama4, "down_proj", (2, 4 * 16)),
    (jetmoe, "weight", (1, 4 * 24)),
    (dbrx, "w1", (0, 4 * 24)),
    (dbrx, "v1", (0, 4 * 24)),
    (dbrx, "w2", (1, 4 * 16)),
    (conditional_convolution, "weight", (0, 4 * 8)),
    (cells, "lstm.weight_ih", (0, 12)),
    (cells, "lstm.weight_hh", (0, 12)),
    (cells, "gru.weight_ih_l1_reverse", (0, 9)),
]


@pytest.mark.parametrize(
    ("build", "name", "expected"), OUTPUTS, ids=lambda value: getattr(value, "__name__", None)
)
def test_what_multiplies_in_its_own_way_has_a_scale_an_output_channel_of_each_expert(
    build: Callable[[], nn.Module], name: str, expected: tuple[int, int]
) -> None:
    net = build()
    for parameter in net.parameters():
        nn.init.normal_(parameter)  # some are made without values
    planned = next(p for p in select_tensors(net, INT4) if p.name == name)
    scales = planned.layout.scale_shape(INT4.scale)
    assert planned.quantised and (planned.layout.output_axis, scales) == (expected[0], (expected[1], 1))


@pytest.mark.parametrize("build", [gpt_oss, mixtral], ids=lambda build: build.__name__)
def test_the_biases_of_experts_stay(build: Callable[[], nn.Module]) -> None:
    biases = [p for p in select_tensors(build(), INT4) if "bias" in p.name and len(p.shape) > 1]
    assert all((p.quantised, p.reason) == (False, "bias") for p in biases)
    assert bool(biases) == (build is gpt_oss)


def test_a_scale_of_an_expert_is_that_of_its_weights_for_one_output() -> None:
    torch.manual_seed(0)
    net = conditional_convolution()
    ensemble = lpe.LowPrecisionEnsemble(net, INT4, 1)
    largest = net.weight.view(4, 8, 3 * 9).abs().amax(dim=2).flatten()
    assert torch.equal(ensemble.scales("weight")[:, 0], largest / 7)


@pytest.mark.parametrize("name", ["q.lora_A.default", "q.lora_B.default"])
def test_an_adapter_stays_at_its_own_precision_unless_asked(name: str) -> None:
    model = nn.Module()
    model.q = nn.Linear(8, 8)
    model.q.lora_A, model.q.lora_B = (
        nn.ModuleDict({"default": nn.Linear(8, 8, bias=False)}) for _ in range(2)
    )
    plan = {p.name: p for p in select_tensors(model, INT4)}
    assert (plan[f"{name}.weight"].quantised, plan[f"{name}.weight"].reason) == (False, "adapter")
    assert quantised(select_tensors(model, INT4, include=["*lora*"])) >= {f"{name}.weight"}


# output_axis


def unruly() -> nn.Module:
    model = nn.Module()
    model.fc = nn.Linear(4, 6)
    model.kernel = nn.Parameter(torch.randn(3, 4, 5))
    return model


@pytest.mark.parametrize(
    ("axis", "scales"), [(0, 3), (1, 4), (2, 5), (-1, 5), ((0, 1), 12), ((0, 2), 15), ((0, -1), 15)], ids=str
)
def test_output_axis_tells_what_no_rule_knows(axis: int | tuple[int, int], scales: int) -> None:
    plan = {p.name: p for p in select_tensors(unruly(), INT4, output_axis={"ker*": axis})}
    assert plan["kernel"].quantised and plan["kernel"].layout.scale_shape(INT4.scale) == (scales, 1)
    assert plan["fc.weight"].layout.output_axis == 0


def test_output_axis_overrules_a_rule() -> None:
    plan = {p.name: p for p in select_tensors(unruly(), INT4, output_axis={"fc.weight": 1})}
    assert plan["fc.weight"].layout.scale_shape(INT4.scale) == (4, 1)


@pytest.mark.parametrize("axis", [3, -4, (1, 2), (0, 0), (0, 1, 2), "1", None, 1.0, True], ids=str)
def test_an_output_axis_that_a_tensor_does_not_have_is_an_error_that_names_both(axis: object) -> None:
    with pytest.raises(lpe.InputError, match=r"output_axis of 'kernel' must be .*\[3, 4, 5\]"):
        select_tensors(unruly(), INT4, output_axis={"kernel": axis})


@pytest.mark.parametrize("given", [1, ["kernel"], {0: 1}, "kernel=1"], ids=str)
def test_an_output_axis_that_is_no_mapping_is_an_error(given: object) -> None:
    with pytest.raises(lpe.InputError, match="output_axis must be a mapping"):
        select_tensors(unruly(), INT4, output_axis=given)


def test_members_round_along_the_output_axis_that_was_given() -> None:
    net = unruly()
    ensemble = lpe.LowPrecisionEnsemble(net, INT4, 2, output_axis={"kernel": (0, 2)})
    assert torch.equal(ensemble.scales("kernel")[:, 0], (net.kernel.abs().amax(dim=1) / 7).flatten())
    expected = lpe.round_weights(net.kernel, INT4, name="kernel", member=1, output_axis=2, channel_groups=3)
    assert torch.equal(ensemble[1].kernel, expected)


# include and exclude


def small() -> nn.Module:
    model = nn.Module()
    model.first = nn.Linear(3, 4)
    model.second = nn.Linear(4, 4)
    model.lm_head = nn.Linear(4, 5)
    model.norm = nn.LayerNorm((2, 2))
    model.pos_embed = nn.Parameter(torch.ones(2, 4))
    model.cls_token = nn.Parameter(torch.ones(1, 4))
    model.unknown = nn.Parameter(torch.ones(2, 4))
    model.register_buffer("table", torch.ones(2, 4))
    return model


def test_include_restricts_to_what_it_matches() -> None:
    assert quantised(select_tensors(small(), INT4, include="first.*")) == {"first.weight"}


def test_include_takes_a_list_of_patterns() -> None:
    assert quantised(select_tensors(small(), INT4, include=["first.*", "sec*"])) == {
        "first.weight",
        "second.weight",
    }


def test_include_says_of_what_it_leaves_out_that_it_is_not_included() -> None:
    plan = {p.name: p.reason for p in select_tensors(small(), INT4, include="first.*")}
    assert plan["second.weight"] == "not in include"


@pytest.mark.parametrize("name", ["lm_head.weight", "unknown"])
def test_include_reaches_an_lm_head_and_weights_without_a_rule(name: str) -> None:
    assert quantised(select_tensors(small(), INT4, include=name)) == {name}


@pytest.mark.parametrize("name", ["pos_embed", "cls_token", "norm.weight", "pos*", "*_token"])
def test_a_pattern_that_matches_no_weight_of_the_rules_is_taken_at_its_word(name: str) -> None:
    plan = select_tensors(small(), INT4, include=["first.weight", name])
    matched = {p.name for p in plan if fnmatch.fnmatchcase(p.name, name)}
    assert quantised(plan) == {"first.weight", *matched} and matched


@pytest.mark.parametrize("pattern", ["*", "*e*", "*o*"])
def test_a_pattern_that_matches_weights_of_the_rules_reaches_no_bias_norm_position_and_token(
    pattern: str,
) -> None:
    never = {"first.bias", "second.bias", "norm.weight", "norm.bias", "pos_embed", "cls_token"}
    assert not never & quantised(select_tensors(small(), INT4, include=pattern))


@pytest.mark.parametrize("name", ["table", "tab*"])
def test_include_never_reaches_a_buffer(name: str) -> None:
    assert quantised(select_tensors(small(), INT4, include=["first.weight", name])) == {"first.weight"}


def test_a_bias_that_is_included_needs_a_scale_of_more_than_one_value() -> None:
    with pytest.raises(lpe.InputError, match=r"'first.bias' has one dimension.*PerTensor\(\)"):
        select_tensors(small(), INT4, include="first.bias")
    assert quantised(select_tensors(small(), lpe.Int(4, lpe.PerTensor()), include="first.bias")) == {
        "first.bias"
    }
    with pytest.raises(lpe.InputError, match="'first.bias' has one dimension: a scale a block of inputs"):
        select_tensors(small(), lpe.Int(4, lpe.PerBlock(3)), include="first.bias")


def test_include_reaches_a_tied_tensor_by_its_other_name() -> None:
    assert quantised(select_tensors(model_of("GPT-2"), INT4, include="lm_head.weight")) == {
        "transformer.wte.weight"
    }


def test_exclude_keeps_a_tensor_at_full_precision_and_says_so() -> None:
    plan = {p.name: p for p in select_tensors(small(), INT4, exclude="first.*")}
    assert (plan["first.weight"].quantised, plan["first.weight"].reason) == (False, "excluded by name")


def test_exclude_leaves_all_others_as_they_were() -> None:
    assert quantised(select_tensors(small(), INT4, exclude="first.*")) == {"second.weight"}


def test_exclude_wins_over_include() -> None:
    plan = select_tensors(small(), INT4, include="*.weight", exclude="second.weight")
    assert quantised(plan) == {"first.weight", "lm_head.weight"}


def test_exclude_reaches_a_tied_tensor_by_its_other_name() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    assert quantised(select_tensors(model, INT4, exclude="1.weight")) == {"2.weight"}


@pytest.mark.parametrize("which", ["include", "exclude"])
def test_a_pattern_that_matches_nothing_is_an_error_that_names_it(which: str) -> None:
    with pytest.raises(lpe.InputError) as caught:
        select_tensors(small(), INT4, **{which: ["first.*", "frist.*"]})
    assert "'frist.*'" in message_of(caught)


@pytest.mark.parametrize(
    "model", [nn.Identity(), nn.BatchNorm2d(3), nn.LayerNorm((2, 2))], ids=lambda m: type(m).__name__
)
def test_a_model_without_anything_to_quantise_is_an_error_that_names_its_class(model: nn.Module) -> None:
    with pytest.raises(lpe.InputError) as caught:
        select_tensors(model, INT4)
    assert type(model).__name__ in message_of(caught)


def test_excluding_everything_is_an_error() -> None:
    with pytest.raises(lpe.InputError):
        select_tensors(small(), INT4, exclude="*")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_quantised_weight_that_is_not_finite_is_an_error_that_names_it(bad: float) -> None:
    model = small()
    with torch.no_grad():
        model.second.weight[1, 2] = bad
    with pytest.raises(lpe.InputError) as caught:
        select_tensors(model, INT4)
    assert "'second.weight'" in message_of(caught)


def test_a_nan_in_a_tensor_that_is_not_quantised_is_let_through() -> None:
    model = small()
    with torch.no_grad():
        model.first.bias[0] = float("nan")
    assert "first.weight" in quantised(select_tensors(model, INT4))


def test_full_precision_counts_the_same_tensors_as_quantised() -> None:
    assert quantised(select_tensors(small(), lpe.FullPrecision())) == quantised(select_tensors(small(), INT4))


def test_integer_weights_are_left_out_with_their_type_as_the_reason() -> None:
    model = nn.ModuleDict({"packed": nn.Linear(4, 4), "fc": nn.Linear(4, 4)})
    model["packed"].weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    plan = {p.name: p.reason for p in select_tensors(model, INT4)}
    assert plan["packed.weight"] == "torch.int8 values"


# How much is rounded


def half_unknown() -> nn.Module:
    model = nn.Module()
    model.fc = nn.Linear(4, 6)
    model.kernel = nn.Parameter(torch.randn(4, 6))
    model.tall = nn.Parameter(torch.randn(2, 6))
    model.forward = None
    return model


def test_coverage_counts_stored_parameters_of_two_dimensions() -> None:
    coverage = Coverage.of(select_tensors(half_unknown(), INT4))
    assert (coverage.rounded, coverage.whole, coverage.share) == (24, 60, 0.4)
    assert [p.name for p in coverage.left] == ["kernel", "tall"]


def test_coverage_does_not_count_buffers_and_what_is_not_saved() -> None:
    model = half_unknown()
    model.register_buffer("table", torch.ones(30, 30))
    model.register_buffer("cache", torch.ones(30, 30), persistent=False)
    assert Coverage.of(select_tensors(model, INT4)).whole == 60


@pytest.mark.parametrize(("outputs", "said"), [(18, True), (19, False)])
def test_evaluate_says_in_a_line_when_less_than_95_percent_are_rounded(
    outputs: int, said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, outputs, bias=False)
            self.table = nn.Parameter(torch.randn(1, 4))

        def forward(self, inputs: Tensor) -> Tensor:
            return self.fc(inputs + self.table)

    notices.forget()
    ensemble = lpe.LowPrecisionEnsemble(Net().eval(), INT4, 2)
    batches = [(torch.randn(3, 4), torch.tensor([0, 1, 2]))]
    lpe.evaluate(ensemble, batches)
    lpe.evaluate(lpe.Mixture(lpe.DeepEnsemble([Net().eval()]), lambda net, first: ensemble), batches)
    line = (
        "note: 94.7 % of Net's weights of two or more dimensions are rounded; the largest that is not: "
        "table, 1×4 (no rule for Net.table); describe() lists all"
    )
    assert caplog.messages == ([line] if said else [])


def test_nothing_is_said_of_an_ensemble_that_rounds_nothing() -> None:
    assert not lpe.LowPrecisionEnsemble(half_unknown(), lpe.FullPrecision(), 1).notes()
