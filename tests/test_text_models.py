"""scripts/text_models.py: what is planned, skipped and measured again, the table, and a worker on tiny sizes."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from freetf_cli.data.prepare import prepare_text
from freetf_cli.runs.checkpoint import checkpoint_folders
from tests.evaluation.benchmarks.data import write_all

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
WANTED = ["likelihood", "by_label", "persistence", "lambada"]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module


def estimate(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 1, "high": value + 1}


def cost(nats: float) -> dict[str, float]:
    return {"nats_per_token": nats, "low": nats - 0.1, "high": nats + 0.1, "bits_per_byte": nats / 2}


def records(recipe: str, seed: int, nll: float, **more: Any) -> dict[str, Any]:
    """What a worker writes of a run: a baseline, or a Free model whose training warned that Z is unused."""
    free = not recipe.endswith(("baseline", "softmax"))
    rest = (
        {"ce_posterior": cost(nll - 0.5), "kl": cost(0.7), "ce_prior": cost(nll + 1)}
        if free
        else dict.fromkeys(("ce_posterior", "kl", "ce_prior"))
    )
    bound = [{"samples": 512, "nll": cost(nll)}] if free else []
    facts = {"recipe": recipe, "step": 9, "kind": "free" if free else "baseline", "seed": seed, "settings": [], "wanted": WANTED}
    likelihood = {"sequences": 512, "tokens": 5120, "proposal": "posterior", "nll": cost(nll), "elbo": cost(nll), "bound": bound, **rest}
    return {"facts": facts | {"fault": "Z is unused: a random Z" if free else ""}, "likelihood": likelihood, **more}


def write(folder: Path, found: dict[str, Any], checkpoint: bool = True) -> None:
    (folder / "measured").mkdir(parents=True)
    for name, one in found.items():
        (folder / f"measured/{name}.json").write_text(json.dumps(one))
    if checkpoint:
        (folder / "checkpoints/step-000009").mkdir(parents=True)


def test_a_run_starts_from_the_one_of_the_same_seed_and_settings(script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    module = script("text_models")
    planned = script("resumable").plan_sweep
    (long,) = planned("text-attention-long/differential", ["train.batch=4"], [2])
    (again,) = planned("text-attention-retrofit/random", [], [1])
    assert module.start(long, tmp_path) == ("--init-from", str(tmp_path / "text-attention-differential-batch4-s2"))
    assert module.start(again, tmp_path) == ("--init-from", str(tmp_path / "text-attention-softmax-s1"))
    assert module.start(planned("text-50m/kappa-1", [], [0])[0], tmp_path) == ()


def called(module: ModuleType, monkeypatch: pytest.MonkeyPatch, *words: object) -> list[str]:
    """Run the script without its workers. Returns the names of the runs that it would have started."""
    started: list[str] = []
    monkeypatch.setattr(module, "work", lambda jobs, *_: started.extend(folder.name for folder, _ in jobs))
    monkeypatch.setattr(sys, "argv", ["text_models.py", *map(str, words)])
    module.main()
    return started


def test_a_call_goes_on_with_what_is_missing_where_the_folder_is(
    script: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, out, runs = script("text_models"), tmp_path / "out.json", tmp_path / "runs"
    words = (out, "--runs", runs, "text-50m/kappa-1", "--seeds", "0..2")
    write(runs / "text-50m-kappa-1-s0", records("text-50m/kappa-1", 0, 3.0))
    by_label = {"draws": 64, "labels": [], "left_out": []}
    persistence = {"sequences": 20, "tokens": estimate(2), "total": estimate(1), "kl": [estimate(0.1)], "kl_all": [0.2]}
    write(runs / "text-50m-kappa-1-s1", records("text-50m/kappa-1", 1, 3.0, by_label=by_label, persistence=persistence))
    assert called(module, monkeypatch, *words) == ["text-50m-kappa-1-s0", "text-50m-kappa-1-s2"]
    known = json.loads(out.read_text())["runs"]
    assert [run["missing"] for run in known.values()] == [["by_label", "persistence", "lambada"], ["lambada"]]
    assert known["text-50m-kappa-1-s0"]["likelihood"]["bound"] == {"512": 3.0} and "wanted" not in known["text-50m-kappa-1-s0"]
    assert capsys.readouterr().out.endswith(f"2 runs in {out}; not finished: 2\n")

    # with benchmarks, the second run misses one, too; of the first, nothing is left but its line
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: True)
    (runs / "text-50m-kappa-1-s0").rename(tmp_path / "lost")
    data = write_all(tmp_path / "data")
    (data / "piqa/valid.jsonl.gz").unlink()
    assert called(module, monkeypatch, *words, "--benchmarks", data) == ["text-50m-kappa-1-s1", "text-50m-kappa-1-s2"]
    printed = capsys.readouterr().out
    assert "piqa is left out: --data: no file for piqa" in printed and "lambada is left out" not in printed
    assert "skipped: text-50m-kappa-1-s0 misses by_label, persistence, lambada, and its checkpoints are gone" in printed
    assert json.loads(out.read_text())["runs"] == known


def test_a_run_that_starts_from_another_waits_for_it(
    script: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, runs = script("text_models"), tmp_path / "runs"
    words = (tmp_path / "out.json", "--runs", runs, "text-attention-retrofit/random", "--seeds", "0")
    assert called(module, monkeypatch, *words) == []
    assert "starts from text-attention-softmax-s0, which is not there yet" in capsys.readouterr().out
    write(runs / "text-attention-softmax-s0", records("text-attention/softmax", 0, 3.0))
    assert called(module, monkeypatch, *words) == ["text-attention-retrofit-random-s0"]
    called(module, monkeypatch, *words, "text-attention/softmax")
    (runs / "text-attention-softmax-s0").rename(tmp_path / "lost")
    assert called(module, monkeypatch, *words) == []
    assert "starts from text-attention-softmax-s0, whose folder is gone; to train it again, delete its line" in capsys.readouterr().out


def test_what_a_folder_has_lost_stays_in_the_result(
    script: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, out, run = script("text_models"), tmp_path / "out.json", tmp_path / "runs/text-50m-kappa-1-s0"
    words = (out, "--runs", tmp_path / "runs", "text-50m/kappa-1", "--seeds", "0")
    write(run, records("text-50m/kappa-1", 0, 3.0, by_label={"draws": 64, "labels": [], "left_out": []}))
    called(module, monkeypatch, *words)
    (run / "measured/by_label.json").unlink()
    called(module, monkeypatch, *words)
    (known,) = json.loads(out.read_text())["runs"].values()
    assert known["missing"] == ["persistence", "lambada"] and known["by_label"]["draws"] == 64


def test_the_markdown_table_trains_nothing(
    script: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (tmp_path / "out.json", "--runs", tmp_path / "runs", "text-50m/kappa-1", "--seeds", "0")
    assert called(script("text_models"), monkeypatch, *words) == ["text-50m-kappa-1-s0"]
    capsys.readouterr()
    assert called(script("text_models"), monkeypatch, *words, "--markdown") == []
    assert capsys.readouterr().out.startswith("| text-50m |")


def test_what_is_known_is_written_after_an_interrupt(
    script: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, out = script("text_models"), tmp_path / "out.json"

    def interrupted(*_: object) -> None:
        write(tmp_path / "runs/text-50m-kappa-1-s0", records("text-50m/kappa-1", 0, 3.0))
        raise SystemExit(143)

    monkeypatch.setattr(module, "work", interrupted)
    monkeypatch.setattr(sys, "argv", ["text_models.py", str(out), "--runs", str(tmp_path / "runs"), "text-50m/kappa-1", "--seeds", "0"])
    with pytest.raises(SystemExit):
        module.main()
    assert list(json.loads(out.read_text())["runs"]) == ["text-50m-kappa-1-s0"]


def test_the_table_compares_with_the_baseline_of_the_same_seed(script: Callable[[str], ModuleType]) -> None:
    module = script("text_models_table")
    labels = [{"label": "books", "sequences": 30, "nll": cost(2.0), "ce_posterior": None, "kl": None, "ce_prior": None}]
    scores = {"acc": estimate(0.25), "nll": estimate(3.0), "perplexity": estimate(20.0)}
    score = {"items": 100, "metric": "acc", "chance": None, "truncated": 0, "scores": scores, "grids": []}
    lambada = {"steps": [3, 6], "draws": 1, "tasks": [score]}
    by_label = {"draws": 64, "labels": labels, "left_out": []}
    found = {
        "text-50m-baseline-s0": records("text-50m/baseline", 0, 3.0, by_label=by_label, lambada=lambada),
        "text-50m-baseline-s1": records("text-50m/baseline", 1, 5.0),
        "text-50m-kappa-1-s0": records("text-50m/kappa-1", 0, 3.5),
        "text-50m-kappa-1-s1": records("text-50m/kappa-1", 1, 5.7),
    }
    runs = {name: module.record(one) for name, one in found.items()}
    head, baseline, free, missing = module.table(runs, ["text-50m/baseline", "text-50m/kappa-1", "text-50m/window"])
    cells = dict(zip(head, free, strict=True))
    half = 12.7062 * 0.1
    assert cells["above the baseline"] == f"0.6000 ± {half:.4f}" and cells["nll"].startswith("4.6000 ± ") and cells["KL"] == "0.7000"
    assert cells["training's warning"] == "unused in 2" and cells["runs"] == "2" and cells["lambada acc, %"] == "–"
    cells = dict(zip(head, baseline, strict=True))
    assert cells["above the baseline"] == cells["KL"] == cells["training's warning"] == "–"
    assert cells["books, bits/byte"] == "1.0000 (1)" and cells["lambada acc, %"] == "25.0 (1)" and cells["lambada perplexity"] == "20.0 (1)"
    assert missing == ["window", "not measured yet", *[""] * (len(head) - 2)]
    # a file's path names the same arms, and costs of other windows are not compared
    for run in runs.values():
        run["recipe"] = "recipes/text-50m.toml/" + run["recipe"].rpartition("/")[2]
    runs["text-50m-kappa-1-s0"]["likelihood"]["sequences"] = 64
    head, free = module.table(runs, ["text-50m/kappa-1"])
    assert dict(zip(head, free, strict=True))["above the baseline"] == "0.7000 (1)"


def test_the_table_has_labels_codes_and_grids(script: Callable[[str], ModuleType]) -> None:
    module = script("text_models_table")
    factor = {"factor": "label", "information": estimate(0.1), "shuffled": estimate(0.0), "entropy": estimate(1.0)}
    decoding = [
        {"factor": "label", "source": source, "probe": "linear", "bits": estimate(bits), "accuracy": estimate(0.6)}
        for source, bits in (("Z", 0.2), ("hidden", 0.9))
    ]
    probe = {"intervention": {"factors": [factor]}, "decoding": decoding, "verdict": {"label": "unused"}, "notes": []}
    codes = {"label": "label", "texts": 20, "notes": [], "codes": [{"value": "pos", "bits": 3, "share": estimate(0.6), "prior": None}]}
    film = module.record(
        records("film-reviews/free", 0, 3.0)
        | {"probe": probe, "codes": codes}
        | {"facts": {**records("film-reviews/free", 0, 3.0)["facts"], "wanted": ["likelihood", "probe", "codes"]}}
    )
    head, row = module.table({"film-reviews-free-s0": film}, ["film-reviews/free"])
    cells = dict(zip(head, row, strict=True))
    assert film["missing"] == [] and film["codes"]["values"]["pos"] == {"bits": 3, "share": [0.6, -0.4, 1.6], "prior": None}
    assert (cells["I(Z; label), bits"], cells["read from posterior Z, bits"], cells["pos, codes, %"]) == ("0.100", "0.200", "60.0")
    assert "pos, prior Z, %" not in cells
    grid = {
        "title": "2 needles",
        "rows": ["0", "50"],
        "columns": ["512", "1024"],
        "scores": [[estimate(0.9), estimate(0.5)], [estimate(0.9), estimate(0.7)]],
    }
    score = {"items": 9, "metric": "acc", "chance": 0.5, "truncated": 0, "scores": {"acc": estimate(0.8)}, "grids": [grid]}
    found = records("text-attention/softmax", 0, 3.0, needles={"steps": [9], "draws": 1, "tasks": [score]})
    found["facts"]["wanted"] = ["likelihood", "needles"]
    head, row = module.table({"text-attention-softmax-s0": module.record(found)}, ["text-attention/softmax"])
    assert dict(zip(head, row, strict=True))["needles, 2 needles, 1024, %"] == "60.0"


def test_unknown_recipes_are_refused(
    script: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        called(script("text_models"), monkeypatch, tmp_path / "out.json", "--runs", tmp_path, "letters-free")
    assert "letters-free: this script measures text-50m, film-reviews, " in capsys.readouterr().err


def test_the_mean_over_checkpoints_leaves_out_those_of_interruptions(
    script: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the last third of 12 steps, from 8 on, steps 8 and 12 were evaluated, and 9 was saved by an interrupt."""
    worker = script("text_models_worker")
    for step in (4, 8, 9, 12):
        (tmp_path / f"checkpoints/step-{step:06d}").mkdir(parents=True)
    (tmp_path / "recipe.toml").touch()
    line = {"split": "val", "tokens": 1, "lr": None, "grad_norm": None}
    line |= dict.fromkeys(("loss", "ce", "kl", "penalty", "above_kappa", "kappa"), 1.0)
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({**line, "step": step}) + "\n" for step in (4, 8, 12)))
    monkeypatch.setattr(worker, "open_model", lambda folder, *_: folder.name)
    one = worker.Trained("text-50m/kappa-1", tmp_path, torch.device("cpu"), SimpleNamespace())
    assert one.averaged == ["step-000008", "step-000012"]
    (tmp_path / "checkpoints/step-000008").rmdir()
    with pytest.raises(worker.InputError, match="the checkpoint of step 8 is gone"):
        worker.Trained("text-50m/kappa-1", tmp_path, torch.device("cpu"), SimpleNamespace()).averaged  # noqa: B018


@pytest.mark.slow
def test_a_worker_trains_and_measures_what_is_missing(
    script: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three measurements of a tiny Free model; a second call measures only the one that was deleted, and prunes when all are there."""
    module, worker = script("text_models"), script("text_models_worker")
    for number in range(80):
        for label in "ab":
            (tmp_path / "text" / label).mkdir(parents=True, exist_ok=True)
            (tmp_path / "text" / label / f"{number}.txt").write_text(label * (30 + number % 7))
    prepare_text([tmp_path / "text"], tmp_path / "data", split={"train": 0.3, "val": 0.3, "test": 0.4})
    settings = f"data.dir={tmp_path / 'data'} train.steps=4 train.warmup=1 train.batch=4 train.keep_last=9 eval.every=2 eval.sequences=4"
    settings += " eval.samples=0 latent.bits=3 model.layers=2 model.width=16 model.heads=2 model.vocab=257 model.context=12"
    options = [word for setting in settings.split() for word in ("--set", setting)]
    options += [word for size in ("sequences", "label-sequences", "changed") for word in (f"--{size}", "20")]
    options += [word for size in ("samples", "label-samples") for word in (f"--{size}", "2")]
    words = ["out.json", "--runs", str(tmp_path), "text-50m/kappa-1", "--seeds", "1", "--device", "cpu", *options]
    monkeypatch.setattr(sys, "argv", ["text_models.py", *words])
    ((run, command),) = module.plan(module.parsed(), [])
    monkeypatch.setattr(sys, "argv", command[1:])
    worker.main()
    found = worker.measured(run)
    assert set(found) == {"facts", "likelihood", "by_label", "persistence"} and len(checkpoint_folders(run)) == 2
    assert found["likelihood"]["split"] == "test" and found["likelihood"]["bound"][-1]["samples"] == found["by_label"]["draws"] == 2
    assert [one["label"] for one in found["by_label"]["labels"]] == ["a", "b"]
    assert found["facts"]["seed"] == 1 and found["facts"]["settings"] == settings.split()
    times = {name: (run / f"measured/{name}.json").stat().st_mtime_ns for name in found}
    (run / "measured/by_label.json").unlink()
    (run / "measured/facts.json").unlink()
    monkeypatch.setitem(worker.METRICS, "text-50m", ("likelihood", "by_label", "persistence"))
    (run / "measured/persistence.json").rename(tmp_path / "persistence.json")
    measure = worker.Trained.measure

    def too_large(self: Any, name: str) -> dict[str, Any]:
        if name == "by_label":
            raise torch.OutOfMemoryError("out of memory")
        return json.loads((tmp_path / "persistence.json").read_text())

    with monkeypatch.context() as patch, pytest.raises(SystemExit):  # it goes on with the next, and the exit code is 1
        patch.setattr(worker.Trained, "measure", too_large)
        worker.main()
    assert measure is worker.Trained.measure and set(worker.measured(run)) == {"facts", "likelihood", "persistence"}
    (tmp_path / "persistence.json").replace(run / "measured/persistence.json")
    worker.main()
    changed = {name for name, time in times.items() if (run / f"measured/{name}.json").stat().st_mtime_ns != time}
    assert changed == {"by_label", "facts"} and [folder.name for folder in checkpoint_folders(run)] == ["step-000004"]
    again, first = worker.measured(run)["by_label"], found["by_label"]
    assert again | {"seconds": 0} == first | {"seconds": 0}
