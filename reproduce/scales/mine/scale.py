"""The scale of a TOML file: one checkpoint, or several on the same data, and what is measured of them."""

from __future__ import annotations

import dataclasses
import functools
import tomllib
from collections.abc import Mapping
from dataclasses import InitVar, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lpe.ensembles.batch_norm import batch_norms
from lpe.errors import InputError
from lpe.modules import named_tensors
from lpe.substrates.loading import parameter_bytes, require_memory
from reproduce.scales.checks import (
    check_device,
    check_name,
    check_rivals,
    check_settings,
    check_threads,
)
from reproduce.scales.given import Given
from reproduce.scales.mine import data, networks
from reproduce.scales.mine.data import Arrays, Examples
from reproduce.scales.mine.keys import Place, check_integers, check_known, read
from reproduce.scales.mine.tables import (
    DATA,
    NETWORK,
    RIVALS,
    SIZE,
    TOP,
    TRAINING,
    DataTable,
    NetworkTable,
    TopTable,
    settings_presets,
)
from reproduce.study.functions import is_function, root
from reproduce.study.keys import code_hash, data_hash, versions
from reproduce.study.run import device_of
from reproduce.study.scale import Classification, Data, Rivals, Scale, Settings, Substrate

TABLES = ("network", "data", "training", "settings", "rivals", "sizes", "large")


@dataclass(frozen=True)
class Loaded:
    """A network with its examples.

    Args:
        net: in eval mode, where it runs. record: for the provenance. training: None: there are none.
    """

    net: nn.Module
    record: Mapping[str, object]
    examples: Examples
    training: Arrays | None


@dataclass(frozen=True)
class Checkpoint:
    """A network on data, as a scale's file describes them.

    Args:
        batch, tuning_every, device: the file's.
        folder: of the file, which paths are relative to; it is in no key.
    """

    network: NetworkTable
    data: DataTable
    training: DataTable | None
    batch: int
    tuning_every: int
    device: str
    folder: InitVar[Path]

    def __post_init__(self, folder: Path) -> None:
        object.__setattr__(self, "_folder", folder)

    # Arguments may hold what has no hash.
    def __hash__(self) -> int:
        return hash((self.network.source, self.network.weights, self.place))

    @property
    def place(self) -> Path:
        """The folder of the scale's file."""
        return Path(vars(self)["_folder"])

    def loaded(self) -> Loaded:
        """Return the network with its examples; of several, the last is kept in memory."""
        return _kept(self, self.place)

    def load(self, seed: int) -> Data:
        """Return the examples, the same at every seed."""
        loaded = self.loaded()
        count = len(loaded.examples.targets)
        scored, tuning = (
            [index for index in range(count) if (index % self.tuning_every == 0) == is_tuning]
            for is_tuning in (False, True)
        )
        test, validation = (loaded.examples.batches(part, self.batch) for part in (scored, tuning))
        training, statistics = loaded.training, None
        if training is not None and batch_norms(loaded.net):
            statistics = training.batches(range(len(training.targets)), self.batch)
        return Data(
            scored=Classification(test, validation),
            tuning=Classification(validation, validation),
            train=None if training is None else training.split(),
            validation=validation,
            test=test,
            statistics=statistics,
            images=torch.tensor(scored),
        )

    def digest(self, seed: int) -> str:
        """Return a hash of the weights, the examples and the user's functions, the same at every seed."""
        return _digest(self, self.place)

    def hashed(self) -> str:
        """Return what :meth:`digest` keeps."""
        table, loaded = self.network, self.loaded()
        named = [
            text
            for text in (table.source, self.data.python, self.data.transform)
            if text is not None and is_function(text)
        ]
        roots = [root(text, self.place) for text in named]
        weights: dict[str, Tensor] = {}
        if table.weights is None:
            weights = {each.name: each.tensor for each in named_tensors(loaded.net) if each.saved}
        return data_hash(
            weights if table.weights is None else self.place / table.weights,
            loaded.examples.digest(),
            None if loaded.training is None else loaded.training.digest(),
            [code_hash(each) for each in roots],
            versions(*roots) if roots else {},
        )


@functools.lru_cache(maxsize=1)
def _kept(checkpoint: Checkpoint, folder: Path) -> Loaded:
    network = networks.load(checkpoint.network, folder)
    examples = data.load(checkpoint.data, folder, network, checkpoint.batch, kept=False)
    if len(examples.targets) < 2 * checkpoint.tuning_every:
        raise InputError(
            f"there are {len(examples.targets)} examples and every {checkpoint.tuning_every}th tunes; "
            f"{2 * checkpoint.tuning_every} or more are expected, or another tuning_every"
        )
    training = None
    if checkpoint.training is not None:
        found = data.load(checkpoint.training, folder, network, checkpoint.batch, kept=True)
        assert isinstance(found, Arrays)
        training = found
    where = torch.device(device_of(checkpoint.device))
    if where.type != "cpu":
        require_memory(parameter_bytes(network.net), checkpoint.network.short, where)
    described = {
        "network": checkpoint.network,
        "data": checkpoint.data,
        "training": checkpoint.training,
        "tuning_every": checkpoint.tuning_every,
    }
    return Loaded(network.net.to(where), {**described, **network.record}, examples, training)


@functools.cache
def _digest(checkpoint: Checkpoint, folder: Path) -> str:
    return checkpoint.hashed()


def scale_of(path: Path) -> Scale:
    """Return the scale of a TOML file; nothing of it is loaded yet.

    Raises:
        InputError: no TOML; an unknown key, a wrong type or a value out of its range; a file that it names
            and that is not there.
    """
    top = Place(path.name, "")
    try:
        held = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise top.error(f"it cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is no TOMLDecodeError
        raise top.error(f"it is no TOML: {error}") from None
    check_integers(held, top)
    fields = [each.name for each in dataclasses.fields(TopTable)]
    check_known(held, (*fields, *TABLES), top)
    own = read(TopTable, {key: value for key, value in held.items() if key in fields}, top, TOP)
    _check_top(own, top)
    for needed in ("network", "data"):
        if needed not in held:
            raise top.error(f"it lacks [{needed}]")
    folder = path.parent
    tested = _data(held["data"], top.inside("data"), DATA, folder)
    training = None
    if "training" in held:
        training = _data(held["training"], top.inside("training"), TRAINING, folder)
    settings = _settings(held.get("settings", {}), top.inside("settings"))
    rivals = read(Rivals, held.get("rivals", {}), top.inside("rivals"), RIVALS)
    check_rivals(rivals, top.inside("rivals"))
    names: set[str] = set()

    def substrate(table: object, place: Place) -> Substrate:
        network = read(NetworkTable, table, place, NETWORK)
        _check_file(network.weights, "weights", place, folder)
        if is_function(network.source):
            _check_function(network.source, "source", place, folder)
        if network.short in names:
            raise place.error(f"two networks are called {network.short!r}; give one of them another 'name'")
        names.add(network.short)
        return Substrate(
            name=f"{own.name} {network.short}",
            short=network.short,
            example=own.example,
            source=Checkpoint(
                network, tested, training, own.batch, own.tuning_every, own.device, folder=folder
            ),
            start=None,
            points={"SGD": Given()},
            families={},
            rivals=rivals,
            pieces=None,
            has_training=training is not None,
            remarks=(),
            most_seeds={},
            subject=None,
        )

    main = substrate(held["network"], top.inside("network"))

    def further(key: str) -> tuple[Substrate, ...]:
        listed = held.get(key, [])
        if not isinstance(listed, list):
            raise top.error(f"[{key}] is one table; a list of them, [[{key}]], is expected")
        return (main, *(substrate(table, top.inside(key)) for table in listed))

    return Scale(
        name=own.name,
        title=f"{main.short}, as {path.name} has it",
        result="what this checkpoint gives",
        launch=f"python -m reproduce --scale {path.name}",
        main=main,
        whole=None,
        sizes=further("sizes"),
        large={"": further("large")},
        compared=main,
        settings=settings,
        seeds=1,  # one checkpoint
        claim_seeds=1,
        cost_seeds=1,
        unit="example",
        standing="One checkpoint: the verdicts are for these weights, and for new examples of the same kind.",
        threads=own.threads,
        device=own.device,
        heading="",
        points_heading="",
        conditions=(
            "One checkpoint of each network. NLL in nats (natural logarithm), ERR and ECE as shares of 1; "
            f"ECE in 15 bins. {settings.draws} ensembles of other rounding seeds are averaged.",
            f"Every {own.tuning_every}th example is scored by no row: on these the temperature is fitted and "
            "noise and dropout are tuned.",
        ),
        sweep=None,
        rehearse=None,
        beyond=None,
        options={},
        prepare=None,
    )


def _check_top(own: TopTable, top: Place) -> None:
    check_name(own.name, top)
    check_device(own.device, top)
    check_threads(own.threads, top)
    for key, least in (("batch", 1), ("tuning_every", 2)):
        if (value := getattr(own, key)) < least:
            raise top.error(f"{key!r} is {value}; {least} or more is expected")


def _data(table: object, place: Place, presets: Mapping[str, Any], folder: Path) -> DataTable:
    found = read(DataTable, table, place, presets)
    given = [key for key in data.KINDS if getattr(found, key) is not None]
    if len(given) != 1:
        said = " and ".join(given) or "none of them"
        raise place.error(f"{place} has {said}; one of {', '.join(data.KINDS)} is expected")
    _check_file(found.arrays, "arrays", place, folder)
    for key in ("python", "transform"):
        if (text := getattr(found, key)) is not None:
            _check_function(text, key, place, folder)
    if found.folder is not None and not (folder / found.folder).is_dir():
        raise place.error(f"'folder' in {place} is {found.folder!r}, and there is no such folder")
    if found.limit is not None and found.limit < 4:
        raise place.error(f"'limit' in {place} is {found.limit}; 4 or more is expected")
    return found


def _check_file(name: str | None, key: str, place: Place, folder: Path) -> None:
    if name is not None and not (folder / name).is_file():
        raise place.error(f"{key!r} in {place} is {name!r}, and there is no such file")


def _check_function(text: str, key: str, place: Place, folder: Path) -> None:
    file, _, name = text.partition(":")
    if not is_function(text) or not name:
        raise place.error(f"{key!r} in {place} is {text!r}; a file and a function, data.py:test, is expected")
    _check_file(file, key, place, folder)


def _settings(table: object, place: Place) -> Settings:
    size = table.get("size") if isinstance(table, Mapping) else None
    presets = settings_presets(size if isinstance(size, int) and size > 0 else SIZE)
    settings = read(Settings, table, place, presets)
    shape, below = settings.landscape, place.inside("landscape")
    if (shape.split, shape.examples) != ("test", None):
        raise below.error(f"'split' and 'examples' in {below} are not yours to set; leave them out")
    if not settings.axis_bits:
        raise place.error(f"'axis_bits' in {place} is []; one width or more is expected")
    check_settings(settings, place)
    return settings
