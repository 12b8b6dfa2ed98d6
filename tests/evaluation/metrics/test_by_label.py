"""by_label: windows within documents of one label, and their likelihood against one computed by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from freetf_cli.config.recipe import DataConfig, LatentConfig, ModelConfig
from freetf_cli.data.batches import DataSource, open_data
from freetf_cli.data.prepare import prepare_text
from freetf_cli.errors import InputError
from freetf_cli.evaluation.metrics import Request, by_label
from freetf_cli.latent.build import build_model, initialise_model
from freetf_cli.records import LN2

BASELINE = SimpleNamespace(recipe=SimpleNamespace(kind="baseline"), step=0)
FREE = SimpleNamespace(recipe=SimpleNamespace(kind="free"), step=0)
CONTEXT = 8


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> DataSource:
    """Short documents of `a` and `b`, and few of `few`: windows of 9 tokens often span several."""
    folder = tmp_path_factory.mktemp("labelled")
    for label, text, count in (("a", "aaaaé", 60), ("b", "bbbbbbbbbbbb", 40), ("few", "ccc", 3)):
        for number in range(count):
            (folder / "text" / label).mkdir(parents=True, exist_ok=True)
            (folder / "text" / label / f"{number:02}.txt").write_text(text)
    prepare_text([folder / "text"], folder / "data", split={"train": 0.5, "val": 0.5})
    return open_data(DataConfig(dir=str(folder / "data")), context=CONTEXT, seed=0)


def by_hand(source: DataSource) -> dict[str, list[np.ndarray]]:
    """The windows of the val split by label, from the text that they stand for."""
    found: dict[str, list[np.ndarray]] = {"a": [], "b": [], "few": []}
    for batch in source.held_out("val", 10_000, 1):
        window = np.array([*batch.inputs[0], batch.targets[0, -1]])
        letters = {chr(one) for one in window if one < 128} | ({"a"} if ((window >= 128) & (window < 256)).any() else set())
        letters &= {"a", "b", "c"}
        if len(letters) == 1:
            found[{"a": "a", "b": "b", "c": "few"}[letters.pop()]].append(window)
    return found


def test_windows_of_one_label_are_measured_apart(source: DataSource) -> None:
    model = build_model(ModelConfig(layers=2, width=16, heads=2, vocab=257, context=CONTEXT), None)
    initialise_model(model, seed=0)
    found = by_label.evaluate(BASELINE, model, source, Request("r", "val", sequences=1000))  # type: ignore[arg-type]
    expected = by_hand(source)
    assert [one.label for one in found.labels] == ["a", "b"] and found.left_out == ["few"]
    for one in found.labels:
        windows = torch.from_numpy(np.stack(expected[one.label]))
        with torch.no_grad():
            log_p = torch.log_softmax(model(windows[:, :-1]).logits.double(), -1).gather(2, windows[:, 1:, None])
        assert (one.sequences, one.tokens) == (len(windows), windows[:, 1:].numel())
        assert one.nll.nats_per_token == pytest.approx(-float(log_p.mean()), rel=1e-5)
        text_bytes = int((windows[:, 1:] != 256).sum())
        assert one.nll.bits_per_byte == pytest.approx(-float(log_p.sum()) / LN2 / text_bytes, rel=1e-5)
        assert one.kl is None
    assert "few" in str(found.report().blocks[-1])
    table = found.report().blocks[1]
    assert [row[-1] for row in table.rows] == [f"{np.exp(one.nll.nats_per_token):.2f}" for one in found.labels]  # type: ignore[attr-defined]


def test_a_free_models_windows(source: DataSource) -> None:
    config = ModelConfig(layers=2, width=16, heads=2, vocab=257, context=CONTEXT)
    model = build_model(config, LatentConfig(kappa=0.5, bits=4))
    initialise_model(model, seed=0)
    found = by_label.evaluate(FREE, model, source, Request("r", "val", sequences=20, draws=4))  # type: ignore[arg-type]
    for one in found.labels:
        assert one.sequences == 20 and one.ce_posterior is not None and one.kl is not None
        assert one.elbo.nats_per_token == pytest.approx(one.ce_posterior.nats_per_token + one.kl.nats_per_token)


def test_labels_of_rows_that_are_documents(source: DataSource) -> None:
    documents = open_data(DataConfig(dir=str(source.folder), rows="documents"), context=CONTEXT, seed=0)
    assert sorted(set(documents.rows.labels("val"))) == ["a", "b", "few"]  # type: ignore[union-attr]


def test_data_without_labels_is_refused() -> None:
    model = build_model(ModelConfig(layers=2, width=16, heads=2, vocab=2, context=CONTEXT), None)
    with pytest.raises(InputError, match="has none"):
        source = open_data(DataConfig(task="coins", params={"length": 9}), context=None, seed=0)
        by_label.evaluate(BASELINE, model, source, Request("r", "val"))  # type: ignore[arg-type]
