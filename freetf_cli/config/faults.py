"""All faults of a recipe as one list of errors: pydantic's, and the rules between keys, each with its place and a hint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from freetf_cli.config.layers import Layer, place
from freetf_cli.config.recipe import Recipe, table_types
from freetf_cli.errors import InputError, InputErrors, nearest

FILE_KEYS = ("extends", "smoke", "sweep")  # keys of a recipe file that are not settings


def as_errors(error: ValidationError, tree: Mapping[str, Any], layers: Sequence[Layer]) -> InputErrors:
    """Every fault of `tree`, which pydantic has refused with `error`. Rules that need no faulty key are checked as well."""
    items = [item for item in error.errors() if item["type"] != "value_error"]  # those are rules, and are all checked below
    wrong = [tuple(str(name) for name in item["loc"]) for item in items]
    found = [_as_error(item, names, place(layers, [names])) for item, names in zip(items, wrong, strict=True)]
    for keys, message in Recipe.partial(tree, set(wrong)).broken():
        found.append(InputError(message, place(layers, [key.split(".") for key in keys])))
    return InputErrors(found)


def _as_error(item: Mapping[str, Any], names: tuple[str, ...], where: str) -> InputError:
    key, kind, message = ".".join(names), item["type"], item["msg"]
    if kind == "extra_forbidden":
        return InputError(f"unknown key '{key}'", where, _nearest_key(".".join(names[:-1]), names[-1]))
    if kind == "missing":
        return InputError(f"missing key '{key}'", where)
    if kind == "unknown_name":
        return InputError(f"{key}: {message}", where, item["ctx"]["hint"])
    if kind == "less_than_equal":  # pydantic writes all 39 digits of 1e38
        message = f"input should be less than or equal to {item['ctx']['le']}"
    if kind == "model_type":
        message = "input should be a table"
    given = item.get("input")
    shown = repr(given) if isinstance(given, str) else str(given).lower() if isinstance(given, bool) else str(given)  # as in TOML
    return InputError(f"{key}: {message[:1].lower()}{message[1:]}, not {shown[:60]}", where)


def _nearest_key(table: str, name: str) -> str:
    """A hint: the key of that name in a table within this one, else the key of this table with the nearest name."""
    tables = table_types()
    inner = next((one for one, kind in tables.items() if one.startswith(f"{table}.") and name in kind.model_fields), None)
    if inner:
        return f"did you mean '{inner}.{name}'?"
    return nearest(name, [*tables.get(table, Recipe).model_fields, *(FILE_KEYS if not table else ())])
