"""The training loop.

Everything that a step uses is a function of (recipe, step), so a checkpoint needs only weights, optimizer moments and the step: a resumed
run continues exactly as if it had not stopped. The turns of a lagging encoder depend on measurements too; the checkpoint has their state.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from freetf_cli.config.recipe import Recipe
from freetf_cli.data.batches import IGNORE, DataSource
from freetf_cli.data.rows import TRAIN
from freetf_cli.device import autocast_dtype
from freetf_cli.errors import FreetfError, InputError, is_out_of_memory
from freetf_cli.evaluation.likelihood import with_bounds
from freetf_cli.evaluation.posterior import information, tensors
from freetf_cli.generation.sampling import SampleSpec, figure4_samples, prompt_tokens
from freetf_cli.model.decoder import Decoder
from freetf_cli.model.latent import ObjectiveWeights
from freetf_cli.records import Metrics, Progress, Timing
from freetf_cli.runs.checkpoint import Checkpoint, checkpoint_folders, consolidate, save_checkpoint
from freetf_cli.runs.folder import RunFolder
from freetf_cli.streams import torch_seed
from freetf_cli.training.memory import memory_errors
from freetf_cli.training.optimizer import load_named_state, make_optimizers, named_state, owned, start_state
from freetf_cli.training.pace import LONG, Pace, too_long
from freetf_cli.training.parallel import Engine
from freetf_cli.training.prefetch import HostBatch, Prefetch, host_batch
from freetf_cli.training.schedule import learning_rate, objective_weights
from freetf_cli.training.signals import StopRequest, stop_error
from freetf_cli.training.step import TrainStep, autocast
from freetf_cli.training.turns import ROWS, Turns
from freetf_cli.training.world import ALONE, World, peer_errors

if TYPE_CHECKING:
    from freetf_cli.runs.sharded import ShardedSaver

SAMPLE_TOKENS = 256  # length limit of the samples kept with a run
NOISE_ROWS = 512  # rows of a batch whose noise is drawn at once; each process draws the blocks that its rows are in
QUEUED = 2  # steps that the host may be ahead of a GPU
STOPS = [signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]


@dataclass(frozen=True)
class Hooks:
    """Callbacks of the loop: after every logged step, after every saved checkpoint, and for warnings."""

    progress: Callable[[Progress], None] = lambda progress: None
    saved: Callable[[RunFolder], None] = lambda folder: None
    warn: Callable[[str], None] = lambda message: None


class _StopAsked(Exception):
    """A signal asks this process to stop while it measures and the others wait."""


class Loop:
    """A run in progress. `step` counts the updates that were made."""

    def __init__(
        self,
        recipe: Recipe,
        source: DataSource,
        engine: Engine,
        folder: RunFolder,
        device: torch.device,
        hooks: Hooks,
        stop: StopRequest,
        world: World = ALONE,
    ) -> None:
        self.recipe, self.source, self.engine, self.folder = recipe, source, engine, folder
        self.device, self.hooks, self.stop, self.world = device, hooks, stop, world
        self.config = recipe.train
        if self.config.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        self.optimizers = make_optimizers(engine.model, self.config, device, engine.parameters)
        self.turns = Turns(self.config.encoder)
        self.noise_generator = torch.Generator(device=device)
        self.rows = self.world.rows(self.config.batch, self.config.grad_accum_steps)
        shape = (self.config.batch // self.world.size, source.context)
        self.update = TrainStep(engine, self.optimizers, self.config, device, shape, hooks.warn)
        self.batches = Prefetch(self._batch, self.config.steps)
        self.saver: ShardedSaver | None = None
        if recipe.parallel.is_sharded:
            from freetf_cli.runs import sharded

            self.saver = sharded.ShardedSaver(pin=device.type == "cuda")
        self.step = self.saved_step = self.tokens = 0  # tokens: the targets that counted
        self.skipped: list[int] = []  # steps without an update, counted from 1
        self.pace = Pace(self.config.steps, self.step, self.tokens)
        self._queue: deque[Any] = deque()  # CUDA events before the steps that may still run
        self._estimated = device.type != "cpu"  # whether the user knows how long the run takes

    @property
    def model(self) -> Decoder:
        return self.engine.model

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take over a checkpoint's step and moments, and its weights where they are sharded. Raises InputError if they do not fit."""
        self.step = self.saved_step = checkpoint.step
        tokens = checkpoint.state.get("tokens")
        self.tokens = tokens if type(tokens) is int else 0
        skips = checkpoint.state.get("consecutive_skips", 0)
        if type(skips) is int and 0 <= skips <= self.config.skip_limit:
            self.update.consecutive_skips.fill_(skips)
        if self.saver is not None:
            from freetf_cli.runs.sharded import load_sharded

            self._start_moments()
            load_sharded(checkpoint, *self.engine.states(self._moments()))
            return
        try:
            self.turns.restore(checkpoint.state.get("encoder", {}))
            moments = checkpoint.optimizer()
            for optimizer in self.optimizers:
                load_named_state(owned(self.engine.parameters, optimizer), optimizer, moments)
        except ValueError as error:
            raise InputError(f"the optimizer state does not fit the model: {error}", str(checkpoint.folder)) from None

    def _moments(self) -> dict[str, Tensor]:
        return named_state(self.engine.parameters, *self.optimizers)

    def _start_moments(self) -> None:
        for optimizer in self.optimizers:
            start_state(owned(self.engine.parameters, optimizer), optimizer)

    def run(self, until: int | None = None) -> None:
        """Train to the recipe's last step, with logs, evaluations and checkpoints on the way.

        until: end after this step instead, as a stopped run does, with a checkpoint; learning rates are those of the whole run.
        """
        last = min(until or self.config.steps, self.config.steps)
        self.world.barrier()
        if self.saver is not None:
            if not self.step:
                self._start_moments()
            self.saver.reserve(*self.engine.states(self._moments()))
        self.pace = Pace(last, self.step, self.tokens)
        with self.batches:
            if self.step and self._evaluates():  # an earlier process may have ended in the middle of it
                self._evaluate_and_sample()
            self.pace.resume()
            while self.step < last:
                sums, grad_norm, count, size_bytes = self.train_step()
                self.step, self.tokens = self.step + 1, self.tokens + count
                self._watch_peers()
                checks = self.turns.is_checked(self.step)
                logs = self.step in (1, self.config.steps) or self._due(self.config.log_every)
                saves = self._evaluates() or self._due(self.config.save_every)
                if logs or saves or checks:
                    self._record_faults()  # waits for the device, so that the steps can be timed
                self.pace.step_made()
                if checks:
                    self._check_lag()
                    self.pace.resume()
                if logs and self.step not in self.skipped:
                    kappa, lr = self._weights(self.step - 1).kappa, learning_rate(self.step - 1, self.config)
                    metrics = self._metrics(sums, count, size_bytes, "train", kappa, lr, float(grad_norm))
                    self._report(metrics, self.pace.timing(self.step, self.tokens))
                if saves:
                    self.save()
                    if self._evaluates():
                        self._evaluate_and_sample()
                    self.pace.resume()
        if self.saved_step != self.step:
            self.save()
        self.finish_save()
        self.folder.finish("done" if self.step == self.config.steps else "stopped")
        self.hooks.saved(self.folder)

    def train_step(self) -> tuple[Tensor, Tensor, int, float]:
        """Make one update. Returns the sums of LossTerms over the batch [5], the gradient's norm before clipping [], the number of targets
        that count, and the bytes of their text.

        Every step writes into the same two tensors: read them before the next one. Raises Stopped or Interrupted before the update if a
        signal asks for it.
        """
        batch = self.batches.take(self.step)
        self._limit_queue()
        count, size_bytes = self._agree(batch.count, batch.bytes)
        self.update.noise.copy_(self._noise(self.step))
        turn = self.turns.now(self.step)
        with peer_errors():
            self.update(self.step, batch, int(count), learning_rate(self.step, self.config), self._weights(self.step), turn)
        if self.turns.reads_objective:
            self.turns.after(turn, float(self.update.sums[0] + self.update.sums[2]) / count)
        if self.device.type != "cuda":  # where asking costs nothing
            self._record_faults()
        return self.update.sums, self.update.grad_norm, int(count), size_bytes

    def _watch_peers(self) -> None:
        """After the first step, which compiles, wait for all processes. After the second, set time limits to a step's communication."""
        made = self.step - self.pace.start
        if self.world.size == 1 or made > 2:
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        if made == 1:
            self.world.barrier()
            self._began = time.monotonic()
            return
        queued = QUEUED * (time.monotonic() - self._began) if self.device.type == "cuda" else 0.0
        self.world.expect_answers(self.engine.groups(), 2 * queued)

    def _limit_queue(self) -> None:
        """Keep the host at most QUEUED steps ahead of its GPU, so that work in the queue is not mistaken for a process that hangs."""
        if self.world.size == 1 or self.device.type != "cuda":
            return
        self._queue.append(torch.cuda.current_stream(self.device).record_event())
        if len(self._queue) > QUEUED:
            self._queue.popleft().synchronize()

    def _check_lag(self) -> None:
        """Measure I(S; Z) of held-out rows, and end the turns of a lagging encoder where it no longer rises. One process only."""
        config = self.recipe.eval
        self.noise_generator.manual_seed(self._noise_seed(-1))
        with self.engine.whole() as model, autocast(self.config, self.device):
            batches = self.source.held_out(config.split, ROWS, self.recipe.rows_at_once)
            known = information(model, batches, lambda count: torch.stack([self._uniform() for _ in range(count)]))
        self.turns.check(known)
        if not self.turns.lags:
            self.folder.update_manifest(encoder_lagged={"steps": self.step, "information_nats": known})
            what = f"I(S; Z) of held-out rows no longer rises ({known:.2f} nats): encoder and decoder are updated together"
            self.hooks.warn(f"{what} after step {self.step}")

    @torch.no_grad()
    def evaluate(self, model: Decoder) -> Metrics:
        """Measure the held-out split with Z from the posterior, the objective's final weights, and the same noise at each step.

        Each process takes every `world.size`-th batch, and all return the same sums. Raises FreetfError if the loss is not finite.
        """
        config, size = self.recipe.eval, self.world.size
        final = self._weights(self.config.steps)
        self.noise_generator.manual_seed(self._noise_seed(-1))
        weights = ObjectiveWeights(*torch.tensor(final, device=self.device).unbind())
        total, count, size_bytes = torch.zeros(5, device=self.device), 0, 0.0
        compares = self.recipe.latent is not None and self.recipe.latent.objective.has_mismatch  # the sequences of a batch
        rows = self.recipe.rows_at_once * (size if compares else 1)
        for number, batch in enumerate(self.source.held_out(config.split, config.sequences, rows)):
            if number % size == 0:
                self._agree()
            noise_BTH = torch.stack([self._uniform() for _ in batch.inputs])  # row by row: the same for every size of batch
            count += int((batch.targets != IGNORE).sum())
            size_bytes += float(self.source.target_bytes(config.split, batch.targets).sum())
            if number % size == self.world.rank:
                tokens_BT, targets_BT = tensors(model, batch)
                with autocast(self.config, self.device):
                    output = model(tokens_BT, noise=noise_BTH, targets_BT=targets_BT, weights=weights)
                total += output.losses.stack()
        total = torch.tensor(self.world.sum(total.tolist()))
        if not torch.isfinite(total).all():
            raise self._failure("the held-out loss is not finite")
        held_out = self._metrics(total, count, size_bytes, config.split, final.kappa, lr=None, grad_norm=None)
        return self._with_bounds(model, held_out) if self.step == self.config.steps and self.world.is_main else held_out

    def _with_bounds(self, model: Decoder, held_out: Metrics) -> Metrics:
        """The last held-out metrics with the bounds. The run goes on without them if memory is too small for their rows."""

        def stop_if_asked(_: int) -> None:
            if self.world.size == 1:
                self._agree()
            elif self.stop.signal is not None:  # the others do not measure, and would not answer now
                raise _StopAsked

        try:
            with autocast(self.config, self.device):
                return with_bounds(held_out, model, self.source, self.recipe.eval.sequences, stop_if_asked)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self.hooks.warn("out of memory: nll was not measured; `freetf evaluate` does it without the optimizer's memory")
            return held_out

    def save(self) -> None:
        """Save a checkpoint of this step, and delete old ones (train.keep_last, keep_every)."""
        self._record_faults()
        self._check_weights()
        weights, moments = self.engine.states(self._moments())
        state = {
            "step": self.step,
            "tokens": self.tokens,
            "recipe": self.recipe.model_dump(exclude_none=True),
            "data": asdict(self.source.facts),
            "data_folder": self.source.folder and os.path.relpath(self.source.folder.resolve(), self.folder.path.resolve()),
            "consecutive_skips": int(self.update.consecutive_skips),
            **({"encoder": turns} if (turns := self.turns.state()) else {}),
        }
        folder = self.folder.checkpoint(self.step)
        if self.saver is not None:
            self.saver.save(folder, weights, moments, state, self.source.tokenizer, asynchronous=True)
        elif self.world.is_main:
            save_checkpoint(folder, weights, moments, state, self.source.tokenizer)
        self.folder.prune(self.config.keep_last, self.config.keep_every)
        self.world.barrier()
        self.saved_step = self.step

    def finish_save(self) -> None:
        """Wait until the last checkpoint is on the disk, in the form that one process writes."""
        if self.saver is None:
            return
        self.saver.wait()
        if self.world.is_main and self.saved_step:
            consolidate(self.folder.checkpoint(self.saved_step))
            self.folder.prune(self.config.keep_last, self.config.keep_every)
        self.world.barrier()

    def _check_weights(self) -> None:
        """Raise FreetfError if the weights are not finite, or differ between processes that hold the same ones."""
        weights = [weight.detach() for weight in self.engine.parameters.values() if weight.numel()]
        sums = torch.stack([weight.view(torch.int32).sum() for weight in weights]).tolist()
        finite = bool(torch.stack([weight.isfinite().all() for weight in weights]).all())
        found = self.world.gather((finite, sums))
        if not all(each for each, _ in found):
            raise self._failure("the weights are not finite", "; a lower train.lr may help")
        if not self.recipe.parallel.is_sharded and any(each != sums for _, each in found):
            raise self._failure("the processes have different weights")

    def _evaluate_and_sample(self) -> None:
        """Evaluate and sample at this step, whose checkpoint is saved. Whatever ends it early, a resumed run makes what is missing."""
        missing = self.world.is_main and self.step not in self.folder.held_out_losses()
        with self.engine.whole() as model:
            if self.world.any(missing):
                with memory_errors(self.recipe, self.device, "evaluation"), suppress(_StopAsked):
                    self._report(self.evaluate(model))
                self.folder.prune(self.config.keep_last, self.config.keep_every)  # it knows now whether this checkpoint is the best
            with memory_errors(self.recipe, self.device, "samples"):
                self._sample(model)
        if self.step < self.pace.steps:  # at the end `run` does it
            self.hooks.saved(self.folder)
        self.world.barrier()
        self._agree()

    def _sample(self, model: Decoder) -> None:
        """Save samples like the paper's Figure 4, unless this step has them."""
        last = "independent" if model.latent is None else "shared"
        if not self.recipe.eval.samples or not self.world.is_main or self.folder.samples_file(self.step, last).exists():
            return
        if self.saver is not None:  # the blocks are in the dtype of training, the rest in float32
            model = model.to(autocast_dtype(self.config.precision, self.device) or torch.float32)
        seed = self.config.seed
        prompt = self.source.prompt(seed, 0)
        limit = max(SAMPLE_TOKENS, len(prompt_tokens(self.source.tokenizer, prompt)) + 1)
        spec = SampleSpec(total=min(self.source.context + 1, limit), count=self.recipe.eval.samples, prompt_z="prior", seed=seed)
        self.folder.save_samples(self.step, figure4_samples(model, self.source.tokenizer, prompt, spec, groups=2))

    def _agree(self, *numbers: float) -> list[float]:
        """The sums of these numbers over the processes. If a signal asks the run to stop, whichever process received it: save, and raise
        Stopped or Interrupted.
        """
        asked = [float(self.stop.signal == signal) for signal in STOPS]
        totals = self.world.sum([*numbers, *asked])
        signals = [signal for signal, count in zip(STOPS, totals[len(numbers) :], strict=True) if count]
        if not signals:
            return totals[: len(numbers)]
        if self.saved_step != self.step:
            self.save()
        self.finish_save()
        if self.step:
            self.hooks.saved(self.folder)
        when = f"after step {self.step}, checkpoint saved" if self.step else "before its first step"
        raise stop_error(signals[0], when, str(self.folder.path))

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

    def _failure(self, what: str, advice: str = "") -> FreetfError:
        return FreetfError(f"{what} after step {self.step}", str(self.folder.path), self._kept() + advice)

    def _kept(self) -> str:
        return "the last checkpoint is intact" if checkpoint_folders(self.folder.path) else "there is no checkpoint yet"

    def _noise(self, step: int) -> Tensor:
        """Uniform noise of this process's rows of a step, [rows, …]: a function of (seed, step, row), drawn in blocks of rows."""
        blocks: dict[int, Tensor] = {}
        rows = [row for span in self.rows for row in span]
        for block in sorted({row // NOISE_ROWS for row in rows}):
            self.noise_generator.manual_seed(self._noise_seed(step, *([block] if block else [])))
            blocks[block] = self._uniform(min(NOISE_ROWS, self.config.batch - block * NOISE_ROWS))
        if len(blocks) == 1 and len(rows) == len(blocks.get(0, ())):
            return blocks[0]
        whole = torch.cat(list(blocks.values()))
        first = min(blocks) * NOISE_ROWS
        return whole[torch.tensor([row - first for row in rows], device=self.device)]

    def _noise_seed(self, key: int, *block: int) -> int:
        """The seed of the noise of a training step (key ≥ 0), or of the held-out rows (key < 0)."""
        return torch_seed(self.config.seed, abs(key), int(key < 0), *block)

    def _uniform(self, *rows: int) -> Tensor:
        return torch.rand((*rows, *self.update.noise.shape[1:]), generator=self.noise_generator, device=self.device)

    def _batch(self, step: int) -> HostBatch:
        batch = self.source.train_batch(step, self.config.batch, self.rows)
        size_bytes = float(self.source.target_bytes(TRAIN, batch.targets).sum())
        return host_batch(batch, size_bytes, pinned=self.device.type == "cuda")

    def _weights(self, step: int) -> ObjectiveWeights:
        return objective_weights(step, self.recipe.latent, self.config.steps)

    def _metrics(
        self, sums: Tensor, count: int, size_bytes: float, split: str, kappa: float, lr: float | None, grad_norm: float | None
    ) -> Metrics:
        ce, kl, penalty, above, latents = sums.tolist()
        loss, share = (ce + penalty) / count, above / latents if latents else 0.0
        means = (loss, ce / count, kl / count, penalty / count)
        return Metrics(self.step, self.tokens, split, *means, share, kappa, lr, grad_norm, size_bytes / count or None)

    def _report(self, metrics: Metrics, timing: Timing | None = None) -> None:
        """Record and show metrics."""
        self.folder.append(metrics, timing)
        remaining = self.pace.remaining(self.step)
        self.hooks.progress(Progress(metrics, self.config.steps, self.pace.rate(self.step), remaining, self.source.facts))
        if timing is not None and (growth := self.pace.growth.warning()):
            self.hooks.warn(growth)
        if not self._estimated and self.pace.is_known(self.step):
            self._estimated = True
            if remaining > LONG:
                self.hooks.warn(too_long(self.recipe, self.source.context, remaining))

    def _evaluates(self) -> bool:
        """Whether the held-out split is measured at this step."""
        return self.step == self.config.steps or self._due(self.recipe.eval.every)

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0
