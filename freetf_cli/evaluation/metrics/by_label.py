"""by_label: the likelihood of each label's documents, such as those of each source of a mixture: CE, KL, nll and bits per byte, from
windows that lie within documents of one label.

A label is the name of the folder that a document came from (`freetf prepare`). Up to --sequences windows of each label are measured, spread
evenly over its part of the split. `nll` is the importance-weighted bound of a Free model with its largest number of draws; `perplexity` is
exp(nll) per token.

Shapes: R rows of a split.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import numpy as np

from freetf_cli.data.batches import DataSource
from freetf_cli.data.rows import DocumentRows, PackedRows, Selected
from freetf_cli.errors import InputError
from freetf_cli.evaluation.likelihood import row_costs
from freetf_cli.evaluation.metrics import Request
from freetf_cli.evaluation.statistics import LEAST, check_enough
from freetf_cli.model.decoder import Decoder
from freetf_cli.records.likelihood import Cost, Evaluation
from freetf_cli.report.blocks import Note, Report, Table
from freetf_cli.report.units import count, number
from freetf_cli.runs.checkpoint import Checkpoint

OPTIONS = ("--samples",)


@dataclass(frozen=True)
class LabelCosts:
    """The costs of one label's windows. ce_posterior, kl and ce_prior are None for a baseline, whose nll is its CE."""

    label: str
    sequences: int
    tokens: int
    nll: Cost
    elbo: Cost
    ce_posterior: Cost | None
    kl: Cost | None
    ce_prior: Cost | None


@dataclass(frozen=True, kw_only=True)
class ByLabel(Evaluation):
    """The result of `evaluate --task by_label`. left_out: labels with too few windows for an interval."""

    labels: list[LabelCosts]
    left_out: list[str]

    def report(self) -> Report:
        names = ["nll", *(["elbo", "ce_posterior", "kl", "ce_prior"] if self.kind == "free" else [])]
        heads = {"nll": "nll" if self.kind == "free" else "nll = CE", "elbo": "CE + KL", "ce_posterior": "CE, posterior Z", "kl": "KL"}
        rows = []
        for one in self.labels:
            unit = one.nll.unit()
            costs = [cost for name in names if (cost := getattr(one, name)) is not None]
            shown = [f"{one.nll.text(unit)} {one.nll.interval(unit)}", *(cost.text(unit) for cost in costs[1:])]
            perplexity = number(math.exp(one.nll.nats_per_token))
            rows.append([one.label, count(one.sequences), count(one.tokens), *shown, unit.name, perplexity])
        columns = ["label", "windows", "tokens", *(heads.get(name, "CE, prior Z") for name in names), "unit", "perplexity"]
        without = f"Too few windows within documents of: {', '.join(self.left_out)}" if self.left_out else ""
        return Report(
            self.run,
            [self.about(), Table(columns, rows, align="lrr" + "r" * len(names) + "lr"), Note(without)],
            kicker="likelihood by label",
        )


def evaluate(checkpoint: Checkpoint, model: Decoder, source: DataSource, request: Request) -> ByLabel:
    """Measure each label. InputError if the data has no labels, or too few windows of every one."""
    started = time.perf_counter()
    if not isinstance(source.rows, DocumentRows | PackedRows):
        raise InputError("labels are those of documents in a data folder, and this run's data has none", hint="--data DIR")
    labels = np.array(source.rows.labels(request.split), dtype=object)
    names = sorted({label for label in source.rows.document_labels(request.split) if label})
    if not names:
        raise InputError("the documents have no labels", str(source.folder or ""), "`freetf prepare` takes them from the names of folders")
    found, left_out = list[LabelCosts](), list[str]()
    for name in names:
        numbers = np.flatnonzero(labels == name)
        if len(numbers) < LEAST or request.sequences < LEAST:
            left_out.append(name)
            continue
        part = replace(source, rows=Selected(source.rows, request.split, numbers))
        costs = row_costs(
            model,
            part,
            split=request.split,
            sequences=request.sequences,
            draws=(request.draws,),
            seed=request.seed,
            advance=request.advance,
        )
        of = {metric: costs.cost(nats) for metric, nats in costs.nats.items()}
        rest = (of.get("ce_posterior"), of.get("kl"), of.get("ce_prior"))
        found.append(LabelCosts(name, len(costs.targets), int(costs.targets.sum()), of["nll"], of["elbo"], *rest))
    if not found:
        check_enough(min(request.sequences, max((labels == name).sum() for name in names)), "windows of one label", "raise --sequences")
    sequences = sum(one.sequences for one in found)
    described = request.described("by_label", checkpoint, source, sequences, time.perf_counter() - started)
    return ByLabel(**described, labels=found, left_out=left_out)
