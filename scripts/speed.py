"""Training steps of many settings on random tokens: time, memory measured and foretold, and where the time goes.

    python scripts/speed.py STEPS.json 'free=paper-1.5b-free,train.batch=4,train.grad_accum_steps=1' 'base=paper-1.5b-baseline,…'

A setting is a name, a recipe and overrides. Compiling takes a minute and no GPU: several of these scripts may run at once, and a lock file
(SPEED_LOCK, default beside the output) lets one measure while the others wait. What is compared lies within one machine.
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import re
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from freetf_cli.bench.timing import Effort, machine, timed
from freetf_cli.bench.train_step import made_step, release
from freetf_cli.config.files import load_recipe
from freetf_cli.config.recipe import Recipe
from freetf_cli.device import resolve_device
from freetf_cli.records import to_json
from freetf_cli.training.memory import plan_on

DEVICE = resolve_device("auto")
CUDA = DEVICE.type == "cuda"
EFFORT = Effort(5, 5) if CUDA else Effort(1, 2)
KINDS = {  # of kernels, by their names; the first that fits
    "attention": r"cudnn|flash|sdpa|fmha|attention",
    "convolution of maps": r"^_convolve|^_kernel_gradient",
    "mix of heads": r"^_mix",
    "mapper's kernels": r"^_sums|^_centred|^_in_8_bits|^_factors",
    "matrix products": r"nvjet|cutlass|gemm|splitK",
    "cross-entropy": r"^_row|log_softmax",
    "gradient of q, k, v packed": r"^_written",
    "softmax and masks of maps": r"softmax",
    "AdamW": r"FusedOptimizer",
    "gradient norm": r"multi_tensor_apply",
    "SwiGLU": r"silu",
    "norms and residuals": r"rms_norm",
    "casts": r"to_copy",
}


def main(out: Path, settings: list[str]) -> None:
    with Path(os.environ.get("SPEED_LOCK", out.parent / "speed.lock")).open("w") as lock:
        measure_all(out, settings, lock)


def measure_all(out: Path, settings: list[str], lock: Any) -> None:
    found: dict[str, Any] = {"machine": None, "rows": []}
    for setting in settings:
        label, rest = setting.split("=", 1)
        name, *overrides = re.split(r",(?=[a-z])", rest)
        recipe = load_recipe(name, smoke=not CUDA, overrides=overrides)
        try:
            found["rows"].append({"name": label, "recipe": name, "settings": overrides, **measured(recipe, lock, found)})
        except torch.cuda.OutOfMemoryError as error:
            found["rows"].append({"name": label, "recipe": name, "settings": overrides, "error": str(error)[:200]})
        release(DEVICE)
        out.write_text(json.dumps(found))
        print(label, {key: value for key, value in found["rows"][-1].items() if key not in ("kernels", "settings")}, flush=True)


def measured(recipe: Recipe, lock: Any, found: dict[str, Any]) -> dict[str, Any]:
    """Seconds of a step, bytes, and ms a step of each kind of kernel."""
    began = time.perf_counter()
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    step = made_step(recipe, DEVICE)
    for _ in range(2):
        step()
    _wait()
    warm_up, peak = time.perf_counter() - began, torch.cuda.max_memory_allocated() if CUDA else None
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        if found["machine"] is None:
            found["machine"] = json.loads(to_json(machine(DEVICE, recipe.train.precision, Effort(5, 3))))
        step()
        took = timed(step, EFFORT)
        kernels = kernel_times(step) if CUDA else {}
    finally:
        fcntl.flock(lock, fcntl.LOCK_UN)
    del step
    gc.collect()
    tokens, plan = recipe.train.batch * (recipe.model.context or 1), plan_on(recipe, DEVICE)
    flops = plan.train_flops_per_token * tokens / took.median
    return {
        "ms": 1e3 * took.median,
        "least": 1e3 * took.least,
        "most": 1e3 * took.most,
        "warm_up": warm_up,
        "tokens": tokens,
        "of_the_ceiling": flops / found["machine"]["ceiling"],
        "peak": peak,
        "predicted": plan.memory["total"],
        "parameters": plan.parameters,
        "kernels": kernels,
    }


def kernel_times(step: Any) -> dict[str, float]:
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        for _ in range(2):
            step()
        _wait()
    found: dict[str, float] = defaultdict(float)
    for event in profiler.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            kind = next((kind for kind, pattern in KINDS.items() if re.search(pattern, event.name)), "all the rest")
            found[kind] += event.device_time_total / 2e3
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def _wait() -> None:
    if CUDA:
        torch.cuda.synchronize()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
