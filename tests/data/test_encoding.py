"""Documents are encoded in batches on all cores: the same bytes whatever the batches and threads, and a stop that leaves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizers as library

from freetf_cli.data import encoding
from freetf_cli.data.encoding import encode_documents
from freetf_cli.data.text import Document
from freetf_cli.data.tokenizer import Tokenizer, byte_level, characters, from_json, train_bpe
from freetf_cli.errors import InputError

Cli = Callable[..., Any]
EXCERPTS = Path(__file__).resolve().parent.parent / "excerpts"
TEXTS = [f"document {i}: caf\u00e9, {'word ' * (i % 7)}<|endoftext|>" for i in range(50)]


def words() -> Tokenizer:
    """A tokenizer that has no token for most words, and no unknown token."""
    inner = library.Tokenizer(library.models.WordLevel({"the": 0, "cat": 1}))
    inner.pre_tokenizer = library.pre_tokenizers.WhitespaceSplit()
    return from_json(inner.to_str())


def encode(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    documents = (("train", Document(text, f"{i}.txt")) for i, text in enumerate(texts))
    return [ids.tolist() for _, _, ids in encode_documents(tokenizer, documents)]


@pytest.mark.parametrize("size", [1, 200, 1 << 20])
@pytest.mark.parametrize("kind", ["bytes", "characters", "bpe"])
def test_batches_do_not_matter(kind: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    alphabet = "".join(sorted(set("".join(TEXTS))))
    tokenizer = {"bytes": byte_level, "characters": lambda: characters(alphabet, True), "bpe": lambda: train_bpe(TEXTS, 300)}[kind]()
    monkeypatch.setattr(encoding, "CHARACTERS", size)
    assert encode(tokenizer, TEXTS) == [tokenizer.encode(text) for text in TEXTS]


def test_a_batch_is_bounded_by_documents_too(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    plain = Tokenizer.encode_batch
    monkeypatch.setattr(encoding, "DOCUMENTS", 20)
    monkeypatch.setattr(Tokenizer, "encode_batch", lambda self, texts, where: sizes.append(len(texts)) or plain(self, texts, where))
    assert len(encode(byte_level(), TEXTS)) == 50 and sizes == [20, 20, 10]


def test_memory_holds_two_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "DOCUMENTS", 20)
    alive = weakref.WeakSet[Document]()

    def documents() -> Iterator[tuple[str, Document]]:
        for text in TEXTS * 4:
            document = Document(text, "")
            object.__setattr__(document, "source", str(id(document)))  # equal documents would be one in the set
            alive.add(document)
            yield "train", document

    assert max(len(alive) for _ in encode_documents(byte_level(), documents())) <= 2 * 20 + 1


def test_a_text_that_cannot_be_encoded_is_named_within_its_batch() -> None:
    assert encode(words(), ["the cat", "cat"]) == [[0, 1], [1]]
    with pytest.raises(InputError, match=r"the tokenizer cannot encode this text: .*, 1\.txt; it has no token for unknown characters"):
        encode(words(), ["the cat", "the dog", "the cow"])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_number_of_threads_does_not_matter(run_process: Cli, tmp_path: Path) -> None:
    """Training BPE included. In processes of their own, because the library keeps its first number of threads."""
    for count in ("1", "3"):
        done = run_process("prepare", EXCERPTS / "movie_reviews", "-o", tmp_path / count, "--tokenizer", "bpe:400", "--threads", count)
        assert done.code == 0, done.stderr
    one, three = (contents(tmp_path / count) for count in ("1", "3"))
    assert one == three and len(one) >= 7


def peak_memory(size: int, environment: dict[str, str], folder: Path) -> int:
    """Peak resident memory in bytes of a `prepare` that reads `size` bytes from a pipe."""
    words = ["prepare", "-", "-o", folder / str(size), "--document-separator", "\\n"]
    process = subprocess.Popen([sys.executable, "-m", "freetf_cli", *map(str, words)], stdin=subprocess.PIPE, env=environment)
    assert process.stdin is not None
    line = ("some words of a line " * 50 + "\n").encode()
    for _ in range(size // len(line)):
        process.stdin.write(line)
    process.stdin.close()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has another unit")
def test_memory_does_not_grow_with_the_input(environment: dict[str, str], tmp_path: Path) -> None:
    few, many = (peak_memory(size, environment, tmp_path) for size in (10_000_000, 60_000_000))
    assert many - few < 30_000_000  # the same command differs by up to 15 MB, as batches overlap or not


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_while_threads_encode(number: signal.Signals, code: int, environment: dict[str, str], tmp_path: Path) -> None:
    """The process ends at once, with its threads, and leaves nothing."""
    (tmp_path / "tokenizer.json").write_text(train_bpe(TEXTS, 300).json)
    words = ["prepare", "-", "-o", tmp_path / "d", "--tokenizer", tmp_path / "tokenizer.json", "--document-separator", "\\n"]
    command = [sys.executable, "-m", "freetf_cli", *map(str, words)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    assert process.stdin is not None and process.stderr is not None
    process.stdin.write(("some words of a line " * 50 + "\n").encode() * 5000)  # the first batch is written, the second is encoded
    process.stdin.flush()
    process.send_signal(number)
    assert process.wait(timeout=60) == code
    assert b"nothing is kept" in process.stderr.read()
    process.stderr.close()
    process.stdin.close()
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]
