"""The kernels of the maps' convolution and of their mix against conv2d, sums and autograd in float64, in Triton's interpreter. test_gpu.py
has them compiled, in bfloat16 too, which the interpreter cannot multiply."""

import pytest

from tests.kernels.interpreter import MARKS, interpreted

pytestmark = MARKS

# name: maps, heads, queries, keys, rows and columns of the kernel.
CASES = {
    "the paper's": (4, 2, 70, 70, 6, 11),
    "one cell": (2, 2, 5, 5, 1, 1),
    "even width": (3, 3, 33, 33, 2, 8),
    "one row": (2, 1, 20, 20, 1, 9),
    "one column": (2, 2, 65, 65, 4, 1),
    "the widest": (2, 2, 66, 66, 2, 33),
    "wider than the map": (2, 2, 3, 3, 4, 11),
}
CHECK = """
import json, sys, torch
import torch.nn.functional as F
from freetf_cli.kernels.attention_weights import convolve, gradients

def errors(maps, heads, queries, keys, rows, width):
    torch.manual_seed(rows + width)
    x, dy = (torch.randn(maps, queries, keys, dtype=torch.float64, requires_grad=True) for _ in range(2))
    kernel = torch.randn(heads, rows, width, dtype=torch.float64, requires_grad=True)
    padded = F.pad(x.tril().view(-1, heads, queries, keys), ((width - 1) // 2, width // 2, rows - 1, 0))
    want = F.conv2d(padded, kernel[:, None], groups=heads).view_as(x).tril()
    dx, dkernel = torch.autograd.grad(want, (x, kernel), dy)
    given = [each.detach().float() for each in (dy, x, kernel)]
    got = convolve(given[1], given[2]), *gradients(*given)
    return [float((a - b).norm() / b.norm()) for a, b in zip(got, (want.detach(), dx, dkernel), strict=True)]

print(json.dumps({name: errors(*case) for name, case in json.loads(sys.argv[1]).items()}))
"""
# name: type, sequences, groups, heads of a group, positions.
MIXES = {
    "two heads": ("float32", 2, 2, 2, 70),
    "three heads": ("float32", 2, 1, 3, 37),
    "four heads": ("float32", 2, 2, 4, 65),
    "sixteen": ("float32", 2, 1, 16, 70),
    "seventeen": ("float32", 1, 2, 17, 20),
    "one position": ("float32", 2, 1, 2, 1),
    "two, float16": ("float16", 2, 2, 2, 530),
    "sixteen, float16": ("float16", 2, 1, 16, 33),
}
MIX_CHECK = """
import contextlib, json, sys, torch
from freetf_cli.kernels import attention_weights as map_kernel
from freetf_cli.model.attention.materialised import map_mix

torch.cuda.device = lambda _: contextlib.nullcontext()
map_kernel.PROGRAMS = 6  # each has several strips of queries to sum

def errors(kind, batch, groups, heads, length):
    torch.manual_seed(heads + length)
    x, dy = (torch.randn(batch, groups * heads, length, length).to(getattr(torch, kind)) for _ in range(2))
    w = torch.randn(groups, heads, heads).to(x.dtype)
    wide = [each.double().requires_grad_() for each in (x, w)]
    of_head = wide[0].view(batch, groups, heads, length, length)
    want = torch.einsum("goh,bghts->bgots", wide[1], of_head.tril()).flatten(1, 2).tril()
    given = x.clone().requires_grad_(), w.float().requires_grad_()
    got = map_mix(*given)
    outcomes = got.detach(), *torch.autograd.grad(got, given, dy)
    wanted = want.detach(), *torch.autograd.grad(want, wide, dy.double())
    after = max(float(each.triu(1).abs().max()) for each in outcomes[:2])
    return [after, *(float((a.double() - b).norm() / b.norm()) for a, b in zip(outcomes, wanted, strict=True))]

print(json.dumps({name: errors(*case) for name, case in json.loads(sys.argv[1]).items()}))
"""
# name: kind, causal, documents, options of multi-token attention.
BLOCKS = {
    "talking heads": ("talking-heads", True, False, {}),
    "talking heads, documents": ("talking-heads", True, True, {}),
    "talking heads, not causal": ("talking-heads", False, False, {}),
    "multi-token": ("multi-token", True, False, {}),
    "multi-token, documents": ("multi-token", True, True, {}),
    "multi-token, exact": ("multi-token", True, False, {"mask": "exact"}),
    "multi-token, not causal": ("multi-token", False, False, {}),
    "mixes alone": ("multi-token", True, True, {"kq": "none"}),
}
BLOCK_CHECK = """
import contextlib, json, sys, torch
from freetf_cli.model.attention import materialised as maps, multi_token
from freetf_cli.model.attention.softmax import rotary_tables
from freetf_cli.model.attention.registry import make_attention
from freetf_cli.config.recipe import ModelConfig, MultiTokenConfig

torch.cuda.device = lambda _: contextlib.nullcontext()
multi_token.WIDEST_HEAD = 0  # by maps

def outcome(attention, x, causal, documents, kernels):
    maps.runs_kernels_compiled = multi_token.runs_kernels_compiled = lambda _: kernels
    y = attention(x, x, rotary_tables(torch.arange(20), 8, 10_000.0), causal=causal, documents_BS=documents)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), list(attention.parameters()))]

def error(kind, causal, documents, options):
    torch.manual_seed(0)
    options = MultiTokenConfig(**{"c_q": 3, "c_k": 5, "c_h": 2, "kq_layers": [0], "norm": "none", **options})
    config = ModelConfig(layers=1, width=32, heads=4, vocab=5, attention=kind, multi_token=options if kind == "multi-token" else None)
    attention = make_attention(config, 0)
    for parameter in attention.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    number = torch.arange(20).ge(9).long().expand(2, -1) if documents else None
    x = torch.randn(2, 20, 32)
    ours, theirs = (outcome(attention, x, causal, number, kernels) for kernels in (True, False))
    return max(float((a - b).norm() / b.norm()) for a, b in zip(ours, theirs, strict=True))

print(json.dumps({name: error(*case) for name, case in json.loads(sys.argv[1]).items()}))
"""


@pytest.fixture(scope="module")
def outcomes() -> dict[str, list[float]]:
    return interpreted(CHECK, CASES)


@pytest.mark.parametrize("name", CASES)
def test_convolution_and_gradients_are_conv2ds(name: str, outcomes: dict[str, list[float]]) -> None:
    assert max(outcomes[name]) < 1e-6


@pytest.fixture(scope="module")
def mixes() -> dict[str, list[float]]:
    return interpreted(MIX_CHECK, MIXES)


@pytest.mark.parametrize("name", MIXES)
def test_mix_and_gradients_are_sums_over_heads(name: str, mixes: dict[str, list[float]]) -> None:
    """And zeros after the query, where neither x nor dy has them. In float16 a number is rounded by 2⁻¹¹ of itself at most."""
    after, *errors = mixes[name]
    assert after == 0
    assert max(errors) < (2**-11 if MIXES[name][0] == "float16" else 1e-6)


@pytest.fixture(scope="module")
def blocks() -> dict[str, float]:
    return interpreted(BLOCK_CHECK, BLOCKS)


@pytest.mark.parametrize("name", BLOCKS)
def test_attention_is_the_same_with_the_kernels(name: str, blocks: dict[str, float]) -> None:
    """Its output and the gradients of all its parameters; where it looks ahead, they are not for it."""
    assert blocks[name] < 1e-5
