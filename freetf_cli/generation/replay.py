"""Reading Z back from the records that `sample --json` writes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO

from freetf_cli.errors import InputError
from freetf_cli.model.latent import Latent


def read_z_file(source: str, latent: Latent) -> list[list[Any]]:
    """The Z of every record of a JSONL file (`-`: stdin). A line is an object with `z`, or Z itself. InputError names a wrong line."""
    where = "stdin" if source == "-" else source
    try:
        with nullcontext(sys.stdin.buffer) if source == "-" else Path(source).open("rb") as file:
            found = [_z(line, latent, f"{where}, line {number}") for number, line in text_lines(file, where)]
    except OSError as error:
        raise InputError(f"--z: the file cannot be read: {error.strerror}", source, "other choices: independent, shared") from None
    if not found:
        raise InputError("--z: the file holds no record", source)
    return found


def text_lines(file: BinaryIO, where: str) -> Iterator[tuple[int, str]]:
    """Numbered lines of UTF-8 text, without line ends, a byte order mark and empty lines. Raises InputError for other bytes."""
    for number, raw in enumerate(file, start=1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            raise InputError("not UTF-8 text", f"{where}, line {number}") from None
        if line:
            yield number, line


def _z(line: str, latent: Latent, where: str) -> list[Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        raise InputError("--z: not a line of JSON", where) from None
    values = record.get("z") if isinstance(record, dict) else record
    if not isinstance(values, list) or not values:
        raise InputError("--z: a record needs a list named 'z'", where)
    try:
        latent.check_record(values)
    except ValueError as error:
        raise InputError(f"--z: {error}", where) from None
    return values
