"""`freetf runs`: every run below a folder is a line, whatever its state."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from freetf_cli.runs.lock import lock_run


@pytest.fixture
def listed(run_cli):
    """`listed("runs", DIR)`: the JSON records by run."""

    def run(*words: object) -> dict[str, dict[str, object]]:
        code, stdout, stderr = run_cli("runs", *words, "--json")
        assert (code, stderr, stdout.count("\n")) == (0, "", 1)
        return {record["run"]: record for record in json.loads(stdout)["runs"]}

    return run


def edit(run: Path, **entries: object) -> None:
    file = run / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


def test_runs_of_all_kinds_in_one_table(run_cli, listed, free_run, baseline_run, text_run):
    found = listed(free_run.parent)
    assert {*found} >= {str(free_run), str(baseline_run), str(text_run)}  # other tests may have made more
    last = json.loads((free_run / "metrics.jsonl").read_text().splitlines()[-1])
    run = found[str(free_run)]
    assert (run["recipe"], run["kind"], run["state"], run["step"], run["steps"], run["fault"]) == ("free", "free", "done", 6, 6, None)
    assert run["held_out"]["unit"] == "bits/sequence"
    assert run["held_out"]["loss"] == last["loss"]
    assert run["held_out"]["nelbo"] == pytest.approx((last["ce"] + last["kl"]) * 13 / 0.6931472)  # targets of a row
    assert found[str(text_run)]["held_out"]["unit"] == "bits/byte"
    assert found[str(baseline_run)]["held_out"]["kl"] == 0
    assert run["when"] == json.loads((free_run / "manifest.json").read_text())["finished"]
    stdout = run_cli("runs", free_run.parent).stdout
    lines = [line for line in stdout.splitlines() if str(free_run.parent) in line]
    assert len(lines) == len(found)
    line = next(line for line in lines if str(free_run) in line)
    for said in ("done", "6 of 6", "bits/sequence", f"{run['held_out']['nelbo']:.2f}", run["when"][:10]):
        assert said in line


def test_the_newest_is_first(listed, free_run, baseline_run, copied):
    old, new = copied(free_run), copied(baseline_run)
    edit(old, finished="2026-01-02T03:04:05+00:00")
    edit(new, finished="2026-01-02T02:04:06-01:00")  # a second later, in another zone
    found = listed(old.parent)
    assert [*found] == [str(new), str(old)]
    assert found[str(new)]["when"] == "2026-01-02T03:04:06+00:00"


def test_states(listed, free_run, copied):
    run = copied(free_run)
    for recorded in ("done", "stopped", "failed"):
        edit(run, status=recorded)
        assert listed(run)[str(run)]["state"] == recorded
    resumed = [{"started": "2027-01-01T00:00:00+00:00"}]
    edit(run, status="running", started="2026-01-01T00:00:00+00:00", resumed=resumed)
    with lock_run(run):
        shown = listed(run)[str(run)]
        assert (shown["state"], shown["when"]) == ("running", resumed[0]["started"])
    assert listed(run)[str(run)]["state"] == "interrupted"


def test_a_run_that_has_only_begun(listed, free_run, copied):
    run = copied(free_run)
    for name in ("checkpoints", "samples"):
        shutil.rmtree(run / name)
    for name in ("metrics.jsonl", "manifest.json"):
        (run / name).unlink()
    with lock_run(run):
        shown = listed(run)[str(run)]
    assert (shown["state"], shown["step"], shown["steps"], shown["held_out"], shown["when"]) == ("running", 0, 6, None, None)


@pytest.mark.parametrize("damage", ["recipe", "metrics", "manifest", "link", "times"])
def test_a_damaged_run_does_not_hide_the_others(run_cli, listed, free_run, baseline_run, copied, damage):
    run, other = copied(free_run), copied(baseline_run)
    if damage == "recipe":
        (run / "recipe.toml").write_text("model = 3")
    if damage == "metrics":
        (run / "metrics.jsonl").write_text('{"step": 1\n{}\n')
    if damage == "manifest":
        (run / "manifest.json").write_text("[]")
    if damage == "link":
        (run / "samples" / "x").symlink_to("/etc/hosts")
    if damage == "times":
        edit(run, finished=7, started=["now"], resumed={"x": 1}, recipe=None)
    found = listed(run.parent)
    assert found[str(other)]["state"] == "done"
    if damage == "times":
        assert (found[str(run)]["state"], found[str(run)]["when"]) == ("done", None)
        return
    assert found[str(run)]["state"] == "damaged"
    stdout = run_cli("runs", run.parent).stdout
    assert f"{run} is damaged: {found[str(run)]['fault']}" in stdout
    assert str(other) in stdout


def test_where_it_looks(run_cli, listed, free_run, tmp_path, monkeypatch):
    """Below, but not in hidden folders, through links, or inside a run."""
    deep = Path(shutil.copytree(free_run, tmp_path / "a" / "b" / "run"))
    shutil.copytree(free_run, tmp_path / ".hidden" / "run")
    shutil.copytree(free_run, deep / "checkpoints" / "copy")
    (tmp_path / "link").symlink_to(deep)
    monkeypatch.chdir(tmp_path)
    assert [*listed()] == ["a/b/run"]
    shutil.copytree(free_run, tmp_path / "runs" / "one")
    assert [*listed()] == ["runs/one"]
    assert {*listed(".")} == {"a/b/run", "runs/one"}


def test_nothing_to_list(run_cli, refused, tmp_path):
    code, stdout, stderr = run_cli("runs", tmp_path)
    assert (code, stdout) == (0, f"no runs below {tmp_path}\n")
    assert "freetf train" in stderr
    assert json.loads(run_cli("runs", tmp_path, "--json").stdout) == {"schema_version": 1, "folder": str(tmp_path), "runs": []}
    assert "no such folder" in refused("runs", tmp_path / "x")
