"""Whether this project's Triton kernels run on a device."""

import importlib.util
import os
import shutil
from functools import cache

import torch


@cache
def runs_kernels(device: torch.device) -> bool:
    """Their tiles are cut for the shared memory and the matrix units of compute capability 9, and tried on no other. Triton is not on every
    system that torch runs on, and builds its launcher with a C compiler."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] != 9:
        return False
    compilers = (os.environ.get("CC"), "cc", "gcc", "clang")
    return importlib.util.find_spec("triton") is not None and any(name and shutil.which(name) for name in compilers)


@torch.compiler.assume_constant_result
def runs_kernels_compiled(device: torch.device) -> bool:
    """As torch.compile takes it: it would look into the library's, past its cache, and break the graph there."""
    return runs_kernels(device)
