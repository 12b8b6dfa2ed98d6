"""The steps of generation after the prompt: choose a token, write it down, read it.

A step of one sequence is hundreds of kernels of some microseconds, which Python launches more slowly than a GPU runs them. On CUDA a
step is therefore captured once as a graph and replayed: where it stands is a number on the device, and the host asks only now and then
whether all sequences have ended.

Shapes: B sequences, P prompt positions, T positions of a row, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from freetf_cli.model.decoder import Cache, Decoder
from freetf_cli.model.free_transformer import FreeTransformer

LEAST_STEPS = 8  # fewer are not worth a capture
LOOK_EVERY = 32  # steps between two questions whether all sequences have ended

Choose = Callable[[Tensor, Tensor], Tensor]  # logits [B, V] and a quantile each [B] to tokens [B]


@dataclass
class Continuation:
    """A batch whose prompt is read. tokens_BT has room for all of a row; logits_BV are those of its next token.

    z_BT: the codes of all input positions, of a Free model. quantiles_BN: for each token to choose. separator ends a sequence.
    """

    model: Decoder
    cache: Cache
    tokens_BT: Tensor
    z_BT: Tensor
    quantiles_BN: Tensor
    logits_BV: Tensor
    choose: Choose
    separator: int | None

    def __post_init__(self) -> None:
        assert isinstance(self.cache.position, int)
        self.prompt = self.cache.position
        self.ended_B = torch.zeros(len(self.tokens_BT), dtype=torch.bool, device=self.tokens_BT.device)

    def run(self) -> None:
        """Fill in the tokens, up to where all sequences have ended."""
        steps = self.tokens_BT.shape[1] - self.prompt - 1  # and one more token, which is not read
        if self.tokens_BT.is_cuda and steps >= LEAST_STEPS:
            self._replayed(steps)
        else:
            self._one_by_one(steps)

    def _one_by_one(self, steps: int) -> None:
        for t in range(self.prompt, self.prompt + steps):
            token_B = self._chosen(t)
            if self.separator is not None and bool(self.ended_B.all()):
                return
            self.logits_BV = next_logits(self.model, token_B[:, None], self.z_BT[:, t : t + 1], self.cache)
        self._chosen(self.prompt + steps)

    def _replayed(self, steps: int) -> None:
        self.model.on_device(self.cache)
        self.logits_BV = self.logits_BV.clone()
        device = self.tokens_BT.device
        side: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        here = torch.cuda.current_stream(device)
        side.wait_stream(here)
        with torch.cuda.stream(side):
            self.step()  # libraries and kernels set themselves up in this one
        here.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):
            self.step()
        for done in range(1, steps):
            graph.replay()
            if self.separator is not None and done % LOOK_EVERY == 0 and bool(self.ended_B.all()):
                return
        self._chosen(self.prompt + steps)

    def step(self) -> None:
        """One step wherever the cache stands, all of it on the device."""
        position = self.cache.position
        assert isinstance(position, Tensor)
        at = position[None].clone()
        token_B = self.choose(self.logits_BV, self.quantiles_BN.index_select(1, at - self.prompt)[:, 0])
        self.tokens_BT.index_copy_(1, at, token_B[:, None])
        if self.separator is not None:
            self.ended_B |= token_B == self.separator
        self.logits_BV.copy_(next_logits(self.model, token_B[:, None], self.z_BT.index_select(1, at), self.cache))

    def _chosen(self, t: int) -> Tensor:
        token_B = self.choose(self.logits_BV, self.quantiles_BN[:, t - self.prompt])
        self.tokens_BT[:, t] = token_B
        if self.separator is not None:
            self.ended_B |= token_B == self.separator
        return token_B


def next_logits(model: Decoder, tokens_B1: Tensor, z_B1: Tensor, cache: Cache) -> Tensor:
    """One more position through the cache; the logits after it, [B, V]. No encoder here."""
    if isinstance(model, FreeTransformer):
        return model(tokens_B1, z_B1, cache)[:, -1]
    return model(tokens_B1, cache)[:, -1]
