"""Building a model from its configuration."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from freetf_cli.config.recipe import LatentConfig, ModelConfig
from freetf_cli.errors import InputError
from freetf_cli.model.attention.registry import initialise_kinds
from freetf_cli.model.decoder import Decoder, initialise
from freetf_cli.model.latent import Latent
from freetf_cli.model.weights import Draws


def build_model(config: ModelConfig, latent: LatentConfig | None) -> Decoder:
    """A Free Transformer, or its baseline when `latent` is None. Parameters are not set yet."""
    return Decoder(config, None if latent is None else make_latent(config, latent))


def make_latent(config: ModelConfig, latent: LatentConfig) -> Latent:
    """The latent of kind `latent.kind`: the module of that name in this package, whose `Kind` is the class.

    Raises InputError for a kind that there is no module for.
    """
    name = f"{__package__}.{latent.kind}"
    if find_spec(name) is None or not isinstance(kind := getattr(import_module(name), "Kind", None), type):
        raise InputError(f"latent.kind = {latent.kind!r}: there is no such latent")
    made: Latent = kind(config, latent)
    return made


class _SkipDraws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside the block, constructors do not fill matrices with random numbers. Their memory is reserved, and never touched."""

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        draws = operation in (torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default)
        return arguments[0] if draws else operation(*arguments, **(options or {}))


def constants(config: ModelConfig, latent: LatentConfig | None) -> dict[str, torch.Tensor]:
    """The parameters, by name, that a model is built with and that `initialise_model` may not set: all but matrices."""
    with _SkipDraws():  # type: ignore[no-untyped-call]
        model = build_model(config, latent)
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.dim() != 2}


@torch.no_grad()
def initialise_model(model: Decoder, seed: int) -> None:
    """Set all parameters from a seed. A Free model and its baseline get the same weights where they share them."""
    draws = Draws(seed)
    decoder = nn.ModuleDict({name: child for name, child in model.named_children() if name != "latent"})
    initialise(decoder, model.config.layers, draws)
    initialise_kinds(model.blocks, draws.within("blocks"))
    if model.latent is not None:
        model.latent.initialise(draws.within("latent"))
