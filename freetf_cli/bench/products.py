"""The matrix products of a step, each measured alone: their sum is a lower bound on the time of a step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from freetf_cli.bench.timing import Effort, replayed, timed


class Operand(NamedTuple):
    """One input of a product, with its layout in memory, on which the time depends."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


Product = tuple[Operand, Operand]  # [n, k] · [k, m], or [b, n, k] · [b, k, m]


def products_of(step: Callable[[], object]) -> Counter[Product]:
    """The products of a step and how often each occurs, those inside fused attention and the mapper's kernels included."""
    seen = _Recorder()
    with seen:
        step()
    return seen.found


def seconds_of(products: Counter[Product], device: torch.device, effort: Effort) -> float:
    """Seconds of all products: each is measured alone, with random numbers, and counted as often as it occurs."""
    total = 0.0
    for (left, right), count in products.items():
        product = partial(torch.matmul, _random(left, device), _random(right, device))
        total += count * timed(replayed(product, device), effort).median
    return total


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: Counter[Product] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None) -> Any:
        name = function.name()
        if name in ("aten::mm", "aten::bmm"):
            self._add(*args[:2])
        elif name in ("aten::addmm", "aten::baddbmm"):
            self._add(*args[1:3])
        elif name.startswith("aten::_scaled_dot_product"):
            backward = "backward" in name  # its first argument is the output's gradient
            self._attention(*args[1:4] if backward else args[:3], times=1 + backward)
        elif name == "freetf::logit_gradient":
            dtype = torch.bfloat16 if args[1].dtype == torch.bfloat16 else args[2].dtype  # as in the operator
            self._add(args[0].to(dtype), args[2].to(dtype).T)
        return function(*args, **(kwargs or {}))

    def _add(self, a: Tensor, b: Tensor) -> None:
        self.found[(_operand(a), _operand(b))] += 1

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, *, times: int) -> None:
        """Two products: q · kᵀ, and weights · v. The backward has two of each shape."""
        q, k, v = (each.flatten(0, 1) for each in (q, k, v))
        scores = q.new_empty(q.shape[0], q.shape[1], k.shape[1])
        k, v = (each.repeat_interleave(q.shape[0] // each.shape[0], 0) for each in (k, v))
        self.found[(_operand(q), _operand(k.mT))] += times
        self.found[(_operand(scores), _operand(v))] += times


def _operand(x: Tensor) -> Operand:
    return Operand(tuple(x.shape), tuple(x.stride()), x.dtype)


def _random(operand: Operand, device: torch.device) -> Tensor:
    extent = 1 + sum((size - 1) * stride for size, stride in zip(operand.shape, operand.stride, strict=True))
    return torch.randn(extent, device=device).to(operand.dtype).as_strided(operand.shape, operand.stride)
