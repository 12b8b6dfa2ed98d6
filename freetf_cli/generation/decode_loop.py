"""The steps of generation after the prompt: choose a token, append it, read it.

A step of one sequence is hundreds of kernels of a few microseconds, which Python launches more slowly than a GPU runs them. On CUDA
a step is therefore captured once as a CUDA graph and replayed: the cache's length is a number on the device, and the host asks only
now and then whether all sequences have ended.

Shapes: B sequences, P prompt positions, T positions of a row, V vocabulary, N new tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from freetf_cli.model.context import Cache
from freetf_cli.model.decoder import Decoder

LEAST_STEPS = 8  # fewer steps are not worth a capture
CHECK_EVERY = 32  # on CUDA, check after this many steps whether all sequences have ended
ASK_EVERY = 8  # steps between two calls of `ended`, on a CPU

Choose = Callable[[Tensor, Tensor], Tensor]  # logits [B, V] and a quantile each [B] to tokens [B]
Ended = Callable[[Tensor], Tensor]  # from the new tokens so far [B, n], whether each sequence is complete [B]


@dataclass
class DecodeLoop:
    """Generation of a batch whose prompt is in the cache.

    tokens_BT: the rows, filled in place after the prompt. z: the latent of all input positions; None of a baseline. quantiles_BN: a
    uniform number for each token to choose. logits_BV: logits of the first new token. separator: the token that ends a sequence.
    ended: asked now and then which sequences may end; all of them go on until the last has ended.
    """

    model: Decoder
    cache: Cache
    tokens_BT: Tensor
    z: Tensor | None
    quantiles_BN: Tensor
    logits_BV: Tensor
    choose: Choose
    separator: int | None
    ended: Ended | None = None

    def __post_init__(self) -> None:
        assert isinstance(self.cache.length, int)
        self.prompt = self.cache.length
        self.ended_B = torch.zeros(len(self.tokens_BT), dtype=torch.bool, device=self.tokens_BT.device)

    def run(self) -> None:
        """Generate until the rows are full or all sequences have ended."""
        steps = self.tokens_BT.shape[1] - self.prompt - 1  # the last token is chosen, but not read
        if self.tokens_BT.is_cuda and steps >= LEAST_STEPS:
            self._run_graph(steps)
        else:
            self._run_eager(steps)

    def _run_eager(self, steps: int) -> None:
        for t in range(self.prompt, self.prompt + steps):
            token_B = self._append(t)
            if self._have_ended(t + 1, ask=(t + 1 - self.prompt) % ASK_EVERY == 0):
                return
            self.logits_BV = self._read(token_B, t)
        self._append(self.prompt + steps)

    def _run_graph(self, steps: int) -> None:
        config = self.model.config
        self.cache.make_static(config.head_width, config.rope_theta)
        self.logits_BV = self.logits_BV.clone()
        graph = captured(self.step, self.tokens_BT.device, warm_up=1)  # the warm-up is the first step
        for done in range(1, steps):
            graph.replay()
            if done % CHECK_EVERY == 0 and self._have_ended(self.prompt + done, ask=True):
                return
        self._append(self.prompt + steps)

    def step(self) -> None:
        """One step at the static cache's length, all of it on the device."""
        length = self.cache.length
        assert isinstance(length, Tensor)
        at = length[None].clone()
        token_B = self.choose(self.logits_BV, self.quantiles_BN.index_select(1, at - self.prompt)[:, 0])
        self.tokens_BT.index_copy_(1, at, token_B[:, None])
        self._note_ends(token_B)
        self.logits_BV.copy_(self._read(token_B, at))

    def _append(self, t: int) -> Tensor:
        token_B = self.choose(self.logits_BV, self.quantiles_BN[:, t - self.prompt])
        self.tokens_BT[:, t] = token_B
        self._note_ends(token_B)
        return token_B

    def _note_ends(self, token_B: Tensor) -> None:
        if self.separator is not None:
            self.ended_B |= token_B == self.separator

    def _have_ended(self, end: int, *, ask: bool) -> bool:
        """Whether all sequences have ended, given their tokens before position `end`."""
        if ask and self.ended is not None:
            self.ended_B |= self.ended(self.tokens_BT[:, self.prompt : end])
        return (self.separator is not None or self.ended is not None) and bool(self.ended_B.all())

    def _read(self, token_B: Tensor, t: int | Tensor) -> Tensor:
        """Read one more position; the logits after it, [B, V]. The encoder is off: Z is given."""
        z = None if self.model.latent is None or self.z is None else self.model.latent.span(self.z, t, 1)
        logits_B1V = self.model(token_B[:, None], z, cache=self.cache).logits
        return logits_B1V[:, -1]


def captured(work: Callable[[], object], device: torch.device, warm_up: int) -> torch.cuda.CUDAGraph:
    """The work as a CUDA graph, after `warm_up` calls of it in which libraries and kernels initialise themselves."""
    side: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    current = torch.cuda.current_stream(device)
    side.wait_stream(current)
    with torch.cuda.stream(side):
        for _ in range(warm_up):
            work()
    current.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        work()
    return graph
