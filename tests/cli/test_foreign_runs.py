"""Run folders that somebody else has made: nothing outside is touched, and what is damaged is named."""

from __future__ import annotations

import json
import os

import pytest

HUGE = "1" + 400 * "0"
WRONG = ['"step": "x"', '"step": null', '"step": 1e3', f'"step": {HUGE}', '"loss": "a"', f'"loss": {HUGE}', '"split": 3', '"kl": []']


@pytest.fixture
def foreign(copied, free_run):
    return copied(free_run)


def test_links_that_lead_out_are_refused_and_nothing_is_swept(refused, workshop, foreign, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in (".mine.tmp", "step-000009-notes.jsonl"):
        (outside / name).write_text("mine")
    for path in (foreign / "samples").iterdir():
        path.unlink()
    (foreign / "samples").rmdir()
    (foreign / "samples").symlink_to(outside)
    for words in (("train", workshop / "free.toml", "-o", foreign, "--resume", "auto"), ("show", foreign)):
        assert str(foreign / "samples") in refused(*words)
    assert {path.name: path.read_text() for path in outside.iterdir()} == {".mine.tmp": "mine", "step-000009-notes.jsonl": "mine"}


@pytest.mark.parametrize("name", [".lock.json", ".recipe.toml.tmp"])
def test_nothing_is_written_through_a_link(run_cli, workshop, tmp_path, name):
    precious, run = tmp_path / "precious", tmp_path / "run"
    precious.write_text("mine")
    run.mkdir()
    (run / name).symlink_to(precious)
    code, _, _ = run_cli("-q", "train", workshop / "free.toml", "-o", run)
    assert code in (0, 2) and precious.read_text() == "mine"


@pytest.mark.parametrize("field", WRONG)
def test_a_record_of_the_wrong_kind_is_named(refused, workshop, foreign, field):
    rows = [json.loads(line) for line in (foreign / "metrics.jsonl").read_text().splitlines()]
    row = json.dumps(rows[-1])
    name = field.split(":")[0]
    kept = row.replace(f"{name}: {json.dumps(rows[-1][json.loads(name)])}", field)
    assert kept != row
    with (foreign / "metrics.jsonl").open("a") as file:
        file.write(kept + "\n")
    assert "metrics.jsonl" in refused("show", foreign)


@pytest.mark.parametrize("name", ["metrics.jsonl", "manifest.json", "recipe.toml", "samples/step-000006-shared.jsonl"])
def test_a_file_of_gigabytes_is_not_read(run_cli, foreign, name):
    os.truncate(foreign / name, 1 << 31)
    code, _, stderr = run_cli("show", foreign)
    assert code in (0, 2) and "Traceback" not in stderr and "internal error" not in stderr
    assert code == 2 or name == "manifest.json"  # without which a run can be shown


@pytest.mark.parametrize("where", ["dangling", "file/run", "t\udcff"])
def test_a_name_that_no_run_can_have(run_cli, workshop, tmp_path, where):
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    code, stdout, stderr = run_cli("train", workshop / "free.toml", "-o", tmp_path / where)
    assert (code, stdout, stderr.count("\n")) == (2, "", 1)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name not in ("file", "dangling")) == []


def test_a_refused_start_leaves_no_folders(refused, workshop, tmp_path):
    refused("train", workshop / "free.toml", "-o", tmp_path / "p" / "q" / "r", "--set", "model.context=0")
    refused("train", workshop / "free.toml", "-o", tmp_path / "p" / "q" / "r", "--set", "data.params.letters=0")
    assert not (tmp_path / "p").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX")
def test_a_recipe_from_a_pipe_is_named_as_such(refused, tmp_path):
    os.mkfifo(tmp_path / "pipe.toml")
    assert "a recipe must be a regular file" in refused("train", tmp_path / "pipe.toml", "--dry-run")
