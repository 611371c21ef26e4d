"""What a result depends on in a user's own modules: edits that make other keys, and those that do not."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from lpe.errors import InputError
from lpe.provenance import REPOSITORY
from reproduce.study.closure import APART, DEFINED_BY, PACKAGES, Project
from reproduce.study.functions import root, run_file

FILES = {
    "own_scale.py": '''
        """A scale."""
        import functools
        import os
        from dataclasses import dataclass

        import own_patches
        from own_helper import width
        from reproduce.study import points


        @dataclass(frozen=True)
        class Stripes:
            def network(self):
                return width(), act(3)


        @dataclass(frozen=True)
        class Dots:
            def network(self):
                return 0


        @functools.singledispatch
        def act(x):
            return x


        @act.register
        def _(x: int):
            return x + 1


        if __name__ != "__main__":
            SLOPE = 0.25


        def slope():
            return SLOPE
    ''',
    "own_helper.py": "from own_sizes import SIZE\n\n\ndef width():\n    # Of all.\n    return 2 * SIZE\n",
    "own_sizes.py": '"""Sizes."""\n\nSIZE = 4\nOTHER = 5\n',
    "own_patches.py": """
        import timm

        from own_flat import flat
        from reproduce.study import points

        points.warmup_cosine = flat
    """,
    "own_flat.py": "def flat(step):\n    return 1.0\n",
    "own_net.py": "import own_folder.inner.wide\n\n\ndef make():\n    return own_folder.inner.wide.make()\n",
    "own_folder/inner/wide.py": "def make():\n    return 64\n",
}

Edit = tuple[str, str, str]
"""A file, a text in it and the text that takes its place; without a text, it is added at the end."""
Of = Callable[..., str]


def written(folder: Path, *edits: Edit) -> None:
    """Write the user's files with some edits."""
    texts = {name: textwrap.dedent(text).lstrip() for name, text in FILES.items()}
    for file, old, new in edits:
        assert old in texts[file]
        texts[file] = texts[file].replace(old, new) if old else texts[file] + new
    for file, text in texts.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text)


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Of:
    """("module:name", edits …) → its hash in a project that is read after these edits."""
    monkeypatch.syspath_prepend(tmp_path)

    def hashed(named: str, *edits: Edit) -> str:
        written(tmp_path, *edits)
        return Project(REPOSITORY, PACKAGES, DEFINED_BY, APART).closure(named).code

    return hashed


STRIPES = "own_scale:Stripes"
MAKES_OTHER_KEYS = {
    "a definition two files away": ("own_sizes.py", "SIZE = 4", "SIZE = 5"),
    "a module imported for its effect": ("own_patches.py", "points.warmup_cosine", "points.started"),
    "what an effect uses": ("own_flat.py", "return 1.0", "return 0.5"),
    "an import for its effect": ("own_scale.py", "import own_patches\n", ""),
    "an implementation that is registered": ("own_scale.py", "return x + 1", "return x + 2"),
    "a file that runs on import": ("own_sizes.py", "", "\n\nprint(SIZE)\n"),
}


@pytest.mark.parametrize("what", MAKES_OTHER_KEYS)
def test_another_key_is_made_by_an_edit_of(what: str, code: Of) -> None:
    assert code(STRIPES) != code(STRIPES, MAKES_OTHER_KEYS[what])


MAKES_NO_OTHER_KEY = {
    "a comment in a helper": ("own_helper.py", "# Of all.", "# Of each."),
    "a docstring two files away": ("own_sizes.py", '"""Sizes."""', '"""All sizes."""'),
    "a constant that nothing uses": ("own_sizes.py", "OTHER = 5", "OTHER = 6"),
    "another dataclass": ("own_scale.py", "return 0\n", "return 1\n"),
    "an import of the standard library's": (
        "own_helper.py",
        "from own_sizes",
        "import json\nfrom own_sizes",
    ),
}


@pytest.mark.parametrize("what", MAKES_NO_OTHER_KEY)
def test_no_other_key_is_made_by_an_edit_of(what: str, code: Of) -> None:
    assert code(STRIPES) == code(STRIPES, MAKES_NO_OTHER_KEY[what])


def test_a_library_imported_for_its_effect_counts_by_its_version(code: Of) -> None:
    code(STRIPES)
    packages = Project(REPOSITORY, PACKAGES, DEFINED_BY, APART).closure(STRIPES).packages
    assert "timm" in packages


def test_what_runs_where_a_file_is_imported_alone_counts(code: Of) -> None:
    edit = ("own_scale.py", "SLOPE = 0.25", "SLOPE = 0.5")
    assert code("own_scale:slope") != code("own_scale:slope", edit)


def test_a_module_in_a_folder_without_init_is_followed(code: Of) -> None:
    edit = ("own_folder/inner/wide.py", "return 64", "return 128")
    assert code("own_net:make") != code("own_net:make", edit)


def test_a_function_found_through_a_registry_of_ones_own_counts(code: Of) -> None:
    registry = (
        "own_sizes.py",
        "",
        "\n\nKINDS = {}\n\n\ndef register(made):\n    KINDS[made.__name__] = made\n    return made\n",
    )
    use = (
        "own_net.py",
        "",
        "\n\nfrom own_sizes import KINDS, register\n\n\n@register\ndef kind():\n    return 1\n"
        "\n\ndef chosen(name):\n    return KINDS[name]()\n",
    )
    before = code("own_net:chosen", registry, use)
    assert code("own_net:chosen", registry, use, ("own_net.py", "return 1\n", "return 2\n")) != before


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ("Block.__subclasses__()[0]()", "__subclasses__ finds classes that nothing names"),
        ("sys.modules[__name__].Block", r"what sys\.modules brings in is not known before it runs"),
    ],
)
def test_what_is_found_without_its_name_is_refused(made: str, said: str, code: Of) -> None:
    text = f"\n\nimport sys\n\n\nclass Block: ...\n\n\ndef found():\n    return {made}\n"
    with pytest.raises(InputError, match=said):
        code("own_net:found", ("own_net.py", "", text))


def test_a_class_that_registers_its_subclasses_is_refused(code: Of) -> None:
    text = "\n\nclass Block:\n    def __init_subclass__(cls):\n        pass\n"
    with pytest.raises(InputError, match="__init_subclass__ finds classes that nothing names"):
        code("own_net:Block", ("own_net.py", "", text))


def test_the_folder_of_a_file_that_is_run_is_in_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    codes = set()
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        written(tmp_path / name)
        project = Project(REPOSITORY, PACKAGES, DEFINED_BY, APART)
        codes.add(project.closure(root("own_net.py:make", tmp_path / name)).code)
        codes.add(project.closure(run_file(tmp_path / name / "own_net.py").make).code)
        for module in [each for each in sys.modules if each.startswith("own_folder")]:
            monkeypatch.delitem(sys.modules, module)
    assert len(codes) == 1
