"""The kinds of attention as their papers write them, number by number in float64: the references of their tests."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from freetf_cli.kernels import Rotary, rotary_tables, rotate
from freetf_cli.model.attention.softmax import Attention
from freetf_cli.model.context import Context

Array = NDArray[np.float64]


def tables(length: int, head_width: int) -> Rotary:
    cos, sin = rotary_tables(torch.arange(length), head_width, 100.0)
    return cos.double(), sin.double()


def randomised(attention: Attention, seed: int) -> Attention:
    """The attention in float64 with all parameters random: an initial identity or zero must not hide a mistake."""
    generator = torch.Generator().manual_seed(seed)
    attention = attention.double()
    for parameter in attention.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.4)
    return attention


def streams(length: int, width: int, rows: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The streams of queries, and of keys and values, [B, T, D] each."""
    drawn = torch.randn(2, rows, length, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn[0], drawn[1]


def context(rotary: Rotary, causal: bool = True, document_ids: Tensor | None = None) -> Context:
    """The context of a whole row with these tables."""
    length = rotary[0].shape[0]
    return Context(rotary, torch.arange(length), length, causal=causal, document_ids_BS=document_ids).with_masks()


def projected(layer: torch.nn.Linear, x_TD: Tensor, head: int, width: int, rotary: Rotary | None = None) -> Array:
    """One head's queries, keys or values, [T, E]."""
    y_TE = x_TD @ layer.weight[head * width : (head + 1) * width].T
    if rotary is not None:
        y_TE = rotate(y_TE[None, :, None], rotary)[0, :, 0]
    return np.asarray(y_TE.detach().numpy(), np.float64)


def scores(a: Attention, q_TD: Tensor, kv_TD: Tensor, rotary: Rotary) -> Array:
    """L [M, T, T] without a mask; M/K consecutive heads share a key head."""
    length, width = len(q_TD), a.head_width
    out = np.zeros((a.heads, length, length))
    for m in range(a.heads):
        q, k = projected(a.q, q_TD, m, width, rotary), projected(a.k, kv_TD, m // (a.heads // a.key_heads), width, rotary)
        for i in range(length):
            for j in range(length):
                out[m, i, j] = sum(q[i, e] * k[j, e] for e in range(width)) / math.sqrt(width)
    return out


def softmaxed(s: Array) -> Array:
    """Softmax over the keys up to each query, 0 elsewhere."""
    out = np.zeros_like(s)
    for m, i in np.ndindex(*s.shape[:2]):
        e = [math.exp(s[m, i, j] - max(s[m, i, : i + 1])) for j in range(i + 1)]
        out[m, i, : i + 1] = np.array(e) / sum(e)
    return out


def mixed(x: Array, w: Array) -> Array:
    """X_new^o = Σ_h w[g, o, h] X^h within each group."""
    size, out = w.shape[1], np.zeros_like(x)
    for m in range(len(x)):
        for h in range(size):
            out[m] += w[m // size, m % size, h] * x[m // size * size + h]
    return out


def convolved(x: Array, kernel: Array, reads: Any) -> Array:
    """Σ over heads of the group, i' and j', where reads(i, i − i', j − j') allows it; θ_{i'j'} lies at [Q − 1 − i', ⌈W/2⌉ − 1 − j']."""
    heads, size, high, wide = kernel.shape
    length, out = x.shape[1], np.zeros_like(x)
    for o, c, i, j in np.ndindex(heads, size, length, length):
        head = o // size * size + c
        for back in range(high):
            for over in range(-(wide // 2), math.ceil(wide / 2)):
                query, key = i - back, j - over
                if query >= 0 and 0 <= key < length and reads(i, query, key):
                    out[o, i, j] += kernel[o, c, high - 1 - back, math.ceil(wide / 2) - 1 - over] * x[head, query, key]
    return out


def multi_token(a: Any, q_TD: Tensor, kv_TD: Tensor, rotary: Rotary) -> Array:
    """[T, D]: the order of operations of section 3 of arXiv 2504.00927, v2."""
    maps, masked = scores(a, q_TD, kv_TD, rotary), a.options.mask == "double"
    if a.pre.kernel is not None:
        maps = convolved(maps, numbers(a.pre.kernel), lambda i, query, key: key <= (query if masked else i))
    maps = softmaxed(maps if a.pre.mix is None else mixed(maps, numbers(a.pre.mix)))
    if a.post.kernel is not None:
        maps = convolved(maps, numbers(a.post.kernel), lambda i, query, key: key <= query)
        maps = np.tril(maps)
    maps = maps if a.post.mix is None else mixed(maps, numbers(a.post.mix))
    heads = []
    for m in range(a.heads):
        o = maps[m] @ projected(a.v, kv_TD, m // (a.heads // a.key_heads), a.head_width)
        heads.append(o if a.norm is None else normed(o, a.norm))
    return np.concatenate(heads, axis=1) @ numbers(a.out.weight).T


def normed(o: Array, norm: Any) -> Array:
    n = numbers(norm.weight) * o / np.sqrt((o**2).mean(1, keepdims=True) + norm.eps)
    if norm.u is None:
        return n * norm.scale
    return np.array([row / (1 + math.exp(-(numbers(norm.u) @ row + float(norm.b.detach())))) for row in n])


def differential(a: Any, q_TD: Tensor, kv_TD: Tensor, rotary: Rotary, index: int) -> Array:
    """[T, D]: equations 1 to 3 of arXiv 2410.05258, blocks counted from 0."""
    width, begin = a.head_width, 0.8 - 0.6 * math.exp(-0.3 * index)
    (q1, k1), (q2, k2) = numbers(a.lambdas)
    weight = math.exp(q1 @ k1) - math.exp(q2 @ k2) + begin
    pairs, shared = a.heads // 2, a.heads // a.key_heads
    heads = []
    for n in range(pairs):
        maps = []
        for s in range(2):
            q, k = projected(a.q, q_TD, 2 * n + s, width, rotary), projected(a.k, kv_TD, 2 * (n // shared) + s, width, rotary)
            maps.append(softmaxed((q @ k.T / math.sqrt(width))[None])[0])
        v = np.concatenate([projected(a.v, kv_TD, 2 * (n // shared) + s, width) for s in range(2)], axis=1)
        o = (maps[0] - weight * maps[1]) @ v
        heads.append((1 - begin) * numbers(a.norm.weight) * o / np.sqrt((o**2).mean(1, keepdims=True) + a.norm.eps))
    return np.concatenate(heads, axis=1) @ numbers(a.out.weight).T


def talking_heads(a: Any, q_TD: Tensor, kv_TD: Tensor, rotary: Rotary) -> Array:
    maps = mixed(softmaxed(mixed(scores(a, q_TD, kv_TD, rotary), numbers(a.pre))), numbers(a.post))
    heads = [maps[m] @ projected(a.v, kv_TD, m // (a.heads // a.key_heads), a.head_width) for m in range(a.heads)]
    return np.concatenate(heads, axis=1) @ numbers(a.out.weight).T


def numbers(tensor: Tensor) -> Array:
    return np.asarray(tensor.detach().numpy(), np.float64)
