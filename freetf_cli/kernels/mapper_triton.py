"""The mapper's gradient in Triton: the covariance of Z's bits with s = dr · Wᵀ, which is never in memory, or is read once.

    dL_h = Σ_d G_d (U_h(d) − p_h) s_d = (signed_h − (2 p_h − 1) · total) / 2           (paper §3.4, equation 8)
    signed_h = Σ_d G_d (2 U_h(d) − 1) s_d,  total = Σ_d G_d s_d

A program computes one tile of tokens. It loops over tiles of s. A code is d = j · 2^low + i, and tile j has the codes that share
their high bits, so G_d = high_j · low_i. low [tokens, 2^low] stays in registers; high_j is a product of two numbers from small tables.
All sums over i are one narrow product (low · s) @ signs: column h < low has the sign of bit h of i; the other columns are 1 and get the
sign of their bit of j afterwards. Signs are exact in bfloat16, and one rounding of low · s serves all columns, so that what cancels
between `signed` and `total` cancels exactly.

Why: at 16,640 tokens, D = 256 and H = 16, s is 2.2 GB to write and to read. 7.20 ms through memory became 1.17 on an H100, where the
product alone takes 1.19 (docs/performance.md, "the mapper's gradient"). For D > 768 a library's product to memory and `covariance` of it
are faster: 15.3 → 11.0 ms at 32,768 tokens and D = 1536 on an H200; in e4m3, with a scale for each row, it takes 7.1.

Products in bfloat16 or e4m3, sums in float32.

Shapes: N tokens, H bits (8 … 31), C codes, D width; M tokens of a tile, I = 2^low codes of a tile, J tiles of codes, Q sums, one a bit.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor


class Tiles(NamedTuple):
    """Tile sizes. columns: of W at a time. resident: dr's tile is loaded once, in its whole width; otherwise with each part of W.

    splits: programs that share a tile of tokens, each with a part of the codes; a power of two. None: enough to fill the GPU.
    """

    tokens: int
    low: int
    columns: int
    warps: int
    stages: int
    resident: bool = False
    splits: int | None = None


IN_8_BITS = Tiles(tokens=64, low=7, columns=128, warps=4, stages=4)  # two programs on a multiprocessor: one sums, one multiplies
FROM_MEMORY = Tiles(tokens=64, low=7, columns=0, warps=4, stages=4, splits=16)  # several programs on each wait for memory together


def choose_tiles(width: int) -> Tiles:
    """Tiles for a product in bfloat16. By shape, not by timing: a CUDA graph can be captured, and all runs sum in the same order.

    Tiles of W beside a resident dr are small, so that four fit: the pipeline asks for the next only after the sums of the last.
    """
    if 16 <= width <= 256 and width & (width - 1) == 0:
        return Tiles(tokens=128, low=6, columns=width, warps=8, stages=4, resident=True)
    return Tiles(tokens=128, low=7, columns=128, warps=8, stages=3)


def covariance(
    dr_ND: Tensor, table_CD: Tensor | None, p_NH: Tensor, tiles: Tiles = FROM_MEMORY, table_scale_C: Tensor | None = None
) -> Tensor:
    """dL [N, H] float32 of s = dr · tableᵀ, or with table None of s = dr; p: sigmoid of the logits, float32.

    dr and the table have the same dtype, and rows that are multiples of 16 bytes. table_scale_C: a factor for each row of the table.
    """
    tokens, bits = p_NH.shape
    dr_ND, p_NH = _aligned(dr_ND), p_NH.contiguous()
    low = min(tiles.low, bits - 1)
    highs, grid_m, mid = 2 ** (bits - low), triton.cdiv(tokens, tiles.tokens), (bits - low) // 2
    splits = min(tiles.splits, highs) if tiles.splits else _splits(grid_m, highs, dr_ND.device)
    rows = 2**mid + highs // 2**mid
    factors_RN = p_NH.new_empty(rows, tokens)
    _factors[(triton.cdiv(tokens, 128), triton.cdiv(rows, 16))](p_NH, factors_RN, tokens, rows, bits, low, mid, 128, 16)
    sums = 16 if bits <= 16 else 32
    parts_SPNQ = p_NH.new_empty(splits, 2, tokens, sums)
    columns = 2**low if table_CD is None else tiles.columns
    dr = TensorDescriptor.from_tensor(dr_ND, [tiles.tokens, columns])
    table = dr if table_CD is None else TensorDescriptor.from_tensor(_aligned(table_CD), [2**low, columns])
    scale_C = p_NH.new_empty(0) if table_scale_C is None else table_scale_C
    _sums[(grid_m, splits)](
        *(dr, table, p_NH, factors_RN, scale_C, parts_SPNQ),
        *(tokens, highs // splits, bits, dr_ND.shape[1], low, mid, tiles.tokens, columns, sums),
        *(tiles.resident, table_CD is None, table_scale_C is not None),
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    signed_NQ, total_NQ = parts_SPNQ.sum(0).unbind(0)
    return torch.addcmul(signed_NQ[:, :bits], 1 - 2 * p_NH, total_NQ[:, -1:]) / 2  # the last column is never one of low


def _aligned(x: Tensor) -> Tensor:
    """Contiguous, at a multiple of 16 bytes: the hardware's block loads need it."""
    x = x.contiguous()
    return x if x.data_ptr() % 16 == 0 else x.clone()


def _splits(grid_m: int, highs: int, device: torch.device) -> int:
    """The fewest parts of the codes, a power of two, within 3 % of the best use of the GPU's multiprocessors."""
    if device.type != "cuda":
        return 1
    units = torch.cuda.get_device_properties(device).multi_processor_count
    use = {n: grid_m * n / (triton.cdiv(grid_m * n, units) * units) for n in (1, 2, 4, 8, 16) if n <= highs}
    return min(n for n, share in use.items() if share >= max(use.values()) - 0.03)


def centred(table_CD: Tensor, common_D: Tensor) -> Tensor:
    """The table minus a common row, in bfloat16, in one pass; PyTorch's own kernel goes one number at a time here."""
    return _centred(table_CD, common_D, torch.bfloat16)[0]


def in_8_bits(x_ND: Tensor, common_D: Tensor) -> tuple[Tensor, Tensor]:
    """Rows minus a common row, in e4m3, and the scale to multiply each row with, [N] float32."""
    return _centred(x_ND, common_D, torch.float8_e4m3fn)


def _centred(x_ND: Tensor, common_D: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    (rows, width), columns, scaled = x_ND.shape, triton.next_power_of_2(x_ND.shape[1]), dtype == torch.float8_e4m3fn
    out_ND = torch.empty_like(x_ND, dtype=dtype, memory_format=torch.contiguous_format)
    scale_N = x_ND.new_empty(rows if scaled else 0, dtype=torch.float32)
    at_once = max(1, 4096 // columns)
    _centre[(triton.cdiv(rows, at_once),)](x_ND.contiguous(), common_D, out_ND, scale_N, rows, width, at_once, columns, scaled)
    return out_ND, scale_N


@triton.jit
def _centre(x, common, out, scales, N, width, ROWS: tl.constexpr, WIDTH: tl.constexpr, SCALED: tl.constexpr):
    """x − common of some rows; SCALED: divided by a scale for each row, which makes the row's largest number that of e4m3."""
    rows, columns = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    at = rows[:, None] * width + columns[None, :]
    inside = (rows < N)[:, None] & (columns < width)[None, :]
    mean = tl.load(common + columns, mask=columns < width, other=0.0).to(tl.float32)
    centred = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) - mean[None, :]
    if SCALED:
        scale = tl.maximum(tl.max(tl.where(inside, tl.abs(centred), 0.0), 1), 1e-30) / 448  # the largest number of e4m3
        tl.store(scales + rows, scale, mask=rows < N)
        centred = centred / scale[:, None]
    tl.store(out + at, centred.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _factors(p_NH, factors_RN, N, R, H: tl.constexpr, LOW: tl.constexpr, MID: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr):
    """The two factors of high_j: 2^MID rows for the lower MID of j's bits, and one row for each value of the others."""
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    r = tl.program_id(1) * BR + tl.arange(0, BR)
    of_mid = r < 2**MID
    j = tl.where(of_mid, r, (r - 2**MID) << MID)
    factor_RN = tl.full((BR, BN), 1.0, tl.float32)
    for h in tl.static_range(0, H - LOW):
        p_N = tl.load(p_NH + n.to(tl.int64) * H + LOW + h, mask=n < N, other=0.0)
        of_bit_RN = tl.where(((j >> h) & 1)[:, None] == 1, p_N[None, :], 1 - p_N[None, :])
        factor_RN *= tl.where((of_mid == (h < MID))[:, None], of_bit_RN, 1.0)
    tl.store(factors_RN + r.to(tl.int64)[:, None] * N + n[None, :], factor_RN, mask=(r < R)[:, None] & (n < N)[None, :])


@triton.jit
def _sums(
    dr_ND, table_CD, p_NH, factors_RN, table_scale_C, parts_SPNQ,
    N, J: tl.constexpr, H: tl.constexpr, D: tl.constexpr, LOW: tl.constexpr, MID: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
    Q: tl.constexpr, RESIDENT: tl.constexpr, GIVEN: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """signed and total of a tile of tokens, over this program's J tiles of codes. GIVEN: dr_ND is s, [N, C]."""
    I: tl.constexpr = 2**LOW  # noqa: E741
    n0 = tl.program_id(0) * BM
    n = n0 + tl.arange(0, BM)
    i = tl.arange(0, I)
    q = tl.arange(0, Q)
    kind: tl.constexpr = tl.bfloat16 if table_CD.dtype == tl.float8e4nv else table_CD.dtype

    low_MI = tl.full((BM, I), 1.0, tl.float32)
    for h in tl.static_range(0, LOW):
        p_M = tl.load(p_NH + n.to(tl.int64) * H + h, mask=n < N, other=0.0)
        low_MI *= tl.where(((i >> h) & 1)[None, :] == 1, p_M[:, None], 1 - p_M[:, None])
    if SCALED:
        low_MI = low_MI.to(kind)  # half the registers, for tiles that are twice as large
    signs_IQ = tl.where((q < LOW)[None, :], 2.0 * ((i[:, None] >> q[None, :]) & 1) - 1, 1.0).to(kind)

    if RESIDENT:
        dr_MK = dr_ND.load([n0, 0])
    signed_MQ = tl.zeros((BM, Q), tl.float32)
    total_MQ = tl.zeros((BM, Q), tl.float32)
    split = tl.program_id(1)
    for step in tl.range(0, J, flatten=not (RESIDENT or GIVEN)):
        j = split * J + step
        mid_M = tl.load(factors_RN + (j % 2**MID).to(tl.int64) * N + n, mask=n < N, other=0.0)
        top_M = tl.load(factors_RN + (2**MID + j // 2**MID).to(tl.int64) * N + n, mask=n < N, other=0.0)
        if GIVEN:
            s_MI = dr_ND.load([n0, j * I]).to(tl.float32)
        elif RESIDENT:
            s_MI = tl.dot(dr_MK, table_CD.load([j * I, 0]).T, input_precision="ieee")
        else:
            s_MI = tl.zeros((BM, I), tl.float32)
            for k in range(0, D, BK):
                s_MI = tl.dot(dr_ND.load([n0, k]), table_CD.load([j * I, k]).T, s_MI, input_precision="ieee")
        if SCALED:
            s_MI *= tl.load(table_scale_C + j * I + i)[None, :]
        sums_MQ = tl.dot((low_MI.to(tl.float32) * s_MI).to(kind), signs_IQ, input_precision="ieee") * (mid_M * top_M)[:, None]
        signs_Q = tl.where(q < LOW, 1.0, 2.0 * ((j >> tl.maximum(q - LOW, 0)) & 1) - 1)
        signed_MQ += sums_MQ * signs_Q[None, :]
        total_MQ += sums_MQ

    tl.store(parts_SPNQ + (2 * split * N + n).to(tl.int64)[:, None] * Q + q[None, :], signed_MQ, mask=(n < N)[:, None])
    tl.store(parts_SPNQ + ((2 * split + 1) * N + n).to(tl.int64)[:, None] * Q + q[None, :], total_MQ, mask=(n < N)[:, None])
