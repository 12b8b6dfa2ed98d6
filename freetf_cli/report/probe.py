"""What Z encodes, in the terminal: `probe-latent` for one run, and for several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from freetf_cli.records.probe import Budget, HeatMap, Intervention, ProbeResult, Sweep, Verdict
from freetf_cli.report import probe_rows
from freetf_cli.report.bars import bar, column_chart, shade_rows, split_bar
from freetf_cli.report.console import out, page_width, visible
from freetf_cli.report.estimates import fraction, interval, number, share_interval
from freetf_cli.report.figure4 import figure4, figure4_panel
from freetf_cli.report.fitting import GAP, needed, print_fitting
from freetf_cli.report.panels import panels_note, sweep_panels
from freetf_cli.report.probe_rows import Rows
from freetf_cli.report.tables import Cell, print_facts, print_heading
from freetf_cli.report.units import count, duration, figure, is_number, share

MOST_GROUPS = 16  # of a heat map, so that it stays on one screen
VERDICT_STYLES = {"unused": "bold yellow", "global": "bold green", "details": "bold cyan", "copying": "bold magenta"}


def probe(result: ProbeResult) -> None:
    """All about one run, the verdict first."""
    console = out()
    _verdict(console, result.verdict)
    _facts(console, result)
    _budget(console, result.budget)
    print_heading(console, "Reliance: does the decoder need its Z?")
    _table(console, probe_rows.reliance_rows(result.reliance))
    _say(console, probe_rows.wrong_z_text(result.reliance))
    if result.intervention:
        _intervention(console, result.intervention)
    if result.transplant:
        print_heading(console, "Transplant: Z of a sequence under another prompt")
        _table(console, probe_rows.transplant_rows(result.transplant))
    if result.decoding:
        print_heading(console, "Decoding: what a probe reads on held-out sequences")
        _table(console, probe_rows.decoding_rows(result.decoding))
        _say(console, "Accuracy is what that probe can read, not information.", "dim")
    _bullets(console, "Notes", result.notes)


def sweep(result: Sweep) -> None:
    """Rate and distortion by κ, and what each κ lets Z tell."""
    console = out()
    if not result.runs:
        _say(console, "No runs to compare.")
        return
    print_heading(console, "Rate and distortion by κ")
    _say(console, "κ in bits/token; CE and KL in bits/sequence; efficiency in bits of CE saved by each bit of KL.", "dim")
    _table(console, probe_rows.rate_rows(result.runs))
    table = probe_rows.information_by_kappa_rows(result.runs)
    if table.cells:
        print_heading(console, "Information of Z by κ, bits [95 % interval over Zs]")
        _table(console, table)
        for name in probe_rows.sweep_factors(result.runs):
            _factor_bars(console, result.runs, name)
    _samples(console, result.runs)


def _samples(console: Console, runs: Sequence[ProbeResult]) -> None:
    """The paper's Figure 4: a panel a run, κ rising."""
    panels = sweep_panels(runs)
    if not panels:
        return
    print_heading(console, "Samples by κ")
    _say(console, panels_note(runs), "dim")
    for panel in panels:
        figure4_panel(panel, console=console)


def _verdict(console: Console, verdict: Verdict) -> None:
    style = VERDICT_STYLES.get(verdict.label, "bold blue")
    console.print(Text.assemble((f"Verdict: {visible(verdict.label)}. ", style), (visible(verdict.sentence), "bold")), overflow="fold")
    for line in verdict.evidence:
        _say(console, f"· {line}")
    console.print()


def _facts(console: Console, result: ProbeResult) -> None:
    facts: list[tuple[str, Cell]] = [
        ("run", Text(visible(result.run), style="bold")),
        ("step", count(result.step)),
        ("data", f"{result.facts.name}, {count(result.budget.sequences)} sequences of split {result.split}"),
        ("Z", f"{result.bits} bits a token, κ = {probe_rows.kappa_text(result.kappa)} bits/token"),
    ]
    print_facts(console, [*facts, ("seed", str(result.seed)), ("took", duration(result.seconds))])


def _budget(console: Console, budget: Budget) -> None:
    print_heading(console, "Budget: what flows through Z")
    print_facts(console, probe_rows.budget_facts(budget))
    width = min(page_width(console), 110)
    parts = split_bar(
        budget.information_low, budget.information_high - budget.information_low, budget.mismatch_low, max(min(width - 4, 40), 8)
    )
    if parts:
        console.print()
        console.print(Text(parts, style="cyan"), no_wrap=True)
        _say(console, "KL: █ information at least, ▒ one or the other, ░ mismatch at least", "dim")
    _say(console, probe_rows.ceiling_text(budget), "dim")
    _columns(console, "KL by position, bits", budget.by_position, "position", (budget.kappa, f"κ {figure(budget.kappa)}"))
    _columns(console, "KL by bit of a token, summed over positions, bits/sequence", budget.by_bit, "bit", None)


def _columns(console: Console, title: str, values: Sequence[float], name: str, line: tuple[float, str] | None) -> None:
    chart = column_chart(values, width=min(page_width(console), 110), name=name, line=line)
    if chart:
        print_heading(console, title)
        console.print(chart)


def _intervention(console: Console, found: Intervention) -> None:
    print_heading(console, "Intervention: fixed Z, many outputs")
    facts = [("prompt", repr(found.prompt)), ("Z at the prompt", found.prompt_z), ("sample", probe_rows.groups_text(found.factors))]
    if found.valid is not None:
        facts.append(("valid outputs", share_interval(found.valid)))
    facts += [("reader", line) for line in found.readers]
    print_facts(console, [fact for fact in facts if fact[1]])
    if found.factors:
        console.print()
        _table(console, probe_rows.information_rows(found.factors), column=4)
        for line in probe_rows.bound_texts(found.factors):
            _say(console, line, "dim")
        _say(console, "[low, high]: 95 % over Zs. shuffled: the same estimate after outputs were dealt to Zs at random.", "dim")
        console.print()
        _table(console, probe_rows.agreement_rows(found.factors))
    for one in found.heat_maps:
        _heat_map(console, one)
    for groups in found.samples:
        figure4(groups, console=console)


def _heat_map(console: Console, one: HeatMap) -> None:
    """Groups down, places across; the darkest shade is the largest share of all."""
    values = [value for row in one.shares for value in row if is_number(value)]
    label = len(str(len(one.shares)))
    width = min(page_width(console), 140) - label - 3
    top = max(values, default=0.0)
    if top <= 0 or width < 4:
        return
    print_heading(console, one.title)
    rows = shade_rows(one.shares, width=width, most=MOST_GROUPS, top=top)
    for number_, shades in rows:
        console.print(Text.assemble((f"{number_ + 1:>{label}} │", "dim"), (shades, "green"), ("│", "dim")), no_wrap=True)
    few = f"{len(rows)} of {len(one.shares)} groups" if len(rows) < len(one.shares) else f"{len(rows)} groups"
    _say(console, f"{few} down, {len(one.shares[0])} places across; █ is {share(top)} of a group's outputs, blank is none", "dim")


def _factor_bars(console: Console, runs: Sequence[ProbeResult], name: str) -> None:
    """A bar a run: the bits of the factor that Z tells, of its entropy."""
    found = [(run, one) for run in probe_rows.by_kappa(runs) if (one := probe_rows.factor_of(run, name))]
    entropy = max((one.entropy for _, one in found if is_number(one.entropy)), default=0.0)
    if not entropy > 0:
        return  # what the prompt settles: there is nothing that Z could tell
    print_heading(console, f"{name}, bits of H = {number(entropy)}")
    width = max(min(page_width(console) - 32, 50), 6)
    bars = [f"{bar(fraction(one.information.value, one.entropy), width)} {interval(one.information)}" for _, one in found]
    print_facts(console, [(f"κ {probe_rows.kappa_text(run.kappa)}", line) for (run, _), line in zip(found, bars, strict=True)])


def _table(console: Console, rows: Rows, *, column: int | None = None) -> None:
    """A table, with a bar of each row's share in a column of its own, the last unless told, as wide as there is room for."""
    headers, cells, right = rows.headers, rows.cells, list(rows.right)
    room = page_width(console) - needed(headers, cells) - GAP
    width = next((width for width in (20, 10, 8, 6) if width <= room), 0)
    if rows.shares and width:
        place = len(headers) if column is None else column
        headers = [*headers[:place], "", *headers[place:]]
        cells = [[*row[:place], bar(part, width), *row[place:]] for row, part in zip(cells, rows.shares, strict=True)]
        right = [index + (index >= place) for index in right]
    print_fitting(console, headers, cells, right=right)


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(Text(visible(text), style=style), overflow="fold")


def _bullets(console: Console, title: str, lines: Sequence[str]) -> None:
    if lines:
        print_heading(console, title)
        for line in lines:
            _say(console, f"· {line}")
