"""AdamW with its parameter groups, and its moments under the parameters' names."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from freetf_cli.config.recipe import TrainConfig


def make_optimizer(
    model: nn.Module, config: TrainConfig, device: torch.device, parameters: Mapping[str, nn.Parameter] | None = None
) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only. parameters: this process's shards of the model's parameters; by default all of them.

    Not decayed: norms and ζ; tables (token embeddings, the post-sampler), whose rows would shrink in batches that do not read them; and
    the kernels and head mixes of Multi-Token Attention (arXiv 2504.00927), which start as the identity and have three or four dimensions.
    """
    tables = getattr(model, "no_weight_decay", ())
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in (parameters or dict(model.named_parameters())).items():
        (kept if parameter.dim() != 2 or name in tables else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=device.type in ("cuda", "cpu"))


def named_state(parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's tensors as `parameter.moment`, for safetensors."""
    return {
        f"{name}.{key}": torch.as_tensor(value)
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def start_state(parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    """Allocate the moments and step counters that AdamW would allocate in its first step; they are then loaded from a checkpoint."""
    for parameter in parameters.values():
        on_device = parameter.device.type == "cuda"
        state = {"step": torch.zeros((), device=parameter.device if on_device else None)}
        optimizer.state[parameter] = {**state, **{key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}}


def load_named_state(parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, state: dict[str, torch.Tensor]) -> None:
    """Restore the tensors of `named_state`. Raises ValueError if one is missing, or of another shape or dtype."""
    for name, parameter in parameters.items():
        for key in ("step", "exp_avg", "exp_avg_sq"):
            value = state.get(f"{name}.{key}")
            if value is None:
                raise ValueError(f"{name}.{key} is missing")
            shape = () if key == "step" else parameter.shape
            if value.shape != shape or value.dtype != torch.float32:
                raise ValueError(f"{name}.{key} is {value.dtype} {tuple(value.shape)}, not float32 {tuple(shape)}")
            device = "cpu" if key == "step" and parameter.device.type != "cuda" else parameter.device
            optimizer.state[parameter][key] = value.to(device).clone()
