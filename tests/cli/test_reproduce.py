"""`freetf reproduce`: the run is trained again and compared; whatever differs is named, with exit code 3."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from freetf_cli.durable import sha256_of
from freetf_cli.evaluation.reproduction import compare_runs, terms
from freetf_cli.records.reproduction import Terms
from freetf_cli.runs.lock import lock_run
from freetf_cli.training.reproduce import _parts

pytestmark = pytest.mark.usefixtures("no_charts")

MANIFEST = {"device": {"device": "cpu", "name": "x86_64", "platform": "Linux", "torch": "2.13.0", "threads": 2}, "processes": 1}


def edit(run: Path, **entries: object) -> None:
    file = run / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


def change_metric(run: Path, number: int, **entries: object) -> None:
    """Change a line of metrics.jsonl."""
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines()
    lines[number] = json.dumps({**json.loads(lines[number]), **entries})
    file.write_text("\n".join(lines) + "\n")


def change_weights(run: Path, step: int, name: str) -> None:
    """Change one number of a checkpoint's weights, and its manifest."""
    folder = run / "checkpoints" / f"step-{step:06d}"
    file, manifest = folder / "model.safetensors", folder / "MANIFEST.sha256"
    before, tensors = sha256_of(file), load_file(file)
    tensors[name].flatten()[0] += 1e-3
    save_file(tensors, file, {"format": "pt"})
    manifest.write_text(manifest.read_text().replace(before, sha256_of(file)))


def test_a_run_is_reproduced_bit_by_bit(run_cli, free_run, copied):
    run = copied(free_run)
    code, stdout, stderr = run_cli("reproduce", run, "--json", "-q")
    assert (code, stderr) == (0, "")
    found = json.loads(stdout)
    again = Path(found["again"])
    assert again == run.with_name("free-again")
    assert (found["holds"], found["first"], found["steps"], found["weights_step"], found["weights"]) == (True, None, 6, 6, 0.0)
    assert (found["terms"]["tolerance"], found["records"]) == (0.0, 6)
    assert (again / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()
    manifests = [json.loads((one / "manifest.json").read_text()) for one in (run, again)]
    assert manifests[0]["recipe"] == manifests[1]["recipe"]
    code, stdout, _ = run_cli("reproduce", run, "--resume", "auto")  # nothing is trained again
    assert (code, "Reproduced, bit by bit." in stdout) == (0, True)


def test_only_the_first_steps(run_cli, free_run, copied):
    """They are those of the whole run, not of a shorter one; the repetition can be continued."""
    run = copied(free_run)
    code, stdout, _ = run_cli("reproduce", run, "--steps", "3", "--json", "-q")
    found = json.loads(stdout)
    assert (code, found["steps"], found["of_steps"], found["records"], found["weights_step"]) == (0, 3, 6, 3, 3)
    status = json.loads((Path(found["again"]) / "manifest.json").read_text())["status"]
    assert status == "stopped"
    code, stdout, _ = run_cli("reproduce", run, "--resume", "auto", "--json", "-q")
    assert (code, json.loads(stdout)["records"]) == (0, 6)


def test_a_run_that_was_stopped_is_compared_as_far_as_it_went(run_cli, free_run, copied):
    run = copied(free_run)
    shutil.rmtree(run / "checkpoints" / "step-000006")
    edit(run, status="stopped")
    code, stdout, _ = run_cli("reproduce", run, "--json", "-q")
    assert (code, json.loads(stdout)["steps"]) == (0, 3)


def test_a_different_record_is_named(run_cli, free_run, copied):
    run = copied(free_run)
    change_metric(run, 1, grad_norm=0.25)
    code, stdout, stderr = run_cli("reproduce", run)
    assert code == 3
    assert "Not reproduced." in stdout
    assert "the first difference is step 2, train: grad_norm is" in stderr
    assert "was 0.25" in stderr
    code, stdout, _ = run_cli("reproduce", run, "--resume", "auto", "--tolerance", "0.01", "--json")  # a gradient norm is no held-out loss
    assert (code, json.loads(stdout)["terms"]) == (0, {"tolerance": 0.01, "why": "--tolerance"})


def test_different_weights_are_named(free_run, copied):
    run = copied(free_run)
    change_weights(run, 6, "blocks.1.ffn_norm.weight")
    found = compare_runs(run, free_run, 6, Terms(0.0, "test"))
    assert (found.holds, found.first.place, found.first.step) == (False, "blocks.1.ffn_norm.weight", 6)
    assert 0 < found.weights < 1e-3
    assert "blocks.1.ffn_norm.weight in the weights of step 6" in found.first.text()
    assert compare_runs(run, free_run, 6, Terms(0.01, "test")).holds
    assert compare_runs(run, free_run, 5, Terms(0.0, "test")).weights_step == 3


@pytest.mark.parametrize(("loss", "holds"), [(1.005, True), (1.02, False), (None, False)])
def test_a_tolerance_is_relative_and_of_held_out_losses(free_run, copied, loss, holds):
    run = copied(free_run)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    number = next(number for number, row in enumerate(rows) if row["lr"] is None)
    change_metric(run, number, loss=loss and rows[number]["loss"] * loss)
    found = compare_runs(run, free_run, 6, Terms(0.01, "test"))
    assert found.holds == holds
    assert holds or (found.first.place, found.first.split, found.first.step) == ("loss", "val", 3)


def test_a_missing_record_is_a_difference(free_run, copied):
    run = copied(free_run)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:-1]))
    found = compare_runs(run, free_run, 6, Terms(0.01, "test"))
    assert (found.first.place, found.first.original) == ("the record", None)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({}, ""),
        ({"torch": "2.12.0"}, "torch is 2.13.0, was 2.12.0"),
        ({"threads": 8}, "threads is 2, was 8"),
        ({"name": "aarch64"}, "name is x86_64, was aarch64"),
    ],
)
def test_what_is_required(changed, why):
    original = {**MANIFEST, "device": {**MANIFEST["device"], **changed}}
    found = terms(original, MANIFEST, deterministic=False, tolerance=None)
    assert found == (Terms(0.01, why) if why else Terms(0.0, "same cpu, torch and threads"))
    resumed = {**MANIFEST, "resumed": [original]}  # a part of the run was trained there
    assert terms(resumed, MANIFEST, deterministic=False, tolerance=None) == found
    assert terms(original, {**MANIFEST, "processes": 2}, deterministic=False, tolerance=None).tolerance == 0.01
    assert terms(original, MANIFEST, deterministic=False, tolerance=0.5).tolerance == 0.5


def test_on_a_gpu_bits_are_promised_only_with_deterministic():
    gpu = {"device": {**MANIFEST["device"], "device": "cuda", "name": "NVIDIA H200"}, "processes": 1}
    assert terms(gpu, gpu, deterministic=True, tolerance=None).tolerance == 0.0
    assert terms(gpu, gpu, deterministic=False, tolerance=None).tolerance == 0.01
    more = {**gpu, "device": {**gpu["device"], "threads": 99}}
    assert terms(more, gpu, deterministic=True, tolerance=None).tolerance == 0.0


def test_the_threads_of_the_run_are_used(run_cli, free_run, copied):
    run, before = copied(free_run), torch.get_num_threads()
    device = json.loads((run / "manifest.json").read_text())["device"]
    edit(run, device={**device, "threads": 3})
    try:
        run_cli("reproduce", run, "--steps", "1", "-q")
        again = json.loads((run.with_name("free-again") / "manifest.json").read_text())
        assert again["device"]["threads"] == 3
    finally:
        torch.set_num_threads(before)


def test_changed_data_is_refused_before_anything_is_written(refused, free_run, text_run, workshop, copied, tmp_path):
    run = copied(free_run)
    data = json.loads((run / "manifest.json").read_text())["data"]
    edit(run, data={**data, "sha256": "0" * 64})
    assert "the data is not what the run was trained on" in refused("reproduce", run)
    run = copied(text_run)
    other = Path(shutil.copytree(workshop / "text", tmp_path / "text"))
    (other / "manifest.json").write_text((other / "manifest.json").read_text() + " ")
    (run / "recipe.toml").write_text((run / "recipe.toml").read_text().replace(str(workshop / "text"), str(other)))
    assert "the data is not what the run was trained on" in refused("reproduce", run)
    shutil.rmtree(other)
    assert refused("reproduce", run).rstrip().endswith("; put it back there")
    assert not list((tmp_path / "copies").glob("*-again"))


def test_what_cannot_be_reproduced(refused, free_run, copied, tmp_path):
    run = copied(free_run)
    assert "needs a folder of its own" in refused("reproduce", run, "-o", f"{run}/../free")
    assert "the run exists" in refused("reproduce", run, "-o", free_run)
    edit(run, init_from=str(tmp_path / "gone"))
    assert str(tmp_path / "gone") in refused("reproduce", run)
    edit(run, status="imported")
    assert "nothing to repeat" in refused("reproduce", run)
    edit(run, status="running")
    with lock_run(run):
        assert "still being trained" in refused("reproduce", run)
    shutil.rmtree(run / "checkpoints")
    assert "no checkpoint" in refused("reproduce", run)
    assert "no such run" in refused("reproduce", tmp_path / "x")


def test_a_run_of_several_processes_is_started_as_it_was(run_cli, free_run, copied, monkeypatch):
    run, calls = copied(free_run), []
    (run / "recipe.toml").write_text((run / "recipe.toml").read_text().replace("processes = 1", "processes = 2"))
    monkeypatch.setattr("freetf_cli.training.elastic.launch", lambda words, count: calls.append((words, count)) or 3)
    assert run_cli("reproduce", run, "-q").code == 3
    assert calls == [(["reproduce", str(run), "-q"], 2)]


def test_parts_of_a_run_that_was_made_longer():
    """A part that was trained again from an earlier step does not count."""
    longer = {"step": 600, "steps_before": 600}
    assert _parts({"resumed": [{"step": 300}, longer, {"step": 700}, {"step": 1200, "steps_before": 1200}]}) == [(600, 600), (1200, 1200)]
    assert _parts({"resumed": [longer, longer]}) == [(600, 600)]
    assert _parts({"resumed": [longer, {"step": 300}]}) == []
    assert _parts({"resumed": [longer, {"step": 300, "steps_before": 600}]}) == [(300, 600)]
    assert _parts({"resumed": [7, {}, {"step": "x"}]}) == _parts({"resumed": 3}) == _parts({}) == []
