"""The training loop.

Everything that a step uses is a function of (recipe, step), so a checkpoint needs only weights, optimizer moments and the step: a resumed
run continues exactly as if it had not stopped.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from signal import Signals

import torch
from torch import Tensor

from freetf_cli.config.recipe import Recipe
from freetf_cli.data.batches import IGNORE, DataSource
from freetf_cli.data.rows import TRAIN
from freetf_cli.errors import FreetfError, InputError, is_out_of_memory
from freetf_cli.evaluation.likelihood import with_bounds
from freetf_cli.evaluation.posterior import tensors
from freetf_cli.generation.sampling import SampleSpec, figure4_samples, prompt_tokens
from freetf_cli.model.decoder import Decoder
from freetf_cli.model.latent import ObjectiveWeights
from freetf_cli.records import Metrics, Progress, Timing
from freetf_cli.runs.checkpoint import Checkpoint, checkpoint_folders, save_checkpoint
from freetf_cli.runs.folder import RunFolder
from freetf_cli.streams import torch_seed
from freetf_cli.training.distributed import ALONE, World
from freetf_cli.training.float8 import use_float8
from freetf_cli.training.memory import memory_errors
from freetf_cli.training.optimizer import load_named_state, make_optimizer, named_state
from freetf_cli.training.pace import LONG, Pace, too_long
from freetf_cli.training.prefetch import HostBatch, Prefetch, host_batch
from freetf_cli.training.schedule import learning_rate, objective_weights
from freetf_cli.training.signals import StopRequest, stop_error
from freetf_cli.training.step import TrainStep, autocast

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
        world: World = ALONE,
    ) -> None:
        self.recipe, self.source, self.model, self.folder = recipe, source, model, folder
        self.device, self.hooks, self.stop, self.world = device, hooks, stop, world
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
        self.step = self.saved_step = self.tokens = 0  # tokens: the targets that counted
        self.skipped: list[int] = []  # steps without an update, counted from 1
        self.pace = Pace(self.config.steps, self.step, self.tokens)
        self._estimated = device.type != "cpu"  # whether the user knows how long the run takes

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take over a checkpoint's step and optimizer moments. Raises InputError if they do not fit the model."""
        self.step = self.saved_step = checkpoint.step
        tokens = checkpoint.state.get("tokens")
        self.tokens = tokens if type(tokens) is int else 0
        skips = checkpoint.state.get("consecutive_skips", 0)
        if type(skips) is int and 0 <= skips <= self.config.skip_limit:
            self.update.consecutive_skips.fill_(skips)
        try:
            load_named_state(self.model, self.optimizer, checkpoint.optimizer())
        except ValueError as error:
            raise InputError(f"the optimizer state does not fit the model: {error}", str(checkpoint.folder)) from None

    def run(self) -> None:
        """Train to the recipe's last step, with logs, evaluations and checkpoints on the way."""
        self.pace = Pace(self.config.steps, self.step, self.tokens)
        with self.batches:
            if self.step and self._evaluates():  # an earlier process may have ended in the middle of it
                self._evaluate_and_sample()
            self.pace.resume()
            while self.step < self.config.steps:
                self._stop_if_asked()
                sums, grad_norm, batch = self.train_step()
                self.step, self.tokens = self.step + 1, self.tokens + batch.count
                logs = self.step in (1, self.config.steps) or self._due(self.config.log_every)
                saves = self._evaluates() or self._due(self.config.save_every)
                if logs or saves:
                    self._record_faults()  # waits for the device, so that the steps can be timed
                self.pace.step_made()
                if logs and self.step not in self.skipped:
                    kappa, lr = self._weights(self.step - 1).kappa, learning_rate(self.step - 1, self.config)
                    metrics = self._metrics(sums, batch.count, batch.bytes, "train", kappa, lr, float(grad_norm))
                    self._report(metrics, self.pace.timing(self.step, self.tokens))
                if saves:
                    self.save()
                    if self._evaluates():
                        self._evaluate_and_sample()
                    self.pace.resume()
        self.folder.finish("done")
        self.hooks.saved(self.folder)

    def train_step(self) -> tuple[Tensor, Tensor, HostBatch]:
        """Make one update. Returns the sums of LossTerms over the batch [5], the gradient's norm before clipping [], and the batch.

        Every step writes into the same two tensors: read them before the next one.
        """
        batch = self.batches.take(self.step)
        self.update.noise.copy_(self._noise(self.step, self.config.batch)[self.rows])
        self.update(self.step, batch, learning_rate(self.step, self.config), self._weights(self.step))
        if self.device.type != "cuda":  # where asking costs nothing
            self._record_faults()
        return self.update.sums, self.update.grad_norm, batch

    @torch.no_grad()
    def evaluate(self) -> Metrics:
        """Measure the held-out split with Z from the posterior, the objective's final weights, and the same noise at each step.

        Each process takes every `world.size`-th batch, and all return the same sums. Raises FreetfError if the loss is not finite.
        """
        config, size = self.recipe.eval, self.world.size
        final = self._weights(self.config.steps)
        self.noise_generator.manual_seed(self._noise_seed(-1))
        weights = ObjectiveWeights(*torch.tensor(final, device=self.device).unbind())
        total, count, size_bytes = torch.zeros(5, device=self.device), 0, 0.0
        for number, batch in enumerate(self.source.held_out(config.split, config.sequences, self.recipe.rows_at_once)):
            if number % size == 0:
                self._stop_if_asked()
            noise_BTH = torch.stack([self._uniform() for _ in batch.inputs])  # row by row: the same for every size of batch
            count += int((batch.targets != IGNORE).sum())
            size_bytes += float(self.source.target_bytes(config.split, batch.targets).sum())
            if number % size == self.world.rank:
                tokens_BT, targets_BT = tensors(self.model, batch)
                with autocast(self.config, self.device):
                    output = self.model(tokens_BT, noise=noise_BTH, targets_BT=targets_BT, weights=weights)
                total += output.losses.stack()
        self.world.all_reduce_sum([total])
        if not torch.isfinite(total).all():
            raise self._failure("the held-out loss is not finite")
        held_out = self._metrics(total, count, size_bytes, config.split, final.kappa, lr=None, grad_norm=None)
        return self._with_bounds(held_out) if self.step == self.config.steps and self.world.is_main else held_out

    def _with_bounds(self, held_out: Metrics) -> Metrics:
        """The last held-out metrics with the bounds. The run goes on without them if memory is too small for their rows."""

        def stop_if_alone(_: int) -> None:
            if self.world.size == 1:  # the others do not measure, and would not answer
                self._stop_if_asked()

        try:
            with autocast(self.config, self.device):
                return with_bounds(held_out, self.model, self.source, self.recipe.eval.sequences, stop_if_alone)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self.hooks.warn("out of memory: nll was not measured; `freetf evaluate` does it without the optimizer's memory")
            return held_out

    def save(self) -> None:
        """Save a checkpoint of this step, and delete old ones (train.keep_last, keep_every)."""
        self._record_faults()
        self._check_weights()
        if self.world.is_main:
            state = {
                "step": self.step,
                "tokens": self.tokens,
                "recipe": self.recipe.model_dump(exclude_none=True),
                "data": asdict(self.source.facts),
                "data_folder": self.source.folder and os.path.relpath(self.source.folder.resolve(), self.folder.path.resolve()),
                "consecutive_skips": int(self.update.consecutive_skips),
            }
            optimizer = named_state(self.model, self.optimizer)
            save_checkpoint(self.folder.checkpoint(self.step), self.model, optimizer, state, self.source.tokenizer)
            self.folder.prune(self.config.keep_last, self.config.keep_every)
        self.world.barrier()
        self.saved_step = self.step

    def _check_weights(self) -> None:
        """Raise FreetfError if the weights are not finite, or differ between processes."""
        weights = list(self.model.parameters())
        if not torch.stack([weight.isfinite().all() for weight in weights]).all():
            raise self._failure("the weights are not finite", "; a lower train.lr may help")
        if not self.world.all_equal(torch.stack([weight.detach().view(torch.int32).sum() for weight in weights])):
            raise self._failure("the processes have different weights")

    def _evaluate_and_sample(self) -> None:
        """Evaluate and sample at this step, whose checkpoint is saved. Whatever ends it early, a resumed run makes what is missing."""
        self.model.eval()
        missing = self.world.is_main and self.step not in self.folder.held_out_losses()
        if self.world.all_reduce_max(int(missing)):
            with memory_errors(self.recipe, self.device, "evaluation"):
                held_out = self.evaluate()
            self._report(held_out)
            self.folder.prune(self.config.keep_last, self.config.keep_every)  # it knows now whether this checkpoint is the best
        with memory_errors(self.recipe, self.device, "samples"):
            self._sample()
        self.model.train()
        self.hooks.saved(self.folder)

    def _sample(self) -> None:
        """Save samples like the paper's Figure 4, unless this step has them."""
        last = "independent" if self.model.latent is None else "shared"
        if not self.recipe.eval.samples or not self.world.is_main or self.folder.samples_file(self.step, last).exists():
            return
        seed = self.config.seed
        prompt = self.source.prompt(seed, 0)
        limit = max(SAMPLE_TOKENS, len(prompt_tokens(self.source.tokenizer, prompt)) + 1)
        spec = SampleSpec(total=min(self.source.context + 1, limit), count=self.recipe.eval.samples, prompt_z="prior", seed=seed)
        self.folder.save_samples(self.step, figure4_samples(self.model, self.source.tokenizer, prompt, spec, groups=2))

    def _stop_if_asked(self) -> None:
        """If a signal asks this run to stop, whichever of its processes received it: save, and raise Stopped or Interrupted."""
        number = self.world.all_reduce_max(self.stop.signal or 0)
        if not number:
            return
        if self.saved_step != self.step:
            self.save()
        if self.step:
            self.hooks.saved(self.folder)
        when = f"after step {self.step}, checkpoint saved" if self.step else "before its first step"
        raise stop_error(Signals(number), when, str(self.folder.path))

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

    def _noise(self, key: int, rows: int) -> Tensor:
        """Uniform noise [rows, …] of a training step (key ≥ 0) or of the held-out rows (key < 0): a function of (seed, key)."""
        self.noise_generator.manual_seed(self._noise_seed(key))
        return self._uniform(rows)

    def _noise_seed(self, key: int) -> int:
        return torch_seed(self.config.seed, abs(key), int(key < 0))

    def _uniform(self, *rows: int) -> Tensor:
        return torch.rand((*rows, *self.update.noise.shape[1:]), generator=self.noise_generator, device=self.device)

    def _batch(self, step: int) -> HostBatch:
        batch = self.source.train_batch(step, self.config.batch)
        size_bytes = float(self.source.target_bytes(TRAIN, batch.targets).sum())
        return host_batch(batch, self.rows, size_bytes, pinned=self.device.type == "cuda")

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
