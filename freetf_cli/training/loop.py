"""The training loop.

Everything that a step does is a function of (recipe, step): its batch, its latent noise, its learning rate and κ. A checkpoint
therefore holds weights, optimizer moments and the step, and a resumed run goes on exactly as if it had not stopped.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from signal import Signals
from typing import NoReturn

import torch
from torch import Tensor

from freetf_cli.config.recipe import Recipe
from freetf_cli.data.batches import Batch, DataSource
from freetf_cli.errors import FreetfError, InputError, Interrupted, Stopped
from freetf_cli.generation.sampling import SampleSpec, figure4_samples, prompt_tokens
from freetf_cli.model.decoder import Decoder
from freetf_cli.records import Metrics, Progress, TrainResult
from freetf_cli.runs.checkpoint import Checkpoint, checkpoint_folders, folder_step, save_checkpoint
from freetf_cli.runs.folder import RunFolder, now
from freetf_cli.streams import torch_seed
from freetf_cli.training.distributed import World
from freetf_cli.training.evaluation import CutShort, held_out_sums
from freetf_cli.training.float8 import use_float8
from freetf_cli.training.optimizer import load_named_state, make_optimizer, named_state
from freetf_cli.training.prefetch import HostBatch, Prefetch, host_batch
from freetf_cli.training.schedule import learning_rate, objective_weights
from freetf_cli.training.signals import StopRequest
from freetf_cli.training.step import TrainStep, compiled, loss_function
from freetf_cli.training.stopwatch import Stopwatch

SAMPLE_TOKENS = 256  # of the samples kept with a run, where the data's rows are longer


@dataclass(frozen=True)
class Hooks:
    """What the loop tells its caller: every logged step, every time that a checkpoint was saved, and what should not have happened."""

    progress: Callable[[Progress], None] = lambda progress: None
    saved: Callable[[RunFolder], None] = lambda run: None
    warn: Callable[[str], None] = lambda message: None


class Loop:
    """One run in progress."""

    def __init__(
        self,
        recipe: Recipe,
        source: DataSource,
        model: Decoder,
        run: RunFolder,
        device: torch.device,
        hooks: Hooks,
        stop: StopRequest,
        world: World | None = None,
    ) -> None:
        self.recipe, self.source, self.model, self.run = recipe, source, model, run
        self.device, self.hooks, self.stop, self.world = device, hooks, stop, world or World()
        self.config = recipe.train
        self.step = 0
        if self.config.float8:
            use_float8(model)
        self.optimizer = make_optimizer(model, self.config, device)
        self.noise_generator = torch.Generator(device=device)
        self.noise_shape = () if model.latent is None else model.latent.noise_shape(source.context)
        self.plain_loss = loss_function(model)
        if self.config.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        self._mine = self.world.rows(self.config.batch)
        shape, noise_shape = (self.config.batch // self.world.size, source.context), self.noise_shape
        loss = compiled(self.plain_loss, self.config, device)
        self.update = TrainStep(model, loss, self.optimizer, self.config, device, shape, noise_shape, self.world)
        self.batches = Prefetch(self._batch, self.config.steps)
        self.skipped: list[int] = []  # steps without an update, counted from 1
        self.saved = -1  # the step of the last checkpoint
        self.owes_evaluation = False  # of the step that it was resumed at

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take up a checkpoint's step and optimizer moments."""
        self.step = self.saved = checkpoint.step
        self.owes_evaluation = checkpoint.state.get("owes_evaluation") is True
        if type(row := checkpoint.state.get("skipped_in_row", 0)) is int and 0 <= row <= self.config.skip_limit:
            self.update.in_row = row
        try:
            load_named_state(self.model, self.optimizer, checkpoint.optimizer())
        except ValueError as error:
            raise InputError(f"the optimizer state does not fit the model: {error}", str(checkpoint.folder)) from None

    def run_to_end(self) -> TrainResult:
        """Steps until the recipe's last, with logs, evaluations and checkpoints on the way."""
        started, first, watch = time.perf_counter(), self.step, Stopwatch()

        def report(metrics: Metrics) -> None:
            self._report(metrics, time.perf_counter() - started, self.step - first)

        held_out: Metrics | None = None
        with self.batches:
            if self.owes_evaluation:
                held_out = self._measure(report)
            if self.step < self.config.steps and (signal := self._asked()):  # it came while all was loaded
                self._leave(signal, "before its first step" if first == 0 else f"at step {first}, where it began")
            while self.step < self.config.steps:
                sums, grad_norm, count = self.train_step()
                self.step += 1
                watch.count()
                last = self.step == self.config.steps
                logs = last or self.step == 1 or _due(self.step, self.config.log_every)
                evaluates = last or _due(self.step, self.recipe.eval.every)
                saves = evaluates or _due(self.step, self.config.save_every)
                if logs or saves:
                    self._note_faults()  # waits for the device: from here on the watch is right
                if logs and self.step not in self.skipped:
                    metrics = self._train_metrics(sums, grad_norm, count)
                    self.run.append(metrics, seconds=watch.read())
                    report(metrics)
                with watch.paused():
                    if evaluates:
                        held_out = self._measure(report)
                    elif saves:
                        self.save(None)
                if not last and (signal := self._asked()):
                    self._stop(signal)
        self.run.update_manifest(status="done", finished=now())
        self.hooks.saved(self.run)
        return self._result(time.perf_counter() - started, held_out)

    def train_step(self) -> tuple[Tensor, Tensor, int]:
        """One update: the sums of LossSums over the batch [5], the gradient's norm before clipping, and the count of targets.

        The tensors are those of every step: read them before the next one.
        """
        batch = self.batches.take(self.step)
        weights = objective_weights(self.step, self.recipe.latent, self.config.steps)
        self.update.noise.copy_(self._noise(self.step, self.config.batch)[self._mine])
        self.update(self.step, batch, learning_rate(self.step, self.config), weights)
        if self.device.type != "cuda":  # where asking costs nothing
            self._note_faults()
        return self.update.sums, self.update.grad_norm, batch.count

    def _measure(self, report: Callable[[Metrics], None]) -> Metrics:
        """Evaluation, samples and checkpoint of this step. A signal cuts the evaluation short; a resumed run then begins with it."""
        try:
            held_out = self.evaluate()
        except CutShort as cut:
            self._stop(cut.signal, owes_evaluation=True)
        self.run.append(held_out)
        report(held_out)
        self._sample()  # before the checkpoint: a resumed run would not come back to this step
        self.save(held_out)
        self.hooks.saved(self.run)
        return held_out

    def evaluate(self) -> Metrics:
        """The held-out split, with noise that is the same every time."""
        config = self.recipe.eval
        noise_NTH = self._noise(-1, config.sequences)
        total, count = held_out_sums(self.recipe, self.source, self.model, self.plain_loss, noise_NTH, self.world, self._asked)
        if not torch.isfinite(total).all():
            raise FreetfError(f"the held-out loss is not finite after step {self.step}", str(self.run.path), self._kept())
        kappa = objective_weights(self.config.steps, self.recipe.latent, self.config.steps).kappa
        return self._metrics(total, count, config.split, kappa, lr=None, grad_norm=None)

    def save(self, held_out: Metrics | None, *, owes_evaluation: bool = False) -> None:
        """A checkpoint of this step; older ones go, save the best and those of every `keep_every` steps."""
        self._note_faults()
        self._check_weights()
        if self.world.leads:
            self._write(held_out, owes_evaluation)
        self.world.wait()
        self.saved = self.step

    def _check_weights(self) -> None:
        """FreetfError where they are not finite, or not the same in every process."""
        weights, hint = list(self.model.parameters()), f"{self._kept()}; a lower train.lr may help"
        if not torch.stack([weight.isfinite().all() for weight in weights]).all():
            raise FreetfError(f"the weights are not finite after step {self.step}", str(self.run.path), hint)
        if self.world.size > 1 and not self.world.alike(torch.stack([weight.detach().view(torch.int32).sum() for weight in weights])):
            raise FreetfError(f"the processes differ in their weights after step {self.step}", str(self.run.path), self._kept())

    def _write(self, held_out: Metrics | None, owes_evaluation: bool) -> None:
        state = {
            "step": self.step,
            "tokens": self._tokens(),
            "val_loss": held_out and held_out.loss,
            "recipe": self.recipe.model_dump(exclude_none=True),
            "data": asdict(self.source.facts),
            "skipped_in_row": self.update.in_row,
            **({"owes_evaluation": True} if owes_evaluation else {}),
        }
        optimizer = named_state(self.model, self.optimizer)
        save_checkpoint(self.run.checkpoint(self.step), self.model, optimizer, state, self.source.tokenizer)
        if held_out is not None:
            self._note_best(held_out.loss)
        keep = {self.run.checkpoint((self.run.best() or {"step": self.step})["step"])}
        folders = checkpoint_folders(self.run.path)
        for folder in folders[: -self.config.keep_last]:
            if folder not in keep and not _due(folder_step(folder), self.config.keep_every):
                shutil.rmtree(folder)

    def _note_best(self, loss: float) -> None:
        best = self.run.best()
        if best is None or loss < best["loss"]:
            self.run.set_best(self.step, loss)

    def _asked(self) -> Signals | None:
        """The signal that asks this run to stop, whichever of its processes has it."""
        number = self.world.largest(self.stop.signal or 0)
        return Signals(number) if number else None

    def _stop(self, signal: Signals, *, owes_evaluation: bool = False) -> NoReturn:
        """Save, and leave by the exit that the signal asks for."""
        if self.saved != self.step:
            self.save(None, owes_evaluation=owes_evaluation)
        self.hooks.saved(self.run)
        self._leave(signal, f"after step {self.step}, checkpoint saved")

    def _leave(self, signal: Signals, when: str) -> NoReturn:
        kind = Interrupted if signal.name == "SIGINT" else Stopped
        raise kind(f"stopped by {signal.name} {when}", str(self.run.path), "the same command with --resume auto goes on")

    def _sample(self) -> None:
        """Samples as the paper's Figure 4, for the run folder and its report."""
        if not self.recipe.eval.samples or not self.world.leads:
            return
        seed = self.config.seed
        prompt = self.source.prompts(1, seed)[0]
        room = max(SAMPLE_TOKENS, len(prompt_tokens(self.source.tokenizer, prompt)) + 1)
        spec = SampleSpec(total=min(self.source.row_tokens, room), count=self.recipe.eval.samples, prompt_z="prior", seed=seed)
        self.model.eval()
        self.run.save_samples(self.step, figure4_samples(self.model, self.source.tokenizer, prompt, spec, groups=2))
        self.model.train()

    def _noise(self, key: int, rows: int) -> Tensor:
        """Uniform noise [rows, *noise_shape] of a training step (key ≥ 0) or of the held-out rows (key < 0): a function of (seed, key)."""
        self.noise_generator.manual_seed(torch_seed(self.config.seed, abs(key), int(key < 0)))
        return torch.rand(rows, *self.noise_shape, generator=self.noise_generator, device=self.device)

    def _batch(self, step: int) -> HostBatch:
        return host_batch(self._rows(step), self._mine, pinned=self.device.type == "cuda")

    def _rows(self, step: int) -> Batch:
        return self.source.train_batch(step, self.config.batch)

    def _tokens(self) -> int:
        return self.step * self.config.batch * self.source.context

    def _train_metrics(self, sums: Tensor, grad_norm: Tensor, count: int) -> Metrics:
        weights, rate = objective_weights(self.step - 1, self.recipe.latent, self.config.steps), learning_rate(self.step - 1, self.config)
        return self._metrics(sums, count, "train", weights.kappa, rate, float(grad_norm))

    def _note_faults(self) -> None:
        """Record the steps that were skipped. Whatever leaves a record asks first: on CUDA the device leaves updates out without a word."""
        for fault in self.update.faults():
            step = fault.step + 1
            rows = hashlib.sha256(self._rows(fault.step).inputs.tobytes()).hexdigest()
            self.skipped.append(step)
            self.run.append_fault(step=step, ce=str(fault.ce), grad_norm=str(fault.grad_norm), inputs_sha256=rows)
            self.hooks.warn(f"step {step} skipped: CE {fault.ce}, gradient norm {fault.grad_norm}")
        if self.update.ended:
            row = self.config.skip_limit + 1
            at = f"at step {self.skipped[-1]}" + (
                f", the {row}th in a row" if row > 3 else f" and the {row - 1} before it" if row > 1 else ""
            )
            what = f"the loss or its gradient is not finite {at}"
            raise FreetfError(what, str(self.run.faults_file), f"no update was made, {self._kept()}; a lower train.lr may help")

    def _kept(self) -> str:
        return "the last checkpoint is untouched" if checkpoint_folders(self.run.path) else "there is no checkpoint yet"

    def _metrics(self, sums: Tensor, count: int, split: str, kappa: float, lr: float | None, grad_norm: float | None) -> Metrics:
        ce, kl, penalty, above, latents = sums.tolist()
        share = above / latents if latents else 0.0
        return Metrics(
            self.step, self._tokens(), split, (ce + penalty) / count, ce / count, kl / count, penalty / count, share, kappa, lr, grad_norm
        )

    def _report(self, metrics: Metrics, seconds: float, steps: int) -> None:
        rate = steps / seconds if seconds else 0.0
        remaining = (self.config.steps - self.step) / rate if rate else math.inf
        self.hooks.progress(Progress(metrics, self.config.steps, rate, remaining, self.source.facts))

    def _result(self, seconds: float, held_out: Metrics | None) -> TrainResult:
        if held_out is None:  # resumed at its end: nothing was left to do
            held_out = next((row for row in reversed(self.run.metrics()) if row.split != "train"), None)
        checkpoint = str(self.run.checkpoint(self.step))
        return TrainResult(
            str(self.run.path),
            self.recipe.kind,
            self.step,
            self._tokens(),
            seconds,
            held_out,
            checkpoint,
            str(self.run.report),
            self.source.facts,
        )


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
