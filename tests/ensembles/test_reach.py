"""Members are seen to compute with what is their own, and what does not is named."""

from __future__ import annotations

import copy
import functools
import logging
import types
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import lpe
from lpe import notices
from lpe.ensembles.base import Ensemble
from lpe.ensembles.reach import check_own_tensors
from lpe.evaluation.landscape import Surface
from lpe.structure import Structure

INPUTS = torch.linspace(-1, 1, 24).view(3, 8)
TARGETS = torch.tensor([0, 1, 2])
BATCHES = [(INPUTS, TARGETS)]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 6))
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(self.drop(self.body(inputs)))
        return logits


def net(kind: Callable[[], nn.Module] = Net) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind().eval()


def of(model: nn.Module, size: int = 2) -> lpe.LowPrecisionEnsemble:
    return lpe.LowPrecisionEnsemble(model, lpe.Int(3), size)


def of_every_method(model: nn.Module) -> dict[str, Ensemble]:
    std = {name: torch.full_like(parameter, 0.01) for name, parameter in model.named_parameters()}
    collector = lpe.ensembles.swag.SWAGCollector(2)  # type: ignore[attr-defined]
    for _ in range(3):
        collector.collect(model)
    return {
        "LPE": of(model),
        "together": of(model, 10),
        "Gaussian": lpe.GaussianEnsemble(model, lpe.Int(3), 2),
        "MC-dropout": lpe.MCDropoutEnsemble(model, 0.3, 2),
        "SWAG": lpe.SWAGEnsemble(model, collector.statistics(), 2),
        "IVON": lpe.IVONEnsemble(model, std, 2),
        "mixture": lpe.Mixture(lpe.DeepEnsemble([model]), lambda base, first: of(base)),
        "union": lpe.Mixture.of([of(model), of(model)]),
    }


METHODS = tuple(of_every_method(net()))


def replaced(wrap: Callable[[Any], Any], name: str = "") -> nn.Module:
    """A network whose forward, or that of a part, is bound to the network."""
    model = net()
    module = model.get_submodule(name)
    module.forward = wrap(module.forward)  # type: ignore[method-assign]
    return model


WRAPS: dict[str, Callable[[Any], Any]] = {
    "lambda": lambda forward: lambda *inputs: forward(*inputs),
    "no_grad": torch.no_grad(),
    "inference mode": torch.inference_mode(),
    "compiled": lambda forward: torch.compile(forward, backend="eager"),
}

USES: dict[str, Callable[[Ensemble], Any]] = {
    "predict": lambda ensemble: ensemble.predict(INPUTS),
    "evaluate": lambda ensemble: lpe.evaluate(ensemble, BATCHES),
    "member_log_probs": lambda ensemble: lpe.member_log_probs(ensemble, BATCHES),
}


def refusal(do: Callable[[], object]) -> str:
    with pytest.raises(lpe.InputError) as caught:
        do()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("method", METHODS)
def test_members_that_run_the_network_itself_are_refused(method: str, use: str) -> None:
    model = replaced(WRAPS["lambda"])
    message = refusal(lambda: USES[use](of_every_method(model)[method]))
    assert "bound to the network" in message and "give the plain network" in message


@pytest.mark.parametrize("wrap", WRAPS)
def test_however_the_forward_is_bound_members_are_refused(wrap: str) -> None:
    assert "'body.0.weight'" in refusal(lambda: of(replaced(WRAPS[wrap])).predict(INPUTS))


@pytest.mark.parametrize("wrap", WRAPS)
def test_a_part_that_is_bound_is_named_and_no_other(wrap: str) -> None:
    message = refusal(lambda: of(replaced(WRAPS[wrap], "body.2")).predict(INPUTS))
    assert "own 'body.2." in message and "'head" not in message


def test_all_members_as_a_module_are_refused() -> None:
    assert "bound to" in refusal(lambda: of(replaced(WRAPS["lambda"], "head")).as_module()(INPUTS))


def test_the_plane_of_a_landscape_is_refused() -> None:
    assert "bound to" in refusal(lambda: Surface(replaced(WRAPS["lambda"], "head"), BATCHES))


def test_what_is_refused_is_refused_again() -> None:
    ensemble = of(replaced(WRAPS["lambda"]))
    refusal(lambda: ensemble.predict(INPUTS))
    refusal(lambda: ensemble.predict(INPUTS))


class Keeps(nn.Linear):
    """A layer that keeps what it computed from its weight."""

    kept: Tensor | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        if self.kept is None:
            self.kept = self.weight.detach().clone()
        return nn.functional.linear(inputs, self.kept, self.bias)


def test_a_layer_that_uses_what_it_kept_is_named() -> None:
    model = net()
    model.body[2] = Keeps(6, 6)  # type: ignore[index, operator]
    model(INPUTS)
    message = refusal(lambda: of(model).predict(INPUTS))
    assert "would not compute with their 'body.2.weight'" in message


def in_a_list(kept: dict[str, Any], weight: Tensor) -> Tensor:
    if not kept["list"]:
        kept["list"].append(weight.detach() * 1)
    return kept["list"][0]  # type: ignore[no-any-return]


def in_an_object(kept: dict[str, Any], weight: Tensor) -> Tensor:
    if not hasattr(kept["object"], "weight"):
        kept["object"].weight = weight.detach() * 1
    return kept["object"].weight  # type: ignore[no-any-return]


def in_a_dict_of_dicts(kept: dict[str, Any], weight: Tensor) -> Tensor:
    if "weight" not in kept["dict"]:
        kept["dict"]["weight"] = weight.detach() * 1
    return kept["dict"]["weight"]  # type: ignore[no-any-return]


def by_where_it_lies(kept: dict[str, Any], weight: Tensor) -> Tensor:
    key = (weight.data_ptr(), weight._version)
    if kept.get("key") != key:
        kept |= {"key": key, "weight": weight.detach() * 1}
    return kept["weight"]  # type: ignore[no-any-return]


class Keeping(Net):
    """A network that keeps a weight, without calling its layer."""

    how: Callable[[dict[str, Any], Tensor], Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.kept = {"list": [], "object": types.SimpleNamespace(), "dict": {}}

    def forward(self, inputs: Tensor) -> Tensor:
        weight = type(self).how(self.kept, self.head.weight)
        return nn.functional.linear(self.body(inputs), weight, self.head.bias)


def keeping(how: Callable[[dict[str, Any], Tensor], Tensor]) -> nn.Module:
    return net(type("Keeping", (Keeping,), {"how": staticmethod(how)}))


KEEPING = [in_a_list, in_an_object, in_a_dict_of_dicts]


@pytest.mark.parametrize("how", [*KEEPING, by_where_it_lies])
def test_members_one_by_one_do_not_use_what_the_one_before_kept(how: Any) -> None:
    table = lpe.evaluate(of(keeping(how), 4), BATCHES, members="one-by-one")
    plain = lpe.evaluate(of(net(), 4), BATCHES, members="one-by-one")
    assert table["nll"].tolist() == plain["nll"].tolist()


@pytest.mark.parametrize("how", KEEPING)
def test_what_a_network_keeps_beside_a_layer_that_is_not_called_is_named(how: Any) -> None:
    model = keeping(how)
    model(INPUTS)
    with pytest.raises(lpe.InputError, match="'head.weight': the network uses what it computed"):
        of(model).predict(INPUTS)


def test_what_is_kept_by_where_a_weight_lies_is_right(said: Callable[[], list[str]]) -> None:
    model = keeping(by_where_it_lies)
    model(INPUTS)
    assert torch.equal(of(model).predict(INPUTS), of(net()).predict(INPUTS))
    assert not said()


class KeptByMethod(Net):
    @functools.cache  # noqa: B019
    def weight(self) -> Tensor:
        return self.head.weight.detach() * 1

    def forward(self, inputs: Tensor) -> Tensor:
        return nn.functional.linear(self.body(inputs), self.weight(), self.head.bias)


def test_members_one_by_one_do_not_use_what_a_method_kept_for_the_one_before() -> None:
    table = lpe.evaluate(of(net(KeptByMethod), 4), BATCHES, members="one-by-one")
    plain = lpe.evaluate(of(net(), 4), BATCHES, members="one-by-one")
    assert table["nll"].tolist() == plain["nll"].tolist()


def test_a_layer_that_has_kept_nothing_yet_is_right() -> None:
    model = net()
    model.body[2] = Keeps(6, 6)  # type: ignore[index, operator]
    ensemble = of(model)
    assert torch.equal(ensemble.predict(INPUTS), of(copy.deepcopy(model)).predict(INPUTS))


# What is right is not refused


class NoGradients(Net):
    @torch.no_grad()
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs)


class Inference(Net):
    @torch.inference_mode()
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs)


class Detached(Net):
    def forward(self, inputs: Tensor) -> Tensor:
        body = torch.empty(len(inputs), 6)
        with torch.no_grad():
            body[:, :] = self.body(inputs)
        logits: Tensor = self.head(body)
        return logits


class Recomputed(Net):
    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(checkpoint(self.body, inputs, use_reentrant=True))
        return logits


class Choice(Net):
    """Each class by a table that the body's largest feature chooses: no gradient goes through."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 3)
        self.head = nn.Linear(3, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(self.table(self.body(inputs).argmax(-1)))
        return logits


class Numpy(Net):
    """A layer that is computed where torch does not see it."""

    def forward(self, inputs: Tensor) -> Tensor:
        product = inputs.numpy() @ self.body[0].weight.detach().numpy().T  # type: ignore[union-attr, operator]
        logits: Tensor = self.head(self.body[2](torch.from_numpy(product)))
        return logits


class FewerThanTwoRefused(Net):
    def forward(self, inputs: Tensor) -> Tensor:
        if len(inputs) < 3:
            raise ValueError("three at least")
        return super().forward(inputs)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, 8)
        self.head = nn.Linear(8, 8)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.embed(tokens).mean(dim=1))
        return logits


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.LSTM(2, 4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(inputs.view(len(inputs), 4, 2))[0][:, -1])
        return logits


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(2, 1, 4, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(2, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(inputs.view(len(inputs), 4, 2)).mean(dim=1))
        return logits


RIGHT: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "plain": (Net, INPUTS),
    "in training mode": (lambda: Net().train(), INPUTS),
    "no gradients": (NoGradients, INPUTS),
    "inference mode": (Inference, INPUTS),
    "a part without gradients": (Detached, INPUTS),
    "recomputed": (Recomputed, INPUTS),
    "not differentiable": (Choice, INPUTS),
    "few examples refused": (FewerThanTwoRefused, INPUTS),
    "tied": (Tied, torch.arange(6).view(3, 2)),
    "recurrent": (Recurrent, INPUTS),
    "attention": (Attention, INPUTS),
    "half": (lambda: Net().bfloat16(), INPUTS.bfloat16()),
    "keywords": (Net, {"inputs": INPUTS}),
    "compiled in place": (lambda: compiled(Net()), INPUTS),
}


def compiled(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    notices.forget()
    caplog.set_level(logging.WARNING, logger="lpe")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
@pytest.mark.parametrize("what", RIGHT)
def test_members_that_are_right_pass_without_a_word(what: str, said: Callable[[], list[str]]) -> None:
    kind, inputs = RIGHT[what]
    model = net(kind)
    for ensemble in (of(model), lpe.GaussianEnsemble(model, lpe.Int(3), 2)):
        ensemble.check_reach(inputs)
        ensemble.predict(inputs)
    assert said() == []


def test_what_torch_does_not_see_is_seen_by_its_effect() -> None:
    check_own_tensors(Structure(net(Numpy)), ["body.0.weight"], INPUTS)


def test_a_layer_that_no_example_uses_is_noted(said: Callable[[], list[str]]) -> None:
    model = net()
    model.spare = nn.Linear(2, 2)
    model.about = object()
    ensemble = of(model)
    ensemble.predict(INPUTS)
    ensemble.predict(INPUTS)
    assert len(said()) == 1 and "'spare.weight' (1 of 4 tensors" in said()[0]


def test_a_masked_place_that_is_not_called_is_noted(said: Callable[[], list[str]]) -> None:
    model = net()
    model.spare = nn.Dropout(0.2)
    lpe.MCDropoutEnsemble(model, 0.3, 2).predict(INPUTS)
    assert len(said()) == 1 and "'spare' (1 of 2 masked modules)" in said()[0]


def test_masks_none_of_which_is_called_are_refused() -> None:
    model = net()
    model.drop = nn.Identity()
    model.spare = nn.Dropout(0.2)
    assert "none of the masked modules" in refusal(
        lambda: lpe.MCDropoutEnsemble(model, 0.3, 2).predict(INPUTS)
    )


# It leaves no trace


@pytest.mark.parametrize("method", METHODS)
def test_the_network_is_left_as_it_was(method: str) -> None:
    model = net()
    model.head.weight.requires_grad_(False)  # type: ignore[union-attr, operator]
    ensemble = of_every_method(model)[method]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    versions = [parameter._version for parameter in model.parameters()]
    state = torch.get_rng_state()
    with torch.inference_mode():
        ensemble.check_reach(INPUTS)
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert [parameter._version for parameter in model.parameters()] == versions
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(torch.get_rng_state(), state) and torch.is_grad_enabled()


def test_a_network_of_ones_own_is_tried_once_an_ensemble() -> None:
    calls = []

    class Counting(Net):
        def forward(self, inputs: Tensor) -> Tensor:
            calls.append(len(inputs))
            return super().forward(inputs)

    ensemble = of(net(Counting))
    ensemble.predict(INPUTS)
    ensemble.predict(INPUTS)
    assert calls == [1, 3, 3, 3, 3]


@pytest.mark.parametrize("about", [None, object()])
def test_a_librarys_network_is_tried_only_where_it_holds_more_than_plain_values(about: object) -> None:
    model = nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 4)).eval()
    model.about = about
    calls = []
    ensemble = of(model)
    model.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    ensemble.predict(INPUTS)
    assert calls == [*([] if about is None else [1]), 3, 3]


def test_a_weight_that_a_class_keeps_for_all_its_networks_is_named(caplog: pytest.LogCaptureFixture) -> None:
    class Keeping(Net):
        kept: dict[str, Tensor] = {}

        def forward(self, inputs: Tensor) -> Tensor:
            layer = self.head
            assert isinstance(layer, nn.Linear)
            weight = self.kept.setdefault("head", layer.weight.detach().clone())
            return nn.functional.linear(self.body(inputs), weight, layer.bias)

    model = net(Keeping)
    model(INPUTS)
    notices.forget()
    of(model).predict(INPUTS)
    assert caplog.messages[0].startswith("note: Keeping: 'head.weight' (1 of 3 tensors")


KEPT: weakref.WeakKeyDictionary[nn.Module, Tensor] = weakref.WeakKeyDictionary()


class KeptOutside(Net):
    """Keeps its weight beside itself, by the network that it belongs to."""

    def forward(self, inputs: Tensor) -> Tensor:
        layer = self.head
        assert isinstance(layer, nn.Linear)
        weight = KEPT.setdefault(self, layer.weight.detach() * 1)
        return nn.functional.linear(self.body(inputs), weight, layer.bias)


def test_members_one_by_one_do_not_compute_with_what_is_kept_of_another_outside() -> None:
    ensemble = of(net(KeptOutside), 4)
    expected = torch.stack([member(INPUTS).double().log_softmax(1) for member in ensemble])
    found, _ = lpe.member_log_probs(ensemble, BATCHES)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert float((found[1] - found[0]).abs().max()) > 1e-3


AROUND = net()
forward_of_a_part = AROUND.head.forward  # type: ignore[union-attr, operator]


@pytest.mark.parametrize(
    "hook",
    [
        lambda module, inputs, output: AROUND.head.forward(inputs[0]),  # type: ignore[union-attr, operator]
        lambda module, inputs, output: forward_of_a_part(*inputs),
        lambda module, inputs, output, head=AROUND.head: head.forward(inputs[0]),  # type: ignore[union-attr, operator]
    ],
    ids=["a global", "a global method", "a default"],
)
def test_a_hook_that_runs_a_part_of_the_network_itself_is_seen(hook: Any) -> None:
    handle = AROUND.head.register_forward_hook(hook)  # type: ignore[union-attr, operator]
    try:
        message = refusal(lambda: of(AROUND).predict(INPUTS))
    finally:
        handle.remove()
    assert "'head.weight'" in message
