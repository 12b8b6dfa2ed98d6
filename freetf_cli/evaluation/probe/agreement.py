"""How much samples with the same Z agree, and samples with different Zs: the paper's Figure 4 in numbers.

Shapes: G groups, N samples, A values, S sites.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from freetf_cli.records import DataFacts
from freetf_cli.records.samples import Agreement
from freetf_cli.report.units import fraction
from freetf_cli.tasks import make_task, task_names
from freetf_cli.tasks.factors import UNREAD, Ints, encode

ALL_PAIRS = 2048  # rows; with more, marks of a group are compared only with those of the group before it

Floats = NDArray[np.float32]
Sums = tuple[NDArray[np.float64], NDArray[np.float64], float, float]  # agreement and pairs within each group, and across groups


def group_agreement(groups: Sequence[Sequence[str]], facts: DataFacts) -> list[Agreement]:
    """Agreement of each factor that the prompt leaves open; empty where rows do not show their factors, and for fewer than two groups."""
    if facts.task not in task_names() or len(groups) < 2:
        return []
    task = make_task(facts.task, facts.params)
    readings = [encode(task.factors, [reading.factors for reading in task.read_all(group)]) for group in groups]
    return [agreement(factor.name, [found[factor.name] for found in readings]) for factor in task.factors if not factor.given]


def agreement(factor: str, groups: Sequence[Ints]) -> Agreement:
    """How often two samples of one group agree, and two samples of different groups; NaN where there is no such pair."""
    same_G, inside_G, other, outside = pair_sums(groups)
    same, inside = float(same_G.sum()), float(inside_G.sum())
    return Agreement(factor, fraction(same, inside), fraction(other, outside), round(inside), round(outside))


def pair_sums(groups: Sequence[Ints]) -> Sums:
    """Agreement and pairs within each group [G], and over all pairs across groups.

    Values [N] of each group agree if they are equal; pairs with an unread value are left out. Marks [N, S] agree by their Jaccard index
    |A ∩ B| / |A ∪ B|; pairs without any mark are left out.
    """
    return _equal_values(groups) if groups[0].ndim == 1 else _common_marks([group.astype(np.float32) for group in groups])


def _equal_values(groups: Sequence[Ints]) -> Sums:
    """Agreement of all pairs, from the counts of each value."""
    kinds = max(int(group.max(initial=0)) for group in groups) + 1
    counts_GA = np.stack([np.bincount(group[group != UNREAD], minlength=kinds) for group in groups])
    total_A = counts_GA.sum(0)
    same_G, pairs_G = _pairs(counts_GA).sum(1).astype(np.float64), _pairs(counts_GA.sum(1)).astype(np.float64)
    return same_G, pairs_G, float(_pairs(total_A).sum() - same_G.sum()), float(_pairs(total_A.sum()) - pairs_G.sum())


def _pairs(counts: Ints) -> Ints:
    return counts * (counts - 1) // 2


def _common_marks(groups: Sequence[Floats]) -> Sums:
    """Agreement of all pairs within groups; of all pairs across groups, or with many rows of each group and the one before it."""
    few = sum(map(len, groups)) <= ALL_PAIRS
    others = itertools.combinations(groups, 2) if few else zip(groups, [groups[-1], *groups[:-1]], strict=True)
    same_G, pairs_G = np.array([_overlap(group, group, inside=True) for group in groups]).T
    other, outside = np.array([_overlap(*pair) for pair in others]).sum(0).tolist()
    return same_G, pairs_G, other, outside


def _overlap(a: Floats, b: Floats, *, inside: bool = False) -> tuple[float, float]:
    """The sum of |A ∩ B| / |A ∪ B| over pairs with a mark, and their number. inside: a is b, and each pair of its rows counts once."""
    common = a @ b.T
    union = a.sum(1)[:, None] + b.sum(1) - common
    counted = union > 0
    if inside:
        counted &= np.triu(np.ones_like(counted), 1)
    return float((common[counted] / union[counted]).sum()), float(counted.sum())
