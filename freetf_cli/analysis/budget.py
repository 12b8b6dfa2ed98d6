"""What flows through Z on held-out sequences, and what the decoder does with it.

Averaged over sequences the KL splits exactly in two (Hoffman and Johnson, "ELBO surgery", 2016):

    E_S KL(Q(Z|S) ‖ P) = I(S; Z) + KL(Q(Z) ‖ P),    Q(Z) = E_S Q(Z|S)

the information that Z has about its sequence, and the mismatch of the aggregate posterior with the prior: bits that tell nothing, and that
a Z drawn from the prior in generation does not know of. Neither can be computed, but N sequences give bounds (Poole et al., arXiv
1905.06922) on the first and so on the second:

    lower  E log Q(Z_i|S_i) / mean_j Q(Z_i|S_j)              all j: never more than log2 N
    upper  E log Q(Z_i|S_i) / mean_{j ≠ i} Q(Z_i|S_j)        nor more than the KL

Shapes: N sequences, B at a time, T positions, H bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from freetf_cli.analysis.likelihood import Floats, at_least_float32, cost, given_z_nats, row_stream, tensors
from freetf_cli.analysis.statistics import bootstrap, check_enough
from freetf_cli.data.batches import DataSource
from freetf_cli.model.free_transformer import FreeTransformer
from freetf_cli.model.latent import LN2, kl_per_token, sample_codes
from freetf_cli.results.likelihood import Cost, Estimate
from freetf_cli.results.probe import Budget, Reliance
from freetf_cli.training.objective import carriers

ACTIVE = 0.01  # variance of a bit's probability over sequences, as for the active units of Burda et al., arXiv 1509.00519
_BATCH_TOKENS = {"cpu": 1 << 14, "cuda": 1 << 17}

Advance = Callable[[int], None]


@dataclass(frozen=True, eq=False)
class Posterior:
    """The encoder's view of N held-out sequences, on the CPU.

    bit_logits [N, T, H] and carriers [N, T]: at positions whose Z reaches no target the logits are 0, as under the prior. z [N, T]: a
    draw. prior_z [N, T]: codes from the prior. ce, ce_other, ce_prior [N]: nats a sequence with Z from the posterior, of the sequence
    before, and from the prior. targets [N]: how many count. hidden: what `keep` made of each stream below the injection, [N, F].
    """

    bit_logits: Tensor
    carriers: Tensor
    z: Tensor
    ce: Floats
    ce_other: Floats
    ce_prior: Floats
    targets: Floats
    hidden: Tensor | None


Keep = Callable[[Tensor], Tensor]


@torch.inference_mode()
def read_posterior(
    model: FreeTransformer, source: DataSource, split: str, sequences: int, seed: int, advance: Advance, keep: Keep | None = None
) -> Posterior:
    """One pass of the encoder over held-out sequences, and three of the upper half.

    keep: from the stream x [B, T, D] to features [B, F] for the probes. InputError below 20 sequences.
    """
    device = model.embedding.weight.device
    rows = max(2, _BATCH_TOKENS.get(device.type, 1 << 16) // source.context)
    parts: list[tuple[Tensor, ...]] = []
    before: Tensor | None = None
    row = 0
    for batch in source.held_out(split, sequences, rows):
        inputs_BT, targets_BT = tensors(model, batch)
        carriers_BT = carriers(targets_BT)
        x_BTD = model.lower(inputs_BT)
        logits_BTH = at_least_float32(model.infer_latent(x_BTD, inputs_BT)) * carriers_BT[..., None]
        streams = [row_stream(seed, "posterior", row + i) for i in range(len(inputs_BT))]
        noise = np.stack([stream.random(logits_BTH.shape[1:], dtype=np.float32) for stream in streams])
        z_BT = sample_codes(logits_BTH, torch.from_numpy(noise).to(device))
        prior = [row_stream(seed, "prior", row + i).integers(0, 2**model.latent.bits, inputs_BT.shape[1]) for i in range(len(inputs_BT))]
        prior_BT = torch.from_numpy(np.stack(prior)).to(device)
        other_BT = torch.cat([(z_BT[-1:] if before is None else before), z_BT[:-1]])  # the very first takes the last of its batch
        costs = [given_z_nats(model, x_BTD, z, targets_BT).double().sum(1) for z in (z_BT, other_BT, prior_BT)]
        kept = () if keep is None else (keep(x_BTD),)
        parts.append(tuple(one.cpu() for one in (logits_BTH, carriers_BT, z_BT, *costs, (targets_BT >= 0).sum(1).double(), *kept)))
        before, row = z_BT[-1:], row + len(inputs_BT)
        advance(len(inputs_BT))
    check_enough(row, "sequences", f"--sequences, or more data in split '{split}'")
    logits, carried, z, ce, other, prior_ce, targets, *hidden = (torch.cat(column) for column in zip(*parts, strict=True))
    return Posterior(logits, carried, z, ce.numpy(), other.numpy(), prior_ce.numpy(), targets.numpy(), hidden[0] if hidden else None)


def budget(posterior: Posterior, kappa: float, floor: float | None, seed: int = 0) -> Budget:
    """What flows. kappa in bits per token, floor in bits per sequence."""
    kl_NT = (kl_per_token(posterior.bit_logits) * posterior.carriers).double().numpy() / LN2
    count, ce_N, kl_N = len(kl_NT), posterior.ce / LN2, kl_NT.sum(1)
    carried = posterior.carriers.double().numpy()
    p_NTH = torch.sigmoid(posterior.bit_logits.double()).numpy()
    variance_TH = p_NTH.var(0, ddof=1)
    low, high = information_bounds(posterior.bit_logits, posterior.z)
    kl = bootstrap(kl_N, seed=seed)
    low, high = min(low, kl.value), max(min(high, kl.value), min(low, kl.value))
    return Budget(
        kl=kl,
        ce=bootstrap(ce_N, seed=seed),
        length=bootstrap(ce_N + kl_N, seed=seed),
        by_position=(kl_NT.sum(0) / np.maximum(carried.sum(0), 1)).tolist(),
        by_bit=_by_bit(posterior).tolist(),
        kappa=kappa,
        above_kappa=float((kl_NT > kappa).sum() / carried.sum()),
        active_bits=int((variance_TH > ACTIVE).sum()),
        all_bits=variance_TH.size,
        information_low=low,
        information_high=high,
        mismatch_low=kl.value - high,
        mismatch_high=kl.value - low,
        imbalance=_imbalance(p_NTH.mean(0), variance_TH / count),
        efficiency=None if floor is None or kl.value < 0.01 else bootstrap(floor - ce_N, kl_N, seed=seed),
        floor=floor,
        sequences=count,
    )


def _by_bit(posterior: Posterior) -> Floats:
    """Mean KL of each of a token's H bits, summed over positions, bits."""
    logits_NTH1 = posterior.bit_logits[..., None]
    kl_NTH = kl_per_token(logits_NTH1) * posterior.carriers[..., None]
    return np.asarray(kl_NTH.double().sum(1).mean(0).numpy() / LN2, np.float64)


def _imbalance(mean_TH: Floats, error_TH: Floats) -> float:
    """Σ KL(mean of a bit ‖ 1/2) in bits, less what chance adds to it: 2 · variance of the mean / ln 2 a bit."""
    p = np.clip(mean_TH, 1e-12, 1 - 1e-12)
    total = (1 + p * np.log2(p) + (1 - p) * np.log2(1 - p)).sum() - (2 * error_TH / LN2).sum()
    return max(0.0, float(total))


def information_bounds(bit_logits_NTH: Tensor, z_NT: Tensor) -> tuple[float, float]:
    """Lower and upper bound of I(S; Z), bits per sequence."""
    logits_NF = bit_logits_NTH.flatten(1).double()
    count, bits = len(logits_NF), bit_logits_NTH.shape[-1]
    chosen_NF = ((z_NT[..., None] >> torch.arange(bits)) & 1).flatten(1).double()
    log_q_NN = chosen_NF @ logits_NF.T - torch.nn.functional.softplus(logits_NF).sum(1)  # [i, j]: log Q(Z_i | S_j)
    own_N = log_q_NN.diagonal()
    everyone = torch.logsumexp(log_q_NN, dim=1) - np.log(count)
    others = torch.logsumexp(log_q_NN.masked_fill(torch.eye(count, dtype=torch.bool), -torch.inf), dim=1) - np.log(count - 1)
    return float((own_N - everyone).mean()) / LN2, float((own_N - others).mean()) / LN2


def reliance(posterior: Posterior, bytes_per_token: float | None, seed: int = 0) -> Reliance:
    """CE by where Z comes from."""
    wrong: Estimate = bootstrap(posterior.ce_other - posterior.ce, posterior.targets, seed=seed)

    def told(nats: Floats) -> Cost:
        return cost(nats, posterior.targets, bytes_per_token, seed)

    return Reliance(told(posterior.ce), told(posterior.ce_other), told(posterior.ce_prior), wrong)
