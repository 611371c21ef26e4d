"""Given points: what a folder holds, what it may not hold, and what is made of it."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import lpe
from lpe.ensembles.swag import SWAGEnsemble, SWAGStatistics
from lpe.errors import InputError
from lpe.store import Store
from lpe.substrates.cifar import CifarImages, split_indices
from lpe.substrates.cifar_networks import ResNetShape, resnet_frn
from lpe.tracking import Tracker
from reproduce.scales.cifar10 import points
from reproduce.scales.cifar10.points import GivenFile
from reproduce.scales.cifar10.recipes import PROTOCOL, RECIPES, metadata
from reproduce.scales.cifar10.settings import cifar10
from reproduce.study.run import Run
from reproduce.study.scale import Scale, saw_validation


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run on the CPU with an empty store."""
    store = Store(tmp_path / "store")
    return Run(store=store, tracker=Tracker(None), threads=1, device="cpu", quiet=True)


@pytest.fixture(autouse=True)
def few_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """A curvature of few examples."""
    monkeypatch.setattr("reproduce.study.points.CURVATURE_EXAMPLES", 2)


@pytest.fixture
def scale(there: CifarImages, folder: Path) -> Scale:
    """The scale of the folder's points."""
    return cifar10({})


def file_of(folder: Path, name: str) -> GivenFile:
    """The file as it is now."""
    return GivenFile(name, points.hashes(folder)[name])


def test_a_point_is_the_network_of_its_file(
    scale: Scale, run: Run, weights: Callable[[int], dict[str, Tensor]]
) -> None:
    assert scale.main is not None
    point = scale.main.point(run, "SGD", 2)
    for name, value in weights(2).items():
        assert torch.equal(point.net.state_dict()[name], value)
    assert point.backward_passes == 19_840


def test_a_seed_without_a_file_is_refused(scale: Scale, run: Run) -> None:
    assert scale.main is not None
    with pytest.raises(InputError, match=r"no point of training seed 4 is given; there are sgd-0, sgd-1"):
        scale.main.point(run, "SGD", 4)


def test_swags_posterior_is_the_librarys_on_the_files_statistics(
    scale: Scale, run: Run, folder: Path
) -> None:
    assert scale.main is not None
    posterior = scale.main.point(run, "SWAG", 0).posterior
    assert posterior is not None
    member = posterior(2, 7)[1].state_dict()
    statistics = SWAGStatistics.from_tensors(points.content(file_of(folder, "swag-0")).tensors)
    expected = SWAGEnsemble(resnet_frn(), statistics, 2, 7, 0.5)[1].state_dict()
    assert all(torch.equal(member[name], expected[name]) for name in expected)


def test_ivons_std_is_compared_with_what_the_start_leaves(scale: Scale, run: Run) -> None:
    assert scale.main is not None
    info = scale.main.point(run, "IVON", 0).info
    # .01 over 1/√(40960·(.9999^19840·1 + .0001))
    left = (40_960 * (0.9999**19_840 + 1e-4)) ** -0.5
    assert info["std_over_forgetting"] == pytest.approx(0.01 / left, rel=1e-3)


def test_ivons_curvature_is_measured_once_and_kept(
    scale: Scale, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert scale.main is not None
    first = scale.main.point(run, "IVON", 0).info
    monkeypatch.setattr(points, "training_examples", None)
    assert scale.main.point(run, "IVON", 0).info == first


def test_de_is_of_four_files_and_pays_for_each(scale: Scale, run: Run) -> None:
    assert scale.main is not None
    ensemble = scale.main.family(run, "DE", 0).make(0)
    assert len(ensemble) == 4
    assert [ensemble.backward_passes(n) for n in (1, 4)] == [19_840, 4 * 19_840]


def test_de_says_that_it_was_trained_on_validation_images(scale: Scale) -> None:
    # Each network has a split of its own: what validates the ensemble's seed trained the others.
    assert scale.main is not None
    _, validation = split_indices(0)
    others, _ = split_indices(1)
    assert int(torch.isin(validation[:2000], others).sum()) > 1500
    assert saw_validation(scale.main, "DE")
    assert not saw_validation(scale.main, "SGD")


def test_csglds_samples_are_of_a_cycles_last_epochs(scale: Scale, run: Run) -> None:
    assert scale.main is not None
    ensemble = scale.main.family(run, "CSGLD", 0).make(0)
    passes = [ensemble.backward_passes(n) for n in range(1, 13)]
    # Cycles end after 4,960 updates each; an epoch is 160.
    assert passes == [4960 * cycle - 160 * before for cycle in range(1, 5) for before in (2, 1, 0)]


def test_budgets_that_a_file_says_are_its_ensembles(
    folder: Path, scale: Scale, run: Run, weights: Callable[[int], dict[str, Tensor]]
) -> None:
    tensors = {f"{place}/{name}": value for place in range(2) for name, value in weights(place).items()}
    more = {"updates": "400", "backward_passes": "150,400"}
    save_file(tensors, folder / "sse-0.safetensors", more)
    family = points.GivenCycles("SSE", (file_of(folder, "sse-0"),))
    assert scale.main is not None
    ensemble = family.family(run, scale.main, 0).make(0)
    assert [ensemble.backward_passes(n) for n in (1, 2)] == [150, 400]


def test_multi_ivon_draws_from_every_posterior(scale: Scale, run: Run) -> None:
    assert scale.main is not None
    ensemble = scale.main.family(run, "MultiIVON", 0).make(0)
    assert len(ensemble) == 20
    assert [ensemble.backward_passes(n) for n in (5, 6)] == [19_840, 2 * 19_840]
    draws = [net.state_dict()["conv1.weight"] for net in ensemble]
    assert all(not torch.equal(draws[a], draws[b]) for a in range(20) for b in range(a))


def test_batch_ensemble_has_the_files_weights(folder: Path, scale: Scale, run: Run) -> None:
    ensemble = lpe.BatchEnsemble(resnet_frn(seed=3), 4, seed=3)
    metadata = {"updates": "100", "members": "4"}
    save_file(ensemble.module.state_dict(), folder / "be-0.safetensors", metadata)
    recipe = points.GivenBatchEnsemble((file_of(folder, "be-0"),))
    assert scale.main is not None
    made = recipe.family(run, scale.main, 0).make(0)
    inputs = torch.zeros(1, 3, 32, 32)
    ensemble.module.eval()
    assert torch.equal(made.predict(inputs), ensemble.predict(inputs))
    assert made.backward_passes() == 400


def test_the_first_keys_of_another_networks_points_are_named(folder: Path, scale: Scale, run: Run) -> None:
    save_file(resnet_frn(ResNetShape(blocks=4)).state_dict(), folder / "sgd-0.safetensors")
    recipe = points.GivenNetwork("SGD", (file_of(folder, "sgd-0"),), 256)
    assert scale.main is not None
    with pytest.raises(InputError, match=r"another network: it has layers\.0\.3\.conv1\.weight, .*, .* …$"):
        recipe.point(run, scale.main, 0)


def test_points_of_another_width_are_refused(folder: Path, scale: Scale, run: Run) -> None:
    save_file(resnet_frn(ResNetShape(blocks=3, width=8)).state_dict(), folder / "sgd-0.safetensors")
    recipe = points.GivenNetwork("SGD", (file_of(folder, "sgd-0"),), 256)
    assert scale.main is not None
    with pytest.raises(InputError, match=r"conv1\.weight is \[8, 3, 3, 3\], \[16, 3, 3, 3\] is expected"):
        recipe.point(run, scale.main, 0)


def test_a_damaged_file_is_refused(folder: Path) -> None:
    path = folder / "sgd-1.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match="no whole safetensors file"):
        points.content(file_of(folder, "sgd-1"))


def test_values_that_are_not_finite_are_refused(
    folder: Path, weights: Callable[[int], dict[str, Tensor]]
) -> None:
    tensors = weights(0)
    tensors["fc.bias"][0] = torch.nan
    save_file(tensors, folder / "sgd-1.safetensors")
    with pytest.raises(InputError, match="fc.bias has values that are not finite"):
        points.content(file_of(folder, "sgd-1"))


def test_a_file_that_has_changed_since_it_was_hashed_is_refused(
    folder: Path, weights: Callable[[int], dict[str, Tensor]]
) -> None:
    file = file_of(folder, "sgd-1")
    save_file(weights(5), folder / "sgd-1.safetensors")
    with pytest.raises(InputError, match="another sha256"):
        points.content(file)


def test_a_file_without_its_number_of_updates_is_refused(
    folder: Path, scale: Scale, run: Run, weights: Callable[[int], dict[str, Tensor]]
) -> None:
    save_file(weights(0), folder / "sgd-0.safetensors")
    recipe = points.GivenNetwork("SGD", (file_of(folder, "sgd-0"),), 256)
    assert scale.main is not None
    with pytest.raises(InputError, match=r"sgd-0\.safetensors has 'updates' None in its metadata, no number"):
        recipe.point(run, scale.main, 0)


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"training": "{"}, "no whole safetensors file of a point"),
        ({"training": "[" * 100_000}, "no whole safetensors file of a point"),
        ({"training": "[3]"}, r"has training \[3\] in its metadata; an object is expected"),
        ({"training": '{"updates": "many"}'}, "has 'updates' 'many' in its metadata; a number from 0"),
        ({"updates": "inf"}, "has 'updates' 'inf' in its metadata; a number from 0"),
        ({"updates": "3", "batch": "nan"}, "has 'batch' 'nan' in its metadata; a number from 0"),
        ({"l2": "-1"}, "has 'l2' '-1' in its metadata; a number from 0"),
    ],
)
def test_metadata_of_other_values_are_refused_before_anything_is_made(
    folder: Path, weights: Callable[[int], dict[str, Tensor]], about: dict[str, str], said: str
) -> None:
    save_file(weights(0), folder / "sgd-0.safetensors", about)
    with pytest.raises(InputError, match=said) as caught:
        points.hashes(folder)
    assert "sgd-0.safetensors" in str(caught.value) and "\n" not in str(caught.value)


def test_a_pipe_is_no_point(folder: Path) -> None:
    os.mkfifo(folder / "sgd-9.safetensors")
    with pytest.raises(InputError, match=r"sgd-9\.safetensors is no file"):
        points.hashes(folder)


def test_a_folder_without_points_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no \*\.safetensors"):
        points.hashes(tmp_path)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no folder"):
        points.hashes(tmp_path / "none")


def test_a_file_of_no_known_kind_is_refused(folder: Path) -> None:
    save_file({"a": torch.zeros(1)}, folder / "adam-0.safetensors")
    with pytest.raises(InputError, match=r"adam-0\.safetensors is of no known kind; sgd, "):
        points.hashes(folder)


def test_seeds_count_from_0_without_a_gap(folder: Path) -> None:
    (folder / "sgd-1.safetensors").unlink()
    known = points.hashes(folder)
    assert [file.name for file in points.files_of("sgd", known)] == ["sgd-0"]


def test_what_the_trainers_files_say_of_themselves_is_read(
    folder: Path, weights: Callable[[int], dict[str, Tensor]]
) -> None:
    about = {"training": json.dumps(metadata(RECIPES["csgld"], PROTOCOL))}
    tensors = {f"{place}/{name}": value for place in range(12) for name, value in weights(place).items()}
    save_file(tensors, folder / "csgld-0.safetensors", about)
    file = file_of(folder, "csgld-0")
    assert points.passes(file) == 19_840
    assert points.batch_of((file,)) == 256
    # Three samples at the end of each cycle of 31 epochs of 160, four epochs apart.
    expected = [160 * (31 * cycle - before) for cycle in range(1, 5) for before in (8, 4, 0)]
    assert points.budgets(file, 12) == expected
