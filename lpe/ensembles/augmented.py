"""Test-time augmentation: one network sees M views of its input, and the predictions are averaged.

    p(y|x) = 1/M Σ_m p(y | view_m(x), θ)

View 0 is the input as it is, so an ensemble of one is the network; the others are drawn, keyed by (seed, m).
A member is one view, the same for every image: it is a function of its input alone, whatever batch that lies
in.

Sources: Krizhevsky et al. 2012, "ImageNet classification with deep convolutional neural networks", average
the predictions on ten views of an image, five crops and their mirror images; Ashukha et al. 2020, "Pitfalls
of in-domain uncertainty estimation", draw the views from training's own augmentation; Shanmugam et al. 2021,
"Better aggregation in test-time augmentation", show that the mean turns some right predictions wrong also
where it gains overall. The standard view is the augmentation of He et al. 2016, "Deep residual learning for
image recognition", for CIFAR.

What matters: views that keep the label, and that the network was trained on. It costs a forward pass a view,
as an ensemble does, and the memory of one network. Batch-norm statistics are the network's.
"""

from __future__ import annotations

import functools
import hashlib
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lpe.checks import check_integer, shown
from lpe.ensembles.base import Ensemble, text_table
from lpe.errors import InputError
from lpe.modules import named_tensors, tensor_bits
from lpe.number_systems.streams import check_seed, generator
from lpe.surroundings import apart

View = Callable[[Tensor, torch.Generator], Tensor]
"""A function of images [examples, …] and a generator on the CPU, which returns a view of as many examples.

It is called once a batch, with the member's generator in the same state each time: what it draws once is the
same for every image. It draws from nothing else.
"""


@dataclass(frozen=True)
class CropAndFlip:
    """The standard view: a crop of the images' own size out of a margin of zeros, mirrored or not.

    The crop's place is one of the (2·padding + 1)² that there are, each with the same probability, and the
    flip from left to right has probability ½. The margin's zeros are put on as the network is given images:
    of images that are normalised they are the mean colour.

    Args:
        padding: width of the margin in pixels, less than the images' height and width.
        flip: whether images are mirrored; not where left and right matter, as in digits and text.

    Raises:
        InputError: a padding that is no integer ≥ 0; a flip that is no truth value.
    """

    padding: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "padding", check_integer("padding", self.padding, 0))
        if not isinstance(self.flip, bool):
            raise InputError(f"flip must be True or False, not {shown(self.flip)}")

    def place(self, draws: torch.Generator) -> tuple[int, int, bool]:
        """Draw how many pixels up and left the images move, and whether they are mirrored after that."""
        high = 2 * self.padding + 1
        moves = torch.randint(0, high, (2,), generator=draws, dtype=torch.int64, device="cpu")
        mirrored = torch.randint(0, 2, (1,), generator=draws, dtype=torch.int64, device="cpu")
        up, left = (int(move) - self.padding for move in moves)
        return up, left, self.flip and bool(mirrored)

    def __call__(self, images: Tensor, draws: torch.Generator) -> Tensor:
        """Return a view of images [examples, channels, height, width], of their shape.

        Raises:
            InputError: images of other dimensions, or no larger than the margin.
        """
        if images.dim() != 4:
            raise InputError(
                "the standard view is of images [examples, channels, height, width], not of inputs of shape "
                f"{list(images.shape)}; give view= a function (inputs, generator) → inputs"
            )
        height, width = images.shape[2:]
        if self.padding >= min(height, width):
            raise InputError(
                f"a padding of {self.padding} pixels could move images of {height}×{width} out of sight; "
                "give less"
            )
        up, left, mirrored = self.place(draws)
        # What leaves on one side comes in as zeros on the other.
        images = F.pad(images, [-left, left, -up, up])
        return images.flip(3) if mirrored else images


class _Look:
    """One member's view, as a forward pre-hook of its network."""

    def __init__(self, view: View, seed: int, member: int) -> None:
        self.view = view
        self.seed = seed
        self.member = member

    def draws(self) -> torch.Generator:
        """Return the member's generator, as it is at the beginning of each pass."""
        return generator("test-time augmentation", self.seed, "", self.member)

    def on_input(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the network's arguments with the view in the images' place."""
        given: dict[int | str, Any] = dict([*enumerate(args), *kwargs.items()])
        tensors = [key for key, value in given.items() if isinstance(value, Tensor)]
        images = [key for key in tensors if given[key].dim() and given[key].is_floating_point()] or tensors
        if len(images) != 1:
            raise InputError(
                f"{type(module).__name__} is called with {len(images)} tensors that could be the images; "
                "test-time augmentation needs one of floating-point values"
            )
        key = images[0]
        seen = self.view(given[key], self.draws())
        if not isinstance(seen, Tensor) or seen.shape[:1] != given[key].shape[:1]:
            what = f"shape {list(seen.shape)}" if isinstance(seen, Tensor) else type(seen).__name__
            raise InputError(
                f"the view of inputs of shape {list(given[key].shape)} is of {what}; it must be a tensor of "
                "as many examples"
            )
        given[key] = seen
        return tuple(given[place] for place in range(len(args))), {name: given[name] for name in kwargs}


def has_view(model: nn.Module) -> bool:
    """Tell whether a network looks at a view: it is a member of an ``AugmentedEnsemble`` or made of one."""
    return bool(views_in(model))


def views_in(model: nn.Module) -> list[tuple[str, int, int]]:
    """List what determines each view that a network looks at: what it is, its seed, and the member.

    What it is: the standard view with its settings; of others the name, and a hash of all that the function
    or object holds (:func:`_told`), so that two of one name are told apart.
    """
    hooks = (hook for module in model.modules() for hook in module._forward_pre_hooks.values())
    looks = [look for hook in hooks if isinstance(look := getattr(hook, "__self__", None), _Look)]
    return [(_identity(look.view), look.seed, look.member) for look in looks]


def _identity(view: View) -> str:
    if type(view) is CropAndFlip:
        return repr(view)
    return f"{view_name(view)} {hashlib.sha256(_told(view, ()).encode()).hexdigest()}"


def _told(value: Any, within: tuple[int, ...]) -> str:
    """Return text that a value's contents determine, the same in every process: no addresses.

    Of a function its code, its defaults, and the values that it closes over; of an object its class and
    attributes. Global variables that a function reads count where they are numbers or text.

    Args:
        within: the ids of the values that this one lies in, by which a circle ends.
    """
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return repr(value)
    if id(value) in within:
        return "…"

    def told(*parts: Any) -> str:
        return f"({', '.join(_told(part, (*within, id(value))) for part in parts)})"

    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, Tensor):
        raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return f"{value.dtype}{list(value.shape)}{hashlib.sha256(raw).hexdigest()}"
    if isinstance(value, np.ndarray | np.generic):
        return f"{value.dtype}{value.shape}{hashlib.sha256(value.tobytes()).hexdigest()}"
    if isinstance(value, set | frozenset):
        return f"{name}{sorted(map(told, value))}"
    if isinstance(value, Mapping):
        return name + told(*(part for pair in value.items() for part in pair))
    if isinstance(value, list | tuple):
        return name + told(*value)
    if isinstance(value, functools.partial):
        return name + told(value.func, value.args, value.keywords)
    if isinstance(value, types.CodeType):
        return name + told(value.co_code, value.co_consts, value.co_names, value.co_freevars)
    if isinstance(value, types.MethodType):
        return name + told(value.__func__, value.__self__)
    if isinstance(value, types.FunctionType):
        read = (value.__globals__.get(each) for each in value.__code__.co_names)
        plain = [each for each in read if isinstance(each, int | float | str)]
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return name + told(value.__code__, value.__defaults__, value.__kwdefaults__, cells, plain)
    if hasattr(value, "__qualname__"):  # a class, a function in C
        return f"{getattr(value, '__module__', '')}.{value.__qualname__}"
    if isinstance(value, types.ModuleType):
        return value.__name__
    slots = [each for kind in type(value).__mro__ for each in vars(kind).get("__slots__", ())]
    held = {each: getattr(value, each) for each in slots if hasattr(value, each) and each != "__dict__"}
    if not held and not hasattr(value, "__dict__"):  # of C: a dtype, a range
        return name if " at 0x" in repr(value) else repr(value)
    call = next((vars(kind)["__call__"] for kind in type(value).__mro__ if "__call__" in vars(kind)), None)
    return name + told(held, getattr(value, "__dict__", {}), call)


def view_name(view: View) -> str:
    """Return the name of a view, the same in every process."""
    if type(view) is CropAndFlip:
        return repr(view)
    named = view if hasattr(view, "__qualname__") else type(view)
    return f"{named.__module__}.{named.__qualname__}"


class AugmentedEnsemble(Ensemble):
    """An ensemble of M views of the input, of which one network makes predictions.

    Args:
        model: any module with one tensor of floating-point values among its arguments, the images; it is not
            modified, and members share all its tensors.
        size: members, the first of which sees the images as they are. seed: of the views, 0 … 2⁶⁴ − 1.
        view: a function, see :data:`View`; None: the standard one, :class:`CropAndFlip`.

    Raises:
        InputError: a size below 1; a seed out of range; a view that cannot be called. When a member runs:
            inputs that the view does not take, a view of another number of examples, arguments of which none
            or several could be the images.
    """

    def __init__(self, model: nn.Module, size: int, seed: int = 0, view: View | None = None) -> None:
        super().__init__(size)
        self.model = self._made_of(model)
        self.seed = check_seed(seed)
        if isinstance(view, type | nn.Module) or not (view is None or callable(view)):
            raise InputError(
                "view must be a function (inputs, generator) → inputs, or None for lpe.CropAndFlip(), not "
                f"{shown(view)}"
            )
        self.view: View = CropAndFlip() if view is None else view

    @apart()
    def member(self, index: int) -> nn.Module:
        """Return member ``index``: the network, all tensors shared, that looks at a view of its inputs.

        The view is a hook of the copy, so its modules and their names are the network's.
        """
        index = self._check_index(index)
        self.check_unchanged()
        net = self._copy({})
        if index:
            look = _Look(self.view, self.seed, index)
            # First among its hooks: the network's own see what they would see of such an input.
            net.register_forward_pre_hook(look.on_input, with_kwargs=True, prepend=True)
        return net

    def memory_bits(self, n: int | None = None, storage: str = "members") -> int:
        """Return the bits of one network, whatever n: the views follow from the seed."""
        self._check_storage(n, storage)
        return sum(tensor_bits(entry.tensor) for entry in named_tensors(self.model) if entry.saved)

    def describe(self) -> str:
        """Tabulate a row per member: how its view lies, where it is a standard one."""
        rows = [("0", "as it is")]
        for index in range(1, self.size):
            what = "drawn"
            if isinstance(self.view, CropAndFlip):
                up, left, mirrored = self.view.place(_Look(self.view, self.seed, index).draws())
                what = f"moved {up} up, {left} left" + (", mirrored" if mirrored else "")
            rows.append((str(index), what))
        title = (
            f"test-time augmentation of {type(self.model).__name__}: {self.size} members, view "
            f"{view_name(self.view)}, seed {self.seed}"
        )
        values = sum(entry.tensor.numel() for entry in named_tensors(self.model) if entry.saved)
        return text_table(title, ("member", "input"), rows, f"{values:,} values, shared by all members")
