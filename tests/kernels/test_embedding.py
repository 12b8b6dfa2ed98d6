"""The gradient of a small embedding table."""

import torch

from freetf_cli.kernels.embedding import embed_one_hot


def test_gradient_of_a_small_embedding_table_is_the_sum_over_its_tokens() -> None:
    torch.manual_seed(0)
    table, tokens = torch.randn(5, 3, dtype=torch.float64, requires_grad=True), torch.randint(0, 4, (2, 7))
    dx = torch.randn(2, 7, 3, dtype=torch.float64)
    rows = embed_one_hot(table, tokens)
    rows.backward(dx)
    want = [sum((dx[b, t] for b in range(2) for t in range(7) if tokens[b, t] == row), torch.zeros(3).double()) for row in range(5)]
    assert torch.equal(rows, table[tokens])
    assert table.grad is not None and torch.allclose(table.grad, torch.stack(want), rtol=1e-12)
