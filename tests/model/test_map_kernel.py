"""The kernel of the maps' convolution against conv2d and autograd in float64, in Triton's interpreter. test_gpu.py has it compiled."""

import pytest

from tests.model.interpreter import MARKS, interpreted

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
from freetf_cli.model.map_kernel import convolve, gradients

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


@pytest.fixture(scope="module")
def outcomes() -> dict[str, list[float]]:
    return interpreted(CHECK, CASES)


@pytest.mark.parametrize("name", CASES)
def test_convolution_and_gradients_are_conv2ds(name: str, outcomes: dict[str, list[float]]) -> None:
    assert max(outcomes[name]) < 1e-6
