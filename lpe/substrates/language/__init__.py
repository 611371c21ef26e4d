"""Language models through lm-eval: an ensemble answers as one model.

``load_model`` (load.py) reads a model and its tokenizer, ``EnsembleLM`` (ensemble_lm.py) scores lm-eval's
requests, ``evaluate`` and ``choices`` (tasks.py) run whole tasks.

Importing this package imports lm-eval and transformers, which takes seconds.
"""

from lpe.extras import needs

needs("lm_eval", "transformers")

from lpe.substrates.language.ensemble_lm import CHUNK_BYTES, EnsembleLM, Scored  # noqa: E402
from lpe.substrates.language.load import check_tokenizer, load_model  # noqa: E402
from lpe.substrates.language.tasks import Choices, choices, evaluate  # noqa: E402

__all__ = [
    "CHUNK_BYTES",
    "Choices",
    "EnsembleLM",
    "Scored",
    "check_tokenizer",
    "choices",
    "evaluate",
    "load_model",
]
