"""The training loop: exact resume, records, checkpoints that are kept, and what it refuses."""

import dataclasses
import hashlib
import json
import math
import os
import signal
from collections.abc import Callable, Iterator
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from freetf_cli.config.files import check_recipe, load_recipe
from freetf_cli.config.recipe import Recipe
from freetf_cli.data.batches import Batch, DataSource
from freetf_cli.data.manifest import Origin
from freetf_cli.data.tokenizer import train_bpe
from freetf_cli.data.writer import DatasetWriter
from freetf_cli.errors import FreetfError, InputError, Interrupted, Stopped
from freetf_cli.evaluation.likelihood import row_costs
from freetf_cli.evaluation.metrics import Request, load
from freetf_cli.evaluation.summary import summarise
from freetf_cli.latent.build import build_model, initialise_model
from freetf_cli.model.latent import ObjectiveWeights
from freetf_cli.records import Metrics, Progress, TrainResult
from freetf_cli.runs.checkpoint import Checkpoint, checkpoint_folders, save_checkpoint
from freetf_cli.runs.folder import RunFolder
from freetf_cli.runs.lock import lock_run
from freetf_cli.training import loop as loop_module
from freetf_cli.training import memory as memory_module
from freetf_cli.training import run as run_module
from freetf_cli.training.loop import Hooks, Loop
from freetf_cli.training.parallel import Engine
from freetf_cli.training.run import train
from freetf_cli.training.signals import StopRequest
from freetf_cli.training.start import resolve

CPU = torch.device("cpu")
KEYS = ["step", "tokens", "split", "loss", "ce", "kl", "penalty", "above_kappa", "kappa", "lr", "grad_norm"]
KEYS += ["bytes_per_token", "nll", "ce_prior", "frequencies"]


def recipe(latent: bool = True, every: int = 2, **train_settings: Any) -> Recipe:
    tree: dict[str, Any] = {
        "data": {"task": "letters", "params": {"length": 12, "target": 3, "letters": 4}},
        "model": {"layers": 2, "width": 16, "heads": 2},
        "train": {"steps": 6, "batch": 4, "lr": 1e-2, "warmup": 2, "log_every": 1, **train_settings},
        "eval": {"every": every, "sequences": 10, "samples": 1},
    }
    if latent:
        tree["latent"] = {"kappa": 0.5, "bits": 4, "objective": {"schedule": {"kappa": [[0, 2.0], [4 / 6]]}}}
    return check_recipe(tree, where="test")


def stop_at(step: int, number: signal.Signals = signal.SIGTERM) -> tuple[Hooks, StopRequest]:
    request = StopRequest()

    def progress(update: Progress) -> None:
        if update.metrics.step == step:
            request(number, None)

    return Hooks(progress=progress), request


def stopped_run(path: Path, step: int, made: Recipe, number: signal.Signals = signal.SIGTERM) -> None:
    hooks, request = stop_at(step, number)
    with pytest.raises(Stopped if number == signal.SIGTERM else Interrupted):
        train(made, path, device=CPU, hooks=hooks, stop=request)


def files(run: Path) -> dict[str, bytes]:
    """What must be equal byte for byte in equal runs: weights, moments, samples, metrics."""
    last = checkpoint_folders(run)[-1]
    found = {name: (last / name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors")}
    return {**found, "metrics": (run / "metrics.jsonl").read_bytes(), **{p.name: p.read_bytes() for p in (run / "samples").iterdir()}}


@pytest.mark.parametrize("latent", [True, False])
def test_resume_is_exact(tmp_path: Path, latent: bool) -> None:
    train(recipe(latent), tmp_path / "whole", device=CPU)
    whole = files(tmp_path / "whole")
    for step in (1, 2, 3, 5) if latent else (3,):
        run = tmp_path / f"stopped-{step}"
        stopped_run(run, step, recipe(latent))
        train(recipe(latent), run, device=CPU, resume=Checkpoint.open(checkpoint_folders(run)[-1]))
        assert files(run).keys() == whole.keys()
        assert [name for name, content in files(run).items() if content != whole[name]] == [], step


@pytest.mark.slow
def test_resume_of_a_wider_model_is_exact(tmp_path: Path) -> None:
    """Products of this size are summed in another order if a tensor is not aligned to 64 bytes, as in a file."""
    made = load_recipe("letters-free", smoke=True, overrides=["train.steps=12", "train.log_every=1", "eval.sequences=8"])
    train(made, tmp_path / "whole", device=CPU)
    stopped_run(tmp_path / "parts", 3, made)
    train(made, tmp_path / "parts", device=CPU, resume=Checkpoint.open(checkpoint_folders(tmp_path / "parts")[-1]))
    assert files(tmp_path / "whole") == files(tmp_path / "parts")


def test_resume_without_the_moments_would_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: without the moments the tests above would fail."""
    train(recipe(), tmp_path / "whole", device=CPU)
    stopped_run(tmp_path / "parts", 3, recipe())
    monkeypatch.setattr("freetf_cli.training.loop.load_named_state", lambda *_: None)
    train(recipe(), tmp_path / "parts", device=CPU, resume=Checkpoint.open(checkpoint_folders(tmp_path / "parts")[-1]))
    assert files(tmp_path / "whole")["model.safetensors"] != files(tmp_path / "parts")["model.safetensors"]


def test_resume_deletes_the_records_after_the_checkpoint(tmp_path: Path) -> None:
    train(recipe(), tmp_path / "run", device=CPU)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    earlier = recipe(keep_last=3)
    train(earlier, tmp_path / "other", device=CPU)
    first = Checkpoint.open(tmp_path / "other" / "checkpoints" / "step-000002")
    train(earlier, tmp_path / "other", device=CPU, resume=first)
    assert (tmp_path / "other" / "metrics.jsonl").read_bytes() == before


def test_metrics_have_the_keys_that_others_rely_on(tmp_path: Path) -> None:
    train(recipe(), tmp_path / "run", device=CPU)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(list(row) == KEYS for row in rows)
    assert [row["step"] for row in rows if row["split"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in rows if row["split"] == "val"] == [2, 4, 6]
    assert rows[0]["tokens"] == 4 * 13
    assert rows[0]["kappa"] == pytest.approx(2.0 * 0.693147, rel=1e-5)
    assert rows[-1]["kappa"] == pytest.approx(0.5 * 0.693147, rel=1e-5)
    for row in rows:
        assert row["loss"] == pytest.approx(row["ce"] + row["penalty"], rel=1e-5)
        assert 0 <= row["above_kappa"] <= 1
        assert row["penalty"] <= row["kl"]


def test_a_run_folder_describes_itself(tmp_path: Path) -> None:
    result = train(recipe(), tmp_path / "run", device=CPU, argv=["freetf", "train"])
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert {"argv", "seed", "freetf", "packages", "device", "data", "tokenizer_sha256", "git", "started", "finished"} <= manifest.keys()
    assert manifest["status"] == "done"
    assert manifest["data"]["floor_bits"] == result.facts.floor_bits
    last = tmp_path / "run" / "checkpoints" / "step-000006"
    assert {path.name for path in last.iterdir()} == {
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
        "tokenizer.json",
        "MANIFEST.sha256",
    }
    assert result.checkpoint == str(last)
    assert "time" not in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_the_manifest_of_a_resumed_run_keeps_its_start(tmp_path: Path) -> None:
    hooks, request = stop_at(3)
    with pytest.raises(Stopped):
        train(recipe(), tmp_path / "run", device=CPU, hooks=hooks, stop=request, argv=["freetf", "first"])
    saved = Checkpoint.open(checkpoint_folders(tmp_path / "run")[-1])
    train(recipe(), tmp_path / "run", device=CPU, resume=saved, argv=["freetf", "second"])
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert (manifest["argv"], manifest["status"]) == (["freetf", "first"], "done")
    assert [(part["step"], part["argv"]) for part in manifest["resumed"]] == [(3, ["freetf", "second"])]


def test_best_and_last_are_kept(tmp_path: Path) -> None:
    train(recipe(steps=8, lr=3e-1), tmp_path / "run", device=CPU)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["loss"] for row in rows if row["split"] == "val"}
    best = min(losses, key=lambda step: losses[step])
    assert {int(path.name[5:]) for path in checkpoint_folders(tmp_path / "run")} == {best, 8}
    infos = RunFolder(tmp_path / "run").checkpoint_infos()
    assert [(info.step, info.val_loss, info.best) for info in infos] == [(step, losses[step], step == best) for step in sorted({best, 8})]


def test_accumulation_gives_the_same_update(tmp_path: Path) -> None:
    for parts in (1, 2, 4):
        train(recipe(grad_accum_steps=parts), tmp_path / str(parts), device=CPU)
    one, *others = (load_file(tmp_path / str(parts) / "checkpoints/step-000006/model.safetensors") for parts in (1, 2, 4))
    for other in others:
        for name, value in one.items():
            assert torch.allclose(value, other[name], atol=1e-4), name


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    result = train(recipe(every=0, steps=120, log_every=50), tmp_path / "run", device=CPU)
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert result.val is not None
    assert result.val.loss < 0.6 * first["loss"]


def test_free_model_starts_from_its_baseline(tmp_path: Path) -> None:
    train(recipe(latent=False), tmp_path / "baseline", device=CPU)
    start = Checkpoint.open(tmp_path / "baseline" / "checkpoints" / "step-000006")
    made = recipe(steps=1, lr=1e-12)
    train(made, tmp_path / "free", device=CPU, init_from=start)
    before, after = (load_file(path / "model.safetensors") for path in (start.folder, tmp_path / "free" / "checkpoints" / "step-000001"))
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    assert len(after) > len(before)


def test_weights_that_do_not_fit_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    train(recipe(), tmp_path / "free", device=CPU)
    start = Checkpoint.open(tmp_path / "free" / "checkpoints" / "step-000006")
    with pytest.raises(InputError, match="is not in the model"):
        train(recipe(latent=False), tmp_path / "baseline", device=CPU, init_from=start)
    assert not (tmp_path / "baseline").exists()


def test_a_resumed_run_may_recompute_activations(tmp_path: Path) -> None:
    """It changes no number, and other GPUs may have less memory."""
    stopped_run(tmp_path / "run", 3, recipe())
    saved = Checkpoint.open(checkpoint_folders(tmp_path / "run")[-1])
    train(recipe(activation_checkpointing="full"), tmp_path / "run", device=CPU, resume=saved)
    train(recipe(), tmp_path / "whole", device=CPU)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda r: r.model_copy(update={"train": r.train.model_copy(update={"batch": 8})}), "train.batch is 8, was 4"),
        (
            lambda r: r.model_copy(update={"train": r.train.model_copy(update={"seed": 1, "lr": 1.0})}),
            "train.lr is 1.0, was 0.01, train.seed is 1, was 0",
        ),
        (lambda r: r.model_copy(update={"data": r.data.model_copy(update={"params": {"length": 13, "letters": 4, "target": 3}})}), "data"),
    ],
)
def test_resume_of_another_run_is_refused(tmp_path: Path, change: Callable[[Recipe], Recipe], what: str) -> None:
    stopped_run(tmp_path / "run", 3, recipe())
    saved = Checkpoint.open(checkpoint_folders(tmp_path / "run")[-1])
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(InputError, match=what):
        train(change(recipe()), tmp_path / "run", device=CPU, resume=saved)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_a_stop_calls_the_hook_for_saved_checkpoints(tmp_path: Path) -> None:
    hooks, request = stop_at(3)
    saved: list[int] = []
    hooks = dataclasses.replace(hooks, saved=lambda run: saved.append(len(checkpoint_folders(run.path))))
    with pytest.raises(Stopped):
        train(recipe(), tmp_path / "run", device=CPU, hooks=hooks, stop=request)
    assert len(saved) == 2  # the evaluation at step 2 and the stop at step 3, when the report is written


def test_the_end_calls_the_hook_once(tmp_path: Path) -> None:
    """The last evaluation and the end are one report: its charts would be drawn twice."""
    statuses: list[str] = []
    hooks = Hooks(saved=lambda run: statuses.append(json.loads((run.path / "manifest.json").read_text())["status"]))
    train(recipe(), tmp_path / "run", device=CPU, hooks=hooks)
    assert statuses == ["running", "running", "done"]  # evaluations at steps 2 and 4, and the end


def test_signals_save_and_stop(tmp_path: Path) -> None:
    stopped_run(tmp_path / "run", 3, recipe(), signal.SIGINT)
    assert checkpoint_folders(tmp_path / "run")[-1].name == "step-000003"
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "stopped"


def test_a_loss_that_is_not_finite_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FreetfError, match=r"not finite at step \d"):
        train(recipe(steps=50, lr=1e30, grad_clip=0.0), tmp_path / "run", device=CPU)


def test_result_counts_tokens_and_steps(tmp_path: Path) -> None:
    result: TrainResult = train(recipe(), tmp_path / "run", device=CPU)
    assert (result.steps, result.tokens, result.kind) == (6, 6 * 4 * 13, "free")


def loop(path: Path, made: Recipe) -> Loop:
    made, source = resolve(made)
    model = build_model(made.model, made.latent)
    initialise_model(model, made.train.seed)
    return Loop(made, source, Engine(model, made.train, CPU), RunFolder.create(path, made), CPU, Hooks(), StopRequest())


def test_latent_noise_is_a_function_of_seed_and_step(tmp_path: Path) -> None:
    one, other = loop(tmp_path / "a", recipe()), loop(tmp_path / "b", recipe(seed=1))
    drawn = [one._noise(step) for step in range(3)]
    assert all(torch.equal(noise, one._noise(step)) for step, noise in enumerate(drawn))
    assert all(not torch.equal(a, b) for a, b in combinations(drawn, 2))
    assert not torch.equal(drawn[0], other._noise(0))
    assert 0 <= min(float(noise.min()) for noise in drawn) < max(float(noise.max()) for noise in drawn) < 1


def test_the_schedule_and_the_clipping_reach_the_weights(tmp_path: Path) -> None:
    """Adam's first step moves a weight by the learning rate, whatever the gradient, unless that is below its epsilon."""

    def largest_change(name: str, **settings: Any) -> float:
        running = loop(tmp_path / name, recipe(weight_decay=0.0, **settings))
        before = {key: value.detach().clone() for key, value in running.model.named_parameters()}
        running.train_step()
        return max(float((value - before[key]).abs().max().item()) for key, value in running.model.named_parameters())

    assert largest_change("full", warmup=0) == pytest.approx(1e-2, rel=1e-2)
    assert largest_change("warm", warmup=10) == pytest.approx(1e-3, rel=1e-2)
    assert largest_change("clipped", warmup=0, grad_clip=1e-12) < 1e-4


def test_accumulated_parts_of_unequal_size_add_up(tmp_path: Path) -> None:
    """Reviews differ in length: every part of a batch must be divided by the count of targets in the whole batch."""
    tree = recipe().model_dump(exclude_none=True)
    tree["data"] = {"task": "reviews"}
    tree["model"]["context"] = 80
    gradients = []
    for parts in (1, 4):
        tree["train"]["grad_accum_steps"] = parts
        running = loop(tmp_path / str(parts), check_recipe(tree, where="test"))
        running.optimizers[0].step = lambda *_: None  # type: ignore[assignment, method-assign]
        running.train_step()
        gradients.append({name: value.grad for name, value in running.model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-6), name


@pytest.mark.parametrize("task", ["letters", "reviews", "blocks"])
def test_tokens_are_the_targets_that_count(task: str, tmp_path: Path) -> None:
    """Padding, given tokens and questions are none; a resumed run goes on counting, and rates are those of the same tokens."""
    tree = recipe(latent=False, every=3).model_dump(exclude_none=True)
    tree["data"] = {"task": task}
    made = check_recipe(tree, where="test")
    stopped_run(tmp_path / "run", 3, made)
    checkpoint = Checkpoint.open(checkpoint_folders(tmp_path / "run")[-1])
    result = train(made, tmp_path / "run", device=CPU, resume=checkpoint)
    source = resolve(made)[1]
    counts = [int((source.train_batch(step, 4).targets >= 0).sum()) for step in range(6)]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {row["step"]: row["tokens"] for row in rows} == {step: sum(counts[:step]) for step in range(1, 7)}
    assert (result.tokens, result.start, checkpoint.state["tokens"]) == (sum(counts), 3, sum(counts[:3]))
    timing = [json.loads(line) for line in (tmp_path / "run" / "timing.jsonl").read_text().splitlines()]
    assert [row["tokens_per_second"] * row["seconds"] for row in timing] == pytest.approx(counts, rel=0.02)


def test_training_ends_with_the_bounds_and_says_what_is_wrong_with_z(tmp_path: Path) -> None:
    made, lines = recipe(), []
    result = train(made, tmp_path / "run", device=CPU, hooks=Hooks(progress=lambda update: lines.append(update.metrics)))
    *before, last = [line for line in lines if line.split == "val"]
    assert all(line.nll is None and not line.fault() for line in before) and result.val == last
    source = resolve(made)[1]
    model = Checkpoint.open(checkpoint_folders(tmp_path / "run")[-1]).model(CPU)
    costs, every = (row_costs(model, source, split="val", sequences=rows, draws=(64,)) for rows in (4, 10))
    assert last.nll == pytest.approx((last.ce + last.kl) * costs.nats["nll"].mean() / costs.nats["elbo"].mean())
    assert last.frequencies == every.frequencies != costs.frequencies
    added = (costs.nats["ce_prior"] - costs.nats["ce_posterior"]).mean() / costs.targets[0]
    assert last.ce_prior is not None and last.ce_prior - last.ce == pytest.approx(added, abs=1e-6)
    assert last.fault().startswith("Z is unused")  # after six steps


def test_bits_per_byte_are_those_of_the_targets_measured(tmp_path: Path) -> None:
    """A train split of long English tokens and a val split of Greek, whose every token is a byte: train, show and evaluate agree."""
    english, greek = "hill sea stone rain soil fire wind sky " * 40, "χώμα ουρανός φωτιά " * 40
    tokenizer = train_bpe([english], 290)
    with DatasetWriter(tmp_path / "d", tokenizer, Origin(kind="text", seed=0)) as writer:
        for split, text in (("train", english), ("val", greek)):
            writer.add(split, text, {"source": "", "factors": {}})
    tree = recipe(latent=False).model_dump(exclude_none=True)
    tree |= {"data": {"dir": str(tmp_path / "d")}, "model": {**tree["model"], "context": 16}, "eval": {"sequences": 30, "samples": 0}}
    made = check_recipe(tree, where="test")
    result = train(made, tmp_path / "run", device=CPU)
    source = resolve(made)[1]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        batches = [source.train_batch(row["step"] - 1, 4)] if row["split"] == "train" else source.held_out("val", 30, 30)
        targets = np.concatenate([batch.targets.ravel() for batch in batches])
        text = [tokenizer.decode([i]) for i in targets]
        size = sum(map(len, text)) if row["split"] == "train" else int((targets != tokenizer.separator).sum())
        assert row["bytes_per_token"] == pytest.approx(size / len(targets))
    checkpoint = Checkpoint.open(checkpoint_folders(tmp_path / "run")[-1])
    request = Request(run="run", split="val", sequences=30)
    measured = load("likelihood")(checkpoint, checkpoint.model(CPU), source, request)
    last = rows[-1]
    bits = last["ce"] / math.log(2) / last["bytes_per_token"]
    assert measured.nll.bits_per_byte == pytest.approx(bits, rel=1e-5)  # type: ignore[attr-defined]
    assert f"CE {bits:.2f} bits/byte" in str(result.report())
    assert f"value='{bits:.2f}', unit='bits/byte'" in str(summarise(tmp_path / "run").report())


def test_bounds_that_are_compared_are_of_the_same_rows(tmp_path: Path) -> None:
    """Every second document is cheap, in nats per token and per byte: the rows on which nll is measured differ from the others."""
    words, draw = "abcdefghij klm " * 12, np.random.default_rng(0)
    texts = [words if number % 2 else "".join(map(str, draw.integers(0, 10, 60))) for number in range(120)]
    with DatasetWriter(tmp_path / "d", train_bpe(texts, 300), Origin(kind="text", seed=0)) as writer:
        for number, text in enumerate(texts):
            writer.add("train" if number < 60 else "val", text, {"source": "", "factors": {}})
    tree = recipe(steps=60, log_every=60).model_dump(exclude_none=True)
    tree |= {"data": {"dir": str(tmp_path / "d")}, "model": {**tree["model"], "context": 16}}
    tree["eval"] = {"every": 0, "sequences": 40, "samples": 0}
    made = check_recipe(tree, where="test")
    last = train(made, tmp_path / "run", device=CPU).val
    source, model = resolve(made)[1], Checkpoint.open(checkpoint_folders(tmp_path / "run")[-1]).model(CPU)
    few, every = (row_costs(model, source, split="val", sequences=rows, draws=(64,)) for rows in (4, 40))
    measured, true = (float(costs.nats["nll"].sum() / costs.targets.sum()) for costs in (few, every))
    assert last is not None and last.nll == pytest.approx(true, rel=0.03) and abs(measured / true - 1) > 0.1
    assert last.frequencies == every.frequencies


def test_a_run_ends_well_without_memory_for_the_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(loop_module, "with_bounds", lambda *_: bytearray(1 << 62))
    result = train(recipe(), tmp_path / "run", device=CPU, hooks=Hooks(warn=warnings.append))
    assert result.val is not None and result.val.nll is None and warnings[0].startswith("out of memory: nll")


def test_held_out_lines_are_measured_at_the_final_kappa(tmp_path: Path) -> None:
    train(recipe(), tmp_path / "run", device=CPU)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {round(row["kappa"], 5) for row in rows if row["split"] == "val"} == {round(0.5 * math.log(2), 5)}
    assert len({row["kappa"] for row in rows if row["split"] == "train"}) == 5


def test_a_save_that_fails_leaves_the_checkpoints_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saves = iter([True, False])

    def save(*args: Any) -> None:
        if not next(saves):
            raise OSError(28, "No space left on device")
        save_checkpoint(*args)

    monkeypatch.setattr("freetf_cli.training.loop.save_checkpoint", save)
    with pytest.raises(OSError, match="No space"):
        train(recipe(), tmp_path / "run", device=CPU)
    assert Checkpoint.open(tmp_path / "run" / "checkpoints" / "step-000002").step == 2


def test_the_best_is_kept_when_later_ones_are_worse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = Loop.evaluate
    monkeypatch.setattr(Loop, "evaluate", lambda self, model: dataclasses.replace(evaluate(self, model), loss=float(self.step)))
    train(recipe(steps=8), tmp_path / "run", device=CPU)
    assert [path.name for path in checkpoint_folders(tmp_path / "run")] == ["step-000002", "step-000008"]


def test_the_recorded_kappa_is_the_one_of_the_loss(tmp_path: Path) -> None:
    running = loop(tmp_path / "run", recipe())
    plain, given = running.engine.forward, []
    running.engine.forward = lambda *args, **options: (given.append(float(options["weights"].kappa)), plain(*args, **options))[1]
    running.run()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert given == pytest.approx([row["kappa"] for row in rows if row["split"] == "train"])


def test_no_update_is_made_from_a_gradient_that_is_not_finite(tmp_path: Path) -> None:
    running = loop(tmp_path / "run", recipe(skip_limit=0))
    running.model.norm.weight.register_hook(lambda gradient: gradient * math.inf)
    before = [value.detach().clone() for value in running.model.parameters()]
    with pytest.raises(FreetfError, match="not finite at step 1"):
        running.run()
    assert all(torch.equal(a, b) for a, b in zip(before, running.model.parameters(), strict=True))
    assert checkpoint_folders(tmp_path / "run") == []


def test_a_cpu_reports_a_step_that_is_not_finite_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "freetf_cli.training.loop.objective_weights", lambda step, *_: ObjectiveWeights(math.nan if step == 2 else 0.1, 0.0, 0.0)
    )
    running = loop(tmp_path / "run", recipe(log_every=100, skip_limit=0))
    with pytest.raises(FreetfError, match="not finite at step 3"):
        running.run()
    assert running.step == 2


def test_nothing_is_saved_after_too_many_skipped_steps(tmp_path: Path) -> None:
    """As on CUDA, where the host may be steps ahead of the device when it saves a checkpoint."""
    running = loop(tmp_path / "run", recipe(skip_limit=0))
    running.train_step()
    running.update(1, running.batches.take(1), 1, 1e-2, (math.nan, 0.0, 0.0, 1.0))
    running.step = 5
    with pytest.raises(FreetfError, match="not finite at step 2"):
        running.save()
    assert checkpoint_folders(tmp_path / "run") == []


def test_the_time_of_a_step_leaves_out_evaluations_and_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def slow(name: str, seconds: float) -> None:
        plain = getattr(Loop, name)

        def work(self: Loop, *words: Any, **options: Any) -> Any:
            clock[0] += seconds
            return plain(self, *words, **options)

        monkeypatch.setattr(Loop, name, work)

    for name, seconds in (("train_step", 2.0), ("evaluate", 1000.0), ("save", 300.0)):
        slow(name, seconds)
    train(recipe(every=3, save_every=2, log_every=2), tmp_path / "run", device=CPU)
    rows = [json.loads(line) for line in (tmp_path / "run" / "timing.jsonl").read_text().splitlines()]
    assert [(row["step"], row["seconds"]) for row in rows] == [(1, 2.0), (2, 2.0), (4, 2.0), (6, 2.0)]


def planted(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """NaN in the loss of these steps, counted from 1."""
    plain = loop_module.objective_weights
    weights = ObjectiveWeights(math.nan, 0.0, 0.0)
    monkeypatch.setattr(loop_module, "objective_weights", lambda step, *rest: weights if step + 1 in steps else plain(step, *rest))


def test_a_skipped_step_is_recorded_and_the_run_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted(monkeypatch, 3, 4)
    warnings: list[str] = []
    result = train(recipe(), tmp_path / "run", device=CPU, hooks=Hooks(warn=warnings.append))
    assert result.skipped == 2
    rows = [json.loads(line) for line in (tmp_path / "run" / "faults.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [3, 4] and len(warnings) == 2
    inputs = resolve(recipe())[1].train_batch(2, 4).inputs
    assert rows[0]["inputs_sha256"] == hashlib.sha256(inputs.tobytes()).hexdigest()
    record = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in record if row["split"] == "train"] == [1, 2, 5, 6]
    weights = load_file(checkpoint_folders(tmp_path / "run")[-1] / "model.safetensors")
    assert all(value.isfinite().all() for value in weights.values())


def test_a_run_that_failed_fails_again_from_its_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted(monkeypatch, 3, 4, 5)
    with pytest.raises(FreetfError, match="not finite at step 5 and the 2 before it"):
        train(recipe(), tmp_path / "run", device=CPU)
    before = (tmp_path / "run" / "faults.jsonl").read_text()
    saved = Checkpoint.open(checkpoint_folders(tmp_path / "run")[0])
    assert saved.step == 2
    with pytest.raises(FreetfError, match="not finite at step 5 and the 2 before it"):
        train(recipe(), tmp_path / "run", device=CPU, resume=saved)
    assert (tmp_path / "run" / "faults.jsonl").read_text() == before


def test_a_held_out_loss_that_is_not_finite_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running = loop(tmp_path / "run", recipe())
    with torch.no_grad():
        running.model.norm.weight.fill_(math.nan)
    with pytest.raises(FreetfError, match="held-out loss is not finite after step 0"):
        running.evaluate(running.model)


def test_checkpoints_of_every_third_step_are_kept(tmp_path: Path) -> None:
    train(recipe(save_every=1, keep_every=3), tmp_path / "run", device=CPU)
    kept = {folder.name for folder in checkpoint_folders(tmp_path / "run")}
    assert {"step-000003", "step-000006"} <= kept and "step-000001" not in kept


def test_a_signal_ends_an_evaluation_and_the_resumed_run_repeats_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs are equal byte for byte, also if the first resumed run dies after its evaluation."""
    train(recipe(), tmp_path / "whole", device=CPU)
    request, plain = StopRequest(), DataSource.held_out

    def held_out(self: DataSource, *words: Any) -> Iterator[Batch]:
        for number, part in enumerate(plain(self, *words)):
            if number == 1:
                request(signal.SIGTERM, None)
            yield part

    monkeypatch.setattr(DataSource, "held_out", held_out)
    with pytest.raises(Stopped, match="after step 2, checkpoint saved"):
        train(recipe(), tmp_path / "run", device=CPU, stop=request)
    monkeypatch.undo()
    saved = Checkpoint.open(checkpoint_folders(tmp_path / "run")[-1])
    assert saved.step == 2 and "val" not in (tmp_path / "run" / "metrics.jsonl").read_text()
    train(recipe(), tmp_path / "run", device=CPU, resume=saved)
    assert files(tmp_path / "run") == files(tmp_path / "whole")


def fail(error: BaseException) -> Callable[..., Any]:
    """A function that raises an error."""
    return lambda *_, **__: (_ for _ in ()).throw(error)


@pytest.mark.parametrize("latent", [True, False])
@pytest.mark.parametrize(
    ("place", "name", "error", "what"),
    [
        (DataSource, "held_out", KeyboardInterrupt(), None),
        (DataSource, "held_out", MemoryError(), r"in the evaluation, .*: 4 × 13 tokens .*; raise train.grad_accum_steps \(now 1\).*resume"),
        (loop_module, "figure4_samples", MemoryError(), r"in the samples, .*; lower eval.samples \(now 1\), and resume"),
        (loop_module, "figure4_samples", OSError(28, "No space left on device"), "No space"),
        (RunFolder, "append", OSError(28, "No space left on device"), "No space"),
    ],
)
def test_no_step_is_lost_in_the_last_evaluation_and_a_resumed_run_makes_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, latent: bool, place: Any, name: str, error: BaseException, what: str | None
) -> None:
    made = recipe(latent, every=0, log_every=100)
    train(made, tmp_path / "whole", device=CPU)
    plain = RunFolder.append

    def append(self: RunFolder, metrics: Metrics, seconds: float | None = None) -> None:
        plain(self, metrics, seconds) if metrics.split == "train" else fail(error)()

    monkeypatch.setattr(place, name, append if name == "append" else fail(error))
    with pytest.raises(type(error) if not isinstance(error, MemoryError) else FreetfError, match=what):
        train(made, tmp_path / "run", device=CPU)
    monkeypatch.undo()
    saved = Checkpoint.open(checkpoint_folders(tmp_path / "run")[-1])
    assert saved.step == 6
    if name == "figure4_samples":
        monkeypatch.setattr(Loop, "evaluate", fail(AssertionError("measured again")))
    monkeypatch.setattr(Loop, "train_step", fail(AssertionError("trained again")))
    train(made, tmp_path / "run", device=CPU, resume=saved)
    assert files(tmp_path / "run") == files(tmp_path / "whole")
    assert RunFolder(tmp_path / "run").manifest()["status"] == "done"


def test_the_report_is_made_after_all_else_and_made_again(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        train(recipe(every=0), tmp_path / "run", device=CPU, hooks=Hooks(saved=fail(ZeroDivisionError())))
    before, saved = files(tmp_path / "run"), Checkpoint.open(checkpoint_folders(tmp_path / "run")[-1])
    assert saved.step == 6
    reports: list[RunFolder] = []
    train(recipe(every=0), tmp_path / "run", device=CPU, resume=saved, hooks=Hooks(saved=reports.append))
    assert reports and files(tmp_path / "run") == before


def test_the_memory_of_an_evaluation_follows_its_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither noise nor numbers are made for all sequences at once: a recipe may ask for more of them than memory holds."""
    running, asked = loop(tmp_path / "run", recipe()), 10**14
    running.recipe = running.recipe.model_copy(update={"eval": running.recipe.eval.model_copy(update={"sequences": asked})})
    monkeypatch.setattr(Loop, "_agree", fail(Stopped("after the first batch")))
    with pytest.raises(Stopped):
        running.evaluate(running.model)
    plain, seen = DataSource.held_out, []
    monkeypatch.setattr(DataSource, "held_out", lambda *words: islice(plain(*words), 2))
    monkeypatch.setattr(Loop, "_agree", lambda self: seen.append(1))
    assert math.isfinite(running.evaluate(running.model).loss) and len(seen) == 2


def test_held_out_noise_does_not_depend_on_the_size_of_a_batch(tmp_path: Path) -> None:
    one, other = loop(tmp_path / "a", recipe()), loop(tmp_path / "b", recipe(grad_accum_steps=4))
    assert one.evaluate(one.model).loss == pytest.approx(other.evaluate(other.model).loss, rel=1e-6)


def test_a_signal_during_loading_stops_before_the_first_step(tmp_path: Path) -> None:
    request = StopRequest()
    request(signal.SIGTERM, None)
    with pytest.raises(Stopped, match="before its first step"):
        train(recipe(), tmp_path / "run", device=CPU, stop=request)
    assert checkpoint_folders(tmp_path / "run") == []
    train(recipe(), tmp_path / "run", device=CPU, again=True)


def test_a_run_that_another_process_trains_is_refused(tmp_path: Path) -> None:
    with lock_run(tmp_path / "run"), pytest.raises(FreetfError, match=rf"process {os.getpid()} on .* is training this run"):
        train(recipe(), tmp_path / "run", device=CPU)
    assert not (tmp_path / "run").exists()
    train(recipe(), tmp_path / "run", device=CPU)


def test_a_model_that_cannot_fit_is_refused_before_it_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "device_memory", lambda device: (1000, 1000))
    monkeypatch.setattr(run_module, "make_engine", lambda *_: pytest.fail("built"))
    with pytest.raises(FreetfError, match=r"batches of 4 × 13 tokens need about .* GiB, .* a smaller model: lower model\.layers"):
        train(recipe(), tmp_path / "run", device=CPU)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError("DefaultCPUAllocator: no")])
def test_out_of_memory_names_the_batch_and_what_to_lower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(Loop, "train_step", lambda self: (_ for _ in ()).throw(error))
    with pytest.raises(
        FreetfError, match=r"batches of 4 × 13 tokens .* free of .*; lower train\.batch, or raise train\.grad_accum_steps \(now 1\)"
    ):
        train(recipe(), tmp_path / "run", device=CPU)


@pytest.mark.parametrize(("setting", "named"), [("auto", True), ("on", False)])
def test_out_of_memory_suggests_activation_checkpointing(setting: str, named: bool) -> None:
    words = ["model.vocab=29", "model.context=65", "model.attention=talking-heads", f"train.attention_checkpointing={setting}"]
    hint = memory_module.out_of_memory(load_recipe("letters-baseline", overrides=words), CPU).hint
    assert "lower train.batch" in str(hint)
    assert ("train.attention_checkpointing = 'on'" in str(hint)) == named


@pytest.mark.parametrize(
    ("settings", "total", "what"),
    [
        (["latent.bits=16"], 1000, "lower latent.bits or model.width (post-sampler table, 2^16 rows"),
        (["model.vocab=99999", "latent.bits=8"], 1000, "lower model.vocab or model.width (embedding"),
        (["train.batch=8", "train.grad_accum_steps=8"], 2**60, "one sequence at a time: lower model.context (now 65) or model.width"),
        (["train.batch=8"], 2**60, "lower train.batch, or raise train.grad_accum_steps (now 1)"),
    ],
)
def test_out_of_memory_names_the_setting_that_takes_it(monkeypatch: pytest.MonkeyPatch, settings: list[str], total: int, what: str) -> None:
    monkeypatch.setattr(memory_module, "device_memory", lambda device: (total, total))
    words = ["model.vocab=29", "model.context=65", "model.layers=2", "model.width=64", *settings]
    assert what in memory_module.out_of_memory(load_recipe("letters-free", overrides=words), CPU).hint


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    running = loop(tmp_path / "run", recipe())
    with torch.no_grad():
        running.model.norm.weight[0] = math.inf
    with pytest.raises(FreetfError, match="the weights are not finite after step 0"):
        running.save()
    assert checkpoint_folders(tmp_path / "run") == []


@pytest.mark.parametrize(("seconds", "lines"), [(1.0, 0), (3.0, 1), (2000.0, 1)])
def test_a_run_of_hours_on_a_cpu_is_warned_of_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, lines: int) -> None:
    """With 3 s a step at the second logged step; the first counts if it took long."""
    clock, warnings = [0.0], list[str]()
    plain = Loop.train_step

    def slow(self: Loop) -> Any:
        clock[0] += seconds
        if self.step == 2:
            raise KeyboardInterrupt
        return plain(self)

    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    monkeypatch.setattr(Loop, "train_step", slow)
    with pytest.raises(KeyboardInterrupt):
        train(recipe(steps=5000, every=0), tmp_path / "run", device=CPU, hooks=Hooks(warn=warnings.append))
    assert len(warnings) == lines
    assert all("more on this CPU" in line and line.endswith("freetf train demo-free --set data.task=letters -o RUN") for line in warnings)
