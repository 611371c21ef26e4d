"""A training that is under way, in a file: a killed one goes on from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lpe.checks import shown
from lpe.errors import InputError
from lpe.provenance import plain_data
from lpe.writing import replacing


def differences(there: Any, here: Any, name: str = "") -> list[str]:
    """Return where two pieces of plain data differ, a text each: "protocol.updates is 64, here 32"."""
    if isinstance(there, dict) and isinstance(here, dict):
        keys = dict.fromkeys([*there, *here])
        below = (f"{name}.{key}".lstrip(".") for key in keys)
        pairs = zip(keys, below, strict=True)
        return [each for key, at in pairs for each in differences(there.get(key), here.get(key), at)]
    return [] if there == here else [f"{name} is {shown(there)}, here {shown(here)}"]


@dataclass(frozen=True)
class Checkpoint:
    """The file of a training that is under way.

    Args:
        path: the file. settings: all that determines the training, as plain data or dataclasses.
        seconds: at least, from one writing to the next. report: is told, in a line, of a damaged file.
    """

    path: Path
    settings: Mapping[str, object]
    seconds: float
    report: Callable[[str], None]

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        """Write the state, whole or not at all, over the one before."""
        from safetensors.torch import save

        held = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        about = json.dumps(plain_data(self.settings, "settings"))
        # Not save_file, whose files are private: whoever shares the folder may go on from it.
        content = save(held, metadata={"settings": about})
        with replacing(self.path) as temporary:
            temporary.write_bytes(content)

    def check(self) -> None:
        """Check that the file, where there is one, is of this training; one that is damaged passes.

        Raises:
            InputError: it is another training's, or cannot be read.
        """
        from safetensors import SafetensorError, safe_open

        if not self.path.exists():
            return
        try:
            with safe_open(self.path, "pt") as file:
                there = json.loads((file.metadata() or {}).get("settings", "null"))
        except OSError as error:
            why = error.strerror or error
            raise InputError(f"cannot read {self.path} ({why}); remove it to begin anew") from None
        except SafetensorError:
            return
        if differing := differences(there, plain_data(self.settings, "settings")):
            raise InputError(
                f"{self.path} is of other trainings ({'; '.join(differing[:3])}): give another folder, or "
                "remove it"
            )

    def read(self) -> dict[str, Tensor]:
        """Return the state, on the CPU; empty where there is none, or where it is damaged, which is said.

        Raises:
            InputError: see :meth:`check`.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        self.check()
        if not self.path.exists():
            return {}
        try:
            return load(self.path.read_bytes())
        except SafetensorError as error:
            self.report(f"{self.path} is truncated or damaged ({error}): what it was of begins anew")
            return {}

    def remove(self) -> None:
        """Remove the file, once what it was for is written."""
        self.path.unlink(missing_ok=True)
