"""The metrics of every prefix 1 … M of an ensemble, out of its members' logits, which come one member a time.

A block of examples has running sums, of probabilities by log-sum-exp and of log-probabilities, which grow by
one member at a time.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from lpe.evaluation.examples import ExampleMetrics
from lpe.evaluation.metrics import EnsembleMetrics, nll, temperature_scaled
from lpe.evaluation.selective import AgreeingPairs, selective_metrics


class Prefixes:
    """Running metrics of the first 1, 2, … M members.

    Args:
        size: members, M.
        calibrated: sizes at which temperatures are fitted; their log-probabilities are kept.
        examples: takes up the values of each example.
        sizes: at which there are metrics; None: 1 … M.
        selective: whether the selective metrics are among them.
    """

    def __init__(
        self,
        size: int,
        calibrated: Collection[int] = (),
        examples: ExampleMetrics | None = None,
        sizes: Collection[int] | None = None,
        selective: bool = False,
    ) -> None:
        self.sizes = range(1, size + 1) if sizes is None else sizes
        self.calibrated = calibrated
        self.examples = examples
        self.selective = selective
        self.all_targets: list[Tensor] = []
        self._metrics = [EnsembleMetrics() for _ in range(size)]
        self._kept: list[list[Tensor]] = [[] for _ in range(size)]
        self._confidence: list[list[Tensor]] = [[] for _ in range(size)]
        self._correct: list[list[Tensor]] = [[] for _ in range(size)]
        self._agreeing = AgreeingPairs()
        self._running: list[tuple[Tensor, Tensor]] = []

    def add(self, member: int, block: int, targets: Tensor, logits: Tensor) -> None:
        """Add a member's logits of a block of examples.

        Args:
            member: its index. block: the examples' place in a chunk; member 0 at block 0 begins a chunk.
            targets: int64 [examples]. logits: [examples, classes].
        """
        if not member:
            if not block:
                self._running.clear()
                self._agreeing.next_blocks()
            self.all_targets.append(targets.cpu())
        log_probs = logits.double().log_softmax(dim=-1)
        if self.selective:
            self._agreeing.add(log_probs.argmax(dim=-1), log_probs.shape[1], block)
        _take_up(self._running, member, block, log_probs)
        n = member + 1
        if n not in self.sizes:
            return
        log_sum, total = self._running[block]
        mean = log_sum - math.log(n)
        targets = targets.to(mean.device)
        mean_log_probs = total / n
        member_nll = -mean_log_probs.gather(1, targets[:, None])[:, 0]
        self._metrics[member].update(mean, mean_log_probs, member_nll, targets)
        if self.examples is not None:
            self.examples.add("nll", n, -mean.gather(1, targets[:, None])[:, 0])
        if n in self.calibrated:
            self._kept[member].append(mean.cpu())
            if self.examples is not None:
                self.examples.add("ambiguity", n, -mean_log_probs.logsumexp(dim=-1))
        if self.selective:
            confidence, predicted = mean.exp().max(dim=-1)
            self._confidence[member].append(confidence.cpu())
            self._correct[member].append((predicted == targets).cpu())

    def rows(self, memory_bits: Sequence[int]) -> list[dict[str, float | int]]:
        """Return a row per size: size, the metrics, memory_bits, and calibrated_nll where asked.

        Args:
            memory_bits: of the first 1 … M members.
        """
        rows = []
        disagreement = self._agreeing.disagreement()
        for n in self.sizes:
            row: dict[str, float | int] = {"size": n, **self._metrics[n - 1].values()}
            row["memory_bits"] = memory_bits[n - 1]
            if self.calibrated:
                row["calibrated_nll"] = math.nan
            if n in self.calibrated:
                every_target = torch.cat(self.all_targets)
                scaled = temperature_scaled(torch.cat(self._kept[n - 1]), every_target)
                row["calibrated_nll"] = nll(scaled, every_target)
                if self.examples is not None:
                    self.examples.add("calibrated_nll", n, -scaled.gather(1, every_target[:, None])[:, 0])
            if self.selective:
                confidence, correct = torch.cat(self._confidence[n - 1]), torch.cat(self._correct[n - 1])
                row |= {**selective_metrics(confidence, correct), "disagreement": disagreement[n - 1]}
            rows.append(row)
        return rows


def _take_up(running: list[tuple[Tensor, Tensor]], index: int, block: int, log_probs: Tensor) -> None:
    """Grow a block's running sums, of probabilities by log-sum-exp and of log-probabilities, by a member."""
    if not index:
        running.append((log_probs, log_probs))  # both are its own
        return
    log_sum, total = running[block]
    log_probs = log_probs.to(total.device)
    total = log_sum + log_probs if index == 1 else total.add_(log_probs)
    running[block] = torch.logaddexp(log_sum, log_probs, out=log_sum), total
