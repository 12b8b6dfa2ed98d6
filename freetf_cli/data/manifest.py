"""manifest.json of a data folder: its contents, and the size and hash of every file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, ValidationError

from freetf_cli.config.table import ConfigTable, NotNegative
from freetf_cli.errors import InputError
from freetf_cli.records import SCHEMA_VERSION

FORMAT, VERSION = "freetf-data", 1
MANIFEST, OFFSETS, DOCUMENTS = "manifest.json", "offsets.bin", "documents.jsonl"
SPLIT_NAME = r"[A-Za-z0-9_][A-Za-z0-9_-]*"
FILE_NAME = r"tokens-\d{5}\.bin|offsets\.bin|documents\.jsonl"


class Origin(ConfigTable):
    """Where the data comes from. Entropies and the floor are in bits per sequence; row_tokens is null if rows differ in length."""

    kind: Literal["synthetic", "text"]
    task: str | None = None
    params: dict[str, int | float | str] = Field(default_factory=dict)
    seed: NotNegative
    loss_start: int = Field(1, ge=1)
    row_tokens: int | None = Field(None, ge=2)
    entropy: dict[str, float] | None = None
    floor_bits: float | None = None


class FileFacts(ConfigTable):
    """Size and hash of a file."""

    bytes: NotNegative
    sha256: str


class ForeignFile(ConfigTable):
    """A token file of another program, which is not copied. parts: [byte offset, number of tokens] of each contiguous run."""

    path: str
    bytes: NotNegative
    sha256: str
    type: Literal["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"]
    parts: list[Annotated[list[NotNegative], Field(min_length=2, max_length=2)]]


class SplitFacts(ConfigTable):
    """Sizes of a split. bytes: of the documents' text in UTF-8; tokens: of the stream, separators included.

    foreign: files of other programs that hold the stream, if any; edges: whether they lack the first and the last separator.
    """

    documents: NotNegative
    tokens: NotNegative
    bytes: NotNegative
    labels: dict[str, int]
    files: dict[str, FileFacts]
    foreign: list[ForeignFile] = Field(default_factory=list)
    edges: list[bool] = Field(default_factory=lambda: [False, False], min_length=2, max_length=2)


class TokenizerFacts(ConfigTable):
    """The tokenizer of a data folder."""

    name: str
    vocabulary: int = Field(ge=1)
    sha256: str
    separator: int | None


class Manifest(Origin):
    """The contents of manifest.json."""

    schema_version: int = SCHEMA_VERSION
    format: str = FORMAT
    format_version: int = VERSION
    tokenizer: TokenizerFacts
    splits: dict[str, SplitFacts]


def parse_manifest(content: bytes, file: Path) -> Manifest:
    """Parse a manifest; InputError if it is damaged, of another format or of a newer version."""
    try:
        tree = json.loads(content)
        kind, version = tree["format"], tree["format_version"]
    except (ValueError, RecursionError, KeyError, TypeError):
        raise InputError("the manifest is damaged, or not that of a data folder", str(file)) from None
    if kind != FORMAT:
        raise InputError(f"the manifest is of another format, {kind!r:.40}", str(file))
    if not isinstance(version, int) or version > VERSION:
        raise InputError(f"data format {version!r:.20} is newer than this freetf reads ({VERSION})", str(file), "update freetf")
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"the manifest is damaged: {'.'.join(map(str, first['loc']))}: {first['msg']}", str(file)) from None
    for name, split in manifest.splits.items():
        if not re.fullmatch(SPLIT_NAME, name) or not all(re.fullmatch(FILE_NAME, f) for f in split.files):
            raise InputError(f"the manifest is damaged: split '{name}' names files that do not belong", str(file))
        needed = {OFFSETS} if split.foreign else {OFFSETS, DOCUMENTS}
        if not needed <= set(split.files) or not split.documents:
            raise InputError(f"the manifest is damaged: split '{name}' lacks files or documents", str(file))
    return manifest


def token_type(vocabulary: int) -> np.dtype[Any]:
    """The type that tokens are stored as."""
    return np.dtype("<u2" if vocabulary <= 1 << 16 else "<u4")
