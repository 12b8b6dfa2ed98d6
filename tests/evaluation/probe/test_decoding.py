"""Probes on posteriors whose codes are known, and the features that they read."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from freetf_cli.config.recipe import DataConfig
from freetf_cli.data.batches import DataSource, open_data
from freetf_cli.evaluation.probe.decoding import READER, HiddenFeatures, _by_document, _relevance, decode, pooled, probe
from freetf_cli.evaluation.probe.factors import row_texts
from freetf_cli.latent.bits import signs
from freetf_cli.tasks import make_task
from freetf_cli.tasks.base import Task
from freetf_cli.tasks.factors import UNREAD
from tests.evaluation.probe.posteriors import posterior_of, silent, starting


@pytest.fixture(scope="module")
def letters() -> tuple[DataSource, Task]:
    source = open_data(DataConfig(task="letters"), context=None, seed=0)
    return source, make_task("letters", source.facts.params)


def test_probes_find_what_z_encodes_and_nothing_else(letters: tuple[DataSource, Task]) -> None:
    source, reader = letters
    rows = source.held_out_factors("val", 1200)
    posterior = posterior_of(lambda row: int(str(row["position"])) // 8, source, 1200)  # Z has the eighth that the target starts in
    texts = row_texts(source, "val", 1200)
    found = {(one.factor, one.source, one.probe): one for one in decode(posterior, signs(posterior.z, 16), reader, rows, texts, 0, silent)}
    assert len(found) == 3 * (2 * 2 + 1)
    for kind in ("linear", "mlp"):
        position = found["position", "Z", kind]
        least = 1.8 if kind == "linear" else 2.4  # the eighths have 2.8 bits; 720 sequences do not teach all
        assert position.bits.low < position.bits.value < 3.0 and position.bits.value > least
        assert position.accuracy.value > 0.08 > position.shuffled
        for name in ("letter", "noise"):
            assert found[name, "Z", kind].bits.value < 0.3
        assert found["position", "hidden", kind].bits.value < 0.2  # noise here
    for name, floor in (("letter", 0.99), ("position", 0.97), ("noise", 0.99)):  # the hidden state is noise, but the sequence tells all
        assert found[name, "sequence", "reader"].accuracy.value > floor
        assert found[name, "sequence", "reader"].bits.value > 0.97 * found[name, "sequence", "reader"].entropy
    few = source.held_out_factors("val", 79)
    small = posterior_of(starting, source, 79)
    assert decode(small, signs(small.z, 16), reader, few, texts, 0, silent) == []


def test_a_probe_leaves_unread_labels_out_and_finds_a_plane() -> None:
    x = np.random.default_rng(0).normal(size=(900, 10))
    labels = (x[:, 0] > 0).astype(np.int64)
    labels[::3] = UNREAD
    found = probe(x, labels, 2, "linear")
    assert found.right.mean() > 0.93 and len(found.right) == 150
    assert found.bits.mean() > 0.7
    xor = ((x[:, 0] > 0) ^ (x[:, 1] > 0)).astype(np.int64)
    assert probe(x, xor, 2, "linear").right.mean() < 0.65 < 0.8 < probe(x, xor, 2, "mlp").right.mean()
    marks = (x[:, :3] > 0).astype(np.int64)
    assert probe(x, marks, 2, "linear").entropy == pytest.approx(3, abs=0.05)


def test_a_reading_counts_as_often_as_it_was_right() -> None:
    """A reader that calls a quarter of the rows 0 whatever they are, and leaves a third unread: values are worth what they were before."""
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=8000)
    reading = np.where(rng.random(8000) < 0.25, 0, labels)
    reading[rng.random(8000) < 1 / 3] = UNREAD
    found = probe(reading, labels, 2, READER)
    right = 2 / 3 * (0.5 + 0.375) + 1 / 3 * 0.5
    assert found.right.mean() == pytest.approx(right, abs=0.02)
    assert found.bits.mean() == pytest.approx(2 / 3 * (1 - 0.625 * _binary(1 / 5)), abs=0.02)
    assert probe(1 - labels, labels, 2, READER).right.all()  # always wrong is as good as always right


def _binary(p: float) -> float:
    return float(-(p * np.log2(p) + (1 - p) * np.log2(1 - p)))


def test_relevance_is_the_share_of_variance_that_labels_explain() -> None:
    """ε² of the F test, as statistics books have it; for marks, that of the best site."""
    from sklearn.feature_selection import f_classif

    rng = np.random.default_rng(0)
    y, x = rng.integers(0, 4, 200), rng.normal(size=(200, 5))
    x[:, 0] += y
    f_values, _ = f_classif(x, y)
    assert _relevance(x, y, 4) == pytest.approx(np.clip(3 * (f_values - 1) / (3 * f_values + 196), 0, 1))
    marks = np.stack([y == 0, y == 1], axis=1).astype(np.int64)
    sites = [f_classif(x, marks[:, site])[0] for site in range(2)]
    assert _relevance(x, marks, 2) == pytest.approx(np.clip(np.max([(f - 1) / (f + 198) for f in sites], axis=0), 0, 1))


def test_features_keep_positions_or_average_segments() -> None:
    assert pooled(torch.arange(12.0).view(1, 6, 2)).tolist() == [list(range(12))]
    long = pooled(torch.ones(2, 640, 3))
    assert long.shape == (2, 64 * 3) and bool((long == 1).all())
    x = torch.zeros(8, 5, 32)
    x[..., 3] = torch.randn(8, 5)
    features = HiddenFeatures()(x).view(8, 5, 16)
    assert torch.allclose(features[..., -1].abs(), (x[..., 3] - x[..., 3].mean()).abs(), atol=1e-5)  # its one direction


def test_documents_stay_together_and_their_order_does_not_matter() -> None:
    documents = np.repeat(np.arange(20), 5)
    ordered = _by_document(range(100), documents, 0)
    pieces = documents[ordered]
    assert (np.diff(np.flatnonzero(np.diff(pieces)), prepend=-1) == 5).all()  # pieces of five
    assert list(pieces[::5]) != sorted(pieces[::5]) and sorted(ordered) == list(range(100))
