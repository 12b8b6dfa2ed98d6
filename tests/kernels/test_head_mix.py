"""The kernels of the mix over heads against their reference in float64; tests/test_gpu.py has them in bfloat16."""

import torch

from freetf_cli.kernels.head_mix import reference_mix
from tests.kernels.interpreter import each_case, outcomes_of, relative

# name: dtype, sequences, groups, heads of a group, positions.
CASES = {
    "two heads": ("float32", 2, 2, 2, 70),
    "three heads": ("float32", 2, 1, 3, 37),
    "four heads": ("float32", 2, 2, 4, 65),
    "sixteen": ("float32", 2, 1, 16, 70),
    "seventeen": ("float32", 1, 2, 17, 20),
    "one position": ("float32", 2, 1, 2, 1),
    "two, float16": ("float16", 2, 2, 2, 530),
    "sixteen, float16": ("float16", 2, 1, 16, 33),
}


def compared(kind: str, batch: int, groups: int, heads: int, length: int) -> list[float]:
    """The largest number at a key after its query, and the errors of the output and of the gradients of x and the mix."""
    from freetf_cli.kernels import head_mix_triton
    from freetf_cli.kernels.head_mix_triton import causal_mix

    head_mix_triton.PROGRAMS = 6  # each sums several strips of queries
    torch.manual_seed(heads + length)
    x, dy = (torch.randn(batch, groups * heads, length, length).to(getattr(torch, kind)) for _ in range(2))
    w = torch.randn(groups, heads, heads).to(x.dtype)
    wide = [each.double().requires_grad_() for each in (x, w)]
    want = reference_mix(wide[0].tril(), wide[1]).tril()
    given = x.clone().requires_grad_(), w.float().requires_grad_()
    got = causal_mix(*given)
    outcomes = got.detach(), *torch.autograd.grad(got, given, dy)
    wanted = want.detach(), *torch.autograd.grad(want, wide, dy.double())
    after = max(float(each.triu(1).abs().max()) for each in outcomes[:2])
    torch.library.opcheck(causal_mix, given, test_utils=("test_schema", "test_faketensor", "test_autograd_registration"))
    return [after, *(relative(a, b) for a, b in zip(outcomes, wanted, strict=True))]


errors = outcomes_of(compared, CASES)


@each_case(CASES)
def test_mix_and_gradients_equal_the_reference(name: str, errors: dict[str, list[float]]) -> None:
    """The kernels write zeros at keys after the query. float16 rounds a number by 2⁻¹¹ of itself at most."""
    after, *others = errors[name]
    assert after == 0
    assert max(others) < (2**-11 if CASES[name][0] == "float16" else 1e-6)


def test_the_reference_is_a_sum_over_the_heads_of_a_group() -> None:
    x, w = torch.randn(2, 6, 4, 5, dtype=torch.float64), torch.randn(2, 3, 3, dtype=torch.float64)
    want = torch.einsum("goh,bghts->bgots", w, x.view(2, 2, 3, 4, 5)).flatten(1, 2)
    torch.testing.assert_close(reference_mix(x, w), want, rtol=1e-12, atol=1e-12)
