"""How far sequences that share a Z agree, against sequences that do not: the paper's Figure 4 as numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

from freetf_cli.analysis.letters import LettersReading, read_letters
from freetf_cli.results import Agreement, DataFacts

Compare = Callable[[LettersReading, LettersReading], float | None]


def letters_agreement(groups: Sequence[Sequence[str]], facts: DataFacts) -> list[Agreement]:
    """Agreement on position and on noise within and across groups of letters rows; empty for other tasks or fewer than two groups.

    position: the same start (pairs without a target are left out); noise: the share of `!` places in common, |A ∩ B| / |A ∪ B|.
    """
    if facts.task != "letters" or len(groups) < 2:
        return []
    length, target = int(facts.params.get("length", 64)), int(facts.params.get("target", 8))
    readings = [[read_letters(row, length, target) for row in group] for group in groups]
    kinds: Mapping[str, Compare] = {"position": _same_start, "noise": _common_noise}
    return [_agreement(factor, readings, compare) for factor, compare in kinds.items()]


def _agreement(factor: str, groups: Sequence[Sequence[LettersReading]], compare: Compare) -> Agreement:
    within = [compare(a, b) for group in groups for a, b in combinations(group, 2)]
    across = [compare(a, b) for one, other in combinations(groups, 2) for a in one for b in other]
    means = [[value for value in values if value is not None] for values in (within, across)]
    shares = [sum(values) / len(values) if values else 0.0 for values in means]
    return Agreement(factor, shares[0], shares[1], len(means[0]), len(means[1]))


def _same_start(a: LettersReading, b: LettersReading) -> float | None:
    return None if a.start is None or b.start is None else float(a.start == b.start)


def _common_noise(a: LettersReading, b: LettersReading) -> float | None:
    union = a.noise | b.noise
    return len(a.noise & b.noise) / len(union) if union else None
