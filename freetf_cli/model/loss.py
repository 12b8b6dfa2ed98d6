"""The terms of the training objective: cross-entropy, the KL of Z, and the penalty on it (paper §3.4, equation 5).

Every term is a sum over the batch in nats. The caller divides all of them by one count of targets: CE + KL is the negative ELBO
only so.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

IGNORE = -100  # a target that does not count, as in torch's cross_entropy


class LossTerms(NamedTuple):
    """Sums over a batch, scalar tensors.

    ce, kl, penalty: nats. penalty is what the objective adds to CE: the KL above the free bits, and what `latent.objective` adds.
    above: Zs whose KL exceeds κ. latents: Zs that can reach a target; one a token, unless tokens share it. Of a baseline all but ce and
    latents are 0.
    """

    ce: Tensor
    kl: Tensor
    penalty: Tensor
    above: Tensor
    latents: Tensor

    @property
    def objective(self) -> Tensor:
        """What training minimises, nats."""
        return self.ce + self.penalty

    def stack(self) -> Tensor:
        """The terms as one tensor [5], float32, detached."""
        return torch.stack(list(self)).detach().float()


def latent_mask(targets_BT: Tensor) -> Tensor:
    """1 at positions whose Z can reach a counted target, [B, T] float: those up to the row's last counted target."""
    counted_BT = (targets_BT != IGNORE).to(torch.float32)
    return counted_BT.flip(-1).cummax(-1).values.flip(-1)
