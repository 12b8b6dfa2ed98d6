"""Probes that predict a factor from Z on held-out sequences, with controls (docs/probing.md, Decoding).

A probe shows what *it* can read, not what Z contains: usable information (Xu et al., arXiv 2002.10689), a lower bound. Its control is the
same probe trained on shuffled labels (after Hewitt and Liang, arXiv 1909.03368). Each value that the reader of outputs can name counts as
often for each true value as it did in the training part.

Features are the bits of a drawn Z as ±1, or its numbers, at every position that has a Z of its own; or the leading principal components
of the hidden state, at every position. A long sequence is averaged in segments. A probe gets the 128 features that the labels explain best
on the training part, each scaled by the share of its variance that they explain beyond chance. A few of a thousand bits encode a position;
without the scaling the others would drown them. Of a Gaussian latent the probe reads the drawn Z, as the decoder does, and not its mean: a
mean that hardly moves has almost no KL, and a probe could read it exactly.

Windows of one document stay in one part, and the order of the data folder does not matter.

Shapes: N sequences, T positions, F features, K values of a factor, S sites.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from freetf_cli.data.rows import Factors
from freetf_cli.evaluation import Stage
from freetf_cli.evaluation.probe.factors import probe_library
from freetf_cli.evaluation.probe.rate import Posterior
from freetf_cli.evaluation.statistics import LEAST, Floats, bootstrap, share
from freetf_cli.records import LN2
from freetf_cli.records.likelihood import Estimate
from freetf_cli.records.probe import Decoding
from freetf_cli.tasks.factors import UNREAD, Factor, Ints, RowReader, encode

PROBES: dict[str, dict[str, Any]] = {  # settings of MLPClassifier; alpha is the weight of the L2 penalty
    "linear": {"hidden_layer_sizes": (), "alpha": 1e-4},
    "mlp": {"hidden_layer_sizes": (64,), "alpha": 0.1, "activation": "tanh"},
}
READER = "reader"  # the probe that takes the reader's reading of the sequence
COMPONENTS = 16  # of the hidden state at a position
WHOLE, SEGMENTS = 96, 64  # most positions that are kept; a longer sequence is averaged into SEGMENTS segments
SCREENED, TRUST = 128, 0.05  # features that a probe sees; added to the relevance of each and to counts, so that none is zero
EPOCHS, PATIENCE = 100, 8

Features = NDArray[np.float32]


class HiddenFeatures:
    """Features [B, F] of hidden states [B, T, D]: at every position, their principal components in the first batch."""

    def __init__(self) -> None:
        self._fitted: tuple[Tensor, Tensor] | None = None

    def __call__(self, x_BTD: Tensor) -> Tensor:
        wide = x_BTD.float()
        if self._fitted is None:
            flat = wide.flatten(0, 1)
            centre = flat.mean(0)
            covariance = (flat - centre).T @ (flat - centre)
            self._fitted = centre, torch.linalg.eigh(covariance).eigenvectors[:, -COMPONENTS:]
        centre, directions = self._fitted
        return pooled((wide - centre) @ directions)


def pooled(values_NTF: Tensor) -> Tensor:
    """Features of a sequence [N, segments · F]."""
    if values_NTF.shape[1] > WHOLE:
        values_NTF = F.adaptive_avg_pool1d(values_NTF.transpose(1, 2), SEGMENTS).transpose(1, 2)
    return values_NTF.flatten(1)


def decode(
    posterior: Posterior, numbers_NTU: Tensor, reader: RowReader, rows: Sequence[Factors], texts: Sequence[str], seed: int, stage: Stage
) -> list[Decoding]:
    """Decode each factor from Z, from the hidden state and from the sequence.

    Returns an empty list if fewer than 80 sequences have known factors.
    numbers_NTU: Z as numbers, `Latent.numbers` of `posterior.z`.
    """
    known = _by_document([number for number, row in enumerate(rows) if row], posterior.documents, seed)
    if len(known) * 0.25 < LEAST:
        return []
    truth = encode(reader.factors, [rows[number] for number in known])
    reading = encode(reader.factors, [one.factors for one in reader.read_all([texts[number] for number in known])])
    documents, z = posterior.documents[known], pooled(numbers_NTU[known][:, posterior.positions]).numpy()
    factors = [factor for factor in reader.factors if len(factor.values) > 1 and (truth[factor.name] != UNREAD).sum() * 0.25 >= LEAST]
    found = []
    with stage("training probes", len(factors)) as advance:
        for factor in factors:
            features = {"Z": z, "hidden": posterior.hidden[known].numpy(), "sequence": reading[factor.name]}
            jobs = [*((source, kind) for source in ("Z", "hidden") for kind in PROBES), ("sequence", READER)]
            tried = {job: _decoding(factor, *job, features[job[0]], truth[factor.name], documents, seed) for job in jobs}
            best = min((job for job in jobs if job[0] != "Z"), key=lambda job: tried[job][1])
            found += [tried[job][0] for job in jobs[:-1]] + [replace(tried[best][0], source="sequence")]
            advance(1)
    return found


def _by_document(numbers: Sequence[int], documents: Ints, seed: int) -> list[int]:
    """Sequences in a random order of documents, those of one document together.

    (scikit-learn's GroupShuffleSplit splits by the number of documents, and cannot split a single one.)
    """
    order = {document: place for place, document in enumerate(np.random.default_rng(seed).permutation(np.unique(documents)).tolist())}
    return sorted(numbers, key=lambda number: (order[int(documents[number])], number))


def _decoding(
    factor: Factor, source: str, kind: str, features: Features | Ints, labels: Ints, documents: Ints, seed: int
) -> tuple[Decoding, float]:
    """What a probe reads, and its cross-entropy on the part that no result is from."""
    chance = np.random.default_rng(seed).permutation(labels)
    real, control = (probe(features, each, len(factor.values), kind, seed) for each in (labels, chance))
    bits = bootstrap(real.bits, clusters=documents[real.tested], seed=seed)
    decoding = Decoding(
        factor=factor.name,
        source=source,
        probe=kind,
        accuracy=share(real.right, clusters=documents[real.tested], seed=seed),
        majority=real.majority,
        shuffled=float(control.right.mean()),
        bits=Estimate(*(max(0.0, end) for end in (bits.value, bits.low, bits.high))),
        entropy=real.entropy,
    )
    return decoding, real.held_out


@dataclass(frozen=True, eq=False)
class Probed:
    """Results on the n sequences of the test part."""

    tested: Ints  # their indices [n]
    right: Floats  # the share of sites predicted right [n]
    bits: Floats  # what the probe gains on the frequencies of the labels [n]; the mean is H(factor) less the cross-entropy
    majority: float  # accuracy of the commonest training value
    entropy: float  # H(factor), bits per sequence
    held_out: float  # cross-entropy on the middle part, nats per sequence


def probe(features: Features | Ints, labels: Ints, kinds: int, kind: str, seed: int = 0) -> Probed:
    """Train on the first 60 %, stop early on the next 15 %, test on the rest. labels: values [N] below `kinds`, or marks [N, S].

    features: [N, F]; for the kind READER what was read, like the labels. Sequences with an unread label are left out.
    """
    read = np.flatnonzero(labels != UNREAD) if labels.ndim == 1 else np.arange(len(labels))
    x, y = features[read], labels[read]
    first, second = int(0.6 * len(y)), int(0.75 * len(y))
    if kind == READER:
        p = _by_reading(x, y[:first], kinds)[first:]  # type: ignore[arg-type]
    else:
        x = _screened(x, y[:first], kinds)  # type: ignore[arg-type]
        p = _fit(kind, kinds, seed, (x[:first], y[:first]), (x[first:second], y[first:second])).predict_proba(x[first:])
    p_test, y_train, y_test = p[second - first :], y[:first], y[second:]
    if y.ndim == 1:
        right, commonest = p_test.argmax(1) == y_test, np.bincount(y_train, minlength=kinds).argmax()
        frequency = np.bincount(y_test, minlength=kinds) / len(y_test)
    else:
        right, commonest, frequency = ((p_test > 0.5) == y_test).mean(1), y_train.mean(0) > 0.5, y_test.mean(0)
    surprisal = _nats(np.broadcast_to(frequency, p_test.shape), y_test) / LN2
    return Probed(
        tested=read[second:],
        right=right.astype(np.float64),
        bits=surprisal - _nats(p_test, y_test) / LN2,
        majority=float((y_test == commonest).mean()),
        entropy=float(surprisal.mean()),
        held_out=float(_nats(p[: second - first], y[first:second]).mean()),
    )


def _by_reading(reading: Ints, y: Ints, kinds: int) -> Floats:
    """Probabilities of values [N, K] given the values read, or of marks [N, S] given the marks read, from the first sequences' labels."""
    if y.ndim > 1:
        marks_22 = np.full((2, 2), 0.5)
        np.add.at(marks_22, (reading[: len(y)], y), 1)
        return np.asarray((marks_22[:, 1] / marks_22.sum(1))[reading], np.float64)
    counts_RK = np.zeros((kinds + 1, kinds))  # the last row: unread
    np.add.at(counts_RK, (reading[: len(y)], y), 1)
    counts_RK += TRUST * (counts_RK.sum(0) + 1) / (len(y) + kinds)
    return np.asarray((counts_RK / counts_RK.sum(1, keepdims=True))[reading], np.float64)


def _screened(x_NF: Features, y: Ints, kinds: int) -> Features:
    """The features that a probe sees, standardised and scaled by their relevance. y: labels of the first sequences, the training part."""
    relevance_F = _relevance(x_NF[: len(y)], y, kinds)
    best = np.sort(np.argsort(-relevance_F, kind="stable")[:SCREENED])
    x_NF, relevance_F = x_NF[:, best], relevance_F[best]
    train = x_NF[: len(y)]
    scale = (relevance_F + TRUST) / (relevance_F.max() + TRUST) / np.maximum(train.std(0, ddof=1), 1e-6)
    return np.asarray((x_NF - train.mean(0)) * scale, np.float32)


def _relevance(x_NF: Features, y: Ints, kinds: int) -> Floats:
    """The share of each feature's variance that labels explain beyond chance (ε²) [F], in [0, 1]; with marks, for the best site.

    (The F statistic of scikit-learn's SelectKBest, on a scale that features can be weighted by, and for many sites at once.)
    """
    centred = (x_NF - x_NF.mean(0)).astype(np.float64)
    total_F = np.maximum(np.square(centred).sum(0), 1e-12)
    if y.ndim == 1:
        member_NK = np.eye(kinds)[y]
        size_K = member_NK.sum(0)
        explained_F = (np.square(member_NK.T @ centred) / np.maximum(size_K, 1)[:, None]).sum(0) / total_F
        chance = ((size_K > 0).sum() - 1) / max(len(y) - 1, 1)
    else:
        marks_NS = y - y.mean(0)
        explained_SF = np.square(marks_NS.T @ centred) / total_F / np.maximum(np.square(marks_NS).sum(0), 1e-12)[:, None]
        explained_F, chance = explained_SF.max(0), 1 / max(len(y) - 1, 1)
    return np.asarray(np.clip((explained_F - chance) / (1 - chance), 0, 1), np.float64)


def _fit(kind: str, kinds: int, seed: int, train: tuple[Features, Ints], held_out: tuple[Features, Ints]) -> Any:
    """A classifier as it was after its best epoch on the held-out part.

    One class for both probes (a network without hidden units is linear), since it takes all sites of a marked factor at once.
    """
    network = probe_library("sklearn.neural_network").MLPClassifier
    model = network(**PROBES[kind], batch_size=min(64, len(train[0])), learning_rate_init=1e-2, random_state=seed)
    classes = np.arange(kinds if train[1].ndim == 1 else train[1].shape[1])
    best, least, since = model, np.inf, 0
    for _ in range(EPOCHS):
        model.partial_fit(*train, classes=classes)
        loss = float(_nats(model.predict_proba(held_out[0]), held_out[1]).mean())
        since += 1
        if loss < least:
            best, least, since = copy.deepcopy(model), loss, 0
        if since >= PATIENCE:
            break
    return best


def _nats(p: NDArray[Any], y: Ints) -> Floats:
    """Cross-entropy [N] of each sequence's labels under probabilities [N, K], or of its marks under [N, S], summed over sites."""
    chosen = np.take_along_axis(p, y[:, None], 1) if y.ndim == 1 else np.where(y == 1, p, 1 - p)
    return np.asarray(-np.log(np.maximum(chosen, 1e-12).astype(np.float64)).sum(1), np.float64)
