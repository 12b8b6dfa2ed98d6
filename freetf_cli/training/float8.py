"""8-bit floating point for training (`train.float8`): linear layers of the blocks multiply as torchao's float8 training does.

Weights keep their names and dtypes. Each product scales both operands by their largest absolute values, casts them to 8 bits, and returns
bfloat16. GPUs of compute capability 8.9 or newer do this at twice the rate of bfloat16, minus the casts. The two recipes are torchao's:

                one scale for each                                  e4m3 for            e5m2 for
    tensorwise  operand                                             inputs, weights     gradients
    rowwise     row of the left operand, column of the right one;   inputs, weights,    –
                a power of two                                      gradients

A scale that covers several tokens covers those of one process in one forward pass. Tensorwise, this concerns all three products; rowwise,
only the one that sums over tokens, the gradient of the weights. So N processes compute what one computes with N times the
`train.grad_accum_steps`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from freetf_cli.config.recipe import Recipe
from freetf_cli.config.train import Float8
from freetf_cli.errors import FreetfError, InputError

MIN_WIDTH = 512  # a narrower product saves less time than its casts take
ZETA_QUERY = "encoder.block.attention.q"  # multiplies ζ, one vector, where 8-bit products need a multiple of 16


def check_float8(recipe: Recipe, device: torch.device) -> None:
    """Raise InputError if the device or the batch size does not support float8 products, FreetfError if torchao is missing."""
    if recipe.train.float8 == "off":
        return
    # PyTorch 2.11 has the rowwise product, too, for 8.9 and everything newer.
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        raise InputError(f"train.float8 on {device.type}: 8-bit products need a GPU of compute capability 8.9 or newer")
    tokens = recipe.rows_at_once * (recipe.model.context or 1)
    if tokens % 16:
        raise InputError(f"train.float8 with {tokens} tokens at a time: 8-bit products need a multiple of 16", hint="change train.batch")
    _torchao()


def use_float8(model: nn.Module, kind: Float8, *, emulate: bool = False) -> None:
    """Convert the wide linear layers of the blocks, in place. emulate: compute the same in float32 on any device, for tests."""
    if kind == "off":
        return
    float8 = _torchao()
    config = dataclasses.replace(float8.Float8LinearConfig.from_recipe_name(kind), emulate=emulate)
    float8.convert_to_float8_training(model, config=config, module_filter_fn=_is_wide)


@contextmanager
def without_float8(model: nn.Module) -> Iterator[None]:
    """Inside the block, converted layers are plain again: torchao's are for training, and rowwise ones fail in inference mode."""
    layers = [(module, type(module)) for module in model.modules() if isinstance(module, nn.Linear) and type(module) is not nn.Linear]
    for layer, _ in layers:
        layer.__class__ = nn.Linear
    try:
        yield
    finally:
        for layer, converted in layers:
            layer.__class__ = converted


def _torchao() -> Any:
    try:
        import torchao.float8
    except ImportError:
        raise FreetfError("train.float8 needs torchao, which is not installed", hint="pip install 'freetf[float8]'") from None
    return torchao.float8


def _is_wide(module: nn.Module, name: str) -> bool:
    if not isinstance(module, nn.Linear) or "block" not in name or name.endswith(ZETA_QUERY):
        return False
    sizes = (module.in_features, module.out_features)
    return min(sizes) >= MIN_WIDTH and all(size % 16 == 0 for size in sizes)
