"""Reading factors: tasks exactly, labels of text by a linear classifier."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from freetf_cli.config.recipe import DataConfig
from freetf_cli.data.batches import DataSource, open_data
from freetf_cli.data.rows import HELD_OUT_SEED
from freetf_cli.errors import InputError
from freetf_cli.evaluation.probe.factors import TextLabels, factor_reader, probe_library
from freetf_cli.streams import stream_seed
from freetf_cli.tasks import make_task
from freetf_cli.tasks.factors import UNREAD, Factor, Ints, RowReader, encode


def numbers(reader: RowReader, texts: list[str]) -> dict[str, Ints]:
    return encode(reader.factors, [reading.factors for reading in reader.read_all(texts)])


def source_of(task: str) -> DataSource:
    return open_data(DataConfig(task=task), context=None, seed=0)


def test_reading_letters_agrees_with_the_truth() -> None:
    source = source_of("letters")
    reader = factor_reader(source, "val", 20)
    assert reader is source.task is not None
    rows = source.held_out_factors("val", 300)
    texts = [source.tokenizer.decode(np.append(row, 0)) for batch in source.held_out("val", 300, 300) for row in batch.inputs]
    texts = [text[:-1] + "_" for text in texts]  # the last token of a row is no input
    truth, read = encode(reader.factors, rows), numbers(reader, texts)
    assert (truth["letter"] == read["letter"]).mean() > 0.98
    assert (truth["position"] == read["position"]).mean() > 0.97
    assert (truth["noise"][:, :63] == read["noise"][:, :63]).all()
    assert numbers(reader, ["K>" + "_" * 64])["position"].tolist() == [UNREAD]


def test_reading_labels_from_words() -> None:
    """The likelier label, and none for a text without a known word."""
    texts = ["good fine film", "a fine good one", "bad dull film", "a dull bad one"] * 5
    rows = [{"mood": label} for label in ["up", "up", "down", "down"] * 5]
    reader = TextLabels(texts, rows, [Factor("mood", ("down", "up"))])
    assert numbers(reader, ["good!", "so DULL", "unknown", ""])["mood"].tolist() == [1, 0, UNREAD, UNREAD]
    wordless = TextLabels(["1 2", "3 4"], rows[:2], [Factor("mood", ("down", "up"))])
    assert numbers(wordless, ["1 2"])["mood"].tolist() == [UNREAD]


def test_pairs_of_words_are_read() -> None:
    """Every text has the same words; only their order tells the label."""
    texts = ["good not bad", "bad not good", "not bad good", "not good bad"] * 4
    rows = [{"x": label} for label in ["up", "down", "up", "down"] * 4]
    reader = TextLabels(texts, rows, [Factor("x", ("down", "up"))])
    assert numbers(reader, ["it is not bad", "it is not good"])["x"].tolist() == [1, 0]


def test_reading_sentiment_from_reviews() -> None:
    source = source_of("reviews")
    found = factor_reader(source, "val", 200)
    assert found is not None and {one.name for one in found.factors} == {"genre", "sentiment"}
    truth = encode(found.factors, source.held_out_factors("val", 200))["sentiment"]
    texts = [example.text for example in make_task("reviews", {}).examples(stream_seed(HELD_OUT_SEED, "val"), 0, 200)]
    assert (numbers(found, texts)["sentiment"] == truth).mean() > 0.97
    how = "is read from words and pairs of words by a linear classifier, 100.0% right on 200 held-out sequences"
    assert found.notes[0] == f"sentiment (negative, positive) {how}"
    cut = factor_reader(source, "val", 200, longest=20)
    assert cut is not None and cut.notes[0].endswith("held-out sequences, cut to 20 tokens") and cut.notes[0] != found.notes[0]
    again = factor_reader(source, "train", 200)
    assert again is not None and again.notes[0].endswith("on 200 of the very texts that it learned from")


def test_coins_are_read_and_other_tasks_have_no_factor() -> None:
    reader = factor_reader(source_of("coins"), "val", 20)
    assert reader is not None
    assert numbers(reader, ["0001", "0111", "101"])["z"].tolist() == [0, 1, UNREAD]  # the first is given
    assert factor_reader(source_of("blocks"), "val", 20) is None


def test_a_missing_library_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert probe_library("sklearn.linear_model").LogisticRegression
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(InputError, match=r"needs sklearn, which is not installed; pip install scikit-learn scipy"):
        factor_reader(source_of("letters"), "val", 20)
