"""What Z encodes: the records of `probe-latent` for one run and for several, and their reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from freetf_cli.records import DataFacts
from freetf_cli.records.glossary import glossary
from freetf_cli.records.probe import (
    DECODING,
    SWAP,
    Decoding,
    FactorInformation,
    Intervention,
    LatentAblation,
    LatentSwap,
    Rate,
    Verdict,
    factor_roles,
    groups_text,
)
from freetf_cli.report.blocks import Chart, Facts, Grid, Note, Report, Samples, Section, Series, Table
from freetf_cli.report.units import MISSING, count, duration, kappa, number, share

SYMBOLS = ("CE", "KL", "CE + KL", "Z", "κ", "I(Z; factor)", "H")
SAMPLES = (
    "Sequences from one prompt, Z from the prior. In a blue box each sequence has its own Z, in a green box all share one: whatever the "
    "lines of a green box have in common, and those of a blue box have not, was decided by Z."
)
SWEEP = (
    "κ in bits/token; CE with posterior Z and KL in bits/sequence; efficiency: bits of CE saved by each bit of KL; valid: the share of "
    "outputs that the task could have produced. Intervals are over Zs: each κ is one training run, so a step between neighbours may be "
    "an effect of the seed."
)


@dataclass(frozen=True)
class ProbeResult:
    """Everything that `probe-latent` measures on one run."""

    run: str
    step: int
    facts: DataFacts
    bits: int
    kappa: float
    split: str
    seed: int
    rate: Rate
    latent_ablation: LatentAblation
    intervention: Intervention | None
    latent_swap: list[LatentSwap]
    decoding: list[Decoding]
    verdict: Verdict
    notes: list[str]
    seconds: float

    def report(self) -> Report:
        factors = self.intervention.factors if self.intervention else []
        swap = Table(["factor", "taken over", "chance", "sequences"], [one.cells() for one in self.latent_swap], align="lrrr")
        columns = ["factor", "read from, by", "accuracy", "majority", "shuffled", "bits of H"]
        decoding = Table(columns, [one.cells() for one in self.decoding], align="llrrrr")
        reading = Note("Accuracy is what that probe can read, not information." if self.decoding else "")
        about = [("run", self.run), ("sample", groups_text(factors)), ("seed", str(self.seed)), ("took", duration(self.seconds))]
        return Report(
            PurePath(self.run).name or self.run,
            [
                self.verdict.block(),
                Facts(about),
                self.rate.section(),
                self.latent_ablation.section(),
                *([self.intervention.section()] if self.intervention else []),
                Section("Latent swap: Z of a sequence under another prompt", [swap], SWAP),
                Section("Decoding: what a probe reads on held-out sequences", [decoding, reading], DECODING),
                Section("Notes", [Note(f"· {line}") for line in self.notes]),
                Facts([("data, SHA-256", self.facts.sha256)], detail=True),
            ],
            kicker="what Z encodes · probe-latent",
            about=[
                f"{self.bits} bits of Z for each token, κ = {kappa(self.kappa)} bits/token",
                f"{self.facts.name}, {count(self.rate.sequences)} sequences of split {self.split}, step {count(self.step)}",
            ],
            glossary=glossary(*SYMBOLS),
        )

    def factor(self, name: str) -> FactorInformation | None:
        return next((one for one in (self.intervention.factors if self.intervention else []) if one.factor == name), None)


@dataclass(frozen=True)
class Sweep:
    """Several runs side by side, by κ."""

    runs: list[ProbeResult]

    def report(self) -> Report:
        """Tables and figures over all runs; the page has each run's own report too."""
        if not self.runs:
            return Report("", [Note("No runs to compare.")])
        panels, chart = sweep_panels(self.runs), information_chart(self.runs)
        data = ", ".join(dict.fromkeys(run.facts.name for run in self.runs))
        return Report(
            f"What Z encodes: {len(self.runs)} runs on {data}",
            [
                Section("Rate and distortion by κ", [Note(SWEEP), self._rates()]),
                Section("Information of Z by κ, bits [95 % interval over Zs]", [chart, self._information()] if chart.series else []),
                Section("Samples by κ", [Note(panels_note(self.runs)), Grid(panels)] if panels else [], SAMPLES),
            ],
            kicker="probe-latent",
            glossary=glossary(*SYMBOLS),
            parts=[run.report() for run in by_kappa(self.runs)],
        )

    def _rates(self) -> Table:
        """Rate and distortion, a run in each row."""
        names, rows = run_names(self.runs), []
        for run in by_kappa(self.runs):
            rate = run.rate
            valid = run.intervention.valid.value if run.intervention and run.intervention.valid else None
            numbers = [number(one.value) for one in (rate.ce, rate.kl, rate.nelbo)]
            efficiency = number(rate.efficiency.value) if rate.efficiency else MISSING
            rows.append([kappa(run.kappa), *numbers, efficiency, share(valid), run.verdict.label, names[run.run]])
        return Table(["κ", "CE", "KL", "CE + KL", "efficiency", "valid", "Z is", "run"], rows, align="rrrrrr")

    def _information(self) -> Table:
        """I(Z; factor) with its interval, a run in each row, a factor in each column."""
        names, rows = factor_names(self.runs), []
        for run in by_kappa(self.runs):
            found = [run.factor(name) for name in names]
            rows.append([kappa(run.kappa), *(one.information.text() if one else MISSING for one in found)])
        return Table(["κ", *(f"I(Z; {name})" for name in names)], rows, align="r" * (len(names) + 1))


def information_chart(runs: Sequence[ProbeResult], title: str = "I(Z; factor) by κ, bits", names: Sequence[str] | None = None) -> Chart:
    """Bits of each factor against κ, with intervals and entropies; factors without entropy are left out."""
    names, series = names or factor_names(runs), []
    roles = factor_roles(names)
    for name in names:
        found = [(run.kappa, one) for run in by_kappa(runs) if (one := run.factor(name))]
        entropy = max(one.entropy for _, one in found)
        values = [one.information for _, one in found]
        if not entropy <= 0:  # the prompt determines the factor: there is nothing that Z could tell
            ends = [one.low for one in values], [one.high for one in values]
            series.append(Series(name, [k for k, _ in found], [one.value for one in values], roles[name], *ends, limit=entropy))
    return Chart(title, series, "κ, bits/token (log scale)", "bits", log=True)


def by_kappa(runs: Sequence[ProbeResult]) -> list[ProbeResult]:
    return sorted(runs, key=lambda one: (one.kappa, one.run))


def run_names(runs: Sequence[ProbeResult]) -> dict[str, str]:
    """The last part of each run's folder, or the whole path where that is ambiguous."""
    last = {run.run: PurePath(run.run).name or run.run for run in runs}
    return last if len(set(last.values())) == len(last) else {name: name for name in last}


def factor_names(runs: Sequence[ProbeResult]) -> list[str]:
    """The factors that any run has, in the order in which they first appear."""
    return list(dict.fromkeys(one.factor for run in runs if run.intervention for one in run.intervention.factors))


def sweep_panels(runs: Sequence[ProbeResult]) -> list[Samples]:
    """The panels of the paper's Figure 4: one for each run that has samples, κ rising; runs of one κ have their names in the title."""
    names, times = run_names(runs), Counter(kappa_title(run.kappa) for run in runs)
    panels = []
    for run in by_kappa(runs):
        title = kappa_title(run.kappa)
        if run.intervention and any(any(one.groups) for one in run.intervention.samples):
            panels.append(run.intervention.panel(f"{title} · {names[run.run]}" if times[title] > 1 else title, run.facts.task))
    return panels


def kappa_title(value: float) -> str:
    """`κ = 1/8 bit per token`."""
    return f"κ = {kappa(value)} {'bits' if value > 1 or value == 0 else 'bit'} per token"


def panels_note(runs: Sequence[ProbeResult]) -> str:
    """How to read the numbers under the titles, and how many samples they are from."""
    factors = [one for run in runs if run.intervention for one in run.intervention.shown_factors(run.facts.task)]
    if not factors:
        return ""
    valid = any(run.intervention and run.intervention.valid for run in runs)
    words = f"I(Z; factor) [95 % interval over Zs] of the factor's entropy: {groups_text(factors)}."
    return words + (" valid: outputs that the task could have produced." if valid else "")
