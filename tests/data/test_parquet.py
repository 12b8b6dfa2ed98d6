"""Documents from Parquet and Zstandard files; both need the extra `data`."""

from __future__ import annotations

import json
import os
import random
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from freetf_cli.data.files import Notes
from freetf_cli.data.text import Document, read_documents
from freetf_cli.errors import FreetfError, InputError

arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def read(*paths: Path, field: str | None = "text") -> tuple[list[Document], list[str]]:
    notes = Notes()
    return list(read_documents(paths, field=field, note=notes)), notes.lines()


def write(path: Path, texts: list[str | None], **options: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    parquet.write_table(arrow.table({"id": list(range(len(texts))), "text": texts}), path, **options)
    return path


def zstd(data: bytes) -> bytes:
    return bytes(arrow.compress(data, codec="zstd", asbytes=True))


# --- Parquet ---------------------------------------------------------------------------------------------------------


def test_rows_of_all_row_groups_in_order(tmp_path: Path) -> None:
    texts = [f"text {i} é" for i in range(200)]
    documents, notes = read(write(tmp_path / "a.parquet", [*texts, None], row_group_size=70))
    assert [document.text for document in documents] == texts and documents[1].source == "a.parquet:2"
    assert notes == ["a.parquet:201: skipped, empty"]


@pytest.mark.parametrize("kind", ["string", "large_string", "dictionary", "string_view"])
def test_every_type_of_text(kind: str, tmp_path: Path) -> None:
    types = {"large_string": arrow.large_string(), "string_view": arrow.string_view()}
    column = arrow.array(["a", "b", "a"], types.get(kind, arrow.string()))
    parquet.write_table(arrow.table({"text": column.dictionary_encode() if kind == "dictionary" else column}), tmp_path / "a.parquet")
    assert [document.text for document in read(tmp_path / "a.parquet")[0]] == ["a", "b", "a"]


def test_a_folder_with_labels_and_other_kinds(tmp_path: Path) -> None:
    write(tmp_path / "d" / "0.parquet", ["none"])
    for label in ("neg", "pos"):
        write(tmp_path / "d" / label / "0.parquet", [label])
    (tmp_path / "d" / "pos" / "1.jsonl").write_text('{"text": "line"}\n')
    documents, _ = read(tmp_path / "d")
    assert [(document.text, document.label) for document in documents] == [
        ("none", None),
        ("neg", "neg"),
        ("pos", "pos"),
        ("line", "pos"),
    ]


def test_the_column_text_needs_no_option(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", ["one"])
    parquet.write_table(arrow.table({"url": ["u"], "text": ["two"]}), tmp_path / "b.parquet")
    assert [document.text for document in read(tmp_path, field=None)[0]] == ["one", "two"]
    parquet.write_table(arrow.table({"url": ["u"], "body": ["three"]}), tmp_path / "c.parquet")
    with pytest.raises(InputError, match=r"which column of the Parquet file is the text\?.*c.parquet; give --field: url, body"):
        read(tmp_path, field=None)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("txt", "no column 'txt', .*a.parquet; did you mean 'text'"),
        ("id", "column 'id' is not text but int64"),
    ],
)
def test_a_column_that_is_not_there(field: str | None, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read(write(tmp_path / "a.parquet", ["text"]), field=field)


def damage_footer(raw: bytes) -> bytes:
    return raw[:-10]


def damage_page(raw: bytes) -> bytes:
    return raw.replace(b"some text to damage", b"some text to dAmage")


def empty(raw: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [damage_footer, damage_page, empty])
def test_a_damaged_file_is_named(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    options = {"write_page_checksum": True, "compression": "none", "write_statistics": False}
    path = write(tmp_path / "a.parquet", ["some text to damage"], **options)
    raw = path.read_bytes()
    path.write_bytes(damage(raw))
    assert path.read_bytes() != raw
    with pytest.raises(InputError, match=r"the Parquet file is damaged: .*a\.parquet"):
        read(path)


def test_text_that_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a NUL in the text, .*a\.parquet, row 2"):
        read(write(tmp_path / "a.parquet", ["text", "a\0b"]))
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.write(tmp_path / "a.parquet", "a.parquet")
    with pytest.raises(InputError, match=r"inside an archive cannot be read, .*member a\.parquet"):
        read(tmp_path / "z.zip")


def test_a_row_group_is_not_held_in_memory(tmp_path: Path) -> None:
    digits = random.Random(0)
    texts = [digits.randbytes(10_000).hex() for _ in range(1000)]
    path = write(tmp_path / "a.parquet", texts, compression="none", write_batch_size=16)  # rows of a page, which is read whole
    before, most = arrow.total_allocated_bytes(), 0
    for _ in read_documents([path], field="text"):
        most = max(most, arrow.total_allocated_bytes() - before)
    assert path.stat().st_size > 20_000_000 and most < 6_000_000


# --- Zstandard -------------------------------------------------------------------------------------------------------


def test_zstandard_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt.zst").write_bytes(zstd(b"one frame, ") + zstd(b"and another"))
    (tmp_path / "b.jsonl.zst").write_bytes(zstd(json.dumps({"text": "a record"}).encode()))
    assert [document.text for document in read(tmp_path / "a.txt.zst", field=None)[0]] == ["one frame, and another"]
    (document,), _ = read(tmp_path / "b.jsonl.zst")
    assert (document.text, document.source) == ("a record", "b.jsonl.zst:1")


@pytest.mark.parametrize("cut", [3, 12, -1])
def test_a_zstandard_file_that_is_cut_off(cut: int, tmp_path: Path) -> None:
    whole = zstd(b"first ") + zstd(os.urandom(100).hex().encode())
    (tmp_path / "a.txt.zst").write_bytes(whole[:cut])
    with pytest.raises(InputError, match=r"Truncated compressed stream, .*a\.txt\.zst"):
        read(tmp_path / "a.txt.zst", field=None)


def test_a_zstandard_file_that_unpacks_to_too_much(tmp_path: Path) -> None:
    (tmp_path / "a.txt.zst").write_bytes(zstd(b"a" * (65 << 20)))
    with pytest.raises(InputError, match="unpacks to more than 100 times its size"):
        read(tmp_path / "a.txt.zst", field=None)


# --- without the extra -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.parquet", "a.txt.zst"])
def test_a_missing_pyarrow_is_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / name).write_bytes(b"anything")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(FreetfError, match=r"need pyarrow, which is not installed; pip install 'freetf\[data\]'"):
        read(tmp_path / name)
