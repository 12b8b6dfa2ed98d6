"""The binary mapper, KL and free bits against the paper's literal formulas, in float64 on random inputs."""

import itertools
import math

import pytest
import torch

from freetf_cli.model import latent
from freetf_cli.model.latent import (
    PostSampler,
    aggregate_mismatch,
    code_bits,
    free_bits_penalty,
    kl_per_token,
    logit_gradient,
    sample_codes,
)


def literal_mapper(logits: torch.Tensor, codes: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """(Y + G − detach(G)) W with every one of the 2^H probabilities of eq. 8 written out."""
    bits = logits.shape[-1]
    p = torch.sigmoid(logits)
    g = torch.stack(
        [torch.stack([p[..., h] if d >> h & 1 else 1 - p[..., h] for h in range(bits)], dim=-1).prod(-1) for d in range(2**bits)],
        dim=-1,
    )
    y = torch.nn.functional.one_hot(codes, 2**bits).to(g)
    return (y + g - g.detach()) @ table


@pytest.mark.parametrize("bits", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("chunk", [1, 5, 10_000])
def test_mapper_equals_the_literal_straight_through(bits: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(latent._CHUNK_ELEMENTS, "cpu", chunk * 2**bits)
    torch.manual_seed(bits)
    tokens, width = (3, 4), 6
    sampler = PostSampler(bits, width).double()
    torch.nn.init.normal_(sampler.weight)
    logits = (torch.randn(*tokens, bits, dtype=torch.float64) * 2).requires_grad_()
    codes = sample_codes(logits.detach(), torch.rand(*tokens, bits, dtype=torch.float64))
    weight = torch.randn(*tokens, width, dtype=torch.float64)

    want = literal_mapper(logits, codes, sampler.weight)
    want_grads = torch.autograd.grad((want.sin() * weight).sum(), [logits, sampler.weight])
    got = sampler(codes, logits)
    got_grads = torch.autograd.grad((got.sin() * weight).sum(), [logits, sampler.weight])

    assert (got - want).abs().max() <= 1e-12
    for ours, theirs in zip(got_grads, want_grads, strict=True):
        assert theirs.abs().max() > 1e-3
        assert (ours - theirs).abs().max() <= 1e-12


def test_forward_is_exactly_the_table_row() -> None:
    sampler = PostSampler(4, 5)
    torch.nn.init.normal_(sampler.weight)
    codes = torch.tensor([[3, 15, 0]])
    assert torch.equal(sampler(codes, torch.randn(1, 3, 4)), sampler.weight[codes])


def test_sixteen_bits_agree_with_direct_covariance() -> None:
    torch.manual_seed(0)
    dr, logits, table = torch.randn(3, 4).double(), torch.randn(3, 16).double(), torch.randn(2**16, 4).double()
    p, u = torch.sigmoid(logits), code_bits(torch.arange(2**16), 16).double()
    g = torch.exp(torch.log(p) @ u.T + torch.log1p(-p) @ (1 - u).T)
    s = dr @ table.T
    want = torch.stack([(g * s * (u[:, h] - p[:, h : h + 1])).sum(1) for h in range(16)], dim=1)
    assert (logit_gradient(dr, logits, table) - want).abs().max() <= 1e-12


def test_operator_is_well_formed_for_the_compiler() -> None:
    torch.library.opcheck(logit_gradient, (torch.randn(6, 4), torch.randn(6, 3), torch.randn(8, 4)))


def test_codes_follow_the_bits() -> None:
    logits = torch.tensor([[[50.0, -50.0, 50.0]]])
    assert sample_codes(logits, torch.full((1, 1, 3), 0.5)).item() == 0b101
    assert code_bits(torch.tensor([0b101]), 3).tolist() == [[1, 0, 1]]


def test_bits_are_drawn_with_their_probabilities() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.tensor([-1.5, 0.0, 0.4]).expand(200_000, 1, 3)
    bits = code_bits(sample_codes(logits, torch.rand(200_000, 1, 3, generator=generator)), 3).double().mean((0, 1))
    assert (bits - torch.sigmoid(logits[0, 0]).double()).abs().max() < 4 * 0.5 / math.sqrt(200_000)


@pytest.mark.parametrize("bits", range(1, 11))
def test_kl_equals_the_sum_over_all_codes(bits: int) -> None:
    torch.manual_seed(bits)
    logits = torch.randn(2, 3, bits, dtype=torch.float64) * 3
    p = torch.sigmoid(logits)
    want = torch.zeros(2, 3, dtype=torch.float64)
    for code in itertools.product((0, 1), repeat=bits):
        q = torch.stack([p[..., h] if bit else 1 - p[..., h] for h, bit in enumerate(code)], -1).prod(-1)
        want += q * torch.log(q)
    want += bits * math.log(2)
    assert (kl_per_token(logits) - want).abs().max() <= 1e-12


def test_kl_of_certain_and_of_even_bits() -> None:
    assert kl_per_token(torch.zeros(1, 1, 16)).abs().item() < 1e-6
    assert kl_per_token(torch.full((1, 1, 16), 60.0)).item() == pytest.approx(16 * math.log(2), rel=1e-6)


def test_free_bits_are_per_token_and_not_on_the_mean() -> None:
    kl = torch.tensor([[0.0, 3.0, 1.0], [0.5, 0.5, 9.0]])
    counted = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    assert free_bits_penalty(kl, counted, 1.0, "token").item() == pytest.approx(2.0)
    assert free_bits_penalty(kl, counted, 1.0, "sequence").item() == pytest.approx(1.0)
    assert free_bits_penalty(kl, counted, 0.0, "token").item() == pytest.approx(5.0)


def test_a_slope_prices_what_is_below_the_threshold() -> None:
    kl = torch.tensor([[0.0, 3.0, 1.0], [0.5, 0.5, 9.0]])
    counted = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    assert free_bits_penalty(kl, counted, 1.0, "token", 0.1).item() == pytest.approx(2.0 + 0.1 * (0 + 1 + 1 + 0.5 + 0.5))
    assert free_bits_penalty(kl, counted, 1.0, "sequence", 0.1).item() == pytest.approx(1.0 + 0.1 * (3 + 1))
    assert free_bits_penalty(kl, counted, 1.0, "token", 1.0).item() == pytest.approx(5.0)


def test_mismatch_is_its_formula_written_out() -> None:
    """Over bits and pairs of bits, from two halves of the batch; a row left over and what is not counted say nothing."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 3, 2, generator=generator).double()
    counted = torch.tensor([[1.0, 1.0, 1.0]] * 4 + [[1.0, 1.0, 0.0]] * 3).double()
    signs = ((2 * torch.sigmoid(logits) - 1) * counted[..., None]).reshape(7, 6)
    halves, want = (signs[:3], signs[3:6]), 0.0
    for i in range(6):
        a, b = (half[:, i].mean() for half in halves)
        want += 0.5 * float(a * b)
        for j in range(i + 1, 6):
            a, b = ((half[:, i] * half[:, j]).mean() for half in halves)
            want += 0.5 * float(a * b)
    assert aggregate_mismatch(logits, counted).item() == pytest.approx(want, rel=1e-12)
    assert aggregate_mismatch(logits[:1], counted[:1]).item() == 0.0


@pytest.mark.parametrize("informative", [True, False])
def test_mismatch_is_the_kl_of_the_aggregate_posterior_to_second_order(informative: bool) -> None:
    """Weak codes of five bits against the sum over all 32, in float64: balanced codes that differ by sequence have none."""
    generator = torch.Generator().manual_seed(1)
    half = 0.1 * torch.randn(2000, 1, 5, generator=generator).double() + (0.0 if informative else 0.2)
    logits = torch.cat((half, half))  # the same sequences in both halves: the plug-in value
    p = torch.sigmoid(half[:, 0])
    all_bits = code_bits(torch.arange(32), 5).double()
    q = torch.where(all_bits[None] == 1, p[:, None], 1 - p[:, None]).prod(-1).mean(0)
    exact = float((q * (q * 32).log()).sum())
    found = aggregate_mismatch(logits, torch.ones(4000, 1).double()).item()
    assert found == pytest.approx(exact, rel=0.05, abs=1e-6)
    assert found < 1e-4 if informative else found > 0.02


def test_bit_directions_are_linear_in_the_bits() -> None:
    sampler = PostSampler(6, 32)
    sampler.initialise("bits", 0.5, torch.Generator().manual_seed(0))
    w = sampler.weight.detach()
    assert torch.allclose(w[0b000011] - w[0b000010], w[0b110101] - w[0b110100], atol=1e-6)
    assert w.std().item() == pytest.approx(0.5, rel=0.25)
    sampler.initialise("independent", 0.5, torch.Generator().manual_seed(0))
    w = sampler.weight.detach()
    assert not torch.allclose(w[3] - w[2], w[53] - w[52], atol=1e-2)
    assert w.std().item() == pytest.approx(0.5, rel=0.05)
