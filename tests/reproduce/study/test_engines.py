"""Pieces of work as Ray tasks: what they are, and that they leave the bytes of one process."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import fsspec
import pytest
import torch

from lpe import ray_cluster
from lpe.errors import InputError
from lpe.evaluation.landscape import Plane, Surface, measure_grid
from lpe.provenance import REPOSITORY
from reproduce import __main__ as everything
from reproduce.command import opened
from reproduce.fig3 import measure_landscapes
from reproduce.scales import own
from reproduce.study.engines import on_ray
from reproduce.study.engines.lines import ahead, measured_line
from reproduce.study.engines.pieces import START, Training, train, trainings_of, waited_for
from reproduce.study.measurements import measure_all
from reproduce.study.scale import Scale
from reproduce.study.units import AXES, DISAGREEMENT_UNIT, ROUNDING, Unit

TOY = str(Path(__file__).parents[1] / "scales" / "toy.py")
DYING = str(Path(__file__).with_name("dying.py"))
NET = "toy net"


@pytest.fixture(scope="module")
def toy() -> Scale:
    return own.load(TOY)


# Which pieces there are.


def test_what_two_units_need_comes_first_as_a_piece(toy: Scale) -> None:
    first = waited_for(toy, [Unit(NET, ROUNDING, 0), Unit(NET, AXES, 0), Unit(NET, "SWAG", 0)])
    shared = [Training(NET, "SGD", 0)]
    assert list(first.values()) == [shared, shared, []]


def test_every_replica_of_an_ensemble_is_a_piece(toy: Scale) -> None:
    (first,) = waited_for(toy, [Unit(NET, "DE", 1)]).values()
    assert first == [Training(NET, "SGD", 1, replica) for replica in (0, 1)]


def test_a_training_that_one_unit_needs_is_the_units_own(toy: Scale) -> None:
    assert waited_for(toy, [Unit(NET, DISAGREEMENT_UNIT, 0)]) == {Unit(NET, DISAGREEMENT_UNIT, 0): []}


def test_units_of_other_seeds_share_nothing(toy: Scale) -> None:
    assert waited_for(toy, [Unit(NET, "SGD", 0), Unit(NET, ROUNDING, 1)]) == {
        Unit(NET, "SGD", 0): [],
        Unit(NET, ROUNDING, 1): [],
    }


def test_what_trainings_start_from_comes_before_them(tiny: Scale) -> None:
    assert tiny.main is not None and tiny.main.start is not None
    name = tiny.main.name
    first = waited_for(tiny, [Unit(name, "SGD", 0), Unit(name, "SSE", 0)])
    start = Training(name, START, 0)
    assert list(first.values()) == [[start], [start]]
    assert Training(name, "SGD", 0).starts_from(start)
    assert not Training(name, "SGD", 1).starts_from(start) and not start.starts_from(start)


def test_the_pieces_leave_nothing_to_train(
    toy: Scale, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a unit trains itself is what its trainings have left in the store."""
    unit = Unit(NET, "MultiIVON", 0)
    monkeypatch.setenv("LPE_STORE", str(tmp_path / "store"))
    with opened("all", toy, 1, tmp_path, "disabled", quiet=True) as session:
        for training in trainings_of(toy, unit):
            train(session, training)
        assert toy.main is not None
        with session.store.use() as use:
            toy.main.family(session, unit.what, unit.seed)
    assert len(use.made) == 2 and use.seconds == 0


# Landscapes.


class Bowl(Surface):
    """A surface whose values are known."""

    def __init__(self) -> None:
        pass

    def measure(self, weights: torch.Tensor) -> dict[str, float]:
        return {"nll": float(weights.square().sum()), "err": float(weights[0])}


PLANE = Plane(torch.tensor([1.0, 2.0, 3.0]).double(), torch.eye(3).double()[:2])
XS, YS = [0.0, 0.5, 2.0], [-1.0, 0.0, 1.0]


@dataclass
class Elsewhere:
    """Lines that are measured when they are submitted, and which these were."""

    submitted: list[float]

    def __call__(self, y: float) -> Callable[[], list[dict[str, float]]]:
        self.submitted.append(y)
        line = measured_line(Bowl(), PLANE, XS, y)
        return lambda: line


@pytest.mark.parametrize("done", [0, 2, 3, 4, 9])
def test_points_from_elsewhere_are_the_surfaces_own(done: int) -> None:
    elsewhere, here, there = Elsewhere([]), [], []
    on_disk = [(x, y) for y in YS for x in XS][:done]

    def is_done(x: float, y: float) -> bool:
        return (x, y) in on_disk

    measure_grid(Bowl(), PLANE, XS, YS, is_done, here.append)
    surface = ahead(Bowl(), PLANE, XS, YS, elsewhere)
    measure_grid(surface, PLANE, XS, YS, is_done, there.append)
    assert here == there and len(there) == 9 - done
    assert elsewhere.submitted == YS[done // 3 :]
    assert type(surface) is Bowl


def test_weights_that_are_no_point_of_the_grid_are_refused() -> None:
    surface = ahead(Bowl(), PLANE, XS, YS, Elsewhere([]))
    with pytest.raises(LookupError):
        surface.measure(PLANE.at(0.0, 0.25))


# Machines that differ.


def test_a_machine_of_other_packages_is_named_with_what_differs() -> None:
    with pytest.raises(InputError, match=r"another result of .*: packages differ \(packages is .*2\.5"):
        on_ray.check_same(
            {"packages": {"torch": "2.4"}, "threads": 1}, {"packages": {"torch": "2.5"}, "threads": 1}, "it"
        )


def test_a_machine_that_is_the_same_passes() -> None:
    on_ray.check_same(
        {"packages": {"torch": "2.4"}, "sizes": [1]}, {"packages": {"torch": "2.4"}, "sizes": (1,)}, "it"
    )


# Command lines.


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--address", "auto"], "--address auto is a Ray cluster's; give --engine ray as well"),
        (["--engine", "ray", "--address", "auto", "--jobs", "2"], "leave --jobs 2 out"),
        (["--engine", "ray", "--jobs", "0"], "--jobs must be 1 to "),
        (["--engine", "ray", "--plot-only"], "--plot-only measures nothing"),
    ],
    ids=["address", "jobs", "none", "plot only"],
)
def test_options_that_do_not_go_together_are_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert everything.main(arguments) == 2
    printed = capsys.readouterr().err
    assert said in printed and printed.count("\n") == 1


def test_without_ray_the_engine_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setenv("LPE_STORE", str(tmp_path / "store"))
    arguments = ["--scale", DYING, "--only", "fig3", "--out", str(tmp_path / "out"), "--engine", "ray"]
    assert everything.main(arguments) == 2
    printed = capsys.readouterr().err
    assert "pip install 'low-precision-ensembling[ray]'" in printed and printed.count("\n") == 1


# Pieces that are called in this process, with all that Ray would carry pickled.


def _called_here(patch: pytest.MonkeyPatch) -> list[str]:
    """Have pieces called when they are submitted; list what they are."""
    called: list[str] = []

    def submit(prepare: Any, resources: Any, call: bytes, *own: Any, after: Sequence[int] = ()) -> int:
        assert resources == {"num_cpus": 1, "num_gpus": 0} and all(task < len(called) for task in after)
        called.append(str(own[0]))
        pickle.loads(pickle.dumps(prepare))()
        ended.append(pickle.loads(call)(*pickle.loads(pickle.dumps(own))))
        return len(called) - 1

    ended: list[Any] = []
    patch.setattr(ray_cluster, "put", cloudpickle.dumps)
    patch.setattr(ray_cluster, "submit", submit)
    patch.setattr(ray_cluster, "result", lambda task, label: ended[task])
    patch.setattr(ray_cluster, "results", lambda labels: [(labels[task], ended[task]) for task in labels])
    return called


def test_pieces_leave_the_bytes_of_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scale = own.load(DYING)
    wanted = [Unit("dying net", what, 0) for what in ("SGD", "DE", "SWAG")]
    called = _called_here(monkeypatch)
    found = []
    for cluster in (None, on_ray.Cluster(own.in_another_process())):
        folder = tmp_path / ("here" if cluster is None else "pieces")
        (folder / "out").mkdir(parents=True)
        monkeypatch.setenv("LPE_STORE", str(folder / "store"))
        with opened("all", scale, 1, folder / "out", "disabled", quiet=True, engine=cluster) as session:
            if cluster is None:
                measure_all(session, wanted)
            else:
                cluster.measure(session, wanted)
            measure_landscapes(session)
        found.append(_left(0, folder))
    assert found[0] == found[1] and len(found[0].weights) == 3
    shared = ["SGD, seed 0", "SGD, seed 0, replica 1"]
    assert called[:5] == [
        f"dying net: training of {shared[0]}",
        "dying net: SGD, seed 0",
        f"dying net: training of {shared[1]}",
        "dying net: DE, seed 0",
        "dying net: SWAG, seed 0",
    ]
    assert len(called) > 5  # lines of landscapes


# A cluster of two processes, one of which is killed in the middle of a training.

ASKED = ["--scale", DYING, "--only", "fig3,fig9", "--wandb", "disabled"]
WITHOUT_RAY = "Ray is not installed: pip install 'low-precision-ensembling[ray]'"
REFERENCE = {"LPE_KERNELS": "reference"}
"""The kernels that need no compilation, which each process would do anew."""


@dataclass(frozen=True)
class Left:
    """What a run left: its code, the records in its folder, its working records, its trained weights."""

    code: int
    records: dict[str, bytes]
    working: dict[str, bytes]
    weights: dict[str, bytes]


def _left(code: int, folder: Path) -> Left:
    def contents(place: Path, pattern: str) -> dict[str, bytes]:
        return {str(path.relative_to(place)): path.read_bytes() for path in sorted(place.rglob(pattern))}

    return Left(
        code,
        contents(folder / "out", "*.csv"),
        contents(folder / "records", "*.csv") | contents(folder / "records", "*.safetensors"),
        contents(folder / "store", "*.safetensors"),
    )


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Left:
    """What one process leaves."""
    folder = tmp_path_factory.mktemp("local")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LPE_STORE", str(folder / "store"))
        code = everything.main([*ASKED, "--out", str(folder / "out")])
    return _left(code, folder)


def _on_ray(folder: Path, jobs: int, asked: list[str], **environment: str) -> int:
    """Run in a process of its own, since Ray leaves processes behind that it has not waited for."""
    command = [sys.executable, "-m", "reproduce", *asked, "--out", str(folder / "out")]
    done = subprocess.run(
        [*command, "--engine", "ray", "--jobs", str(jobs)],
        cwd=REPOSITORY,
        env={**os.environ, **REFERENCE, **environment},
        capture_output=True,
        text=True,
    )
    print(done.stdout, done.stderr, sep="\n")
    return done.returncode


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Left, Path]:
    """What a Ray cluster of two processes leaves on a shared folder, and the file that the dead one wrote."""
    pytest.importorskip("ray", reason=WITHOUT_RAY)
    folder = tmp_path_factory.mktemp("shared")
    died = folder / "died"
    code = _on_ray(folder, 2, ASKED, LPE_STORE=str(folder / "store"), LPE_TEST_DIES=str(died))
    return _left(code, folder), died


def test_a_run_with_a_killed_worker_ends(shared: tuple[Left, Path]) -> None:
    left, died = shared
    assert left.code == 0
    assert not Path("/proc", died.read_text()).exists()


def test_it_leaves_the_records_of_one_process(shared: tuple[Left, Path], local: Left) -> None:
    assert local.code == 0 and {"fig3.csv", "fig3_landscape.csv", "fig9.csv"} <= local.records.keys()
    assert shared[0].records == local.records


def test_it_leaves_the_working_records_and_examples_of_one_process(
    shared: tuple[Left, Path], local: Left
) -> None:
    kinds = {Path(name).name.partition("-")[0] for name in local.working}
    assert {"dying", "landscape"} <= kinds
    assert shared[0].working == local.working


def test_it_leaves_the_weights_of_one_process_trained_once_each(
    shared: tuple[Left, Path], local: Left
) -> None:
    assert len(local.weights) == 3  # SGD and its replica, SWAG
    assert shared[0].weights == local.weights


# An object store.


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of an S3 server on this machine."""
    pytest.importorskip("ray", reason=WITHOUT_RAY)
    server_of = pytest.importorskip("moto.server", reason="there is no S3 server: pip install moto[s3] flask")
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install s3fs")
    server = server_of.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    fsspec.filesystem("s3", skip_instance_cache=True).mkdir("scales")
    yield "s3://scales/lpe"
    server.stop()


def _in_bucket(url: str, folder: Path) -> Path:
    """Fetch all that is at a URL."""
    fsspec.filesystem("s3", skip_instance_cache=True).get(f"{url}/", f"{folder}/", recursive=True)
    return folder


@pytest.mark.slow
def test_on_an_object_store_ray_leaves_the_working_records_and_weights_of_one_process(
    bucket: str, local: Left, tmp_path: Path
) -> None:
    environment = {"LPE_STORE": f"{bucket}/store", "LPE_CACHE": str(tmp_path / "cache")}
    assert _on_ray(tmp_path, 2, ASKED, **environment) == 0
    (tmp_path / "there").mkdir()
    left = _left(0, _in_bucket(bucket, tmp_path / "there"))
    assert left.working == local.working and left.weights == local.weights
    assert _left(0, tmp_path).records == local.records
