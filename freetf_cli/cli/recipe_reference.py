"""Generates the tables of docs/recipes.md: every key, from the recipe's types, and every shipped recipe.

`python -m freetf_cli.cli.reference` writes them between the page's markers; a test checks that they are current.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from freetf_cli.config.files import load_recipe, shipped_recipes
from freetf_cli.config.recipe import Recipe, table_types

PAGE = Path(__file__).resolve().parents[2] / "docs" / "recipes.md"
MARKED = r"(<!-- {name}: generated -->\n)(.*?)(<!-- end of {name} -->)"
TYPES = {
    "integer": "integer",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
    "object": "table",
    "array": "list",
    "null": "",
}
LIMITS = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}


def filled(page: str) -> str:
    """The page with its generated parts replaced."""
    for name, text in (("keys", key_tables()), ("shipped recipes", shipped_table())):
        places = re.findall(MARKED.format(name=re.escape(name)), page, flags=re.DOTALL)
        if len(places) != 1:
            raise ValueError(f"{PAGE.name} needs one marked place for '{name}', not {len(places)}")
        begin, old, end = places[0]
        page = page.replace(f"{begin}{old}{end}", f"{begin}\n{text}\n\n{end}")
    return page


def key_tables() -> str:
    """A table of keys for each table of a recipe."""
    tables = Recipe.model_json_schema()["$defs"]
    return "\n\n".join(_section(name, tables[table.__name__]) for name, table in table_types().items())


def shipped_table() -> str:
    """Every shipped recipe: kind, size, description."""
    recipes = [(name, load_recipe(name)) for name in shipped_recipes()]
    rows = [(f"`{name}`", r.kind, f"{r.model.layers} × {r.model.width}", f"{r.train.steps:,}", r.description) for name, r in recipes]
    return markdown_table(("recipe", "kind", "layers × width", "steps", "description"), rows)


def _section(name: str, table: dict[str, Any]) -> str:
    required = set(table.get("required", ()))
    rows = []
    for key, field in table["properties"].items():
        default = "required" if key in required else f"`{json.dumps(field['default'])}`" if field.get("default") is not None else "–"
        rows.append((f"`{key}`", _type(field), default, field.get("description", "")))
    about = table.get("description", "").split("\n")[0]
    return f"### `[{name}]`\n\n{about}\n\n{markdown_table(('key', 'type', 'default', 'meaning'), rows)}"


def _type(field: dict[str, Any]) -> str:
    """A JSON Schema type in words: `integer > 0`, `"auto" or "fp32"`."""
    if "$ref" in field:
        return TYPES["object"]
    if "anyOf" in field:
        return " or ".join(filter(None, (_type(one) for one in field["anyOf"])))
    if "enum" in field or "const" in field:
        return " or ".join(f'`"{value}"`' for value in field.get("enum", [field.get("const")]))
    limits = " and ".join(f"{sign} {field[name]}" for name, sign in LIMITS.items() if name in field)
    return f"{TYPES[field['type']]} {limits}".strip()


def markdown_table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A Markdown table."""
    return "\n".join(_row(cells) for cells in [head, tuple("---" for _ in head), *rows])


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"
