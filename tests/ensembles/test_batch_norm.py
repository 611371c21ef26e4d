"""Batch-norm statistics: what a refresh estimates, and what it leaves as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import lpe
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


def test_the_first_norms_statistics_are_the_means_over_the_batches() -> None:
    model = network()
    refresh(model, batches())
    seen = [
        nn.functional.conv2d(x, model[0].weight, model[0].bias).transpose(0, 1).flatten(1)
        for x, _ in batches()
    ]
    means = torch.stack([values.mean(dim=1) for values in seen])
    variances = torch.stack([values.var(dim=1) for values in seen])
    torch.testing.assert_close(model[1].running_mean, means.mean(dim=0))
    torch.testing.assert_close(model[1].running_var, variances.mean(dim=0))


def test_all_statistics_are_those_of_update_bn() -> None:
    # update_bn runs the whole model in train mode; without dropout that is the same.
    model, reference = network(), network()
    refresh(model, batches())
    torch.optim.swa_utils.update_bn([x for x, _ in batches()], reference)
    got, expected = buffers(model), buffers(reference)
    assert set(got) == set(expected)
    for name, buffer in got.items():
        torch.testing.assert_close(buffer, expected[name])


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
