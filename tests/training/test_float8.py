"""Training with 8-bit linear layers, in torchao's float32 emulation."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from freetf_cli.config.files import load_recipe
from freetf_cli.config.recipe import LatentConfig, ModelConfig, Recipe
from freetf_cli.errors import FreetfError, InputError
from freetf_cli.latent.build import build_model, initialise_model
from freetf_cli.model.decoder import Decoder
from freetf_cli.model.latent import ObjectiveWeights
from freetf_cli.training.float8 import check_float8, use_float8
from freetf_cli.training.parallel import Engine
from freetf_cli.training.run import train

CPU = torch.device("cpu")


def model_of() -> Decoder:
    config = ModelConfig(layers=2, width=512, heads=8, kv_heads=2, ffn=528, vocab=11, context=16)
    model = build_model(config, LatentConfig(kappa=1.0, bits=4))
    initialise_model(model, 0)
    return model


def recipe(**settings: Any) -> Recipe:
    sizes = ["model.vocab=29", "model.context=65"]
    return load_recipe("letters-baseline", overrides=sizes + [f"train.{key}={value}" for key, value in settings.items()])


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    return torch.device("cuda")


def test_a_device_without_float8_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train\.float8 on cpu: 8-bit products need a GPU of compute capability 8\.9"):
        train(recipe(float8="true"), tmp_path / "run", device=CPU)
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").glob("[!.]*"))
    check_float8(recipe(), CPU)


def test_a_batch_size_that_float8_does_not_support_is_refused(hopper: torch.device) -> None:
    check_float8(recipe(float8="true", batch=32), hopper)
    with pytest.raises(InputError, match=r"train\.float8 with 1950 tokens at a time: 8-bit products need a multiple of 16"):
        check_float8(recipe(float8="true", batch=60, grad_accum_steps=2), hopper)


def test_without_torchao_the_error_says_what_to_install(hopper: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(FreetfError) as caught:
        check_float8(recipe(float8="true", batch=32), hopper)
    assert caught.value.hint == "pip install 'freetf[float8]'"


@pytest.mark.slow
def test_wide_layers_of_blocks_are_converted_and_close_to_float32() -> None:
    pytest.importorskip("torchao", reason="train.float8 is an extra")
    plain, rough = model_of(), model_of()
    names, weights = [name for name, _ in rough.named_parameters()], dict(rough.named_parameters())
    use_float8(rough, emulate=True)
    changed = {name for name, module in rough.named_modules() if type(module).__name__ == "Float8Linear"}
    parts = ("attention.q", "attention.out", "ffn.gate", "ffn.up", "ffn.down")  # k and v are 128 wide
    every = {f"{block}.{part}" for block in ("blocks.0", "blocks.1", "latent.encoder.block") for part in parts}
    assert changed == every - {"latent.encoder.block.attention.q"}
    assert [name for name, _ in rough.named_parameters()] == names
    assert all(parameter is weights[name] for name, parameter in rough.named_parameters())
    torch.manual_seed(0)
    x, dy, outcomes = torch.randn(32, 512), torch.randn(32, 528), []
    for model in (rough, plain):
        layer, given = model.blocks[0].ffn.up, x.clone().requires_grad_()  # type: ignore[union-attr]
        y = layer(given)  # type: ignore[operator]
        outcomes.append((y.detach(), *torch.autograd.grad(y, (given, layer.weight), dy)))  # type: ignore[union-attr,arg-type]
    for got, want in zip(*outcomes, strict=True):
        assert 0.01 < float((got - want).norm() / want.norm()) < 0.1  # 3 bits of precision forward, 2 in the gradient


@pytest.mark.slow
def test_every_product_has_all_tokens_of_the_batch() -> None:
    """The gradient of weights sums over tokens, in 8 bits over a multiple of 16 of them. The encoder's query layer has one vector, ζ."""
    pytest.importorskip("torchao", reason="train.float8 is an extra")
    model, sizes = model_of(), []
    use_float8(model, emulate=True)
    for module in model.modules():
        if type(module).__name__ == "Float8Linear":
            module.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[:-1].numel()))
    tokens = torch.arange(32).remainder(11).view(2, 16)
    model(tokens, noise=torch.rand(2, 16, 4), targets_BT=tokens, weights=ObjectiveWeights(*torch.zeros(len(ObjectiveWeights._fields))))
    assert sizes == [32] * (5 + 5 + 4)


@pytest.mark.slow
def test_evaluation_uses_plain_layers() -> None:
    pytest.importorskip("torchao", reason="train.float8 is an extra")
    plain, rough = model_of(), model_of()
    use_float8(rough, emulate=True)
    tokens = torch.arange(16).remainder(11)[None]
    with Engine(rough, recipe().train, CPU).whole() as model, torch.inference_mode():
        assert torch.equal(model.lower(tokens, model.context(tokens)), plain.lower(tokens, plain.context(tokens)))
    layer = rough.blocks[0].ffn.up  # type: ignore[union-attr]
    assert type(layer).__name__ == "Float8Linear"
