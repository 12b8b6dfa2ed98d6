"""`freetf show`: a run at a glance, whole in a pipe and at 80 columns, also for runs that are young or damaged."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from rich.cells import cell_len

from freetf_cli.cli.app import main
from freetf_cli.runs.lock import lock_run
from tests.report.helper import Terminal


def test_a_run_at_a_glance(run_cli, free_run):
    code, stdout, stderr = run_cli("show", free_run)
    assert (code, stderr) == (0, "")
    for said in ("Free Transformer", "12,864 parameters", "latent.kappa 0.5", "6 steps", "Curves", "held-out loss", "floor"):
        assert said in stdout
    assert str(free_run / "checkpoints" / "step-000003") in stdout
    assert stdout.count("shared Z") == 2
    assert stdout.count("independent Z") == 1
    samples = [json.loads(line) for line in (free_run / "samples" / "step-000006-shared.jsonl").read_text().splitlines()]
    assert all(record["text"] in stdout for record in samples)


@pytest.mark.parametrize("kind", ["free", "baseline", "text"])
@pytest.mark.parametrize("columns", ["80", None])
def test_nothing_is_cut_or_coloured_in_a_pipe(run_cli, request, monkeypatch, kind, columns):
    run = request.getfixturevalue(f"{kind}_run")
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("FORCE_COLOR", "")
    code, stdout, stderr = run_cli("show", run)
    assert (code, stderr) == (0, "")
    assert "\x1b" not in stdout
    assert "…" not in stdout
    assert any(line.rstrip().endswith(str(max((run / "checkpoints").glob("step-*")))) for line in stdout.splitlines())
    if columns:
        pictures = [line for line in stdout.splitlines() if line[:1] in "╭│╰" or "┤" in line or "│" in line[:8]]
        assert pictures
        assert max(map(cell_len, pictures)) <= 80


def test_a_baseline_has_no_z(run_cli, baseline_run):
    stdout = run_cli("show", baseline_run).stdout
    assert "baseline decoder" in stdout
    assert "shared Z" not in stdout
    assert "KL" not in stdout


def test_json_is_one_object(run_cli, free_run):
    code, stdout, stderr = run_cli("show", free_run, "--json")
    assert (code, stderr, stdout.count("\n")) == (0, "", 1)
    found = json.loads(stdout)
    assert (found["schema_version"], found["kind"], found["status"], found["run"]) == (1, "free", "done", str(free_run))
    assert found["metrics"] == [json.loads(line) for line in (free_run / "metrics.jsonl").read_text().splitlines()]
    assert [(info["step"], Path(info["path"]).is_dir()) for info in found["checkpoints"]] == [(3, True), (6, True)]
    assert sum(info["best"] for info in found["checkpoints"]) == 1
    assert found["recipe"]["latent"]["kappa"] == 0.5
    assert found["manifest"] == json.loads((free_run / "manifest.json").read_text())
    assert [groups["shared"] for groups in found["samples"]] == [False, True]


def test_a_run_whose_process_is_gone_is_interrupted(run_cli, free_run, copied):
    """The lock decides, as it does for `train`, whatever the manifest and the file that names its holder say; nothing is written."""
    run = copied(free_run)
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**manifest, "status": "running"}))

    def status() -> str:
        before = sorted(run.rglob("*"))
        shown = json.loads(run_cli("show", run, "--json").stdout)["status"]
        assert sorted(run.rglob("*")) == before
        assert shown in run_cli("show", run).stdout
        return shown

    with lock_run(run):
        assert status() == "running"
    (run / ".lock.json").write_text('{"pid": 1, "host": "elsewhere"}')
    assert status() == "interrupted"
    (run / ".lock").unlink(missing_ok=True)
    assert status() == "interrupted"
    for recorded in ("done", "stopped", "failed"):
        (run / "manifest.json").write_text(json.dumps({**manifest, "status": recorded}))
        assert status() == recorded


def becomes(run: Path, status: str) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**manifest, "status": status}))


@pytest.fixture
def watched(free_run, copied, monkeypatch):
    """`watched(steps)`: a run that is being trained, and does one of these steps each time that `show` waits."""

    def make(*steps):
        run, todo = copied(free_run), list(steps)
        becomes(run, "running")
        monkeypatch.setattr("freetf_cli.evaluation.summary.is_locked", lambda path: bool(todo))
        monkeypatch.setattr("freetf_cli.evaluation.summary.time.sleep", lambda seconds: todo.pop(0)(run))
        return run

    return make


def log(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write((run / "metrics.jsonl").read_text().splitlines()[0].replace('"step": 1', '"step": 7') + "\n")


def test_a_run_is_watched_until_it_ends(run_cli, watched):
    """One object for each change, and none while nothing happens."""
    run = watched(lambda run: None, log, lambda run: None, lambda run: becomes(run, "done"))
    code, stdout, stderr = run_cli("show", run, "--watch", "--json")
    shown = [json.loads(line) for line in stdout.splitlines()]
    assert (code, stderr, [one["status"] for one in shown]) == (0, "", ["running", "running", "done"])
    assert [len(one["metrics"]) for one in shown] == [6, 7, 7]


def test_watching_waits_for_a_run_that_begins(run_cli, watched):
    manifest = []

    def begin(run: Path) -> None:
        (run / "manifest.json").write_text(manifest.pop())

    run = watched(begin, lambda run: becomes(run, "stopped"))
    manifest.append((run / "manifest.json").read_text())
    (run / "manifest.json").unlink()
    shown = [json.loads(line)["status"] for line in run_cli("show", run, "--watch", "--json").stdout.splitlines()]
    assert shown == ["running", "stopped"]


def test_a_terminal_is_redrawn_and_keeps_the_last_state(watched, monkeypatch):
    run, screen = watched(log, lambda run: becomes(run, "done")), Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["show", str(run), "--watch"]) == 0
    _, first, after = re.split(r"\x1b\[\?1049[hl]", screen.getvalue())
    assert first.count("running") == 2
    assert "done" in after and "Checkpoints" in after and "running" not in after


def test_ctrl_c_ends_watching_quietly(run_cli, watched):
    def interrupt(run: Path) -> None:
        raise KeyboardInterrupt

    code, stdout, stderr = run_cli("show", watched(interrupt), "--watch", "--json")
    assert (code, stdout.count("\n"), stderr) == (130, 1, "")


def test_what_cannot_be_watched(run_cli, refused, free_run, tmp_path):
    assert "stdout is not one" in refused("show", free_run, "--watch")
    code, stdout, stderr = run_cli("show", tmp_path / "x", "--watch", "--json")
    assert (code, stdout, json.loads(stderr)["error"]["what"]) == (2, "", "no such run")


def test_a_checkpoint_shows_its_run(run_cli, free_run, monkeypatch):
    want = run_cli("show", free_run).stdout
    folder = free_run / "checkpoints" / "step-000003"
    assert run_cli("show", folder).stdout == want
    monkeypatch.chdir(folder)
    assert run_cli("show", ".").stdout == want


def test_a_run_without_checkpoints(run_cli, free_run, copied):
    run = copied(free_run)
    shutil.rmtree(run / "checkpoints")
    code, stdout, stderr = run_cli("show", run)
    assert (code, stderr) == (0, "")
    assert "Checkpoints" not in stdout
    assert json.loads(run_cli("show", run, "--json").stdout)["checkpoints"] == []


def test_a_run_that_has_only_begun(run_cli, free_run, copied):
    run = copied(free_run)
    for name in ("checkpoints", "samples"):
        shutil.rmtree(run / name)
        (run / name).mkdir()
    for name in ("metrics.jsonl", "timing.jsonl", "report.html"):
        (run / name).unlink()
    code, stdout, stderr = run_cli("show", run)
    assert (code, stderr) == (0, "")
    assert "no metrics yet" in stdout


def test_a_last_line_cut_short_is_left_out(run_cli, free_run, copied):
    """A crash may cut the line that was being written; those before it count."""
    run = copied(free_run)
    file = run / "metrics.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    found = json.loads(run_cli("show", run, "--json").stdout)["metrics"]
    assert len(found) == 5


@pytest.mark.parametrize("line", [b'{"step": 1, "spl', b"\xff\xfe", b"[1, 2]", b"7"])
def test_a_damaged_record_is_named_by_its_line(refused, run_cli, free_run, copied, line):
    run = copied(free_run)
    file = run / "metrics.jsonl"
    first, _, *others = file.read_bytes().splitlines()
    file.write_bytes(b"\n".join([first, line, *others]) + b"\n")
    assert f"{file}, line 2; remove that line" in refused("show", run)
    file.write_bytes(b"\n".join([first, *others]) + b"\n")
    assert run_cli("show", run).code == 0


@pytest.mark.parametrize("content", [None, "{", "[]", '{"data": 3}', '{"data": {}}'])
def test_a_damaged_manifest_is_named(refused, free_run, copied, content):
    run = copied(free_run)
    (run / "manifest.json").unlink()
    if content is not None:
        (run / "manifest.json").write_text(content)
    assert "manifest.json" in refused("show", run)


@pytest.mark.parametrize("make", ["nothing", "empty", "file"])
def test_what_is_not_a_run(refused, tmp_path, make):
    path = tmp_path / "x"
    if make == "empty":
        path.mkdir()
    if make == "file":
        path.write_text("hello")
    assert str(path) in refused("show", path)


def test_a_named_checkpoint_that_is_damaged_is_refused_and_one_of_a_run_is_warned_of(run_cli, free_run, copied):
    run = copied(free_run)
    weights = sorted((run / "checkpoints").glob("step-*"))[-1] / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    named = run_cli("show", weights.parent)
    assert (named.code, named.stdout) == (2, "")
    whole = run_cli("show", run)
    assert "model.safetensors" in whole.stderr
