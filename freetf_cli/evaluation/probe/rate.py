"""The rate of Z on held-out sequences, and the decoder's use of Z (latent ablation).

The mean KL over sequences is a sum of two terms (Hoffman and Johnson, "ELBO surgery", 2016):

    E_S KL(Q(Z|S) ‖ P) = I(S; Z) + KL(Q(Z) ‖ P),    Q(Z) = E_S Q(Z|S)

The first is the information of Z about its sequence. The second is the mismatch between the aggregate posterior and the prior: it contains
no information, and Zs drawn from the prior in generation do not have it. Neither can be computed. N sequences give bounds on the first
(Poole et al., arXiv 1905.06922), and so on the second:

    lower  E log Q(Z_i|S_i) / mean_j Q(Z_i|S_j)              over all j; at most log2 N
    upper  E log Q(Z_i|S_i) / mean_{j ≠ i} Q(Z_i|S_j)        at most the KL

Shapes: N sequences, B at a time, T positions, H bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from freetf_cli.data.batches import DataSource
from freetf_cli.evaluation import Advance
from freetf_cli.evaluation.likelihood import cost
from freetf_cli.evaluation.posterior import PosteriorPass, posterior_draws, prior_draws
from freetf_cli.evaluation.statistics import Floats, bootstrap, check_enough
from freetf_cli.latent.binary import BinaryDistribution, at_least_float32, bit_logits, code_bits, kl_per_token
from freetf_cli.model.decoder import Decoder
from freetf_cli.records import LN2
from freetf_cli.records.likelihood import Cost
from freetf_cli.records.probe import LatentAblation, Rate

LEAST_KL = 0.5  # bits per sequence; a ratio to a smaller KL is noise
ACTIVE = 0.01  # variance of an active bit's probability over sequences (active units: Burda et al., arXiv 1509.00519)
MOST_PAIRED, _BLOCK = 4096, 256  # sequences in the bounds of I(S; Z), each paired with all others; rows of pairs at a time
_BATCH_TOKENS = {"cpu": 1 << 14, "cuda": 1 << 17}


@dataclass(frozen=True, eq=False)
class Posterior:
    """Posteriors of N held-out sequences and costs given Z, on the CPU.

    Attributes:
        bit_logits: [N, T, H]; 0, as under the prior, where the latent mask is 0.
        latent_mask: [N, T], 1 where Z can reach a counted target.
        z: A draw from each posterior [N, T].
        other: The number of another sequence for each sequence [N].
        ce: Nats per sequence with Z from the posterior [N].
        ce_other: The same with the Z of the other sequence.
        ce_prior: The same with Z from the prior.
        targets: Number of counted targets [N].
        bytes: Of text, in the counted targets [N]; 0 for other data.
        documents: The document in which each sequence begins [N].
        hidden: Features of the hidden states below the injection [N, F].
    """

    bit_logits: Tensor
    latent_mask: Tensor
    z: Tensor
    other: NDArray[np.int64]
    ce: Floats
    ce_other: Floats
    ce_prior: Floats
    targets: Floats
    bytes: Floats
    documents: NDArray[np.int64]
    hidden: Tensor


@torch.inference_mode()
def read_posterior(
    model: Decoder, source: DataSource, split: str, sequences: int, seed: int, features: Callable[[Tensor], Tensor], advance: Advance
) -> Posterior:
    """Encode held-out sequences, and measure their CE with Z from their own posterior, another sequence's posterior, and the prior.

    features: maps hidden states [B, T, D] to features [B, F] for the probes. advance is called twice for each sequence. InputError for
    fewer than 20 sequences, and for a latent that has no bits.
    """
    device, length, row = model.embedding.weight.device, source.context, 0
    size = max(2, _BATCH_TOKENS.get(device.type, 1 << 16) // length)
    parts: list[list[Tensor]] = []
    sizes: list[Floats] = []
    for batch in source.held_out(split, sequences, size):
        passed, rows = PosteriorPass(model, batch), range(row, row + len(batch.inputs))
        logits_BTH = at_least_float32(bit_logits(passed.posterior)) * passed.latent_mask[..., None]
        z = posterior_draws(model, BinaryDistribution(logits_BTH), rows, length, seed)
        costs = [_nats(passed, drawn) for drawn in (z, prior_draws(model, rows, length, seed))]
        targets = (passed.targets >= 0).sum(1).double()
        parts.append([one.cpu() for one in (logits_BTH, passed.latent_mask, z, targets, *costs, features(passed.x_BTD))])
        sizes.append(source.target_bytes(split, batch.targets))
        row = rows.stop
        advance(len(rows))
    check_enough(row, "sequences", f"--sequences, or more data in split '{split}'")
    logits, mask, z, targets, ce, ce_prior, hidden = (torch.cat(column) for column in zip(*parts, strict=True))
    documents = source.held_out_documents(split, sequences)
    other, ce_other = others(documents, seed), []
    for batch, others_z in zip(source.held_out(split, sequences, size), torch.split(z[other], size), strict=True):
        ce_other.append(_nats(PosteriorPass(model, batch), others_z.to(device)).cpu())
        advance(len(others_z))
    costs_N = (ce.numpy(), torch.cat(ce_other).numpy(), ce_prior.numpy())
    return Posterior(logits, mask, z, other, *costs_N, targets.numpy(), np.concatenate(sizes), documents, hidden)


def _nats(passed: PosteriorPass, z: Tensor) -> Tensor:
    """CE given Z, nats per sequence [B]."""
    return passed.nats(z).double().sum(1)


def others(documents: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """A random other sequence for each sequence, if possible of another document."""
    rng, own = np.random.default_rng(seed), np.arange(len(documents))
    found = np.roll(own, 1)
    for _ in range(8):  # redraw for sequences that were paired with their own document
        drawn = rng.permutation(len(own))
        better = (documents[drawn] != documents) & ((documents[found] == documents) | (found == np.roll(own, 1)))
        found = np.where(better, drawn, found)
    return found


def rate(posterior: Posterior, kappa: float, floor: float | None, seed: int = 0) -> Rate:
    """The rate of Z and its decomposition. kappa in bits per token, floor in bits per sequence."""
    logits_NTH, mask_NT, documents = posterior.bit_logits, posterior.latent_mask.double().numpy(), posterior.documents
    kl_NT = (kl_per_token(logits_NTH) * posterior.latent_mask).double().numpy() / LN2
    bit_kl_NTH = (kl_per_token(logits_NTH[..., None]) * posterior.latent_mask[..., None]).double()
    p_NTH = torch.sigmoid(logits_NTH.double()).numpy()
    variance_TH = p_NTH.var(0, ddof=1)
    count, ce_N, kl_N = len(kl_NT), posterior.ce / LN2, kl_NT.sum(1)
    kl = bootstrap(kl_N, clusters=documents, seed=seed)
    low, high = (min(max(bound, 0.0), kl.value) for bound in information_bounds(logits_NTH, posterior.z))
    return Rate(
        kl=kl,
        ce=bootstrap(ce_N, clusters=documents, seed=seed),
        nelbo=bootstrap(ce_N + kl_N, clusters=documents, seed=seed),
        by_position=(kl_NT.sum(0) / np.maximum(mask_NT.sum(0), 1)).tolist(),
        by_bit=(bit_kl_NTH.sum(1).mean(0) / LN2).tolist(),
        kappa=kappa,
        above_kappa=float((kl_NT > kappa).sum() / mask_NT.sum()),
        active_bits=int((variance_TH > ACTIVE).sum()),
        all_bits=variance_TH.size,
        information_low=low,
        information_high=high,
        mismatch_low=kl.value - high,
        mismatch_high=kl.value - low,
        imbalance=min(_imbalance(p_NTH.mean(0), variance_TH / count), kl.value - low),
        efficiency=None if floor is None or kl.value < LEAST_KL else bootstrap(floor - ce_N, kl_N, clusters=documents, seed=seed),
        floor=floor,
        sequences=count,
        paired=min(count, MOST_PAIRED),
        targets=float(posterior.targets.mean()),
    )


def _imbalance(mean_TH: Floats, error_TH: Floats) -> float:
    """Σ KL(mean of a bit ‖ 1/2) in bits, minus the expected contribution of chance: 2 · variance of the mean / ln 2 per bit."""
    p = np.clip(mean_TH, 1e-12, 1 - 1e-12)
    total = (1 + p * np.log2(p) + (1 - p) * np.log2(1 - p)).sum() - (2 * error_TH / LN2).sum()
    return max(0.0, float(total))


def information_bounds(bit_logits_NTH: Tensor, z_NT: Tensor) -> tuple[float, float]:
    """Lower and upper bound of I(S; Z) in bits per sequence, from at most MOST_PAIRED sequences. The N × N matrix is computed in blocks."""
    kept = np.random.default_rng(0).permutation(len(z_NT))[:MOST_PAIRED]
    logits_NF = bit_logits_NTH[kept].flatten(1).double()
    count, bits = len(logits_NF), bit_logits_NTH.shape[-1]
    normaliser_N = F.softplus(logits_NF).sum(1)
    low, high = 0.0, 0.0
    for start in range(0, count, _BLOCK):
        chosen_BF = code_bits(z_NT[kept][start : start + _BLOCK], bits).flatten(1).double()
        log_q_BN = chosen_BF @ logits_NF.T - normaliser_N  # [i, j]: log Q(Z_i | S_j)
        own = torch.arange(len(chosen_BF)), torch.arange(start, start + len(chosen_BF))
        own_B = log_q_BN[own]
        low += float((own_B - torch.logsumexp(log_q_BN, dim=1)).sum())
        log_q_BN[own] = -torch.inf
        high += float((own_B - torch.logsumexp(log_q_BN, dim=1)).sum())
    return (low / count + math.log(count)) / LN2, (high / count + math.log(count - 1)) / LN2


def latent_ablation(posterior: Posterior, seed: int = 0) -> LatentAblation:
    """CE with Z from the own posterior, another sequence's posterior, and the prior."""
    wrong = bootstrap(posterior.ce_other - posterior.ce, posterior.targets, clusters=posterior.documents, seed=seed)

    def estimate(nats: Floats) -> Cost:
        return cost(nats, posterior.targets, posterior.bytes, seed, posterior.documents)

    return LatentAblation(estimate(posterior.ce), estimate(posterior.ce_other), estimate(posterior.ce_prior), wrong)
