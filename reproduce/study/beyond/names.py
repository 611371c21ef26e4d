"""What rows of shift and selective prediction are named by: the methods compared, and the examples shown."""

from __future__ import annotations

from dataclasses import dataclass

AUROC_PROBABILITY = "auroc_max_probability"
"""The metric of foreign examples: are clean ones told from them by their higher top probability?"""
AUROC_INFORMATION = "auroc_mutual_information"
"""The same by the mutual information of prediction and member, which is lower on clean examples."""
POOLED_THEN_CALIBRATED = "nll, pooled then calibrated"
"""The NLL of the mean of probabilities at one temperature of its own."""
CALIBRATED_THEN_POOLED = "nll, calibrated then pooled"
"""The NLL of the mean of the probabilities of members that each have a temperature of their own."""
COVERAGES = tuple(step / 20 for step in range(1, 21))
"""Of the risk-coverage curves."""
SHARES = tuple(step / 10 for step in range(11))
"""Of validation examples that go on to a cascade's second member."""
HEADLINE_SHARE = 0.2
"""At which a cascade of two runs 1.2 networks an example."""
AIMS = ("cov_at_5_risk", "risk_at_80_cov", "nll")
"""Metrics that the windows of cascades are chosen for."""
VALIDATION = "validation"
"""The examples that temperatures and thresholds are fitted on."""

CLEAN = "clean"
"""The test examples as they are, all of them."""

UNCORRUPTED = "uncorrupted"
"""Those of the test examples that are shown under corruptions, as they are: severity 0."""

RTN = "RTN"
LPE_BSR = "LPE-BSR"
GAUSSIAN = "Gaussian"
MC_DROPOUT = "MC-dropout"
BMA = "BMA"
MATCHED = "Gaussian, matched"
"""Noise of BSR's own variance, weight by weight."""
NOISE = "noise"
"""In the place of examples: losses against the size of the noise, on the test examples as they are."""
TUNED_SPREAD = "LPE-BSR, tuned spread"
"""Its number system is that of the codes, without the spread, which differs from seed to seed."""
TUNED_STD = "Gaussian, tuned std"
"""Tuned as the spread is, by as many ensembles of as many members."""
AUGMENTATION = "Test-time augmentation"
LAPLACE = "Last-layer Laplace"
SELECTED = ", selected"
"""Appended to the method whose members are the best of a pool."""
FEEDBACK = "Error feedback"
"""With rounding "nearest" one network, with "bernoulli" an ensemble."""


@dataclass(frozen=True)
class Method:
    """A method that is compared, as the columns of a record have it.

    Args:
        point: what it is built on: a point's name, or a family's.
        number_system, rounding: "fp32" and "" of what is not rounded.
    """

    point: str
    method: str
    number_system: str
    rounding: str


def corruption_name(kind: str, severity: int) -> str:
    """Return the name of corrupted examples."""
    return f"{kind} {severity}"


def noise_name(std: float) -> str:
    """Return the method of Gaussian noise of one std of a grid."""
    return f"{GAUSSIAN}, std {std:g}"


def corruption_of(name: str) -> tuple[str, int]:
    """Return the kind and the severity of corrupted examples by their name; see :func:`corruption_name`."""
    kind, _, severity = name.rpartition(" ")
    return kind, int(severity)


def shown(substrate: str, examples: str) -> str:
    """Return the substrate of a record's rows: the network, and the examples that it is shown.

    Args:
        examples: ``CLEAN``, ``UNCORRUPTED``, a corruption's name, or that of foreign examples.
    """
    return f"{substrate}, {examples}"


def alone(layer: str) -> str:
    """Name, in the place of examples, the rows where one tensor is rounded and no other."""
    return f"{layer} alone"


def layer_of(substrate: str, name: str) -> str | None:
    """Return the tensor that is rounded alone, by the substrate of a record's rows; see :func:`alone`.

    Returns:
        Its name; None where the rows are of something else.
    """
    begins, ends = f"{substrate}, ", alone("")
    if not (name.startswith(begins) and name.endswith(ends)):
        return None
    return name.removeprefix(begins).removesuffix(ends)


def dropped(rate: float) -> str:
    """Name MC-dropout of one rate."""
    return f"{MC_DROPOUT}, rate {rate:g}"


def examples_of(substrate: str, name: str) -> str | None:
    """Return the examples that a network is shown, by the substrate of a record's rows; see :func:`shown`.

    Returns:
        Their name; None where the rows are of another network.
    """
    return name.removeprefix(f"{substrate}, ") if name.startswith(f"{substrate}, ") else None


def risk_metric(coverage: float) -> str:
    """Return the metric that is the risk of the most confident examples."""
    return f"risk at coverage {coverage:g}"


def member_metric(metric: str, member: int) -> str:
    """Return the metric of one member alone; ``disagreement`` is that with the unrounded network."""
    return f"{metric} of member {member}"


def cascade_metric(metric: str, aim: str, share: float) -> str:
    """Return the metric of a cascade of two members, whose window is chosen for an aim and a share.

    Args:
        metric: the aim itself, or "networks": those that run an example.
    """
    return f"{metric} of a cascade for {aim}, share {share:g}"
