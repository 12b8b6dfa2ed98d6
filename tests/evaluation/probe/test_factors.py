"""Reading factors: tasks exactly, labels of text by a linear classifier."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from freetf_cli.config.recipe import DataConfig
from freetf_cli.data.batches import DataSource, open_data
from freetf_cli.data.prepare import prepare_text
from freetf_cli.errors import InputError
from freetf_cli.evaluation.probe.factors import TextLabels, factor_reader, probe_library, row_texts
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


def test_reading_labels_of_prepared_text(tmp_path: Path) -> None:
    examples = make_task("reviews", {}).examples(0, 0, 400)
    for number, example in enumerate(examples):
        folder = tmp_path / "texts" / example.factors["sentiment"]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.txt").write_text(example.text, encoding="utf-8")
    prepare_text([tmp_path / "texts"], tmp_path / "data", split={"train": 0.5, "val": 0.5})
    source = open_data(DataConfig(dir=str(tmp_path / "data"), rows="documents"), context=200, seed=0)
    found = factor_reader(source, "val", 150)
    assert found is not None and [(one.name, one.values) for one in found.factors] == [("label", ("negative", "positive"))]
    truth = encode(found.factors, source.held_out_factors("val", 150))["label"]
    assert (numbers(found, row_texts(source, "val", 150))["label"] == truth).mean() > 0.97
    how = r"is read from words and pairs of words by a linear classifier, (100|99|98).\d% right on 150 held-out sequences"
    assert re.fullmatch(rf"label \(negative, positive\) {how}", found.notes[0])
    cut = factor_reader(source, "val", 150, longest=20)
    assert cut is not None and cut.notes[0].endswith("held-out sequences, cut to 20 tokens") and cut.notes[0] != found.notes[0]
    again = factor_reader(source, "train", 150)
    assert again is not None and again.notes[0].endswith("on 150 of the very texts that it learned from")


def test_a_generated_review_is_read_by_its_grammar() -> None:
    reader = factor_reader(source_of("reviews"), "val", 20)
    assert reader is not None and not reader.notes
    texts = ["Another western about two riders and one horse: The Last Guest in July. Stay at home.", "I saw it. Stay at home."]
    assert [list(found) for found in numbers(reader, texts).values()] == [[0, UNREAD], [3, UNREAD]]


def test_coins_are_read_and_other_tasks_have_no_factor() -> None:
    reader = factor_reader(source_of("coins"), "val", 20)
    assert reader is not None
    assert numbers(reader, ["0001", "0111", "1010"])["z"].tolist() == [0, 1, UNREAD]
    assert factor_reader(source_of("blocks"), "val", 20) is None


def test_a_missing_library_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert probe_library("sklearn.linear_model").LogisticRegression
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(InputError, match=r"needs sklearn, which is not installed; pip install 'freetf\[probe\]'"):
        factor_reader(source_of("letters"), "val", 20)
