"""Networks trained on CIFAR-10 on one GPU, fast: images a second, and the points that come of it.

    python -m benchmarks.gpu_training --data <folder or .npz> --points <folder> --minutes 10

ResNet-20-FRN-SiLU, 40,960 training images, crops and flips, 19,840 updates of 256 (``--updates`` for less),
several trainings side by side (``lpe.training.resident``). In this order, as far as the minutes reach: SGD of
seeds 0 to 3, IVON 0 to 3, then SWAG 0 and 1, SSE and CSGLD side by side, BatchEnsemble of 4, SGD 4 to 7 (for
deep ensembles), SGD 0 to 3 without crops and flips, AdamW 0 and 1 with and without. A group that would not
end in time is not begun, and one whose files are all there is not trained again. What trains is the scale
``cifar10``'s own, ``reproduce.scales.cifar10.training``: ``python -m reproduce.scales.cifar10`` makes the
points of figures with it, and goes on where it was killed. Here it is timed, and its networks are measured.

It writes ``gpu_training.csv`` (NLL and error of validation and test images, of each network and of what its
recipe collected; images a second of the group: the median over epochs) and ``gpu_training.json`` (card,
versions, every hyper-parameter), and the points as safetensors into ``--points``. Times are taken between
epochs, and hold the drawing of the data; compilation, capture and measuring the networks are told apart.

On an H200 it took 6 minutes without AdamW and printed 368,000 images/s with four trainings of SGD, 360,000
of IVON and 346,000 with a BatchEnsemble of 4; test NLL of SGD .47 to .49, of SWAG's mean .41, of four SGD
networks as one ensemble .318. The record in ``results`` is of that run, before ``benchmarks.gpu_sweep`` chose
the recipes below: IVON, SSE, CSGLD, BatchEnsemble and SGD without crops and flips had others, which it names.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from benchmarks.command import check_minutes, one_line_of_bad_input, parser
from lpe.ensembles.base import text_table
from lpe.errors import InputError
from lpe.interruption import answered
from lpe.provenance import write_provenance
from lpe.records import write_table
from lpe.substrates import cifar
from lpe.substrates.assets import assets_folder
from lpe.substrates.cifar_networks import resnet_frn
from lpe.training.flat import FlatLayout, Gradient
from lpe.training.resident import ResidentImages, predictions
from lpe.writing import check_writable, replacing
from reproduce.scales.cifar10.recipes import (
    GROUPS,
    PROTOCOL,
    RECIPES,
    Point,
    Protocol,
    Recipe,
    check_updates,
    name_of,
    names_of,
)
from reproduce.scales.cifar10.trained import begun_in_time
from reproduce.scales.cifar10.training import (
    Collected,
    GroupRun,
    batch_ensemble,
    fast_gradient,
    layout_of,
    put,
    tensors_of,
    train_group,
)

COLUMNS = (
    "point",
    "what",
    "networks",
    "updates",
    "train_loss",
    "validation_nll",
    "validation_err",
    "test_nll",
    "test_err",
    "group",
    "images_per_second",
    "seconds",
)


@dataclass(frozen=True)
class Measured:
    """Images that networks are measured on: standardised, with labels, on the device."""

    images: Tensor
    labels: Tensor

    def scores(self, log_chances: Tensor) -> tuple[float, float]:
        """Return NLL in nats and error."""
        nll = -log_chances.double().gather(1, self.labels[:, None]).mean()
        return float(nll), float((log_chances.argmax(1) != self.labels).double().mean())


def mean_of(parts: Sequence[Tensor]) -> Tensor:
    """Return the log of the mean of probabilities, from their logs [images, classes]."""
    return torch.logsumexp(torch.stack(list(parts)).double(), 0) - math.log(len(parts))


def networks_of(recipe: Recipe, point: Collected, protocol: Protocol) -> dict[str, list[Tensor]]:
    """Return what is measured of a point: name → flat plain networks, whose probabilities are averaged."""
    layout = layout_of(replace(recipe, members=1), protocol)
    if recipe.members > 1:
        ensemble = batch_ensemble(resnet_frn(protocol.shape), recipe, 0)
        put(ensemble.module, layout_of(recipe, protocol), point.weights.cpu())
        members = [layout.vector(dict(member.named_parameters())) for member in ensemble]
        return {"first member": members[:1], "all members": members}
    if point.swag is not None:
        return {"mean": [layout.vector(point.swag.mean)], "last": [point.weights]}
    if len(point.networks) > 1:
        return {"last": point.networks[-1:], "all kept": point.networks}
    return {"mean" if recipe.rule == "ivon" else "last": [point.weights]}


class Bench:
    """A bench that runs groups on one device and keeps the table.

    Args:
        images: the data. protocol: of all trainings. device: where. gradient: of plain networks.
        dtype: of the images there. points: the folder of the points; None: they are not kept.
    """

    def __init__(
        self,
        images: cifar.CifarImages,
        protocol: Protocol,
        device: torch.device,
        gradient: Gradient,
        dtype: torch.dtype,
        points: Path | None,
        recipes: Mapping[str, Recipe] = RECIPES,
    ) -> None:
        self.images, self.protocol, self.device = images, protocol, device
        self.gradient, self.points, self.recipes = gradient, points, recipes
        train = cifar.standardised(images.train)
        self.data = ResidentImages.of(train, images.train_labels, device, dtype)
        self.train = train
        self.test = self._measured(cifar.standardised(images.test), images.test_labels)
        self.rows: list[dict[str, object]] = []
        self.chances: dict[str, Tensor] = {}
        self.module = resnet_frn(protocol.shape).to(device).eval()
        self.groups: list[dict[str, object]] = []

    def _measured(self, images: Tensor, labels: Tensor) -> Measured:
        layout = torch.channels_last
        return Measured(images.to(self.device).contiguous(memory_format=layout), labels.to(self.device))

    def path(self, point: Point) -> Path | None:
        """Return a point's file."""
        return self.points and self.points / f"{name_of(point)}.safetensors"

    def has(self, point: Point) -> bool:
        """Tell whether a point's file is there already."""
        path = self.path(point)
        return path is not None and path.exists()

    def run(self, group: Sequence[Point]) -> GroupRun:
        """Train a group, measure and save its points."""
        run = train_group(group, self.protocol, self.data, self.gradient, self.device, self.recipes)
        about = {
            "group": names_of(group),
            "images_per_second": round(run.images_per_second),
            "seconds": round(run.seconds, 2),
        }
        self.groups.append({**about, "first_step_seconds": round(run.first_step, 2)})
        for point, collected in run.points.items():
            self._measure(point, collected, about)
            self._save(point, collected)
        return run

    def _measure(self, point: Point, collected: Collected, about: Mapping[str, object]) -> None:
        recipe, layout = self.recipes[point[0]], FlatLayout.of(self.module)
        indices = cifar.split_indices(point[1])[1]
        validation = self._measured(self.train[indices], self.images.train_labels[indices])
        for what, networks in networks_of(recipe, collected, self.protocol).items():
            scores: dict[str, object] = {}
            for split, measured in (("validation", validation), ("test", self.test)):
                parts = []
                for vector in networks:
                    put(self.module, layout, vector)
                    parts.append(predictions(self.module, measured.images))
                mean = mean_of(parts)
                scores[f"{split}_nll"], scores[f"{split}_err"] = measured.scores(mean)
            if what == "last" and point[0] == "sgd":
                self.chances[name_of(point)] = mean
            self._row(name_of(point), what, len(networks), collected.loss, scores, about)

    def _row(
        self,
        point: str,
        what: str,
        networks: int,
        loss: float,
        scores: Mapping[str, object],
        about: Mapping[str, object],
    ) -> None:
        row: dict[str, object] = dict.fromkeys(COLUMNS)
        row |= {"point": point, "what": what, "networks": networks, "updates": self.protocol.updates}
        self.rows.append(row | {"train_loss": loss} | dict(scores) | dict(about))

    def deep_ensembles(self) -> None:
        """Measure the first 2, 3, … SGD networks as ensembles, a row each; they validate on other images."""
        chances = list(self.chances.values())
        for count in range(2, len(chances) + 1):
            nll, err = self.test.scores(mean_of(chances[:count]))
            scores = {"test_nll": nll, "test_err": err}
            self._row(f"sgd, {count} seeds", "ensemble", count, math.nan, scores, {})

    def _save(self, point: Point, collected: Collected) -> None:
        from safetensors.torch import save_file

        path = self.path(point)
        if path is None:
            return
        tensors = tensors_of(self.recipes[point[0]], collected, self.protocol)
        about = {"data": self.images.name, "updates": str(self.protocol.updates), "seed": str(point[1])}
        for row in self.rows:
            if row["point"] == name_of(point):
                about |= {
                    f"{row['what']} {key}": f"{row[key]:.6g}"
                    for key in COLUMNS
                    if key.endswith(("nll", "err"))
                }
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata=about)


def table_text(title: str, rows: Sequence[Mapping[str, object]]) -> str:
    """Return the table, for the screen."""

    def cell(value: object) -> str:
        if value is None:
            return ""
        return f"{value:.4f}" if isinstance(value, float) else str(value)

    shown = ("point", "what", "networks", *(c for c in COLUMNS if c.endswith(("nll", "err"))))
    cells = [tuple(cell(row[column]) for column in shown) for row in rows]
    return text_table(title, shown, cells)


@one_line_of_bad_input
def main(arguments: Sequence[str]) -> int:
    """Train, print the table; 2 after one line about bad input."""
    options = parser("gpu_training", __doc__)
    options.add_argument("--data", type=Path, help="CIFAR-10 (default: LPE_ASSETS' file of JPEGs)")
    options.add_argument("--points", type=Path, help="folder of the points (default: they are not kept)")
    options.add_argument(
        "--updates", type=int, default=PROTOCOL.updates, help="of a training (default: %(default)s)"
    )
    options.add_argument(
        "--minutes", type=float, default=math.inf, help="in which all of it ends (default: no limit)"
    )
    asked = options.parse_args(arguments)
    started = time.time()
    protocol = replace(PROTOCOL, updates=asked.updates)
    check_updates(protocol, GROUPS, RECIPES)
    check_minutes(asked.minutes)
    if not torch.cuda.is_available():
        raise InputError("there is no CUDA device; the benchmark trains on one")
    check_writable(asked.out)
    if asked.points:
        check_writable(asked.points)
    # Networks are measured in whole float32.
    torch.backends.cudnn.allow_tf32 = False
    device = torch.device("cuda")
    images = cifar.load(asked.data or assets_folder() / "cifar10_jpeg_q75.npz")
    bench = Bench(images, protocol, device, *fast_gradient(protocol, device), asked.points)
    print(f"{images.name} after {time.time() - started:.1f} s", flush=True)
    speeds: list[float] = []
    todo = [group for group in GROUPS if not all(bench.has(point) for point in group)]
    for group in begun_in_time(
        todo,
        protocol,
        lambda: 60 * asked.minutes - (time.time() - started) - 5,
        lambda: speeds[-1] if speeds else None,
    ):
        run = bench.run(group)
        speeds.append(run.images_per_second)
        told = bench.groups[-1]
        print(
            f"{told['group']}: {run.images_per_second:,.0f} images/s, {run.seconds:.1f} s, first step "
            f"{run.first_step:.1f} s; {time.time() - started:.0f} s since the start",
            flush=True,
        )
        _write(bench, asked.out, started)
    bench.deep_ensembles()
    _write(bench, asked.out, started)
    title = f"{images.name}, ResNet-20-FRN-SiLU, {protocol.updates:,} updates, {torch.cuda.get_device_name()}"
    print(table_text(title, bench.rows))
    return 0


def _write(bench: Bench, out: Path, started: float) -> None:
    write_table(pd.DataFrame(bench.rows), out / "gpu_training.csv", COLUMNS)
    config = {
        "data": bench.images.name,
        "data_sha256": bench.images.sha256,
        "protocol": bench.protocol,
        "recipes": dict(bench.recipes),
        "groups": bench.groups,
    }
    write_provenance(
        out / "gpu_training.json",
        ["benchmarks/gpu_training.py"],
        config,
        str(bench.device),
        sorted({seed for group in GROUPS for _, seed in group}),
        torch.get_num_threads(),
        started,
    )


if __name__ == "__main__":
    sys.exit(answered(lambda: main(sys.argv[1:]), "interrupted"))
