"""AdamW with its parameter groups, and its moments by the names of the parameters."""

from __future__ import annotations

import torch
from torch import nn

from freetf_cli.config.recipe import TrainConfig


def make_optimizer(model: nn.Module, config: TrainConfig, device: torch.device) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only.

    Norms and ζ are not decayed; nor are tables (token embeddings, the post-sampler), whose rows would shrink in batches that do not
    read them; nor the kernels and head mixes of Multi-Token Attention, which decay would pull away from the identity that they start
    as (arXiv 2504.00927; they have three or four dimensions).
    """
    tables = getattr(model, "no_weight_decay", ())
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (kept if parameter.dim() != 2 or name in tables else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=device.type in ("cuda", "cpu"))


def named_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's tensors as `parameter.moment`, for safetensors."""
    state = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            state[f"{name}.{key}"] = torch.as_tensor(value)
    return state


def load_named_state(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, torch.Tensor]) -> None:
    """Put `named_state`'s tensors back."""
    for name, parameter in model.named_parameters():
        moments = {key: state.get(f"{name}.{key}") for key in ("step", "exp_avg", "exp_avg_sq")}
        for key, value in moments.items():
            if value is None:
                raise ValueError(f"{name}.{key} is missing")
            shape = () if key == "step" else parameter.shape
            if value.shape != shape or value.dtype != torch.float32:
                raise ValueError(f"{name}.{key} is {value.dtype} {tuple(value.shape)}, not float32 {tuple(shape)}")
            device = "cpu" if key == "step" and parameter.device.type != "cuda" else parameter.device
            optimizer.state[parameter][key] = value.to(device).clone()
