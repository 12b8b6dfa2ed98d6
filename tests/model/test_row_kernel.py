"""The product of one row against PyTorch's, in Triton's interpreter. tests/test_gpu.py has the compiled kernel in bfloat16."""

import pytest

from tests.model.interpreter import MARKS, interpreted

pytestmark = MARKS

CASES = {"square": (48, 48), "narrow": (5, 300), "wide": (9000, 33), "pieces": (3, 5000), "one": (1, 1)}  # outputs, inputs
CHECK = """
import json, sys, torch
from freetf_cli.model.row_kernel import row_product

def error(outputs, inputs):
    torch.manual_seed(inputs)
    x, weight = torch.randn(inputs), torch.randn(outputs, inputs + 3)[:, :inputs]
    want = weight.double() @ x.double()
    return float((row_product(x, weight) - want).norm() / want.norm())

print(json.dumps({name: error(*case) for name, case in json.loads(sys.argv[1]).items()}))
"""


@pytest.fixture(scope="module")
def outcomes() -> dict[str, float]:
    return interpreted(CHECK, CASES)


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_product(name: str, outcomes: dict[str, float]) -> None:
    assert outcomes[name] < 1e-6
