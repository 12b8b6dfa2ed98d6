"""How far off the mapper's gradient is with its product in 8-bit numbers, on the gradients of a run.

    python scripts/float8_error.py ERROR.json demo-free

Trains a Free recipe for 300 steps on a CPU, and at some of them makes the gradient of Z's bits in float64 from what training gave it, and
again with dr and the centred table rounded to e4m3, a scale a row, as `latent.float8` does on a GPU.
"""

from __future__ import annotations

import json
import sys
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

LOOKS = (1, 10, 30, 60, 100, 200, 300)
GIVEN: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
in_chunks = mapper.logit_gradient_in_chunks


def remembered(dr_ND: Tensor, bit_logits_NH: Tensor, table_CD: Tensor, product_type: torch.dtype) -> Tensor:
    GIVEN["last"] = dr_ND.clone(), bit_logits_NH.clone(), table_CD.clone()
    return in_chunks(dr_ND, bit_logits_NH, table_CD, product_type)


def in_8_bits(x_ND: Tensor) -> Tensor:
    scale_N1 = x_ND.abs().amax(1, keepdim=True).clamp(min=1e-30) / 448
    return ((x_ND / scale_N1).to(torch.float8_e4m3fn).float() * scale_N1).double()


def errors() -> dict[str, float]:
    """Relative, in the norm: of all tokens' gradients, of a middling token's, and of their sum."""
    dr_ND, logits_NH, table_CD = GIVEN["last"]
    centred_CD = table_CD - mapper.common_row(table_CD)
    want, got = (
        in_chunks(dr, logits_NH.double(), table, torch.float64)
        for dr, table in ((dr_ND.double(), table_CD.double()), (in_8_bits(dr_ND), in_8_bits(centred_CD)))
    )
    each_N = (got - want).norm(dim=1) / want.norm(dim=1).clamp(min=1e-300)
    return {
        "all": float((got - want).norm() / want.norm()),
        "token": float(each_N.median()),
        "sum": float((got - want).sum(0).norm() / want.sum(0).norm()),
    }


def main(out: Path, name: str, overrides: list[str]) -> None:
    recipe, source = resolve(load_recipe(name, overrides=overrides))
    if recipe.latent is None:
        sys.exit(f"{name} is a baseline")
    mapper.logit_gradient_in_chunks = remembered
    model = build_model(recipe.model, recipe.latent)
    initialise_model(model, recipe.train.seed)
    optimizer, random = make_optimizer(model, recipe.train, torch.device("cpu")), torch.Generator().manual_seed(recipe.train.seed)
    weights = ObjectiveWeights(*torch.tensor([recipe.latent.kappa * LN2, 0.0, 0.0]))
    found: list[dict[str, Any]] = []
    for step in range(1, LOOKS[-1] + 1):
        batch = host_batch(source.train_batch(step - 1, recipe.train.batch))
        noise = torch.rand(*batch.inputs.shape, recipe.latent.bits, generator=random)
        optimizer.zero_grad()
        losses = model(batch.inputs, noise=noise, targets_BT=batch.targets, weights=weights).losses
        (losses.objective / batch.count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.train.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = recipe.train.lr * min(1.0, step / max(1, recipe.train.warmup))
        optimizer.step()
        if step in LOOKS:
            found.append({"step": step, "ce": losses.ce.item() / batch.count, "kl": losses.kl.item() / batch.count, **errors()})
            print({key: round(value, 4) for key, value in found[-1].items()}, flush=True)
    out.write_text(json.dumps({"recipe": name, "settings": overrides, "torch": torch.__version__, "rows": found}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
