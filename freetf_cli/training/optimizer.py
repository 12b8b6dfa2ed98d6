"""AdamW with its parameter groups, and its moments under the parameters' names.

The decoder's and the encoder's updates may differ (`train.encoder`). The encoder's parameters are those that only the posterior reads: its
blocks, ζ, norm and read-out. Table and projections of Z are the decoder's, which reads them in generation too.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from freetf_cli.config.recipe import TrainConfig

ENCODER = "latent.encoder."  # begins the names of the encoder's parameters, of every kind of latent


def make_optimizers(
    model: nn.Module, config: TrainConfig, device: torch.device, parameters: Mapping[str, nn.Parameter] | None = None
) -> tuple[torch.optim.AdamW, ...]:
    """One AdamW for all parameters; two, the decoder's and the encoder's, where `train.encoder` treats them differently."""
    every = parameters or dict(model.named_parameters())
    if not config.encoder.is_apart:
        return (make_optimizer(model, config, device, every),)
    shares: list[dict[str, nn.Parameter]] = [{}, {}]
    for name, parameter in every.items():
        shares[name.startswith(ENCODER)][name] = parameter
    optimizers = tuple(make_optimizer(model, config, device, share) for share in shares)
    for share, optimizer in zip(shares, optimizers, strict=True):
        start_state(share, optimizer)  # a checkpoint before its first turn has its moments too
    return optimizers


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


def named_state(parameters: Mapping[str, nn.Parameter], *optimizers: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizers' tensors as `parameter.moment`, for safetensors."""
    return {
        f"{name}.{key}": torch.as_tensor(value)
        for name, parameter in parameters.items()
        for optimizer in optimizers
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def owned(parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, nn.Parameter]:
    """Those of the parameters that an optimizer updates."""
    own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return {name: parameter for name, parameter in parameters.items() if id(parameter) in own}


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
