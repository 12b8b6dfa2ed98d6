"""How an invocation begins and ends: global options, exit codes, and one line an error."""

from __future__ import annotations

import errno
import json
import os
import re
import sys
from pathlib import Path

import pytest
import typer

from freetf_cli import __version__
from freetf_cli.cli import doctor, failures
from freetf_cli.cli.app import after_command, main
from freetf_cli.errors import CheckFailed, ExitCode, FreetfError, InputError, InputErrors, Interrupted, Stopped
from tests.report.helper import Terminal


@pytest.fixture
def failing(monkeypatch, run_cli):
    """`failing(error, *flags)`: a command that raises the error, run."""

    def run(error, *flags):
        def doctor_(json: bool = False) -> None:
            raise error

        monkeypatch.setattr(doctor, "doctor", doctor_)
        return run_cli("doctor", *flags)

    return run


def test_version(run_cli):
    assert run_cli("--version") == (0, f"freetf {__version__}\n", "")


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",)])
def test_help_is_exit_0(run_cli, words):
    code, stdout, stderr = run_cli(*words)
    assert (code, stderr) == (0, "")
    assert "gen-synthetic" in stdout
    assert "\n$ freetf demo\n" in stdout


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["trian"], "no such command 'trian'; did you mean 'train'?"),
        (["recipe", "shwo"], "no such command 'shwo'; did you mean 'show'?"),
        (["recipe", "show", "--smok", "x"], "no such option '--smok'; did you mean '--smoke'?"),
        (["doctor", "--xyzzy"], "no such option '--xyzzy'; see `freetf doctor --help`"),
        (["recipe", "show"], "missing argument 'RECIPE'; see `freetf recipe show --help`"),
        (["sample", "x", "--count", "1/2"], "invalid value for '--count' / '-n': should be a valid integer; see `freetf sample --help`"),
        (
            ["sample", "x", "--temperature", "1/2"],
            "invalid value for '--temperature': should be a valid number; see `freetf sample --help`",
        ),
        (["doctor", "-q", "-v"], "--quiet and --verbose contradict each other; give only one of them"),
    ],
)
def test_bad_usage_names_the_right_word(run_cli, words, line):
    assert run_cli(*words) == (2, "", f"freetf: error: {line}\n")


@pytest.mark.parametrize(
    ("words", "same_as"),
    [
        (["-q", "recipe", "--json", "list"], ["recipe", "list", "-q", "--json"]),
        (["--debug", "doctor", "--json"], ["doctor", "--debug", "--json"]),
        (["sample", "run", "--prompt", "--json"], ["sample", "run", "--prompt", "--json"]),
        (["--json"], ["--json"]),
        ([], []),
    ],
)
def test_global_flags_move_behind_the_command(words, same_as):
    assert after_command(words) == same_as


def test_json_before_the_command(run_cli):
    assert json.loads(run_cli("--json", "recipe", "list").stdout)["schema_version"] == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (FreetfError("it failed"), ExitCode.FAILED),
        (InputError("it failed"), ExitCode.USAGE),
        (CheckFailed("it failed"), ExitCode.CHECK),
        (Stopped("it failed"), ExitCode.STOPPED),
        (Interrupted("it failed"), ExitCode.INTERRUPTED),
    ],
)
def test_errors_have_their_exit_codes(failing, error, code):
    assert failing(error) == (code, "", "freetf: error: it failed\n")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), typer.Abort()])
def test_interrupt(failing, error):
    assert failing(error) == (130, "", "freetf: error: interrupted\n")


def test_several_errors_are_several_lines(failing):
    errors = InputErrors([InputError("one", "a.toml, line 1", "mend it"), InputError("two")])
    assert failing(errors) == (2, "", "freetf: error: one, a.toml, line 1; mend it\nfreetf: error: two\n")


def test_errors_as_json(failing):
    code, stdout, stderr = failing(InputError("one", "a.toml", "mend it"), "--json")
    assert (code, stdout) == (2, "")
    assert json.loads(stderr) == {"schema_version": 1, "error": {"what": "one", "where": "a.toml", "hint": "mend it", "exit_code": 2}}


def test_several_errors_as_json(failing):
    record = json.loads(failing(InputErrors([InputError("one"), InputError("two")]), "--json").stderr)
    assert record["error"]["what"] == "one"
    assert [error["what"] for error in record["errors"]] == ["one", "two"]


def test_usage_errors_as_json(run_cli):
    code, _, stderr = run_cli("doctor", "--jsn", "--json")
    assert code == 2
    assert json.loads(stderr)["error"]["hint"] == "did you mean '--json'?"


def test_a_bug_is_one_line(failing):
    code, _, stderr = failing(ValueError("odd\nshape"))
    assert code == 1
    assert stderr == "freetf: error: internal error: ValueError: odd shape; run again with --debug for the traceback\n"


def test_debug_shows_the_traceback(failing):
    code, _, stderr = failing(ValueError("odd"), "--debug")
    assert code == 1
    assert "Traceback (most recent call last)" in stderr
    assert stderr.splitlines()[-1].startswith("freetf: error: internal error")


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_the_working_folder_was_deleted(run_cli, tmp_path, monkeypatch, flags):
    """torch cannot be imported there: its libraries end the process."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    code, stdout, stderr = run_cli("sample", tmp_path, *flags)
    assert (code, stdout, stderr.count("\n")) == (2, "", 1)
    if flags:
        assert json.loads(stderr)["error"]["what"] == "the working folder was deleted"
    else:
        assert stderr == "freetf: error: the working folder was deleted; change to another folder\n"
    assert run_cli("sample", "--help", *flags).code == 0


COLOURFUL = ("GITHUB_ACTIONS", "CI", "FORCE_COLOR", "PY_COLORS", "CLICOLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE", "TTY_INTERACTIVE")


@pytest.mark.parametrize("words", [("--help",), ("sample", "--help"), ("recipe", "list"), ("recipe", "show", "nope"), ("trian",)])
def test_a_pipe_gets_no_colour(run_cli, monkeypatch, words):
    for name in COLOURFUL:
        monkeypatch.setenv(name, "1")
    assert "\x1b" not in "".join(run_cli(*words)[1:])


@pytest.mark.parametrize(("variable", "value", "coloured"), [("CI", "true", True), ("NO_COLOR", "1", False), ("TERM", "dumb", False)])
def test_help_on_a_terminal(monkeypatch, variable, value, coloured):
    for name in ("NO_COLOR", *COLOURFUL):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv(variable, value)
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert main(["sample", "--help"]) == 0
    assert ("\x1b[36m--temperature\x1b[0m" in sys.stdout.getvalue()) == coloured
    assert variable != "TERM" or "\x1b" not in sys.stdout.getvalue()


def test_control_characters_are_shown(run_cli):
    assert run_cli("recipe", "\x1b[31mlist").stderr.startswith("freetf: error: no such command '\\x1b[31mlist'")


def test_broken_pipe_is_quiet(failing):
    assert failing(BrokenPipeError(errno.EPIPE, "Broken pipe")) == (141, "", "")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_the_system_refuses(failing, number):
    code, _, stderr = failing(OSError(number, os.strerror(number), "x/y.bin"))
    assert code == 1
    assert stderr.count("\n") == 1
    assert "x/y.bin" in stderr


@pytest.mark.parametrize(
    ("words", "code"), [(["show", "x"], 2), (["show", "-o", "x"], 1), (["show", "--report", "x"], 1), (["show", "y"], 1)]
)
def test_a_path_that_the_user_named_to_be_read(words, code):
    assert failures.as_failure(PermissionError(errno.EACCES, "Permission denied", "x"), words).exit_code == code


def test_out_of_memory(failing):
    assert failing(MemoryError())[0] == 1


# --- with real streams -----------------------------------------------------------------------------------------------


def test_head_ends_quietly(shell):
    code, _, stderr = shell("freetf recipe schema | head -c 1")
    assert (code, stderr) in ((141, ""), (0, ""))  # 0: the pipe held all of it


def test_closed_pipe_ends_quietly(shell):
    _, _, stderr = shell("(sleep 1; freetf recipe schema; echo $? >&2) | true")
    assert stderr == "141\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has /dev/full")
@pytest.mark.parametrize("words", ["--version", "--help", "recipe schema", "recipe list"])
def test_full_disk(shell, words):
    code, _, stderr = shell(f"freetf {words} > /dev/full")
    assert code == 1
    assert stderr == "freetf: error: no space left on device; free some space, or write elsewhere\n"


def test_closed_stdout(shell):
    assert shell("freetf recipe list >&-") == (1, "", "freetf: error: standard output is closed\n")


def test_closed_stdin(shell):
    assert shell("freetf --version <&-") == (0, f"freetf {__version__}\n", "")


def test_closed_stderr(shell):
    assert shell("freetf trian 2>&-") == (2, "", "")


def test_ascii_stdout(recipe_file, run_process):
    recipe_file = recipe_file.rename(recipe_file.with_name("κ.toml"))
    code, stdout, stderr = run_process("recipe", "diff", recipe_file, recipe_file, env={"PYTHONIOENCODING": "ascii"})
    assert (code, stderr) == (0, "")
    assert stdout


def test_completion_offers_recipes_and_options(run_process, recipe_file):
    words = f"freetf recipe show {recipe_file.parent}/sm"
    asked = {"_FREETF_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": "3"}
    code, stdout, _ = run_process(env=asked)
    assert code == 0
    assert stdout.split() == [str(recipe_file)]


def test_verbose_prints_versions_and_the_duration_on_stderr(run_cli):
    quiet, verbose = run_cli("recipe", "list"), run_cli("recipe", "list", "-v")
    assert verbose.code == 0 and verbose.stdout == quiet.stdout
    assert re.search(rf"freetf {re.escape(__version__)}, Python 3\.\d+\.\d+, torch \d", verbose.stderr)
    assert re.search(r"done in \d+\.\d s", verbose.stderr) and "done in" not in quiet.stderr


@pytest.mark.parametrize(
    ("given", "used"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
    ids=["neither", "count", "policy"],
)
def test_openmp_threads_spin_shortly_unless_the_user_says_otherwise(run_cli, monkeypatch, given, used):
    """OpenMP reads it when torch is imported: the program sets it before."""
    environment = {name: text for name, text in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    monkeypatch.setattr(os, "environ", environment | given)
    run_cli("--version")
    assert os.environ.get("GOMP_SPINCOUNT") == used
