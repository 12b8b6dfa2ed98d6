"""`freetf recipe list | show | schema | diff`."""

from __future__ import annotations

import json as json_text
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from freetf_cli.cli.options import JsonOption, RecipeArgument, SetOption, SmokeOption, complete_recipe, complete_run
from freetf_cli.records import to_json

if TYPE_CHECKING:
    from freetf_cli.config.recipe import Recipe


def list_recipes(json: JsonOption = False) -> None:
    """List the shipped recipes by family: name, kind of model, size, and what they are for.

    All recipes of a sweep, figure4 for example, can be trained with one `freetf sweep`.

    $ freetf recipe list
    """
    from freetf_cli.config.files import describe_file, expand, load_recipe, shipped_files, shipped_recipes

    recipes = [(name, load_recipe(name)) for name in shipped_recipes()]
    sweeps = {name: describe_file(name) for name in shipped_files() if expand(name) != [name]}
    if json:
        rows = [{"name": name, "family": _family(name), **_facts(recipe)} for name, recipe in recipes]
        typer.echo(to_json({"recipes": rows, "sweeps": [{"name": name, "description": about} for name, about in sweeps.items()]}))
        return
    from freetf_cli.report import terminal

    terminal.recipes(_grouped([(name, recipe.kind, recipe.description, _size(recipe)) for name, recipe in recipes], sweeps))


def show_recipe(recipe: RecipeArgument, smoke: SmokeOption = False, set: SetOption = None, json: JsonOption = False) -> None:
    """Print a recipe with everything resolved: what it extends, its overlay, your settings, every default.

    The output is itself a recipe: redirect it to a file, edit it, train it.

    $ freetf recipe show letters-free --set latent.kappa=0.25
    """
    from freetf_cli.config.files import load_recipe, to_toml

    resolved = load_recipe(recipe, smoke=smoke, overrides=set or [])
    typer.echo(to_json(resolved.model_dump()) if json else to_toml(resolved), nl=json)


def schema(json: JsonOption = False) -> None:
    """Print the JSON Schema of recipe files, with which editors check and complete them.

    $ freetf recipe schema > recipe.schema.json
    """
    from freetf_cli.config.schema import recipe_schema

    tree = recipe_schema()
    typer.echo(to_json(tree) if json else json_text.dumps(tree, indent=2, ensure_ascii=False))


def _complete_either(incomplete: str) -> list[str]:
    return [*complete_recipe(incomplete), *complete_run(incomplete)]


EitherArgument = Annotated[str, typer.Argument(help="A shipped recipe, a TOML file, or a run's folder.", autocompletion=_complete_either)]


def diff(a: EitherArgument, b: EitherArgument, json: JsonOption = False) -> None:
    """Compare two recipes, both resolved: show the settings that differ.

    $ freetf recipe diff letters-baseline letters-free
    """
    from freetf_cli.config.files import differences

    rows = differences(_load(a), _load(b))
    if json:
        typer.echo(to_json({"a": a, "b": b, "differences": [dict(zip(("key", "a", "b"), row, strict=True)) for row in rows]}))
        return
    from freetf_cli.report import terminal

    terminal.recipe_diff(a, b, rows)


def _load(name: str) -> Recipe:
    from freetf_cli.config.files import load_recipe

    inside = Path(name) / "recipe.toml"
    return load_recipe(str(inside) if inside.is_file() else name)


def _family(name: str) -> str:
    """`figure4/8th` belongs to the sweep figure4, `letters-free` to letters."""
    return name.partition("/" if "/" in name else "-")[0]


def _grouped(rows: Sequence[tuple[str, str, str, str]], sweeps: Mapping[str, str]) -> list[tuple[str, str, str, str]]:
    """Rows of a table, families apart; a sweep's own name and description are above its recipes."""
    found: list[tuple[str, str, str, str]] = []
    for family, members in groupby(rows, key=lambda row: _family(row[0])):
        found += [("", "", "", "")] if found else []
        found += [(family, "sweep", sweeps[family], "")] if family in sweeps else []
        found += members
    return found


def _size(recipe: Recipe) -> str:
    return f"{recipe.model.layers} × {recipe.model.width}"


def _facts(recipe: Recipe) -> dict[str, Any]:
    model = recipe.model
    facts = {"layers": model.layers, "width": model.width, "steps": recipe.train.steps}
    return {"kind": recipe.kind, "description": recipe.description, **facts}
