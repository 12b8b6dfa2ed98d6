"""Results on stdout, one function a kind of result. Commands to try next are hints, so they go to stderr."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from freetf_cli.records import DataFacts, DatasetSummary, Finding, Metrics, Plan, Sample, TrainResult
from freetf_cli.report.console import hint, note, out, visible
from freetf_cli.report.figure4 import row_text
from freetf_cli.report.tables import Cell, print_facts, print_heading, print_table
from freetf_cli.report.units import MISSING, count, duration, figure, floor_text, scale, share, short, signed_share, size

MEMORY_NAMES = {"parameters": "parameters", "gradients": "gradients", "optimizer": "optimizer state", "activations": "activations"}


def dataset_summary(summary: DatasetSummary) -> None:
    """A data folder just written."""
    console = out()
    facts = [("folder", summary.folder), ("task", summary.task or "text"), ("tokenizer", summary.tokenizer)]
    facts += [("vocabulary", count(summary.vocabulary)), ("labels", _labels(summary.labels))]
    if summary.floor_bits is not None:
        facts.append(("floor", f"{summary.floor_bits:.2f} bits/sequence"))
    print_facts(console, [(name, value) for name, value in facts if value])
    console.print()
    names = sorted({name for split in summary.splits.values() for name in split}, key=_split_order)
    rows = [[split, *(count(numbers[name]) if name in numbers else MISSING for name in names)] for split, numbers in summary.splits.items()]
    print_table(console, ["split", *names], rows, right=range(1, len(names) + 1))
    for line in summary.notes:
        note(line)


def _split_order(name: str) -> tuple[int, str]:
    known = ["documents", "tokens", "bytes"]
    return (known.index(name) if name in known else len(known), name)


def _labels(labels: dict[str, int]) -> str:
    return ", ".join(f"{name} {count(number)}" for name, number in labels.items())


def plan(plan: Plan) -> None:
    """What a run would take, as `train --dry-run` predicts it."""
    console = out()
    print_facts(console, [("recipe", plan.recipe), ("model", model_text(plan)), *plan_facts(plan)])
    print_sizes(console, plan)


def model_text(plan: Plan) -> str:
    return f"{kind_text(plan.kind)}, {count(plan.parameters)} parameters"


def kind_text(kind: str) -> str:
    return {"free": "Free Transformer", "baseline": "baseline decoder"}.get(kind, kind)


def plan_facts(plan: Plan) -> list[tuple[str, str]]:
    total = plan.train_flops_per_token * plan.tokens
    facts = [
        ("training", f"{count(plan.steps)} steps, {count(plan.tokens)} tokens, {plan.precision}"),
        ("compute", f"{short(plan.train_flops_per_token)}FLOP a token, forward and backward; {short(total)}FLOP in all"),
    ]
    if plan.overhead_compute is not None:
        facts.append(("over its baseline", overhead_text(plan)))
    return facts


def overhead_text(plan: Plan) -> str:
    """The overhead of Free counted both ways: all that it computes, and the paper's one block in L."""
    paper = (
        f" ({signed_share(plan.overhead_compute_paper)} counted as the paper does: one block in L)"
        if plan.overhead_compute_paper is not None
        else ""
    )
    return f"{signed_share(plan.overhead_compute)} FLOPs{paper}, {signed_share(plan.overhead_parameters)} parameters"


def print_sizes(console: Console, plan: Plan) -> None:
    """Parts and memory."""
    print_heading(console, "Parts")
    rows = [[part.name, count(part.parameters), share(part.parameters / max(plan.parameters, 1)), short(part.flops)] for part in plan.parts]
    rows.append(["total", count(plan.parameters), share(1.0), short(sum(part.flops for part in plan.parts))])
    print_table(console, ["part", "parameters", "share", "FLOPs/token, forward"], rows, right=(1, 2, 3), total=True)
    if plan.memory:
        each = f", each of {count(plan.processes)} processes" if plan.processes > 1 else ""
        print_heading(console, f"Memory while training{each}")
        print_table(
            console, ["what", "size"], [[name, size(value)] for name, value in memory_rows(plan)], right=(1,), total="total" in plan.memory
        )


def memory_rows(plan: Plan) -> list[tuple[str, float]]:
    """The total last."""
    rows = [(MEMORY_NAMES.get(name, name), value) for name, value in plan.memory.items() if name != "total"]
    return rows + ([("total", plan.memory["total"])] if "total" in plan.memory else [])


def train_result(result: TrainResult) -> None:
    """A finished run, and what to look at next."""
    console = out()
    facts: list[tuple[str, str | Text]] = [
        ("run", result.run),
        ("model", kind_text(result.kind)),
        ("trained", f"{count(result.steps)} steps, {count(result.tokens)} tokens, {duration(result.seconds)}"),
    ]
    if result.val:
        facts.append(("held out", Text(loss_text(result.val, result.facts, result.kind), style="bold")))
    if result.facts.floor_bits is not None:
        facts.append(("floor", floor_text(result.facts)))
    facts += [("checkpoint", result.checkpoint), ("report", result.report)]
    print_facts(console, [fact for fact in facts if str(fact[1])])
    run = shlex.quote(result.run)
    hint(f"freetf show {run}")
    hint(f"freetf sample {run} --z shared --groups 3 --count 8" if result.kind == "free" else f"freetf sample {run} --count 8")


def loss_text(line: Metrics, facts: DataFacts, kind: str) -> str:
    """CE, and for Free KL and their sum, in bits; the objective in nats per token."""
    to = scale(facts)
    parts = f"CE {figure(to.bits(line.ce))}"
    if kind == "free":
        parts += f" + KL {figure(to.bits(line.kl))} = {figure(to.length(line))}"
    return f"{parts} {to.unit} (loss {figure(line.loss, 4)} nats/token)"


def sample(record: Sample) -> None:
    """One sequence. On a terminal its prompt is dim and control characters are shown; in a pipe it is raw, a line."""
    console = out()
    if console.is_terminal:
        console.print(row_text(record.text, record.prompt), soft_wrap=True)
    else:
        console.file.write(record.text + "\n")
        console.file.flush()


def recipes(rows: Sequence[tuple[str, str, str, str]]) -> None:
    """The shipped recipes: name, kind, description, size."""
    print_table(out(), ["recipe", "kind", "size", "description"], [[name, kind, size, about] for name, kind, about, size in rows])


def recipe_diff(name_a: str, name_b: str, rows: Sequence[tuple[str, Any, Any]]) -> None:
    """Settings that differ, side by side."""
    console = out()
    if not rows:
        console.print(Text(f"{visible(name_a)} and {visible(name_b)} are the same"), soft_wrap=True)
        return
    print_table(
        console, ["key", name_a, name_b], [[key, Text(_value(a), style="red"), Text(_value(b), style="green")] for key, a, b in rows]
    )


def _value(value: Any) -> str:
    return MISSING if value is None else visible(str(value))


def findings(found: Sequence[Finding]) -> None:
    """What this machine has, and how to mend what it lacks."""
    rows: list[list[Cell]] = [
        [Text("✓", "green") if one.ok else Text("✗", "bold red"), one.name, one.value, Text(visible(one.fix), style="cyan")]
        for one in found
    ]
    print_table(out(), ["", "what", "found", "to mend it"], rows)
