"""Linear layers of one stream: the same with and without one product for all."""

import pytest
import torch
from torch import nn

from freetf_cli.kernels import projection


@pytest.mark.parametrize(("most", "products"), [(10**9, 1), (100, 2)])
def test_one_product_unless_the_weights_are_large(monkeypatch: pytest.MonkeyPatch, most: int, products: int) -> None:
    layers = [nn.Linear(8, size, bias=False, dtype=torch.float64) for size in (6, 10)]
    x_BTD, calls = torch.randn(2, 3, 8, dtype=torch.float64), []
    multiply = torch.nn.functional.linear
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(projection, "PACKED", most)
    monkeypatch.setattr(torch.nn.functional, "linear", lambda *inputs: calls.append(1) or multiply(*inputs))
    for ours, layer in zip(projection.project(x_BTD, *layers), layers, strict=True):
        torch.testing.assert_close(ours, x_BTD @ layer.weight.T, rtol=1e-12, atol=1e-12)
    assert len(calls) == products
