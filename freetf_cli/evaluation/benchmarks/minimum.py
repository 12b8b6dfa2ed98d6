"""`evaluate --min`: the least score that a benchmark must reach, such as `0.3` for all benchmarks or `hellaswag=0.3` for one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from freetf_cli.errors import CheckFailed, InputError, nearest
from freetf_cli.evaluation.benchmarks import FOREIGN
from freetf_cli.records.benchmarks import Benchmarks

ALL = ""  # the key of the minimum for all benchmarks


def parse_minimums(texts: Sequence[str], tasks: Sequence[str]) -> dict[str, float]:
    """The minimum of each task by its name. InputError for anything but a number from 0 to 1, and for a task that is not measured."""
    names = [name.removeprefix(FOREIGN) for name in tasks]
    minimums = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        name = name.strip().removeprefix(FOREIGN)
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not 0 <= value <= 1:
            raise InputError(f"--min {text!r}: not a score from 0 to 1", hint="for example --min 0.3, or --min hellaswag=0.3")
        if name and name not in names:
            raise InputError(f"--min {text!r}: '{name}' is not measured", hint=nearest(name, names))
        minimums[name] = value
    return minimums


def raise_if_below(results: Sequence[Benchmarks], minimums: Mapping[str, float]) -> None:
    """Raise CheckFailed if a score that the paper reports, or the first score of an lm-eval task, is missing or below its minimum."""
    below = []
    for one in (score for result in results for score in result.tasks):
        least = minimums.get(one.task, minimums.get(ALL))
        found = one.scores[one.metric].value if one.metric in one.scores else math.nan
        if least is not None and not found >= least:
            below.append(f"{one.task} {found:.3f} < {least:g}")
    measured = {score.task for result in results for score in result.tasks}
    below += [f"{name} has no score of its own" for name in minimums if name not in {*measured, ALL}]  # a group of lm-eval's tasks
    if below:
        raise CheckFailed(f"a score is below --min: {', '.join(below)}")
