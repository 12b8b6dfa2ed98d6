"""Checks on a comparison: `nll>+0.5%` fails when B's nll is more than 0.5 % above A's.

The condition describes the failure. With % it applies to 100 (B − A) / |A|, without to B − A in bits per token.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from freetf_cli.errors import CheckFailed, InputError, InputErrors, nearest
from freetf_cli.records.compare import CheckResult
from freetf_cli.records.paired import LATENT_METRICS, METRICS, MetricPair

EXAMPLE = "for example --fail-if 'nll>+0.5%'"
OPERATORS: Mapping[str, Callable[[float, float], bool]] = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
_NUMBER = r"(?P<sign>[+-]?)\s*(?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"
_SHAPE = re.compile(rf"\s*(?P<metric>[\w-]+)\s*(?P<operator>[<>]=?)\s*{_NUMBER}\s*(?P<percent>%?)\s*")


@dataclass(frozen=True)
class Check:
    """A condition that B must not meet. limit: in percent or in bits per token."""

    expression: str
    metric: str
    operator: str
    limit: float
    percent: bool

    def decide(self, pair: MetricPair | None) -> CheckResult:
        """Apply the check to the measured values, or to None if A and B are the same model. An unknown difference (NaN) fails."""
        found: float | None = 0.0
        if pair is not None:
            found = pair.relative_percent if self.percent or pair.difference is None else pair.difference.bits_per_token
        found = math.nan if found is None else found
        passed = not math.isnan(found) and not OPERATORS[self.operator](found, self.limit)
        return CheckResult(self.expression, self.metric, "%" if self.percent else "bits/token", found, passed)


def parse_checks(expressions: Sequence[str]) -> list[Check]:
    """Parse the values of --fail-if. Reports all that cannot be parsed."""
    checks, faults = [], []
    for expression in expressions:
        try:
            checks.append(parse_check(expression))
        except InputError as error:
            faults.append(error)
    if faults:
        raise InputErrors(faults) if len(faults) > 1 else faults[0]
    return checks


def parse_check(expression: str) -> Check:
    """Parse one condition: METRIC, then > >= < or <=, a number, and % for a relative limit."""
    where = f"--fail-if {expression!r}"
    found = _SHAPE.fullmatch(expression)
    if not found:
        name = re.match(r"\s*([\w-]+)", expression)
        near = nearest(name[1].lower(), METRICS) + "; " if name and name[1] not in METRICS else ""
        raise InputError("not METRIC, one of > >= < <=, and a number", where, f"{near}{EXAMPLE}, in quotes, since the shell reads > and <")
    if found["metric"] not in METRICS:
        raise InputError(f"no metric named '{found['metric']}'", where, f"{nearest(found['metric'].lower(), METRICS)}; {EXAMPLE}")
    limit = float(found["sign"] + found["number"])
    if not math.isfinite(limit):
        raise InputError("the number is too large", where, EXAMPLE)
    return Check(expression.strip(), found["metric"], found["operator"], limit, bool(found["percent"]))


def check_kinds(checks: Sequence[Check], kind_a: str, kind_b: str) -> None:
    """Refuse a check of a metric that a baseline does not have: its CE is not comparable with a CE given Z from the posterior."""
    baselines = [name for name, kind in (("A", kind_a), ("B", kind_b)) if kind == "baseline"]
    wrong = next((check for check in checks if check.metric in LATENT_METRICS), None)
    if not baselines or wrong is None:
        return
    reason = "a baseline has no Z: both are baselines"
    if len(baselines) == 1:
        reasons = {"ce_posterior": "a posterior CE cannot be compared with a baseline's CE", "ce_prior": "a baseline has no prior of Z"}
        reason = f"{reasons.get(wrong.metric, 'a baseline has no Z')}: {baselines[0]} is a baseline"
    raise InputError(reason, f"--fail-if {wrong.expression!r}", "use nll or elbo")


def raise_if_failed(results: Sequence[CheckResult]) -> None:
    """Raise CheckFailed if a check failed, with the values that were found."""
    failed = [f"'{one.expression}' (found {one.text()})" for one in results if not one.passed]
    if failed:
        count = "a check failed" if len(failed) == 1 else f"{len(failed)} checks failed"
        raise CheckFailed(f"{count}: {', '.join(failed)}")
