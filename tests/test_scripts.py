"""Scripts in scripts/: each runs as its head says, on tiny sizes.

They run in this process, which has imported torch; kernels.py, scaling.py and speed.py start processes of their own scripts.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import runpy
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from freetf_cli.cli.app import main as freetf
from freetf_cli.config.files import load_recipe
from freetf_cli.kernels import mapper
from freetf_cli.runs.plan import plan_run
from freetf_cli.runs.spread import memory_of, spread
from tests.evaluation.probe.planted import small_free

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "scripts"
Run = Callable[..., str]  # of a script's module and its arguments; returns what it prints


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """`script("flags")`: the module of a script."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def called(module: ModuleType, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [str(module.__file__), *map(str, arguments)])
        module.main()
        return capsys.readouterr().out

    return called


SHARED = {"resumable.py", "stored.py", "text_models_table.py"}  # what scripts import; no programs


@pytest.mark.parametrize("path", sorted(path for path in SCRIPTS.glob("*.py") if path.name not in SHARED), ids=lambda path: path.name)
def test_every_script_imports_and_says_how_to_run_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    names = runpy.run_path(str(path))  # not as __main__: defines, and runs nothing
    assert callable(names["main"])
    assert path.name in names["__doc__"] or path.name.endswith("_worker.py")
    assert 'if __name__ == "__main__":\n    main(' in path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def letters_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Free model of two blocks, trained on letters for two steps."""
    folder = tmp_path_factory.mktemp("letters") / "run"
    settings = ["train.steps=2", "eval.samples=0", "eval.sequences=4"]
    options = [word for setting in settings for word in ("--set", setting)]
    assert freetf(["train", "letters-free", "--smoke", "--quiet", "-o", str(folder), "--device", "cpu", *options]) == 0
    return folder


def test_flags_of_a_run(script: Callable[[str], ModuleType], run: Run, letters_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "flags.json"
    run(script("flags"), out, letters_run, "--groups", 20, "--count", 2, "--contexts", 2)
    (row,) = json.loads(out.read_text())
    assert set(row["parts"]) == {"all", "first 2", "first 8", "after 2", "after 8"}
    assert all(0 <= each["share"] <= 1 and each["bits"] >= 0 for each in row["flags"].values())


def test_gradient_bias_of_a_run(
    script: Callable[[str], ModuleType], run: Run, letters_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, module = tmp_path / "bias.json", script("gradient_bias")
    monkeypatch.setattr(module, "PLACES", 6)
    monkeypatch.setattr(module, "DRAWS", 2)
    run(module, letters_run, out, "--sequences", 32)
    rows = json.loads(out.read_text())
    assert rows
    assert all(set(row) == {"sure", "bits", "worth", "paper", "heun"} for row in rows)


@torch.inference_mode()
def test_coins_estimate_sums_over_every_code(script: Callable[[str], ModuleType]) -> None:
    """Against the sum over the codes of the first position in probabilities, where the decoder ignores the Z of the others."""
    module, model = script("coins_estimate"), small_free(bits=2, context=5, vocab=3)
    model.latent.window = 1
    torch.nn.init.zeros_(model.latent.post_sampler.weight)  # then each code of the first position says the same ...
    tokens_BT = torch.tensor([[2, 0, 1, 1, 0], [2, 1, 1, 0, 1]])
    plain_BT2 = module.predicted(model, tokens_BT, torch.zeros(2, 5, dtype=torch.long))
    assert np.allclose(module.summed_out(model, tokens_BT), plain_BT2)
    table_CD = 3 * torch.randn(4, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model.latent.post_sampler.weight.copy_(table_CD)  # ... and now it does not; the others' Z is always code 0
    model.latent.prior = lambda stream, length: np.zeros(length, np.int64)
    given_CBT2 = np.exp([module.predicted(model, tokens_BT, torch.tensor([[code, 0, 0, 0, 0]] * 2)) for code in range(4)])
    for row, tokens_T in enumerate(tokens_BT[:, 1:].tolist()):
        joint_C = np.ones(4)
        for t, toss in enumerate(tokens_T):
            expected = (joint_C[:, None] * given_CBT2[:, row, t]).sum(0) / joint_C.sum()
            assert np.allclose(np.exp(module.summed_out(model, tokens_BT)[row, t]), expected)
            joint_C = joint_C * given_CBT2[:, row, t, toss]


def test_coins_estimate_measures_errors(script: Callable[[str], ModuleType]) -> None:
    exact_BT, model_BT = np.array([[0.5, 0.9], [0.5, 0.1]]), np.array([[0.6, 0.9], [0.2, 0.3]])
    found = script("coins_estimate").errors(np.log(np.stack([1 - model_BT, model_BT], 2)), exact_BT)
    assert found["error"] == pytest.approx([0.2, 0.1], abs=1e-6)
    pairs = zip(exact_BT.ravel().tolist(), model_BT.ravel().tolist(), strict=True)
    kl = np.array([q * math.log2(q / p) + (1 - q) * math.log2((1 - q) / (1 - p)) for q, p in pairs])
    assert found["kl"] == pytest.approx(kl.reshape(2, 2).mean(0), abs=1e-6)


def test_float8_error_of_a_step(script: Callable[[str], ModuleType], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "error.json"
    monkeypatch.setattr(mapper, "logit_gradient_in_chunks", mapper.logit_gradient_in_chunks)  # the script replaces it
    run(script("float8_error"), out, "demo-free", "train.batch=4", "--steps", 1)
    (row,) = json.loads(out.read_text())["rows"]
    assert 0.005 < row["all"] < 0.1


def test_hflm_gives_the_same_log_likelihoods(
    script: Callable[[str], ModuleType], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model of freetf and its exported weights in lm-eval's HFLM; with the weights of another seed they would differ."""
    pytest.importorskip("lm_eval.models.huggingface")
    from tests.evaluation.benchmarks.data import write_all

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    settings = [word for each in ("train.steps=2", "eval.samples=0", "eval.sequences=4") for word in ("--set", each)]
    trained, out = tmp_path / "run", tmp_path / "hflm.json"
    assert freetf(["train", "text-mini-baseline", "--smoke", "--quiet", "-o", str(trained), "--device", "cpu", *settings]) == 0
    printed = run(script("hflm"), trained, write_all(tmp_path / "data"), out, "--tasks", "openbookqa", "lambada", "--limit", 2)
    first, second = json.loads(out.read_text())["rows"]
    assert first["difference"] < 1e-3 < first["without_separator"] and second["difference"] < 1e-3
    assert first["equal"] == {"acc": 2, "acc_char": 2, "acc_completion": 2} and (first["items"], first["answers"]) == (2, 4)
    assert "`openbookqa`" in printed


@pytest.mark.slow
def test_speed_compares_two_trees_and_resumes(script: Callable[[str], ModuleType], run: Run, tmp_path: Path) -> None:
    """A tree compared with itself gives the same losses; a second call measures nothing again."""
    out, module = tmp_path / "speed.json", script("speed")
    words = (out, "--old", ROOT, "--smoke", "--only", "whole loop")
    printed = run(module, *words)
    rows = json.loads(out.read_text())["rows"]
    assert [row["work"] for row in rows] == ["loop"]
    for row in rows:
        assert row["name"] in printed
        assert row["ratio"] > 0
        assert row["old"]["check"] == row["new"]["check"]
        assert len(row["old"]["rounds_ms"]) == len(row["new"]["rounds_ms"]) == 2
    assert run(module, *words) == printed
    assert json.loads(out.read_text())["rows"] == rows


@pytest.mark.slow
def test_peers_names_what_is_missing_and_what_fails(
    script: Callable[[str], ModuleType], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No package is installed, and the clone is not nanoGPT: freetf alone is measured. A second call measures it no more than it can."""
    module, out, clone = script("peers"), tmp_path / "peers.json", tmp_path / "clone"
    clone.mkdir()
    (clone / "model.py").write_text("")

    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(module.metadata, "version", absent)
    printed = run(module, out, "--smoke", "--only", "step, 124M", "--nanogpt", clone)
    found = json.loads(out.read_text())
    (row,) = found["rows"]
    assert set(row["ways"]) == {"freetf", "nanoGPT"} and row["ways"]["freetf"]["tokens"] == 2 * 32
    assert len(row["ways"]["freetf"]["rounds_ms"]) == 2 and "GPTConfig" in row["ways"]["nanoGPT"]["error"]
    for name in ("litgpt", "transformers", "x-transformers"):
        assert f"- {name}: skipped, not installed: pip install 'freetf[peers]'" in printed.splitlines()
    assert "- gpt-fast: skipped, no --gpt-fast DIR: git clone https://github.com/meta-pytorch/gpt-fast" in printed
    assert "- step, 124M, 16 × 1,024: nanoGPT failed: AttributeError" in printed and "| step, 124M, 16 × 1,024: freetf |" in printed
    monkeypatch.setattr(module, "measure", lambda *_: pytest.fail("every way that is there has been measured"))
    run(module, out, "--smoke", "--only", "step, 124M")
    assert json.loads(out.read_text())["rows"] == [row]
    with pytest.raises(SystemExit, match="2"):
        run(module, out)


def test_peers_compares_rounds_with_freetf_and_with_the_baseline(script: Callable[[str], ModuleType]) -> None:
    """Ratios are of the same round, and only of what was measured."""
    module = script("peers")
    row = module.Row("r", "step", "letters", tuple(module.Way(peer, 1, free) for peer in ("freetf", "other") for free in (False, True)))
    rounds = {"freetf": [1.0, 2.0, 4.0], "freetf, Free": [2.0, 2.0, 5.0], "other": [3.0, 2.0, 4.0], "other, Free": [6.0, 3.0, 20.0]}
    found = {name: {"rounds_ms": times} for name, times in rounds.items()}
    module.compare(row, found)
    assert found["freetf"] == {"rounds_ms": rounds["freetf"]}
    assert found["freetf, Free"]["to_baseline"] == {"median": 1.25, "least": 1.0, "most": 2.0}
    assert "to_freetf" not in found["freetf, Free"] and "to_baseline" not in found["other"]
    assert found["other"]["to_freetf"] == {"median": 1.0, "least": 1.0, "most": 3.0}
    assert found["other, Free"]["to_freetf"] == {"median": 3.0, "least": 1.5, "most": 4.0}
    assert found["other, Free"]["to_baseline"] == {"median": 2.0, "least": 1.5, "most": 5.0}
    failed = {"freetf": {"error": "no"}, "other": {"rounds_ms": [1.0]}}
    module.compare(row, failed)
    assert failed == {"freetf": {"error": "no"}, "other": {"rounds_ms": [1.0]}}


def test_peers_runs_one_process_at_a_time_where_memory_is_short(
    script: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ways that fit together take turns; others are started twice each. A peer's step out of memory is split; a failed one has no times."""
    module, started = script("peers"), []

    class Worker:
        def __init__(self, name: str, task: dict[str, object], *_: object) -> None:
            self.task = task
            started.append((task["peer"], task["parts"]))

        def has_answer(self) -> bool:
            return True

        def read(self) -> dict[str, float]:
            if self.task["peer"] == "litgpt" and self.task["parts"] == 1:
                raise module.WorkerError("torch.OutOfMemoryError: CUDA out of memory")
            return {"warm_up": 1.0}

        def ask(self, command: str) -> dict[str, object]:
            if command == "end" and self.task["peer"] == "transformers":
                raise module.WorkerError("it died")
            return {"seconds": 0.25} if command.startswith("run") else {"allocated_gib": 1.0, "check": {"differs": ["x"]}}

        def close(self) -> None:
            pass

    monkeypatch.setattr(module, "Worker", Worker)
    options = module.Options(False, tmp_path, {}, 4, 0.5, 10)
    ways = (module.Way("freetf", 100), module.Way("litgpt", 20), module.Way("transformers", 1))
    found = module.measure(module.Row("r", "step", "letters", ways), ways, options)
    assert started == [("freetf", 1), ("litgpt", 1), ("transformers", 1), ("litgpt", 2)]
    assert found["transformers"] == {"error": "it died"}
    assert found["litgpt"]["rounds_ms"] == [250.0] * 4 and found["litgpt"]["calls_per_round"] == 2 and found["freetf"]["together"]
    assert found["litgpt"]["differs"] == ["x", "2 parts of a batch, because it ran out of memory"] and found["freetf"]["differs"] == ["x"]
    started.clear()
    ways = (module.Way("freetf", 100), module.Way("litgpt", 100))
    found = module.measure(module.Row("r", "step", "letters", ways), ways, options)
    assert started == [("freetf", 1), ("litgpt", 1), ("litgpt", 2)] * 2
    assert found["litgpt"]["rounds_ms"] == [250.0] * 4 and not found["litgpt"]["together"]


def test_peers_table(script: Callable[[str], ModuleType]) -> None:
    ratio = {"median": 1.5, "least": 1.25, "most": 2.0}
    ours = {"median_ms": 12.345, "least_ms": 12.0, "most_ms": 13.0, "tokens": 1000, "flops": 6.1725e9, "allocated_gib": 0.0}
    other = {"median_ms": 1234.5, "least_ms": 1000.0, "most_ms": 2000.0, "tokens": 2469, "allocated_gib": 3.25, "differs": ["a", "b"]}
    found = {
        "smoke": False,
        "machine": {"ceiling": 1e12, "bandwidth": 1e9},
        "peers": {"litgpt": {"version": "0.5"}, "nanogpt": {"commit": "abc"}, "gpt-fast": {"skipped": "no --gpt-fast DIR"}},
        "rows": [
            {"name": "step", "sequences": 1, "ways": {"freetf": ours, "litgpt": other | {"to_freetf": ratio}, "nanoGPT": {"error": "no"}}},
            {"name": "again", "sequences": 1, "ways": {"freetf, Free": ours | {"to_baseline": ratio}, "litgpt": other}},
        ],
    }
    lines = list(script("peers").table(found))
    assert lines[2:4] == [
        "| step: freetf | 12.35 (12.00 to 13.00) | 81,004 | 50.0% |  |  |  |",
        "| step: litgpt | 1,234.5 (1,000.0 to 2,000.0) | 2,000 |  | 1.500 (1.250 to 2.000) |  | 3.2 |",
    ]
    assert lines[4] == "| again: freetf, Free | 12.35 (12.00 to 13.00) | 81,004 | 50.0% |  | 1.500 (1.250 to 2.000) |  |"
    assert lines[6:] == [
        "",
        "- litgpt: version 0.5",
        "- nanoGPT: commit abc",
        "- gpt-fast: skipped, no --gpt-fast DIR",
        "- litgpt, unlike freetf: a; b",
        "- step: nanoGPT failed: no",
    ]


def test_peers_have_the_shape_of_the_recipe(script: Callable[[str], ModuleType]) -> None:
    """transformers' Llama has as many parameters as freetf's baseline; its loss is that of guessing, and a step lowers it."""
    pytest.importorskip("transformers")
    module, worker = script("peers"), script("peers_worker")
    row = next(row for row in module.rows(True) if row.name.startswith("step, 1.5B"))
    way = next(way for way in row.ways if way.peer == "transformers")
    torch.manual_seed(0)
    recipe = worker.complete_recipe(row.task(way))
    _, ours = worker.step(row.task(module.Way("freetf", 1)))
    losses = []
    for parts in (1, 2):
        torch.manual_seed(0)
        work, facts = worker.peer_step(worker.MODELS["transformers"](recipe, {}), recipe, parts)
        work()
        first = facts()
        work()
        losses.append((first["loss"], facts()["loss"]))
        assert (first["parameters"], first["tokens"]) == (ours()["parameters"], ours()["tokens"])
        assert first["loss"] == pytest.approx(math.log(64), abs=0.3) and facts()["loss"] < first["loss"]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)  # bf16


@pytest.mark.parametrize("work", ["step", "loop", "sample"])
def test_speed_measures_the_same_work_each_time(script: Callable[[str], ModuleType], tmp_path: Path, work: str) -> None:
    (setting,) = (asdict(each) for each in script("speed").SMOKE if each.work == work)
    worker, checks = script("speed_worker"), []
    for _ in range(2):
        torch.manual_seed(0)
        call, check = worker.WORKS[work](setting | {"smoke": True, "scratch": str(tmp_path)})
        assert worker.timed(call, 2) > 0
        checks.append(check())
    assert checks[0] == checks[1]


@pytest.mark.slow
def test_kernels_are_compared_with_pytorchs(
    script: Callable[[str], ModuleType], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every way of every case agrees with float64, or says why it is absent. As a program each case has its own process; here one has."""
    out, module = tmp_path / "kernels.json", script("kernels")
    apart = module.apart

    def only_embedding_apart(name: str, *, smoke: bool) -> object:
        if name.startswith("embedding"):
            return apart(name, smoke=smoke)
        return module.measure(next(case for case in module.all_cases(smoke) if case.name == name))

    monkeypatch.setattr(module, "apart", only_embedding_apart)
    printed = run(module, out, "--smoke")
    rows = json.loads(out.read_text())["rows"]
    assert len(rows) >= 7
    for row in rows:
        assert row["case"] in printed
        for name, way in row["ways"].items():
            if "absent" in way:
                assert "CUDA" in way["absent"] or "CPU" in way["absent"] or "torch" in way["absent"], way
            elif "another result" not in name:
                assert max(way["output_error"], way["gradient_error"]) < 0.01
                assert way["median_ms"] > 0


linux = pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")


@linux
@pytest.mark.slow
def test_scaling_measures_every_case_once(
    script: Callable[[str], ModuleType], run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Several processes share a model; one is killed, and the run resumed bit for bit. Single ones are measured in this one."""
    module, worker, out, rows = script("scaling"), script("scaling_worker"), tmp_path / "out.json", []
    for case in module.SMOKE[:2]:
        assert case.processes == 1
        worker.main(asdict(case) | {"warm_up": 1, "device": "cpu", "folder": str(tmp_path)})
        rows.append(asdict(case) | json.loads(capsys.readouterr().out.splitlines()[-1]))
    out.write_text(json.dumps({"rows": rows}))
    printed = run(module, out, "--smoke", "--minutes", 8)
    found = {row["name"]: row for row in json.loads(out.read_text())["rows"]}
    assert list(found.values())[:2] == rows and list(found) == [case.name for case in module.SMOKE], printed
    assert "\nleft: nothing\n" in printed and not module.processes()
    shared, resumed = list(found.values())[2:]
    assert len(shared["ceilings"]) == shared["processes"] == 4 and shared["saved"]["done"] and min(shared["links"].values()) > 0
    assert resumed["alive"] == 0 and resumed["exit_code"] == 1 and resumed["stopped_s"] < module.STOP
    assert resumed["errors"] == ["freetf: error: process 1 of 2 was ended by SIGKILL; resume with the same command and --resume auto"]
    assert resumed["equal"] and [row["step"] for row in resumed["second"]] == [4, 5, 6]
    assert len({row["ce"] for row in resumed["second"]}) == 3
    assert sum("/shard-0000" in name for name in resumed["files"]) == 4  # of two processes, the model's and the optimizer's
    lines = [line for line in printed.splitlines() if line.startswith("| 8b") and line.endswith((" yes |", " no |"))]
    for goal in ("≥ 60 %", "≤ 1.035", "≥ 95 %", "≤ 60 s", "equal bit for bit"):
        assert any(f" {goal}" in line for line in lines), goal
    assert run(module, out, "--smoke") == printed


def test_scaling_kills_a_process_after_the_saved_step(script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    """Real processes are killed, in the same way, before they are resumed: in the test above."""
    module, waited = script("scaling"), []
    made = SimpleNamespace(records=lambda: dict.fromkeys(range(1, 1 + len(waited))))

    def until(happened: Callable[[], bool], limit: float, what: str) -> None:
        while not happened():
            waited.append(what)

    made.until = until
    monkeypatch.setattr(module.Run, "start", lambda case, scratch, name, settings: made)
    monkeypatch.setattr(module, "kill_one", lambda run, limit: {"stopped_s": limit, "of": run})
    case = next(case for case in module.CASES if case.work == "killed")
    assert module.WORKS["killed"](case, None, 9.0) == {"stopped_s": 9.0, "of": made}
    assert waited == [f"step {module.SAVED}"] * module.SAVED


@linux
def test_scaling_leaves_no_processes_behind(script: Callable[[str], ModuleType], run: Run, tmp_path: Path) -> None:
    """A case that takes too long is ended, and measured again by the next call."""
    module, out = script("scaling"), tmp_path / "out.json"
    begun = time.monotonic()
    printed = run(module, out, "--smoke", "--only", "hsdp", "--minutes", 0.02)
    assert time.monotonic() - begun < 60 and not module.processes()
    (row,) = json.loads(out.read_text())["rows"]
    assert row["error"].startswith("not in time") and f"left: {row['name']}: failed: not in time: the last step\n" in printed


@linux
@pytest.mark.slow
def test_scaling_says_why_a_process_failed(script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    module = script("scaling")
    case = replace(module.SMOKE[0], overrides=("model.layers=0",))
    with module.Scratch(0) as scratch:
        row = module.measured(case, scratch, 60)
    assert row["error"].startswith("the processes ended before the last step\n") and "model.layers" in row["error"]


def test_scaling_skips_what_does_not_fit(
    script: Callable[[str], ModuleType], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cases that need more GPUs, or more time than is left, are listed; the others are done in order."""
    module, asked = script("scaling"), []
    monkeypatch.setattr(module, "count_gpus", lambda: 2)
    monkeypatch.setattr(module, "measured", lambda case, *_: asked.append(case.name) or {"error": "nothing"})
    printed = run(module, tmp_path / "out.json", "--minutes", 2)
    assert "left: 8b free, 8, fsdp: needs 8 GPUs, and there are 2\n" in printed
    assert "left: 1.5b free, 2, fsdp, resumed: needs 240 s\n" in printed
    assert asked == [case.name for case in module.CASES if case.processes <= 2 and case.seconds < 120]
    assert len({case.name for case in module.CASES}) == len(module.CASES) and max(case.seconds for case in module.CASES) < 8.5 * 60


def test_scaling_takes_the_plan_of_a_dry_run(script: Callable[[str], ModuleType]) -> None:
    """Every case has a valid recipe, and what the worker calls planned memory is what `--dry-run --gpus N` prints, and fits."""
    for case in script("scaling").CASES:
        settings = [*case.overrides, f"train.batch={case.processes * case.rows}", f"parallel.processes={case.processes}"]
        recipe = load_recipe(case.recipe, overrides=settings)
        if not case.goals or case.work != "steps":
            continue
        plan = plan_run(recipe, "", True, "cuda")
        (row,) = (
            row
            for row in spread(recipe, plan, case.processes).rows
            if row.mode == recipe.parallel.engine and row.reshard_after_forward == recipe.parallel.reshard_after_forward
            if not row.cpu_offload
        )
        assert row.fits and row.grad_accum_steps == 1 and row.memory == memory_of(recipe, plan), case.name


def test_scaling_compares_with_the_goals(script: Callable[[str], ModuleType]) -> None:
    """Values on both sides of each goal, by hand."""
    module = script("scaling")
    made = {"work": "steps", "rows": 2, "goals": True, "ceilings": [7e14, 9e14], "median_ms": 9.0, "planned_gib": 100.0}

    def steps(name: str, processes: int, took: float, peak: float) -> dict[str, Any]:
        rates = {"ms": took, "tokens_per_second_and_gpu": 1e5 / took, "flops_per_second_and_gpu": 4e16 / took}
        return made | rates | {"name": name, "processes": processes, "peak_gib": peak}

    rows = [
        steps("8b free, 8, fsdp", 8, 103.6, 105.1),
        steps("8b baseline, 8, fsdp", 8, 100.0, 95.1),
        steps("8b free, 1", 1, 83.0, 100.0),
    ]
    ended = {"work": "killed", "goals": True, "processes": 8, "exit_code": 1, "alive": 0, "stopped_s": 9.0}
    message = "freetf: error: process 1 of 8 was ended by SIGKILL"
    rows += [ended | {"name": "killed", "errors": errors} for errors in ([message], [message, message], [])]
    rows += [ended | {"name": "slow", "errors": [message], "stopped_s": 61.0}, ended | {"name": "left", "errors": [message], "alive": 1}]
    lines = [line.strip("| ").split(" | ") for line in module.tables(rows) if line.endswith((" yes |", " no |"))]
    assert [(what.removeprefix("8b "), value, reached) for what, value, _, reached in lines if ":" in what and "killed" not in what] == [
        ("free, 8, fsdp: share of the ceiling", "48.3 % of 800 TFLOP/s", "no"),
        ("free, 8, fsdp: time of a step, Free / baseline", "1.036", "no"),
        ("free, 8, fsdp: memory against the plan", "+5.1 %", "no"),
        ("free, 8, fsdp: tokens/s and GPU, against one GPU", "80.1 %, 6.41 times as fast", "no"),
        ("baseline, 8, fsdp: share of the ceiling", "50.0 % of 800 TFLOP/s", "no"),
        ("baseline, 8, fsdp: memory against the plan", "-4.9 %", "yes"),
        ("free, 1: share of the ceiling", "60.2 % of 800 TFLOP/s", "yes"),
        ("free, 1: memory against the plan", "+0.0 %", "yes"),
    ]
    assert [reached for what, _, _, reached in lines if "is killed" in what] == ["yes", "no", "no", "no", "no"]
    assert module.scaling(rows[0] | {"rows": 4}, {row["name"]: row for row in rows}) is None  # one GPU had other batches


def test_open_ended_plans_every_arm_and_stops_at_the_deadline(
    script: Callable[[str], ModuleType], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """All arms of a seed come before the next seed; a worker that runs too long is asked to end; one that fails is named."""
    module = script("open_ended")
    options = SimpleNamespace(recipes=["lines", "countdown"], seeds="0..1", set=[], runs=tmp_path, smoke=True, device="cpu", rows=5)
    jobs = module.plan(options)
    assert [folder.name for folder, _ in jobs[:2]] == ["lines-baseline-s0", "lines-block-s0"]
    assert len({folder for folder, _ in jobs}) == len(jobs) == 2 * (9 + 6) and all(folder.name.endswith("-s0") for folder, _ in jobs[:15])
    ended = "import signal, sys, time; signal.signal(15, lambda *a: sys.exit(75)); print('on', flush=True); time.sleep(60)"
    words = {"done": "print('done')", "failed": "raise SystemExit(3)", "long": ended, "late": "print('late')"}
    started = time.monotonic()
    script("resumable").work([(tmp_path / name, [sys.executable, "-c", code]) for name, code in words.items()], 3, started + 2)
    assert time.monotonic() - started < 30
    assert (tmp_path / "done.log").read_text() == "done\n" and (tmp_path / "long.log").read_text() == "on\n"
    assert capfd.readouterr().err == f"exit code 3: {tmp_path / 'failed.log'}\n"


def test_open_ended_averages_seeds_at_three_checkpoints(script: Callable[[str], ModuleType]) -> None:
    def run(costs: list[float], values: list[float]) -> dict[str, object]:
        rows = []
        for step, (cost, value) in enumerate(zip(costs, values, strict=True), 1):
            measures = {
                name: {"measured": {"value": value}, "perfect": 1.0} for name in ("creativity", "coherence", "memorised", "distinct")
            }
            rows.append({"recipe": "lines/free", "temperature": 0.5, "step": step, "held_out": {"ce": cost, "kl": 0.1}, **measures})
        return script("open_ended").compact(rows)

    runs = {"lines-free-s0": run([2.0, 1.0, 3.0], [0.1, 0.7, 0.6]), "lines-free-s1": run([1.0, 2.0, 3.0], [0.4, 0.8, 0.6])}
    assert runs["lines-free-s0"]["rows"][0] == [1, 0.5, 2.0, 0.1, 0.1, 0.1, 0.1, 0.1]
    (line,) = script("open_ended").table(runs)
    assert line.startswith("lines-free, T = 0.5, 2 seeds: lowest cost (step 2/1) creativity 0.550 [")
    assert "; highest (step 2) creativity 0.750 [" in line and "; last creativity 0.600 [0.600, 0.600]" in line


def test_open_ended_tells_passes_of_one_seed(script: Callable[[str], ModuleType]) -> None:
    passed = [{"k": k, "share": {"value": value}} for k, value in ((1, 0.2), (8, 0.5), (64, 0.9))]
    row = {"recipe": "countdown/3-free", "temperature": 0.0, "step": 9, "held_out": {"ce": 1.0}, "passed": passed}
    (line,) = script("open_ended").table({"countdown-3-free-s0": script("open_ended").compact([row])})
    means = "pass@1 0.200, pass@64 0.900"
    assert line == f"countdown-3-free, T = 0, 1 seeds: lowest cost (step 9) {means}; highest (step 9) {means}; last {means}"


def test_open_ended_keeps_the_runs_of_an_earlier_file(
    script: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What OUT.json has is not run again, whether or not its folder is there."""
    module, out, asked = script("open_ended"), tmp_path / "out.json", []
    runs = {
        "lines-free-s0": {
            "recipe": "lines/free",
            "columns": ["step", "temperature", "ce", "kl", "pass@1"],
            "rows": [[1, 0.0, 1.5, None, 0.5]],
        }
    }
    out.write_text(module.written(runs))
    monkeypatch.setattr(script("resumable"), "work", lambda jobs, *_: asked.extend(folder.name for folder, _ in jobs))
    monkeypatch.setattr(sys, "argv", ["open_ended.py", str(out), "--runs", str(tmp_path / "runs"), "lines/free", "--seeds", "0..1"])
    module.main()
    assert asked == ["lines-free-s1"] and json.loads(out.read_text()) == {"runs": runs}
    assert capsys.readouterr().out.splitlines()[-1] == f"1 runs in {out}; not finished: 1"


def test_open_ended_figure_marks_the_lowest_cost(script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    """A curve for each arm of each task; steps without a held-out cost, those of interruptions, are left out."""
    module, source, target = script("open_ended_figure"), tmp_path / "in.json", tmp_path / "out.svg"
    columns = ["step", "temperature", "ce", "kl", "creativity"]
    rows = [[step, heat, cost, None, 0.1 * step] for step, cost in ((1, 2.0), (2, 1.0), (3, None)) for heat in (0.0, 0.5)]
    source.write_text(json.dumps({"runs": {"lines-free-s0": {"recipe": "lines/free", "columns": columns, "rows": rows}}}))
    assert module.curve({"columns": columns, "rows": rows}, 0.5) == {1: (0.1, 2.0), 2: (0.2, 1.0)}
    module.main(str(source), str(target))
    picture = target.read_text()
    assert "Free, κ = 1" in picture and "random prefix" not in picture and "lines, temperature 1/2" in picture


def test_questions_figure_takes_the_lowest_cost(script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    """A line for each seed of path-star and the curve of a guess; one mean for countdown."""
    module, source, target = script("questions_figure"), tmp_path / "in.json", tmp_path / "out.svg"
    columns = ["step", "temperature", "ce", "kl", "pass@1", "pass@2"]
    steps = ((1, 2.0), (2, 1.0), (3, None))
    rows = [[step, heat, cost, None, 0.1 * step, 0.2 * step] for step, cost in steps for heat in (0.0, 0.5, 1.0)]
    names = {"path-star-2x5-free": "path-star/2x5-free", "countdown-3-baseline": "countdown/3-baseline"}
    runs = {f"{name}-s{seed}": {"recipe": recipe, "columns": columns, "rows": rows} for name, recipe in names.items() for seed in (0, 1)}
    source.write_text(json.dumps({"runs": runs}))
    assert module.curve({"columns": columns, "rows": rows}, 0.0) == {1: 0.2, 2: 0.4}
    star, countdown = Figure().subplots(1, 2)
    assert set(module.chart(star, runs, "path-star/2x5", 2)) == {"Free, T = 0", "Free, T = 1", module.GUESS} and len(star.lines) == 5
    assert len(module.chart(countdown, runs, "countdown/3", None)) == len(countdown.lines) == 3
    module.main(str(source), str(target))
    picture = target.read_text()
    assert "Free, T = 0" in picture and "countdown, 4 numbers" in picture


@pytest.mark.slow
def test_open_ended_worker_trains_measures_and_prunes(
    script: Callable[[str], ModuleType], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every checkpoint at every temperature; the best and the last are kept; a second call measures nothing again."""
    worker, folder = script("open_ended_worker"), tmp_path / "run"
    monkeypatch.setattr(worker, "TEMPERATURES", (0.0, 1.0))
    settings = "train.steps=3 train.warmup=1 train.keep_every=1 eval.every=1 eval.samples=0 eval.sequences=4 latent.bits=4"
    options = [word for setting in settings.split() for word in ("--set", setting)]
    words = ("--rows", 20, "siblings/free", folder, "--smoke", "--device", "cpu", *options)
    run(worker, *words)
    rows = json.loads((folder / "measured.json").read_text())
    assert [(row["step"], row["temperature"]) for row in rows] == [(step, heat) for step in (1, 2, 3) for heat in (0.0, 1.0)]
    assert all(row["recipe"] == "siblings/free" and row["held_out"]["ce"] > 0 and row["held_out"]["kl"] > 0 for row in rows)
    assert all(0 <= row["creativity"]["measured"]["value"] <= 1 and row["sequences"] == 20 for row in rows)
    best = min(rows, key=lambda row: sum(row["held_out"].values()))["step"]
    assert {one.name for one in (folder / "checkpoints").iterdir()} == {f"step-{best:06d}", "step-000003"}
    before = (folder / "measured.jsonl").read_bytes()
    run(worker, *words)
    assert (folder / "measured.jsonl").read_bytes() == before


def measured(recipe: str, excess: float, position: float | None, fault: str = "") -> dict[str, object]:
    information = {} if position is None else {"position": {"value": position, "low": 0, "high": 9}}
    valid = None if position is None else {"value": 0.5, "low": 0, "high": 1}
    costs = {"parameters": 2_000_000, "ms_per_step": 3.0, "ce": 20.0, "kl": 8.0, "excess": excess}
    return {"recipe": recipe, **costs, "information": information, "valid": valid, "fault": fault}


def test_latents_averages_seeds_and_says_what_is_not_measured(script: Callable[[str], ModuleType]) -> None:
    runs = {"a-s0": measured("latents/binary", 1.0, 2.0, "Z is unused"), "a-s1": measured("latents/binary", 2.0, 3.0)}
    runs["b-s0"] = measured("latents/gaussian", 4.0, None)  # what probe-latent refused
    head, binary, gaussian, missing = script("latents").table(runs, ["latents/binary", "latents/gaussian", "latents/order-1"])
    half = 12.706 * 0.5**0.5 / 2**0.5
    assert binary[:4] == ["binary", "2.00", "3.0", f"2.50 [{2.5 - half:.2f}, {2.5 + half:.2f}]"] and binary[5] == "50.0"
    assert binary[-2:] == [f"1.50 [{1.5 - half:.2f}, {1.5 + half:.2f}]", "1 of 2"]
    assert gaussian[3:6] == ["–"] * 3 and gaussian[6:] == ["20.00", "8.00", "4.00", "0 of 1"]
    assert missing == ["order-1", "not measured yet", *[""] * 8] and len(head) == len(missing)


@pytest.mark.slow
def test_latents_trains_measures_and_resumes(script: Callable[[str], ModuleType], run: Run, tmp_path: Path) -> None:
    """A latent of a tiny model, with a process of its own; a second call runs nothing and prints Markdown."""
    out, module = tmp_path / "out.json", script("latents")
    settings = "train.steps=4 train.warmup=1 train.log_every=1 eval.samples=0 eval.sequences=24"
    words: tuple[object, ...] = (out, "--runs", tmp_path / "runs", "latents-mini/lagging", "--seeds", "0", "--smoke", "--device", "cpu")
    words += ("--at-once", 1, *(word for setting in settings.split() for word in ("--set", setting)))
    sizes = ("--sequences", 100, "--groups", 24, "--count", 4)
    assert run(module, *words, *sizes).endswith(f"1 runs in {out}; not finished: 0\n")
    name, found = next(iter(json.loads(out.read_text())["runs"].items()))
    assert name.startswith("latents-mini-lagging-steps4-") and name.endswith("-s0")
    assert found["step"] == 4 and found["ms_per_step"] > 0 and found["refused"] == "" and found["lagged_until"] is None
    assert found["excess"] == pytest.approx(found["ce"] + found["kl"] - 9.1, abs=0.1)  # entropy of position and noise
    assert set(found["information"]) == {"letter", "position", "noise"}
    assert 0 <= found["valid"]["value"] <= 1
    before = out.read_bytes()
    lines = run(module, *words, "--markdown").splitlines()
    assert out.read_bytes() == before and len(lines) == 3 and lines[1] == "|" + 10 * "---|" and lines[2].startswith("| lagging | ")


@pytest.mark.parametrize(
    ("content", "smoke", "told"),
    [
        ('{"runs": {', False, "is damaged"),
        ("[]", False, "is damaged"),
        ('{"runs": {"a-s0": {"smoke": true}}}', False, "has smoke runs, such as a-s0"),
        ('{"runs": {"a-s0": {}}}', True, "has runs at full size, such as a-s0"),
    ],
)
def test_resumed_scripts_refuse_a_file_that_they_cannot_go_on_with(
    script: Callable[[str], ModuleType], tmp_path: Path, content: str, smoke: bool, told: str
) -> None:
    out = tmp_path / "out.json"
    assert script("resumable").known(out, smoke) == {}
    out.write_text(content)
    with pytest.raises(SystemExit, match=told):
        script("resumable").known(out, smoke)


UNSOUND = {
    "cut off": b'{"rows": [',
    "a list": b"[]",
    "an empty row": b'{"rows": [{"name": "8b free, 1"}]}',
    "another script's": (ROOT / "docs" / "results" / "kernels-h200.json").read_bytes(),
    "no text": b"\xff",
}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(pytest.param(name, content, id=f"{name}, {what}") for name in ("peers", "scaling", "speed") for what, content in UNSOUND.items()),
        pytest.param("peers", b'{"smoke": true, "peers": {}, "rows": []}', id="peers, no machine"),
    ],
)
def test_scripts_refuse_a_file_that_they_cannot_add_to(
    script: Callable[[str], ModuleType], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes
) -> None:
    """One line, before anything is measured; the file stays as it was."""
    module, out = script(name), tmp_path / "out.json"
    for next_step in {"count_gpus", "peers", "Schedule", "Scratch"} & vars(module).keys():
        monkeypatch.setattr(module, next_step, lambda *_: pytest.fail("it goes on"))
    out.write_bytes(content)
    with pytest.raises(SystemExit, match=f"^error: {out} is damaged, or is not a result of this script; move it away, or name another"):
        run(module, out, "--smoke", *(["--old", ROOT] if name == "speed" else []))
    assert out.read_bytes() == content


def test_an_interrupted_script_ends_its_workers(script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    """SIGTERM to the script: the worker is asked to end, too, and nothing of it is left."""
    scripts = Path(str(script("resumable").__file__)).parent
    worker = "import os, signal, sys, time; signal.signal(15, lambda *a: sys.exit(75)); print(os.getpid(), flush=True); time.sleep(60)"
    code = (
        f"import sys, time, pathlib; sys.path.insert(0, {str(scripts)!r}); import resumable;"
        f"resumable.work([(pathlib.Path({str(tmp_path / 'a')!r}), [sys.executable, '-c', {worker!r}])], 1, time.monotonic() + 60)"
    )
    running, log = subprocess.Popen([sys.executable, "-c", code]), tmp_path / "a.log"
    until = time.monotonic() + 30
    while not (log.exists() and log.read_text().strip()) and time.monotonic() < until:
        time.sleep(0.1)
    running.terminate()
    assert running.wait(30) == 128 + 15
    with pytest.raises(ProcessLookupError):
        os.kill(int(log.read_text()), 0)
