"""What the gradient of Z's bits reports of what the bits are worth, on a trained letters model.

    python docs/research/gradient_bias.py RUN OUT.json

A bit is turned over in the posterior's own draw and the CE of the sequence is taken again. CE with the less likely value less CE with
the likelier one is what the bit is worth, in nats. Beside it stands the same by the estimates of `latent.gradient`: both read the
slope of the CE at the code drawn, "paper" as it is, "heun" divided by 2 P(the bit as drawn). By how sure the bits are of their
value, max(p, 1 − p), from 0.6 on.
"""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from freetf_cli.checkpoint import open_model
from freetf_cli.data.tasks import make_task
from freetf_cli.model.free_transformer import FreeTransformer
from freetf_cli.model.latent import code_bits, sample_codes

SEQUENCES, BITS_EACH = 512, 64
EDGES = (0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)


def measure(model: FreeTransformer, tokens_BT1: Tensor, seed: int) -> list[dict[str, Any]]:
    """By surety: bits asked, and their mean worth in nats, measured and by both estimates."""
    generator, bits = torch.Generator().manual_seed(seed), model.latent.bits
    inputs_BT, targets_BT = tokens_BT1[:, :-1], tokens_BT1[:, 1:]
    with torch.no_grad():
        x_BTD = model.lower(inputs_BT)
        logits_BTH = model.infer_latent(x_BTD, inputs_BT)
    z_BT = sample_codes(logits_BTH, torch.rand(logits_BTH.shape, generator=generator))

    def ce(r_BTD: Tensor) -> Tensor:
        logits_BTV = model.read_out(model.upper(x_BTD, r_BTD))
        return F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), reduction="none").view(targets_BT.shape).sum(1)

    r_BTD = model.post_sampler(z_BT).detach().requires_grad_()
    before_B = ce(r_BTD)
    (slope_BTD,) = torch.autograd.grad(before_B.sum(), r_BTD)
    sure_BTH = torch.sigmoid(logits_BTH.abs())
    draws, rows = [], torch.arange(len(z_BT))
    for _ in range(BITS_EACH):
        weight_Bn = (sure_BTH >= EDGES[0]).flatten(1).float()
        here_B = weight_Bn.sum(1) > 0
        chosen_B = torch.multinomial(weight_Bn + 1e-9, 1, generator=generator)[:, 0]
        place_B, bit_B = chosen_B // bits, chosen_B % bits
        other_BT = z_BT.clone()
        other_BT[rows, place_B] ^= 1 << bit_B
        with torch.no_grad():
            after_B = ce(model.post_sampler(other_BT))
            turn_BD = (model.post_sampler(other_BT) - r_BTD)[rows, place_B]
        drawn_B = code_bits(z_BT[rows, place_B], bits)[rows, bit_B]
        sure_B = sure_BTH[rows, place_B, bit_B]
        leaning_B = drawn_B == (logits_BTH[rows, place_B, bit_B] > 0)
        sign_B, p_B = torch.where(leaning_B, 1.0, -1.0), torch.where(leaning_B, sure_B, 1 - sure_B)
        worth_B = sign_B * (after_B.detach() - before_B.detach())
        paper_B = sign_B * (slope_BTD[rows, place_B] * turn_BD).sum(1)
        draws.append(torch.stack((sure_B, worth_B, paper_B, paper_B / (2 * p_B)), 1)[here_B])
    found = torch.cat(draws)
    out = []
    for low, high in pairwise(EDGES):
        part = found[(found[:, 0] >= low) & (found[:, 0] < high)]
        if len(part) >= 100:
            worth, paper, heun = part[:, 1:].mean(0).tolist()
            out.append({"sure": [low, high], "bits": len(part), "worth": worth, "paper": paper, "heun": heun})
    return out


def main(run: str, target: str) -> None:
    checkpoint, model = open_model(Path(run), torch.device("cpu"), lambda line: print(line, file=sys.stderr))
    assert isinstance(model, FreeTransformer)
    task = make_task("letters", checkpoint.state["data"]["params"])
    found = measure(model.eval(), torch.from_numpy(task.tokens(seed=77, start=0, count=SEQUENCES)), seed=0)
    Path(target).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for line in found:
        print(line)


if __name__ == "__main__":
    main(*sys.argv[1:3])
