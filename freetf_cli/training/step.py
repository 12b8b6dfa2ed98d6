"""One update of the weights, in which the device never waits for the host (docs/architecture.md, Steps on a GPU).

On CUDA the whole update, from zeroing the gradients to AdamW, is captured once as a graph and replayed. A graph reads and writes fixed
addresses, so everything that changes between steps, the learning rate included, is copied into tensors first. A step whose loss or
gradient is not finite is skipped on the device too. After `skip_limit` consecutive skips the next one halts the training: the weights stay
as they are until the host reads `faults`.

Shapes: B sequences, T positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import nn

from freetf_cli.config.recipe import TrainConfig
from freetf_cli.device import autocast_dtype
from freetf_cli.errors import InputError, is_out_of_memory
from freetf_cli.model.decoder import Decoder
from freetf_cli.model.latent import ObjectiveWeights
from freetf_cli.training.parallel import Engine
from freetf_cli.training.prefetch import HostBatch
from freetf_cli.training.turns import Turn

FAULTS_KEPT = 64  # faults that are remembered until the host reads them
NORM_EPS = 1e-6  # the one that torch's clip_grad_norm_ uses


class Fault(NamedTuple):
    """A step, counted from 0, whose loss or gradient was not finite."""

    step: int
    ce: float
    grad_norm: float


class TrainStep:
    """The update of a step: `step(number, batch, lr, weights)`, after the step's noise was written into `step.noise`.

    Reading the tensors that a call writes waits for the device. They, the weights and the moments stay the same objects from the first
    call on, because a graph knows them by address. With several processes each has its rows, and all make the same update.
    """

    def __init__(
        self,
        engine: Engine,
        optimizers: Sequence[torch.optim.Optimizer],  # of `make_optimizers`: one, or the decoder's and the encoder's
        config: TrainConfig,
        device: torch.device,
        shape: tuple[int, int],  # (B, T) of this process's share of a batch
        warn: Callable[[str], None] = lambda message: None,
    ) -> None:
        self.engine, self.optimizers, self.config, self.device, self.warn = engine, optimizers, config, device, warn
        latent = self.model.latent
        self.inputs, self.targets = (torch.zeros(shape, dtype=torch.int64, device=device) for _ in range(2))
        noise_shape = () if latent is None else latent.noise_shape(shape[1])
        self.noise = torch.zeros(shape[0], *noise_shape, device=device)
        self.number, self.count = (torch.zeros((), device=device) for _ in range(2))
        self.lrs, self.idle = ([torch.zeros((), device=device) for _ in optimizers] for _ in range(2))  # idle: 1 where it is not its turn
        self.weights = ObjectiveWeights(*(torch.zeros((), device=device) for _ in ObjectiveWeights._fields))
        self.sums = torch.zeros(5, device=device)  # the LossTerms of the whole batch
        self.grad_norm, self.consecutive_skips = (torch.zeros((), device=device) for _ in range(2))  # before clipping; up to this step
        self.skip_update, self.halted = (torch.zeros((), device=device) for _ in range(2))  # 1: no update in this step; in no later one
        self.skips = [torch.zeros((), device=device) for _ in optimizers] if len(optimizers) > 1 else [self.skip_update]
        self._fault_count = torch.zeros((), device=device)
        self._faults = torch.zeros(FAULTS_KEPT, 3, device=device)  # the last ones: step (exact below 2^24), CE, gradient norm
        self._reported = 0  # faults that the host has read
        self._graph: torch.cuda.CUDAGraph | None = None
        self._uses_graph = uses_graph(config, device) and engine.captures
        self._fused = all(group["fused"] for optimizer in optimizers for group in optimizer.param_groups) and not engine.offloads
        self._grad_scale: torch.Tensor | None = None
        if self._fused and config.grad_clip and device.type == "cuda":
            self._grad_scale = torch.ones((), device=device)
        for optimizer, skip in zip(optimizers, self.skips, strict=True) if self._fused else ():
            # the attributes through which GradScaler makes a fused optimizer skip a step, and divides its gradient
            optimizer.found_inf = skip  # type: ignore[attr-defined]
            if self._grad_scale is not None:
                optimizer.grad_scale = self._grad_scale  # type: ignore[attr-defined]

    def __call__(self, number: int, batch: HostBatch, count: int, lr: float, weights: Sequence[float], turn: Turn = Turn.BOTH) -> None:
        """Update the model from a batch. count: the targets of the whole batch. lr: of the decoder. turn: which of two optimizers makes
        its step; the other keeps weights, moments and step counters. On CUDA it returns before the work is done."""
        self.inputs.copy_(batch.inputs, non_blocking=True)
        self.targets.copy_(batch.targets, non_blocking=True)
        for tensor, value in zip((self.number, self.count, *self.weights), (number, count, *weights), strict=True):
            tensor.fill_(value)
        rates, owners = (lr, lr * self.config.encoder.lr_scale), (Turn.DECODER, Turn.ENCODER)
        for optimizer, tensor, idle, rate, owner in zip(self.optimizers, self.lrs, self.idle, rates, owners, strict=False):
            tensor.fill_(rate)
            idle.fill_(turn not in (Turn.BOTH, owner))
            for group in optimizer.param_groups:  # on a CPU a tensor would round the rate to float32
                group["lr"] = tensor if self.device.type == "cuda" and self._fused else rate
        if self._uses_graph and self._graph is None:
            self._try_to_capture()
        if self._graph is None:
            self._update()
        else:
            self._graph.replay()

    @property
    def model(self) -> Decoder:
        return self.engine.model

    def faults(self) -> list[Fault]:
        """The faults since the last call, at most the last FAULTS_KEPT of them. Waits for the device."""
        count = int(self._fault_count)
        new = range(max(self._reported, count - FAULTS_KEPT), count)
        self._reported = count
        rows = self._faults.tolist() if new else []
        return [Fault(int(step), ce, grad_norm) for step, ce, grad_norm in (rows[number % FAULTS_KEPT] for number in new)]

    def close(self) -> None:
        """Free the graph: NCCL does not destroy a process group while a graph uses it."""
        self._graph = None

    def _update(self) -> None:
        self.engine.zero_grad()
        self.sums.zero_()
        size = len(self.inputs) // self.config.grad_accum_steps
        for start in range(0, len(self.inputs), size):
            rows = slice(start, start + size)
            self.engine.last_part(start + size == len(self.inputs))
            with autocast(self.config, self.device):
                output = self.engine.forward(self.inputs[rows], noise=self.noise[rows], targets_BT=self.targets[rows], weights=self.weights)
            assert output.losses is not None
            (output.losses.objective / self.count).backward()  # type: ignore[no-untyped-call]
            self.sums += output.losses.stack()
        self.engine.collect(self.sums)
        self._clip()
        self._check_finite()
        for optimizer, skip in zip(self.optimizers, self.skips, strict=True):
            if self._fused or not bool(skip):
                optimizer.step()

    def _clip(self) -> None:
        """Measure the gradient's norm and clip it. On CUDA the optimizer divides the gradient, which saves a pass over it."""
        self.grad_norm.copy_(self.engine.norm())
        if self._grad_scale is not None:
            self._grad_scale.copy_(((self.grad_norm + NORM_EPS) / self.config.grad_clip).clamp(min=1.0))
        elif self.config.grad_clip:
            nn.utils.clip_grads_with_norm_(self.engine.parameters.values(), self.config.grad_clip, self.grad_norm)

    def _check_finite(self) -> None:
        """Set the flags that skip this update: clipping a gradient that has one Inf would make every weight NaN."""
        failed = ~(torch.isfinite(self.sums).all() & torch.isfinite(self.grad_norm))
        new = failed & (self.halted == 0)
        fault = torch.stack((self.number, self.sums[0], self.grad_norm))
        slot = torch.arange(FAULTS_KEPT, device=self.device) == self._fault_count % FAULTS_KEPT
        self._faults.copy_(torch.where((slot & new)[:, None], fault, self._faults))
        self._fault_count += new
        self.consecutive_skips.copy_(torch.where(failed, self.consecutive_skips + 1, torch.zeros_like(self.consecutive_skips)))
        self.halted.copy_(torch.maximum(self.halted, (self.consecutive_skips > self.config.skip_limit).float()))
        self.skip_update.copy_(torch.maximum(self.halted, failed.float()))
        for skip, idle in zip(self.skips, self.idle, strict=True) if len(self.skips) > 1 else ():
            skip.copy_(torch.maximum(self.skip_update, idle))

    def _try_to_capture(self) -> None:
        """Capture the update. If an engine for several processes cannot be captured, go on without a graph."""
        try:
            self._graph = self._capture()
        except RuntimeError as error:
            if self.engine.is_alone or is_out_of_memory(error):
                raise
            self._uses_graph = False
            self.engine.zero_grad()
            self.halted.zero_()
            self.warn(f"steps are not replayed as a CUDA graph, which cannot be captured here: {str(error).splitlines()[0]}")

    def _capture(self) -> torch.cuda.CUDAGraph:
        """The update as a CUDA graph. The warm-up updates run halted, so that weights, moments and step counters stay as they are."""
        side: torch.cuda.Stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        current = torch.cuda.current_stream(self.device)
        self.halted.fill_(1.0)
        skips = self.consecutive_skips.clone()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(self.engine.warm_up):
                self._update()
        current.wait_stream(side)
        self.engine.zero_grad()  # the graph must own its gradients
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["capturable"] = True
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):  # the prefetch thread may pin memory meanwhile
            self._update()
        self.halted.zero_()
        self.consecutive_skips.copy_(skips)
        return graph


def uses_graph(config: TrainConfig, device: torch.device) -> bool:
    """Whether updates are replayed as a CUDA graph. Raises InputError if `train.cuda_graph` asks for it on another device."""
    if config.cuda_graph == "on" and device.type != "cuda":
        raise InputError(f"train.cuda_graph = 'on' on {device.type}: only CUDA has graphs", hint="'auto' uses them where they exist")
    return config.cuda_graph != "off" and device.type == "cuda"


def autocast(config: TrainConfig, device: torch.device) -> AbstractContextManager[Any]:
    """The autocast context of `train.precision` on a device, for the forward pass."""
    dtype = autocast_dtype(config.precision, device)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
