"""What a function depends on: on a small tree of modules, each rule by itself."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

import lpe
from lpe.errors import InputError
from reproduce.study.closure import Project, Without, project

FILES = {
    "toy/__init__.py": "from toy.methods.deep import Deep\nfrom toy.methods.noisy import Noisy\n",
    "toy/methods/__init__.py": "",
    "toy/methods/deep.py": """
        from toy.rates import rate

        class Deep:
            def fit(self):
                return rate()
    """,
    "toy/methods/noisy.py": "from toy import rates\n\n\ndef Noisy():\n    return rates.noise()\n",
    "toy/rates.py": """
        RATE = 0.5
        NOISE = 0.1


        def rate():
            return RATE


        def noise():
            return NOISE
    """,
    "toy/kernels/__init__.py": """
        import importlib

        def of(name):
            return importlib.import_module(f"toy.kernels.{name}")
    """,
    "toy/apart.py": "def key():\n    return 1\n",
    "toy/kernels/reference.py": "def rounded(w):\n    return round(w)\n",
    "toy/kernels/fast.py": "def rounded(w):\n    return int(w + 0.5)\n",
    "toy/train.py": '''
        """Training."""

        from __future__ import annotations

        import math

        import toy
        from toy import kernels

        # How often.
        STEPS = 3


        def train(steps: int = STEPS) -> float:
            """Train."""
            return toy.Deep().fit() * steps


        def train_noisily():
            from toy import Noisy

            return Noisy()


        def rounded(weight):
            return kernels.of("fast").rounded(weight)


        def logarithm(train):
            return math.log(train)
    ''',
}


Edit = tuple[str, str, str]
"""A file, a text in it and the text that takes its place; without a text, it is added at the end."""


@pytest.fixture
def code(tmp_path: Path) -> Callable[..., str]:
    """(root, edits …) → the root's hash after these edits of the toy project."""

    def hashed(root: str, *edits: Edit) -> str:
        return _project(tmp_path, *edits).closure(root).code

    return hashed


def _project(folder: Path, *edits: Edit) -> Project:
    texts = {name: textwrap.dedent(text).lstrip() for name, text in FILES.items()}
    for file, old, new in edits:
        assert old in texts[file]
        texts[file] = texts[file].replace(old, new) if old else texts[file] + new
    for file, text in texts.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text)
    return Project(folder, ["toy"], {"toy.kernels": "toy.kernels.reference"}, ["toy.apart"])


def test_a_comment_changes_nothing(code: Callable[..., str]) -> None:
    assert code("toy.train:train", ("toy/train.py", "# How often.", "# Enough.")) == code("toy.train:train")


def test_a_docstring_changes_nothing(code: Callable[..., str]) -> None:
    assert code("toy.train:train", ("toy/train.py", '"""Train."""', '"""Fit."""')) == code("toy.train:train")


def test_another_place_in_the_file_changes_nothing(code: Callable[..., str]) -> None:
    assert code("toy.train:train", ("toy/train.py", "import math\n", "import math\n\n\n")) == code(
        "toy.train:train"
    )


def test_a_constant_that_a_function_uses_changes_it(code: Callable[..., str]) -> None:
    assert code("toy.train:train", ("toy/train.py", "STEPS = 3", "STEPS = 4")) != code("toy.train:train")


def test_a_change_in_a_module_that_is_used_changes_it(code: Callable[..., str]) -> None:
    assert code("toy.train:train", ("toy/rates.py", "RATE = 0.5", "RATE = 0.4")) != code("toy.train:train")


def test_a_definition_that_is_not_used_changes_nothing(code: Callable[..., str]) -> None:
    assert code("toy.train:train", ("toy/rates.py", "NOISE = 0.1", "NOISE = 0.2")) == code("toy.train:train")


def test_a_name_handed_on_by_a_package_is_its_definition_alone(tmp_path: Path) -> None:
    definitions = _project(tmp_path).closure("toy.train:train").definitions
    assert definitions == (
        "toy.methods.deep:Deep",
        "toy.rates:RATE",
        "toy.rates:rate",
        "toy.train:STEPS",
        "toy.train:train",
    )


def test_an_import_inside_a_function_counts(code: Callable[..., str]) -> None:
    root = "toy.train:train_noisily"
    assert code(root, ("toy/rates.py", "NOISE = 0.1", "NOISE = 0.2")) != code(root)


def test_a_local_variable_is_not_the_function_of_that_name(tmp_path: Path) -> None:
    assert _project(tmp_path).closure("toy.train:logarithm").definitions == ("toy.train:logarithm",)


def test_a_comprehensions_variable_is_no_name_of_the_module(tmp_path: Path) -> None:
    # Python 3.12 lists it among the module's names, so that keys were others than those of 3.11.
    path = tmp_path / "toy" / "few.py"
    path.parent.mkdir()
    path.write_text("A, B = (1,), (2,)\nFIRST = {a: each for a, each in A}\nSECOND = [each for each in B]\n")
    assert Project(tmp_path, ["toy"]).closure("toy.few:SECOND").definitions == ("toy.few:A", "toy.few:SECOND")


def test_a_faster_kernel_changes_nothing(code: Callable[..., str]) -> None:
    root = "toy.train:rounded"
    assert code(root, ("toy/kernels/fast.py", "w + 0.5", "0.5 + w")) == code(root)


def test_the_reference_of_the_kernels_counts_where_they_are_used(code: Callable[..., str]) -> None:
    root = "toy.train:rounded"
    assert code(root, ("toy/kernels/reference.py", "round(w)", "round(w, 0)")) != code(root)


def test_a_module_that_is_set_apart_does_not_count(code: Callable[..., str]) -> None:
    use = ("toy/train.py", "", "\n\ndef keyed():\n    from toy.apart import key\n    return key()\n")
    root = "toy.train:keyed"
    assert code(root, use, ("toy/apart.py", "return 1", "return 2")) == code(root, use)


def test_what_a_module_does_when_it_is_imported_counts(code: Callable[..., str]) -> None:
    root = "toy.train:train"
    assert code(root, ("toy/rates.py", "", "rate.__defaults__ = (1,)\n")) != code(root)


ASKS = ("toy/train.py", "import math\n", "import math\n\nfrom lpe.extras import needs\n")
ASKED = ("toy/train.py", "    return toy.Deep()", '    needs("timm")\n    return toy.Deep()')
ASKED_ON_IMPORT = ("toy/train.py", "STEPS = 3\n", 'STEPS = 3\nneeds("timm")\n')


@pytest.mark.parametrize("asked", [ASKED, ASKED_ON_IMPORT], ids=["in a function", "on import"])
def test_to_ask_whether_a_package_is_installed_changes_nothing(code: Callable[..., str], asked: Edit) -> None:
    assert code("toy.train:train", ASKS, asked) == code("toy.train:train")


@pytest.mark.parametrize("asked", [ASKED, ASKED_ON_IMPORT], ids=["in a function", "on import"])
@pytest.mark.parametrize("name", ["toy.rates", "toy.methods.noisy"])
def test_a_function_of_that_name_from_elsewhere_counts(
    code: Callable[..., str], asked: Edit, name: str
) -> None:
    other = (ASKS[0], ASKS[1], f"import math\n\nfrom {name} import Noisy as needs\n")
    made = ("toy/rates.py", "", "\n\ndef Noisy(text):\n    return text\n")
    assert code("toy.train:train", made, other, asked) != code("toy.train:train", made)


def test_names_for_the_type_checker_alone_do_not_count(code: Callable[..., str]) -> None:
    new = "import math\nfrom typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from no import Never\n"
    root = "toy.train:train"
    assert code(root, ("toy/train.py", "import math\n", new)) == code(root)


def test_a_type_named_in_an_annotation_does_not_count(tmp_path: Path) -> None:
    edited = _project(tmp_path, ("toy/train.py", "steps: int = STEPS", "steps: toy.Noisy = STEPS"))
    assert "toy.methods.noisy:Noisy" not in edited.closure("toy.train:train").definitions


def test_two_imports_that_change_names_change_it(code: Callable[..., str]) -> None:
    one, other = "rate as a, noise as b", "rate as b, noise as a"
    use = ("toy/train.py", "", f"\n\nfrom toy.rates import {one}\n\ndef both():\n    return a() - b()\n")
    assert code("toy.train:both", use) != code("toy.train:both", use, ("toy/train.py", one, other))


def test_a_module_handed_on_as_an_object_counts_whole(code: Callable[..., str]) -> None:
    use = ("toy/train.py", "", "\n\ndef named(name):\n    return getattr(toy.rates, name)\n")
    assert code("toy.train:named", use, ("toy/rates.py", "", "\nUNSEEN = 1\n")) != code(
        "toy.train:named", use
    )


def test_a_relative_import_is_followed(tmp_path: Path) -> None:
    new = "\n\ndef relative():\n    from .rates import rate\n    return rate()\n"
    edited = _project(tmp_path, ("toy/train.py", "", new))
    assert "toy.rates:RATE" in edited.closure("toy.train:relative").definitions


def test_a_module_imported_by_a_constant_text_counts(tmp_path: Path) -> None:
    new = '\n\nimport importlib\n\ndef lazy():\n    return importlib.import_module("toy.rates").rate()\n'
    edited = _project(tmp_path, ("toy/train.py", "", new))
    assert "toy.rates:rate" in edited.closure("toy.train:lazy").definitions


@pytest.mark.parametrize("made", ['importlib.import_module("toy." + name)', "__import__(name)", "eval(name)"])
def test_code_that_is_known_only_when_it_runs_is_refused(tmp_path: Path, made: str) -> None:
    new = f"\n\nimport importlib\n\ndef lazy(name):\n    return {made}\n"
    edited = _project(tmp_path, ("toy/train.py", "", new))
    with pytest.raises(InputError, match="lazy: what .* brings in is not known before it runs"):
        edited.closure("toy.train:lazy")


def test_a_star_import_is_refused(tmp_path: Path) -> None:
    edited = _project(tmp_path, ("toy/train.py", "import math", "from toy.rates import *"))
    with pytest.raises(InputError, match=r"import \* cannot be followed"):
        edited.closure("toy.train:train")


def test_a_name_that_its_module_does_not_have_is_refused(tmp_path: Path) -> None:
    edited = _project(tmp_path, ("toy/train.py", "toy.Deep()", "toy.Deeper()"))
    with pytest.raises(InputError, match="there is no 'Deeper'"):
        edited.closure("toy.train:train")


def test_packages_are_those_that_the_definitions_import(tmp_path: Path) -> None:
    new = "\n\nimport scipy.special\nimport numpy as np\n\ndef special(x):\n    return scipy.special.erf(x)\n"
    edited = _project(tmp_path, ("toy/train.py", "", new))
    assert edited.closure("toy.train:special").packages == ("scipy",)


def test_a_project_is_as_it_was_when_it_was_read(tmp_path: Path) -> None:
    before = _project(tmp_path)
    _project(tmp_path, ("toy/train.py", "STEPS = 3", "STEPS = 4"))
    assert before.closure("toy.train:train").code == _project(tmp_path).closure("toy.train:train").code


def test_a_partial_depends_on_the_functions_that_it_holds() -> None:
    roots = project().closure(functools.partial(sorted, [], key=lpe.evaluate)).definitions
    assert "lpe.evaluation.predict:evaluate" in roots


def test_a_function_defined_inside_another_is_refused_as_a_root() -> None:
    def inner() -> None: ...

    with pytest.raises(InputError, match="inner is defined inside a function"):
        project().closure(inner)


def test_an_object_depends_on_its_class() -> None:
    assert "lpe.number_systems.grids:Int" in project().closure(lpe.Int(4).__class__).definitions


class _Source:
    """A class with two methods, each of which depends on something else."""

    def load(self) -> object:
        return lpe.evaluate

    def network(self) -> object:
        return lpe.train


def test_a_class_may_count_without_a_method_whose_result_is_in_the_key() -> None:
    definitions = project().closure(Without(_Source, ("load",))).definitions
    assert "lpe.training.loop:train" in definitions
    assert "lpe.evaluation.predict:evaluate" not in definitions


def test_rounding_counts_the_reference_and_no_other_kernel() -> None:
    definitions = project().closure(lpe.LowPrecisionEnsemble).definitions
    kernels = {each.partition(":")[0] for each in definitions if ".kernels" in each}
    # Planes are read by plain torch there, and by each backend's own module.
    own = {f"lpe.number_systems.kernels.{name}" for name in ("reference", "arguments", "planes")}
    assert kernels == own


def test_no_module_of_the_library_does_anything_when_it_is_imported() -> None:
    """Else a module that is imported, and that nothing is taken from, could change a result unseen."""
    whole = project()
    names = [name for name in whole._files if name.partition(".")[0] == "lpe" and name != "lpe.__main__"]
    effects = [str(part) for name in names for part in whole._module(name).effects]
    # What ends commands, which is in no key; a function's name for those who print it; and kernels that say
    # what is missing without Triton.
    assert sorted(effects) == [
        "lpe.interruption:on import",
        "lpe.number_systems.kernels.cuda:on import",
        "lpe.structure:on import",
        "lpe.training.frn_kernels:on import",
    ]
