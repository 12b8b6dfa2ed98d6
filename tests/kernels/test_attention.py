"""The kernel for short sequences against its reference in float64; tests/test_gpu.py has the compiled kernel in bfloat16."""

from collections.abc import Callable

import torch
from torch import Tensor

from freetf_cli.kernels import rotary_tables, short_attention
from freetf_cli.kernels.attention import reference_short_attention
from tests.kernels.interpreter import each_case, outcomes_of, relative

# name: sequences, positions, heads, head width, causal, one query for all positions.
CASES = {
    "letters": (2, 65, 2, 32, True, False),
    "the encoder": (2, 65, 2, 32, False, True),
    "one position beside the tile, not causal": (2, 65, 2, 32, False, False),
    "the miniature": (2, 17, 1, 32, True, False),
    "not causal": (2, 40, 1, 32, False, False),
    "wide heads": (1, 16, 1, 64, True, False),
    "the longest": (1, 128, 1, 32, False, False),
    "two positions": (2, 2, 2, 32, True, False),
}


def test_the_reference_is_the_formula() -> None:
    torch.manual_seed(0)
    packed = torch.randn(2, 9, 3 * 8, dtype=torch.float64)
    cos, sin = (each.double() for each in rotary_tables(torch.arange(9), 4, 100.0))

    def head(part: Tensor, number: int, turned: bool) -> Tensor:
        a, b = part[..., 4 * number : 4 * number + 4].chunk(2, -1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin) if turned else (a, b), -1)

    for causal in (True, False):
        heads = []
        for number in range(2):
            q, k, v = (head(part, number, turned) for part, turned in zip(packed.chunk(3, -1), (True, True, False), strict=True))
            scores = q @ k.mT / 2
            if causal:
                scores = scores.masked_fill(torch.ones(9, 9).triu(1).bool(), float("-inf"))
            heads.append(scores.softmax(-1) @ v)
        got = reference_short_attention(packed, None, (cos, sin), 2, causal)
        torch.testing.assert_close(got, torch.cat(heads, -1), rtol=1e-12, atol=1e-12)


def compared(batch: int, length: int, heads: int, width: int, causal: bool, one: bool) -> list[float]:
    """Errors of the output, and of the gradients of packed and q."""
    from freetf_cli.kernels.attention_triton import attend

    torch.manual_seed(length)
    full = heads * width
    given = [torch.randn(batch, length, (2 if one else 3) * full), *([torch.randn(1, 1, full)] if one else [])]
    dy, (cos, sin) = torch.randn(batch, length, full), rotary_tables(torch.arange(length), width, 100.0)

    def outcome(function: Callable[..., Tensor], kind: torch.dtype) -> list[Tensor]:
        inputs = [each.to(kind).requires_grad_() for each in given]
        queries = inputs[1].expand(batch, length, -1) if one else None
        y = function(inputs[0], queries, (cos.to(kind), sin.to(kind)), heads, causal)
        return [y.detach(), *torch.autograd.grad(y, inputs, dy.to(kind))]

    operands = given[0].requires_grad_(), given[1].expand(batch, length, -1) if one else None, cos, sin, heads, causal
    torch.library.opcheck(attend, operands, test_utils=("test_schema", "test_faketensor", "test_autograd_registration"))
    pairs = zip(outcome(short_attention, torch.float32), outcome(reference_short_attention, torch.float64), strict=True)
    return [relative(ours, theirs) for ours, theirs in pairs]


errors = outcomes_of(compared, CASES)


@each_case(CASES)
def test_output_and_gradients_equal_the_reference(name: str, errors: dict[str, list[float]]) -> None:
    assert max(errors[name]) < 1e-6
