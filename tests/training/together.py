"""Trainings of every method, on tiny networks: run by test_processes.py in one process and in two.

    torchrun --nproc-per-node 2 tests/training/together.py FOLDER

Each process writes what it has trained to FOLDER/RANK.pt.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lpe
from lpe.ensembles.cyclical_sgld import SamplingStage, StageCollector
from lpe.logits import cross_entropy
from lpe.number_systems.streams import generator
from lpe.training import checkpoints
from lpe.training.flat import FlatAdamW, FlatIVON, FlatLayout, FlatSGD, module_gradient
from lpe.training.loop import train
from lpe.training.processes import Processes, after, joined, shared_gradient
from lpe.training.resident import ResidentImages, ResidentTraining
from lpe.training.schedules import cyclical_cosine, warmup_cosine

EPOCHS, BATCHES = 2, 3
STEPS = EPOCHS * BATCHES


def numbers(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batches(epoch: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of 7, 6 and one example: parts of two processes are unequal, and one is empty."""
    sizes = (7, 6, 1)
    return [
        (numbers((n, 8), 100 * epoch + n), torch.arange(n) * (epoch + 1) % 3)  # fmt: skip
        for n in sizes
    ]


def images(epoch: int) -> list[tuple[Tensor, Tensor]]:
    return [(numbers((n, 3, 6, 6), 100 * epoch + n), torch.arange(n) % 3) for n in (7, 6, 1)]


def network(seed: int = 0, dropout: float = 0.0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Linear(8, 8), nn.Tanh(), *[nn.Dropout(dropout)] * (dropout > 0), nn.Linear(8, 3)]
        return nn.Sequential(*layers).double()


def normed() -> nn.Module:
    """A network with batch norms, of images and of features; the second has no weights of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return nn.Sequential(*first, nn.BatchNorm1d(8, affine=False), nn.Linear(8, 3)).double()


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=1e-3)


def ivon_of(net: nn.Module) -> Any:
    import ivon

    return ivon.IVON(net.parameters(), lr=0.1, ess=14.0, hess_init=0.5)


def trained(
    net: nn.Module, optimizer: torch.optim.Optimizer, rate: Any = 0.1, seed: int = 5, **settings: Any
) -> dict[str, Tensor]:
    data = settings.pop("batches", batches)
    run = train(net, data, optimizer, rate, EPOCHS, seed, **settings)
    losses = torch.tensor([row["loss"] for row in run.curve], dtype=torch.float64)
    return {**{f"net/{name}": each.clone() for name, each in net.state_dict().items()}, "losses": losses}


# Methods.


def of_sgd() -> dict[str, Tensor]:
    net = network()
    return trained(net, sgd(net), warmup_cosine(0.1, STEPS), clip_norm=0.5)


def of_adamw() -> dict[str, Tensor]:
    net = network()
    return trained(net, torch.optim.AdamW(net.parameters(), betas=(0.9, 0.95)), 0.01)


def of_deep_ensemble() -> dict[str, Tensor]:
    nets = [network(seed) for seed in (0, 1)]
    made = {}
    for seed, net in enumerate(nets):
        made |= {f"{seed}/{name}": each for name, each in trained(net, sgd(net), seed=seed).items()}
    return made


def of_swag() -> dict[str, Tensor]:
    net, collector = network(), lpe.SWAGCollector(2, 0)
    made = trained(net, sgd(net), collector=collector)
    return made | {f"swag/{name}": each for name, each in collector.statistics().tensors().items()}


def of_multi_ivon() -> dict[str, Tensor]:
    made = {}
    for seed in (0, 1):
        net = network(seed)
        optimizer = ivon_of(net)
        made |= {f"{seed}/{name}": each for name, each in trained(net, optimizer, seed=seed).items()}
        std = lpe.posterior_std(optimizer, net)
        made |= {f"{seed}/std/{name}": each for name, each in std.items()}
    return made


def of_snapshots() -> dict[str, Tensor]:
    net, collector = network(), lpe.SnapshotCollector(1)
    made = trained(net, sgd(net), cyclical_cosine(0.1, BATCHES), collector=collector)
    for index, snapshot in enumerate(collector.snapshots):
        made |= {f"{index}/{name}": each for name, each in snapshot.items()}
    return made


def of_csgld() -> dict[str, Tensor]:
    net = network()
    stage = SamplingStage(STEPS, 4, 2, 2)
    collector = StageCollector(stage)
    optimizer = lpe.SGLD(net.parameters(), 0.1, 14, noise=stage.noise, seed=3, weight_decay=1e-3)
    made = trained(net, optimizer, collector=collector)
    for index, sample in enumerate(collector.samples):
        made |= {f"{index}/{name}": each for name, each in sample.items()}
    return made


def of_batch_ensemble() -> dict[str, Tensor]:
    ensemble = lpe.BatchEnsemble(network(), 3, seed=1)
    groups = ensemble.parameter_groups(0.1, 0.05, 1e-3)
    return trained(ensemble.module, torch.optim.SGD(groups, momentum=0.9), loss=ensemble.loss)


def of_batch_norm() -> dict[str, Tensor]:
    net = normed()
    # torch refuses a batch norm of one value: without the last batch.
    return trained(net, sgd(net), batches=lambda epoch: images(epoch)[:2])


def of_batch_norm_in_float32() -> dict[str, Tensor]:
    net = normed().float()
    single = [(inputs.float(), targets) for inputs, targets in images(0)[:2]]
    return trained(net, sgd(net), batches=single)


class Tower(nn.Module):
    """Some parameters are tied, some frozen, and some belong to a head that only some batches take."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.other, self.idle = network(), network(1), network(2)
        self.other[2].weight = self.body[2].weight
        self.other[0].requires_grad_(False)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.body(inputs) + self.other(inputs)
        return logits


def of_parts_of_a_model() -> dict[str, Tensor]:
    net = Tower()
    return trained(net, sgd(net))


class NextToken(nn.Module):
    """Logits of every token of a sentence, [sentences · tokens, vocabulary]."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.embedding, self.head = nn.Embedding(9, 8).double(), nn.Linear(8, 9).double()

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.embedding(tokens))
        return logits.flatten(0, 1)


def of_tokens() -> dict[str, Tensor]:
    """Several targets an example, some of which count not: all of the last sentence."""
    net = NextToken()
    sentences = torch.arange(30).view(5, 6) % 9
    targets = (sentences + 1) % 9
    targets[1, 2:], targets[4] = -100, -100
    data = [(sentences, targets.flatten()), (sentences[3:], targets[3:].flatten())]
    return trained(net, sgd(net), batches=data)


class Contrastive(nn.Module):
    """Logits of each example against all others: no mean over examples."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network()

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.body(inputs)
        return features @ features.T


def of_contrastive() -> dict[str, Tensor]:
    net = Contrastive()
    data = [(numbers((6, 8), epoch), torch.arange(6)) for epoch in (0, 1)]
    return trained(net, sgd(net), batches=data)


class Killed(BaseException):
    """Stands for the end of the process."""


def of_killed(folder: Path | None = None) -> dict[str, Tensor]:
    """IVON that is killed after four steps and goes on, where there is a folder for the checkpoint."""

    def run(dies_at: int | None) -> dict[str, Tensor]:
        net, steps = network(dropout=0.3), []

        def loss(inputs: Tensor, targets: Tensor) -> Tensor:
            if net.training:
                if len(steps) == dies_at:
                    raise Killed
                steps.append(len(inputs))
            return cross_entropy(net(inputs), targets)

        made = trained(net, ivon_of(net), loss=loss)
        return made | {"steps": torch.tensor(len(steps))}

    if folder is None:
        return run(None)
    try:
        with checkpoints.kept(folder / "killed"):
            run(4)
    except Killed:
        pass
    with checkpoints.kept(folder / "killed"):
        return run(None)


RULES: dict[str, Callable[[Tensor], Any]] = {
    "SGLD": lambda weights: FlatSGD(
        weights, 4, [lambda _: 0.1], [0.0], [1e-3], noise=[lambda _: 0.01], generator=generator("r", 0, "", 0)
    ),
    "AdamW": lambda weights: FlatAdamW(weights, 4, [lambda _: 0.01], [1e-3]),
    "IVON": lambda weights: FlatIVON(
        weights, 4, [lambda _: 0.1], 14.0, hess_init=0.5, generator=generator("r", 0, "", 1)
    ),
}


def of_resident() -> dict[str, Tensor]:
    """Trainings side by side, under each rule."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16, 8), nn.Tanh(), nn.Linear(8, 3))
    data = ResidentImages.of(numbers((11, 3, 4, 4), 0).float(), torch.arange(11) % 3, "cpu")
    made = {}
    for name, rule in RULES.items():
        layout = FlatLayout.of(net)
        weights = layout.vector({key: each.detach() for key, each in net.named_parameters()})[None].clone()
        gradient = shared_gradient(module_gradient(net))
        whole = torch.arange(11)[None]
        run = ResidentTraining(data, whole, [0], weights, gradient, rule(weights), 5, capture=False)
        losses = run.advance(4)
        made |= {f"{name}/weights": run.weights.clone(), f"{name}/losses": torch.tensor(losses)}
    return made


CASES: dict[str, Callable[[], dict[str, Tensor]]] = {
    "SGD": of_sgd,
    "AdamW": of_adamw,
    "DE": of_deep_ensemble,
    "SWAG": of_swag,
    "MultiIVON": of_multi_ivon,
    "SSE": of_snapshots,
    "CSGLD": of_csgld,
    "BE": of_batch_ensemble,
    "batch norm": of_batch_norm,
    "batch norm in float32": of_batch_norm_in_float32,
    "parts of a model": of_parts_of_a_model,
    "tokens": of_tokens,
    "contrastive": of_contrastive,
    "side by side": of_resident,
}


# What only several processes do.


def with_dropout() -> dict[str, Tensor]:
    net = network(dropout=0.5)
    masks: list[Tensor] = []

    def keep(module: nn.Module, given: object, out: Tensor) -> None:
        if module.training:
            masks.append((out == 0)[:3].clone())

    net[2].register_forward_hook(keep)
    made = trained(net, sgd(net))
    return made | {f"mask {index}": each for index, each in enumerate(masks)}


def from_other_weights(processes: Processes) -> dict[str, Tensor]:
    net = network(processes.rank)
    return trained(net, sgd(net))


def refused(make: Callable[[], object]) -> str:
    try:
        make()
    except lpe.InputError as error:
        return str(error)
    return ""


def with_instance_norm() -> object:
    net = nn.Sequential(
        nn.InstanceNorm1d(4, track_running_stats=True), nn.Flatten(), nn.Linear(8, 3)
    ).double()
    data = [(numbers((6, 4, 2), 0), torch.arange(6) % 3)]
    return trained(net, sgd(net), batches=data)


def of_two(folder: Path, processes: Processes) -> dict[str, Any]:
    shapes: list[int] = []
    net = network()
    net.register_forward_hook(lambda module, given, out: shapes.append(len(out)) if net.training else None)
    trained(net, sgd(net))
    return {
        "examples": shapes,
        "dropout": with_dropout(),
        "uninterrupted": of_killed(),
        "killed": of_killed(folder),
        "other weights": from_other_weights(processes),
        "instance norm": refused(with_instance_norm),
    }


def under_an_accelerator() -> dict[str, Tensor]:
    """Train beside an Accelerator, in the same group."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    with joined(cpu=True) as processes:
        assert (accelerator.process_index, accelerator.num_processes) == (processes.rank, processes.count)
        return of_sgd()


def main(folder: Path) -> None:
    # As in the test run; a checkpoint follows every step.
    warnings.simplefilter("error")
    checkpoints.SECONDS = checkpoints.MOST = 0.0
    torch.set_num_threads(1)
    with joined(cpu=True) as processes:
        found: dict[str, Any] = {name: make() for name, make in CASES.items()}
        found |= of_two(folder, processes)
    found["alone"] = of_sgd()
    found["accelerator"] = under_an_accelerator()
    with after(processes):
        found["after"] = refused(of_sgd)
    found["again"] = refused(joined().__enter__)
    torch.save(found, folder / f"{processes.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
