"""The kernels of a block for one position against their reference in float64, and the reference against the model's block.

In Triton's interpreter all is float32; tests/test_gpu.py has the compiled kernels in bfloat16.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from freetf_cli.config.recipe import ModelConfig
from freetf_cli.kernels import decode_block, rotary_tables
from freetf_cli.kernels.decoding import BlockWeights, reference_decode_block
from freetf_cli.model.block import Block
from freetf_cli.model.context import Cache, LayerCache, make_context
from tests.kernels.interpreter import each_case, outcomes_of, relative

# name: width, heads, key heads, hidden, position, positions of the cache, keys from another stream.
CASES = {
    "the first position": (64, 2, 1, 40, 0, 8, False),
    "grouped heads": (128, 4, 2, 96, 21, 40, False),
    "keys from another stream": (64, 2, 2, 33, 7, 9, True),
    "the last position": (96, 3, 3, 64, 69, 70, False),
    "the cache in parts": (64, 2, 1, 32, 530, 1100, False),
    "most parts empty": (64, 2, 1, 32, 3, 1100, True),
}


def drawn(width: int, heads: int, key_heads: int, hidden: int, place: int, length: int, apart: bool) -> tuple[Block, list[Tensor]]:
    """A block, and x, the stream of keys and values, cos, sin, and the two caches."""
    torch.manual_seed(place)
    block = Block(ModelConfig(layers=2, width=width, heads=heads, kv_heads=key_heads, ffn=hidden, vocab=5), 0)
    for norm in (block.attention_norm, block.ffn_norm):
        torch.nn.init.normal_(norm.weight)
    x, other = torch.randn(2, 1, 1, width)
    cache = torch.randn(2, 1, key_heads, length, width // heads)
    return block, [x, other if apart else x, *rotary_tables(torch.arange(place, place + 1), width // heads, 100.0), *cache]


@torch.no_grad()
def errors(*case: int) -> list[float]:
    """Of the output and of the caches after it."""
    block, given = drawn(*case)
    weights, position = block._weights(), torch.tensor(case[4])
    exact = BlockWeights(*(weight.double() for weight in weights[:-1]), weights.eps)
    ours, theirs = [each.clone() for each in given], [each.double() for each in given]
    got = decode_block(ours[0], ours[1], (ours[2], ours[3]), ours[4], ours[5], position, weights)
    want = reference_decode_block(theirs[0], theirs[1], (theirs[2], theirs[3]), theirs[4], theirs[5], position, exact)
    return [relative(a, b) for a, b in zip((got, *ours[4:]), (want, *theirs[4:]), strict=True)]


outcomes = outcomes_of(errors, CASES)


@each_case(CASES)
def test_output_and_cache_equal_the_reference(name: str, outcomes: dict[str, list[float]]) -> None:
    assert max(outcomes[name]) < 1e-6


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_the_reference_equals_the_block_of_the_model(name: str) -> None:
    block, given = drawn(*CASES[name])  # type: ignore[arg-type]
    place, block = int(CASES[name][4]), block.double()
    x, kv, cos, sin, k, v = (each.double() for each in given)
    cache = LayerCache(k.clone(), v.clone())
    context = Cache([cache])
    context.length = place
    ctx = replace(make_context(1, x.shape[2] // block.attention.heads, 100.0, x.device, cache=context), rotary=(cos, sin))
    want = block(x, ctx, kv)
    got = reference_decode_block(x, kv, (cos, sin), k, v, torch.tensor(place), block._weights())
    for ours, theirs in ((got, want), (k, cache.k), (v, cache.v)):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
