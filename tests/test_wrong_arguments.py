"""Every argument of every public name, given what it is not: it works, or one line says what is wrong.

The calls are generated. Each is a right call of which one argument is replaced by each of WRONG; a new name
of ``lpe`` is covered as soon as RIGHT knows how a right call of it looks. What may be raised beside
``lpe.InputError`` is Python's own TypeError for a missing or unexpected argument, an IndexError of indexing,
and whatever comes out of the user's own code: a model, an iterable, a function.
"""

from __future__ import annotations

import inspect
import math
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ivon
import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import lpe
from lpe.ensembles.batch_norm import refresh
from lpe.ensembles.cyclical_sgld import CyclicalSGLDCollector
from lpe.ensembles.snapshot import SnapshotCollector
from lpe.ensembles.swag import SWAGCollector, SWAGStatistics
from lpe.evaluation.equivalent import deep_ensemble_equivalent
from lpe.evaluation.landscape import Surface, grid_lines, plane_through, radial_plane, weight_vector
from lpe.evaluation.predict import evaluate_temperature_scaled
from lpe.evaluation.timing import MemberTimer

FEATURES, CLASSES, EXAMPLES = 4, 3, 6


class Net(nn.Module):
    """A user's model."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, 5)
        self.dropout = nn.Dropout(0.1)
        self.last = nn.Linear(5, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.dropout(self.first(inputs).tanh()))


def net() -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net().eval()


def inputs() -> Tensor:
    return torch.randn(EXAMPLES, FEATURES, generator=torch.Generator().manual_seed(0))


def targets() -> Tensor:
    return torch.arange(EXAMPLES) % CLASSES


def batches() -> list[tuple[Tensor, Tensor]]:
    return [(inputs(), targets())]


def ensemble() -> lpe.LowPrecisionEnsemble:
    return lpe.LowPrecisionEnsemble(net(), lpe.Int(4), 2)


def posterior() -> dict[str, Tensor]:
    return {name: torch.full_like(p, 0.1) for name, p in net().named_parameters()}


def states() -> list[dict[str, Tensor]]:
    return [net().state_dict(), net().state_dict()]


def swag_collector(collected: int = 3) -> SWAGCollector:
    collector = SWAGCollector(2)
    model = net()
    for _ in range(collected):
        collector.collect(model)
        with torch.no_grad():
            model.last.bias.add_(0.1)
    return collector


def swag_statistics() -> SWAGStatistics:
    return swag_collector().statistics()


def log_probs() -> Tensor:
    logits = torch.randn(2, EXAMPLES, CLASSES, generator=torch.Generator().manual_seed(1))
    return logits.log_softmax(-1)


def weight() -> Tensor:
    return torch.linspace(-1, 1, 12).view(3, 4)


def codes() -> Tensor:
    return lpe.encode(weight(), lpe.Int(4))[0]


def scales() -> Tensor:
    return lpe.encode(weight(), lpe.Int(4))[1]


def vector() -> Tensor:
    return weight_vector(net())


def trained() -> dict[str, Any]:
    model = net()
    return {"model": model, "optimizer": torch.optim.SGD(model.parameters(), 0.1)}


def trained_by_ivon() -> dict[str, Any]:
    model = net()
    return {"model": model, "optimizer": ivon.IVON(model.parameters(), 0.1, ess=10)}


def used_timer() -> MemberTimer:
    timer = MemberTimer(2)
    lpe.evaluate(ensemble(), batches(), timer=timer)
    return timer


def saved(folder: Path) -> Path:
    path = folder / "saved.safetensors"
    lpe.save(ensemble(), path)
    return path


def predicted(folder: Path) -> Path:
    path = folder / "predictions.safetensors"
    lpe.evaluate(ensemble(), batches(), predictions=path)
    return path


# A right call: of each name its required arguments, and of each argument with another name something right.

Make = Callable[[Path], Any]


def of(function: Callable[[], Any]) -> Make:
    return lambda _: function()


RIGHT: dict[str, Make] = {
    "model": of(net),
    "system": of(lambda: lpe.Int(4)),
    "size": of(lambda: 2),
    "rate": of(lambda: 0.1),
    "std": of(posterior),
    "statistics": of(swag_statistics),
    "models": of(lambda: [net(), net()]),
    "snapshots": of(states),
    "samples": of(states),
    "base": of(lambda: lpe.DeepEnsemble([net(), net()])),
    "expand": of(
        lambda: lambda model, first: lpe.LowPrecisionEnsemble(model, lpe.Int(4), 2, first_member=first)
    ),
    "parts": of(lambda: [ensemble(), ensemble()]),
    "ensemble": of(ensemble),
    "window": of(lambda: (0.0, 0.9)),
    "levels": of(lambda: [-1.0, 0.0, 1.0]),
    "bits": of(lambda: 4),
    "exponent": of(lambda: 4),
    "mantissa": of(lambda: 3),
    "name": of(lambda: "int4"),
    "channels": of(lambda: 2),
    "inputs": of(inputs),
    "weight": of(weight),
    "codes": of(codes),
    "scales": of(scales),
    "batches": of(batches),
    "path": saved,
    "files": predicted,
    "log_probs": of(log_probs),
    "targets": of(targets),
    "index": of(lambda: 1),
    "member": of(lambda: 1),
    "rank": of(lambda: 2),
    "epochs_per_cycle": of(lambda: 2),
    "samples_per_cycle": of(lambda: 1),
    "kept_per_cycle": of(lambda: 1),
    "epochs": of(lambda: 4),
    "epoch": of(lambda: 1),
    "iterates": of(lambda: 4),
    "steps_per_epoch": of(lambda: 3),
    "members": of(lambda: 2),
    "value": of(lambda: 0.5),
    "curve": of(lambda: [0.9, 0.4]),
    "first": of(vector),
    "second": of(lambda: vector() + 1),
    "third": of(lambda: vector() + torch.linspace(0, 1, len(vector()))),
    "anchors": of(lambda: [0.0, 1.0]),
    "resolution": of(lambda: 3),
    "margin": of(lambda: 0.1),
    "weights": of(vector),
    "lr": of(lambda: 0.1),
    "fast_lr": of(lambda: 0.1),
    "weight_decay": of(lambda: 0.1),
    "tensors": of(lambda: swag_statistics().tensors()),
    "parameters": of(lambda: list(net().parameters())),
    "learning_rate": of(lambda: 0.1),
    "x": of(lambda: 0.0),
    "y": of(lambda: 0.0),
    "n": of(lambda: 1),
    "examples": of(lambda: 4),
    "curvature": of(lambda: lpe.last_layer_curvature(net(), batches())),
}

OF_ONE_NAME: dict[tuple[str, str], Make] = {
    ("save", "path"): lambda folder: folder / "new.safetensors",
    ("tune_window", "gain_share"): of(lambda: 0.5),
    ("PerBlock", "inputs"): of(lambda: 2),
    ("Surface", "anchors"): of(lambda: {"here": vector()}),
    ("codes", "name"): of(lambda: "first.weight"),
    ("stored", "name"): of(lambda: "first.weight"),
    ("planes", "name"): of(lambda: "first.weight"),
    ("planes", "members"): of(lambda: [1, 0]),
    ("scales", "name"): of(lambda: "first.weight"),
    ("draw", "name"): of(lambda: "first.weight"),
    ("std_of", "name"): of(lambda: "first.weight"),
    ("restore", "state"): of(
        lambda: {
            **{"collected": 0, "ended": 0, "mean": {}, "squares": {}, "deviations": []},  # SWAG's
            **{"epochs": [], "kept": []},  # snapshots'
        }
    ),
    ("run", "batches"): of(lambda: [inputs()]),
    ("SelectedEnsemble", "members"): of(lambda: [1, 0]),
    ("coordinates", "weights"): of(vector),
}

TOGETHER: dict[str, Callable[[], dict[str, Any]]] = {"train": trained, "posterior_std": trained_by_ivon}
"""Arguments of a name that belong together."""

ALSO_REQUIRED = {("tune_window", "gain_share")}
"""Arguments with a default, which a right call has to give all the same."""

FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: getattr(lpe, name) for name in lpe.__all__ if name != "InputError"},
    **{
        function.__name__: function
        for function in (
            refresh,
            SWAGCollector,
            SnapshotCollector,
            CyclicalSGLDCollector,
            MemberTimer,
            evaluate_temperature_scaled,
            deep_ensemble_equivalent,
            plane_through,
            radial_plane,
            grid_lines,
            weight_vector,
            Surface,
        )
    },
    "Mixture.of": lpe.Mixture.of,
    "SWAGStatistics.from_tensors": SWAGStatistics.from_tensors,
}

OBJECTS: dict[str, Callable[[], Any]] = {
    "LowPrecisionEnsemble": ensemble,
    "GaussianEnsemble": lambda: lpe.GaussianEnsemble(net(), lpe.Int(4), 2),
    "MCDropoutEnsemble": lambda: lpe.MCDropoutEnsemble(net(), 0.1, 2),
    "DeepEnsemble": lambda: lpe.DeepEnsemble([net(), net()]),
    "BatchEnsemble": lambda: lpe.BatchEnsemble(net(), 2),
    "SWAGEnsemble": lambda: lpe.SWAGEnsemble(net(), swag_statistics(), 2),
    "IVONEnsemble": lambda: lpe.IVONEnsemble(net(), posterior(), 2),
    "SnapshotEnsemble": lambda: lpe.SnapshotEnsemble(net(), states()),
    "Mixture": lambda: lpe.Mixture(
        lpe.DeepEnsemble([net(), net()]),
        lambda model, first: lpe.LowPrecisionEnsemble(model, lpe.Int(4), 2, first_member=first),
    ),
    "AugmentedEnsemble": lambda: lpe.AugmentedEnsemble(net(), 2),
    "LaplaceEnsemble": lambda: lpe.LaplaceEnsemble(net(), lpe.last_layer_curvature(net(), batches()), 2),
    "FeedbackEnsemble": lambda: lpe.FeedbackEnsemble(net(), lpe.Int(4), 2, batches()),
    "SelectedEnsemble": lambda: lpe.SelectedEnsemble(ensemble(), [1, 0]),
    "Cascade": lambda: lpe.Cascade(ensemble(), (0.0, 0.9)),
    "SWAGCollector": swag_collector,
    "SnapshotCollector": lambda: SnapshotCollector(2),
    "CyclicalSGLDCollector": lambda: CyclicalSGLDCollector(2, 1),
    "MemberTimer": used_timer,
}

WRONG: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "0": lambda: 0,
    "-1": lambda: -1,
    "2.5": lambda: 2.5,
    "nan": lambda: math.nan,
    "inf": lambda: math.inf,
    "10**30": lambda: 10**30,
    "1j": lambda: 1j,
    "text": lambda: "x",
    "bytes": lambda: b"x",
    "[]": lambda: [],
    "[None]": lambda: [None],
    "[-1.5]": lambda: [-1.5],
    "{}": lambda: {},
    "{1: 2}": lambda: {1: 2},
    "{'first.weight': None}": lambda: {"first.weight": None},
    "object": object,
    "function": lambda: lambda *_, **__: None,
    "a class": lambda: Net,
    "a generator": lambda: (each for each in ()),
    "a model": net,
    "models": lambda: [net(), net()],
    "an ensemble": ensemble,
    "a system": lambda: lpe.Int(4),
    "a scalar tensor": lambda: torch.tensor(0.5),
    "a vector of floats": lambda: torch.tensor([0.5, math.nan]),
    "a vector of integers": lambda: torch.tensor([-100, 7, 0, 1, 2, 0]),
    "a tensor of four dimensions": lambda: torch.zeros(2, 1, 2, 2),
    "an empty tensor": lambda: torch.zeros(0),
    "a complex tensor": lambda: torch.zeros(EXAMPLES, FEATURES, dtype=torch.complex64),
    "an array": lambda: np.zeros((EXAMPLES, FEATURES)),
    "an array of text": lambda: np.array(["a", "b"]),
    "a table": lambda: pd.DataFrame({"a": [1, 2]}),
    "a path": lambda: Path("/nowhere/at/all"),
}


def parameters_of(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind not in kinds and name != "self" and not name.startswith("_")
    }


def methods_of(cls: type) -> Iterator[str]:
    for name in dir(cls):
        mine = getattr(cls, name)
        public = not name.startswith("_") or name == "__getitem__"
        if public and inspect.isfunction(mine) and mine.__module__.startswith("lpe"):
            yield name


REFUSED = {"FeedbackEnsemble().as_module"}
"""What is refused whatever it is given; its own test says so."""


def generated() -> Iterator[tuple[str, str]]:
    """Every (call, parameter): a function's name, or an object's with a method."""
    for name, function in FUNCTIONS.items():
        for parameter in parameters_of(function):
            yield name, parameter
    seen = set()
    for name, make in OBJECTS.items():
        cls = type(make())
        for method in methods_of(cls):
            function = getattr(cls, method)
            if f"{name}().{method}" in REFUSED:
                continue
            if function not in seen:  # inherited by others, it is one function
                seen.add(function)
                for parameter in parameters_of(function):
                    yield f"{name}().{method}", parameter


def right_call(call: str, folder: Path) -> tuple[Callable[..., Any], dict[str, Any]]:
    """A function, and its required arguments as they should be."""
    owner, _, method = call.partition("().")
    function = getattr(OBJECTS[owner](), method) if method else FUNCTIONS[call]
    short = method or call
    given = {
        name: OF_ONE_NAME.get((short, name), RIGHT.get(name, of(lambda: None)))(folder)
        for name, parameter in parameters_of(function).items()
        if parameter.default is inspect.Parameter.empty or (short, name) in ALSO_REQUIRED
    }
    return function, given | (TOGETHER[call]() if call in TOGETHER else {})


HERE = Path(__file__).resolve()
OURS = Path(lpe.__file__).resolve().parent
MODULE_CALL = Path(inspect.getfile(nn.Module)).resolve()


def is_foreign(error: Exception) -> bool:
    """Whether an exception is neither a line of ours nor the user's code's, nor Python's own of a call."""
    if isinstance(error, lpe.InputError):
        return "\n" in str(error)
    frames = traceback.extract_tb(error.__traceback__)
    files = [Path(frame.filename).resolve() for frame in frames]
    last = max((k for k, file in enumerate(files) if OURS in file.parents), default=None)
    if last is None:
        return not isinstance(error, TypeError)  # nothing of ours was entered
    if isinstance(error, IndexError) and frames[last].name == "__getitem__":
        return False
    if isinstance(error, TypeError) and "Net.__init__()" in str(error):  # a class where a function is called
        return False
    beyond = list(zip(frames, files, strict=True))[last + 1 :]
    in_model = any(file == MODULE_CALL and frame.name == "_call_impl" for frame, file in beyond)
    return not (in_model or any(file == HERE for _, file in beyond))


def outcome(call: str, parameter: str, wrong: str, folder: Path) -> Exception | None:
    function, given = right_call(call, folder)
    given[parameter] = WRONG[wrong]()
    try:
        result = function(**given)
        if isinstance(result, Iterator):
            next(result, None)
    except Exception as error:
        return error
    return None


CALLS = list(generated())
ENDLESS = {("train", "epochs", "10**30")}
"""What would work."""


@pytest.mark.parametrize("call", sorted({call for call, _ in CALLS}))
def test_the_right_call_works(call: str, tmp_path: Path) -> None:
    function, given = right_call(call, tmp_path)
    function(**given)


@pytest.mark.parametrize(("call", "parameter"), CALLS)
def test_a_wrong_argument_works_or_is_refused_in_one_line(
    call: str, parameter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a name of a file may be right, and then it is written
    foreign = {}
    for wrong in WRONG:
        if (call, parameter, wrong) in ENDLESS:
            continue
        error = outcome(call, parameter, wrong, tmp_path)
        if error is not None and is_foreign(error):
            foreign[wrong] = f"{type(error).__name__}: {error}"
    assert not foreign, "\n".join(f"{parameter}={wrong}: {said}" for wrong, said in foreign.items())


def test_a_foreign_exception_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lpe.ensembles.low_precision, "check_seed", int)
    error = outcome("LowPrecisionEnsemble", "seed", "object", Path())
    assert isinstance(error, TypeError) and is_foreign(error)


def test_pythons_own_and_the_models_own_exceptions_are_not_foreign() -> None:
    function, given = right_call("LowPrecisionEnsemble", Path())
    for wrong in ({**given, "sise": 3}, {"model": net()}):
        with pytest.raises(TypeError) as caught:
            function(**wrong)
        assert not is_foreign(caught.value)
    with pytest.raises(RuntimeError) as of_model:
        ensemble().predict(torch.zeros(2, FEATURES + 1))
    assert not is_foreign(of_model.value)
