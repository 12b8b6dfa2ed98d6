"""persistence: exact on models whose use of Z is written down, and against a literal computation on a real one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from freetf_cli.config.recipe import DataConfig, ModelConfig
from freetf_cli.data.batches import DataSource, open_data
from freetf_cli.errors import InputError
from freetf_cli.evaluation.metrics import Request, persistence
from freetf_cli.latent.binary import BinaryDistribution
from freetf_cli.latent.build import build_model
from freetf_cli.records import LN2
from tests.evaluation.probe.planted import Planted, small_free

FREE = SimpleNamespace(recipe=SimpleNamespace(kind="free"), step=0)
P = 0.9


class Late(Planted):
    """Coins of probability P or 1 − P by the lowest bit of the code `delay` positions before; without a delay Z is ignored."""

    def __init__(self, delay: int | None) -> None:
        super().__init__(vocab=3, bits=4)
        self.delay = delay

    def infer_latent(self, x_BTD: Tensor, tokens_BT: Tensor, ctx: Any) -> BinaryDistribution:
        """The lowest bit of a code is that of the token, the others are as under the prior."""
        logits = torch.zeros(*tokens_BT.shape, 4, dtype=torch.float64)
        logits[..., 0] = torch.where(tokens_BT > 0, 3.0, -3.0)
        return BinaryDistribution(logits)

    def write(self, tokens_BT: Tensor, codes_BT: Tensor) -> Tensor:
        p_B = torch.full((len(tokens_BT),), 0.5, dtype=torch.float64)
        if self.delay is not None and codes_BT.shape[1] > self.delay:
            p_B = torch.where(codes_BT[:, -1 - self.delay] & 1 == 1, P, 1 - P).double()
        return torch.stack([1 - p_B, p_B, torch.full_like(p_B, 1e-30)], -1).log()


def coins(length: int = 13) -> DataSource:
    """Rows of so many tokens, the two separators included."""
    return open_data(DataConfig(task="coins", params={"length": length - 2}), context=None, seed=0)


def measured(model: Any, source: DataSource, **settings: int) -> persistence.Persistence:
    return persistence.evaluate(FREE, model, source, Request("r", "val", **settings))  # type: ignore[arg-type]


def test_an_ignored_z_has_no_effect() -> None:
    found = measured(Late(None), coins(), sequences=60)
    assert (found.tokens.value, found.tokens.high, found.total.value) == (0, 0, 0)
    assert [one.value for one in found.kl] == [0] * 6 == [one.value for one in found.differing]
    assert max(found.kl_all) == 0 and all(0.2 < share < 0.8 for share in found.independent)


def test_an_effect_is_found_where_it_is() -> None:
    """With a delay of 2 only the third token depends on Z_t: half of the redrawn bits differ, and then the KL is that of 0.9 from 0.1."""
    found = measured(Late(2), coins(), sequences=600)
    whole = (2 * P - 1) * np.log2(P / (1 - P))
    assert (found.tokens.value, found.tokens.low, found.tokens.high) == (3, 3, 3)
    assert [one.value for k, one in enumerate(found.kl) if k != 2] == [0] * 5
    assert found.kl[2].value == pytest.approx(whole / 2, rel=0.2) and found.kl[2].low < whole / 2 < found.kl[2].high
    assert found.differing[2].value == pytest.approx((2 * P - 1) / 2, rel=0.15)  # of two tokens, as often as they vary
    assert found.differing[1].value == 0 and found.kl_all[0] == found.kl_all[1] == 0
    assert found.kl_all[3] == pytest.approx(whole / 2, rel=0.15)


def test_agreement_is_that_of_the_posteriors_likelier_bits() -> None:
    source = coins()
    found = measured(Late(0), source, sequences=50)
    inputs = np.concatenate([batch.inputs for batch in source.held_out("val", 50, 50)])
    assert found.agreement == pytest.approx(((inputs[:, 1:] > 0) == (inputs[:, :-1] > 0)).mean())


@torch.inference_mode()
def test_divergences_are_those_of_the_formula() -> None:
    source, model = coins(9), small_free(context=8, vocab=3)
    request = Request("r", "val", sequences=30)
    cases = persistence._cases(model, source, request, 4)
    assert cases.places.min() == 0 and cases.places.max() == 4
    noise = np.random.default_rng(0).random((30, 4))
    text = persistence._written(model, cases, cases.a, noise)
    found = persistence._divergences(model, cases, text, request)
    for row in range(30):
        t = cases.places[row]
        assert (cases.a[row] != cases.b[row]).nonzero()[0].tolist() in ([t], [])
        assert (cases.a[row, :t] == cases.c[row, :t]).all()
        tokens = [*cases.tokens[row, : t + 1], *text[row]]
        p, q, whole = (
            torch.softmax(model(torch.tensor([tokens[:-1]]), torch.tensor(z[row : row + 1, : len(tokens) - 1])).logits[0, t:], -1)
            for z in (cases.a, cases.b, cases.c)
        )
        for other, terms in ((q, found[0]), (whole, found[1])):
            expected = (p * (p / other).log()).sum(-1) / LN2
            assert terms[row] == pytest.approx(expected.numpy(), abs=1e-9)
        drawn = persistence.choose_by_gumbel(p.log(), torch.from_numpy(noise[row]))
        assert drawn.tolist() == text[row].tolist()


def test_gumbel_noise_gives_the_distribution_and_joins_near_ones() -> None:
    quantiles = torch.from_numpy(np.random.default_rng(1).random(20_000))
    p = torch.softmax(torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64), -1)
    q = p * (1 + 0.02 * torch.sin(torch.arange(400.0)))
    q = q / q.sum()
    drawn, other = (persistence.choose_by_gumbel(one.log().expand(len(quantiles), -1), quantiles) for one in (p, q))
    expected = len(quantiles) * p
    assert float(((torch.bincount(drawn, minlength=400) - expected) ** 2 / expected).sum()) < 400 + 5 * (2 * 400) ** 0.5  # χ²
    variation = float((p - q).abs().sum() / 2)
    assert 0.5 * variation < float((drawn != other).double().mean()) < 2 * variation / (1 + variation) + 0.004


def test_measured_again_or_in_other_batches_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    source, model = coins(9), small_free(context=8, vocab=3)
    once = measured(model, source, sequences=40)
    monkeypatch.setattr(persistence, "rows_at_once", lambda model, context: 7)
    again = measured(model, source, sequences=40)
    assert [one.value for one in again.kl] == pytest.approx([one.value for one in once.kl], abs=1e-12)
    assert again.independent == once.independent and again.tokens == once.tokens
    assert once.total.value == pytest.approx(sum(one.value for one in once.kl)) and once.total.value > 0


def test_what_follows_the_end_of_a_text_does_not_count() -> None:
    alive = persistence._alive(np.array([[4, 9, 4, 9], [4, 4, 4, 4]]), 9)
    assert alive.tolist() == [[True, True, False, False], [True] * 4]
    means, _ = persistence._means(np.array([[1.0, 1, 9, 9]] + [[3.0, 1, 2, 0]] * 24), np.repeat(alive, [1, 24], 0), np.arange(25), 0)
    assert [one.value for one in means] == [73 / 25, 1, 2, 0]


def test_the_last_offset_above_the_level_counts() -> None:
    means = np.array([[0.5, 0.0, 0.02, 0.009], [0.0, 0, 0, 0], [0.1, 0.1, 0.1, 0.1]])
    assert persistence._last(means).tolist() == [3, 0, 4]


def test_a_baseline_is_refused() -> None:
    with pytest.raises(InputError, match="has no Z"):
        measured(build_model(ModelConfig(layers=2, width=16, heads=2, vocab=3, context=12), None), coins())


def test_tokens_that_share_a_z_are_refused() -> None:
    model = small_free(context=8, vocab=3)
    model.latent.every = "sequence"
    with pytest.raises(InputError, match="several share one"):
        measured(model, coins(9), sequences=30)
