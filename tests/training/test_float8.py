"""Training with 8-bit linear layers, in torchao's float32 emulation."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from freetf_cli.config.files import load_recipe
from freetf_cli.config.recipe import LatentConfig, ModelConfig, Recipe
from freetf_cli.errors import FreetfError, InputError, InputErrors
from freetf_cli.latent.build import build_model, initialise_model
from freetf_cli.model.decoder import Decoder
from freetf_cli.model.latent import ObjectiveWeights
from freetf_cli.training import float8, start
from freetf_cli.training.float8 import check_float8, use_float8, without_float8
from freetf_cli.training.parallel import Engine
from freetf_cli.training.run import train
from freetf_cli.training.world import ALONE
from tests.training import test_parallel as parallel

CPU = torch.device("cpu")


def model_of() -> Decoder:
    config = ModelConfig(layers=2, width=512, heads=8, kv_heads=2, ffn=528, vocab=11, context=16)
    model = build_model(config, LatentConfig(kappa=1.0, bits=4))
    initialise_model(model, 0)
    return model


def recipe(processes: int = 1, **settings: Any) -> Recipe:
    sizes = ["model.vocab=29", "model.context=65", f"parallel.processes={processes}"]
    return load_recipe("letters-baseline", overrides=sizes + [f"train.{key}={value}" for key, value in settings.items()])


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    return torch.device("cuda")


def test_a_device_without_float8_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train\.float8 on cpu: 8-bit products need a GPU of compute capability 8\.9"):
        train(recipe(float8="rowwise"), tmp_path / "run", device=CPU)
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").glob("[!.]*"))
    check_float8(recipe(), CPU)


def test_a_batch_size_that_float8_does_not_support_is_refused(hopper: torch.device) -> None:
    check_float8(recipe(float8="tensorwise", batch=32), hopper)
    with pytest.raises(InputError, match=r"train\.float8 with 1950 tokens at a time: 8-bit products need a multiple of 16"):
        check_float8(recipe(float8="rowwise", batch=60, grad_accum_steps=2), hopper)
    check_float8(recipe(float8="rowwise", batch=16), hopper)
    with pytest.raises(InputError, match="with 520 tokens at a time"):  # of each process
        check_float8(recipe(2, float8="rowwise", batch=16), hopper)


@pytest.mark.parametrize("value", ["true", "false"])
def test_a_switch_is_refused_with_the_choices(value: str) -> None:
    with pytest.raises(InputErrors, match=r"train\.float8: input should be 'off', 'tensorwise' or 'rowwise', not (true|false)"):
        recipe(float8=value)


def test_without_torchao_the_error_says_what_to_install(hopper: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(FreetfError) as caught:
        check_float8(recipe(float8="tensorwise", batch=32), hopper)
    assert caught.value.hint == "pip install 'freetf[float8]'"


def rounded(x: Tensor, bits: int, least: int, most: float) -> Tensor:
    """The nearest numbers with `bits` bits after the leading one and exponents from `least`, ties to even; in float64."""
    step = 2.0 ** (x.double().abs().log2().floor().clamp(min=least) - bits)
    return ((x.double() / step).round() * step).clamp(-most, most)


def cast(x: Tensor, kind: str, dim: int, gradient: bool = False) -> Tensor:
    """A matrix as 8 bits hold it: scaled, rounded and divided by the scale, in float64. dim: the one that the product sums over."""
    e4m3, e5m2 = (3, -6, 448.0), (2, -14, 57344.0)
    bits, least, most = e5m2 if gradient and kind == "tensorwise" else e4m3
    largest = x.abs().amax(dim, keepdim=True) if kind == "rowwise" else x.abs().amax()
    scale = (most / largest.double()).float()
    if kind == "rowwise":
        scale = scale.log2().floor().exp2()
    return rounded(x * scale, bits, least, most) / scale


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tensorwise", "rowwise"])
def test_the_three_products_are_those_of_the_formula(kind: Any) -> None:
    pytest.importorskip("torchao", reason="train.float8 is an extra")
    model = model_of()
    use_float8(model, kind, emulate=True)
    layer = model.blocks[0].ffn.up  # type: ignore[union-attr]
    torch.manual_seed(0)
    sizes_N, sizes_D, sizes_P = (10 ** (2 * torch.rand(size) - 1) for size in (32, 512, 528))  # of rows and columns: 0.1 to 10
    x_ND, dy_NP = torch.randn(32, 512) * sizes_N[:, None] * sizes_D, torch.randn(32, 528) * sizes_N[:, None] * sizes_P
    with torch.no_grad():
        layer.weight.copy_(torch.randn(528, 512) * sizes_P[:, None] * sizes_D)  # type: ignore[operator,union-attr]
    w_PD, x_ND = layer.weight.detach(), x_ND.requires_grad_()  # type: ignore[operator,union-attr]
    y_NP = layer(x_ND)  # type: ignore[operator]
    dx_ND, dw_PD = torch.autograd.grad(y_NP, (x_ND, layer.weight), dy_NP)  # type: ignore[arg-type,union-attr]
    x_ND = x_ND.detach()
    products = [
        (y_NP, cast(x_ND, kind, 1), cast(w_PD, kind, 1).T),
        (dx_ND, cast(dy_NP, kind, 1, gradient=True), cast(w_PD, kind, 0)),
        (dw_PD, cast(dy_NP, kind, 0, gradient=True).T, cast(x_ND, kind, 0)),
    ]
    for got, left, right in products:
        assert bool(((got - left @ right).abs() <= 1e-5 * (left.abs() @ right.abs())).all())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tensorwise", "rowwise"])
def test_wide_layers_of_blocks_are_converted_and_close_to_float32(kind: Any) -> None:
    pytest.importorskip("torchao", reason="train.float8 is an extra")
    plain, rough = model_of(), model_of()
    names, weights = [name for name, _ in rough.named_parameters()], dict(rough.named_parameters())
    use_float8(rough, kind, emulate=True)
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
        assert 0.01 < float((got - want).norm() / want.norm()) < 0.1  # 3 bits of precision; 2 in the gradient if tensorwise


@pytest.mark.slow
def test_every_product_has_all_tokens_of_the_batch() -> None:
    """The gradient of weights sums over tokens, in 8 bits over a multiple of 16 of them. The encoder's query layer has one vector, ζ."""
    pytest.importorskip("torchao", reason="train.float8 is an extra")
    model, sizes = model_of(), []
    use_float8(model, "rowwise", emulate=True)
    for module in model.modules():
        if type(module).__name__ == "Float8Linear":
            module.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[:-1].numel()))
    tokens = torch.arange(32).remainder(11).view(2, 16)
    model(tokens, noise=torch.rand(2, 16, 4), targets_BT=tokens, weights=ObjectiveWeights(*torch.zeros(3)))
    assert sizes == [32] * (5 + 5 + 4)


@pytest.mark.slow
def test_evaluation_uses_plain_layers() -> None:
    pytest.importorskip("torchao", reason="train.float8 is an extra")
    plain, rough = model_of(), model_of()
    use_float8(rough, "rowwise", emulate=True)
    tokens = torch.arange(16).remainder(11)[None]
    with Engine(rough, recipe().train, CPU).whole() as model, torch.inference_mode():
        assert torch.equal(model.lower(tokens, model.context(tokens)), plain.lower(tokens, plain.context(tokens)))
    with pytest.raises(RuntimeError), without_float8(rough):
        raise RuntimeError
    layer = rough.blocks[0].ffn.up  # type: ignore[union-attr]
    assert type(layer).__name__ == "Float8Linear"


SMALL = {"latent": None, "model.width": 64, "model.ffn": 128, "train.seed": 1}  # with seed 0 one number rounds otherwise: 1.2e-3 off
CASES = {
    f"{mode}, {kind}": (2, {"parallel.mode": mode, "train.float8": kind, **SMALL})
    for mode in ("ddp", "fsdp")
    for kind in ("tensorwise", "rowwise")
}


def member(*arguments: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        emulate(patch)
        parallel.member(*arguments, cases=CASES)


def emulate(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(float8, "MIN_WIDTH", 64)
    patch.setattr(start, "use_float8", partial(use_float8, emulate=True))


def alone(kind: str, parts: int = 1) -> dict[str, Any]:
    """What one process finds."""
    return parallel.trained(parallel.recipe(1, {"train.float8": kind, "train.grad_accum_steps": parts, **SMALL}), ALONE)


@pytest.mark.slow
def test_processes_compute_what_one_does_with_more_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scale covers tokens of one process in one forward pass. Rowwise, only the gradient of weights has scales for several tokens,
    which are powers of two, on which the rounding of most numbers does not depend. What is saved does not depend on `train.float8`.
    """
    pytest.importorskip("torchao", reason="train.float8 is an extra")
    emulate(monkeypatch)
    ranks, off, norm = parallel.together(2, tmp_path, member), alone("off"), 5
    for kind in ("tensorwise", "rowwise"):
        one, halves = alone(kind), alone(kind, parts=2)
        assert abs(one["steps"][0][norm] / off["steps"][0][norm] - 1) > 1e-4
        for mode, later in (("ddp", 1e-5), ("fsdp", 1e-3)):  # FSDP sums in another order, after which a number may be rounded otherwise
            for found in (each[f"{mode}, {kind}"] for each in ranks):
                assert found["steps"][0] == pytest.approx(halves["steps"][0], rel=1e-5)
                assert found["steps"][1:] == [pytest.approx(step, rel=later) for step in halves["steps"][1:]]
                assert found["held_out"] == pytest.approx(halves["held_out"], rel=later)
                difference = abs(found["steps"][0][norm] / one["steps"][0][norm] - 1)
                assert difference < 1e-5 if kind == "rowwise" else 1e-5 < difference < 1e-2
                saved = ({name: (tensor.shape, tensor.dtype) for name, tensor in each["kept"].items()} for each in (found, off))
                assert next(saved) == next(saved)
