"""Recipes as TOML files: found by name, laid on each other, and checked before anything is computed.

Later wins: defaults < the recipe that `extends` names < the file < its `[smoke]` overlay (with `--smoke`) < `--set`.
Unknown keys are errors that name the nearest right one, and all errors of a recipe are shown at once.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from freetf_cli.config.recipe import Recipe, flat, part_types, with_options
from freetf_cli.config.rules import faults
from freetf_cli.durable import read_small
from freetf_cli.errors import InputError, InputErrors, nearest


def recipe_folder() -> Path:
    """The shipped recipes: inside the wheel, or beside the package in a checkout."""
    packaged = Path(str(resources.files("freetf_cli"))) / "recipes"
    return packaged if packaged.is_dir() else Path(__file__).resolve().parents[2] / "recipes"


def shipped_recipes() -> list[str]:
    """Names of the shipped recipes."""
    return sorted(path.stem for path in recipe_folder().glob("*.toml"))


def load_recipe(name: str, *, smoke: bool = False, overrides: Sequence[str] = ()) -> Recipe:
    """Read, merge and check a recipe.

    name: a path to a TOML file, or the name of a shipped recipe. overrides: `table.key=TOML value`, as `--set` takes them.
    Raises InputErrors with every fault of the recipe at once.
    """
    path = find_recipe(name)
    tree = _read_tree(path, seen=())
    overlay = tree.pop("smoke", None)
    if smoke:
        if overlay is None:
            raise InputError("the recipe has no [smoke] overlay", str(path))
        if not isinstance(overlay, Mapping):
            raise InputError("'smoke' must be a table", str(path))
        tree = _merge(tree, overlay)
    for text in overrides:
        tree = _merge(tree, _parse_override(text, tree))
    return check_recipe(tree, where=path, overrides=overrides)


def find_recipe(name: str) -> Path:
    """The file of a recipe: a path if there is one, else a shipped name."""
    path = Path(name)
    if _is_file(path):
        return path
    if _is_special(path):
        raise InputError("a recipe is a plain file, and this is none", name)
    if path.suffix == ".toml" or "/" in name:
        raise InputError("no such recipe file", name, "`freetf recipe list` shows the shipped ones")
    shipped = recipe_folder() / f"{name}.toml"
    if not _is_file(shipped):
        raise InputError(f"no recipe named '{name}'", hint=nearest(name, shipped_recipes()))
    return shipped


def _is_special(path: Path) -> bool:
    """A pipe or a device."""
    try:
        return path.exists() and not path.is_dir()
    except (OSError, ValueError):
        return False


def _is_file(path: Path) -> bool:
    """Path.is_file, where a name that no file can have is no file instead of an error."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def check_recipe(tree: Mapping[str, Any], *, where: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """A Recipe from plain data; raises InputErrors naming file, key and line of each fault, or the override that made it."""
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        text = Path(where).read_text(encoding="utf-8") if Path(where).is_file() else ""
        found: list[InputError] = []
        wrong: set[str] = set()
        for item in error.errors():
            names = [str(name) for name in item["loc"]]
            if item["type"] != "value_error":  # those are rules, which all are asked below
                found.append(_fault(dict(item), _place([names], where, text, overrides)))
                wrong.update(".".join(names[:count]) for count in range(2, len(names) + 1))  # a wrong item makes its list wrong
        for keys, message in faults({key: value for key, value in _with_defaults(tree).items() if key not in wrong}):
            found.append(InputError(message, _place([key.split(".") for key in keys], where, text, overrides)))
        raise InputErrors(found) from None


def to_toml(recipe: Recipe) -> str:
    """The recipe as TOML that `load_recipe` reads back to the same recipe."""
    tree = recipe.model_dump(exclude_none=True)
    lines = [f"description = {_toml_value(tree.pop('description'))}"]
    for table, values in tree.items():
        lines += ["", f"[{table}]"]
        lines += [f"{key} = {_toml_value(value)}" for key, value in values.items() if value != {}]
    return "\n".join(lines) + "\n"


def differences(a: Recipe, b: Recipe) -> list[tuple[str, Any, Any]]:
    """(key, value in a, value in b) where they differ; a missing setting is None, each of the task's parameters is a key of its own."""
    ours, theirs = _settings(a), _settings(b)
    keys = list(dict.fromkeys([*ours, *theirs]))
    return [(key, ours.get(key), theirs.get(key)) for key in keys if ours.get(key) != theirs.get(key)]


def _settings(recipe: Recipe) -> dict[str, Any]:
    settings = flat(recipe)
    params = settings.pop("data.params")
    return {**{f"data.params.{key}": value for key, value in params.items()}, **settings}


def _read_tree(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """One file's tables, over those of the recipe that it extends."""
    try:
        tree = tomllib.loads(read_small(path).decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise InputError("the recipe is not UTF-8 text", str(path)) from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"the recipe is not valid TOML: {error}", str(path)) from None
    except RecursionError:
        raise InputError("the recipe is nested too deeply", str(path)) from None
    except OSError as error:
        raise InputError(f"the recipe cannot be read: {error.strerror}", str(path)) from None
    parent = tree.pop("extends", None)
    if parent is None:
        return tree
    if not isinstance(parent, str):
        raise InputError("'extends' must name a recipe", str(path))
    beside = path.parent / f"{parent}.toml"
    target = (beside if _is_file(beside) else find_recipe(parent)).resolve()
    if target in (*seen, path.resolve()):
        raise InputError(f"'extends' goes in a circle through '{parent}'", str(path))
    return _merge(_read_tree(target, (*seen, path.resolve())), tree)


def _merge(base: Mapping[str, Any], over: Mapping[str, Any], values: bool = False) -> dict[str, Any]:
    """`over` laid on `base`, tables key by key; naming one source of data drops the other, a kind of attention what it has no use for.

    values: inside a part (`[latent]`), where an empty table is a value, in place of what was there; an empty `[latent]` changes nothing.
    """
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping) and (value or not values):
            kept = dict(merged[key])
            if key == "data" and "task" in value:
                kept = {k: v for k, v in kept.items() if k != "dir"}
                if value["task"] != kept.get("task"):
                    kept.pop("params", None)
            if key == "data" and "dir" in value:
                kept = {k: v for k, v in kept.items() if k not in ("task", "params")}
            if key == "model" and value.get("attention", "multi-token") != "multi-token":
                kept.pop("multi_token", None)
            if key == "model" and value.get("attention") == "softmax":
                kept.pop("attention_layers", None)
            merged[key] = _merge(kept, value, values=True)
        else:
            merged[key] = value
    return merged


def _parse_override(text: str, tree: Mapping[str, Any]) -> dict[str, Any]:
    """`train.lr=3e-4` as a tree; the value is TOML, or a plain word."""
    key, equals, raw = text.partition("=")
    names = key.strip().split(".")
    if not equals or len(names) < 2 or not all(names):
        raise InputError(f"--set takes table.key=value, not '{text}'", hint="for example --set train.lr=3e-4")
    if names[0] == "latent" and "latent" not in tree:
        raise InputError(f"--set {key.strip()}: this recipe is a baseline, it has no [latent] table", hint="start from a Free recipe")
    value = _override_value(raw)
    for name in reversed(names):
        value = {name: value}
    return dict(value)


def _override_value(raw: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {raw}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return raw.strip()
    return parsed["value"] if len(parsed) == 1 else raw.strip()  # a line break in it must not smuggle in other keys


def _place(keys: Sequence[Sequence[str]], where: Path | str, text: str, overrides: Sequence[str]) -> str:
    """Where a fault of some keys comes from: the last `--set` of one of them, or the file and its line."""
    for override in reversed(overrides):
        given = override.partition("=")[0].strip().split(".")
        shared = [min(len(given), len(names)) for names in keys]  # a fault may lie within what was given, or be of all that it is in
        if any(names and given[:count] == [*names[:count]] for names, count in zip(keys, shared, strict=True)):
            return f"--set {override}"
    line = next((line for names in keys if (line := _line_of(names, text))), None)
    return f"{where}" + (f", line {line}" if line else "")


def _with_defaults(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Flat values of a tree that may be wrong in any way, defaults filled in."""
    values = {}
    tree = {**tree, "model": with_options(tree.get("model"))}
    for table, part in part_types().items():
        given: Any = tree
        for name in table.split("."):
            given = given.get(name) if isinstance(given, Mapping) else None
        if given is None and table in Recipe.model_fields and Recipe.model_fields[table].default_factory:
            given = {}
        if isinstance(given, Mapping):
            for name, field in part.model_fields.items():
                if name in given or not field.is_required():
                    values[f"{table}.{name}"] = given.get(name, field.get_default(call_default_factory=True))
    return values


def _fault(item: Mapping[str, Any], place: str) -> InputError:
    """One pydantic error as a line: what, the place, and a hint."""
    names = [str(name) for name in item["loc"]]
    key = ".".join(names)
    kind, message = item["type"], item["msg"]
    if kind == "extra_forbidden":
        return InputError(f"unknown key '{key}'", place, nearest(names[-1], _known_keys(names[:-1])))
    if kind == "missing":
        return InputError(f"missing key '{key}'", place)
    shown = repr(item.get("input"))
    if kind == "model_type":
        message = "input should be a table"
    return InputError(f"{key}: {message[:1].lower()}{message[1:]}, not {shown[:60]}", place)


def _known_keys(table: Sequence[str]) -> Iterator[str]:
    """The keys that a table of the recipe may have."""
    model: Any = part_types().get(".".join(table), Recipe)
    yield from model.model_fields
    if model is Recipe:
        yield from ("extends", "smoke")


def _line_of(names: Sequence[str], text: str) -> int | None:
    """The line of a recipe's text where a key stands, by itself or in a table on one line."""
    table = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[([^\]]+)\]", line):
            table = header[1].strip()
            if ".".join(names) == table:
                return number
        if assignment := re.match(r"\s*([\w.-]+)\s*=", line):
            path = [*(table.split(".") if table else []), *assignment[1].split(".")]
            if path == list(names[: len(path)]):
                return number
    return None


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_value(key)


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = "".join(
            f"\\u{ord(c):04x}" if ord(c) < 32 or ord(c) == 127 else c for c in value.replace("\\", "\\\\").replace('"', '\\"')
        )
        return f'"{escaped}"'
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml_key(key)} = {_toml_value(item)}" for key, item in value.items()) + "}"
    return repr(value)
