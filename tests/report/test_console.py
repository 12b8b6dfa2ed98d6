"""The two streams: what goes where, and what a stream can carry."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable

import pytest
from rich.text import Text

from freetf_cli.report.console import detail, err, hint, note, out, set_verbosity, visible, warn
from tests.report.helper import Terminal


def test_streams_are_looked_up_at_call_time(capsys: pytest.CaptureFixture[str]) -> None:
    out().print("result")
    warn("careful")
    assert capsys.readouterr() == ("result\n", "freetf: warning: careful\n")


def test_a_pipe_gets_no_colour_and_no_wrapping(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "CLICOLOR_FORCE", "PY_COLORS", "GITHUB_ACTIONS", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("COLUMNS", "30")
    assert not out().is_interactive
    long = "word " * 400 + "end"
    out().print(Text(long, style="bold red"))
    warn(long)
    assert capsys.readouterr() == (long + "\n", f"freetf: warning: {long}\n")


def test_verbosity(capsys: pytest.CaptureFixture[str]) -> None:
    def said(quiet: bool, verbose: bool) -> list[str]:
        set_verbosity(quiet, verbose)
        for say in (warn, hint, note, detail):
            say(say.__name__)
        return [line.rsplit(" ", 1)[-1] for line in capsys.readouterr().err.splitlines()]

    assert said(False, False) == ["warn", "hint", "note"]
    assert said(False, True) == ["warn", "hint", "note", "detail"]
    assert said(True, True) == ["warn"]


def test_messages_are_no_markup_and_no_escape_sequences(screen: Callable[[int], Terminal]) -> None:
    stream = screen(80)
    warn("[red]x[/red] \x1b[2J\r")
    assert "[red]x[/red] \\x1b[2J\\r" in stream.getvalue()
    assert "\x1b[2J" not in stream.getvalue()


def test_visible_keeps_newlines_tabs_and_letters() -> None:
    assert visible("a\tb\nκ é 🙂") == "a\tb\nκ é 🙂"
    assert visible("\x00\x07\b\x7f\x9b\u202e\ud800") == "\\x00\\x07\\x08\\x7f\\x9b\\u202e\\ud800"


def test_no_color_leaves_no_colour(screen: Callable[[int], Terminal], monkeypatch: pytest.MonkeyPatch) -> None:
    stream = screen(80)
    out().print(Text("x", style="red"))
    assert "\x1b[31m" in stream.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    stream = screen(80)
    out().print(Text("x", style="red"))
    assert stream.getvalue() == "x\n"


def test_ascii_streams_get_lookalikes_and_escapes(ascii_pipe: Callable[[], io.BytesIO]) -> None:
    written = ascii_pipe()
    out().print(Text("κ ▁█ é"))
    assert written.getvalue() == b"k _# \\xe9\n"


@pytest.mark.parametrize("columns", ["0", "-3", "wide", ""])
def test_senseless_columns_are_ignored(screen: Callable[[int], Terminal], monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    stream = screen(80)
    monkeypatch.setenv("COLUMNS", columns)
    out().print(Text("some words"))
    assert "some words" in stream.getvalue()


def test_a_closed_pipe_is_the_callers_to_handle(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Closed())
    with pytest.raises(BrokenPipeError):
        err().print("x")
