"""Figures 1, 4 and 6: the planes they measure, the grid points of figure 1, and what their panels show."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

import lpe
from lpe.errors import InputError
from lpe.evaluation.landscape import Surface, weight_vector
from lpe.records import COLUMNS, write_table
from lpe.substrates import digits
from reproduce import fig1, fig4, fig6
from reproduce.command import opened, run_figure
from reproduce.draw import panels
from reproduce.scales import find
from reproduce.study.landscapes import (
    BMA,
    GRID_COLUMNS,
    LOW,
    PLANE_CLOUD_COLUMNS,
    PLANE_GRID_COLUMNS,
    RADIAL,
    THROUGH,
    WeightPair,
    expected_rise,
    point_of,
    rounding_pairs,
    squared_gradients,
)
from reproduce.study.scale import Scale
from reproduce.study.session import Session

INT3 = lpe.Int(3)


# Planes of two weights.


@pytest.fixture
def model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4)).eval()


@pytest.fixture
def split() -> digits.Split:
    draws = torch.Generator().manual_seed(1)
    return torch.randn(20, 8, generator=draws), torch.randint(4, (20,), generator=draws)


@pytest.fixture
def pair(model: nn.Module) -> WeightPair:
    return rounding_pairs(model, INT3, torch.ones(weight_vector(model).shape), 1)[0]


def test_squared_gradients_are_those_of_a_linear_network(split: digits.Split) -> None:
    linear = nn.Linear(8, 4).eval()
    images, labels = split
    # NLL of softmax(Wx + b): the gradient is (p − onehot) xᵀ in W and p − onehot in b.
    with torch.no_grad():
        residuals = (linear(images).softmax(-1) - nn.functional.one_hot(labels, 4)).double()
    weight = torch.einsum("no,ni->noi", residuals, images.double()).square().mean(0)
    expected = torch.cat([weight.flatten(), residuals.square().mean(0)])
    assert torch.allclose(squared_gradients(linear, *split), expected, rtol=1e-4, atol=1e-8)


def test_squared_gradients_leave_no_gradient_in_the_network(model: nn.Module, split: digits.Split) -> None:
    squared_gradients(model, *split)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_candidates_come_by_the_rise_to_second_order(model: nn.Module, split: digits.Split) -> None:
    curvature = squared_gradients(model, *split)
    found = rounding_pairs(model, INT3, curvature, 100)
    # Anew, weight by weight, from the definitions.
    rises: dict[tuple[str, int], list[float]] = {}
    start = 0
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            for channel, row in enumerate(parameter.detach().double()):
                step = float(row.abs().max()) / 3
                up = row / step - (row / step).floor()
                weights = curvature[start + channel * len(row) : start + (channel + 1) * len(row)]
                terms = 0.5 * weights * step**2 * up * (1 - up)
                rises[name, channel] = terms.sort(descending=True).values[:2].tolist()
        start += parameter.numel()
    expected = sorted(rises, key=lambda each: -sum(rises[each]))
    assert [(each.name, each.channel) for each in found] == expected


def test_the_pair_is_where_the_weight_vector_has_it(model: nn.Module, pair: WeightPair) -> None:
    row = dict(model.named_parameters())[pair.name][pair.channel].detach()
    vector = weight_vector(model)
    for place, position, value in zip(pair.places, pair.inputs, pair.values, strict=True):
        assert float(vector[place]) == float(row[position]) == value


def test_a_scale_axis_without_a_step_of_each_channel_is_refused(model: nn.Module) -> None:
    with pytest.raises(InputError, match="PerChannel"):
        rounding_pairs(model, lpe.Int(3, lpe.PerTensor()), torch.ones(weight_vector(model).shape), 1)


def rounded(model: nn.Module, pair: WeightPair, rounding: str, members: int) -> list[tuple[float, float]]:
    """The pair's values in members of the real thing."""
    weight = dict(model.named_parameters())[pair.name]
    drawn = []
    for member in range(members):
        row = lpe.round_weights(weight, INT3, rounding, 0, pair.name, member)[pair.channel]
        drawn.append((float(row[pair.inputs[0]]), float(row[pair.inputs[1]])))
    return drawn


def test_the_neighbours_are_where_bsr_rounds_to_and_nowhere_else(model: nn.Module, pair: WeightPair) -> None:
    # All four have a probability of .1 and more: 200 members miss one with a probability below 1e-8.
    assert min(pair.neighbours().values()) > 0.1
    assert set(rounded(model, pair, "bernoulli", 200)) == {pair.place(codes) for codes in pair.neighbours()}


def test_the_nearest_grid_point_is_where_rtn_rounds_to(model: nn.Module) -> None:
    for each in rounding_pairs(model, INT3, torch.ones(weight_vector(model).shape), 10):
        assert rounded(model, each, "nearest", 1) == [each.place(each.nearest())]


@pytest.mark.parametrize("codes", [(0.25, -1.5), (3.0, 0.5), (-3.0, 3.0), (0.0, 0.0)])
def test_the_probabilities_sum_to_one(codes: tuple[float, float]) -> None:
    made = WeightPair("weight", 0, (0, 1), (0, 1), codes, 1.0, codes)
    assert sum(made.neighbours().values()) == pytest.approx(1, abs=1e-12)


def test_a_weight_on_the_grid_stays_there() -> None:
    made = WeightPair("weight", 0, (0, 1), (0, 1), (3.0, -0.25), 1.0, (3.0, -0.25))
    assert made.neighbours() == {(3, -1): 0.25, (3, 0): 0.75}


DRAWS = 1000


def agrees(probabilities: dict[tuple[float, float], float], drawn: list[tuple[float, float]]) -> bool:
    """Whether shares of draws are the probabilities: within 4.5 binomial standard errors each.

    Four points together are farther off by chance once in 37,000 times; 2⁻¹⁷, what BSR's random numbers
    round a probability by, is a two-thousandth of a standard error.
    """
    shares = {place: drawn.count(place) / len(drawn) for place in {*drawn, *probabilities}}
    return all(
        abs(share - probabilities.get(place, 0.0))
        <= 4.5 * (probabilities.get(place, 0.0) * (1 - probabilities.get(place, 0.0)) / len(drawn)) ** 0.5
        for place, share in shares.items()
    )


@pytest.fixture
def lopsided(model: nn.Module) -> WeightPair:
    """A pair of which one weight goes up more often than not and the other less often."""
    weight = dict(model.named_parameters())["0.weight"].detach()
    codes = weight[0] / (weight[0].abs().max() / 3)
    up = codes - codes.floor()
    first, second = int((up - 0.75).abs().argmin()), int((up - 0.3).abs().argmin())
    step = float(weight[0].abs().max() / 3)
    values = (float(weight[0, first]), float(weight[0, second]))
    both = (float(codes[first]), float(codes[second]))
    return WeightPair("0.weight", 0, (first, second), (first, second), values, step, both)


def test_the_probabilities_are_those_of_real_draws(model: nn.Module, lopsided: WeightPair) -> None:
    drawn = rounded(model, lopsided, "bernoulli", DRAWS)
    assert agrees({lopsided.place(codes): p for codes, p in lopsided.neighbours().items()}, drawn)


def swapped(pair: WeightPair) -> dict[tuple[int, int], float]:
    """Up and down confused."""
    places, chances = zip(*pair.neighbours().items(), strict=True)
    return dict(zip(places, reversed(chances), strict=True))


def first_alone(pair: WeightPair) -> dict[tuple[int, int], float]:
    """The second weight's probability left out."""
    low = int(np.floor(pair.codes[0]))
    up = pair.codes[0] - low
    return {codes: (up if codes[0] > low else 1 - up) / 2 for codes in pair.neighbours()}


@pytest.mark.parametrize(
    "fault",
    [
        swapped,
        first_alone,
        lambda pair: dict.fromkeys(pair.neighbours(), 0.25),
        lambda pair: {pair.nearest(): 1.0},
    ],
    ids=["up and down swapped", "second weight left out", "all alike", "always the nearest"],
)
def test_the_check_of_the_probabilities_catches(
    fault: Callable[[WeightPair], dict[tuple[int, int], float]], model: nn.Module, lopsided: WeightPair
) -> None:
    drawn = rounded(model, lopsided, "bernoulli", DRAWS)
    assert not agrees({lopsided.place(codes): p for codes, p in fault(lopsided).items()}, drawn)


def test_the_plane_holds_all_but_the_two_weights(model: nn.Module, pair: WeightPair) -> None:
    weights = weight_vector(model)
    moved = pair.plane(weights).at(5.0, -7.0)
    assert [float(moved[place]) for place in pair.places] == [5.0, -7.0]
    assert int((moved != weights).sum()) == 2


def test_the_trained_point_is_in_the_plane_at_its_two_weights(model: nn.Module, pair: WeightPair) -> None:
    weights = weight_vector(model)
    assert pair.plane(weights).coordinates(weights) == (*pair.values, 0.0)


class Bowl(Surface):
    """A surface of which the expected rise is known: the sum of squares."""

    def __init__(self) -> None:
        pass

    def measure(self, weights: torch.Tensor) -> dict[str, float]:
        return {"nll": float(weights.square().sum())}


def test_the_expected_rise_on_a_bowl_is_the_variance_of_the_rounding(
    model: nn.Module, pair: WeightPair
) -> None:
    up = [code % 1 for code in pair.codes]
    variance = pair.step**2 * sum(p * (1 - p) for p in up)
    assert expected_rise(Bowl(), weight_vector(model), pair) == pytest.approx(variance, rel=1e-4)


# What compute writes, at the reduced scale.


@pytest.fixture
def session(tiny: Scale, tmp_path: Path) -> Iterator[Session]:
    with opened("test", tiny, 1, tmp_path, "disabled", quiet=True) as session:
        yield session


@pytest.fixture
def measured_fig1(session: Session, monkeypatch: pytest.MonkeyPatch) -> tuple[pd.DataFrame, pd.DataFrame]:
    monkeypatch.setattr(fig1, "CANDIDATES", 3)
    fig1.compute(session)
    return pd.read_csv(session.out / "fig1.csv"), pd.read_csv(session.out / "fig1_landscape.csv")


def test_figure_1s_points_are_on_its_surface(
    measured_fig1: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    points, grid = measured_fig1
    found = points.merge(grid, on=["x", "y"])
    assert len(found) == len(points) and np.allclose(found["value"], found["nll"], rtol=1e-9)


def test_figure_1s_nearest_point_is_the_closest_neighbour(
    measured_fig1: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    points, _ = measured_fig1
    trained, nearest = (points[points["what"] == what].iloc[0] for what in ("trained", "nearest"))
    neighbours = points[points["what"] == "neighbour"]
    distances = (neighbours["x"] - trained["x"]) ** 2 + (neighbours["y"] - trained["y"]) ** 2
    closest = neighbours.loc[distances.idxmin()]
    assert (nearest["x"], nearest["y"]) == (closest["x"], closest["y"])


def test_figure_1s_grid_reaches_over_every_code(
    measured_fig1: tuple[pd.DataFrame, pd.DataFrame], tiny: Scale
) -> None:
    points, grid = measured_fig1
    edge = (lpe.Int(min(tiny.settings.bits)).largest_code + fig1.BEYOND) * points["step"].iloc[0]
    for axis in ("x", "y"):
        assert grid[axis].min() < -edge + 1e-9 and grid[axis].max() > edge - 1e-9


ANCHORS = {fig4: (fig4.FIRST, fig4.SECOND, LOW), fig6: (point_of("IVON"), BMA, LOW)}
"""The solutions of a landscape, the first of which is the origin of the plane through them."""
SPANNING = {fig4: (fig4.FIRST, fig4.SECOND), fig6: (BMA, LOW)}
"""Those that span the radial plane."""


def own(anchor: str, folder: Path, name: str, plane: str = THROUGH) -> dict[str, float]:
    """What the landscape says at an anchor's place, by metric."""
    members = pd.read_csv(folder / f"{name}_members.csv")
    here = (members["method"] == anchor) & (members["member"] == 0) & (members["plane"] == plane)
    (place,) = (row for _, row in members[here].iterrows())
    grid = pd.read_csv(folder / f"{name}_landscape.csv")
    grid = grid[grid["plane"] == plane]
    here = grid[(grid["x"] == place["x"]) & (grid["y"] == place["y"])]
    return {**here.set_index("metric")["value"].to_dict(), "own nll": place["nll"]}


@pytest.mark.parametrize("module", [fig4, fig6], ids=["fig4", "fig6"])
def test_nothing_changes_from_an_anchor_at_its_own_place(module: ModuleType, session: Session) -> None:
    name = module.__name__.rsplit(".", 1)[-1]
    module.measure_landscape(session)
    # All three lie on the plane through them; coordinates are float32-exact to about 1e-7.
    for anchor in ANCHORS[module]:
        values = own(anchor, session.out, name)
        assert values[f"disagreement {anchor}"] == 0
        assert abs(values[f"kl {anchor}"]) < 1e-9
        assert values["nll"] == pytest.approx(values["own nll"], abs=1e-5)
    for anchor in SPANNING[module]:
        values = own(anchor, session.out, name, RADIAL)
        assert values["nll"] == pytest.approx(values["own nll"], abs=1e-5)


def test_the_anchors_span_the_planes_that_are_named_for_them(session: Session) -> None:
    fig6.measure_landscape(session)
    members = pd.read_csv(session.out / "fig6_members.csv")
    firsts = members[members["member"] == 0].set_index(["plane", "method"])
    off = firsts["distance_from_plane"]
    assert off[RADIAL][list(SPANNING[fig6])].max() < 1e-4 < off[RADIAL][point_of("IVON")]
    assert off[THROUGH].max() < 1e-4
    origin, on_axis = (firsts.loc[(THROUGH, name)] for name in (point_of("IVON"), BMA))
    assert (origin["x"], origin["y"], on_axis["y"]) == pytest.approx((0, 0, 0), abs=1e-4)
    assert on_axis["x"] == pytest.approx(on_axis["distance_from_point"], abs=1e-4)


def test_the_radial_plane_is_measured_from_the_zero_vector_on(session: Session) -> None:
    fig6.measure_landscape(session)
    grid = pd.read_csv(session.out / "fig6_landscape.csv")
    zero = grid[(grid["plane"] == RADIAL) & (grid["x"] == 0) & (grid["y"] == 0) & (grid["metric"] == "nll")]
    # A network of zeros says the same of every image.
    assert zero["value"].item() == pytest.approx(np.log(10), rel=1e-5)


def test_figure_6_projects_every_member_of_the_clouds(session: Session, tiny: Scale) -> None:
    fig6.measure_landscape(session)
    members = pd.read_csv(session.out / "fig6_members.csv")
    cloud = tiny.settings.landscape.cloud
    for plane in (RADIAL, THROUGH):
        counts = members[members["plane"] == plane]["method"].value_counts()
        assert counts.to_dict() == {point_of("IVON"): 1, BMA: cloud, LOW: cloud}


def test_figure_4s_landscape_agrees_with_the_record_that_the_claim_is_judged_on(
    figure: Callable[..., int], tmp_path: Path
) -> None:
    assert figure(fig4, tmp_path, "--seeds", "1") == 0
    record = pd.read_csv(tmp_path / "fig4.csv")
    second = record[record["number_system"] == "fp32"]["value"].item()
    assert own(fig4.SECOND, tmp_path, "fig4")[f"disagreement {fig4.FIRST}"] == pytest.approx(second, abs=1e-9)


def test_figure_4_wants_the_disagreement_of_every_seed_of_the_claim(session: Session) -> None:
    session = replace(session, claim_seeds=[0, 1, 2])
    assert [(unit.what, unit.seed) for unit in fig4.wanted(session)] == [
        ("disagreement", s) for s in range(3)
    ]


# What draw shows, from made-up records.

STEP = 0.25


def fig1_record(folder: Path) -> None:
    made = WeightPair("head.weight", 2, (4, 1), (0, 1), (0.1, -0.3), STEP, (0.4, -1.2))
    common = {
        "tensor": made.name,
        "channel": made.channel,
        "x_input": made.inputs[0],
        "y_input": made.inputs[1],
        "step": STEP,
        "bits": 3,
    }
    rows = [("trained", made.codes, 0.0), ("nearest", made.nearest(), 1.0)]
    rows += [("neighbour", codes, p) for codes, p in made.neighbours().items()]
    points = [
        {
            "what": what,
            "x_code": codes[0],
            "y_code": codes[1],
            "x": codes[0] * STEP,
            "y": codes[1] * STEP,
            "probability": probability,
            "nll": 0.05 + 0.001 * number,
            **common,
        }
        for number, (what, codes, probability) in enumerate(rows)
    ]
    write_table(points, folder / "fig1.csv", fig1.POINT_COLUMNS)
    lines = np.linspace(-3.5 * STEP, 3.5 * STEP, 8)
    grid = [
        {"x": x, "y": y, "metric": "nll", "value": 0.05 + x**2 + y**2}
        for x, y in itertools.product(lines, lines)
    ]
    write_table(grid, folder / "fig1_landscape.csv", GRID_COLUMNS)


PLACES = [(35.0, 0.0), (31.0, 7.0), (34.0, 1.0)]
"""Of the anchors, on either plane."""


def missed(module: ModuleType) -> str:
    """The anchor that the radial plane misses."""
    (name,) = set(ANCHORS[module]) - set(SPANNING[module])
    return name


def radial_record(module: ModuleType, folder: Path) -> None:
    name = module.__name__.rsplit(".", 1)[-1]
    places = dict(zip(ANCHORS[module], PLACES, strict=True))
    members = [
        {
            "plane": plane,
            "method": method,
            "member": member,
            "x": x + 0.02 * member,
            "y": y - 0.01 * member,
            "distance_from_plane": 8.7 if member else 2.5 * (plane == RADIAL and method == missed(module)),
            "distance_from_point": 2.5,
            "nll": 0.05,
        }
        for plane in (RADIAL, THROUGH)
        for method, (x, y) in places.items()
        for member in range(3)
    ]
    write_table(members, folder / f"{name}_members.csv", PLANE_CLOUD_COLUMNS)
    grid = []
    # Around the anchors; the radial plane from the origin on.
    for x, y in itertools.product((0.0, 28.0, 31.0, 33.0, 35.0, 38.0), (-3.0, 0.0, 1.0, 4.0, 7.0, 10.0)):
        away = {anchor: (x - a) ** 2 + (y - b) ** 2 for anchor, (a, b) in places.items()}
        nll = {"x": x, "y": y, "metric": "nll", "value": 0.05 + 0.01 * min(away.values())}
        grid.append({"plane": RADIAL, **nll})
        if not x:
            continue
        grid.append({"plane": THROUGH, **nll})
        for anchor, squared in away.items():
            here = {"plane": THROUGH, "x": x, "y": y}
            grid.append({**here, "metric": f"kl {anchor}", "value": 0.01 * squared})
            share = min(0.9, 0.003 * squared)
            grid.append({**here, "metric": f"disagreement {anchor}", "value": share})
    write_table(grid, folder / f"{name}_landscape.csv", PLANE_GRID_COLUMNS)
    write_table(claim_rows(name), folder / f"{name}.csv", COLUMNS)


def claim_rows(name: str) -> list[dict[str, object]]:
    """Rows of the claims of figures 4 and 6 at two seeds; the ratios are near 3 / 4 and not equal."""
    scale = find.scale("tiny")
    common = {
        "scale": scale.name,
        "substrate": scale.substrate,
        "point": "SSE" if name == "fig4" else "IVON",
        "metric": "disagreement" if name == "fig4" else "ambiguity",
        "size": 1 if name == "fig4" else scale.settings.claim_size,
        "memory_bits": 0,
        "backward_passes": 0,
    }
    low, other = ("disagreement", "disagreement") if name == "fig4" else ("LPE-BSR", "BMA")
    rows: list[dict[str, object]] = []
    for seed in (0, 1):
        here, whole = {**common, "seed": seed}, 0.4 + 0.01 * seed
        rows.append({**here, "method": other, "number_system": "fp32", "rounding": "", "value": whole})
        for bits in scale.settings.bits:
            value = 0.75 * whole + 0.001 * seed
            system = {"method": low, "number_system": f"int{bits}", "rounding": "bernoulli", "value": value}
            rows.append({**here, **system})
    return rows


FIGURES = {fig1: "abcd", fig4: "abcdefghi", fig6: "abcdefghijkl"}
every_figure = pytest.mark.parametrize("module", FIGURES, ids=["fig1", "fig4", "fig6"])
radial_figures = pytest.mark.parametrize("module", [fig4, fig6], ids=["fig4", "fig6"])


@pytest.fixture
def records(tiny: Scale, tmp_path: Path) -> Path:
    """A folder with made-up records of all three figures."""
    fig1_record(tmp_path)
    radial_record(fig4, tmp_path)
    radial_record(fig6, tmp_path)
    return tmp_path


@pytest.fixture
def drawn(records: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[ModuleType], tuple[Figure, list[str]]]:
    """module → the figure that its draw makes, and the lines to print."""

    def draw(module: ModuleType) -> tuple[Figure, list[str]]:
        kept: list[Figure] = []

        def keep(figure: Figure, folder: Path, name: str) -> list[Path]:
            panels.plt.close(figure)
            kept.append(figure)
            return []

        monkeypatch.setattr(panels, "save", keep)
        _, lines = module.draw(records, find.scale("tiny"))
        return kept[0], lines

    return draw


def titled(figure: Figure) -> dict[str, object]:
    """Letter → axes of the panels."""
    titles = {axes.get_title(loc="left"): axes for axes in figure.axes}
    return {title[1]: axes for title, axes in titles.items() if title}


@every_figure
def test_every_panel_has_its_letter(
    module: ModuleType, drawn: Callable[[ModuleType], tuple[Figure, list[str]]]
) -> None:
    titles = [axes.get_title(loc="left") for axes in drawn(module)[0].axes]
    assert [title[:3] for title in titles if title] == [f"({letter})" for letter in FIGURES[module]]


@every_figure
def test_every_colour_bar_names_its_unit(
    module: ModuleType, drawn: Callable[[ModuleType], tuple[Figure, list[str]]]
) -> None:
    bars = [axes for axes in drawn(module)[0].axes if not axes.get_title(loc="left")]
    assert bars and all("nats" in bar.get_ylabel() or "share" in bar.get_ylabel() for bar in bars)


@radial_figures
def test_every_anchor_has_a_panel_of_disagreement_and_one_of_divergence(
    module: ModuleType, drawn: Callable[[ModuleType], tuple[Figure, list[str]]]
) -> None:
    panel = titled(drawn(module)[0])
    for anchor, first, second in zip(ANCHORS[module], "def", "ghi", strict=True):
        assert panel[first].get_title(loc="left").endswith(f"disagreement with\n{anchor}")  # type: ignore[attr-defined]
        assert panel[second].get_title(loc="left").endswith(f"KL divergence from\n{anchor}")  # type: ignore[attr-defined]


@radial_figures
def test_every_plane_marks_every_anchor_at_its_place(
    module: ModuleType, drawn: Callable[[ModuleType], tuple[Figure, list[str]]]
) -> None:
    panel = titled(drawn(module)[0])
    for axes in (panel[letter] for letter in "abdefghi"):
        marked = {tuple(map(float, line.get_xydata()[0])) for line in axes.lines if len(line.get_xydata())}  # type: ignore[attr-defined]
        assert set(PLACES) <= marked


@radial_figures
def test_the_distance_of_a_projected_anchor_is_written_below_the_radial_panel(
    module: ModuleType, drawn: Callable[[ModuleType], tuple[Figure, list[str]]]
) -> None:
    panel = titled(drawn(module)[0])
    below = [panel[letter].get_xlabel() for letter in "ab"]  # type: ignore[attr-defined]
    assert below == [f"x (L2 units)\n{missed(module)}: 2.5 off the plane", "x (L2 units)"]


def test_figure_6_says_how_far_the_clouds_are_off_the_plane(
    drawn: Callable[[ModuleType], tuple[Figure, list[str]]],
) -> None:
    panel = titled(drawn(fig6)[0])
    assert [panel[letter].get_xlabel() for letter in "jk"] == ["x (L2 units)\n8.7 off the plane"] * 2  # type: ignore[attr-defined]


def test_figure_1_writes_the_probability_and_the_loss_beside_every_neighbour(
    drawn: Callable[[ModuleType], tuple[Figure, list[str]]],
) -> None:
    written = {text.get_text() for text in titled(drawn(fig1)[0])["d"].texts}  # type: ignore[attr-defined]
    # Codes .4 and −1.2: up with .4 and .8.
    assert written == {"p = 0.12\n0.0520", "p = 0.48\n0.0530", "p = 0.08\n0.0540", "p = 0.32\n0.0550"}


@pytest.mark.parametrize(("module", "claim"), [(fig4, "C3"), (fig6, "C5")], ids=["fig4", "fig6"])
def test_the_verdicts_of_every_bit_width_are_printed(
    module: ModuleType,
    claim: str,
    tiny: Scale,
    drawn: Callable[[ModuleType], tuple[Figure, list[str]]],
) -> None:
    verdicts = [line for line in drawn(module)[1] if line.startswith(claim)]
    starts = [f"{claim} (INT-{bits}): holds" for bits in tiny.settings.bits]
    assert len(verdicts) == len(starts)
    assert all(verdict.startswith(start) for verdict, start in zip(verdicts, starts, strict=True))


@every_figure
def test_drawing_writes_a_pdf_and_a_png(module: ModuleType, records: Path) -> None:
    paths, _ = module.draw(records, find.scale("tiny"))
    name = module.__name__.rsplit(".", 1)[-1]
    assert paths == [records / f"{name}.pdf", records / f"{name}.png"]
    assert all(path.stat().st_size > 1000 for path in paths)


FILES = [
    (fig1, "fig1.csv", "probability"),
    (fig1, "fig1_landscape.csv", "value"),
    (fig4, "fig4_landscape.csv", "metric"),
    (fig4, "fig4_members.csv", "distance_from_plane"),
    (fig6, "fig6_landscape.csv", "metric"),
    (fig6, "fig6_members.csv", "distance_from_plane"),
]


@pytest.mark.parametrize(("module", "file", "column"), FILES, ids=[file for _, file, _ in FILES])
def test_a_record_that_lacks_a_column_is_one_line_of_error(
    module: ModuleType,
    file: str,
    column: str,
    records: Path,
    capsys: pytest.CaptureFixture[str],
    vouch: Callable[[Path], None],
) -> None:
    table = pd.read_csv(records / file).drop(columns=column)
    table.to_csv(records / file, index=False)
    vouch(records)
    arguments = ["--scale", "tiny", "--out", str(records), "--plot-only"]
    assert run_figure(module.SCRIPT, arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"has no column '{column}'" in error


@pytest.mark.parametrize(("module", "file"), [each[:2] for each in FILES], ids=[file for _, file, _ in FILES])
def test_a_record_without_rows_is_one_line_of_error(
    module: ModuleType,
    file: str,
    records: Path,
    capsys: pytest.CaptureFixture[str],
    vouch: Callable[[Path], None],
) -> None:
    pd.read_csv(records / file).head(0).to_csv(records / file, index=False)
    vouch(records)
    assert run_figure(module.SCRIPT, ["--scale", "tiny", "--out", str(records), "--plot-only"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"{file} has no rows" in error


@radial_figures
def test_a_landscape_without_an_anchors_values_is_an_error(module: ModuleType, records: Path) -> None:
    name = module.__name__.rsplit(".", 1)[-1]
    anchor = ANCHORS[module][1]
    grid = pd.read_csv(records / f"{name}_landscape.csv")
    grid[grid["metric"] != f"kl {anchor}"].to_csv(records / f"{name}_landscape.csv", index=False)
    with pytest.raises(InputError, match=f"no metric 'kl {anchor}'"):
        module.draw(records, find.scale("tiny"))


@radial_figures
def test_members_without_an_anchor_are_an_error(module: ModuleType, records: Path) -> None:
    name = module.__name__.rsplit(".", 1)[-1]
    anchor = ANCHORS[module][1]
    members = pd.read_csv(records / f"{name}_members.csv")
    members[members["method"] != anchor].to_csv(records / f"{name}_members.csv", index=False)
    with pytest.raises(InputError, match=f"no member of '{anchor}'"):
        module.draw(records, find.scale("tiny"))


# Contour levels.


def test_round_levels_start_at_or_below_the_lowest_value() -> None:
    assert panels.round_levels(0.03, 0.6).tolist() == [0.02, 0.05, 0.1, 0.2, 0.5]


def test_round_levels_of_a_flat_landscape_are_two() -> None:
    assert panels.round_levels(0.05, 0.05).tolist() == [0.05, 0.1]


def test_even_levels_cover_all_values() -> None:
    levels = panels.even_levels(np.array([0.047, 0.133]))
    assert levels[0] <= 0.047 and levels[-1] >= 0.133 and len(levels) <= 21
