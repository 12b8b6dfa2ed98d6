"""The held-out split, as a run sees it while it trains."""

from __future__ import annotations

from collections.abc import Callable
from signal import Signals

import torch
from torch import Tensor, nn

from freetf_cli.config.recipe import Recipe
from freetf_cli.data.batches import DataSource
from freetf_cli.model.loss import LossTerms
from freetf_cli.training.distributed import World
from freetf_cli.training.prefetch import host_batch
from freetf_cli.training.schedule import objective_weights
from freetf_cli.training.step import LossFunction, autocast


class CutShort(Exception):
    """A signal came during an evaluation."""

    def __init__(self, signal: Signals) -> None:
        self.signal = signal


@torch.no_grad()
def held_out_sums(
    recipe: Recipe,
    source: DataSource,
    model: nn.Module,
    loss: LossFunction,
    noise_NTH: Tensor,
    world: World,
    asked: Callable[[], Signals | None],
) -> tuple[Tensor, int]:
    """Sums of the LossTerms [5] over the held-out rows, and how many targets count; at the final κ and weights, Z from the posterior.

    noise_NTH: of each of the N rows, whatever the batches. Of several processes each takes every `size`-th batch, and all have the sums.
    Raises CutShort when `asked` gives a signal.
    """
    config, device = recipe.eval, noise_NTH.device
    weights = torch.tensor(objective_weights(recipe.train.steps, recipe.latent, recipe.train.steps), device=device).unbind()
    total, count, row = torch.zeros(5, device=device), 0, 0
    model.eval()
    try:
        for number, batch in enumerate(source.held_out(config.split, config.sequences, recipe.rows_at_once)):
            if number % world.size == 0 and (signal := asked()):
                raise CutShort(signal)
            noise_BTH = noise_NTH[row : row + len(batch.inputs)]
            row += len(batch.inputs)
            rows = host_batch(batch)
            count += rows.count
            if number % world.size == world.rank:
                with autocast(recipe.train, device):
                    terms = loss(rows.inputs.to(device), rows.targets.to(device), noise_BTH, *weights)
                total += LossTerms(*terms).stack()
        world.sum_([total])
    finally:
        model.train()
    return total, count
