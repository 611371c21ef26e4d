"""Last-layer Laplace: the curvature and the prior by their definitions, the draws' distribution, refusals."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

import lpe
from lpe.ensembles import laplace
from lpe.ensembles.laplace import LastLayerCurvature
from lpe.errors import InputError
from lpe.modules import named_tensors

CLASSES, FEATURES, EXAMPLES = 3, 4, 15
SIGMAS = 5.0
"""Standard errors that a statistic may be off; draws are keyed, so a test passes or fails for good."""
MEMBERS = 600


class Net(nn.Module):
    """Features and a head, of float64, so that definitions hold to the last digits."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.first = nn.Linear(2, FEATURES)
        self.norm = nn.BatchNorm1d(FEATURES)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(FEATURES, CLASSES, bias=bias)

    def features(self, inputs: Tensor) -> Tensor:
        return self.drop(self.norm(self.first(inputs)).tanh())

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.features(inputs))


def net(bias: bool = True, kind: type[Net] = Net) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(bias).double().eval()


INPUTS = torch.randn(EXAMPLES, 2, generator=torch.Generator().manual_seed(1)).double()
TARGETS = torch.arange(EXAMPLES) % CLASSES
BATCHES = [(INPUTS[:7], TARGETS[:7]), (INPUTS[7:], TARGETS[7:])]


def columns_of(weights: dict[str, Tensor]) -> Tensor:
    """The head's weights, the bias as the last column: [classes, columns]."""
    named = {name.rpartition(".")[2]: tensor.detach() for name, tensor in weights.items()}
    return torch.cat([named["weight"], *([named["bias"][:, None]] if "bias" in named else [])], dim=1)


def head(model: Net) -> Tensor:
    return columns_of(dict(model.head.named_parameters()))


def inputs_of_head(model: Net) -> Tensor:
    features = model.features(INPUTS).detach()
    return features if model.head.bias is None else torch.cat([features, torch.ones(EXAMPLES, 1)], dim=1)


def hessian(model: Net) -> Tensor:
    """The definition: second derivatives of the summed cross-entropy, by torch's own differentiation."""
    columns, features = head(model), inputs_of_head(model)

    def loss(flat: Tensor) -> Tensor:
        return F.cross_entropy(features @ flat.view(columns.shape).T, TARGETS, reduction="sum")

    found = torch.autograd.functional.hessian(loss, columns.flatten())
    assert isinstance(found, Tensor)
    return found


def factors(model: Net) -> tuple[Tensor, Tensor]:
    """The definition of the two Kronecker factors, example by example."""
    features = inputs_of_head(model)
    probs = (features @ head(model).T).softmax(1)
    of_logits = sum(torch.diag(p) - torch.outer(p, p) for p in probs)
    of_features = sum(torch.outer(f, f) for f in features) / EXAMPLES
    assert isinstance(of_logits, Tensor) and isinstance(of_features, Tensor)
    return of_logits, of_features


def matrix(model: Net, form: str) -> Tensor:
    return hessian(model) if form == "full" else torch.kron(*factors(model))


def whole(curvature: LastLayerCurvature) -> Tensor:
    """H again, from its eigenvalues and eigenvectors."""
    parts = [v @ torch.diag(e) @ v.T for e, v in zip(curvature.values, curvature.vectors, strict=True)]
    return parts[0] if len(parts) == 1 else torch.kron(*parts)


FORMS = pytest.mark.parametrize("form", laplace.FORMS)
BIAS = pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])


def curvature(form: str = "full", bias: bool = True) -> LastLayerCurvature:
    return lpe.last_layer_curvature(net(bias), BATCHES, form)


def ensemble(size: int = 3, form: str = "full", bias: bool = True, **settings: Any) -> lpe.LaplaceEnsemble:
    return lpe.LaplaceEnsemble(net(bias), curvature(form, bias), size, **settings)


# The curvature


@FORMS
@BIAS
def test_the_curvature_is_what_its_form_says(form: str, bias: bool) -> None:
    found = curvature(form, bias)
    torch.testing.assert_close(whole(found), matrix(net(bias), form))
    assert (found.layer, found.shape, found.examples) == ("head", (CLASSES, FEATURES + bias), EXAMPLES)


def test_labels_have_no_part_in_the_curvature() -> None:
    other = [(inputs, torch.zeros_like(targets)) for inputs, targets in BATCHES]
    torch.testing.assert_close(whole(lpe.last_layer_curvature(net(), other)), hessian(net()))


def test_a_small_layer_is_taken_whole_and_a_large_one_by_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = CLASSES * (FEATURES + 1)
    for most, form in ((weights, "full"), (weights - 1, "kronecker")):
        monkeypatch.setattr(laplace, "FULL_WEIGHTS", most)
        assert lpe.last_layer_curvature(net(), BATCHES).form == form


def test_no_eigenvalue_is_negative() -> None:
    """Shifting all logits alike changes no loss, so as many as there are columns are 0, up to rounding."""
    eigenvalues = curvature().eigenvalues
    assert float(eigenvalues.min()) >= 0 and int((eigenvalues < 1e-12).sum()) >= FEATURES + 1


def test_the_network_is_left_as_it_was_and_runs_in_eval_mode() -> None:
    model = net().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = lpe.last_layer_curvature(model, BATCHES)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training and not model.head._forward_hooks
    torch.testing.assert_close(whole(found), hessian(net()))


class Named(Net):
    """A network that is called with keywords and gives a dict."""

    def forward(self, inputs: Tensor, scale: float = 1.0) -> Any:
        return {"logits": super().forward(inputs * scale)}


def test_inputs_and_outputs_may_have_names() -> None:
    batches = [({"inputs": inputs, "scale": 1.0}, targets) for inputs, targets in BATCHES]
    torch.testing.assert_close(whole(lpe.last_layer_curvature(net(kind=Named), batches)), hessian(net()))


def test_a_single_linear_layer_is_its_own_head() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Linear(2, CLASSES).double()
    made = lpe.LaplaceEnsemble(model, lpe.last_layer_curvature(model, BATCHES), 2)
    assert set(made.weights(0)) == {"weight", "bias"}


# The prior


def log_evidence(form: str, precision: float) -> float:
    """The definition, but for what does not depend on the precision: by the determinant of the matrix."""
    weights = head(net()).flatten()
    posterior = matrix(net(), form) + precision * torch.eye(len(weights))
    prior = -precision * weights.square().sum() + len(weights) * math.log(precision)
    return 0.5 * float(prior - torch.linalg.slogdet(posterior)[1])


@FORMS
def test_the_prior_precision_has_the_greatest_marginal_likelihood(form: str) -> None:
    best = ensemble(form=form).prior_precision
    most = log_evidence(form, best)
    for factor in (0.001, 0.1, 0.99, 1.01, 10.0, 1000.0):
        assert log_evidence(form, factor * best) < most
    # At a maximum a step of 1 % each way costs the same, up to its third power.
    assert log_evidence(form, 1.01 * best) == pytest.approx(log_evidence(form, best / 1.01), abs=1e-6)


def test_a_prior_precision_that_is_given_is_used() -> None:
    assert ensemble(prior_precision=2).prior_precision == 2.0


# The draws


def precision_of(made: lpe.LaplaceEnsemble) -> Tensor:
    size = math.prod(made.curvature.shape)
    return matrix(
        net(made.curvature.shape[1] > FEATURES), made.curvature.form
    ) + made.prior_precision * torch.eye(size)


def check_draws(made: lpe.LaplaceEnsemble, precision: Tensor) -> None:
    """Whitened by the posterior, draws are of mean 0 and covariance I.

    Of M draws a mean has the standard error 1/√M, a variance √(2/M) and a covariance 1/√M.
    """
    model = net(made.curvature.shape[1] > FEATURES)
    draws = (
        torch.stack([columns_of(made.weights(m)).flatten() for m in range(MEMBERS)]) - head(model).flatten()
    )
    white = draws @ torch.linalg.cholesky(precision)
    assert float(white.mean(dim=0).abs().max()) <= SIGMAS / math.sqrt(MEMBERS)
    off = white.T @ white / MEMBERS - torch.eye(white.shape[1])
    assert float(off.diagonal().abs().max()) <= SIGMAS * math.sqrt(2 / MEMBERS)
    assert float((off - off.diagonal().diag()).abs().max()) <= SIGMAS / math.sqrt(MEMBERS)


@FORMS
@BIAS
def test_draws_are_of_the_posterior(form: str, bias: bool) -> None:
    made = ensemble(MEMBERS, form, bias)
    check_draws(made, precision_of(made))


@FORMS
def test_draws_of_a_posterior_without_the_data_are_caught(form: str) -> None:
    made = ensemble(MEMBERS, form)
    with pytest.raises(AssertionError):
        check_draws(made, made.prior_precision * torch.eye(CLASSES * (FEATURES + 1)).double())


def test_draws_of_the_diagonal_alone_are_caught() -> None:
    made = ensemble(MEMBERS)
    with pytest.raises(AssertionError):
        check_draws(made, precision_of(made).inverse().diagonal().reciprocal().diag())


@FORMS
def test_the_std_is_the_posteriors(form: str) -> None:
    made = ensemble(form=form)
    expected = precision_of(made).inverse().diagonal().sqrt().view(made.curvature.shape)
    torch.testing.assert_close(columns_of(made.std()), expected)


@FORMS
def test_a_draw_does_not_depend_on_the_choice_of_eigenvectors(form: str) -> None:
    found = curvature(form)
    signs = [torch.tensor([(-1.0) ** k for k in range(len(v))]).double() for v in found.vectors]
    turned = replace(found, vectors=tuple(v * s for v, s in zip(found.vectors, signs, strict=True)))
    first, second = (lpe.LaplaceEnsemble(net(), each, 2).weights(1) for each in (found, turned))
    assert all(torch.allclose(first[name], second[name]) for name in first)


def test_members_and_seeds_differ_and_each_is_the_same_again() -> None:
    made = ensemble(3, seed=1)
    draws = [made.weights(0), made.weights(1), ensemble(3, seed=2).weights(0)]
    assert len({float(each["head.weight"][0, 0]) for each in draws}) == 3
    assert torch.equal(made.weights(0)["head.bias"], draws[0]["head.bias"])


# Members


def test_a_member_owns_its_last_layer_and_shares_the_rest() -> None:
    model = net()
    made = lpe.LaplaceEnsemble(model, curvature(), 2)
    base = {entry.name: entry.tensor for entry in named_tensors(model)}
    member = {entry.name: entry.tensor for entry in named_tensors(made[1])}
    own = {name for name, tensor in member.items() if tensor.data_ptr() != base[name].data_ptr()}
    assert own == {"head.weight", "head.bias"}
    assert all(torch.equal(member[name], made.weights(1)[name]) for name in own)


def test_a_member_predicts_by_its_draw() -> None:
    made = ensemble()
    expected = inputs_of_head(net()) @ columns_of(made.weights(2)).T
    torch.testing.assert_close(made[2](INPUTS), expected)


@pytest.mark.parametrize("bias", [True, False])
def test_all_members_as_one_module_have_their_own_logits(bias: bool) -> None:
    made = ensemble(bias=bias)
    logits = made.as_module()(INPUTS)
    assert logits.shape == (len(made), EXAMPLES, CLASSES)
    assert all(torch.equal(logits[index], member(INPUTS)) for index, member in enumerate(made))


@pytest.mark.parametrize("batch", [{"inputs": INPUTS}, (INPUTS,)], ids=["by keyword", "by position"])
def test_the_module_of_all_members_takes_a_batch_as_evaluate_has_it(batch: Any) -> None:
    assert torch.equal(ensemble().as_module()(batch), ensemble().as_module()(INPUTS))


def test_the_module_of_all_members_refuses_a_network_of_other_weights() -> None:
    model = net()
    module = lpe.LaplaceEnsemble(model, curvature(), 2).as_module()
    with torch.no_grad():
        model.first.weight += 1
    with pytest.raises(InputError, match="first.weight"):
        module(INPUTS)


def test_what_lies_before_the_last_layer_runs_once_a_batch() -> None:
    model = net()
    made = lpe.LaplaceEnsemble(model, curvature(), 4)
    runs: list[int] = []
    model.first.register_forward_hook(lambda _, inputs, __: runs.append(len(inputs[0])))

    def table(**options: Any) -> pd.DataFrame:
        runs.clear()
        return lpe.evaluate(made, BATCHES, **options)

    alone = table(members="one-by-one")
    assert runs.count(7) >= 4
    together = table()
    assert runs.count(8) == 1  # the second batch, which tries nothing
    pd.testing.assert_frame_equal(together, alone, check_exact=True)


def test_a_head_of_bfloat16_has_draws_of_bfloat16() -> None:
    model = net().bfloat16()
    batches = [(inputs.bfloat16(), targets) for inputs, targets in BATCHES]
    made = lpe.LaplaceEnsemble(model, lpe.last_layer_curvature(model, batches), 2)
    assert {tensor.dtype for tensor in made.weights(0).values()} == {torch.bfloat16}
    assert made.predict(batches[0][0]).isfinite().all()


@FORMS
def test_memory_counts_last_layers_or_the_curvature(form: str) -> None:
    made = ensemble(form=form)
    whole_network = sum(64 * entry.tensor.numel() for entry in named_tensors(net()))
    own = 64 * CLASSES * (FEATURES + 1)
    assert [made.memory_bits(n) for n in (1, 2, 3)] == [whole_network + k * own for k in range(3)]
    numbers = {"full": 15 * 16 // 2, "kronecker": 3 * 4 // 2 + 5 * 6 // 2}[form]
    assert made.memory_bits(2, "generator") == whole_network + 32 * numbers


def test_describe_says_form_prior_and_std() -> None:
    made = ensemble(prior_precision=0.25)
    title, _, weight, bias = made.describe().splitlines()
    assert "full curvature of 15 examples, prior precision 0.25" in title
    assert weight.split()[:3] == ["head.weight", "3×4", f"{float(made.std()['head.weight'].median()):.3g}"]
    assert bias.split()[0] == "head.bias"


# Refusals


class Scaled(Net):
    """The logits are not what the layer returns."""

    def forward(self, inputs: Tensor) -> Tensor:
        return 2 * super().forward(inputs)


class Twice(Net):
    """The head runs over all features before."""

    def forward(self, inputs: Tensor) -> Tensor:
        self.head(self.features(inputs))
        return super().forward(inputs)


class Tied(Net):
    """The head's weight is the first layer's."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__(bias)
        self.first = nn.Linear(FEATURES, CLASSES)
        self.first.weight = self.head.weight

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(inputs.repeat(1, 2))


class Own(nn.Linear):
    """A layer that computes something else."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs).square()


class OfItsOwn(Net):
    """A head with a class of its own."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__(bias)
        self.head = Own(FEATURES, CLASSES)


class Halved(nn.Module):
    """A parametrisation."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


def parametrised() -> nn.Module:
    model = net()
    parametrize.register_parametrization(model.head, "weight", Halved())
    return model


def conv() -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (2, 1)), nn.Conv1d(2, CLASSES, 1), nn.Flatten()).double()


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (lambda: net(kind=Scaled), "the logits of Scaled are not what a linear layer of its own returns"),
        (lambda: net(kind=Twice), "'head' of Twice is called more than once a pass"),
        (lambda: net(kind=Tied), "'first.weight' is 'head.weight' too"),
        (lambda: net(kind=OfItsOwn), r"'head' of OfItsOwn does not return W φ \+ b"),
        (parametrised, "'head.weight' is parametrised by Halved"),
        (conv, "the logits of Sequential are not what a linear layer"),
    ],
    ids=["scaled", "twice", "tied", "of its own", "parametrised", "convolution"],
)
def test_a_network_without_a_last_layer_is_refused(model: Any, says: str) -> None:
    with pytest.raises(lpe.InputError, match=says):
        lpe.last_layer_curvature(model(), BATCHES)


def nothing() -> Iterator[Any]:
    yield from ()


@pytest.mark.parametrize(
    ("batches", "form", "says"),
    [
        (nothing(), None, "the batches are empty"),
        ([INPUTS], None, "batch 0 must be a pair"),
        (BATCHES, "diagonal", "form must be one of full, kronecker, not 'diagonal'"),
        (
            [(INPUTS, TARGETS), (INPUTS * math.nan, TARGETS)],
            None,
            "batch 1: the model returned logits that are NaN",
        ),
    ],
)
def test_a_curvature_of_wrong_arguments_is_refused(batches: Any, form: Any, says: str) -> None:
    with pytest.raises(lpe.InputError, match=says):
        lpe.last_layer_curvature(net(), batches, form)


@pytest.mark.parametrize("precision", [0, -1.0, math.inf, math.nan, "1"])
def test_a_prior_precision_that_is_none_is_refused(precision: Any) -> None:
    with pytest.raises(lpe.InputError, match="prior_precision must be a finite number above 0"):
        ensemble(prior_precision=precision)


def test_a_layer_of_zeros_has_no_best_prior() -> None:
    model = net()
    for parameter in model.head.parameters():
        nn.init.zeros_(parameter)
    found = lpe.last_layer_curvature(model, BATCHES)
    with pytest.raises(lpe.InputError, match="its weights are all 0; give prior_precision="):
        lpe.LaplaceEnsemble(model, found, 2)
    assert len(lpe.LaplaceEnsemble(model, found, 2, prior_precision=1.0)) == 2


def test_the_curvature_of_another_layer_is_refused() -> None:
    with pytest.raises(lpe.InputError, match="the curvature is of 3 × 4 weights of 'head'; Net has there"):
        lpe.LaplaceEnsemble(net(), curvature(bias=False), 2)
    with pytest.raises(lpe.InputError, match="Linear has there none: take it of this network"):
        lpe.LaplaceEnsemble(nn.Linear(2, 3), curvature(), 2)
    with pytest.raises(lpe.InputError, match="curvature must be what lpe.last_layer_curvature returns"):
        lpe.LaplaceEnsemble(net(), BATCHES, 2)  # type: ignore[arg-type]


# Beside laplace-torch, where it is installed


# A package that it is imported with compiles functions in a way that torch gives up.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
@pytest.mark.parametrize(("form", "bias"), [("full", True), ("full", False), ("kron", False)])
def test_laplace_torch_has_the_same_curvature_and_prior(form: str, bias: bool) -> None:
    """Its Kronecker form gives the bias a factor of its own, so there only a layer without one compares."""
    package = pytest.importorskip("laplace")
    model = net(bias)
    theirs = package.Laplace(model, "classification", subset_of_weights="last_layer", hessian_structure=form)
    data = torch.utils.data.TensorDataset(INPUTS, TARGETS)
    theirs.fit(torch.utils.data.DataLoader(data, batch_size=7))
    found = lpe.last_layer_curvature(model, BATCHES, "full" if form == "full" else "kronecker")
    of_theirs = theirs.H if form == "full" else theirs.H.to_matrix()
    weights = torch.arange(CLASSES * FEATURES).view(CLASSES, FEATURES)
    biases = torch.arange(CLASSES)[:, None] + CLASSES * FEATURES
    order = torch.cat([weights, *([biases] if bias else [])], dim=1).flatten()
    torch.testing.assert_close(whole(found), of_theirs[order][:, order].double(), rtol=1e-5, atol=1e-7)
    best = lpe.LaplaceEnsemble(model, found, 2).prior_precision
    evidence = [
        float(theirs.log_marginal_likelihood(torch.tensor(factor * best))) for factor in (0.95, 1.0, 1.05)
    ]
    assert evidence[1] > max(evidence[0], evidence[2])


class Clamped(Net):
    """A network whose logits are its last layer's where they are small."""

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.features(inputs)).clamp(-1.0, 1.0)


def test_a_network_that_ends_in_a_linear_layer_on_its_first_batch_alone_is_refused() -> None:
    base = net(kind=Clamped)
    with torch.no_grad():
        base.head.weight.zero_()
        base.head.weight[0, 0] = 10.0
        largest = base.head(base.features(INPUTS)).abs().amax(dim=1)
    order = largest.argsort()
    assert largest[order[0]] <= 1 < largest[order[-1]]
    with pytest.raises(lpe.InputError, match="batch 1: the logits are not what 'head' returns, as those of"):
        lpe.last_layer_curvature(base, [(INPUTS[order[:1]], None), (INPUTS[order[1:]], None)])
