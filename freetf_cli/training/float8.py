"""Linear layers of the blocks that multiply in 8-bit floating point while training, as torchao has them (`train.float8`).

Weights stay in float32 and keep their names. Each product scales both its operands by their largest number, e4m3 forward and e5m2 for the
gradient, and its result is bfloat16: twice the arithmetic of a GPU of compute capability 8.9, less the casts.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from freetf_cli.errors import FreetfError, InputError

NARROWEST = 512  # a narrower product saves less than its casts take


def use_float8(model: nn.Module, device: torch.device, *, emulate: bool = False) -> None:
    """Make the wide linear layers of blocks such. emulate: compute the same in float32, on any device, for tests.

    InputError on a device that has no such products, FreetfError without torchao.
    """
    if not emulate and (device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9)):
        raise InputError(f"train.float8 on {device.type}: 8-bit products need a GPU of compute capability 8.9 or newer")
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError:
        raise FreetfError("train.float8 needs torchao, which is not installed", hint="pip install 'freetf[float8]'") from None
    config = dataclasses.replace(Float8LinearConfig.from_recipe_name("tensorwise"), emulate=emulate)
    convert_to_float8_training(model, config=config, module_filter_fn=_wide)


def _wide(module: nn.Module, name: str) -> bool:
    if not isinstance(module, nn.Linear) or "block" not in name:
        return False
    sizes = (module.in_features, module.out_features)
    return min(sizes) >= NARROWEST and all(size % 16 == 0 for size in sizes)
