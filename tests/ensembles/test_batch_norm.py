"""Batch-norm statistics: what a refresh estimates, and what it leaves as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import lpe
from lpe.ensembles.base import Ensemble
from lpe.ensembles.batch_norm import batch_norms, fresh_statistics, refresh

Batch = tuple[Tensor, Tensor]


def numbers(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def network(*, dropout: float = 0.0) -> nn.Sequential:
    """Two tracked batch norms, a convolution's and a linear layer's, used for a while; one untracked."""
    model = nn.Sequential(
        nn.Conv2d(1, 3, 2),
        nn.BatchNorm2d(3, momentum=0.3),
        nn.Dropout(dropout),
        nn.Flatten(),
        nn.Linear(27, 4),
        nn.BatchNorm1d(4, momentum=None),
        nn.BatchNorm1d(4, track_running_stats=False),
    )
    for seed, parameter in enumerate(model.parameters()):
        parameter.data.copy_(numbers(tuple(parameter.shape), seed))
    for index in (1, 5):
        model[index].running_mean.fill_(7.0)
        model[index].running_var.fill_(9.0)
        model[index].num_batches_tracked.fill_(11)
    return model


def batches() -> list[Batch]:
    """Three batches of different sizes."""
    return [(1 + numbers((n, 1, 4, 4), 50 + n), torch.zeros(n, dtype=torch.int64)) for n in (8, 6, 3)]


def buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def test_the_first_norms_statistics_are_those_of_all_values_whatever_the_batches() -> None:
    model = network()
    refresh(model, batches())
    images = torch.cat([x for x, _ in batches()])
    seen = nn.functional.conv2d(images, model[0].weight, model[0].bias).transpose(0, 1).flatten(1)
    torch.testing.assert_close(model[1].running_mean, seen.mean(dim=1))
    torch.testing.assert_close(model[1].running_var, seen.var(dim=1))


def test_of_one_batch_all_statistics_are_those_of_update_bn() -> None:
    # update_bn runs the whole model in train mode; without dropout that is the same.
    model, reference = network(), network()
    images = torch.cat([x for x, _ in batches()])
    refresh(model, [(images, None)])
    torch.optim.swa_utils.update_bn([images], reference)
    got, expected = buffers(model), buffers(reference)
    assert set(got) == set(expected)
    for name, buffer in got.items():
        torch.testing.assert_close(buffer, expected[name])


def test_a_deeper_norms_statistics_are_of_batches_that_are_normalised_by_their_own() -> None:
    model = network()
    refresh(model, batches())
    seen = []
    for x, _ in batches():
        inside = nn.functional.conv2d(x, model[0].weight, model[0].bias)
        normed = nn.functional.batch_norm(inside, None, None, model[1].weight, model[1].bias, training=True)
        seen.append(model[4](normed.flatten(1)))
    torch.testing.assert_close(model[5].running_mean, torch.cat(seen).mean(dim=0))
    torch.testing.assert_close(model[5].running_var, torch.cat(seen).var(dim=0))


@pytest.mark.parametrize("sizes", [(9, 1), (1, 9), (4, 1, 5)])
def test_a_batch_of_one_counts_as_one_example(sizes: tuple[int, ...]) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    inputs = numbers((10, 4), 1)
    refresh(model, [(part, None) for part in inputs.split(sizes)])
    seen = model[0](inputs).detach()
    torch.testing.assert_close(model[1].running_mean, seen.mean(dim=0))
    torch.testing.assert_close(model[1].running_var, seen.var(dim=0))


def test_one_value_a_channel_in_all_is_refused_and_nothing_is_written() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    before = buffers(model)
    with pytest.raises(lpe.InputError, match="'1' was given one value a channel in all"):
        refresh(model, [(numbers((1, 4), 1), None)])
    assert all(torch.equal(before[name], buffer) for name, buffer in buffers(model).items())


KINDS = {
    "1d, flat": (lambda: nn.BatchNorm1d(3), (20, 3)),
    "1d": (lambda: nn.BatchNorm1d(3), (20, 3, 5)),
    "2d": (lambda: nn.BatchNorm2d(3), (8, 3, 5, 4)),
    "3d": (lambda: nn.BatchNorm3d(3), (4, 3, 5, 4, 2)),
    "sync": (lambda: nn.SyncBatchNorm(3), (8, 3, 5, 4)),
    "without affine": (lambda: nn.BatchNorm2d(3, affine=False), (8, 3, 5, 4)),
    "without momentum": (lambda: nn.BatchNorm2d(3, momentum=None), (8, 3, 5, 4)),
    "timm's with its activation": (lambda: timm.layers.BatchNormAct2d(3), (8, 3, 5, 4)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_batch_norm_has_the_statistics_of_its_inputs(kind: str, dtype: torch.dtype) -> None:
    make, shape = KINDS[kind]
    norm = make().to(dtype)
    inputs = (3 + numbers(shape, 1)).to(dtype)
    refresh(norm, [(part, None) for part in inputs.split([shape[0] - 1, 1])])
    seen = inputs.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(norm.running_mean, seen.mean(dim=1).to(dtype))
    torch.testing.assert_close(norm.running_var, seen.var(dim=1).to(dtype))


def test_a_norm_that_no_batch_reaches_keeps_its_statistics() -> None:
    class Branched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
            self.unused.running_mean.fill_(5.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    model = Branched()
    refresh(model, [(1 + numbers((9, 3), 1), None)])
    assert bool((model.unused.running_mean == 5.0).all()) and bool((model.used.running_mean != 0.0).all())


def test_norms_whose_weights_are_used_without_a_call_are_refused() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.batch_norm(x, self.norm.running_mean, self.norm.running_var)

    with pytest.raises(lpe.InputError, match="none of the 1 batch norms of Functional is called"):
        refresh(Functional(), [(numbers((9, 3), 1), None)])


def test_a_batch_that_is_no_pair_is_refused() -> None:
    with pytest.raises(lpe.InputError, match=r"batch 0 must be a pair \(inputs, targets\), not Tensor"):
        refresh(network(), [batches()[0][0]])


def test_dropout_is_off_while_the_statistics_are_estimated() -> None:
    model, reference = network(dropout=0.5), network()
    refresh(model.train(), batches())
    refresh(reference, batches())
    got, expected = buffers(model), buffers(reference)
    assert all(torch.equal(got[name], buffer) for name, buffer in expected.items())


def test_refreshing_again_gives_the_same() -> None:
    model = network()
    refresh(model, batches())
    once = buffers(model)
    refresh(model, batches())
    assert all(torch.equal(once[name], buffer) for name, buffer in buffers(model).items())


def test_parameters_are_left_as_they_were() -> None:
    model = network()
    refresh(model, batches())
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), network().parameters(), strict=True))


def test_no_gradient_is_recorded() -> None:
    model = network()
    recorded = []
    model.register_forward_hook(lambda module, inputs, output: recorded.append(output.requires_grad))
    refresh(model, batches())
    assert recorded == [False] * 3


def mixed_flags() -> nn.Sequential:
    model = network().train()
    model[1].eval()
    model[2].eval()
    return model


def test_training_flags_are_as_before() -> None:
    model = mixed_flags()
    before = [module.training for module in model.modules()]
    refresh(model, batches())
    assert [module.training for module in model.modules()] == before


def test_momenta_are_as_before() -> None:
    model = network()
    refresh(model, batches())
    assert (model[1].momentum, model[5].momentum) == (0.3, None)


def failing() -> Iterator[Batch]:
    yield batches()[0]
    raise OSError("the disk is gone")


def test_training_flags_are_as_before_also_after_an_exception() -> None:
    model = mixed_flags()
    before = [module.training for module in model.modules()]
    with pytest.raises(OSError):
        refresh(model, failing())
    assert [module.training for module in model.modules()] == before


def test_momenta_are_as_before_also_after_an_exception() -> None:
    model = network()
    with pytest.raises(OSError):
        refresh(model, failing())
    assert (model[1].momentum, model[5].momentum) == (0.3, None)


def test_without_tracked_batch_norms_the_batches_are_not_read() -> None:
    def unreadable() -> Iterator[Batch]:
        raise AssertionError("the batches were read")
        yield

    refresh(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False)), unreadable())


def test_no_batches_are_refused() -> None:
    with pytest.raises(lpe.InputError, match="need training batches"):
        refresh(network(), [])


def test_batch_norms_are_those_that_keep_statistics() -> None:
    assert [name for name, _ in batch_norms(network())] == ["1", "5"]


def test_fresh_statistics_are_every_buffer_of_the_tracked_norms() -> None:
    model = network()
    fresh = fresh_statistics(model)
    expected = {name: buffer for name, buffer in model.named_buffers() if name.split(".")[0] in ("1", "5")}
    assert set(fresh) == set(expected)
    assert all(torch.equal(fresh[name], buffer) for name, buffer in expected.items())


def test_fresh_statistics_are_copies() -> None:
    model = network()
    fresh_statistics(model)["1.running_mean"].zero_()
    assert bool((model[1].running_mean == 7.0).all())


def test_a_wrapped_models_statistics_have_canonical_names() -> None:
    assert set(fresh_statistics(nn.ModuleDict({"module": network()}))) == set(fresh_statistics(network()))


def test_a_batch_norm_that_is_the_model_has_bare_names() -> None:
    assert set(fresh_statistics(nn.BatchNorm1d(2))) == {"running_mean", "running_var", "num_batches_tracked"}


# Statistics of an ensemble's members


def data() -> list[tuple[Tensor, None]]:
    return [(x, None) for x, _ in batches()]


def rounded(rounding: str = "bernoulli", size: int = 3, **settings: Any) -> lpe.LowPrecisionEnsemble:
    return lpe.LowPrecisionEnsemble(network(), lpe.Int(3), size, rounding=rounding, **settings)


POSTERIOR = ("ivon", "swag")
METHODS: dict[str, Callable[..., Ensemble]] = {
    "lpe": lambda net, **s: lpe.LowPrecisionEnsemble(net, lpe.Int(3), 3, **s),
    "rtn": lambda net, **s: lpe.LowPrecisionEnsemble(net, lpe.Int(3), 1, rounding="nearest", **s),
    "gaussian": lambda net, **s: lpe.GaussianEnsemble(net, lpe.Int(3), 3, **s),
    "mc dropout": lambda net, **s: lpe.MCDropoutEnsemble(net, 0.3, 3, **s),
    "ivon": lambda net, **s: lpe.IVONEnsemble(
        net, {name: 0.1 * torch.ones_like(p) for name, p in net.named_parameters()}, 3, **s
    ),
    "swag": lambda net, **s: lpe.SWAGEnsemble(net, swag_statistics(net), 3, **s),
}


def swag_statistics(net: nn.Module) -> Any:
    from lpe.ensembles.swag import SWAGCollector

    collector = SWAGCollector(2)
    for shift in (0.0, 0.1, 0.3):
        moved = copy.deepcopy(net)
        for parameter in moved.parameters():
            parameter.data.add_(shift)
        collector.collect(moved)
    return collector.statistics()


def measured(net: nn.Module) -> dict[str, Tensor]:
    """Statistics that a network has after ``refresh``."""
    net = copy.deepcopy(net)
    refresh(net, data())
    return {name: buffer.double() for name, buffer in net.named_buffers()}


@pytest.mark.parametrize("method", METHODS)
def test_absolute_statistics_are_those_of_the_batches_under_the_members_weights(method: str) -> None:
    member = METHODS[method](network(dropout=0.5), batches=data(), refresh="absolute")[-1]
    found, expected = buffers(member), measured(member)
    for name in ("1.running_mean", "1.running_var", "5.running_mean", "5.running_var"):
        torch.testing.assert_close(found[name].double(), expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_relative_statistics_move_the_bases_as_the_members_differ_from_the_unrounded(method: str) -> None:
    net = network(dropout=0.5)
    member = METHODS[method](net, batches=data(), refresh="relative")[-1]
    found, of_member, of_base = buffers(member), measured(member), measured(net)
    for name in ("1.running_mean", "5.running_mean"):
        expected = 7.0 + of_member[name] - of_base[name]
        torch.testing.assert_close(found[name].double(), expected, rtol=1e-5, atol=1e-5)
    for name in ("1.running_var", "5.running_var"):
        expected = 9.0 * of_member[name] / of_base[name]
        torch.testing.assert_close(found[name].double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_unless_told_statistics_are_relative_and_a_posteriors_absolute(method: str) -> None:
    form = "absolute" if method in POSTERIOR else "relative"
    found = buffers(METHODS[method](network(), batches=data())[0])
    expected = buffers(METHODS[method](network(), batches=data(), refresh=form)[0])
    assert all(torch.equal(found[name], buffer) for name, buffer in expected.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_relative_statistics_leave_the_unrounded_network_as_it_is_to_the_bit(dtype: torch.dtype) -> None:
    net = network().to(dtype)
    inputs = [(x.to(dtype), None) for x, _ in data()]
    member = lpe.LowPrecisionEnsemble(net, lpe.FullPrecision(), 2, batches=inputs)[1]
    assert all(torch.equal(buffer, buffers(net)[name]) for name, buffer in buffers(member).items())


class Dead(nn.Module):
    """Channel 0 of the norm is the constant 3, but for a member's small weights; channel 1 lives."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 2)
        self.norm = nn.BatchNorm1d(2)
        self.first.weight.data = torch.stack([torch.zeros(4), torch.ones(4)])
        self.first.bias.data.fill_(3.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.first(x))


def test_a_channel_that_is_constant_in_both_networks_keeps_its_variance() -> None:
    member = lpe.LowPrecisionEnsemble(Dead(), lpe.Int(3), 1, batches=[(numbers((9, 4), 1), None)])[0]
    assert member.norm.running_var[0] == 1.0


def test_a_channel_that_is_constant_in_the_unrounded_network_alone_gets_what_the_member_adds() -> None:
    inputs = numbers((9, 4), 1)
    std = {"first.weight": torch.ones(2, 4)}
    ensemble = lpe.IVONEnsemble(Dead(), std, 1, batches=[(inputs, None)], refresh="relative")
    member = ensemble[0]
    torch.testing.assert_close(member.norm.running_var[0], 1.0 + member.first(inputs)[:, 0].var())


class Counted:
    """Batches that are other ones in every pass, and how often they were read."""

    def __init__(self) -> None:
        self.passes = 0

    def __iter__(self) -> Iterator[tuple[Tensor, None]]:
        self.passes += 1
        return iter([(numbers((8, 1, 4, 4), 100 + self.passes), None)])


@pytest.mark.parametrize("method", METHODS)
def test_a_members_statistics_are_estimated_once_whatever_is_asked(method: str) -> None:
    given = Counted()
    ensemble = METHODS[method](network(), batches=given)
    inputs = batches()[0][0]
    list(ensemble), list(ensemble.in_turn()), ensemble.predict(inputs)
    lpe.evaluate(ensemble, batches(), chunk_bytes=1, members="one-by-one")
    ensemble.memory_bits(), ensemble.describe()
    assert given.passes == len(ensemble)


@pytest.mark.parametrize("form", ["relative", "absolute"])
@pytest.mark.parametrize("method", METHODS)
def test_a_member_is_one_function_also_under_batches_that_change(method: str, form: str) -> None:
    ensemble = METHODS[method](network(), batches=Counted(), refresh=form)
    inputs = batches()[0][0]
    assert torch.equal(ensemble[0](inputs), ensemble[0](inputs))


def test_relative_statistics_compare_both_networks_on_the_same_batches() -> None:
    # Which change from pass to pass: the unrounded network's are measured beside each member's.
    net = network()
    ensemble = lpe.GaussianEnsemble(net, lpe.Int(3), 3, std=0.0, batches=Counted())
    for member in ensemble:
        assert all(torch.equal(buffer, buffers(net)[name]) for name, buffer in buffers(member).items())


def test_members_to_the_nearest_are_estimated_once_in_all() -> None:
    given = Counted()
    list(rounded("nearest", batches=given))
    assert given.passes == 1


@pytest.mark.parametrize("method", METHODS)
def test_what_is_read_once_is_refused(method: str) -> None:
    with pytest.raises(lpe.InputError, match="batches= is read once a member, and a generator can be read"):
        METHODS[method](network(), batches=(batch for batch in data()))


@pytest.mark.parametrize("method", METHODS)
def test_an_unknown_form_is_refused_by_name(method: str) -> None:
    with pytest.raises(lpe.InputError, match="refresh must be one of relative, absolute, not 'exact'"):
        METHODS[method](network(), batches=data(), refresh="exact")


def test_a_shuffling_loader_takes_nothing_from_the_global_generator_and_depends_on_none() -> None:
    inputs = torch.cat([x for x, _ in batches()])
    loader = torch.utils.data.DataLoader([(x, 0) for x in inputs], 5, shuffle=True)
    found = []
    for seed in (0, 1):
        ensemble = rounded(batches=loader)
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        found.append(buffers(ensemble[0]))
        assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(found[0][name], buffer) for name, buffer in found[1].items())


def test_members_in_turn_have_the_statistics_of_members_one_by_one() -> None:
    ensemble = rounded(batches=data())
    alone = [buffers(net) for net in rounded(batches=data())]
    for net, expected in zip(ensemble.in_turn(), alone, strict=True):
        assert all(torch.equal(buffer, expected[name]) for name, buffer in buffers(net).items())


def test_all_members_as_one_module_have_their_statistics() -> None:
    # Without the norm that has no statistics: it would see all members' examples.
    ensemble = lpe.LowPrecisionEnsemble(network()[:6], lpe.Int(3), 3, batches=data())
    inputs = batches()[0][0]
    expected = torch.stack([net(inputs) for net in ensemble])
    torch.testing.assert_close(ensemble.as_module()(inputs), expected, rtol=1e-4, atol=1e-5)


def test_a_member_is_made_in_inference_mode_too() -> None:
    expected = buffers(rounded(batches=data())[0])
    with torch.inference_mode():
        found = buffers(rounded(batches=data())[0])
    assert all(torch.equal(found[name], buffer) for name, buffer in expected.items())


def test_autocast_changes_no_statistics() -> None:
    expected = buffers(rounded(batches=data())[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = buffers(rounded(batches=data())[0])
    assert all(torch.equal(found[name], buffer) for name, buffer in expected.items())


def test_a_member_whose_statistics_change_leaves_the_ensembles_as_they_were() -> None:
    ensemble = rounded(batches=data())
    ensemble[0][1].running_mean.zero_()
    assert bool(ensemble[0][1].running_mean.any())


STATISTICS_BITS = 32 * 2 * (3 + 4)


@pytest.mark.parametrize("storage", ["members", "generator"])
@pytest.mark.parametrize(("rounding", "own"), [("bernoulli", 2), ("nearest", 0)])
def test_a_members_statistics_are_counted_each(storage: str, rounding: str, own: int) -> None:
    with_own, without = rounded(rounding, batches=data()), rounded(rounding)
    found = with_own.memory_bits(3, storage) - without.memory_bits(3, storage)
    assert found == own * STATISTICS_BITS


SAVED = [("members", None), ("seeded", "int8"), ("seeded", "bf16"), ("seeded", "fp32")]


@pytest.mark.parametrize("rounding", ["bernoulli", "nearest"])
@pytest.mark.parametrize(("kind", "base"), SAVED)
def test_a_files_members_have_statistics_of_their_own_weights(
    tmp_path: Path, kind: str, base: str | None, rounding: str
) -> None:
    lpe.save(rounded(rounding, batches=data(), refresh="absolute"), tmp_path / "file", kind, base)
    loaded = lpe.load(tmp_path / "file", network())
    assert len(loaded) == 3
    for net in loaded:
        found, expected = buffers(net), measured(net)
        for name in ("1.running_mean", "1.running_var", "5.running_mean", "5.running_var"):
            torch.testing.assert_close(found[name].double(), expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kind", "base"), [("members", None), ("seeded", "fp32")])
def test_a_saved_ensemble_predicts_as_before(tmp_path: Path, kind: str, base: str | None) -> None:
    ensemble = rounded(batches=data())
    lpe.save(ensemble, tmp_path / "file", kind, base)
    inputs = batches()[0][0]
    assert torch.equal(lpe.load(tmp_path / "file", network()).predict(inputs), ensemble.predict(inputs))


@pytest.mark.parametrize("n", [1, 3])
def test_a_files_memory_is_the_ensembles(tmp_path: Path, n: int) -> None:
    ensemble = rounded(batches=data())
    for kind, storage in (("members", "members"), ("seeded", "generator")):
        lpe.save(ensemble, tmp_path / kind, kind)
        assert lpe.load(tmp_path / kind, network()).memory_bits(n, storage) == ensemble.memory_bits(
            n, storage
        )


def test_a_seeded_file_gives_fewer_members_with_their_statistics(tmp_path: Path) -> None:
    ensemble = rounded(batches=data())
    lpe.save(ensemble, tmp_path / "file", "seeded", "fp32")
    inputs = batches()[0][0]
    found = lpe.load(tmp_path / "file", network(), size=2)
    assert torch.equal(found[1](inputs), ensemble[1](inputs))


def test_a_seeded_file_gives_no_more_members_than_it_has_statistics_of(tmp_path: Path) -> None:
    lpe.save(rounded(batches=data()), tmp_path / "file", "seeded")
    with pytest.raises(lpe.InputError, match="statistics of 3 members, not of 4"):
        lpe.load(tmp_path / "file", network(), size=4)


def test_a_loaded_ensemble_is_saved_again(tmp_path: Path) -> None:
    lpe.save(rounded(batches=data()), tmp_path / "first", "seeded", "fp32")
    once = lpe.load(tmp_path / "first", network())
    lpe.save(once, tmp_path / "second", "seeded", "fp32")
    assert (tmp_path / "second").read_bytes() == (tmp_path / "first").read_bytes()


def test_a_loaded_ensemble_is_not_saved_from_another_base(tmp_path: Path) -> None:
    lpe.save(rounded(batches=data()), tmp_path / "file", "seeded", "fp32")
    with pytest.raises(lpe.InputError, match="members from int8 are others; give base='fp32'"):
        lpe.save(lpe.load(tmp_path / "file", network()), tmp_path / "other", "seeded", "int8")


def test_a_mixtures_expansions_keep_their_statistics(tmp_path: Path) -> None:
    given = Counted()
    mixture = lpe.Mixture(
        lpe.DeepEnsemble([network(), network()]),
        lambda net, first: lpe.LowPrecisionEnsemble(net, lpe.Int(3), 2, first_member=first, batches=given),
    )
    for _ in range(2):
        mixture.predict(batches()[0][0])
    assert given.passes == 4


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "statistics as the model has them"),
        ({"batches": data()}, "re-estimated for each member, relative"),
    ],
)
def test_a_description_says_what_statistics_the_members_have(settings: dict[str, Any], said: str) -> None:
    assert said in rounded(**settings).describe().splitlines()[-1]


def test_a_description_names_norms_that_are_frozen() -> None:
    from torchvision.ops import FrozenBatchNorm2d

    net = nn.Sequential(nn.Conv2d(1, 3, 2), FrozenBatchNorm2d(3))
    last = lpe.LowPrecisionEnsemble(net, lpe.Int(3), 1, batches=data()).describe().splitlines()[-1]
    assert "statistics of 1 (FrozenBatchNorm2d) are never re-estimated" in last
