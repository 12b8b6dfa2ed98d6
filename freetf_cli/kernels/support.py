"""Shared by all operations of this package: where Triton runs, and how a function becomes a custom operator."""

import importlib.util
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


@torch.compiler.assume_constant_result  # torch.compile would trace into the look-ups and break the graph
def runs_kernels(device: torch.device) -> bool:
    """Whether the Triton kernels of this package run on a device."""
    return _runs_kernels(device)


@cache
def _runs_kernels(device: torch.device) -> bool:
    """Tiles are sized for, and tested on, compute capability 9 only. Triton needs a C compiler for its launcher.

    Triton's interpreter (TRITON_INTERPRET=1) runs kernels on any device; tests use it.
    """
    if importlib.util.find_spec("triton") is None:
        return False
    if os.environ.get("TRITON_INTERPRET") == "1":
        return True
    compilers = (os.environ.get("CC"), "cc", "gcc", "clang")
    capable = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9
    return capable and any(name and shutil.which(name) for name in compilers)


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
    """Decorator: register a function that launches Triton as the custom operator `freetf::<its name>`.

    torch.compile keeps an operator as one opaque call. Choose between operator and plain reference outside of it: the compiler can fuse
    the reference with its neighbours. Arguments are tensors first, then numbers.

    fake: given the operator's arguments, returns empty tensors of the result's shapes, dtypes and strides.
    backward: another operator. Given the result's gradient and then the arguments, it returns the gradients of the first arguments, as
    many as it has results; the others get none.
    mutates: names of the arguments that are written.
    """

    def register(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def run(*inputs: P.args, **named: P.kwargs) -> R:
            first: Any = inputs[0]
            with on_device_of(first[0] if isinstance(first, list) else first):
                return function(*inputs, **named)

        made = torch.library.custom_op(f"freetf::{function.__name__.lstrip('_')}", run, mutates_args=mutates)
        made.register_fake(fake)
        if backward is not None:
            made.register_autograd(_gradients_by(backward), setup_context=_save_inputs)
        return cast("Callable[P, R]", made)

    return register


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*(each for each in inputs if each is None or isinstance(each, Tensor)))
    ctx.settings = [each for each in inputs if not (each is None or isinstance(each, Tensor))]


def _gradients_by(backward: Callable[..., Any]) -> Callable[..., tuple[Tensor | None, ...]]:
    def gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        found = backward(dy, *saved, *ctx.settings)
        given = [None if x is None else dx for x, dx in zip(saved, found, strict=False)]
        return *given, *[None] * (len(saved) + len(ctx.settings) - len(given))

    return gradients
