"""`freetf recipe list | show | schema | diff`."""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from freetf_cli.cli.options import JsonOption, SetOption, SmokeOption, complete_recipe, complete_run
from freetf_cli.cli.output import Described
from freetf_cli.records import to_json
from freetf_cli.records.recipes import RecipeDiff, RecipeEntry, RecipeList, Setting, SweepEntry

if TYPE_CHECKING:
    from freetf_cli.config.recipe import Recipe


def list_recipes() -> Described:
    """List the shipped recipes by family, with model, size and purpose.

    One `freetf sweep` trains all recipes of a sweep, such as figure4.

    $ freetf recipe list
    """
    from freetf_cli.config.files import describe_file, expand, load_recipe, shipped_files, shipped_recipes

    recipes = {name: load_recipe(name) for name in shipped_recipes()}
    sweeps = [SweepEntry(name, describe_file(name)) for name in shipped_files() if expand(name) != [name]]
    return RecipeList([_entry(name, recipe) for name, recipe in recipes.items()], sweeps)


def _complete_either(incomplete: str) -> list[str]:
    return [*complete_recipe(incomplete), *complete_run(incomplete)]


EITHER = "A shipped recipe, a TOML file or a run's folder."
EitherArgument = Annotated[str, typer.Argument(help=EITHER, autocompletion=_complete_either)]
ShownArgument = Annotated[str, typer.Argument(metavar="RECIPE", help=EITHER, autocompletion=_complete_either)]


def show_recipe(recipe: ShownArgument, smoke: SmokeOption = False, set: SetOption = None, json: JsonOption = False) -> None:
    """Print a recipe with every setting resolved: its base, its overlay, your settings and all defaults.

    The output is a complete recipe file that you can edit and train. Of a run, it is the recipe that it was trained with.

    $ freetf recipe show letters-free --set latent.kappa=0.25
    $ freetf recipe show runs/letters-free
    """
    from freetf_cli.config.files import load_recipe, to_toml

    resolved = load_recipe(_file_of(recipe), smoke=smoke, overrides=set or [])
    typer.echo(to_json(resolved.model_dump()) if json else to_toml(resolved), nl=json)


def schema(json: JsonOption = False) -> None:
    """Print the JSON Schema of recipe files, for checks and completion in editors.

    $ freetf recipe schema > recipe.schema.json
    """
    from freetf_cli.config.schema import recipe_schema

    tree = recipe_schema()
    typer.echo(to_json(tree) if json else json_text.dumps(tree, indent=2, ensure_ascii=False))


def diff(a: EitherArgument, b: EitherArgument) -> Described:
    """Show the settings in which two resolved recipes differ.

    $ freetf recipe diff letters-baseline letters-free
    """
    from freetf_cli.config.files import differences, load_recipe

    rows = differences(load_recipe(_file_of(a)), load_recipe(_file_of(b)))
    return RecipeDiff(a, b, [Setting(*row) for row in rows])


def _file_of(name: str) -> str:
    """The recipe of a run's folder; any other name as it is."""
    inside = Path(name) / "recipe.toml"
    return str(inside) if inside.is_file() else name


def _entry(name: str, recipe: Recipe) -> RecipeEntry:
    """The row of a recipe. `figure4/8th` is of the family figure4, `letters-free` of letters."""
    family = name.partition("/" if "/" in name else "-")[0]
    return RecipeEntry(name, recipe.kind, recipe.description, recipe.model.layers, recipe.model.width, recipe.train.steps, family)
