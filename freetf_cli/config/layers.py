"""The layers that a recipe is merged from: files, overlays and `--set`. Each knows the place of its keys, for errors."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from freetf_cli.errors import InputError


@dataclass(frozen=True)
class Layer:
    """Keys of a recipe from one source. where: the file or option; text: the file's text; prefix: the table that holds the keys."""

    tree: Mapping[str, Any]
    where: str
    text: str = ""
    prefix: tuple[str, ...] = ()

    @property
    def is_smoke(self) -> bool:
        """Whether it is a `[smoke]` overlay."""
        return self.prefix[-1:] == ("smoke",)

    def has(self, names: Sequence[str]) -> bool:
        """Whether this layer sets the key, alone or as part of a larger value."""
        value: Any = self.tree
        for name in names:
            if not isinstance(value, Mapping):
                return True
            if name not in value:
                return False
            value = value[name]
        return True

    def place(self, names: Sequence[str]) -> str:
        """The file and the line of a key, or the option."""
        line = _line_of([*self.prefix, *names], self.text)
        return f"{self.where}, line {line}" if line else self.where


def place(layers: Sequence[Layer], keys: Sequence[Sequence[str]]) -> str:
    """The place of a fault of some keys: where the last layer sets one of them, else the table of a file that lacks the first."""
    for layer in reversed(layers):
        if found := next((names for names in keys if layer.has(names)), None):
            return layer.place(found)
    table, files = keys[0][:-1], [layer for layer in reversed(layers) if layer.text]
    holds_table = [layer for layer in files if table and layer.has(table)]
    return holds_table[0].place(table) if holds_table else (files or layers)[0].where


def parse_setting(text: str) -> Layer:
    """`--set train.lr=3e-4` as a layer; the value is TOML, or a plain word."""
    key, equals, raw = text.partition("=")
    names = key.strip().split(".")
    if not equals or len(names) < 2 or not all(names):
        raise InputError(f"--set takes table.key=value, not '{text}'", hint="for example --set train.lr=3e-4")
    if any("\ud800" <= c <= "\udfff" for c in text):  # a byte of the command line that is not UTF-8
        raise InputError("a recipe is UTF-8 text, which this setting is not", f"--set {text}", "rename the file or folder")
    value = _parse_value(raw)
    for name in reversed(names):
        value = {name: value}
    return Layer(value, f"--set {text}")


def _parse_value(raw: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {raw}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return raw.strip()
    return parsed["value"] if len(parsed) == 1 else raw.strip()  # a line break in it must not smuggle in other keys


def _line_of(names: Sequence[str], text: str) -> int | None:
    """The line of a TOML text where a key or a table stands; a key in an inline table is on that table's line."""
    table: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[([^\[\]]+)\]", line):
            table = _key(header[1])
            if table == [*names]:
                return number
        elif assignment := re.match(r"""\s*([\w."' -]+?)\s*=""", line):
            path = [*table, *_key(assignment[1])]
            if path == [*names[: len(path)]]:
                return number
    return None


def _key(text: str) -> list[str]:
    """`sweep."8th".train` as its names."""
    return [name.strip().strip("\"'") for name in text.split(".")]
