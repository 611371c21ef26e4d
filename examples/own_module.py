"""Low precision ensemble of a module of one's own: batch norm, a layer that stays as it is, a file of planes.

    python examples/own_module.py
    python examples/own_module.py --bits 4 --size 20 -o members.lpe

It needs the core installation alone, and 25 s of one CPU core. It trains a small network on
scans of digits, lists its tensors, and compares members whose batch-norm statistics are the network's with
members that have statistics of their own. The end of what it prints:

    statistics   size      NLL   error     ECE
    FP32            1   0.0498  0.0139  0.0146
    network's       1   0.0568  0.0194  0.0174
    network's      10   0.0566  0.0194  0.0167
    member's        1   0.0513  0.0194  0.0187
    member's       10   0.0540  0.0167  0.0179

    own_module.lpe: 10 members, 27,152 bytes, predictions the same to the bit: True
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import lpe
from lpe.substrates import digits


class Net(nn.Module):
    """Images [examples, 1, 8, 8] → logits [examples, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(16)
        self.body = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.norm2 = nn.BatchNorm2d(32)
        self.head = nn.Linear(32 * 4 * 4, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        hidden = self.norm1(self.stem(images)).relu()
        logits: Tensor = self.head(self.norm2(self.body(hidden)).relu().flatten(1))
        return logits


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, describe, compare, save and load."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--bits", type=int, default=3, help="2 to 8 (%(default)s)")
    parser.add_argument("--size", type=int, default=10, help="members (%(default)s)")
    parser.add_argument("--epochs", type=int, default=10, help="of training (%(default)s)")
    parser.add_argument("-o", "--output", type=Path, default=Path("own_module.lpe"), help="(%(default)s)")
    asked = parser.parse_args(arguments)
    try:
        # The first pattern that matches a weight's name decides. exclude="stem.*" leaves it alone as well.
        systems = {"stem.*": lpe.FullPrecision(), "*": lpe.Int(asked.bits)}
        if not asked.output.absolute().parent.is_dir():
            raise lpe.InputError(f"there is no folder {asked.output.parent}; give another -o")
        data = digits.load(seed=0)
        images, labels = data.train
        training = list(zip(images.split(50), labels.split(50), strict=True))
        torch.manual_seed(0)
        net = Net()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        lpe.train(net, training, optimizer, 0.05, epochs=asked.epochs)

        # batches: of training inputs, which re-estimate each member's batch-norm statistics.
        kept = lpe.LowPrecisionEnsemble(net, systems, asked.size)
        own = lpe.LowPrecisionEnsemble(net, systems, asked.size, batches=training)
        print(own.describe(), end="\n\n")
        print(f"{'statistics':12}{'size':>5}{'NLL':>9}{'error':>8}{'ECE':>8}")
        as_it_is = lpe.LowPrecisionEnsemble(net, lpe.FullPrecision(), 1)
        for name, ensemble in (("FP32", as_it_is), ("network's", kept), ("member's", own)):
            table = lpe.evaluate(ensemble, [data.test]).set_index("size")
            for n in sorted({1, len(ensemble)}):
                row = table.loc[n]
                print(f"{name:12}{n:5}{row.nll:9.4f}{row.err:8.4f}{row.ece:8.4f}")

        lpe.save(own, asked.output, kind="planes")
        again = lpe.load(asked.output, net)
        same = torch.equal(again.predict(data.test[0]), own.predict(data.test[0]))
        size = asked.output.stat().st_size
        print(
            f"\n{asked.output}: {len(again)} members, {size:,} bytes, predictions the same to the bit: {same}"
        )
    except lpe.InputError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
