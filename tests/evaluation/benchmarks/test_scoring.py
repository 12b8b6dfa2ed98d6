"""Log-likelihoods of answers against literal averages over draws of Z, one row at a time, in float64."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from freetf_cli.config.recipe import LatentConfig, ModelConfig
from freetf_cli.errors import InputError
from freetf_cli.evaluation.benchmarks import scoring
from freetf_cli.evaluation.benchmarks.scoring import Scored, Scorer, ZSource, log_mean, stream_key
from freetf_cli.latent.build import build_model, initialise_model
from freetf_cli.model.decoder import Decoder
from freetf_cli.streams import keyed

PAIRS = [
    ([9, 1, 2, 3], [4, 5]),
    ([9, 1, 2, 3], [4, 6]),  # differs in its last token: the same row
    ([9, 1, 2, 3], [7]),
    ([9, 3], [1, 2, 3, 4]),
    ([9, 2, 2, 2, 2, 2], [0, 1]),
]


def tiny(bits: int | None, *, context: int | None = 12, of_latent: dict | None = None, **settings: object) -> Decoder:
    """A model with random weights, and a latent whose bits matter."""
    latent = None if bits is None else LatentConfig(**{"bits": bits, "kappa": bits / 2, "table_std": 3.0} | (of_latent or {}))
    model = build_model(
        ModelConfig(layers=2, width=16, heads=2, vocab=10, context=context, **{"separator": 9, "document_mask": True} | settings), latent
    )
    initialise_model(model, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return model.double().eval()


def scored(model: Decoder, pairs: list, **settings: object) -> list[Scored]:
    scorer = Scorer(model, **settings)
    found = dict(one for rows in scorer.batches(pairs) for one in scorer.score(rows))
    return [found[i] for i in range(len(pairs))]


def literal(model: Decoder, prompt: list[int], answer: list[int], z: torch.Tensor | None) -> torch.Tensor:
    """Log-probabilities [A, V] at the answer's positions given one Z."""
    tokens = torch.tensor([prompt + answer])
    return model(tokens[:, :-1], z).logits[0, len(prompt) - 1 :].log_softmax(-1)


def drawn(model: Decoder, prompt: list[int], length: int, source: str, k: int) -> torch.Tensor:
    """The k-th Z of a prompt, from the same streams as the scorer's."""
    room = max(model.config.context or 0, length)
    z = torch.from_numpy(model.latent.prior(keyed(0, "benchmark", stream_key(prompt), "prior", k), room))[None, :length]
    if source == "posterior-prompt":
        alone = torch.tensor([prompt])
        ctx = model.context(alone)
        posterior = model.infer_latent(model.lower(alone, ctx), alone, ctx)
        noise = keyed(0, "benchmark", stream_key(prompt), "posterior", k).random(model.latent.noise_shape(len(prompt)), dtype=np.float32)
        z[:, : len(prompt)] = posterior.sample(torch.from_numpy(noise)[None])
    return z


@pytest.mark.parametrize("settings", [{}, {"attention": "multi-token", "separator": None, "document_mask": False}])
@torch.inference_mode()
def test_a_baseline_has_the_log_likelihood_of_one_pass(settings: dict) -> None:
    model = tiny(None, **settings)
    for (prompt, answer), found in zip(PAIRS, scored(model, PAIRS), strict=True):
        logp = literal(model, prompt, answer, None)
        assert found.loglikelihood == pytest.approx(float(logp.gather(1, torch.tensor(answer)[:, None]).sum()), abs=1e-12)
        assert found.greedy == (logp.argmax(-1).tolist() == answer)
        assert (found.tokens, found.stderr, found.truncated) == (len(answer), None, False)


@pytest.mark.parametrize("source", ["prior", "posterior-prompt"])
@pytest.mark.parametrize("settings", [{}, {"attention": "multi-token", "separator": None, "document_mask": False}])
@torch.inference_mode()
def test_a_free_model_has_the_mean_probability_over_its_draws(source: str, settings: dict) -> None:
    model = tiny(3, **settings)
    for (prompt, answer), found in zip(PAIRS, scored(model, PAIRS, z=source, draws=5), strict=True):
        target, each = torch.tensor(answer)[:, None], []
        mixed = torch.zeros(len(answer), 10, dtype=torch.float64)
        for k in range(5):
            logp = literal(model, prompt, answer, drawn(model, prompt, len(prompt + answer) - 1, source, k))
            own = logp.gather(1, target)[:, 0].exp()
            each.append(float(own.prod()))
            before = torch.cat([torch.ones(1, dtype=torch.float64), own[:-1].cumprod(0)])
            mixed += before[:, None] * logp.exp()
        assert found.loglikelihood == pytest.approx(math.log(np.mean(each)), abs=1e-10)
        assert found.stderr == pytest.approx(np.std(each, ddof=1) / math.sqrt(5) / np.mean(each), abs=1e-10)
        assert found.greedy == (mixed.argmax(-1).tolist() == answer)
        assert found.stderr > 1e-4  # Z matters here


@pytest.mark.parametrize("source", ["prior", "posterior-prompt"])
@torch.inference_mode()
def test_the_estimate_is_that_of_the_sum_over_all_z(source: str) -> None:
    """One bit at each of four positions: 16 Zs, weighted by the prior, or by Q of the prompt's bits where they come from the encoder."""
    model, prompt, answer = tiny(1), [9, 1], [4, 5, 6]
    alone = torch.tensor([prompt])
    ctx = model.context(alone)
    p_set = model.infer_latent(model.lower(alone, ctx), alone, ctx).bit_logits[0, :, 0].sigmoid().tolist()
    weights, values = [], []
    for codes in itertools.product([0, 1], repeat=4):
        prior = [0.5] * 4 if source == "prior" else [p_set[t] if codes[t] else 1 - p_set[t] for t in range(2)] + [0.5] * 2
        logp = literal(model, prompt, answer, torch.tensor([codes]))
        weights.append(math.prod(prior))
        values.append(float(logp.gather(1, torch.tensor(answer)[:, None]).sum().exp()))
    assert sum(weights) == pytest.approx(1) and max(values) > 1.05 * min(values)
    (found,) = scored(model, [(prompt, answer)], z=source, draws=4000)
    assert abs(found.loglikelihood - math.log(np.dot(weights, values))) < 4 * found.stderr < 0.1


def test_z_of_the_prompt_never_reads_the_answer() -> None:
    """Scores of an answer are the same whatever else is scored, and its draws do not depend on the other answer."""
    model = tiny(3)
    together, alone = scored(model, PAIRS, draws=4), [scored(model, [pair], draws=4)[0] for pair in PAIRS]
    for one, other in zip(together, alone, strict=True):
        assert one.loglikelihood == pytest.approx(other.loglikelihood, abs=1e-12)


def test_a_long_prompt_loses_its_beginning() -> None:
    model = tiny(None, context=6)
    cut, whole = scored(model, [([9, 8, 7, 1, 2, 3, 4], [5, 6]), ([1, 2, 3, 4, 5], [6, 7])])
    assert cut.truncated and not whole.truncated
    assert cut.loglikelihood == pytest.approx(scored(model, [([7, 1, 2, 3, 4], [5, 6])])[0].loglikelihood, abs=1e-12)
    (long,) = scored(model, [([9], [1, 2, 3, 4, 5, 6, 7, 8])])  # an answer that alone exceeds the context: its end counts
    assert long.truncated and long.tokens == 6


SHARED = [
    ([9, 1, 2, 3, 1, 9, 2], [4, 5, 6]),
    ([9, 1, 2, 3, 1, 9, 2], [4, 5, 7]),
    ([9, 1, 2, 3, 1, 9, 2], [7]),
    ([9, 1, 2, 3, 1, 9, 2], [9, 1]),
    ([9, 2, 2, 2, 2, 2], [0, 1]),
    ([9, 4, 4, 4, 4, 4, 1], [0, 1]),
    ([9, 4, 4, 4, 4, 4, 1], [2, 1, 3]),
]
CONVOLVED = {"init": "random", "kq_layers": [0, 1]}  # a convolution reads earlier queries, in both halves
MULTI_TOKEN = {"attention": "multi-token", "separator": None, "document_mask": False, "multi_token": CONVOLVED}


@pytest.mark.parametrize("source", ["prior", "posterior-prompt"])
@pytest.mark.parametrize(
    ("bits", "settings", "latent"),
    [
        (None, {}, {}),
        (3, {}, {}),
        (3, {"separator": None, "document_mask": False}, {"every": 3}),
        (3, {}, {"kind": "plan", "options": {"plan_bits": 2}}),
        (3, {}, {"window": 4, "beyond": "nothing"}),
        (None, MULTI_TOKEN, {}),
        (3, MULTI_TOKEN, {}),
        (3, {"attention": "multi-token", "multi_token": CONVOLVED}, {}),
        (3, MULTI_TOKEN | {"multi_token": {"cache": "rows", "mask": "double", **CONVOLVED}}, {}),
        (3, {"attention": "differential"}, {}),
        (2, {"separator": None, "document_mask": False}, {"kind": "gaussian", "every": "sequence", "options": {"inject": "memory"}}),
    ],
)
def test_a_long_prompt_is_read_once(
    source: ZSource, bits: int | None, settings: dict, latent: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answers go on from its keys and values, with the scores that each would have in a forward of its own."""
    model, read = tiny(bits, of_latent=latent, **settings), list[tuple[int, ...]]()
    expected = scored(model, SHARED, z=source, draws=5)
    monkeypatch.setitem(scoring.LONG, "cpu", 7)
    lower = Decoder.lower
    monkeypatch.setattr(Decoder, "lower", lambda self, tokens, ctx: read.append(tuple(tokens.shape)) or lower(self, tokens, ctx))
    found = scored(model, SHARED, z=source, draws=5)
    assert read == [(1, 7), (1, 2), (1, 1), (1, 7), (1, 2), (1, 1), (1, 7)]  # of the two prompts once; the short one has one answer
    for one, other in zip(found, expected, strict=True):
        assert one.loglikelihood == pytest.approx(other.loglikelihood, abs=1e-10)
        assert (one.stderr, one.tokens) == (pytest.approx(other.stderr, abs=1e-10), other.tokens)
        assert (one.greedy, one.truncated) == (other.greedy, other.truncated)


def test_batches_do_not_depend_on_the_order_of_the_answers() -> None:
    scorer = Scorer(tiny(3), draws=4)
    tokens = [[row.tokens for row in rows] for rows in scorer.batches(PAIRS)]
    assert tokens == [[row.tokens for row in rows] for rows in scorer.batches(PAIRS[::-1])]
    assert sum(len(rows) for rows in tokens) == 4  # five answers, two of them in one row


@pytest.mark.parametrize("pair", [([], [1]), ([1], [])])
def test_an_empty_prompt_or_answer_is_refused(pair: tuple) -> None:
    with pytest.raises(InputError, match="no answer" if pair[0] else "no prompt"):
        list(Scorer(tiny(None)).batches([pair]))


def test_the_mean_of_logarithms_far_below_zero() -> None:
    value, error = log_mean([-1000.0, -1000.0 + math.log(3)])
    assert value == pytest.approx(-1000 + math.log(2))
    assert error == pytest.approx(np.std([1, 3], ddof=1) / math.sqrt(2) / 2)
    assert log_mean([-2.0]) == (-2.0, None) and log_mean([-math.inf, -math.inf]) == (-math.inf, None)


@torch.inference_mode()
def test_greedy_is_what_the_mixture_would_decode() -> None:
    """A draw counts by what it gives to the answer so far: for some prompts, counting the draws alike decodes another token."""
    model, pairs, differing = tiny(3), [], 0
    for prompt in ([9, a, b] for a in range(3) for b in range(3)):
        answer: list[int] = []
        for _ in range(3):
            weighted, alike = torch.zeros(10, dtype=torch.float64), torch.zeros(10, dtype=torch.float64)
            for k in range(3):
                logp = literal(model, prompt, [*answer, 0], drawn(model, prompt, len(prompt + answer), "posterior-prompt", k))
                before = logp[:-1].gather(1, torch.tensor(answer, dtype=torch.long)[:, None]).sum().exp()
                weighted, alike = weighted + before * logp[-1].exp(), alike + logp[-1].exp()
            differing += int(weighted.argmax()) != int(alike.argmax())
            answer.append(int(weighted.argmax()))
        pairs.append((prompt, answer))
    assert differing > 0
    assert all(one.greedy for one in scored(model, pairs, draws=3))
    other = [(prompt, [*answer[:-1], (answer[-1] + 1) % 10]) for prompt, answer in pairs]
    assert not any(one.greedy for one in scored(model, other, draws=3))
