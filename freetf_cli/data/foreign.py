"""Token files made by other programs, read in place: only the positions of the documents are copied.

    kind       a file                       token type              where documents end
    megatron   NAME.bin beside NAME.idx     named in .idx           in .idx
    datatrove  NAME.ds                      uint16 or uint32        in NAME.ds.index, if it is there
    nanogpt    NAME.bin                     uint16 or uint32        at the separator
    datasets   *.arrow of a folder that     that of the column      at the end of a row
               `save_to_disk` wrote

Sources: NVIDIA/Megatron-LM megatron/core/datasets/indexed_dataset.py, huggingface/datatrove pipeline/tokens/tokenizer.py,
karpathy/nanoGPT data/openwebtext/prepare.py, and the IPC stream format of Apache Arrow.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freetf_cli.data.files import import_pyarrow, reading
from freetf_cli.data.manifest import token_type
from freetf_cli.errors import InputError, nearest

MEGATRON_HEADER = b"MMIDIDX\x00\x00"
MEGATRON_TYPES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 8: "uint16"}  # 6 and 7 are floats
LLM_C = struct.pack("<i", 20240520)  # as tokens below 65,536 it would pass
SCANNED = 1 << 22  # tokens at a time

Places = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class TokenFile:
    """The tokens of a file.

    parts: (byte offset, number of tokens) of each contiguous run; ends: where each document ends, counted in tokens, if known.
    """

    path: Path
    type: str
    parts: Sequence[tuple[int, int]]
    ends: Places | None

    @property
    def tokens(self) -> int:
        return sum(count for _, count in self.parts)

    def arrays(self) -> Iterator[NDArray[Any]]:
        """The parts, memory-mapped."""
        return map_parts(self.path, self.type, self.parts)

    def clip(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The parts that hold tokens start … stop − 1."""
        size, clipped, begin = np.dtype(self.type).itemsize, [], 0
        for offset, count in self.parts:
            first, last = max(start - begin, 0), min(stop - begin, count)
            if first < last:
                clipped.append((offset + first * size, last - first))
            begin += count
        return clipped


def map_parts(path: Path, kind: str, parts: Sequence[Sequence[int]]) -> Iterator[NDArray[Any]]:
    """Memory-map runs of tokens in a file. parts: (byte offset, number of tokens) of each run."""
    if parts:
        mapped = np.memmap(path, np.uint8, "r")
        yield from (np.frombuffer(mapped, np.dtype(kind).newbyteorder("<"), count, offset) for offset, count in parts)


def find_files(paths: Sequence[str], kind: str) -> list[Path]:
    """The token files of the paths, in order: files as they are named, those of folders sorted by name."""
    if kind not in READERS:
        raise InputError(f"--tokens takes a kind of token files, not '{kind}'", hint=nearest(kind, READERS))
    suffix, found = READERS[kind][0], []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(path.rglob(f"*{suffix}")) if kind != "datasets" else list(_saved(path))
            if not inside:
                raise InputError(f"the folder has no {suffix} files", str(path))
            found += inside
        elif path.suffix == ".idx" or not path.exists():
            found.append(path.with_name(f"{path.name.removesuffix('.idx')}{suffix}"))  # Megatron names both files by their prefix
        else:
            found.append(path)
    for path in found:
        if not path.is_file():
            raise InputError("no such file", str(path))
    return found


def _saved(folder: Path) -> Iterator[Path]:
    """The Arrow files of the data sets that `save_to_disk` wrote below a folder. Other Arrow files there are caches."""
    for state in sorted(folder.rglob("state.json")):
        with reading(str(state)):
            yield from (state.parent / str(file["filename"]) for file in json.loads(state.read_bytes())["_data_files"])


def open_tokens(path: Path, kind: str, vocabulary: int, column: str = "input_ids") -> TokenFile:
    """Read the layout of a token file from its header and index. InputError if they are damaged or disagree."""
    with reading(str(path)):
        return READERS[kind][1](path.resolve(), vocabulary, column)


def scan(file: TokenFile, vocabulary: int, separator: int | None) -> Places:
    """The positions of the separator in a file. InputError for a token outside the vocabulary; it names the token's position."""
    found, begin = [np.empty(0, np.int64)], 0
    for array in file.arrays():
        for start in range(0, len(array), SCANNED):
            piece = array[start : start + SCANNED]
            if int(piece.max()) >= vocabulary or int(piece.min()) < 0:
                index = int(np.flatnonzero((piece >= vocabulary) | (piece < 0))[0])
                what = f"token {begin + start + index} is {piece[index]}, and the tokenizer has {vocabulary} tokens"
                raise InputError(what, str(file.path), "give the tokenizer that made the file: --tokenizer FILE")
            if separator is not None:
                found.append(np.flatnonzero(piece == separator) + (begin + start))
        begin += len(array)
    return np.concatenate(found)


def _whole(path: Path, kind: np.dtype[Any], ends: Places | None) -> TokenFile:
    """A file that holds tokens and nothing else."""
    size = path.stat().st_size
    if size % kind.itemsize:
        raise InputError(f"damaged: {size} bytes are no whole number of tokens of {kind.itemsize} bytes", str(path))
    count = size // kind.itemsize
    if ends is not None and (int(ends[-1]) if len(ends) else 0) != count:
        raise InputError(f"the file has {count} tokens, and its index names {int(ends[-1]) if len(ends) else 0}", str(path))
    if ends is not None and (np.diff(ends, prepend=0) < 0).any():
        raise InputError("the index is damaged: the ends of documents do not ascend", str(path))
    return TokenFile(path, kind.name, [(0, count)] if count else [], ends)


def _nanogpt(path: Path, vocabulary: int, column: str) -> TokenFile:
    with path.open("rb") as file:
        if file.read(4) == LLM_C:
            what = "the file begins with the header of llm.c and modded-nanogpt, not with tokens"
            raise InputError(what, str(path), "leave it out: tail -c +1025 FILE")
    return _whole(path, token_type(vocabulary), None)


def _datatrove(path: Path, vocabulary: int, column: str) -> TokenFile:
    """The first line of NAME.ds.metadata ends with the bytes per token; if it gives none, as in older versions, tokens have two."""
    kind, metadata, index = token_type(vocabulary), path.with_name(f"{path.name}.metadata"), path.with_name(f"{path.name}.index")
    if metadata.is_file():
        size = metadata.read_text(encoding="utf-8").partition("\n")[0].rpartition("|")[2]
        kind = np.dtype("<u4" if size == "4" else "<u2")
    ends = np.fromfile(index, "<u8").astype(np.int64) if index.is_file() else None
    return _whole(path, kind, ends)


def _megatron(path: Path, vocabulary: int, column: str) -> TokenFile:
    index = path.with_suffix(".idx")
    with reading(str(index)):
        raw = index.read_bytes()
    try:
        header, version, code, sequences, documents = struct.unpack_from("<9sQBQQ", raw)
        lengths = np.frombuffer(raw, "<i4", sequences, 34)
        pointers = np.frombuffer(raw, "<i8", sequences, 34 + lengths.nbytes)
        bounds = np.frombuffer(raw, "<i8", documents, 34 + lengths.nbytes + pointers.nbytes)
        kind = np.dtype(MEGATRON_TYPES[code]).newbyteorder("<")
        ends = np.cumsum(lengths, dtype=np.int64)
        fits = header == MEGATRON_HEADER and version == 1 and (pointers == (ends - lengths) * kind.itemsize).all()
        fits = fits and (lengths >= 0).all() and bounds[0] == 0 and bounds[-1] == sequences and (np.diff(bounds) >= 0).all()
    except (struct.error, ValueError, KeyError, IndexError):
        fits = False
    if not fits:
        raise InputError("the index is damaged, or not one of Megatron", str(index))
    return _whole(path, kind, np.concatenate([np.zeros(1, np.int64), ends])[bounds[1:]])  # a document may have several sequences


def _datasets(path: Path, vocabulary: int, column: str) -> TokenFile:
    """Within a record batch, Arrow stores the values of a list column contiguously, so training can memory-map them without pyarrow."""
    arrow = import_pyarrow("Arrow files")
    parts, lengths, kind = [], [np.empty(0, np.int64)], "int32"
    with arrow.memory_map(str(path)) as mapped:
        whole = mapped.read_buffer(mapped.size())
        for batch in arrow.ipc.open_stream(whole):
            if column not in batch.schema.names:
                raise InputError(f"the data set has no column '{column}'", str(path), nearest(column, batch.schema.names))
            rows = batch.column(column)
            if not hasattr(rows, "flatten") or not arrow.types.is_integer(rows.flatten().type):
                raise InputError(f"column '{column}' is not lists of tokens but {rows.type}", str(path))
            values = rows.flatten()
            kind = str(values.type)
            offset = values.buffers()[1].address - whole.address + values.offset * np.dtype(kind).itemsize
            if rows.null_count or values.null_count or not 0 <= offset < whole.size:
                raise InputError(f"column '{column}' has nulls or is compressed", str(path), "save it again with datasets' save_to_disk")
            parts += [(offset, len(values))] if len(values) else []
            lengths.append(rows.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64))
    return TokenFile(path, kind, parts, np.cumsum(np.concatenate(lengths)))


READERS: dict[str, tuple[str, Callable[[Path, int, str], TokenFile]]] = {
    "megatron": (".bin", _megatron),
    "datatrove": (".ds", _datatrove),
    "nanogpt": (".bin", _nanogpt),
    "datasets": (".arrow", _datasets),
}
