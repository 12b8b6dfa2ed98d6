"""The page of `probe-latent`: what Z encodes, for one run or for several, in one file that needs neither network nor script."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import PurePath

from freetf_cli.records.probe import Budget, FactorInformation, Intervention, ProbeResult, Reliance, Verdict
from freetf_cli.report import probe_rows
from freetf_cli.report.axes import FIGURES_CSS
from freetf_cli.report.estimates import share_interval
from freetf_cli.report.figure4_svg import FIGURE4_CSS, figure4_inline
from freetf_cli.report.figures import Curve, Dot, bar_chart, dot_interval_chart, heat_map, information_by_kappa
from freetf_cli.report.html import SAMPLES_CSS, facts, samples_html, table, text
from freetf_cli.report.panels import panels_note, sweep_panels
from freetf_cli.report.probe_rows import Rows
from freetf_cli.report.style import PAGE_CSS
from freetf_cli.report.svg import CHART_CSS
from freetf_cli.report.units import count, duration, figure

PROBE_CSS = """
.verdict { border-left: 4px solid var(--edge); padding: .1rem 0 .1rem 1.1rem; margin: 1.4rem 0; --edge: var(--blue) }
.verdict p { font-family: var(--serif); font-size: 1.25rem; line-height: 1.35; margin: .3rem 0 .5rem; overflow-wrap: anywhere }
.verdict .label { color: var(--edge); font: 600 .82rem var(--sans); letter-spacing: .04em; margin: 0 }
.verdict ul, .notes { margin: 0; padding-left: 1.1rem; font-size: .95rem; overflow-wrap: anywhere }
.v-unused { --edge: var(--length) } .v-global { --edge: var(--green) } .v-details { --edge: var(--kl) } .v-copying { --edge: var(--ce) }
section .chart { margin: .7rem 0 } section > .reading { margin-bottom: 1rem }
.how { color: var(--soft); font-size: .93rem; margin: 0 0 1.1rem }
.maps { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); gap: 1.6rem 2rem; margin: 1.4rem 0;
  max-width: 66rem } .maps > div { max-width: 34rem }
.runs { columns: 3 14rem; padding-left: 1.1rem; font-size: .93rem; overflow-wrap: anywhere } a { color: var(--blue) }
article { margin-top: 4.5rem; padding-top: 1.5rem; border-top: 3px solid var(--rule) }
footer { margin-top: 3rem; padding-top: .9rem; border-top: 1px solid var(--rule); color: var(--soft); font-size: .88rem;
  overflow-wrap: anywhere }
"""

# Under each heading: what the number is, how it was estimated, and when not to trust it.
BUDGET = (
    "KL(Q(Z|S) ‖ P) is what the encoder sends through Z, a mean over held-out sequences. It is the information of Z about the sequence, "
    "I(S; Z), plus the mismatch of the average posterior with the prior, which tells nothing. Both are bracketed by bounds from a "
    "finite number of sequences, not measured exactly."
)
RELIANCE = (
    "The cost of the same held-out sequences with Z from their own posterior, from another sequence's, and from the prior. It says whether "
    "the decoder needs its Z, not what Z says; a decoder that an odd Z confuses pays as well."
)
INTERVENTION = (
    "Each group holds one Z from the prior and samples many outputs of one prompt. I(Z; factor) is how much of the factor's entropy H "
    "the choice of Z settles. The shuffled control is the same estimate after the outputs were dealt to Zs at random: what does "
    "not clear it is chance. A sum over sites is a lower bound of the whole where the sites are independent. Intervals are over Zs, "
    "not over training seeds."
)
MAPS = "Each line is one Z, each column a place of the output; the stronger the colour, the more of that Z's outputs have it there."
TRANSPLANT = (
    "Z is inferred from a sequence and used under another prompt: how often the output has that sequence's factor. "
    "Chance is the same count against a sequence that gave no Z. Intervals are over sequences."
)
DECODING = (
    "A probe is trained to predict the factor, and tested on held-out sequences. Its accuracy is what that probe can read, not "
    "information: a stronger probe may read more, and what a probe reads the decoder need not use. Compare with the majority and with"
    " shuffled labels. The bits, H less the probe's cross-entropy, bound from below what Z holds."
)
SAMPLES = (
    "Sequences from one prompt, Z from the prior. In a blue box each sequence has a Z of its own, in a green box all share one: what the "
    "lines of a green box have in common, and those of a blue box have not, Z decided."
)
SWEEP = (
    "CE with the posterior Z and KL in bits/sequence; efficiency is the bits of CE saved by each bit of KL; valid, the share of "
    "outputs that the task could have made. Intervals are over Zs: each κ is one training run, so a step between neighbours may be a "
    "matter of seeds."
)


def probe_report_html(results: Sequence[ProbeResult]) -> str:
    """The whole page; with several runs it begins with their sweep by κ."""
    runs = probe_rows.by_kappa(results)
    if len(runs) == 1:
        title, body = PurePath(runs[0].run).name or runs[0].run, _run(runs[0])
    else:
        title = f"What Z encodes: {len(runs)} runs"
        body = _sweep(title, runs) + "".join(f'<article id="run-{i}">{_run(run)}</article>' for i, run in enumerate(runs, 1))
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{text(title)} · freetf probe-latent</title>'
        f"<style>{PAGE_CSS}{CHART_CSS}{FIGURES_CSS}{SAMPLES_CSS}{FIGURE4_CSS}{PROBE_CSS}</style></head><body><main>{body}</main></body></html>\n"
    )


def _section(title: str, how: str, *body: str) -> str:
    words = f'<p class="how">{text(how)}</p>' if how else ""
    return f"<section><h2>{text(title)}</h2>{words}{''.join(body)}</section>"


def _both(draw: Callable[[int], str]) -> str:
    """One picture for a page and one for a phone, on which the first would be too small to read; CSS shows either."""
    return f'<div class="wide">{draw(960)}</div><div class="narrow">{draw(380)}</div>'


def _table(rows: Rows, name: str) -> str:
    return table(rows.headers, rows.cells, right=rows.right, label=name) if rows.cells else ""


def _says(line: str) -> str:
    return f'<p class="reading">{text(line)}</p>' if line else ""


def _sweep(title: str, runs: Sequence[ProbeResult]) -> str:
    names = probe_rows.sweep_factors(runs)
    found = {name: [(run.kappa, one) for run in runs if (one := probe_rows.factor_of(run, name))] for name in names}
    curves = [
        Curve(name, [(kappa, one.information) for kappa, one in pairs], max(one.entropy for _, one in pairs))
        for name, pairs in found.items()
    ]
    links = "".join(f'<li><a href="#run-{i}">{text(run.run)}</a></li>' for i, run in enumerate(runs, 1))
    data = ", ".join(dict.fromkeys(run.facts.name for run in runs))
    chart = _both(lambda width: information_by_kappa(curves, title="I(Z; factor) by κ, bits", width=width)) if curves else ""
    return (
        f'<header><p class="kicker">probe-latent · {text(data)}</p><h1>{text(title)}</h1></header>'
        + _samples(runs)
        + _section("Rate and distortion by κ", SWEEP, _table(probe_rows.rate_rows(runs), "rate and distortion"))
        + _section("Information by κ", "", chart, _table(probe_rows.information_by_kappa_rows(runs), "information by kappa"))
        + _section("Runs", "", f'<ol class="runs">{links}</ol>')
    )


def _samples(runs: Sequence[ProbeResult]) -> str:
    """The paper's Figure 4, panels two by two; one by one on a phone."""
    panels, note = sweep_panels(runs), panels_note(runs)
    if not panels:
        return ""
    return _section("Samples by κ", SAMPLES, _both(lambda width: figure4_inline(panels, note=note, columns=2 if width > 600 else 1)))


def _run(run: ProbeResult) -> str:
    sections = [
        _head(run),
        _budget(run.budget),
        _reliance(run.reliance),
        _intervention(run.intervention) if run.intervention else "",
        _section("Transplant", TRANSPLANT, _table(probe_rows.transplant_rows(run.transplant), "transplant")) if run.transplant else "",
        _section("Decoding", DECODING, _table(probe_rows.decoding_rows(run.decoding), "decoding")) if run.decoding else "",
        _section("Notes", "", f'<ul class="notes">{_items(run.notes)}</ul>') if run.notes else "",
        _foot(run),
    ]
    return "".join(sections)


def _items(lines: Sequence[str]) -> str:
    return "".join(f"<li>{text(line)}</li>" for line in lines)


def _head(run: ProbeResult) -> str:
    about = f"{run.bits} bits a token, κ = {probe_rows.kappa_text(run.kappa)} bits/token"
    where = f"{run.facts.name}, {count(run.budget.sequences)} sequences of split {run.split}, step {count(run.step)}"
    return (
        f'<header><p class="kicker">What Z encodes · probe-latent</p><h1>{text(PurePath(run.run).name or run.run)}</h1>'
        f'<p class="data">{text(about)}</p><p class="data">{text(where)}</p></header>{_verdict(run.verdict)}'
    )


def _verdict(verdict: Verdict) -> str:
    # The label names a CSS class, so only labels that have one may reach it.
    known = verdict.label if verdict.label in ("unused", "global", "details", "copying") else "used"
    return (
        f'<div class="verdict v-{known}"><p class="label">Verdict: {text(verdict.label)}</p><p>{text(verdict.sentence)}</p>'
        f"<ul>{_items(verdict.evidence)}</ul></div>"
    )


def _budget(budget: Budget) -> str:
    line = (budget.kappa, f"κ {figure(budget.kappa)}")
    bits = bar_chart(
        budget.by_bit,
        title="KL by bit of a token, summed over positions",
        x_label="bit",
        y_label="bits/sequence",
        colour="c-blue",
        width=440,
        height=220,
    )
    return _section(
        "Budget: what flows through Z",
        BUDGET,
        facts(probe_rows.budget_facts(budget)),
        _says(probe_rows.ceiling_text(budget)),
        _both(
            lambda width: bar_chart(
                budget.by_position, title="KL by position", x_label="position", y_label="bits/token", line=line, width=width
            )
        ),
        f'<div class="maps"><div>{bits}</div></div>',
    )


def _reliance(reliance: Reliance) -> str:
    rows = probe_rows.reliance_rows(reliance)
    return _section("Reliance: does the decoder need its Z?", RELIANCE, _table(rows, "reliance"), _says(probe_rows.wrong_z_text(reliance)))


def _intervention(found: Intervention) -> str:
    about = [("prompt", found.prompt), ("Z at the prompt", found.prompt_z), ("sample", probe_rows.groups_text(found.factors))]
    if found.valid is not None:
        about.append(("valid outputs", share_interval(found.valid)))
    about += [("reader", line) for line in found.readers]
    parts = [facts([pair for pair in about if pair[1]])]
    if found.factors:
        parts += [_information(found.factors), _table(probe_rows.agreement_rows(found.factors), "agreement")]
    if found.heat_maps:
        colours = ("c-target", "c-noise", "c-kl", "c-blue")
        maps = "".join(f"<div>{heat_map(one, colour=colours[i % len(colours)])}</div>" for i, one in enumerate(found.heat_maps))
        parts.append(f'<div class="maps">{maps}</div><p class="reading">{MAPS}</p>')
    parts += [samples_html(groups) for groups in found.samples]
    return _section("Intervention: fixed Z, many outputs", INTERVENTION, *parts)


def _information(factors: Sequence[FactorInformation]) -> str:
    dots = [Dot(one.factor, one.information, one.entropy, one.shuffled) for one in factors]
    chart = _both(lambda width: dot_interval_chart(dots, title="I(Z; factor), bits", x_label="bits", width=width))
    bounds = "".join(_says(line) for line in probe_rows.bound_texts(factors))
    return chart + _table(probe_rows.information_rows(factors), "information") + bounds


def _foot(run: ProbeResult) -> str:
    parts = [run.run, f"step {count(run.step)}", f"seed {run.seed}", f"{count(run.budget.sequences)} held-out sequences"]
    if run.intervention and run.intervention.factors:
        parts.append(probe_rows.groups_text(run.intervention.factors))
    parts += [f"measured in {duration(run.seconds)}", f"data SHA-256 {run.facts.sha256}"]
    return f"<footer>{text(' · '.join(parts))}</footer>"
