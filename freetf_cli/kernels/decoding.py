"""A Transformer block for one position of one sequence: the step of generation on a GPU.

    q = rotate(Wq n(x)), k = rotate(Wk n(kv)), v = Wv n(kv)        n(x) = x / rms(x) · norm
    x ← x + Wout attention(q, cached keys, k; cached values, v)
    x ← x + Wdown (silu(Wgate n(x)) · Wup n(x))

Shapes: D width, F hidden width, M query heads, K key/value heads, E head width, S positions of the cache.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from freetf_cli.kernels.rotary import Rotary, rotate
from freetf_cli.kernels.support import on_device_of, runs_kernels


class BlockWeights(NamedTuple):
    """The weights of a block: matrices [outputs, inputs], norms [D]. eps: the ε of both norms."""

    attention_norm: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    ffn_norm: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor
    eps: float


def takes_decode_block(x_BTD: Tensor, weights: BlockWeights, head_width: int) -> bool:
    """Whether the kernels can compute it: one position of one sequence, in bfloat16, without gradients."""
    one = x_BTD.shape[:2] == (1, 1) and head_width in (32, 64, 128) and not torch.is_grad_enabled()
    fits = all(each.dtype == torch.bfloat16 and each.is_contiguous() for each in (x_BTD, *weights[:-1]))
    return one and fits and runs_kernels(x_BTD.device)


def decode_block(
    x_11D: Tensor, kv_11D: Tensor, rotary: Rotary, k_1KSE: Tensor, v_1KSE: Tensor, position: Tensor, weights: BlockWeights
) -> Tensor:
    """The block's output, [1, 1, D], by the kernels. Call it only where `takes_decode_block` holds.

    kv_11D: the stream of keys and values. rotary: cos and sin of the position, [1, E/2]. position: [] int64; the new key and value are
    written there in the cache, and earlier positions are attended to. Not an operator: generation is captured as a graph, not compiled.
    """
    from freetf_cli.kernels.decoding_triton import added, attended, gated, projected

    w, x_D = weights, x_11D.view(-1)
    with on_device_of(x_11D):
        qkv_P = projected(x_D, kv_11D.view(-1), w.attention_norm, w.q, w.k, w.v, w.eps)
        y_F = attended(qkv_P, *rotary, k_1KSE, v_1KSE, position, len(w.q) // k_1KSE.shape[3])
        x_D = added(x_D, w.out, y_F)
        return added(x_D, w.down, gated(x_D, w.ffn_norm, w.gate, w.up, w.eps)).view(1, 1, -1)


def reference_decode_block(
    x_11D: Tensor, kv_11D: Tensor, rotary: Rotary, k_1KSE: Tensor, v_1KSE: Tensor, position: Tensor, weights: BlockWeights
) -> Tensor:
    w, width = weights, k_1KSE.shape[3]
    q_D, kv_D = (F.rms_norm(each, each.shape[-1:], w.attention_norm, w.eps) for each in (x_11D, kv_11D))
    q, k, v = (F.linear(each, weight).view(1, 1, -1, width) for each, weight in ((q_D, w.q), (kv_D, w.k), (kv_D, w.v)))
    k_1KSE.index_copy_(2, position[None], rotate(k, rotary).transpose(1, 2))
    v_1KSE.index_copy_(2, position[None], v.transpose(1, 2))
    seen_S = torch.arange(k_1KSE.shape[2], device=position.device) <= position
    y_1M1E = F.scaled_dot_product_attention(rotate(q, rotary).transpose(1, 2), k_1KSE, v_1KSE, attn_mask=seen_S[None], enable_gqa=True)
    x_11D = x_11D + F.linear(y_1M1E.flatten()[None, None], w.out)
    n_11D = F.rms_norm(x_11D, x_11D.shape[-1:], w.ffn_norm, w.eps)
    return x_11D + F.linear(F.silu(F.linear(n_11D, w.gate)) * F.linear(n_11D, w.up), w.down)
