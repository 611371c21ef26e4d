"""A scale in a Python file: what is out of its range is one line, before anything is loaded or measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lpe.errors import InputError
from reproduce import __main__ as everything
from reproduce.judge.verdicts import UNITS
from reproduce.scales import find, own
from reproduce.scales.checks import Attribute, check_scale
from reproduce.study.scale import INTERVAL_UNITS

TOY = Path(__file__).with_name("toy.py")
Toy = Callable[[str], str]


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    """Write the toy with a line at its end; returns the file's name."""

    def written(line: str) -> str:
        path = tmp_path / "mine.py"
        path.write_text(f"from dataclasses import replace\n{TOY.read_text(encoding='utf-8')}{line}\n")
        own.load.cache_clear()
        return str(path)

    return written


def of_scale(change: str) -> str:
    return f"SCALE = replace(SCALE, {change})"


def of_settings(change: str) -> str:
    return of_scale(f"settings=replace(SCALE.settings, {change})")


def of_beyond(change: str) -> str:
    return of_scale(f"beyond=replace(SCALE.beyond, {change})")


def of_main(change: str) -> str:
    return of_scale(f"main=replace(MAIN, {change})")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (of_scale("name='../x'"), "'name' is '../x'; letters, digits and -_.+ are expected"),
        (of_scale("name='a/b'"), "'name' is 'a/b'; letters"),
        (of_scale("name=''"), "'name' is ''; letters"),
        (of_scale("name=3"), "'name' in SCALE is 3; text is expected"),
        (of_scale("device='gpu'"), "'device' is 'gpu'; \"auto\" or \"cpu\" is expected"),
        (of_scale("unit='moon'"), "'unit' in SCALE is 'moon'; one of 'seed', 'same images', 'example' is"),
        (of_scale("seeds=0"), "'seeds' in SCALE is 0; 1 to 100 is expected: later seeds tune the recipes"),
        (of_scale("seeds=101"), "'seeds' in SCALE is 101; 1 to 100 is expected"),
        (of_scale("seeds=2.0"), "'seeds' in SCALE is 2.0; a whole number is expected"),
        (of_scale("seeds=True"), "'seeds' in SCALE is True; a whole number is expected"),
        (of_scale("claim_seeds=0"), "'claim_seeds' in SCALE is 0; 1 to 100 is expected"),
        (of_scale("cost_seeds=-1"), "'cost_seeds' in SCALE is -1; 1 to 100 is expected"),
        (of_scale("threads=0"), "'threads' is 0; 1 to 1024 is expected"),
        (of_scale("settings=None"), "'settings' in SCALE is None; a Settings is expected"),
        (of_scale("sizes=[MAIN]"), "'sizes' in SCALE is [Substrate("),
        (of_scale("sizes=('net',)"), "'sizes' in SCALE is ('net',); a tuple of Substrates is expected"),
        (of_scale("large={'': ['net']}"), "tuples are expected"),
        (of_scale("large={'': ('net',)}"), "SCALE has a str among its networks; a Substrate is expected"),
        (of_scale("sizes=(network('net', 8),)"), "two substrates are called 'toy net'; give one of them"),
        (of_settings("size=1"), "'size' in SCALE.settings is 1; 2 members or more are expected"),
        (of_settings("bits=[4, 3]"), "'bits' in SCALE.settings is [4, 3]; a tuple of whole numbers is"),
        (of_settings("best_bits=5"), "'best_bits' in SCALE.settings is 5; one of bits ([4, 3]) is expected"),
        (of_settings("noise_share=float('nan')"), "'noise_share' in SCALE.settings is nan; a share of the"),
        (of_beyond("size=1"), "'size' in SCALE.beyond is 1; 2 to 10,000 members are expected"),
        (of_beyond("seeds=0"), "'seeds' in SCALE.beyond is 0; 1 to 100 training seeds are expected"),
        (of_beyond("spread_bits=9"), "'spread_bits' in SCALE.beyond is 9; 2 to 8 is expected"),
        (
            of_beyond("spreads=(8, 0.5)"),
            "is [8, 0.5]; numbers from 1 to 127, the largest code of 8 bits, are",
        ),
        (
            of_beyond("spreads=(8, 128)"),
            "is [8, 128]; numbers from 1 to 127, the largest code of 8 bits, are",
        ),
        (of_beyond("spreads=(8, float('nan'))"), "is [8, nan]; numbers from 1 to 127"),
        (of_beyond("spreads=()"), "'spreads' in SCALE.beyond is []; one value or more is expected"),
        (of_beyond("stds=(0.1,)"), "is [0.1]; as many values as of 'spreads' (2) are expected: equal tuning"),
        (of_beyond("stds=(0.1, 0.10000001)"), "values that differ in 6 digits are expected"),
        (of_beyond("stds=(0.1, -0.1)"), "'stds' in SCALE.beyond is [0.1, -0.1]; numbers from 0 are expected"),
        (of_beyond("rates=(0.1, 1.0)"), "is [0.1, 1.0]; numbers from 0 to less than 1 are expected"),
        (of_beyond("pool=2"), "'pool' in SCALE.beyond is 2; size (3) to 10,000 members are expected"),
        (of_beyond("calibration=0"), "'calibration' in SCALE.beyond is 0; 1 example or more is expected"),
        (of_beyond("views=-1"), "'views' in SCALE.beyond is -1; 0 to 10,000 is expected"),
        (of_beyond("sensitivity=0"), "'sensitivity' in SCALE.beyond is 0; 1 to 10,000 is expected"),
        (of_beyond("shifts=MAIN.source"), "an object with load(seed) and digest(seed), or None, is expected"),
        (of_scale("beyond=3"), "'beyond' in SCALE is 3; a Beyond or None is expected"),
        (
            of_settings("landscape=replace(SCALE.settings.landscape, resolution=10**6)"),
            "'resolution' in SCALE.settings.landscape is 1000000; 301 lines or fewer are expected",
        ),
        (
            of_settings("landscape=replace(SCALE.settings.landscape, split='train')"),
            "'split' in SCALE.settings.landscape is 'train'; \"test\" or \"validation\" is expected",
        ),
        (
            of_main("rivals=Rivals((-0.1,), (0.1,))"),
            "'stds' in substrate 'toy net' is [-0.1]; numbers from 0",
        ),
        (of_main("name=' '"), "a substrate's 'name' is ' '; a line of text is expected"),
        (of_main("points={}"), "substrate 'toy net' has no 'points'; one recipe or more is expected"),
        (of_main("most_seeds={'DE': 0}"), "'most_seeds' in substrate 'toy net' is {'DE': 0}; 1 or more is"),
    ],
)
def test_what_is_wrong_in_a_python_file_is_one_line_before_any_work(
    line: str, said: str, toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert everything.main(["--scale", toy(line), "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: mine.py: ") and said in message and message.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_toy_is_right(toy: Toy) -> None:
    assert own.load(toy("")).name == "toy"


@pytest.mark.parametrize("name", find.names())
def test_the_suites_own_scales_are_within_the_ranges(name: str) -> None:
    check_scale(find.scale(name), Attribute(f"{name}.py", "SCALE"))


def test_the_check_catches_a_scale_of_the_suite_with_a_wrong_unit() -> None:
    with pytest.raises(InputError, match="'unit' in SCALE is 'seeds'"):
        check_scale(replace(find.scale("digits"), unit="seeds"), Attribute("digits.py", "SCALE"))


def test_a_scale_names_the_units_that_intervals_are_of() -> None:
    assert tuple(UNITS) == INTERVAL_UNITS
