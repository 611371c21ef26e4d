"""Last-layer Laplace: Daxberger et al. 2021, "Laplace Redux – Effortless Bayesian Deep Learning".

The network up to its last linear layer is fixed, so that the logits z = W φ(x) are linear in that layer's
weights W [classes, columns], of which the bias, where there is one, is the last column (then φ ends in 1).
Around the trained W* the posterior is taken to be Gaussian, and a member is a draw:

    W = W* + P^(−½) Z,   Z ~ N(0, I) keyed by (seed, m),   P = H + τ I
    H = Σ over training examples of (diag p − p pᵀ) ⊗ φ φᵀ,   p = softmax(W* φ)

H is the Hessian of the *summed* cross-entropy, which here is the generalised Gauss-Newton matrix, and labels
have no part in it. The root is the symmetric one, which no choice of eigenvectors changes. Two forms:

    full        H as it is, (classes · columns)² numbers: the default up to 2,048 weights
    kronecker   H ≈ G ⊗ A with G = Σ (diag p − p pᵀ) and A = the mean of φ φᵀ (Martens & Grosse 2015,
                "Optimizing neural networks with Kronecker-factored approximate curvature"): for larger layers

τ is the precision of the prior N(0, I/τ), weight decay τ / N on the mean loss. It is given, or maximises the
marginal likelihood (MacKay 1992, "A practical Bayesian framework for backpropagation networks")

    log p(D|τ) = log p(D|W*) − ½ τ ‖W*‖² + ½ Σ log(τ / (λ + τ)),   λ the eigenvalues of H

whose one maximum lies where τ ‖W*‖² = Σ λ / (λ + τ), the number of weights that the data determine.

What matters: τ. A network that is sure of its training images has a small H, and then the prior is all that
bounds the posterior; τ tuned on validation examples by the ensemble's NLL is the alternative. Nothing before
the last layer changes, so batch-norm statistics stay right.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lpe.batches import pairs
from lpe.checks import check_choice, check_finite, shown
from lpe.ensembles.base import Ensemble, text_table
from lpe.errors import InputError
from lpe.logits import check_shape, check_values, examples_in
from lpe.modules import (
    apply,
    canonical_modules,
    device_of,
    named_tensors,
    tensor_bits,
    to_device,
    with_tensors,
)
from lpe.networks import computed_weights, network_of
from lpe.number_systems.streams import check_seed, normal
from lpe.surroundings import apart

FORMS = ("full", "kronecker")
FULL_WEIGHTS = 2048
"""Most weights of a last layer whose curvature is taken whole: 32 MiB, some seconds of eigenvalues."""


@dataclass(frozen=True)
class LastLayerCurvature:
    """The Hessian H of the summed training loss in the last layer's weights, by its eigenvalues and -vectors.

    Args:
        layer: canonical name of the layer. shape: (classes, columns) of its weights, the bias a column.
        examples: that were summed over.
        values: eigenvalues, float64, none negative: of H [classes · columns], or of its two factors, G
            [classes] and A [columns].
        vectors: eigenvectors of each, its columns: float64, square.
    """

    layer: str
    shape: tuple[int, int]
    examples: int
    values: tuple[Tensor, ...]
    vectors: tuple[Tensor, ...]

    @property
    def form(self) -> str:
        """One of FORMS."""
        return FORMS[len(self.values) - 1]

    @property
    def eigenvalues(self) -> Tensor:
        """All eigenvalues of H: float64 [classes · columns], full, or [classes, columns], kronecker."""
        if len(self.values) == 1:
            return self.values[0]
        return torch.outer(*self.values)

    @property
    def numbers(self) -> int:
        """Numbers that determine H: the upper triangles of its factors."""
        return sum(len(values) * (len(values) + 1) // 2 for values in self.values)

    def scaled(self, noise: Tensor, prior_precision: float) -> Tensor:
        """Return (H + τ I)^(−½) applied to noise: float64 [classes, columns], as the noise is."""
        std = (self.eigenvalues + prior_precision).rsqrt()
        if len(self.vectors) == 1:
            basis = self.vectors[0]
            return (basis @ (std * (basis.T @ noise.reshape(-1)))).view(self.shape)
        rows, columns = self.vectors
        return rows @ (std * (rows.T @ noise @ columns)) @ columns.T

    def variance(self, prior_precision: float) -> Tensor:
        """Return the posterior variance of each weight, float64 [classes, columns]."""
        variance = 1 / (self.eigenvalues + prior_precision)
        if len(self.vectors) == 1:
            return (self.vectors[0].square() @ variance).view(self.shape)
        rows, columns = self.vectors
        return rows.square() @ variance @ columns.square().T

    def best_prior_precision(self, weights: Tensor) -> float:
        """Return the τ of greatest marginal likelihood of the layer's trained weights.

        Args:
            weights: [classes, columns].

        Raises:
            InputError: all weights, or all eigenvalues, are 0, so that there is none.
        """
        norm = float(weights.double().square().sum())
        eigenvalues = self.eigenvalues
        if not (norm > 0 and float(eigenvalues.max()) > 0):
            what = "its weights are all 0" if not norm > 0 else "the training loss has no curvature in it"
            raise InputError(
                f"no prior precision of {self.layer!r} has the greatest marginal likelihood, for {what}; "
                "give prior_precision= a number above 0"
            )

        def too_small(precision: float) -> bool:
            return float((eigenvalues / (eigenvalues + precision)).sum()) > precision * norm

        high = eigenvalues.numel() / norm  # where every weight is determined
        low = high
        while not too_small(low):
            low /= 10
        for _ in range(60):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if too_small(middle) else (low, middle)
        return math.sqrt(low * high)


class _Head:
    """A network's last linear layer, watched while the network runs.

    Attributes:
        net: a copy of the network. layer: that layer. name: its canonical name.
    """

    def __init__(self, model: nn.Module, inputs: Any, where: str) -> None:
        self.net = with_tensors(model, {})
        self.device = device_of(self.net)
        self._calls: dict[str, list[tuple[Tensor, Any]]] = {}
        classes = self._logits(inputs, where).shape[1]
        modules = canonical_modules(self.net)
        for name, module in modules.items():
            if isinstance(module, nn.Linear) and module.out_features == classes:
                module.register_forward_hook(_Noted(self._calls, name))
        logits = self._logits(inputs, where)
        found = [
            name
            for name, calls in self._calls.items()
            if isinstance(calls[-1][1], Tensor) and torch.equal(calls[-1][1], logits)
        ]
        kind = type(model).__name__
        if not found:
            raise InputError(
                f"the logits of {kind} are not what a linear layer of its own returns, so it has no last "
                "layer for Laplace's approximation; give a network that ends in one"
            )
        self.name = found[-1]
        if len(self._calls[self.name]) > 1:
            raise InputError(f"{self.name!r} of {kind} is called more than once a pass; it is no last layer")
        layer = modules[self.name]
        assert isinstance(layer, nn.Linear)
        self.layer = layer
        self._check(model)
        with_own = F.linear(self._calls[self.name][0][0], layer.weight, layer.bias)
        if not torch.allclose(with_own.double(), logits.double(), rtol=1e-2, atol=1e-2):
            raise InputError(f"{self.name!r} of {kind} does not return W φ + b; it is no plain linear layer")

    def _check(self, model: nn.Module) -> None:
        """Raise InputError unless the layer's tensors are its own, and what it multiplies by."""
        own = weight_names(self.name)
        for entry in named_tensors(self.net):
            if entry.also and not {entry.name, *entry.also}.isdisjoint(own):
                raise InputError(
                    f"{entry.name!r} is {entry.also[0]!r} too: a draw of the last layer would change more "
                    "than that layer"
                )
        computed = computed_weights(model)
        for name in own:
            if name in computed:
                how, what = computed[name]
                raise InputError(f"{name!r} is {how}; make it a plain weight first, with {what}")

    def _logits(self, inputs: Any, where: str) -> Tensor:
        logits = apply(self.net, to_device(inputs, self.device))
        check_shape(logits, examples_in(inputs), where)
        check_values(logits, where)
        return logits

    def features(self, inputs: Any, where: str) -> Tensor:
        """Return what the layer reads, [examples, columns without the bias's], in its own type."""
        return self._observed(inputs, where)[0]

    def run(self, inputs: Any, where: str) -> tuple[Tensor, Tensor]:
        """Return features [examples, columns], the bias's 1 included, and probabilities, both float64."""
        features, logits = self._observed(inputs, where)
        features = features.double()
        if self.layer.bias is not None:
            features = torch.cat([features, torch.ones_like(features[:, :1])], dim=1)
        return features, logits.double().softmax(dim=-1)

    def _observed(self, inputs: Any, where: str) -> tuple[Tensor, Tensor]:
        """Return what the layer reads, and the logits, which are what it returns."""
        self._calls.clear()
        logits = self._logits(inputs, where)
        calls = self._calls.get(self.name, [])
        if len(calls) != 1 or not torch.equal(calls[0][1], logits):
            raise InputError(
                f"{where}the logits are not what {self.name!r} returns, as those of the first batch are; "
                "give a network that ends in a linear layer"
            )
        return calls[0][0], logits


class _Noted:
    """A forward hook that notes a layer's input and output."""

    def __init__(self, calls: dict[str, list[tuple[Tensor, Any]]], name: str) -> None:
        self.calls = calls
        self.name = name

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if args:
            self.calls.setdefault(self.name, []).append((args[0].detach(), output))


def weight_names(layer: str) -> tuple[str, str]:
    """Return the canonical names of a layer's weight and bias."""
    prefix = f"{layer}." if layer else ""
    return f"{prefix}weight", f"{prefix}bias"


@apart()
def last_layer_curvature(
    model: nn.Module, batches: Iterable[Any], form: str | None = None
) -> LastLayerCurvature:
    """Return the curvature of the training loss in a network's last layer, for :class:`LaplaceEnsemble`.

    The batches go through the network once, in eval mode.

    Args:
        model: a network whose logits are what a Linear layer returns. batches: training batches (inputs,
            targets); targets are not read. form: "full", "kronecker", or None: full for layers of at most
            FULL_WEIGHTS weights.

    Raises:
        InputError: a network that does not end in a plain Linear layer, called once, with weights of its own;
            no batches, or one that is no pair; logits that are NaN or not [examples, classes]; a form that
            there is not.
    """
    if form is not None:
        check_choice("form", form, FORMS)
    network = network_of(model)
    head: _Head | None = None
    sums: list[Tensor] = []
    examples = 0
    for index, inputs, _ in pairs(batches):
        if examples_in(inputs) == 0:
            continue
        where = f"batch {index}: "
        head = head or _Head(network, inputs, where)
        features, probs = head.run(inputs, where)
        classes, columns = probs.shape[1], features.shape[1]
        if form is None:
            form = "full" if classes * columns <= FULL_WEIGHTS else "kronecker"
        sizes = (classes * columns,) if form == "full" else (classes, columns)
        if not sums:
            sums = [torch.zeros(n, n, dtype=torch.float64, device=probs.device) for n in sizes]
        if form == "full":
            _add_full(sums[0], features, probs)
        else:
            sums[0] += torch.diag(probs.sum(dim=0)) - probs.T @ probs
            sums[1] += features.T @ features
        examples += len(probs)
    if head is None:
        raise InputError("the batches are empty; there is nothing to take the curvature of")
    if form == "kronecker":
        sums[1] /= examples
    if not all(bool(each.isfinite().all()) for each in sums):
        raise InputError(f"the inputs of {head.name!r} are not finite on these batches")
    factors = [torch.linalg.eigh(each.cpu()) for each in sums]
    return LastLayerCurvature(
        layer=head.name,
        shape=(classes, columns),
        examples=examples,
        values=tuple(values.clamp_min(0.0) for values, _ in factors),
        vectors=tuple(vectors for _, vectors in factors),
    )


def _add_full(total: Tensor, features: Tensor, probs: Tensor) -> None:
    """Add Σ (diag p − p pᵀ) ⊗ φ φᵀ of a batch, a class's rows at a time."""
    columns = features.shape[1]
    for label in range(probs.shape[1]):
        factors = -probs[:, label, None] * probs
        factors[:, label] += probs[:, label]
        scaled = (factors[:, :, None] * features[:, None, :]).flatten(1)
        total[label * columns : (label + 1) * columns] += features.T @ scaled


class LaplaceEnsemble(Ensemble):
    """Samples of the last layer's Laplace posterior N(W*, (H + τ I)⁻¹).

    Args:
        model: the trained network, which the curvature was taken of; members share all but its last layer.
        curvature: of :func:`last_layer_curvature`.
        size: members. seed: of the draws, 0 … 2⁶⁴ − 1.
        prior_precision: τ; None: that of the greatest marginal likelihood.

    Raises:
        InputError: a curvature of another network's layer; a size below 1; a seed out of range; a prior
            precision that is not a finite number above 0, or None where no precision is best.
    """

    @apart()
    def __init__(
        self,
        model: nn.Module,
        curvature: LastLayerCurvature,
        size: int,
        seed: int = 0,
        prior_precision: float | None = None,
    ) -> None:
        super().__init__(size)
        if not isinstance(curvature, LastLayerCurvature):
            raise InputError(
                f"curvature must be what lpe.last_layer_curvature returns, not {shown(curvature)}"
            )
        self.model = model = self._made_of(model)
        self.curvature = curvature
        self.seed = check_seed(seed)
        tensors = self._base_tensors()
        self._head = {name: tensors[name] for name in weight_names(curvature.layer) if name in tensors}
        shapes = [list(tensor.shape) for tensor in self._head.values()]
        classes, columns = curvature.shape
        if shapes not in ([[classes, columns]], [[classes, columns - 1], [classes]]):
            raise InputError(
                f"the curvature is of {classes} × {columns} weights of {curvature.layer!r}; "
                f"{type(model).__name__} has there {shapes or 'none'}: take it of this network"
            )
        self.prior_precision = (
            curvature.best_prior_precision(self._mean())
            if prior_precision is None
            else check_finite("prior_precision", prior_precision, above=True)
        )

    def _mean(self) -> Tensor:
        """Return the layer's weights, the bias as the last column: float64 [classes, columns], on the CPU."""
        columns = [tensor.detach().double().cpu() for tensor in self._head.values()]
        return torch.cat([each.view(len(each), -1) for each in columns], dim=1)

    def _parts(self, columns: Tensor) -> dict[str, Tensor]:
        """Return values of each weight [classes, columns] as the layer's tensors, by canonical name."""
        widths = [tensor.numel() // len(tensor) for tensor in self._head.values()]
        return {
            name: part.reshape(tensor.shape).to(tensor.device, tensor.dtype, copy=True)
            for (name, tensor), part in zip(self._head.items(), columns.split(widths, dim=1), strict=True)
        }

    @apart()
    def weights(self, index: int) -> dict[str, Tensor]:
        """Draw ``index`` of the last layer's weights, by canonical name."""
        noise = normal("laplace", self.seed, self.curvature.layer, index, self.curvature.shape).double()
        return self._parts(self._mean() + self.curvature.scaled(noise, self.prior_precision))

    @apart()
    def as_module(self) -> SharedTrunk:
        """Return all members as one module, which runs what lies before the last layer once for all."""
        self.check_unchanged()
        return SharedTrunk(self)

    @apart()
    def std(self) -> dict[str, Tensor]:
        """Return the posterior std of the last layer's weights, by canonical name, in their unit."""
        return self._parts(self.curvature.variance(self.prior_precision).sqrt())

    @apart()
    def member(self, index: int) -> nn.Module:
        """Return member ``index``: one draw of the last layer, all before it shared."""
        self.check_unchanged()
        return self._copy(self.weights(index))

    def _own_names(self) -> Collection[str]:
        return self._head

    def memory_bits(self, n: int | None = None, storage: str = "members") -> int:
        """Count the network once and n last layers, or the network and the curvature ("generator").

        The curvature's numbers, the upper triangle of H or of its factors, take 32 bits each.
        """
        n = self._check_storage(n, storage)
        own = sum(map(tensor_bits, self._head.values()))
        whole = sum(tensor_bits(entry.tensor) for entry in named_tensors(self.model) if entry.saved)
        return whole + ((n - 1) * own if storage == "members" else 32 * self.curvature.numbers)

    def describe(self) -> str:
        """Tabulate a row per sampled tensor: name, shape, median posterior std, bits a value in a member."""
        rows = [
            (
                name,
                "×".join(map(str, std.shape)),
                f"{float(std.float().median()):.3g}",
                str(std.element_size() * 8),
            )
            for name, std in self.std().items()
        ]
        title = (
            f"last-layer Laplace of {type(self.model).__name__}, {self.curvature.form} curvature of "
            f"{self.curvature.examples:,} examples, prior precision {self.prior_precision:.4g}: {self.size} "
            f"members, seed {self.seed}"
        )
        return text_table(title, ("tensor", "shape", "median posterior std", "bits"), rows)


class SharedTrunk(nn.Module):
    """All members of a last-layer Laplace ensemble as one module; see :meth:`LaplaceEnsemble.as_module`.

    What a member computes before its last layer is the same in all, and runs once a batch. The logits are the
    members' own, bit for bit.

    Attributes:
        members: how many.
    """

    def __init__(self, ensemble: LaplaceEnsemble) -> None:
        super().__init__()
        self.members = len(ensemble)
        self.network = ensemble.model
        self._ensemble = ensemble
        self._layers = [ensemble.weights(index) for index in range(self.members)]
        self._head: _Head | None = None

    @torch.no_grad()
    @apart()
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return logits [members, examples, classes].

        Args:
            The batch as :func:`lpe.evaluate` has it, or as the network takes it, by position or by keyword.

        Raises:
            InputError: a network whose logits are not what its last layer returns, on these inputs.
        """
        inputs = kwargs or (args[0] if len(args) == 1 else args)
        self._ensemble.check_unchanged()
        self._head = self._head or _Head(self.network, inputs, "")
        features = self._head.features(inputs, "")
        if self._head.name != self._ensemble.curvature.layer:
            raise InputError(
                f"the last layer is {self._head.name!r}, and the curvature is of "
                f"{self._ensemble.curvature.layer!r}; take it of this network"
            )
        weight, bias = weight_names(self._head.name)
        return torch.stack([F.linear(features, each[weight], each.get(bias)) for each in self._layers])
