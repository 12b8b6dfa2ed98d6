"""What must hold between the keys of a recipe.

Each rule names the keys that it looks at, so that all faults can be shown at once, each at the key that was set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Fault(NamedTuple):
    """A rule that does not hold: the keys it is about, the one to blame first, and what to say."""

    keys: tuple[str, ...]
    message: str


def faults(values: Mapping[str, Any]) -> list[Fault]:
    """The rules that flat values (`{"model.width": 256, …}`, defaults filled in) break; one whose keys are missing is left out."""
    found = []
    for keys, rule in RULES:
        try:
            message = rule(*(values[key] for key in keys))
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            continue
        if message:
            found.append(Fault(keys, message))
    return found


def _one_source(task: Any, folder: Any) -> str | None:
    return "[data] needs exactly one of 'task' and 'dir'" if (task is None) == (folder is None) else None


def _params(params: Any, task: Any) -> str | None:
    return "data.params belongs to data.task; a prepared folder has its own" if params and task is None else None


def _heads(heads: int, width: int) -> str | None:
    return f"model.heads = {heads} does not divide model.width = {width}" if width % heads else None


def _key_heads(kv_heads: int | None, heads: int) -> str | None:
    return f"model.kv_heads = {kv_heads} does not divide model.heads = {heads}" if kv_heads and heads % kv_heads else None


def _rotary(heads: int, width: int) -> str | None:
    if width % heads or width // heads % 2 == 0:
        return None
    return f"the head width, model.width / model.heads = {width // heads}, must be even for rotary embeddings"


def _kappa(kappa: float, bits: int) -> str | None:
    return f"latent.kappa = {kappa:g} is more than latent.bits = {bits}: a token holds no more" if kappa > bits else None


def _kappa_start(kappa: float | None, bits: int) -> str | None:
    if kappa is None or kappa <= bits:
        return None
    return f"latent.kappa_start = {kappa:g} is more than latent.bits = {bits}: a token holds no more"


def _anneal(start: float | None, steps: int) -> str | None:
    return "latent.kappa_start and latent.kappa_anneal go together" if (start is None) != (steps == 0) else None


def _accumulate(parts: int, batch: int) -> str | None:
    return f"train.accumulate = {parts} does not divide train.batch = {batch}" if batch % parts else None


def _even(layers: int, bits: int) -> str | None:
    return f"model.layers = {layers} is odd: a Free model needs an even number of blocks" if layers % 2 else None


def _depth(depth: int | None, layers: int) -> str | None:
    return f"latent.depth = {depth} must be less than model.layers = {layers}" if depth is not None and depth >= layers else None


RULES: tuple[tuple[tuple[str, ...], Callable[..., str | None]], ...] = (
    (("data.task", "data.dir"), _one_source),
    (("data.params", "data.task"), _params),
    (("model.heads", "model.width"), _heads),
    (("model.kv_heads", "model.heads"), _key_heads),
    (("model.heads", "model.width"), _rotary),
    (("latent.kappa", "latent.bits"), _kappa),
    (("latent.kappa_start", "latent.bits"), _kappa_start),
    (("latent.kappa_start", "latent.kappa_anneal"), _anneal),
    (("train.accumulate", "train.batch"), _accumulate),
    (("model.layers", "latent.bits"), _even),
    (("latent.depth", "model.layers"), _depth),
)
