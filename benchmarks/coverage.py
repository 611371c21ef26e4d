"""How much of a network is rounded, what is left and why: by family of timm, transformers and torchvision.

    python -m benchmarks.coverage

Costs about three minutes of one core of an AMD EPYC and little memory: networks are built without values
(PyTorch's meta device), for the rules look at shapes, kinds and names alone. A row a network: one of each
family of timm (the first by name), the architectures of transformers that are listed below in their default
size, every classifier of torchvision. Weights are the stored parameters of two or more dimensions. What is
left is named by reason, with its share of the weights, and by its largest tensor.

It should print that two of transformers' have more than 5 % of which no rule knows the output dimension
(XLNet and Funnel, which keep projections [in, heads, out a head]); ``output_axis=`` rounds them too.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from benchmarks.command import conditions, one_line_of_bad_input, parser, write_results
from lpe.ensembles.base import text_table
from lpe.ensembles.selection import COVERED, Coverage, PlannedTensor, select_tensors
from lpe.interruption import answered
from lpe.number_systems.grids import FullPrecision
from lpe.writing import check_writable

TRANSFORMERS = (
    # Encoders, decoders and both.
    *("bert", "roberta", "albert", "electra", "deberta-v2", "mobilebert", "funnel", "xlnet"),
    *("gpt2", "gpt_neox", "opt", "bloom", "falcon", "llama", "gemma2", "phi3", "qwen3"),
    *("t5", "bart", "whisper"),
    # Mixtures of experts, in every layout of their weights.
    *("mixtral", "qwen3_moe", "gpt_oss", "llama4_text", "granitemoe", "jetmoe", "olmoe", "deepseek_v3"),
    # State spaces and other recurrences.
    *("mamba", "falcon_mamba", "mamba2", "jamba", "recurrent_gemma", "rwkv"),
    # Images.
    *("vit", "swin", "convnext", "dinov2", "clip", "siglip"),
)
"""Names of architectures, as transformers has them."""

COLUMNS = ("library", "family", "network", "weights", "rounded", "share", "left", "largest_left")
NO_RULE = "no rule"
"""Beginning of the reason of a tensor whose output dimension no rule knows."""


def timm_networks() -> Iterator[tuple[str, str, nn.Module]]:
    """Yield (family, network, module): of each file of timm's models the first that it registers, by name."""
    import timm

    families: dict[str, list[str]] = defaultdict(list)
    for name in timm.list_models():
        families[timm.models.model_entrypoint(name).__module__.rpartition(".")[2]].append(name)
    for family, names in sorted(families.items()):
        yield family, names[0], timm.create_model(names[0])


def transformers_networks() -> Iterator[tuple[str, str, nn.Module]]:
    """Yield (family, network, module): an architecture's model with a head, in its default size."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    transformers.logging.set_verbosity_error()
    heads = (
        transformers.AutoModelForCausalLM,
        transformers.AutoModelForSequenceClassification,
        transformers.AutoModelForImageClassification,
        transformers.AutoModel,
    )
    for family in TRANSFORMERS:
        config = CONFIG_MAPPING[family]()
        head = next(head for head in heads if type(config) in head._model_mapping)
        net = head.from_config(config)
        yield family, type(net).__name__, net


def torchvision_networks() -> Iterator[tuple[str, str, nn.Module]]:
    """Yield (family, network, module): every classifier."""
    import torchvision

    for name in torchvision.models.list_models(module=torchvision.models):
        build = torchvision.models.get_model_builder(name)
        # Initial values of two are drawn by scipy, for a minute; RegNets compute their widths with tensors.
        settings = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        with torch.device("cpu") if name.startswith("regnet") else nullcontext():
            net = build(weights=None, **settings)
        yield build.__module__.rpartition(".")[2], name, net


LIBRARIES = {
    "timm": timm_networks,
    "transformers": transformers_networks,
    "torchvision": torchvision_networks,
}


def row_of(library: str, family: str, network: str, net: nn.Module) -> dict[str, object]:
    """Return the row of a network: what is rounded and what is left."""
    coverage = Coverage.of(select_tensors(net, FullPrecision()))
    largest = coverage.left[0] if coverage.left else None
    return {
        "library": library,
        "family": family,
        "network": network,
        "weights": coverage.whole,
        "rounded": coverage.rounded,
        "share": round(coverage.share, 5),
        "left": "; ".join(
            f"{reason} {100 * numel / coverage.whole:.2f} %" for reason, numel in by_reason(coverage.left)
        ),
        "largest_left": f"{largest.name} {'×'.join(map(str, largest.shape))}" if largest else "",
    }


def by_reason(left: Sequence[PlannedTensor]) -> list[tuple[str, int]]:
    """List (reason, weights) of what is left, the most first; what a tensor is tied to does not matter."""
    sums: dict[str, int] = defaultdict(int)
    for planned in left:
        sums[planned.reason.partition(";")[0]] += planned.numel
    return sorted(sums.items(), key=lambda pair: -pair[1])


def has_no_rule(row: dict[str, object]) -> bool:
    """Tell whether more than 5 % of the weights are left for want of a rule."""
    parts = [part.rsplit(" ", 2) for part in str(row["left"]).split("; ") if part.startswith(NO_RULE)]
    return sum(float(percent) for _, percent, _ in parts) > 100 * (1 - COVERED)


def measure() -> list[dict[str, object]]:
    """Measure the networks, a row each."""
    rows = []
    for library, networks in LIBRARIES.items():
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows += [row_of(library, *network) for network in networks()]
    return rows


@one_line_of_bad_input
def main(arguments: Sequence[str]) -> int:
    """Measure, write, print; 2 after one line about bad input."""
    asked = parser("coverage", __doc__).parse_args(arguments)
    check_writable(asked.out)
    started = time.time()
    rows = measure()
    versions = {library: __import__(library).__version__ for library in LIBRARIES}
    write_results(asked.out, "coverage", {"coverage": rows}, COLUMNS, {"versions": versions}, started)
    print(table_text(asked.out))
    unknown = [f"{row['library']} {row['network']}" for row in rows if has_no_rule(row)]
    print(f"no rule for more than 5 % of the weights of: {', '.join(unknown) or 'none'}")
    return 0


def table_text(folder: Path) -> str:
    """Return the networks rounded by less than 99.5 %, and how many there are, from the files alone."""
    table = pd.read_csv(folder / "coverage.csv", keep_default_na=False)
    few = table[table["share"] < 0.995].sort_values(["library", "share"])
    rows = [
        (row["library"], row["family"], row["network"], f"{row['weights'] / 1e6:.1f}")
        + (f"{100 * row['share']:.1f}", row["left"])
        for _, row in few.iterrows()
    ]
    counts = ", ".join(f"{len(of)} of {library}" for library, of in table.groupby("library", sort=False))
    title = f"networks ({counts}) of which less than 99.5 % is rounded"
    header = ("library", "family", "network", "M weights", "rounded, %", "left, % of the weights")
    return text_table(title, header, rows, conditions(folder / "coverage.json"))


if __name__ == "__main__":
    sys.exit(answered(lambda: main(sys.argv[1:]), "interrupted"))
