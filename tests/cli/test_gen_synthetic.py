"""`freetf gen-synthetic`: its records, its data folders, and its errors."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from freetf_cli.cli.gen_synthetic import gen_synthetic
from freetf_cli.data.dataset import Dataset
from freetf_cli.tasks import make_task, task_names

Cli = Callable[..., Any]


def records(run_cli: Cli, *args: object) -> list[dict[str, Any]]:
    done = run_cli("gen-synthetic", *args, "-o", "-")
    assert (done.code, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_letters_records(run_cli: Cli) -> None:
    for record in records(run_cli, "letters", "--count", 50, "--seed", 3):
        assert list(record) == ["text", "factors"] and list(record["factors"]) == ["letter", "position", "noise"]
        text, factors = record["text"], record["factors"]
        line = text[2:]
        assert len(text) == 66 and text[:2] == f"{factors['letter']}>"
        assert [i for i, c in enumerate(line) if c == "!"] == factors["noise"]
        assert all(line[i] in (factors["letter"], "!") for i in range(factors["position"], factors["position"] + 8))


def test_records_of_the_other_tasks(run_cli: Cli) -> None:
    assert {record["factors"]["z"] for record in records(run_cli, "coins", "--count", 30)} == {0, 1}
    assert {record["factors"]["sentiment"] for record in records(run_cli, "reviews", "--count", 30)} == {"positive", "negative"}
    (record,) = records(run_cli, "blocks", "--count", 1, "--param", "n=8", "--param", "which=first")
    assert len(record["factors"]["answer"]) == 1 and record["text"].endswith(record["factors"]["answer"])


def test_a_smaller_count_is_a_prefix(run_cli: Cli) -> None:
    assert records(run_cli, "coins", "--count", 7) == records(run_cli, "coins", "--count", 1500)[:7]
    assert records(run_cli, "coins", "--count", 7) != records(run_cli, "coins", "--count", 7, "--seed", 1)


def test_head_ends_the_stream_quietly(shell: Callable[[str], Any]) -> None:
    done = shell("freetf gen-synthetic coins -o - --count 100000000 | head -n 2")
    assert len(done.stdout.splitlines()) == 2 and done.stderr == "" and done.code == 141


@pytest.mark.parametrize("out", [".", "new/.."])
def test_the_working_folder_is_no_output(refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert "the working folder cannot be the output" in refused("gen-synthetic", "letters", "-o", out, "--count", 20)
    assert not list(tmp_path.iterdir())


def test_an_output_folder_that_is_a_link_stays_one(run_cli: Callable, refused: Callable, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name, target in {"link": "empty", "loop": "loop"}.items():
        (tmp_path / name).symlink_to(target)
    assert run_cli("gen-synthetic", "coins", "-o", tmp_path / "link", "--count", 20).code == 0
    assert (tmp_path / "link").is_symlink() and (tmp_path / "empty" / "manifest.json").is_file()
    refused("gen-synthetic", "coins", "-o", tmp_path / "loop", "--count", 20)


def test_a_folder(run_cli: Cli, tmp_path: Path) -> None:
    done = run_cli("gen-synthetic", "letters", "-o", tmp_path / "d", "--count", 200, "--split", "train=150,val=50", "--param", "noise=1/8")
    assert done.code == 0 and str(tmp_path / "d") in done.stdout.replace("\n", "") and done.stderr == ""
    data = Dataset.open(tmp_path / "d")
    assert data.manifest.params["noise"] == 0.125 and len(data.split("train")) == 150
    again = run_cli("gen-synthetic", "letters", "-o", tmp_path / "d")
    assert again.code == 2 and "exists already" in again.stderr and again.stdout == ""


def test_json(run_cli: Cli, tmp_path: Path) -> None:
    done = run_cli("gen-synthetic", "coins", "-o", tmp_path / "d", "--count", 20, "--json")
    summary = json.loads(done.stdout)
    assert summary["schema_version"] == 1 and summary["splits"]["val"]["documents"] == 2
    assert summary["floor_bits"] == pytest.approx(make_task("coins", {}).floor_bits) and done.stderr == ""


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["leters", "-o", "-"], "did you mean 'letters'"),
        (["letters", "-o", "-", "--param", "nose=1"], "did you mean 'noise'"),
        (["letters", "-o", "-", "--param", "noise"], "is not NAME=VALUE"),
        (["letters", "-o", "-", "--param", "noise=0.1", "--param", "noise=0.2"], "is given twice"),
        (["letters", "-o", "-", "--split", "train=1"], "a stream has no splits"),
        (["letters", "-o", "d", "--split", "train=5", "--count", "6"], "not to the count, 6"),
        (["letters", "-o", "-", "--count", "0"], "--count"),
        (["letters"], "-o"),
    ],
)
def test_refusals(args: list[str], message: str, run_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = run_cli("gen-synthetic", *args)
    assert done.code == 2 and message in done.stderr and done.stdout == "" and list(tmp_path.iterdir()) == []


def test_help_names_every_task_and_parameter(run_cli: Cli) -> None:
    text = inspect.getdoc(gen_synthetic) or ""
    for name in task_names():
        assert name in text and all(param in text for param in make_task(name, {}).PARAMS)
    assert "\n$ freetf gen-synthetic letters -o data/letters --count 10000\n" in run_cli("gen-synthetic", "--help").stdout
