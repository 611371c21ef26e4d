"""Recipes: all that determines a training beside the network, its data and the seed."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class PreTraining:
    """An auxiliary task on the training images alone, by AdamW with warm-up and cosine."""

    task: str = "instances"  # sweep: rotations, at the same cost, are worse than no pre-training
    epochs: int = 50  # sweep
    batch: int = 50  # budget
    learning_rate: float = 3e-3  # sweep
    weight_decay: float = 0.05  # usual for ViTs under AdamW (Dosovitskiy et al. 2021)


@dataclass(frozen=True)
class SGDTraining:
    """Fine-tuning by SGD with momentum, warm-up and cosine: the point estimate."""

    epochs: int = 40  # budget
    batch: int = 25  # exploration: 25, 32, 50
    learning_rate: float = 0.05  # sweep
    momentum: float = 0.9  # pytorch-ensembles
    weight_decay: float = 5e-4  # sweep; also pytorch-ensembles'
    clip_norm: float | None = None  # exploration: no gain


@dataclass(frozen=True)
class SWAGTraining:
    """SGD's fine-tuning that goes over to a constant learning rate and collects an iterate an epoch."""

    sgd: SGDTraining = field(default_factory=SGDTraining)
    start_epoch: int = 20  # half of the run, as 160 of 300 in pytorch-ensembles
    learning_rate: float = 0.02  # sweep
    rank: int = 20  # Maddox et al. 2019
    scale: float = 0.5  # Maddox et al. 2019


@dataclass(frozen=True)
class IVONTraining:
    """Fine-tuning by IVON with warm-up and cosine; ess is the number of training images."""

    epochs: int = 40  # SGD's
    batch: int = 25  # SGD's
    learning_rate: float = 0.2  # sweep; also ivon-experiments'
    hess_init: float = 2.0  # sweep
    beta1: float = 0.9  # ivon-opt
    beta2: float = 0.9995  # sweep
    weight_decay: float = 5e-4  # sweep


@dataclass(frozen=True)
class SnapshotTraining:
    """Cycles of SGD with momentum, each a cosine from the peak to 0; a snapshot at the end of each."""

    cycles: int = 4  # DE's members: equal training budgets
    epochs_per_cycle: int = 40  # SGD's; also pytorch-ensembles' cycle
    batch: int = 25  # SGD's
    learning_rate: float = 0.025  # sweep; .1 diverges
    momentum: float = 0.9  # SGD's
    weight_decay: float = 5e-4  # SGD's


@dataclass(frozen=True)
class CyclicalSGLDTraining:
    """Cycles of a cosine: gradient descent without momentum, and in the last epochs of each, SGLD."""

    cycles: int = 4  # DE's members: equal training budgets
    epochs_per_cycle: int = 40  # SGD's
    samples_per_cycle: int = 3  # pytorch-ensembles: noise in the last 3 epochs, a sample after each
    batch: int = 25  # SGD's
    learning_rate: float = 0.25  # sweep; pytorch-ensembles has .5, at which this network is lost
    temperature: float = 1.0  # sweep
    weight_decay: float = 5e-4  # SGD's: a prior variance of 1 / (weight decay · training images) = 1.9


@dataclass(frozen=True)
class BatchEnsembleTraining:
    """Fine-tuning of shared weights and rank-1 fast weights together, every member on every image."""

    epochs: int = 40  # SGD's
    batch: int = 25  # SGD's
    learning_rate: float = 0.05  # sweep
    fast_factor: float = 0.5  # the fast weights' learning rate over the shared ones': giung2
    std: float = 0.1  # sweep; giung2 has .5, from scratch
    momentum: float = 0.9  # SGD's
    weight_decay: float = 5e-4  # giung2; 0 for the fast weights


@dataclass(frozen=True)
class LlamaTraining:
    """A small Llama on arithmetic sentences by AdamW with warm-up and cosine, from a random start."""

    epochs: int = 8  # budget
    batch: int = 32  # exploration, one seed at 5e-3: 64 is worse for L, alike for S and M
    learning_rate: float = 3e-3  # exploration: at 5e-3 one of three seeds of L is far worse
    beta2: float = 0.98  # Vaswani et al. 2017
    weight_decay: float = 0.1  # usual for language models (Brown et al. 2020)
    clip_norm: float = 1.0  # usual for language models (Brown et al. 2020)


@dataclass(frozen=True)
class CLIPTraining:
    """Contrastive training of a digits CLIP from scratch, by AdamW with warm-up and cosine."""

    epochs: int = 60  # budget
    batch: int = 50  # sweep: 25 is worse, 100 at twice the cost no better
    learning_rate: float = 1.5e-3  # sweep
    weight_decay: float = 0.05  # sweep
