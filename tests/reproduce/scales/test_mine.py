"""A scale in a TOML file: what a user may get wrong is one line, and the documented example runs."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from lpe.errors import InputError
from lpe.provenance import REPOSITORY
from reproduce import __main__ as everything
from reproduce import fig2, table1
from reproduce.command import run_figure
from reproduce.scales import own
from reproduce.scales.mine.tables import SIZE, settings_presets
from reproduce.study import measurements
from reproduce.study.scale import Scale, digest_of

NETWORK = """
from torch import nn

def make(classes=3):
    return nn.Sequential(nn.Flatten(), nn.Linear(4, classes))

def a_number():
    return 1
"""
LEAST = 'name = "mine"\n[network]\nsource = "net.py:make"\n[data]\narrays = "test.npz"\n'


def arrays(path: Path, targets: np.ndarray | None = None, width: int = 4) -> None:
    """Write twelve examples of three classes."""
    inputs = np.random.default_rng(0).normal(size=(12, width)).astype(np.float32)
    np.savez(path, inputs=inputs, targets=np.arange(12) % 3 if targets is None else targets)


Written = Callable[[str], Scale]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """Write a scale's file beside a network and arrays; returns the scale."""
    (tmp_path / "net.py").write_text(NETWORK)
    arrays(tmp_path / "test.npz")

    def of(text: str) -> Scale:
        (tmp_path / "mine.toml").write_text(text)
        own.load.cache_clear()
        return own.load(str(tmp_path / "mine.toml"))

    return of


def top(lines: str) -> str:
    """Return the least file with more lines before its tables."""
    return f"{lines}\n{LEAST}"


def network(lines: str) -> str:
    """Return the least file with a network of these lines."""
    return LEAST.replace('source = "net.py:make"', lines)


def scored_on(lines: str) -> str:
    """Return the least file with data of these lines."""
    return LEAST.replace('arrays = "test.npz"', lines)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{LEAST}[settings]\nbit = [4]", "unknown key 'bit' in [settings]; did you mean 'bits'?"),
        (top("tuning_evry = 3"), "unknown key 'tuning_evry' in the file; did you mean 'tuning_every'?"),
        (scored_on('file = "test.npz"'), "unknown key 'file' in [data]; "),
        (f"{LEAST}[settings]\nbits = 4", "'bits' in [settings] is 4; a list of whole numbers is expected"),
        (f"{LEAST}[settings]\nsize = true", "'size' in [settings] is true; a whole number is expected"),
        (
            f"{LEAST}[settings]\nbits = [4.5]",
            "'bits' in [settings] is [4.5]; a list of whole numbers is expected",
        ),
        (
            f"{LEAST}[settings.landscape]\nmargin = 'a'",
            "'margin' in [settings.landscape] is 'a'; a number is",
        ),
        (f'{LEAST}[settings]\nscale_axes = ["row"]', "unknown scale axis 'row'; there are channel, tensor"),
        (f'{LEAST}[settings]\nnumber_systems = ["int9"]', "number system 'int9' has 9 bits"),
        (
            f"{LEAST}[settings]\nbits = [3, 4]",
            "'best_bits' in [settings] is 5; one of bits ([3, 4]) is expected",
        ),
        (f"{LEAST}[settings]\nbits = [16]", "'bits' in [settings] is [16]; different widths from 2 to 8"),
        (
            f"{LEAST}[settings]\nclaim_size = 21",
            "'claim_size' in [settings] is 21; 1 to size (20) is expected",
        ),
        (f"{LEAST}[settings]\nsize = 1", "'size' in [settings] is 1; 2 members or more are expected"),
        (top('device = "gpu"'), "'device' is 'gpu'; \"auto\" or \"cpu\" is expected"),
        (LEAST.replace('"mine"', '"a/b"'), "'name' is 'a/b'; letters, digits and -_.+ are expected"),
        ('name = "mine"\n', "it lacks [network]"),
        (network(""), "[network] lacks 'source'; text is expected"),
        (
            network('source = "net.py:make"\nweights = "no.pt"'),
            "'weights' in [network] is 'no.pt', and there is no",
        ),
        (
            network('source = "other.py:make"'),
            "'source' in [network] is 'other.py', and there is no such file",
        ),
        (
            scored_on('arrays = "test.npz"\nfolder = "."'),
            "[data] has folder and arrays; one of folder, arrays, python",
        ),
        (scored_on('folder = "no"'), "'folder' in [data] is 'no', and there is no such folder"),
        (f'{LEAST}[[sizes]]\nsource = "net.py:make"', "two networks are called 'make'"),
        (f"{LEAST}[rivals]\nstds = []", "need one value or more each"),
        ("name =", "it is no TOML: "),
        (top(f"tuning_every = 1{'0' * 5000}"), "it is no TOML: "),
        (top(f"batch = {2**63}"), "'batch' in the file is 9223372036854775808; a whole number of 64 bits"),
        (
            f"{LEAST}[settings]\nbits = [{10**30}]",
            "'bits' in [settings] is 1000000000000000000000000000000; a",
        ),
        (
            network(f'source = "net.py:make"\narguments = {{ classes = -{2**64} }}'),
            "'classes' in [network.arguments] is -18446744073709551616; a whole number of 64 bits",
        ),
        (f"{LEAST}[[sizes]]\nsource = {2**63}", "'source' in [sizes] is 9223372036854775808; a whole number"),
        (top("threads = 100000"), "'threads' is 100000; 1 to 1024 is expected"),
        (f"{LEAST}[settings]\nnoise_share = nan", "'noise_share' in [settings] is nan; a share of the gain"),
        (f"{LEAST}[settings]\nnoise_share = 1.5", "'noise_share' in [settings] is 1.5; a share of the gain"),
        (f"{LEAST}[settings]\nnoise_share = 0", "'noise_share' in [settings] is 0.0; a share of the gain"),
        (f"{LEAST}[settings]\nsize = 1000000", "'size' in [settings] is 1000000; 10,000 members or fewer"),
        (f"{LEAST}[settings]\ndraws = 1001", "'draws' in [settings] is 1001; 1,000 or less is expected"),
        (f"{LEAST}[settings]\nlarge_size = 0", "'large_size' in [settings] is 0; 1 or more is expected"),
        (f"{LEAST}[settings]\naxis_bits = []", "'axis_bits' in [settings] is []; one width or more is"),
        (
            f"{LEAST}[settings.landscape]\nresolution = 100000",
            "'resolution' in [settings.landscape] is 100000; 301 lines or fewer are expected",
        ),
        (f"{LEAST}[settings.landscape]\nmargin = nan", "'margin' in [settings.landscape] is nan; 0 or more"),
        (f"{LEAST}[settings.landscape]\nseed = -1", "'seed' in [settings.landscape] is -1; a training seed"),
        (f"{LEAST}[settings.landscape]\ncloud = 0", "'cloud' in [settings.landscape] is 0; 1 to 10,000"),
        (f"{LEAST}[rivals]\nstds = [0.1, -0.1]", "'stds' in [rivals] is [0.1, -0.1]; numbers from 0 are"),
        (f"{LEAST}[rivals]\nstds = [inf]", "'stds' in [rivals] is [inf]; numbers from 0 are expected"),
        (f"{LEAST}[rivals]\nrates = [1.0]", "'rates' in [rivals] is [1.0]; numbers from 0 to less than 1"),
        (f"{LEAST}[rivals]\nrates = [nan]", "'rates' in [rivals] is [nan]; numbers from 0 to less than 1"),
    ],
)
def test_what_is_wrong_in_a_file_is_one_line(text: str, said: str, written: Written) -> None:
    with pytest.raises(InputError, match=f"^mine.toml: .*{re.escape(said)}"):
        written(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (network('source = "keras/vgg"'), "unknown source 'keras/vgg' of a network; there are timm/NAME"),
        (network('source = "net.py:mak"'), "net.py has no function 'mak'; it has make, a_number"),
        (
            network('source = "net.py:a_number"'),
            "net.py:a_number returned a int; a torch.nn.Module is expected",
        ),
        (network('source = "net.py:make"\narguments = { width = 3 }'), "net.py:make failed: TypeError"),
        (
            network('source = "net.py:make"\narguments = { classes = 2 }'),
            "has the classes 0 to 2, and the network",
        ),
        (network('source = "timm/resnet81"'), "timm has no model 'resnet81'"),
        (
            network('source = "torchvision/resnet81"'),
            "torchvision/resnet81 cannot be made: Unknown model resnet81",
        ),
        (scored_on('arrays = "test.npz"\ninputs = "x"'), "test.npz has no array 'x'; it has inputs, targets"),
        (
            scored_on('python = "net.py:a_number"'),
            "net.py:a_number returned a int; (inputs, classes), or a data set",
        ),
        (scored_on('folder = "images"'), "nothing says how the network sees the images of images"),
        (top("tuning_every = 7"), "there are 12 examples and every 7th tunes; 14 or more are expected"),
    ],
)
def test_what_does_not_fit_is_one_line_when_it_is_loaded(
    text: str, said: str, written: Written, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    scale = written(text)
    assert scale.main is not None
    with pytest.raises(InputError, match=re.escape(said)):
        scale.main.source.load(0)


def test_examples_that_the_network_does_not_take_are_one_line(written: Written, tmp_path: Path) -> None:
    arrays(tmp_path / "test.npz", width=5)
    scale = written(LEAST)
    assert scale.main is not None
    with pytest.raises(InputError, match=r"does not take an example of test.npz, float32 \[5\]: "):
        scale.main.source.load(0)


def test_a_file_of_the_suites_own_name_is_refused(
    tmp_path: Path, written: Written, capsys: pytest.CaptureFixture[str]
) -> None:
    written(LEAST.replace('"mine"', '"digits"'))
    assert everything.main(["--scale", str(tmp_path / "mine.toml")]) == 2
    assert "which this repository has; name it otherwise" in capsys.readouterr().err


@pytest.fixture
def wrong_later(written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options of a scale whose larger network's checkpoint is of another network."""
    monkeypatch.setenv("LPE_STORE", str(tmp_path / "work" / "store"))
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(4, 5)).state_dict(), tmp_path / "w.pt")
    written(
        f'{top("tuning_every = 4")}[[sizes]]\nsource = "net.py:make"\nname = "larger"\nweights = "w.pt"\n'
    )
    place = ["--scale", str(tmp_path / "mine.toml"), "--out", str(tmp_path / "out")]
    return [*place, "--wandb", "disabled"]


@pytest.mark.parametrize("command", [everything.main, functools.partial(run_figure, table1.SCRIPT)])
def test_a_wrong_checkpoint_is_said_before_any_other_is_measured(
    command: Callable[[list[str]], int],
    wrong_later: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(measurements, "measure", lambda session, unit: pytest.fail(f"{unit} is measured"))
    assert command(wrong_later) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "w.pt" in said and said.count("\n") == 1


def test_a_figure_does_not_ask_for_a_checkpoint_that_it_does_not_show(
    wrong_later: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(measurements, "measure", lambda session, unit: asked.append(unit.substrate))
    with pytest.raises(KeyError):  # nothing was measured
        run_figure(fig2.SCRIPT, wrong_later)
    assert set(asked) == {"mine make"}


def test_every_kth_example_tunes_and_the_others_are_scored_by_their_numbers(written: Written) -> None:
    scale = written(top("tuning_every = 4"))
    assert scale.main is not None
    data = scale.main.source.load(0)
    assert data.images.tolist() == [1, 2, 3, 5, 6, 7, 9, 10, 11]
    assert torch.cat([targets for _, targets in data.test]).tolist() == [number % 3 for number in data.images]
    assert torch.cat([targets for _, targets in data.validation]).tolist() == [0, 4 % 3, 8 % 3]


def test_presets_are_those_of_the_size_that_is_given(written: Written) -> None:
    settings = written(f"{LEAST}[settings]\nsize = 8").settings
    assert (settings.table_sizes, settings.claim_size) == ((1, 5, 8), 8)


def test_a_further_network_is_a_block_of_table_1_alone(written: Written) -> None:
    scale = written(f'{LEAST}[[sizes]]\nsource = "net.py:make"\nname = "larger"')
    assert [each.name for each in scale.sizes] == ["mine make", "mine larger"]
    assert [each.name for each in scale.large[""]] == ["mine make"]


@pytest.fixture
def digest(written: Written, tmp_path: Path) -> Callable[[], str]:
    """() → the hash of net.py, net.pt and test.npz as they are now."""
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).state_dict(), tmp_path / "net.pt")

    def hashed() -> str:
        # Another folder each time: what was loaded from one place is kept for the life of a process.
        folder = tmp_path / f"copy{len(list(tmp_path.glob('copy*')))}"
        folder.mkdir()
        for name in ("net.py", "net.pt", "test.npz"):
            shutil.copy(tmp_path / name, folder)
        (folder / "mine.toml").write_text(network('source = "net.py:make"\nweights = "net.pt"'))
        main = own.load(str(folder / "mine.toml")).main
        assert main is not None
        return digest_of(main.source, 0)

    return hashed


def test_neither_another_folder_nor_a_comment_in_a_file_of_functions_changes_the_key(
    digest: Callable[[], str], tmp_path: Path
) -> None:
    before = digest()
    (tmp_path / "net.py").write_text(f"# A network.\n{NETWORK}")
    assert digest() == before


@pytest.mark.parametrize("what", ["weights", "data", "network"])
def test_what_changes_changes_the_key(what: str, digest: Callable[[], str], tmp_path: Path) -> None:
    before = digest()
    assert digest() == before
    if what == "weights":
        weights = torch.load(tmp_path / "net.pt")
        torch.save({name: 2 * value for name, value in weights.items()}, tmp_path / "net.pt")
    elif what == "data":
        arrays(tmp_path / "test.npz", targets=np.arange(12) % 2)
    else:
        (tmp_path / "net.py").write_text(NETWORK.replace("nn.Flatten()", "nn.Flatten(1)"))
    assert digest() != before


def test_class_folders_are_read_as_the_networks_own_transform_says(tmp_path: Path) -> None:
    from PIL import Image

    for label in range(3):
        (tmp_path / "val" / f"class{label}").mkdir(parents=True)
        for number in range(4):
            colour = (60 * label, 10 * number, 0)
            Image.new("RGB", (40, 40), colour).save(tmp_path / "val" / f"class{label}" / f"{number}.png")
    (tmp_path / "mine.toml").write_text(
        'name = "mine"\ntuning_every = 4\n[network]\nsource = "timm/resnet18"\nweights = "w.pt"\n'
        '[data]\nfolder = "val"\n'
    )
    import timm

    torch.save(timm.create_model("resnet18", num_classes=3).state_dict(), tmp_path / "w.pt")
    main = own.load(str(tmp_path / "mine.toml")).main
    assert main is not None
    data = main.source.load(0)
    inputs, targets = data.test[0]
    assert inputs.shape == (9, 3, 288, 288) and targets.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_a_data_set_of_pairs_is_taken(written: Written, tmp_path: Path) -> None:
    (tmp_path / "data.py").write_text(
        "import torch\n\n\ndef test(count):\n    return [(torch.ones(4), i % 3) for i in range(count)]\n"
    )
    scale = written(scored_on('python = "data.py:test"\narguments = { count = 20 }\nlimit = 10'))
    assert scale.main is not None
    assert len(scale.main.source.loaded().examples.targets) == 10


# The documented example.

DOCUMENT = REPOSITORY / "docs" / "own_scale.md"
COMMANDS = re.findall(r"^```sh\n(.*?)^```$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
OFFERED = (*(f"fig{n}" for n in (1, 2, 7, 8)), *(f"table{n}" for n in (1, 2, 3, 4, 6, 7)), "cost")


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of results after the document's two lines, in a copy of the example."""
    folder = tmp_path_factory.mktemp("own")
    shutil.copytree(REPOSITORY / "examples", folder / "examples")
    trains, measures = COMMANDS[0].splitlines()
    assert trains.split()[0] == "python" and measures.split()[:3] == ["python", "-m", "reproduce"]
    subprocess.run([sys.executable, *trains.split()[1:]], cwd=folder, check=True, capture_output=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LPE_STORE", str(folder / "work" / "store"))
        patch.chdir(folder)
        arguments = [*measures.split()[3:], "--out", str(folder / "out"), "--wandb", "disabled"]
        assert everything.main(arguments) == 0
    return folder / "out"


@pytest.mark.parametrize("figure", OFFERED)
def test_one_checkpoint_renders(figure: str, rendered: Path) -> None:
    kind = "tex" if figure.startswith("table") else "pdf"
    assert (rendered / f"{figure}.{kind}").stat().st_size > 0


def test_what_needs_trainings_is_not_offered(rendered: Path) -> None:
    there = {path.stem for path in [*rendered.glob("fig?.pdf"), *rendered.glob("table?.tex")]}
    assert there == set(OFFERED) - {"cost"}


def test_claims_of_one_checkpoint_are_decided_over_its_test_examples(rendered: Path) -> None:
    claims = pd.read_csv(rendered / "claims.csv").set_index("claim")
    judged = claims.loc["C1a (mine cnn)"]
    scored = [number for number in range(898) if number % 5]
    assert judged["interval over"] == "test example" and judged["n"] == len(scored)
    assert judged["95 % low"] < judged["effect"] < judged["95 % high"]
    assert claims.index.is_unique


def test_batch_norm_rows_are_re_estimated_on_the_training_examples(rendered: Path) -> None:
    record = pd.read_csv(rendered / "table1_record.csv")
    assert {"RTN, re-estimated", "LPE-BSR, re-estimated", "FP32, re-estimated"} <= set(record["method"])


def test_the_document_names_every_setting_and_its_preset() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for key, preset in settings_presets(SIZE).items():
        assert f"`{key}`" in text, key
        for value in preset if key in ("bits", "table_bits", "number_systems") else ():
            assert str(value) in text, (key, value)


# Networks and images by the libraries' own loaders.


def pictures(folder: Path) -> None:
    """Write three class folders of four images each."""
    from PIL import Image

    for label in range(3):
        (folder / f"class{label}").mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (40, 40), (60 * label, 10 * number, 0)).save(
                folder / f"class{label}" / f"{number}.png"
            )


def scale_of_pictures(folder: Path, source: str) -> Scale:
    """Write images, and the file of a network on them; returns the scale."""
    pictures(folder / "val")
    (folder / "mine.toml").write_text(
        f'name = "mine"\ntuning_every = 4\nbatch = 4\n[network]\n{source}\n[data]\nfolder = "val"\n'
    )
    return own.load(str(folder / "mine.toml"))


def test_transformers_image_classifier_sees_images_as_its_processor_says(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = ViTConfig(**shape, image_size=16, patch_size=8, num_labels=3)
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "vit")
    main = scale_of_pictures(tmp_path, 'source = "hf/vit"').main
    assert main is not None
    assert main.source.load(0).test[0][0].shape == (4, 3, 16, 16)


def test_torchvision_network_takes_a_file_of_weights(tmp_path: Path) -> None:
    from torchvision.models import resnet18

    net = resnet18(num_classes=3)
    torch.save(net.state_dict(), tmp_path / "w.pt")
    source = 'source = "torchvision/resnet18"\nweights = "w.pt"\narguments = { num_classes = 3 }'
    main = scale_of_pictures(tmp_path, source).main
    assert main is not None
    assert torch.equal(main.source.loaded().net.fc.weight, net.fc.weight)
    assert main.source.load(0).test[0][0].shape == (4, 3, 224, 224)


def test_images_that_memory_does_not_hold_are_read_again_and_give_the_same_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reproduce.scales.mine import data
    from reproduce.scales.mine.scale import _kept

    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n\n\n"
        "def make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))\n\n\n"
        "def seen(image):\n    return torch.tensor(list(image.resize((2, 2)).tobytes())).float()\n"
    )
    text = 'name = "mine"\ntuning_every = 4\nbatch = 4\n[network]\nsource = "net.py:make"\n[data]\n'
    text += 'folder = "val"\ntransform = "net.py:seen"\n'
    pictures(tmp_path / "val")
    found = []
    for name, share in (("kept.toml", 1.0), ("read.toml", 0.0)):
        monkeypatch.setattr(data, "KEPT_SHARE", share)
        (tmp_path / name).write_text(text)
        main = own.load(str(tmp_path / name)).main
        assert main is not None
        _kept.cache_clear()
        found.append(main.source.load(0).test)
    assert isinstance(found[0], list) and isinstance(found[1], data.Pictures)
    assert len(found[0]) == len(found[1]) == 3
    for kept, read, one in zip(found[0], found[1], map(found[1].__getitem__, range(3)), strict=True):
        for place in range(2):
            assert torch.equal(kept[place], read[place]) and torch.equal(kept[place], one[place])
