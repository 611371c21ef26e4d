"""What a substrate is in the words of published tables, so that one stands beside the other by data."""

from __future__ import annotations

from dataclasses import dataclass

R20, WRN28X1, WRN28X10, RESNET50 = "R20-FRN-SiLU", "WRN28x1-BN-ReLU", "WRN28-10", "ResNet-50"
CIFAR, IMAGENET = "CIFAR-10", "ImageNet"
SGD, ADAMW = "SGD", "AdamW"
UNSAID = "not said"
TEST = "test examples"
_AUGMENTATION = {True: "crops and flips", False: "none", None: UNSAID}


def words_of_augmentation(augmentation: bool | None) -> str:
    """Say whether training examples are cropped and flipped; None: not said."""
    return _AUGMENTATION[augmentation]


@dataclass(frozen=True)
class Subject:
    """A network on data, as a published table has them too. It is in no key: it determines no number.

    Args:
        network: by its published name. data_set: what is matched, such as "CIFAR-10". data: what of it there
            is, such as "CIFAR-10 (JPEG q75)".
        augmentation: whether training examples are cropped and flipped; None: not said.
        optimiser: that trained the point estimate, whatever records call it; None: not said.
        scored: how many of the data set's test examples the metrics are of; None: all of them.
        weights: the published weights that it has, by their source's name; "": it is trained here, or by a
            recipe that has no name.
    """

    network: str
    data_set: str
    data: str
    augmentation: bool | None
    optimiser: str | None
    scored: int | None
    weights: str

    @property
    def scored_on(self) -> str:
        """The examples that the metrics are of, in words."""
        return TEST if self.scored is None else f"{self.scored:,} of the {TEST}"
