"""Synthetic tasks, one module each, found by listing this package.

    task = make_task("letters", {"noise": "1/16"})
    task.tokens(seed=0, start=0, count=64)        # [64, 66]

To add a task, add a module with one subclass of `Task` here, and its test. The module's name is the task's name.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from freetf_cli.errors import InputError, nearest

if TYPE_CHECKING:
    from freetf_cli.tasks.base import Task
    from freetf_cli.tasks.factors import Span

SHARED = {"base", "factors", "open_ended", "questions"}  # modules that are not tasks


def task_names() -> tuple[str, ...]:
    """The names of all tasks, sorted. Imports none of them."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in SHARED))


def make_task(name: str, params: Mapping[str, Any]) -> Task:
    """A task with its parameters checked; InputError for an unknown name, parameter or value."""
    from freetf_cli.tasks.base import Task, resolve

    if name not in task_names():
        raise InputError(f"there is no task '{name}'", hint=nearest(name, task_names()))
    module = importlib.import_module(f"{__name__}.{name}")
    defined = [item for item in vars(module).values() if isinstance(item, type) and item.__module__ == module.__name__]
    (found,) = (item for item in defined if issubclass(item, Task))
    return found(resolve(name, found.PARAMS, params))


def spans_by_text(name: str | None, params: Mapping[str, Any], texts: Iterable[str]) -> dict[str, list[Span]]:
    """The pieces of generated rows with their roles, for colouring, by row. Rows that the task has no roles for are left out."""
    if name is None or name not in task_names():
        return {}
    task = make_task(name, params)
    return {text: spans for text in texts if (spans := task.spans(text))}


def describe(name: str) -> tuple[str, list[str]]:
    """The first line of a task's docstring and the names of its parameters, parsed from the source: help must not import NumPy."""
    tree = ast.parse(pkgutil.get_data(__name__, f"{name}.py") or b"")
    tables = [node.value for node in ast.walk(tree) if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "PARAMS"]
    keys = [key.value for table in tables if isinstance(table, ast.Dict) for key in table.keys if isinstance(key, ast.Constant)]
    return (ast.get_docstring(tree) or "").partition("\n")[0], [str(key) for key in keys]
