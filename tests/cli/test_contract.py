"""What every command owes its users: help with an example, a place in docs/cli.md, --json, and a quick start."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from freetf_cli.cli.app import COMMANDS

reference = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "reference.py")))

NAMES = list(COMMANDS)


@pytest.fixture(scope="module")
def commands():
    return reference.commands()


def test_every_entry_is_a_command(commands):
    assert sorted(commands) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_help_has_an_example_to_copy(run_cli, name):
    code, stdout, stderr = run_cli(*name.split(), "--help")
    assert (code, stderr) == (0, "")
    assert re.search(rf"^\$ freetf {re.escape(name)}\b", stdout, re.MULTILINE)


@pytest.mark.parametrize("name", NAMES)
def test_options_are_explained(commands, name):
    command = commands[name]
    assert command.help
    assert [item.name for item in command.params if not item.help] == []


@pytest.mark.parametrize("name", ["", *NAMES])
@pytest.mark.parametrize("width", [80, 140])
def test_help_has_room_for_its_text(run_cli, monkeypatch, name, width):
    monkeypatch.setenv("COLUMNS", str(width))
    text, _, examples = run_cli(*name.split(), "--help").stdout.partition("\nExamples:\n")
    assert examples.startswith(f"$ freetf {name}".rstrip())
    assert max(map(len, text.splitlines())) <= min(width, 100)
    assert not re.search(r"\w-$", text, re.MULTILINE)  # no option is broken at its hyphen
    assert not re.search(r"<\w+( range)?>|x<=", text)  # a type or a range leaves no room
    assert all(found.end() <= width // 2 for found in re.finditer(r"^  -.*?\S  +(?=\S)", text))
    assert ("--debug  " in text) == (name == "")  # explained once


@pytest.mark.parametrize("name", NAMES)
def test_shared_options(commands, name):
    options = {option for item in commands[name].params for option in item.opts}
    assert {"--json", "--quiet", "-q", "--verbose", "-v", "--debug"} <= options


@pytest.mark.parametrize("name", NAMES)
def test_stands_in_the_reference(name):
    assert f"## freetf {name}\n" in reference.CLI.read_text(encoding="utf-8")


def test_the_reference_is_up_to_date():
    assert reference.CLI.read_text(encoding="utf-8") == reference.cli_page(), "run `make docs`"


def test_exit_codes_have_meanings():
    assert [int(code) for code in reference.exit_codes()] == [0, 1, 2, 3, 75, 130, 141]
    assert all(reference.exit_codes().values())


@pytest.mark.parametrize("words", [["--help"], *([*name.split(), "--help"] for name in NAMES)])
def test_help_imports_no_torch_and_a_pipe_gets_no_colour(environment, words):
    check = (
        f"import sys; from freetf_cli.cli.app import main; main({words!r}); print({{'torch', 'numpy'}} & {{*sys.modules}}, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, timeout=60, env=environment | {"GITHUB_ACTIONS": "true"}
    )
    assert done.stderr == "set()\n"
    assert "\x1b" not in done.stdout


def test_help_is_quick(run_process):
    """0.4 s is the aim; the bound leaves room for a busy machine."""

    def seconds() -> float:
        start = time.perf_counter()
        assert run_process("--help").code == 0
        return time.perf_counter() - start

    best = min(seconds() for _ in range(3))
    print(f"freetf --help: {best:.2f} s")
    assert best < 1.0
