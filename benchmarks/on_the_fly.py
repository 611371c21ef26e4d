"""Members at once: a layer that draws its weights itself, and members together or one by one.

    python -m benchmarks.on_the_fly
    python -m benchmarks.on_the_fly --planes          (the layer from bit planes alone: a minute)

Costs about eight minutes of one core. Times are CPU seconds of one thread, which other processes stretch less
than wall time; each is the median of REPEATS, the ways of doing the same taken in turn. The layer is a Linear
of random weights, of M INT-5 members, on some positions (rows of inputs) a member; its weight is stored as
float32 or as INT-8 codes.

    resident      M members that are there already, a product each: what no construction would cost
    dequantise    each member made from the stored weight, then its product
    on the fly    ``as_module()``, with blocks of all members' values of two sizes

The layer from bit planes: one of 4096 × 4096 weights and ten INT-5 members, as ``as_module()`` draws it in
each pass and as ``as_module(storage="planes")`` has it, beside one float32 product and ten that are stored.

Whole networks: ``lpe.evaluate`` with ``members="one-by-one"`` and ``members="together"``, on one batch, with
making and checking included. From the ratios comes the rule of ``evaluate``'s ``members="auto"``
(``lpe.evaluation.loops.runs_together``), whose choice stands in the table.

It writes on_the_fly_layer.csv, on_the_fly_evaluate.csv and on_the_fly_planes.csv into benchmarks/results, and
prints them.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

import lpe
from benchmarks.command import conditions, one_line_of_bad_input, parser, write_results
from lpe.ensembles import on_the_fly
from lpe.ensembles.base import text_table
from lpe.evaluation.loops import runs_together
from lpe.evaluation.predict import evaluate
from lpe.interruption import answered
from lpe.provenance import write_provenance
from lpe.records import write_table
from lpe.substrates import digits
from lpe.substrates.stories import LastToken
from lpe.writing import check_writable

BITS = 5
REPEATS = 3
THREADS = 1
CLASSES = 10

SHAPES = ((1536, 384), (2048, 2048))
"""Outputs and inputs of the layer: of ViT-S/16's MLP, and of a language model's."""
MEMBERS = (1, 20)
POSITIONS = (1, 8, 64)
BLOCKS = (1 << 19, 1 << 22)
"""Bytes of a block: the L2 cache of the machine that the committed table is of, and what is used."""

PLANES_SHAPE = (4096, 4096)
PLANES_MEMBERS = 10

BATCHES = (1, 4)
SEVERAL_BATCHES, REPEATED = 1e8, 1e9
"""Most weights × examples × members to time several batches of, and to repeat: more takes too long."""

TOKENS = 64

Data = list[tuple[Tensor, Tensor]]


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """Make a model with weights from a seed, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return make().eval()


def vision_transformer(name: str) -> nn.Module:
    """Make a network of timm's."""
    import timm

    made: nn.Module = timm.create_model(name, num_classes=CLASSES)
    return made


def language_model() -> nn.Module:
    """Make a Llama of stories260k's shape, whose output is the logits of the token after the last."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LastToken(
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=512,
                hidden_size=64,
                intermediate_size=172,
                num_hidden_layers=5,
                num_attention_heads=8,
                num_key_value_heads=4,
            )
        )
    )


def images(side: int, channels: int) -> Callable[[int], Tensor]:
    """Return a function: number of examples → noise [examples, channels, side, side]."""
    return lambda examples: torch.randn(examples, channels, side, side)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor], tuple[int, ...]]] = {
    "digits ViT, width 64": (
        lambda: digits.network(digits.DigitsNetwork(4, 64, 2, 4, 2.0, 0.02), CLASSES, 0),
        images(8, 1),
        (1, 8, 64),
    ),
    "digits ViT, width 192": (
        lambda: digits.network(digits.DigitsNetwork(4, 192, 3, 4, 2.0, 0.02), CLASSES, 0),
        images(8, 1),
        (1, 8, 64),
    ),
    f"Llama of stories260k's shape, {TOKENS} tokens": (
        language_model,
        lambda examples: torch.randint(512, (examples, TOKENS)),
        (1, 8, 64),
    ),
    "ResNet-18, 32×32 pixels": (lambda: vision_transformer("resnet18"), images(32, 3), (1, 8)),
    "ViT-T/16": (lambda: vision_transformer("vit_tiny_patch16_224"), images(224, 3), (1,)),
    "ViT-S/16": (lambda: vision_transformer("vit_small_patch16_224"), images(224, 3), (1,)),
}
"""Networks by name: how each is made, its inputs, and the batch sizes."""

ENSEMBLES = (5, 10, 20)


def medians(ways: Sequence[Callable[[], object]], repeats: int = REPEATS) -> list[float]:
    """Time each way in CPU seconds: the median of ``repeats`` after one for warmth."""
    seconds: list[list[float]] = [[] for _ in ways]
    for turn in range(repeats + 1):
        for way, spent in zip(ways, seconds, strict=True):
            started = time.process_time()
            way()
            if turn:
                spent.append(time.process_time() - started)
    return [statistics.median(spent) for spent in seconds]


def ensembles(net: nn.Module, size: int, folder: Path) -> dict[str, lpe.LowPrecisionEnsemble]:
    """Make ensembles by what is stored of the weights: float32, the model's own, or INT-8 codes."""
    ensemble = lpe.LowPrecisionEnsemble(net, lpe.Int(BITS), size)
    lpe.save(ensemble, folder / "seeded", kind="seeded")
    packed = lpe.load(folder / "seeded", net)
    assert isinstance(packed, lpe.LowPrecisionEnsemble)
    return {"float32": ensemble, "int8": packed}


@torch.no_grad()
def layer_rows() -> list[dict[str, object]]:
    """Measure the layer: its table."""
    rows: list[dict[str, object]] = []
    for outputs, inputs in SHAPES:
        net = seeded(partial(nn.Linear, inputs, outputs))
        for size in MEMBERS:
            with tempfile.TemporaryDirectory() as folder:
                of_stored = ensembles(net, size, Path(folder))
            for stored, ensemble in of_stored.items():
                resident = list(ensemble)
                module = ensemble.as_module()
                for positions in POSITIONS:
                    x = torch.randn(positions, inputs)
                    ways: list[Callable[[], object]] = [
                        partial(_run, resident, x),
                        partial(_run_in_turn, ensemble, x),
                        *(partial(_run_in_blocks, module, x, block) for block in BLOCKS),
                    ]
                    module(x)
                    there, dequantise, *on_the_fly_seconds = medians(ways)
                    rows.append(
                        {
                            "outputs": outputs,
                            "inputs": inputs,
                            "stored": stored,
                            "members": size,
                            "positions": positions,
                            "resident_ms": 1000 * there,
                            "dequantise_ms": 1000 * dequantise,
                            **{
                                f"on_the_fly_{block >> 10}kib_ms": 1000 * spent
                                for block, spent in zip(BLOCKS, on_the_fly_seconds, strict=True)
                            },
                        }
                    )
    return rows


@torch.no_grad()
def planes_rows() -> list[dict[str, object]]:
    """Measure the layer from bit planes: its table."""
    outputs, inputs = PLANES_SHAPE
    net = seeded(partial(nn.Linear, inputs, outputs))
    ensemble = lpe.LowPrecisionEnsemble(net, lpe.Int(BITS), PLANES_MEMBERS)
    resident = list(ensemble)
    drawn = ensemble.as_module()
    planes = on_the_fly.planes_of(ensemble)
    read = on_the_fly.AllMembers(ensemble, planes=planes)
    rows: list[dict[str, object]] = []
    for positions in POSITIONS:
        x = torch.randn(positions, inputs)
        for module in (drawn, read):
            module(x)
        one, there, generator, bit_planes = medians(
            [partial(net, x), partial(_run, resident, x), partial(drawn, x), partial(read, x)]
        )
        rows.append(
            {
                "outputs": outputs,
                "inputs": inputs,
                "members": PLANES_MEMBERS,
                "positions": positions,
                "one_product_ms": 1000 * one,
                "resident_ms": 1000 * there,
                "generator_ms": 1000 * generator,
                "planes_ms": 1000 * bit_planes,
                "resident_bytes": 4 * outputs * inputs * PLANES_MEMBERS,
                "planes_bytes": sum(each.memory_bytes for each in planes.values()),
            }
        )
    return rows


def _run(nets: Iterable[nn.Module], inputs: Tensor) -> None:
    for net in nets:
        net(inputs)


def _run_in_turn(ensemble: lpe.LowPrecisionEnsemble, inputs: Tensor) -> None:
    _run(ensemble.in_turn(), inputs)


def _run_in_blocks(module: nn.Module, inputs: Tensor, block: int) -> None:
    kept = on_the_fly.BLOCK_BYTES
    on_the_fly.BLOCK_BYTES = block
    try:
        module(inputs)
    finally:
        on_the_fly.BLOCK_BYTES = kept


def evaluate_rows() -> list[dict[str, object]]:
    """Measure whole networks: their table."""
    rows: list[dict[str, object]] = []
    for name, (make, inputs, examples) in NETWORKS.items():
        net = seeded(make)
        for size in ENSEMBLES:
            ensemble = lpe.LowPrecisionEnsemble(net, lpe.Int(BITS), size)
            weights = sum(planned.numel for planned in ensemble.plan if planned.quantised)
            for count in examples:
                x = inputs(count)
                for batches in BATCHES:
                    data: Data = [(x, torch.zeros(count, dtype=torch.int64))] * batches
                    work = weights * count * size
                    if work > SEVERAL_BATCHES and batches > 1:
                        continue
                    one_by_one, together = medians(
                        [
                            partial(evaluate, ensemble, data, members="one-by-one"),
                            partial(evaluate, ensemble, data, members="together"),
                        ],
                        1 if work > REPEATED else REPEATS,
                    )
                    rows.append(
                        {
                            "network": name,
                            "weights": weights,
                            "members": size,
                            "examples": count,
                            "batches": batches,
                            "one_by_one_ms": 1000 * one_by_one,
                            "together_ms": 1000 * together,
                            "auto": "together" if runs_together(ensemble, x) else "one-by-one",
                        }
                    )
                    print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return rows


def table_text(folder: Path) -> str:
    """Return both tables with their conditions, from the files alone."""
    layer = pd.read_csv(folder / "on_the_fly_layer.csv")
    blocks = [column for column in layer.columns if column.startswith("on_the_fly")]
    rows = [
        (
            f"{row['outputs']}×{row['inputs']}",
            row["stored"],
            str(row["members"]),
            str(row["positions"]),
            f"{row['resident_ms']:.2f}",
            f"{row['dequantise_ms']:.2f}",
            *(f"{row[block] / row['dequantise_ms']:.2f}" for block in blocks),
        )
        for row in layer.to_dict("records")
    ]
    sizes = [block.removeprefix("on_the_fly_").removesuffix("kib_ms") + " KiB" for block in blocks]
    header = ("weight", "stored", "members", "positions", "resident ms", "dequantise ms", *sizes)
    title = f"A Linear of INT-{BITS} members: CPU ms, and on the fly over dequantise by the size of blocks"
    footer = conditions(folder / "on_the_fly.json")
    of_layer = text_table(title, header, rows, footer)

    of_planes = planes_text(folder)
    whole = pd.read_csv(folder / "on_the_fly_evaluate.csv")
    rows = [
        (
            row["network"],
            f"{row['weights']:,}",
            str(row["members"]),
            str(row["examples"]),
            str(row["batches"]),
            f"{row['one_by_one_ms']:.1f}",
            f"{row['together_ms'] / row['one_by_one_ms']:.2f}",
            row["auto"],
        )
        for row in whole.to_dict("records")
    ]
    header = ("network", "weights", "members", "examples", "batches", "one by one ms", "together", "auto")
    title = "lpe.evaluate: CPU ms with members one by one, and together over that"
    return f"{of_layer}\n\n{of_planes}\n\n{text_table(title, header, rows, footer)}"


def planes_text(folder: Path) -> str:
    """Return the table of the layer from bit planes with its conditions, from the files alone."""
    table = pd.read_csv(folder / "on_the_fly_planes.csv")
    rows = [
        (
            f"{row['outputs']}×{row['inputs']}",
            str(row["members"]),
            str(row["positions"]),
            f"{row['one_product_ms']:.2f}",
            *(
                f"{row[way] / row['one_product_ms']:.1f}"
                for way in ("resident_ms", "generator_ms", "planes_ms")
            ),
            f"{row['resident_bytes'] / row['planes_bytes']:.1f}",
        )
        for row in table.to_dict("records")
    ]
    header = (
        "weight",
        "members",
        "positions",
        "one product ms",
        "resident",
        "drawn in the pass",
        "bit planes",
        "memory, resident / planes",
    )
    title = f"A Linear of INT-{BITS} members from bit planes: CPU ms, and members over one product"
    return text_table(title, header, rows, conditions(folder / "on_the_fly_planes.json"))


@one_line_of_bad_input
def main(arguments: Sequence[str]) -> int:
    """Measure, write, print; 2 after one line about bad input."""
    options = parser("on_the_fly", __doc__)
    options.add_argument("--planes", action="store_true", help="the layer from bit planes alone")
    asked = options.parse_args(arguments)
    torch.set_num_threads(THREADS)
    check_writable(asked.out)
    config = {"bits": BITS, "repeats": REPEATS, "clock": "CPU time of the process"}
    started = time.time()
    rows = planes_rows()
    write_table(rows, asked.out / "on_the_fly_planes.csv", list(rows[0]))
    command = ["benchmarks/on_the_fly.py", "--planes"]
    write_provenance(asked.out / "on_the_fly_planes.json", command, config, "cpu", [0], THREADS, started)
    if asked.planes:
        print(planes_text(asked.out))
        return 0
    started = time.time()
    tables = {"on_the_fly_layer": layer_rows(), "on_the_fly_evaluate": evaluate_rows()}
    write_results(asked.out, "on_the_fly", tables, None, config, started)
    print(table_text(asked.out))
    return 0


if __name__ == "__main__":
    sys.exit(answered(lambda: main(sys.argv[1:]), "interrupted"))
