"""The kernel of cross-entropy against the definition, in Triton's interpreter. tests/test_gpu.py has the compiled kernel in bfloat16."""

import pytest

from tests.kernels.interpreter import MARKS, interpreted

pytestmark = MARKS

# name: rows, vocabulary, spread of the logits.
CASES = {
    "one block": (3, 29, 1.0),
    "whole blocks": (2, 16_384, 1.0),
    "a block and a bit": (2, 8193, 30.0),
    "far apart": (4, 100, 300.0),
    "one word": (2, 1, 1.0),
}
CHECK = """
import json, sys, torch
from freetf_cli.kernels.cross_entropy import cross_entropy_in_place

def errors(rows, vocabulary, spread):
    torch.manual_seed(rows)
    logits = (torch.randn(rows, vocabulary, dtype=torch.float64) * spread).float()
    targets = torch.randint(vocabulary, (rows,))
    targets[0] = -100
    exact = logits.double()
    shares = torch.exp(exact - exact.amax(-1, keepdim=True))
    shares = shares / shares.sum(-1, keepdim=True)
    kept = torch.arange(1, rows)
    want = torch.zeros(rows, dtype=torch.float64)
    want[1:] = -(exact - exact.logsumexp(-1, keepdim=True))[kept, targets[1:]]
    gradient = shares.clone()
    gradient[kept, targets[1:]] -= 1
    gradient[0] = 0
    broken = logits.clone()
    broken[1, 0] = float("nan")
    cost = cross_entropy_in_place(logits, targets, -100)
    nan = cross_entropy_in_place(broken, targets, -100)
    return {
        "cost": float((cost - want).abs().max() / want.abs().max().clamp(min=1e-9)) if vocabulary > 1 else float(cost.abs().max()),
        "gradient": float((logits - gradient).abs().max()),
        "nan": bool(nan[1].isnan() and broken[1].isnan().all() and nan[0] == 0),
    }

print(json.dumps({name: errors(*case) for name, case in json.loads(sys.argv[1]).items()}))
"""


@pytest.fixture(scope="module")
def outcomes() -> dict[str, dict[str, float]]:
    return interpreted(CHECK, CASES)


@pytest.mark.parametrize("name", CASES)
def test_cost_and_gradient_are_the_definition(name: str, outcomes: dict[str, dict[str, float]]) -> None:
    assert outcomes[name]["cost"] < 1e-6
    assert outcomes[name]["gradient"] < 1e-6


@pytest.mark.parametrize("name", CASES)
def test_a_logit_that_is_not_a_number_is_not_hidden(name: str, outcomes: dict[str, dict[str, float]]) -> None:
    assert outcomes[name]["nan"]
