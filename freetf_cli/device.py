"""The machine: which device computes, in which precision, and what `freetf doctor` finds.

torch is imported inside the functions, because the command line imports this module before it knows whether torch is needed.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from freetf_cli.errors import InputError
from freetf_cli.records import Finding

if TYPE_CHECKING:
    import torch

Result = TypeVar("Result")

KEPT = 1 << 28  # bytes of freed memory that `keep_memory` keeps
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
TORCH_TESTED = ((2, 11), (2, 14))
# The modules of each extra, and what they are for; docs/dependencies.md has the reason for each.
EXTRAS = {
    "data": (("pyarrow", "datasets"), "Parquet, Zstandard and the Hugging Face Hub in `prepare`"),
    "eval": (("lm_eval",), "benchmarks of `evaluate`"),
    "float8": (("torchao",), "`train.float8`"),
    "hf": (("transformers",), "checks by transformers in `export` and `import`"),
    "peers": (("litgpt", "transformers", "x_transformers"), "comparisons by `scripts/peers.py`"),
    "probe": (("sklearn", "scipy"), "`probe-latent`"),
    "tensorboard": (("tensorboard",), "`export-metrics --to tensorboard`"),
    "trackio": (("trackio",), "`export-metrics --to trackio`"),
    "wandb": (("wandb",), "`export-metrics --to wandb`"),
}
NAMES = ("cuda", "mps", "cpu")  # in the order that `auto` prefers


def resolve_device(name: str) -> torch.device:
    """The device that `auto`, `cpu`, `cuda` or `mps` means. Raises InputError if this machine does not have it."""
    import torch

    usable = available()
    if name == "auto":
        return torch.device(usable[0])
    if name not in NAMES:
        raise InputError(f"no device named '{name}'", hint=f"choose from: auto, {', '.join(sorted(NAMES))}")
    if name not in usable:
        raise InputError(f"--device {name}: torch finds no such device", hint="see `freetf doctor`, or use --device auto")
    return torch.device(name)


def available() -> list[str]:
    """The usable devices, best first; the last one is always cpu."""
    import torch

    has = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return [name for name in NAMES if has[name]]


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The dtype of matrix products under autocast: bfloat16 for `bf16`, and for `auto` on CUDA; None for float32."""
    import torch

    if precision == "bf16" or (precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()):
        return torch.bfloat16
    return None


def set_threads(count: int) -> None:
    """Let torch use this many CPU threads; 0 keeps its default."""
    import torch

    if count:
        torch.set_num_threads(count)


def on_threads(work: Callable[..., Result], pieces: Iterable[tuple[Any, ...]]) -> list[Result]:
    """`work(*piece)` of every piece, in order: on a CPU, without gradients, each piece by one of torch's threads.

    Threads that share an operation wait for each other after each one, for longest where other programs keep the cores busy. Threads that
    have pieces of their own never do.
    """
    import torch

    threads, inference = torch.get_num_threads(), torch.is_inference_mode_enabled()
    autocast, dtype = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

    def run(piece: tuple[Any, ...]) -> Result:  # a thread inherits none of these modes
        with torch.inference_mode(inference), torch.no_grad(), torch.autocast("cpu", dtype, enabled=autocast):
            return work(*piece)

    if threads == 1:
        return [run(piece) for piece in pieces]
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(run, pieces))
    finally:
        torch.set_num_threads(threads)  # parts of torch have one number for all threads


def keep_memory() -> None:
    """Let the C library keep freed memory for the next operation, instead of returning it to the system (glibc; elsewhere nothing).

    It would otherwise return large tensors at once, and the system clears each page again when the next operation writes it.
    """
    import ctypes

    if sys.platform == "linux":
        with suppress(AttributeError):  # another C library
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(_M_MMAP_THRESHOLD, KEPT // 8)  # glibc refuses more than 32 MiB
            mallopt(_M_TRIM_THRESHOLD, KEPT)


def cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe(device: torch.device) -> dict[str, Any]:
    """The machine as a manifest records it: enough to judge a repetition, nothing that identifies the machine or its user."""
    import torch

    return {
        "device": device.type,
        "name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "platform": platform.system(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
    }


def findings() -> list[Finding]:
    """What this machine has, and for each problem the command that fixes it."""
    from freetf_cli.config.files import shipped_recipes

    python = Finding("python", platform.python_version(), sys.version_info >= (3, 11), "make setup PYTHON=python3.12")
    count = len(shipped_recipes())
    recipes = Finding("recipes", f"{count} shipped", count > 0, "pip install --force-reinstall freetf")
    found = [python, *_torch(), _package("tokenizers"), _package("safetensors"), *_terminal(), recipes]
    found += [_extra(name, *about) for name, about in EXTRAS.items()]
    return [replace(finding, fix="") if finding.ok else finding for finding in found]


def _torch() -> list[Finding]:
    found = _package("torch")
    if not found.ok:
        return [replace(found, fix="make setup")]
    oldest, newest = TORCH_TESTED
    tested = oldest <= tuple(int(part) for part in found.value.split(".")[:2]) <= newest
    return [replace(found, ok=tested, fix="pip install 'torch>=2.11,<2.15'"), _devices(), _cpu(), _bf16(), _compiler(), _attention()]


def _devices() -> Finding:
    import torch

    names = available()
    shown = ", ".join(torch.cuda.get_device_name(0) if name == "cuda" else name for name in names)
    unused = "cuda" not in names and shutil.which("nvidia-smi") is not None
    what = f"{shown} (this machine has an NVIDIA GPU, but this torch cannot use it)" if unused else shown
    return Finding("devices", what, not unused, "make clean setup TORCH=cuda")


def _cpu() -> Finding:
    import torch

    load = os.getloadavg()[0]  # processes that ran or waited, over the last minute
    busy = f": other programs keep {'it' if cores() == 1 else 'them'} busy" if load > cores() else ""
    threads = torch.get_num_threads()
    return Finding("cpu", f"{cores()} cores, {threads} thread{'s' if threads > 1 else ''} for torch, load {load:.1f}{busy}", True)


def _bf16() -> Finding:
    import torch

    device, works = available()[0], False
    with suppress(RuntimeError):
        ones = torch.ones(2, 2, dtype=torch.bfloat16, device=device)
        works = float((ones @ ones).sum()) == 8.0
    return Finding("bf16", f"works on {device}" if works else f"does not work on {device}", works, "--set 'train.precision=\"fp32\"'")


def _compiler() -> Finding:
    """torch.compile needs a C++ compiler at run time, and on CUDA Triton too."""
    compiler = next(filter(shutil.which, [os.environ.get("CXX", ""), "c++", "g++", "clang++"]), None)
    if compiler is None:
        install = "xcode-select --install" if sys.platform == "darwin" else "sudo apt-get install g++"
        return Finding("torch.compile", "no C++ compiler found: models run uncompiled", False, install)
    if available()[0] == "cuda" and importlib.util.find_spec("triton") is None:
        return Finding("torch.compile", "Triton is missing: models run uncompiled", False, "pip install triton")
    return Finding("torch.compile", f"usable (with {Path(compiler).name})", True)


def _attention() -> Finding:
    """The kernel that torch chooses for causal attention in training."""
    import torch
    from torch.nn.attention import SDPBackend

    from freetf_cli.kernels.support import runs_kernels

    kind = available()[0]
    dtype = torch.bfloat16 if kind == "cuda" else torch.float32
    heads = torch.zeros(1, 2, 256, 64, device=kind, dtype=dtype, requires_grad=True)
    try:
        chosen = SDPBackend(torch._fused_sdp_choice(heads, heads, heads, is_causal=True))
    except (AttributeError, RuntimeError, ValueError):  # a private function of torch
        return Finding("attention", "torch's own choice", True)
    names = {"FLASH_ATTENTION": "flash", "CUDNN_ATTENTION": "cuDNN", "EFFICIENT_ATTENTION": "memory-efficient", "MATH": "plain products"}
    what = f"{names.get(chosen.name, chosen.name.lower())} ({kind}), chosen by torch"
    if runs_kernels(torch.device(kind)):
        what += "; freetf's own kernel for up to 128 positions"
    return Finding("attention", what, chosen != SDPBackend.MATH, "a GPU of compute capability 8.0 or newer has faster ones")


def _package(name: str) -> Finding:
    try:
        return Finding(name, importlib.import_module(name).__version__, True)
    except ImportError as error:
        return Finding(name, f"cannot be imported: {error}", False, f"pip install {name}")


def _extra(name: str, modules: Sequence[str], use: str) -> Finding:
    """An extra of pyproject.toml. Its modules are looked up, not imported, which would take seconds."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    what = f"not installed: {use}" if missing == list(modules) else f"{' and '.join(missing)} not installed: {use}"
    return Finding(f"extra {name}", what if missing else f"installed: {use}", not missing, f"pip install 'freetf[{name}]'", optional=True)


def _terminal() -> list[Finding]:
    encoding = sys.stdout.encoding or "unknown"
    unicode = encoding.lower().replace("-", "").startswith("utf")
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    return [
        Finding("terminal encoding", encoding, unicode, "export PYTHONUTF8=1"),
        Finding("terminal colour", "on" if colour else "off (NO_COLOR is set, or not a terminal)", True),
    ]
