"""Whole models from end to end, and small ones' members side by side: a part of ``benchmarks.gpu``.

**Models.** LLaMa-3-8B (32 layers, bfloat16), ViT-L/16 and CLIP-ViT-g/14 (float32 weights under bfloat16
autocast), all with random weights at their true shapes, made on the device. The language model is given one
token, as in decoding, and a context of 64. Against plain passes, one for each of ten members:

    member      each member made anew, run, and given back
    in turn     ``lpe.evaluate``, which rounds each member into the memory of the one before
    drawn       ``as_module()``, which draws its weights in each pass
    bit planes  ``as_module(storage="planes")``; making them is a time of its own

The last two in blocks of 256 MiB. The library's own, of 4 MiB, were measured on a CPU; a GPU computes them in
less time than Python takes for the next one. They have a row too.

Each row has the milliseconds an example (of all members; making what a pass makes included), the peak bytes
of the device's memory, model included, and the seconds that one member's making takes: of planes, of all
members' planes over their number. Without a member's making, ten members' limit is the plain passes; from
planes an example can be cheaper, for weights are read once.

**Side by side.** Members of small networks, which one by one leave a GPU idle: one by one, launched and as
one CUDA graph; on a stream each within one graph; as one ``torch.vmap``, launched and as a graph; and
together by ``as_module()``. The members are there already. No rule of the library follows before it is
measured.

A way that does not fit into memory, or that the library refuses, has a row that says why.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

import lpe
from benchmarks.gpu_calls import BITS, made_on, of_timm
from benchmarks.gpu_timer import GRAPH, LAUNCHED, Timer
from lpe.ensembles import on_the_fly
from lpe.ensembles.base import text_table
from lpe.errors import InputError
from lpe.evaluation.options import EvaluationOptions
from lpe.modules import apply
from lpe.records import write_table
from lpe.substrates import digits
from lpe.substrates.clip import ZeroShotClassifier
from lpe.substrates.stories import LastToken
from reproduce.scales.paper.models import LLAMA_3_8B

MEMBERS = 10
REPEATS = 3
CLASSES = 1000

PLAIN = "plain passes"
EACH = "member"
IN_TURN = "in turn (lpe.evaluate)"
DRAWN = "drawn"
IN_SMALL_BLOCKS = "drawn, blocks of 4 MiB"
PLANES = "bit planes"
WAYS = (PLAIN, EACH, IN_TURN, DRAWN, IN_SMALL_BLOCKS, PLANES)
BLOCK_BYTES = 1 << 28
SLOW_SECONDS = 5.0
"""A way whose first call takes longer is not called again, and has that call's time."""
MODEL_COLUMNS = (
    "what",
    "model",
    "compute",
    "weights",
    "members",
    "examples",
    "repeats",
    "making_seconds",
    "ms_an_example",
    "times_plain",
    "peak_bytes",
    "why",
)
MODEL_FILE = "gpu_models.csv"

ONE_BY_ONE = "one by one"
STREAMS = "a stream each"
VMAP = "vmap"
TOGETHER = "together (as_module)"
SIDE_COLUMNS = (
    "what",
    "network",
    "run",
    "members",
    "examples",
    "repeats",
    "median_seconds",
    "times_one_by_one",
    "why",
)
SIDE_FILE = "gpu_side_by_side.csv"


@dataclass(frozen=True)
class Model:
    """A model with inputs.

    Args:
        make: with random weights, made on torch's default device. inputs: device → the inputs of a batch, of
            each case by its name ("" where there is one).
        autocast: under bfloat16 autocast.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[[torch.device], dict[str, Tensor]]
    autocast: bool

    @property
    def compute(self) -> str:
        """What it is computed in, in words."""
        return "bfloat16 autocast" if self.autocast else "as stored"


def llama(shape: Mapping[str, Any]) -> nn.Module:
    """Make a Llama of transformers' configuration in bfloat16, whose output is the last token's logits."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    made = AutoModelForCausalLM.from_config(LlamaConfig(**shape), dtype=torch.bfloat16)
    return LastToken(made)


def clip(architecture: str | Mapping[str, Any], classes: int = CLASSES) -> nn.Module:
    """Make an open_clip model's image tower under a random head.

    Args:
        architecture: of open_clip; or the arguments of ``open_clip.CLIP``.
    """
    import open_clip

    named = open_clip.get_model_config(architecture) if isinstance(architecture, str) else architecture
    config = dict(named)
    # The text tower is no part of it.
    config["text_cfg"] = {**config["text_cfg"], "layers": 1}
    made = open_clip.CLIP(**config)
    return ZeroShotClassifier(made, torch.randn(config["embed_dim"], classes))


def tokens(lengths: Sequence[int], vocabulary: int, device: torch.device) -> dict[str, Tensor]:
    """Return one context of each length."""
    generator = torch.Generator(device).manual_seed(0)
    return {
        f"{length} token{'s' if length > 1 else ''}": torch.randint(
            vocabulary, (1, length), device=device, generator=generator
        )
        for length in lengths
    }


def noise(shape: tuple[int, ...], device: torch.device) -> dict[str, Tensor]:
    """Return a batch of noise."""
    return {"": torch.randn(shape, device=device, generator=torch.Generator(device).manual_seed(0))}


MODELS = {
    "LLaMa-3-8B": Model(
        partial(llama, LLAMA_3_8B), partial(tokens, (1, 64), int(str(LLAMA_3_8B["vocab_size"]))), False
    ),
    "ViT-L/16": Model(partial(of_timm, "vit_large_patch16_224"), partial(noise, (64, 3, 224, 224)), True),
    "CLIP-ViT-g/14": Model(partial(clip, "ViT-g-14"), partial(noise, (32, 3, 224, 224)), True),
}


@dataclass(frozen=True)
class Small:
    """A small network.

    Args:
        make: with random weights. inputs: device → a batch. members: how many.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[[torch.device], dict[str, Tensor]]
    members: int


def digits_vit(width: int, depth: int) -> nn.Module:
    """Make a Vision Transformer of digits."""
    return digits.network(digits.DigitsNetwork(4, width, depth, 4, 2.0, 0.02), 10, 0)


SMALL = {
    "digits ViT, width 64": Small(partial(digits_vit, 64, 2), partial(noise, (64, 1, 8, 8)), 20),
    "ViT-T/16": Small(partial(of_timm, "vit_tiny_patch16_224"), partial(noise, (8, 3, 224, 224)), 20),
}


@torch.no_grad()
def model_rows(timer: Timer, name: str, model: Model, members: int = MEMBERS) -> list[dict[str, object]]:
    """Measure a model every way: a row each, for each case of its inputs."""
    device = timer.device
    net = made_on(device, model.make)
    of_cases = model.inputs(device)
    rows: list[dict[str, object]] = []
    ensemble = lpe.LowPrecisionEnsemble(net, lpe.Int(BITS), members)
    weights = sum(planned.numel for planned in ensemble.plan if planned.quantised)
    plain: dict[str, float] = {}
    for what in WAYS:
        why = ""
        making: float | None = None
        of_case: dict[str, tuple[float, int | None]] = {}
        _reset_peak(device)
        try:
            with _blocks(what):
                run, making = _way(what, timer, net, ensemble, model)
                for case, inputs in of_cases.items():
                    of_case[case] = _median(timer, partial(run, inputs)), _peak(device)
            del run
        except (InputError, RuntimeError) as error:  # memory, or a kernel that does not run there
            why = str(error).strip().partition("\n")[0]
        _give_back(device)
        for case, inputs in of_cases.items():
            taken_s, peak = of_case.get(case, (None, None))
            each = None if taken_s is None else 1000 * taken_s / len(inputs)
            if what == PLAIN and each is not None:
                plain[case] = each
            rows.append(
                {
                    "what": what,
                    "model": f"{name}, {case}" if case else name,
                    "compute": model.compute,
                    "weights": weights,
                    "members": members,
                    "examples": len(inputs),
                    "repeats": min(timer.repeats, REPEATS),
                    "making_seconds": making,
                    "ms_an_example": each,
                    "times_plain": None if each is None or case not in plain else each / plain[case],
                    "peak_bytes": peak,
                    "why": "" if each is not None else why,
                }
            )
    return rows


@contextmanager
def _blocks(what: str) -> Iterator[None]:
    """Set the size of the blocks in which members are drawn."""
    kept = on_the_fly.BLOCK_BYTES
    on_the_fly.BLOCK_BYTES = kept if what == IN_SMALL_BLOCKS else BLOCK_BYTES
    try:
        yield
    finally:
        on_the_fly.BLOCK_BYTES = kept


def _median(timer: Timer, job: Callable[[], object]) -> float:
    """Return median seconds of a job, after a call that compiles; of a slow one that call's."""
    first = timer.seconds(job, 1, own_clock=False)
    timer.first_calls += first
    if first > SLOW_SECONDS:
        return first
    return statistics.median(timer.seconds(job, 1) for _ in range(min(timer.repeats, REPEATS)))


def _way(
    what: str, timer: Timer, net: nn.Module, ensemble: lpe.LowPrecisionEnsemble, model: Model
) -> tuple[Callable[[Tensor], object], float | None]:
    """Return a way's pass over all members, and the seconds that making a member takes it."""
    kind = timer.device.type
    members = len(ensemble)

    def cast() -> AbstractContextManager[object]:
        return torch.autocast(kind, torch.bfloat16) if model.autocast else nullcontext()

    def plain(inputs: Tensor) -> None:
        for _ in range(members):
            with cast():
                apply(net, inputs)

    def each(inputs: Tensor) -> None:
        for index in range(members):
            made = ensemble.member(index)
            with cast():
                apply(made, inputs)
            del made

    def in_turn(inputs: Tensor) -> None:
        labels = torch.zeros(len(inputs), dtype=torch.int64, device=inputs.device)
        options = EvaluationOptions(autocast=model.autocast)
        lpe.evaluate(ensemble, [(inputs, labels)], members="one-by-one", options=options)

    if what == PLAIN:
        return plain, None
    if what == EACH:
        ensemble.member(0)  # what is compiled, and the plan
        return each, timer.seconds(lambda: ensemble.member(0), 1)
    if what == IN_TURN:
        turn = ensemble.in_turn()
        next(turn)
        making = timer.seconds(lambda: next(turn), 1) if members > 1 else None
        turn.close()  # type: ignore[attr-defined]
        return in_turn, making
    if what in (DRAWN, IN_SMALL_BLOCKS):
        module = ensemble.as_module()
        making = None
    else:
        timer.wait()
        started = time.perf_counter()
        module = ensemble.as_module(storage="planes")
        timer.wait()
        making = (time.perf_counter() - started) / members

    def together(inputs: Tensor) -> None:
        with cast():
            module(inputs)

    return together, making


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> int | None:
    """Return the most bytes since the reset; None of a CPU, where nobody counts them."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def _give_back(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


@torch.no_grad()
def side_rows(timer: Timer, name: str, small: Small) -> list[dict[str, object]]:
    """Measure a small network's members side by side: a row each way."""
    device = timer.device
    net = made_on(device, small.make)
    ensemble = lpe.LowPrecisionEnsemble(net, lpe.Int(BITS), small.members)
    nets = list(ensemble)
    (inputs,) = small.inputs(device).values()
    states = [dict(member.named_parameters()) | dict(member.named_buffers()) for member in nets]
    stacked = {key: torch.stack([state[key] for state in states]) for key in states[0]}
    on_cuda = device.type == "cuda"
    streams = [torch.cuda.Stream(device) for _ in nets] if on_cuda else []
    module = ensemble.as_module()

    def one_by_one() -> None:
        for member in nets:
            member(inputs)

    def on_streams() -> None:
        current = torch.cuda.current_stream(device)
        for member, stream in zip(nets, streams, strict=True):
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                member(inputs)
        for stream in streams:
            current.wait_stream(stream)

    def logits_of(state: dict[str, Tensor], given: Tensor) -> Tensor:
        logits: Tensor = torch.func.functional_call(net, state, (given,))
        return logits

    def vmapped() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of operations that vmap has no rule for: the time says it
            torch.vmap(logits_of, in_dims=(0, None))(stacked, inputs)

    ways: list[tuple[str, str, Callable[[], object]]] = [
        (ONE_BY_ONE, LAUNCHED, one_by_one),
        (VMAP, LAUNCHED, vmapped),
        (TOGETHER, LAUNCHED, lambda: module(inputs)),
    ]
    if on_cuda:
        ways += [(ONE_BY_ONE, GRAPH, one_by_one), (STREAMS, GRAPH, on_streams), (VMAP, GRAPH, vmapped)]
    rows: list[dict[str, object]] = []
    base: float | None = None
    for what, run, job in ways:
        taken: float | None = None
        why = ""
        try:
            taken = timer.medians({what: job}, graph=run == GRAPH)[what]
        except (InputError, RuntimeError) as error:  # an operation that has no rule for vmap, or no graph
            why = str(error).strip().partition("\n")[0]
        base = taken if base is None else base
        rows.append(
            {
                "what": what,
                "network": name,
                "run": run,
                "members": small.members,
                "examples": len(inputs),
                "repeats": timer.repeats,
                "median_seconds": taken,
                "times_one_by_one": None if taken is None or base is None else taken / base,
                "why": why,
            }
        )
    return rows


def measure(
    timer: Timer,
    folder: Path,
    models: Mapping[str, Model] = MODELS,
    small: Mapping[str, Small] = SMALL,
    members: int = MEMBERS,
) -> None:
    """Measure, and write ``gpu_models.csv`` and ``gpu_side_by_side.csv``."""
    for_models: list[dict[str, object]] = []
    write_table(for_models, folder / MODEL_FILE, MODEL_COLUMNS)
    for name, model in models.items():
        try:
            for_models += model_rows(timer, name, model, members)
        except (ImportError, torch.OutOfMemoryError) as error:
            print(f"left out: {name} ({str(error).partition(chr(10))[0]})")
        _give_back(timer.device)
        write_table(for_models, folder / MODEL_FILE, MODEL_COLUMNS)
    of_small: list[dict[str, object]] = []
    write_table(of_small, folder / SIDE_FILE, SIDE_COLUMNS)
    for name, each in small.items():
        try:
            of_small += side_rows(timer, name, each)
        except ImportError as error:
            print(f"left out: {name} ({error})")
        _give_back(timer.device)
        write_table(of_small, folder / SIDE_FILE, SIDE_COLUMNS)


def tables(folder: Path) -> list[str]:
    """Return the tables, from the files alone."""
    made = []
    for model, rows in pd.read_csv(folder / MODEL_FILE).groupby("model", sort=False):
        cells = [
            (
                str(row["what"]),
                _number(row["ms_an_example"]),
                _number(row["times_plain"]),
                _number(1000 * row["making_seconds"]),
                _number(row["peak_bytes"] / 1e9),
                "" if pd.isna(row["why"]) else str(row["why"]),
            )
            for _, row in rows.iterrows()
        ]
        first = rows.iloc[0]
        title = (
            f"{model}, {first['weights']:,} rounded weights, {first['compute']}: {first['members']} members, "
            f"{first['examples']} examples"
        )
        header = ("what", "ms an example", "times plain", "a member's making, ms", "peak, GB", "")
        made.append(text_table(title, header, cells))
    for network, rows in pd.read_csv(folder / SIDE_FILE).groupby("network", sort=False):
        of_network = [
            (
                str(row["what"]),
                str(row["run"]),
                _number(1000 * row["median_seconds"]),
                _number(row["times_one_by_one"]),
                "" if pd.isna(row["why"]) else str(row["why"]),
            )
            for _, row in rows.iterrows()
        ]
        title = (
            f"{network}: {rows['members'].iloc[0]} members side by side, {rows['examples'].iloc[0]} examples"
        )
        made.append(text_table(title, ("what", "run", "ms", "times one by one", ""), of_network))
    return made


def _number(value: float) -> str:
    return "–" if pd.isna(value) else f"{value:.4g}"
