"""A small scale of the toy's; where LPE_TEST_DIES names a file, a training writes it and kills itself."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "scales"))

import toy

from reproduce.study.families import DeepEnsembleTraining
from reproduce.study.scale import Split


@dataclass(frozen=True)
class Dying(toy.Stripes):
    """The toy's data, whose second epoch may be the end."""

    def batches(self, split: Split, batch: int, seed: int) -> Callable[[int], Iterator[Split]]:
        """Shuffle anew in every epoch."""
        of = super().batches(split, batch, seed)

        def or_die(epoch: int) -> Iterator[Split]:
            place = os.environ.get("LPE_TEST_DIES")
            if place and epoch == 1:
                try:
                    with open(place, "x") as file:
                        file.write(str(os.getpid()))
                    os.kill(os.getpid(), signal.SIGKILL)
                except FileExistsError:
                    pass
            return of(epoch)

        return or_die


MAIN = replace(
    toy.MAIN,
    name="dying net",
    source=Dying(4),
    points={name: toy.MAIN.points[name] for name in ("SGD", "SWAG")},
    families={"DE": DeepEnsembleTraining("SGD", 2)},
    rivals=None,
)
SCALE = replace(
    toy.SCALE,
    name="dying",
    main=MAIN,
    sizes=(),
    large={},
    compared=None,
    beyond=None,
    settings=replace(toy.SCALE.settings, draws=1, bits=(4,), table_bits=(4,), equal_bits=False),
    seeds=1,
    claim_seeds=1,
)
