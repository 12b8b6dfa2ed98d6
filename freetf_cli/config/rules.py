"""What must hold between the keys of a recipe.

Each rule names the keys that it looks at, so that all faults can be shown at once, each at the key that was set.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple


class Fault(NamedTuple):
    """A rule that does not hold: the keys it is about, the one to blame first, and what to say."""

    keys: tuple[str, ...]
    message: str


def faults(values: Mapping[str, Any]) -> list[Fault]:
    """The rules that flat values (`{"model.width": 256, …}`, defaults filled in) break; one whose keys are missing is left out. A rule may
    name a table within a table: its settings."""
    found = []
    for keys, rule in RULES:
        try:
            message = rule(*(values[key] if key in values else _table(values, key) for key in keys))
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            continue
        if message:
            found.append(Fault(keys, message))
    return found


def _table(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = {key: value for key, value in values.items() if key.startswith(f"{name}.")}
    if not found:
        raise KeyError(name)
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


def _schedule(points: Mapping[str, Sequence[Sequence[float]]], bits: int) -> str | None:
    most = {"kappa": float(bits), "slope": 1.0}
    for name, path in points.items():
        key = f"latent.schedule.{name}"
        if [len(point) for point in path] != [2] * (len(path) - 1) + [1]:
            return f"{key} takes points [share, value] and ends with [share], where latent.{name} is reached"
        shares = [point[0] for point in path]
        if shares != sorted(set(shares)) or shares[0] < 0 or shares[-1] > 1:
            return f"{key}: shares of the run must rise, from 0 to 1"
        for _, value in path[:-1]:
            if not 0 <= value <= most.get(name, math.inf):
                return f"{key}: {value:g} is not within 0 and {most.get(name, math.inf):g}"
    return None


def _pairs(mismatch: float, points: Mapping[str, Any], batch: int, parts: int, processes: int) -> str | None:
    if batch // parts // processes > 1 or not (mismatch or "mismatch" in points):
        return None
    return "latent.mismatch compares sequences: train.batch / train.grad_accum_steps / parallel.processes must be at least 2"


def _accumulate(parts: int, batch: int) -> str | None:
    return f"train.grad_accum_steps = {parts} does not divide train.batch = {batch}" if batch % parts else None


def _processes(processes: int, parts: int, batch: int) -> str | None:
    if processes == 1 or batch % (processes * parts) == 0:
        return None
    return f"parallel.processes = {processes} times train.grad_accum_steps = {parts} does not divide train.batch = {batch}"


def _even(layers: int, bits: int) -> str | None:
    return f"model.layers = {layers} is odd: a Free model needs an even number of blocks" if layers % 2 else None


def _depth(depth: int | None, layers: int) -> str | None:
    return f"latent.depth = {depth} must be less than model.layers = {layers}" if depth is not None and depth >= layers else None


def _options(kind: str, options: Mapping[str, Any] | None) -> str | None:
    if options is None or kind == "multi-token":
        return None
    return f"[model.multi_token] belongs to model.attention = 'multi-token', not '{kind}'"


def _attention_layers(numbers: Sequence[int] | None, kind: str, layers: int) -> str | None:
    if numbers is None:
        return None
    if kind == "softmax":
        return "model.attention_layers belongs to another model.attention than 'softmax', which all blocks have"
    return _blocks("model.attention_layers", numbers, layers)


def _kq_layers(numbers: Sequence[int] | None, among: Sequence[int] | None, layers: int) -> str | None:
    key, others = "model.multi_token.kq_layers", set(range(layers) if among is None else among)
    if numbers is None:
        return None
    if strangers := sorted(set(numbers) - others):
        return f"{key} names block {strangers[0]}, which has no multi-token attention"
    return _blocks(key, numbers, layers)


def _blocks(key: str, numbers: Sequence[int], layers: int) -> str | None:
    if not numbers or len(set(numbers)) < len(numbers):
        return f"{key} names no block, or one twice: leave it out for its default"
    return f"{key} names block {max(numbers)}, and model.layers = {layers} has 0 to {layers - 1}" if max(numbers) >= layers else None


def _group(group: int | None, heads: int) -> str | None:
    return f"model.multi_token.c_h = {group} does not divide model.heads = {heads}" if group and heads % group else None


def _kernel(size: int, kq: str, context: int | None, name: str) -> str | None:
    if kq == "none" or context is None or size <= context:
        return None
    return f"model.multi_token.{name} = {size} is more than model.context = {context}"


def _form(form: str, kq: str, mix: str) -> str | None:
    if form != "full" or {kq, mix} in ({"pre"}, {"post"}) or ("both" in (kq, mix) and "none" not in (kq, mix)):
        return None
    return (
        f"model.multi_token.form = 'full' joins a convolution and a mix on one side of the softmax; kq = '{kq}' and mix = '{mix}' have none"
    )


def _cached_rows(cache: str, mask: str, kq: str) -> str | None:
    if cache != "rows" or mask != "exact" or kq not in ("pre", "both"):
        return None
    return "model.multi_token.cache = 'rows' needs mask = 'double': with 'exact' an old row scores new keys"


def _separator(separator: int | None, document_mask: bool | None, kind: str, vocab: int | None) -> str | None:
    if separator is None:
        return None
    if not (kind != "softmax" if document_mask is None else document_mask):
        return "model.separator wants model.document_mask = true"
    return f"model.separator = {separator} is no token of model.vocab = {vocab}" if vocab is not None and separator >= vocab else None


def _pairs_of_heads(kind: str, heads: int, kv_heads: int | None) -> str | None:
    for name, count in (("heads", heads), ("kv_heads", kv_heads)):
        if kind == "differential" and count and count % 2:
            return f"model.{name} = {count} is odd: differential attention takes heads in pairs"
    return None


RULES: tuple[tuple[tuple[str, ...], Callable[..., str | None]], ...] = (
    (("data.task", "data.dir"), _one_source),
    (("data.params", "data.task"), _params),
    (("model.heads", "model.width"), _heads),
    (("model.kv_heads", "model.heads"), _key_heads),
    (("model.heads", "model.width"), _rotary),
    (("model.attention", "model.multi_token"), _options),
    (("model.attention_layers", "model.attention", "model.layers"), _attention_layers),
    (("model.multi_token.kq_layers", "model.attention_layers", "model.layers"), _kq_layers),
    (("model.multi_token.c_h", "model.heads"), _group),
    (("model.multi_token.c_q", "model.multi_token.kq", "model.context"), partial(_kernel, name="c_q")),
    (("model.multi_token.c_k", "model.multi_token.kq", "model.context"), partial(_kernel, name="c_k")),
    (("model.multi_token.form", "model.multi_token.kq", "model.multi_token.mix"), _form),
    (("model.multi_token.cache", "model.multi_token.mask", "model.multi_token.kq"), _cached_rows),
    (("model.attention", "model.heads", "model.kv_heads"), _pairs_of_heads),
    (("model.separator", "model.document_mask", "model.attention", "model.vocab"), _separator),
    (("latent.kappa", "latent.bits"), _kappa),
    (("latent.schedule", "latent.bits"), _schedule),
    (("latent.mismatch", "latent.schedule", "train.batch", "train.grad_accum_steps", "parallel.processes"), _pairs),
    (("train.grad_accum_steps", "train.batch"), _accumulate),
    (("parallel.processes", "train.grad_accum_steps", "train.batch"), _processes),
    (("model.layers", "latent.bits"), _even),
    (("latent.depth", "model.layers"), _depth),
)
