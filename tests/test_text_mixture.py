"""scripts/text_mixture.py: what is left out, what is counted, and which lines are asked for."""

from __future__ import annotations

import gzip
import importlib
import json
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from freetf_cli.data.prepare import prepare_text
from tests.evaluation.benchmarks.data import write_all

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
QUESTION = "Mia has seven red apples and nine green apples in a basket, and she eats two of them every day. How many are left?"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("text_mixture")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Tiny data sets in the form of the public ones; one test question of GSM8K is also in a book and among the training problems."""
    folder = write_all(tmp_path / "data")
    rows = [{"question": QUESTION, "answer": "It is 14.\n#### 14"}]
    _write(folder / "gsm8k/test.jsonl.gz", "".join(json.dumps(row) + "\n" for row in rows))
    _write(folder / "gsm8k/train.jsonl.gz", "".join(json.dumps(row) + "\n" for row in [*rows, {"question": "1 + 1?", "answer": "#### 2"}]))
    words = " ".join(f"word{n}" for n in range(2000))
    book = f"{words}\n\nAnd then: {QUESTION.upper()}\n\nThe end of {words}"
    _write(folder / "gutenberg_books/classic-books.jsonl.gz", json.dumps({"text": book}) + "\n")
    for name in ("val.bin", "test.bin", "tinystories_10k"):
        _write(folder / f"tinystories/{name}.txt.gz", f"A story of {name}.<|endoftext|>Its second story.")
    for name in ("wikitext2_train", "valid"):
        _write(folder / f"wikitext2/{name}.txt.gz", " = Tea = \n Tea is hot . \n = = Kinds = = \n Green . \n = Salt = \n Salt is not . \n")
    (folder / "movie_reviews").mkdir()
    with zipfile.ZipFile(folder / "movie_reviews/movie_reviews.zip", "w") as archive:
        for label in ("neg", "pos"):
            archive.writestr(f"movie_reviews/{label}/1.txt", f"a {label} film")
    return folder


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()))


def test_what_benchmarks_have_is_left_out(script: ModuleType, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "PROBLEMS", 30)
    monkeypatch.setitem(script.SOURCES, "python", (lambda data: ["def f(x):\n    return x\n"], "PSF-2.0"))
    out = tmp_path / "mixture"
    script.gather(data, out)
    texts = {name: [json.loads(line)["text"] for line in (out / name / "documents.jsonl").open()] for name in script.SOURCES}
    assert QUESTION.upper() not in texts["books"][0] and texts["books"][0].count("word1999") == 2, "one paragraph is cut"
    assert texts["gsm8k"] == ["Question: 1 + 1?\nAnswer: #### 2"], "a short document is dropped"
    assert len(texts["problems"]) == 30 and texts["reviews"] == ["a neg film", "a pos film"]
    assert len(texts["stories"]) == 5, "the last story of the third file is cut off"
    assert [text.split("\n")[0] for text in texts["wikipedia"]] == ["= Tea = ", "= Salt = "] * 2
    about = json.loads((tmp_path / "mixture.json").read_text())
    assert (about["sources"]["books"]["cut"], about["sources"]["gsm8k"]["dropped"]) == (1, 1)
    assert about["sources"]["books"]["overlaps"] == {"gsm8k": 1} and about["items"]["gsm8k"] == 1


def test_grams_are_those_of_words_whatever_their_case(script: ModuleType) -> None:
    words = [f"w{n}" for n in range(20)]
    one, other = script.grams(" ".join(words)), script.grams("W0, " + "; ".join(words[1:]).upper())
    assert len(one) == 8 and (one == other).all()
    assert np.isin(script.grams(" ".join(["new", *words[3:17]])), one).tolist() == [False, True, True]
    assert not np.isin(script.grams(" ".join(words[::-1])), one).any() and len(script.grams("too few words")) == 0


def test_counts_and_lines_of_a_prepared_folder(script: ModuleType, tmp_path: Path) -> None:
    file = "import os\n" * 130 + "def double(value):\n    result = 2 * value\n    # a comment with words\n    return result + 0\n"
    for label, text in (("python", file), ("books", "once upon a time")):
        (tmp_path / "mix" / label).mkdir(parents=True)
        (tmp_path / "mix" / label / "documents.jsonl").write_text("".join(json.dumps({"text": f"{text}{n}"}) + "\n" for n in range(4)))
    prepare_text([tmp_path / "mix"], tmp_path / "prepared", field="text", split={"train": 0.5, "test": 0.5})
    table = script.table(tmp_path / "prepared")
    assert {label: {name: one["documents"] for name, one in splits.items()} for label, splits in table.items()} == {
        label: {"train": 2, "test": 2} for label in ("books", "python")
    }
    assert table["books"]["test"]["bytes"] == 2 * 17 and table["books"]["test"]["tokens"] == 2 * 18
    found = script.lines(tmp_path / "prepared", "test", 100)
    assert {item["line"] for item in found} == {" double(value):", " = 2 * value", " result + 0"}
    for item in found:
        assert item["context"].endswith(("\ndef", "\n    result", "\n    return")) and len(item["context"]) <= 1200
    assert len(script.lines(tmp_path / "prepared", "test", 2)) == 2
    books = script.haystack(tmp_path / "prepared", "test")
    assert len(books) == 2 and {book["text"][:-1] for book in books} == {"once upon a time"}
