"""One of the processes of a case of scripts/scaling.py that times steps: the argument is its setting as JSON; process 0 prints the row."""

from __future__ import annotations

import gc
import json
import os
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from freetf_cli.bench.timing import Effort, machine
from freetf_cli.config.files import load_recipe
from freetf_cli.data.batches import Batch
from freetf_cli.data.tokenizer import byte_level
from freetf_cli.runs.plan import plan_run
from freetf_cli.runs.sharded import ShardedSaver
from freetf_cli.runs.spread import memory_of
from freetf_cli.training.optimizer import make_optimizers, named_state
from freetf_cli.training.parallel import Engine, Sharded
from freetf_cli.training.prefetch import host_batch
from freetf_cli.training.schedule import objective_weights
from freetf_cli.training.signals import StopRequest
from freetf_cli.training.start import make_engine, resolve
from freetf_cli.training.step import TrainStep
from freetf_cli.training.world import local_device, process_group

CUDA = False  # set by `main`
LONGEST_SAVE = 100.0  # seconds after which steps are no longer timed


def main(setting: dict[str, Any]) -> None:
    global CUDA
    folder = Path(setting.pop("folder"))
    device = torch.device(setting["device"])
    CUDA = device.type == "cuda"
    size, rows = setting["processes"], setting["rows"]
    overrides = [*setting["overrides"], f"train.batch={size * rows}", f"parallel.processes={size}"]
    recipe = load_recipe(setting["recipe"], overrides=overrides)
    if recipe.model.vocab is None or recipe.model.context is None:
        recipe, _ = resolve(recipe)
    with process_group(device, StopRequest()) as world:
        device = local_device(device)
        ceiling = product_rate(device, recipe.train.precision)  # before NCCL's first operation: its watchdog may disturb a capture
        links = {} if size == 1 else link_speeds(device)
        began = time.perf_counter()
        engine = make_engine(recipe, device, world, None, None)
        built = time.perf_counter() - began
        config, context = recipe.train, recipe.model.context or 1
        optimizers = make_optimizers(engine.model, config, device, engine.parameters)
        update = TrainStep(engine, optimizers, config, device, (rows, context))
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(recipe.model.vocab or 2, (size * rows, context + 1), generator=generator)
        noise = torch.rand((size * rows, *update.noise.shape[1:]), generator=generator)
        own = [row for span in world.rows(config.batch, config.grad_accum_steps) for row in span]
        mine = tokens[own].numpy()
        batch = host_batch(Batch(mine[:, :-1], mine[:, 1:]), pinned=CUDA)
        update.noise.copy_(noise[own])
        weights, count = objective_weights(config.steps, recipe.latent, config.steps), size * rows * context
        losses, times = [], []
        for number in range(setting["warm_up"] + setting["steps"]):
            wait()
            begun = time.perf_counter()
            update(number, batch, count, 1e-4, weights)
            if number < setting["warm_up"]:
                losses.append([*(update.sums[:2] / count).tolist(), float(update.grad_norm)])
                continue
            wait()
            times.append(1e3 * (time.perf_counter() - begun))
        if CUDA:  # and without waiting after every step, as a run does
            begun = time.perf_counter()
            for number in range(setting["steps"]):
                update(number, batch, count, 1e-4, weights)
            wait()
            queued = 1e3 * (time.perf_counter() - begun) / setting["steps"]
        kernels = kernel_times(lambda: update(0, batch, count, 1e-4, weights)) if CUDA and setting.get("profile") else None
        peak = torch.cuda.max_memory_allocated() if CUDA else None
        memory = memory_at_peak(lambda: update(0, batch, count, 1e-4, weights)) if CUDA and setting.get("memory") else None
        saved = saving(folder, engine, optimizers, lambda: update(0, batch, count, 1e-4, weights)) if setting.get("save") else None
        plan = plan_run(recipe, "", CUDA, device.type)
        waited = median(times)
        took = queued if CUDA else waited  # as in a run
        row = {
            **setting,
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name() if CUDA else "cpu",
            "graph": update._graph is not None,
            "built_s": round(built, 1),
            "ms": took,
            "median_ms": waited,
            "least_ms": min(times),
            "most_ms": max(times),
            "queued_ms": queued if CUDA else None,
            "tokens_per_second_and_gpu": rows * context / took * 1e3,
            "flops_per_second_and_gpu": plan.train_flops_per_token * rows * context / took * 1e3,
            "ceilings": world.gather(ceiling),
            "peak_gib": max(world.gather(peak)) / 2**30 if CUDA else None,
            "planned_gib": memory_of(recipe, plan)["total"] / 2**30,
            "plan": {name: size / 2**30 for name, size in memory_of(recipe, plan).items()},
            "memory": memory,
            "saved": saved,
            "links": links,
            "kernels": kernels,
            "losses": losses,
        }
        if world.is_main:
            print(json.dumps(row), flush=True)
        if saved and not saved["done"]:
            dist.barrier()
            os._exit(0)
        update.close()


def product_rate(device: torch.device, precision: str) -> float:
    """FLOP/s of a large matrix product, as `freetf bench` measures it, while the other processes measure theirs."""
    rate = machine(device, precision, Effort(20, 5) if CUDA else Effort(1, 1)).ceiling
    gc.collect()
    if CUDA:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    return rate


def link_speeds(device: torch.device) -> dict[str, float]:
    """GB/s that each process sends, by ring arithmetic, in collectives of 2^28 bytes (on a CPU: 2^16)."""
    size, numbers = dist.get_world_size(), torch.ones(2**26 if CUDA else 2**14, device=device)
    parts = torch.empty(size * len(numbers), device=device)
    works: dict[str, tuple[Callable[[], object], float]] = {
        "all-reduce": (lambda: dist.all_reduce(numbers), 2 * (size - 1) / size),
        "all-gather": (lambda: dist.all_gather_into_tensor(parts, numbers), size - 1),
        "reduce-scatter": (lambda: dist.reduce_scatter_tensor(numbers, parts), size - 1),
    }
    found = {}
    for name, (work, share) in works.items():
        for times in (2, 10):
            wait()
            begun = time.perf_counter()
            for _ in range(times):
                work()
            wait()
        found[name] = share * numbers.nbytes * times / (time.perf_counter() - begun) / 1e9
    return found


def kernel_times(work: Callable[[], None]) -> dict[str, Any]:
    """Of one step: its duration, the time in which no kernel but NCCL's ran, and milliseconds and calls by kernel."""
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        work()
        wait()
    events = [event for event in profiler.events() if event.device_type == DeviceType.CUDA]
    spans = sorted((event.time_range.start, event.time_range.end) for event in events if "nccl" not in event.name)
    busy, last = 0.0, spans[0][0]
    for first, end in spans:
        busy += max(0.0, end - max(first, last))
        last = max(last, end)
    names: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    for event in events:
        name = re.sub(r"_[0-9]+$", "", event.name)[:70]
        names[name][0] += event.device_time_total / 1e3
        names[name][1] += 1
    largest = sorted(names.items(), key=lambda pair: -pair[1][0])[:60]
    return {"span_ms": (spans[-1][1] - spans[0][0]) / 1e3, "busy_ms": busy / 1e3, "kernels": dict(largest)}


def memory_at_peak(work: Callable[[], None]) -> dict[str, float]:
    """GiB that were allocated before a step; and what it had at its peak beside them, by size of block: the largest."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.memory._record_memory_history(max_entries=1_000_000, context=None)
    work()
    wait()
    snapshot = torch.cuda.memory._snapshot()
    torch.cuda.memory._record_memory_history(enabled=None)
    events = snapshot["device_traces"][torch.cuda.current_device()]
    live: dict[int, int] = {}
    now = most = freed = 0
    at_peak: dict[int, int] = {}
    for event in events:
        if event["action"] == "alloc":
            live[event["addr"]] = event["size"]
            now += event["size"]
        elif event["action"] == "free_completed":
            freed += event["size"] if event["addr"] not in live else 0
            now -= event["size"]
            live.pop(event["addr"], None)
        if now > most:
            most, at_peak = now, dict(live)
    sizes = Counter(at_peak.values())
    largest = sorted(sizes.items(), key=lambda pair: -pair[0] * pair[1])[:25]
    blocks = {f"{count} x {size / 2**20:.1f} MiB": round(count * size / 2**30, 3) for size, count in largest}
    return {"before": before / 2**30, "peak": (before + most) / 2**30, "of_before_freed": freed / 2**30, **blocks}


def saving(scratch: Path, engine: Engine, optimizers: Sequence[torch.optim.Optimizer], step: Callable[[], None]) -> dict[str, Any]:
    """Seconds that a save takes, and milliseconds of the steps before it and during it. The first one reserves memory before."""
    folder = scratch / "checkpoints" / "step-000001"
    if engine.is_alone or not isinstance(engine, Sharded):
        raise SystemExit("a sharded engine saves in the background; this one does not")
    saver, tokenizer = ShardedSaver(pin=CUDA), byte_level()
    states = engine.states(named_state(engine.parameters, *optimizers))
    began = time.perf_counter()
    saver.reserve(*states)
    saver._reserved()
    reserved = time.perf_counter() - began

    def timed() -> float:
        wait()
        began = time.perf_counter()
        step()
        wait()
        return 1e3 * (time.perf_counter() - began)

    before = [timed() for _ in range(10)]
    folder.parent.mkdir(parents=True, exist_ok=True)
    dist.barrier()
    began = time.perf_counter()
    saver.save(folder, *states, {"step": 1, "recipe": {}}, tokenizer, asynchronous=True)
    stopped = time.perf_counter() - began
    during = []
    going = torch.ones(1, device=engine.device)
    while going.item():
        during.append(timed())
        going.fill_(float(saver.saving and time.perf_counter() - began < LONGEST_SAVE))
        dist.all_reduce(going)
    done = not saver.saving
    took = time.perf_counter() - began
    size = sum(path.stat().st_size for path in folder.parent.rglob("*") if path.is_file())
    return {
        "reserve_s": reserved,
        "save_s": took,
        "done": done,
        "stopped_s": stopped,
        "bytes": size,
        "before_ms": before,
        "during_ms": during,
    }


def wait() -> None:
    if CUDA:
        torch.cuda.synchronize()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
