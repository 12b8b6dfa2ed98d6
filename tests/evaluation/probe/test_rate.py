"""KL, information and mismatch where they can be counted by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from freetf_cli.errors import InputError
from freetf_cli.evaluation.likelihood import row_costs
from freetf_cli.evaluation.posterior import information_bounds
from freetf_cli.evaluation.probe.rate import Posterior, latent_ablation, others, rate, read_posterior
from freetf_cli.evaluation.statistics import bootstrap
from freetf_cli.latent.binary import BinaryDistribution, bit_logits, sample_codes
from freetf_cli.latent.gaussian import GaussianDistribution
from freetf_cli.model.context import Context
from freetf_cli.model.decoder import Decoder
from freetf_cli.model.latent import Distribution
from freetf_cli.records.likelihood import Estimate
from tests.evaluation.probe.planted import small_free
from tests.evaluation.test_likelihood import random_rows

LN2 = math.log(2)
SURE = 30.0


def posterior(logits: torch.Tensor, latent_mask: torch.Tensor | None = None, seed: int = 0, **given: np.ndarray) -> Posterior:
    """A posterior with these bit logits [N, T, H]; costs of 10 bits a sequence unless given."""
    count = len(logits)
    noise = torch.rand(logits.shape, generator=torch.Generator().manual_seed(seed))
    mask = torch.ones(logits.shape[:2]) if latent_mask is None else latent_mask
    costs = {name: np.full(count, 10 * LN2) for name in ("ce", "ce_other", "ce_prior")}
    rows = {"other": np.roll(np.arange(count), 1), "documents": np.arange(count), "targets": np.full(count, 5.0), "bytes": np.zeros(count)}
    own = np.arange(logits.shape[1])
    q = BinaryDistribution(logits)
    return Posterior(q, mask, sample_codes(logits, noise), own, **{**costs, **given}, **rows, hidden=torch.zeros(count, 1))


def averaged(x_BTD: torch.Tensor) -> torch.Tensor:
    """Features of hidden states: their mean over positions."""
    return x_BTD.mean(1)


def codes_as_logits(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Bit logits of an encoder that is certain of these codes [N, T]."""
    return SURE * (2.0 * ((codes[..., None] >> torch.arange(bits)) & 1) - 1)


def test_information_of_a_z_that_identifies_one_of_sixteen_kinds() -> None:
    """Sixteen kinds of sequences, each with a code of its own: 4 bits of information, no mismatch in a code of 4 bits."""
    kinds = torch.arange(16).repeat(32)
    found = rate(posterior(codes_as_logits(kinds[:, None], 4)), kappa=1.0, floor=None)
    assert found.kl.value == pytest.approx(4.0, abs=1e-3)
    assert found.information_low.value == pytest.approx(4.0, abs=0.01) and found.information_high.value == pytest.approx(4.0, abs=0.05)
    assert found.mismatch_high.value == pytest.approx(0, abs=0.05)
    assert found.imbalance.value == pytest.approx(0, abs=1e-6)
    assert (found.active_bits, found.all_bits) == (Estimate(4, 4, 4), 4)
    assert [bit.value for bit in found.by_bit] == pytest.approx([1, 1, 1, 1], abs=1e-3)


def test_mismatch_of_a_z_that_is_always_the_same() -> None:
    """Every sequence has the same code: all of the KL is mismatch, and single bits show it."""
    found = rate(posterior(codes_as_logits(torch.full((256, 2), 5), 3)), kappa=1.0, floor=None)
    assert found.kl.value == pytest.approx(6.0, abs=1e-3)
    assert (found.information_low.value, found.information_high.value) == pytest.approx((0, 0), abs=1e-6)
    assert (found.mismatch_low.value, found.mismatch_high.value) == pytest.approx((6, 6), abs=1e-3)
    assert found.imbalance.value == pytest.approx(6, abs=1e-3)
    assert found.active_bits == Estimate(0, 0, 0)


def test_mismatch_that_single_bits_do_not_show() -> None:
    """Two bits that always agree: each is balanced, together they have one bit of mismatch and one of information."""
    codes = torch.tensor([0, 3]).repeat(256)
    found = rate(posterior(codes_as_logits(codes[:, None], 2)), kappa=1.0, floor=None)
    assert found.kl.value == pytest.approx(2.0, abs=1e-3)
    assert found.imbalance.value == pytest.approx(0, abs=1e-6)
    assert found.information_low.value == pytest.approx(1.0, abs=0.01) and found.mismatch_low.value == pytest.approx(1.0, abs=0.02)


def test_the_bounds_bracket_a_noisy_channel() -> None:
    """One bit that is right with probability p: I = 1 − H(p), and the bracket cannot pass log2 N."""
    p = 0.9
    logits = torch.where(torch.rand(600, 1, 1, generator=torch.Generator().manual_seed(1)) < 0.5, -1.0, 1.0) * math.log(p / (1 - p))
    truth = 1 + p * math.log2(p) + (1 - p) * math.log2(1 - p)
    of_seeds = (information_bounds(BinaryDistribution(logits), posterior(logits, seed=seed).z) for seed in range(5))
    lows, highs = zip(*of_seeds, strict=True)
    assert np.mean(lows) == pytest.approx(truth, abs=0.06) and np.mean(highs) == pytest.approx(truth, abs=0.06)
    many = torch.randn(32, 8, 8, generator=torch.Generator().manual_seed(2)) * SURE
    low, high = information_bounds(BinaryDistribution(many), posterior(many).z)
    assert low.mean() <= 5 + 1e-6 < high.mean()


def test_the_spread_of_the_bounds_is_that_of_their_terms() -> None:
    """Over 300 sets of sequences: resampling the terms is enough, though the mean over the other sequences varies too."""
    means, errors = [], []
    for seed in range(300):
        logits = torch.randn(100, 2, 2, generator=torch.Generator().manual_seed(seed)) * 1.5
        terms = np.stack(information_bounds(BinaryDistribution(logits), posterior(logits, seed=seed).z))
        means.append(terms.mean(1))
        errors.append(terms.std(1) / 10)
    assert np.std(means, axis=0) == pytest.approx(np.mean(errors, axis=0), rel=0.15)


def test_the_bounds_agree_with_their_formulas() -> None:
    logits = torch.randn(7, 3, 2, generator=torch.Generator().manual_seed(0)).double()
    z = posterior(logits).z
    p, bits = torch.sigmoid(logits), (z[..., None] >> torch.arange(2)) & 1
    q = torch.stack([torch.stack([torch.where(bits[i] == 1, p[j], 1 - p[j]).prod() for j in range(7)]) for i in range(7)])
    low = np.mean([math.log2(q[i, i] / q[i].mean()) for i in range(7)])
    high = np.mean([math.log2(q[i, i] / (q[i].sum() - q[i, i]) * 6) for i in range(7)])
    assert [terms.mean() for terms in information_bounds(BinaryDistribution(logits), z)] == pytest.approx([low, high], abs=1e-9)


def test_by_position_above_kappa_and_efficiency() -> None:
    logits = torch.zeros(64, 4, 3)
    logits[:, 1] = SURE  # all of the KL, three bits, at the second position
    latent_mask = torch.ones(64, 4)
    latent_mask[:32, 3] = 0
    found = rate(posterior(logits, latent_mask, ce=np.full(64, 7 * LN2)), kappa=2.5, floor=10.0)
    assert [place.value for place in found.by_position] == pytest.approx([0, 3, 0, 0], abs=1e-3)
    assert found.above_kappa.value == pytest.approx(64 / (64 * 4 - 32))
    assert found.efficiency is not None and found.efficiency.value == pytest.approx(1.0, abs=1e-3)
    assert rate(posterior(torch.zeros(64, 4, 3)), 1.0, 10.0).efficiency is None  # no KL, nothing to divide by
    few = torch.zeros(64, 4, 3)
    few[:12, 1] = SURE  # 0.56 bits on average, and with other sequences perhaps less than half a bit
    assert rate(posterior(few), 1.0, 10.0).efficiency is None


def test_a_pass_over_held_out_rows_agrees_with_the_likelihood() -> None:
    model, rows = small_free(), random_rows(40, 3, 5)
    rows.targets[:, 2] = -100
    seen: list[int] = []
    found = read_posterior(model, rows, "val", 40, 0, averaged, seen.append)  # type: ignore[arg-type]
    costs = row_costs(model, rows, split="val", sequences=40, draws=(1,))  # type: ignore[arg-type]
    assert sum(seen) == 80
    assert rate(found, 1.0, None).kl.value == pytest.approx(costs.nats["kl"].mean() / LN2)
    assert found.ce == pytest.approx(costs.nats["ce_posterior"])  # the same draws, by row
    assert found.hidden.shape == (40, 16)
    assert found.targets.tolist() == [2.0] * 40
    logits_NTH = bit_logits(found.distribution)
    assert not (logits_NTH[:, 2] != 0).any() and (logits_NTH[:, 1] != 0).all()


def test_cost_of_another_sequences_z() -> None:
    model, rows = small_free(), random_rows(24, 3, 5)
    found = read_posterior(model, rows, "val", 24, 0, averaged, lambda n: None)  # type: ignore[arg-type]
    tokens, targets = torch.from_numpy(rows.inputs), torch.from_numpy(rows.targets)
    with torch.no_grad():
        for z, costs in ((found.z, found.ce), (found.z[found.other], found.ce_other)):
            nats = torch.nn.functional.cross_entropy(model(tokens, z).logits.transpose(1, 2), targets, reduction="none").sum(1)
            assert costs == pytest.approx(nats.numpy(), abs=1e-9)
    assert (found.other != np.arange(24)).all()
    ablation = latent_ablation(replace(found, bytes=np.full(24, 1.5)))
    assert ablation.posterior.bits_per_byte == pytest.approx(found.ce.mean() / LN2 / 1.5)
    assert ablation.other_less_posterior.value == pytest.approx(ablation.other.nats_per_token - ablation.posterior.nats_per_token)


def test_the_encoder_runs_once_a_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[int] = []
    infer_latent = Decoder.infer_latent

    def counted(self: Decoder, x_BTD: torch.Tensor, tokens_BT: torch.Tensor, ctx: Context) -> Distribution:
        encoded.append(len(tokens_BT))
        return infer_latent(self, x_BTD, tokens_BT, ctx)

    monkeypatch.setattr(Decoder, "infer_latent", counted)
    read_posterior(small_free(), random_rows(24, 3, 5), "val", 24, 0, averaged, lambda n: None)  # type: ignore[arg-type]
    assert sum(encoded) == 24


def test_too_few_sequences() -> None:
    with pytest.raises(InputError, match="at least 20"):
        read_posterior(small_free(), random_rows(12, 3, 5), "val", 12, 0, averaged, lambda n: None)  # type: ignore[arg-type]


def test_another_sequence_is_of_another_document() -> None:
    documents = np.repeat(np.arange(10), 30)
    found = others(documents, 0)
    assert (documents[found] != documents).all()
    assert len(np.unique(found)) > 150 and (others(documents, 1) != found).any()
    assert (others(np.zeros(5, np.int64), 0) != np.arange(5)).all()  # a single document: at least another row


def test_costs_do_not_depend_on_the_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = small_free(), random_rows(24, 3, 5)
    whole = read_posterior(model, rows, "val", 24, 0, averaged, lambda n: None)  # type: ignore[arg-type]
    monkeypatch.setattr("freetf_cli.evaluation.probe.rate._BATCH_TOKENS", {"cpu": 15})
    pieces = read_posterior(model, rows, "val", 24, 0, averaged, lambda n: None)  # type: ignore[arg-type]
    for name in ("ce", "ce_other", "ce_prior"):
        assert getattr(pieces, name) == pytest.approx(getattr(whole, name), abs=1e-9)


def test_imbalance_is_corrected_for_chance() -> None:
    """Balanced bits of a certain encoder: their means over 64 sequences differ from 1/2 by chance, which would look like mismatch."""
    codes = torch.from_numpy(np.random.default_rng(0).integers(0, 65536, (64, 8)))
    found = rate(posterior(codes_as_logits(codes, 16)), kappa=1.0, floor=None)
    assert found.imbalance.value < 0.4  # uncorrected it is 128 · 1/(2 · 64 ln 2) = 1.4
    assert found.active_bits == Estimate(128, 128, 128)


def test_windows_of_one_document_are_resampled_together() -> None:
    """With ten equal windows a document, the interval is three times as wide as for independent windows."""
    values = np.repeat(np.random.default_rng(0).normal(size=60), 10)
    alone, together = bootstrap(values), bootstrap(values, clusters=np.repeat(np.arange(60), 10))
    assert together.value == pytest.approx(alone.value)
    assert (together.high - together.low) / (alone.high - alone.low) == pytest.approx(10**0.5, rel=0.15)
    assert bootstrap(values, clusters=np.repeat(np.arange(6), 100)) == alone  # too few documents to resample


def test_the_bracket_does_not_depend_on_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(50, 3, 2, generator=torch.Generator().manual_seed(0)).double()
    z = posterior(logits).z
    whole = np.stack(information_bounds(BinaryDistribution(logits), z))
    monkeypatch.setattr("freetf_cli.evaluation.posterior._PAIRS_AT_ONCE", 7)
    assert np.stack(information_bounds(BinaryDistribution(logits), z)) == pytest.approx(whole, abs=1e-9)


def gaussians(shape: tuple[int, ...], mask: torch.Tensor | None = None, every: int = 1) -> Posterior:
    """Random Gaussian posteriors [N, T, K]; with `every`, that many tokens share the Z of the first."""
    torch.manual_seed(0)
    mean, log_var = torch.randn(shape).double() * torch.linspace(0, 1.5, shape[2]), torch.randn(shape).double() - 1
    starts = torch.arange(shape[1]) - torch.arange(shape[1]) % every
    infers = (starts == torch.arange(shape[1]))[:, None]
    mask = torch.ones(shape[:2]) if mask is None else mask
    q = GaussianDistribution(mean * infers, log_var * infers, None if every == 1 else starts.expand(shape[:2])).within(mask)
    own = posterior(torch.zeros(*shape[:2], 1), mask)
    return replace(own, distribution=q, z=q.sample(torch.rand(shape)), positions=np.arange(shape[1])[::every])


def test_a_gaussian_rate_equals_its_formulas() -> None:
    """KL, both bounds of the information, and the mismatch log (1/N) Σ_j q(z|s_j) − log p(z), each written out in float64."""
    mask = torch.ones(24, 3)
    mask[:9, 2] = 0
    given = gaussians((24, 3, 2), mask)
    q, z = given.distribution, given.z
    assert isinstance(q, GaussianDistribution)
    found = rate(given, kappa=0.5, floor=None)
    prior = Normal(torch.zeros(2).double(), 1.0)
    each = [Normal(q.mean[j], torch.exp(q.log_var[j] / 2)) for j in range(24)]
    kl_NT = torch.stack([torch.distributions.kl_divergence(one, prior).sum(-1) for one in each]).numpy() / LN2
    log_q = np.array([[float(one.log_prob(z[i]).sum()) for one in each] for i in range(24)]) / LN2
    log_p = np.array([float(prior.log_prob(z[i]).sum()) for i in range(24)]) / LN2
    low = [log_q[i, i] - math.log2(np.exp2(log_q[i]).mean()) for i in range(24)]
    high = [log_q[i, i] - math.log2(np.exp2(np.delete(log_q[i], i)).mean()) for i in range(24)]
    assert found.kl.value == pytest.approx(kl_NT.sum() / 24)
    assert [one.value for one in found.by_position] == pytest.approx((kl_NT.sum(0) / mask.numpy().sum(0)).tolist())
    bounds = np.stack(information_bounds(q, z))
    assert bounds == pytest.approx(np.stack([low, high]), abs=1e-9)
    mismatch = [math.log2(np.exp2(log_q[i]).mean()) - log_p[i] for i in range(24)]
    sampled_kl = np.diag(log_q) - log_p  # the mismatch of `rate` has the KL itself where a draw has log q − log p
    assert sampled_kl - bounds[0] == pytest.approx(np.array(mismatch), abs=1e-9)
    assert found.mismatch_high.value == pytest.approx(min(found.kl.value, np.mean(mismatch) - sampled_kl.mean() + found.kl.value))
    assert found.above_kappa.value == pytest.approx((kl_NT > 0.5).sum() / mask.numpy().sum())
    assert found.by_bit is found.active_bits is found.imbalance is found.all_bits is None
    assert found.by_dim is not None and sum(one.value for one in found.by_dim) == pytest.approx(found.kl.value)


def test_active_dimensions_by_kl_and_by_mean() -> None:
    """Four dimensions: the prior; a narrow one that never moves; one that moves; one that hardly moves."""
    mean, log_var = torch.zeros(64, 2, 4), torch.zeros(64, 2, 4)
    log_var[:, :, 1] = -2.0
    mean[::2, :, 2], mean[1::2, :, 2] = 1.0, -1.0
    mean[::2, :, 3] = 0.1  # a KL of 0.0036 bits, a variance of 0.0025
    found = rate(replace(posterior(torch.zeros(64, 2, 1)), distribution=GaussianDistribution(mean, log_var), z=mean), 1.0, None)
    assert (found.active_dims, found.active_units, found.all_dims) == (Estimate(4, 4, 4), Estimate(2, 2, 2), 8)
    assert found.by_dim is not None
    assert [one.value for one in found.by_dim] == pytest.approx([0, (math.exp(-2) + 1) / LN2, 1 / LN2, 0.005 / LN2], abs=1e-6)


def test_a_shared_z_counts_once() -> None:
    """Seven tokens share three Zs. KL, units and the share above κ count each Z once, and so do the bounds."""
    given = gaussians((40, 7, 2), every=3)
    q = given.distribution
    assert isinstance(q, GaussianDistribution)
    alone = replace(
        posterior(torch.zeros(40, 3, 1)), distribution=GaussianDistribution(q.mean[:, ::3], q.log_var[:, ::3]), z=given.z[:, ::3]
    )
    found, want = rate(given, 0.5, None), rate(alone, 0.5, None)
    assert found.positions == [0, 3, 6] and found.all_dims == 6
    assert replace(found, positions=want.positions).by_position == want.by_position
    for name in ("kl", "above_kappa", "information_low", "information_high", "mismatch_low", "active_dims", "active_units"):
        ours, theirs = (getattr(one, name) for one in (found, want))
        assert (ours.value, ours.low, ours.high) == pytest.approx((theirs.value, theirs.low, theirs.high), abs=1e-9), name


def test_a_kind_without_units_has_the_rest() -> None:
    """Only what `Distribution` requires: the bounds come from its log-probabilities."""

    class Plain(GaussianDistribution):
        units = Distribution.units  # type: ignore[assignment]
        log_prob_pairs = Distribution.log_prob_pairs

        def kl(self) -> torch.Tensor:
            return GaussianDistribution(self.mean, self.log_var).kl()

    given = gaussians((24, 3, 2))
    q = given.distribution
    assert isinstance(q, GaussianDistribution)
    found, want = rate(replace(given, distribution=Plain(q.mean, q.log_var)), 0.5, 1.0), rate(given, 0.5, 1.0)
    for name in ("kl", "information_low", "mismatch_high", "above_kappa"):
        assert getattr(found, name).value == pytest.approx(getattr(want, name).value)
    assert found.by_dim is found.by_bit is found.active_units is found.all_dims is None
