"""The synthetic tasks by name.

task = make_task("letters", {"noise": "1/16"})
task.tokens(seed=0, start=0, count=64)        # [64, 66]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from freetf_cli.errors import InputError, nearest
from freetf_cli.tasks.base import Task, resolve
from freetf_cli.tasks.blocks import Blocks
from freetf_cli.tasks.coins import Coins
from freetf_cli.tasks.letters import Letters
from freetf_cli.tasks.reviews import Reviews

TASKS: dict[str, type[Task]] = {task.name: task for task in (Letters, Coins, Reviews, Blocks)}


def make_task(name: str, params: Mapping[str, Any]) -> Task:
    """The task with its parameters checked; InputError for an unknown name, parameter or value."""
    if name not in TASKS:
        raise InputError(f"there is no task '{name}'", hint=nearest(name, TASKS))
    return TASKS[name](resolve(name, TASKS[name].PARAMS, params))
