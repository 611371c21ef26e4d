"""Bad input at every command line: one clear line, exit code 2, nothing written.

Commands and options are those of the parsers themselves, so that a new one is tested without an edit here.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from lpe import cli
from lpe.cli.batch_size import batch_size
from lpe.command_line import Parser, complain, integer, number, one_line
from lpe.provenance import REPOSITORY
from reproduce import __main__ as everything
from reproduce import cost
from reproduce.command import run_figure

Main = Callable[[Sequence[str]], int]


class Captured(Exception):
    """A command has made its parser."""


class Reached(Exception):
    """A command has taken its arguments, and begins to load or to write."""


@dataclass(frozen=True)
class Command:
    """A command: how it is run, and its options. ``needed``: arguments without which it does not begin."""

    name: str
    run: Main
    options: tuple[argparse.Action, ...]
    needed: tuple[str, ...]

    def __repr__(self) -> str:
        return self.name


NEEDED = {
    "evaluate": ("timm/test_vit", "--data", "."),
    "describe": ("timm/test_vit",),
    "pack": ("timm/test_vit", "-o", "e"),
    "score": ("predictions",),
    "plot": ("predictions", "-o", "p.png"),
    "export": ("timm/test_vit", "--member", "0", "-o", "e"),
    "reproduce.scales.cifar10.__main__": ("--points", "points"),
}


def options_of(parser: argparse.ArgumentParser) -> tuple[argparse.Action, ...]:
    return tuple(
        action
        for action in parser._actions
        if action.option_strings and not isinstance(action, argparse._HelpAction)
    )


def modules() -> Iterator[tuple[str, Main]]:
    """Yield every script of reproduce and benchmarks that takes a command line."""
    for package in ("reproduce", "benchmarks"):
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            if not re.search('^if __name__ == "__main__":', path.read_text(encoding="utf-8"), re.M):
                continue
            name = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
            if name == "benchmarks.__main__":  # it hands on to the others
                continue
            module: Any = import_module(name)
            if hasattr(module, "main"):
                yield name, module.main
            else:
                yield name, lambda arguments, script=module.SCRIPT: run_figure(script, arguments)


def parser_of(run: Main) -> Parser:
    """Return the parser that a command makes, as it is about to parse."""
    made: list[Parser] = []

    def captured(self: Parser, *_: object) -> None:
        made.append(self)
        raise Captured

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Captured):
        patch.setattr(Parser, "parse_args", captured)
        run([])
    return made[0]


@cache
def commands() -> list[Command]:
    found = []
    (group,) = [each for each in cli._parser()._actions if isinstance(each, argparse._SubParsersAction)]
    for name, parser in group.choices.items():
        run = lambda arguments, name=name: cli.main([name, *arguments])  # noqa: E731
        found.append(Command(f"lpe {name}", run, options_of(parser), NEEDED.get(name, ())))
    # What two of the scripts hand on to parsers of their own.
    handed_on = [
        ("reproduce claims", lambda arguments: everything.main(["claims", *arguments])),
        ("reproduce.cost --assets", lambda arguments: cost.main(["--assets", *arguments])),
    ]
    for name, run in [*modules(), *handed_on]:
        found.append(Command(name, run, options_of(parser_of(run)), NEEDED.get(name, ())))
    return found


@cache
def options(taking: bool = True) -> list[tuple[Command, argparse.Action]]:
    """List every command's options, those that take a value or the flags."""
    return [(each, option) for each in commands() for option in each.options if (option.nargs != 0) == taking]


def numbers() -> list[tuple[Command, argparse.Action]]:
    return [(command, option) for command, option in options() if option.type in (int, float, batch_size)]


def command_of(name: str) -> Command:
    (found,) = [each for each in commands() if each.name == name]
    return found


def test_every_command_and_its_options_are_found() -> None:
    names = [command.name for command in commands()]
    assert {"lpe evaluate", "lpe pack", "reproduce.fig2", "reproduce.__main__", "reproduce.known"} < {*names}
    assert {"reproduce.tune", "reproduce.external", "benchmarks.coupling", "benchmarks.gpu"} < {*names}
    strings = {text for _, option in options() for text in option.option_strings}
    assert {"--checkpoint", "--seeds", "--width", "--minutes", "--out", "-o", "--weights"} < strings
    types = {option.type for _, option in options() if option.type is not None}
    assert types <= {int, float, Path, batch_size}, "a type whose bad values this test does not know"


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[Command, Sequence[str]], str]:
    """Run a command that is to refuse its arguments, in an empty folder; its one line."""
    monkeypatch.chdir(tmp_path)
    # What begins to load a model or to write stops here: that it does is a fault.
    stop_work(monkeypatch)

    def refused(command: Command, arguments: Sequence[str]) -> str:
        try:
            code = command.run(arguments)
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else 1
        except Reached:
            raise AssertionError(f"{command}: {list(arguments)} is taken") from None
        printed = capsys.readouterr()
        what = f"{command} {list(arguments)}: {code}, {printed.out!r}, {printed.err!r}"
        assert code == 2 and printed.out == "", what
        assert printed.err.startswith("error: ") and printed.err.count("\n") == 1, what
        assert printed.err.rstrip("\n").isprintable() and len(printed.err) < 2200, what
        assert os.listdir(tmp_path) == [], what
        return printed.err

    return refused


def stop_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def reached(*_: object, **__: object) -> None:
        raise Reached

    monkeypatch.setattr(Path, "mkdir", reached)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    for module, names in {
        "lpe.cli.evaluate": ("subject",),
        "lpe.cli.describe": ("model_alone",),
        "lpe.cli.pack": ("check_writable",),
        "lpe.cli.score": ("scores",),
        "lpe.cli.plot": ("curves",),
        "lpe.cli.export": ("check_writable",),
        "reproduce.command": ("rehearse", "opened"),
        "reproduce.__main__": ("rehearse", "opened"),
    }.items():
        for name in names:
            monkeypatch.setattr(import_module(module), name, reached)


# What no option takes: control characters, halves of characters, nothing, and more than any path has.

UNPRINTABLE = st.text(st.characters(categories=["Cc", "Cs"]), min_size=1, max_size=3)
NO_TEXT = st.one_of(
    st.sampled_from(["", " ", "\t", "\u3000"]),
    st.tuples(st.text(max_size=5), UNPRINTABLE, st.text(max_size=5)).map("".join),
    st.sampled_from(["x" * 5000, "\ud800", "a\0b", "\x1b[2J", "out\n", "\u2028"]),
)
# Digits of other scripts are digits to Python, as 1_000 is a number to it.
OTHER_DIGITS = st.tuples(st.integers(0, 10**6), st.sampled_from("\uff10\u0660\u0966\U0001d7ce")).map(
    lambda given: "".join(chr(ord(given[1]) + int(digit)) for digit in str(given[0]))
)
NO_INTEGER = st.one_of(
    OTHER_DIGITS,
    st.floats().map(str),
    st.integers(10, 10**9).map(lambda value: f"{value:_}" if value >= 1000 else f"{value}_0"),
    st.one_of(st.integers(min_value=2**64), st.integers(max_value=-(2**64))).map(str),
    st.text(st.characters(codec="ascii", categories=["L", "P", "Zs"]), min_size=1, max_size=8),
    st.sampled_from(["0x10", "1e3", "٣", "½", "²", "9" * 4000, "--", "-", "+"]),
)
NO_NUMBER = st.one_of(
    OTHER_DIGITS,
    st.text(st.characters(codec="ascii", categories=["L"]), min_size=4, max_size=9).filter(
        lambda text: text.lower() not in ("infinity", "nan", "inf")
    ),
    st.sampled_from(["0x1p3", "1_0.5", "1,5", "1.2.3", "½", ".", "e5", "1e", "--5", "nan0", "１.５"]),
)


def bad_of(option: argparse.Action) -> st.SearchStrategy[str]:
    if option.type in (int, batch_size):
        return st.one_of(NO_TEXT, NO_INTEGER)
    if option.type is float:
        return st.one_of(NO_TEXT, NO_NUMBER)
    if option.choices is not None:
        return st.one_of(NO_TEXT, st.text(min_size=1).filter(lambda text: text not in option.choices))
    return NO_TEXT


def quietly(examples: int, few: int) -> settings:
    return settings(
        max_examples=examples,
        derandomize=examples <= few,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.parametrize("examples", [250, pytest.param(10_000, marks=pytest.mark.slow)])
def test_what_an_option_does_not_take_is_one_line_and_nothing_is_written(
    refused: Callable[[Command, Sequence[str]], str], examples: int
) -> None:
    @quietly(examples, 250)
    @given(st.integers(0, len(options()) - 1), st.data(), st.booleans())
    def refuse(index: int, data: st.DataObject, joined: bool) -> None:
        command, option = options()[index]
        text = option.option_strings[-1]
        value = data.draw(bad_of(option))
        # What begins with a dash is another option.
        assume(joined or not value.startswith("-"))
        refused(command, [*command.needed, *([f"{text}={value}"] if joined else [text, value])])

    refuse()


def test_every_option_refuses_an_empty_value_and_control_characters(
    refused: Callable[[Command, Sequence[str]], str],
) -> None:
    for place, (command, option) in enumerate(options()):
        text = option.option_strings[-1]
        # A third of the options each: they are hundreds, of few parsers.
        arguments, said = [
            ([text, ""], f"the value of '{text}' is empty"),
            ([f"{text}="], f"the value of '{text}' is empty"),
            ([text, "a\x1b[31m"], "characters that cannot be printed"),
        ][place % 3]
        assert said in refused(command, arguments)
    for command, option in numbers():
        if option.nargs == "+":
            assert "is '--', which is none" in refused(command, [f"{option.option_strings[-1]}=--"])
        count = option.nargs if isinstance(option.nargs, int) else 1
        given = [option.option_strings[-1], *["\uff13"] * count]
        assert "in the digits 0-9" in refused(command, given)


def test_every_flag_takes_no_value(refused: Callable[[Command, Sequence[str]], str]) -> None:
    for command, option in options(taking=False):
        refused(command, [*command.needed, f"{option.option_strings[0]}=yes"])


def test_what_is_no_option_is_one_line(refused: Callable[[Command, Sequence[str]], str]) -> None:
    for command in commands():
        refused(command, [*command.needed, "--no-such-option"])
        refused(command, ["\ud800"])


# Numbers that are numbers, and out of any range.


def outcome(command: Command, arguments: Sequence[str], refused: Callable[..., str]) -> str:
    """The line of a command that refuses its arguments; nothing where it takes them."""
    try:
        return refused(command, arguments)
    except AssertionError as error:
        if "is taken" in str(error):
            return ""
        raise


def test_numbers_out_of_every_range_are_refused_before_any_work(
    refused: Callable[[Command, Sequence[str]], str],
) -> None:
    for command, option in numbers():
        text = option.option_strings[-1]
        count = option.nargs if isinstance(option.nargs, int) else 1
        bad = ["-1", str(-(2**63))] if option.type is not float else ["nan", "-inf", "inf", "-1e300"]
        for value in bad:
            if (text, value) == ("--minutes", "inf"):  # no limit
                continue
            refused(command, [*command.needed, *[f"{text}={value}"], *[value] * (count - 1)])


def test_numbers_of_64_bits_end_in_one_line_or_are_taken(
    refused: Callable[[Command, Sequence[str]], str],
) -> None:
    for command, option in numbers():
        for value in ("0", str(2**31), str(2**63 - 1), str(2**64 - 1)):
            outcome(command, [*command.needed, f"{option.option_strings[-1]}={value}"], refused)


@pytest.mark.parametrize("name", ["reproduce.__main__", "reproduce.tune"])
@pytest.mark.parametrize("jobs", ["0", "257", str(2**63)])
def test_more_processes_than_any_machine_runs_are_refused(
    refused: Callable[[Command, Sequence[str]], str], name: str, jobs: str
) -> None:
    assert "--jobs must be 1 to 256, not " in refused(command_of(name), ["--jobs", jobs])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--workers", "1000000000"], "--workers must be 256 or less"),
        (["--batch-size", str(2**63)], "--batch-size must be 1,000,000 or less"),
        (["--input-size", "1000000000"], "--input-size must be 1 to 16,384 pixels"),
        (["--crop-pct", "1e-9"], "--crop-pct must be a share, 0.05 to 20"),
        (["--size", "4000000000"], "--size must be 1 to 1,048,576 members"),
        (["--device", "meta"], "cannot compute on --device meta"),
        (["--scale-axis", "channels:\u0669"], "unknown scale axis"),
        (["--scale-axis", f"block:{'9' * 4000}"], "unknown scale axis"),
        (["--model-kwargs", f"a={'-' * 3000}1"], "--model-kwargs has a in too many brackets"),
    ],
)
def test_what_would_take_all_of_a_machine_is_refused(
    refused: Callable[[Command, Sequence[str]], str], arguments: list[str], said: str
) -> None:
    command = command_of("lpe evaluate")
    assert said in refused(command, [*command.needed, *arguments])


@pytest.mark.parametrize("sizes", ["\uff11", "9" * 4000, ",", "1;2"])
def test_sizes_that_are_no_numbers_are_refused(
    refused: Callable[[Command, Sequence[str]], str], sizes: str
) -> None:
    assert "--sizes takes integers with commas between" in refused(
        command_of("lpe score"), ["x", "--sizes", sizes]
    )


def test_numbers_are_read_as_they_were() -> None:
    assert [integer(text) for text in ("0", "-3", "+7", "007", str(2**64 - 1))] == [0, -3, 7, 7, 2**64 - 1]
    assert [number(text) for text in ("5.5", "-.5", "1e-3", "7.", "+2E5", "inf")] == [
        *(5.5, -0.5, 1e-3, 7.0, 2e5),
        float("inf"),
    ]


def test_an_error_is_one_line_that_a_terminal_shows_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    complain("a\x1b[31m file \udcff\n  and\ta tab, 5\u202f%, “é”")
    assert capsys.readouterr().err == "error: a\\x1b[31m file \\udcff and\\ta tab, 5\u202f%, “é”\n"
    assert len(one_line("x" * 10_000)) == 2000 and one_line("x" * 2000) == "x" * 2000
