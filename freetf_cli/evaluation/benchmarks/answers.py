"""The model's answers to requests, kept in a file so that an interrupted evaluation can be resumed.

{"key": "5d41…", "answer": {"loglikelihood": -3.2, "greedy": false, "tokens": 2, "stderr": 0.11, "truncated": false}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

Record = Mapping[str, Any]


class Answers:
    """Answers by the key of their request. file: the JSONL file to which new answers are appended; None keeps them in memory only.

    If a killed process left a line incomplete, that line is dropped and its batch is computed again.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._known: dict[str, Record] = {}
        self._file: IO[str] | None = None
        if file is not None:
            whole = self._read(file) if file.exists() else []
            file.write_text("".join(whole), encoding="utf-8")
            self._file = file.open("a", encoding="utf-8")

    def _read(self, file: Path) -> list[str]:
        whole = []
        for line in file.read_text(encoding="utf-8").splitlines(keepends=True):
            try:
                entry = json.loads(line)
                self._known[entry["key"]] = entry["answer"]
            except (ValueError, KeyError, TypeError):
                break
            whole.append(line)
        return whole

    def known(self, keys: Sequence[str]) -> list[Record] | None:
        """The answers to these requests, or None if any is missing."""
        found = [self._known.get(key) for key in keys]
        return None if None in found else [one for one in found if one is not None]

    def add(self, keys: Sequence[str], answers: Sequence[Record]) -> None:
        """Add answers, and append them to the file."""
        self._known.update(zip(keys, answers, strict=True))
        if self._file is not None:
            lines = (json.dumps({"key": key, "answer": answer}, ensure_ascii=False) for key, answer in zip(keys, answers, strict=True))
            self._file.write("".join(f"{line}\n" for line in lines))
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
