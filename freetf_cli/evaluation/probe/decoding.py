"""Can a factor be read out of Z? A linear and a small non-linear probe, held out, against shuffled labels and the hidden state.

A probe shows what *it* can read, not what Z contains: usable information (Xu et al., arXiv 2002.10689), from below. The same probe
trained on shuffled labels (after Hewitt and Liang, arXiv 1909.03368) shows what it would get by chance, and the one on the hidden
state at the injection layer, all that the encoder saw, is the ceiling.

Features: the bits of Z, ±1, and the hidden state's leading principal components, at every position; a long sequence is averaged
in segments. Of these a probe sees the 128 that go best with the labels on the training part, each scaled by how much of its
variance the labels explain beyond chance (a ridge that trusts features unequally): a position is told by a few of a thousand
bits, and the others would drown them.
Documents are dealt at random to three parts, 60 % to train on, 15 % to stop by, 25 % to test: windows of one document stay together, and
a folder's order does not matter.

Shapes: N sequences, T positions, F features, S sites.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from freetf_cli.data.rows import Factors
from freetf_cli.evaluation.probe.factors import Factor, FactorReader
from freetf_cli.evaluation.probe.information import UNREAD
from freetf_cli.evaluation.probe.intervention import Stage
from freetf_cli.evaluation.probe.rate import Posterior
from freetf_cli.evaluation.statistics import LEAST, bootstrap
from freetf_cli.latent.binary import code_bits
from freetf_cli.records import LN2
from freetf_cli.records.probe import Decoding

PROBES = ("linear", "mlp")
COMPONENTS = 16  # of the hidden state at a position
WHOLE, SEGMENTS = 96, 64  # positions kept apart; segments of a longer sequence
HIDDEN_UNITS = 64
SCREENED, TRUST = 128, 0.05  # features that a probe sees; share of variance that one is given, so that none is out of play
_RATE, _DECAY, _BATCH, _EPOCHS, _PATIENCE = 1e-2, 0.1, 64, 100, 8

Ints = NDArray[np.int64]


class HiddenFeatures:
    """Streams [B, T, D] as features [B, F], by the principal components of the first batch."""

    def __init__(self) -> None:
        self._centre: Tensor | None = None
        self._directions: Tensor | None = None

    def __call__(self, x_BTD: Tensor) -> Tensor:
        wide = x_BTD.float()
        if self._directions is None or self._centre is None:
            flat = wide.flatten(0, 1)
            self._centre = flat.mean(0)
            covariance = (flat - self._centre).T @ (flat - self._centre)
            self._directions = torch.linalg.eigh(covariance).eigenvectors[:, -COMPONENTS:]
        return pooled((wide - self._centre) @ self._directions)


def pooled(values_NTF: Tensor) -> Tensor:
    """Features of a sequence [N, segments · F]."""
    if values_NTF.shape[1] > WHOLE:
        values_NTF = F.adaptive_avg_pool1d(values_NTF.transpose(1, 2), SEGMENTS).transpose(1, 2)
    return values_NTF.flatten(1)


def decode(posterior: Posterior, reader: FactorReader, rows: Sequence[Factors], bits: int, seed: int, stage: Stage) -> list[Decoding]:
    """Every factor from Z and from the hidden state; empty with fewer than 80 sequences whose factors are known."""
    known = _dealt([number for number, row in enumerate(rows) if row], posterior.documents, seed)
    if len(known) * 0.25 < LEAST:
        return []
    documents = posterior.documents[known]
    truth = reader.truth([rows[number] for number in known])
    sources = {"Z": pooled(2.0 * code_bits(posterior.z[known], bits).float() - 1.0)}
    if posterior.hidden is not None:
        sources["hidden"] = posterior.hidden[known]
    jobs = [(factor, source, kind) for factor in reader.factors if factor.kinds > 1 for source in sources for kind in PROBES]
    found = []
    with stage("training probes", len(jobs)) as advance:
        for factor, source, kind in jobs:
            found.append(_decoding(factor, source, kind, sources[source], truth[factor.name], documents, seed))
            advance(1)
    return found


def _dealt(numbers: Sequence[int], documents: Ints, seed: int) -> list[int]:
    """Sequences in an order in which documents are shuffled and each stays in one piece."""
    shuffled = {document: place for place, document in enumerate(np.random.default_rng(seed).permutation(np.unique(documents)).tolist())}
    return sorted(numbers, key=lambda number: (shuffled[int(documents[number])], number))


def _decoding(factor: Factor, source: str, kind: str, features: Tensor, labels: Ints, documents: Ints, seed: int) -> Decoding:
    chance = np.random.default_rng(seed).permutation(labels)
    real, control = (probe(features, each, factor.kinds, kind, seed) for each in (labels, chance))
    accuracy = bootstrap(real.right, clusters=documents[real.tested], seed=seed)
    return Decoding(
        factor=factor.name,
        source=source,
        probe=kind,
        accuracy=accuracy,
        majority=real.majority,
        shuffled=float(control.right.mean()),
        bits=max(0.0, real.entropy - real.cross_entropy),
        entropy=real.entropy,
    )


@dataclass(frozen=True, eq=False)
class Probed:
    """tested: numbers of the test sequences [n]. right: share of sites that were predicted, for each of them. Entropies in bits a sequence,
    on them."""

    tested: Ints
    right: NDArray[np.float64]
    majority: float
    entropy: float
    cross_entropy: float


def probe(features_NF: Tensor, labels: Ints, kinds: int, kind: str, seed: int = 0) -> Probed:
    """Train on the first 60 %, stop by the next 15 %, test on the rest. labels [N] of `kinds` values, or marks [N, S] in {0, 1}.

    Sequences whose label is UNREAD are left out.
    """
    read = labels != UNREAD if labels.ndim == 1 else np.ones(len(labels), bool)
    x, y = features_NF[torch.from_numpy(read)], torch.from_numpy(labels[read])
    first, second = int(0.6 * len(x)), int(0.75 * len(x))
    relevance = _relevance(x[:first], y[:first], kinds)
    best = relevance.topk(min(SCREENED, len(relevance))).indices.sort().values
    x, relevance = x[:, best], relevance[best]
    mean, deviation = x[:first].mean(0), x[:first].std(0)
    x = (x - mean) / deviation.clamp_min(1e-6) * ((relevance + TRUST) / (relevance.max() + TRUST)).to(x.dtype)
    outputs = kinds if y.dim() == 1 else y.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _model(x.shape[1], outputs, kind)
        _fit(model, (x[:first], y[:first]), (x[first:second], y[first:second]))
    with torch.no_grad():
        logits, y_train, y_test = model(x[second:]), y[:first], y[second:]
        nats = float(_loss(logits, y_test)) * (1 if y.dim() == 1 else outputs)
    if y.dim() == 1:
        right, commonest = logits.argmax(-1) == y_test, torch.bincount(y_train, minlength=kinds).argmax()
    else:
        right, commonest = (logits > 0) == (y_test > 0), (y_train.double().mean(0) > 0.5).long()
    majority = float((y_test == commonest).double().mean())
    tested = np.flatnonzero(read)[second:]
    return Probed(tested, right.double().reshape(len(y_test), -1).mean(1).numpy(), majority, _entropy(y_test, kinds), nats / LN2)


def _relevance(x_NF: Tensor, y: Tensor, kinds: int) -> Tensor:
    """How much of each feature's variance the labels explain beyond chance [F], in [0, 1]; with marks, those of the best site."""
    centred = (x_NF - x_NF.mean(0)).double()
    total_F = centred.square().sum(0).clamp_min(1e-12)
    if y.dim() == 1:
        member_NK = F.one_hot(y, kinds).double()
        size_K = member_NK.sum(0)
        explained_F = ((member_NK.T @ centred).square() / size_K[:, None].clamp_min(1)).sum(0) / total_F
        chance = (int((size_K > 0).sum()) - 1) / max(len(y) - 1, 1)
    else:
        marks_NS = y.double() - y.double().mean(0)
        explained_SF = (marks_NS.T @ centred).square() / total_F / marks_NS.square().sum(0)[:, None].clamp_min(1e-12)
        explained_F, chance = explained_SF.amax(0), 1 / max(len(y) - 1, 1)
    return ((explained_F - chance) / (1 - chance)).clamp(0, 1)


def _model(features: int, outputs: int, kind: str) -> nn.Module:
    if kind == "linear":
        return nn.Linear(features, outputs)
    return nn.Sequential(nn.Linear(features, HIDDEN_UNITS), nn.GELU(), nn.Linear(HIDDEN_UNITS, outputs))


def _loss(logits: Tensor, y: Tensor) -> Tensor:
    """Mean nats a label: over values, or over the marks of all sites."""
    return F.cross_entropy(logits, y) if y.dim() == 1 else F.binary_cross_entropy_with_logits(logits, y.to(logits.dtype))


def _fit(model: nn.Module, train: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor]) -> None:
    """AdamW until the held-out loss has not fallen for some epochs; the best weights stay."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=_DECAY)
    best, since, kept = float("inf"), 0, {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(_EPOCHS):
        order = torch.randperm(len(train[0]))
        for start in range(0, len(order), _BATCH):
            part = order[start : start + _BATCH]
            optimizer.zero_grad()
            _loss(model(train[0][part]), train[1][part]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            loss = float(_loss(model(held_out[0]), held_out[1]))
        since += 1
        if loss < best:
            best, since, kept = loss, 0, {name: value.clone() for name, value in model.state_dict().items()}
        if since >= _PATIENCE:
            break
    model.load_state_dict(kept)


def _entropy(y: Tensor, kinds: int) -> float:
    """Bits a sequence: of the labels, or summed over the sites' marks."""
    if y.dim() == 1:
        p = torch.bincount(y, minlength=kinds).double() / len(y)
    else:
        share = y.double().mean(0)
        p = torch.stack([share, 1 - share])
    return float(-(p * torch.log2(p.clamp_min(1e-300))).sum())
