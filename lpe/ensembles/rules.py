"""Rules, as data, on which parameters multiply and which dimension of each is "output".

A rule answers for a module's parameter: what kind it is, its output dimension, and how many groups of outputs
there are (see :class:`lpe.number_systems.layouts.Layout`). What no rule knows is left at full precision and
listed so; ``output_axis=`` of an ensemble tells it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Output:
    """The use of a parameter that multiplies.

    Args:
        kind: what it is, in a few words.
        axis: its output dimension.
        groups: how many outputs of its own each index of that dimension stands for.
    """

    kind: str
    axis: int
    groups: int = 1


_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

# Kinds of module → (their parameters' names, the dimension that is "output").
KINDS: tuple[tuple[tuple[type[nn.Module], ...], str, int], ...] = (
    (_TRANSPOSED, r"weight", 1),
    ((nn.Conv1d, nn.Conv2d, nn.Conv3d), r"weight", 0),
    ((nn.Linear, nn.Bilinear), r"weight", 0),
    ((nn.Embedding, nn.EmbeddingBag), r"weight", 0),
    ((nn.MultiheadAttention,), r"in_proj_weight|[qkv]_proj_weight", 0),
    # LSTM, GRU and RNN: the gates' rows one after another, as they are computed.
    ((nn.RNNBase,), r"weight_(ih|hh|hr)_l\d+(_reverse)?", 0),
    ((nn.RNNCellBase,), r"weight_(ih|hh)", 0),
)

# Bare parameters by name, in any module: `x @ proj` and `x @ text_projection` (open_clip) have output second.
BARE = {
    "in_proj_weight": 0,
    "q_proj_weight": 0,
    "k_proj_weight": 0,
    "v_proj_weight": 0,
    "proj": 1,
    "text_projection": 1,
}


@dataclass(frozen=True)
class Named:
    """A rule for modules known by name, of a library that need not be there.

    Args:
        library: what their module path begins with.
        module, parameter: regular expressions of the class's and the parameter's whole names.
        dimensions: of the parameter; it is another's where it has more or fewer.
        axis: the output dimension.
        groups: "first", the size of the first dimension (experts, heads, layers), or the name of the module's
            attribute that has their number; None: one group.
    """

    library: str
    module: str
    parameter: str
    dimensions: int
    axis: int
    groups: str | None = None


NAMED = (
    # By name: importing transformers to ask would cost seconds, and its models may not be in use.
    Named("transformers.", r"Conv1D", r"weight", 2, 1),
    # [experts, in, out] in what multiplies by matrices as they are, else [experts, out, in] as Linear has it.
    Named(
        "transformers.",
        r"Llama4TextExperts|GptOssExperts|AriaExperts|OpenAIPrivacyFilterExperts",
        r"gate_up_proj|down_proj",
        3,
        2,
        "first",
    ),
    Named("transformers.", r"\w*Experts", r"(gate|up|gate_up|down)_proj|weight", 3, 1, "first"),
    Named("transformers.", r"DbrxExpertGLU", r"w1|v1", 2, 0),
    Named("transformers.", r"DbrxExpertGLU", r"w2", 2, 1, "moe_num_experts"),
    Named("transformers.", r"\w*(Router|Gate)", r"weight", 2, 0),
    Named("transformers.", r"\w*FlexibleLinear", r"weight", 3, 1, "first"),
    Named("transformers.", r"GroupedLinearLayer", r"weight", 3, 2, "first"),
    Named("transformers.", r"RecurrentGemmaRglru", r"(input|recurrent)_gate_weight", 3, 2, "first"),
    Named("transformers.", r"ZambaMambaMixer", r"(x|dt)_proj_weight", 3, 1, "first"),
    Named("transformers.", r"\w+MultiModalProjector", r"mm_input_projection_weight", 2, 1),
    Named("transformers.", r"XCLIPModel", r"prompts_visual_projection", 2, 1),
    # An expert a row: its whole convolution [out, in / groups, height, width], flat.
    Named("timm.", r"CondConv2d", r"weight", 2, 0, "out_channels"),
)

NORM = re.compile(r"norm|^bn\d*$|^ln_|FilterResponse", re.IGNORECASE)
"""Pattern of the name of a class or parameter that is a normalisation's scale."""

POSITION = re.compile(
    r"(^|[._])(wpe|rpb|pos|\w*positions?|positional)(\.|$)"
    r"|(^|[._])(pos|position|positional)_?(emb|enc|bias|table|conv_embed)"
    r"|(^|[._])rel_?pos|relative_?position|relative_attention_bias|(^|[._])rel_embeddings?(\.|$)",
    re.IGNORECASE,
)
"""Pattern of the name of a tensor that embeds positions, absolute or relative."""

TOKEN = re.compile(
    r"(cls|class|reg|dist|mask|register|distillation|detection|query|group)_?(tokens?|embedding)(_\d+)?$|latent",
    re.IGNORECASE,
)
"""Pattern of the name of a parameter that is a learnt token."""

LM_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output_projection)\.weight$")
"""Pattern of the name of a tensor that is a language model's head."""

ADAPTER = re.compile(r"(^|\.)lora_(A|B|E|embedding_A|embedding_B|magnitude_vector)(\.|$)")
"""Pattern of the name of a tensor of a low-rank adapter of PEFT (Hu et al. 2021, "LoRA")."""


def output_of(module: nn.Module, parameter: str, tensor: Tensor) -> Output | None:
    """Return how a module uses a parameter that multiplies; None where no rule knows it."""
    # transformers marks its experts [experts, in, out] so, and [experts, out, in] by False.
    transposed = getattr(module, "is_transposed", None)
    if isinstance(transposed, bool) and tensor.dim() == 3 and not parameter.endswith("bias"):
        return Output(f"experts of {type(module).__name__}", 2 if transposed else 1, len(tensor))
    of: Any = type(module)  # mypy takes nn.Module's __hash__ for the class's own
    rule = _rule_of(of, parameter, tensor.dim())
    if rule is None:
        return None
    kind, axis, groups = rule
    if groups is None:
        return Output(kind, axis)
    return Output(kind, axis, len(tensor) if groups == "first" else getattr(module, groups))


@cache
def _rule_of(of: type[nn.Module], parameter: str, dimensions: int) -> tuple[str, int, str | None] | None:
    """Return (kind, output axis, groups as :class:`Named` has them) of a class's parameter."""
    for types, parameters, axis in KINDS:
        if issubclass(of, types) and re.fullmatch(parameters, parameter):
            return of.__name__, axis, "groups" if issubclass(of, _TRANSPOSED) else None
    for rule in NAMED:
        if (
            of.__module__.startswith(rule.library)
            and re.fullmatch(rule.module, of.__name__)
            and re.fullmatch(rule.parameter, parameter)
            and dimensions == rule.dimensions
        ):
            return of.__name__, rule.axis, rule.groups
    if parameter in BARE and dimensions == 2:
        return f"projection of {of.__name__}", BARE[parameter], None
    return None
