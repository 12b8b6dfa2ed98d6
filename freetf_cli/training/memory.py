"""Memory of a run: refused before it is asked for where it cannot be there, and named where it was not."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from freetf_cli.config.recipe import Recipe
from freetf_cli.device import autocast_dtype
from freetf_cli.errors import FreetfError
from freetf_cli.records.plan import Plan
from freetf_cli.training.plan import MAPS, plan_run

STATES = ("parameters", "gradients", "optimizer")  # of a plan's memory: what no batch size makes less


def check_memory(recipe: Recipe, device: torch.device) -> None:
    """FreetfError if parameters, gradients and moments alone are more than the device has."""
    if sum(plan_on(recipe, device).memory[name] for name in STATES) * _sharing(recipe, device) > total_memory(device):
        raise out_of_memory(recipe, device)


def out_of_memory(recipe: Recipe, device: torch.device) -> FreetfError:
    """One line: batch, length, what they were predicted to take, what there is, and what to lower."""
    plan, config, sharing = plan_on(recipe, device).memory, recipe.train, _sharing(recipe, device)
    states, has = sharing * sum(plan[name] for name in STATES), total_memory(device)
    what = f"out of memory: batches of {config.batch} × {recipe.model.context} tokens{_parts(recipe)}"
    what += f" take some {_gib(sharing * plan['total'])}"
    what += f", {_gib(states)} of it the model's states; {device.type} has {_gib(free_memory(device))} free of {_gib(has)}"
    if states > has:
        return FreetfError(what, hint="a smaller model: model.layers, model.width, latent.bits")
    less = f"lower train.batch, or raise train.grad_accum_steps (now {config.grad_accum_steps})"
    if 0 < _maps_once_more(recipe, device) < plan.get(MAPS, 0):
        less = f"train.attention_checkpointing = 'on', or {less}"
    return FreetfError(what, hint=less)


def _maps_once_more(recipe: Recipe, device: torch.device) -> float:
    """Bytes of attention's maps where they are made once more in the backward."""
    settings = recipe.train.model_copy(update={"attention_checkpointing": "on"})
    return plan_on(recipe.model_copy(update={"train": settings}), device).memory.get(MAPS, 0)


def total_memory(device: torch.device) -> int:
    """Bytes that the device has, or that this process may have of them."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # control groups, versions 2 and 1
        try:
            limits.append(int((Path("/sys/fs/cgroup") / name).read_text()))
        except (OSError, ValueError):
            continue
    return min(limits)


def free_memory(device: torch.device) -> int:
    """Bytes of it that are free now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return min(total_memory(device), int(lines["MemAvailable"].split()[0]) * 1024)
    except (OSError, ValueError, KeyError, IndexError):
        return total_memory(device)


def plan_on(recipe: Recipe, device: torch.device) -> Plan:
    """What training a resolved recipe takes on a device."""
    return plan_run(recipe, "", autocast_dtype(recipe.train.precision, device) is not None, device.type)


def _sharing(recipe: Recipe, device: torch.device) -> int:
    """How many processes of the run have this memory in common: a GPU is one's own."""
    return 1 if device.type == "cuda" else recipe.parallel.processes


def _parts(recipe: Recipe) -> str:
    return f" in {recipe.parallel.processes} processes" if recipe.parallel.processes > 1 else ""


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"
