"""Landscapes: planes in weight space, grids on them, what a surface measures, and resuming a grid."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lpe
from lpe.evaluation.landscape import (
    Plane,
    Surface,
    grid_lines,
    measure_grid,
    plane_through,
    radial_plane,
    weight_vector,
)


def numbers(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# Weight vectors


def test_a_weight_vector_is_every_parameter_in_the_models_order() -> None:
    model = nn.Linear(2, 2)
    model.weight.data = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    model.bias.data = torch.tensor([5.0, 6.0])
    assert weight_vector(model).tolist() == [1, 2, 3, 4, 5, 6]


def test_a_weight_vector_is_float64() -> None:
    assert weight_vector(nn.Linear(2, 2)).dtype == torch.float64


def test_a_weight_vector_has_no_buffers() -> None:
    assert len(weight_vector(nn.BatchNorm1d(3))) == 6


def test_a_weight_vector_has_tied_parameters_once() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    assert len(weight_vector(model)) == 4


def test_changing_a_weight_vector_leaves_the_model_as_it_was() -> None:
    model = nn.Linear(2, 2, bias=False).double()
    before = model.weight.detach().clone()
    weight_vector(model).add_(1.0)
    assert torch.equal(model.weight, before)


# Planes


def check_the_axes_are_orthonormal(*points: Tensor) -> None:
    """In float64: a few ulp, however close the points are."""
    axes = plane_through(*points).axes
    assert axes.dtype == torch.float64
    assert (axes @ axes.T - torch.eye(2, dtype=torch.float64)).abs().max() <= 1e-14


def test_axes_through_three_points_that_nearly_coincide_are_orthonormal() -> None:
    first, step, other = (numbers((1000,), seed) for seed in (0, 1, 2))
    check_the_axes_are_orthonormal(first, first + 1e-4 * step, first + 1e-4 * other)


def test_axes_through_three_points_almost_on_a_line_are_orthonormal() -> None:
    first, step, other = (numbers((1000,), seed) for seed in (0, 1, 2))
    check_the_axes_are_orthonormal(first, first + step, first + 0.7 * step + 1e-5 * other)


def test_axes_of_a_single_pass_of_gram_schmidt_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    first, step, other = (numbers((1000,), seed) for seed in (0, 1, 2))
    u, v = step, 0.7 * step + 1e-5 * other
    x_axis = u / u.norm()
    v = v - (v @ x_axis) * x_axis
    single_pass = Plane(first, torch.stack([x_axis, v / v.norm()]))
    monkeypatch.setitem(globals(), "plane_through", lambda *points: single_pass)
    with pytest.raises(AssertionError):
        check_the_axes_are_orthonormal(first, first + u, first + 0.7 * step + 1e-5 * other)


def three() -> tuple[Tensor, Tensor, Tensor]:
    return numbers((20,), 3), numbers((20,), 4), numbers((20,), 5)


def test_the_first_point_is_the_origin() -> None:
    first, second, third = three()
    assert plane_through(first, second, third).coordinates(first) == (0.0, 0.0, 0.0)


def test_the_second_point_is_on_the_positive_x_axis_at_its_distance() -> None:
    first, second, third = three()
    got = plane_through(first, second, third).coordinates(second)
    assert got == pytest.approx((float((second - first).norm()), 0.0, 0.0), abs=1e-12)


def test_the_third_point_is_above_the_x_axis_at_its_distances() -> None:
    first, second, third = three()
    x, y, off = plane_through(first, second, third).coordinates(third)
    distance = float((second - first).norm())
    assert y > 0
    assert math.hypot(x, y) == pytest.approx(float((third - first).norm()))
    assert math.hypot(x - distance, y) == pytest.approx(float((third - second).norm()))
    assert off == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_points_coordinates_lead_back_to_it(index: int) -> None:
    points = three()
    plane = plane_through(*points)
    x, y, _ = plane.coordinates(points[index])
    torch.testing.assert_close(plane.at(x, y), points[index], rtol=0, atol=1e-12)


def test_coordinates_off_the_plane_are_the_projection_and_the_distance() -> None:
    plane = Plane(torch.tensor([1.0, 1.0, 1.0, 1.0]).double(), torch.eye(2, 4).double())
    assert plane.coordinates(torch.tensor([3.0, -4.0, 4.0, 5.0]).double()) == (2.0, -5.0, 5.0)


def test_the_radial_plane_has_the_zero_vector_at_the_origin() -> None:
    _, second, third = three()
    assert radial_plane(second, third).coordinates(torch.zeros(20).double()) == (0.0, 0.0, 0.0)


def test_the_radial_plane_has_the_first_solution_on_the_x_axis_at_its_norm() -> None:
    _, second, third = three()
    got = radial_plane(second, third).coordinates(second)
    assert got == pytest.approx((float(second.norm()), 0.0, 0.0), abs=1e-12)


def test_the_radial_plane_contains_the_second_solution() -> None:
    _, second, third = three()
    assert radial_plane(second, third).coordinates(third)[2] == pytest.approx(0.0, abs=1e-12)


def test_equal_first_points_are_refused() -> None:
    first, second, _ = three()
    with pytest.raises(lpe.InputError, match="equal"):
        plane_through(first, first.clone(), second)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0, -3.0])
def test_points_on_one_line_are_refused(share: float) -> None:
    first, second, _ = three()
    with pytest.raises(lpe.InputError, match="one line"):
        plane_through(first, second, first + share * (second - first))


def test_solutions_on_one_ray_are_refused() -> None:
    first, _, _ = three()
    with pytest.raises(lpe.InputError, match="one line"):
        radial_plane(first, 2 * first)


def test_points_of_different_lengths_are_refused() -> None:
    first, second, _ = three()
    with pytest.raises(lpe.InputError, match=r"shapes \[20\], \[20\] and \[19\] span no plane"):
        plane_through(first, second, first[:-1])


# Grids


ANCHORS = (0.0, 0.1, 1.0 / 3.0, 2.0)


def test_every_anchor_is_a_grid_line_exactly() -> None:
    assert set(ANCHORS) <= set(grid_lines(ANCHORS, 11, 0.25).tolist())


def test_the_grid_covers_the_anchors_and_the_margin() -> None:
    lines = grid_lines(ANCHORS, 11, 0.25)
    assert (lines[0], lines[-1]) == pytest.approx((-0.5, 2.5))


def test_a_margin_narrower_than_a_sliver_is_covered_too() -> None:
    lines = grid_lines(ANCHORS, 11, 0.01)
    assert (lines[0], lines[-1]) == pytest.approx((-0.02, 2.02))


def test_grid_lines_increase() -> None:
    assert (np.diff(grid_lines(ANCHORS, 11, 0.25)) > 0).all()


def test_a_grid_has_as_many_lines_as_asked_for_or_more() -> None:
    assert all(len(grid_lines(ANCHORS, n, margin)) >= n for n in range(2, 40) for margin in (0.0, 0.1, 1.0))


def test_no_even_line_inside_the_grid_makes_a_sliver_beside_an_anchor() -> None:
    # Even spacing 0.3; the anchors 0 and 0.1 are 0.1 apart themselves.
    lines = grid_lines(ANCHORS, 11, 0.25)
    inner = [x for x in lines[1:-1] if x not in ANCHORS]
    assert all(min(abs(x - a) for a in ANCHORS) > 0.2 * 0.3 for x in inner)


def test_a_single_anchor_gets_a_grid_around_it() -> None:
    np.testing.assert_allclose(grid_lines((3.0,), 3, 0.5), [2.5, 3.0, 3.5])


@pytest.mark.parametrize("resolution", [1, 0, -1])
def test_a_grid_of_fewer_than_two_lines_is_refused(resolution: int) -> None:
    with pytest.raises(lpe.InputError, match="a grid's lines must be an integer from 2 to"):
        grid_lines(ANCHORS, resolution, 0.25)


# Surfaces

Batch = tuple[Tensor, Tensor]


def classifier(seed: int) -> nn.Sequential:
    """3 inputs, 4 classes."""
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4))
    for index, parameter in enumerate(model.parameters()):
        parameter.data.copy_(numbers(tuple(parameter.shape), 10 * seed + index))
    return model


def batches() -> list[Batch]:
    return [(numbers((n, 3), n, torch.float32), torch.arange(n) % 4) for n in (12, 7)]


def single(model: nn.Module) -> lpe.DeepEnsemble:
    return lpe.DeepEnsemble([model])


@pytest.mark.parametrize("metric", ["nll", "err"])
def test_a_surface_at_the_models_weights_measures_what_evaluate_does(metric: str) -> None:
    model = classifier(1)
    got = Surface(model, batches()).measure(weight_vector(model))[metric]
    assert got == pytest.approx(float(lpe.evaluate(single(model), batches())[metric][0]), rel=1e-12)


def test_a_surface_at_other_weights_measures_the_model_of_those_weights() -> None:
    got = Surface(classifier(1), batches()).measure(weight_vector(classifier(2)))["nll"]
    assert got == pytest.approx(float(lpe.evaluate(single(classifier(2)), batches())["nll"][0]), rel=1e-12)


def test_measuring_leaves_the_model_as_it_was() -> None:
    model = classifier(1)
    Surface(model, batches(), {"a": weight_vector(classifier(2))}).measure(weight_vector(classifier(3)))
    assert torch.equal(weight_vector(model), weight_vector(classifier(1)))


def test_measuring_leaves_the_training_flags_as_they_were() -> None:
    model = classifier(1).train()
    Surface(model, batches()).measure(weight_vector(model))
    assert all(module.training for module in model.modules())


def test_a_surface_measures_in_eval_mode() -> None:
    model = nn.Sequential(nn.Dropout(0.5), *classifier(1)).train()
    surface = Surface(model, batches())
    expected = Surface(classifier(1), batches()).measure(weight_vector(model))
    assert surface.measure(weight_vector(model)) == expected


def test_a_surface_does_not_follow_the_model_when_it_changes_later() -> None:
    model = Tempered(0.0, 1.0)
    surface = Surface(model, [(torch.zeros(1, 1), torch.tensor([0]))])
    before = surface.measure(torch.tensor([0.0, 1.0]))
    model.logits.data.fill_(5.0)
    model.temperature.fill_(5.0)
    assert surface.measure(torch.tensor([0.0, 1.0])) == before


def test_batches_that_can_be_read_once_are_enough() -> None:
    model = classifier(1)
    surface = Surface(model, iter(batches()))
    assert surface.measure(weight_vector(model)) == surface.measure(weight_vector(model))


class Bias(nn.Module):
    """Logits that are weights, whatever the input."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.logits.expand(len(inputs), -1)


class Tempered(Bias):
    """The same, over a temperature that is a buffer."""

    def __init__(self, *logits: float) -> None:
        super().__init__(*logits)
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) / self.temperature


def log_weights(*probabilities: float) -> Tensor:
    return torch.tensor(probabilities).log().double()


def bias_surface(anchors: Mapping[str, Tensor] | None = None) -> Surface:
    """Four examples of classes 0, 0, 0 and 1."""
    return Surface(Bias(0.0, 0.0), [(torch.zeros(4, 1), torch.tensor([0, 0, 0, 1]))], anchors)


def test_the_nll_is_that_of_the_weights_probabilities() -> None:
    got = bias_surface().measure(log_weights(0.8, 0.2))["nll"]
    assert got == pytest.approx(-(3 * math.log(0.8) + math.log(0.2)) / 4, rel=1e-6)


def test_the_error_is_the_share_of_wrong_predictions() -> None:
    assert bias_surface().measure(log_weights(0.8, 0.2))["err"] == 0.25


def test_the_kl_is_from_the_anchor_to_the_point() -> None:
    surface = bias_surface({"a": log_weights(0.8, 0.2)})
    expected = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)
    assert surface.measure(log_weights(0.5, 0.5))["kl a"] == pytest.approx(expected, rel=1e-6)


def test_the_kl_is_zero_at_the_anchor() -> None:
    anchor = weight_vector(classifier(2))
    assert Surface(classifier(1), batches(), {"a": anchor}).measure(anchor)["kl a"] == 0.0


def test_the_disagreement_is_zero_at_the_anchor() -> None:
    anchor = weight_vector(classifier(2))
    assert Surface(classifier(1), batches(), {"a": anchor}).measure(anchor)["disagreement a"] == 0.0


def test_the_disagreement_is_the_share_of_examples_of_another_prediction() -> None:
    # Logits (0, x₁) and (0, x₂): the prediction is a sign, and the signs differ on the last two of five.
    model = nn.Linear(2, 2, bias=False)
    inputs = torch.tensor([[1.0, 1.0], [2.0, 1.0], [-1.0, -2.0], [3.0, -1.0], [-2.0, 1.0]])
    first = torch.tensor([0.0, 0.0, 1.0, 0.0]).double()
    second = torch.tensor([0.0, 0.0, 0.0, 1.0]).double()
    surface = Surface(model, [(inputs, torch.zeros(5, dtype=torch.int64))], {"first": first})
    assert surface.measure(second)["disagreement first"] == pytest.approx(2 / 5)


def test_each_anchor_is_measured_against() -> None:
    surface = bias_surface({"a": log_weights(0.8, 0.2), "b": log_weights(0.3, 0.7)})
    values = surface.measure(log_weights(0.6, 0.4))
    assert (values["disagreement a"], values["disagreement b"]) == (0.0, 1.0)


def test_the_anchors_names_are_those_given() -> None:
    assert bias_surface({"a": log_weights(0.8, 0.2), "b": log_weights(0.3, 0.7)}).anchor_names == ["a", "b"]


def test_without_batches_a_surface_is_refused() -> None:
    with pytest.raises(lpe.InputError, match="empty"):
        Surface(classifier(1), [])


@pytest.mark.parametrize("missing", [1, -1])
def test_a_vector_of_another_length_is_refused(missing: int) -> None:
    model = classifier(1)
    with pytest.raises(lpe.InputError, match="the model has 44 weights"):
        Surface(model, batches()).measure(torch.zeros(44 - missing).double())


# Batch norm


def normalised() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4))


def test_batch_norm_statistics_are_re_estimated_at_each_point() -> None:
    # What the norm sees is scaled by 3 and then normalised (ε aside): the same function, if re-estimated.
    model = normalised()
    model[0].weight.data.copy_(100 * numbers((4, 3), 8))
    surface = Surface(model, batches(), statistics=batches())
    weights = weight_vector(model)
    scaled = torch.cat([3 * weights[:12], weights[12:]])
    surface.measure(torch.zeros_like(weights))
    assert surface.measure(scaled)["nll"] == pytest.approx(surface.measure(weights)["nll"], rel=1e-5)


def test_statistics_come_from_the_training_batches_and_not_from_the_data() -> None:
    model = normalised()
    train = [(1 + 2 * inputs, targets) for inputs, targets in batches()]
    got = Surface(model, batches(), statistics=train).measure(weight_vector(model))["nll"]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    seen = torch.cat([model[0](inputs) for inputs, _ in train])
    mean, variance = seen.mean(dim=0), seen.var(dim=0)
    inputs, targets = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    logits = (model[0](inputs) - mean) / (variance + 1e-5).sqrt()
    assert got == pytest.approx(nn.functional.cross_entropy(logits, targets).item(), rel=1e-5)


def test_measuring_leaves_the_models_running_statistics_as_they_were() -> None:
    model = normalised()
    Surface(model, batches(), statistics=batches()).measure(weight_vector(model))
    assert bool((model[1].running_mean == 0).all()) and bool((model[1].running_var == 1).all())


def test_batch_norms_without_training_batches_are_refused() -> None:
    model = normalised()
    with pytest.raises(lpe.InputError, match="training batches"):
        Surface(model, batches()).measure(weight_vector(model))


# Grids of measurements


class Counting:
    """A surface that measures where it is, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[float, float]] = []

    def measure(self, weights: Tensor) -> dict[str, float]:
        x, y = weights.tolist()
        self.asked.append((x, y))
        return {"nll": 10 * x + y}


XS, YS = (0.0, 1.0), (0.0, 2.0, 4.0)
FLAT = Plane(torch.zeros(2).double(), torch.eye(2).double())


def test_a_grid_is_kept_a_point_at_a_time() -> None:
    surface = Counting()
    after: list[tuple[float, int]] = []
    measure_grid(surface, FLAT, XS, YS, keep=lambda row: after.append((row["x"], len(surface.asked))))  # type: ignore[arg-type]
    assert after == [(0.0, 1), (1.0, 2), (0.0, 3), (1.0, 4), (0.0, 5), (1.0, 6)]


def test_every_row_has_its_coordinates_and_the_surfaces_values() -> None:
    rows: list[dict[str, float]] = []
    measure_grid(Counting(), FLAT, XS, YS, keep=rows.append)  # type: ignore[arg-type]
    assert rows == [{"x": x, "y": y, "nll": 10 * x + y} for y in YS for x in XS]


def test_points_that_are_done_are_neither_measured_nor_kept_again() -> None:
    surface, kept = Counting(), []
    done = {(1.0, 0.0), (0.0, 2.0), (1.0, 2.0)}
    measure_grid(
        surface, FLAT, XS, YS, lambda x, y: (x, y) in done, lambda row: kept.append((row["x"], row["y"]))
    )  # type: ignore[arg-type]
    assert surface.asked == kept == [(0.0, 0.0), (0.0, 4.0), (1.0, 4.0)]


@pytest.mark.parametrize("points", range(6))
def test_a_killed_grid_goes_on_to_the_same_rows(points: int) -> None:
    rows: list[dict[str, float]] = []

    def until_killed(row: dict[str, float]) -> None:
        if len(rows) == points:
            raise KeyboardInterrupt
        rows.append(row)

    with pytest.raises(KeyboardInterrupt):
        measure_grid(Counting(), FLAT, XS, YS, keep=until_killed)  # type: ignore[arg-type]
    finished = {(row["x"], row["y"]) for row in rows}
    measure_grid(Counting(), FLAT, XS, YS, lambda x, y: (x, y) in finished, rows.append)  # type: ignore[arg-type]
    assert rows == [{"x": x, "y": y, "nll": 10 * x + y} for y in YS for x in XS]
