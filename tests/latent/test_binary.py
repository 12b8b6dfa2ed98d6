"""The binary mapper, KL and free bits against the paper's literal formulas, in float64 on random inputs."""

import itertools
import math
from typing import Literal

import pytest
import torch
import torch.nn.functional as F

from freetf_cli.kernels import mapper
from freetf_cli.latent.binary import (
    PostSampler,
    code_bits,
    kl_per_token,
    sample_codes,
)
from freetf_cli.latent.objective import aggregate_mismatch, free_bits_penalty
from freetf_cli.model.weights import Draws


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
    monkeypatch.setitem(mapper.CHUNK_ELEMENTS, "cpu", chunk * 2**bits)
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


@pytest.mark.parametrize("gradient", ["heun", "paper"])
def test_the_gradient_of_an_expectation(gradient: Literal["heun", "paper"]) -> None:
    """For a quadratic f and a table linear in the bits, Heun's estimate has the mean d/dL E[f(r)], summed over all codes.

    The paper's estimate has another mean: it takes f for a straight line.
    """
    bits, width = 4, 6
    sampler = PostSampler(bits, width, gradient).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        sampler.weight.copy_(
            (2.0 * code_bits(torch.arange(2**bits), bits) - 1).double() @ torch.randn(bits, width, generator=generator).double()
        )
    curve, line = (torch.randn(*shape, generator=generator).double() for shape in ((width, width), (width,)))
    logits = (2 * torch.randn(1, 1, bits, generator=generator).double()).requires_grad_()

    def probability(code: int) -> torch.Tensor:
        drawn = code_bits(torch.tensor(code), bits).double()
        return torch.exp(torch.where(drawn == 1, F.logsigmoid(logits[0, 0]), F.logsigmoid(-logits[0, 0])).sum())

    def f(r: torch.Tensor) -> torch.Tensor:
        return r @ curve @ r + line @ r

    exact, found = torch.zeros(bits).double(), torch.zeros(bits).double()
    for code in range(2**bits):
        exact += torch.autograd.grad(probability(code) * f(sampler.weight[code].detach()), logits)[0][0, 0]
        found += probability(code).detach() * torch.autograd.grad(f(sampler(torch.tensor([[code]]), logits)[0, 0]), logits)[0][0, 0]
    off = float((found - exact).norm() / exact.norm())
    assert off < 1e-12 if gradient == "heun" else off > 0.1


def test_the_forward_is_the_row_of_the_table() -> None:
    sampler = PostSampler(4, 5)
    torch.nn.init.normal_(sampler.weight)
    codes = torch.tensor([[3, 15, 0]])
    assert torch.equal(sampler(codes, torch.randn(1, 3, 4)), sampler.weight[codes])


def test_a_code_holds_its_bits_lowest_first() -> None:
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


def test_kl_of_certain_and_of_uniform_bits() -> None:
    assert kl_per_token(torch.zeros(1, 1, 16)).abs().item() < 1e-6
    assert kl_per_token(torch.full((1, 1, 16), 60.0)).item() == pytest.approx(16 * math.log(2), rel=1e-6)


def test_free_bits_are_per_token_and_not_on_the_mean() -> None:
    kl = torch.tensor([[0.0, 3.0, 1.0], [0.5, 0.5, 9.0]])
    counted = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    assert free_bits_penalty(kl, counted, 1.0, "token").item() == pytest.approx(2.0)
    assert free_bits_penalty(kl, counted, 1.0, "sequence").item() == pytest.approx(1.0)
    assert free_bits_penalty(kl, counted, 0.0, "token").item() == pytest.approx(5.0)


def test_a_slope_weighs_the_kl_below_the_free_bits() -> None:
    kl = torch.tensor([[0.0, 3.0, 1.0], [0.5, 0.5, 9.0]])
    counted = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    assert free_bits_penalty(kl, counted, 1.0, "token", 0.1).item() == pytest.approx(2.0 + 0.1 * (0 + 1 + 1 + 0.5 + 0.5))
    assert free_bits_penalty(kl, counted, 1.0, "sequence", 0.1).item() == pytest.approx(1.0 + 0.1 * (3 + 1))
    assert free_bits_penalty(kl, counted, 1.0, "token", 1.0).item() == pytest.approx(5.0)


def test_mismatch_equals_the_sum_over_all_codes() -> None:
    """With equal halves of the batch it is D₂ of their mean posterior, ln 2ⁿ Σ_z Q(z)²."""
    generator = torch.Generator().manual_seed(0)
    half = 2 * torch.randn(5, 3, 2, generator=generator).double()
    half_counted = torch.tensor([[1.0, 1.0, 1.0]] * 3 + [[1.0, 1.0, 0.0]] * 2).double()
    p = torch.sigmoid(half * half_counted[..., None]).flatten(1)  # what is not counted is even
    q = torch.zeros(64).double()
    for code in range(64):
        bits = code_bits(torch.tensor(code), 6).double()
        q[code] = torch.where(bits == 1, p, 1 - p).prod(1).mean()
    want = float(torch.log(64 * q.square().sum()))
    found = aggregate_mismatch(torch.cat((half, half)), torch.cat((half_counted, half_counted))).item()
    assert found == pytest.approx(want, rel=1e-10)
    assert want >= float((q * (64 * q).log()).sum()) > 0.1
    assert aggregate_mismatch(half[:1], half_counted[:1]).item() == 0.0
    odd = torch.cat((half, half, 9 * half[:1]))
    assert aggregate_mismatch(odd, torch.cat((half_counted, half_counted, half_counted[:1]))).item() == pytest.approx(want, rel=1e-10)


def test_mismatch_over_tokens_is_the_sum_over_tokens() -> None:
    logits = 2 * torch.randn(8, 3, 2, generator=torch.Generator().manual_seed(1)).double()
    logits = torch.cat((logits, logits))
    counted = torch.ones(16, 3).double()
    counted[[0, 8], 2] = 0.0
    alone = [aggregate_mismatch(logits[:, t : t + 1], counted[:, t : t + 1]).item() for t in range(3)]
    assert min(alone) > 0.01
    assert aggregate_mismatch(logits, counted, "token").item() == pytest.approx(sum(alone), rel=1e-10)
    never_alike = torch.cat((torch.full((8, 1, 2), 20.0), torch.full((8, 1, 2), -20.0))).double()  # by itself below 0, so 0
    beside = torch.cat((logits, never_alike), 1)
    more = torch.cat((counted, torch.ones(16, 1).double()), 1)
    assert aggregate_mismatch(beside, more, "token").item() == pytest.approx(sum(alone), rel=1e-10)
    copies = 20.0 * (2 * code_bits(torch.arange(2), 1)[:, None] - 1).double().expand(2, 3, 1)  # three tokens that tell the same even bit
    even = torch.cat((copies, copies))
    assert aggregate_mismatch(even, torch.ones(4, 3).double(), "token").item() == pytest.approx(0.0, abs=1e-4)
    assert aggregate_mismatch(even, torch.ones(4, 3).double()).item() == pytest.approx(2 * math.log(2), rel=1e-4)


def test_mismatch_sees_dependence_of_three_bits() -> None:
    """The third bit is the parity of the other two: each is uniform, any two are independent, and the mismatch is one bit."""
    rows = code_bits(torch.arange(4), 2)
    logits = 20.0 * (2 * torch.cat((rows, rows.sum(1, keepdim=True) % 2), 1)[:, None] - 1).double()
    found = aggregate_mismatch(torch.cat((logits, logits)), torch.ones(8, 1).double()).item()
    assert found == pytest.approx(math.log(2), rel=1e-4)
    balanced = 20.0 * (2 * code_bits(torch.arange(8), 3)[:, None] - 1).double()
    assert aggregate_mismatch(torch.cat((balanced, balanced)), torch.ones(16, 1).double()).item() == pytest.approx(0.0, abs=1e-4)
    assert aggregate_mismatch(balanced, torch.ones(8, 1).double()).item() == 0.0  # no two alike across the halves: nothing to see


def test_bit_directions_are_linear_in_the_bits() -> None:
    sampler = PostSampler(6, 32)
    sampler.initialise("bits", 0.5, Draws(0))
    w = sampler.weight.detach()
    assert torch.allclose(w[0b000011] - w[0b000010], w[0b110101] - w[0b110100], atol=1e-6)
    assert w.std().item() == pytest.approx(0.5, rel=0.25)
    sampler.initialise("independent", 0.5, Draws(0))
    w = sampler.weight.detach()
    assert not torch.allclose(w[3] - w[2], w[53] - w[52], atol=1e-2)
    assert w.std().item() == pytest.approx(0.5, rel=0.05)
