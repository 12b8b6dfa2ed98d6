"""The kernels of the convolution of attention weights against their reference in float64; tests/test_gpu.py has them in bfloat16."""

import pytest
import torch

from freetf_cli.kernels import convolve_weights
from freetf_cli.kernels.convolution import reference_convolution
from tests.kernels.interpreter import each_case, outcomes_of, relative

# name: sequences, heads, positions, rows and columns of the kernel.
CASES = {
    "the paper's": (2, 2, 70, 6, 11),
    "one cell": (1, 2, 5, 1, 1),
    "even width": (1, 3, 33, 2, 8),
    "one row": (2, 1, 20, 1, 9),
    "one column": (1, 2, 65, 4, 1),
    "the widest": (1, 2, 66, 2, 33),
    "wider than the map": (1, 2, 3, 4, 11),
}


def compared(batch: int, heads: int, length: int, rows: int, width: int) -> list[float]:
    """Errors of the output and of the gradients of x and the kernel."""
    from freetf_cli.kernels.convolution_triton import causal_convolution

    torch.manual_seed(rows + width)
    x, dy = (torch.randn(batch, heads, length, length) for _ in range(2))
    kernel = torch.randn(heads, 1, rows, width)
    given, wide = ([each.clone().to(kind).requires_grad_() for each in (x, kernel)] for kind in (torch.float32, torch.float64))
    got = convolve_weights(given[0].tril(), given[1], rows - 1, causal=True)
    want = reference_convolution(wide[0].tril(), wide[1], rows - 1).tril()
    ours, theirs = torch.autograd.grad(got, given, dy), torch.autograd.grad(want, wide, dy.double())
    operands = x.flatten(0, 1).requires_grad_(), kernel[:, 0].clone().requires_grad_()
    torch.library.opcheck(causal_convolution, operands, test_utils=("test_schema", "test_faketensor", "test_autograd_registration"))
    return [relative(a, b) for a, b in zip((got.detach(), *ours), (want.detach(), *theirs), strict=True)]


errors = outcomes_of(compared, CASES)


@each_case(CASES)
def test_convolution_and_gradients_equal_the_reference(name: str, errors: dict[str, list[float]]) -> None:
    assert max(errors[name]) < 1e-6


def test_the_reference_is_the_equation() -> None:
    torch.manual_seed(0)
    x, kernel = torch.randn(1, 2, 6, 5, dtype=torch.float64), torch.randn(2, 2, 3, 4, dtype=torch.float64)
    got = reference_convolution(x, kernel, missing=1)  # one row above the five queries is given, one is not
    assert got.shape == (1, 2, 5, 5)
    for head in range(2):
        for i in range(5):
            for j in range(5):
                sums = [
                    float(kernel[head, c, a, b] * x[0, c, i - 1 + a, j - 1 + b])
                    for c in range(2)
                    for a in range(3)
                    for b in range(4)
                    if i - 1 + a >= 0 and 0 <= j - 1 + b < 5
                ]
                assert float(got[0, head, i, j]) == pytest.approx(sum(sums), rel=1e-12)
