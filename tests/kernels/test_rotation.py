"""The kernel that packs gradients against autograd's of the split and the rotation, in Triton's interpreter."""

import pytest

from tests.kernels.interpreter import MARKS, interpreted

pytestmark = MARKS

# name: sequences, positions, heads of each part, parts rotated, head width.
CASES = {
    "queries, keys, values": (2, 70, (4, 2, 2), 2, 32),
    "keys and values": (1, 5, (2, 2), 1, 64),
    "queries alone": (3, 64, (3,), 1, 32),
    "one position": (2, 1, (1, 1, 1), 2, 32),
}
CHECK = """
import json, sys, torch
from freetf_cli.model.attention.softmax import _parts, rotary_tables
from freetf_cli.kernels.rotation import pack_gradients

def error(sequences, length, heads, turned, width):
    torch.manual_seed(length)
    rotary = tuple(table.double() for table in rotary_tables(torch.arange(3, 3 + length), width, 100.0))
    packed = torch.randn(sequences, length, sum(heads) * width, dtype=torch.float64, requires_grad=True)
    parts = _parts(packed, rotary, heads, turned)
    layouts = [torch.randn(sequences, h, length, width, dtype=torch.float64).transpose(1, 2) for h in heads]
    (want,) = torch.autograd.grad(parts, packed, layouts)
    got = pack_gradients([layout.float() for layout in layouts], *(table.float() for table in rotary), turned)
    return float((got - want).norm() / want.norm())

print(json.dumps({name: error(*case) for name, case in json.loads(sys.argv[1]).items()}))
"""


@pytest.fixture(scope="module")
def outcomes() -> dict[str, float]:
    return interpreted(CHECK, CASES)


@pytest.mark.parametrize("name", CASES)
def test_the_packed_gradient_is_autograds(name: str, outcomes: dict[str, float]) -> None:
    assert outcomes[name] < 1e-6
