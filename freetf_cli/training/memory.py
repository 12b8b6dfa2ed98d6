"""Memory of a run: one that cannot fit is refused before it starts, and running out of memory is explained."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from freetf_cli.config.recipe import Recipe
from freetf_cli.device import autocast_dtype
from freetf_cli.errors import FreetfError, is_out_of_memory
from freetf_cli.records.plan import Plan
from freetf_cli.runs.plan import ATTENTION_WEIGHTS, plan_run

STATES = ("parameters", "gradients", "optimizer")  # the part of a plan's memory that does not depend on the batch


def plan_on(recipe: Recipe, device: torch.device) -> Plan:
    """The cost of training a resolved recipe on a device."""
    return plan_run(recipe, "", autocast_dtype(recipe.train.precision, device) is not None, device.type)


def check_memory(recipe: Recipe, device: torch.device) -> None:
    """Raise FreetfError if parameters, gradients and optimizer state alone need more memory than the device has."""
    if _sharing(recipe, device) * sum(plan_on(recipe, device).memory[name] for name in STATES) > total_memory(device):
        raise out_of_memory(recipe, device)


@contextmanager
def memory_errors(recipe: Recipe, device: torch.device) -> Iterator[None]:
    """Replace an out-of-memory error in the block by one that says what the recipe needs and which setting to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise out_of_memory(recipe, device) from error
        raise


def out_of_memory(recipe: Recipe, device: torch.device) -> FreetfError:
    """The error: batch and context, the memory that they were estimated to need, what the device has, and what to lower."""
    plan, config, sharing = plan_on(recipe, device).memory, recipe.train, _sharing(recipe, device)
    states, total = sharing * sum(plan[name] for name in STATES), total_memory(device)
    processes = f" in {recipe.parallel.processes} processes" if recipe.parallel.processes > 1 else ""
    what = f"out of memory: batches of {config.batch} × {recipe.model.context} tokens{processes}"
    what += f" need about {_gib(sharing * plan['total'])}, {_gib(states)} of it for parameters, gradients and optimizer state"
    what += f"; {device.type} has {_gib(free_memory(device))} free of {_gib(total)}"
    if states > total:
        return FreetfError(what, hint="use a smaller model: model.layers, model.width, latent.bits")
    hint = f"lower train.batch, or raise train.grad_accum_steps (now {config.grad_accum_steps})"
    recomputing = recipe.model_copy(update={"train": config.model_copy(update={"attention_checkpointing": "on"})})
    if 0 < plan_on(recomputing, device).memory.get(ATTENTION_WEIGHTS, 0) < plan.get(ATTENTION_WEIGHTS, 0):
        hint = f"set train.attention_checkpointing = 'on', or {hint}"
    return FreetfError(what, hint=hint)


def total_memory(device: torch.device) -> int:
    """Bytes of memory that the device has, or that a control group allows this process."""
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
    """Bytes of memory that are free now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return min(total_memory(device), int(lines["MemAvailable"].split()[0]) * 1024)
    except (OSError, ValueError, KeyError, IndexError):
        return total_memory(device)


def _sharing(recipe: Recipe, device: torch.device) -> int:
    """How many processes of the run share this memory; each has its own GPU."""
    return 1 if device.type == "cuda" else recipe.parallel.processes


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"
