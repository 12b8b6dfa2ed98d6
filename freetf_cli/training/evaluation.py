"""The loss on the held-out split during training."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from freetf_cli.config.recipe import Recipe
from freetf_cli.data.batches import IGNORE, DataSource
from freetf_cli.evaluation.posterior import tensors
from freetf_cli.model.decoder import Decoder
from freetf_cli.model.latent import ObjectiveWeights
from freetf_cli.training.distributed import World
from freetf_cli.training.schedule import objective_weights
from freetf_cli.training.step import autocast


@torch.no_grad()
def held_out_sums(
    recipe: Recipe, source: DataSource, model: Decoder, noise_NTH: Tensor, world: World, stop_if_asked: Callable[[], None]
) -> tuple[Tensor, int]:
    """Sums of the LossTerms [5] over the held-out rows, and the count of their targets. Z is sampled from the posterior.

    κ and the other weights of the objective are the final ones. noise_NTH: noise of each of the N rows, whatever the batch size.
    Each process takes every `world.size`-th batch; all return the sums over all of them. stop_if_asked: called in all processes before
    each of its batches; raises an exception if the run is to stop.
    """
    config, device = recipe.eval, noise_NTH.device
    final = objective_weights(recipe.train.steps, recipe.latent, recipe.train.steps)
    weights = ObjectiveWeights(*torch.tensor(final, device=device).unbind())
    total, count, row = torch.zeros(5, device=device), 0, 0
    model.eval()
    try:
        for number, batch in enumerate(source.held_out(config.split, config.sequences, recipe.rows_at_once)):
            if number % world.size == 0:
                stop_if_asked()
            noise_BTH = noise_NTH[row : row + len(batch.inputs)]
            row += len(batch.inputs)
            count += int((batch.targets != IGNORE).sum())
            if number % world.size == world.rank:
                tokens_BT, targets_BT = tensors(model, batch)
                with autocast(recipe.train, device):
                    output = model(tokens_BT, noise=noise_BTH, targets_BT=targets_BT, weights=weights)
                total += output.losses.stack()
        world.all_reduce_sum([total])
    finally:
        model.train()
    return total, count
