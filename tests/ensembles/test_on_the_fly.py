"""All members as one module: against each member alone, from every stored kind, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lpe
from lpe.ensembles import on_the_fly
from lpe.ensembles.on_the_fly import BLOCKS, ROWS, WHOLE, AllMembers
from lpe.modules import apply, named_tensors
from lpe.number_systems.kernels import use

MEMBERS = 3
INT4 = lpe.Int(4)


def numbers(shape: tuple[int, ...], seed: int = 50) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tokens(shape: tuple[int, ...], below: int) -> Tensor:
    return torch.randint(1, below, shape, generator=torch.Generator().manual_seed(50))


def filled(model: nn.Module) -> nn.Module:
    """The model in eval mode with weights from a seed, of the size of a usual start."""
    for seed, parameter in enumerate(model.parameters()):
        parameter.data.copy_(numbers(tuple(parameter.shape), seed) / max(parameter.shape[-1], 4) ** 0.5)
    return model.eval()


def mlp(widths: tuple[int, ...] = (8, 16, 5)) -> nn.Module:
    layers = [nn.Linear(*pair) for pair in zip(widths, widths[1:], strict=False)]
    return filled(nn.Sequential(layers[0], nn.Tanh(), *layers[1:]))


class Lookup(nn.Module):
    """An embedding, looked up and averaged, and a head."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 6, **options)
        self.head = nn.Linear(6, 4)

    def forward(self, indices: Tensor) -> Tensor:
        return self.head(self.embed(indices).mean(dim=1))


class Uses(nn.Module):
    """A layer's weight, used by a function of one's own."""

    def __init__(self, use: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6, bias=False)
        self.use = use

    def forward(self, inputs: Tensor) -> Tensor:
        return self.use(inputs, self.layer.weight)


class Encoder(nn.Module):
    """torch's Transformer encoder with the batch first (or second), and a head."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 3)
        self.tokens = 1 if batch_first else 0

    def forward(self, inputs: Tensor) -> Tensor:
        if self.tokens == 0:
            inputs = inputs.transpose(0, 1)
        return self.head(self.encoder(inputs).mean(dim=self.tokens))


class Masked(nn.Module):
    """nn.MultiheadAttention under both of its masks."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **options)

    def forward(self, inputs: Tensor, padding: Tensor, mask: Tensor) -> Tensor:
        attended, weights = self.attention(
            inputs, inputs.flip(1), inputs, key_padding_mask=padding, attn_mask=mask.repeat_interleave(2, 0)
        )
        return attended.mean(dim=1) + weights.square().mean(dim=(1, 2))[:, None]


def timm_vit() -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=16, patch_size=8, num_classes=5, embed_dim=16, depth=2, num_heads=2, dynamic_img_size=False
    )


def timm_resnet() -> nn.Module:
    from timm.models.resnet import BasicBlock, ResNet

    return ResNet(BasicBlock, (1, 1, 1, 1), num_classes=5, channels=(8, 8, 16, 16))


def timm_resnet_of_standardized_weights() -> nn.Module:
    from timm.layers import StdConv2d
    from timm.models.resnetv2 import ResNetV2

    return ResNetV2((1,), channels=(128,), stem_chs=32, num_classes=5, conv_layer=StdConv2d)


def timm_swin() -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer

    return SwinTransformer(
        img_size=32, patch_size=4, window_size=4, embed_dim=16, depths=(2, 2), num_heads=(2, 2), num_classes=5
    )


def open_clip_vit() -> nn.Module:
    from open_clip.transformer import VisionTransformer

    return VisionTransformer(
        image_size=16, patch_size=8, width=16, layers=2, heads=2, mlp_ratio=2.0, output_dim=8
    )


def open_clip_resnet() -> nn.Module:
    from open_clip.modified_resnet import ModifiedResNet

    return ModifiedResNet((1, 1, 1, 1), 8, 2, image_size=32, width=4)


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2ForSequenceClassification

    config = GPT2Config(
        n_layer=2, n_embd=16, n_head=2, vocab_size=30, n_positions=12, pad_token_id=0, bos_token_id=1
    )
    config.eos_token_id = 1
    return GPT2ForSequenceClassification(config)


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(
        BertConfig(
            vocab_size=30,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            num_labels=3,
        )
    )


class NextTokens(nn.Module):
    """A Llama whose logits are of the counted tokens only: a row a token, not a row a text."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import LlamaConfig, LlamaForCausalLM

        self.language_model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=30,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
            )
        )

    def forward(self, texts: Tensor, counted: Tensor) -> Any:
        logits = self.language_model(input_ids=texts, use_cache=False).logits
        return SimpleNamespace(logits=logits[counted])


TEXTS = {
    "input_ids": tokens((2, 7), 30),
    "attention_mask": (torch.arange(7) < torch.tensor([[7], [5]])).long(),
}
PADDING = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])

MODELS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "linear layers": (mlp, numbers((2, 8))),
    "a linear layer on tokens": (lambda: nn.Sequential(nn.Linear(4, 3), nn.Flatten()), numbers((2, 5, 4))),
    "a linear layer without bias": (lambda: nn.Linear(8, 5, bias=False), numbers((2, 8))),
    "conv 1d": (lambda: nn.Sequential(nn.Conv1d(4, 3, 2), nn.Flatten()), numbers((2, 4, 5))),
    "conv 3d": (lambda: nn.Sequential(nn.Conv3d(2, 3, 2), nn.Flatten()), numbers((2, 2, 3, 3, 3))),
    "depthwise conv": (
        lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=4, padding=1), nn.Flatten()),
        numbers((2, 4, 5, 5)),
    ),
    "grouped transposed conv": (
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 2, groups=2), nn.Flatten()),
        numbers((2, 4, 3, 3)),
    ),
    "embedding": (Lookup, tokens((2, 7), 20)),
    "torch's encoder": (Encoder, numbers((2, 5, 16))),
    "attention under masks": (Masked, (numbers((2, 5, 8)), PADDING, numbers((2, 5, 5)) > 1)),
    "attention of other keys": (
        lambda: Masked(kdim=8, vdim=8, add_bias_kv=False),
        (numbers((2, 5, 8)), PADDING, numbers((2, 5, 5)) > 1),
    ),
    "timm ViT": (timm_vit, numbers((2, 3, 16, 16))),
    "timm ResNet": (timm_resnet, numbers((2, 3, 32, 32))),
    "timm ResNet of standardized weights": (timm_resnet_of_standardized_weights, numbers((2, 3, 32, 32))),
    "timm Swin": (timm_swin, numbers((2, 3, 32, 32))),
    "open_clip ViT": (open_clip_vit, numbers((2, 3, 16, 16))),
    "open_clip ResNet": (open_clip_resnet, numbers((2, 3, 32, 32))),
    "GPT-2": (gpt2, {"input_ids": tokens((2, 7), 30)}),
    "BERT": (bert, TEXTS),
    "Llama": (NextTokens, (tokens((2, 7), 30), numbers((2, 7)) > 0)),
    "a weight turned around": (lambda: Uses(lambda x, w: x @ w.T), numbers((2, 6))),
    "a weight computed from one": (lambda: Uses(lambda x, w: F.linear(x, w / w.norm())), numbers((2, 6))),
    "a weight cut in two": (
        lambda: Uses(lambda x, w: F.linear(x[:, :3], w.chunk(2, dim=1)[0])),
        numbers((2, 6)),
    ),
    "a weight in a function that is not known": (
        lambda: Uses(lambda x, w: torch.einsum("bi,oi->bo", x, w).tanh()),
        numbers((2, 6)),
    ),
    "a weight used twice": (lambda: Uses(lambda x, w: F.linear(F.linear(x, w).tanh(), w)), numbers((2, 6))),
}


def one_at_a_time(ensemble: lpe.LowPrecisionEnsemble, inputs: Any) -> Tensor:
    with torch.no_grad():
        return torch.stack([apply(member, inputs) for member in ensemble])


def check_the_module_equals_the_members(
    ensemble: lpe.LowPrecisionEnsemble, inputs: Any, module: AllMembers | None = None
) -> None:
    """Float32 sums of below 200 terms, a few layers deep; members of INT-4 differ by a hundred times that."""
    found = apply(ensemble.as_module() if module is None else module, inputs)
    expected = one_at_a_time(ensemble, inputs)
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * scale)
    if len(ensemble) > 1 and ensemble.rounding != "nearest":
        assert float((expected[0] - expected[1]).abs().max()) > 2e-3 * scale


@pytest.mark.parametrize("name", MODELS)
def test_the_logits_are_those_of_each_member_alone(name: str) -> None:
    make, inputs = MODELS[name]
    ensemble = lpe.LowPrecisionEnsemble(filled(make()), INT4, MEMBERS)
    check_the_module_equals_the_members(ensemble, inputs)


SYSTEMS = [
    lpe.Int(2),
    lpe.Int(5, lpe.PerTensor()),
    lpe.Int(4, lpe.PerBlock(3)),
    lpe.Int(8, spread=11.3),
    lpe.NF4(lpe.PerChannel(2)),
    lpe.Float(2, 1),
    lpe.Codebook([-1.0, 0.1, 0.7]),
]


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
@pytest.mark.parametrize("rounding", ["bernoulli", "coupled", "nearest"])
@pytest.mark.parametrize("name", ["timm ViT", "GPT-2"])
def test_the_logits_are_the_members_under_every_rounding_and_system(
    name: str, rounding: str, system: Any
) -> None:
    make, inputs = MODELS[name]
    ensemble = lpe.LowPrecisionEnsemble(filled(make()), system, MEMBERS, 7, rounding, first_member=11)
    check_the_module_equals_the_members(ensemble, inputs)


@pytest.mark.parametrize("base", ["int8", "bf16", "fp32"])
@pytest.mark.parametrize("name", ["timm ViT", "timm ResNet", "GPT-2", "embedding", "open_clip ViT"])
def test_the_logits_are_the_members_from_every_stored_base(name: str, base: str, tmp_path: Path) -> None:
    make, inputs = MODELS[name]
    lpe.save(lpe.LowPrecisionEnsemble(filled(make()), INT4, MEMBERS), tmp_path / "e", "seeded", base)
    read = lpe.load(tmp_path / "e", make())
    assert isinstance(read, lpe.LowPrecisionEnsemble)
    check_the_module_equals_the_members(read, inputs)


@pytest.mark.parametrize("size", [1, 7])
def test_the_logits_are_the_members_of_an_ensemble_of_any_size(size: int) -> None:
    check_the_module_equals_the_members(lpe.LowPrecisionEnsemble(mlp(), INT4, size), numbers((3, 8)))


@pytest.mark.parametrize("block_bytes", [1, 200])
@pytest.mark.parametrize("name", ["linear layers", "GPT-2", "open_clip ViT", "a linear layer without bias"])
def test_blocks_of_any_size_give_the_same(
    name: str, block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_the_fly, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(on_the_fly, "BLOCK_ROWS", 3)
    make, inputs = MODELS[name]
    check_the_module_equals_the_members(lpe.LowPrecisionEnsemble(filled(make()), INT4, MEMBERS), inputs)


@pytest.mark.parametrize("name", ["timm ViT", "GPT-2", "embedding", "timm ResNet"])
def test_members_that_are_kept_are_the_members(name: str) -> None:
    make, inputs = MODELS[name]
    ensemble = lpe.LowPrecisionEnsemble(filled(make()), INT4, MEMBERS)
    module = AllMembers(ensemble, keep=True)
    for _ in range(2):
        check_the_module_equals_the_members(ensemble, inputs, module)


def test_batches_of_other_sizes_follow_one_another() -> None:
    ensemble = lpe.LowPrecisionEnsemble(mlp(), INT4, MEMBERS)
    module = ensemble.as_module()
    for count in (2, 5, 1):
        check_the_module_equals_the_members(ensemble, numbers((count, 8)), module)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_of_few_bits_has_its_members_to_its_own_rounding(dtype: torch.dtype) -> None:
    ensemble = lpe.LowPrecisionEnsemble(mlp().to(dtype), INT4, MEMBERS)
    inputs = numbers((2, 8)).to(dtype)
    found, expected = ensemble.as_module()(inputs), one_at_a_time(ensemble, inputs)
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected, rtol=0, atol=4 * torch.finfo(dtype).eps)


def test_under_autocast_the_products_are_of_its_type() -> None:
    ensemble = lpe.LowPrecisionEnsemble(filled(timm_vit()), INT4, MEMBERS)
    inputs = numbers((2, 3, 16, 16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = ensemble.as_module()(inputs), one_at_a_time(ensemble, inputs)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05 * float(expected.abs().max()))


def test_without_rounding_every_member_is_the_model() -> None:
    model = mlp()
    inputs = numbers((2, 8))
    found = lpe.LowPrecisionEnsemble(model, lpe.FullPrecision(), MEMBERS).as_module()(inputs)
    assert torch.equal(found, model(inputs).detach().expand(MEMBERS, -1, -1))


@pytest.mark.parametrize(
    "given", [lambda x: ((x,), {}), lambda x: (([x],), {}), lambda x: ((), {"input": x})]
)
def test_inputs_come_by_position_in_a_list_or_by_keyword(given: Callable[[Tensor], Any]) -> None:
    ensemble = lpe.LowPrecisionEnsemble(filled(nn.Linear(4, 3)), INT4, MEMBERS)
    inputs = numbers((2, 4))
    args, kwargs = given(inputs)
    assert torch.equal(ensemble.as_module()(*args, **kwargs), ensemble.as_module()(inputs))


# Faults are seen: by the tests above, and by the module's own check


def drawn_with(fault: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """``members_into`` as the fault has it; of the members alone it stays right."""
    real = on_the_fly.members_into
    monkeypatch.setattr(on_the_fly, "members_into", lambda *args: fault(real, *args))


def next_member(real: Any, out: Tensor, *args: Any) -> None:
    real(out, *args)
    out.copy_(out.roll(1, 0))


def next_block(real: Any, out: Tensor, *args: Any) -> None:
    *rest, starts = args
    real(out, *rest, None if starts is None else starts.flip(0) * 0)


@pytest.mark.parametrize("fault", [next_member, next_block])
def test_weights_of_another_member_or_block_are_caught(
    fault: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_the_fly, "BLOCK_BYTES", 1)
    drawn_with(fault, monkeypatch)
    ensemble = lpe.LowPrecisionEnsemble(mlp(), INT4, MEMBERS)
    with pytest.raises(lpe.InputError, match="gives other logits for a member among all members"):
        ensemble.as_module()(numbers((2, 8)))
    unchecked = ensemble.as_module()
    unchecked._is_checked = True
    with pytest.raises(AssertionError):
        check_the_module_equals_the_members(ensemble, numbers((2, 8)), unchecked)


# What is drawn


class Recorded:
    """The draws: members, and the elements of each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, int, list[int]]] = []
        drawn_with(self._record, monkeypatch)

    def _record(self, real: Any, out: Tensor, *args: Any) -> None:
        real(out, *args)
        *_, draw, starts = args
        length = out.shape[2]
        of_starts = [0] if starts is None else starts.tolist()
        elements = [start + place for start in of_starts for place in range(length)]
        self.calls.append((draw.name, out.shape[0], elements))


@pytest.mark.parametrize("model", ["linear layers", "GPT-2"])
def test_each_stored_weight_is_read_once_for_all_members(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_the_fly, "BLOCK_BYTES", 300)
    make, inputs = MODELS[model]
    ensemble = lpe.LowPrecisionEnsemble(filled(make()), INT4, MEMBERS)
    recorded = Recorded(monkeypatch)
    apply(ensemble.as_module(), inputs)
    for planned in ensemble.plan:
        calls = [call for call in recorded.calls if call[0] == planned.name]
        if planned.quantised and planned.reason != "Embedding":
            assert {members for _, members, _ in calls} == {MEMBERS}
            assert [element for *_, elements in calls for element in elements] == list(range(planned.numel))
            assert len(calls) > 1 or planned.numel < 40


def test_of_an_embedding_each_row_that_is_looked_up_is_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = Recorded(monkeypatch)
    lpe.LowPrecisionEnsemble(filled(Lookup()), INT4, MEMBERS).as_module()(
        torch.tensor([[3, 19, 3], [0, 3, 19]])
    )
    drawn = [elements for name, _, elements in recorded.calls if name == "embed.weight"]
    assert drawn == [[6 * row + column for row in (0, 3, 19) for column in range(6)]]


def test_kept_members_are_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = Recorded(monkeypatch)
    module = AllMembers(lpe.LowPrecisionEnsemble(filled(timm_vit()), INT4, MEMBERS), keep=True)
    for _ in range(2):
        module(numbers((2, 3, 16, 16)))
    names = [name for name, *_ in recorded.calls]
    assert len(names) == len(set(names))


def test_a_module_holds_no_weights_of_its_own(tmp_path: Path) -> None:
    model = filled(gpt2())
    lpe.save(lpe.LowPrecisionEnsemble(model, INT4, MEMBERS), tmp_path / "e", "seeded")
    for ensemble in (lpe.LowPrecisionEnsemble(model, INT4, MEMBERS), lpe.load(tmp_path / "e", gpt2())):
        assert isinstance(ensemble, lpe.LowPrecisionEnsemble)
        module = ensemble.as_module()
        apply(module, MODELS["GPT-2"][1])
        shared = {entry.tensor.untyped_storage().data_ptr() for entry in named_tensors(ensemble.model)}
        own = [
            entry.tensor.untyped_storage().nbytes()
            for entry in named_tensors(module.network)
            if entry.tensor.untyped_storage().data_ptr() not in shared
        ]
        # One NaN a quantised tensor.
        assert own == [4] * sum(planned.quantised for planned in ensemble.plan)


def test_a_stored_weight_is_the_models_own_tensor() -> None:
    model = mlp()
    stored = lpe.LowPrecisionEnsemble(model, INT4, MEMBERS).stored("0.weight")
    assert isinstance(stored, Tensor) and stored.data_ptr() == model[0].weight.data_ptr()


# What is left alone


def test_the_model_is_left_as_it_was() -> None:
    model = filled(timm_vit()).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    lpe.LowPrecisionEnsemble(model, INT4, MEMBERS).as_module()(numbers((2, 3, 16, 16)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert {type(parameter) for parameter in model.parameters()} == {nn.Parameter}


def test_the_global_generator_is_left_alone() -> None:
    model = filled(timm_vit())
    before = torch.get_rng_state()
    lpe.LowPrecisionEnsemble(model, INT4, MEMBERS).as_module()(numbers((2, 3, 16, 16)))
    assert torch.equal(torch.get_rng_state(), before)


def test_no_graph_is_built() -> None:
    assert not lpe.LowPrecisionEnsemble(mlp(), INT4, MEMBERS).as_module()(numbers((2, 8))).requires_grad


def test_a_module_stays_in_eval_mode() -> None:
    ensemble = lpe.LowPrecisionEnsemble(nn.Sequential(mlp(), nn.Dropout(0.5)), INT4, MEMBERS)
    check_the_module_equals_the_members(ensemble, numbers((2, 8)), ensemble.as_module().train())


# The table


def how_drawn(name: str) -> dict[str, str]:
    make, inputs = MODELS[name]
    module = lpe.LowPrecisionEnsemble(filled(make()), INT4, MEMBERS).as_module()
    apply(module, inputs)
    _, _, *rows, _ = module.describe().splitlines()
    cells = [[cell.strip() for cell in row.split("  ") if cell] for row in rows]
    return {name: how for name, _, how, *_ in cells}


@pytest.mark.parametrize(
    ("model", "tensor", "how"),
    [
        ("timm ViT", "blocks.0.attn.qkv.weight", BLOCKS),
        ("timm ViT", "patch_embed.proj.weight", WHOLE),
        ("timm ViT", "norm.weight", "shared"),
        ("timm ViT", "pos_embed", "shared"),
        ("torch's encoder", "encoder.layers.0.self_attn.in_proj_weight", WHOLE),
        ("torch's encoder", "encoder.layers.0.self_attn.out_proj.weight", WHOLE),
        ("torch's encoder", "encoder.layers.0.linear1.weight", BLOCKS),
        ("open_clip ViT", "proj", BLOCKS),
        ("open_clip ResNet", "attnpool.q_proj.weight", WHOLE),
        ("GPT-2", "transformer.wte.weight", ROWS),
        ("GPT-2", "transformer.h.0.attn.c_attn.weight", BLOCKS),
        ("a weight computed from one", "layer.weight", WHOLE),
    ],
)
def test_the_table_says_how_a_weight_was_drawn(model: str, tensor: str, how: str) -> None:
    assert how_drawn(model)[tensor] == how


def test_before_a_pass_the_table_says_that_weights_were_not_used() -> None:
    module = lpe.LowPrecisionEnsemble(mlp(), INT4, MEMBERS).as_module()
    assert module.describe().count("not used yet") == 2


def test_the_table_counts_what_is_drawn_whole() -> None:
    module = lpe.LowPrecisionEnsemble(filled(timm_vit()), INT4, MEMBERS).as_module()
    module(numbers((2, 3, 16, 16)))
    every = 16 * 3 * 8 * 8 + 2 * (48 + 16 + 64 + 64) * 16 + 5 * 16
    assert module.describe().endswith(
        f"{every:,} values drawn anew in each pass, {16 * 3 * 8 * 8:,} of them whole, a member at a time"
    )


# Refusals


@pytest.mark.parametrize("length", [5, 6, 12])
def test_a_model_with_the_batch_second_is_refused(length: int) -> None:
    # 3 members of 2 examples: at 6 and 12 tokens the shapes fit, and only the numbers tell.
    ensemble = lpe.LowPrecisionEnsemble(filled(Encoder(batch_first=False)), INT4, MEMBERS)
    with pytest.raises(lpe.InputError, match="take the members one by one") as caught:
        ensemble.as_module()(numbers((2, length, 16)))
    assert "\n" not in str(caught.value)


def changed_in_place(inputs: Tensor, weight: Tensor) -> Tensor:
    return F.linear(inputs, weight.mul_(2))


def mixed_examples(inputs: Tensor, weight: Tensor) -> Tensor:
    hidden = F.linear(inputs, weight)
    return hidden - hidden.mean(dim=0)


def looked_up_by_all(inputs: Tensor, weight: Tensor) -> Tensor:
    return inputs + F.embedding(torch.arange(1), weight)


REFUSED: dict[str, tuple[Callable[[], nn.Module], Any, str]] = {
    "examples that are mixed": (
        lambda: Uses(mixed_examples),
        numbers((2, 6)),
        "gives other logits for a member among all members.*mixes the examples",
    ),
    "a weight changed in place": (
        lambda: Uses(changed_in_place),
        numbers((2, 6)),
        "'layer.weight'.*in place",
    ),
    "an embedding with max_norm": (lambda: Lookup(max_norm=1.0), tokens((2, 7), 20), "max_norm"),
    "a lookup that is not of the batch": (
        lambda: Uses(looked_up_by_all),
        numbers((2, 6)),
        r"'layer.weight' meets a tensor of shape \[1\].*2 examples of 3 members",
    ),
    "a batch size that is fixed": (
        lambda: Uses(lambda x, w: F.linear(x.view(2, 6), w)),
        numbers((2, 6)),
        "Uses runs one member, but not all at once",
    ),
    "a number for all examples": (
        lambda: Uses(lambda x, w: F.linear(x, w).sum(dim=0, keepdim=True).repeat(len(x), 1)[:6]),
        numbers((2, 6)),
        "take the members one by one",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_computed_for_all_at_once_is_refused_in_one_line(what: str) -> None:
    make, inputs, message = REFUSED[what]
    ensemble = lpe.LowPrecisionEnsemble(filled(make()), INT4, MEMBERS)
    with pytest.raises(lpe.InputError, match=message) as caught:
        ensemble.as_module()(inputs)
    assert "\n" not in str(caught.value)


def test_an_error_of_the_models_own_stays_its_own() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        lpe.LowPrecisionEnsemble(mlp(), INT4, MEMBERS).as_module()(numbers((2, 9)))


def test_inputs_by_position_and_by_keyword_at_once_are_refused() -> None:
    with pytest.raises(lpe.InputError, match="by position or by keyword"):
        lpe.LowPrecisionEnsemble(filled(Masked()), INT4, 2).as_module()(numbers((2, 5, 8)), padding=PADDING)


@pytest.mark.parametrize(
    "use",
    [lambda module: module.to(torch.float64), lambda module: module.state_dict()],
    ids=["to", "state_dict"],
)
def test_what_would_part_the_module_from_its_ensemble_is_refused(
    use: Callable[[AllMembers], object],
) -> None:
    with pytest.raises(lpe.InputError, match="ensemble"):
        use(lpe.LowPrecisionEnsemble(mlp(), INT4, MEMBERS).as_module())


def test_a_copy_of_the_module_gives_the_same() -> None:
    module = lpe.LowPrecisionEnsemble(mlp(), INT4, MEMBERS).as_module()
    inputs = numbers((2, 8))
    assert torch.equal(copy.deepcopy(module)(inputs), module(inputs))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: the members are drawn on it")
@pytest.mark.parametrize("name", ["timm ViT", "timm ResNet", "GPT-2", "open_clip ViT"])
def test_on_a_gpu_the_logits_are_those_of_each_member_alone(name: str) -> None:
    make, inputs = MODELS[name]
    ensemble = lpe.LowPrecisionEnsemble(filled(make()).cuda(), INT4, MEMBERS)
    moved = {key: each.cuda() for key, each in inputs.items()} if isinstance(inputs, dict) else inputs.cuda()
    found, expected = apply(ensemble.as_module(), moved), one_at_a_time(ensemble, moved)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


# What an embedding is asked for

BAD_TOKENS = {
    "one too many": (torch.tensor([[1, 20]]), "row 20 of 'embed.weight', which has rows 0 to 19"),
    "negative": (torch.tensor([[-1, 3]]), "row -1 of 'embed.weight'"),
    "far away": (torch.tensor([[10**9, 3]]), "row 1000000000 of 'embed.weight'"),
    "floats": (torch.tensor([[1.0, 2.0]]), "looked up by torch.float32; indices must be torch.int64"),
    "bytes": (torch.tensor([[1, 2]], dtype=torch.uint8), "looked up by torch.uint8"),
}


@pytest.mark.parametrize("keep", [False, True], ids=["drawn anew", "kept"])
@pytest.mark.parametrize("first", [False, True], ids=["a later pass", "the first pass"])
@pytest.mark.parametrize("kernels", ["reference", "cpu"])
@pytest.mark.parametrize("bad", BAD_TOKENS)
def test_a_token_that_is_not_there_is_refused(bad: str, kernels: str, first: bool, keep: bool) -> None:
    indices, said = BAD_TOKENS[bad]
    with use(kernels):
        module = AllMembers(lpe.LowPrecisionEnsemble(filled(Lookup()), INT4, MEMBERS), keep)
        if not first:
            module(tokens((2, 2), 20))
        with pytest.raises(lpe.InputError, match=said):
            module(indices)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: the rows are drawn on it")
@pytest.mark.parametrize("bad", BAD_TOKENS)
def test_a_token_that_is_not_there_is_refused_on_a_gpu_which_goes_on(bad: str) -> None:
    indices, said = BAD_TOKENS[bad]
    module = lpe.LowPrecisionEnsemble(filled(Lookup()).cuda(), INT4, MEMBERS).as_module()
    with pytest.raises(lpe.InputError, match=said):
        module(indices.cuda())
    assert module(tokens((2, 2), 20).cuda()).isfinite().all()
