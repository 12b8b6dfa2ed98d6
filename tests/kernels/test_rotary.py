"""The rotary embedding against complex numbers, and the kernel that packs gradients against autograd."""

import math

import pytest
import torch

from freetf_cli.kernels import rotary, rotary_tables, rotate, rotate_and_split
from freetf_cli.kernels.rotary import reference_split
from tests.kernels.interpreter import each_case, outcomes_of, relative


def test_rotary_is_a_complex_rotation() -> None:
    """Pair (e, e + E/2) as a complex number, times exp(i t base^(-2e/E))."""
    torch.manual_seed(0)
    x = torch.randn(1, 7, 1, 8).double()
    cos, sin = rotary_tables(torch.arange(7), 8, 100.0)
    got = rotate(x, (cos.double(), sin.double()))
    for t in range(7):
        for e in range(4):
            turned = complex(x[0, t, 0, e], x[0, t, 0, e + 4]) * complex(
                math.cos(t * 100.0 ** (-2 * e / 8)), math.sin(t * 100.0 ** (-2 * e / 8))
            )
            assert abs(complex(got[0, t, 0, e], got[0, t, 0, e + 4]) - turned) < 1e-6


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_cpu_rotates_by_whole_rows_to_the_same_bits(dtype: torch.dtype, padded: bool) -> None:
    """Eager code on a CPU against the form that is compiled, its gradient too."""
    positions = torch.arange(9).expand(3, 9) - torch.tensor([[0], [2], [5]]) if padded else torch.arange(9)
    tables = rotary_tables(positions, 8, 100.0)
    torch.manual_seed(0)
    x, weights = torch.randn(2, 3, 9, 5, 8).to(dtype)
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    whole, halves = rotate(one, tables), rotary.rotate_halves(other, tables)
    assert torch.equal(whole, halves) and not torch.equal(whole, x)
    (whole * weights).sum().backward()
    (halves * weights).sum().backward()
    assert one.grad is not None and other.grad is not None
    assert torch.allclose(one.grad, other.grad, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)


def test_scores_depend_only_on_the_distance() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 8)
    tables = rotary_tables(torch.arange(20), 8, 10_000.0)
    qs, ks = (rotate(x.expand(1, 20, 1, 8), tables)[0, :, 0] for x in (q, k))
    assert torch.allclose(qs[7] @ ks[3], qs[19] @ ks[15], atol=1e-5)


# name: sequences, positions, heads of each part, rotated parts, head width.
CASES = {
    "queries, keys, values": (2, 70, (4, 2, 2), 2, 32),
    "keys and values": (1, 5, (2, 2), 1, 64),
    "queries alone": (3, 64, (3,), 1, 32),
    "one position": (2, 1, (1, 1, 1), 2, 32),
}


def error(sequences: int, length: int, heads: list[int], rotated: int, width: int) -> float:
    """Error of the packed gradient, from gradients in the layout that attention returns."""
    from freetf_cli.kernels.rotary_triton import pack_gradients

    torch.manual_seed(length)
    tables = rotary_tables(torch.arange(3, 3 + length), width, 100.0)
    packed = torch.randn(sequences, length, sum(heads) * width, requires_grad=True)
    wide = packed.detach().double().requires_grad_()
    given = [torch.randn(sequences, h, length, width).transpose(1, 2) for h in heads]
    ours = rotate_and_split(packed, tables, tuple(heads), rotated)
    theirs = reference_split(wide, (tables[0].double(), tables[1].double()), tuple(heads), rotated)
    (want,) = torch.autograd.grad(theirs, wide, [each.double() for each in given])
    (got,) = torch.autograd.grad(ours, packed, given)
    torch.library.opcheck(pack_gradients, (given, *tables, rotated), test_utils=("test_schema", "test_faketensor"))
    return max(relative(got, want), *(relative(a, b) for a, b in zip(ours, theirs, strict=True)))


errors = outcomes_of(error, CASES)


@each_case(CASES)
def test_the_packed_gradient_equals_that_of_autograd(name: str, errors: dict[str, float]) -> None:
    assert errors[name] < 1e-6
