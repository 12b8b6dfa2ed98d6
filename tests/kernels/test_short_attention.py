"""The kernel for short sequences against rotation and attention written out, in Triton's interpreter. tests/test_gpu.py has the compiled
kernel in bfloat16."""

import pytest

from tests.kernels.interpreter import MARKS, interpreted

pytestmark = MARKS

# name: sequences, positions, heads, head width, causal, one query for all positions.
CASES = {
    "letters": (2, 65, 2, 32, True, False),
    "the encoder": (2, 65, 2, 32, False, True),
    "one beside the tile, not causal": (2, 65, 2, 32, False, False),
    "the miniature": (2, 17, 1, 32, True, False),
    "not causal": (2, 40, 1, 32, False, False),
    "wide heads": (1, 16, 1, 64, True, False),
    "the longest": (1, 128, 1, 32, False, False),
    "two positions": (2, 2, 2, 32, True, False),
}
CHECK = """
import json, sys, torch
from freetf_cli.model.attention.softmax import rotary_tables
from freetf_cli.kernels.short_attention import attend, attend_backward

def turned(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

def errors(batch, length, heads, width, causal, one):
    torch.manual_seed(length)
    packed = torch.randn(batch, length, 3 * heads * width, dtype=torch.float64)
    q, k, v = packed.chunk(3, -1)
    q = torch.randn(1, 1, heads * width, dtype=torch.float64).expand(batch, length, -1) if one else q
    cos, sin = rotary_tables(torch.arange(length), width, 100.0)
    inputs = [x.clone().requires_grad_() for x in (q, k, v)]
    by_head = [x.view(batch, length, heads, width).transpose(1, 2) for x in inputs]
    scores = turned(by_head[0], cos.double(), sin.double()) @ turned(by_head[1], cos.double(), sin.double()).mT / width**0.5
    if causal:
        scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), float("-inf"))
    want = (scores.softmax(-1) @ by_head[2]).transpose(1, 2).flatten(2)
    dy = torch.randn_like(want)
    want.backward(dy)
    rows = packed.float()
    single = q[:1, :1].float().expand(batch, length, -1) if one else None
    given = (rows[..., heads * width :] if one else rows), single
    dpacked, dq = attend_backward(dy.float(), *given, cos, sin, heads, causal)
    got = attend(*given, cos, sin, heads, causal), *((dq, *dpacked.chunk(2, -1)) if one else dpacked.chunk(3, -1))
    pairs = zip(got, (want.detach(), *(x.grad for x in inputs)), strict=True)
    return [float((ours - theirs).norm() / theirs.norm()) for ours, theirs in pairs]

print(json.dumps({name: errors(*case) for name, case in json.loads(sys.argv[1]).items()}))
"""


@pytest.fixture(scope="module")
def outcomes() -> dict[str, list[float]]:
    return interpreted(CHECK, CASES)


@pytest.mark.parametrize("name", CASES)
def test_output_and_gradients_are_the_formula(name: str, outcomes: dict[str, list[float]]) -> None:
    assert max(outcomes[name]) < 1e-6
