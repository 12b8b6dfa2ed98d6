"""The first weights of a model: normal numbers by (seed, name), which do not depend on how the model is spread over processes.

A parameter is made in blocks of rows, each drawn from a stream of its own, so a process that holds some of the rows makes hardly more
than these. No draw shifts the numbers of another: a Free model and its baseline start with the same weights where they share them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from freetf_cli.device import cores
from freetf_cli.streams import torch_seed

BLOCK = 1 << 22  # numbers in a block


class Draws:
    """Normal numbers for parameters, by (seed, name). prefix: of the names."""

    def __init__(self, seed: int, prefix: str = "") -> None:
        self.seed, self.prefix = seed, prefix

    def within(self, name: str) -> Draws:
        """The draws for a module: names are relative to it."""
        return Draws(self.seed, f"{self.prefix}{name}.")

    def normal(self, name: str, parameter: Tensor, std: float) -> None:
        """Set a parameter to normal numbers with mean 0 and deviation `std`; of one that is sharded, this process's rows."""
        fill(parameter, lambda rows: self.block(name, (len(rows), *parameter.shape[1:]), rows.start) * std)

    def block(self, name: str, shape: Sequence[int], start: int = 0) -> Tensor:
        """Standard normal numbers of that shape, float32 on the CPU: those of the block that begins at row `start`."""
        generator = torch.Generator().manual_seed(torch_seed(self.seed, "weights", f"{self.prefix}{name}", start))
        return torch.randn(tuple(shape), generator=generator, dtype=torch.float32)


def fill(parameter: Tensor, values: Callable[[range], Tensor]) -> None:
    """Set a parameter from a function that makes some of its rows; of one that is sharded (a DTensor), this process's rows.

    The function gets the same blocks of rows however the parameter is sharded.
    """
    local, start = parameter.detach(), 0
    if (chunks := getattr(parameter, "__create_chunk_list__", None)) is not None:
        offsets = chunks()[0].offsets
        local, start = local.to_local(), offsets[0] if offsets else 0  # type: ignore[attr-defined]
    stop, each = start + len(local), max(1, BLOCK // parameter.shape[1:].numel())

    inference = torch.is_inference_mode_enabled()

    def copy(block: int) -> None:
        first, last = max(start, block), min(stop, block + each)
        made = values(range(block, min(block + each, len(parameter))))
        with torch.inference_mode(inference):  # a thread does not inherit it
            local[first - start : last - start].copy_(made[first - block : last - block])

    with ThreadPoolExecutor(max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))) as pool:
        list(pool.map(copy, range(start // each * each, stop, each)))
