"""Exact answers: rows in which every target is the model's most likely token.

Shapes: B rows, T positions, H bits of Z.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from freetf_cli.data.batches import IGNORE, DataSource
from freetf_cli.errors import InputError
from freetf_cli.evaluation.posterior import draw, posterior_pass, prior_draws, rows_at_once, tensors
from freetf_cli.model.decoder import Decoder
from freetf_cli.records.answers import Answers, Errors
from freetf_cli.records.likelihood import Estimate
from freetf_cli.runs.checkpoint import Checkpoint
from freetf_cli.streams import keyed


@torch.inference_mode()
def evaluate_answers(
    checkpoint: Checkpoint,
    model: Decoder,
    source: DataSource,
    *,
    run: str,
    split: str,
    sequences: int,
    seed: int = 0,
    advance: Callable[[int], None] = lambda count: None,
) -> Answers:
    """The share of wrong rows among `sequences` held-out ones, which are the same for every seed.

    InputError if every token of a row is a target: then the data asks no question.
    """
    started = time.perf_counter()
    rows = wrong = wrong_posterior = 0
    free = model.latent is not None
    for batch in source.held_out(split, sequences, rows_at_once(model, source.context)):
        if (batch.targets[:, 0] != IGNORE).any():
            raise InputError("no question is asked in this data: every token of a row counts", hint="--task likelihood")
        inputs_BT, targets_BT = tensors(model, batch)
        z = None
        if model.latent is not None:
            z = prior_draws(model, range(rows, rows + len(inputs_BT)), source.context, seed)
            streams = [keyed(seed, "posterior", rows + row) for row in range(len(inputs_BT))]
            inferred = draw(model.latent, posterior_pass(model, batch).posterior, streams, source.context)
            wrong_posterior += _wrong(model, inputs_BT, targets_BT, inferred)
        wrong += _wrong(model, inputs_BT, targets_BT, z)
        rows += len(inputs_BT)
        advance(len(inputs_BT))
    return Answers(
        run=run,
        task="answers",
        kind=checkpoint.recipe.kind,
        step=checkpoint.step,
        split=split,
        sequences=rows,
        seed=seed,
        facts=source.facts,
        errors=Errors(wrong, share_of(wrong, rows)),
        errors_posterior=Errors(wrong_posterior, share_of(wrong_posterior, rows)) if free else None,
        seconds=time.perf_counter() - started,
    )


def share_of(count: int, total: int) -> Estimate:
    """count / total with Wilson's 95 % interval, which holds near 0 and 1 too (SciPy's, without the extra `probe`)."""
    z, share = 1.959964, count / total
    middle = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2)) / (1 + z**2 / total)
    return Estimate(share, max(0.0, middle - half), min(1.0, middle + half))


def _wrong(model: Decoder, inputs_BT: Tensor, targets_BT: Tensor, z: Tensor | None) -> int:
    logits_BTV = model(inputs_BT, z).logits
    missed_BT = (logits_BTV.argmax(-1) != targets_BT) & (targets_BT != IGNORE)
    return int(missed_BT.any(1).sum())
