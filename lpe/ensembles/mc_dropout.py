"""MC-dropout: Gal & Ghahramani 2016, "Dropout as a Bayesian approximation".

Dropout is on at test time, and the predictions of M draws are averaged. Member m multiplies the features h of
each layer by one fixed mask,

    h ← h ∘ b_m / (1 − rate),   b_m ~ Bernoulli(1 − rate) per feature, keyed by (seed, layer, m),

the same for every example, token and pixel: a member is a function of its input alone. (Drawing anew per
example gives each example the same distribution of predictions.)

Places: the model's ``nn.Dropout`` modules, whatever their own p, and ``nn.Dropout1d`` to ``3d``. A model
without any gets masks on the inputs of its Linear and Conv layers, except the first, which sees raw inputs.
Features are those of the layer that ran last, in whatever layout they are passed on; where two dimensions
could be them the place is refused by name, when it runs. Dropout of attention probabilities has no features
to mask and is left out; ``describe()`` lists it, with every other place that is left as it is (``F.dropout``
in a module's own code, dropout between the layers of torch's LSTM and GRU).

What matters: the rate, tuned on validation data. Masks make networks that were not trained with dropout
much worse at rates that are harmless to others.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from lpe.checks import check_model, is_number, shown
from lpe.ensembles.base import Ensemble, text_table
from lpe.ensembles.batch_norm import MemberStatistics, fresh_statistics, statistics_note
from lpe.ensembles.feature_axis import Trail, pad_for_hooks, used_without_a_call
from lpe.ensembles.reach import check_places
from lpe.errors import InputError
from lpe.modules import SPATIAL_DIMENSIONS, canonical_modules, named_tensors, tensor_bits
from lpe.notices import note
from lpe.number_systems.streams import check_seed, uniform
from lpe.surroundings import apart

_CHANNEL_DROPOUTS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_PROBABILITIES = re.compile(r"^(attn|attention|attention_probs)_?(drop|dropout)$", re.IGNORECASE)


_FUNCTIONAL = re.compile(r"\b(F|functional|torch)\.(alpha_|feature_alpha_)?dropout[123]?d?\(")


@dataclass(frozen=True)
class Place:
    """A place where a model could have dropout.

    Args:
        name: the module's canonical name in the model. kind: its type.
        at: "output" or "input" of the module; "" where it is left as it is.
        reason: why it is a place, or is none.
        spatial: how its features lie, see :func:`feature_dimension`; for a dropout of the model this is told
            when it runs (``feature_axis``), and only where no layer ran before by the layer that it follows.
    """

    name: str
    kind: str
    at: str
    reason: str
    spatial: int


def _spatial(module: nn.Module) -> int | None:
    return next((spatial for kind, spatial in SPATIAL_DIMENSIONS.items() if isinstance(module, kind)), None)


def _holds_probabilities(parent: nn.Module, attribute: str) -> bool:
    # Only names tell: timm's attn_drop, GPT-2's attn_dropout, BERT's SelfAttention.dropout.
    return bool(_PROBABILITIES.match(attribute)) or (
        attribute == "dropout" and bool(re.search(r"attention\d*$", type(parent).__name__, re.IGNORECASE))
    )


def dropout_places(model: nn.Module) -> list[Place]:
    """List every place that dropout has or could have, in the model's order.

    Raises:
        InputError: the model has neither dropout nor a Linear or Conv layer.
    """
    modules = canonical_modules(model)
    dropouts: list[Place] = []
    # Features come as the layer before has left them: [batch, channels, *spatial] after a Conv.
    spatial = 2
    for name, module in modules.items():
        parent, _, attribute = name.rpartition(".")
        kind = type(module).__name__
        layer = 0 if isinstance(module, nn.Embedding) else _spatial(module)
        if layer is not None:
            spatial = layer
        elif isinstance(module, nn.Dropout):
            if name and _holds_probabilities(modules[parent], attribute):
                dropouts.append(Place(name, kind, "", "attention probabilities, no features", 0))
            else:
                dropouts.append(Place(name, kind, "output", "dropout of the model", spatial))
        elif isinstance(module, _CHANNEL_DROPOUTS):
            dropouts.append(Place(name, kind, "output", "dropout of the model, by channel", -1))
        elif isinstance(module, nn.RNNBase) and module.dropout and module.num_layers > 1:
            dropouts.append(Place(name, kind, "", "dropout between its layers, inside torch's own code", 0))
        elif _calls_dropout(module):
            dropouts.append(Place(name, kind, "", "calls F.dropout itself, which no mask reaches", 0))
        elif isinstance(module, _DropoutNd) or re.search(r"drop(out|path|block)", kind, re.IGNORECASE):
            dropouts.append(Place(name, kind, "", "another kind of dropout", 0))
    if any(place.at for place in dropouts):
        return dropouts
    inserted = _inserted_places(modules)
    if not any(place.at for place in inserted):
        raise InputError(
            f"{type(model).__name__} has neither dropout nor a Linear or Conv layer that it calls; "
            "there is nowhere to mask"
        )
    return dropouts + inserted


def _calls_dropout(module: nn.Module) -> bool:
    """Tell whether a module's own code drops features by torch's function: there is no module to mask."""
    if type(module).__module__.startswith("torch.nn."):
        return False
    try:
        return bool(_FUNCTIONAL.search(inspect.getsource(type(module).forward)))
    except (OSError, TypeError, AttributeError):  # made without a file
        return False


def _inserted_places(modules: dict[str, nn.Module]) -> list[Place]:
    """List the inputs of Linear and Conv layers but the first's, in the order of the model's modules."""
    functional = {id(layer) for module in modules.values() for layer in used_without_a_call(module)}
    places = []
    raw = True
    usable = sum(_spatial(module) is not None for module in modules.values()) - len(functional)
    for name, module in modules.items():
        if isinstance(module, nn.Embedding):
            raw = False
        spatial = _spatial(module)
        if spatial is None:
            continue
        kind = type(module).__name__
        if id(module) in functional:
            places.append(Place(name, kind, "", "its weight is used without calling it", spatial))
        elif raw and usable > 1:
            places.append(Place(name, kind, "", "the first layer sees raw inputs", spatial))
            raw = False
        else:
            places.append(Place(name, kind, "input", f"input of {kind}", spatial))
            raw = False
    return places


def feature_dimension(place: Place, dimensions: int) -> int:
    """Return the dimension that holds the features at a place, of a tensor of so many dimensions."""
    if place.spatial < 0:
        return 1
    if place.at == "input":
        return dimensions - 1 - place.spatial
    # Dropout after a Conv sees its feature maps only if they are still such: a ViT's are tokens by then.
    return 1 if place.spatial and dimensions == place.spatial + 2 else dimensions - 1


class _Mask:
    """One layer's mask in one member, drawn when the number of features is known."""

    def __init__(self, place: Place, rate: float, seed: int, member: int, trail: Trail | None = None) -> None:
        self.place = place
        self.trail = trail
        self.rate = rate
        self.seed = seed
        self.member = member
        self._drawn: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}

    def factors(self, features: int) -> Tensor:
        """Return 0 or 1/(1 − rate) per feature: float32 [features]."""
        drawn = uniform("mc dropout", self.seed, self.place.name, self.member, features)
        return (drawn >= self.rate).float() / (1.0 - self.rate)

    def masked(self, values: Tensor) -> Tensor:
        """Return the values with their features masked."""
        if not self.rate:
            return values
        dimension: int | None = feature_dimension(self.place, values.dim())
        if self.trail is not None and self.place.at == "output" and self.place.spatial >= 0:
            assert dimension is not None
            dimension = self.trail.dimension(self.place.name, values, dimension)
        if dimension is None:
            note(
                f"dropout {self.place.name!r} is given attention probabilities, which have no features: it "
                "is left as it is"
            )
            return values
        features = values.shape[dimension]
        key = (features, values.dtype, values.device)
        if key not in self._drawn:
            # Kept for later calls, so not of the caller's inference mode: a gradient may be asked for then.
            with apart():
                self._drawn[key] = self.factors(features).to(values.device, values.dtype)
        return values * self._drawn[key].view(features, *[1] * (values.dim() - 1 - dimension))

    def on_output(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        """Mask a module's output, as a forward hook."""
        return self.masked(output)

    def on_input(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Mask a module's input, as a forward pre-hook."""
        if args:
            return (self.masked(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "input": self.masked(kwargs["input"])}


def has_masks(model: nn.Module) -> bool:
    """Tell whether a network carries masks: it is a member of an ``MCDropoutEnsemble`` or made of one."""
    return bool(masks_in(model))


def masks_in(model: nn.Module) -> list[tuple[str, float, int, int]]:
    """List what determines each mask that a network carries: its place, rate and seed, and the member."""
    hooks = (
        hook
        for module in model.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    )
    masks = [mask for hook in hooks if isinstance(mask := getattr(hook, "__self__", None), _Mask)]
    return [(mask.place.name, mask.rate, mask.seed, mask.member) for mask in masks]


class MCDropoutEnsemble(Ensemble):
    """An ensemble of M fixed dropout masks on one model.

    Args:
        model: any module; it is not modified, and members share all its tensors.
        rate: the probability that a feature is dropped, 0 ≤ rate < 1; the modules' own p are not used.
        size: members. seed: of the masks, 0 … 2⁶⁴ − 1.
        batches: training batches (inputs, targets), iterable again and again: each member's batch-norm
            statistics are re-estimated over them, under its masks, when it is first made, and kept. None:
            they are the model's, which is the usual practice.
        refresh: "relative", to what the network without masks has, which stays as it is; or "absolute",
            those of the batches. See ``batch_norm``.

    Raises:
        InputError: a rate outside [0, 1); a size below 1; a seed out of range; a model with neither dropout
            nor a Linear or Conv layer.
    """

    def __init__(
        self,
        model: nn.Module,
        rate: float,
        size: int,
        seed: int = 0,
        batches: Iterable[Any] | None = None,
        refresh: str = "relative",
    ) -> None:
        super().__init__(size)
        check_model(model)
        if not is_number(rate) or not 0 <= rate < 1:
            raise InputError(
                f"rate must be a number from 0 up to but not 1 (the share dropped), not {shown(rate)}"
            )
        self.model = model = self._made_of(model)
        self.rate = float(rate)
        self.seed = check_seed(seed)
        self.batch_norm = MemberStatistics.of(model, batches, refresh)
        self.places = dropout_places(model)
        self._found: dict[tuple[str, int], int | None] = {}

    @apart()
    def member(self, index: int) -> nn.Module:
        """Return member ``index``: the model with a fixed mask at every place, all tensors shared.

        The masks are hooks of the copy, so its modules and their names are the model's.
        """
        own = {} if self.batch_norm is None else fresh_statistics(self.model)
        self.check_unchanged()
        net = self._copy(own)
        modules = canonical_modules(net)
        trail = Trail(self._found)
        trail.follow(net)
        for place in self.places:
            mask = _Mask(place, self.rate, self.seed, index, trail)
            if place.at == "output":
                modules[place.name].register_forward_hook(mask.on_output)
            elif place.at == "input":
                modules[place.name].register_forward_pre_hook(mask.on_input, with_kwargs=True)
        pad_for_hooks(net)
        return net if self.batch_norm is None else self.batch_norm.give(net, index)

    def _see(self, inputs: Any) -> None:
        masked = [place.name for place in self.places if place.at]
        if self._structure is not None and masked and self.rate:
            check_places(self._structure, masked, inputs)

    def memory_bits(self, n: int | None = None, storage: str = "members") -> int:
        """Return the bits of one model, whatever n: the masks follow from the seed.

        Stored members with re-estimated batch-norm statistics have those each.
        """
        n = self._check_storage(n, storage)
        owned = {} if self.batch_norm is None else fresh_statistics(self.model)
        copies = n if storage == "members" else 1
        return sum(
            tensor_bits(entry.tensor) * (copies if entry.name in owned else 1)
            for entry in named_tensors(self.model)
            if entry.saved
        )

    def describe(self) -> str:
        """Tabulate a row per place that has or could have dropout: module, kind, masked or not, why."""
        rows = [
            (place.name or "(the model)", place.kind, "yes" if place.at else "no", place.reason)
            for place in self.places
        ]
        title = (
            f"MC-dropout of {type(self.model).__name__}: {self.size} members, rate {self.rate:g}, "
            f"seed {self.seed}"
        )
        values = sum(entry.tensor.numel() for entry in named_tensors(self.model) if entry.saved)
        footer = f"{values:,} values, shared by all members"
        return text_table(
            title,
            ("module", "kind", "masked", "why"),
            rows,
            footer + statistics_note(self.model, self.batch_norm),
        )
