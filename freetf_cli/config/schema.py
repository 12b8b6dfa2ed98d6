"""The JSON Schema of a recipe file, for editors and other programs.

It describes files, not resolved recipes: a file that `extends` another, a `[smoke]` overlay and the variants of a `[sweep]` may leave out
any key.
"""

from __future__ import annotations

from typing import Any

from freetf_cli.config.recipe import Recipe

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def recipe_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a recipe file, with `extends`, `[smoke]` and `[sweep]`."""
    whole = Recipe.model_json_schema()
    tables: dict[str, Any] = whole["$defs"]
    partial = {name: {key: value for key, value in table.items() if key != "required"} for name, table in tables.items()}
    loose = {key: _renamed(value) for key, value in whole["properties"].items()}
    overlay = {"type": "object", "additionalProperties": False, "properties": loose, "description": "laid over the recipe by --smoke"}
    variant = {"type": "object", "additionalProperties": False, "properties": {**loose, "smoke": overlay}}
    own = {
        "extends": {"type": "string", "description": "the recipe that this one changes"},
        "smoke": overlay,
        "sweep": {"type": "object", "additionalProperties": variant, "description": "variants of the recipe by name: FILE/NAME"},
    }
    return {
        "$schema": DIALECT,
        "title": "freetf recipe",
        "type": "object",
        "additionalProperties": False,
        "properties": {**own, **loose},
        "if": {"not": {"anyOf": [{"required": ["extends"]}, {"required": ["sweep"]}]}},
        "then": {"properties": whole["properties"], "required": whole["required"]},
        "$defs": tables | {f"{name}Partial": _renamed(table) for name, table in partial.items()},
    }


def _renamed(value: Any) -> Any:
    """The same schema with references to the tables without required keys."""
    if isinstance(value, dict):
        return {key: f"{item}Partial" if key == "$ref" else _renamed(item) for key, item in value.items()}
    return [_renamed(item) for item in value] if isinstance(value, list) else value
