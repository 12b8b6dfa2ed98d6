"""The tensors of a checkpoint: in one safetensors file, or in a folder of files that hold some rows of each.

The files of a folder are those of torch.distributed.checkpoint's HuggingFaceStorageWriter. `DCP_SHARDING_INFO` in a file's metadata has the
offsets of its tensors in the whole ones. PyTorch's own readers are not used: they leave rows that no file has as they are, need the whole
tensor in memory, and its consolidation writes zeros for a tensor without dimensions (torch 2.11 to 2.13).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from freetf_cli import durable
from freetf_cli.errors import InputError

METADATA = {"format": "pt"}  # of a file, as transformers expects it
OFFSETS = "DCP_SHARDING_INFO"  # key of the metadata of a file with some rows


@dataclass(frozen=True, order=True)
class _Piece:
    """Rows start … stop - 1 of a tensor, in a file. A tensor without dimensions counts as one row."""

    start: int
    stop: int
    path: Path


class Tensors:
    """The tensors of a file or folder by name, read some rows at a time. All are float32."""

    def __init__(self, path: Path) -> None:
        """Read the headers. Raises InputError, which names the file, if a file is damaged, or if a row is missing or stored twice."""
        self.path = path
        self._files: dict[Path, Any] = {}
        self._pieces: dict[str, list[_Piece]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            self._add(file)
        for name, shape in self.shapes.items():
            pieces = self._pieces[name] = _in_order(self._pieces[name], f"{name} in {path}")
            self.shapes[name] = (pieces[-1].stop, *shape[1:]) if shape else ()

    def _add(self, path: Path) -> None:
        """Add the tensors of a file."""
        with readable(path):
            file = self._files[path] = open_tensors(path)
            starts = _starts(file, path) if self.path.is_dir() else {}
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                shape = tuple(part.get_shape())
                if part.get_dtype() != "F32":
                    raise InputError(f"weights must be float32, not {part.get_dtype()}", str(path))
                if self.shapes.setdefault(name, shape)[1:] != shape[1:] or len(self.shapes[name]) != len(shape):
                    raise InputError(f"the rows of {name} have another shape than in the other files", str(path))
                start = starts.get(name, 0)
                self._pieces.setdefault(name, []).append(_Piece(start, start + (shape[0] if shape else 1), path))

    def parts(self, name: str, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, Tensor]]:
        """Rows start … stop - 1 of a tensor (by default all), as far as each file has them, each with the number of its first row."""
        for piece in self._pieces[name]:
            first, last = max(start, piece.start), min(piece.stop if stop is None else stop, piece.stop)
            if first < last:
                with readable(piece.path):
                    file = self._files[piece.path]
                    whole = not self.shapes[name] or (first, last) == (piece.start, piece.stop)
                    part = file.get_tensor(name) if whole else file.get_slice(name)[first - piece.start : last - piece.start]
                yield first, part

    def fill(self, name: str, target: Tensor, start: int = 0) -> None:
        """Copy rows of a tensor, from row `start` on, into `target` [rows, …]."""
        for first, part in self.parts(name, start, start + len(target) if target.dim() else None):
            (target[first - start : first - start + len(part)] if target.dim() else target).copy_(part)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows start … stop - 1 of a tensor, on the CPU."""
        found = torch.empty(stop - start, *self.shapes[name][1:])
        self.fill(name, found, start)
        return found

    def whole(self, name: str, device: torch.device) -> Tensor:
        """A tensor in memory of its own: in the file's pages it is not aligned, and products would be summed in another order."""
        found = torch.empty(self.shapes[name], device=device)
        self.fill(name, found)
        return found

    def blocks(self) -> Iterator[bytes | memoryview]:
        """The bytes of the one file that `safetensors.torch.save_file` writes of these tensors, some rows at a time."""
        header: dict[str, Any] = {"__metadata__": METADATA}
        end = 0
        for name in sorted(self.shapes):
            begin, end = end, end + 4 * torch.Size(self.shapes[name]).numel()
            header[name] = {"dtype": "F32", "shape": self.shapes[name], "data_offsets": [begin, end]}
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        yield len(text).to_bytes(8, "little") + text
        for name in sorted(self.shapes):
            for _, part in self.parts(name):
                yield part.reshape(-1).view(torch.uint8).numpy().data

    def sha256(self) -> str:
        """SHA-256 of `blocks`."""
        digest = hashlib.sha256()
        for block in self.blocks():
            digest.update(block)
        return digest.hexdigest()

    def write(self, path: Path) -> str:
        """Write `blocks` to a new file, and flush it to the disk. Returns the SHA-256 of `blocks`, not of what the disk holds."""
        digest = hashlib.sha256()
        with path.open("xb") as file:
            for block in self.blocks():
                digest.update(block)
                file.write(block)
        durable.flush(path)
        return digest.hexdigest()


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] = METADATA) -> None:
    """Write tensors that are on the CPU, without a copy of them. Raises OSError if the system refuses, which the library wraps."""
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(contiguous, path, dict(metadata))
    except SafetensorError as error:
        if found := re.search(r"\(os error (\d+)\)", str(error)):
            raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error
        raise


def _starts(file: Any, path: Path) -> dict[str, int]:
    """The number of the first row that a file has of each of its tensors."""
    try:
        offsets = {name: info["saved_offsets"] for name, info in json.loads(file.metadata()[OFFSETS]).items()}
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError):
        raise InputError(f"the file does not say which rows it has: no valid {OFFSETS}", str(path)) from None
    for name in file.keys():  # noqa: SIM118
        found, dims = offsets.get(name), len(file.get_slice(name).get_shape())
        if not isinstance(found, list) or len(found) != dims or any(type(at) is not int or at < 0 for at in found) or any(found[1:]):
            raise InputError(f"the file does not say which rows of {name} it has", str(path))
    return {name: found[0] if found else 0 for name, found in offsets.items()}


def _in_order(pieces: list[_Piece], what: str) -> list[_Piece]:
    """The pieces of a tensor by their rows, without empty ones. Raises InputError unless each row is there once."""
    found = sorted(piece for piece in pieces if piece.start < piece.stop) or pieces[:1]
    end = 0
    for piece in found:
        if piece.start != end:
            fault = f"are missing: rows {end} to {piece.start - 1}" if piece.start > end else "are there twice"
            raise InputError(f"rows of {what} {fault}", str(piece.path))
        end = piece.stop
    return found


def open_tensors(path: Path) -> Any:
    """A safetensors file. Raises InputError if its header is too large, before the library reads it."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if size > durable.SMALL:
        raise InputError(f"not a readable safetensors file: its header claims {size:,} bytes", str(path))
    return safe_open(path, framework="pt")


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Raise InputError if a block cannot read a safetensors file."""
    try:
        yield
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"not a readable safetensors file: {error}", str(path)) from None
