"""Errors of a model's running estimate of a coin, next to the exact one: equation 2 of the paper, corrected as in tasks/coins.py.

    python scripts/coins_estimate.py RESULTS.json FIGURE.svg RUN RUN …   # measure runs of coins-baseline and coins-free, and draw
    python scripts/coins_estimate.py RESULTS.json FIGURE.svg             # draw again

After t tosses the exact probability of a 1 follows from their count alone. The model's is compared with it at each position of held-out
rows, by the mean of |p − exact| and by the mean of KL(exact ‖ p) in bits. A baseline has one estimate, a Free Transformer two:

    summed   P(next toss | tosses), Z summed out: all codes of the first position, weighted by how likely they make the tosses so far;
             each comes with a draw of the other positions' Z, which the prior gives
    given    P(next toss | tosses, Z) with a Z that decides the row's coin; the exact probability is then 1 − ε or ε, whatever the tosses

Runs of one kind are averaged; the band is from the least to the largest run. Minutes on one core.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from freetf_cli.evaluation.posterior import prior_draws
from freetf_cli.latent.binary import BinaryLatent
from freetf_cli.model.decoder import Decoder
from freetf_cli.records import LN2
from freetf_cli.report.charts import COLOURS, Drawing, drawing, standalone
from freetf_cli.runs.checkpoint import open_model
from freetf_cli.tasks import make_task
from freetf_cli.tasks.coins import Coins

ROWS, SUMMED_ROWS, SEED = 1000, 60, 77  # held-out rows; of them, those with Z summed out; seed of rows and draws
ESTIMATES = {  # name, role of its colour
    "baseline": ("baseline", "plain"),
    "summed": ("Free, Z summed out", "nelbo"),
    "given": ("Free, given its Z", "kl"),
}
MEASURES = {"error": "mean |p − exact|", "kl": "KL(exact ‖ p), millibits"}
Floats = NDArray[np.float64]


def main(source: str, target: str, *runs: str) -> None:
    if runs:
        found = {"rows": ROWS, "summed_rows": SUMMED_ROWS, "runs": [measure(run) for run in runs]}
        Path(source).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    Path(target).write_text(draw(json.loads(Path(source).read_text(encoding="utf-8"))["runs"]), encoding="utf-8")


@torch.inference_mode()
def measure(run: str) -> dict[str, Any]:
    """The errors of a run's estimates, by position."""
    checkpoint, model = open_model(Path(run), torch.device("cpu"), lambda line: print(line, file=sys.stderr))
    task = make_task("coins", checkpoint.state["data"]["params"])
    assert isinstance(task, Coins)
    tokens_BT = torch.from_numpy(task.tokens(SEED, 0, ROWS)[:, :-1])  # the separator and all tosses
    tosses_BT = tokens_BT[:, 1:].numpy()
    ones_BT = np.cumsum(tosses_BT, 1) - tosses_BT
    exact_BT = task.predictive(ones_BT, np.broadcast_to(np.arange(task.length), ones_BT.shape))
    facts = {"kind": checkpoint.recipe.kind, "seed": checkpoint.recipe.train.seed, "step": checkpoint.step, "length": task.length}
    if model.latent is None:
        return facts | {"baseline": errors(predicted(model.eval(), tokens_BT, None), exact_BT)}
    own_BT = np.array([abs(row.factors["z"] - task.flip) for row in task.examples(SEED, 0, ROWS)])[:, None].repeat(task.length, 1)
    summed = errors(summed_out(model.eval(), tokens_BT[:SUMMED_ROWS]), exact_BT[:SUMMED_ROWS])
    return facts | {"summed": summed, "given": errors(predicted(model, tokens_BT, deciding(model, tokens_BT, own_BT[:, 0] > 0.5)), own_BT)}


def predicted(model: Decoder, tokens_BT: Tensor, z_BT: Tensor | None) -> Floats:
    """log P of a 0 and of a 1 as the next symbol after the separator and after each toss but the last, [B, T, 2], nats."""
    logits_BTV = model(tokens_BT, z_BT).logits
    return np.asarray(torch.log_softmax(logits_BTV.double(), -1)[:, :-1, :2].numpy())


def deciding(model: Decoder, tokens_BT: Tensor, heads_B: NDArray[np.bool_]) -> Tensor:
    """Zs [B, T] from the prior, restricted to first codes under which the row's own coin is the likelier first toss."""
    codes = every_code(model)
    z_CT = prior_draws(model, range(codes), tokens_BT.shape[1], SEED)
    z_CT[:, 0] = torch.arange(codes)
    decides_C = predicted(model, tokens_BT[:1].expand(codes, -1), z_CT)[:, 0, 1] > -LN2
    rng = np.random.default_rng(SEED)
    z_BT = prior_draws(model, range(len(tokens_BT)), tokens_BT.shape[1], SEED + 1)
    z_BT[:, 0] = torch.from_numpy(np.array([rng.choice(np.flatnonzero(decides_C == heads)) for heads in heads_B]))
    return z_BT


def every_code(model: Decoder) -> int:
    """The number of codes of the first position, which alone infers Z."""
    assert isinstance(model.latent, BinaryLatent) and model.latent.window == 1
    return int(2**model.latent.bits)


def summed_out(model: Decoder, tokens_BT: Tensor) -> Floats:
    """As `predicted`, with Z summed out: Σ_z w_z p(next | tosses, z), where w_z is proportional to P(tosses so far | z)."""
    codes, rows = every_code(model), []
    for number, tokens_T in enumerate(tokens_BT):
        z_CT = prior_draws(model, range(number, number + 1), len(tokens_T), SEED, count=codes)
        z_CT[:, 0] = torch.arange(codes)
        logs_CT2 = predicted(model, tokens_T.expand(codes, -1), z_CT)
        seen_CT = np.take_along_axis(logs_CT2, tokens_T[1:].numpy()[None, :, None], 2)[..., 0]
        before_CT = np.cumsum(seen_CT, 1) - seen_CT
        weights_CT = np.exp(before_CT - before_CT.max(0))
        rows.append(np.log((weights_CT[..., None] * np.exp(logs_CT2)).sum(0) / weights_CT.sum(0)[:, None]))
    return np.stack(rows)


def errors(logs_BT2: Floats, exact_BT: Floats) -> dict[str, list[float]]:
    """Mean errors at each position. logs: of the model's probabilities of 0 and 1; exact: the probability of a 1."""
    both_BT2 = np.stack([1 - exact_BT, exact_BT], 2)
    kl_T = (both_BT2 * (np.log(both_BT2) - logs_BT2)).sum(2).mean(0) / LN2
    return {"error": np.abs(np.exp(logs_BT2[..., 1]) - exact_BT).mean(0).round(6).tolist(), "kl": kl_T.round(7).tolist()}


def draw(runs: list[dict[str, Any]]) -> str:
    """Both errors by position, side by side."""
    with drawing("Error of the running estimate of a coin, by tosses seen", 760) as made:
        made.resize(290)
        for place, (measure, title) in enumerate(MEASURES.items()):
            handles = chart(made, 40 + 384 * place, title, measure, runs)
        made.legend(handles, [name for name, _ in ESTIMATES.values()])
    return standalone(made.svg)


def chart(made: Drawing, left: int, title: str, measure: str, runs: list[dict[str, Any]]) -> list[Any]:
    """One error by position, a curve for each estimate; returns the curves."""
    plot = made.axes(left, 78, made.width - left - 336, 44)
    plot.set_title(title, loc="left", fontsize=9, color=COLOURS["ink"])
    plot.set_xlabel("tosses seen")
    curves = []
    for estimate, (_, role) in ESTIMATES.items():
        found_RT = np.array([run[estimate][measure] for run in runs if estimate in run]) * (1000 if measure == "kl" else 1)
        seen_T = np.arange(found_RT.shape[1])
        plot.fill_between(seen_T, found_RT.min(0), found_RT.max(0), color=COLOURS[role], alpha=0.15, linewidth=0)
        curves += plot.plot(seen_T, found_RT.mean(0), color=COLOURS[role])
    plot.set(xlim=(0, None), ylim=(0, None))
    return curves


if __name__ == "__main__":
    main(*sys.argv[1:])
