"""Finds which dimension of a tensor, also of a nested one, holds the features: for methods that act on them.

Modules pass on what they make in layouts of their own: channels first or last, tokens or time steps first or
second. Where a tensor is met, its features are those of the module that ran last, and are told by their
number and by how the tensor lies in memory; where two dimensions could be them, nothing is guessed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lpe.errors import InputError
from lpe.modules import SPATIAL_DIMENSIONS

_SECOND: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
)
_LAST: tuple[type[nn.Module], ...] = (
    nn.Embedding,
    nn.EmbeddingBag,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.RNNBase,
    nn.MultiheadAttention,
)
_SUM = 1e-3
"""Largest difference from 1 of the sums of rows of attention probabilities."""


def _features_at(module: nn.Module, dimensions: int) -> int | None:
    """Return the dimension of a module's features in what it makes; None of a module that makes none."""
    for kind, spatial in SPATIAL_DIMENSIONS.items():
        if isinstance(module, kind):
            return dimensions - 1 - spatial
    if isinstance(module, _SECOND) or (
        isinstance(module, nn.LayerNorm) and type(module).__name__.endswith("2d")
    ):
        return 1
    if isinstance(module, _LAST) or type(module).__name__ == "Conv1D":  # transformers' Linear of GPT-2
        return dimensions - 1
    return None


def used_without_a_call(module: nn.Module) -> list[nn.Module]:
    """List the layers that a module hands to ``multi_head_attention_forward``: their hooks never run."""
    if isinstance(module, nn.MultiheadAttention):
        return [module.out_proj]
    if type(module).__name__ == "AttentionPool2d":  # of open_clip's and OpenAI's ResNets
        names = ("q_proj", "k_proj", "v_proj", "c_proj")
        return [getattr(module, name) for name in names if hasattr(module, name)]
    return []


@dataclass(frozen=True)
class _Made:
    """A module's output: its shape, how it lies in memory, and which dimension has the features."""

    name: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dimension: int

    @property
    def features(self) -> int:
        return self.shape[self.dimension]

    def may_be_split(self, values: Tensor, dimension: int) -> bool:
        """Tell whether a reshaped output may have its features spread over several dimensions, as heads do.

        Then the dimension whose length is the number of features may not be theirs after all.

        Args:
            values: what a place was given. dimension: the one dimension of that length.
        """
        if (
            values.numel() != math.prod(self.shape)
            or values.stride()[dimension] == self.strides[self.dimension]
        ):
            return False
        others = [values.shape[d] for d in range(1, values.dim()) if d != dimension]
        others.append(values.shape[0] // self.shape[0])  # heads beside the examples
        return any(
            math.prod(some) == self.features
            for count in range(2, len(others) + 1)
            for some in combinations([size for size in others if size > 1], count)
        )


def _order(strides: Sequence[int]) -> tuple[int, ...]:
    """Return the dimensions from the slowest to the fastest in memory."""
    return tuple(sorted(range(len(strides)), key=lambda d: (-strides[d], d)))


@dataclass
class Trail:
    """The trail of a network as it runs, by which features are found in what its modules pass on.

    Args:
        found: (place, dimensions) → the dimension of the features, None where there are none. All members of
            an ensemble share it: it is settled by the first batch that a place sees.
    """

    found: dict[tuple[str, int], int | None] = field(default_factory=dict)
    made: _Made | None = None

    def follow(self, net: nn.Module) -> None:
        """Watch the modules of a network by hooks."""
        for name, module in net.named_modules():
            if _features_at(module, 0) is not None:
                module.register_forward_hook(_Watch(self, name).saw)

    def dimension(self, name: str, values: Tensor, otherwise: int) -> int | None:
        """Return the dimension of the features of what a place is given; None for attention probabilities.

        Args:
            otherwise: where nothing that has features ran before.

        Raises:
            InputError: more than one dimension could be it.
        """
        key = (name, values.dim())
        if key not in self.found:
            self.found[key] = self._dimension(name, values, otherwise)
        return self.found[key]

    def _dimension(self, name: str, values: Tensor, otherwise: int) -> int | None:
        if values.dim() <= 2:
            return values.dim() - 1
        if _are_probabilities(values):
            return None
        made = self.made
        if made is None:
            return otherwise
        as_made = values.dim() == len(made.shape)
        alike = [d for d in range(1, values.dim()) if values.shape[d] == made.features]
        if len(alike) == 1 and not made.may_be_split(values, alike[0]):
            return alike[0]
        if as_made and made.dimension in alike and _order(values.stride()) == _order(made.strides):
            return made.dimension
        if as_made and not alike and made.dimension > 0:
            # A part of the features (a gate's half), or several of them side by side.
            size = values.shape[made.dimension]
            if size and (made.features % size == 0 or size % made.features == 0):
                return made.dimension
        which = ("one" if len(alike) == 1 else "more than one" if alike else "no") + " dimension has "
        which += f"{made.features}"
        if len(alike) == 1:
            which += ", and others are as many together"
        raise InputError(
            f"dropout {name!r} is given {list(values.shape)} after {made.name!r}, of {made.features} "
            f"features: {which}, so which has the features is not told"
            + ("; let the ensemble see a batch of another size first" if alike else "")
        )


def _are_probabilities(values: Tensor) -> bool:
    """Tell whether rows are distributions: in dropout of attention the last dimension has no features."""
    if not torch.is_floating_point(values) or not values.numel() or float(values.detach().min()) < 0:
        return False
    sums = values.detach().float().sum(dim=-1)
    return bool(((sums - 1.0).abs() < _SUM).all())


@dataclass
class _Watch:
    """A module's hook: a method of an object, for a closure could not be pickled with the network."""

    trail: Trail
    name: str

    def saw(self, module: nn.Module, inputs: Any, output: Any) -> None:
        while isinstance(output, tuple) and output and not isinstance(output, PackedSequence):
            output = output[0]
        if isinstance(output, PackedSequence):
            output = output.data
        if isinstance(output, Tensor) and not output.is_nested and output.dim():
            dimension = _features_at(module, output.dim())
            assert dimension is not None
            self.trail.made = _Made(self.name, tuple(output.shape), output.stride(), dimension)


# torch.nn.TransformerEncoder hands nested tensors to its layers where a padding mask is given, and no layer
# with hooks can compute with one.


@dataclass
class _Padded:
    """Hooks of a transformer's layer: what comes nested is padded for it, with a mask, and goes on nested."""

    was_nested: bool = False

    def before(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        source = args[0] if args else kwargs["src"]
        self.was_nested = isinstance(source, Tensor) and source.is_nested
        if not self.was_nested:
            return None
        padded = source.to_padded_tensor(0.0)
        lengths = torch.tensor([len(part) for part in source.unbind()], device=padded.device)
        mask = torch.arange(padded.shape[1], device=padded.device) >= lengths[:, None]
        return (padded,), {**{k: v for k, v in kwargs.items() if k != "src"}, "src_key_padding_mask": mask}

    def after(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor | None:
        if not self.was_nested:
            return None
        kept = ~kwargs["src_key_padding_mask"]
        return torch._nested_tensor_from_mask(output, kept, mask_check=False)


def pad_for_hooks(net: nn.Module) -> None:
    """Let the layers of torch's TransformerEncoder that have hooks take nested tensors, as those without do.

    Call it when the other hooks are there.
    """
    for layer in _hooked_layers(net):
        padded = _Padded()
        layer.register_forward_pre_hook(padded.before, with_kwargs=True, prepend=True)
        layer.register_forward_hook(padded.after, with_kwargs=True)


def _hooked_layers(net: nn.Module) -> Iterator[nn.Module]:
    for module in net.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and any(
            part._forward_hooks or part._forward_pre_hooks for part in module.modules()
        ):
            yield module
