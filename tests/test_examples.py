"""The examples run, and print what they say."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import math
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import lpe
from lpe.provenance import REPOSITORY

EXAMPLES = REPOSITORY / "examples"
NOTEBOOK = EXAMPLES / "quick_start.ipynb"


def rows(printed: str) -> dict[tuple[str, int], list[float]]:
    """The rows of a table of nats, perplexity and MB: name and size → these."""
    return rows_of(3, printed)


def rows_of(columns: int, printed: str) -> dict[tuple[str, int], list[float]]:
    """A table's rows: name and size → as many numbers that follow."""
    lines = [line.rsplit(maxsplit=columns + 1) for line in printed.splitlines()[1:]]
    return {(name, int(size)): [float(each) for each in numbers] for name, size, *numbers in lines}


def test_a_language_model_of_ones_own_has_its_perplexity(capsys: pytest.CaptureFixture[str]) -> None:
    example = runpy.run_path(str(EXAMPLES / "perplexity.py"))
    with torch.random.fork_rng(devices=[]):
        example["main"]([], steps=30, size=5)
    found = rows(capsys.readouterr().out)
    sizes = [("LPE-BSR", 1), ("LPE-BSR", 2), ("LPE-BSR", 5)]
    assert list(found) == [("as it is", 1), ("to nearest", 1), *sizes]
    for nats, perplexity, megabytes in found.values():
        assert perplexity == pytest.approx(math.exp(nats), rel=1e-3) and megabytes > 0
    assert found["as it is", 1][0] < found["LPE-BSR", 5][0] < found["LPE-BSR", 1][0]


def test_a_model_of_transformers_has_the_perplexity_of_a_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers: Any = pytest.importorskip("transformers")
    tokenizers: Any = pytest.importorskip("tokenizers")
    letters = ["<s>", *"abcdefgh "]
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({c: i for i, c in enumerate(letters)}, "<s>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    transformers.PreTrainedTokenizerFast(tokenizer_object=made).save_pretrained(tmp_path)
    config = transformers.GPT2Config(
        vocab_size=len(letters), n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(config).eval()
    model.save_pretrained(tmp_path)
    text = "a bad cafe had a bed " * 30
    (tmp_path / "text").write_text(text)
    example = runpy.run_path(str(EXAMPLES / "perplexity.py"))
    example["main"]([str(tmp_path), str(tmp_path / "text")], size=2)
    ids = torch.tensor([[letters.index(c) for c in text[:512]]])
    with torch.no_grad():
        loss = float(model(ids, labels=ids).loss)
    assert rows(capsys.readouterr().out)["as it is", 1][0] == pytest.approx(loss, abs=1e-4)


def run_example(name: str, *options: object) -> None:
    """Run an example as its command line does."""
    example = runpy.run_path(str(EXAMPLES / name))
    with torch.random.fork_rng(devices=[]):
        example["main"]([str(each) for each in options])


def refusal(name: str, capsys: pytest.CaptureFixture[str], *options: object) -> str:
    """Run an example that must refuse what it is given; what it says, which is one line."""
    with pytest.raises(SystemExit) as ended:
        run_example(name, *options)
    said = capsys.readouterr()
    assert ended.value.code == 2 and not said.out and said.err.count("\n") == 1
    return said.err


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Two classes of two images, each of one grey."""
    for index, grey in enumerate((0, 80, 160, 240)):
        folder = tmp_path / "images" / ("dark", "light")[index // 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (160, 160), (grey, grey, grey)).save(folder / f"{index}.png")
    return tmp_path / "images"


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # of timm, which leaves it to Python
def test_a_model_of_timm_has_its_row_for_each_rounding_of_an_image_folder(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    timm: Any = pytest.importorskip("timm")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = timm.create_model("test_vit", num_classes=2).eval()
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(0))
    torch.save(model.state_dict(), tmp_path / "mine.pth")
    mine = ("--model", "test_vit", "--checkpoint", tmp_path / "mine.pth")
    run_example("timm_folder.py", image_folder, *mine, "--size", 2)
    found = rows_of(4, capsys.readouterr().out)
    many = [(name, size) for name in ("LPE-BSR", "LPE-BSR coupled") for size in (1, 2)]
    assert list(found) == [("FP32", 1), ("RTN", 1), *many]
    greys = (
        torch.tensor([0, 80, 160, 240]) / 255
    )  # which resizing leaves alone; this model's mean and std are .5
    images = ((greys - 0.5) / 0.5).view(4, 1, 1, 1).expand(4, 3, 160, 160)
    with torch.no_grad():
        logits, labels = model(images), torch.tensor([0, 0, 1, 1])
    nll, error, *_ = found["FP32", 1]
    assert nll == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), abs=2e-4)
    assert error == float((logits.argmax(1) != labels).float().mean())
    assert found["LPE-BSR", 1] == found["LPE-BSR coupled", 1]  # the first draw is the same
    assert found["RTN", 1][3] == found["LPE-BSR", 1][3] < found["LPE-BSR", 2][3] < found["FP32", 1][3]


def test_a_folder_a_model_or_a_checkpoint_that_will_not_do_is_one_line(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("timm")
    name, model = "timm_folder.py", ("--model", "test_vit")
    assert "there is no" in refusal(name, capsys, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "no images in" in refusal(name, capsys, tmp_path / "empty", *model, "--random-weights")
    assert "2 classes" in refusal(name, capsys, image_folder / "dark", *model, "--random-weights")
    assert "there is no" in refusal(name, capsys, image_folder, *model, "--checkpoint", tmp_path / "none")
    (tmp_path / "text.safetensors").write_text("no weights")
    assert "cannot load" in refusal(
        name, capsys, image_folder, *model, "--checkpoint", tmp_path / "text.safetensors"
    )
    assert "int9" in refusal(name, capsys, image_folder, *model, "--random-weights", "--system", "int9")


def test_a_module_of_ones_own_is_described_scored_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_example("own_module.py", "--epochs", 2, "--size", 2, "-o", tmp_path / "own.lpe")
    described, table, file = capsys.readouterr().out.strip().split("\n\n")
    quantised = {line.split()[0] for line in described.splitlines() if " yes " in line}
    assert quantised == {"body.weight", "head.weight"} and "stem.*" in described
    found = rows_of(3, table)
    assert list(found) == [("FP32", 1), *((name, n) for name in ("network's", "member's") for n in (1, 2))]
    assert all(nll < math.log(10) for nll, *_ in found.values())  # it has learnt
    assert found["network's", 1] != found["member's", 1]
    assert f"{(tmp_path / 'own.lpe').stat().st_size:,} bytes" in file and file.endswith("bit: True")
    assert "2 to 8 bits" in refusal("own_module.py", capsys, "--bits", 9)
    assert "no folder" in refusal("own_module.py", capsys, "-o", tmp_path / "nowhere" / "own.lpe")


WITHOUT_LPE = """
import sys
sys.modules["lpe"] = None  # to import it is an error
import torch
{load}
torch.save(net.eval()(torch.load("inputs.pt")).detach(), "logits.pt")
"""


def logits_without_lpe(load: str, inputs: torch.Tensor, folder: Path) -> torch.Tensor:
    """What a network predicts in a process that has no lpe."""
    torch.save(inputs, folder / "inputs.pt")
    subprocess.run([sys.executable, "-c", WITHOUT_LPE.format(load=load)], cwd=folder, check=True)
    found: torch.Tensor = torch.load(folder / "logits.pt")
    return found


def test_an_exported_member_predicts_without_lpe_what_it_is_in_the_ensemble(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    example = runpy.run_path(str(EXAMPLES / "export_members.py"))
    with torch.random.fork_rng(devices=[]):
        example["main"]([str(tmp_path / "out"), "--size", "2"])
        torch.manual_seed(0)
        net, images = example["trained"]()
    *members, mean = capsys.readouterr().out.splitlines()
    size = (tmp_path / "out" / "member_1" / "model.safetensors").stat().st_size
    assert len(members) == 2 and f"{size:,} bytes" in members[1]
    assert all(line.endswith("off by 0.0e+00") for line in members)
    assert mean.startswith("mean of 2") and float(mean.split()[-1]) < 1e-5
    load = """from torch import nn
from safetensors.torch import load_file
net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
net.load_state_dict(load_file("out/member_1/model.safetensors"))"""
    member = lpe.LowPrecisionEnsemble(net, lpe.Int(4), 2)[1]
    with torch.no_grad():
        wanted = member(images)
        assert not torch.equal(wanted, net(images))
    torch.testing.assert_close(logits_without_lpe(load, images, tmp_path), wanted)
    assert "not empty" in refusal("export_members.py", capsys, tmp_path / "out")
    assert "--model" in refusal("export_members.py", capsys, tmp_path / "new", "--random-weights")
    assert not (tmp_path / "new").exists()


def test_an_exported_member_of_a_model_of_timm_is_a_checkpoint_of_timm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    timm: Any = pytest.importorskip("timm")
    name = "export_members.py"
    run_example(name, tmp_path / "out", "--model", "test_resnet", "--random-weights", "--size", 1)
    member, mean = capsys.readouterr().out.splitlines()
    assert member.endswith("off by 0.0e+00") and float(mean.split()[-1]) < 1e-5
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = timm.create_model("test_resnet").eval()
        images = torch.randn(2, 3, 160, 160)
    load = 'import timm\nnet = timm.create_model("local-dir:out/member_0", pretrained=True)'
    with torch.no_grad():
        wanted = lpe.LowPrecisionEnsemble(net, lpe.Int(4), 1)[0](images)
    torch.testing.assert_close(logits_without_lpe(load, images, tmp_path), wanted)
    assert "tst_vit" in refusal(name, capsys, tmp_path / "new", "--model", "tst_vit", "--random-weights")


# The notebook


def cells(kind: str) -> list[dict[str, Any]]:
    """The notebook's cells of a kind, in its order."""
    return [each for each in json.loads(NOTEBOOK.read_text("utf-8"))["cells"] if each["cell_type"] == kind]


def of_the_readme(fence: str) -> list[str]:
    """The blocks of a language in the README's quick start."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    section = text.partition("## Quick start")[2].partition("\n## ")[0]
    return re.findall(rf"^```{fence}\n(.*?)\n```$", section, re.MULTILINE | re.DOTALL)


def run_cell(code: str, names: dict[str, Any]) -> str:
    """Run a cell; what it printed. No cell ends with a value, which Jupyter would show as well."""
    tree = ast.parse(code)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(tree, NOTEBOOK.name, "exec"), names)
        if isinstance(last, ast.Expr):
            assert eval(compile(ast.Expression(last.value), NOTEBOOK.name, "eval"), names) is None
    return said.getvalue()


def test_the_notebook_is_a_notebook() -> None:
    """As version 4.5 of its format has it, of which every cell has an id."""
    read = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (read["nbformat"], read["nbformat_minor"]) == (4, 5)
    assert read["metadata"]["kernelspec"]["name"] == "python3"
    ids = [each["id"] for each in read["cells"]]
    assert len({*ids}) == len(ids) and all(re.fullmatch(r"[\w-]{1,64}", each) for each in ids)
    of_code = {"cell_type", "execution_count", "id", "metadata", "outputs", "source"}
    assert all({*each} == of_code for each in cells("code"))
    assert all({*each} == of_code - {"execution_count", "outputs"} for each in cells("markdown"))
    assert [each["execution_count"] for each in cells("code")] == [1, 2, 3, 4]


def test_the_notebook_is_the_readmes_quick_start() -> None:
    assert ["".join(each["source"]) for each in cells("code")] == of_the_readme("python")
    (shown,) = of_the_readme("text")
    (stored,) = ["".join(out["text"]) for each in cells("code") for out in each["outputs"]]
    assert stored.split() == shown.split()


def test_the_notebook_prints_what_is_stored_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        for cell in cells("code"):
            printed = run_cell("".join(cell["source"]), names).split()
            stored = "".join(text for out in cell["outputs"] for text in out["text"]).split()
            assert len(printed) == len(stored)
            for found, wanted in zip(printed, stored, strict=True):
                if "." not in wanted:
                    assert found == wanted
                else:  # as the README's: other CPUs add up in another order
                    assert float(found) == pytest.approx(float(wanted), rel=0.25, abs=0.01)
    assert (tmp_path / "members.lpe").stat().st_size > 3 / 8 * 20 * 64 * 74
    assert len(names["again"]) == 20
