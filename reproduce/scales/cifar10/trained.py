"""CIFAR-10's points as files: ``<recipe>-<seed>.safetensors``, each trained once.

Beside a point lies ``<recipe>-<seed>.json``: recipe, protocol, data, machine, versions, what it took. On a
CPU the point's file has the same bytes whether or not its training was killed and went on; on a GPU sums may
be taken in another order.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lpe.errors import InputError
from lpe.provenance import plain_data, write_provenance
from lpe.substrates import cifar
from lpe.training.resident import ResidentImages
from lpe.writing import locked, make_writable, replacing
from reproduce.scales.cifar10.checkpoints import Checkpoint, differences
from reproduce.scales.cifar10.recipes import (
    RECIPES,
    TRAINING,
    Group,
    Point,
    Protocol,
    Recipe,
    check_updates,
    metadata,
    name_of,
    names_of,
)
from reproduce.scales.cifar10.training import GroupRun, fast_gradient, tensors_of, train_group

CHECKPOINT_SECONDS = 10.0
"""At least, from one checkpoint to the next; they are written between epochs."""

MARGIN = 5.0
"""Seconds that a group takes beside its epochs, at most: its capture, and writing its files."""


def begun_in_time(
    groups: Sequence[Group],
    protocol: Protocol,
    seconds_left: Callable[[], float],
    speed: Callable[[], float | None],
    recipes: Mapping[str, Recipe] = RECIPES,
    report: Callable[[str], None] = print,
) -> Iterator[Group]:
    """Yield the groups that would end in time, by the speed of those before; report which would not.

    Args:
        speed: images a second; None: not known yet, and the group is begun.
    """
    for group in groups:
        known = speed()
        images = protocol.updates * protocol.batch * sum(recipes[name].members for name, _ in group)
        if known is not None and images / known > seconds_left():
            needed = images / known
            report(
                f"not run: {names_of(group)} ({needed:.0f} s at {known:,.0f} images/s; "
                f"{seconds_left():.0f} s are left)"
            )
            continue
        yield group


def train_points(
    folder: Path,
    images: cifar.CifarImages,
    protocol: Protocol,
    groups: Sequence[Group],
    device: torch.device,
    minutes: float,
    report: Callable[[str], None],
    recipes: Mapping[str, Recipe] = RECIPES,
) -> list[str]:
    """Train the groups that are not there and that end in time, in their order, and write their points.

    A group is begun if it would end in time at the speed of the one before; the first one is. A killed
    training goes on from its checkpoint.

    Args:
        folder: of the points. minutes: in which all of it ends. report: is told each line as it comes.

    Returns:
        A line a group: that it was there, what it took, or what it would have; and a line a lost training.

    Raises:
        InputError: a folder that cannot be written to; a point or a checkpoint there of other settings or
            other data; a point that this did not write, or that was altered; too few updates.
    """
    started = time.monotonic()
    check_updates(protocol, groups, recipes)
    make_writable(folder)
    lines: list[str] = []

    def tell(line: str) -> None:
        lines.append(line)
        report(line)

    # What another process trains there meanwhile is waited for, and found.
    with locked(folder / "training"):
        files = PointFiles(folder, images, protocol, recipes, device)
        todo = []
        for group in groups:
            checkpoint = files.checkpoint(group, report)
            if all([files.has(point) for point in group]):
                tell(f"{names_of(group)}: there already")
                checkpoint.remove()
            else:
                checkpoint.check()
                todo.append(group)
        if not todo:
            return lines
        gradient, dtype = fast_gradient(protocol, device)
        train = cifar.standardised(images.train)
        data = ResidentImages.of(train, images.train_labels, device, dtype)
        speeds: list[float] = []
        for group in begun_in_time(
            todo,
            protocol,
            lambda: 60 * minutes - (time.monotonic() - started) - MARGIN,
            lambda: speeds[-1] if speeds else None,
            recipes,
            tell,
        ):
            begun = time.time()
            checkpoint = files.checkpoint(group, report)
            run = train_group(group, protocol, data, gradient, device, recipes, checkpoint)
            speeds.append(run.images_per_second)
            tell(
                f"{names_of(group)}: {run.images_per_second:,.0f} images/s, {run.seconds:.1f} s, "
                f"first step {run.first_step:.1f} s"
            )
            for point in group:
                if not files.save(point, run, begun):
                    tell(f"{name_of(point)} is lost: its weights or its loss are not finite; it has no file")
            checkpoint.remove()
    return lines


@dataclass(frozen=True)
class PointFiles:
    """The points' files in one folder.

    Args:
        folder: of all. images, protocol, recipes: what they are trained on, and how. device: where.
    """

    folder: Path
    images: cifar.CifarImages
    protocol: Protocol
    recipes: Mapping[str, Recipe]
    device: torch.device

    def settings(self, point: Point) -> dict[str, object]:
        """Return what determines a point, of which its JSON file tells."""
        return {
            "recipe": self.recipes[point[0]],
            "seed": point[1],
            "protocol": self.protocol,
            "data": self.images.name,
            "data_sha256": self.images.sha256,
        }

    def path(self, point: Point) -> Path:
        """Return a point's file."""
        return self.folder / f"{name_of(point)}.safetensors"

    def has(self, point: Point) -> bool:
        """Tell whether a point is there.

        Raises:
            InputError: one that was not trained here, was trained otherwise, or was altered since.
        """
        path = self.path(point)
        if not path.exists():
            return False
        try:
            config = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["config"]
            sha256 = config.pop("sha256")
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            raise InputError(
                f"{path} has no {path.stem}.json beside it that says how it was trained; give another folder"
            ) from None
        here = plain_data(self.settings(point), "settings")
        if differing := differences({name: config.get(name) for name in here}, here):
            raise InputError(
                f"{path} was trained otherwise ({'; '.join(differing[:3])}): give another folder, or remove "
                "it"
            )
        if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
            raise InputError(f"{path} was altered since it was trained; remove it to train it again")
        return True

    def checkpoint(self, group: Group, report: Callable[[str], None]) -> Checkpoint:
        """Return the file of a group that is under way."""
        path = self.folder / f"{'_'.join(map(name_of, group))}.checkpoint"
        settings: dict[str, object] = {name_of(point): self.settings(point) for point in group}
        settings["device"] = self.device.type
        return Checkpoint(path, settings, CHECKPOINT_SECONDS, report)

    def save(self, point: Point, run: GroupRun, begun: float) -> bool:
        """Write a point that is not there, its JSON first.

        Args:
            begun: ``time.time()`` when its group was.

        Returns:
            False, and no file is there, where the training is lost: weights or a loss that are not finite.
        """
        from safetensors.torch import save

        path = self.path(point)
        if path.exists():
            return True
        collected, recipe = run.points[point], self.recipes[point[0]]
        tensors = tensors_of(recipe, collected, self.protocol)
        finite = all(bool(tensor.isfinite().all()) for tensor in tensors.values())
        if not finite or not math.isfinite(collected.loss):
            return False
        # A single entry: several would be written in any order.
        about = {"point": name_of(point), "data": self.images.name, **metadata(recipe, self.protocol)}
        content = save(tensors, metadata={TRAINING: json.dumps(about)})
        config = self.settings(point) | {
            "train_loss": collected.loss,
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        cost = {
            "group": names_of(list(run.points)),
            "images_per_second": round(run.images_per_second),
            "seconds": round(run.seconds, 2),
            "first_step_seconds": round(run.first_step, 2),
        }
        beside, threads = path.with_suffix(".json"), torch.get_num_threads()
        write_provenance(beside, sys.argv, config, str(self.device), [point[1]], threads, begun, cost)
        with replacing(path) as temporary:
            temporary.write_bytes(content)
        return True
