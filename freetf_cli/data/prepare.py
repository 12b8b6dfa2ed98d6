"""Text and tasks into data folders.

    prepare_text(["book.txt"], Path("data/book"), split={"train": 0.9, "val": 0.1})
    write_task(make_task("letters", {}), Path("data/letters"), count=10_000)

Documents are dealt out to the splits as they come: every run of 10 (for 0.9 and 0.1) holds 9 for one split and 1 for the
other, in an order shuffled by (seed, run). So proportions are exact, labels stay balanced however the input is sorted, and a
smaller count yields a prefix of each split.
"""

from __future__ import annotations

import math
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path

from freetf_cli.data import tokenizer as tokenizers
from freetf_cli.data.manifest import SPLIT_NAME, Manifest, Origin
from freetf_cli.data.text import STDIN, Document, read_documents
from freetf_cli.data.tokenizer import Tokenizer
from freetf_cli.data.writer import DatasetWriter, refuse_existing
from freetf_cli.errors import InputError
from freetf_cli.records import DatasetSummary
from freetf_cli.tasks.base import BLOCK_ROWS, Task, generator

DEFAULT_SPLIT = {"train": 0.9, "val": 0.1}
LONGEST_RUN = 1_000_000  # documents over which a split's proportions are made exact

Shares = Mapping[str, float | Fraction]
Advance = Callable[[int], None]


def _no_progress(_: int) -> None:
    """Nobody watches."""


def parse_split(text: str, count: int | None = None) -> dict[str, Fraction]:
    """`train=0.9,val=0.1` as shares of one; or whole numbers of rows, `train=9000,val=1000`, which must sum to `count`."""
    values: dict[str, Fraction] = {}
    for part in text.split(","):
        name, equals, number = (piece.strip() for piece in part.partition("="))
        if not equals or not re.fullmatch(SPLIT_NAME, name) or name in values:
            raise InputError(f"--split takes NAME=SHARE,NAME=SHARE, not '{text}'", hint="for example --split train=0.9,val=0.1")
        values[name] = _positive(number, text)
    total = sum(values.values())
    if total == 1:
        return values
    if any(value.denominator != 1 for value in values.values()):
        raise InputError(f"the shares of --split {text} sum to {float(total):g}, not to 1")
    if count is None:
        raise InputError(f"--split {text}: the number of documents is not known beforehand", hint="give shares that sum to 1")
    if total != count:
        raise InputError(f"the rows of --split {text} sum to {total}, not to the count, {count}")
    return {name: value / count for name, value in values.items()}


def _positive(number: str, text: str) -> Fraction:
    try:
        value = Fraction(number)
    except (ValueError, ZeroDivisionError):
        raise InputError(f"--split {text}: '{number}' is not a number") from None
    if value <= 0:
        raise InputError(f"--split {text}: a share must be more than 0")
    return value


class Dealer:
    """Which split the i-th document belongs to: a function of (shares, seed, i)."""

    def __init__(self, shares: Shares, seed: int) -> None:
        self.shares = {name: Fraction(str(value)) if isinstance(value, float) else Fraction(value) for name, value in shares.items()}
        if sum(self.shares.values()) != 1:
            raise InputError(f"the shares of the splits sum to {float(sum(self.shares.values())):g}, not to 1")
        self._seed = seed
        self._run = math.lcm(*(share.denominator for share in self.shares.values()))
        if self._run > LONGEST_RUN:
            raise InputError("the shares of the splits are too fine", hint="give them with fewer digits")
        self._names = [name for name, share in self.shares.items() for _ in range(int(share * self._run))]
        self._dealt: tuple[int, list[int]] = (-1, [])

    def split(self, index: int) -> str:
        run, place = divmod(index, self._run)
        if self._dealt[0] != run:
            self._dealt = run, generator("split", self._seed, run).permutation(self._run).tolist()
        return self._names[self._dealt[1][place]]


# --- tasks -----------------------------------------------------------------------------------------------------------


def task_tokenizer(task: Task) -> Tokenizer:
    """The tokenizer whose ids the task's rows are made of."""
    return tokenizers.byte_level() if task.alphabet is None else tokenizers.characters(task.alphabet, task.separator)


def write_task(
    task: Task, out: Path, *, count: int, seed: int = 0, split: Shares = DEFAULT_SPLIT, progress: Advance = _no_progress
) -> DatasetSummary:
    """Rows 0 … count − 1 of the task's stream `seed` as a data folder."""
    if count < 1:
        raise InputError(f"a data set of {count} rows is empty")
    dealer, tokenizer = Dealer(split, seed), task_tokenizer(task)
    origin = Origin(
        kind="synthetic",
        task=task.name,
        params=task.params,
        seed=seed,
        loss_start=task.loss_start,
        row_tokens=task.row_tokens if task.alphabet else None,
        entropy=task.entropy(),
        floor_bits=task.floor_bits,
    )
    with DatasetWriter(out, tokenizer, origin) as writer:
        for index in range(count):
            if index % BLOCK_ROWS == 0:
                rows = iter(task.examples(seed, index, min(BLOCK_ROWS, count - index)))
            example = next(rows)
            ids = tokenizer.encode_array(example.text)
            label = None if task.label is None else str(example.factors[task.label])
            record = {"text": example.text, "factors": example.factors}
            writer.add(dealer.split(index), ids, record, size=len(example.text.encode()), label=label)
            progress(1)
    missing = [name for name in dealer.shares if name not in writer.manifest.splits]
    return _summary(out, writer.manifest, [f"split '{name}' got none of {count} rows and is left out" for name in missing])


# --- text ------------------------------------------------------------------------------------------------------------


def prepare_text(
    paths: Sequence[str | Path],
    out: Path,
    *,
    tokenizer: str = "bytes",
    split: Shares = DEFAULT_SPLIT,
    seed: int = 0,
    field: str | None = None,
    document_separator: str | None = None,
    progress: Advance = _no_progress,
) -> DatasetSummary:
    """Documents of files, folders, archives or standard input (see `read_documents`) as a data folder.

    tokenizer: `bytes`; `bpe:SIZE`, trained here on the train split alone; or a path to a tokenizer.json.
    progress is told of each document read; BPE reads all of them twice.
    """
    refuse_existing(out)
    notes: list[str] = []
    dealer = Dealer(split, seed)
    with ExitStack() as stack:
        if tokenizer.startswith("bpe:"):
            paths = _readable_twice(paths, field, stack)

        def documents(note: Callable[[str], None]) -> Iterator[Document]:
            for document in read_documents(paths, field=field, document_separator=document_separator, note=note):
                progress(1)
                yield document

        chosen = _tokenizer(tokenizer, lambda: _train_texts(documents(lambda _: None), dealer))
        with DatasetWriter(out, chosen, Origin(kind="text", seed=seed)) as writer:
            for name, document in _dealt(documents(notes.append), dealer, notes):
                ids = chosen.encode_array(document.text, document.source)
                factors = {} if document.label is None else {"label": document.label}
                record = {"source": document.source, "factors": factors}
                writer.add(name, ids, record, size=len(document.text.encode("utf-8")), label=document.label)
    return _summary(out, writer.manifest, notes)


def _tokenizer(choice: str, texts: Callable[[], Iterator[str]]) -> Tokenizer:
    if choice == "bytes":
        return tokenizers.byte_level()
    kind, colon, size = choice.partition(":")
    if kind == "bpe" and colon:
        if not size.isdecimal():
            raise InputError(f"--tokenizer bpe:SIZE takes a whole number, not '{size}'", hint="for example --tokenizer bpe:8192")
        return tokenizers.train_bpe(texts(), int(size))
    if not Path(choice).exists():
        raise InputError(f"no tokenizer '{choice}'", hint="give bytes, bpe:8192, or a path to a tokenizer.json")
    return tokenizers.load(Path(choice))


def _train_texts(documents: Iterator[Document], dealer: Dealer) -> Iterator[str]:
    """What BPE may see: the train split, or everything where no split has that name."""
    everything = "train" not in dealer.shares
    for name, document in _dealt(documents, dealer, []):
        if everything or name == "train":
            yield document.text


def _readable_twice(paths: Sequence[str | Path], field: str | None, stack: ExitStack) -> list[str | Path]:
    """Pipes go to a temporary file: BPE reads everything twice."""
    return [_spooled(path, field, stack) if str(path) == STDIN or Path(path).is_fifo() else path for path in paths]


def _spooled(path: str | Path, field: str | None, stack: ExitStack) -> Path:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="freetf-")))
    file = folder / ("stdin.jsonl" if field else "stdin")
    with file.open("wb") as out:
        if str(path) == STDIN:
            shutil.copyfileobj(sys.stdin.buffer, out)
        else:
            with Path(path).open("rb") as pipe:
                shutil.copyfileobj(pipe, out)
    return file


def _dealt(documents: Iterator[Document], dealer: Dealer, notes: list[str]) -> Iterator[tuple[str, Document]]:
    """Each document with its split. The last one is cut up when a split would otherwise stay empty."""
    empty = dict(dealer.shares)
    held: tuple[str, Document] | None = None
    for index, document in enumerate(documents):
        if held is not None:
            yield held
        held = dealer.split(index), document
        empty.pop(held[0], None)
    if held is None:
        return
    if not empty:
        yield held
        return
    name, document = held
    parts = [part for part in dealer.shares if part in empty or part == name]
    notes.append(f"too few documents for every split: {document.source} is cut into {', '.join(parts)}")
    yield from _cut_up(document, {part: empty.get(part, 1 - sum(empty.values(), Fraction())) for part in parts})


def _cut_up(document: Document, shares: Mapping[str, Fraction]) -> Iterator[tuple[str, Document]]:
    """The document in pieces of these shares, by characters, in order: the held-out text is its tail."""
    text, start, upto = document.text, 0, Fraction(0)
    for name, share in shares.items():
        upto += share
        stop = round(len(text) * upto)
        if stop <= start:
            what = f"the text is too short to give each split a part: {len(text)} characters"
            raise InputError(what, document.source, "--split train=1 makes one split of all")
        yield name, Document(text[start:stop], document.source, document.label)
        start = stop


def _summary(out: Path, manifest: Manifest, notes: list[str]) -> DatasetSummary:
    labels: dict[str, int] = {}
    for split in manifest.splits.values():
        for label, number in split.labels.items():
            labels[label] = labels.get(label, 0) + number
    return DatasetSummary(
        folder=str(out),
        task=manifest.task,
        tokenizer=manifest.tokenizer.name,
        vocabulary=manifest.tokenizer.vocabulary,
        splits={name: {"documents": s.documents, "tokens": s.tokens, "bytes": s.bytes} for name, s in manifest.splits.items()},
        labels=dict(sorted(labels.items())),
        floor_bits=manifest.floor_bits,
        notes=notes,
    )
