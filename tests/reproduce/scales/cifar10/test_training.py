"""CIFAR-10's trainings side by side and their files, on tiny networks and images of noise."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

import lpe
from lpe.ensembles.swag import SWAGStatistics
from lpe.substrates import cifar
from lpe.substrates.cifar_networks import ResNetShape, resnet_frn
from lpe.training.flat import Gradient
from lpe.training.resident import ResidentImages
from lpe.writing import replacing
from reproduce.scales.cifar10 import __main__ as command
from reproduce.scales.cifar10 import trained
from reproduce.scales.cifar10.checkpoints import Checkpoint
from reproduce.scales.cifar10.recipes import PROTOCOL, RECIPES, Group, Point, Protocol
from reproduce.scales.cifar10.trained import PointFiles, begun_in_time, train_points
from reproduce.scales.cifar10.training import (
    Collected,
    fast_gradient,
    layout_of,
    rule_of,
    start,
    swag_statistics,
    tensors_of,
    train_group,
)

TINY = Protocol(shape=ResNetShape(1, 8, 2), updates=16, batch=2, examples=4, warm_up=0.02)
"""Eight epochs of two steps."""

SMALL = {
    name: replace(recipe, swag_rank=2, members=min(recipe.members, 2), kept=min(recipe.kept, 2), kept_every=1)
    for name, recipe in RECIPES.items()
}
CYCLES: Group = (("swag", 0), ("sse", 0), ("csgld", 1))
GROUPS: tuple[Group, ...] = (
    (("sgd", 0), ("sgdnoaug", 1)),
    (("ivon", 0), ("ivon", 1)),
    CYCLES,
    (("be", 0),),
    (("adamw", 0),),
)
CPU = torch.device("cpu")
State = dict[str, Tensor]


def of_noise() -> cifar.CifarImages:
    """Sixty images of CIFAR's shape."""
    generator = torch.Generator().manual_seed(0)
    train = torch.randint(256, (60, 32, 32, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(10, (60,), generator=generator)
    return cifar.CifarImages("noise", "0", train, labels, train[:20], labels[:20])


IMAGES = of_noise()
DATA = ResidentImages.of(cifar.standardised(IMAGES.train), IMAGES.train_labels, CPU)
GRADIENT = fast_gradient(TINY, CPU)[0]


@pytest.fixture(scope="module", autouse=True)
def sixty_images() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cifar, "split_indices", lambda seed: (torch.arange(40), torch.arange(40, 60)))
        yield


class Killed(Exception):
    """Stands for a kill."""


def killed_at(step: int) -> tuple[Gradient, Callable[[], int]]:
    """Return a gradient that is killed at a step, from 0, and what counts its calls."""
    calls = itertools.count()
    made: list[int] = []

    def gradient(weights: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if next(calls) == step:
            raise Killed
        made.append(1)
        return GRADIENT(weights, images, labels)

    return gradient, lambda: len(made)


def file_of(group: Group, folder: Path, said: list[str] | None = None) -> Checkpoint:
    report = pytest.fail if said is None else said.append
    return replace(PointFiles(folder, IMAGES, TINY, SMALL, CPU).checkpoint(group, report), seconds=0.0)


def trained_tensors(group: Group, gradient: Gradient, checkpoint: Checkpoint | None = None) -> State:
    """Return what the files of a group's points hold, and the losses that their JSON files tell."""
    run = train_group(group, TINY, DATA, gradient, CPU, SMALL, checkpoint)
    held = {"loss": torch.tensor([point.loss for point in run.points.values()])}
    for (name, seed), point in run.points.items():
        tensors = tensors_of(SMALL[name], point, TINY)
        held |= {f"{name}-{seed}/{key}": tensor for key, tensor in tensors.items()}
    return held


@pytest.fixture(scope="module")
def unbroken() -> dict[Group, State]:
    return {group: trained_tensors(group, GRADIENT) for group in GROUPS}


def same_bits(left: State, right: State) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(value.flatten().view(torch.uint8), right[name].flatten().view(torch.uint8))
        for name, value in left.items()
    )


KILLS = [(CYCLES, step) for step in range(0, 16, 3)] + [(group, 9) for group in GROUPS if group != CYCLES]


@pytest.mark.parametrize(("group", "step"), KILLS)
def test_killed_at_any_step_it_goes_on_and_ends_with_the_same_bytes(
    group: Group, step: int, unbroken: dict[Group, State], tmp_path: Path
) -> None:
    checkpoint = file_of(group, tmp_path)
    with pytest.raises(Killed):
        trained_tensors(group, killed_at(step)[0], checkpoint)
    counted, steps = killed_at(-1)
    assert same_bits(trained_tensors(group, counted, checkpoint), unbroken[group])
    assert steps() == TINY.updates - step // 2 * 2, "it did not go on from the last whole epoch"


def test_killed_after_the_last_epoch_it_takes_no_step_more(
    unbroken: dict[Group, State], tmp_path: Path
) -> None:
    checkpoint = file_of(CYCLES, tmp_path)
    trained_tensors(CYCLES, GRADIENT, checkpoint)
    counted, steps = killed_at(-1)
    assert same_bits(trained_tensors(CYCLES, counted, checkpoint), unbroken[CYCLES])
    assert steps() == 0


def test_killed_twice_it_ends_with_the_same_bytes(unbroken: dict[Group, State], tmp_path: Path) -> None:
    checkpoint = file_of(CYCLES, tmp_path)
    for step in (7, 5):
        with pytest.raises(Killed):
            trained_tensors(CYCLES, killed_at(step)[0], checkpoint)
    assert same_bits(trained_tensors(CYCLES, GRADIENT, checkpoint), unbroken[CYCLES])


@pytest.mark.parametrize(
    "lost",
    ["training/weights", "training/rule/buffer", "training/generator", "networks/0/0", "networks/1/1"],
)
def test_a_checkpoint_that_forgets_something_would_be_seen(
    lost: str, unbroken: dict[Group, State], tmp_path: Path
) -> None:
    """The random state becomes that of another seed, all else 0."""
    checkpoint = file_of(CYCLES, tmp_path)
    with pytest.raises(Killed):
        trained_tensors(CYCLES, killed_at(13)[0], checkpoint)
    held = checkpoint.read()
    other = torch.Generator().manual_seed(99).get_state()
    checkpoint.write(held | {lost: other if lost == "training/generator" else torch.zeros_like(held[lost])})
    assert not same_bits(trained_tensors(CYCLES, GRADIENT, checkpoint), unbroken[CYCLES])


def test_checkpoints_are_as_many_seconds_apart_as_they_say(tmp_path: Path) -> None:
    checkpoint = replace(file_of(GROUPS[3], tmp_path), seconds=math.inf)
    trained_tensors(GROUPS[3], GRADIENT, checkpoint)
    assert not checkpoint.path.exists()


def test_a_truncated_checkpoint_is_told_and_its_group_begun_anew(
    unbroken: dict[Group, State], tmp_path: Path
) -> None:
    said: list[str] = []
    checkpoint = file_of(CYCLES, tmp_path, said)
    with pytest.raises(Killed):
        trained_tensors(CYCLES, killed_at(9)[0], checkpoint)
    content = checkpoint.path.read_bytes()
    checkpoint.path.write_bytes(content[: len(content) // 2])
    counted, steps = killed_at(-1)
    assert same_bits(trained_tensors(CYCLES, counted, checkpoint), unbroken[CYCLES])
    assert steps() == TINY.updates
    (line,) = said
    assert line.startswith(f"{checkpoint.path} is truncated or damaged") and "\n" not in line


def test_a_checkpoint_of_other_settings_is_refused_and_stays(tmp_path: Path) -> None:
    longer = PointFiles(tmp_path, IMAGES, replace(TINY, updates=64), SMALL, CPU)
    longer.checkpoint(CYCLES, pytest.fail).write({"losses": torch.zeros(3)})
    before = file_of(CYCLES, tmp_path).path.read_bytes()
    with pytest.raises(lpe.InputError, match=r"protocol\.updates is 64, here 16"):
        train_points(tmp_path, IMAGES, TINY, [CYCLES], CPU, math.inf, pytest.fail, SMALL)
    assert file_of(CYCLES, tmp_path).path.read_bytes() == before


def test_a_batch_ensembles_fast_weights_start_as_wide_as_its_recipe_says() -> None:
    for std in (0.5, 1.0):
        recipe = replace(RECIPES["be"], fast_std=std)
        tensors = layout_of(recipe, PROTOCOL).views(start(recipe, PROTOCOL, 0))
        fast = torch.cat([value.flatten() for name, value in tensors.items() if name.endswith("batch_r")])
        # The standard error of a standard deviation of n draws is σ/√(2n); five of them.
        assert abs(float(fast.std()) / std - 1) < 5 / math.sqrt(2 * fast.numel())


def test_batch_ensembles_side_by_side_have_their_own_rates_of_fast_weights() -> None:
    recipes = {name: replace(SMALL["be"], fast_lr=lr) for name, lr in (("0", 0.0), ("1", 0.1))}
    weights = torch.stack([start(recipe, TINY, 0) for recipe in recipes.values()])
    before = weights.clone()
    layout = layout_of(recipes["0"], TINY)
    rule = rule_of(list(recipes.values()), TINY, weights, layout, torch.Generator(CPU))
    rule.update(weights, torch.ones_like(weights), torch.tensor([5]))
    changed = [layout.views(row) for row in (weights - before)]
    assert not changed[0]["network.conv1.batch_r"].any() and changed[1]["network.conv1.batch_r"].all()
    assert torch.equal(changed[0]["network.conv1.weight"], changed[1]["network.conv1.weight"])


def test_swag_statistics_are_the_moments_of_the_iterates() -> None:
    iterates = [start(SMALL["swag"], TINY, seed) for seed in range(5)]
    layout = layout_of(SMALL["swag"], TINY)
    found = swag_statistics(SMALL["swag"], TINY, iterates)
    stacked = torch.stack(iterates)
    torch.testing.assert_close(layout.vector(found.mean), stacked.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        layout.vector(found.variance), stacked.var(0, correction=0), rtol=1e-4, atol=1e-6
    )
    assert found.rank == 2


@pytest.mark.parametrize("name", ["sgd", "ivon", "swag", "csgld"])
def test_a_points_file_has_the_names_types_and_shapes_of_the_given_points(name: str, assets: Path) -> None:
    recipe = RECIPES[name]
    weights = [start(recipe, PROTOCOL, seed) for seed in range(2)] * 10
    point = Collected(
        weights[0],
        weights[:12] if name == "csgld" else [],
        weights[1].abs() if name == "ivon" else None,
        swag_statistics(recipe, PROTOCOL, weights) if name == "swag" else None,
        0.0,
    )
    given = safetensors.torch.load_file(assets / "cifar10_points" / f"{name}-0.safetensors")
    made = tensors_of(recipe, point, PROTOCOL)
    assert {key: (value.dtype, value.shape) for key, value in made.items()} == {
        key: (value.dtype, value.shape) for key, value in given.items()
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """All groups' points, written in one go; and what was said."""
    folder = tmp_path_factory.mktemp("points")
    said: list[str] = []
    lines = train_points(folder, IMAGES, TINY, GROUPS, CPU, math.inf, said.append, SMALL)
    assert lines == said
    return folder, lines


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


POINTS = [point for group in GROUPS for point in group]


def test_every_point_has_its_file_and_nothing_else_is_left(written: tuple[Path, list[str]]) -> None:
    found = sorted(path.name for path in written[0].iterdir() if path.name != ".training.lock")
    names = [f"{name}-{seed}" for name, seed in POINTS]
    assert found == sorted(f"{name}.{end}" for name in names for end in ("safetensors", "json"))


def test_each_group_is_told_with_its_speed(written: tuple[Path, list[str]]) -> None:
    assert [line.partition(":")[0] for line in written[1]] == [
        " ".join(f"{name}-{seed}" for name, seed in group) for group in GROUPS
    ]
    assert all(" images/s, " in line for line in written[1])


@pytest.mark.parametrize("point", POINTS)
def test_the_json_beside_a_point_tells_recipe_protocol_data_machine_and_cost(
    point: Point, written: tuple[Path, list[str]]
) -> None:
    path = written[0] / f"{point[0]}-{point[1]}.safetensors"
    told = json.loads(path.with_suffix(".json").read_text())
    config, recipe = told["config"], SMALL[point[0]]
    assert (config["recipe"]["rule"], config["recipe"]["lr"]) == (recipe.rule, recipe.lr)
    assert (config["seed"], config["protocol"]["updates"]) == (point[1], TINY.updates)
    assert (config["data"], config["data_sha256"]) == ("noise", "0")
    assert config["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert math.isfinite(config["train_loss"])
    assert told["device"]["device"] == "cpu" and told["device"]["cpu"] and told["packages"]["torch"]
    assert told["cost"]["images_per_second"] > 0 and told["cost"]["seconds"] > 0
    assert f"{point[0]}-{point[1]}" in told["cost"]["group"].split()


def test_ivons_file_is_a_mean_and_a_positive_std(written: tuple[Path, list[str]]) -> None:
    held = safetensors.torch.load_file(written[0] / "ivon-0.safetensors")
    parts = {part: {k[len(part) :] for k in held if k.startswith(part)} for part in ("mean/", "std/")}
    assert parts["mean/"] == parts["std/"] == dict(resnet_frn(TINY.shape).named_parameters()).keys()
    assert all((held[f"std/{name}"] > 0).all() for name in parts["std/"])


def test_swags_file_is_the_statistics_of_an_ensemble(written: tuple[Path, list[str]]) -> None:
    held = safetensors.torch.load_file(written[0] / "swag-0.safetensors")
    statistics = SWAGStatistics.from_tensors({name: value.float() for name, value in held.items()})
    assert len(lpe.SWAGEnsemble(resnet_frn(TINY.shape), statistics, 2)) == 2


@pytest.mark.parametrize(("point", "count"), [("sse-0", 4), ("csgld-1", 8)])
def test_cycles_are_numbered_networks(written: tuple[Path, list[str]], point: str, count: int) -> None:
    held = safetensors.torch.load_file(written[0] / f"{point}.safetensors")
    assert {int(name.partition("/")[0]) for name in held} == set(range(count))


def test_a_batch_ensembles_file_loads_into_its_module(written: tuple[Path, list[str]]) -> None:
    ensemble = lpe.BatchEnsemble(resnet_frn(TINY.shape), 2, seed=9)
    ensemble.module.load_state_dict(safetensors.torch.load_file(written[0] / "be-0.safetensors"))


def no_training(*_: object) -> None:
    raise AssertionError("a point that is there is trained again")


def test_what_is_there_is_not_trained_again(
    written: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trained, "train_group", no_training)
    monkeypatch.setattr(trained, "fast_gradient", no_training)
    lines = train_points(written[0], IMAGES, TINY, GROUPS, CPU, math.inf, str, SMALL)
    assert len(lines) == len(GROUPS) and all(line.endswith(": there already") for line in lines)


def trained_again(folder: Path, groups: Sequence[Group] = (CYCLES,)) -> dict[str, bytes]:
    train_points(folder, IMAGES, TINY, groups, CPU, math.inf, str, SMALL)
    return contents(folder)


def test_killed_while_training_its_files_are_the_same_bytes(
    written: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trained, "CHECKPOINT_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(trained, "fast_gradient", lambda *_: (killed_at(11)[0], torch.float32))
        with pytest.raises(Killed):
            trained_again(tmp_path)
    counted, steps = killed_at(-1)
    monkeypatch.setattr(trained, "fast_gradient", lambda *_: (counted, torch.float32))
    found, whole = trained_again(tmp_path), contents(written[0])
    assert found == {name: whole[name] for name in found} and len(found) == len(CYCLES)
    assert steps() == TINY.updates - 10
    assert not list(tmp_path.glob("*.checkpoint"))


def test_killed_while_writing_its_files_are_the_same_bytes(
    written: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trained, "CHECKPOINT_SECONDS", 0.0)
    calls = itertools.count()

    def once(path: Path) -> AbstractContextManager[Path]:
        if next(calls):
            raise Killed
        return replacing(path)

    with monkeypatch.context() as patch:
        patch.setattr(trained, "replacing", once)
        with pytest.raises(Killed):
            trained_again(tmp_path)
    (first,) = tmp_path.glob("*.safetensors")
    before = first.stat().st_mtime_ns
    found, whole = trained_again(tmp_path), contents(written[0])
    assert found == {name: whole[name] for name in found} and len(found) == len(CYCLES)
    assert first.stat().st_mtime_ns == before, "a point that was there was written again"


def test_killed_between_a_points_two_files_it_is_written_at_the_next_run(
    written: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(trained, "replacing", killed)
        with pytest.raises(Killed):
            trained_again(tmp_path, ADAMW)
    name = "adamw-0.safetensors"
    assert trained_again(tmp_path, ADAMW) == {name: contents(written[0])[name]}


def test_a_checkpoint_is_open_to_those_who_share_the_folder(tmp_path: Path) -> None:
    (tmp_path / "another").touch()
    checkpoint = file_of(CYCLES, tmp_path)
    checkpoint.write({})
    assert checkpoint.path.stat().st_mode == (tmp_path / "another").stat().st_mode


def test_a_checkpoint_whose_points_are_there_is_removed(written: tuple[Path, list[str]]) -> None:
    left = file_of(CYCLES, written[0])
    left.write({})
    trained_again(written[0])
    assert not left.path.exists()


@pytest.fixture
def one_point(written: tuple[Path, list[str]], tmp_path: Path) -> Path:
    """A folder with one point that was trained here."""
    for path in written[0].glob("adamw-0.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


ADAMW: Sequence[Group] = (GROUPS[-1],)


def test_a_point_of_unknown_training_is_not_overwritten(one_point: Path) -> None:
    (one_point / "adamw-0.json").unlink()
    with pytest.raises(lpe.InputError, match=r"has no adamw-0\.json beside it"):
        trained_again(one_point, ADAMW)


@pytest.mark.parametrize("content", ["{", "[]", '{"config": {}}', '{"config": []}'])
def test_a_point_whose_json_tells_nothing_is_not_overwritten(one_point: Path, content: str) -> None:
    (one_point / "adamw-0.json").write_text(content)
    with pytest.raises(lpe.InputError, match=r"has no adamw-0\.json beside it"):
        trained_again(one_point, ADAMW)


def test_a_point_that_was_trained_otherwise_is_told_with_what_differs(one_point: Path) -> None:
    recipes = SMALL | {"adamw": replace(SMALL["adamw"], lr=1.0)}
    with pytest.raises(lpe.InputError, match=r"recipe\.lr is 0\.004, here 1\.0"):
        train_points(one_point, IMAGES, TINY, ADAMW, CPU, math.inf, str, recipes)


def test_a_point_of_other_images_is_told(one_point: Path) -> None:
    with pytest.raises(lpe.InputError, match="data_sha256 is '0', here '1'"):
        train_points(one_point, replace(IMAGES, sha256="1"), TINY, ADAMW, CPU, math.inf, str, SMALL)


def test_a_point_that_was_altered_is_told(one_point: Path) -> None:
    path = one_point / "adamw-0.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(lpe.InputError, match="was altered since it was trained"):
        trained_again(one_point, ADAMW)


def test_a_lost_training_is_told_and_has_no_file(tmp_path: Path) -> None:
    recipes = SMALL | {"sgdnoaug": replace(SMALL["sgdnoaug"], lr=1e30)}
    lines = train_points(tmp_path, IMAGES, TINY, GROUPS[:1], CPU, math.inf, str, recipes)
    assert lines[1].startswith("sgdnoaug-1 is lost")
    assert contents(tmp_path).keys() == {"sgd-0.safetensors"}


def test_a_group_that_would_not_end_in_time_is_not_begun() -> None:
    said: list[str] = []
    groups: list[Group] = [(("sgd", 0),), (("be", 0),), (("sgd", 1),)]
    speeds = iter([None, 100.0, 100.0])
    protocol = replace(PROTOCOL, updates=100, batch=10)
    begun = list(begun_in_time(groups, protocol, lambda: 20.0, lambda: next(speeds), RECIPES, said.append))
    assert begun == [groups[0], groups[2]]
    assert said == ["not run: be-0 (40 s at 100 images/s; 20 s are left)"]


def test_what_lacked_time_is_among_the_lines(tmp_path: Path) -> None:
    groups = (GROUPS[-1], GROUPS[-2])
    lines = train_points(tmp_path, IMAGES, TINY, groups, CPU, 0.01, str, SMALL)
    assert lines[0].startswith("adamw-0: ") and lines[1].startswith("not run: be-0 (")
    assert contents(tmp_path).keys() == {"adamw-0.safetensors"}


def test_too_few_updates_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(lpe.InputError, match="--updates 4: at least 8 are needed, in which sse"):
        train_points(
            tmp_path / "new", IMAGES, replace(TINY, updates=4), [(("sse", 0),)], CPU, math.inf, str, SMALL
        )
    assert not (tmp_path / "new").exists()


def test_the_command_trains_and_tells_each_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(cifar, "load", lambda source: IMAGES)
    monkeypatch.setattr(command, "PROTOCOL", TINY)
    monkeypatch.setattr(command, "GROUPS", (GROUPS[0],))
    assert command.main(["--data", "any", "--points", str(tmp_path), "--updates", "4"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == "noise, ResNet-20-FRN-SiLU, 4 updates, on the CPU, in float32"
    assert second.startswith("sgd-0 sgdnoaug-1: ") and " images/s, " in second
    assert contents(tmp_path).keys() == {"sgd-0.safetensors", "sgdnoaug-1.safetensors"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--updates", "7839"], "--updates 7839: at least 7840 are needed, in which swag"),
        (["--minutes", "0"], "--minutes must be above 0, not 0"),
        (["--minutes", "nan"], "--minutes must be above 0, not nan"),
        (["--data", "nowhere"], "no CIFAR-10 at nowhere"),
        ([], "no CIFAR-10: give --data"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("LPE_ASSETS", raising=False)
    assert command.main(["--points", str(tmp_path), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {told}") and error.count("\n") == 1


def test_a_folder_that_cannot_be_written_to_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert command.main(["--points", str(tmp_path / "file"), "--data", "nowhere"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: cannot write to ") and error.count("\n") == 1
