"""Data sets of the Hugging Face Hub, through `datasets`: here from local folders, which it streams in the same way."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from freetf_cli.data.dataset import Dataset
from freetf_cli.data.files import Notes
from freetf_cli.data.prepare import prepare_text
from freetf_cli.data.text import read_documents
from freetf_cli.errors import FreetfError, InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set of two splits in JSON lines."""
    pytest.importorskip("datasets")
    for split, count in (("train", 10), ("validation", 2)):
        rows = [{"text": f"{split} {i}" if i != 1 else None, "id": i} for i in range(count)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_a_split_is_streamed(folder: Path) -> None:
    notes = Notes()
    documents = list(read_documents([f"hf:{folder}"], field="text", note=notes))
    assert [document.text for document in documents] == [f"train {i}" for i in range(10) if i != 1]
    assert documents[1].source == f"{folder}:3" and notes.lines() == [f"{folder}:2: skipped, empty"]
    for field in ("text", None):  # `text` is the default
        (other,) = read_documents([f"hf:{folder}::validation"], field=field)
        assert other.text == "validation 0"
    (folder / "train.jsonl").write_text('{"body": "a", "url": "u"}\n')
    with pytest.raises(InputError, match=r"which column of the data set is the text.*; give --field: body, url"):
        list(read_documents([f"hf:{folder}"]))


def test_bpe_reads_it_twice(folder: Path, tmp_path: Path) -> None:
    summary = prepare_text([f"hf:{folder}"], tmp_path / "d", tokenizer="bpe:300", field="text")
    assert summary.splits["train"]["documents"] == 8 and len(Dataset.open(tmp_path / "d").split("val")) == 1


@pytest.mark.parametrize(
    ("name", "field", "message"),
    [
        ("{folder}", "txt", "no column 'txt', .*row 1; did you mean 'text'"),
        ("{folder}", "id", "column 'id' is not text"),
        ("{folder}::test", "text", "cannot be read: .*test"),
        ("{folder}:other", "text", "cannot be read: .*other"),
        ("{folder}/nothing", "text", "the data set cannot be read: "),
        ("", "text", "is named hf:NAME"),
        ("a:b:c:d", "text", "is named hf:NAME"),
    ],
)
def test_what_is_refused(name: str, field: str | None, message: str, folder: Path) -> None:
    with pytest.raises(InputError, match=message):
        list(read_documents([f"hf:{name.format(folder=folder)}"], field=field))


def test_a_damaged_file_is_named_with_its_row(folder: Path) -> None:
    with (folder / "train.jsonl").open("a") as file:
        file.write('{"text": "cut o')
    with pytest.raises(InputError, match=rf"the data set cannot be read: .*hf:{folder}, after row \d+"):
        list(read_documents([f"hf:{folder}"], field="text"))


def test_a_nul_is_named_with_its_row(folder: Path) -> None:
    (folder / "train.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ("a", "b\0")))
    with pytest.raises(InputError, match=rf"a NUL in the text, hf:{folder}, row 2"):
        list(read_documents([f"hf:{folder}"], field="text"))


def test_without_a_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def fail(*names: Any, **options: Any) -> None:
        raise ConnectionError("the Hub is out of reach")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(FreetfError, match=r"the Hub is out of reach, hf:some/name; is there a network\?") as caught:
        list(read_documents(["hf:some/name"], field="text"))
    assert not isinstance(caught.value, InputError)


def test_a_missing_library_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(FreetfError, match=r"need datasets, which is not installed; pip install 'freetf\[data\]'"):
        list(read_documents(["hf:some/name"], field="text"))


@pytest.mark.network
def test_a_data_set_of_the_hub() -> None:
    pytest.importorskip("datasets")
    assert next(read_documents(["hf:roneneldan/TinyStories::validation"], field="text")).text
