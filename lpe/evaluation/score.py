"""Scores predictions from files: the table of an evaluation, for any prefix and mixture, without a model."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from lpe.checks import check_choice, check_list, is_integer, is_number, shown
from lpe.ensembles.base import Ensemble
from lpe.ensembles.cascade import Cascade
from lpe.errors import InputError
from lpe.evaluation.cascades import evaluate_cascade
from lpe.evaluation.examples import ExampleMetrics
from lpe.evaluation.metrics import METRICS, fit_temperature, temperature_scaled
from lpe.evaluation.predictions import (
    TOKENS,
    Predictions,
    check_same_examples,
    read_predictions,
)
from lpe.evaluation.prefixes import Prefixes
from lpe.evaluation.selective import SELECTIVE_METRICS, auroc, entropy, information

if TYPE_CHECKING:
    import pandas as pd

CALIBRATED = "calibrated_nll"
OF_MEMBERS = ("average_loss", "ambiguity", "ensemble_loss", "disagreement")
"""Metrics of single members, which a temperature of their mean does not change."""
FIT = "fit"
TOKEN_METRICS = ("nll", "average_loss", "perplexity")
"""Metrics of tokens, of which there is the target's log-probability alone."""

BLOCK_BYTES = 1 << 24
"""Bytes of an array, float64 [examples, classes], of which some are alive while members are summed."""

Files = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def score(
    files: Files,
    metrics: str | Collection[str] | None = None,
    sizes: Collection[int] | None = None,
    inputs: str = "same",
    temperature: float | str | None = None,
    validation: Files | None = None,
) -> pd.DataFrame:
    """Return the metrics of every prefix of the predictions in files.

    The numbers are those of the evaluation that wrote a file, to the bit.

    Args:
        files: of :func:`lpe.evaluate`'s ``predictions``; several are one mixture: the members of the first,
            then those of the second, ….
        metrics: names of metrics; "all"; None: those of :func:`lpe.evaluate`. All of them are nll, err, ece,
            average_loss, ambiguity, ensemble_loss, brier, and the selective ones: signed_ece, adaptive_ece,
            aurc, cov_at_5_risk, risk_at_80_cov, auroc_errors, disagreement (see
            :mod:`lpe.evaluation.selective`). "calibrated_nll" only where it is named, for it takes a fit a
            size. Of tokens there are nll, average_loss and perplexity.
        sizes: of prefixes; None: 1 … M.
        inputs: "same": files of a mixture have the same inputs; "any": the same targets alone, for networks
            that see the same examples in other ways (another preprocessing).
        temperature: that the mean's log-probabilities are divided by: a number, or "fit", each fold of the
            examples by that of the others (:func:`lpe.evaluation.metrics.temperature_scaled`); None: 1. What
            is of single members (average_loss, ambiguity, ensemble_loss, disagreement) has none and is left
            out.
        validation: files of the same members on other examples, on which a temperature is fitted at every
            size; with "fit" or None.

    Returns:
        A row per size: size, the metrics, memory_bits; with validation also the temperature. The memory of a
        mixture is the sum of its files': tensors that two of them share are counted twice. Losses in nats, of
        tokens a token; else fractions.

    Raises:
        InputError: no file, or one that is truncated, altered or of something else; files of other examples
            or classes; an unknown metric; a size that there is not.
    """
    import pandas as pd

    check_choice("inputs", inputs, ("same", "any"))
    opened = open_files(files)
    check_same_examples(opened, inputs == "same")
    size = sum(each.size for each in opened)
    wanted = _checked_sizes(sizes, size)
    names = checked_metrics(metrics, opened[0].about["kind"])
    if temperature is not None or validation is not None:
        held = None if validation is None else _same_members(opened, open_files(validation))
        return _scaled_table(opened, wanted, names, metrics, temperature, held)
    if opened[0].about["kind"] == TOKENS:
        table = pd.DataFrame(_token_rows(opened, wanted))
    else:
        calibrated = wanted if CALIBRATED in names else ()
        table = pd.DataFrame(scored_rows(opened, wanted, calibrated, None, are_selective(names)))
    return table[["size", *names, "memory_bits"]]


def cascaded(
    files: Files,
    window: Any,
    stages: Sequence[int] | None = None,
    first: str | os.PathLike[str] | None = None,
    inputs: str = "same",
) -> pd.DataFrame:
    """Return a cascade's metrics from files, a row a stage, as :func:`lpe.evaluate` has them of a model.

    Args:
        files, inputs: :func:`score`'s; several are one mixture. window, stages: :class:`lpe.Cascade`'s.
        first: a file of one network, which predicts in the first stage instead of member 0.

    Returns:
        size (members of the stage), the metrics of :func:`lpe.evaluate`, memory_bits, members_per_example.

    Raises:
        InputError: as :func:`score` and :class:`lpe.Cascade`; files of tokens, which have no top
            probability; a ``first`` of several networks.
    """
    check_choice("inputs", inputs, ("same", "any"))
    opened = open_files(files)
    of_first = [] if first is None else open_files(first)
    check_same_examples([*opened, *of_first], inputs == "same")
    if opened[0].about["kind"] == TOKENS:
        raise InputError(f"{opened[0].path} is of tokens, of which only the target's probability is kept")
    cascade = Cascade(
        HeldEnsemble(opened), window, stages, HeldEnsemble(of_first) if first is not None else None
    )
    targets = opened[0].targets
    seen = [0]
    blocks = (
        [(number, torch.arange(start, stop), targets[start:stop])]
        for number, (start, stop) in enumerate(_blocks(opened[0]))
    )
    return evaluate_cascade(cascade, blocks, seen, False)


class _Held(nn.Module):
    """A member of a file: places of examples → their log-probabilities."""

    def __init__(self, file: Predictions, member: int) -> None:
        super().__init__()
        self._file, self._member = file, member

    def forward(self, places: Tensor) -> Tensor:
        """Return log-probabilities [examples, classes] of examples at these places, which rise."""
        if not len(places):
            return torch.empty(0, self._file.classes)
        start, stop = int(places[0]), int(places[-1]) + 1
        return self._file.log_probs(self._member, start, stop)[places - start]


class HeldEnsemble(Ensemble):
    """The members of files of predictions; their inputs are places of examples, int64 [examples], rising."""

    def __init__(self, files: Sequence[Predictions]) -> None:
        super().__init__(sum(each.size for each in files))
        self._members = [_Held(file, member).eval() for file, member in members_of(files)]
        self._memory = _memory(files)

    def member(self, index: int) -> nn.Module:
        """Return member ``index``."""
        return self._members[self._check_index(index)]

    def memory_bits(self, n: int | None = None, storage: str = "members") -> int:
        """Return the bits of the first n members that the files tell, of stored members under both."""
        return self._memory[self._check_storage(n, storage) - 1]

    def describe(self) -> str:
        """Name the files."""
        return "\n".join(dict.fromkeys(str(each._file.path) for each in self._members))

    @property
    def members_are_stored(self) -> bool:
        """Whether members cost nothing: they do not."""
        return True


def scored_rows(
    files: Sequence[Predictions],
    sizes: Collection[int],
    calibrated: Collection[int] = (),
    examples: ExampleMetrics | None = None,
    selective: bool = False,
) -> list[dict[str, float | int]]:
    """Return :meth:`Prefixes.rows` of the members of files; the arguments are those of ``Prefixes``."""
    members = members_of(files)
    prefixes = Prefixes(len(members), calibrated, examples, sizes, selective)
    for start, stop in _blocks(files[0]):
        targets = files[0].targets[start:stop]
        for index, (file, member) in enumerate(members[: max(sizes)]):
            prefixes.add(index, 0, targets, file.log_probs(member, start, stop))
    return prefixes.rows(_memory(files))


def detection(
    files: Files, shifted: Files, sizes: Collection[int] | None = None, inputs: str = "same"
) -> pd.DataFrame:
    """Return how well prefixes tell examples from shifted ones, or ones out of distribution.

    The AUROC of the top probability of the mean (higher on the former; Hendrycks & Gimpel 2017) and of the
    mutual information of prediction and member (higher on the latter; see
    :func:`lpe.evaluation.selective.information`), which is ½ for a single member and for members that are
    alike, whose mutual information is 0. Targets are not looked at.

    Args:
        files, sizes, inputs: :func:`score`'s. shifted: files of the same members on the other examples.

    Returns:
        A row per size: size, auroc_max_probability, auroc_mutual_information.

    Raises:
        InputError: as :func:`score`; files of other members or classes than the shifted ones.
    """
    import pandas as pd

    check_choice("inputs", inputs, ("same", "any"))
    sides = [open_files(each) for each in (files, shifted)]
    for side in sides:
        check_same_examples(side, inputs == "same")
    here, there = sides
    for one, other in zip(here, there, strict=False):
        if one.about["kind"] == TOKENS or one.classes != other.classes:
            raise InputError(f"{one.path} and {other.path} are not of the same classes")
        # Files of before there were settings have none.
        keys = ["ensemble", *(["settings"] if "settings" in one.about and "settings" in other.about else [])]
        if any(one.about[key] != other.about[key] for key in keys):
            raise InputError(
                f"{one.path} and {other.path} are of other members; give those of the same ensemble"
            )
    if len(here) != len(there):
        raise InputError(
            f"{len(here)} files and {len(there)} of shifted examples; give as many, in their order"
        )
    wanted = _checked_sizes(sizes, sum(each.size for each in here))
    inside, outside = (_uncertainty(side, wanted) for side in sides)
    return pd.DataFrame(
        {
            "size": n,
            "auroc_max_probability": auroc(inside[n][0], outside[n][0]),
            "auroc_mutual_information": auroc(outside[n][1], inside[n][1]),
        }
        for n in wanted
    )


def open_files(files: Any) -> list[Predictions]:
    """Open files, one or several.

    Raises:
        InputError: none; one that is no whole file of predictions.
    """
    given = [files] if isinstance(files, str | os.PathLike) else check_list("files", files, "paths")
    if not given:
        raise InputError("files is empty; give files of predictions")
    return [read_predictions(each) for each in given]


def _same_members(files: Sequence[Predictions], others: Sequence[Predictions]) -> Sequence[Predictions]:
    """Return the others, files of the same members on other examples, in the same order.

    Raises:
        InputError: they are not.
    """
    if len(files) != len(others):
        raise InputError(
            f"{len(files)} files and {len(others)} of validation examples; give as many, in their order"
        )
    check_same_examples(others, inputs=False)
    for one, other in zip(files, others, strict=True):
        if one.about["ensemble"] != other.about["ensemble"] or one.classes != other.classes:
            raise InputError(
                f"{one.path} and {other.path} are of other members; give those of the same ensemble"
            )
    return others


def means(files: Sequence[Predictions], size: int) -> tuple[Tensor, Tensor]:
    """Return log-probabilities of the mean of the first members, float64 [examples, classes], and targets."""
    log_sum: Tensor | None = None
    count = len(files[0].targets)
    for file, member in members_of(files)[:size]:
        own = file.log_probs(member, 0, count).double().log_softmax(dim=-1)
        log_sum = own if log_sum is None else torch.logaddexp(log_sum, own, out=log_sum)
    assert log_sum is not None
    return log_sum - math.log(size), files[0].targets


def _scaled_table(
    files: Sequence[Predictions],
    sizes: Sequence[int],
    names: Sequence[str],
    asked: Any,
    temperature: Any,
    validation: Sequence[Predictions] | None,
) -> pd.DataFrame:
    """Return the table under a temperature; see :func:`score`."""
    import pandas as pd

    if files[0].about["kind"] == TOKENS:
        raise InputError(f"{files[0].path} is of tokens, of which only the target's probability is kept")
    is_number_above_0 = is_number(temperature) and 0 < temperature < math.inf
    is_fitted = isinstance(temperature, str) and temperature == FIT
    if not (temperature is None or is_fitted or is_number_above_0):
        raise InputError(f"temperature must be a positive number, {FIT!r} or None, not {shown(temperature)}")
    if validation is not None and is_number_above_0:
        raise InputError(f"a temperature of {shown(temperature)} is not fitted; leave validation out")
    of_members = [name for name in names if name in (*OF_MEMBERS, CALIBRATED)]
    explicit = asked is not None and not (isinstance(asked, str) and asked == "all")
    if of_members and explicit:
        raise InputError(f"{of_members[0]} has no temperature; leave it out, or the temperature")
    kept = [name for name in names if name not in of_members]
    rows = []
    for n in sizes:
        mean, targets = means(files, n)
        fitted: dict[str, float] = {}
        if validation is not None:
            fitted = {"temperature": fit_temperature(*means(validation, n))}
        if is_fitted and validation is None:
            scaled = temperature_scaled(mean, targets)
        else:
            divisor = fitted["temperature"] if fitted else float(temperature)
            scaled = (mean / divisor).log_softmax(dim=-1)
        # One network says it: what it has metrics of is the scaled mean.
        prefixes = Prefixes(1, selective=are_selective(kept))
        prefixes.add(0, 0, targets, scaled)
        (row,) = prefixes.rows([_memory(files)[n - 1]])
        rows.append({**row, "size": n, **fitted})
    columns = ["size", *kept, *(["temperature"] if validation is not None else []), "memory_bits"]
    return pd.DataFrame(rows)[columns]


def members_of(files: Sequence[Predictions]) -> list[tuple[Predictions, int]]:
    """List the members of a mixture: a file and the index in it."""
    return [(file, member) for file in files for member in range(file.size)]


def _checked_sizes(sizes: Any, size: int) -> list[int]:
    if sizes is None:
        return list(range(1, size + 1))
    given = check_list("sizes", sizes, "sizes")
    if not given:
        raise InputError("sizes is empty; give sizes, or None for all")
    for each in given:
        if not is_integer(each) or not 1 <= each <= size:
            raise InputError(
                f"sizes must be integers from 1 to {size}, the members that there are, not {shown(each)}"
            )
    return sorted({int(each) for each in given})


def are_selective(metrics: Collection[str]) -> bool:
    """Tell whether a selective metric is among these."""
    return not set(metrics).isdisjoint(SELECTIVE_METRICS)


def checked_metrics(metrics: Any, kind: str) -> list[str]:
    """Return the names of the metrics that are asked for: of examples of a kind, without repetitions.

    Args:
        metrics: :func:`score`'s. kind: see :mod:`lpe.evaluation.predictions`.

    Raises:
        InputError: a name that is no metric of the kind; none.
    """
    plain, further = (TOKEN_METRICS, ()) if kind == TOKENS else (METRICS, SELECTIVE_METRICS)
    known = [*plain, *further, *([CALIBRATED] if further else [])]
    if metrics is None:
        return list(plain)
    if isinstance(metrics, str) and metrics == "all":
        return [*plain, *further]
    given = [metrics] if isinstance(metrics, str) else check_list("metrics", metrics, "names")
    if not given:
        raise InputError("metrics is empty; give names, 'all', or None for those of lpe.evaluate")
    return list(dict.fromkeys(check_choice("a metric", each, known) for each in given))


def _memory(files: Sequence[Predictions]) -> list[int]:
    """Return the bits of the first 1, 2, … members of a mixture."""
    memory: list[int] = []
    for file in files:
        before = memory[-1] if memory else 0
        memory += [before + int(bits) for bits in file.about["memory_bits"]]
    return memory


def _blocks(file: Predictions) -> Iterator[tuple[int, int]]:
    step = max(1, BLOCK_BYTES // (8 * max(file.classes, 1)))
    count = len(file.targets)
    for start in range(0, count, step):
        yield start, min(start + step, count)


def _uncertainty(files: Sequence[Predictions], sizes: Sequence[int]) -> dict[int, tuple[Tensor, Tensor]]:
    """Return top probability and mutual information [examples] by size."""
    found: dict[int, list[tuple[Tensor, Tensor]]] = {n: [] for n in sizes}
    for start, stop in _blocks(files[0]):
        log_sum = mean_entropy = None
        for index, (file, member) in enumerate(members_of(files)[: max(sizes)]):
            log_probs = file.log_probs(member, start, stop).double().log_softmax(dim=-1)
            own = entropy(log_probs)
            log_sum = log_probs if log_sum is None else torch.logaddexp(log_sum, log_probs)
            mean_entropy = own if mean_entropy is None else mean_entropy + own
            n = index + 1
            if n in found:
                mean = log_sum - math.log(n)
                found[n].append((mean.exp().amax(dim=-1), information(entropy(mean), mean_entropy / n, n)))
    return {n: tuple(map(torch.cat, zip(*parts, strict=True))) for n, parts in found.items()}  # type: ignore[misc]


def _token_rows(files: Sequence[Predictions], sizes: Sequence[int]) -> list[dict[str, float | int]]:
    """Return nats a token of the mean of the members' probabilities of the targets, and the members' own."""
    count = len(files[0].targets)
    of_mean, of_members = {n: 0.0 for n in sizes}, {n: 0.0 for n in sizes}
    for start, stop in _blocks(files[0]):
        log_sum: Tensor | None = None
        total = 0.0
        for index, (file, member) in enumerate(members_of(files)[: max(sizes)]):
            own = file.log_probs(member, start, stop).double()
            log_sum = own if log_sum is None else torch.logaddexp(log_sum, own)
            total += float(own.sum())
            n = index + 1
            if n in of_mean:
                of_mean[n] -= float((log_sum - math.log(n)).sum())
                of_members[n] -= total / n
    memory = _memory(files)
    rows = []
    for n in sizes:
        nll = of_mean[n] / count
        rows.append(
            {
                "size": n,
                "nll": nll,
                "average_loss": of_members[n] / count,
                "perplexity": float(np.exp(nll)),
                "memory_bits": memory[n - 1],
            }
        )
    return rows
