"""`freetf train`: the run folder, options, resuming, stopping, and what goes to which stream."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from freetf_cli import device
from freetf_cli.cli.train import train
from freetf_cli.config.files import load_recipe
from freetf_cli.runs.folder import RunFolder
from freetf_cli.runs.lock import lock_run
from freetf_cli.training import run as run_module
from freetf_cli.training.loop import Loop
from freetf_cli.training.schedule import learning_rate

pytestmark = pytest.mark.usefixtures("no_charts")  # the runs of conftest.py have charts

KEYS = ["step", "tokens", "split", "loss", "ce", "kl", "penalty", "above_kappa", "kappa", "lr", "grad_norm"]
KEYS += ["bytes_per_token", "nll", "ce_prior", "frequencies"]
CHECKPOINT = {"model.safetensors", "optimizer.safetensors", "state.json", "tokenizer.json", "MANIFEST.sha256"}
NO_DATA = ["paper-1.5b-baseline", "paper-1.5b-free", "paper-8b-baseline", "paper-8b-free"]


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def record(run: Path) -> dict[str, bytes]:
    """What must be equal byte for byte in equal runs."""
    last = max((run / "checkpoints").glob("step-*"))
    files = [run / "metrics.jsonl", last / "model.safetensors", last / "optimizer.safetensors", *(run / "samples").iterdir()]
    return {str(file.relative_to(run)): file.read_bytes() for file in files}


def assert_same_record(one: Path, other: Path) -> None:
    left, right = record(one), record(other)
    assert left.keys() == right.keys()
    assert [name for name in left if left[name] != right[name]] == []


# --- the run folder ---------------------------------------------------------------------------------------------------


def test_a_run_folder_has_its_parts(free_run):
    names = {path.name for path in free_run.iterdir()}
    assert names - {".lock"} == {"recipe.toml", "manifest.json", "metrics.jsonl", "timing.jsonl", "checkpoints", "samples", "report.html"}
    assert {path.name for path in (free_run / "checkpoints").iterdir()} == {"step-000003", "step-000006"}
    for step in ("step-000003", "step-000006"):
        assert {path.name for path in (free_run / "checkpoints" / step).iterdir()} == CHECKPOINT
    assert {path.name for path in (free_run / "samples").iterdir()} == {
        f"step-00000{step}-{kind}.jsonl" for step in (3, 6) for kind in ("independent", "shared")
    }


def test_checkpoints_agree_with_sha256sum(free_run):
    for folder in (free_run / "checkpoints").glob("step-*"):
        entries = dict(reversed(line.split("  ", 1)) for line in (folder / "MANIFEST.sha256").read_text().splitlines())
        assert set(entries) == CHECKPOINT - {"MANIFEST.sha256"}
        for name, digest in entries.items():
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


def test_the_recipe_of_a_run_is_a_recipe(free_run, workshop):
    ours, given = load_recipe(str(free_run / "recipe.toml")), load_recipe(str(workshop / "free.toml"))
    assert (ours.model.vocab, ours.model.context) == (7, 13)
    unresolved = ours.model.model_copy(update={"vocab": None, "context": None})
    assert ours.model_copy(update={"model": unresolved}) == given


def test_the_manifest_describes_the_run(free_run, workshop):
    manifest = json.loads((free_run / "manifest.json").read_text(encoding="utf-8"))
    needed = {"schema_version", "argv", "seed", "freetf", "packages", "git", "device", "data", "tokenizer_sha256", "started", "finished"}
    assert needed <= manifest.keys()
    assert (manifest["seed"], manifest["status"], manifest["device"]["device"]) == (0, "done", "cpu")
    assert {"torch", "numpy"} <= manifest["packages"].keys()
    tokenizer = free_run / "checkpoints" / "step-000006" / "tokenizer.json"
    assert manifest["tokenizer_sha256"] == hashlib.sha256(tokenizer.read_bytes()).hexdigest()
    assert re.fullmatch("[0-9a-f]{64}", manifest["data"]["sha256"])


def test_the_manifest_has_the_hash_of_a_data_folder(text_run, workshop):
    manifest = json.loads((text_run / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["data"]["sha256"] == hashlib.sha256((workshop / "text" / "manifest.json").read_bytes()).hexdigest()


def test_metrics_have_the_contracts_keys_and_no_time(free_run):
    found = rows(free_run)
    assert all(list(row) == KEYS for row in found)
    assert [(row["step"], row["split"]) for row in found] == [
        (1, "train"),
        (2, "train"),
        (3, "val"),
        (4, "train"),
        (6, "train"),
        (6, "val"),
    ]
    assert all(row["tokens"] == row["step"] * 8 * 13 for row in found)
    assert all((row["lr"] is None) == (row["split"] == "val") == (row["grad_norm"] is None) for row in found)


def test_a_baselines_metrics_have_no_z(baseline_run):
    for row in rows(baseline_run):
        assert [row[key] for key in ("kl", "penalty", "above_kappa", "kappa")] == [0, 0, 0, 0]
        assert row["loss"] == row["ce"]


def test_timing_has_the_rate_of_a_step(free_run):
    found = [json.loads(line) for line in (free_run / "timing.jsonl").read_text().splitlines()]
    assert [row["step"] for row in found] == [1, 2, 4, 6]
    for row in found:  # seconds are rounded to a thousandth
        least, most = (row["tokens_per_second"] * (row["seconds"] + error) for error in (-6e-4, 6e-4))
        assert least < 8 * 13 < most
        assert list(row) == ["step", "seconds", "tokens_per_second", "rss", "gpu_peak"]
        assert 2**26 < row["rss"] < 2**36  # bytes of a process with torch
        assert row["gpu_peak"] is None


@pytest.mark.parametrize("kind", ["free", "baseline", "text"])
def test_the_report_opens_offline(kind, request):
    page = (request.getfixturevalue(f"{kind}_run") / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert not re.search(r"https?:|src=|<script|@import|url\((?!#)|<link", page.replace("http://www.w3.org/2000/svg", ""))
    assert "tiny" in page


def test_samples_share_z_only_in_shared_groups(free_run):
    def codes(kind: str) -> list[tuple[int, tuple[int, ...]]]:
        lines = (free_run / "samples" / f"step-000006-{kind}.jsonl").read_text().splitlines()
        return [(row["group"], tuple(row["z"])) for row in map(json.loads, lines)]

    assert len(set(codes("independent"))) == 2
    shared = codes("shared")
    assert len(shared) == 4
    assert len(set(shared)) == 2


def test_another_seed_is_another_run(run_cli, workshop, free_run, tmp_path):
    run_cli("train", workshop / "free.toml", "-o", tmp_path / "run", "--seed", "1")
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["seed"] == 1
    assert load_recipe(str(tmp_path / "run" / "recipe.toml")).train.seed == 1
    assert rows(tmp_path / "run")[0]["loss"] != rows(free_run)[0]["loss"]


# --- options ----------------------------------------------------------------------------------------------------------


def test_set_and_smoke_change_the_recipe(run_cli, workshop, tmp_path):
    words = ["--smoke", "--set", "train.lr=3e-4", "--set", "latent.kappa=0.25"]
    assert run_cli("train", workshop / "free.toml", "-o", tmp_path / "run", *words).code == 0
    made = load_recipe(str(tmp_path / "run" / "recipe.toml"))
    assert (made.train.steps, made.train.warmup, made.train.lr) == (2, 1, 3e-4)
    assert made.latent is not None
    assert made.latent.kappa == 0.25
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 2, 2]


def test_the_last_set_wins_and_seed_beats_it(run_cli, workshop):
    words = ["--set", "train.steps=5", "--set", "train.steps=7", "--dry-run", "--json"]
    assert json.loads(run_cli("train", workshop / "free.toml", *words).stdout)["steps"] == 7


def test_json_is_one_object_and_nothing_else(run_cli, workshop, tmp_path):
    code, stdout, stderr = run_cli("train", workshop / "free.toml", "-o", tmp_path / "run", "--smoke", "--json")
    assert (code, stderr) == (0, "")
    assert stdout.count("\n") == 1
    result = json.loads(stdout)
    assert (result["schema_version"], result["kind"], result["steps"], result["tokens"]) == (1, "free", 2, 2 * 8 * 13)
    assert result["val"] == rows(tmp_path / "run")[-1]
    assert Path(result["checkpoint"]).is_dir()
    assert Path(result["report"]).is_file()


def test_progress_goes_to_stderr_and_the_result_to_stdout(run_cli, workshop, tmp_path):
    code, stdout, stderr = run_cli("train", workshop / "free.toml", "-o", tmp_path / "run")
    assert code == 0
    assert "step 6/6 · held out (val)" in stderr
    assert "freetf: hint: freetf sample" in stderr
    assert "step 6/6" not in stdout
    assert str(tmp_path / "run" / "checkpoints" / "step-000006") in stdout
    assert "\x1b" not in stdout + stderr
    assert "…" not in stdout + stderr


def test_quiet(run_cli, workshop, tmp_path):
    code, stdout, stderr = run_cli("-q", "train", workshop / "free.toml", "-o", tmp_path / "run", "--smoke")
    assert (code, stderr) == (0, "")
    assert "held out" in stdout


def test_a_run_needs_a_folder(refused, workshop):
    assert "-o RUN" in refused("train", workshop / "free.toml")


def test_an_existing_run_is_refused_with_a_hint(refused, workshop, free_run):
    before = record(free_run)
    line = refused("train", workshop / "free.toml", "-o", free_run)
    assert "the run exists" in line
    assert "--resume auto" in line
    assert record(free_run) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_missing_device_is_refused(refused, workshop, tmp_path):
    assert "--device cuda" in refused("train", workshop / "free.toml", "-o", tmp_path / "run", "--device", "cuda")
    assert not (tmp_path / "run").exists()


def test_init_from_a_baseline(run_cli, workshop, baseline_run, tmp_path):
    words = ["--init-from", baseline_run, "--set", "train.lr=1e-12", "--set", "train.steps=1"]
    assert run_cli("train", workshop / "free.toml", "-o", tmp_path / "run", *words).code == 0
    start = baseline_run / "checkpoints" / "step-000006"
    before = load_file(start / "model.safetensors")
    made = load_file(tmp_path / "run" / "checkpoints" / "step-000001" / "model.safetensors")
    assert before.keys() < made.keys()
    assert all(torch.allclose(value, made[name], atol=1e-6) for name, value in before.items())
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["init_from"] == str(start.resolve())


def test_init_from_another_tokenizer_of_the_same_size_is_told(run_cli, workshop, text_run, tmp_path):
    (tmp_path / "other.txt").write_text("la la %" * 60, encoding="utf-8")
    words = ["prepare", tmp_path / "other.txt", "-o", tmp_path / "other", "--document-separator", "%", "--tokenizer"]
    tokenizer = json.loads((workshop / "text" / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
    (tmp_path / "swapped.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    assert run_cli(*words, tmp_path / "swapped.json").code == 0
    changed = ["--set", f"data.dir={tmp_path / 'other'}", "--set", "train.steps=1", "--init-from", text_run]
    done = run_cli("train", workshop / "text.toml", "-o", tmp_path / "run", *changed)
    assert done.code == 0 and "the tokenizer is not that of --init-from" in done.stderr


def test_text_that_rows_cut_off_is_told(run_cli, workshop, tmp_path):
    words = ["train", workshop / "text.toml", "-o", tmp_path / "run", "--set", "train.steps=1", "--set", "data.rows=documents"]
    assert "leave out" not in run_cli(*words).stderr
    shutil.rmtree(tmp_path / "run")
    assert re.search(r"rows of 4 tokens leave out \d+ % of the documents' tokens", run_cli(*words, "--set", "model.context=3").stderr)


@pytest.mark.parametrize(("share", "said"), [(0.004, ""), (0.006, "leave out 1 % of")])
def test_text_that_is_hardly_cut_off_is_not_told(run_cli, workshop, tmp_path, monkeypatch, share, said):
    plain = run_module.resolve

    def resolve(*words):
        recipe, source = plain(*words)
        return recipe, dataclasses.replace(source, unused=share)

    monkeypatch.setattr(run_module, "resolve", resolve)
    stderr = run_cli("train", workshop / "text.toml", "-o", tmp_path / "run", "-q", "--set", "train.steps=1").stderr
    assert ("leave out" in stderr) == bool(said)
    assert said in stderr


def test_settings_of_a_new_run_that_are_hardly_meant_are_warned_of(run_cli, workshop, tmp_path, monkeypatch):
    words = ["train", workshop / "text.toml", "-o", tmp_path / "run", "-q", "--set", "train.steps=2"]
    held_out = "warning: the held-out split 'val' has only 2 rows, too few for its loss to mean much"
    with monkeypatch.context() as context:
        context.setattr(run_module, "LEAST", 2)
        assert run_cli(*words, "--set", "train.warmup=1").stderr == ""
    shutil.rmtree(tmp_path / "run")
    stderr = run_cli(*words, "--set", "train.warmup=2", "--set", "model.document_mask=true").stderr
    assert "document_mask" not in stderr  # the rows are packed
    shutil.rmtree(tmp_path / "run")
    stderr = run_cli(*words, "--set", "train.warmup=2", "--set", "model.document_mask=true", "--set", "data.rows='documents'").stderr
    assert "warning: model.document_mask = true has no effect: only data.rows = 'packed' puts several documents" in stderr
    shutil.rmtree(tmp_path / "run")
    stderr = run_cli(*words, "--set", "train.warmup=2").stderr
    assert held_out in stderr
    assert "train.warmup = 2 is not less than train.steps = 2: the learning rate rises to the end" in stderr
    assert run_cli(*words, "--set", "train.warmup=2", "--resume", "auto").stderr == ""


@pytest.mark.parametrize(
    ("settings", "warning"),
    [
        (["attention=differential"], "model.attention was 'softmax'"),
        (["attention=multi-token"], "model.multi_token.norm was 'none'"),
        (["attention=multi-token", "multi_token.norm=none", "rope_theta=100.0"], "model.rope_theta was 10000"),
        (["heads=1"], "model.heads was 2; model.kv_heads was 2"),
        (["norm_eps=0.1"], "model.norm_eps was 1e-05"),
        (["attention=multi-token", "multi_token.norm=none"], ""),
        (["attention=talking-heads"], ""),
    ],
)
def test_a_model_that_computes_something_else_than_its_start_is_warned_of(run_cli, workshop, baseline_run, tmp_path, settings, warning):
    words = [word for setting in settings for word in ("--set", f"model.{setting}")]
    done = run_cli("train", workshop / "baseline.toml", "-o", tmp_path / "run", "--init-from", baseline_run, "--quiet", *words)
    assert done.code == 0
    assert warning in done.stderr
    assert ("does not compute" in done.stderr) == bool(warning)


@pytest.mark.parametrize("setting", ["model.width=32", "model.layers=4", "model.tie_embeddings=false"])
def test_init_from_a_model_that_does_not_fit(refused, workshop, baseline_run, tmp_path, setting):
    assert "do not fit" in refused("train", workshop / "free.toml", "-o", tmp_path / "run", "--init-from", baseline_run, "--set", setting)
    assert not (tmp_path / "run").exists()


def test_init_from_and_a_checkpoint_to_resume_contradict_each_other(refused, workshop, free_run, copied):
    run = copied(free_run)
    words = ["train", workshop / "free.toml", "-o", run, "--init-from", free_run, "--resume"]
    assert "give only one of them" in refused(*words, run / "checkpoints" / "step-000003")
    assert "the run started from new weights, not from" in refused(*words, "auto")


def test_resume_auto_continues_a_run_that_began_with_init_from(run_cli, refused, workshop, baseline_run, free_run, copied, tmp_path):
    start, run = copied(baseline_run), tmp_path / "run"
    words = ["train", workshop / "free.toml", "-o", run, "--resume", "auto"]
    assert run_cli(*words, "--init-from", start).code == 0
    straight = record(run)
    shutil.rmtree(run / "checkpoints" / "step-000006")
    shutil.rmtree(start)  # its weights are not read again
    for init_from in (["--init-from", start], ["--init-from", start / "checkpoints" / "step-000006"], []):
        assert run_cli(*words, *init_from).code == 0
    assert record(run) == straight
    line = refused(*words, "--init-from", free_run)
    assert (
        f"the run started from {start.resolve() / 'checkpoints' / 'step-000006'}, not from {free_run}" in line
        and "leave --init-from out" in line
    )
    assert record(run) == straight


# --- resuming ---------------------------------------------------------------------------------------------------------


def test_resume_auto_starts_a_missing_run(run_cli, workshop, free_run, tmp_path):
    assert run_cli("train", workshop / "free.toml", "-o", tmp_path / "run", "--resume", "auto").code == 0
    assert_same_record(tmp_path / "run", free_run)


def test_resume_auto_of_a_finished_run_leaves_it(run_cli, workshop, free_run, copied):
    run = copied(free_run)
    code, stdout, _ = run_cli("train", workshop / "free.toml", "-o", run, "--resume", "auto", "--json")
    assert code == 0
    assert json.loads(stdout)["val"] == rows(free_run)[-1]
    assert_same_record(run, free_run)
    assert " tokens, in an earlier call\n" in run_cli("train", workshop / "free.toml", "-o", run, "--resume", "auto").stdout


@pytest.mark.parametrize("which", ["auto", "path", "run"])
def test_resume_is_exact(run_cli, workshop, free_run, copied, which):
    """From step 3: `auto` finds it as the newest checkpoint, PATH names it although there is a later one."""
    run = copied(free_run)
    first = run / "checkpoints" / "step-000003"
    if which != "path":
        for path in (run / "checkpoints" / "step-000006").iterdir():
            path.unlink()
        path.parent.rmdir()
    start = {"auto": "auto", "path": first, "run": run}[which]
    code, _, stderr = run_cli("train", workshop / "free.toml", "-o", run, "--resume", start)
    assert code == 0
    assert "step 1/6" not in stderr
    assert_same_record(run, free_run)
    assert [part["step"] for part in json.loads((run / "manifest.json").read_text())["resumed"]] == [3]


def test_going_back_keeps_later_checkpoints_under_another_name(run_cli, workshop, free_run, copied):
    """They stay usable, and the run is warned of before anything changes; going back again keeps those of both times."""
    run = copied(free_run)
    first, aside = run / "checkpoints" / "step-000003", run / "checkpoints" / "aside-step-000006"
    for kept in (aside, aside.with_name("aside-step-000006-2")):
        code, _, stderr = run_cli("-q", "train", workshop / "free.toml", "-o", run, "--resume", first)
        assert code == 0
        assert stderr.count("\n") == 1
        assert f"continues from step 3, and its records after that are written again; later checkpoints are kept as {kept.name} " in stderr
        assert (kept / "model.safetensors").read_bytes() == (free_run / "checkpoints" / "step-000006" / "model.safetensors").read_bytes()
        assert run_cli("sample", kept, "--count", 1).code == 0
    assert_same_record(run, free_run)
    assert [info["step"] for info in json.loads(run_cli("show", run, "--json").stdout)["checkpoints"]] == [3, 6]


@pytest.mark.parametrize("at", range(1, 7))
def test_a_kill_while_going_back_leaves_a_newest_checkpoint_with_all_its_records(free_run, copied, monkeypatch, at):
    run = copied(free_run)
    checkpoints = run / "checkpoints"
    shutil.copytree(checkpoints / "step-000006", checkpoints / "step-000005")
    folder, moves = RunFolder.open(run), iter(range(1, 100))

    def move(source, target):
        if next(moves) == at:
            raise KeyboardInterrupt
        source.replace(target)

    monkeypatch.setattr("freetf_cli.durable.move", move)
    try:
        folder.rewind(3, folder.recipe())
    except KeyboardInterrupt:
        assert next(moves) == at + 1
    newest = max(int(path.name[5:]) for path in checkpoints.glob("step-*"))
    assert rows(run)[-1]["step"] >= newest
    assert len(list(checkpoints.iterdir())) == 3


def test_a_resumed_run_without_its_metrics_is_warned_of(run_cli, workshop, free_run, copied):
    run = copied(free_run)
    words = ["-q", "train", workshop / "free.toml", "-o", run, "--resume", run / "checkpoints" / "step-000003"]
    assert "lacks steps" not in run_cli(*words).stderr
    (run / "metrics.jsonl").unlink()
    assert f"{run / 'metrics.jsonl'} lacks steps before 3" in run_cli(*words).stderr


def test_resume_falls_back_to_an_intact_checkpoint_and_replaces_the_damaged_one(run_cli, workshop, free_run, copied):
    run = copied(free_run)
    (run / "checkpoints" / "step-000006" / "model.safetensors").write_bytes(b"cut")
    code, _, stderr = run_cli("-q", "train", workshop / "free.toml", "-o", run, "--resume", "auto")
    assert code == 0
    assert "freetf: warning: " in stderr
    assert "model.safetensors" in stderr
    assert_same_record(run, free_run)


def test_going_back_to_a_checkpoint_renames_later_ones(free_run, copied):
    """A damaged newest checkpoint that kept its name would be the newest again, and the new ones would be deleted for it."""
    run = copied(free_run)
    folder = RunFolder.open(run)
    stranger = run / "samples" / "step-old.jsonl"
    stranger.touch()
    folder.rewind(3, folder.recipe())
    assert stranger.exists()
    assert not list((run / "samples").glob("step-000006*"))
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["aside-step-000006", "step-000003"]
    assert [row["step"] for row in rows(run)] == [1, 2, 3]


def test_resume_auto_starts_over_without_a_checkpoint(run_cli, workshop, free_run, copied):
    """A run that was killed before its first checkpoint must not block a scheduler's `--resume auto`."""
    run = copied(free_run)
    (run / "checkpoints").rename(run / "gone")
    (run / "gone").rename(run.with_name("gone"))
    words = ["train", workshop / "free.toml", "-o", run, "--resume", "auto", "-q"]
    done = run_cli(*words, "--set", "train.keep_last=3")
    line = f"freetf: warning: the run in {run} has no checkpoint yet, and starts at step 1; 5 recorded steps are dropped\n"
    assert (done.code, done.stderr) == (0, line)
    assert_same_record(run, free_run)
    assert run_cli(*words).stderr == ""


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--set", "train.lr=1.0", "--set", "train.steps=7"], "train.lr is 1.0, was 0.03, train.steps is 7, was 6"),
        (["--seed", "5"], "train.seed is 5, was 0"),
        (["--set", "data.params.length=11"], "the data is not what the run was started on"),
        (["--init-from", "{other}"], "the run started from new weights, not from"),
    ],
)
def test_a_run_without_a_checkpoint_is_not_replaced_by_another(refused, workshop, free_run, baseline_run, copied, words, what):
    run = copied(free_run)
    shutil.rmtree(run / "checkpoints")
    before = (run / "metrics.jsonl").read_bytes()
    words = [word.format(other=baseline_run) for word in words]
    line = refused("train", workshop / "free.toml", "-o", run, "--resume", "auto", *words)
    assert what in line and "choose another -o, or delete the folder" in line
    assert (run / "metrics.jsonl").read_bytes() == before


def test_a_run_that_began_with_init_from_starts_over_with_it(run_cli, refused, workshop, baseline_run, tmp_path):
    words = ["train", workshop / "free.toml", "-o", tmp_path / "run", "--resume", "auto"]
    assert run_cli(*words, "--init-from", baseline_run).code == 0
    first = record(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert "the run started from" in (line := refused(*words)) and "not from new ones" in line
    assert run_cli(*words, "--init-from", baseline_run).code == 0
    assert record(tmp_path / "run") == first


def test_resume_from_another_runs_checkpoint_is_refused(refused, workshop, free_run, baseline_run, copied):
    run = copied(free_run)
    before = record(run)
    line = refused("train", workshop / "free.toml", "-o", run, "--resume", baseline_run / "checkpoints" / "step-000006")
    assert "--init-from" in line
    assert record(run) == before


@pytest.mark.parametrize(
    ("setting", "what"),
    [("train.lr=1.0", "train.lr is 1.0, was 0.03"), ("model.width=32", "model.width")],
)
def test_resume_with_another_recipe_is_refused(refused, workshop, free_run, copied, setting, what):
    run = copied(free_run)
    before = record(run)
    assert what in refused("train", workshop / "free.toml", "-o", run, "--resume", "auto", "--set", setting)
    assert record(run) == before


def test_a_finished_run_is_made_longer(run_cli, workshop, free_run, copied, refused):
    """Its records stay; from the next step on, the learning rate is that of a run of so many steps."""
    run, words = copied(free_run), ["--resume", "auto", "-q"]
    code, _, stderr = run_cli("train", workshop / "free.toml", "-o", run, *words, "--set", "train.steps=9")
    assert code == 0
    assert "the run of 6 steps goes on from step 6 to 9, with train.lr as in a run of 9 steps" in stderr
    assert stderr.count("\n") == 1
    assert rows(run)[:6] == rows(free_run)
    config = RunFolder(run).recipe().train
    assert config.steps == 9
    added = {row["step"]: row["lr"] for row in rows(run)[6:] if row["lr"] is not None}
    assert added == {step: learning_rate(step - 1, config) for step in (8, 9)}
    before, then = rows(free_run)[-2]["lr"], learning_rate(6, config)
    assert then > 1.5 * before
    assert f"was {before:.3g}, is {then:.3g} at the next step, and ends at {added[9]:.3g}" in stderr
    manifest = json.loads((run / "manifest.json").read_text())
    assert [(part["step"], part["steps_before"]) for part in manifest["resumed"]] == [(6, 6)]
    for steps, hint in ((8, "a run can only be made longer"), (12, "--set train.steps=12 makes the run longer")):
        edited = workshop / f"free{steps}.toml"
        edited.write_text((workshop / "free.toml").read_text().replace("steps = 6", f"steps = {steps}"))
        line = refused("train", edited, "-o", run, *words)
        assert f"train.steps is {steps}, was 9" in line
        assert line.endswith(f"; {hint}\n")
    code, stdout, _ = run_cli("reproduce", run, "--json", "-q")
    found = json.loads(stdout)
    assert (code, found["holds"], found["steps"], found["records"], found["weights"]) == (0, True, 9, 9, 0.0)
    code, stdout, _ = run_cli("reproduce", run, "--json", "-q", "--resume", "auto")
    assert (code, json.loads(stdout)["holds"]) == (0, True)


def test_resume_with_other_data_is_refused(refused, workshop, free_run, copied):
    line = refused("train", workshop / "free.toml", "-o", copied(free_run), "--resume", "auto", "--set", "data.params.length=11")
    assert "data" in line


def test_resume_finds_data_that_was_moved(run_cli, workshop, text_run, copied, tmp_path):
    (tmp_path / "elsewhere").symlink_to(workshop / "text")
    words = ["--resume", "auto", "--set", f"data.dir='{tmp_path / 'elsewhere'}'"]
    code, _, stderr = run_cli("-q", "train", workshop / "text.toml", "-o", copied(text_run), *words)
    assert (code, stderr) == (0, "")


@pytest.mark.parametrize("start", ["yes", "{run}/checkpoints/step-000004", "{run}/nowhere"])
def test_resume_from_nothing(refused, workshop, free_run, copied, start):
    run = copied(free_run)
    refused("train", workshop / "free.toml", "-o", run, "--resume", start.format(run=run))


# --- signals ----------------------------------------------------------------------------------------------------------


@contextmanager
def training(words: list[object], environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A training process."""
    command = [sys.executable, "-m", "freetf_cli", "train", *(str(word) for word in words)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for_a_step(run: Path, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 45
    while time.monotonic() < end and process.poll() is None:
        if (run / "metrics.jsonl").is_file() and (run / "metrics.jsonl").stat().st_size:
            return
        time.sleep(0.02)
    raise AssertionError(f"no step was logged (exit {process.poll()})")


LONG = ["--set", "train.steps=15000", "--set", "eval.every=0"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_signal_saves_and_stops_and_the_resumed_run_is_the_same(run_cli, workshop, tmp_path, environment):
    """The other signals, and other moments, are in tests/reliability (`signals`)."""
    run = tmp_path / "parts"
    words = ["train", workshop / "free.toml", "--set", "train.steps=300", "--set", "eval.every=0", "--set", "train.log_every=1"]
    with training([*words[1:], "-o", run], environment) as process:
        wait_for_a_step(run, process)
        process.send_signal(signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=200)
    assert (process.returncode, stdout) == (75, "")
    last = stderr.splitlines()[-1]
    assert last.startswith("freetf: error: stopped by SIGTERM after step ")
    assert "--resume auto" in last
    assert "Traceback" not in stderr
    step = int(last.split("after step ")[1].split(",")[0])
    assert [path.name for path in (run / "checkpoints").glob("step-*")] == [f"step-{step:06d}"]
    assert json.loads((run / "manifest.json").read_text())["status"] == "stopped"
    assert run_cli(*words, "-o", run, "--resume", "auto").code == 0
    assert run_cli(*words, "-o", tmp_path / "whole").code == 0
    assert_same_record(run, tmp_path / "whole")


@pytest.fixture
def stopped_at(monkeypatch) -> Callable[[Any, str], None]:
    """`stopped_at(Loop, "train_step")`: this process gets SIGTERM when the function is called."""

    def patch(owner: Any, name: str) -> None:
        plain = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args: (os.kill(os.getpid(), signal.SIGTERM), plain(*args))[1])

    return patch


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_json_of_a_stopped_run_is_an_error_object(run_cli, workshop, tmp_path, stopped_at):
    stopped_at(Loop, "train_step")
    code, stdout, stderr = run_cli("train", workshop / "free.toml", "-o", tmp_path / "run", "--json")
    assert (code, stdout) == (75, "")
    assert json.loads(stderr)["error"]["exit_code"] == 75


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_signal_before_anything_is_loaded(run_cli, workshop, tmp_path, stopped_at):
    """There is nothing to save yet, and the message says so."""
    stopped_at(device, "set_threads")
    code, _, stderr = run_cli("train", workshop / "free.toml", "-o", tmp_path / "run")
    assert code == 75
    assert "stopped by SIGTERM before its first step" in stderr.splitlines()[-1]


@pytest.mark.parametrize("resume", ["never", "auto"])
def test_a_run_that_another_process_trains_is_refused(run_cli, workshop, free_run, copied, resume):
    """Two processes, and one that was killed, are in tests/reliability (`starters`)."""
    run = copied(free_run)
    with lock_run(run):
        code, stdout, stderr = run_cli("train", workshop / "free.toml", "-o", run, "--resume", resume)
    assert (code, stdout, stderr.count("\n")) == (1, "", 1)
    assert f"process {os.getpid()} on " in stderr and "is training this run" in stderr
    assert not (run / ".lock.json").exists()


def test_a_loss_that_is_not_finite_fails_with_exit_1(run_cli, workshop, tmp_path):
    words = ["--set", "train.lr=1e30", "--set", "train.grad_clip=0.0", "--set", "train.steps=50", "-q"]
    code, stdout, stderr = run_cli("train", workshop / "free.toml", "-o", tmp_path / "run", *words)
    assert (code, stdout) == (1, "")
    *warnings, error = stderr.splitlines()
    assert re.match(r"freetf: error: the loss or its gradient is not finite at step \d+ and the 2 before it", error)
    assert len(warnings) == 3 and all(re.match(r"freetf: warning: step \d+ skipped: CE ", line) for line in warnings)
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "failed"


# --- frames -----------------------------------------------------------------------------------------------------------


def test_few_calls_lie_between_the_command_and_the_attention_product(run_cli, workshop, tmp_path, monkeypatch):
    """A reader follows at most 12 functions of this package from `train` to `attend`, both included."""
    plain, found = F.scaled_dot_product_attention, []

    def traced(*args: Any, **options: Any) -> Any:
        monkeypatch.setattr(F, "scaled_dot_product_attention", plain)
        frame = sys._getframe(1)
        while frame is not None and frame.f_code is not train.__code__:
            if f"{os.sep}freetf_cli{os.sep}" in frame.f_code.co_filename:
                found.append(frame.f_code.co_qualname)
            frame = frame.f_back
        return plain(*args, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", traced)
    assert run_cli("train", workshop / "free.toml", "-o", tmp_path / "run", "--smoke").code == 0
    assert (found[0], found[-1]) == ("Attention.attend", "run_training")
    assert len(found) + 1 <= 12, found


# --- dry runs ---------------------------------------------------------------------------------------------------------


def plan(run_cli, recipe: object, *words: object) -> dict[str, Any]:
    code, stdout, stderr = run_cli("train", recipe, "--dry-run", "--json", *words)
    assert (code, stderr, stdout.count("\n")) == (0, "", 1)
    found: dict[str, Any] = json.loads(stdout)
    assert found["schema_version"] == 1
    return found


def test_a_dry_run_writes_nothing(run_cli, workshop, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan(run_cli, workshop / "free.toml", "-o", tmp_path / "run")
    for name in NO_DATA:
        plan(run_cli, name)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_counts_the_parameters_of_training(run_cli, workshop, free_run):
    found = plan(run_cli, workshop / "free.toml")
    weights = load_file(free_run / "checkpoints" / "step-000006" / "model.safetensors")
    assert found["parameters"] == sum(part["parameters"] for part in found["parts"]) == sum(value.numel() for value in weights.values())
    assert (found["steps"], found["tokens"]) == (6, 6 * 8 * 13)


def test_a_dry_run_counts_a_shard_of_each_process(run_cli, workshop):
    two = ["--set", "parallel.processes=2"]
    alone, copied = plan(run_cli, workshop / "free.toml")["memory"], plan(run_cli, workshop / "free.toml", *two)["memory"]
    sharded = plan(run_cli, workshop / "free.toml", *two, "--set", 'parallel.mode="fsdp"')["memory"]
    assert copied["optimizer"] == alone["optimizer"] == 2 * sharded["optimizer"]
    assert sharded["gathered"] > 0


@pytest.mark.parametrize(("name", "billions", "tokens", "layers"), [("paper-1.5b", 1.512, 47e9, 28), ("paper-8b", 8.05, 200e9, 32)])
def test_the_papers_sizes(run_cli, name, billions, tokens, layers):
    baseline, free = plan(run_cli, f"{name}-baseline"), plan(run_cli, f"{name}-free")
    assert baseline["parameters"] == pytest.approx(billions * 1e9, rel=2e-3)
    assert baseline["tokens"] == free["tokens"] == pytest.approx(tokens, rel=1e-3)
    table = next(part["parameters"] for part in free["parts"] if "table" in part["name"])
    assert table == 2**16 * {28: 1536, 32: 4096}[layers]
    assert baseline["overhead_compute"] is None
    assert free["overhead_compute_paper"] == pytest.approx(1 / layers)
    assert 1 / layers < free["overhead_compute"] < 2 / layers  # an encoder block, and the mapper over 2^H codes
    assert free["overhead_parameters"] == pytest.approx(free["parameters"] / baseline["parameters"] - 1)
    assert free["memory"]["optimizer"] == 8 * free["parameters"]
    # Six FLOPs a parameter and token, plus attention.
    assert 6 * baseline["parameters"] * 0.9 < baseline["train_flops_per_token"] < 6 * baseline["parameters"] * 1.4


def test_the_1_5b_table_is_100_7_million(run_cli):
    table = next(part for part in plan(run_cli, "paper-1.5b-free")["parts"] if "table" in part["name"])
    assert round(table["parameters"] / 1e6, 1) == 100.7


def test_a_plan_for_a_gpu_does_not_need_one(run_cli):
    assert plan(run_cli, "letters-free", "--device", "cuda")["precision"] == "bf16"
    assert plan(run_cli, "letters-free", "--device", "cpu")["precision"] == "fp32"
    assert plan(run_cli, "letters-free", "--device", "cuda", "--set", "train.precision='fp32'")["precision"] == "fp32"


@pytest.mark.parametrize("name", ["paper-1.5b-baseline", "paper-1.5b-free", "paper-8b-baseline", "paper-8b-free"])
@pytest.mark.parametrize("gpus", [1, 2, 8, 64, 256])
def test_a_plan_for_several_gpus(run_cli, name, gpus):
    found = plan(run_cli, name, "--gpus", gpus)
    spread, states = found["spread"], 16 * found["parameters"]
    assert (spread["gpus"], spread["gpu_memory"], found["precision"]) == (gpus, 141e9, "bf16")
    for row in spread["rows"]:
        held = sum(row["memory"][part] for part in ("parameters", "gradients", "optimizer"))
        assert held == (0 if row["cpu_offload"] else states / row["shards"])
        assert row["fits"] == (row["memory"]["total"] <= 141e9)
        assert row["sequences"] * row["grad_accum_steps"] * gpus == (1024 if "8b" in name else 256)
    assert spread["rows"][0]["fits"] == (name != "paper-8b-free")  # a whole copy on each GPU
    assert all(row["fits"] for row in spread["rows"][1:])
    assert {row["mode"] for row in spread["rows"]} >= ({"ddp", "fsdp"} if gpus > 1 else {"none", "fsdp"})


def test_the_memory_of_a_gpu_can_be_given(run_cli):
    rows = plan(run_cli, "paper-8b-free", "--gpus", 2, "--gpu-memory", "80GiB")["spread"]
    assert rows["gpu_memory"] == 80 * 2**30
    assert [row["fits"] for row in rows["rows"]] == [False, False, False, True]
    assert plan(run_cli, "paper-8b-free")["spread"] is None


def test_a_plan_for_several_gpus_is_a_table_of_80_columns(run_cli):
    code, stdout, stderr = run_cli("train", "paper-8b-free", "--dry-run", "--gpus", 256)
    assert (code, stderr) == (0, "")
    tables = stdout.partition("Memory of each of 256 GPUs, estimated")[2].partition("computation: at")[0]
    assert max(map(len, tables.splitlines())) <= 80
    assert re.search(r"^fits 141 GB +no +yes +yes +yes +yes$", tables, re.MULTILINE)
    assert re.search(r"^ +ddp +fsdp +no reshard +hsdp 8×32 +offload$", tables, re.MULTILINE)
    assert re.search(r"^parameters +31.8 GiB +127.3 MiB +127.3 MiB +4.0 GiB +0 B$", tables, re.MULTILINE)
    assert "Memory during training" not in stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gpus", 2, "--gpu-memory", "much"], "--gpu-memory = 'much' is not a size; give a number and a unit: 80GB, 80GiB, 141GB"),
        (["--gpus", 512], "train.batch = 256 is too small for 512 GPUs: each needs a sequence of its own; raise it: --set train.batch=512"),
        (["--gpus", 7], "train.batch = 256 cannot be divided among 7 GPUs"),
        (["--gpus", 0], "invalid value for '--gpus'"),
        (["--gpus", 2, "--device", "cpu"], "--gpus plans for CUDA, not for --device cpu"),
        (["--gpu-memory", "80GB"], "--gpu-memory needs the number of GPUs; add --gpus N"),
    ],
)
def test_a_plan_for_several_gpus_refuses_nonsense(refused, words, said):
    assert said in refused("train", "paper-1.5b-free", "--dry-run", *words)


def test_gpus_are_for_planning_only(refused, workshop, tmp_path):
    for words in (["--gpus", 2], ["--gpu-memory", "80GB"]):
        said = refused("train", workshop / "free.toml", "-o", tmp_path / "run", *words)
        assert "--gpus and --gpu-memory are for --dry-run" in said
    assert not (tmp_path / "run").exists()


def test_a_dry_run_reads_well_in_a_pipe(run_cli):
    code, stdout, stderr = run_cli("train", "paper-1.5b-free", "--dry-run")
    assert (code, stderr) == (0, "")
    assert "1,659,096,576" in stdout
    assert "the encoder's blocks in L" in stdout
    assert "…" not in stdout


def test_the_data_of_a_run_is_found_from_the_run_or_named(run_cli, workshop, tmp_path, monkeypatch):
    """From another folder, with both moved, beside other data of that name, and where it is gone."""
    for name in ("home", "away"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "home")
    shutil.copytree(workshop / "text", "d")
    settings = [
        "--set",
        "data.dir=d",
        "--set",
        "model.context=2",
        "--set",
        "train.steps=1",
        "--set",
        "eval.samples=0",
        "--set",
        "eval.sequences=2",
        "-q",
    ]
    train = ["train", workshop / "text.toml", *settings]
    assert run_cli(*train, "-o", "run").code == 0
    evaluate = ["evaluate", "--task", "likelihood", "--sequences", "20", "--samples", "1", "-q"]
    monkeypatch.chdir(tmp_path / "away")
    assert run_cli(*evaluate, "../home/run").code == 0
    (tmp_path / "home").rename(tmp_path / "moved")
    assert run_cli("train", workshop / "text.toml", *settings, "--resume", "auto", "-o", "../moved/run").code == 0
    shutil.copytree("../moved/d", "d")
    code, _, stderr = run_cli(*train, "--set", "data.dir=typo", "--resume", "auto", "-o", "../moved/run")
    assert (code, f"looked for {tmp_path / 'away' / 'typo'}, " in stderr) == (2, True)
    manifest = Path("d/manifest.json").read_text()
    Path("d/manifest.json").write_text(manifest + "\n")  # other data by its hash
    assert run_cli(*evaluate, "../moved/run").code == 0
    shutil.rmtree("d")
    (tmp_path / "moved" / "d").rename(tmp_path / "data")
    for words in ([*evaluate, "../moved/run"], [*train, "--resume", "auto", "-o", "../moved/run"]):
        code, _, stderr = run_cli(*words)
        assert code == 2
        assert f"looked for {tmp_path / 'away' / 'd'} and {tmp_path / 'moved' / 'd'}" in stderr
        assert "name it with --data DIR; with `freetf train`, --set data.dir=DIR" in stderr
    assert run_cli(*evaluate, "../moved/run", "--data", "../data").code == 0
    code, _, stderr = run_cli("train", workshop / "text.toml", "--set", "data.dir=none", "-o", "new")
    assert (code, "no such data folder, " + str(tmp_path / "away" / "none") in stderr, "--set data.dir=DIR" in stderr) == (2, True, True)


@pytest.mark.parametrize("words", [(), ("--dry-run", "--set", "model.vocab=28")])
def test_a_context_too_short_for_the_samples_is_refused_before_training(run_cli, workshop, tmp_path, words):
    short = ["train", workshop / "baseline.toml", "-o", tmp_path / "run", "--set", "model.context=1", "-q"]
    code, stdout, stderr = run_cli(*short, *words)
    said = "model.context = 1 is too short for samples: their prompt alone has 2 tokens; model.context = 2 or more, or eval.samples = 0"
    assert (code, stdout, said in stderr, list(tmp_path.iterdir())) == (2, "", True, [])
    for possible in ("model.context=2", "eval.samples=0"):
        assert run_cli(*short, *words, "--set", possible, "--set", "train.steps=1").code == 0
        shutil.rmtree(tmp_path / "run", ignore_errors=True)


def test_a_vocabulary_that_is_too_small_is_the_tokenizers(run_cli, workshop, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "LEAST", 2)  # rows of the held-out split: no other warning
    words = ["--set", "model.vocab=10", "--set", "train.steps=1", "--set", "eval.samples=0", "-q"]
    code, _, stderr = run_cli("train", workshop / "text.toml", "-o", tmp_path / "run", *words)
    assert (code, stderr) == (0, "freetf: warning: model.vocab = 10 is less than the tokenizer's 257 tokens, which the model gets\n")
    assert load_recipe(str(tmp_path / "run" / "recipe.toml")).model.vocab == 257
