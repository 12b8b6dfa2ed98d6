"""Documents from files, folders, archives, JSON lines and pipes, and the input that is refused."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import sys
import zipfile
from pathlib import Path

import pytest

from freetf_cli.data import files
from freetf_cli.data.files import Notes
from freetf_cli.data.text import read_documents
from freetf_cli.errors import InputError

EXCERPTS = Path(__file__).resolve().parent.parent / "excerpts"


def texts(*paths: object, **options: str) -> list[str]:
    return [document.text for document in read_documents([str(path) for path in paths], **options)]  # type: ignore[arg-type]


def test_packed_files_contain_the_same_text(tmp_path: Path) -> None:
    raw = (EXCERPTS / "shakespeare.txt").read_bytes()
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(raw))
    (tmp_path / "a.txt.bz2").write_bytes(bz2.compress(raw))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("deep/inside/a.txt", raw)
    packed = texts(tmp_path / "a.txt.gz", tmp_path / "a.txt.bz2", tmp_path / "a.zip")
    assert packed == [raw.decode()] * 3 == texts(EXCERPTS / "shakespeare.txt") * 3


def test_a_folder_is_read_in_order_and_labelled(tmp_path: Path) -> None:
    documents = list(read_documents([EXCERPTS / "movie_reviews"]))
    assert [document.label for document in documents] == ["neg"] * 4 + ["pos"] * 4
    assert documents[0].source == "movie_reviews/neg/cv435_24355.txt"
    assert documents[0].text == (EXCERPTS / "movie_reviews/neg/cv435_24355.txt").read_text(encoding="utf-8")
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    (tmp_path / ".hidden").write_text("c")
    assert [(d.text, d.label) for d in read_documents([tmp_path])] == [("b", None), ("a", None)]


def test_labels_and_the_readme_of_an_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "reviews.zip", "w") as archive:
        for name in ("r/pos/1.txt", "r/neg/2.txt", "r/pos/3.txt", "r/README", "r/neg/empty.txt"):
            archive.writestr(name, "" if "empty" in name else name)
    notes = Notes()
    documents = list(read_documents([tmp_path], note=notes))
    assert [(d.text, d.label) for d in documents] == [("r/neg/2.txt", "neg"), ("r/pos/1.txt", "pos"), ("r/pos/3.txt", "pos")]
    named = [f"{tmp_path.name}/reviews.zip/r/{name}" for name in ("README: skipped, a description of the labelled data", "neg/empty.txt")]
    assert notes.lines() == [named[0], f"{named[1]}: skipped, empty"]


def test_json_lines(tmp_path: Path) -> None:
    records = [json.loads(line) for line in (EXCERPTS / "classics.jsonl").read_text(encoding="utf-8").splitlines()]
    documents = list(read_documents([EXCERPTS / "classics.jsonl"], field="text"))
    assert [document.text for document in documents] == [record["text"] for record in records]
    assert documents[2].source == "classics.jsonl:3"
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b'{"t": "one\\u2028two"}\r\n\r\n{"t": "three"}'))
    assert texts(tmp_path / "c.jsonl.gz", field="t") == ["one\u2028two", "three"]


@pytest.mark.parametrize(
    ("line", "field", "message"),
    [
        ('{"body": "a"}', None, "give --field: body"),
        ('{"body": "a", "body": "b"}', None, "give --field: body$"),
        ('{"text": "a", "text": "b"}', None, "the field 'text' 2 times"),
        ('{"text": {"en": "a"}}', None, "no field of the record is text"),
        ('{"text": "a"}', "txt", "line 1; did you mean 'text'"),
        ('{"text": 3}', "text", "is not text"),
        ('{"text": "a", "text": "b"}', "text", "the field 'text' 2 times"),
        ("[1]", "text", "not a JSON object, .*; write the elements of an array as records"),
        ("[", "text", "not a JSON record, .*; write the elements of an array as records"),
        ("3", "text", "not a JSON object, .*line 1$"),
        ('{"text": ', "text", "not a JSON record"),
        ("[" * 200_000, "text", "not a JSON record"),
        ('{"text": "\\ud800"}', "text", "half a surrogate"),
        ('{"text": "a\\u0000b"}', "text", "NUL"),
    ],
)
def test_bad_records(line: str, field: str | None, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(line)
    with pytest.raises(InputError, match=message) as caught:
        list(read_documents([tmp_path / "a.jsonl"], field=field))
    assert "a.jsonl, line 1" in str(caught.value)


def test_the_field_text_needs_no_option(tmp_path: Path) -> None:
    """Without `field`, records are read under `text`, whatever other texts they have."""
    (tmp_path / "a.jsonl").write_text('{"url": "u", "text": "one"}\n{"text": "two"}\n')
    assert texts(tmp_path / "a.jsonl") == ["one", "two"]


def test_plain_text_beside_records(tmp_path: Path) -> None:
    """`field` does not make records of .txt files, unless they hold some; a note says how each was read."""
    written = {"a.jsonl": '{"t": "one"}', "b.txt": "\ntwo", "c.txt": ' {"t": "three"}', "d.md": "", "e.json": '{"t": "four"}'}
    for name, text in written.items():
        (tmp_path / name).write_text(text)
    notes = files.Notes()
    found = [document.text for document in read_documents([tmp_path], field="t", note=notes)]
    assert found == ["one", "\ntwo", "three", "four"]
    assert "b.txt and 1 other: read as text: --field is for JSON lines and Parquet files" in notes.lines()[0]
    assert texts(tmp_path / "e.json") == ['{"t": "four"}']
    list(read_documents([tmp_path / "e.json"], note=notes))
    assert notes.lines()[-1].startswith("e.json: read as text, with its markup")


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    for fed, field in ((b"plain text", None), (b'{"t": "plain text"}', "t")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(fed)))
        assert [d.text for d in read_documents(["-"], field=field)] == ["plain text"]


@pytest.mark.parametrize("chunk", [1, 2, 5, 1 << 20])
def test_document_separator_wherever_chunks_end(chunk: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(files, "CHUNK", chunk)
    (tmp_path / "stories.txt").write_text("öne\n<|e|>\n\ntwo <|e| |>\r\n<|e|><|e|>\nthree", encoding="utf-8")
    assert texts(tmp_path / "stories.txt", document_separator="<|e|>") == ["öne", "two <|e| |>", "three"]
    assert len(texts(tmp_path / "stories.txt")) == 1


@pytest.mark.parametrize(
    ("raw", "separator", "note"),
    [
        (b"one\ntwo", "\n\n", r"a.txt: the document separator '\n\n' does not occur"),
        (b"one\r\n\r\ntwo", "\n\n", r"a.txt: the document separator '\n\n' does not occur; lines end with \r\n"),
        (b"one\r\ntwo", "\n", ""),
        (b"--", "--", "a.txt: skipped, empty"),
    ],
)
def test_a_separator_that_does_not_occur_is_noted(raw: bytes, separator: str, note: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(raw)
    (tmp_path / "b.txt").write_text(separator.join("xyz"))
    notes = Notes()
    documents = list(read_documents([tmp_path], document_separator=separator, note=notes))
    assert [d.text for d in documents][-3:] == ["x", "y", "z"] and "".join(notes.lines()).removeprefix(f"{tmp_path.name}/") == note


def test_a_separator_splits_records_too(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"t": "one|two"}\n{"t": ""}\n{"t": "three"}\n')
    notes = Notes()
    documents = list(read_documents([tmp_path / "a.jsonl"], field="t", document_separator="|", note=notes))
    assert [(d.text, d.source) for d in documents] == [("one", "a.jsonl:1"), ("two", "a.jsonl:1"), ("three", "a.jsonl:3")]
    assert notes.lines() == ["a.jsonl:2: skipped, empty", "a.jsonl:3: the document separator '|' does not occur"]


def test_byte_order_mark_and_line_ends(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\xef\xbb\xbf\r")
    assert texts(tmp_path / "a.txt") == ["one\r\ntwo\ufeff\r"]


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (b"one\ntwo \xff", "not UTF-8 text, .*, line 2, byte 8"),
        (b"one\n\ntw\xc3", "not UTF-8 text, .*, line 3, byte 7"),
        (b"\xed\xa0\x80", "not UTF-8 text"),
        (b"one\ntwo\0", "NUL byte.*, line 2, byte 7"),
    ],
)
def test_refused_bytes(raw: bytes, message: str, chunk: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(files, "CHUNK", chunk)
    file = tmp_path / "bad.txt"
    file.write_bytes(raw)
    with pytest.raises(InputError, match=message) as caught:
        texts(file)
    assert str(file) in str(caught.value) and caught.value.exit_code == 2


def test_refused_archives(tmp_path: Path) -> None:
    whole = gzip.compress(b"some text " * 5000)
    bad = {"cut.gz": whole[:-20], "not.gz": b"plain", "not.zip": b"plain", "not.bz2": b"plain", "a.tar.gz": whole, "a.zip.gz": whole}
    two = bz2.compress(b"first") + bz2.compress(b"second")
    bad |= {"second-stream.bz2": two[:-30] + b"x" * 30, "cut.bz2": two[:-5], "garbage.bz2": two + b"garbage", "garbage.gz": whole + b"x"}
    for name, raw in bad.items():
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(InputError, match=name):
            texts(tmp_path / name)


def test_a_decompression_bomb_is_stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(files, "UNPACKED", 1 << 20)
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(b"a" * (8 << 20)))
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", b"a" * (8 << 20))
    for name in ("bomb.gz", "bomb.zip"):
        with pytest.raises(InputError, match="unpacks to more than"):
            texts(tmp_path / name)


def test_nothing_to_read(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").touch()
    (tmp_path / "empty.jsonl").touch()
    empty = [tmp_path / name for name in ("empty.txt", "empty", "empty.jsonl")]
    for paths, message in (
        ([tmp_path / "none"], "no such file"),
        (empty[1:2], "is empty"),
        ([], "no text is given"),
        (empty, "empty.txt, "),
    ):
        with pytest.raises(InputError, match=message):
            texts(*paths)


def test_what_is_empty_among_other_inputs_is_noted(tmp_path: Path) -> None:
    """As a folder's empty file is: `prepare texts/*.txt` reads what `prepare texts` does."""
    (tmp_path / "folder").mkdir()
    for name, text in (("a.txt", ""), ("b.txt", "b"), ("c.jsonl", "\n")):
        (tmp_path / name).write_text(text)
    for paths in ([tmp_path], sorted(tmp_path.glob("*.*"))):
        notes = Notes()
        assert [document.text for document in read_documents(paths, note=notes)] == ["b"]
        assert [line.removeprefix(f"{tmp_path.name}/") for line in notes.lines()] == ["a.txt and 1 other: skipped, empty"]
    notes = Notes()
    assert len(list(read_documents([tmp_path / "folder", tmp_path / "b.txt"], note=notes))) == 1
    assert notes.lines() == [f"{tmp_path / 'folder'}: skipped, it has no files to read"]


def test_labels_from_a_field(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "fine", "stars": 5}\n{"stars": "one", "text": "bad"}\n')
    found = read_documents([file], field="text", label_field="stars")
    assert [(document.text, document.label) for document in found] == [("fine", "5"), ("bad", "one")]
    for line, message in (
        ('{"text": "a"}', "no field 'stars'"),
        ('{"text": "a", "stars": null}', "is no label"),
        ('{"text": "a", "stars": true}', "is no label"),
        ('{"stars": "one"}', "no field 'text'"),
        ("[1]", "not a JSON object"),
    ):
        file.write_text(line)
        with pytest.raises(InputError, match=message):
            list(read_documents([file], field="text", label_field="stars"))
    (tmp_path / "plain.txt").write_text("a")
    with pytest.raises(InputError, match="needs JSON records"):
        list(read_documents([tmp_path / "plain.txt"], label_field="stars"))


def test_the_whole_corpus_if_it_is_available() -> None:
    corpus = Path(__file__).resolve().parents[3] / "shared/data/movie_reviews"
    if not corpus.exists():
        pytest.skip("the shared corpora are not beside the checkout")
    labels = [document.label for document in read_documents([corpus])]
    assert (labels.count("neg"), labels.count("pos"), len(labels)) == (1000, 1000, 2000)
