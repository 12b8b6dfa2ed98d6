"""The demo's story in the terminal."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence

from rich.text import Text

from freetf_cli.records import DemoResult, SampleGroups, TrainResult
from freetf_cli.report.console import out
from freetf_cli.report.figure4 import agreement_table, row_text
from freetf_cli.report.figure4 import figure4 as draw
from freetf_cli.report.tables import print_facts
from freetf_cli.report.terminal import loss_text
from freetf_cli.report.units import duration, floor_text


def chapter(number: int, title: str, command: str) -> None:
    """A heading, and the command that does the same."""
    console = out()
    console.print()
    console.print(Text(f"{number}  {title}", style="bold"), soft_wrap=True)
    console.print(Text(f"   $ {command}", style="dim"), soft_wrap=True)


def examples(rows: Sequence[str], entropy: Mapping[str, float]) -> None:
    """A few rows of the data, and what each hidden factor is worth."""
    console = out()
    for row in rows:
        console.print(Text("   ") + row_text(row), soft_wrap=True)
    parts = ", ".join(f"{name} {entropy[name]:.2f}" for name in ("letter", "position", "noise"))
    console.print(
        Text(f"   bits in a row: {parts}; given the letter {entropy['given_letter']:.3f}, the floor of every CE below"), soft_wrap=True
    )


def trained(result: TrainResult) -> None:
    """How a run ended."""
    facts = [("run", result.run), ("took", duration(result.seconds))]
    if result.val:
        facts.append(("held out", loss_text(result.val, result.facts, result.kind)))
    print_facts(out(), [*facts, ("floor", floor_text(result.facts))])


def figure4(blue: list[list[str]], green: list[list[str]], prompt: str) -> None:
    """Independent Z in blue, shared Z in green."""
    console = out()
    for groups, shared in ((blue, False), (green, True)):
        draw(SampleGroups("", shared, groups, prompt), console=console)


def ending(result: DemoResult) -> None:
    """What was measured, where everything is, and what to try next."""
    console = out()
    console.print()
    position = next((one for one in result.agreement if one.factor == "position"), None)
    if position:
        agreement_table(result.agreement, console=console)
    if position and math.isfinite(position.ratio):
        sentence = f"Targets start at the same place {position.ratio:.1f} times as often when Z is shared as across groups"
        console.print(Text(f"{sentence} ({position.within:.0%} against {position.across:.1%} of pairs).", style="bold"), soft_wrap=True)
    console.print()
    free, baseline = shlex.quote(result.free.run), shlex.quote(result.baseline.run)
    print_facts(
        console,
        [
            ("done in", duration(result.seconds)),
            ("runs", f"{baseline}, {free}"),
            ("reports", f"{baseline}/report.html, {free}/report.html"),
        ],
    )
    console.print()
    console.print(Text("Try next:", style="bold"))
    probe = f"freetf probe-latent {free}"
    for command in (
        f"freetf show {free}",
        probe,
        f"freetf sample {free} --prompt 'Q>' --z shared --groups 2 --count 5",
        "freetf recipe list",
    ):
        console.print(Text(f"   $ {command}", style="cyan"), soft_wrap=True)
