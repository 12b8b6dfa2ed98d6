"""Cross-entropy of rows of logits and its gradient, in place, in one Triton kernel.

torch.compile reads all logits for the sums, and all of them again for the gradient: three times through memory with the writing. A
program here does one row after the other, and the second reading of a row finds it in the cache.

Shapes: n tokens, V vocabulary; a program takes a row, BV logits at a time.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


def cross_entropy_in_place(logits_nV: Tensor, targets_n: Tensor, ignore: int) -> Tensor:
    """−log softmax(logits)[target] of every row, [n] float32, 0 where the target is `ignore`; the logits become its gradient."""
    rows, vocabulary = logits_nV.shape
    cost_n = logits_nV.new_empty(rows, dtype=torch.float32)
    block = min(8192, triton.next_power_of_2(vocabulary))
    if rows:
        _row[(rows,)](logits_nV, targets_n, cost_n, logits_nV.stride(0), ignore, vocabulary, block, num_warps=max(4, block // 512))
    return cost_n


@triton.jit
def _row(logits_nV, targets_n, cost_n, stride, ignore, V: tl.constexpr, BV: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    x_row = logits_nV + row * stride
    v = tl.arange(0, BV)
    most, total = tl.full((), -float("inf"), tl.float32), tl.full((), 0.0, tl.float32)
    for start in range(0, V, BV):
        x = tl.load(x_row + start + v, mask=start + v < V, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(most, tl.max(x, 0))
        total = total * tl.exp(most - higher) + tl.sum(tl.exp(x - higher), 0)
        most = higher
    log_sum = most + tl.log(total)
    target = tl.load(targets_n + row)
    counted = target != ignore
    chosen = tl.load(x_row + tl.where(counted, target, 0)).to(tl.float32)
    tl.store(cost_n + row, tl.where(counted, log_sum - chosen, 0.0))
    tl.debug_barrier()  # no logit may be overwritten before every thread has the chosen one
    for start in range(0, V, BV):
        at = start + v
        x = tl.load(x_row + at, mask=at < V, other=0.0).to(tl.float32)
        gradient = tl.exp(x - log_sum) - tl.where(at == target, 1.0, 0.0)
        tl.store(x_row + at, tl.where(counted, gradient, 0.0).to(logits_nV.dtype.element_ty), mask=at < V)
