"""How far sequences that share a Z agree, against sequences that do not: the paper's Figure 4 as numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from freetf_cli.evaluation.probe.factors import letters_reader
from freetf_cli.evaluation.probe.information import UNREAD
from freetf_cli.records import DataFacts
from freetf_cli.records.samples import Agreement

ALL_PAIRS = 2048  # rows of which every two are compared on their marks; of more, each group with the next

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


def letters_agreement(groups: Sequence[Sequence[str]], facts: DataFacts) -> list[Agreement]:
    """Agreement on position and on noise within and across groups of letters rows; empty for other tasks or fewer than two groups."""
    if facts.task != "letters" or len(groups) < 2:
        return []
    readings = [letters_reader(facts.params).read(group) for group in groups]
    return [agreement(factor, [reading[factor] for reading in readings]) for factor in ("position", "noise")]


def agreement(factor: str, groups: Sequence[Ints]) -> Agreement:
    """How often two samples of one group, and of two groups, agree.

    A group's values [N]: the same value, among pairs in which it was read. [N, S]: marked places in common over all marked places,
    |A ∩ B| / |A ∪ B|, among pairs with a mark.
    """
    sums = _same_values(groups) if groups[0].ndim == 1 else _common_marks([group.astype(np.float32) for group in groups])
    (same, inside), (other, outside) = sums
    return Agreement(factor, same / inside if inside else 0.0, other / outside if outside else 0.0, round(inside), round(outside))


Sums = tuple[tuple[float, float], tuple[float, float]]  # (agreement, pairs) within groups, and across


def _same_values(groups: Sequence[Ints]) -> Sums:
    """Every pair, by counting."""
    kinds = max(int(group.max(initial=UNREAD)) for group in groups) + 1
    counts_GA = np.stack([np.bincount(group[group != UNREAD], minlength=max(kinds, 1)) for group in groups])
    same, pairs = _pairs(counts_GA).sum(), _pairs(counts_GA.sum(1)).sum()
    whole = counts_GA.sum(0)
    return (float(same), float(pairs)), (float(_pairs(whole).sum() - same), float(_pairs(whole.sum()) - pairs))


def _pairs(counts: Ints) -> Ints:
    return counts * (counts - 1) // 2


def _common_marks(groups: Sequence[Floats]) -> Sums:
    within = np.sum([_overlap(group, group, inside=True) for group in groups], axis=0)
    everyone = sum(map(len, groups)) <= ALL_PAIRS
    others = [
        (one, other)
        for number, one in enumerate(groups)
        for other in (groups[number + 1 :] if everyone else [groups[number - 1]])
        if len(one) and len(other)
    ]
    across = np.sum([_overlap(one, other) for one, other in others], axis=0) if others else np.zeros(2)
    return (float(within[0]), float(within[1])), (float(across[0]), float(across[1]))


def _overlap(a: Floats, b: Floats, *, inside: bool = False) -> tuple[float, float]:
    """Sum of |A ∩ B| / |A ∪ B| over pairs with a mark, and their number. inside: a is b, each two of it once."""
    common = a @ b.T
    union = a.sum(1)[:, None] + b.sum(1) - common
    counted = union > 0
    if inside:
        counted &= np.triu(np.ones_like(counted), 1)
    return float((common[counted] / union[counted]).sum()), float(counted.sum())
