"""The data folder: written completely or not at all, and every kind of damage is detected."""

from __future__ import annotations

import json
from functools import reduce
from pathlib import Path

import numpy as np
import pytest

from freetf_cli import durable
from freetf_cli.data.dataset import Dataset
from freetf_cli.data.manifest import Origin, token_type
from freetf_cli.data.prepare import write_task
from freetf_cli.data.tokenizer import Tokenizer, byte_level, characters
from freetf_cli.data.writer import DatasetWriter
from freetf_cli.errors import FreetfError, InputError
from freetf_cli.tasks import make_task

WORDS = ["alpha", "", "be", "gamma rays"]


def write(out: Path, tokenizer: Tokenizer, words: list[str], shard: int = 1 << 20) -> None:
    with DatasetWriter(out, tokenizer, Origin(kind="text", seed=0), shard=shard) as writer:
        for word in words:
            writer.add("train", word, {"source": word, "factors": {}}, "x")


@pytest.mark.parametrize("shard", [1, 3, 7, 1 << 20])
def test_streams_and_rows_across_shards(shard: int, tmp_path: Path) -> None:
    for name, tokenizer in (("sep", byte_level()), ("plain", characters("abcdefghijklmnopqrstuvwxyz ", separator=False))):
        write(tmp_path / name, tokenizer, WORDS, shard)
        split = Dataset.open(tmp_path / name).split("train")
        edge = [] if tokenizer.separator is None else [tokenizer.separator]
        rows = [[*edge, *tokenizer.encode(word), *edge] for word in WORDS]
        assert [split.row(i).tolist() for i in range(len(split))] == rows
        assert split.row_lengths.tolist() == [len(row) for row in rows]
        stream = [token for row in rows for token in (row[:-1] if edge else row)] + edge
        assert split.slice(0, split.tokens).tolist() == stream and split.slice(2, 9).tolist() == stream[2:9]
        assert [record["source"] for record in split.records()] == WORDS
        assert split.facts.bytes == sum(map(len, WORDS)) and split.facts.labels == {"x": 4}
        assert split.row(0).dtype == np.int64


def test_tokens_take_two_bytes_until_they_need_four() -> None:
    assert token_type(65_536).itemsize == 2 and token_type(65_537).itemsize == 4


def test_the_same_data_has_the_same_hash(tmp_path: Path) -> None:
    for name in "ab":
        write_task(make_task("reviews", {}), tmp_path / name, count=50)
    a, b = (Dataset.open(tmp_path / name) for name in "ab")
    assert a.sha256 == b.sha256
    write_task(make_task("reviews", {}), tmp_path / "c", count=50, seed=1)
    assert Dataset.open(tmp_path / "c").sha256 != a.sha256


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), DatasetWriter(tmp_path / "d", byte_level(), Origin(kind="text", seed=0)) as writer:
        writer.add("train", "a", {})
        assert [path.name for path in tmp_path.iterdir()] != ["d"], "it has no final name while it is written"
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable, "flush", full)
    with pytest.raises(FreetfError, match=r"No space left on device, .*; free some space") as caught:
        write(tmp_path / "d", byte_level(), WORDS)
    assert caught.value.exit_code == 1 and list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_refused_unless_empty(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    write(tmp_path / "d", byte_level(), WORDS)
    before = Dataset.open(tmp_path / "d").sha256
    with pytest.raises(InputError, match=r"exists already.*choose another"):
        write(tmp_path / "d", byte_level(), ["other"])
    assert Dataset.open(tmp_path / "d").sha256 == before
    with pytest.raises(InputError, match="no document"):
        write(tmp_path / "e", byte_level(), [])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "d", byte_level(), WORDS)
    return tmp_path / "d"


@pytest.mark.parametrize("name", ["train/tokens-00000.bin", "train/offsets.bin", "train/documents.jsonl", "tokenizer.json"])
def test_damage_is_noticed_and_the_file_named(folder: Path, name: str) -> None:
    file = folder / name
    whole = file.read_bytes()
    flipped = bytes([whole[0] ^ 1]) + whole[1:]
    for raw, message in ((whole[:-2], "truncated|SHA-256"), (whole + b"  ", "damaged"), (flipped, "SHA-256")):
        file.write_bytes(raw)
        with pytest.raises(InputError, match=message) as caught:
            Dataset.open(folder)
        assert file.name in str(caught.value) and caught.value.exit_code == 2
    file.unlink()
    with pytest.raises(InputError, match=f"missing.*{file.name}"):
        Dataset.open(folder)
    file.write_bytes(whole)
    assert len(Dataset.open(folder).split("train")) == 4


def test_a_link_is_not_followed(folder: Path, tmp_path: Path) -> None:
    file = folder / "train" / "offsets.bin"
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="a link"):
        Dataset.open(folder)


def test_a_split_may_not_be_a_link_but_the_folder_may(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    assert Dataset.open(tmp_path / "link").sha256 == Dataset.open(folder).sha256
    (folder / "train").rename(tmp_path / "train")
    (folder / "train").symlink_to(tmp_path / "train")
    with pytest.raises(InputError, match="a link"):
        Dataset.open(folder)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (["format_version"], 2, "newer than this freetf.*update"),
        (["format"], "zip", "another format"),
        (["seed"], "0", "damaged: seed"),
        (["unknown"], 1, "damaged: unknown"),
        (["splits", "../x"], {"documents": 1, "tokens": 1, "bytes": 1, "labels": {}, "files": {}}, "do not belong"),
        (["splits", "train", "files", "../../secret"], {"bytes": 1, "sha256": ""}, "do not belong"),
        (["splits", "train", "documents"], 3, "do not fit"),
        (["splits", "train", "tokens"], 10**12, "do not fit"),
        (["tokenizer", "vocabulary"], 200, "tokenizer is not the one that the manifest describes"),
        (["tokenizer", "separator"], None, "tokenizer is not the one that the manifest describes"),
    ],
)
def test_manifests_that_are_refused(folder: Path, keys: list[str], value: object, message: str) -> None:
    tree = json.loads((folder / "manifest.json").read_text())
    reduce(dict.__getitem__, keys[:-1], tree)[keys[-1]] = value
    (folder / "manifest.json").write_text(json.dumps(tree))
    with pytest.raises(InputError, match=message):
        Dataset.open(folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"{", b"\xff", b"[" * 100_000, b'{"format": "freetf-data"}'])
def test_contents_that_are_not_a_manifest(folder: Path, content: bytes) -> None:
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(InputError, match="manifest"):
        Dataset.open(folder)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such data folder"):
        Dataset.open(tmp_path / "none")
    with pytest.raises(InputError, match="no manifest"):
        Dataset.open(tmp_path)


def test_tokens_outside_the_vocabulary(folder: Path) -> None:
    tokens, manifest = folder / "train" / "tokens-00000.bin", folder / "manifest.json"
    tokens.write_bytes(np.array([257], "<u2").tobytes() + tokens.read_bytes()[2:])
    tree = json.loads(manifest.read_text())
    tree["splits"]["train"]["files"][tokens.name]["sha256"] = durable.sha256_of(tokens)
    manifest.write_text(json.dumps(tree))
    with pytest.raises(InputError, match="outside the vocabulary"):
        Dataset.open(folder)


def test_an_unknown_split_has_a_hint(folder: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'train'"):
        Dataset.open(folder).split("trian")
