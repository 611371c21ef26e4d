"""Test-time augmentation: what views there are, what they are keyed by, and what members share."""

from __future__ import annotations

import copy
import functools
import math
import pickle
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lpe
from lpe.ensembles import augmented
from lpe.modules import named_tensors

SIGMAS = 5.0
"""Standard errors that a count may be off; views are keyed, so a test passes or fails for good."""


def images(examples: int = 2, height: int = 3, width: int = 4) -> Tensor:
    """Images without two equal pixels, so that each view of one differs from every other."""
    return torch.arange(1.0, 1 + examples * 2 * height * width).view(examples, 2, height, width)


class Seen(nn.Module):
    """A network that returns what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        seen = (self.scale * x).flatten(1)
        return seen if shift is None else seen + shift


def conv_net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3))


def every_view(x: Tensor, padding: int, flip: bool = True) -> dict[tuple[int, int, bool], Tensor]:
    """All views of images: pixel by pixel, zero where it lies outside."""
    _, _, height, width = x.shape
    views = {}
    for up in range(-padding, padding + 1):
        for left in range(-padding, padding + 1):
            view = torch.zeros_like(x)
            for row in range(height):
                for column in range(width):
                    if 0 <= row + up < height and 0 <= column + left < width:
                        view[:, :, row, column] = x[:, :, row + up, column + left]
            views[up, left, False] = view
            if flip:
                views[up, left, True] = view[:, :, :, list(range(width))[::-1]]
    return views


def ensemble(size: int = 4, padding: int = 1, flip: bool = True, seed: int = 0) -> lpe.AugmentedEnsemble:
    return lpe.AugmentedEnsemble(Seen(), size, seed, lpe.CropAndFlip(padding, flip))


def views_seen(made: lpe.AugmentedEnsemble, padding: int, flip: bool = True) -> list[tuple[int, int, bool]]:
    """Which of all views each member but the first saw."""
    x = images()
    known = {tuple(view.flatten().tolist()): key for key, view in every_view(x, padding, flip).items()}
    return [known[tuple(member(x).flatten().tolist())] for member in list(made)[1:]]


def test_the_first_member_sees_the_images_as_they_are() -> None:
    assert torch.equal(ensemble(seed=3)[0](images()), images().flatten(1))


@pytest.mark.parametrize("padding", [0, 1, 2])
def test_every_view_is_a_crop_out_of_a_margin_of_zeros_mirrored_or_not(padding: int) -> None:
    assert len(views_seen(ensemble(12, padding), padding)) == 11  # a view that is none of them: a KeyError


def test_nothing_is_mirrored_where_left_and_right_matter() -> None:
    assert len(views_seen(ensemble(40, flip=False), 1, flip=False)) == 39


def check_views_are_equally_likely(places: list[tuple[int, int, bool]], views: int) -> None:
    """Each of n draws is a given view with probability p: a count of mean np and variance np(1 − p)."""
    counts = Counter(places)
    p = 1 / views
    assert len(counts) == views
    for count in counts.values():
        assert abs(count - len(places) * p) <= SIGMAS * math.sqrt(len(places) * p * (1 - p))


def check_half_are_mirrored(places: list[tuple[int, int, bool]]) -> None:
    """A share of n draws has the standard error ½/√n."""
    share = sum(mirrored for _, _, mirrored in places) / len(places)
    assert abs(share - 0.5) <= SIGMAS * 0.5 / math.sqrt(len(places))


def drawn_places(view: lpe.CropAndFlip, members: int = 900) -> list[tuple[int, int, bool]]:
    return [view.place(augmented._Look(view, 0, member).draws()) for member in range(members)]


def test_all_views_are_equally_likely() -> None:
    check_views_are_equally_likely(drawn_places(lpe.CropAndFlip(1)), 18)
    check_views_are_equally_likely(drawn_places(lpe.CropAndFlip(1, flip=False)), 9)
    check_half_are_mirrored(drawn_places(lpe.CropAndFlip(1)))


def test_crops_from_the_middle_that_are_too_many_are_caught() -> None:
    drawn = drawn_places(lpe.CropAndFlip(1))
    places = [(up * (k % 2), left, mirrored) for k, (up, left, mirrored) in enumerate(drawn)]
    with pytest.raises(AssertionError):
        check_views_are_equally_likely(places, 18)


def test_mirrored_images_that_are_too_rare_are_caught() -> None:
    places = [place for k, place in enumerate(drawn_places(lpe.CropAndFlip(1))) if not (place[2] and k % 2)]
    with pytest.raises(AssertionError):
        check_half_are_mirrored(places)


def test_all_images_have_a_members_one_view_whatever_the_batch() -> None:
    x = images(5)
    for member in ensemble(6):
        assert torch.equal(member(x)[3:], member(x[3:]))


def test_a_member_is_the_same_whatever_was_asked_for_before() -> None:
    alone = ensemble(6)[4](images())
    made = ensemble(6)
    for member in made:
        member(images())
    assert torch.equal(made[4](images()), alone) and torch.equal(made[4](images()), alone)


def test_other_seeds_have_other_views() -> None:
    assert views_seen(ensemble(12, 2, seed=0), 2) != views_seen(ensemble(12, 2, seed=1), 2)


def test_a_mean_over_views_is_of_probabilities() -> None:
    net = conv_net().eval()
    x = images() / 10
    made = lpe.AugmentedEnsemble(net, 3, 5, lpe.CropAndFlip(1))
    places = [made.view.place(augmented._Look(made.view, 5, m).draws()) for m in (1, 2)]  # type: ignore[attr-defined]
    views = [x, *(every_view(x, 1)[place] for place in places)]
    with torch.no_grad():
        expected = torch.stack([net(view).double().softmax(-1) for view in views]).mean(0).log()
    torch.testing.assert_close(made.predict(x), expected)


def test_members_share_every_tensor_and_leave_the_network_as_it_was() -> None:
    net = conv_net().train()
    before = {entry.name: entry.tensor.data_ptr() for entry in named_tensors(net)}
    member = lpe.AugmentedEnsemble(net, 2)[1]
    assert {entry.name: entry.tensor.data_ptr() for entry in named_tensors(member)} == before
    assert net.training and not member.training and not net._forward_pre_hooks


@pytest.mark.parametrize("storage", ["members", "generator"])
def test_memory_is_one_networks_whatever_the_size(storage: str) -> None:
    net = conv_net()
    bits = 32 * sum(t.numel() for t in (*net.parameters(), net[1].running_mean, net[1].running_var)) + 64
    assert [lpe.AugmentedEnsemble(net, 5).memory_bits(n, storage) for n in (None, 1, 4)] == [bits] * 3


def test_the_generators_of_the_process_are_left_alone() -> None:
    before = torch.get_rng_state()
    ensemble()[2](images())
    assert torch.equal(torch.get_rng_state(), before)


def noisy(x: Tensor, draws: torch.Generator) -> Tensor:
    return x + torch.randn(x.shape[1:], generator=draws)


def test_a_view_of_ones_own_draws_the_same_in_every_pass_and_another_in_each_member() -> None:
    made = lpe.AugmentedEnsemble(Seen(), 3, view=noisy)
    first, second = made[1], made[2]
    assert torch.equal(first(images()), first(images()))
    assert not torch.equal(first(images()), second(images()))
    assert torch.equal(made[0](images()), images().flatten(1))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_a_copied_member_keeps_its_view(copied: Any) -> None:
    member = ensemble(6)[3]
    assert torch.equal(copied(member)(images()), member(images()))


def test_images_are_found_among_positional_arguments_and_keywords() -> None:
    member = ensemble(6)[3]
    assert torch.equal(member(x=images()), member(images()))
    labels = torch.tensor([[1], [2]])
    assert torch.equal(member(images(), labels), member(images()) + labels)
    assert torch.equal(member(images(), shift=labels), member(images()) + labels)


def test_the_networks_own_hook_sees_the_view() -> None:
    net = Seen()
    net.register_forward_pre_hook(lambda module, args: (args[0].cumsum(3),))
    made = lpe.AugmentedEnsemble(net, 4, 0, lpe.CropAndFlip(1))
    for member, plain in zip(made, ensemble(), strict=True):  # moves up and down alone would not tell
        view = plain(images()).view(images().shape)
        assert torch.equal(member(images()), view.cumsum(3).flatten(1))


def test_expansions_of_views_are_rounded_networks_that_look_at_them() -> None:
    net = conv_net().eval()
    views = lpe.AugmentedEnsemble(net, 2, 0, lpe.CropAndFlip(1))
    mixed = lpe.Mixture(
        views, lambda base, first: lpe.LowPrecisionEnsemble(base, lpe.Int(3), 2, first_member=first)
    )
    rounded = lpe.LowPrecisionEnsemble(net, lpe.Int(3), 4)[3]
    x = images() / 10
    view = every_view(x, 1)[views.view.place(augmented._Look(views.view, 0, 1).draws())]  # type: ignore[attr-defined]
    torch.testing.assert_close(mixed[3](x), rounded(view))


def test_describe_says_how_each_view_lies() -> None:
    lines = ensemble(3).describe().splitlines()
    up, left, mirrored = views_seen(ensemble(3), 1)[1]
    assert lines[2].split() == ["0", "as", "it", "is"]
    assert f"moved {up} up, {left} left" in lines[4] and lines[4].endswith("mirrored") == mirrored


@pytest.mark.parametrize(
    ("view", "inputs", "says"),
    [
        (None, torch.zeros(2, 5), r"of images \[examples, channels, height, width\], not .* \[2, 5\]"),
        (lpe.CropAndFlip(3), images(), "a padding of 3 pixels could move images of 3×4 out of sight"),
        (lambda x, draws: x[:1], images(), r"of inputs of shape \[2, 2, 3, 4\] is of shape \[1, 2, 3, 4\]"),
        (lambda x, draws: None, images(), "is of NoneType; it must be a tensor of as many examples"),
        (None, (images(), torch.zeros(1)), "Seen is called with 2 tensors that could be the images"),
    ],
    ids=["shape", "padding", "fewer", "none", "two tensors"],
)
def test_inputs_that_have_no_view_are_refused(view: Any, inputs: Any, says: str) -> None:
    with pytest.raises(lpe.InputError, match=says):
        lpe.AugmentedEnsemble(Seen(), 2, view=view).predict(inputs)


# What tells views apart


class Shifted:
    def __init__(self, by: Any) -> None:
        self.by = by

    def __call__(self, x: Tensor, draws: torch.Generator) -> Tensor:
        return x + self.by

    def twice(self, x: Tensor, draws: torch.Generator) -> Tensor:
        return x + 2 * self.by


class Slotted(Shifted):
    __slots__ = ("by",)


class CropAndMore(lpe.CropAndFlip):
    def __call__(self, x: Tensor, draws: torch.Generator) -> Tensor:
        return super().__call__(x, draws) + 1


def shifted(x: Tensor, draws: torch.Generator, by: Any) -> Tensor:
    return x + by


OWN_VIEWS: dict[str, Any] = {
    "an object": Shifted,
    "an object with slots": Slotted,
    "an object of an object": lambda by: Shifted([Shifted(by)]),
    "a number of numpy's": lambda by: Shifted(np.float32(by)),
    "a tensor": lambda by: Shifted(torch.full((2,), by)),
    "an array": lambda by: Shifted(np.full(2, by)),
    "a method": lambda by: Shifted(by).twice,
    "a partial": lambda by: functools.partial(shifted, by=by),
    "a closure": lambda by: lambda x, draws: x + by,
    "a default": lambda by: lambda x, draws, by=by: x + by,
    "a set": lambda by: Shifted({"a", "b", by}),
}


@pytest.mark.parametrize("kind", OWN_VIEWS)
def test_views_of_one_name_are_told_apart_by_what_they_hold(kind: str) -> None:
    made = OWN_VIEWS[kind]
    some, same, other = (
        augmented.views_in(lpe.AugmentedEnsemble(Seen(), 2, view=made(by))[1]) for by in (0.25, 0.25, 0.5)
    )
    assert some == same != other


def test_views_are_told_apart_by_their_code() -> None:
    views = [lambda x, draws: x + 1, lambda x, draws: x + 2, lambda x, draws: x * 1]
    told = [str(augmented.views_in(lpe.AugmentedEnsemble(Seen(), 2, view=view)[1])) for view in views]
    assert len(set(told)) == 3


def test_a_standard_view_that_does_more_is_another() -> None:
    views = [lpe.CropAndFlip(1), CropAndMore(1)]
    one, other = (augmented.views_in(lpe.AugmentedEnsemble(Seen(), 2, view=view)[1]) for view in views)
    assert one[0][0] == "CropAndFlip(padding=1, flip=True)" != other[0][0]


def test_a_view_that_holds_itself_is_told() -> None:
    circle = Shifted(1.0)
    circle.by = circle
    assert augmented.views_in(lpe.AugmentedEnsemble(Seen(), 2, view=circle)[1])


@pytest.mark.parametrize("view", ["flip", nn.Identity(), lpe.CropAndFlip, 3])
def test_what_is_no_view_is_refused(view: Any) -> None:
    with pytest.raises(lpe.InputError, match="view must be a function"):
        lpe.AugmentedEnsemble(Seen(), 2, view=view)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"padding": -1}, "padding must be an integer ≥ 0, not -1"),
        ({"flip": 1}, "flip must be True or False"),
    ],
)
def test_a_standard_view_of_wrong_settings_is_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(lpe.InputError, match=says):
        lpe.CropAndFlip(**settings)
