"""`freetf sample --interactive`: one thing changes at a time; the rest is held."""

from __future__ import annotations

import json
import re
import sys

import pytest

from freetf_cli.cli.app import main
from tests.report.helper import Terminal

POSITIONS, BITS = 13, 4  # of the Free run on letters


@pytest.fixture
def session(run_cli, free_run):
    """`session("z", "tokens")`: the records after each command, the first ones before any, as lists of `count`."""

    def run(*lines: str, count: int = 2, words: tuple[object, ...] = ()) -> list[list[dict[str, object]]]:
        options = ["--prompt", "A>", "--count", count, "--interactive", "--json", "-q", *words]
        code, stdout, stderr = run_cli("sample", free_run, *options, input="".join(f"{line}\n" for line in lines))
        assert (code, stderr) == (0, "")
        records = [json.loads(line) for line in stdout.splitlines()]
        return [records[start : start + count] for start in range(0, len(records), count)]

    return run


def codes(records):
    assert all(record["z"] == records[0]["z"] for record in records)
    return records[0]["z"]


def texts(records):
    return [record["text"] for record in records]


def test_the_prompt_changes_and_z_is_held(session):
    first, second = session("prompt B>")
    assert codes(first) == codes(second)
    assert {record["text"][:2] for record in first} == {"A>"} and {record["text"][:2] for record in second} == {"B>"}


def test_z_changes_and_the_prompt_is_held(session):
    states = session("z", "z")
    assert len({tuple(codes(state)) for state in states}) == 3
    assert {record["prompt"] for state in states for record in state} == {"A>"}
    assert session("z", "z") == states != session("z", "z", words=("--seed", 1))


def test_tokens_change_and_both_are_held(session):
    first, second = session("tokens", count=6)
    assert codes(first) == codes(second)
    assert texts(first) != texts(second)
    assert [record["seed"] for record in first + second] == [0] * 6 + [1] * 6


def changed(before, after):
    """The bits that differ, as (position, bit)."""
    pairs = enumerate(zip(codes(before), codes(after), strict=True))
    return [(position, bit) for position, (a, b) in pairs for bit in range(BITS) if (a ^ b) >> bit & 1]


def test_bits_are_flipped(session):
    first, one, named, five, back = session("flip", "flip 3.1 12.0", "flip 5", "flip 3.1 12.0")
    assert len(changed(first, one)) == 1
    assert changed(one, named) == [(3, 1), (12, 0)]
    assert len(changed(named, five)) == 5
    assert changed(five, back) == [(3, 1), (12, 0)]


def test_z_of_an_example(session):
    first, like, again = session("like B>B_", "like B>B_")
    assert codes(first) != codes(like) != codes(again)  # drawn anew from the same posterior


def test_the_first_sequences_are_replayed_by_their_records(session, run_cli, free_run, tmp_path):
    states = session("flip 7", "tokens", count=3)
    for number, state in enumerate(states):
        file = tmp_path / f"{number}.jsonl"
        file.write_text("".join(json.dumps(record) + "\n" for record in state))
        code, stdout, stderr = run_cli("sample", free_run, "--z", file, "--json")
        assert (code, stderr) == (0, "")
        assert [json.loads(line)["text"] for line in stdout.splitlines()] == texts(state)


def test_codes_are_printed(run_cli, free_run, tmp_path):
    code, stdout, _ = run_cli("sample", free_run, "--prompt", "A>", "-i", "--json", input="codes\n\nquit\nz\n")
    sequence, held = map(json.loads, stdout.splitlines())
    assert (code, held) == (0, {"schema_version": 1, "prompt": "A>", "z": sequence["z"]})
    stdout = run_cli("sample", free_run, "--prompt", "A>", "-i", input="codes\n").stdout
    assert stdout == f"{sequence['text']}\n{' '.join(map(str, sequence['z']))}\n"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("promt B>", "no command 'promt'; did you mean 'prompt'?"),
        ("z 3", "'z' takes nothing after it, not '3'"),
        ("flip x", "flip takes a number of bits, or POSITION.BIT, not 'x'"),
        ("flip 13.0", "there is no bit 13.0; positions are 0 … 12, bits 0 … 3"),
        ("flip 0.4", "there is no bit 0.4"),
        ("flip 53", f"there are {POSITIONS * BITS} bits, not 53"),
        ("flip 0", "not 0"),
        ("prompt a", "prompt 'a'"),
        ("like a", "prompt 'a'"),
    ],
)
def test_a_wrong_line_ends_a_pipe(run_cli, free_run, line, said):
    code, stdout, stderr = run_cli("sample", free_run, "-i", "-q", input=f"{line}\nz\n")
    assert (code, stdout.count("\n"), stderr.count("\n")) == (2, 1, 1)
    assert said in stderr


OTHERS = [("--z", "shared"), ("--groups", 2), ("--z-from", "A>"), ("--z-from", ""), ("--prompt", "A>", "--prompt", "B>"), ("--prompt", "-")]


@pytest.mark.parametrize("words", OTHERS)
def test_what_a_session_has_no_use_for(refused, free_run, words):
    assert "one prompt and one Z of its own" in refused("sample", free_run, "-i", *words)


def test_a_baseline_has_no_session(refused, baseline_run):
    assert "a baseline has none" in refused("sample", baseline_run, "-i")


@pytest.mark.parametrize(("columns", "beside"), [(100, True), (79, False)])
@pytest.mark.parametrize("kind", ["free", "text"])
def test_a_terminal_shows_both_side_by_side(request, monkeypatch, columns, beside, kind):
    """Also texts, which have no fixed length, where there is room; a wrong line is a warning, and the session goes on."""
    run, screen, errors = request.getfixturevalue(f"{kind}_run"), Terminal(), Terminal()
    for name, stream in (("stdin", Terminal("zz\nz\n")), ("stdout", screen), ("stderr", errors)):
        monkeypatch.setattr(sys, name, stream)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(["sample", str(run), "--interactive", "--count", "2"]) == 0
    assert "no command 'zz'" in errors.getvalue()
    assert "flip [N]" in errors.getvalue()
    lines = re.sub(r"\x1b\[[0-9;]*m|^(> )+", "", screen.getvalue(), flags=re.MULTILINE).splitlines()
    tops = [line for line in lines if "╭" in line]
    assert [line.count("╭") for line in tops] == ([1, 2] if beside or kind == "free" else [1, 1, 1])
    assert "another Z" in tops[-1]
    assert max(map(len, lines)) <= columns
