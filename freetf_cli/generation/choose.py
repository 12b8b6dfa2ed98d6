"""Choosing the next token from its logits.

Shapes: B sequences, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEAST_TEMPERATURE = 1e-30  # except 0; a smaller number is 0 in float32


def choose_tokens(logits_BV: Tensor, quantiles_B: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """The token at a given quantile of each row's distribution after temperature, top-k and top-p, in this order, [B].

    quantiles_B: uniform numbers in [0, 1). temperature 0: the most likely token. top_k 0, top_p 1: no truncation.
    """
    if temperature == 0:
        return logits_BV.argmax(-1)
    logits_BV = logits_BV.to(torch.float32)
    if temperature != 1:
        logits_BV = (logits_BV - logits_BV.amax(-1, keepdim=True)) / max(temperature, LEAST_TEMPERATURE)
    if 0 < top_k < logits_BV.shape[-1]:
        best_BK = logits_BV.topk(top_k).indices
        logits_BV = torch.full_like(logits_BV, -torch.inf).scatter(-1, best_BK, logits_BV.gather(-1, best_BK))
    p_BV = torch.softmax(logits_BV, dim=-1)
    if logits_BV.device.type != "mps":  # which has no float64
        p_BV = p_BV.double()  # CUDA sums one row in an order that varies; in float32 that changes a token in a thousand
    if top_p < 1:
        p_BV = _nucleus(p_BV, top_p)
    cumulative_BV = p_BV.cumsum(-1)
    total_B1 = cumulative_BV[:, -1:]
    target_B1 = quantiles_B[:, None].to(cumulative_BV.dtype) * total_B1
    target_B1 = torch.minimum(target_B1, torch.nextafter(total_B1, torch.zeros_like(total_B1)))  # where the product rounds to the total
    return torch.searchsorted(cumulative_BV, target_B1, right=True)[:, 0].clamp(max=cumulative_BV.shape[-1] - 1)  # NaN is above all


def _nucleus(p_BV: Tensor, top_p: float) -> Tensor:
    """Probabilities with those outside the nucleus set to 0. The token that reaches top_p is kept, and the most likely one always."""
    sorted_BV, order_BV = p_BV.sort(dim=-1, descending=True)
    beyond_BV = sorted_BV.cumsum(-1) - sorted_BV >= top_p
    beyond_BV[:, 0] = False
    return p_BV.masked_fill(torch.zeros_like(beyond_BV).scatter(-1, order_BV, beyond_BV), 0.0)
