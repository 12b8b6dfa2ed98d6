"""Codes for a label: found where they are planted, and not where there is nothing to find."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from freetf_cli.config.recipe import DataConfig, ModelConfig
from freetf_cli.data.batches import DataSource, open_data
from freetf_cli.data.prepare import prepare_text
from freetf_cli.errors import InputError
from freetf_cli.evaluation import steering
from freetf_cli.evaluation.steering import BitSums, CodesSpec, find_codes, label_values, log_odds
from freetf_cli.latent.binary import BinaryDistribution
from freetf_cli.latent.bits import code_bits
from freetf_cli.latent.build import build_model
from freetf_cli.records.steering import FoundCodes
from tests.evaluation.probe.planted import Planted

CONTEXT, BIT = 8, 3
RUN = SimpleNamespace(step=0)


class Opinion(Planted):
    """Words `aa` or `bb` by bit 3 of the first code. The encoder is right with odds e² : 1; with `knows` = 0 it knows nothing."""

    def __init__(self, knows: float = 1.0) -> None:
        super().__init__(vocab=257, bits=5)
        self.knows = knows

    def infer_latent(self, x_BTD: Tensor, tokens_BT: Tensor, ctx: Any) -> BinaryDistribution:
        length_B11 = (tokens_BT < 256).sum(1)[:, None, None]  # the other bits tell how long the text is, which is no label
        logits = torch.sin(length_B11 * torch.arange(1.0, 6.0, dtype=torch.float64)).expand(-1, tokens_BT.shape[1], -1).clone()
        logits[:, 0, BIT] = 0.0
        logits[:, 0, BIT] += self.knows * torch.where((tokens_BT == ord("a")).any(1), 2.0, -2.0)
        return BinaryDistribution(logits)

    def write(self, tokens_BT: Tensor, codes_BT: Tensor) -> Tensor:
        letter_B = torch.where(code_bits(codes_BT[:, 0], 5)[:, BIT] == 1, ord("a"), ord("b"))
        logits = torch.full((len(tokens_BT), 257), -50.0, dtype=torch.float64)
        return logits.scatter(1, letter_B[:, None], 50.0) if tokens_BT.shape[1] != 3 else logits.index_fill(1, torch.tensor([32]), 50.0)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> DataSource:
    folder = tmp_path_factory.mktemp("labelled")
    for label, letter in (("nay", "b"), ("aye", "a")):
        (folder / "text" / label).mkdir(parents=True)
        for number in range(60):
            (folder / "text" / label / f"{number}.txt").write_text(f"{letter * 2} {letter * (3 + number % 2)}")
    prepare_text([folder / "text"], folder / "data", split={"train": 0.75, "val": 0.25})
    return open_data(DataConfig(dir=str(folder / "data"), rows="documents"), context=CONTEXT, seed=0)


def found(model: Any, source: DataSource, out: Path, **settings: Any) -> FoundCodes:
    def stage(name: str, total: int) -> Any:
        return nullcontext(lambda count: None)

    return find_codes(RUN, model, source, CodesSpec(**settings), out, run="r", stage=stage)  # type: ignore[arg-type]


def test_planted_codes_are_found_and_steer(source: DataSource, tmp_path: Path) -> None:
    result = found(Opinion(), source, tmp_path, count=100)
    assert result.label == "label" and [one.value for one in result.codes] == ["aye", "nay"]
    for one in result.codes:
        assert (one.documents, one.positions) == (45, 1) and one.bits == 1
        assert one.strongest == pytest.approx(4.0, rel=0.1)  # from odds of e² to e⁻²
        assert one.share is not None and one.prior is not None
        assert one.share.low > 0.94 and abs(one.prior.value - 0.5) < 0.17
    assert any("right on" in note for note in result.notes)
    records = [json.loads(line) for line in (tmp_path / "aye.jsonl").read_text().splitlines()]
    z = np.array([record["z"] for record in records])
    assert z.shape == (100, CONTEXT) and {record["label"] for record in records} == {"aye"}
    set_bits = (z[..., None] >> np.arange(5) & 1).mean(0)
    assert set_bits[0, BIT] > 0.95 and abs(np.delete(set_bits.ravel(), BIT) - 0.5).max() < 0.2


def test_strength_one_is_the_labels_own_frequency_and_zero_the_prior(source: DataSource, tmp_path: Path) -> None:
    for strength, low, high in ((1.0, 0.77, 0.96), (0.0, 0.35, 0.65)):  # σ(2) = 0.88
        result = found(Opinion(), source, tmp_path, count=100, strength=strength)
        assert all(low < one.share.value < high for one in result.codes if one.share)


def test_nothing_is_found_where_z_tells_nothing(source: DataSource, tmp_path: Path) -> None:
    result = found(Opinion(knows=0.0), source, tmp_path, count=60)
    assert sum(one.bits for one in result.codes) <= 2
    assert all(one.share and abs(one.share.value - 0.5) < 0.26 for one in result.codes), "four standard errors"


def test_log_odds_are_those_of_the_means() -> None:
    rng = np.random.default_rng(0)
    p_NTH = rng.uniform(0.1, 0.3, (90, 2, 2))
    p_NTH[:30, 0, 0] += 0.5
    number_N = np.repeat([0, 1, 2], 30)
    count = np.full((3, 2), 30.0)
    count[:, 1] = 19  # too few documents reach the second position
    total, square = (np.stack([(p_NTH**power)[number_N == k].sum(0) for k in range(3)]) for power in (1, 2))
    odds = log_odds(BitSums(np.array([30, 30, 30]), count, total, square))
    mean = (total[:, 0, 0] + 0.5) / 31
    rest = (mean[1] + mean[2]) / 2
    assert odds[0, 0, 0] == pytest.approx(np.log(mean[0] / (1 - mean[0])) - np.log(rest / (1 - rest)))
    assert odds[1, 0, 0] < 0 and not odds[:, 1].any()


def test_discoveries_are_those_of_the_literal_procedure() -> None:
    p = np.array([[0.001, 0.04], [0.03, 0.5]])
    assert steering._discoveries(p).tolist() == [[True, True], [True, False]]  # 0.04 ≤ 0.1 · 3/4
    assert not steering._discoveries(np.array([0.06, 0.9])).any()


def test_labels_that_cannot_be_used() -> None:
    rows = [{"sentiment": "good" if n % 2 else "bad", "genre": "western"} for n in range(50)]
    with pytest.raises(InputError, match="which label"):
        label_values(rows, None)
    assert label_values(rows, "sentiment")[:2] == ("sentiment", ["bad", "good"])
    with pytest.raises(InputError, match="genre' has 1 values"):
        label_values(rows, "genre")
    with pytest.raises(InputError, match="did you mean 'genre'"):
        label_values(rows, "genr")
    with pytest.raises(InputError, match="no labels"):
        label_values([{}], None)


def test_a_baseline_is_refused(source: DataSource, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no Z"):
        found(build_model(ModelConfig(layers=2, width=16, heads=2, vocab=257, context=CONTEXT), None), source, tmp_path)
