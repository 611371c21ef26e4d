"""Batch-norm statistics of weights that nobody trained: rounded, averaged or sampled ones need new ones.

The statistics of a norm are those of what it is given while the training data go through the network once,
each batch normalised by its own statistics, as in Izmailov et al. 2018, "Averaging weights leads to wider
optima and better generalization", §3.2. Each value counts once, whatever the batch it is in: mean and
variance are those of the union of the batches, the variance with N − 1, as in torch's ``running_var``.
(torch's own ``update_bn`` means over batches, and leaves out how the batches' means vary.)

    absolute   the member's statistics are these
    relative   mean := mean_base + (mean of the member − mean of the unrounded network)
               var  := var_base · (var of the member / var of the unrounded network)
               both measured on the same batches, so that the unrounded network stays as it is. With few
               images the absolute form costs more than it mends: what differs from the training set is in it

What matters: batches of about the size of training's, and enough of them under the absolute form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lpe.batches import check_iterable, pairs
from lpe.checks import check_choice, check_model
from lpe.errors import InputError
from lpe.modules import apply, canonical_modules, device_of, to_device, with_tensors
from lpe.structure import own_buffers
from lpe.surroundings import apart

FORMS = ("relative", "absolute")
STILL = 1e-6
"""A channel whose std is less than this share of its mean is constant, up to float32's rounding."""


def batch_norms(model: nn.Module) -> list[tuple[str, _BatchNorm]]:
    """Return the batch-norm modules that keep running statistics, by canonical name."""
    return [
        (name, module)
        for name, module in canonical_modules(model).items()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]


def fixed_norms(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """List modules with running statistics that are no batch norms of torch's: frozen, or others' own."""
    return [
        (name, module)
        for name, module in canonical_modules(model).items()
        if not isinstance(module, _BatchNorm)
        and all(isinstance(module._buffers.get(each), Tensor) for each in ("running_mean", "running_var"))
    ]


def fresh_statistics(model: nn.Module) -> dict[str, Tensor]:
    """Copy the batch-norm buffers under their canonical names, for a member that is to own its own."""
    # They are written to later, which tensors of the caller's inference mode could not be.
    with torch.inference_mode(False):
        return {
            _under(name, buffer): tensor.clone()
            for name, module in batch_norms(model)
            for buffer, tensor in module.named_buffers(recurse=False)
        }


def _under(name: str, buffer: str) -> str:
    return f"{name}.{buffer}" if name else buffer


# What one pass measures.


@dataclass
class _Moments:
    """Mean and summed squared deviations of each channel, over the batches so far: float64 [channels]."""

    count: int
    mean: Tensor
    squares: Tensor

    @staticmethod
    def of(values: Tensor) -> _Moments:
        """Return the moments of a batch [examples, channels, …]; all values of a channel count alike."""
        channels = values.shape[1]
        count = values.numel() // channels
        if count == 1:
            mean = values.detach().reshape(channels).double()
            return _Moments(1, mean, torch.zeros_like(mean))
        values = values.detach() if values.dtype == torch.float64 else values.detach().float()
        mean, variance = (torch.zeros(channels, dtype=values.dtype, device=values.device) for _ in range(2))
        # The quickest way to both on every backend: with momentum 1 they are the batch's, with N − 1.
        F.batch_norm(values, mean, variance, training=True, momentum=1.0)
        return _Moments(count, mean.double(), variance.double() * (count - 1))

    def with_more(self, other: _Moments) -> _Moments:
        """Return the moments of the union of both samples (Chan, Golub & LeVeque 1979)."""
        count = self.count + other.count
        apart = other.mean - self.mean
        mean = self.mean + apart * (other.count / count)
        squares = self.squares + other.squares + apart.square() * (self.count * other.count / count)
        return _Moments(count, mean, squares)


class _Observed:
    """A network whose batch norms are measured; its own statistics are written over meanwhile.

    Args:
        net: in eval mode, with statistics that are its own.
    """

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.device = device_of(net)
        self.norms = batch_norms(net)
        self.moments: dict[str, _Moments] = {}
        self._hooks = [
            norm.register_forward_pre_hook(self._hook_of(name), with_kwargs=True) for name, norm in self.norms
        ]

    def _hook_of(self, name: str) -> Any:
        def before(norm: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            values = next(iter((*args, *kwargs.values())))
            if not values.numel():
                return
            batch = _Moments.of(values)
            so_far = self.moments.get(name)
            self.moments[name] = pooled = batch if so_far is None else so_far.with_more(batch)
            # One value a channel has no variance to be normalised by: all so far have, or the norm's own has.
            by = batch if batch.count > 1 else pooled
            if by.count > 1:
                _write(norm, by.mean, by.squares / by.count)

        return before

    def run(self, inputs: Any) -> None:
        apply(self.net, to_device(inputs, self.device))

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def statistics(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return mean and variance (N − 1) of each norm that was called, float64.

        Raises:
            InputError: none was called; a norm was given one value a channel in all.
        """
        if not self.moments:
            raise InputError(
                f"none of the {len(self.norms)} batch norms of {type(self.net).__name__} is called as a "
                "module in a pass, so their statistics cannot be re-estimated; leave batches= out"
            )
        for name, moments in self.moments.items():
            if moments.count < 2:
                raise InputError(
                    f"batch norm {name!r} was given one value a channel in all, which has no variance; give "
                    "batches of more examples"
                )
        return {name: (m.mean, m.squares / (m.count - 1)) for name, m in self.moments.items()}


def _write(norm: nn.Module, mean: Tensor, variance: Tensor) -> None:
    assert isinstance(norm.running_mean, Tensor) and isinstance(norm.running_var, Tensor)
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)


def _measured(networks: Sequence[nn.Module], batches: Iterable[Any]) -> tuple[list[_Observed], int]:
    """Return networks after a pass over the batches, each batch through all of them, and the batches' number.

    Raises:
        InputError: no batches, or one that is no pair.
    """
    seen = 0
    observed = [_Observed(net) for net in networks]
    try:
        for _, inputs, _ in pairs(batches, "; give (inputs, None) where there are no targets"):
            for each in observed:
                each.run(inputs)
            seen += 1
    finally:
        for each in observed:
            each.close()
    if not seen:
        raise InputError("batch-norm statistics need training batches, and there were none")
    return observed, seen


@apart()
def refresh(model: nn.Module, batches: Iterable[Any]) -> None:
    """Re-estimate the running statistics in place, over one pass: the absolute form.

    Args:
        model: its batch-norm buffers are overwritten (a norm that no batch reaches keeps its own); training
            flags are as before afterwards, and the buffers too where the pass fails.
        batches: iterable of (inputs, targets) of training data; read only if there are batch norms. Inputs
            are moved to the model's device.

    Raises:
        InputError: the model has batch norms and the batches are empty, hold one value a channel in all, or
            do not reach them.
    """
    check_model(model)
    check_iterable(batches)
    norms = dict(batch_norms(model))
    if not norms:
        return
    for norm in norms.values():
        own_buffers(norm)
    flags = [(module, module.training) for module in model.modules()]
    before = [(tensor, tensor.clone()) for norm in norms.values() for tensor in norm.buffers(recurse=False)]
    try:
        model.eval()
        (observed,), seen = _measured([model], batches)
        statistics = observed.statistics()
    except BaseException:
        _restore(before)
        raise
    finally:
        for module, training in flags:
            module.training = training
    _restore(before)
    for name, (mean, variance) in statistics.items():
        _write(norms[name], mean, variance)
        if (counted := norms[name].num_batches_tracked) is not None:
            counted.fill_(seen)


def _restore(before: Sequence[tuple[Tensor, Tensor]]) -> None:
    for tensor, value in before:
        tensor.copy_(value)


# What the ensembles keep.


def check_batches(model: nn.Module, batches: Iterable[Any] | None, method: str) -> None:
    """Raise InputError where a model has batch norms and no batches to re-estimate their statistics on."""
    if batch_norms(model) and batches is None:
        raise InputError(
            f"{type(model).__name__} has batch norms; {method}'s members need batches= of training data "
            "to re-estimate their statistics"
        )
    check_rereadable(batches)


def check_rereadable(batches: Iterable[Any] | None) -> None:
    """Raise InputError for an iterator: a second member would find nothing left in it."""
    if batches is not None:
        check_iterable(batches)
    if isinstance(batches, Iterator):
        raise InputError(
            f"batches= is read once a member, and a {type(batches).__name__} can be read once in all; give a "
            "list or a DataLoader"
        )


@dataclass
class Kept:
    """Statistics that were estimated: of the members, by index, and of the unrounded network."""

    members: dict[int | str, dict[str, Tensor]] = field(default_factory=dict)
    unrounded: dict[str, tuple[Tensor, Tensor]] | None = None


class MemberStatistics:
    """Batch-norm statistics of an ensemble's members: each estimated once, when it is first made, and kept.

    So a member is one function also under batches that are shuffled or augmented anew in each pass.

    Args:
        model: the unrounded network, which is not modified. batches: of training data.
        form: one of FORMS. alike: all members have the same weights, and are estimated once.
    """

    def __init__(self, model: nn.Module, batches: Iterable[Any], form: str, alike: bool = False) -> None:
        self.model = model
        self.batches = batches
        self.form = form
        self.alike = alike
        self.kept = Kept()

    @staticmethod
    def of(
        model: nn.Module, batches: Iterable[Any] | None, form: str, alike: bool = False
    ) -> MemberStatistics | None:
        """Return the statistics of members that have their own; None without batches, or without batch norms.

        Raises:
            InputError: an unknown form; batches that can be read once.
        """
        check_choice("refresh", form, FORMS)
        check_rereadable(batches)
        return (
            None
            if batches is None or not batch_norms(model)
            else MemberStatistics(model, batches, form, alike)
        )

    @property
    def names(self) -> list[str]:
        """Canonical names of the buffers that are a member's own."""
        return [
            _under(name, each)
            for name, _ in batch_norms(self.model)
            for each in ("running_mean", "running_var")
        ]

    def of_member(self, index: int, make: Callable[[int], nn.Module]) -> dict[str, Tensor]:
        """Return a member's statistics, by buffers' names; make the member where they are not known yet."""
        index = 0 if self.alike else index
        if index not in self.kept.members:
            make(index)
        return self.kept.members[index]

    def give(self, net: nn.Module, index: int | str) -> nn.Module:
        """Write a member's statistics into its own buffers, and return it.

        Args:
            net: in eval mode, with batch-norm buffers that are its own. index: of the member, or a name.
        """
        index = 0 if self.alike else index
        with apart():
            if index not in self.kept.members:
                self.kept.members[index] = self._estimated(net)
            kept = self.kept.members[index]
            for name, norm in batch_norms(net):
                _write(norm, kept[_under(name, "running_mean")], kept[_under(name, "running_var")])
        return net

    def _estimated(self, net: nn.Module) -> dict[str, Tensor]:
        relative = self.form == "relative"
        networks = [net]
        if relative and self.kept.unrounded is None:
            networks.append(with_tensors(self.model, fresh_statistics(self.model)))
        with _as_if_alone():
            observed, _ = _measured(networks, self.batches)
        of_member = observed[0].statistics()
        unrounded = self.kept.unrounded
        if relative and unrounded is None:
            unrounded = observed[1].statistics()
            if isinstance(self.batches, Sequence):
                # The same batches in every pass: once will do. Others may be shuffled or augmented.
                self.kept.unrounded = unrounded
        estimated = {}
        for name, norm in batch_norms(self.model):
            assert isinstance(norm.running_mean, Tensor) and isinstance(norm.running_var, Tensor)
            mean, variance = norm.running_mean, norm.running_var
            if name in of_member:
                new_mean, new_variance = of_member[name]
                if relative:
                    assert unrounded is not None
                    new_mean, new_variance = _relative(norm, of_member[name], unrounded[name])
                mean, variance = new_mean.to(mean.dtype), new_variance.to(variance.dtype)
            estimated[_under(name, "running_mean")] = mean.detach().clone()
            estimated[_under(name, "running_var")] = variance.detach().clone()
        return estimated


def _relative(
    norm: _BatchNorm, of_member: tuple[Tensor, Tensor], unrounded: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    assert isinstance(norm.running_mean, Tensor) and isinstance(norm.running_var, Tensor)
    (mean, variance), (mean_before, variance_before) = of_member, unrounded
    new_mean = norm.running_mean.double() + (mean - mean_before)
    base = norm.running_var.double()
    # A channel that is constant in the unrounded network has no ratio: what the member adds is added.
    still = variance_before <= (STILL * mean_before).square()
    ratio = variance / torch.where(still, 1.0, variance_before)
    added = torch.where(variance <= (STILL * mean).square(), 0.0, variance)
    return new_mean, torch.where(still, base + added, base * ratio)


@contextmanager
def _as_if_alone() -> Iterator[None]:
    """Run a pass that neither draws from nor changes the generator that loaders are shuffled by."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(0)
    try:
        yield
    finally:
        torch.set_rng_state(state)


def statistics_note(model: nn.Module, statistics: MemberStatistics | None) -> str:
    """Return the end of a description's last line, on a model's batch norms; empty where there are none."""
    notes = [""]
    if batch_norms(model):
        notes.append(
            "batch-norm statistics as the model has them"
            if statistics is None
            else f"batch-norm statistics re-estimated for each member, {statistics.form}"
        )
    if fixed := fixed_norms(model):
        name, module = fixed[0]
        more = f" and {len(fixed) - 1} more" if len(fixed) > 1 else ""
        notes.append(
            f"statistics of {name or 'the model'}{more} ({type(module).__name__}) are never re-estimated"
        )
    return "; ".join(notes)


def with_weights(model: nn.Module, weights: Mapping[str, Tensor], batches: Iterable[Any] | None) -> nn.Module:
    """Copy a model with other weights and with batch-norm statistics re-estimated under them (absolute)."""
    net = with_tensors(model, {**weights, **fresh_statistics(model)})
    if batches is not None:
        refresh(net, batches)
    return net
