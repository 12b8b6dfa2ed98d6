"""Make data folders from text and from tasks.

prepare_text(["book.txt"], Path("data/book"), split={"train": 0.9, "val": 0.1})
write_task(make_task("letters", {}), Path("data/letters"), count=10_000)
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path

from freetf_cli.data import tokenizer as tokenizers
from freetf_cli.data.encoding import encode_documents
from freetf_cli.data.files import STDIN, Note, Notes
from freetf_cli.data.manifest import Origin
from freetf_cli.data.splits import DEFAULT_SPLIT, Shares, SplitAssigner
from freetf_cli.data.text import Document, read_documents
from freetf_cli.data.tokenizer import Tokenizer
from freetf_cli.data.writer import DatasetWriter, refuse_existing
from freetf_cli.errors import FreetfError, InputError
from freetf_cli.records import DatasetSummary
from freetf_cli.tasks.base import Task

Advance = Callable[..., None]  # called with a count, and with a description when that changes


def task_tokenizer(task: Task) -> Tokenizer:
    """The tokenizer of a task's rows."""
    if task.alphabet is None:
        return tokenizers.byte_level()
    if isinstance(task.alphabet, str):
        return tokenizers.characters(task.alphabet, task.separator)
    return tokenizers.words(task.alphabet, task.separator, task.pattern)


def task_origin(task: Task, seed: int) -> Origin:
    """What the manifest of a task's rows says about them."""
    return Origin(
        kind="synthetic",
        task=task.name,
        params=task.params,
        seed=seed,
        loss_start=task.loss_start,
        row_tokens=task.row_tokens if task.alphabet else None,
        entropy=task.entropy(),
        floor_bits=task.floor_bits,
    )


def write_task(
    task: Task, out: Path, *, count: int, seed: int = 0, split: Shares = DEFAULT_SPLIT, progress: Advance = lambda count: None
) -> DatasetSummary:
    """Write rows 0 … count − 1 of the task's stream `seed` as a data folder."""
    assigner = SplitAssigner(split, seed)
    with DatasetWriter(out, task_tokenizer(task), task_origin(task, seed)) as writer:
        for index, example in enumerate(task.stream(seed, 0, count)):
            label = None if task.label is None else str(example.factors[task.label])
            record = {"text": example.text, "factors": example.factors}
            writer.add(assigner.split(index), example.text, record, label)
            progress(1)
    missing = [name for name in assigner.shares if name not in writer.manifest.splits]
    return summary(writer, [f"split '{name}' got none of {count} rows and is left out" for name in missing])


def prepare_text(
    paths: Sequence[str | Path],
    out: Path,
    *,
    tokenizer: str = "bytes",
    separator_token: str | None = None,
    split: Shares = DEFAULT_SPLIT,
    seed: int = 0,
    field: str | None = None,
    label_field: str | None = None,
    document_separator: str | None = None,
    dedup: bool = False,
    threads: int | None = None,
    progress: Advance = lambda *said: None,
) -> DatasetSummary:
    """Write documents from files, folders, archives or standard input (see `read_documents`) as a data folder.

    tokenizer: `bytes`; `bpe:SIZE`, trained here on the train split alone; or a path to a tokenizer.json.
    separator_token: the special token of a tokenizer.json that separates documents, if it is not `<|endoftext|>`.
    label_field: the field of JSON records that labels documents; default: folders do.
    dedup: leave out exact copies of earlier documents, so that no document occurs twice, be it in one split or in two.
    threads: how many threads encode; default: one per core. The result is the same.
    progress: called for each document read. Training BPE reads all of them once more, which a new description then says.
    """
    refuse_existing(out)
    tokenizers.use_threads(threads)
    notes, copies = Notes(), _Copies()
    _note_repeated(paths, notes)
    assigner = SplitAssigner(split, seed)
    with ExitStack() as stack:
        again = [_readable_twice(path, stack) for path in paths] if tokenizer.startswith("bpe:") else paths

        def documents(note: Note) -> Iterator[Document]:
            found = read_documents(again, field=field, label_field=label_field, document_separator=document_separator, note=note)
            try:
                for document in copies.leave_out(found) if dedup else found:
                    if (mark := tokenizers.SEPARATOR) in document.text:
                        note(document.source, f"{mark} is read as text; --document-separator '{mark}' splits there")
                    progress(1)
                    yield document
            except InputError as error:
                for path, copy in zip(paths, again, strict=True):
                    if copy is not path:  # name what the user gave
                        error.where = error.where.replace(str(copy), "standard input" if str(path) == STDIN else str(path))
                raise

        def train_texts() -> Iterator[str]:
            """The train split, or everything if no split has that name."""
            everything = "train" not in assigner.shares
            yield from (doc.text for name, doc in assigner.assign(documents(Notes()), Notes()) if everything or name == "train")
            progress(0, "BPE is trained, then documents are read again:")

        chosen = choose_tokenizer(tokenizer, separator_token, train_texts)
        for what in chosen.notes():
            notes(tokenizer, what)
        only: dict[str, Document | None] = {}  # the document of each split that has one
        with DatasetWriter(out, chosen, Origin(kind="text", seed=seed)) as writer:
            for name, document, ids in encode_documents(chosen, assigner.assign(documents(notes), notes)):
                only[name] = None if name in only else document
                factors = {} if document.label is None else {"label": document.label}
                writer.add(name, document.text, {"source": document.source, "factors": factors}, document.label, ids)
    if field is None and document_separator is None:
        _note_whole_files(only, notes)
    return summary(writer, [*notes.lines(), *copies.lines()])


class _Copies:
    """Leaves out documents whose text occurred before. Stores a 16-byte hash of each document kept, about 110 bytes in memory."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()
        self._found = 0

    def leave_out(self, documents: Iterator[Document]) -> Iterator[Document]:
        """The documents without copies. Each call starts afresh, because training BPE reads all documents once more."""
        self._seen, self._found = set(), 0
        for document in documents:
            digest = hashlib.blake2b(document.text.encode(), digest_size=16).digest()
            if digest in self._seen:
                self._found += 1
            else:
                self._seen.add(digest)
                yield document

    def lines(self) -> list[str]:
        total = self._found + len(self._seen)
        return [f"{self._found:,} of {total:,} documents are exact copies of earlier ones and are left out"] if total else []


def _note_repeated(paths: Sequence[str | Path], note: Note) -> None:
    for path, times in Counter(os.path.realpath(path) for path in paths if str(path) != STDIN).items():
        if times > 1:
            note(path, "it is given more than once, and read as often")


def _note_whole_files(only: dict[str, Document | None], note: Note) -> None:
    """Note each split that got only one of several files: their lines may be the documents, as in one file for each class."""
    if len({document.source if document else None for document in only.values()}) > 1:
        for name, document in only.items():
            is_file = document is not None and not re.search(r":\d+$", document.source)  # a record's source has a number
            if is_file and document is not None and document.label is None and "\n" in document.text.strip():
                hint = r"if each line is one, give --document-separator '\n' (labels are names of folders, not of files)"
                note(document.source, f"it is all of {name}, as each file is one document; {hint}")


def choose_tokenizer(choice: str, separator_token: str | None, texts: Callable[[], Iterator[str]] | None = None) -> Tokenizer:
    """The tokenizer that --tokenizer names, with the separator that --separator-token names. texts: what BPE is trained on."""
    chosen = _tokenizer(choice, texts)
    return chosen if separator_token is None else chosen.separated_by(separator_token)


def _tokenizer(choice: str, texts: Callable[[], Iterator[str]] | None) -> Tokenizer:
    if choice == "bytes":
        return tokenizers.byte_level()
    kind, colon, size = choice.partition(":")
    if kind == "bpe" and colon:
        if texts is None:
            raise InputError("--tokens needs the tokenizer that made the files", hint="--tokenizer FILE names its tokenizer.json")
        if not size.isdecimal():
            raise InputError(f"--tokenizer bpe:SIZE takes a whole number, not '{size}'", hint="for example --tokenizer bpe:8192")
        return tokenizers.train_bpe(texts(), int(size))
    if not Path(choice).exists():
        raise InputError(f"no tokenizer '{choice}'", hint="give bytes, bpe:8192, or a path to a tokenizer.json")
    return tokenizers.load(Path(choice))


def _readable_twice(path: str | Path, stack: ExitStack) -> str | Path:
    """The path; for standard input or a named pipe, that of a temporary copy, which `stack` removes."""
    if str(path) != STDIN and not Path(path).is_fifo():
        return path
    name = "stdin" if str(path) == STDIN else Path(path).name
    file = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="freetf-")), name)
    with nullcontext(sys.stdin.buffer) if str(path) == STDIN else Path(path).open("rb") as source:
        try:
            with file.open("wb") as out:
                shutil.copyfileobj(source, out)
        except OSError as error:
            hint = "set TMPDIR to a folder with room for a copy of the input"
            raise FreetfError(f"cannot be written: {error.strerror or error}", str(file.parent), hint) from None
    return file


def summary(writer: DatasetWriter, notes: list[str]) -> DatasetSummary:
    """What was written."""
    manifest = writer.manifest
    labels = sum((Counter(split.labels) for split in manifest.splits.values()), Counter())
    return DatasetSummary(
        folder=str(writer.out),
        task=manifest.task,
        tokenizer=manifest.tokenizer.name,
        vocabulary=manifest.tokenizer.vocabulary,
        splits={name: {"documents": s.documents, "tokens": s.tokens, "bytes": s.bytes} for name, s in manifest.splits.items()},
        labels=dict(sorted(labels.items())),
        floor_bits=manifest.floor_bits,
        notes=[*notes, *writer.notes()],
    )
