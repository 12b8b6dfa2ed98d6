"""Members of archives and folders: odd names, links, and files that cannot be read; nothing is lost without a line."""

from __future__ import annotations

import os
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from freetf_cli.data.files import Notes
from freetf_cli.data.text import Document, read_documents
from freetf_cli.errors import InputError


def read(*paths: Path) -> tuple[list[Document], list[str]]:
    notes = Notes()
    return list(read_documents(paths, note=notes)), notes.lines()


def packed(path: Path, members: Sequence[tuple[str, str]], how: int = zipfile.ZIP_STORED) -> Path:
    """A .zip whose members have exactly these names."""
    with zipfile.ZipFile(path, "w", how) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of duplicates
        for name, text in members:
            info = zipfile.ZipInfo("x")
            info.filename, info.compress_type = name, how
            info.external_attr = (0o120777 if "link" in name else 0o100644) << 16
            archive.writestr(info, text)
    return path


# --- archives --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "read_as", "note"),
    [
        (["./a.txt", "./b.txt"], ["a.txt", "b.txt"], ""),
        (["a//b.txt", "/a/../c.txt"], ["a/b.txt", "a/c.txt"], ""),
        (["a.txt", "b.txt", "a.txt"], ["a.txt", "a.txt", "b.txt"], ""),
        (["a.txt", ".git/HEAD", "b/.DS_Store"], ["a.txt"], "z.zip/.git/HEAD and 1 other: skipped, hidden"),
        (["a.txt", "__MACOSX/._a.txt"], ["a.txt"], "z.zip/__MACOSX/._a.txt: skipped, hidden"),
        (["a.txt", "link.txt"], ["a.txt"], "z.zip/link.txt: skipped, a link in an archive"),
        (["a\\n\\1.txt", "a\\p\\2.txt"], ["n: a/n/1.txt", "p: a/p/2.txt"], ""),
    ],
)
def test_names_of_members(names: list[str], read_as: list[str], note: str, tmp_path: Path) -> None:
    path = packed(tmp_path / "z.zip", [(name, f"text {i}") for i, name in enumerate(names)])
    documents, notes = read(path)
    labelled = [f"{d.label}: " * (d.label is not None) + d.source.removeprefix("z.zip/") for d in documents]
    assert labelled == read_as and len({d.text for d in documents}) == len(documents) and "".join(notes) == note


def test_names_of_other_encodings(tmp_path: Path) -> None:
    """Programs of macOS write UTF-8 without the flag that says so, old ones code page 437, damaged ones neither."""
    plain = packed(tmp_path / "z.zip", [("nXX/1.txt", "a"), ("p/2.txt", "b")]).read_bytes()
    for raw, name in (("é".encode(), "é"), (b"\x82\x82", "éé")):
        (tmp_path / "z.zip").write_bytes(plain.replace(b"nXX", b"n" + raw))
        assert [(d.source, d.label) for d in read(tmp_path / "z.zip")[0]] == [(f"z.zip/n{name}/1.txt", f"n{name}"), ("z.zip/p/2.txt", "p")]
    flagged = packed(tmp_path / "z.zip", [("é.txt", "a")]).read_bytes()
    (tmp_path / "z.zip").write_bytes(flagged.replace("é".encode(), b"\xe4\xff"))
    with pytest.raises(InputError, match=r"damaged or of an unknown kind: 'utf-8' codec .*z\.zip$"):
        read(tmp_path / "z.zip")


def test_a_damaged_member_is_named(tmp_path: Path) -> None:
    path = packed(tmp_path / "z.zip", [("a.txt", "some text, to be damaged\n" * 200)], zipfile.ZIP_LZMA)
    raw = bytearray(path.read_bytes())
    raw[60:100] = bytes(byte ^ 0x5A for byte in raw[60:100])
    path.write_bytes(raw)
    with pytest.raises(InputError, match=r"damaged or of an unknown kind: Corrupt input data, .*z\.zip, member a\.txt"):
        read(path)
    plain = packed(path, [("a.txt", "a"), ("b.txt", "b")]).read_bytes()
    entry = plain.index(b"PK\1\2")
    path.write_bytes(plain[: entry + 8] + b"\1" + plain[entry + 9 :])
    with pytest.raises(InputError, match=r"the archive is encrypted, .*member a\.txt"):
        read(path)
    path.write_bytes(plain[: entry + 32] + b"\x33" + plain[entry + 33 :])  # a comment that is as long as the next entry
    with pytest.raises(InputError, match="it names 2 members, and 1 are found"):
        read(path)
    packed(path, [("b.txt", "b"), ("inner.zip", "PK")])
    with pytest.raises(InputError, match=r"archive inside another, .*member inner\.zip"):
        read(path)


def test_an_archive_in_a_labelled_folder(tmp_path: Path) -> None:
    for name in ("neg", "pos"):
        (tmp_path / name).mkdir()
        packed(tmp_path / name / "all.zip", [("1.txt", name), ("2.txt", name)])
    assert [(d.text, d.label) for d in read(tmp_path)[0]] == [("neg", "neg")] * 2 + [("pos", "pos")] * 2


# --- folders ---------------------------------------------------------------------------------------------------------


def test_links_are_followed_and_each_folder_is_read_once(tmp_path: Path) -> None:
    for file in ("d/new/1.txt", "blobs/aa11", "more/2.txt"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(file)
    links = {"1st": "new", "again": "../more", "back": "..", "here": ".", "more": "../more", "3.txt": "../blobs/aa11"}
    for name, target in links.items():
        (tmp_path / "d" / name).symlink_to(target)
    documents, notes = read(tmp_path / "d")
    assert [d.source for d in documents] == ["d/3.txt", "d/again/2.txt", "d/new/1.txt"]
    assert len(notes) == 1 and "and 3 others: skipped, a link to a folder above it or one that is read already" in notes[0]


def test_a_link_is_of_the_kind_of_its_name_or_of_its_targets(tmp_path: Path) -> None:
    (tmp_path / "aa11").write_text('{"t": "one"}\n{"t": "two"}')
    (tmp_path / "train.jsonl").symlink_to("aa11")
    (tmp_path / "latest").symlink_to("train.jsonl")
    with pytest.raises(InputError, match=r"which field .*train\.jsonl, line 1"):
        read(tmp_path / "train.jsonl")
    packed(tmp_path / "2026.zip", [("a.txt", "a")])
    (tmp_path / "newest").symlink_to("2026.zip")
    assert [d.source for d in read(tmp_path / "newest")[0]] == ["newest/a.txt"]


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    for folder in (b"n\xe9g", b"pos"):
        (tmp_path / os.fsdecode(folder)).mkdir()
        (tmp_path / os.fsdecode(folder) / "1.txt").write_text("text")
    documents, _ = read(tmp_path)
    assert [(d.source.partition("/")[2], d.label) for d in documents] == [(r"n\xe9g/1.txt", r"n\xe9g"), ("pos/1.txt", "pos")]


def broken_link(path: Path) -> None:
    (path / "link.txt").symlink_to("nowhere")


def link_to_itself(path: Path) -> None:
    (path / "link.txt").symlink_to("link.txt")


def test_what_is_not_read_is_noted(tmp_path: Path) -> None:
    for name in ("a.txt", ".hidden", ".d.tmp"):  # the last is a folder that freetf writes
        (tmp_path / name).write_text("text")
    os.mkfifo(tmp_path / "pipe")
    documents, notes = read(tmp_path)
    assert len(documents) == 1 and sorted(line.partition("/")[2] for line in notes) == [
        ".hidden: skipped, hidden",
        "pipe: skipped, not a regular file",
    ]


@pytest.mark.parametrize("make", [broken_link, link_to_itself])
def test_a_link_that_leads_nowhere_is_an_error(make: Callable[[Path], None], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    make(tmp_path)
    with pytest.raises(InputError, match=r"cannot be read: .*link\.txt"):
        read(tmp_path)


def test_a_folder_that_may_not_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "locked").mkdir()
    (tmp_path / "a.txt").write_text("text")
    plain = os.scandir

    def scandir(path: Path) -> object:
        if path.name == "locked":
            raise PermissionError(13, "Permission denied")
        return plain(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(InputError, match=r"cannot be read: Permission denied, .*locked"):
        read(tmp_path)
