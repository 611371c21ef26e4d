"""The scale ``paper`` without its weights and data: true shapes, random weights, synthetic inputs.

It runs the code that the scale runs (loading apart), on a few batches, and prints what it costs: memory, time
per example, bits per member. Its predictions mean nothing and are written nowhere.

Each model is rehearsed in a process of its own, so that a peak of memory is its own.
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import lpe
from lpe.ensembles.base import Ensemble, text_table
from lpe.errors import InputError
from lpe.evaluation.timing import MemberTimer
from lpe.extras import needs
from lpe.modules import dtype_name, parameter_count, to_device
from lpe.substrates.loading import available_bytes, parameter_bytes
from reproduce.scales.paper.models import PaperModel
from reproduce.study.run import device_of

MEMBERS = 2
BATCHES = 2
BATCH = 4
CLASSES, TEMPLATES = 20, 3
"""Class names and templates of the zero-shot head: all of them are 80,000 texts, hours of a CPU."""
QUESTIONS = 4
HEADROOM = 0.75
"""Share of the free memory that a model cut to fit may take with a member; activations have the rest."""
SEED = 0

HEADER = (
    "model",
    "parameters",
    "rounded",
    "dtype",
    "unrounded (MB)",
    "shared (MB)",
    "a member (MB)",
    "bits a rounded weight",
    "make a member (s)",
    "ms an example, whole",
    "ms an example, a member",
    "peak (MB)",
    "device",
)


@dataclass(frozen=True)
class Rehearsed:
    """The cost of a model's rehearsal: a row of the table, and what is to be said of it."""

    cells: tuple[str, ...]
    note: str


def peak_bytes(where: torch.device) -> int:
    """Return the most memory that this process has had: of the GPU, or resident."""
    if where.type == "cuda":
        return torch.cuda.max_memory_allocated(where)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def rehearse(models: Mapping[str, PaperModel], bits: int) -> None:
    """Rehearse models, each in a fresh process, and print a row of each.

    Raises:
        InputError: a model does not fit into memory.
    """
    rows, notes = [], []
    for name, model in models.items():
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            done = pool.submit(rehearsed, name, model, bits).result()
        rows.append(done.cells)
        notes.append(f"{name}: {done.note}")
        print(f"rehearsed {name} ({model.source})", flush=True)
    title = f"scale paper, rehearsed with random weights: INT-{bits}, {MEMBERS} members"
    print(text_table(title, HEADER, rows, "\n".join(notes)))


def rehearsed(name: str, model: PaperModel, bits: int) -> Rehearsed:
    """Rehearse one model in this process."""
    kind, _, tag = model.source.partition("/")
    torch.manual_seed(SEED)
    if kind == "timm":
        return _images(name, *_vision_transformer(tag), bits)
    if kind == "open_clip":
        return _images(name, *_clip(tag), bits)
    return _language(name, model, bits)


def _vision_transformer(tag: str) -> tuple[nn.Module, tuple[int, ...], int, str]:
    from lpe.substrates import imagenet

    net = imagenet.random_model(tag)
    shape = tuple(imagenet.data_config(net)["input_size"])
    return net, shape, 1000, f"{BATCHES * BATCH} images of {list(shape)}"


def _clip(tag: str) -> tuple[nn.Module, tuple[int, ...], int, str]:
    needs("open_clip", "PIL")

    import open_clip
    from PIL import Image

    from lpe.substrates import clip

    loaded = clip.random_model(tag)
    names = open_clip.IMAGENET_CLASSNAMES[:CLASSES]
    templates = open_clip.OPENAI_IMAGENET_TEMPLATES[:TEMPLATES]
    started = time.perf_counter()
    head = clip.zero_shot_head(loaded.model, loaded.tokenizer, names, templates)
    seconds = time.perf_counter() - started
    texts = CLASSES * TEMPLATES
    text_tower = sum(parameter.numel() for parameter in loaded.model.parameters())
    net = clip.ZeroShotClassifier(loaded.model, head)
    text_tower -= sum(parameter.numel() for parameter in net.parameters())
    shape = tuple(loaded.preprocess(Image.new("RGB", (8, 8))).shape)
    note = (
        f"{BATCHES * BATCH} images of {list(shape)}; text tower of {_millions(text_tower)} at full "
        f"precision, {1000 * seconds / texts:.0f} ms a text ({texts} texts of 80,000)"
    )
    return net, shape, CLASSES, note


def _images(
    name: str, net: nn.Module, shape: tuple[int, ...], classes: int, note: str, bits: int
) -> Rehearsed:
    where = torch.device(device_of("auto"))
    net = net.eval().to(where)
    draws = torch.Generator().manual_seed(SEED)
    batches = [
        (
            to_device(torch.randn(BATCH, *shape, generator=draws), where),
            torch.randint(classes, (BATCH,), generator=draws),
        )
        for _ in range(BATCHES)
    ]

    def run(ensemble: Ensemble, timer: MemberTimer) -> None:
        lpe.evaluate(ensemble, batches, timer=timer)

    return _row(name, net, bits, run, BATCHES * BATCH, note)


def _language(name: str, model: PaperModel, bits: int) -> Rehearsed:
    from lpe.substrates import arithmetic, language

    where = torch.device(device_of("auto"))
    net, layers, of = cut_llama(dict(model.shape), available_bytes(where), where)
    tokenizer = arithmetic.tokenizer()

    def run(ensemble: Ensemble, timer: MemberTimer) -> None:
        language.evaluate(
            ensemble,
            tokenizer,
            [arithmetic.TASK],
            include_path=str(arithmetic.TASKS),
            limit=QUESTIONS,
            timer=timer,
        )

    note = (
        f"{layers} of {of} layers, as many as fit with one member, in bfloat16; {QUESTIONS} questions of a "
        "local task through lm-eval"
    )
    return _row(name, net, bits, run, QUESTIONS, note)


def cut_llama(shape: dict[str, Any], memory_bytes: int, where: torch.device) -> tuple[nn.Module, int, int]:
    """Make a Llama of this shape in bfloat16 with random weights, of as many layers as fit.

    Args:
        shape: transformers' configuration. memory_bytes: for the weights and one member's. where: the device
            on which it is made: on a GPU 8 G weights are drawn in seconds, and the CPU's memory is not asked.

    Returns:
        The model, its layers, and the layers of the whole.

    Raises:
        InputError: not even one layer fits.
    """
    needs("transformers")

    from transformers import AutoModelForCausalLM, LlamaConfig

    def weights(layers: int) -> int:
        config = LlamaConfig(**{**shape, "num_hidden_layers": layers})
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(config)
        return sum(parameter.numel() for parameter in empty.parameters())

    whole = int(shape["num_hidden_layers"])
    one = weights(1)
    each = weights(2) - one
    # Base and member, two bytes a weight each.
    affordable = int(HEADROOM * memory_bytes / 4)
    layers = min(whole, 1 + (affordable - one) // each) if affordable >= one else 0
    if layers < 1:
        raise InputError(
            f"one layer of it takes {4 * one / 2**30:.1f} GiB with a member; "
            f"{HEADROOM * memory_bytes / 2**30:.1f} GiB of memory can be used: take a larger machine"
        )
    config = LlamaConfig(**{**shape, "num_hidden_layers": layers})
    with where:
        made = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return made.eval(), layers, whole


class _TimedEnsemble(lpe.LowPrecisionEnsemble):
    """An ensemble that keeps how long its members took to make, as an evaluation makes them: in turn."""

    def __init__(self, model: nn.Module, system: lpe.Int, size: int) -> None:
        super().__init__(model, system, size)
        self.making = MemberTimer(size)

    def in_turn(self) -> Iterator[nn.Module]:
        """Yield the members in order, each timed."""
        turn = super().in_turn()
        for index in range(self.size):
            # No name for the member: it would live on while the next one is made.
            yield self._timed(turn, index)

    def _timed(self, turn: Iterator[nn.Module], index: int) -> nn.Module:
        with self.making.member(index):
            return next(turn)


def _row(
    name: str,
    net: nn.Module,
    bits: int,
    run: Callable[[Ensemble, MemberTimer], None],
    examples: int,
    note: str,
) -> Rehearsed:
    where = torch.device(device_of("auto"))
    single = MemberTimer(1)
    run(lpe.DeepEnsemble([net]), single)
    ensemble = _TimedEnsemble(net, lpe.Int(bits), MEMBERS)
    ensemble.member(0)  # what compiles kernels is none of a member's time
    timer = MemberTimer(MEMBERS)
    run(ensemble, timer)
    one, two = ensemble.memory_bits(1), ensemble.memory_bits(2)
    member = two - one
    rounded = sum(planned.numel for planned in ensemble.plan if planned.quantised)
    parameters = parameter_count(net)
    made = sum(ensemble.making.seconds) / MEMBERS
    each = sum(timer.seconds) / MEMBERS
    cells = (
        name,
        _millions(parameters),
        _millions(rounded),
        dtype_name(net),
        f"{parameter_bytes(net) / 1e6:.0f}",
        f"{(one - member) / 8e6:.1f}",
        f"{member / 8e6:.1f}",
        f"{member / rounded:.2f}",
        f"{made:.2f}",
        f"{single.milliseconds_per_example(examples)[0]:.0f}",
        # What is left of a member's turn once it is made.
        f"{1000 * max(each - made, 0.0) / examples:.0f}",
        f"{peak_bytes(where) / 1e6:.0f}",
        _device_name(where),
    )
    return Rehearsed(cells, note)


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} M"


def _device_name(where: torch.device) -> str:
    if where.type == "cuda":
        return torch.cuda.get_device_name(where)
    return f"CPU, {torch.get_num_threads()} threads"
