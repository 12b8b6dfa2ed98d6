"""The JSON Schema of a recipe file, for editors and other programs.

It describes files, not resolved recipes: a file that `extends` another, and a `[smoke]` overlay, may leave any key out.
"""

from __future__ import annotations

from typing import Any

from freetf_cli.config.recipe import Recipe

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def recipe_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a recipe file, with `extends` and `[smoke]`."""
    whole = Recipe.model_json_schema()
    parts: dict[str, Any] = whole["$defs"]
    partial = {f"{name}Partial": {key: value for key, value in part.items() if key != "required"} for name, part in parts.items()}
    loose = {key: _renamed(value) for key, value in whole["properties"].items()}
    overlay = {"type": "object", "additionalProperties": False, "properties": loose, "description": "laid over the recipe by --smoke"}
    return {
        "$schema": DIALECT,
        "title": "freetf recipe",
        "type": "object",
        "additionalProperties": False,
        "properties": {"extends": {"type": "string", "description": "the recipe that this one changes"}, **loose, "smoke": overlay},
        "if": {"not": {"required": ["extends"]}},
        "then": {"properties": whole["properties"], "required": whole["required"]},
        "$defs": parts | partial,
    }


def _renamed(value: Any) -> Any:
    """The same property, its references pointing at the parts without required keys."""
    if isinstance(value, dict):
        return {key: f"{item}Partial" if key == "$ref" else _renamed(item) for key, item in value.items()}
    return [_renamed(item) for item in value] if isinstance(value, list) else value
