"""A low-order table against the full table projected onto that order, in float64 on random inputs."""

from itertools import combinations
from typing import Literal

import pytest
import torch

from freetf_cli.latent.binary import PostSampler, sample_codes
from freetf_cli.latent.low_order import LowOrderTable, count_sets, full_table
from freetf_cli.model.weights import Draws

BITS, WIDTH = 6, 5


def projected(table_CD: torch.Tensor, order: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Walsh coefficients w_S = mean over codes of χ_S(z) W_z, for sets of 1 to `order` bits, and the table Σ_S w_S χ_S, written out."""
    weights, table = [], torch.zeros_like(table_CD)
    for size in range(1, order + 1):
        for members in sorted(combinations(range(BITS), size), key=lambda members: members[::-1]):
            signs = torch.tensor([float((-1) ** sum(1 - (code >> h & 1) for h in members)) for code in range(2**BITS)]).double()
            weights.append((signs[:, None] * table_CD).mean(0))
            table += signs[:, None] * weights[-1]
    return torch.stack(weights), table


@pytest.mark.parametrize("gradient", ["paper", "heun"])
@pytest.mark.parametrize("order", [1, 2, 3, BITS])
def test_it_equals_the_full_table_projected_onto_the_order(order: int, gradient: Literal["paper", "heun"]) -> None:
    generator = torch.Generator().manual_seed(order)
    any_table = torch.randn(2**BITS, WIDTH, generator=generator).double()
    weights, table = projected(any_table, order)
    low, full = LowOrderTable(BITS, WIDTH, order, gradient).double(), PostSampler(BITS, WIDTH, gradient).double()
    with torch.no_grad():
        low.weight.copy_(weights)
        full.weight.copy_(table)
    assert (full_table(low) - table).abs().max() <= 1e-12
    if order == BITS:
        assert (table - (any_table - any_table.mean(0))).abs().max() <= 1e-12  # only the common row is missing

    logits = (2 * torch.randn(3, 4, BITS, generator=generator).double()).requires_grad_()
    codes = sample_codes(logits.detach(), torch.rand(3, 4, BITS, generator=generator).double())
    mix = torch.randn(3, 4, WIDTH, generator=generator).double()
    (want_logits, want_table) = torch.autograd.grad((full(codes, logits).sin() * mix).sum(), [logits, full.weight])
    (got_logits, got_weights) = torch.autograd.grad((low(codes, logits).sin() * mix).sum(), [logits, low.weight])
    assert want_logits.abs().max() > 1e-3
    assert (got_logits - want_logits).abs().max() <= 1e-12
    chain, _ = projected(want_table, order)  # dw_S = Σ_z χ_S(z) dW_z
    assert (got_weights - chain * 2**BITS).abs().max() <= 1e-12


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_logits_gradient_is_that_of_products_of_tanh(order: int) -> None:
    """Of Σ_S w_S · dr Π_{h ∈ S} tanh(l_h / 2), each set and product written out, whatever the code drawn is."""
    generator = torch.Generator().manual_seed(order)
    low = LowOrderTable(BITS, WIDTH, order).double()
    torch.nn.init.normal_(low.weight, generator=generator)
    logits = (2 * torch.randn(1, 1, BITS, generator=generator).double()).requires_grad_()
    dr = torch.randn(WIDTH, generator=generator).double()
    sets = [sorted(combinations(range(BITS), size), key=lambda members: members[::-1]) for size in range(1, order + 1)]
    mean = sum(
        low.weight[row].detach() @ dr * torch.stack([torch.tanh(logits[0, 0, h] / 2) for h in members]).prod()
        for row, members in enumerate(members for size in sets for members in size)
    )
    (want,) = torch.autograd.grad(mean, logits)
    for code in (0, 21, 2**BITS - 1):
        (got,) = torch.autograd.grad(low(torch.tensor([[code]]), logits) @ dr, logits)
        assert (got - want).abs().max() <= 1e-12 < want.abs().max()


def test_without_logits_no_gradient_reaches_them_and_rows_are_the_same() -> None:
    low = LowOrderTable(BITS, WIDTH, 2)
    torch.nn.init.normal_(low.weight)
    codes = torch.arange(2**BITS)[None]
    assert torch.equal(low(codes), low(codes, torch.randn(1, 2**BITS, BITS)))


@pytest.mark.parametrize(("order", "rows"), [(1, 16), (2, 136), (3, 696)])
def test_the_number_of_sets_of_16_bits(order: int, rows: int) -> None:
    assert count_sets(16, order) == rows
    assert LowOrderTable(16, 8, order).weight.shape == (rows, 8)


@pytest.mark.parametrize("order", [1, 3])
def test_it_starts_as_the_full_table_does(order: int) -> None:
    low, full = LowOrderTable(BITS, WIDTH, order), PostSampler(BITS, WIDTH)
    low.initialise("bits", 1.5, Draws(0).within("post_sampler"))
    full.initialise("bits", 1.5, Draws(0).within("post_sampler"))
    assert (full_table(low) - full.weight).abs().max() < 1e-5


def test_independent_vectors_give_rows_of_the_deviation() -> None:
    low = LowOrderTable(8, 400, 2)
    low.initialise("independent", 1.5, Draws(0))
    assert float(full_table(low).detach().std()) == pytest.approx(1.5, rel=0.05)
