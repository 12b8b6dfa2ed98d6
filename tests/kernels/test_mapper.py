"""The fused kernel against the mapper's reference in float64, run by Triton's interpreter. That has no product of bfloat16 or 8-bit
numbers; tests/test_gpu.py has the compiled kernel with them."""

import pytest

from tests.kernels.interpreter import MARKS, interpreted

pytestmark = MARKS

# name: tokens, bits, width, tiles, splits. None: as chosen by shape.
CASES = {
    "resident, a tile and a bit": (130, 8, 32, None, None),
    "resident, tokens of one tile": (70, 10, 64, (64, 7, 64, 4, 2, True), 1),
    "the codes in four parts": (70, 10, 64, (32, 6, 64, 4, 2, True), 4),
    "width in parts, the last one short": (70, 12, 40, (32, 7, 16, 4, 2, False), 2),
    "width in parts, all bits low": (33, 8, 96, None, None),
    "more than 16 bits": (5, 17, 16, (16, 10, 16, 4, 2, True), None),
    "one token": (1, 9, 24, None, None),
}
CHECK = """
import json, sys, torch
from freetf_cli.latent.binary import logit_gradient
from freetf_cli.kernels.mapper import IN_8_BITS, Tiles, _launched, covariance, fused_logit_gradient

def errors(tokens, bits, width, tiles, splits):
    torch.manual_seed(bits)
    dr, logits, table = (torch.randn(*shape, dtype=torch.float64) for shape in ((tokens, width), (tokens, bits), (2**bits, width)))
    logits *= 2
    want = logit_gradient(dr, logits, table)
    def fused(dr):
        centred = (table - table.mean(0)).float()
        return fused_logit_gradient(dr.float(), torch.sigmoid(logits).float(), centred, tiles and Tiles(*tiles), splits)
    p = torch.sigmoid(logits).float()
    s = (dr @ table.T).float()
    scale = torch.rand(2**bits) + 0.5
    scaled = _launched(dr.float(), ((table - table.mean(0)) / scale[:, None]).float(), p, IN_8_BITS._replace(columns=16), None, scale)
    broken = fused(torch.where(torch.arange(tokens)[:, None] == tokens - 1, float("nan"), dr))
    return {
        "relative": float((fused(dr) - want).abs().max() / want.abs().max()),
        "size": float(want.norm()),
        "given": float((covariance(s, p) - want).abs().max() / want.abs().max()),
        "scaled": float((scaled - want).abs().max() / want.abs().max()),
        "nan": bool(broken[-1].isnan().all() and broken[:-1].isfinite().all()),
    }

print(json.dumps({name: errors(*case) for name, case in json.loads(sys.argv[1]).items()}))
"""


@pytest.fixture(scope="module")
def outcomes() -> dict[str, dict[str, float]]:
    return interpreted(CHECK, CASES)


@pytest.mark.parametrize("name", CASES)
def test_fused_kernel_equals_the_reference(name: str, outcomes: dict[str, dict[str, float]]) -> None:
    assert outcomes[name]["size"] > 1e-2
    assert outcomes[name]["relative"] < 1e-5


@pytest.mark.parametrize("name", CASES)
def test_from_s_in_memory_and_with_a_scale_for_every_code_it_is_the_same(name: str, outcomes: dict[str, dict[str, float]]) -> None:
    assert outcomes[name]["given"] < 1e-5
    assert outcomes[name]["scaled"] < 1e-5


@pytest.mark.parametrize("name", CASES)
def test_a_token_that_is_not_a_number_stays_one(name: str, outcomes: dict[str, dict[str, float]]) -> None:
    assert outcomes[name]["nan"]
