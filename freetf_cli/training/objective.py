"""The training objective: cross-entropy, plus the KL of Z above its free bits (paper eq. 5), plus what a recipe adds to it.

All terms are sums over the batch in nats; the caller divides every one of them by the same count of targets, since
CE + KL is the negative ELBO only so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from freetf_cli.config.recipe import LatentConfig
from freetf_cli.data.batches import IGNORE
from freetf_cli.kernels.linear_cross_entropy import readout_cross_entropy
from freetf_cli.latent.binary import aggregate_mismatch, free_bits_penalty, kl_per_token
from freetf_cli.model.decoder import Decoder
from freetf_cli.model.free_transformer import FreeTransformer


@dataclass(frozen=True)
class LossSums:
    """Sums over a batch, scalar tensors: nats for ce, kl and penalty; tokens for above (KL over κ) and carriers (tokens whose Z counts).

    penalty: all that is added to CE: the KL above the free bits, and by `latent.objective.slope` and `.mismatch` the part below and the
    aggregate mismatch.
    """

    ce: Tensor
    kl: Tensor
    penalty: Tensor
    above: Tensor
    carriers: Tensor

    @property
    def objective(self) -> Tensor:
        """What is minimised, in nats."""
        return self.ce + self.penalty

    def stack(self) -> Tensor:
        """All of them as numbers to add up, [5] float32."""
        return torch.stack([self.ce, self.kl, self.penalty, self.above, self.carriers]).detach().float()


LossFunction = Callable[..., tuple[Tensor, ...]]  # inputs, targets, noise, then `schedule.LatentWeights` as tensors


def carriers(targets_BT: Tensor) -> Tensor:
    """1 at positions whose Z can reach a target that counts, [B, T] float: those up to a row's last counted target."""
    counted_BT = (targets_BT != IGNORE).to(torch.float32)
    return counted_BT.flip(-1).cummax(-1).values.flip(-1)


def loss_function(model: Decoder, latent: LatentConfig | None) -> LossFunction:
    """The function (inputs [B,T], targets [B,T], noise [B,T,H], κ in nats, slope, weight of the mismatch) -> fields of LossSums, such that
    a compiler can take it whole.

    A baseline ignores noise and weights, and its latent terms are zero.
    """
    matches = latent is not None and latent.objective.has_mismatch

    def free(
        inputs_BT: Tensor, targets_BT: Tensor, noise_BTH: Tensor, kappa: Tensor, slope: Tensor, mismatch: Tensor
    ) -> tuple[Tensor, ...]:
        assert isinstance(model, FreeTransformer) and latent is not None
        out = model.forward_posterior(inputs_BT, noise_BTH)
        ce = _cross_entropy(model, out.hidden, targets_BT)
        carriers_BT = carriers(targets_BT)
        bit_logits_BTH = out.bit_logits.float()
        kl_BT = kl_per_token(bit_logits_BTH) * carriers_BT
        penalty = free_bits_penalty(kl_BT, carriers_BT, kappa, latent.objective.free_bits, slope)
        if matches:
            inferred = slice(latent.window)
            divergence = aggregate_mismatch(bit_logits_BTH[:, inferred], carriers_BT[:, inferred], latent.objective.mismatch_over)
            penalty = penalty + mismatch * len(inputs_BT) * divergence
        return ce, kl_BT.sum(), penalty, (kl_BT > kappa).float().sum(), carriers_BT.sum()

    def baseline(inputs_BT: Tensor, targets_BT: Tensor, noise_BTH: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        ce = _cross_entropy(model, model.hidden(inputs_BT), targets_BT)
        zero = torch.zeros_like(ce)
        return ce, zero, zero, zero, carriers(targets_BT).sum()

    return free if isinstance(model, FreeTransformer) else baseline


def _cross_entropy(model: Decoder, hidden_BTD: Tensor, targets_BT: Tensor) -> Tensor:
    """Sum over the counted targets, in nats."""
    return readout_cross_entropy(hidden_BTD.flatten(0, 1), model.readout_weight, targets_BT.flatten(), IGNORE)
