"""Bounds on −log P(S) against exact sums over every Z, and against a data's entropy."""

from __future__ import annotations

import itertools
import math
import threading
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from freetf_cli.config.recipe import DataConfig, LatentConfig, ModelConfig
from freetf_cli.data.batches import IGNORE, Batch, open_data
from freetf_cli.evaluation import posterior
from freetf_cli.evaluation.likelihood import (
    PRIOR_DRAWS,
    RowCosts,
    chosen_by_others,
    cost,
    importance_bounds,
    row_costs,
)
from freetf_cli.evaluation.posterior import PosteriorPass, target_nats
from freetf_cli.latent.binary import BinaryDistribution, bit_logits
from freetf_cli.latent.build import build_model, initialise_model
from freetf_cli.latent.gaussian import GaussianDistribution, GaussianLatent
from freetf_cli.model.decoder import Decoder
from freetf_cli.tasks import make_task
from tests.evaluation.probe.planted import PlantedCoins, small_free

LN2 = math.log(2)


class Rows:
    """A data source whose held-out rows a test chooses."""

    def __init__(self, inputs: np.ndarray, targets: np.ndarray) -> None:
        self.inputs, self.targets, self.context = inputs, targets, inputs.shape[1]

    def target_bytes(self, split: str, targets: np.ndarray) -> np.ndarray:
        return np.zeros(len(targets))

    def held_out(self, split: str, sequences: int, size: int):  # type: ignore[no-untyped-def]
        for start in range(0, min(sequences, len(self.inputs)), size):
            stop = min(start + size, sequences)
            yield Batch(self.inputs[start:stop], self.targets[start:stop])

    def held_out_documents(self, split: str, sequences: int) -> np.ndarray:
        return np.arange(min(sequences, len(self.inputs)))


def random_rows(count: int, context: int, vocab: int, seed: int = 0) -> Rows:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(vocab, size=(count, context + 1))
    return Rows(tokens[:, :-1], tokens[:, 1:].copy())


def inferred(model: Decoder, tokens: torch.Tensor) -> torch.Tensor:
    """Logits of the bits that the encoder infers."""
    ctx = model.context(tokens)
    return bit_logits(model.infer_latent(model.lower(tokens, ctx), tokens, ctx))


def hidden(model: Decoder, tokens: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    ctx = model.context(tokens)
    return model.upper(model.lower(tokens, ctx), z, ctx)


def literal(model: Decoder, inputs: np.ndarray, targets: np.ndarray) -> dict[str, np.ndarray]:
    """Every quantity by its definition: loops over all Z, rows and positions, in float64."""
    assert model.latent is not None
    bits, context, shared = 2, inputs.shape[1], model.latent.every
    start_of = [0 if shared == "sequence" else t - t % shared for t in range(context)]
    starts = sorted(set(start_of))
    every = [torch.tensor([z[starts.index(t)] for t in start_of])[None] for z in itertools.product(range(2**bits), repeat=len(starts))]
    out: dict[str, list[float]] = {"nll": [], "ce_posterior": [], "kl": [], "ce_prior": []}
    for tokens, wanted in zip(torch.from_numpy(inputs), torch.from_numpy(targets), strict=True):
        with torch.no_grad():
            logits_TH = inferred(model, tokens[None])[0]
            likelihoods, posteriors = [], []
            for z in every:
                log_p = torch.log_softmax(model(tokens[None], z).logits[0], -1)
                likelihoods.append(sum(float(log_p[t, wanted[t]]) for t in range(context) if wanted[t] != IGNORE))
                q = 1.0
                for t in starts:
                    for h in range(bits):
                        p = float(torch.sigmoid(logits_TH[t, h]))
                        q *= p if (int(z[0, t]) >> h) & 1 else 1 - p
                posteriors.append(q)
        prior = 1 / len(every)
        out["nll"].append(-math.log(sum(prior * math.exp(one) for one in likelihoods)))
        out["ce_posterior"].append(-sum(q * one for q, one in zip(posteriors, likelihoods, strict=True)))
        out["ce_prior"].append(-sum(prior * one for one in likelihoods))
        out["kl"].append(sum(q * math.log(q / prior) for q in posteriors if q > 0))
    return {name: np.array(values) for name, values in out.items()}


def _near(bound: np.ndarray, exact: np.ndarray) -> None:
    """The tolerance is the noise of 4,096 draws, about 0.05 nats a row. Without importance weights the error would be 0.5."""
    assert np.abs(bound - exact).max() < 0.2
    assert bound.mean() == pytest.approx(exact.mean(), abs=0.03)


@pytest.fixture(scope="module")
def enumerated() -> tuple[RowCosts, dict[str, np.ndarray]]:
    model, rows = small_free(seed=37), random_rows(24, 3, 5)
    costs = row_costs(model, rows, split="val", sequences=24, draws=(1, 8, 64, 4096))  # type: ignore[arg-type]
    return costs, literal(model, rows.inputs, rows.targets)


@pytest.mark.parametrize("every", [2, "sequence"])
def test_where_tokens_share_a_z_too(every: int | Literal["sequence"]) -> None:
    model, rows = small_free(seed=37), random_rows(12, 3, 5)
    assert model.latent is not None
    model.latent.every = every
    costs = row_costs(model, rows, split="val", sequences=12, draws=(1, 8, 64, 4096))  # type: ignore[arg-type]
    exact = literal(model, rows.inputs, rows.targets)
    assert np.allclose(costs.nats["kl"], exact["kl"], atol=1e-9)
    assert np.allclose(costs.nats["ce_posterior"], exact["ce_posterior"], atol=0.1)
    _near(costs.posterior_bound[4096], exact["nll"])


def test_every_cost_agrees_with_the_sum_over_all_z(enumerated: tuple[RowCosts, dict[str, np.ndarray]]) -> None:
    costs, exact = enumerated
    assert np.allclose(costs.nats["kl"], exact["kl"], atol=1e-9)
    assert np.allclose(costs.nats["ce_posterior"], exact["ce_posterior"], atol=0.1)  # 4,096 draws of a sum of three
    assert np.allclose(costs.nats["ce_prior"].mean(), exact["ce_prior"].mean(), atol=0.15)
    assert np.allclose(costs.nats["elbo"], costs.nats["ce_posterior"] + costs.nats["kl"])
    _near(costs.posterior_bound[4096], exact["nll"])
    assert exact["kl"].mean() > 0.5 and np.ptp(exact["nll"]) > 1  # the posterior is informative, otherwise the test would show nothing


def test_bounds_fall_with_more_draws_and_stay_above_the_truth(enumerated: tuple[RowCosts, dict[str, np.ndarray]]) -> None:
    costs, exact = enumerated
    for bound in (costs.posterior_bound, costs.prior_bound):
        means = [bound[count].mean() for count in sorted(bound)]
        assert means == sorted(means, reverse=True) and means[0] > means[-1] + 0.01
        assert means[-1] > exact["nll"].mean() - 0.05
    assert sorted(costs.prior_bound) == [1, 8, PRIOR_DRAWS]
    assert costs.posterior_bound[1].mean() == pytest.approx(costs.nats["elbo"].mean(), abs=0.05)
    assert costs.prior_bound[1] == pytest.approx(costs.nats["ce_prior"])
    assert (costs.nats["nll"] == costs.posterior_bound[4096]).all() and costs.proposal == "posterior"
    assert costs.nats["nll"].mean() < costs.prior_bound[PRIOR_DRAWS].mean()  # the tighter of the two


def test_documents_are_masked_for_every_z() -> None:
    """Token 0 begins a document, in every repetition of a row."""
    model, rows = small_free(context=6), random_rows(8, 6, 5)
    model.config = model.config.model_copy(update={"separator": 0})
    inputs, targets = torch.from_numpy(rows.inputs), torch.from_numpy(rows.targets)
    z = torch.randint(0, 4, (8, 3, 6), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = PosteriorPass(model, Batch(rows.inputs, rows.targets)).nats(z.flatten(0, 1)).view(8, 3, 6)
        want = torch.stack([target_nats(model, hidden(model, inputs, z[:, k]), targets) for k in range(3)], dim=1)
        joined = hidden(small_free(context=6), inputs, z[:, 0])
    assert torch.allclose(found, want, rtol=1e-12)
    assert (target_nats(model, joined, targets) - want[:, 0]).abs().max() > 0.1


def test_z_after_the_last_target_does_not_count() -> None:
    """At padded positions Z reaches no target: neither KL nor weights may count it."""
    model, rows = small_free(seed=37), random_rows(24, 3, 5)
    rows.targets[:, 1:] = IGNORE
    costs = row_costs(model, rows, split="val", sequences=24, draws=(64,))  # type: ignore[arg-type]
    with torch.no_grad():
        tokens = torch.from_numpy(rows.inputs)
        logits = inferred(model, tokens)[:, 0]
    p = torch.sigmoid(logits)
    first = (p * torch.log(2 * p) + (1 - p) * torch.log(2 * (1 - p))).sum(-1)
    assert costs.nats["kl"] == pytest.approx(first.numpy(), abs=1e-9)
    assert costs.targets.tolist() == [1] * 24


def test_z_before_a_counted_target_counts() -> None:
    model, rows = small_free(seed=37), random_rows(24, 3, 5)
    rows.targets[:, :2] = IGNORE
    exact = literal(model, rows.inputs, rows.targets)
    costs = row_costs(model, rows, split="val", sequences=24, draws=(4096,))  # type: ignore[arg-type]
    assert costs.nats["kl"] == pytest.approx(exact["kl"], abs=1e-9)
    _near(costs.posterior_bound[4096], exact["nll"])


def test_a_row_does_not_depend_on_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = small_free(seed=37), random_rows(24, 3, 5)
    whole = row_costs(model, rows, split="val", sequences=24, draws=(8,))  # type: ignore[arg-type]
    monkeypatch.setattr("freetf_cli.evaluation.posterior._TOKENS_AT_ONCE", {"cpu": 9})  # three rows' worth
    pieces = row_costs(model, rows, split="val", sequences=24, draws=(8,))  # type: ignore[arg-type]
    assert pieces.nats["nll"] == pytest.approx(whole.nats["nll"], abs=1e-12)
    assert pieces.nats["ce_prior"] == pytest.approx(whole.nats["ce_prior"], abs=1e-12)


def test_the_log_of_q_is_the_product_over_bits() -> None:
    logits, codes = torch.randn(4, 7, 3, dtype=torch.float64), torch.randint(8, (4, 7))
    p, bits = torch.sigmoid(logits), torch.stack([(codes >> h) & 1 for h in range(3)], -1)
    assert torch.allclose(BinaryDistribution(logits).log_prob(codes), torch.log(torch.where(bits == 1, p, 1 - p)).sum(-1))


def test_bounds_are_means_over_disjoint_groups_of_draws() -> None:
    weights = np.log(np.array([[1.0, 2.0, 3.0, 6.0, 7.0]]))
    assert importance_bounds(weights, (1, 2))[2] == pytest.approx([-(math.log(1.5) + math.log(4.5)) / 2])
    assert importance_bounds(weights - 1e4, (5,))[5] == pytest.approx([1e4 - math.log(19 / 5)])  # no underflow


def test_the_bound_reaches_the_entropy_of_coins() -> None:
    """A model that is exactly the task: its ELBO cannot reach the entropy, the bound does."""
    source = open_data(DataConfig(task="coins", params={"flip": 0.125, "length": 32}), context=None, seed=0)
    entropy = make_task("coins", {"flip": 0.125, "length": 32}).entropy()["sequence"]
    costs = row_costs(PlantedCoins(32), source, split="val", sequences=600)
    bound = cost(costs.nats["nll"], costs.targets, 0)
    assert source.facts.floor_bits == pytest.approx(entropy)
    assert bound.low <= entropy * LN2 / 33 <= bound.high
    assert (bound.high - bound.low) / bound.nats_per_token < 0.05  # the interval is narrow
    assert costs.nats["elbo"].mean() > costs.nats["nll"].mean() + 0.02


def test_a_baseline_has_only_its_ce() -> None:
    from freetf_cli.config.recipe import ModelConfig

    model = build_model(ModelConfig(layers=2, width=16, heads=2, vocab=5, context=3), None)
    initialise_model(model, 0)
    rows = random_rows(24, 3, 5)
    costs = row_costs(model.eval(), rows, split="val", sequences=24)  # type: ignore[arg-type]
    with torch.no_grad():
        logits: Tensor = model(torch.from_numpy(rows.inputs)).logits
    ce = torch.nn.functional.cross_entropy(logits.transpose(1, 2), torch.from_numpy(rows.targets), reduction="none").sum(1)
    assert costs.nats["nll"] == pytest.approx(ce.numpy(), abs=1e-5)
    assert (set(costs.nats), costs.proposal) == ({"nll", "elbo"}, "none")


def test_nll_is_a_bound_however_noisy_the_two_are() -> None:
    """Draws of a row must not choose its bound: of two equal, noisy bounds, the smaller mean would lie below the truth."""
    rng = np.random.default_rng(0)
    pairs = rng.exponential(size=(4000, 2, 20))  # two bounds of 20 rows, each 1 on average
    by_second = np.stack([chosen_by_others(first, second) for first, second in pairs])
    chosen = np.where(by_second, pairs[:, 1], pairs[:, 0])
    smaller = pairs.mean(-1).min(-1)
    assert smaller.mean() < 0.9 and chosen.mean() == pytest.approx(1.0, abs=0.01)


def test_the_clearly_smaller_bound_is_chosen_for_every_row() -> None:
    small, large = np.arange(20.0), np.arange(20.0) + 5
    assert chosen_by_others(large, small).all() and not chosen_by_others(small, large).any()
    assert not chosen_by_others(small, small).any() and not chosen_by_others(small[:1], large[:1]).any()  # ties, and a single row


def test_units_of_a_cost() -> None:
    found = cost(np.full(30, 4 * LN2), np.full(30, 2), np.full(30, 8))
    assert (found.bits_per_token, found.bits_per_byte, found.bits_per_sequence) == pytest.approx((2.0, 0.5, 4.0))
    assert found.nats_per_token == pytest.approx(found.low) == pytest.approx(found.high)
    assert cost(np.arange(30.0), np.arange(1, 31), 0).bits_per_sequence is None  # rows of several lengths


@pytest.mark.parametrize("way", ["kv", "memory"])
def test_a_gaussian_latent_against_integrals_over_z(way: str) -> None:
    """One number for a sequence: −log ∫ P(S|z) N(z) dz, CE and KL by a sum over a fine grid of z, in float64."""
    config = ModelConfig(layers=2, width=16, heads=2, vocab=5, context=3)
    latent = LatentConfig.model_validate({"kind": "gaussian", "kappa": 0.5, "every": "sequence", "options": {"dims": 1, "inject": way}})
    model = build_model(config, latent).double().eval()
    initialise_model(model, seed=3)
    assert isinstance(model.latent, GaussianLatent)
    with torch.no_grad():
        model.latent.project.weight.mul_(3)
        model.lm_head_weight.mul_(15)
    rows = random_rows(8, 3, 5)
    rows.targets[:, 2] = IGNORE
    costs = row_costs(model, rows, split="val", sequences=8, draws=(1, 8, 4096))  # type: ignore[arg-type]
    tokens, grid = torch.from_numpy(rows.inputs), torch.linspace(-20, 20, 4001, dtype=torch.float64)
    step, prior = 40 / 4000, Normal(torch.zeros((), dtype=torch.float64), 1.0)
    exact: dict[str, list[float]] = {"nll": [], "ce_posterior": [], "kl": [], "ce_prior": []}
    for number, row in enumerate(tokens):
        with torch.no_grad():
            found = PosteriorPass(model, Batch(rows.inputs[number : number + 1], rows.targets[number : number + 1])).posterior
            assert isinstance(found, GaussianDistribution)
            q = Normal(found.mean[0, 0, 0], torch.exp(found.log_var[0, 0, 0] / 2))
            logits = model(row.expand(4001, 3), grid[:, None, None].expand(-1, 3, 1)).logits
        log_p = torch.log_softmax(logits, -1)[:, torch.arange(2), torch.from_numpy(rows.targets[number, :2])].sum(1)
        density, log_prior = q.log_prob(grid).exp(), prior.log_prob(grid)
        exact["nll"].append(-math.log(float((log_p + log_prior).exp().sum() * step)))
        exact["ce_posterior"].append(-float((density * log_p).sum() * step))
        exact["kl"].append(float((density * (q.log_prob(grid) - log_prior)).sum() * step))
        exact["ce_prior"].append(-float((log_prior.exp() * log_p).sum() * step))
    want = {name: np.array(values) for name, values in exact.items()}
    assert np.allclose(costs.nats["kl"], want["kl"], atol=1e-6) and want["kl"].min() > 0.05
    assert np.allclose(costs.nats["ce_posterior"], want["ce_posterior"], atol=0.05)
    assert np.allclose(costs.posterior_bound[4096], want["nll"], atol=0.05)
    assert np.abs(want["ce_prior"] - want["nll"]).max() > 0.3, "Z matters: without the weights the bound would be wrong"
    assert (costs.posterior_bound[1] - costs.posterior_bound[4096]).mean() > 0.02
    assert costs.above_kappa == pytest.approx((want["kl"] > 0.5 * LN2).mean()), "of eight Zs, not of 24 tokens"


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_and_pieces_do_not_change_the_costs(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each piece of the draws is computed by a thread of its own; one piece, in one thread, is the reference."""
    model, rows = small_free(seed=37), random_rows(3, 3, 5)
    whole = row_costs(model, rows, split="val", sequences=3, draws=(1, 40))  # type: ignore[arg-type]
    before, seen = torch.get_num_threads(), set()
    plain = PosteriorPass._piece

    def piece(self: PosteriorPass, z: Tensor, own: Tensor) -> Tensor:
        seen.add((threading.get_ident(), torch.get_num_threads(), torch.is_inference_mode_enabled()))
        return plain(self, z, own)

    monkeypatch.setattr(PosteriorPass, "_piece", piece)
    monkeypatch.setitem(posterior._TOKENS_AT_ONCE, "cpu", 20)
    torch.set_num_threads(threads)
    try:
        cut = row_costs(model, rows, split="val", sequences=3, draws=(1, 40))  # type: ignore[arg-type]
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert {(count, inference) for _, count, inference in seen} == {(1, True)}
    assert (threading.get_ident() in {thread for thread, _, _ in seen}) == (threads == 1)
    for name, nats in whole.nats.items():
        assert np.allclose(nats, cut.nats[name], rtol=1e-6, atol=1e-6), name
    assert np.allclose(whole.posterior_bound[40], cut.posterior_bound[40], rtol=1e-6)
