"""Likelihood of held-out sequences (paper §3.2 and eq. 4; importance weighting: Burda et al., arXiv 1509.00519).

A Free model's −log P(S) = −log E_{Z ~ prior} P(S|Z) cannot be computed. It has these upper bounds:

    negative ELBO   E_Q[−log P(S|Z)] + KL(Q(Z|S) ‖ P)               CE + KL
    posterior       −log (1/K) Σ_k P(S|Z_k) P(Z_k) / Q(Z_k|S)       Z_k ~ Q; falls with K towards −log P(S); K = 1 estimates the ELBO
    prior           −log (1/K) Σ_k P(S|Z_k)                         Z_k ~ P; K = 1 is the CE with Z from the prior

The model decides which is tighter. `nll` of a row is the one whose mean over all other rows is smaller, each with its most draws. The
smaller one of the row's own draws would be chosen for its luck, and would not be a bound on average. Z at positions after a row's last
counted target (outside the latent mask) reaches no target and sums out exactly.

Shapes: N sequences, B of them at a time, K draws of Z for each, T positions. Numbers are in nats per sequence unless their name or
docstring says otherwise, and in float32 or wider.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from freetf_cli.data.batches import IGNORE, Batch, DataSource
from freetf_cli.evaluation import Advance
from freetf_cli.evaluation.posterior import PosteriorPass, latent_of, posterior_draws, prior_draws, rows_at_once, target_nats, tensors
from freetf_cli.evaluation.statistics import Floats, bootstrap
from freetf_cli.model.decoder import Decoder
from freetf_cli.records import LN2, Metrics
from freetf_cli.records.likelihood import Cost

DRAWS = (1, 8, 64, 512)  # numbers of draws K at which the bounds are measured
BOUND_ROWS, BOUND_SHARE = (4, 32), 0.1  # at the end of training: least and most rows; their tokens per token of training
PRIOR_DRAWS = 64  # most draws from the prior: its bound is useful only where few draws already fit the sequence


@dataclass(frozen=True, eq=False)
class RowCosts:
    """Costs of N held-out sequences.

    nats has for each metric the nats per sequence [N]: nll, the tightest bound on −log P(S), and elbo, the negative ELBO; of a Free model
    also ce_posterior, ce_prior and kl. A baseline's nll and elbo are its CE, −log P(S) itself.
    """

    targets: NDArray[np.int64]  # how many targets of each sequence count [N]
    bytes: Floats  # of text, in the counted targets [N]; 0 for other data
    documents: NDArray[np.int64]  # the document in which each row begins [N]
    nats: Mapping[str, Floats]
    proposal: str  # the distribution of the Zs in nll: posterior, prior, or both if rows differ; none for a baseline
    posterior_bound: Mapping[int, Floats]  # importance-weighted, with Z from the posterior, nats per sequence [N], by K
    prior_bound: Mapping[int, Floats]  # the same with Z from the prior; both are empty for a baseline
    above_kappa: float | None  # share of tokens, or of Zs that tokens share, whose KL exceeds κ; None for a baseline
    frequencies: float  # CE of the targets if each is predicted by its frequency among them, nats per token
    position_nats: Floats  # elbo at each position, summed over the sequences [T]
    position_targets: NDArray[np.int64]  # how many targets count at each position [T]
    seconds: float  # duration of the measurement
    seed: int = 0  # of the draws of Z and of the intervals

    def cost(self, nats: Floats) -> Cost:
        """The mean cost per token, with its interval, from nats per sequence [N]."""
        return cost(nats, self.targets, self.bytes, self.seed, self.documents)


@torch.inference_mode()
def row_costs(
    model: Decoder,
    source: DataSource,
    *,
    split: str,
    sequences: int,
    draws: Sequence[int] = DRAWS,
    seed: int = 0,
    advance: Advance = lambda _: None,
) -> RowCosts:
    """Measure the first `sequences` held-out rows, or all if there are fewer. Each row has its own random streams.

    draws: numbers of draws K of the importance-weighted bound. advance is called with the number of sequences that were just measured.
    """
    started = time.perf_counter()
    free = model.latent is not None
    row = 0
    size = rows_at_once(model, source.context) // (max(draws) if free else 1)
    parts: list[dict[str, NDArray[Any]]] = []
    for batch in source.held_out(split, sequences, min(max(size, 1), 256)):
        parts.append(_free(model, batch, row, max(draws), seed) if free else _baseline(model, batch))
        parts[-1]["targets"] = batch.targets
        row += len(batch.inputs)
        advance(len(batch.inputs))
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    counted_NT = found["targets"] != IGNORE
    nats, proposal, bounds = {"nll": found["ce"], "elbo": found["ce"]}, "none", {}
    if free:
        bounds["posterior"] = importance_bounds(found["log_weights"], draws)
        bounds["prior"] = importance_bounds(found["prior_log_weights"], [min(count, PRIOR_DRAWS) for count in draws])
        last = {name: bound[max(bound)] for name, bound in bounds.items()}
        by_prior = chosen_by_others(last["posterior"], last["prior"])
        proposal = "both" if len(set(by_prior)) > 1 else "prior" if by_prior[0] else "posterior"
        nats = {"nll": np.where(by_prior, last["prior"], last["posterior"]), "elbo": found["ce"] + found["kl"], "ce_posterior": found["ce"]}
        nats |= {"ce_prior": found["ce_prior"], "kl": found["kl"]}
    return RowCosts(
        targets=counted_NT.sum(1),
        bytes=source.target_bytes(split, found["targets"]),
        documents=source.held_out_documents(split, sequences),
        nats=nats,
        proposal=proposal,
        posterior_bound=bounds.get("posterior", {}),
        prior_bound=bounds.get("prior", {}),
        above_kappa=float(found["above_kappa"].sum() / found["latent_mask"].sum()) if free else None,
        frequencies=_entropy(np.bincount(found["targets"][counted_NT])),
        position_nats=found["position_nats"].sum(0),
        position_targets=counted_NT.sum(0),
        seconds=time.perf_counter() - started,
        seed=seed,
    )


def with_bounds(held_out: Metrics, model: Decoder, source: DataSource, sequences: int, advance: Advance) -> Metrics:
    """A Free model's held-out metrics of `sequences` rows, with nll, ce_prior and frequencies of the same rows. A baseline's are unchanged.

    Both bounds are measured on few of these rows, with few draws, and carried over to all: nll by its ratio to CE + KL (which cannot make
    it negative), ce_prior by what Z from the prior adds to the CE. Rows differ far more in their costs than in either.
    """
    if model.latent is None:
        return held_out
    least, most = BOUND_ROWS
    affordable = int(BOUND_SHARE * held_out.tokens / (2 * PRIOR_DRAWS * source.context))
    rows = min(sequences, most, max(least, affordable))
    costs = row_costs(model, source, split=held_out.split, sequences=rows, draws=(PRIOR_DRAWS,), advance=advance)
    mean = {name: float(nats.sum() / costs.targets.sum()) for name, nats in costs.nats.items()}
    if not all(map(math.isfinite, mean.values())):
        return held_out
    nll = (held_out.ce + held_out.kl) * (mean["nll"] / mean["elbo"] if mean["elbo"] else 1.0)  # no cost: of text that never varies
    ce_prior = held_out.ce + mean["ce_prior"] - mean["ce_posterior"]
    counts = np.zeros(source.tokenizer.vocab_size, np.int64)
    for batch in source.held_out(held_out.split, sequences, 256):
        counts += np.bincount(batch.targets[batch.targets != IGNORE], minlength=len(counts))
    return replace(held_out, nll=nll, ce_prior=ce_prior, frequencies=_entropy(counts))


def chosen_by_others(first_N: Floats, second_N: Floats) -> NDArray[np.bool_]:
    """For each row, whether the second bound has the smaller sum over all other rows [N]."""
    is_second_N: NDArray[np.bool_] = second_N.sum() - second_N < first_N.sum() - first_N
    return is_second_N


def importance_bounds(log_weights_NK: Floats, draws: Sequence[int]) -> dict[int, Floats]:
    """−log of the mean of K weights, nats per sequence [N], for each K in `draws`: a mean over all disjoint groups of K."""
    found = {}
    for count in sorted(set(draws)):
        groups = log_weights_NK.shape[1] // count
        part = log_weights_NK[:, : groups * count].reshape(len(log_weights_NK), groups, count)
        top = part.max(-1, keepdims=True)
        found[count] = -(np.log(np.exp(part - top).mean(-1)) + top[..., 0]).mean(1)
    return found


def _entropy(counts: NDArray[np.int64]) -> float:
    """Entropy of the frequencies of tokens that were counted so many times, nats."""
    return float(torch.special.entr(torch.from_numpy(counts / counts.sum())).sum())


def _baseline(model: Decoder, batch: Batch) -> dict[str, Floats]:
    tokens_BT, targets_BT = tensors(model, batch)
    ctx = model.context(tokens_BT)
    nats_BT = _array(target_nats(model, model.upper(model.lower(tokens_BT, ctx), None, ctx), targets_BT))
    return {"ce": nats_BT.sum(1), "position_nats": nats_BT}


def _free(model: Decoder, batch: Batch, row: int, draws: int, seed: int) -> dict[str, Floats]:
    """Costs of a batch [B], [B, K] or [B, T]. row: the number of its first row, part of the random streams' keys."""
    latent, passed = latent_of(model), PosteriorPass(model, batch)
    posterior, mask_BT = passed.posterior, passed.latent_mask
    rows, context = batch.inputs.shape
    numbers = range(row, row + rows)
    kl_BT = posterior.kl() * mask_BT
    z = posterior_draws(model, posterior, numbers, context, seed, draws)
    ce_BKT = passed.nats(z).view(rows, draws, context)
    repeated = posterior.rows(torch.arange(rows).repeat_interleave(draws))
    log_ratio_BKT = (latent.prior_log_prob(z) - repeated.log_prob(z)).view_as(ce_BKT) * mask_BT[:, None]
    ce_BT = ce_BKT.double().sum(1) / draws
    prior = prior_draws(model, numbers, context, seed, min(draws, PRIOR_DRAWS))
    prior_ce_BK = passed.nats(prior).view(rows, -1, context).double().sum(-1)
    found = {
        "ce": ce_BT.sum(1),
        "kl": kl_BT.double().sum(1),
        "ce_prior": prior_ce_BK.mean(1),
        "log_weights": log_ratio_BKT.double().sum(-1) - ce_BKT.double().sum(-1),
        "prior_log_weights": -prior_ce_BK,
        "above_kappa": (latent.limited_kl(posterior, kl_BT)[:, latent.own] > latent.kappa * LN2).sum(1),  # the latent's κ is in bits
        "latent_mask": mask_BT[:, latent.own].sum(1),
        "position_nats": ce_BT + kl_BT,
    }
    return {name: _array(values) for name, values in found.items()}


def _array(tensor: Tensor) -> Floats:
    return tensor.double().cpu().numpy()


def cost(nats: Floats, targets: ArrayLike, bytes_N: ArrayLike, seed: int = 0, documents: ArrayLike | None = None) -> Cost:
    """The mean cost per token, from nats per sequence, numbers of counted targets, and their bytes of text (0: not text), each [N]."""
    counted = np.asarray(targets, np.float64)
    estimate = bootstrap(nats, counted, clusters=documents, seed=seed)
    bits, size = estimate.value / LN2, float(np.sum(bytes_N))
    return Cost(
        nats_per_token=estimate.value,
        low=estimate.low,
        high=estimate.high,
        bits_per_token=bits,
        bits_per_byte=bits * counted.sum() / size if size else None,
        bits_per_sequence=bits * float(counted[0]) if (counted == counted[0]).all() else None,
    )
