"""Streams for the tests of reports: a terminal of a given width, and a pipe that carries ASCII only."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator

import pytest

from freetf_cli.report.console import set_verbosity
from tests.report.helper import Terminal


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    set_verbosity(quiet=False, verbose=False)
    yield
    set_verbosity(quiet=False, verbose=False)


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Terminal]:
    """`screen(80)`: stdout and stderr become one terminal of 80 columns, which is returned."""

    def make(width: int) -> Terminal:
        stream = Terminal()
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    return make


@pytest.fixture
def ascii_pipe(monkeypatch: pytest.MonkeyPatch) -> Callable[[], io.BytesIO]:
    """`ascii_pipe()`: stdout raises on any character that is not ASCII; returned is what was written."""

    def make() -> io.BytesIO:
        written = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii", errors="strict", write_through=True))
        return written

    return make
