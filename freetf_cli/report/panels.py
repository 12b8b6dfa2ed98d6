"""The panels of the paper's Figure 4: for each run, by κ, its boxes of samples under a title that carries what was measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from freetf_cli.records import SampleGroups
from freetf_cli.records.probe import FactorInformation, ProbeResult
from freetf_cli.report.estimates import interval, number, share_interval
from freetf_cli.report.probe_rows import by_kappa, groups_text, kappa_text, run_names

TOLD = {"letters": ("position", "noise")}  # the letter is given by the prompt


@dataclass(frozen=True)
class Panel:
    """Boxes of one model. told: the numbers measured, in small type under the title."""

    title: str
    groups: Sequence[SampleGroups]
    told: Sequence[str] = ()


def sweep_panels(runs: Sequence[ProbeResult]) -> list[Panel]:
    """A panel for each run that has samples, κ rising; runs of one κ have their names in the title."""
    runs = by_kappa(runs)
    names, times = run_names(runs), Counter(kappa_title(run.kappa) for run in runs)
    panels = []
    for run in runs:
        title = kappa_title(run.kappa)
        groups = [one for one in run.intervention.samples if any(one.groups)] if run.intervention else []
        if groups:
            panels.append(Panel(f"{title} · {names[run.run]}" if times[title] > 1 else title, groups, _told(run)))
    return panels


def kappa_title(kappa: float) -> str:
    """`κ = 1/8 bit per token`; kappa in bits per token."""
    unit = "bits" if kappa > 1 or kappa == 0 else "bit"
    return f"κ = {kappa_text(kappa)} {unit} per token"


def panels_note(runs: Sequence[ProbeResult]) -> str:
    """How the numbers under the titles are to be read, and from how many samples they are."""
    factors = [one for run in runs for one in _told_factors(run)]
    if not factors:
        return ""
    valid = any(run.intervention and run.intervention.valid for run in runs)
    words = f"I(Z; factor) [95 % interval over Zs] of the factor's entropy: {groups_text(factors)}."
    return words + (" valid: outputs that the task could have made." if valid else "")


def _told(run: ProbeResult) -> list[str]:
    lines = [f"I(Z; {one.factor}) {interval(one.information)} of {number(one.entropy)} bits" for one in _told_factors(run)]
    valid = run.intervention.valid if run.intervention else None
    return lines if valid is None else [*lines, f"valid {share_interval(valid)}"]


def _told_factors(run: ProbeResult) -> list[FactorInformation]:
    factors = run.intervention.factors if run.intervention else []
    names = TOLD.get(run.facts.task or "")
    return [one for one in factors if names is None or one.factor in names]
