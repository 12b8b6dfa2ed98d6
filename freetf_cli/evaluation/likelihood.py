"""Likelihood of held-out sequences (paper §3.2 and eq. 4; importance weighting: Burda et al., arXiv 1509.00519).

A Free model's −log P(S) = −log E_{Z ~ prior} P(S|Z) cannot be computed. It has these upper bounds:

    negative ELBO   E_Q[−log P(S|Z)] + KL(Q(Z|S) ‖ P)               CE + KL
    posterior       −log (1/K) Σ_k P(S|Z_k) P(Z_k) / Q(Z_k|S)       Z_k ~ Q; falls with K towards −log P(S); K = 1 estimates the ELBO
    prior           −log (1/K) Σ_k P(S|Z_k)                         Z_k ~ P; K = 1 is the CE with Z from the prior

The model decides which is tighter. If Z contains much information, the prior seldom draws a Z that fits the sequence. If the mismatch is
large (KL without information), most posterior draws have tiny weights. `nll` is the smaller of the two, each with its most draws.

Only positions up to a row's last counted target have a Z that counts (the latent mask). Later ones reach no target and sum out exactly.
The lower half and the encoder run once per sequence; only the upper half runs K times.

Shapes: N sequences, B of them at a time, K draws, T positions. Everything is in nats, and in float32 or wider.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from freetf_cli.data.batches import IGNORE, Batch, DataSource
from freetf_cli.evaluation.posterior import (
    draw,
    given_z_nats,
    latent_of,
    posterior_pass,
    prior_draws,
    rows_at_once,
    target_nats,
    tensors,
)
from freetf_cli.evaluation.statistics import bootstrap, check_enough
from freetf_cli.model.decoder import Decoder
from freetf_cli.records import LN2
from freetf_cli.records.likelihood import Cost
from freetf_cli.streams import keyed

SAMPLES = (1, 8, 64, 512)
PRIOR_DRAWS = 64  # most draws from the prior: its bound is useful only if a few draws reach it
Floats = NDArray[np.float64]
Advance = Callable[[int], None]


def _no_progress(_: int) -> None:
    """Do not show progress."""


@dataclass(frozen=True, eq=False)
class RowCosts:
    """Costs of N held-out sequences, in nats per sequence [N].

    Attributes:
        tokens: Counted targets [N].
        documents: The document in which each row begins [N].
        posterior_bound: Importance-weighted bounds with Z from the posterior, by number of draws; empty for a baseline.
        prior_bound: The same with Z from the prior.
        elbo: The negative ELBO, CE + KL; a baseline's CE.
        ce_posterior: CE with Z from the posterior; None for a baseline, like `kl`, `ce_prior` and `above_kappa`.
        above_kappa: Share of tokens whose KL exceeds κ.
        by_position: `elbo` summed over sequences, and the number of targets in each sum, [T] each.
        seconds: Duration of the measurement.
    """

    tokens: NDArray[np.int64]
    documents: NDArray[np.int64]
    posterior_bound: Mapping[int, Floats]
    prior_bound: Mapping[int, Floats]
    elbo: Floats
    ce_posterior: Floats | None
    kl: Floats | None
    ce_prior: Floats | None
    above_kappa: float | None
    by_position: tuple[Floats, Floats]
    seconds: float

    @property
    def proposal(self) -> str:
        """The distribution of the Zs in `nll`: posterior or prior; none for a baseline."""
        if not self.posterior_bound:
            return "none"
        return "posterior" if _last(self.posterior_bound).mean() <= _last(self.prior_bound).mean() else "prior"

    @property
    def nll(self) -> Floats:
        """The tightest measured bound on −log P(S); a baseline's −log P(S)."""
        if not self.posterior_bound:
            return self.elbo
        return _last(self.posterior_bound if self.proposal == "posterior" else self.prior_bound)

    def cost(self, nats: Floats, bytes_per_token: float | None, seed: int) -> Cost:
        """The mean cost per token, with its interval, from nats per sequence [N]."""
        return cost(nats, self.tokens, bytes_per_token, seed, self.documents)

    def metrics(self) -> dict[str, Floats | None]:
        """The costs by the names that `evaluate` and `compare` use."""
        return {"nll": self.nll, "elbo": self.elbo, "ce_posterior": self.ce_posterior, "ce_prior": self.ce_prior, "kl": self.kl}


def _last(bound: Mapping[int, Floats]) -> Floats:
    return bound[max(bound)]


@torch.inference_mode()
def row_costs(
    model: Decoder,
    source: DataSource,
    *,
    split: str,
    sequences: int,
    samples: Sequence[int] = SAMPLES,
    seed: int = 0,
    advance: Advance = _no_progress,
) -> RowCosts:
    """Measure the first `sequences` held-out rows, or all if there are fewer. Each row has its own random streams.

    samples: numbers of draws K of the importance-weighted bound. advance is called with the number of sequences that were just measured.
    InputError for fewer than 20 sequences.
    """
    started = time.perf_counter()
    draws = max(samples)
    at_once = max(1, rows_at_once(model, source.context) // (draws if model.latent is not None else 1))
    parts: list[dict[str, NDArray[np.float64]]] = []
    for batch in source.held_out(split, sequences, min(at_once, 256)):
        row = sum(len(part["tokens"]) for part in parts)
        parts.append(_free(model, batch, row, samples, seed) if model.latent is not None else _baseline(model, batch))
        advance(len(batch.inputs))
    check_enough(sum(len(part["tokens"]) for part in parts), "sequences", f"--sequences, or more data in split '{split}'")
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    free = model.latent is not None
    return RowCosts(
        tokens=found["tokens"].astype(np.int64),
        documents=source.held_out_documents(split, sequences),
        posterior_bound={count: found[f"posterior {count}"] for count in sorted(set(samples))} if free else {},
        prior_bound={count: found[f"prior {count}"] for count in _prior_samples(samples)} if free else {},
        elbo=found["ce"] + found["kl"] if free else found["ce"],
        ce_posterior=found["ce"] if free else None,
        kl=found["kl"] if free else None,
        ce_prior=found["ce_prior"] if free else None,
        above_kappa=float(found["above"].sum() / found["latents"].sum()) if free else None,
        by_position=(found["positions"].sum(0), found["counted"].sum(0)),
        seconds=time.perf_counter() - started,
    )


def _prior_samples(samples: Sequence[int]) -> list[int]:
    """The numbers of draws from the prior: the same, up to PRIOR_DRAWS."""
    return sorted({min(count, PRIOR_DRAWS) for count in samples})


def importance_bounds(log_weights_NK: Floats, samples: Sequence[int]) -> dict[int, Floats]:
    """−log mean of K weights in nats [N] for each K, averaged over all disjoint groups of K draws."""
    found = {}
    for count in sorted(set(samples)):
        groups = log_weights_NK.shape[1] // count
        part = log_weights_NK[:, : groups * count].reshape(len(log_weights_NK), groups, count)
        top = part.max(-1, keepdims=True)
        found[count] = -(np.log(np.exp(part - top).mean(-1)) + top[..., 0]).mean(1)
    return found


def _baseline(model: Decoder, batch: Batch) -> dict[str, Floats]:
    tokens_BT, targets_BT = tensors(model, batch)
    ctx = model.context(tokens_BT)
    nats_BT = _array(target_nats(model, model.upper(model.lower(tokens_BT, ctx), None, ctx), targets_BT))
    counted_BT = (batch.targets != IGNORE).astype(np.float64)
    return {"tokens": counted_BT.sum(1), "ce": nats_BT.sum(1), "positions": nats_BT, "counted": counted_BT}


def _free(model: Decoder, batch: Batch, row: int, samples: Sequence[int], seed: int) -> dict[str, Floats]:
    """Costs of a batch. row: the number of its first row, part of the random streams' keys."""
    draws, latent = max(samples), latent_of(model)
    rows, context = batch.inputs.shape
    passed = posterior_pass(model, batch)
    kl_BT = passed.posterior.kl() * passed.mask
    streams = [keyed(seed, "posterior", row + i) for i in range(rows)]
    log_weights, nats_BT = [], torch.zeros_like(kl_BT, dtype=torch.float64)
    at_once = max(1, rows_at_once(model, context) // rows)
    for start in range(0, draws, at_once):
        count = min(at_once, draws - start)
        z = draw(latent, passed.posterior, streams, context, count)
        ce_BKT = given_z_nats(model, passed, z).view(rows, count, context)
        repeated = passed.posterior.rows(torch.arange(rows).repeat_interleave(count))
        log_ratio_BKT = (latent.prior_log_prob(z) - repeated.log_prob(z)).view(rows, count, context) * passed.mask[:, None]
        log_weights.append(log_ratio_BKT.double().sum(-1) - ce_BKT.double().sum(-1))
        nats_BT += ce_BKT.double().sum(1)
    nats_BT /= draws
    prior = prior_draws(model, range(row, row + rows), context, seed, min(draws, PRIOR_DRAWS))
    prior_BKT = given_z_nats(model, passed, prior).view(rows, -1, context)
    counted_BT = (batch.targets != IGNORE).astype(np.float64)
    return {
        "tokens": counted_BT.sum(1),
        "ce": _array(nats_BT.sum(1)),
        "kl": _array(kl_BT.double().sum(1)),
        "above": _array((kl_BT > latent.kappa * LN2).sum(1)),
        "latents": _array(passed.mask.sum(1)),
        "ce_prior": _array(prior_BKT.double().sum(-1).mean(1)),
        **{f"posterior {count}": nats for count, nats in importance_bounds(_array(torch.cat(log_weights, dim=1)), samples).items()},
        **{f"prior {k}": nats for k, nats in importance_bounds(_array(-prior_BKT.double().sum(-1)), _prior_samples(samples)).items()},
        "positions": _array(nats_BT + kl_BT),
        "counted": counted_BT,
    }


def _array(tensor: Tensor) -> Floats:
    return tensor.double().cpu().numpy()


def cost(nats: Floats, targets: ArrayLike, bytes_per_token: float | None, seed: int = 0, documents: ArrayLike | None = None) -> Cost:
    """The mean cost per token, from nats per sequence [N] and counted targets [N]."""
    counted = np.asarray(targets, np.float64)
    estimate = bootstrap(nats, counted, clusters=documents, seed=seed)
    bits = estimate.value / LN2
    return Cost(
        nats_per_token=estimate.value,
        low=estimate.low,
        high=estimate.high,
        bits_per_token=bits,
        bits_per_byte=bits / bytes_per_token if bytes_per_token else None,
        bits_per_sequence=bits * float(counted[0]) if bool((counted == counted[0]).all()) else None,
    )
