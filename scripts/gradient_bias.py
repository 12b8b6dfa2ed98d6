"""Compare the gradient that the encoder gets for a bit of Z with what that bit is worth, on a trained letters model.

    python scripts/gradient_bias.py RUN OUT.json      # RUN: a folder of `freetf train` on letters; minutes on a CPU

For a sequence whose Z is drawn from the posterior, each bit is set to 0 and to 1, and the cross-entropy (CE) and its slope are taken at
both values. The difference of the two CEs is the bit's worth, in nats: CE at the less likely value minus CE at the more likely one.
Averaged over the bit's own draw, the gradient of the encoder is

    latent.gradient = "paper"    the slopes at 0 and at 1, weighted by their probabilities
    latent.gradient = "heun"     the plain mean of the two slopes

Rows are by how sure the posterior is of a bit, max(p, 1 − p), from 0.6 on; each number has the standard error of its mean over sequences.
Results are in docs/experiments.md, raw in docs/results/gradient-bias-cpu.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from freetf_cli.latent.binary import BinaryLatent, ResidualInjection, bit_logits, sample_codes
from freetf_cli.model.context import Context
from freetf_cli.model.decoder import Decoder
from freetf_cli.runs.checkpoint import open_model
from freetf_cli.tasks import make_task

DRAWS = 4  # of Z for each sequence
PLACES = 64  # bits of a sequence that are measured, at most
EDGES = (0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)


def ce_and_slope(model: Decoder, x_BTD: Tensor, r_BTD: Tensor, targets_BT: Tensor, ctx: Context, place: int) -> tuple[Tensor, Tensor]:
    """CE of each sequence [B], nats, and its gradient with respect to R at one place, [B, D]."""
    r_BTD = r_BTD.detach().requires_grad_()
    injection = ResidualInjection(r_BTD, model.depth)
    for index in range(model.depth, model.config.layers):
        x_BTD = model.blocks[index](x_BTD, ctx, injection.kv(index, x_BTD))
    logits_BTV = model.logits(model.norm(x_BTD))
    ce_B = F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), reduction="none").view(targets_BT.shape).sum(1)
    return ce_B.detach(), torch.autograd.grad(ce_B.sum(), r_BTD)[0][:, place]


def measure(model: Decoder, tokens_BT1: Tensor, seed: int) -> list[dict[str, Any]]:
    """For each range of sureness: bits measured, and their mean worth and mean gradient by both estimates, nats."""
    latent, generator = model.latent, torch.Generator().manual_seed(seed)
    assert isinstance(latent, BinaryLatent)
    inputs_BT, targets_BT = tokens_BT1[:, :-1], tokens_BT1[:, 1:]
    ctx = model.context(inputs_BT)
    with torch.no_grad():
        x_BTD = model.lower(inputs_BT, ctx)
        logits_BTH = bit_logits(model.infer_latent(x_BTD, inputs_BT, ctx))
    p_BTH = torch.sigmoid(logits_BTH)
    sure_BTH = torch.maximum(p_BTH, 1 - p_BTH)
    measured = (sure_BTH >= EDGES[0]).sum(0).flatten().nonzero()[:, 0]
    measured = measured[torch.randperm(len(measured), generator=generator)[:PLACES]]
    found = []
    for _ in range(DRAWS):
        z_BT = sample_codes(logits_BTH, torch.rand(logits_BTH.shape, generator=generator))
        for place, bit in ((int(one) // latent.bits, int(one) % latent.bits) for one in measured):
            z0_BT, z1_BT = z_BT.clone(), z_BT.clone()
            z0_BT[:, place] &= ~(1 << bit)
            z1_BT[:, place] |= 1 << bit
            r0_BTD, r1_BTD = latent.post_sampler(z0_BT).detach(), latent.post_sampler(z1_BT).detach()
            change_BD = (r1_BTD - r0_BTD)[:, place]
            ce0_B, slope0_BD = ce_and_slope(model, x_BTD, r0_BTD, targets_BT, ctx, place)
            ce1_B, slope1_BD = ce_and_slope(model, x_BTD, r1_BTD, targets_BT, ctx, place)
            at0_B, at1_B, p_B = -(slope0_BD * change_BD).sum(1), -(slope1_BD * change_BD).sum(1), p_BTH[:, place, bit]
            values_B3 = torch.stack((ce0_B - ce1_B, (1 - p_B) * at0_B + p_B * at1_B, (at0_B + at1_B) / 2), 1)
            found.append(torch.cat((sure_BTH[:, place, bit, None], torch.sign(p_B - 0.5)[:, None] * values_B3), 1))
    return by_sureness(torch.stack(found))


def by_sureness(rows_NB4: Tensor) -> list[dict[str, Any]]:
    """Means and standard errors over sequences. rows: sureness, worth, and both estimates, of N bits of B sequences."""
    out = []
    for low, high in pairwise(EDGES):
        inside_NB = (rows_NB4[..., 0] >= low) & (rows_NB4[..., 0] < high)
        count_B = inside_NB.sum(0)
        if (count_B > 0).sum() < 20:  # sequences: too few for a standard error
            continue
        sums_B3 = (rows_NB4[..., 1:] * inside_NB[..., None]).sum(0)
        mean_3 = sums_B3.sum(0) / count_B.sum()
        error_3 = (sums_B3 - count_B[:, None] * mean_3).square().sum(0).sqrt() / count_B.sum()
        numbers = zip(("worth", "paper", "heun"), mean_3.tolist(), error_3.tolist(), strict=True)
        line: dict[str, Any] = {"sure": [low, high], "bits": int(count_B.sum()) // DRAWS}
        out.append(line | {name: [round(value, 3), round(error, 3)] for name, value, error in numbers})
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("out", type=Path, help="JSON file")
    parser.add_argument("--sequences", type=int, default=512)
    chosen = parser.parse_args()
    checkpoint, model = open_model(chosen.run, torch.device("cpu"), lambda line: print(line, file=sys.stderr))
    task = make_task("letters", checkpoint.state["data"]["params"])
    found = measure(model.eval(), torch.from_numpy(task.tokens(seed=77, start=0, count=chosen.sequences)), seed=0)
    chosen.out.write_text("[\n" + ",\n".join(json.dumps(line) for line in found) + "\n]\n", encoding="utf-8")
    for line in found:
        print(line)


if __name__ == "__main__":
    main()
