"""What all operations of this package share: where Triton runs, and how a function becomes a custom operator."""

import importlib.util
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from itertools import zip_longest
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

HAS_TRITON = importlib.util.find_spec("triton") is not None
HAS_C_COMPILER = any(name and shutil.which(name) for name in (os.environ.get("CC"), "cc", "gcc", "clang"))  # for Triton's launcher
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's interpreter runs kernels on any device; tests use it


def runs_kernels(device: torch.device) -> bool:
    """Whether the Triton kernels run on a device. Their tiles are sized for, and tested on, compute capability 9 only.

    torch.compile traces this function. It could not trace the look-ups above, so they are made at import.
    """
    if not HAS_TRITON or INTERPRETED:
        return HAS_TRITON
    return device.type == "cuda" and HAS_C_COMPILER and torch.cuda.get_device_properties(device).major == 9


def product_dtype(x: Tensor) -> torch.dtype:
    """The dtype of a matrix product of x: autocast's where it is on, else x's own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def on_device_of(x: Tensor) -> AbstractContextManager[Any]:
    """Make x's device the current one, on which Triton launches."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def operator(
    fake: Callable[..., Any], backward: Callable[..., Any] | None = None, mutates: tuple[str, ...] = ()
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator: register a function that launches Triton kernels as the custom operator `freetf::<its name>`.

    torch.compile keeps an operator as one opaque call. Choose between operator and plain reference outside of it: the compiler can fuse
    the reference with its neighbours. Arguments are tensors first, then numbers.

    fake: given the operator's arguments, returns empty tensors of the result's shapes, dtypes and strides.
    backward: another operator. Given the result's gradient and the arguments, it returns the gradients of the first arguments; the
    others get none.
    mutates: names of the arguments that are written.
    """

    def register(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def run(*inputs: P.args, **named: P.kwargs) -> R:
            first: Any = inputs[0]
            with on_device_of(first[0] if isinstance(first, list) else first):
                return function(*inputs, **named)

        def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            tensors = [x for x in inputs if x is None or isinstance(x, Tensor)]
            ctx.save_for_backward(*tensors)
            ctx.numbers = inputs[len(tensors) :]

        def gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
            inputs = *ctx.saved_tensors, *ctx.numbers
            assert backward is not None
            return tuple(None if x is None else dx for x, dx in zip_longest(inputs, backward(dy, *inputs)))

        made = torch.library.custom_op(f"freetf::{function.__name__.lstrip('_')}", run, mutates_args=mutates)
        made.register_fake(fake)
        if backward is not None:
            made.register_autograd(gradients, setup_context=save)
        return cast("Callable[P, R]", made)

    return register
