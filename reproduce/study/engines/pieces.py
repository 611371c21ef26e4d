"""The independent pieces of a scale's work: trainings that several wait for, and units.

A unit trains what it finds untrained. Where two units are measured at once that have a training in common,
both would train it; so what several wait for is a piece of its own, which comes first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from reproduce.study.families import DeepEnsembleTraining, MultiPosteriorTraining
from reproduce.study.measurements import trained_for
from reproduce.study.scale import Scale, Substrate
from reproduce.study.session import Session
from reproduce.study.units import Unit

START = "start"


@dataclass(frozen=True)
class Training:
    """A training of a substrate.

    Args:
        name: a point's or a family's; START: what all trainings of the seed start from.
        replica: of a point that an ensemble has several of.
    """

    substrate: str
    name: str
    seed: int
    replica: int = 0

    def starts_from(self, other: Training) -> bool:
        """Tell whether this training goes on from the other."""
        start = (self.substrate, START, self.seed)
        return self.name != START and (other.substrate, other.name, other.seed) == start

    def __str__(self) -> str:
        replica = f", replica {self.replica}" if self.replica else ""
        return f"{self.substrate}: training of {self.name}, seed {self.seed}{replica}"


def train(session: Session, training: Training) -> None:
    """Train, or find in the store that it is trained."""
    substrate = session.scale.substrates[training.substrate]
    if training.name in substrate.points:
        substrate.point(session, training.name, training.seed, training.replica)
    elif training.name in substrate.families:
        substrate.family(session, training.name, training.seed)
    else:
        assert substrate.start is not None
        substrate.start.start(session, substrate, training.seed, training.replica)


def trainings_of(scale: Scale, unit: Unit) -> list[Training]:
    """List the trainings that a unit is measured on, what they start from among them, each once."""
    found: list[Training] = []
    for substrate, recipe in trained_for(scale, unit):
        if recipe is substrate.start:
            found.append(Training(substrate.name, START, unit.seed))
        elif isinstance(recipe, DeepEnsembleTraining | MultiPosteriorTraining):
            replicas = range(recipe.members)
            found += [Training(substrate.name, recipe.of, unit.seed, replica) for replica in replicas]
        else:
            found.append(Training(substrate.name, _name_of(substrate, recipe), unit.seed))
    return list(dict.fromkeys(found))


def _name_of(substrate: Substrate, recipe: object) -> str:
    named: Mapping[str, object] = {**substrate.points, **substrate.families}
    return next(name for name, each in named.items() if each is recipe)


def waited_for(scale: Scale, wanted: Iterable[Unit]) -> dict[Unit, list[Training]]:
    """Return, for each unit, the trainings that come before it as pieces of their own.

    They are those that several units need, and those of a unit that has several; and first of all what these
    start from.
    """
    needs = {unit: trainings_of(scale, unit) for unit in wanted}
    users = Counter(training for needed in needs.values() for training in needed)
    first: dict[Unit, list[Training]] = {}
    for unit, needed in needs.items():
        several = sum(training.name != START for training in needed) > 1
        kept = [each for each in needed if users[each] > 1 or (several and each.name != START)]
        starts = [each for each in needed if each.name == START and each not in kept]
        with_start = {each.substrate for each in kept}
        starts += [each for each in kept if each.name == START]
        first[unit] = [each for each in starts if each.substrate in with_start]
        first[unit] += [each for each in kept if each.name != START]
    return first
