"""BatchEnsemble: Wen et al. 2020, "BatchEnsemble: an alternative approach to efficient ensemble and
lifelong learning".

M networks share every weight W and differ by a rank-1 factor each. For inputs x of member m a layer computes

    y = ((x ∘ r_m) Wᵀ) ∘ s_m + b_m,   which is the layer of weight W ∘ (s_m r_mᵀ) and bias b_m,

so one pass over the batch, tiled once a member, trains or evaluates all of them. At the start r_m and s_m are
draws of N(1, std²), and every b_m is the layer's own bias (a bias a member, as in the paper). Everything else
(norms, embeddings, tokens, bare parameters) is shared.

What matters: the fast weights' own learning rate, without weight decay; their std at the start, which is all
that makes the members differ; and that training goes on for long enough to use it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lpe.checks import check_finite, check_tensor, shown
from lpe.ensembles.base import Ensemble, text_table
from lpe.ensembles.feature_axis import pad_for_hooks, used_without_a_call
from lpe.ensembles.tiling import examples_of, tile
from lpe.errors import InputError
from lpe.logits import cross_entropy
from lpe.modules import (
    SPATIAL_DIMENSIONS,
    apply,
    canonical_modules,
    holders,
    named_tensors,
    tensor_bits,
    tensors_in,
    with_tensors,
)
from lpe.number_systems.streams import check_member, check_seed, normal
from lpe.surroundings import apart

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass
class _Batch:
    """The batch that is on its way through the network; all its layers see this object.

    Args:
        examples: of the tiled batch; 0 between passes.
        alone: the member that the whole batch, which is not tiled, is of.
        shapes: what each layer's calls were given when one member ran alone; of a batch that is learnt from.
        dimensions: of the tiled batch, in what each layer's calls are given.
    """

    members: int
    examples: int = 0
    alone: int | None = None
    shapes: dict[str, list[tuple[int, ...]]] = field(default_factory=dict)
    dimensions: dict[str, list[int]] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)

    def begin(self, examples: int, alone: int | None = None) -> None:
        """Begin a pass."""
        self.examples, self.alone = examples, alone
        self.calls = {}

    def end(self) -> None:
        """End the pass."""
        self.examples, self.alone = 0, None

    def dimension(self, name: str, values: Tensor) -> int:
        """Return the dimension of a layer's input that is the tiled batch's.

        Raises:
            InputError: there is no such, or more than one could be it.
        """
        call = self.calls.get(name, 0)
        self.calls[name] = call + 1
        known = self.dimensions.setdefault(name, [])
        if self.shapes and self.examples:
            known += self._grown(self.shapes.get(name, [])[call : call + 1], values)
        dimension = known[min(call, len(known) - 1)] if known and self.examples else values.dim()
        if dimension < values.dim() and values.shape[dimension] % self.members == 0:
            return dimension
        raise InputError(
            f"layer {name!r} is given {list(values.shape)}, of which no dimension is that of the tiled batch "
            f"of {self.examples}: members cannot be told apart there; BatchEnsemble takes models that keep "
            "the batch apart, called as ensemble.module(inputs)"
        )

    def _grown(self, of_one: list[tuple[int, ...]], values: Tensor) -> list[int]:
        """Return the dimension that all members make M times as long as one, in a list; empty without any."""
        if not of_one or len(of_one[0]) != values.dim():
            return []
        if self.members == 1:
            return [0]
        lengths = list(zip(of_one[0], values.shape, strict=True))
        grown = [d for d, (one, every) in enumerate(lengths) if one != every]
        return (
            grown if len(grown) == 1 and lengths[grown[0]][1] == self.members * lengths[grown[0]][0] else []
        )


def _vectors_of(layer: nn.Module) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return r [members, in], s [members, out] and the biases [members, out] of a converted layer."""
    r, s, biases = layer.batch_r, layer.batch_s, layer.batch_bias
    assert isinstance(r, Tensor) and isinstance(s, Tensor)
    assert biases is None or isinstance(biases, Tensor)
    return r, s, biases


class _FastWeights:
    """The hooks that make a layer M layers; r, s and the biases are the layer's own parameters."""

    def __init__(self, name: str, spatial: int, batch: _Batch) -> None:
        self.name = name
        self.channel = -1 - spatial
        self.batch = batch
        self.dimension = 0

    def _times(self, values: Tensor, vectors: Tensor, biases: Tensor | None = None) -> Tensor:
        """Multiply values, members·examples in ``dimension``, by vectors [members, channels]; add biases."""
        dimension = self.dimension
        if self.batch.alone is not None:
            vectors = vectors[self.batch.alone, None]
            biases = None if biases is None else biases[self.batch.alone, None]
        members, channels = vectors.shape
        grouped = values.unflatten(dimension, (members, -1))
        shape = [1] * grouped.dim()
        if grouped.dim() < 1 - self.channel or grouped.shape[self.channel] != channels:
            raise InputError(f"layer {self.name!r} takes {channels} channels, not {list(values.shape)}")
        shape[dimension], shape[self.channel] = members, channels
        scaled = grouped * vectors.to(values.dtype).view(shape)
        if biases is not None:
            scaled = scaled + biases.to(values.dtype).view(shape)
        return scaled.flatten(dimension, dimension + 1)

    def scale_inputs(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return x ∘ r_m, as a forward pre-hook."""
        values = args[0] if args else kwargs["input"]
        if self.batch.alone is None:
            self.dimension = self.batch.dimension(self.name, values)
        else:
            self.dimension = 0
            self.batch.shapes.setdefault(self.name, []).append(tuple(values.shape))
        scaled = self._times(values, _vectors_of(layer)[0])
        return ((scaled, *args[1:]), kwargs) if args else (args, {**kwargs, "input": scaled})

    def scale_outputs(self, layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        """Return y ∘ s_m + b_m, as a forward hook."""
        _, s, biases = _vectors_of(layer)
        return self._times(output, s, biases)


class BatchEnsembleModule(nn.Module):
    """All members as one trainable module.

    Args:
        network: the network with its converted layers. members: M.
    """

    def __init__(self, network: nn.Module, members: int, batch: _Batch) -> None:
        super().__init__()
        self.network = network
        self.members = members
        self._batch = batch
        self._learnt: dict[str, dict[str, list[int]]] = {}

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return logits [members·examples, classes], member by member, of a batch that is not tiled yet.

        The batch is given as the network takes it: by position or by keyword.
        """
        if args and kwargs:
            raise InputError("give the inputs by position or by keyword, not some by each")
        inputs = kwargs or args
        layout = str([values.dim() for values in tensors_in(inputs)])
        if layout not in self._learnt:
            self._learnt[layout] = self._learn(inputs)
        self._batch.dimensions = self._learnt[layout]
        return self._all(inputs)

    def _all(self, inputs: Any) -> Tensor:
        tiled = tile(inputs, self.members)
        examples = examples_of(tiled) or 0
        self._batch.begin(examples)
        try:
            logits = apply(self.network, tiled)
        finally:
            self._batch.end()
        if not logits.dim() or len(logits) != examples:
            raise InputError(
                f"{type(self.network).__name__} gives logits of shape {list(logits.shape)} for a batch of "
                f"{examples} examples, all members'; BatchEnsemble takes models that give the examples first"
            )
        return logits

    @torch.no_grad()
    def _learn(self, inputs: Any) -> dict[str, list[int]]:
        """Learn the batch's dimension in each layer call, from one member's pass and all members'.

        Raises:
            InputError: members cannot be told apart in a layer, or are mixed elsewhere.
        """
        flags = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            self._batch.shapes, self._batch.dimensions = {}, {}
            self._batch.begin(examples_of(inputs) or 0, self.members - 1)
            try:
                alone = apply(self.network, inputs)
            finally:
                self._batch.end()
            logits = self._all(inputs)
            self._check_calls(inputs, alone)
        finally:
            self._batch.shapes = {}
            for module, training in flags:
                module.training = training
        among = logits.unflatten(0, (self.members, -1))[-1]
        error, scale = _difference(alone, among)
        if error > scale * torch.finfo(alone.dtype).eps ** 0.5:
            raise InputError(
                f"{type(self.network).__name__} gives other logits for a member among all members than for "
                f"it alone (by {error:.3g} of up to {scale:.3g}): it mixes the examples of a batch; "
                "BatchEnsemble takes models that keep them apart"
            )
        return self._batch.dimensions

    def _check_calls(self, inputs: Any, alone: Tensor) -> None:
        """Check that a layer which was not called is not used either, by its weight.

        Args:
            alone: the last member's logits of the inputs, on its own.
        """
        called = set(self._batch.shapes)
        for name, layer in canonical_modules(self.network).items():
            if name in called or getattr(layer, "batch_r", None) is None:
                continue
            weight = layer._parameters["weight"]
            assert weight is not None
            layer._parameters["weight"] = nn.Parameter(weight.detach() * 1.5 + 0.5)
            self._batch.begin(examples_of(inputs) or 0, self.members - 1)
            try:
                error, scale = _difference(alone, apply(self.network, inputs))
            finally:
                self._batch.end()
                layer._parameters["weight"] = weight
            if error > scale * torch.finfo(alone.dtype).eps ** 0.5:
                raise InputError(
                    f"the weight of {name!r} is used without calling the layer, where no fast weights reach "
                    "it; BatchEnsemble takes models that call their layers"
                )


def _difference(logits: Tensor, others: Tensor) -> tuple[float, float]:
    """Return by how much others differ from logits, and how large these are, where both are finite."""
    finite = logits.isfinite() & others.isfinite()
    if not finite.any():
        return 0.0, 0.0
    return float((logits - others)[finite].abs().max()), float(logits[finite].abs().max())


class BatchEnsemble(Ensemble):
    """An ensemble whose members share weights up to rank-1 factors: trainable, a sequence of plain networks.

    ``ensemble.module`` is what is trained: its ``forward(inputs)`` tiles the batch and returns logits
    [members·examples, classes], member by member, M times as many as there are targets. ``ensemble.loss`` is
    the loss that goes with it:

        groups = ensemble.parameter_groups(lr=0.1, fast_lr=0.05, weight_decay=5e-4)
        optimizer = torch.optim.SGD(groups, momentum=0.9)
        lpe.train(ensemble.module, batches, optimizer, 0.1, epochs, loss=ensemble.loss)

    A batch norm in training sees all members' examples as one batch, and its running statistics, of all of
    them, are each member's.

    Args:
        model: any module that takes and gives the examples first; inside, its layers may have them in any one
            dimension, which the first batch tells. It is copied once and not modified. A parameter that asks
            for no gradient is not trained here either.
        size: members. seed: of the fast weights, 0 … 2⁶⁴ − 1.
        std: of the fast weights around 1; 0: unit fast weights, every member the model itself.

    Raises:
        InputError: a model without a layer to convert; a std that is negative, NaN or infinite; a size below
            1; a seed out of range.
    """

    @apart()
    def __init__(self, model: nn.Module, size: int, seed: int = 0, std: float = 0.5) -> None:
        super().__init__(size)
        check_member(self.size - 1)
        self.model = model = self._made_of(model)
        self._watched = ()  # members are made of the module's tensors, which are trained
        self.seed = check_seed(seed)
        self.std = check_finite("std", std)
        self._kept = _not_converted(model)
        convertible = [
            (name, module)
            for name, module in canonical_modules(model).items()
            if _kind(module) is not None and name not in self._kept
        ]
        if not convertible:
            reasons = "; ".join(f"{name or 'the model'}: {reason}" for name, reason in self._kept.items())
            raise InputError(
                f"{type(model).__name__} has no Linear or Conv layer that BatchEnsemble can convert"
                + (f" ({reasons})" if reasons else "")
            )
        tensors = named_tensors(model)
        network = with_tensors(model, {entry.name: entry.tensor.detach().clone() for entry in tensors})
        for own, given in zip(network.parameters(), model.parameters(), strict=True):
            own.requires_grad_(given.requires_grad)
        batch = _Batch(size)
        modules = canonical_modules(network)
        self._layers = {name: modules[name] for name, _ in convertible}
        for name, layer in self._layers.items():
            self._convert(name, layer, batch)
        pad_for_hooks(network)
        self.module = BatchEnsembleModule(network, size, batch)

    def _convert(self, name: str, layer: nn.Module, batch: _Batch) -> None:
        """Give a layer its fast weights and the hooks that use them."""
        kind = _kind(layer)
        assert kind is not None
        weight = layer.weight
        assert isinstance(weight, Tensor)
        for vector, width in zip(("r", "s"), _widths(layer), strict=True):
            drawn = torch.stack(
                [
                    1.0 + self.std * normal(f"batch ensemble {vector}", self.seed, name, index, (width,))
                    for index in range(self.size)
                ]
            )
            layer.register_parameter(f"batch_{vector}", nn.Parameter(drawn.to(weight.device, weight.dtype)))
        # The layer's bias would be scaled by s: it goes, and the members' own are added after.
        bias = layer.bias
        biases = nn.Parameter(bias.detach().repeat(self.size, 1)) if isinstance(bias, Tensor) else None
        layer.register_parameter("bias", None)
        layer.register_parameter("batch_bias", biases)
        fast = _FastWeights(name, SPATIAL_DIMENSIONS[kind], batch)
        layer.register_forward_pre_hook(fast.scale_inputs, with_kwargs=True)
        # First among its hooks: a hook of the model's own sees the layer's whole output.
        layer.register_forward_hook(fast.scale_outputs, prepend=True)

    @property
    def converted(self) -> list[str]:
        """Canonical names of the layers that are converted, in the model's order."""
        return list(self._layers)

    def forward_all(self, inputs: Any) -> Tensor:
        """Return the logits of all members in one pass, in eval mode and without gradients.

        Args:
            inputs: a tensor, tuple, list or dict, with the examples first.

        Returns:
            [members, examples, classes].
        """
        self._check_inputs(inputs)
        flags = [(module, module.training) for module in self.module.modules()]
        self.module.eval()
        try:
            with torch.no_grad():
                return apply(self.module, inputs).unflatten(0, (self.size, -1))
        finally:
            for module, training in flags:
                module.training = training

    @staticmethod
    def _check_inputs(inputs: Any) -> None:
        if examples_of(inputs) is None:
            raise InputError(f"the inputs hold no tensor with a dimension of examples: {shown(inputs)}")

    def loss(self, inputs: Any, targets: Tensor) -> Tensor:
        """Return the cross-entropy of ``ensemble.module``, mean over members and examples: it has a gradient.

        Args:
            inputs: as ``forward_all`` takes them. targets: class indices [examples], once, not tiled.

        Raises:
            InputError: targets that are not as many as the examples.
        """
        self._check_inputs(inputs)
        logits = apply(self.module, inputs)
        if not check_tensor("targets", targets, floating=False).dim():
            raise InputError("targets must be class indices [examples], not a tensor without dimensions")
        tiled = targets.to(logits.device).repeat(self.size, *[1] * (targets.dim() - 1))
        if len(tiled) != len(logits):
            raise InputError(
                f"{len(targets)} targets for {len(logits) // self.size} examples; the loss takes each "
                "example's target once and repeats it for the members itself"
            )
        return cross_entropy(logits, tiled)

    def parameter_groups(self, lr: float, fast_lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Return two groups for an optimiser: the shared parameters with the biases, and r and s.

        Args:
            lr, fast_lr: learning rate of each. The training loop, which sets one rate for all, follows the
                fast group's ``lr_factor`` = fast_lr / lr.
            weight_decay: of the first group; r and s have none.

        Raises:
            InputError: a learning rate that is not a finite number above 0.
        """
        for what, rate in (("lr", lr), ("fast_lr", fast_lr)):
            check_finite(what, rate, above=True)
        fast = [vectors for layer in self._layers.values() for vectors in _vectors_of(layer)[:2]]
        fast_ids = {id(vectors) for vectors in fast}
        shared = [p for p in self.module.parameters() if id(p) not in fast_ids and p.requires_grad]
        return [
            {"params": shared, "lr": lr, "weight_decay": weight_decay},
            {"params": fast, "lr": fast_lr, "weight_decay": 0.0, "lr_factor": fast_lr / lr},
        ]

    @apart()
    def member(self, index: int) -> nn.Module:
        """Return member ``index``: a plain network of weights W ∘ (s rᵀ), all else shared with the module.

        It is that of the weights now: make it anew after training.
        """
        index = self._check_index(index)
        vectors = self._vectors()
        replaced = {
            entry.name: entry.tensor.detach()
            for entry in named_tensors(self.module.network)
            if id(entry.tensor) not in vectors
        }
        for name, layer in self._layers.items():
            prefix = f"{name}." if name else ""
            replaced[f"{prefix}weight"] = _member_weight(layer, index)
            biases = _vectors_of(layer)[2]
            if biases is not None:
                replaced[f"{prefix}bias"] = biases.detach()[index]
        self.check_unchanged()
        return self._copy(replaced)

    def _vectors(self) -> dict[int, Tensor]:
        """Return the fast weights and the members' biases, by id: [members, width] each."""
        return {
            id(vectors): vectors
            for layer in self._layers.values()
            for vectors in _vectors_of(layer)
            if vectors is not None
        }

    def _own_names(self) -> Collection[str]:
        return [f"{name}.weight" if name else "weight" for name in self._layers]

    def memory_bits(self, n: int | None = None, storage: str = "members") -> int:
        """Count the shared tensors once and n members' r, s and biases; storage makes no difference."""
        n = self._check_storage(n, storage)
        vectors = self._vectors()
        shared = sum(
            tensor_bits(entry.tensor)
            for entry in named_tensors(self.module.network)
            if entry.saved and id(entry.tensor) not in vectors
        )
        return shared + n * sum(tensor_bits(v[0]) for v in vectors.values())

    def describe(self) -> str:
        """Tabulate a row per tensor of a member: name, shape, shared or not and why, bits a value."""
        converted = {f"{name}.weight" if name else "weight" for name in self._layers}
        biases = {
            f"{name}.bias" if name else "bias"
            for name, layer in self._layers.items()
            if _vectors_of(layer)[2] is not None
        }
        held_by = holders(self.model)
        rows = []
        for entry in named_tensors(self.model):
            kind = type(held_by[entry.name][0]).__name__
            if entry.name in converted:
                held, why = "shared ∘ s rᵀ", kind
            elif entry.name in biases:
                held, why = "own", f"bias of {kind}"
            else:
                held = "shared"
                why = self._kept.get(entry.name.rpartition(".")[0], f"{entry.kind} of {kind}")
            shape = "×".join(map(str, entry.tensor.shape)) or "scalar"
            rows.append((entry.name, shape, held, why, str(entry.tensor.element_size() * 8)))
        title = (
            f"BatchEnsemble of {type(self.model).__name__}: {self.size} members, {len(self._layers)} layers "
            f"converted, std {self.std:g}, seed {self.seed}"
        )
        own = sum(vectors[0].numel() for vectors in self._vectors().values())
        footer = f"{own:,} values of a member's own (r, s and biases)"
        return text_table(title, ("tensor", "shape", "in a member", "why", "bits"), rows, footer)


def _kind(module: nn.Module) -> type[nn.Module] | None:
    return next((kind for kind in SPATIAL_DIMENSIONS if isinstance(module, kind)), None)


def _not_converted(model: nn.Module) -> dict[str, str]:
    """List Linear and Conv layers that stay as they are: module name → why."""
    held_by = holders(model)
    tied: dict[int, str] = {}
    for entry in named_tensors(model):
        names = (entry.name, *entry.also)
        # One module under two names is not a tie: it is one layer, used twice.
        if len({id(held_by[name][0]) for name in names}) > 1:
            tied |= {id(held_by[name][0]): ", ".join(names) for name in names}
    functional = {
        id(layer): type(module).__name__
        for module in model.modules()
        for layer in used_without_a_call(module)
    }
    reasons = {}
    for name, layer in canonical_modules(model).items():
        kind = _kind(layer)
        if kind is None:
            continue
        parts = ("forward", "_conv_forward")
        if id(layer) in functional:
            reasons[name] = f"used by {functional[id(layer)]} without calling it"
        elif layer._parameters.get("weight") is None:
            reasons[name] = "its weight is computed"
        elif id(layer) in tied:
            reasons[name] = f"tied: {tied[id(layer)]}"
        elif "forward" in vars(layer) or any(
            getattr(type(layer), part, None) is not getattr(kind, part, None) for part in parts
        ):
            reasons[name] = f"{type(layer).__name__} has a forward of its own"
    return reasons


def _widths(layer: nn.Module) -> tuple[int, int]:
    """Return input and output channels of a layer."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    assert isinstance(layer.in_channels, int) and isinstance(layer.out_channels, int)
    return layer.in_channels, layer.out_channels


def _member_weight(layer: nn.Module, index: int) -> Tensor:
    """Return W ∘ (s_m r_mᵀ), of W's shape: [out, in / groups, …]; ConvTranspose: [in, out / groups, …]."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    r, s, _ = _vectors_of(layer)
    first, second = (r, s) if isinstance(layer, _TRANSPOSED) else (s, r)
    groups = getattr(layer, "groups", 1)  # a Linear has none
    # Row i of the weight is of group i // (rows / groups) and meets that group's part of the second vector.
    rows = first[index].view(groups, -1, 1)
    columns = second[index].view(groups, 1, -1)
    factors = (rows * columns).flatten(0, 1)
    return weight.detach() * factors.detach().view(*factors.shape, *[1] * (weight.dim() - 2))
