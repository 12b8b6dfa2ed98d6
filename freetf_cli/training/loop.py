"""The training loop.

Everything that a step uses is a function of (recipe, step): its batch, its latent noise, its learning rate and κ. A checkpoint therefore
needs only weights, optimizer moments and the step, and a resumed run continues exactly as if it had not stopped.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from signal import Signals
from typing import NoReturn

import torch
from torch import Tensor

from freetf_cli.config.recipe import Recipe
from freetf_cli.data.batches import DataSource
from freetf_cli.errors import FreetfError, InputError
from freetf_cli.generation.sampling import SampleSpec, figure4_samples, prompt_tokens
from freetf_cli.model.decoder import Decoder
from freetf_cli.model.latent import ObjectiveWeights
from freetf_cli.records import Metrics, Progress, TrainResult
from freetf_cli.runs.checkpoint import Checkpoint, checkpoint_folders, save_checkpoint
from freetf_cli.runs.folder import RunFolder
from freetf_cli.streams import torch_seed
from freetf_cli.training.distributed import World
from freetf_cli.training.evaluation import EvaluationStopped, held_out_sums
from freetf_cli.training.float8 import use_float8
from freetf_cli.training.optimizer import load_named_state, make_optimizer, named_state
from freetf_cli.training.prefetch import HostBatch, Prefetch, host_batch
from freetf_cli.training.schedule import learning_rate, objective_weights
from freetf_cli.training.signals import StopRequest, stop_error
from freetf_cli.training.step import TrainStep
from freetf_cli.training.stopwatch import Stopwatch

SAMPLE_TOKENS = 256  # length limit of the samples kept with a run


@dataclass(frozen=True)
class Hooks:
    """Callbacks of the loop: after every logged step, after every saved checkpoint, and for warnings."""

    progress: Callable[[Progress], None] = lambda progress: None
    saved: Callable[[RunFolder], None] = lambda folder: None
    warn: Callable[[str], None] = lambda message: None


class Loop:
    """A run in progress. `step` counts the updates that were made."""

    def __init__(
        self,
        recipe: Recipe,
        source: DataSource,
        model: Decoder,
        folder: RunFolder,
        device: torch.device,
        hooks: Hooks,
        stop: StopRequest,
        world: World | None = None,
    ) -> None:
        self.recipe, self.source, self.model, self.folder = recipe, source, model, folder
        self.device, self.hooks, self.stop, self.world = device, hooks, stop, world or World()
        self.config = recipe.train
        if self.config.float8:
            use_float8(model)
        if self.config.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        self.optimizer = make_optimizer(model, self.config, device)
        self.noise_generator = torch.Generator(device=device)
        self.rows = self.world.rows(self.config.batch)
        shape = (self.config.batch // self.world.size, source.context)
        self.update = TrainStep(model, self.optimizer, self.config, device, shape, self.world)
        self.batches = Prefetch(self._batch, self.config.steps)
        self.step = 0
        self.saved_step = -1
        self.skipped: list[int] = []  # steps without an update, counted from 1
        self.evaluation_pending = False  # whether a signal cut short the evaluation of the step that the run resumes at
        self._began = (time.perf_counter(), 0)  # when, and at which step, this process started training

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take over a checkpoint's step and optimizer moments. Raises InputError if they do not fit the model."""
        self.step = self.saved_step = checkpoint.step
        self.evaluation_pending = checkpoint.state.get("evaluation_pending") is True
        skips = checkpoint.state.get("consecutive_skips", 0)
        if type(skips) is int and 0 <= skips <= self.config.skip_limit:
            self.update.consecutive_skips.fill_(skips)
        try:
            load_named_state(self.model, self.optimizer, checkpoint.optimizer())
        except ValueError as error:
            raise InputError(f"the optimizer state does not fit the model: {error}", str(checkpoint.folder)) from None

    def run(self) -> TrainResult:
        """Train to the recipe's last step, with logs, evaluations and checkpoints on the way."""
        self._began, watch = (time.perf_counter(), self.step), Stopwatch()
        held_out: Metrics | None = None
        with self.batches:
            if self.evaluation_pending:
                held_out = self._evaluate_and_save()
            if self.step < self.config.steps and (signal := self._stop_signal()):  # it came while everything was loaded
                when = f"at step {self.step}, where it resumed" if self.step else "before its first step"
                raise stop_error(signal, when, str(self.folder.path))
            while self.step < self.config.steps:
                sums, grad_norm, count = self.train_step()
                self.step += 1
                watch.count()
                last = self.step == self.config.steps
                logs = last or self.step == 1 or _due(self.step, self.config.log_every)
                evaluates = last or _due(self.step, self.recipe.eval.every)
                saves = evaluates or _due(self.step, self.config.save_every)
                if logs or saves:
                    self._record_faults()  # waits for the device, so the stopwatch is right from here on
                if logs and self.step not in self.skipped:
                    kappa, lr = self._weights(self.step - 1).kappa, learning_rate(self.step - 1, self.config)
                    metrics = self._metrics(sums, count, "train", kappa, lr, float(grad_norm))
                    self.folder.append(metrics, seconds=watch.read())
                    self._report(metrics)
                with watch.paused():
                    if evaluates:
                        held_out = self._evaluate_and_save()
                    elif saves:
                        self.save(None)
                if not last and (signal := self._stop_signal()):
                    self._save_and_exit(signal)
        self.folder.finish("done")
        self.hooks.saved(self.folder)
        return self._result(held_out)

    def train_step(self) -> tuple[Tensor, Tensor, int]:
        """Make one update. Returns the sums of LossTerms over the batch [5], the gradient's norm before clipping [], the count of targets.

        Every step writes into the same two tensors: read them before the next one.
        """
        batch = self.batches.take(self.step)
        self.update.noise.copy_(self._noise(self.step, self.config.batch)[self.rows])
        self.update(self.step, batch, learning_rate(self.step, self.config), self._weights(self.step))
        if self.device.type != "cuda":  # where asking costs nothing
            self._record_faults()
        return self.update.sums, self.update.grad_norm, batch.count

    def evaluate(self) -> Metrics:
        """Measure the held-out split, with the same noise every time. Raises FreetfError if the loss is not finite."""
        config = self.recipe.eval
        noise_NTH = self._noise(-1, config.sequences)
        total, count = held_out_sums(self.recipe, self.source, self.model, noise_NTH, self.world, self._stop_signal)
        if not torch.isfinite(total).all():
            raise FreetfError(f"the held-out loss is not finite after step {self.step}", str(self.folder.path), self._kept())
        return self._metrics(total, count, config.split, self._weights(self.config.steps).kappa, lr=None, grad_norm=None)

    def save(self, held_out: Metrics | None, *, evaluation_pending: bool = False) -> None:
        """Save a checkpoint of this step, and delete those that need not be kept."""
        self._record_faults()
        self._check_weights()
        if self.world.is_main:
            state = {
                "step": self.step,
                "tokens": self._tokens(),
                "val_loss": held_out and held_out.loss,
                "recipe": self.recipe.model_dump(exclude_none=True),
                "data": asdict(self.source.facts),
                "consecutive_skips": int(self.update.consecutive_skips),
                **({"evaluation_pending": True} if evaluation_pending else {}),
            }
            optimizer = named_state(self.model, self.optimizer)
            save_checkpoint(self.folder.checkpoint(self.step), self.model, optimizer, state, self.source.tokenizer)
            if held_out is not None:
                self.folder.note_best(self.step, held_out.loss)
            self.folder.prune(self.config.keep_last, self.config.keep_every)
        self.world.barrier()
        self.saved_step = self.step

    def _check_weights(self) -> None:
        """Raise FreetfError if the weights are not finite, or differ between processes."""
        weights, hint = list(self.model.parameters()), f"{self._kept()}; a lower train.lr may help"
        if not torch.stack([weight.isfinite().all() for weight in weights]).all():
            raise FreetfError(f"the weights are not finite after step {self.step}", str(self.folder.path), hint)
        if self.world.size > 1 and not self.world.all_equal(torch.stack([weight.detach().view(torch.int32).sum() for weight in weights])):
            raise FreetfError(f"the processes have different weights after step {self.step}", str(self.folder.path), self._kept())

    def _evaluate_and_save(self) -> Metrics:
        """Evaluate, sample and save at this step. A signal ends the evaluation, and the resumed run repeats it."""
        try:
            held_out = self.evaluate()
        except EvaluationStopped as stopped:
            self._save_and_exit(stopped.signal, evaluation_pending=True)
        self.folder.append(held_out)
        self._report(held_out)
        self._sample()  # before the checkpoint, because a resumed run does not come back to this step
        self.save(held_out)
        self.hooks.saved(self.folder)
        return held_out

    def _sample(self) -> None:
        """Save samples like the paper's Figure 4."""
        if not self.recipe.eval.samples or not self.world.is_main:
            return
        seed = self.config.seed
        prompt = self.source.prompt(seed, 0)
        limit = max(SAMPLE_TOKENS, len(prompt_tokens(self.source.tokenizer, prompt)) + 1)
        spec = SampleSpec(total=min(self.source.context + 1, limit), count=self.recipe.eval.samples, prompt_z="prior", seed=seed)
        self.model.eval()
        self.folder.save_samples(self.step, figure4_samples(self.model, self.source.tokenizer, prompt, spec, groups=2))
        self.model.train()

    def _stop_signal(self) -> Signals | None:
        """The signal that asks this run to stop, whichever of its processes received it."""
        number = self.world.all_reduce_max(self.stop.signal or 0)
        return Signals(number) if number else None

    def _save_and_exit(self, signal: Signals, *, evaluation_pending: bool = False) -> NoReturn:
        if self.saved_step != self.step:
            self.save(None, evaluation_pending=evaluation_pending)
        self.hooks.saved(self.folder)
        raise stop_error(signal, f"after step {self.step}, checkpoint saved", str(self.folder.path))

    def _record_faults(self) -> None:
        """Record the skipped steps; raise FreetfError if there were too many. Called before anything is recorded or saved."""
        for fault in self.update.faults():
            step = fault.step + 1
            inputs = self.source.train_batch(fault.step, self.config.batch).inputs
            digest = hashlib.sha256(inputs.tobytes()).hexdigest()
            self.skipped.append(step)
            self.folder.append_fault(step=step, ce=str(fault.ce), grad_norm=str(fault.grad_norm), inputs_sha256=digest)
            self.hooks.warn(f"step {step} skipped: CE {fault.ce}, gradient norm {fault.grad_norm}")
        if self.update.halted:
            before = f" and the {self.config.skip_limit} before it" if self.config.skip_limit else ""
            what = f"the loss or its gradient is not finite at step {self.skipped[-1]}{before}"
            raise FreetfError(what, str(self.folder.faults_file), f"no update was made, {self._kept()}; a lower train.lr may help")

    def _kept(self) -> str:
        return "the last checkpoint is intact" if checkpoint_folders(self.folder.path) else "there is no checkpoint yet"

    def _noise(self, key: int, rows: int) -> Tensor:
        """Uniform noise [rows, …] of a training step (key ≥ 0) or of the held-out rows (key < 0): a function of (seed, key)."""
        self.noise_generator.manual_seed(torch_seed(self.config.seed, abs(key), int(key < 0)))
        return torch.rand(rows, *self.update.noise.shape[1:], generator=self.noise_generator, device=self.device)

    def _batch(self, step: int) -> HostBatch:
        return host_batch(self.source.train_batch(step, self.config.batch), self.rows, pinned=self.device.type == "cuda")

    def _tokens(self) -> int:
        return self.step * self.config.batch * self.source.context

    def _weights(self, step: int) -> ObjectiveWeights:
        return objective_weights(step, self.recipe.latent, self.config.steps)

    def _metrics(self, sums: Tensor, count: int, split: str, kappa: float, lr: float | None, grad_norm: float | None) -> Metrics:
        ce, kl, penalty, above, latents = sums.tolist()
        loss, share = (ce + penalty) / count, above / latents if latents else 0.0
        return Metrics(self.step, self._tokens(), split, loss, ce / count, kl / count, penalty / count, share, kappa, lr, grad_norm)

    def _report(self, metrics: Metrics) -> None:
        seconds, steps = time.perf_counter() - self._began[0], self.step - self._began[1]
        rate = steps / seconds if seconds else 0.0
        remaining = (self.config.steps - self.step) / rate if rate else math.inf
        self.hooks.progress(Progress(metrics, self.config.steps, rate, remaining, self.source.facts))

    def _result(self, held_out: Metrics | None) -> TrainResult:
        if held_out is None:  # the run was resumed at its end
            held_out = next((row for row in reversed(self.folder.metrics()) if row.split != "train"), None)
        return TrainResult(
            run=str(self.folder.path),
            kind=self.recipe.kind,
            steps=self.step,
            tokens=self._tokens(),
            seconds=time.perf_counter() - self._began[0],
            val=held_out,
            checkpoint=str(self.folder.checkpoint(self.step)),
            page=str(self.folder.report),
            facts=self.source.facts,
        )


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
