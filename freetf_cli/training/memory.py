"""The memory of a run: a run that cannot fit is refused, and an out-of-memory error says what to lower."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import torch

from freetf_cli.config.recipe import Recipe
from freetf_cli.device import autocast_dtype
from freetf_cli.errors import FreetfError, is_out_of_memory
from freetf_cli.records.plan import Plan
from freetf_cli.runs.plan import ATTENTION_WEIGHTS, part_costs, plan_run
from freetf_cli.runs.spread import memory_of


def plan_on(recipe: Recipe, device: torch.device) -> Plan:
    """The cost of training a resolved recipe on a device."""
    return plan_run(recipe, "", autocast_dtype(recipe.train.precision, device) is not None, device.type)


def check_memory(recipe: Recipe, device: torch.device) -> None:
    """Raise FreetfError if parameters, gradients and optimizer state alone need more memory than the device has."""
    if _needed(recipe, device)[0] > device_memory(device)[1]:
        raise out_of_memory(recipe, device)


@contextmanager
def memory_errors(recipe: Recipe, device: torch.device, work: Literal["training", "evaluation", "samples"] = "training") -> Iterator[None]:
    """Replace an out-of-memory error in the block by one that says what the work needs and which setting to change."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise (out_of_memory(recipe, device) if work == "training" else _out_of_memory_after(recipe, device, work)) from error
        raise


def out_of_memory(recipe: Recipe, device: torch.device) -> FreetfError:
    """The error: batch and context, the memory that they were estimated to need, what the device has, and what to lower."""
    config, (states, needed) = recipe.train, _needed(recipe, device)
    processes = f" in {recipe.parallel.processes} processes" if recipe.parallel.processes > 1 else ""
    what = f"out of memory: batches of {config.batch} × {recipe.model.context} tokens{processes}"
    what += f" need about {_gib(needed)}, {_gib(states)} of it for parameters, gradients and optimizer state"
    what += f"; {_device_text(device)}"
    if states > device_memory(device)[1]:
        return FreetfError(what, hint=f"use a smaller model: {_largest_part(recipe)}")
    if recipe.rows_at_once == 1:
        return FreetfError(what, hint=f"a step has one sequence at a time: lower model.context (now {recipe.model.context}) or model.width")
    hint = f"lower train.batch, or raise train.grad_accum_steps (now {config.grad_accum_steps})"
    recomputing = recipe.model_copy(update={"train": config.model_copy(update={"attention_checkpointing": "on"})})
    kept, recomputed = (plan_on(each, device).memory.get(ATTENTION_WEIGHTS, 0) for each in (recipe, recomputing))
    if 0 < recomputed < kept:
        hint = f"set train.attention_checkpointing = 'on', or {hint}"
    return FreetfError(what, hint=hint)


def _out_of_memory_after(recipe: Recipe, device: torch.device, work: str) -> FreetfError:
    """The error of an evaluation, or of its samples, after the step was saved."""
    if work == "samples":
        hint = f"lower eval.samples (now {recipe.eval.samples})"
    elif recipe.eval.sequences <= recipe.rows_at_once:
        hint = f"lower eval.sequences (now {recipe.eval.sequences})"
    else:
        hint = f"raise train.grad_accum_steps (now {recipe.train.grad_accum_steps}), for fewer sequences at a time"
    at_once = f": {min(recipe.rows_at_once, recipe.eval.sequences)} × {recipe.model.context} tokens at a time" * (work == "evaluation")
    return FreetfError(f"out of memory in the {work}, with its step saved{at_once}; {_device_text(device)}", hint=f"{hint}, and resume")


def _largest_part(recipe: Recipe) -> str:
    """The setting to lower for the part of the model that has most parameters."""
    part = max(part_costs(recipe), key=lambda part: part.parameters)
    settings = {"blocks": "model.layers or ", "embedding": "model.vocab or ", "norm": "model.vocab or ", "post-sampler": "latent.bits or "}
    return f"lower {settings.get(part.name.split()[0], '')}model.width ({part.name}: {part.parameters:,} parameters)"


def _device_text(device: torch.device) -> str:
    free, total = device_memory(device)
    return f"{device.type} has {_gib(free)} free of {_gib(total)}"


def _needed(recipe: Recipe, device: torch.device) -> tuple[float, float]:
    """Bytes that all processes on the device need: for parameters, gradients and optimizer state; and in total."""
    config, plan = recipe.parallel, plan_on(recipe, device)
    sharing = 1 if device.type == "cuda" else config.processes  # each process has its own GPU
    memory = plan.memory if config.processes == 1 else memory_of(recipe, plan)
    return sharing * sum(memory[name] for name in ("parameters", "gradients", "optimizer")), sharing * memory["total"]


def device_memory(device: torch.device) -> tuple[int, int]:
    """Free and total memory of a device, in bytes. On a CPU, a control group's limit counts as the total."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # control groups, versions 2 and 1
        with suppress(OSError, ValueError):  # ValueError: the limit is "max"
            limits.append(int(Path("/sys/fs/cgroup", name).read_text()))
    free = total = min(limits)
    with suppress(OSError):  # only Linux has this file
        for size in re.findall(r"MemAvailable: *(\d+) kB", Path("/proc/meminfo").read_text()):
            free = min(total, int(size) * 1024)
    return free, total


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"
