"""Packages that not every install has: which extra brings each, and what is said where one is missing."""

from __future__ import annotations

import importlib.util
import sys

from lpe.errors import InputError

EXTRAS = {
    "PIL": "timm",
    "huggingface_hub": "timm",
    "timm": "timm",
    "torchvision": "timm",
    "open_clip": "clip",
    "datasets": "lm",
    "lm_eval": "lm",
    "tokenizers": "lm",
    "transformers": "lm",
    "ivon": "train",
    "wandb": "wandb",
    "matplotlib": "plot",
    "ray": "ray",
    "s3fs": "s3",
    "sklearn": "reproduce",
}
"""Package, by the name that it is imported by → the extra of ``low-precision-ensembling`` that brings it."""


class MissingPackage(InputError, ImportError):
    """A package of an extra is needed and not installed; the message is one line with the command for it."""


def needs(*packages: str) -> None:
    """Check that packages of extras are installed; what imports them says so first.

    Args:
        packages: names of ``EXTRAS``.

    Raises:
        MissingPackage: the first that is not.
    """
    for package in packages:
        if sys.modules.get(package) is None and not _is_there(package):
            raise MissingPackage(said(package))


def said(package: str) -> str:
    """Return the line for a package of ``EXTRAS`` that is not installed."""
    return (
        f"{package} is not installed; install it by pip install 'low-precision-ensembling[{EXTRAS[package]}]'"
    )


def missing(error: ModuleNotFoundError) -> MissingPackage | None:
    """Return the error for an import that failed; None where it is no package of an extra."""
    package = (error.name or "").partition(".")[0]
    return MissingPackage(said(package)) if package in EXTRAS else None


def _is_there(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ModuleNotFoundError, ValueError):
        return False
