"""The report of a run: one HTML page that needs nothing else, neither network nor script."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import PurePath

from freetf_cli.records import LN2, Metrics, RunSummary
from freetf_cli.report.html import SAMPLES_CSS, facts, flattened, samples_html, table, text
from freetf_cli.report.series import Series, bit_series, curve, last_metrics, split_metrics, without_nulls
from freetf_cli.report.style import PAGE_CSS
from freetf_cli.report.svg import CHART_CSS, line_chart
from freetf_cli.report.terminal import kind_text, memory_rows, overhead_text
from freetf_cli.report.units import MISSING, Scale, count, figure, floor_text, latent_use, scale, share, short, size, times

GOOD, BAD = ("finished", "complete", "done"), ("failed", "error", "diverged")


def report_html(summary: RunSummary) -> str:
    """The whole page."""
    summary = replace(summary, metrics=without_nulls(summary.metrics))
    title = PurePath(summary.run).name or summary.run
    sections = [
        _headline(summary, title),
        _curves(summary),
        _samples(summary),
        _sizes(summary),
        _recipe(summary),
        _checkpoints(summary),
        _manifest(summary),
    ]
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{text(title)} · freetf</title>'
        f"<style>{PAGE_CSS}{CHART_CSS}{SAMPLES_CSS}</style></head><body><main>{''.join(sections)}</main></body></html>\n"
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{text(title)}</h2>{body}</section>" if body else ""


def _headline(summary: RunSummary, title: str) -> str:
    mood = "good" if summary.status in GOOD else "bad" if summary.status.startswith(BAD) else "open"
    data = f"{summary.facts.name}, rows of {count(summary.facts.context)} positions, vocabulary {count(summary.facts.vocabulary)}"
    about = summary.recipe.get("description") or ""
    return (
        f'<header><p class="kicker">{text(kind_text(summary.kind))} <span class="status {mood}">{text(summary.status)}</span></p>'
        f"<h1>{text(title)}</h1>{f'<p class=about>{text(about)}</p>' if about else ''}<p class=data>{text(data)}</p></header>"
        f"{_key_figures(summary)}"
    )


def _key_figures(summary: RunSummary) -> str:
    last, to = last_metrics(summary.metrics), scale(summary.facts)
    if last is None:
        return f'<p class="empty">No metrics yet. Floor: {text(floor_text(summary.facts))}.</p>'
    cards = [_card("CE", to.bits(last.ce), last.ce, to, "ce")]
    if summary.kind == "free":
        cards += [_card("KL", to.bits(last.kl), last.kl, to, "kl"), _card("CE + KL", to.length(last), last.ce + last.kl, to, "length")]
    if to.floor is not None:
        cards.append(_card("floor", to.floor, to.floor / to.factor, to, "floor"))
    return f'<div class="cards">{"".join(cards)}</div><p class="reading">{_reading(summary, last, to)}</p>'


def _card(name: str, bits: float, nats: float, to: Scale, colour: str) -> str:
    return (
        f'<div class="card k-{colour}"><span class="name">{name}</span><span class="value">{figure(bits)}</span>'
        f'<span class="unit">{to.unit}</span><span class="nats">{figure(nats, 4)} nats/token</span></div>'
    )


def _reading(summary: RunSummary, last: Metrics, to: Scale) -> str:
    """What the numbers mean, in a sentence or two."""
    where = f"Step {count(last.step)}, {'held-out split' if last.split != 'train' else 'training batch'} {text(last.split)}."
    free = summary.kind == "free"
    words = [where if last.split != "train" else f"Step {count(last.step)}, on the training batch."]
    if to.floor is not None:
        gap = to.length(last) - to.floor
        side = "below" if gap < 0 else "above"
        words.append(f"The code length, {'CE + KL' if free else 'CE'}, lies {figure(abs(gap))} bits {side} the floor, the data's entropy.")
    elif summary.facts.floor_bits is not None:
        words.append(f"The floor is {text(floor_text(summary.facts))}; rows differ in length, so it has no place on this scale.")
    use = latent_use(last, to) if free else None
    if use is not None:
        words.append(f"Each bit of KL saves {use:.2f} bits of CE.")
    return " ".join(words)


def _curves(summary: RunSummary) -> str:
    to, free = scale(summary.facts), summary.kind == "free"
    if not summary.metrics:
        return ""
    series = bit_series(summary.metrics, to, free=free)
    floor = (to.floor, f"floor {to.floor:.2f}") if to.floor is not None else None
    title = ("CE and KL, " if free else "CE, ") + to.unit

    # One picture for a page and one for a phone, on which the first would be too small to read; CSS shows either.
    def main(width: int, height: int) -> str:
        return line_chart(series, title=title, x_label="step", y_label=to.unit, floor=floor, width=width, height=height)

    small = "".join(
        f"<div>{line_chart([one], title=one.name, x_label='step', y_label=unit, width=340, height=200)}</div>"
        for one, unit in _small(summary)
    )
    return _section(
        "Curves", f'<div class="wide">{main(960, 380)}</div><div class="narrow">{main(380, 330)}</div><div class="small">{small}</div>'
    )


def _small(summary: RunSummary) -> list[tuple[Series, str]]:
    train, held_out = split_metrics(summary.metrics)
    lines = train or held_out
    charts = [
        (curve("Loss, CE + penalised KL" if summary.kind == "free" else "Loss", lines, lambda line: line.loss, "plain"), "nats/token")
    ]
    charts.append((curve("Learning rate", lines, lambda line: line.lr, "plain"), "rate"))
    if summary.kind == "free":
        charts.append((curve("Free bits κ", lines, lambda line: line.kappa / LN2, "plain"), "bits/token"))
        charts.append((curve("Tokens above κ", lines, lambda line: 100 * line.above_kappa, "plain"), "%"))
    charts.append((curve("Gradient norm", lines, lambda line: line.grad_norm, "plain"), "norm"))
    return [(one, unit) for one, unit in charts if one.points()]


def _samples(summary: RunSummary) -> str:
    body = "".join(samples_html(groups, latent=summary.kind == "free") for groups in summary.samples)
    if summary.agreement:
        rows = [
            [one.factor, share(one.within), share(one.across), times(one.ratio), count(one.pairs_within), count(one.pairs_across)]
            for one in summary.agreement
        ]
        headers = ["agreement on", "within a group", "across groups", "ratio", "pairs within", "pairs across"]
        body += table(headers, rows, right=range(1, 6), label="agreement")
    return _section("Samples", body)


def _sizes(summary: RunSummary) -> str:
    plan = summary.plan
    rows = [[part.name, count(part.parameters), share(part.parameters / max(plan.parameters, 1)), short(part.flops)] for part in plan.parts]
    rows.append(["total", count(plan.parameters), share(1.0), short(sum(part.flops for part in plan.parts))])
    parts = table(["part", "parameters", "share", "forward FLOPs a token"], rows, right=(1, 2, 3), total=True, label="parts")
    memory = [[name, size(value)] for name, value in memory_rows(plan)]
    table_memory = (
        table(["memory while training", "size"], memory, right=(1,), total="total" in plan.memory, label="memory") if memory else ""
    )
    lines = [("training", f"{count(plan.steps)} steps, {count(plan.tokens)} tokens, {plan.precision}")]
    lines.append(("compute", f"{short(plan.train_flops_per_token)}FLOP a token, forward and backward"))
    if plan.overhead_compute is not None:
        lines.append(("over its baseline", overhead_text(plan)))
    return _section("Sizes", f'{facts(lines)}<div class="pair">{parts}{table_memory}</div>')


def _recipe(summary: RunSummary) -> str:
    tables = [(name, value) for name, value in summary.recipe.items() if isinstance(value, dict)]
    boxes = [
        f"<div><h3>{text(name)}</h3>{table(['', ''], [list(pair) for pair in flattened(value)], label=name)}</div>"
        for name, value in tables
        if flattened(value)
    ]
    return _section("Recipe", f'<div class="tables">{"".join(boxes)}</div>' if boxes else "")


def _checkpoints(summary: RunSummary) -> str:
    if not summary.checkpoints:
        return ""
    rows = [
        [
            count(info.step),
            figure(info.val_loss, 4) if info.val_loss is not None else MISSING,
            "best" if info.best else "",
            size(info.bytes),
            info.path,
        ]
        for info in summary.checkpoints
    ]
    return _section(
        "Checkpoints", table(["step", "held-out loss, nats/token", "", "size", "path"], rows, right=(0, 1, 3), label="checkpoints")
    )


def _manifest(summary: RunSummary) -> str:
    argv = summary.manifest.get("argv")
    command = f"<pre class=command>{text(shlex.join(str(word) for word in argv))}</pre>" if isinstance(argv, list) and argv else ""
    rest = {key: value for key, value in summary.manifest.items() if key != "argv"}
    rows = [["run", summary.run], ["data, SHA-256", summary.facts.sha256], *(list(pair) for pair in flattened(rest))]
    return _section("Manifest", command + table(["", ""], rows, label="manifest"))
