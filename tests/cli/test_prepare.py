"""`freetf prepare`: from text in any form to a data folder."""

from __future__ import annotations

import bz2
import gzip
import json
import shutil
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from freetf_cli.data.dataset import Dataset
from freetf_cli.data.writer import DatasetWriter

Cli = Callable[..., Any]
EXCERPTS = Path(__file__).resolve().parent.parent / "excerpts"


def test_a_folder_with_labels(run_cli: Cli, tmp_path: Path) -> None:
    done = run_cli("prepare", EXCERPTS / "movie_reviews", "-o", tmp_path / "d", "--split", "train=0.75,val=0.25")
    assert done.code == 0 and done.stderr == "" and "pos" in done.stdout and "neg" in done.stdout
    assert len(Dataset.open(tmp_path / "d").split("train")) == 6


def test_every_kind_of_input(run_cli: Cli, tmp_path: Path) -> None:
    raw = (EXCERPTS / "shakespeare.txt").read_bytes()
    (tmp_path / "a.txt").write_bytes(raw)
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(raw))
    (tmp_path / "c.txt.bz2").write_bytes(bz2.compress(raw))
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        archive.writestr("d.txt", raw)
    paths = [tmp_path / name for name in ("a.txt", "b.txt.gz", "c.txt.bz2", "d.zip")]
    done = run_cli("prepare", *paths, "-", "-o", tmp_path / "out", "--split", "train=0.8,val=0.2", "--json", input=raw)
    summary = json.loads(done.stdout)
    assert done.code == 0 and summary["schema_version"] == 1
    assert summary["notes"][1:] == ["1 of 1 documents of val are exact copies of documents in train"]
    assert {name: split["documents"] for name, split in summary["splits"].items()} == {"train": 4, "val": 1}
    assert sum(split["bytes"] for split in summary["splits"].values()) == 5 * len(raw)


def test_json_lines_and_bpe(run_cli: Cli, tmp_path: Path) -> None:
    args = ["prepare", EXCERPTS / "classics.jsonl", "-o", tmp_path / "d", "--field", "text", "--tokenizer", "bpe:400", "--json"]
    summary = json.loads(run_cli(*args).stdout)
    assert summary["tokenizer"] == "bpe:400" and summary["vocabulary"] == 400 and summary["task"] is None
    tokens, size = (sum(split[key] for split in summary["splits"].values()) for key in ("tokens", "bytes"))
    assert tokens < 0.8 * size


@pytest.mark.parametrize(
    ("raw", "args", "message"),
    [
        (b"", [], "empty"),
        (b"caf\xe9", [], "not UTF-8"),
        (b"a\0b", [], "NUL"),
        (b"text", ["--split", "train=0.5"], "sum to 0.5"),
        (b"text", ["--tokenizer", "byts"], "no tokenizer 'byts'"),
        (b'{"text": "a"}', ["--field", "txt"], "did you mean 'text'"),
        (b"\xef\xbb\xbf", [], "empty"),
        (b"text", ["-o", "-"], "cannot go to stdout"),
        (b"text", ["--separator-token", "</s>"], "the tokenizer has <|endoftext|> as its separator"),
    ],
)
def test_refusals(raw: bytes, args: list[str], message: str, run_cli: Cli, tmp_path: Path) -> None:
    done = run_cli("prepare", "-", "-o", tmp_path / "d", *args, input=raw)
    assert done.code == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1
    assert done.stdout == "" and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("signal_name", "code"), [("SIGTERM", 75), ("SIGHUP", 75), ("SIGINT", 130)])
@pytest.mark.parametrize("command", ["gen-synthetic coins", "prepare -"])
def test_a_signal_leaves_nothing_behind(
    signal_name: str, code: int, command: str, run_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = DatasetWriter.add

    def add(self: DatasetWriter, *args: Any) -> None:
        plain(self, *args)
        signal.raise_signal(getattr(signal, signal_name))

    monkeypatch.setattr(DatasetWriter, "add", add)
    before = signal.getsignal(getattr(signal, signal_name))
    done = run_cli(*command.split(), "-o", tmp_path / "d", input=b"some text")
    assert (done.code, done.stdout, list(tmp_path.iterdir())) == (code, "", [])
    assert done.stderr == f"freetf: error: stopped by {signal_name}; nothing is kept: run the command again\n"
    assert signal.getsignal(getattr(signal, signal_name)) is before


def test_an_existing_folder_is_left_alone(run_cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("kept")
    done = run_cli("prepare", EXCERPTS / "shakespeare.txt", "-o", tmp_path)
    assert done.code == 2 and "exists already" in done.stderr and [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_folder_that_cannot_be_written(run_cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run_cli("prepare", EXCERPTS / "shakespeare.txt", "-o", tmp_path / "file" / "d")
    assert done.code == 1 and "cannot be written" in done.stderr and len(done.stderr.splitlines()) == 1


def test_folders_that_freetf_made_are_not_text(run_cli: Cli, tmp_path: Path, free_run: Path) -> None:
    """As when the output of an earlier `prepare` lies in the folder of its text."""
    (tmp_path / "a.txt").write_text("some text " * 9)
    shutil.copytree(free_run, tmp_path / "run")
    shutil.copytree(free_run / "checkpoints" / "step-000006", tmp_path / "kept")
    first = run_cli("prepare", tmp_path / "a.txt", "-o", tmp_path / "data")
    again = run_cli("prepare", tmp_path, "-o", tmp_path / "again", "--json")
    assert (first.code, again.code) == (0, 0)
    notes = json.loads(again.stdout)["notes"]
    for name, what in (("data", "a data folder"), ("run", "a run"), ("kept", "a checkpoint")):
        assert f"{tmp_path.name}/{name}: skipped, {what} of freetf" in notes
        done = run_cli("prepare", tmp_path / name, "-o", tmp_path / "no")
        assert done.code == 2 and f"{what} of freetf, not text, {tmp_path / name}" in done.stderr
    assert json.loads(again.stdout)["splits"].keys() == {"train", "val"}


def test_escapes_in_a_separator(run_cli: Cli, tmp_path: Path) -> None:
    for number, (text, separator) in enumerate(
        [("a\nb\nc", r"\n"), ("a\n\nb", r"\n\n"), ("a\tb", r"\t"), (r"a\nb", r"\\n"), (r"a\eb", r"\e")]
    ):
        out = tmp_path / str(number)
        done = run_cli("prepare", "-", "-o", out, "--document-separator", separator, "--split", "train=1", "--json", input=text)
        assert json.loads(done.stdout)["splits"]["train"]["documents"] == text.count("b") + 1 + text.count("c")
    done = run_cli("prepare", "-", "-o", tmp_path / "d", "--document-separator", r"\n\n", input="a\nb" * 9)
    assert done.code == 0 and r"stdin: the document separator '\n\n' does not occur" in done.stdout


def test_labels_from_a_field_are_counted(run_cli: Cli, tmp_path: Path) -> None:
    rows = "".join(json.dumps({"text": f"text {n}", "mood": "good" if n % 3 else "bad"}) + "\n" for n in range(30))
    done = run_cli("prepare", "-", "-o", tmp_path / "data", "--field", "text", "--label-field", "mood", "--json", input=rows)
    assert (done.code, json.loads(done.stdout)["labels"]) == (0, {"bad": 10, "good": 20})


def test_help_has_an_example(run_cli: Cli) -> None:
    assert "\n$ freetf prepare reviews.zip -o data/reviews\n" in run_cli("prepare", "--help").stdout
