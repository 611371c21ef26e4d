"""Deep ensembles: Lakshminarayanan et al. 2017, "Simple and scalable predictive uncertainty estimation".

M networks trained from M initialisations (when fine-tuning: M data orders and heads), predictions averaged:

    p(y|x) = 1/M Σ_m p(y|x, θ_m).

One module is the single model.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, zip_longest

from torch import nn

from lpe.checks import check_list, check_model, is_integer
from lpe.ensembles.base import Ensemble, text_table
from lpe.errors import InputError
from lpe.modules import named_tensors, tensor_bits, with_tensors
from lpe.surroundings import apart


class DeepEnsemble(Ensemble):
    """Any list of modules of one architecture, each a member as it is.

    Args:
        models: the members.
        backward_passes: what each model's training cost, in gradient evaluations of one minibatch; the
            ensemble's ``training_budget`` is their running sum. None: not known.

    Raises:
        InputError: an empty list; a module whose tensors differ in name or shape from the first's; costs that
            are not one a model, or negative.
    """

    def __init__(self, models: Sequence[nn.Module], *, backward_passes: Sequence[int] | None = None) -> None:
        self.models = check_list("models", models, "models")
        for index, model in enumerate(self.models):
            check_model(model, f"model {index}")
        super().__init__(len(self.models))
        if backward_passes is not None:
            costs = check_list("backward_passes", backward_passes, "numbers")
            if len(costs) != self.size or not all(is_integer(cost) and cost >= 0 for cost in costs):
                raise InputError(
                    f"backward_passes must be one number ≥ 0 for each of the {self.size} models, not {costs}"
                )
            self.training_budget = list(accumulate(costs))
        first = [(entry.name, tuple(entry.tensor.shape)) for entry in named_tensors(self.models[0])]
        for index, model in enumerate(self.models):
            tensors = [(entry.name, tuple(entry.tensor.shape)) for entry in named_tensors(model)]
            if tensors != first:
                pairs = zip_longest(tensors, first, fillvalue=("", ()))
                name = next(mine[0] or theirs[0] for mine, theirs in pairs if mine != theirs)
                raise InputError(
                    f"model {index} is not of model 0's architecture: it differs at tensor {name!r}"
                )

    def member(self, index: int) -> nn.Module:
        """Return member ``index``: the module itself where it is in eval mode, else a view of it that is."""
        index = self._check_index(index)
        model = self.models[index]
        if not any(module.training for module in model.modules()):
            return model
        with apart():
            return with_tensors(model, {})

    @property
    def members_are_stored(self) -> bool:
        """True: the modules are there."""
        return True

    def memory_bits(self, n: int | None = None, storage: str = "members") -> int:
        """Count n whole models, each tensor at its own precision; storage makes no difference."""
        n = self._check_storage(n, storage)
        return sum(
            tensor_bits(entry.tensor)
            for model in self.models[:n]
            for entry in named_tensors(model)
            if entry.saved
        )

    def describe(self) -> str:
        """Tabulate a row per tensor of one member."""
        rows = [
            (
                entry.name,
                "×".join(map(str, entry.tensor.shape)) or "scalar",
                str(entry.tensor.element_size() * 8),
            )
            for entry in named_tensors(self.models[0])
        ]
        title = f"deep ensemble of {self.size} × {type(self.models[0]).__name__}"
        return text_table(title, ("tensor", "shape", "bits"), rows)
