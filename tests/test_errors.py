"""Errors: one line each, and hints that name the nearest valid word."""

from __future__ import annotations

import pytest

from freetf_cli.errors import ExitCode, FreetfError, InputError, InputErrors, nearest


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (FreetfError("it broke"), "it broke"),
        (FreetfError("it broke", "a.toml, line 3"), "it broke, a.toml, line 3"),
        (FreetfError("it broke", "a.toml", "fix it"), "it broke, a.toml; fix it"),
        (FreetfError("it\nbroke\t twice"), "it broke twice"),
    ],
)
def test_one_line(error, line):
    assert error.lines() == [line]
    assert str(error) == line


def test_several():
    errors = InputErrors([InputError("one"), InputErrors([InputError("two"), InputError("three")])])
    assert errors.lines() == ["one", "two", "three"]
    assert errors.exit_code is ExitCode.USAGE


def test_nearest():
    assert nearest("kapa", ["kappa", "bits"]) == "did you mean 'kappa'?"
    assert nearest("zzz", ["b", "a"]) == "choose from: a, b"
    assert nearest("zzz", []) == ""


def test_exit_codes_are_distinct():
    assert len({int(code) for code in ExitCode}) == len(ExitCode)
