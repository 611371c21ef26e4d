"""Training of small networks on images that stay on the device, several trainings side by side.

A step does everything on the device: it takes the epoch's next batch of each training from buffers of
indices, crops and mirrors it, takes the gradient at the rule's weights and lets the rule step. No number
comes from Python, so on a GPU the step is captured once as a CUDA graph and replayed; on a CPU the same code
runs as it is.

What a training draws for its data (order, crops, mirrorings) is keyed by (seed, epoch) and drawn on the CPU:
it is the same on every machine, and a run that is resumed draws what the uninterrupted one would have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lpe.errors import InputError
from lpe.number_systems.streams import check_seed, generator
from lpe.training.flat import Gradient, Rule

CHANNELS = 4
"""Channels of an image on the device: its own three and a zero, so that a pixel is one word."""

PADDING = 4
"""Pixels of zeros around an image, of which a crop may show as many."""

WARM_UP = 3
"""Steps before a capture, which are undone."""


@dataclass(frozen=True)
class ResidentImages:
    """Images on the device.

    Args:
        pixels: [images, side + 2 · PADDING, …, CHANNELS], zeros around. labels: int64 [images].
        side: of an image.
    """

    pixels: Tensor
    labels: Tensor
    side: int

    @staticmethod
    def of(
        images: Tensor, labels: Tensor, device: torch.device | str, dtype: torch.dtype = torch.float32
    ) -> ResidentImages:
        """Make it from standardised images [images, 3, side, side] and labels [images]."""
        count, channels, side, _ = images.shape
        shape = (count, side + 2 * PADDING, side + 2 * PADDING, CHANNELS)
        pixels = torch.zeros(shape, dtype=dtype, device=device)
        inner = slice(PADDING, PADDING + side)
        pixels[:, inner, inner, :channels] = images.to(device).permute(0, 2, 3, 1).to(dtype)
        return ResidentImages(pixels, labels.to(device), side)


CENTRE = 2 * (PADDING * (2 * PADDING + 1) + PADDING)
"""The crop that is the image itself: 2 · (top · (2 · PADDING + 1) + left) + (1 where mirrored)."""


def crops(pixels: Tensor, index: Tensor, crop: Tensor, side: int) -> Tensor:
    """Return images by index, cropped and perhaps mirrored.

    Args:
        pixels: as ``ResidentImages`` has them. index, crop: int64 of one shape; see CENTRE.

    Returns:
        [*index.shape, side, side, CHANNELS].
    """
    if pixels.is_cuda and pixels.dtype is torch.bfloat16:
        from lpe.training import frn_kernels

        return frn_kernels.crops(pixels, index, crop, side)
    padded = pixels.shape[1]
    shifts = padded - side + 1
    place = torch.arange(side, device=pixels.device)
    mirrored, left, top = crop % 2, crop // 2 % shifts, crop // 2 // shifts
    columns = torch.where(mirrored[..., None] == 1, side - 1 - place, place) + left[..., None]
    rows = (index * padded + top)[..., None] + place
    there = (rows * padded)[..., :, None] + columns[..., None, :]
    return pixels.view(-1, pixels.shape[3])[there]


def epoch_draws(seed: int, epoch: int, examples: int, augment: bool) -> tuple[Tensor, Tensor]:
    """Return the order of a training's examples in an epoch, and their crops; int64 [examples] each."""
    draws = generator("resident epoch", check_seed(seed), "", epoch)
    order = torch.randperm(examples, generator=draws)
    if not augment:
        return order, torch.full((examples,), CENTRE)
    return order, torch.randint(2 * (2 * PADDING + 1) ** 2, (examples,), generator=draws)


class ResidentTraining:
    """Trainings side by side: what ``advance`` moves on, and what a file needs to go on from.

    Args:
        data: the images. examples: int64 [trainings, n], each training's own images among them.
        seeds: of each training's order and crops. weights: float32 [trainings, …], changed in place.
        gradient, rule: see ``lpe.training.flat``. batch: examples a step; what is left over of an epoch is
            not seen in it. augment: whether to crop and mirror, of all or of each. generator: the rule's,
            whose state is kept.
        capture: whether the step is a CUDA graph; None: where the device is a GPU.

    Raises:
        InputError: a batch larger than the examples.
    """

    def __init__(
        self,
        data: ResidentImages,
        examples: Tensor,
        seeds: Sequence[int],
        weights: Tensor,
        gradient: Gradient,
        rule: Rule,
        batch: int,
        augment: bool | Sequence[bool] = True,
        generator: torch.Generator | None = None,
        capture: bool | None = None,
    ) -> None:
        trainings, count = examples.shape
        if not 1 <= batch <= count:
            raise InputError(f"a batch must have 1 to {count} examples, as many as there are, not {batch}")
        self.data, self.weights, self.rule = data, weights, rule
        self.seeds = [check_seed(seed) for seed in seeds]
        self.batch = batch
        self.augment = [augment] * trainings if isinstance(augment, bool) else list(augment)
        self.steps_per_epoch = count // batch
        self._examples = examples.cpu()
        self._gradient = gradient
        self._generator = generator
        device = weights.device
        used = (self.steps_per_epoch, trainings, batch)
        self._index = torch.zeros(used, dtype=torch.int64, device=device)
        self._crop = torch.zeros(used, dtype=torch.int64, device=device)
        self._losses = torch.zeros((self.steps_per_epoch, trainings), device=device)
        self._step = torch.zeros(1, dtype=torch.int64, device=device)
        self._place = torch.zeros(1, dtype=torch.int64, device=device)
        self.taken = 0
        self._drawn: tuple[int, Tensor, Tensor] | None = None
        self._replay: Callable[[], None] | None = None
        self._captures = device.type == "cuda" if capture is None else capture

    @property
    def epoch(self) -> int:
        """The number of the epoch that the next step belongs to."""
        return self.taken // self.steps_per_epoch

    def advance(self, steps: int) -> list[list[float]]:
        """Take so many steps.

        Returns:
            The mean loss of each training, in nats, over each epoch that ended, [epochs][trainings]; NaN or
            infinite where a training is lost, which the others do not feel.
        """
        if self._replay is None:
            self._put_epoch()
            self._replay = self._captured() if self._captures else self._take
        ended: list[list[float]] = []
        left = steps
        while left:
            place = self.taken % self.steps_per_epoch
            if place == 0:
                self._put_epoch()
            count = min(left, self.steps_per_epoch - place)
            for _ in range(count):
                self._replay()
            self.taken, left = self.taken + count, left - count
            if place + count == self.steps_per_epoch:
                # Drawn while the device is busy; what follows waits for it.
                self._draw()
                ended.append(self._losses.mean(0).tolist())
        return ended

    def state(self) -> dict[str, Tensor]:
        """Return everything that changes, on the CPU, to go on from in another process."""
        state = {"weights": self.weights, "step": self._step, "losses": self._losses}
        state |= {f"rule/{name}": tensor for name, tensor in self.rule.state().items()}
        if self._generator is not None:
            state["generator"] = self._generator.get_state()
        return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state of a training made with the same arguments.

        Raises:
            InputError: a state of other trainings: names or shapes differ.
        """
        own = self.state()
        wrong = sorted(set(own) ^ set(state)) or sorted(
            name for name in own if own[name].shape != state[name].shape
        )
        if wrong:
            raise InputError(f"the state is not of these trainings: {', '.join(wrong[:3])} differ")
        self._put_state(state)
        self.taken = int(state["step"])
        self._place.fill_(self.taken % self.steps_per_epoch)
        self._drawn = None
        self._put_epoch()

    def _put_state(self, state: Mapping[str, Tensor]) -> None:
        self.weights.copy_(state["weights"])
        self._step.copy_(state["step"])
        self._losses.copy_(state["losses"])
        for name, tensor in self.rule.state().items():
            tensor.copy_(state[f"rule/{name}"])
        if self._generator is not None:
            self._generator.set_state(state["generator"])

    def _draw(self) -> None:
        """Draw the coming step's epoch, on the CPU."""
        count = self.steps_per_epoch * self.batch
        order, crop = [], []
        for seed, examples, augment in zip(self.seeds, self._examples, self.augment, strict=True):
            drawn = epoch_draws(seed, self.epoch, len(examples), augment)
            order.append(examples[drawn[0][:count]].view(self.steps_per_epoch, self.batch))
            crop.append(drawn[1][:count].view(self.steps_per_epoch, self.batch))
        self._drawn = (self.epoch, torch.stack(order, 1), torch.stack(crop, 1))

    def _put_epoch(self) -> None:
        if self._drawn is None or self._drawn[0] != self.epoch:
            self._draw()
        assert self._drawn is not None
        _, order, crop = self._drawn
        self._index.copy_(order)
        self._crop.copy_(crop)

    @torch.no_grad()
    def _take(self) -> None:
        index = self._index.index_select(0, self._place)[0]
        crop = self._crop.index_select(0, self._place)[0]
        labels = self.data.labels.index_select(0, index.flatten()).view_as(index)
        images = crops(self.data.pixels, index, crop, self.data.side)
        losses, gradient = self._gradient(self.rule.sampled(self.weights, self._step), images, labels)
        self.rule.update(self.weights, gradient, self._step)
        self._losses.index_copy_(0, self._place, losses[None])
        self._step += 1
        self._place.copy_((self._place + 1) % self.steps_per_epoch)

    def _captured(self) -> Callable[[], None]:
        """Return the step as a CUDA graph, after steps that compile it and are undone."""
        before, place = self.state(), self._place.clone()
        side = torch.cuda.Stream(self.weights.device)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self._take()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        if self._generator is not None:
            graph.register_generator_state(self._generator)
        with torch.cuda.graph(graph):
            self._take()
        self._put_state(before)
        self._place.copy_(place)
        replay: Callable[[], None] = graph.replay
        return replay


@torch.no_grad()
def predictions(module: nn.Module, images: Tensor, batch: int = 1000) -> Tensor:
    """Return log-probabilities float32 [images, classes] of a module for images [images, 3, side, side]."""
    parts = [module(part).float().log_softmax(1) for part in images.split(batch)]
    return torch.cat(parts)
