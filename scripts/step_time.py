"""Milliseconds of a training step on a GPU, and the kernels they go to.

    python scripts/step_time.py STEP.json letters-baseline letters-free letters-free,model.heads=4

A variant is a recipe and overrides, joined by commas; `@flash`, `@cudnn` or `@efficient` among them leaves attention that one kernel. All
are of one process, so that their ratios hold; the first is measured once more at the end, and the difference is noise.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from freetf_cli.config.files import load_recipe
from freetf_cli.device import resolve_device
from freetf_cli.latent.build import build_model, initialise_model
from freetf_cli.runs.folder import RunFolder
from freetf_cli.training.loop import Hooks, Loop
from freetf_cli.training.signals import StopRequest
from freetf_cli.training.start import resolve

DEVICE = resolve_device("auto")
CUDA = DEVICE.type == "cuda"
ROUNDS, STEPS = (5, 40) if CUDA else (2, 2)
ATTENTION = {"@flash": SDPBackend.FLASH_ATTENTION, "@cudnn": SDPBackend.CUDNN_ATTENTION, "@efficient": SDPBackend.EFFICIENT_ATTENTION}


def measure(variant: str) -> dict[str, Any]:
    """Median and range over rounds of the mean step of a round, and the kernels of one step."""
    name, *overrides = re.split(r",(?=[a-z@])", variant)
    kernels = [ATTENTION[word] for word in overrides if word in ATTENTION]
    settings = [word for word in overrides if word not in ATTENTION]
    with tempfile.TemporaryDirectory() as folder, sdpa_kernel(kernels) if kernels else contextlib.nullcontext():
        loop = made(name, settings, Path(folder) / "run")
        with loop.batches:
            steps(loop, 5)
            if CUDA:
                torch.cuda.reset_peak_memory_stats()
            times = [steps(loop, STEPS) for _ in range(ROUNDS)]
            found = {"variant": variant, "ms": median(times), "least": min(times), "most": max(times)}
            if CUDA:
                found |= {"reserved_gib": torch.cuda.memory_reserved() / 2**30, "kernels": kernel_times(loop)}
    torch.compiler.reset()
    return found


def made(name: str, settings: list[str], path: Path) -> Loop:
    recipe, source = resolve(load_recipe(name, smoke=not CUDA, overrides=["eval.samples=0", *settings]))
    model = build_model(recipe.model, recipe.latent)
    initialise_model(model, recipe.train.seed)
    return Loop(recipe, source, model.to(DEVICE).train(), RunFolder.create(path, recipe), DEVICE, Hooks(), StopRequest())


def steps(loop: Loop, count: int) -> float:
    """Mean milliseconds of some steps, the device's work included."""
    wait()
    begun = time.perf_counter()
    for _ in range(count):
        loop.train_step()
        loop.step += 1
    wait()
    return 1e3 * (time.perf_counter() - begun) / count


def wait() -> None:
    if CUDA:
        torch.cuda.synchronize()


def kernel_times(loop: Loop) -> list[dict[str, Any]]:
    """The kernels of one step by their total, microseconds."""
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        steps(loop, 1)
    rows = [(event.self_device_time_total, event.count, event.key) for event in seen.key_averages() if event.self_device_time_total]
    return [{"us": round(us, 1), "calls": calls, "kernel": key[:100]} for us, calls, key in sorted(rows, reverse=True)[:40]]


def main(target: str, *variants: str) -> None:
    rows: list[dict[str, Any]] = []
    for variant in (*variants, variants[0]):
        rows.append(measure(variant))
        row = {key: round(value, 3) if isinstance(value, float) else value for key, value in rows[-1].items() if key != "kernels"}
        print(row, f"× {rows[-1]['ms'] / rows[0]['ms']:.3f}", flush=True)
        about = {"device": torch.cuda.get_device_name() if CUDA else "cpu", "torch": torch.__version__, "rows": rows}
        Path(target).write_text(json.dumps(about, indent=0), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
