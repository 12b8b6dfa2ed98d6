"""What Z encodes at several κ: the record of `probe-latent --sweep`, and the panels of the paper's Figure 4."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from freetf_cli.records.glossary import glossary
from freetf_cli.records.intervention import colours, sizes_text
from freetf_cli.records.probe import SYMBOLS, ProbeResult
from freetf_cli.records.run import run_names
from freetf_cli.report.blocks import Chart, Grid, Note, Report, Samples, Section, Series, Table
from freetf_cli.report.units import MISSING, kappa, number, share

SAMPLES = (
    "Sequences from one prompt, Z from the prior. In a blue box each sequence has its own Z, in a green box all share one: whatever the "
    "lines of a green box have in common, and those of a blue box have not, was decided by Z."
)
SWEEP = (
    "κ in bits/token; CE with posterior Z and KL in bits/sequence; efficiency: bits of CE saved by each bit of KL, a dash where CE lies "
    "above the floor; valid: the share of outputs that the task could have produced. Their intervals are in each run's report. They say "
    "nothing about seeds: each κ is one training run, so a step between neighbours may be an effect of the seed."
)


@dataclass(frozen=True)
class Sweep:
    """Several runs side by side, by κ."""

    runs: list[ProbeResult]

    def report(self) -> Report:
        """Tables and figures over all runs; the page has each run's own report too."""
        if not self.runs:
            return Report("", [Note("No runs to compare.")])
        runs = sorted(self.runs, key=lambda one: (one.kappa, one.run))
        panels, chart = sweep_panels(runs), information_chart(runs)
        data = ", ".join(dict.fromkeys(run.facts.name for run in runs))
        return Report(
            f"What Z encodes: {len(runs)} {'run' if len(runs) == 1 else 'runs'} on {data}",
            [
                Section("Rate and distortion by κ", [Note(SWEEP), _rates(runs)]),
                Section("Information of Z by κ, bits [95 % interval over Zs]", [chart, _information(runs)] if chart.series else []),
                Section("Samples by κ", [Note(panels_note(runs)), Grid(panels)] if panels else [], SAMPLES),
            ],
            kicker="probe-latent",
            glossary=glossary(*SYMBOLS),
            parts=[run.report() for run in runs],
        )


def _rates(runs: Sequence[ProbeResult]) -> Table:
    """Rate and distortion, a run in each row."""
    names, rows = run_names(run.run for run in runs), []
    for run in runs:
        valid = run.intervention.valid if run.intervention else None
        saved = run.rate.efficiency if run.rate.efficiency and not run.rate.efficiency.high < 0 else None
        numbers = [number(one.value if one else None) for one in (run.rate.ce, run.rate.kl, run.rate.nelbo, saved)]
        rows.append([kappa(run.kappa), *numbers, share(valid.value if valid else None), run.verdict.label, names[run.run]])
    return Table(["κ", "CE", "KL", "CE + KL", "efficiency", "valid", "Z is", "run"], rows, align="rrrrrr")


def _information(runs: Sequence[ProbeResult]) -> Table:
    """I(Z; factor) with its interval, a run in each row, a factor in each column."""
    names, rows = factor_colours(runs), []
    for run in runs:
        found = {one.factor: one.information.text() for one in run.factors()}
        rows.append([kappa(run.kappa), *(found.get(name, MISSING) for name in names)])
    return Table(["κ", *(f"I(Z; {name})" for name in names)], rows, align="r" * (len(names) + 1))


def information_chart(runs: Sequence[ProbeResult], title: str = "I(Z; factor) by κ, bits", names: Sequence[str] = ()) -> Chart:
    """The information of each factor against κ, in bits, with its interval and the factor's entropy.

    runs: in the order of κ. names: of the factors to draw; default: all whose entropy is not zero.
    """
    series = []
    for name, role in factor_colours(runs).items():
        found = [(run.kappa, one) for run in runs for one in run.factors() if one.factor == name]
        entropy = max(one.entropy.value for _, one in found)
        if (not names or name in names) and not entropy <= 0:  # without entropy there is nothing that Z could tell
            values = [one.information for _, one in found]
            ends = [one.low for one in values], [one.high for one in values]
            series.append(Series(name, [k for k, _ in found], [one.value for one in values], role, *ends, limit=entropy))
    return Chart(title, series, "κ, bits/token (log scale)", "bits", log=True)


def factor_colours(runs: Sequence[ProbeResult]) -> dict[str, str]:
    """The factors that any run has, in the order in which they first appear, with the roles that colour them."""
    first = {one.factor: one for run in reversed(runs) for one in reversed(run.factors())}
    return colours(list(first.values())[::-1])


def sweep_panels(runs: Sequence[ProbeResult]) -> list[Samples]:
    """The panels of the paper's Figure 4, one for each run that has samples. Where runs have the same κ, titles show their names too."""
    names, times = run_names(run.run for run in runs), Counter(kappa_title(run.kappa) for run in runs)
    panels = []
    for run in runs:
        title = kappa_title(run.kappa)
        if run.intervention and any(any(one.groups) for one in run.intervention.samples):
            panels.append(run.intervention.panel(f"{title} · {names[run.run]}" if times[title] > 1 else title))
    return panels


def kappa_title(value: float) -> str:
    """`κ = 1/8 bit per token`."""
    return f"κ = {kappa(value)} {'bits' if value > 1 or value == 0 else 'bit'} per token"


def panels_note(runs: Sequence[ProbeResult]) -> str:
    """How to read the numbers under the titles, and how many samples they are from."""
    interventions = [run.intervention for run in runs if run.intervention]
    factors = [factor for one in interventions for factor in one.open_factors()]
    if not factors:
        return ""
    words = f"I(Z; factor) [95 % interval over Zs] of the factor's entropy: {sizes_text(factors)}."
    return words + (" valid: outputs that the task could have produced." if any(one.valid for one in interventions) else "")
