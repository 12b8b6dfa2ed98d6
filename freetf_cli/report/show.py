"""A run at a glance in the terminal: `freetf show`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.text import Text

from freetf_cli.records import LN2, CheckpointInfo, RunSummary
from freetf_cli.report.console import out, page_width, visible
from freetf_cli.report.figure4 import agreement_table, figure4
from freetf_cli.report.plot import line_plot, sparkline
from freetf_cli.report.series import Series, bit_series, curve, last_metrics, split_metrics, without_nulls
from freetf_cli.report.tables import print_facts, print_heading, print_table
from freetf_cli.report.terminal import kind_text, loss_text, model_text, plan_facts, print_sizes
from freetf_cli.report.units import MISSING, count, figure, floor_text, latent_use, scale, size

# Settings that tell one run from another; the rest is in recipe.toml.
HIGHLIGHTS = (
    *("data.task", "data.dir", "model.layers", "model.width", "model.heads", "model.context"),
    *("model.attention", "model.attention_layers", "model.document_mask"),
    *("latent.bits", "latent.kappa", "latent.window"),
    *(f"latent.objective.{name}" for name in ("free_bits", "slope", "mismatch", "mismatch_over", "schedule")),
    *("latent.numerics.gradient", "latent.encoder"),
    *("train.steps", "train.batch", "train.lr", "train.seed", "train.precision"),
)


def run_summary(summary: RunSummary) -> None:
    """Recipe, sizes, curves, checkpoints, last samples."""
    console = out()
    summary = replace(summary, metrics=without_nulls(summary.metrics))
    _head(console, summary)
    _curves(console, summary)
    if summary.checkpoints:
        print_heading(console, "Checkpoints")
        rows = [_checkpoint_row(info) for info in summary.checkpoints]
        print_table(console, ["step", "held-out loss, nats/token", "", "size", "path"], rows, right=(0, 1, 3))
    print_sizes(console, summary.plan)
    for groups in summary.samples:
        figure4(groups, console=console, latent=summary.kind == "free")
    if summary.agreement:
        console.print()
        agreement_table(summary.agreement, console=console)


def _head(console: Console, summary: RunSummary) -> None:
    facts: list[tuple[str, str | Text]] = [
        ("run", Text(visible(summary.run), style="bold")),
        ("status", summary.status),
        ("model", model_text(summary.plan)),
    ]
    facts += [("recipe", highlights(summary)), *plan_facts(summary.plan)]
    last = last_metrics(summary.metrics)
    if last:
        facts.append((f"step {count(last.step)}, {last.split}", Text(loss_text(last, summary.facts, summary.kind), style="bold")))
        use = latent_use(last, scale(summary.facts))
        if use is not None and use > 0:
            facts.append(("use of Z", f"{use:.2f} bits of CE saved by each bit of KL"))
    facts.append(("floor", floor_text(summary.facts)))
    print_facts(console, facts)


def highlights(summary: RunSummary) -> str:
    """The recipe in a line: `model.layers 8, model.width 256, …`."""
    values = ((key, _setting(summary.recipe, key.split("."))) for key in HIGHLIGHTS)
    return ", ".join(f"{key} {value}" for key, value in values if value not in (None, "softmax"))  # what every plain model has


def _setting(table: Any, names: Sequence[str]) -> Any:
    """A setting of a recipe; None if its table is not there."""
    for name in names:
        table = table.get(name) if isinstance(table, dict) else None
    return table


def _curves(console: Console, summary: RunSummary) -> None:
    train, _ = split_metrics(summary.metrics)
    if not summary.metrics:
        print_heading(console, f"{kind_text(summary.kind)}: no metrics yet")
        return
    to, free = scale(summary.facts), summary.kind == "free"
    width = min(page_width(console), 110)
    main = [one for one in bit_series(summary.metrics, to, free=free) if not one.colour_class.endswith("-train")]
    plot = line_plot(main, width=width, floor=to.floor)
    if plot:
        print_heading(console, f"Curves, {to.unit}")
        console.print(plot)
    lines = train or list(summary.metrics)
    small = [
        curve("loss, nats/token", lines, lambda line: line.loss, "plain"),
        curve("CE, " + to.unit, lines, lambda line: to.bits(line.ce), "ce"),
    ]
    if free:
        small.append(curve("KL, " + to.unit, lines, lambda line: to.bits(line.kl), "kl"))
        small.append(curve("kappa, bits/token", lines, lambda line: line.kappa / LN2, "plain"))
    small.append(curve("learning rate", lines, lambda line: line.lr, "plain"))
    console.print()
    print_facts(console, [(one.name, _spark(one, width)) for one in small if one.points()])


def _spark(one: Series, width: int) -> str:
    ys = [y for _, y in one.points()]
    digits = 2 if max(abs(ys[0]), abs(ys[-1])) >= 0.1 else 6
    return f"{sparkline(list(one.ys), max(8, min(40, width - 45)))}  {figure(ys[0], digits)} → {figure(ys[-1], digits)}"


def _checkpoint_row(info: CheckpointInfo) -> list[str]:
    loss = figure(info.val_loss, 4) if info.val_loss is not None else MISSING
    return [count(info.step), loss, "best" if info.best else "", size(info.bytes), info.path]
