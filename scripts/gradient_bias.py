"""What the gradient of Z's bits reports of what the bits are worth, on a trained letters model.

    python scripts/gradient_bias.py RUN OUT.json

For a sequence whose Z is drawn from the posterior, one bit is set to 0 and to 1, and the CE and its slope are computed at both. The
difference of the two CEs (less likely value minus likelier one, in nats) is the bit's worth. Its estimates, averaged over the bit's own
draw, are the slopes at 0 and at 1 weighted by their probabilities (`latent.numerics.gradient = "paper"`) or their plain mean ("heun").
Results are grouped by how certain the bits are, max(p, 1 − p) ≥ 0.6, with the standard error of the mean over sequences.
"""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from freetf_cli.model.free_transformer import FreeTransformer
from torch import Tensor

from freetf_cli.latent.binary import sample_codes
from freetf_cli.runs.checkpoint import open_model
from freetf_cli.tasks import make_task

SEQUENCES, DRAWS, PLACES = 512, 4, 64  # PLACES: most bits of a sequence that are asked
EDGES = (0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)


def measure(model: FreeTransformer, tokens_BT1: Tensor, seed: int) -> list[dict[str, Any]]:
    """By surety: bits asked, and their mean worth in nats, measured and by both estimates, each with its standard error."""
    generator, bits = torch.Generator().manual_seed(seed), model.latent.bits
    inputs_BT, targets_BT = tokens_BT1[:, :-1], tokens_BT1[:, 1:]
    with torch.no_grad():
        x_BTD = model.lower(inputs_BT)
        logits_BTH = model.infer_latent(x_BTD, inputs_BT)
    p_BTH = torch.sigmoid(logits_BTH)
    sure_BTH = torch.maximum(p_BTH, 1 - p_BTH)

    def ce_and_slope(z_BT: Tensor, place: int) -> tuple[Tensor, Tensor]:
        """CE of the sequences [B], and its slope with respect to R at a place, [B, D]."""
        r_BTD = model.post_sampler(z_BT).detach().requires_grad_()
        logits_BTV = model.read_out(model.upper(x_BTD, r_BTD))
        ce_B = F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), reduction="none").view(targets_BT.shape).sum(1)
        return ce_B.detach(), torch.autograd.grad(ce_B.sum(), r_BTD)[0][:, place]

    asked = (sure_BTH >= EDGES[0]).sum(0).flatten().nonzero()[:, 0]
    asked = asked[torch.randperm(len(asked), generator=generator)[:PLACES]]
    found = []
    for _ in range(DRAWS):
        z_BT = sample_codes(logits_BTH, torch.rand(logits_BTH.shape, generator=generator))
        for place, bit in ((int(one) // bits, int(one) % bits) for one in asked):
            z0_BT, z1_BT = z_BT.clone(), z_BT.clone()
            z0_BT[:, place] &= ~(1 << bit)
            z1_BT[:, place] |= 1 << bit
            turn_BD = (model.post_sampler(z1_BT) - model.post_sampler(z0_BT))[:, place].detach()
            (ce0_B, slope0_BD), (ce1_B, slope1_BD) = ce_and_slope(z0_BT, place), ce_and_slope(z1_BT, place)
            at0_B, at1_B, p_B = -(slope0_BD * turn_BD).sum(1), -(slope1_BD * turn_BD).sum(1), p_BTH[:, place, bit]
            told_B3 = torch.stack((ce0_B - ce1_B, (1 - p_B) * at0_B + p_B * at1_B, (at0_B + at1_B) / 2), 1)
            found.append(torch.cat((sure_BTH[:, place, bit, None], torch.sign(p_B - 0.5)[:, None] * told_B3), 1))
    rows_NB4 = torch.stack(found)
    out = []
    for low, high in pairwise(EDGES):
        inside_NB = (rows_NB4[..., 0] >= low) & (rows_NB4[..., 0] < high)
        count_B = inside_NB.sum(0)
        if (count_B > 0).sum() < 20:
            continue
        sums_B3 = (rows_NB4[..., 1:] * inside_NB[..., None]).sum(0)
        mean_3 = sums_B3.sum(0) / count_B.sum()
        error_3 = (sums_B3 - count_B[:, None] * mean_3).square().sum(0).sqrt() / count_B.sum()
        numbers = zip(("worth", "paper", "heun"), mean_3.tolist(), error_3.tolist(), strict=True)
        line: dict[str, Any] = {"sure": [low, high], "bits": int(count_B.sum()) // DRAWS}
        out.append(line | {name: [round(value, 3), round(error, 3)] for name, value, error in numbers})
    return out


def main(run: str, target: str) -> None:
    checkpoint, model = open_model(Path(run), torch.device("cpu"), lambda line: print(line, file=sys.stderr))
    assert isinstance(model, FreeTransformer)
    task = make_task("letters", checkpoint.state["data"]["params"])
    found = measure(model.eval(), torch.from_numpy(task.tokens(seed=77, start=0, count=SEQUENCES)), seed=0)
    Path(target).write_text("[\n" + ",\n".join(json.dumps(line) for line in found) + "\n]\n", encoding="utf-8")
    for line in found:
        print(line)


if __name__ == "__main__":
    main(*sys.argv[1:3])
