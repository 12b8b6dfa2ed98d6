"""Reading back the records that `sample --json` writes, to replay them or to use their Z."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from freetf_cli.durable import SMALL
from freetf_cli.errors import InputError
from freetf_cli.model.latent import Latent
from freetf_cli.records.samples import Sample

Place = Annotated[int, Field(ge=0)]


class Record(BaseModel):
    """A `Sample` as it was read: its Z, and whatever else the line says."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)

    z: list[Any] = Field(min_length=1)
    prompt: str | None = None
    text: str | None = None
    prompt_index: Place | None = None
    group: Place | None = None
    index: Place | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_k: Place | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    prompt_z: Literal["posterior", "prior"] | None = None
    precision: Literal["fp32", "bf16"] | None = None
    checkpoint: str | None = None

    def settings(self) -> dict[str, Any]:
        """The options of `freetf sample` that the line tells."""
        names = {"seed", "temperature", "top_k", "top_p", "max_tokens", "precision"}
        return self.model_dump(include=names, exclude_none=True)

    def unlike(self, sample: Sample) -> dict[str, tuple[Any, Any]]:
        """In what a sequence differs from the record that it was made of, as (the sequence's, the record's) by name.

        The text counts only where nothing else differs: then it is another machine, or another version, that computes otherwise.
        """
        told = self.model_dump(exclude_none=True, exclude={"z", "text"})
        differing = {name: (getattr(sample, name), was) for name, was in told.items() if getattr(sample, name) != was}
        if len(self.z) != len(sample.z or ()):
            differing["length of z"] = len(sample.z or ()), len(self.z)
        if not differing and self.text not in (None, sample.text):
            differing["text"] = sample.text, self.text
        return differing


class ZFile:
    """The records of a JSONL file (`-`: stdin), read as they are needed. A line is an object with `z`, or Z itself.

    Only a regular file can be iterated over more than once. InputError names a wrong line.
    """

    def __init__(self, source: str, latent: Latent) -> None:
        self.name = "stdin" if source == "-" else source
        self._source, self._latent = source, latent
        self._regular = source != "-" and Path(source).is_file()
        unread = self._read()
        try:
            self.first = next(unread)
        except StopIteration:
            raise InputError("--z: the file holds no record", self.name) from None
        except OSError as error:
            raise InputError(f"--z: the file cannot be read: {error.strerror}", source, "other choices: independent, shared") from None
        self._stream: Iterator[Record] | None = None if self._regular else chain([self.first], unread)

    def __iter__(self) -> Iterator[Record]:
        if self._regular:
            return self._read()
        if self._stream is None:
            raise InputError("--z: a stream is read only once, and every prompt needs its records", self.name, "save them as a file")
        stream, self._stream = self._stream, None
        return stream

    def count(self, most: int) -> int | None:
        """How many records there are, up to `most`, all of them checked; None for a stream."""
        return sum(1 for _ in islice(self._read(), min(most, sys.maxsize))) if self._regular else None

    def _read(self) -> Iterator[Record]:
        with nullcontext(sys.stdin.buffer) if self._source == "-" else Path(self._source).open("rb") as file:
            for number, line in text_lines(file, self.name):
                if line:
                    yield _record(line, self._latent, f"{self.name}, line {number}")


def text_lines(file: BinaryIO, where: str) -> Iterator[tuple[int, str]]:
    """Numbered lines of UTF-8 text, without line ends and a byte order mark. Raises InputError for other bytes."""
    for number, raw in enumerate(iter(lambda: file.readline(SMALL), b""), start=1):
        place = f"{where}, line {number}"
        if len(raw) == SMALL:  # a stream without line ends must not fill the memory
            raise InputError(f"the line has {SMALL:,} bytes or more", place)
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            raise InputError("not UTF-8 text", place) from None
        yield number, line


def _record(line: str, latent: Latent, where: str) -> Record:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        raise InputError("--z: not a line of JSON", where) from None
    try:
        record = Record.model_validate(found if isinstance(found, dict) else {"z": found})
        latent.check_record(record.z)
    except ValidationError as error:
        (key, *_), fault = error.errors()[0]["loc"], error.errors()[0]["msg"]
        what = "a record needs a list named 'z'" if key == "z" else f"the record's {key}: {fault[:1].lower()}{fault[1:]}"
        raise InputError(f"--z: {what}", where) from None
    except ValueError as error:
        raise InputError(f"--z: {error}", where) from None
    return record
