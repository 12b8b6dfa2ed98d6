"""Measure the error of the mapper's gradient with `latent.float8`, on the gradients of a training run.

    python scripts/float8_error.py OUT.json demo-free [KEY=VALUE…]      # minutes on a CPU

Trains a Free recipe on a CPU. At some steps the gradient of Z's bit logits is computed in float64 from that step's own inputs, and again
with dr and the centred table rounded to e4m3 with a scale for each row, as `latent.float8` does on a GPU. Errors are relative to
float64, in norm: of all tokens, of the median token, and of the sum over tokens.
Results are in docs/performance.md, raw in docs/results/float8-error-cpu.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from freetf_cli.config.files import load_recipe
from freetf_cli.kernels import mapper
from freetf_cli.latent.build import build_model, initialise_model
from freetf_cli.model.latent import ObjectiveWeights
from freetf_cli.records import LN2
from freetf_cli.training.optimizer import make_optimizer
from freetf_cli.training.prefetch import host_batch
from freetf_cli.training.start import resolve

MEASURED = (1, 10, 30, 60, 100, 200, 300)  # steps
LAST: dict[str, tuple[Tensor, Tensor, Tensor]] = {}  # inputs of the latest gradient
in_chunks = mapper.logit_gradient_in_chunks


def recording(dr_ND: Tensor, bit_logits_NH: Tensor, table_CD: Tensor, product_dtype: torch.dtype) -> Tensor:
    LAST["inputs"] = dr_ND.clone(), bit_logits_NH.clone(), table_CD.clone()
    return in_chunks(dr_ND, bit_logits_NH, table_CD, product_dtype)


def in_8_bits(x_ND: Tensor) -> Tensor:
    scale_N1 = x_ND.abs().amax(1, keepdim=True).clamp(min=1e-30) / 448  # the largest number of e4m3
    return ((x_ND / scale_N1).to(torch.float8_e4m3fn).float() * scale_N1).double()


def errors() -> dict[str, float]:
    dr_ND, logits_NH, table_CD = LAST["inputs"]
    centred_CD = table_CD - mapper.common_row(table_CD)
    exact, rounded = (
        in_chunks(dr, logits_NH.double(), table, torch.float64)
        for dr, table in ((dr_ND.double(), table_CD.double()), (in_8_bits(dr_ND), in_8_bits(centred_CD)))
    )
    each_N = (rounded - exact).norm(dim=1) / exact.norm(dim=1).clamp(min=1e-300)
    return {
        "all": float((rounded - exact).norm() / exact.norm()),
        "token": float(each_N.median()),
        "sum": float((rounded - exact).sum(0).norm() / exact.sum(0).norm()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="JSON file")
    parser.add_argument("recipe", help="a Free recipe")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings of the recipe")
    parser.add_argument("--steps", type=int, default=MEASURED[-1])
    chosen = parser.parse_args()
    recipe, source = resolve(load_recipe(chosen.recipe, overrides=chosen.settings))
    if recipe.latent is None:
        parser.error(f"{chosen.recipe} is a baseline")
    mapper.logit_gradient_in_chunks = recording
    model = build_model(recipe.model, recipe.latent)
    initialise_model(model, recipe.train.seed)
    optimizer, generator = make_optimizer(model, recipe.train, torch.device("cpu")), torch.Generator().manual_seed(recipe.train.seed)
    weights = ObjectiveWeights(*torch.tensor([recipe.latent.kappa * LN2, 0.0, 0.0]))
    found: list[dict[str, Any]] = []
    for step in range(1, chosen.steps + 1):
        batch = host_batch(source.train_batch(step - 1, recipe.train.batch))
        noise = torch.rand(*batch.inputs.shape, recipe.latent.bits, generator=generator)
        optimizer.zero_grad()
        losses = model(batch.inputs, noise=noise, targets_BT=batch.targets, weights=weights).losses
        (losses.objective / batch.count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.train.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = recipe.train.lr * min(1.0, step / max(1, recipe.train.warmup))
        optimizer.step()
        if step in MEASURED:
            found.append({"step": step, "ce": losses.ce.item() / batch.count, "kl": losses.kl.item() / batch.count, **errors()})
            print({key: round(value, 4) for key, value in found[-1].items()}, flush=True)
    about = {"recipe": chosen.recipe, "settings": chosen.settings, "torch": torch.__version__, "rows": found}
    chosen.out.write_text(json.dumps(about) + "\n")


if __name__ == "__main__":
    main()
