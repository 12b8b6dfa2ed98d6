"""answers: the share of sequences with a wrong token, for data in which only a part of each row counts, such as the task blocks.

Where several answers are right (`data.params.valid` of blocks), a sequence is wrong if the model gives none of them.
A Free model answers with Z from the prior, as in generation, and with Z from the encoder, which reads the answer too.
Shapes: B sequences, T positions.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from freetf_cli.data.batches import IGNORE, Batch, DataSource
from freetf_cli.errors import InputError
from freetf_cli.evaluation.metrics import Request
from freetf_cli.evaluation.posterior import PosteriorPass, posterior_draws, prior_draws, rows_at_once, tensors
from freetf_cli.evaluation.statistics import wilson
from freetf_cli.model.decoder import Decoder
from freetf_cli.records.likelihood import Estimate, Evaluation
from freetf_cli.report.blocks import Note, Report, Table
from freetf_cli.report.units import count
from freetf_cli.runs.checkpoint import Checkpoint

READING = (
    "A sequence is wrong if at any counted position the most likely token, given the true tokens before it, differs from the true token. "
    "Where several answers are right, it is wrong if this holds for each of them."
)


@dataclass(frozen=True)
class Errors:
    """The number of wrong sequences, and their share with its 95 % interval (Wilson's)."""

    wrong: int
    share: Estimate

    def cells(self) -> list[str]:
        return [count(self.wrong), self.share.share()]


@dataclass(frozen=True, kw_only=True)
class Answers(Evaluation):
    """The sequences with a wrong token. Greedy generation gives the same answers up to its first wrong token."""

    errors: Errors  # of a baseline, or of a Free model with Z from the prior
    errors_posterior: Errors | None  # with Z from the encoder; None for a baseline
    cut: int = 0  # tokens at the end of a row, in its answer, that are beyond the model's context

    def report(self) -> Report:
        rows = [["wrong answers" if self.errors_posterior is None else "wrong answers, prior Z", *self.errors.cells()]]
        if self.errors_posterior is not None:
            rows.append(["wrong answers, posterior Z", *self.errors_posterior.cells()])
        table = Table(["", "sequences", "share [95 %]"], rows, align="lrr")
        warning = f"The last {count(self.cut)} tokens of a row lie beyond the model's context: only the rest of each answer counts."
        return Report(self.run, [self.about(), table, Note(warning if self.cut else "", "strong"), Note(READING)], kicker="answers")


@torch.inference_mode()
def evaluate(checkpoint: Checkpoint, model: Decoder, source: DataSource, request: Request) -> Answers:
    """Count wrong sequences. InputError if every token of a row is a target: such data asks no question."""
    started = time.perf_counter()
    seen = wrong = wrong_posterior = 0
    for batch in source.held_out(request.split, request.sequences, rows_at_once(model, source.context)):
        if (batch.targets[:, 0] != IGNORE).any():
            raise InputError("every token of a row counts in this data, so there are no answers to score", hint="--task likelihood")
        answers = [tensors(model, one) for one in right_answers(source, batch)]
        rows, z = range(seen, seen + len(batch.inputs)), None
        if model.latent is not None:
            z = prior_draws(model, rows, source.context, request.seed)
            inferred = posterior_draws(model, PosteriorPass(model, batch).posterior, rows, source.context, request.seed)
            wrong_posterior += _wrong(model, answers, inferred)
        wrong += _wrong(model, answers, z)
        seen = rows.stop
        request.advance(len(rows))
    return Answers(
        **request.described("answers", checkpoint, source, seen, time.perf_counter() - started),
        errors=Errors(wrong, wilson(wrong, seen)),
        errors_posterior=Errors(wrong_posterior, wilson(wrong_posterior, seen)) if model.latent is not None else None,
        cut=0 if source.task is None else max(source.task.row_tokens - source.context - 1, 0),
    )


def right_answers(source: DataSource, batch: Batch) -> list[Batch]:
    """The batch with each of the answers that its task accepts; the batch alone if there is one right answer."""
    if source.task is None:
        return [batch]
    rows = np.concatenate([batch.inputs, batch.targets[:, -1:]], axis=1)
    found = source.task.alternatives(rows)
    if len(found) == 1:
        return [batch]
    return [Batch(one[:, :-1], np.where(batch.targets == IGNORE, IGNORE, one[:, 1:])) for one in found]


def _wrong(model: Decoder, answers: Sequence[tuple[Tensor, Tensor]], z: Tensor | None) -> int:
    """The number of sequences with a wrong token in each of their right answers. answers: inputs and targets [B, T] of each."""
    wrong_AB = []
    for inputs_BT, targets_BT in answers:
        logits_BTV = model(inputs_BT, z).logits
        wrong_AB.append(((logits_BTV.argmax(-1) != targets_BT) & (targets_BT != IGNORE)).any(1))
    return int(torch.stack(wrong_AB).all(0).sum())
