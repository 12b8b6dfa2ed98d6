"""accuracy: the share of held-out tokens whose most likely prediction is right; a Free model predicts with Z from the prior.

Shapes: B sequences, T positions, V tokens of the vocabulary.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from freetf_cli.data.batches import IGNORE, DataSource
from freetf_cli.evaluation.metrics import Request
from freetf_cli.evaluation.posterior import prior_draws, rows_at_once, tensors
from freetf_cli.evaluation.statistics import bootstrap, check_enough
from freetf_cli.model.decoder import Decoder
from freetf_cli.records.evaluation import Evaluation
from freetf_cli.records.likelihood import Estimate
from freetf_cli.report.blocks import Report, Table
from freetf_cli.runs.checkpoint import Checkpoint


@dataclass(frozen=True, kw_only=True)
class Accuracy(Evaluation):
    """accuracy: the share with its 95 % interval. tokens: counted targets."""

    tokens: int
    accuracy: Estimate

    def report(self) -> Report:
        table = Table(["", "share [95 % interval]"], [["right tokens", self.accuracy.share()]], align="lr")
        return Report(self.run, [self.about(tokens=self.tokens), table], kicker="accuracy")


@torch.inference_mode()
def evaluate(checkpoint: Checkpoint, model: Decoder, source: DataSource, request: Request) -> Accuracy:
    """Count right predictions, given the true tokens before each target. InputError for fewer than 20 sequences."""
    started = time.perf_counter()
    right: list[int] = []
    counted: list[int] = []
    for batch in source.held_out(request.split, request.sequences, rows_at_once(model, source.context)):
        inputs_BT, targets_BT = tensors(model, batch)
        rows = range(len(right), len(right) + len(inputs_BT))
        z = None if model.latent is None else prior_draws(model, rows, source.context, request.seed)
        logits_BTV = model(inputs_BT, z).logits
        right += (logits_BTV.argmax(-1) == targets_BT).sum(1).tolist()  # never equal to IGNORE
        counted += (targets_BT != IGNORE).sum(1).tolist()
        request.advance(len(inputs_BT))
    check_enough(len(right), "sequences", "raise --sequences")
    documents = source.held_out_documents(request.split, request.sequences)
    return Accuracy(
        **request.described("accuracy", checkpoint, source, len(right), time.perf_counter() - started),
        tokens=sum(counted),
        accuracy=bootstrap(right, counted, clusters=documents, seed=request.seed),
    )
