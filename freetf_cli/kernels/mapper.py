"""The gradient that the binary mapper gives to the logits of Z's bits (paper §3.4, equation 8).

    s = W · dr,  dL_h = Σ_d G_d (U_h(d) − p_h) s_d = Cov_G(U_h, s)

with p = sigmoid(L), U_h(d) bit h of code d, and G_d = Π_h (p_h or 1 − p_h) the probability of code d. A tensor [N, C] takes gigabytes
at H = 16, so G is never in memory, and s only in part. G is a product of a factor for the low half of the bits and one for the high
half. A token's covariance is therefore two products of s, as a matrix [2^(H − H/2), 2^(H/2)], with a vector. The Triton kernels do not
write s to memory at all, or read it once.

Shapes: N tokens, H bits, C = 2^H codes, D width; I and J values of the low and the high half of the bits.
"""

import torch
from torch import Tensor

from freetf_cli.kernels.support import operator, runs_kernels

CHUNK_ELEMENTS = {"cpu": 1 << 22, "mps": 1 << 26, "cuda": 1 << 28}  # of s at a time: 16 MB on a CPU, 0.5 GB on CUDA
WIDEST_FUSED = 768  # D above which a library's product that writes s, and a kernel that reads it, are faster than one kernel


@operator(lambda dr, bit_logits, table, float8=False: torch.empty_like(bit_logits))
def logit_gradient(dr_ND: Tensor, bit_logits_NH: Tensor, table_CD: Tensor, float8: bool = False) -> Tensor:
    """dL [N, H], in the logits' dtype, for the gradient dr [N, D] of R.

    The product W · dr is in bfloat16 where the logits are (autocast), else in the table's dtype. What all rows of W have in common changes
    no covariance, but would drown their differences in bfloat16: the mean of a thousand rows is subtracted first.
    float8: the kernels' product is in e4m3, and dL is off by 4 % in norm.

    An operator on every device, so that torch.compile keeps the loop over chunks out of its graph.
    """
    product_dtype = torch.bfloat16 if bit_logits_NH.dtype == torch.bfloat16 else table_CD.dtype
    # Below 8 bits there is little to save; the kernels' loads need rows of whole 16 bytes.
    fits = len(dr_ND) > 0 and bit_logits_NH.shape[1] >= 8 and dr_ND.shape[1] % 8 == 0
    if product_dtype == torch.bfloat16 and fits and runs_kernels(dr_ND.device):
        return _by_kernels(dr_ND, bit_logits_NH, table_CD, float8)
    return logit_gradient_in_chunks(dr_ND, bit_logits_NH, table_CD, product_dtype)


def _by_kernels(dr_ND: Tensor, bit_logits_NH: Tensor, table_CD: Tensor, float8: bool) -> Tensor:
    from freetf_cli.kernels import mapper_triton as kernel

    p_NH, common_D, width = torch.sigmoid(bit_logits_NH.float()), common_row(table_CD), dr_ND.shape[1]
    if float8 and width % 16 == 0:
        table8_CD, table_scale_C = kernel.in_8_bits(table_CD, common_D)
        dr8_ND, scale_N = kernel.in_8_bits(dr_ND, torch.zeros_like(common_D))
        dl_NH = kernel.covariance(dr8_ND, table8_CD, p_NH, kernel.IN_8_BITS, table_scale_C=table_scale_C) * scale_N[:, None]
    else:
        dr_ND, table_CD = dr_ND.bfloat16(), kernel.centred(table_CD, common_D)
        if width <= WIDEST_FUSED:
            dl_NH = kernel.covariance(dr_ND, table_CD, p_NH, kernel.choose_tiles(width))
        else:
            dl_NH = torch.cat([kernel.covariance(dr_ND[part] @ table_CD.T, None, p_NH[part]) for part in _chunks(dr_ND, table_CD)])
    return dl_NH.to(bit_logits_NH.dtype)


def logit_gradient_in_chunks(dr_ND: Tensor, bit_logits_NH: Tensor, table_CD: Tensor, product_dtype: torch.dtype) -> Tensor:
    """`logit_gradient` without kernels: writes s = W · dr of a chunk of tokens to memory."""
    table_DC = (table_CD - common_row(table_CD)).to(product_dtype).T
    out_NH = torch.empty_like(bit_logits_NH)
    for part in _chunks(dr_ND, table_CD):
        out_NH[part] = _covariance(dr_ND[part].to(product_dtype) @ table_DC, bit_logits_NH[part])
    return out_NH


def _chunks(dr_ND: Tensor, table_CD: Tensor) -> list[slice]:
    """Tokens whose s are in memory together."""
    step = max(1, CHUNK_ELEMENTS[dr_ND.device.type] // table_CD.shape[0])
    return [slice(start, start + step) for start in range(0, dr_ND.shape[0], step)]


def common_row(table_CD: Tensor) -> Tensor:
    """An estimate of the mean row, [D]: the mean of 1,024 rows, one from each run of neighbours, at varying places in the runs."""
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
    """The probabilities of all 2^h values of h bits, [N, 2^h]."""
    g = p_Nh.new_ones(p_Nh.shape[0], 1)
    for h in range(p_Nh.shape[1]):
        p = p_Nh[:, h : h + 1]
        g = torch.cat((g * (1 - p), g * p), dim=1)
    return g


def _bits(count: int, like: Tensor) -> Tensor:
    """Bit h of every value of `count` bits, [2^count, count], in the dtype of `like`."""
    codes_C1 = torch.arange(2**count, device=like.device)[:, None]
    return ((codes_C1 >> torch.arange(count, device=like.device)) & 1).to(like.dtype)
