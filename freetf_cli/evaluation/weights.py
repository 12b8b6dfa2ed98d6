"""Distance between the weights of two checkpoints: ‖B − A‖ / ‖A‖, and the cosine of A and B.

Both are computed for each tensor with the same shape in both, and for each block, with attention and feed-forward separate. The files are
read in pieces, so that neither is in memory as a whole. Sums are in float64.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from freetf_cli.errors import InputError
from freetf_cli.records.weights import Change, GroupChange, TensorChange, TensorShape, WeightChanges

PIECE = 1 << 20  # elements of a tensor per piece; three pieces are in memory together

Shapes = dict[str, list[int]]


@dataclass(frozen=True)
class _Sums:
    """Sums over elements of A and B: Σ (B − A)², Σ A², Σ B², Σ A B."""

    difference: float = 0.0
    a: float = 0.0
    b: float = 0.0
    product: float = 0.0

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(self.difference + other.difference, self.a + other.a, self.b + other.b, self.product + other.product)

    def change(self) -> Change:
        apart, norm_a, norm_b = (math.sqrt(square) for square in (self.difference, self.a, self.b))
        relative = apart / norm_a if norm_a else None if apart else 0.0
        cosine = self.product / norm_a / norm_b if norm_a and norm_b else None
        # Rounding can give a cosine above 1.
        return Change(relative, None if cosine is None else cosine if math.isnan(cosine) else min(max(cosine, -1.0), 1.0))


def compare_weights(a: Path, b: Path, advance: Callable[[int], object] = lambda _: None) -> WeightChanges:
    """Compare two model.safetensors files. advance is called once per tensor. InputError if a file cannot be read."""
    with ExitStack() as stack:
        file_a, file_b = (stack.enter_context(_opened(path)) for path in (a, b))
        shapes_a, shapes_b = _shapes(file_a), _shapes(file_b)
        common = [name for name in shapes_a if name in shapes_b]
        same = [name for name in common if shapes_a[name] == shapes_b[name]]
        sums = {}
        for name in same:
            sums[name] = _tensor_sums(file_a, file_b, name, shapes_a[name])
            advance(1)
    return WeightChanges(
        only_a=[TensorShape(name, shape, None) for name, shape in shapes_a.items() if name not in shapes_b],
        only_b=[TensorShape(name, None, shape) for name, shape in shapes_b.items() if name not in shapes_a],
        reshaped=[TensorShape(name, shapes_a[name], shapes_b[name]) for name in common if name not in sums],
        all=_pooled(list(sums.values())),
        groups=_groups(sums),
        tensors=[_tensor_change(name, shapes_a[name], found) for name, found in sums.items()],
    )


def _tensor_change(name: str, shape: list[int], found: _Sums) -> TensorChange:
    group, part = place(name)
    return TensorChange(name, group, part, shape, found.change())


def place(name: str) -> tuple[str, str]:
    """Group and part of a tensor: ("blocks.3", "attention") for `blocks.3.attention_norm.weight`, ("norm", "") for `norm.weight`."""
    block = re.match(r"blocks\.\d+", name)
    part = re.search(r"\.(attention|ffn)(_norm)?\.", name)
    return block[0] if block else name.split(".")[0], part[1] if part else ""


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"not a readable safetensors file: {error}", str(path)) from None


def _shapes(file: Any) -> Shapes:
    """The shapes of all tensors in the order of the model: block 2 before block 10."""
    return {name: list(file.get_slice(name).get_shape()) for name in sorted(file.keys(), key=_order)}


def _order(name: str) -> tuple[int, list[tuple[int, str]]]:
    first = ("embedding", "blocks", "norm", "lm_head", "latent")
    group = name.split(".")[0]
    words = [(int(word), "") if word.isdecimal() else (-1, word) for word in name.split(".")]
    return first.index(group) if group in first else len(first), words


def _tensor_sums(a: Any, b: Any, name: str, shape: Sequence[int]) -> _Sums:
    total = _Sums()
    for x, y in zip(_pieces(a, name, shape), _pieces(b, name, shape), strict=True):
        total += _Sums(_dot(y - x, y - x), _dot(x, x), _dot(y, y), _dot(x, y))
    return total


def _dot(x: Tensor, y: Tensor) -> float:
    return float(torch.dot(x, y))


def _pieces(file: Any, name: str, shape: Sequence[int]) -> Iterator[Tensor]:
    """A tensor's elements, flat and in float64, some rows at a time."""
    if not shape:
        yield file.get_tensor(name).double().flatten()
        return
    rows = max(1, PIECE // max(math.prod(shape[1:]), 1))
    part = file.get_slice(name)
    for start in range(0, shape[0], rows):
        yield part[start : min(start + rows, shape[0])].double().flatten()


def _groups(sums: dict[str, _Sums]) -> list[GroupChange]:
    """The change of each group, in the order of the tensors."""
    found = []
    for group in dict.fromkeys(place(name)[0] for name in sums):
        parts = [(place(name)[1], one) for name, one in sums.items() if place(name)[0] == group]
        whole = _pooled([one for _, one in parts])
        assert whole is not None
        attention, ffn = (_pooled([one for part, one in parts if part == wanted]) for wanted in ("attention", "ffn"))
        found.append(GroupChange(group, len(parts), whole, attention, ffn))
    return found


def _pooled(sums: Sequence[_Sums]) -> Change | None:
    return sum(sums, _Sums()).change() if sums else None
