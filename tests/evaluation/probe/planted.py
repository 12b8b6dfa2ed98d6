"""Models whose latent is known by construction: what Z means is written down here, so an estimator can be held against the truth."""

from __future__ import annotations

import torch
from torch import Tensor

from freetf_cli.config.recipe import LatentConfig, ModelConfig
from freetf_cli.latent.binary import BinaryDistribution, BinaryLatent
from freetf_cli.latent.build import build_model, initialise_model
from freetf_cli.model.context import Context
from freetf_cli.model.decoder import Decoder
from freetf_cli.model.latent import Distribution
from freetf_cli.tasks import make_task
from freetf_cli.tasks.letters import Letters

LOUD = 50.0  # a logit that leaves no other choice


class Planted(Decoder):
    """A model whose upper half sees the tokens and codes themselves. `write` says what it predicts."""

    def __init__(self, vocab: int, bits: int) -> None:
        config = ModelConfig(layers=2, width=8, heads=2, vocab=vocab, context=8)
        super().__init__(config, BinaryLatent(config, LatentConfig(kappa=1.0, bits=bits)))

    def lower(self, tokens_BT: Tensor, ctx: Context) -> Tensor:
        x_BTD = torch.zeros(*tokens_BT.shape, 8, dtype=torch.float64)
        x_BTD[..., 1] = tokens_BT.double()
        return x_BTD

    def upper(self, x_BTD: Tensor, z: Tensor | None, ctx: Context, posterior: Distribution | None = None) -> Tensor:
        assert z is not None
        tokens, codes = x_BTD[..., 1].long(), z
        if ctx.cache is not None:  # everything read before is kept beside the cache
            seen = getattr(ctx.cache, "seen", None)
            tokens = tokens if seen is None else torch.cat([seen[0], tokens], dim=1)
            codes = codes if seen is None else torch.cat([seen[1], codes], dim=1)
            ctx.cache.seen = (tokens, codes)  # type: ignore[attr-defined]
        read = tokens.shape[1]
        return torch.stack([self.write(tokens[:, : t + 1], codes[:, : t + 1]) for t in range(read - x_BTD.shape[1], read)], dim=1)

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        return hidden_BTD

    def write(self, tokens_BT: Tensor, codes_BT: Tensor) -> Tensor:
        """Logits [B, V] of the next token, from everything read so far."""
        raise NotImplementedError


class PlantedLetters(Planted):
    """Letters by the book: 1/16 noise, a target of 8. `decides`: what the code of the first position decides.

    "position": its start, exactly. "nothing": the start is drawn while writing. "all": start, and at each place whether there is noise.
    """

    def __init__(self, decides: str) -> None:
        super().__init__(vocab=29, bits=16)
        self.task = make_task("letters", {})
        assert isinstance(self.task, Letters)
        self.decides = decides

    def write(self, tokens_BT: Tensor, codes_BT: Tensor) -> Tensor:
        rows, place = len(tokens_BT), tokens_BT.shape[1] - 2
        if place < 0:  # after the letter comes `>`
            return torch.full((rows, 29), -LOUD, dtype=torch.float64).index_fill(1, torch.tensor([28]), LOUD)
        letter_B, line = tokens_BT[:, 0], tokens_BT[:, 2:]
        noise_B = torch.full((rows,), 1 / 16, dtype=torch.float64)
        if self.decides == "nothing":  # and no noise: it would hide the start from this hand-made reader
            seen_B = (line == letter_B[:, None]).sum(1)
            hazard = 1 / (57 - place) if place < 57 else 0.0
            target_B = torch.where(seen_B == 0, hazard, ((seen_B > 0) & (seen_B < 8)).double())
            noise_B = torch.zeros_like(noise_B)
        else:
            start_B = codes_BT[:, 0] * 57 >> 16
            target_B = ((start_B <= place) & (place < start_B + 8)).double()
        if self.decides == "all":
            noise_B = (codes_BT[:, place + 1] < 65536 // 16).double()
        p_BV = torch.zeros(rows, 29, dtype=torch.float64)
        p_BV[torch.arange(rows), letter_B] = target_B * (1 - noise_B)
        p_BV[:, 26], p_BV[:, 27] = (1 - target_B) * (1 - noise_B), noise_B
        return p_BV.clamp_min(1e-30).log()


class PlantedCoins(Planted):
    """Coins with flip 1/8: the hidden coin is the lowest bit of the first code, flipped where the two others are 0, which the prior
    does 1 time in 4.

    Both coins have a probability of 1/2, so Σ_Z P(Z) P(row | Z) is exactly the task's, and the bound can reach the entropy. The encoder
    gives the bits of the first code their true marginals given the whole row; being independent, they are not its true distribution.
    """

    def __init__(self, length: int) -> None:
        super().__init__(vocab=3, bits=3)
        self.length = length

    def infer_latent(self, x_BTD: Tensor, tokens_BT: Tensor, ctx: Context) -> BinaryDistribution:
        excess = (tokens_BT == 1).double().sum(1) - (tokens_BT == 0).double().sum(1)
        heads = 1 / (1 + (1 / 7) ** excess)  # P(Z = 1 | the row), as the task's docstring has it
        logits = torch.zeros(*tokens_BT.shape, 3, dtype=torch.float64)
        logits[:, 0, 0] = torch.logit((heads * 3 / 4 + (1 - heads) / 4).clamp(1e-6, 1 - 1e-6))
        return BinaryDistribution(logits)

    def write(self, tokens_BT: Tensor, codes_BT: Tensor) -> Tensor:
        if tokens_BT.shape[1] == self.length + 1:  # the closing separator
            return torch.tensor([-LOUD, -LOUD, LOUD], dtype=torch.float64).expand(len(tokens_BT), 3)
        coin_B = (codes_BT[:, 0] & 1) ^ (codes_BT[:, 0] < 2).long()
        p_one_B = torch.where(coin_B == 1, 7 / 8, 1 / 8).double()
        return torch.stack([1 - p_one_B, p_one_B, torch.full_like(p_one_B, 1e-30)], dim=-1).log()


def small_free(bits: int = 2, context: int = 3, vocab: int = 5, seed: int = 0) -> Decoder:
    """A real Free model in float64, small enough to sum over every Z; its table is large, so that Z matters."""
    config = ModelConfig(layers=2, width=16, heads=2, vocab=vocab, context=context)
    model = build_model(config, LatentConfig(kappa=1.0, bits=bits, table_std=3.0))
    assert isinstance(model.latent, BinaryLatent)
    initialise_model(model, seed)
    with torch.no_grad():
        model.latent.encoder.to_bit_logits.weight.mul_(0.7)  # a posterior that has an opinion, but forbids nothing
        model.blocks[1].attention.out.weight.mul_(8)  # and a decoder that listens
        model.lm_head_weight.mul_(8)
    return model.double().eval()
