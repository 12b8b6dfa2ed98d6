"""Recipes as TOML files: found by name, merged from what they extend, and checked before anything is computed.

Later wins: defaults < the recipe that `extends` names < the file < its variant < their `[smoke]` overlays (with `--smoke`) < `--set`.
A file with a `[sweep]` table is a family of recipes: `figure4/8th` is the variant `[sweep.8th]` of the shipped figure4.toml, and
`path/to/mine.toml/8th` that of a file.
"""

from __future__ import annotations

import re
import stat
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import tomli_w
from pydantic import ValidationError

from freetf_cli.config.faults import as_errors
from freetf_cli.config.layers import Layer, parse_setting
from freetf_cli.config.recipe import Recipe, flat
from freetf_cli.durable import read_small
from freetf_cli.errors import InputError, nearest


class Address(NamedTuple):
    """The file of a recipe, and the name of a variant in it, or none."""

    file: Path
    variant: str | None = None


def recipe_folder() -> Path:
    """The shipped recipes: inside the wheel, or beside the package in a checkout."""
    packaged = Path(str(resources.files("freetf_cli"))) / "recipes"
    return packaged if packaged.is_dir() else Path(__file__).resolve().parents[2] / "recipes"


def shipped_files() -> list[str]:
    """Names of the shipped recipe files, sweeps among them."""
    return sorted(path.stem for path in recipe_folder().glob("*.toml"))


def shipped_recipes() -> list[str]:
    """Names of the shipped recipes; each variant of a sweep has its own, such as `figure4/8th`."""
    return [recipe for name in shipped_files() for recipe in expand(name)]


def expand(name: str) -> list[str]:
    """The recipes that a name stands for: every variant of a sweep, else only itself."""
    file, variant = find_recipe(name)
    return [name] if variant else [f"{name.rstrip('/')}/{one}" for one in _variants(file)] or [name]


def describe_file(name: str) -> str:
    """The description of a recipe file, outside its variants."""
    return str(_read(find_recipe(name).file)[0].get("description", ""))


def load_recipe(name: str, *, smoke: bool = False, overrides: Sequence[str] = ()) -> Recipe:
    """Read, merge and check a recipe.

    name: a path to a TOML file, the name of a shipped recipe, or either with `/VARIANT`. overrides: `table.key=TOML value`, as `--set`.
    Raises InputErrors with every fault of the recipe at once.
    """
    address = find_recipe(name)
    if not address.variant and _variants(address.file):
        raise InputError(
            f"'{name}' is a sweep: name one of its recipes", hint=f"choose from: {', '.join(expand(name))}; `freetf sweep` trains them all"
        )
    layers = sorted(_layers(address), key=lambda layer: layer.is_smoke)
    if smoke and not layers[-1].is_smoke:
        raise InputError("the recipe has no [smoke] overlay", str(address.file))
    layers = [layer for layer in layers if smoke or not layer.is_smoke]
    changes = [parse_setting(text) for text in overrides]
    change = next((change for change in changes if "latent" in change.tree), None)
    if change and not any("latent" in layer.tree for layer in layers):
        raise InputError("this recipe is a baseline: it has no [latent] table", change.where, "start from a Free recipe")
    return _checked([*layers, *changes])


def find_recipe(name: str, beside: Path | None = None) -> Address:
    """The file and the variant of a recipe's address: a path or the name of a shipped recipe, with or without `/VARIANT`.

    beside: a folder; its recipes can be named without `.toml`.
    """
    if found := _find_file(name, beside):
        return Address(found)
    if stat.S_IFMT(_mode(Path(name))) not in (0, stat.S_IFDIR):
        raise InputError("a recipe must be a regular file", name)
    head, slash, variant = name.rpartition("/")
    if found := _find_file(head, beside) if slash else None:
        if variant in (variants := _variants(found)):
            return Address(found, variant)
        raise InputError(f"'{head}' has no variant '{variant}'", str(found), nearest(variant, variants) or "it has no [sweep] table")
    if slash or name.endswith(".toml"):
        raise InputError("no such recipe file", name, "`freetf recipe list` shows the shipped ones")
    raise InputError(f"no recipe named '{name}'", hint=nearest(name, shipped_recipes()))


def check_recipe(tree: Mapping[str, Any], *, where: Path | str) -> Recipe:
    """A Recipe from plain data; raises InputErrors with every fault. where: the file that it comes from."""
    return _checked([Layer(tree, str(where))])


def to_toml(recipe: Recipe) -> str:
    """The recipe as TOML that `load_recipe` reads back to the same recipe."""
    return tomli_w.dumps(_without_empty(recipe.model_dump(exclude_none=True)))


def _without_empty(tree: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: _without_empty(value) if isinstance(value, Mapping) else value for key, value in tree.items()}
    return {key: value for key, value in kept.items() if value != {}}


def differences(a: Recipe, b: Recipe) -> list[tuple[str, Any, Any]]:
    """(key, value in a, value in b) where they differ; a missing setting is None."""
    ours, theirs = flat(a), flat(b)
    return [(key, ours.get(key), theirs.get(key)) for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]


def _checked(layers: Sequence[Layer]) -> Recipe:
    tree = Recipe.merge(reduce(Recipe.merge, (layer.tree for layer in layers)), _description(layers))
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise as_errors(error, tree, layers) from None


def _description(layers: Sequence[Layer]) -> dict[str, str]:
    """The description, marked with the settings that later layers change: it may no longer be true."""
    last = max((number for number, layer in enumerate(layers) if "description" in layer.tree), default=len(layers))
    names = ["--smoke" if layer.is_smoke else name for layer in layers[last + 1 :] for name in _names(layer.tree)]
    described = last < len(layers) and isinstance(text := layers[last].tree["description"], str) and names
    return {"description": f"{text} (changed: {', '.join(dict.fromkeys(names))})"} if described else {}


def _names(tree: Mapping[str, Any]) -> Iterator[str]:
    """The settings in nested tables, as `table.key`."""
    for key, value in tree.items():
        yield from (f"{key}.{name}" for name in _names(value)) if isinstance(value, Mapping) else (key,)


def _layers(address: Address, seen: tuple[Address, ...] = ()) -> Iterator[Layer]:
    """The layers of a recipe, lowest first: what it extends, the file, the variant; after each its smoke overlay, if it has one."""
    path, variant = address
    tree, text = _read(path)
    if "extends" in tree:
        parent = tree["extends"]
        if not isinstance(parent, str):
            raise InputError("'extends' must name a recipe", str(path))
        target = find_recipe(parent, beside=path.parent)
        target = Address(target.file.resolve(), target.variant)
        seen = (*seen, Address(path.resolve(), variant))
        if target in seen:
            raise InputError(f"'extends' goes in a circle through '{parent}'", str(path))
        yield from _layers(target, seen)
    yield from _with_overlay({key: value for key, value in tree.items() if key not in ("extends", "sweep")}, path, text)
    if variant:
        yield from _with_overlay(_table(_table(tree, "sweep", path), variant, path), path, text, ("sweep", variant))


def _with_overlay(tree: Mapping[str, Any], path: Path, text: str, prefix: tuple[str, ...] = ()) -> Iterator[Layer]:
    yield Layer({key: value for key, value in tree.items() if key != "smoke"}, str(path), text, prefix)
    if "smoke" in tree:
        yield Layer(_table(tree, "smoke", path), str(path), text, (*prefix, "smoke"))


def _variants(path: Path) -> list[str]:
    """Names of the variants in a file's `[sweep]` table; none where it has no such table."""
    names = list(_table(_read(path)[0], "sweep", path))
    if wrong := next((name for name in names if not re.fullmatch(r"[\w.-]+", name)), None):
        raise InputError(f"'{wrong}' cannot name a variant", str(path), "use letters, digits, '.', '_' and '-'")
    return names


def _read(path: Path) -> tuple[dict[str, Any], str]:
    """The tables of one file, and its text."""
    try:
        text = read_small(path).decode("utf-8-sig")
        return tomllib.loads(text), text
    except UnicodeDecodeError:
        raise InputError("the recipe is not UTF-8 text", str(path)) from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"the recipe is not valid TOML: {error}", str(path)) from None
    except RecursionError:
        raise InputError("the recipe is nested too deeply", str(path)) from None
    except OSError as error:
        raise InputError(f"the recipe cannot be read: {error.strerror}", str(path)) from None


def _table(tree: Mapping[str, Any], name: str, path: Path) -> Mapping[str, Any]:
    """A table that holds other tables: `[sweep]`, one of its variants, or `[smoke]`; empty if there is none."""
    found = tree.get(name, {})
    if not isinstance(found, Mapping):
        raise InputError(f"'{name}' must be a table", str(path))
    return found


def _find_file(name: str, beside: Path | None) -> Path | None:
    """A recipe in the folder `beside`, a path, or a shipped recipe."""
    here = [beside / f"{name}.toml"] if beside else []
    shipped = [recipe_folder() / f"{name}.toml"] if name and "/" not in name else []
    return next((path for path in (*here, Path(name), *shipped) if stat.S_ISREG(_mode(path))), None)


def _mode(path: Path) -> int:
    """The mode of a file; 0 if there is none, or if no file can have that name."""
    try:
        return path.stat().st_mode
    except (OSError, ValueError):
        return 0
