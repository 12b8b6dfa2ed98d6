"""One update of the weights, as one piece of work for the device: nothing in it asks the host.

A step of a small model is a thousand kernels of some microseconds each, which Python cannot launch as fast as a GPU runs them. On CUDA
the whole update, from the gradient's zero to AdamW, is therefore captured once as a graph and replayed at every step. A graph reads and
writes fixed addresses: what changes between steps lies in tensors that are filled before it, the learning rate among them.

Where a loss or a gradient is not finite, the update is left out on the device too. After `skip_limit` such steps in a row and one more,
every later update is: the weights stay those of the last good step until the host comes to ask for `faults`.

Shapes: B sequences, T positions, H latent bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from freetf_cli.config.recipe import TrainConfig
from freetf_cli.device import autocast_dtype
from freetf_cli.errors import InputError
from freetf_cli.model.decoder import Decoder
from freetf_cli.model.latent import ObjectiveWeights
from freetf_cli.model.loss import LossTerms
from freetf_cli.training.distributed import World
from freetf_cli.training.prefetch import HostBatch

REMEMBERED = 64  # faults that wait for the host
NORM_EPS = 1e-6  # as torch's own clipping has it
WARM_UP = 3  # updates before the capture: libraries set themselves up, and torch.compile compiles, in the first of them


class Fault(NamedTuple):
    """A step, counted from 0, whose loss or gradient was not finite."""

    step: int
    ce: float
    grad_norm: float


def uses_graph(config: TrainConfig, device: torch.device) -> bool:
    """Whether updates are replayed as a CUDA graph; InputError where that is asked of another device."""
    if config.cuda_graph == "on" and device.type != "cuda":
        raise InputError(f"train.cuda_graph = 'on' on {device.type}: only CUDA has graphs", hint="'auto' uses them where they are")
    return config.cuda_graph != "off" and device.type == "cuda"


class TrainStep:
    """The update of a step: `step(number, batch, rate, scalars)`, after the noise was written into `step.noise`; of several processes
    each has its rows of the batch, and all make the same update.

    sums [5] (of LossTerms over the batch) and grad_norm [] (before clipping) are written by every call. Weights, moments and all
    of these keep their tensors from the first call on: a graph knows them by address.
    shape: sequences and positions of this process's part of a batch. noise_shape: of the noise of one sequence.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: LossFunction,
        optimizer: torch.optim.Optimizer,
        config: TrainConfig,
        device: torch.device,
        shape: tuple[int, int],
        noise_shape: tuple[int, ...],
        world: World,
    ) -> None:
        self.model, self.loss, self.optimizer, self.config, self.device = model, loss, optimizer, config, device
        self.world = world
        self.inputs, self.targets = (torch.zeros(shape, dtype=torch.int64, device=device) for _ in range(2))
        self.noise = torch.zeros(shape[0], *noise_shape, device=device)
        self.number, self.count, self.rate = (torch.zeros((), device=device) for _ in range(3))
        self.scalars = [torch.zeros((), device=device) for _ in ObjectiveWeights._fields]
        self.sums, self.grad_norm = torch.zeros(5, device=device), torch.zeros((), device=device)
        self._idle = torch.zeros((), device=device)  # 1.0: this step makes no update
        self._ended = torch.zeros((), device=device)  # 1.0: nor does any later one
        self._row = torch.zeros((), device=device)  # failed steps up to here, one after the other
        self._count = torch.zeros((), device=device)  # of all faults
        self._faults = torch.zeros(REMEMBERED, 3, device=device)  # of the last: number (exact below 2^24), CE and gradient norm
        self._told = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._capture_wanted = uses_graph(config, device)
        self._skips = all(group["fused"] for group in optimizer.param_groups)
        if self._skips:
            optimizer.found_inf = self._idle  # type: ignore[attr-defined]  # as GradScaler tells a fused optimizer to do nothing
        self._excess: torch.Tensor | None = None
        if self._skips and config.grad_clip and device.type == "cuda":  # and by what to divide the gradient, which it reads anyway
            self._excess = torch.ones((), device=device)
            optimizer.grad_scale = self._excess  # type: ignore[attr-defined]

    def __call__(self, number: int, batch: HostBatch, rate: float, scalars: Sequence[float]) -> None:
        """Update the weights from a batch. On CUDA it returns before that is done."""
        self.inputs.copy_(batch.inputs, non_blocking=True)
        self.targets.copy_(batch.targets, non_blocking=True)
        values = (number, batch.count, rate, *scalars)
        for tensor, value in zip((self.number, self.count, self.rate, *self.scalars), values, strict=True):
            tensor.fill_(value)
        for group in self.optimizer.param_groups:  # a CPU would round the rate to float32 in a tensor
            group["lr"] = self.rate if self.device.type == "cuda" else rate
        if self._capture_wanted and self._graph is None:
            self._graph = self._captured()
        if self._graph is None:
            self._update()
        else:
            self._graph.replay()

    def faults(self) -> list[Fault]:
        """The steps that were not finite since the last call, the last REMEMBERED of them; this waits for the device."""
        count = int(self._count)
        new = min(count - self._told, REMEMBERED)
        self._told = count
        rows = self._faults.tolist() if new else []
        newest = (rows[(count - back) % REMEMBERED] for back in range(new, 0, -1))
        return [Fault(int(number), ce, grad_norm) for number, ce, grad_norm in newest]

    @property
    def in_row(self) -> int:
        """How many steps up to the last were not finite, one after the other: a part of what a run is; this waits for the device."""
        return int(self._row)

    @in_row.setter
    def in_row(self, count: int) -> None:
        self._row.fill_(count)

    @property
    def ended(self) -> bool:
        """Whether too many steps in a row were not finite; this waits for the device."""
        return bool(self._ended)

    def close(self) -> None:
        """Give the graph back: NCCL waits with the end of its group for the graphs that it is part of."""
        self._graph = None

    def _update(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.sums.zero_()
        size = len(self.inputs) // self.config.grad_accum_steps
        for start in range(0, len(self.inputs), size):
            part = slice(start, start + size)
            with autocast(self.config, self.device):
                terms = LossTerms(*self.loss(self.inputs[part], self.targets[part], self.noise[part], *self.scalars))
            (terms.objective / self.count).backward()  # type: ignore[no-untyped-call]
            self.sums += terms.stack()
        self.world.sum_([*(p.grad for p in self.model.parameters() if p.grad is not None), self.sums])
        self._clip()
        self._note_fault()
        if self._skips or not bool(self._idle):
            self.optimizer.step()

    def _clip(self) -> None:
        """The gradient's norm, and its clipping; on CUDA that is left to the optimizer, and no pass of its own over the gradient."""
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        if self._excess is None:
            self.grad_norm.copy_(nn.utils.clip_grad_norm_(parameters, self.config.grad_clip or math.inf))
        else:
            self.grad_norm.copy_(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
            self._excess.copy_(((self.grad_norm + NORM_EPS) / self.config.grad_clip).clamp(min=1.0))

    def _note_fault(self) -> None:
        """Before the update: one Inf in the gradient would make every weight NaN through the clipping."""
        failed = ~(torch.isfinite(self.sums).all() & torch.isfinite(self.grad_norm))
        new = failed & (self._ended == 0)
        here = torch.stack((self.number, self.sums[0], self.grad_norm))
        slot = torch.arange(REMEMBERED, device=self.device) == self._count % REMEMBERED
        self._faults.copy_(torch.where((slot & new)[:, None], here, self._faults))
        self._count += new
        self._row.copy_(torch.where(failed, self._row + 1, torch.zeros_like(self._row)))
        self._ended.copy_(torch.maximum(self._ended, (self._row > self.config.skip_limit).float()))
        self._idle.copy_(torch.maximum(self._ended, failed.float()))

    def _captured(self) -> torch.cuda.CUDAGraph:
        """The update as a graph. The updates before it run as after the end, which leave weights, moments and their steps as they are."""
        side: torch.cuda.Stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        here = torch.cuda.current_stream(self.device)
        self._ended.fill_(1.0)
        row = self._row.clone()
        side.wait_stream(here)
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self._update()
        here.wait_stream(side)
        self.optimizer.zero_grad(set_to_none=True)  # the graph must own its gradients
        for group in self.optimizer.param_groups:
            group["capturable"] = True
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):  # the thread of the next batches may pin memory
            self._update()
        self._ended.zero_()
        self._row.copy_(row)
        return graph


LossFunction = Callable[..., tuple[Tensor, ...]]  # inputs, targets, noise, then ObjectiveWeights as tensors, to LossTerms


def loss_function(model: Decoder) -> LossFunction:
    """A function (inputs [B, T], targets [B, T], noise, *ObjectiveWeights) → the fields of LossTerms, for torch.compile to take whole."""

    def loss(inputs_BT: Tensor, targets_BT: Tensor, noise: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        terms = model(inputs_BT, noise=noise, targets_BT=targets_BT, weights=ObjectiveWeights(*weights)).losses
        return tuple(terms)

    return loss


def compiled(loss: LossFunction, config: TrainConfig, device: torch.device) -> LossFunction:
    """The loss as `train.compile` wants it."""
    on = config.compile == "on" or (config.compile == "auto" and device.type == "cuda")
    made: LossFunction = torch.compile(loss, dynamic=False) if on else loss
    return made


def autocast(config: TrainConfig, device: torch.device) -> AbstractContextManager[Any]:
    """What `train.precision` means on a device, as a context for the forward."""
    dtype = autocast_dtype(config.precision, device)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
