"""The mapper's gradient in chunks, and its kernels, against the formula in float64.

The interpreter has no products of bfloat16 or 8-bit numbers; tests/test_gpu.py tests the compiled kernels with them.
"""

import pytest
import torch
from torch import Tensor

from freetf_cli.kernels import logit_gradient
from tests.kernels.interpreter import each_case, outcomes_of

# name: tokens, bits, width, tiles. None: chosen by shape.
CASES = {
    "resident, a tile and a bit": (130, 8, 32, None),
    "resident, tokens of one tile": (70, 10, 64, (64, 7, 64, 4, 2, True, 1)),
    "the codes in four parts": (70, 10, 64, (32, 6, 64, 4, 2, True, 4)),
    "width in parts, the last one short": (70, 12, 40, (32, 7, 16, 4, 2, False, 2)),
    "width in parts, all bits low": (33, 8, 96, None),
    "more than 16 bits": (5, 17, 16, (16, 10, 16, 4, 2, True)),
    "one token": (1, 9, 24, None),
}


def drawn(tokens: int, bits: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(bits)
    dr, logits, table = (torch.randn(*shape, dtype=torch.float64) for shape in ((tokens, width), (tokens, bits), (2**bits, width)))
    return dr, 2 * logits, table


def formula(dr: Tensor, logits: Tensor, table: Tensor) -> Tensor:
    """dL_h = Σ_d G_d (U_h(d) − p_h) s_d, [tokens, bits], with all of G and s in memory."""
    p, codes = torch.sigmoid(logits), torch.arange(len(table))[:, None]
    bits = (codes >> torch.arange(logits.shape[1]) & 1).double()
    g = torch.exp(torch.log(p) @ bits.T + torch.log(1 - p) @ (1 - bits).T)
    gs = g * (dr @ table.T)
    return gs @ bits - gs.sum(1, keepdim=True) * p


def compared(tokens: int, bits: int, width: int, tiles: list[int] | None) -> dict[str, float]:
    """Errors of the kernel for each way in which it gets s, and whether a NaN stays with its token."""
    from freetf_cli.kernels.mapper_triton import IN_8_BITS, Tiles, choose_tiles, covariance

    dr, logits, table = drawn(tokens, bits, width)
    want, p = formula(dr, logits, table), torch.sigmoid(logits).float()
    centred, scale = table - table.mean(0), torch.rand(2**bits) + 0.5

    def fused(dr: Tensor) -> Tensor:
        return covariance(dr.float(), centred.float(), p, Tiles(*tiles) if tiles else choose_tiles(width))

    def error(got: Tensor) -> float:
        return float((got - want).abs().max() / want.abs().max())

    broken = fused(torch.where(torch.arange(tokens)[:, None] == tokens - 1, float("nan"), dr))
    return {
        "relative": error(fused(dr)),
        "size": float(want.norm()),
        "given": error(covariance((dr @ table.T).float(), None, p)),
        "scaled": error(covariance(dr.float(), (centred / scale[:, None]).float(), p, IN_8_BITS._replace(columns=16), scale)),
        "nan": bool(broken[-1].isnan().all() and broken[:-1].isfinite().all()),
    }


outcomes = outcomes_of(compared, CASES)


@each_case(CASES)
def test_the_fused_kernel_is_the_formula(name: str, outcomes: dict[str, dict[str, float]]) -> None:
    assert outcomes[name]["size"] > 1e-2
    assert outcomes[name]["relative"] < 1e-5


@each_case(CASES)
def test_it_is_the_formula_with_s_from_memory_and_with_a_scale_for_each_code(name: str, outcomes: dict[str, dict[str, float]]) -> None:
    assert outcomes[name]["given"] < 1e-5
    assert outcomes[name]["scaled"] < 1e-5


@each_case(CASES)
def test_a_nan_stays_with_its_token(name: str, outcomes: dict[str, dict[str, float]]) -> None:
    assert outcomes[name]["nan"]


@pytest.mark.parametrize("bits", [1, 3, 8, 16])
def test_in_chunks_it_is_the_formula(bits: int) -> None:
    dr, logits, table = drawn(3, bits, 4)
    want = formula(dr, logits, table)
    assert (logit_gradient(dr, logits, table) - want).abs().max() <= 1e-12 * max(1.0, float(want.abs().max()))


def test_operator_is_well_formed_for_the_compiler() -> None:
    torch.library.opcheck(logit_gradient, (torch.randn(6, 4), torch.randn(6, 3), torch.randn(8, 4)))
