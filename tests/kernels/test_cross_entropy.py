"""Cross-entropy in chunks against the definition, in float64 and in bfloat16; and the kernel for a chunk, in Triton's interpreter.

tests/test_gpu.py has the compiled kernel in bfloat16.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from freetf_cli.kernels import cross_entropy, linear_cross_entropy
from freetf_cli.kernels.cross_entropy import _chunks
from tests.kernels.interpreter import each_case, outcomes_of

IGNORE = -100


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of at most three tokens of a vocabulary of 11."""
    for limit in ("MOST_LOGITS", "FEW_LOGITS"):
        monkeypatch.setattr(cross_entropy, limit, {"cpu": 33})


def numbers(dtype: torch.dtype = torch.float64, tokens: int = 10, ignored: tuple[int, ...] = (0, 4)) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, 6, generator=random, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(11, 6, generator=random, dtype=torch.float64).to(dtype).requires_grad_()
    targets = torch.randint(11, (tokens,), generator=random)
    targets[list(ignored)] = IGNORE
    return hidden, weight, targets


def literal(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Token by token, by the definition."""
    logits = hidden @ weight.T
    parts = [
        torch.log(torch.exp(row - row[target]).sum()) for row, target in zip(logits, targets.tolist(), strict=True) if target != IGNORE
    ]
    return torch.stack(parts).sum()


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_values_and_gradients_are_those_of_the_definition(small: None, scale: float) -> None:
    hidden, weight, targets = numbers()
    cost = linear_cross_entropy(hidden, weight, targets, IGNORE)
    wanted = literal(hidden, weight, targets)
    torch.testing.assert_close(cost, wanted, rtol=1e-12, atol=0)
    ours = torch.autograd.grad(scale * cost, (hidden, weight))
    theirs = torch.autograd.grad(scale * wanted, (hidden, weight))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_ignored_targets_have_no_cost_and_no_gradient(small: None) -> None:
    hidden, weight, targets = numbers(ignored=(0, 3, 4, 5))
    dh, _ = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets, IGNORE), (hidden, weight))
    assert (dh.abs().sum(-1) == 0).tolist() == [number in (0, 3, 4, 5) for number in range(10)]
    none = torch.full_like(targets, IGNORE)
    assert float(linear_cross_entropy(hidden, weight, none, IGNORE).detach()) == 0.0


def test_products_are_in_the_dtype_of_autocast(small: None) -> None:
    hidden, weight, targets = numbers(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cost = linear_cross_entropy(hidden, weight, targets, IGNORE)
        wanted = F.cross_entropy(F.linear(hidden, weight).float(), targets, ignore_index=IGNORE, reduction="sum")
    assert cost.dtype == torch.float32
    torch.testing.assert_close(cost, wanted, rtol=1e-6, atol=0)
    for one, other in zip(*(torch.autograd.grad(each, (hidden, weight)) for each in (cost, wanted)), strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 0.01 * other.norm()


def test_no_more_logits_at_once_than_allowed(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    plain = Tensor.__matmul__

    def product(left: Tensor, right: Tensor) -> Tensor:
        made = plain(left, right)
        seen.append(made.numel() if made.shape[-1] == 11 else 0)
        return made

    monkeypatch.setattr(Tensor, "__matmul__", product)
    linear_cross_entropy(*numbers(), IGNORE)
    assert 0 < max(seen) <= 33


def test_chunks_are_as_small_without_gradients(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    plain = F.linear
    monkeypatch.setattr(F, "linear", lambda *words: (sizes.append(len(words[0])), plain(*words))[1])
    hidden, weight, targets = numbers()
    with torch.no_grad():
        cost = linear_cross_entropy(hidden, weight, targets, IGNORE)
    torch.testing.assert_close(cost, literal(hidden, weight, targets), rtol=1e-12, atol=0)
    assert len(sizes) == 4 and max(sizes) <= 3


@pytest.mark.parametrize(("tokens", "count"), [(10, 4), (3, 1), (1, 1), (0, 1), (100, 34)])
def test_chunks_cover_all_tokens_once(small: None, tokens: int, count: int) -> None:
    hidden, targets = torch.randn(tokens, 6), torch.arange(tokens)
    parts = list(_chunks(hidden, torch.randn(11, 6), targets))
    assert torch.equal(torch.cat([h for h, _ in parts]), hidden) and torch.equal(torch.cat([t for _, t in parts]), targets)
    assert len(parts) == count
    assert max(len(h) for h, _ in parts) <= 3


def test_it_compiles_without_a_graph_break(small: None) -> None:
    arguments: Any = numbers(torch.float32)
    compiled = torch.compile(linear_cross_entropy, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*arguments, IGNORE), linear_cross_entropy(*arguments, IGNORE))
    ours = torch.autograd.grad(compiled(*arguments, IGNORE), arguments[:2])
    theirs = torch.autograd.grad(linear_cross_entropy(*arguments, IGNORE), arguments[:2])
    torch.testing.assert_close(ours, theirs)


# name: rows, vocabulary, spread of the logits.
CASES = {
    "one block": (3, 29, 1.0),
    "whole blocks": (2, 16_384, 1.0),
    "a block and a bit": (2, 8193, 30.0),
    "far apart": (4, 100, 300.0),
    "one word": (2, 1, 1.0),
}


def compared(rows: int, vocabulary: int, spread: float) -> dict[str, float]:
    """Errors of the kernel against the definition; the first target is ignored."""
    from freetf_cli.kernels.cross_entropy_triton import cross_entropy_in_place

    torch.manual_seed(rows)
    logits = (torch.randn(rows, vocabulary, dtype=torch.float64) * spread).float()
    targets = torch.randint(vocabulary, (rows,))
    targets[0] = IGNORE
    exact, kept = logits.double(), torch.arange(1, rows)
    shares = torch.exp(exact - exact.amax(-1, keepdim=True))
    gradient = shares / shares.sum(-1, keepdim=True)
    gradient[kept, targets[1:]] -= 1
    gradient[0] = 0
    want = torch.zeros(rows, dtype=torch.float64)
    want[1:] = -(exact - exact.logsumexp(-1, keepdim=True))[kept, targets[1:]]
    broken = logits.clone()
    broken[1, 0] = float("nan")
    torch.library.opcheck(cross_entropy_in_place, (logits.clone(), targets, IGNORE), test_utils=("test_schema", "test_faketensor"))
    cost, nan = (cross_entropy_in_place(each, targets, IGNORE) for each in (logits, broken))
    return {
        "cost": float((cost - want).abs().max() / want.abs().max().clamp(min=1e-9)) if vocabulary > 1 else float(cost.abs().max()),
        "gradient": float((logits - gradient).abs().max()),
        "nan": bool(nan[1].isnan() and broken[1].isnan().all() and nan[0] == 0),
    }


outcomes = outcomes_of(compared, CASES)


@each_case(CASES)
def test_cost_and_gradient_of_the_kernel_are_those_of_the_definition(name: str, outcomes: dict[str, dict[str, float]]) -> None:
    assert outcomes[name]["cost"] < 1e-6
    assert outcomes[name]["gradient"] < 1e-6


@each_case(CASES)
def test_a_nan_logit_makes_cost_and_gradient_of_its_row_nan(name: str, outcomes: dict[str, dict[str, float]]) -> None:
    assert outcomes[name]["nan"]
