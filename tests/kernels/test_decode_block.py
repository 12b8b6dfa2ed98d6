"""The kernels of a block for one row against the block itself, in Triton's interpreter, where all is float32. tests/test_gpu.py has them
compiled, in bfloat16."""

import pytest

from tests.kernels.interpreter import MARKS, interpreted

pytestmark = MARKS

# name: width, heads, key heads, hidden, positions in the cache, its length, keys from another stream.
CASES = {
    "the first position": (64, 2, 1, 40, 0, 8, False),
    "grouped heads": (128, 4, 2, 96, 21, 40, False),
    "keys from another stream": (64, 2, 2, 33, 7, 9, True),
    "the last position": (96, 3, 3, 64, 69, 70, False),
    "the cache in parts": (64, 2, 1, 32, 530, 1100, False),
    "most parts empty": (64, 2, 1, 32, 3, 1100, True),
}
CHECK = """
import json, sys, torch
from freetf_cli.model.attention.softmax import LayerCache, rotary_tables
from freetf_cli.model.block import Block
from freetf_cli.kernels.decode_block import run_block
from freetf_cli.config.recipe import ModelConfig

@torch.no_grad()
def errors(width, heads, key_heads, hidden, place, length, apart):
    torch.manual_seed(place)
    block = Block(ModelConfig(layers=2, width=width, heads=heads, kv_heads=key_heads, ffn=hidden, vocab=5))
    for norm in (block.attention_norm, block.ffn_norm):
        norm.weight.normal_()
    shape = (1, key_heads, length, width // heads)
    theirs = LayerCache(torch.randn(shape), torch.randn(shape))
    ours = LayerCache(theirs.k.clone(), theirs.v.clone())
    x = torch.randn(1, 1, width)
    keys_from = torch.randn(1, 1, width) if apart else None
    rotary = rotary_tables(torch.arange(place, place + 1), width // heads, 100.0)
    want = block.double()(
        x.double(), tuple(t.double() for t in rotary), keys_from=None if keys_from is None else keys_from.double(),
        cache=LayerCache(theirs.k.double(), theirs.v.double()), position=place,
    )
    block.float()
    block(x, rotary, keys_from=keys_from, cache=theirs, position=place)
    got = run_block(block, x, keys_from, rotary, ours, torch.tensor(place))
    return [float((a - b).norm() / b.norm()) for a, b in ((got, want), (ours.k, theirs.k), (ours.v, theirs.v))]

print(json.dumps({name: errors(*case) for name, case in json.loads(sys.argv[1]).items()}))
"""


@pytest.fixture(scope="module")
def outcomes() -> dict[str, list[float]]:
    return interpreted(CHECK, CASES)


@pytest.mark.parametrize("name", CASES)
def test_stream_and_cache_are_the_blocks(name: str, outcomes: dict[str, list[float]]) -> None:
    assert max(outcomes[name]) < 1e-6
