"""Notes are said once, on the logger "lpe"."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lpe import notices


def test_a_note_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    notices.forget()
    notices.note("the base is rounded by half")
    notices.note("the base is rounded by half")
    assert caplog.messages == ["note: the base is rounded by half"]


def test_a_note_is_a_line_on_standard_error_where_nobody_set_up_logging() -> None:
    code = "from lpe.notices import note; note('half of it')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("", "note: half of it\n")


def test_what_was_said_is_a_list_in_its_order_until_it_is_forgotten() -> None:
    notices.forget()
    for line in ("b", "a", "b"):
        notices.note(line)
    assert notices.said() == ["b", "a"]
    notices.forget()
    assert notices.said() == []
