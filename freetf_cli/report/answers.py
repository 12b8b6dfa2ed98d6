"""How often a model is wrong about what rows ask, in the terminal: `evaluate --task answers`."""

from __future__ import annotations

from rich.text import Text

from freetf_cli.records.answers import Answers, Errors
from freetf_cli.report.console import out, visible
from freetf_cli.report.tables import Cell, print_facts, print_table
from freetf_cli.report.terminal import kind_text
from freetf_cli.report.units import count, duration


def answers(result: Answers) -> None:
    """The share of rows with a wrong token, and of a Free model by where Z came from."""
    console = out()
    facts: list[tuple[str, Cell]] = [
        ("run", Text(visible(result.run), style="bold")),
        ("model", f"{kind_text(result.kind)}, step {count(result.step)}"),
        ("data", f"{result.facts.name}, split {result.split}"),
        ("measured on", f"{count(result.sequences)} sequences, seed {result.seed}"),
        ("took", duration(result.seconds)),
    ]
    print_facts(console, facts)
    rows = [_row("wrong answers" if result.errors_posterior is None else "wrong answers, prior Z", result.errors)]
    if result.errors_posterior is not None:
        rows.append(_row("posterior Z, which has read them", result.errors_posterior))
    print_table(console, ["", "sequences", "share", "95 % interval"], rows, right=(1, 2, 3))
    console.print(Text("A sequence is wrong if the likeliest token is, at any position that counts, after the true ones.", style="dim"))


def _row(name: str, errors: Errors) -> list[Cell]:
    share = errors.share
    return [name, count(errors.wrong), f"{100 * share.value:.1f} %", f"{100 * share.low:.1f} – {100 * share.high:.1f} %"]
