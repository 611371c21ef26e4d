"""``--config run.toml``: a command's options from a file; what the command line gives goes before.

A key is an option's name without its dashes, ``batch-size`` or ``batch_size``; the model is ``model``. Flags
are true or false, options of several values are lists, and a list does for values with commas between.
Relative paths are taken from where the command runs.
"""

from __future__ import annotations

import argparse
import difflib
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lpe.cli.options import first_line
from lpe.command_line import Parser
from lpe.errors import InputError

MOST_BYTES = 1 << 20
"""Of a file of options."""


def parsed(make: Callable[[], Parser], arguments: Sequence[str]) -> argparse.Namespace:
    """Return a command's arguments: those of the command line, and of its file what was not given there.

    Args:
        make: makes the parser, anew each time.

    Raises:
        InputError: the file cannot be read, is no TOML, or has what is no option's.
    """
    parser = make()
    if not any(each.startswith("--co") for each in arguments):  # argparse takes abbreviations
        asked: argparse.Namespace = parser.parse_args(arguments)
        return asked
    given = _relaxed(make()).parse_args(arguments)
    if not hasattr(given, "config"):
        asked = parser.parse_args(arguments)
        return asked
    own = _subparsers(parser).choices[given.command]
    assert isinstance(own, Parser)
    further = _arguments(own, given)
    own.remark = f" (options are also those of {given.config})"
    place = list(arguments).index(given.command) + 1
    # What takes several values ends at the option that is last.
    asked = parser.parse_args(
        [*arguments[:place], *further, f"--config={given.config}", *arguments[place:]],
    )
    return asked


def _subparsers(parser: argparse.ArgumentParser) -> Any:
    return next(each for each in parser._actions if isinstance(each, argparse._SubParsersAction))


def _relaxed(parser: Parser) -> Parser:
    """Make every argument of a command optional: to see what is given before the file fills in the rest."""
    for command in _subparsers(parser).choices.values():
        for action in command._actions:
            action.required = False
            if not action.option_strings:
                action.nargs = "?" if action.nargs is None else "*"
                action.default = argparse.SUPPRESS
    return parser


def _arguments(parser: Parser, given: argparse.Namespace) -> list[str]:
    """Return a file's options as arguments, without those that are given."""
    path = Path(given.config)
    options = {
        name: action
        for action in parser._actions
        if action.dest not in ("help", "config")
        for name in (_key(action), _key(action).replace("-", "_"))
    }
    positional: list[str] = []
    several: list[str] = []
    single: list[str] = []
    for key, value in _read(path).items():
        action = options.get(key)
        if action is None:
            near = difflib.get_close_matches(key, options, n=1, cutoff=0.0)
            raise InputError(f"{path}: {parser.prog} has no option {key!r}; the nearest is {near[0]!r}")
        if hasattr(given, action.dest) and not (action.nargs == "*" and not getattr(given, action.dest)):
            continue
        where = f"{path}: {key}"
        if not action.option_strings:
            positional += [_text(each, where) for each in (value if isinstance(value, list) else [value])]
        elif action.nargs == 0:
            if not isinstance(value, bool):
                raise InputError(f"{where} is true or false, not {value!r}")
            yes, no = action.option_strings[0], action.option_strings[-1]
            # Of --x and --no-x the second is the last; a flag alone is left out where it is false.
            single += [yes] if value else [no] if no.startswith("--no-") else []
        elif action.nargs is not None:
            groups = value if isinstance(value, list) and any(isinstance(v, list) for v in value) else [value]
            for group in groups:
                values = group if isinstance(group, list) else [group]
                several += [action.option_strings[-1], *(_text(each, where) for each in values)]
        elif isinstance(value, list) and isinstance(action, argparse._AppendAction):
            single += [f"{action.option_strings[-1]}={_text(each, where)}" for each in value]
        elif isinstance(value, list) and action.type is None and action.choices is None:
            single.append(f"{action.option_strings[-1]}={','.join(_text(each, where) for each in value)}")
        else:
            single.append(f"{action.option_strings[-1]}={_text(value, where)}")
    return [*positional, *several, *single]


def _key(action: argparse.Action) -> str:
    return action.option_strings[-1].lstrip("-").removeprefix("no-") if action.option_strings else action.dest


def _read(path: Path) -> dict[str, Any]:
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is no file; give a TOML file of options")
    try:
        if path.stat().st_size >= MOST_BYTES:
            raise InputError(f"{path} has {MOST_BYTES:,} bytes or more; a file of options has fewer")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"there is no file {path} of options") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is no TOML file of options ({first_line(error)})") from None


def _text(value: object, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        kind = "a table" if isinstance(value, Mapping) else repr(value)
        raise InputError(f"{where} takes text, a number or a list of them, not {kind}")
    return str(value)


def in_file(options: Mapping[str, object]) -> dict[str, object]:
    """Return options as a file has them: without those that are None, paths as text, --std of both kinds."""
    kept = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in options.items()
        if value is not None and name not in ("std", "image_std")
    }
    stds = [options.get("std"), options.get("image_std")]
    given = [each if isinstance(each, list) else [each] for each in stds if each is not None]
    return {**kept, **({"std": given if len(given) > 1 else given[0]} if given else {})}
