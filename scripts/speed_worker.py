"""One worker process of scripts/speed.py: a training step, a training loop or sampling of the freetf that PYTHONPATH names.

It reads `run N` (N calls between two time stamps), `kernels` (kernel times of one call) and `end` from stdin, one a line, and answers
each with one line of JSON on stdout. Both layouts of the package are known here: that of version 0.1.0 and today's.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
WARM_UP = 3  # untimed calls, in which the model is compiled, CUDA graphs are captured and cuDNN picks its algorithms
OLD_SETTINGS = {"train.grad_accum_steps=": "train.accumulate=", "model.document_mask=true": "model.documents=apart"}  # in version 0.1.0
KINDS = {  # kinds of CUDA kernels, by a pattern of their names; the first that fits
    "attention": r"cudnn|flash|sdpa|fmha|attention|^_forward$|^_backward$",
    "convolution of attention weights": r"^_convolve|^_kernel_gradient",
    "mix of heads": r"^_mix",
    "mapper": r"^_sums|^_centre|^_in_8_bits|^_factors",
    "matrix products": r"nvjet|cutlass|gemm|splitK",
    "cross-entropy": r"^_row|log_softmax",
    "packed gradient of q, k, v": r"^_written",
    "softmax and masks": r"softmax",
    "AdamW": r"FusedOptimizer",
    "gradient norm": r"multi_tensor_apply",
    "SwiGLU": r"silu",
    "norms and residuals": r"rms_norm",
    "casts": r"to_copy",
}

Work = Callable[[], object]
Made = Callable[[dict[str, Any]], tuple[Work, Callable[[], Any]]]  # of a setting: the work, and what it computed


def main(setting: dict[str, Any]) -> None:
    serve(setting, WORKS)


def serve(setting: dict[str, Any], works: Mapping[str, Made]) -> None:
    """Make and warm up what setting["work"] names, then answer the commands of stdin."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print goes to stderr

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=channel, flush=True)

    begun = time.perf_counter()
    torch.manual_seed(0)
    work, check = works[setting["work"]](setting)
    for _ in range(WARM_UP):
        work()
    wait()
    warm_up = time.perf_counter() - begun
    answer(tree=str(Path(str(import_module("freetf_cli").__file__)).parents[1]), warm_up=warm_up)
    for line in sys.stdin:
        command, *rest = line.split()
        if command == "run":
            answer(seconds=timed(work, int(rest[0])))
        elif command == "kernels":
            answer(kernels=kernel_times(work) if CUDA and setting["work"] != "sample" else {})  # sampling captures a graph
        else:
            peak = (torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()) if CUDA else (0, 0)
            answer(allocated_gib=peak[0] / 2**30, reserved_gib=peak[1] / 2**30, check=check())
            return


def timed(work: Work, calls: int) -> float:
    """Mean seconds of a call: CUDA events around all calls, or the host's clock on a CPU."""
    wait()
    if not CUDA:
        begun = time.perf_counter()
        for _ in range(calls):
            work()
        return (time.perf_counter() - begun) / calls
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    first.record()
    for _ in range(calls):
        work()
    last.record()
    wait()
    return float(first.elapsed_time(last)) / 1e3 / calls


def kernel_times(work: Work) -> dict[str, float]:
    """Milliseconds of a call by kind of kernel, largest first."""
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        work()
        wait()
    found: dict[str, float] = defaultdict(float)
    for event in profiler.events():
        if event.device_type == DeviceType.CUDA:
            kind = next((kind for kind, pattern in KINDS.items() if re.search(pattern, event.name)), "other")
            found[kind] += event.device_time_total / 1e3
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def wait() -> None:
    if CUDA:
        torch.cuda.synchronize()


def api(*places: str) -> Any:
    """The first of these `module:name` that this tree has: today's place first, then that of version 0.1.0."""
    for place in places:
        module, name = place.split(":")
        with contextlib.suppress(ModuleNotFoundError):
            return getattr(import_module(f"freetf_cli.{module}"), name)
    raise ModuleNotFoundError(f"none of {', '.join(places)}")


def recipe_of(setting: dict[str, Any]) -> Any:
    load = api("config.files:load_recipe", "recipe_file:load_recipe")
    is_old = load.__module__ == "freetf_cli.recipe_file"
    overrides = list(setting["overrides"])
    for today, old in OLD_SETTINGS.items() if is_old else ():
        overrides = [text.replace(today, old) for text in overrides]
    return load(setting["recipe"], smoke=setting["smoke"], overrides=overrides)


def train_step(setting: dict[str, Any]) -> tuple[Work, Callable[[], Any]]:
    """A training step on the same random tokens each time; the check is the CE of the last step, nats a token."""
    recipe = recipe_of(setting)
    if recipe.model.vocab is None or recipe.model.context is None:
        recipe, _ = api("training.start:resolve")(recipe)
    step = api("bench.train_step:made_step")(recipe, DEVICE)
    return step, last_ce([cell.cell_contents for cell in step.__closure__], recipe)


def train_loop(setting: dict[str, Any]) -> tuple[Work, Callable[[], Any]]:
    """A step of the whole training loop: data, prefetch, update and bookkeeping. The check is the CE of the last step, nats a token."""
    recipe, source = api("training.start:resolve")(recipe_of(setting))
    model = api("latent.build:build_model", "model.free_transformer:build_model")(recipe.model, recipe.latent)
    api("latent.build:initialise_model", "model.free_transformer:initialise_model")(model, recipe.train.seed)
    folder = api("runs.folder:RunFolder", "run_folder:RunFolder").create(Path(tempfile.mkdtemp(dir=setting["scratch"])) / "run", recipe)
    hooks, stop = api("training.loop:Hooks")(), api("training.signals:StopRequest")()
    model = model.to(DEVICE).train()
    if find_spec("freetf_cli.training.parallel"):
        model = api("training.parallel:Engine")(model, recipe.train, DEVICE)
    loop = api("training.loop:Loop")(recipe, source, model, folder, DEVICE, hooks, stop)
    loop.batches.__enter__()

    def work() -> None:
        loop.train_step()
        loop.step += 1

    return work, last_ce(list(vars(loop).values()), recipe)


def last_ce(objects: list[Any], recipe: Any) -> Callable[[], float]:
    """CE of the last step, nats a token, from the TrainStep among some objects."""
    update = next(each for each in objects if type(each).__name__ == "TrainStep")
    return lambda: float(update.sums[0]) / (recipe.train.batch * recipe.model.context)


def sample(setting: dict[str, Any]) -> tuple[Work, Callable[[], Any]]:
    """Generation from random weights and prompts of 2 tokens, Z from the prior; the check is a digest of the tokens."""
    recipe = recipe_of(setting)
    if recipe.model.vocab is None or recipe.model.context is None:
        recipe, _ = api("training.start:resolve")(recipe)
    model = api("latent.build:build_model", "model.free_transformer:build_model")(recipe.model, recipe.latent)
    api("latent.build:initialise_model", "model.free_transformer:initialise_model")(model, recipe.train.seed)
    model = model.to(DEVICE, torch.bfloat16 if CUDA else torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(model.config.vocab, (setting["sequences"], 2), generator=generator).tolist()
    spec = api("generation.sampling:SampleSpec", "sampling:SampleSpec")(total=2 + setting["new_tokens"], prompt_z="prior")
    continue_tokens = api("generation.sampling:continue_tokens", "sampling:continue_tokens")

    def digest() -> str:
        return hashlib.sha256(json.dumps([tokens for tokens, _ in continue_tokens(model, prompts, spec)]).encode()).hexdigest()[:16]

    return lambda: continue_tokens(model, prompts, spec), digest


WORKS: dict[str, Made] = {"step": train_step, "loop": train_loop, "sample": sample}

if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
