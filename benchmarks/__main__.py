"""The benchmarks: `python -m benchmarks` runs the quick ones and names the others.

python -m benchmarks                 speed, memory, files: about 35 minutes on two cores
python -m benchmarks assets …        one by name, with its own options (the same as benchmarks.assets)
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from lpe.command_line import complain
from lpe.interruption import answered

QUICK = {
    "construction": 2,
    "scaling": 5,
    "packed": 1,
    "evaluation": 9,
    "on_the_fly": 8,
    "layer": 2,
    "memory": 8,
}
"""Minutes that each takes on two cores."""
OTHERS = {
    "regression": "whether a metric of any method moved (three minutes; CI runs it)",
    "assets": "LPE-BSR on pre-trained weights and real data (LPE_ASSETS; over two hours)",
    "coverage": "how much of 98 timm families, 40 of transformers and torchvision is rounded (three minutes)",
    "freed_memory": "what it gains to keep freed memory (five minutes of one core)",
    "compiled": "whether torch.compile pays (seven minutes, and a C++ compiler)",
    "coupling": "coupled against independent members, and members from 8 bits (an hour; LPE_ASSETS: more)",
    "gpu_training": "CIFAR-10 trainings side by side, images a second, their points (a CUDA device; minutes)",
    "gpu_sweep": "which recipes CIFAR-10's trainings have, by validation images (a CUDA device; 9 minutes)",
    "gpu": "bandwidth, and decoding, whole models against plain passes (a CUDA device; 4 minutes)",
    "language": "LPE-BSR on a pre-trained language model through lm-eval (LPE_ASSETS; 8 minutes)",
}


def main(arguments: Sequence[str]) -> int:
    """Run one benchmark by name, or the quick ones; the exit code is the largest of theirs."""
    if arguments and arguments[0] in ("-h", "--help"):
        print(__doc__.strip())
        print("\nquick: " + ", ".join(f"{name} ({minutes} min)" for name, minutes in QUICK.items()))
        _name_others()
        return 0
    if arguments:
        name, *options = arguments
        if name not in (*QUICK, *OTHERS):
            known = ", ".join((*QUICK, *OTHERS))
            complain(f"unknown benchmark {name!r}; there are {known}")
            return 2
        return _run(name, options)
    code = max(_run(name, []) for name in QUICK)
    _name_others()
    return code


def _name_others() -> None:
    print("\nothers:")
    for name, what in OTHERS.items():
        print(f"  python -m benchmarks.{name}  {what}")


def _run(name: str, options: Sequence[str]) -> int:
    code: int = import_module(f"benchmarks.{name}").main(options)
    return code


if __name__ == "__main__":
    sys.exit(answered(lambda: main(sys.argv[1:]), "interrupted"))
