"""Exact answers: rows in which every target is the model's most likely token.

Shapes: B rows, T positions, H bits of Z.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from freetf_cli.data.batches import IGNORE, DataSource
from freetf_cli.errors import InputError
from freetf_cli.evaluation.likelihood import prior_codes, row_stream, rows_at_once, tensors
from freetf_cli.latent.binary import sample_codes
from freetf_cli.model.decoder import Decoder
from freetf_cli.model.free_transformer import FreeTransformer
from freetf_cli.records.answers import Answers, Errors
from freetf_cli.records.likelihood import Estimate
from freetf_cli.runs.checkpoint import Checkpoint


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
    free = isinstance(model, FreeTransformer)
    for batch in source.held_out(split, sequences, rows_at_once(model, source.context)):
        if (batch.targets[:, 0] != IGNORE).any():
            raise InputError("no question is asked in this data: every token of a row counts", hint="--task likelihood")
        inputs_BT, targets_BT = tensors(model, batch)
        z_BT = None
        if isinstance(model, FreeTransformer):
            z_BT = prior_codes(model, range(rows, rows + len(inputs_BT)), inputs_BT.shape[1:], seed)
            wrong_posterior += _wrong(model, inputs_BT, targets_BT, _posterior(model, rows, seed, inputs_BT))
        wrong += _wrong(model, inputs_BT, targets_BT, z_BT)
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


def _wrong(model: Decoder, inputs_BT: Tensor, targets_BT: Tensor, z_BT: Tensor | None) -> int:
    """The number of rows with a wrong token."""
    logits_BTV = model(inputs_BT) if z_BT is None else model(inputs_BT, z_BT)
    missed_BT = (logits_BTV.argmax(-1) != targets_BT) & (targets_BT != IGNORE)
    return int(missed_BT.any(1).sum())


def _posterior(model: FreeTransformer, first: int, seed: int, inputs_BT: Tensor) -> Tensor:
    """Codes [B, T] from the encoder, each row with a random stream of its own; `first` is the number of the first row."""
    bit_logits_BTH = model.infer_latent(model.lower(inputs_BT), inputs_BT)
    shape = tuple(bit_logits_BTH.shape[1:])
    noise = np.stack([row_stream(seed, "posterior", first + row).random(shape, dtype=np.float32) for row in range(len(inputs_BT))])
    return sample_codes(bit_logits_BTH, torch.from_numpy(noise).to(inputs_BT.device))
