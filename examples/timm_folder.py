"""Low precision ensembles of a model of timm, on a folder of images with a folder per class.

    python examples/timm_folder.py FOLDER --model vit_small_patch16_224.augreg_in21k_ft_in1k
    python examples/timm_folder.py FOLDER --model resnet18 --checkpoint mine.safetensors
    python examples/timm_folder.py FOLDER --model resnet18 --random-weights     a rehearsal without weights

It needs the extra "timm". The images go through one network 22 times: 1 FP32, 1 rounded to nearest (RTN), and
10 members each of LPE-BSR with independent and with coupled rounding. It prints NLL (nats), error, ECE and
memory (MB) of them: 20 s of one CPU core for 50 images of 160 × 160 pixels and the smallest of timm's models,
`--model test_vit --random-weights --limit 50`. Without any weights the numbers say nothing but that it runs:

    int5             size      NLL   error     ECE       MB
    FP32                1   2.3230  0.9000  0.0413    1.228
    RTN                 1   2.3224  0.9000  0.0419    0.243
    LPE-BSR             1   2.3236  0.9000  0.0415    0.243
    LPE-BSR             2   2.3213  0.9000  0.0405    0.427
    LPE-BSR             5   2.3213  0.9000  0.0398    0.982
    LPE-BSR            10   2.3219  0.9000  0.0397    1.905
    LPE-BSR coupled     1   2.3236  0.9000  0.0415    0.243
    LPE-BSR coupled     2   2.3240  0.9000  0.0404    0.427
    LPE-BSR coupled     5   2.3230  0.9000  0.0418    0.982
    LPE-BSR coupled    10   2.3226  0.9000  0.0410    1.905
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset

import lpe


def load(asked: argparse.Namespace) -> tuple[nn.Module, DataLoader[Any]]:
    """Return the model in eval mode, and batches (images, class indices) that it was made to see."""
    try:
        import timm
        from timm.data import ImageDataset, create_transform, resolve_data_config
    except ModuleNotFoundError as error:
        raise lpe.InputError(f"{error}; pip install 'low-precision-ensembling[timm]'") from None

    for path in filter(None, (asked.folder, asked.checkpoint)):
        if not path.exists():
            raise lpe.InputError(f"there is no {path}")
    try:
        images: Any = ImageDataset(str(asked.folder))  # classes in timm's order of the folders' names
    except (OSError, RuntimeError) as error:
        raise lpe.InputError(f"no images in {asked.folder}: {error}") from None
    classes = len(images.reader.class_to_idx)
    if classes < 2:
        raise lpe.InputError(f"{asked.folder} needs a folder of images for each of 2 classes or more")
    given = (
        asked.random_weights or asked.checkpoint is not None
    )  # else the hub's, of as many classes as it has
    try:
        model: Any = timm.create_model(
            asked.model,
            pretrained=not given,
            checkpoint_path=asked.checkpoint,
            **({"num_classes": classes} if given else {}),
        ).eval()
    except Exception as error:  # of as many kinds as timm, the hub and a file have
        reason = str(error) or type(error).__name__
        raise lpe.InputError(f"cannot load {asked.checkpoint or asked.model}: {reason}") from None
    if model.num_classes != classes:
        raise lpe.InputError(
            f"{asked.folder} has {classes} folders of classes and {asked.model} {model.num_classes} classes"
        )
    images.transform = create_transform(**resolve_data_config({}, model=model, use_test_size=True))
    step = max(1, len(images) // asked.limit) if asked.limit else 1  # folder after folder: take from each
    chosen = Subset(images, range(len(images))[::step][: asked.limit])
    return model, DataLoader(chosen, batch_size=asked.batch_size)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="with a folder of images per class")
    parser.add_argument("--model", default="vit_small_patch16_224.augreg_in21k_ft_in1k", help="(%(default)s)")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="weights of yours, instead of the hub's"
    )
    weights.add_argument("--random-weights", action="store_true", help="none")
    parser.add_argument("--system", default="int5", help="a name of lpe systems (%(default)s)")
    parser.add_argument("--size", type=int, default=10, help="members (%(default)s)")
    parser.add_argument("--limit", type=int, metavar="N", help="as many images, spread over the folder")
    parser.add_argument("--batch-size", type=int, default=50, help="(%(default)s)")
    asked = parser.parse_args(arguments)
    try:
        if (asked.limit is not None and asked.limit < 1) or asked.batch_size < 1:
            raise lpe.InputError("--limit and --batch-size must be 1 or more")
        system = lpe.number_system(asked.system)
        torch.manual_seed(0)  # of random weights
        model, batches = load(asked)
        rows = [
            ("FP32", lpe.LowPrecisionEnsemble(model, lpe.FullPrecision(), 1)),
            ("RTN", lpe.LowPrecisionEnsemble(model, system, 1, rounding="nearest")),
            ("LPE-BSR", lpe.LowPrecisionEnsemble(model, system, asked.size)),
            ("LPE-BSR coupled", lpe.LowPrecisionEnsemble(model, system, asked.size, rounding="coupled")),
        ]
        print(f"{system.name:16}{'size':>5}{'NLL':>9}{'error':>8}{'ECE':>8}{'MB':>9}")
        for name, ensemble in rows:
            table = lpe.evaluate(ensemble, batches).set_index("size")
            for n in (each for each in (1, 2, 5, 10) if each <= len(ensemble)):
                row = table.loc[n]
                megabytes = row.memory_bits / 8e6
                print(f"{name:16}{n:5}{row.nll:9.4f}{row.err:8.4f}{row.ece:8.4f}{megabytes:9.3f}")
    except lpe.InputError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
