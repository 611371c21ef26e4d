"""Checks that a member computes with its own tensors: once an ensemble, on an example of the first batch.

A structural copy may still run the network that it was made of: a ``forward`` that was replaced by something
bound to it (compiled, decorated, a lambda), values that were computed from its weights and kept, in a class
or a module of Python's even. Then every member is the network itself, and nothing else would tell. A network
of the modules of a library that keeps no weights, which holds nothing but modules, parameters, buffers and
plain values, has nothing of that kind, and is not tried. Of any other, a copy whose parameters ask for
gradients is run on an example while the network's own do too:

    a tensor of the network is reached      an error: the copy computes with it instead of its own
    a tensor of the copy is reached         right
    neither                                 whatever is computed without gradients is followed operation by
                                            operation. What is still not reached is an error where its layer's
                                            result is used all the same, or a tensor as large that the copy
                                            holds as a plain value, and else a note: another example may need
                                            it (an expert, say)

"Reached" is a path through the autograd graph; nothing is differentiated and nothing is kept for it.
MC-dropout owns no tensor: there each place that is to be masked must be called, and in the copy.
"""

from __future__ import annotations

import sys
import types
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lpe.contents import is_of_a_library, kept_tensors
from lpe.errors import InputError
from lpe.modules import apply, device_of, tensors_in, to_device, tree_map
from lpe.networks import canonical_modules, holders
from lpe.notices import note
from lpe.structure import Structure

EXAMPLES = (1, 2)
"""Numbers of examples that are tried, before the whole batch where the network does not take so few."""
SHOWN = 3


def check_own_tensors(structure: Structure, own: Collection[str], inputs: Any) -> None:
    """Check that copies of a network compute with their own tensors.

    Args:
        structure: the network. own: names of the parameters that a member does not share.
        inputs: a batch, as the network takes it.

    Raises:
        InputError: a copy computes with the network's tensors, or with what was computed from them before.
    """
    if not _may_hold_on(structure):
        return
    own = [entry.name for entry in structure.tensors if entry.name in own]
    for example in _examples(inputs):
        copy = structure.copy({})
        try:
            try:
                reached, of_base = _by_gradients(structure, copy, example)
            except RuntimeError:
                reached, of_base = set(), []  # a part in inference mode, say
            missing = [name for name in own if name not in reached]
            if missing and not of_base:
                # Of memory of its own: what is kept for a weight may be kept by where the weight lies.
                copy = structure.copy({name: structure.tensor(name).detach().clone() for name in missing})
                flow, of_base, used = _by_operations(structure, copy, missing, example)
                missing = [name for name in missing if name not in flow]
                stale = [name for name in missing if name in used and not _matters(structure, name, example)]
            else:
                stale = []
        except Exception:
            continue  # the network does not take it: whoever runs it will see
        if of_base:
            raise InputError(
                f"members of {type(structure.model).__name__} would compute with the network's own "
                f"{_some(of_base)}, not with theirs: a forward was replaced by something bound to the "
                "network (compiled, decorated, a closure); give the plain network, and wrap its members"
            )
        if stale:
            raise InputError(
                f"members of {type(structure.model).__name__} would not compute with their {_some(stale)}: "
                "the network uses what it computed from it before and kept; clear that first, or leave it "
                "out of copies by __getstate__"
            )
        if missing:
            note(
                f"{type(structure.model).__name__}: {_some(missing)} ({len(missing)} of {len(own)} tensors "
                "that are a member's own) had no part in the output of the example that was tried; of what "
                "no example uses the members do not differ"
            )
        return


def check_places(structure: Structure, places: Sequence[str], inputs: Any) -> None:
    """Check that a copy calls its masked modules.

    Args:
        structure: the network. places: canonical names of the modules. inputs: a batch.

    Raises:
        InputError: the copy calls the network's own modules, or none that is masked.
    """
    for example in _examples(inputs):
        copy = structure.copy({})
        called: set[str] = set()
        of_base: set[str] = set()
        with ExitStack() as hooks:
            for net, seen in ((structure.model, of_base), (copy, called)):
                modules = canonical_modules(net)
                for name in places:
                    hook = modules[name].register_forward_pre_hook(_Seen(seen, name))
                    hooks.callback(hook.remove)
            try:
                with _aside(copy, gradients=False):
                    apply(copy, example)
            except Exception:
                continue
        if of_base or not called:
            which = "the network's own" if of_base else "none of the masked"
            raise InputError(
                f"members of {type(structure.model).__name__} would call {which} modules, so that no mask "
                f"would count ({_some(sorted(of_base) or places)}): a forward was replaced by something "
                "bound to the network, or calls functions in their place; give the plain network"
            )
        if missing := [name for name in places if name not in called]:
            note(
                f"{type(structure.model).__name__}: {_some(missing)} ({len(missing)} of {len(places)} masked "
                "modules) had no part in the output of the example that was tried"
            )
        return


_PLAIN_VALUES = (
    *(type(None), bool, int, float, complex, str, bytes, type),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format),
)
_CONTAINERS = (dict, list, tuple, set, frozenset)


def _may_hold_on(structure: Structure) -> bool:
    """Tell whether copies may share something with the network that makes them compute with its tensors."""
    registered = {id(entry) for entry in structure.held()}
    return not all(
        is_of_a_library(type(module))
        and structure.is_plain(module)
        and "forward" not in vars(module)
        and all(
            _is_inert(value, registered, shared=False)
            for key, value in vars(module).items()
            if key != "_compiled_call_impl"
        )
        for module in structure.model.modules()
    )


def _is_inert(value: Any, registered: set[int], shared: bool) -> bool:
    """Tell whether a copy that keeps this value cannot compute with the network's own tensors through it.

    Args:
        value: an attribute of a module, or what one holds. registered: ids of the modules and tensors that a
            copy has its own of. shared: whether the copy has the very same object, as of functions.
    """
    kind = type(value)
    if isinstance(value, _PLAIN_VALUES):
        return True
    if isinstance(value, _CONTAINERS):
        contents = value.values() if isinstance(value, dict) else value
        return all(_is_inert(each, registered, shared) for each in contents)
    if kind is types.FunctionType:
        empty = types.CellType()
        cells = [cell.cell_contents for cell in value.__closure__ or () if cell != empty]
        named = [value.__globals__.get(name) for name in value.__code__.co_names]
        return all(
            _is_inert(each, registered, shared=True) for each in (*cells, *(value.__defaults__ or ()))
        ) and not any(isinstance(each, nn.Module | Tensor | types.MethodType) for each in named)
    if kind is types.BuiltinFunctionType:
        return isinstance(value.__self__, types.ModuleType | type | None)
    if shared:
        return False
    if isinstance(value, nn.Module | Tensor):
        return id(value) in registered
    if kind is types.MethodType:
        return all(_is_inert(each, registered, False) for each in (value.__func__, value.__self__))
    return False


class _Seen:
    """A forward pre-hook that notes the call."""

    def __init__(self, seen: set[str], name: str) -> None:
        self.seen = seen
        self.name = name

    def __call__(self, module: nn.Module, inputs: Any) -> None:
        self.seen.add(self.name)


def _some(names: Collection[str]) -> str:
    names = list(names)
    more = " …" if len(names) > SHOWN else ""
    return ", ".join(map(repr, names[:SHOWN])) + more


def _examples(inputs: Any) -> Iterator[Any]:
    """Yield the first example or two of a batch, then all of it."""
    length = next((len(values) for values in tensors_in(inputs) if values.dim()), 0)
    for count in EXAMPLES:
        if count < length:
            yield tree_map(_first(count, length), inputs)
    yield inputs


def _first(count: int, length: int) -> Callable[[Any], Any]:
    def first(values: Any) -> Any:
        if isinstance(values, Tensor) and values.dim() and len(values) == length:
            return values[:count]
        return values

    return first


@contextmanager
def _aside(net: nn.Module, gradients: bool) -> Iterator[None]:
    """Let a pass leave the generators as they were, say nothing and compile nothing."""
    devices = {tensor.device.index or 0 for tensor in net.parameters() if tensor.is_cuda}
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(torch.random.fork_rng(devices=sorted(devices)))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(gradients))
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


def _run(net: nn.Module, example: Any) -> Tensor:
    placed = tree_map(lambda v: v.clone() if isinstance(v, Tensor) and v.is_inference() else v, example)
    return apply(net, to_device(placed, device_of(net)))


def _parameters(structure: Structure, net: nn.Module) -> dict[int, tuple[str, Tensor]]:
    """Return the floating parameters of the network, or of a copy, by id: the first name and the tensor."""
    found: dict[int, tuple[str, Tensor]] = {}
    for name, (module, attribute) in holders(net).items():
        tensor = module._parameters.get(attribute)
        if tensor is not None and tensor.is_floating_point():
            found[id(tensor)] = (structure.first_name(name), tensor)
    return found


def _by_gradients(structure: Structure, copy: nn.Module, example: Any) -> tuple[set[str], list[str]]:
    """Name the copy's parameters, and the network's, from which a path leads to the output."""
    own, base = _parameters(structure, copy), _parameters(structure, structure.model)
    flags = [(tensor, tensor.requires_grad) for _, tensor in base.values() if tensor.is_leaf]
    try:
        for tensor in (*(tensor for _, tensor in own.values()), *(tensor for tensor, _ in flags)):
            if not tensor.is_inference():
                tensor.requires_grad_(True)
        with (
            _aside(copy, gradients=True),
            # Nothing is differentiated, so nothing is to be kept for it.
            torch.autograd.graph.saved_tensors_hooks(lambda tensor: None, lambda kept: kept),
        ):
            leaves = _leaves(_run(copy, example))
    finally:
        for tensor, flag in flags:
            tensor.requires_grad_(flag)
        for _, tensor in own.values():
            tensor.requires_grad_(False)
    reached = {name for key, (name, _) in own.items() if key in leaves}
    return reached, [name for key, (name, _) in base.items() if key in leaves]


def _leaves(output: Tensor) -> set[int]:
    """Return the ids of the leaf tensors of an output's autograd graph."""
    if output.grad_fn is None:
        return {id(output)} if output.requires_grad else set()
    leaves: set[int] = set()
    seen = {output.grad_fn}
    stack = [output.grad_fn]
    while stack:
        node = stack.pop()
        variable = getattr(node, "variable", None)
        if isinstance(variable, Tensor):
            leaves.add(id(variable))
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                stack.append(following)
    return leaves


class _Flow(TorchDispatchMode):
    """A record of the marked tensors that each tensor was computed from, whatever the grad mode."""

    def __init__(self) -> None:
        super().__init__()
        self.marks: dict[int, tuple[Tensor, frozenset[Any]]] = {}
        # Of memory that was written to; what is kept here is not given to others.
        self.written: dict[int, tuple[Any, frozenset[Any]]] = {}

    def of(self, tensor: Tensor) -> frozenset[Any]:
        """Return the marks that a tensor bears."""
        marks = self.marks[id(tensor)][1] if id(tensor) in self.marks else frozenset()
        storage = self.written.get(tensor.untyped_storage()._cdata)
        return marks if storage is None else marks | storage[1]

    def mark(self, tensor: Tensor, marks: frozenset[Any]) -> None:
        """Add marks to a tensor."""
        self.marks[id(tensor)] = (tensor, self.of(tensor) | marks)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        marks = frozenset().union(*map(self.of, given))
        if marks:
            for value in tree_leaves(result):
                if isinstance(value, Tensor):
                    self.mark(value, marks)
            for place, argument in enumerate(func._schema.arguments):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    self._write(args[place] if place < len(args) else kwargs.get(argument.name), marks)
        return result

    def _write(self, values: Any, marks: frozenset[Any]) -> None:
        for value in tree_leaves(values):
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                self.written[storage._cdata] = (storage, self.of(value) | marks)


def _by_operations(
    structure: Structure, copy: nn.Module, names: Collection[str], example: Any
) -> tuple[set[str], list[str], set[str]]:
    """Do as :func:`_by_gradients`, by following operations, for some names.

    Returns:
        Names of the copy's parameters that the output was computed from; of the network's; and of those whose
        layer's result it was computed from, or a tensor that the copy keeps and that has as many elements.
    """
    flow = _Flow()
    wanted = set(names)
    held_by = holders(copy)
    with ExitStack() as hooks:
        for whose, net in (("copy", copy), ("base", structure.model)):
            for name, tensor in _parameters(structure, net).values():
                if name in wanted or whose == "base":
                    flow.mark(tensor, frozenset([(whose, name)]))
        for kept in kept_tensors(copy):
            alike = [name for name in names if structure.tensor(name).numel() == kept.numel()]
            flow.mark(kept, frozenset(("result", name) for name in alike))
        for name in names:
            module = held_by[name][0]
            if not any(True for _ in module.children()):
                hooks.callback(module.register_forward_hook(_Result(flow, name)).remove)
        with _aside(copy, gradients=False), flow:
            output = _run(copy, example)
    marks = flow.of(output)
    found = {
        whose: sorted(name for kind, name in marks if kind == whose) for whose in ("copy", "base", "result")
    }
    return set(found["copy"]), found["base"], set(found["result"])


class _Result:
    """A forward hook that marks what a layer returns."""

    def __init__(self, flow: _Flow, name: str) -> None:
        self.flow = flow
        self.name = name

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        for value in tensors_in(output):
            self.flow.mark(value, frozenset([("result", self.name)]))


def _matters(structure: Structure, name: str, example: Any) -> bool:
    """Tell whether another value of a tensor changes the output: for computations that torch does not see."""
    tensor = structure.tensor(name).detach()
    outputs = []
    for values in (tensor, tensor * 1.5 + 0.5):
        net = structure.copy({name: values})
        with _aside(net, gradients=False):
            outputs.append(_run(net, example))
    return not torch.equal(*outputs)
