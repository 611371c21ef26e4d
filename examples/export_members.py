"""Members as plain checkpoints, each in a folder, loaded again without lpe.

    python examples/export_members.py OUT                                     a small network that it trains
    python examples/export_members.py OUT --model resnet18 --random-weights   a model of timm
    python examples/export_members.py OUT --model resnet18 --checkpoint mine.safetensors

The first needs the core installation alone and takes 6 s of one CPU core. The others need the extra "timm";
the second takes 16 s. OUT/member_0 … hold model.safetensors, by the names of the module's state_dict(), and
for timm its config.json. It prints how far each network that was loaded is from the member in its logits, and
their mean from the ensemble:

    OUT/member_0  19,520 bytes  logits off by 0.0e+00
    OUT/member_1  19,520 bytes  logits off by 0.0e+00
    OUT/member_2  19,520 bytes  logits off by 0.0e+00
    mean of 3, probabilities off by 1.4e-07

The weights have few values but are stored as float32: a file of lpe.save is the small one. At the command
line `lpe export` does the same, for open_clip and transformers too.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lpe
from lpe.substrates import digits


def network() -> nn.Module:
    """Return the small network, untrained."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def trained() -> tuple[nn.Module, Tensor]:
    """Return the network after a training on scans of digits, and images [360, 1, 8, 8] to predict."""
    data = digits.load(seed=0)
    images, labels = data.train
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    lpe.train(net, list(zip(images.split(50), labels.split(50), strict=True)), optimizer, 0.1, epochs=20)
    return net, data.test[0]


def of_timm(name: str, checkpoint: str | None, pretrained: bool) -> tuple[nn.Module, Tensor]:
    """Return a model of timm, and noise of the shape of its images to predict."""
    if checkpoint is not None and not Path(checkpoint).is_file():
        raise lpe.InputError(f"there is no file {checkpoint}")
    try:
        import timm

        net: Any = timm.create_model(name, pretrained=pretrained, checkpoint_path=checkpoint).eval()
    except Exception as error:  # of as many kinds as timm, the hub and a file have
        reason = str(error) or type(error).__name__
        raise lpe.InputError(f"cannot load {checkpoint or name}: {reason}") from None
    return net, torch.randn(8, *net.pretrained_cfg["input_size"])


def write(member: nn.Module, folder: Path, timm_model: bool) -> None:
    """Write a member's checkpoint to a new folder."""
    if timm_model:
        from timm.models import save_for_hf

        save_for_hf(member, str(folder), safe_serialization=True)
        return
    folder.mkdir(parents=True)
    # A member shares the tensors that it does not own: a file wants memory of each one's own.
    save_file(
        {name: each.clone() for name, each in member.state_dict().items()}, folder / "model.safetensors"
    )


def read(folder: Path, timm_model: bool) -> nn.Module:
    """Return the network of a folder. No line uses lpe: copy them to where it is not installed."""
    if timm_model:
        import timm

        made: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        return made
    net = network()
    net.load_state_dict(load_file(folder / "model.safetensors"))
    return net.eval()


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> None:
    """Write, read and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("output", type=Path, metavar="OUT", help="a folder that is new, or empty")
    parser.add_argument("--model", help="of timm, instead of the small network")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--checkpoint", metavar="FILE", help="the model's weights, instead of the hub's")
    weights.add_argument("--random-weights", action="store_true", help="none")
    parser.add_argument("--system", default="int4", help="a name of lpe systems (%(default)s)")
    parser.add_argument("--size", type=int, default=3, help="members (%(default)s)")
    asked = parser.parse_args(arguments)
    try:
        if asked.output.exists() and not (asked.output.is_dir() and not any(asked.output.iterdir())):
            raise lpe.InputError(f"{asked.output} is there and is not empty; give a folder that is new")
        if (asked.checkpoint or asked.random_weights) and not asked.model:
            raise lpe.InputError("--checkpoint and --random-weights are of a --model")
        system = lpe.number_system(asked.system)
        torch.manual_seed(0)
        if asked.model:
            given = asked.checkpoint or asked.random_weights
            net, images = of_timm(asked.model, asked.checkpoint, pretrained=not given)
        else:
            with torch.enable_grad():
                net, images = trained()
        ensemble = lpe.LowPrecisionEnsemble(net, system, asked.size)
        probabilities = []
        for index, member in enumerate(ensemble):
            folder = asked.output / f"member_{index}"
            write(member, folder, bool(asked.model))
            logits = read(folder, bool(asked.model))(images)
            probabilities.append(logits.softmax(-1))
            size = (folder / "model.safetensors").stat().st_size
            print(f"{folder}  {size:,} bytes  logits off by {(logits - member(images)).abs().max():.1e}")
        off = (torch.stack(probabilities).mean(0) - ensemble.predict(images).exp()).abs().max()
        print(f"mean of {len(ensemble)}, probabilities off by {off:.1e}")
    except lpe.InputError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
