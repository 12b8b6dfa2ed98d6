"""Kinds of attention with the kernels for attention weights against the same without them."""

import torch
from torch import Tensor

from freetf_cli.config.recipe import ModelConfig, MultiTokenConfig
from freetf_cli.kernels import convolution, head_mix, rotary_tables
from freetf_cli.model.attention import multi_token
from freetf_cli.model.attention.registry import make_attention
from tests.kernels.interpreter import each_case, outcomes_of, relative
from tests.model import attention_loops as loops

# name: kind, causal, documents, options of multi-token attention.
CASES = {
    "talking heads": ("talking-heads", True, False, {}),
    "talking heads, documents": ("talking-heads", True, True, {}),
    "talking heads, not causal": ("talking-heads", False, False, {}),
    "multi-token": ("multi-token", True, False, {}),
    "multi-token, documents": ("multi-token", True, True, {}),
    "multi-token, exact": ("multi-token", True, False, {"mask": "exact"}),
    "multi-token, not causal": ("multi-token", False, False, {}),
    "mixes alone": ("multi-token", True, True, {"kq": "none"}),
}


def error(kind: str, causal: bool, documents: bool, options: dict) -> float:
    """The largest of the output and of the gradients of all parameters. Kernels run in one of two passes; they are made unreachable in
    the other."""
    multi_token.WIDEST_HEAD = 0  # attention weights are materialised
    torch.manual_seed(0)
    options = MultiTokenConfig(**{"c_q": 3, "c_k": 5, "c_h": 2, "kq_layers": [0], "norm": "none", **options})
    config = ModelConfig(layers=1, width=32, heads=4, vocab=5, attention=kind, multi_token=options if kind == "multi-token" else None)
    attention = make_attention(config, 0)
    for parameter in attention.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    number = torch.arange(20).ge(9).long().expand(2, -1) if documents else None
    x = torch.randn(2, 20, 32)

    def outcome(kernels: bool) -> list[Tensor]:
        convolution.runs_kernels = head_mix.runs_kernels = lambda _: kernels
        ctx = loops.context(rotary_tables(torch.arange(20), 8, 10_000.0), causal, number)
        y = attention(x, x, ctx)
        return [y.detach(), *torch.autograd.grad(y.square().sum(), list(attention.parameters()))]

    return max(relative(a, b) for a, b in zip(outcome(True), outcome(False), strict=True))


errors = outcomes_of(error, CASES)


@each_case(CASES)
def test_attention_is_the_same_with_the_kernels(name: str, errors: dict[str, float]) -> None:
    """Where a kind looks ahead, the kernels are not used."""
    assert errors[name] < 1e-5
