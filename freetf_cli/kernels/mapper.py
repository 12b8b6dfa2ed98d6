"""The gradient that the binary mapper gives to the logits of Z's bits (paper §3.4, eq. 8).

    s = W · dr,  dL_h = Σ_d G_d (U_h(d) − p_h) s_d = Cov_G(U_h, s)

with p = sigmoid(L), U_h(d) the bit h of code d, and G_d = Π_h p_h or 1 − p_h the probability of code d. [N, C] tensors are gigabytes at
H = 16, so neither G nor all of s is ever in memory. G factorises over the low and the high half of the bits: the covariance of a token
costs two products of s, seen as a [2^(H − H/2), 2^(H/2)] matrix, with a vector. The Triton kernels do not write s to memory at all, or
read it once.

Shapes: N tokens, H bits, C = 2^H codes, D width; I and J values of the low and the high half of the bits.
"""

import torch
from torch import Tensor

from freetf_cli.kernels.support import operator, runs_kernels

CHUNK_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 28}  # of s at a time: 16 MB in float32 on a CPU, 0.5 GB in bfloat16 on a GPU
WIDEST_FUSED = 768  # of wider models a library's product that writes s to memory, and a kernel that reads it, are faster than one kernel


def reference_logit_gradient(dr_ND: Tensor, bit_logits_NH: Tensor, table_CD: Tensor) -> Tensor:
    """The equation, [N, H], with all of G and s in memory."""
    p_NH, u_CH = torch.sigmoid(bit_logits_NH), _bits(bit_logits_NH.shape[1], bit_logits_NH)
    g_NC = torch.exp(torch.log(p_NH) @ u_CH.T + torch.log(1 - p_NH) @ (1 - u_CH).T)
    gs_NC = g_NC * (dr_ND @ table_CD.T)
    return gs_NC @ u_CH - gs_NC.sum(1, keepdim=True) * p_NH


@operator(lambda dr, bit_logits, table, float8=False: torch.empty_like(bit_logits))
def logit_gradient(dr_ND: Tensor, bit_logits_NH: Tensor, table_CD: Tensor, float8: bool = False) -> Tensor:
    """dL [N, H], in the logits' dtype, for the gradient dr [N, D] of R.

    The product W · dr runs in bfloat16 where the logits are bfloat16 (autocast), else in the table's dtype. What all rows of W have in
    common changes no covariance, and in bfloat16 would drown the differences: the mean of a thousand rows is subtracted first. Kernels
    compute the bfloat16 product where they run; all else is computed in chunks of tokens. float8: the kernels' product is in e4m3
    instead, and dL is off by 4 % in the norm.

    An operator throughout, so that torch.compile keeps the loop over chunks out of its graph.
    """
    product = torch.bfloat16 if bit_logits_NH.dtype == torch.bfloat16 else table_CD.dtype
    if product == torch.bfloat16 and _fits(dr_ND, bit_logits_NH.shape[1]):
        return _by_kernels(dr_ND, bit_logits_NH, table_CD, float8)
    return logit_gradient_in_chunks(dr_ND, bit_logits_NH, table_CD, product)


def _fits(dr_ND: Tensor, bits: int) -> bool:
    """Whether the kernels compute it. Below 8 bits there is little to save; their loads need rows of whole 16 bytes."""
    return dr_ND.shape[0] > 0 and bits >= 8 and dr_ND.shape[1] % 8 == 0 and runs_kernels(dr_ND.device)


def _by_kernels(dr_ND: Tensor, bit_logits_NH: Tensor, table_CD: Tensor, float8: bool) -> Tensor:
    from freetf_cli.kernels import mapper_triton as kernel

    p_NH, common_D = torch.sigmoid(bit_logits_NH.float()), common_row(table_CD)
    if float8 and dr_ND.shape[1] % 16 == 0:
        dl_NH = kernel.logit_gradient_in_8_bits(dr_ND, p_NH, table_CD, common_D)
    else:
        dr_ND, table_CD = dr_ND.bfloat16(), kernel.centred(table_CD, common_D)
        if dr_ND.shape[1] <= WIDEST_FUSED:
            dl_NH = kernel.fused_logit_gradient(dr_ND, p_NH, table_CD)
        else:
            dl_NH = torch.cat([kernel.covariance(dr_ND[part] @ table_CD.T, p_NH[part]) for part in _chunks(dr_ND, table_CD)])
    return dl_NH.to(bit_logits_NH.dtype)


def logit_gradient_in_chunks(dr_ND: Tensor, bit_logits_NH: Tensor, table_CD: Tensor, product_dtype: torch.dtype) -> Tensor:
    """`logit_gradient` without kernels: s = W · dr of some tokens at a time is written to memory."""
    table_DC = (table_CD - common_row(table_CD)).to(product_dtype).T
    out_NH = torch.empty_like(bit_logits_NH)
    for part in _chunks(dr_ND, table_CD):
        out_NH[part] = _covariance(dr_ND[part].to(product_dtype) @ table_DC, bit_logits_NH[part])
    return out_NH


def _chunks(dr_ND: Tensor, table_CD: Tensor) -> list[slice]:
    """Tokens whose s are in memory together."""
    step = max(1, CHUNK_ELEMENTS.get(dr_ND.device.type, 1 << 26) // table_CD.shape[0])
    return [slice(start, start + step) for start in range(0, dr_ND.shape[0], step)]


def common_row(table_CD: Tensor) -> Tensor:
    """About what all rows have in common, [D]: the mean of 1,024 of them, one of each run of neighbours, at varying places in the runs."""
    stride = max(1, table_CD.shape[0] // 1024)
    rows = torch.arange(0, table_CD.shape[0], stride, device=table_CD.device)
    return table_CD[rows + rows // stride % stride].mean(0)


def _covariance(s_NC: Tensor, bit_logits_NH: Tensor) -> Tensor:
    """Cov_{d~G}(U_h(d), s_d) of every token and bit, [N, H]."""
    p_NH = torch.sigmoid(bit_logits_NH.to(torch.promote_types(bit_logits_NH.dtype, torch.float32)))
    low = p_NH.shape[1] // 2
    g_NI, g_NJ = _probabilities(p_NH[:, :low]), _probabilities(p_NH[:, low:])
    s_NJI = s_NC.view(-1, g_NJ.shape[1], g_NI.shape[1])
    m_NJ = torch.bmm(s_NJI, g_NI.to(s_NC.dtype)[:, :, None])[:, :, 0].to(p_NH.dtype)
    m_NI = torch.bmm(g_NJ.to(s_NC.dtype)[:, None, :], s_NJI)[:, 0].to(p_NH.dtype)
    halves = ((g_NI * m_NI, p_NH[:, :low]), (g_NJ * m_NJ, p_NH[:, low:]))
    return torch.cat([weighted @ _bits(p.shape[1], p) - weighted.sum(1, keepdim=True) * p for weighted, p in halves], dim=1)


def _probabilities(p_Nh: Tensor) -> Tensor:
    """Of all 2^h values of h bits, [N, 2^h]."""
    g = p_Nh.new_ones(p_Nh.shape[0], 1)
    for h in range(p_Nh.shape[1]):
        p = p_Nh[:, h : h + 1]
        g = torch.cat((g * (1 - p), g * p), dim=1)
    return g


def _bits(count: int, like: Tensor) -> Tensor:
    """Bit h of every value of `count` bits, [2^count, count], in the dtype of `like`."""
    codes_C1 = torch.arange(2**count, device=like.device)[:, None]
    return ((codes_C1 >> torch.arange(count, device=like.device)) & 1).to(like.dtype)
