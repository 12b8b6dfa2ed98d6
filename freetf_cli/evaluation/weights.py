"""Distance between the weights of two checkpoints: ‖B − A‖ / ‖A‖, and the cosine of A and B, of each tensor and of each block.

The files are read in pieces, so that neither is in memory as a whole. Sums are in float64.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from freetf_cli.evaluation import Advance
from freetf_cli.records.weights import Change, GroupChange, TensorChange, TensorShape, WeightChanges, part_of_model
from freetf_cli.runs.tensors import Tensors

PIECE = 1 << 20  # elements of a tensor per piece; three pieces are in memory together
FIRST = ("embedding", "blocks", "norm", "lm_head", "latent")  # groups in the order of the model


def compare_weights(a: Path, b: Path, advance: Advance = lambda _: None) -> WeightChanges:
    """Compare the weights of two checkpoints. advance is called once per tensor. InputError if a file cannot be read."""
    tensors_a, tensors_b = Tensors(a), Tensors(b)
    shapes_a, shapes_b = _shapes(tensors_a), _shapes(tensors_b)
    sums = {}
    for name, shape in shapes_a.items():
        if shape == shapes_b.get(name):
            sums[name] = _sums(tensors_a, tensors_b, name, shape)
            advance(1)
    return WeightChanges(
        only_a=[TensorShape(name, shape, None) for name, shape in shapes_a.items() if name not in shapes_b],
        only_b=[TensorShape(name, None, shape) for name, shape in shapes_b.items() if name not in shapes_a],
        reshaped=[TensorShape(name, shape, shapes_b[name]) for name, shape in shapes_a.items() if name in shapes_b and name not in sums],
        all=_change(sums.values()) if sums else None,
        groups=_groups(sums),
        tensors=[TensorChange(name, *place(name), shapes_a[name], _change([found])) for name, found in sums.items()],
    )


def place(name: str) -> tuple[str, str]:
    """Group and part of a tensor: ("blocks.3", "attention") for `blocks.3.attention_norm.weight`, ("norm", "") for `norm.weight`."""
    block = re.match(r"blocks\.\d+", name)
    part = re.search(r"\.(attention|ffn)(_norm)?\.", name)
    return block[0] if block else part_of_model(name), part[1] if part else ""


def _shapes(tensors: Tensors) -> dict[str, list[int]]:
    """The shapes of all tensors in the order of the model: block 2 before block 10."""
    return {name: list(tensors.shapes[name]) for name in sorted(tensors.shapes, key=_order)}


def _order(name: str) -> tuple[int, list[tuple[int, str]]]:
    words = name.split(".")
    first = FIRST.index(words[0]) if words[0] in FIRST else len(FIRST)
    return first, [(int(word), "") if word.isdecimal() else (-1, word) for word in words]


def _sums(a: Tensors, b: Tensors, name: str, shape: Sequence[int]) -> Tensor:
    """Σ (B − A)², Σ A², Σ B² and Σ A B over the elements of a tensor, [4]."""
    total = torch.zeros(4, dtype=torch.float64)
    for x, y in zip(_pieces(a, name, shape), _pieces(b, name, shape), strict=True):
        total += torch.stack([torch.dot(y - x, y - x), torch.dot(x, x), torch.dot(y, y), torch.dot(x, y)])
    return total


def _pieces(tensors: Tensors, name: str, shape: Sequence[int]) -> Iterator[Tensor]:
    """A tensor's elements, flat and in float64, some rows at a time."""
    if not shape:
        yield tensors.whole(name, torch.device("cpu")).double().flatten()
        return
    rows = max(1, PIECE // max(math.prod(shape[1:]), 1))
    for start in range(0, shape[0], rows):
        yield tensors.rows(name, start, min(start + rows, shape[0])).double().flatten()


def _groups(sums: dict[str, Tensor]) -> list[GroupChange]:
    """The change of each group, in the order of the tensors."""
    groups: dict[str, list[tuple[str, Tensor]]] = {}
    for name, found in sums.items():
        group, part = place(name)
        groups.setdefault(group, []).append((part, found))
    changes = []
    for group, members in groups.items():
        attention, ffn = ([found for part, found in members if part == wanted] for wanted in ("attention", "ffn"))
        whole = _change([found for _, found in members])
        changes.append(GroupChange(group, len(members), whole, _change(attention) if attention else None, _change(ffn) if ffn else None))
    return changes


def _change(sums: Iterable[Tensor]) -> Change:
    """The change of several tensors together, from the `_sums` of each."""
    squares_and_product = sum(sums, torch.zeros(4, dtype=torch.float64)).tolist()
    apart, norm_a, norm_b = map(math.sqrt, squares_and_product[:3])
    relative = apart / norm_a if norm_a else None if apart else 0.0
    cosine = squares_and_product[3] / norm_a / norm_b if norm_a and norm_b else None
    return Change(relative, None if cosine is None else min(max(cosine, -1.0), 1.0))  # rounding can give a cosine above 1
