"""The mapper's gradient in Triton: s = dr · Wᵀ, [tokens, C], never leaves the chip, or is read from memory once (paper §3.4, eq. 8).

What `latent.logit_gradient` computes by way of s in memory, 2.2 GB each way at 16,640 tokens and H = 16, a program here computes for a
tile of tokens from one tile of s after the other. A code is d = j · 2^low + i: tile j holds the codes that share their high bits, so
that G_d = high_j · low_i; low [tokens, 2^low] stays in registers, and high_j is itself a product of two numbers from small tables.
With ±1 for a set or clear bit,

    dL_h = Σ_d G_d (U_h(d) − p_h) s_d = (signed_h − (2 p_h − 1) · total) / 2
    signed_h = Σ_d G_d (2 U_h(d) − 1) s_d        total = Σ_d G_d s_d

and all sums over i are one narrow product (low · s) @ signs: column h < low has the sign of bit h of i, the others are 1, and take
the sign of their bit of j after it. The signs are exact in bfloat16, and one rounding of low · s serves all columns, so what
cancels between `signed` and `total` cancels exactly.

Of a wide model a library's product is so much faster than this kernel's own that s is better written by it to memory, for some tokens at
a time, and read here. In 8-bit numbers (e4m3) the kernel's own product is faster than either; every row of dr and of W has a scale of its
own, and what is left of precision is 3 bits.

Shapes: N tokens, H bits, C codes, D width; M tokens of a tile, I = 2^low codes of a tile, K columns of W at a time, Q sums, one a bit;
R rows of the factors of high_j.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor


class Tiles(NamedTuple):
    """How the work is cut. resident: the tile of dr, all of its width, is loaded once; else a part with each part of W."""

    tokens: int
    low: int
    columns: int
    warps: int
    stages: int
    resident: bool


IN_8_BITS = Tiles(
    tokens=64, low=7, columns=128, warps=4, stages=4, resident=False
)  # two programs a multiprocessor: one sums, one multiplies
GIVEN = Tiles(tokens=64, low=7, columns=0, warps=4, stages=4, resident=False)  # of s in memory
GIVEN_SPLITS = 16  # enough programs for several on every multiprocessor, whose loads wait for memory beside each other


def choose_tiles(width: int) -> Tiles:
    """By shape and not by timing at run time, so that a CUDA graph can be captured and two runs use the same order of sums.

    Resident tiles of W are small, so that four fit beside dr: the pipeline asks for the next only after an epilogue.
    """
    if 16 <= width <= 256 and width & (width - 1) == 0:
        return Tiles(tokens=128, low=6, columns=width, warps=8, stages=4, resident=True)
    return Tiles(tokens=128, low=7, columns=128, warps=8, stages=3, resident=False)


def fused_logit_gradient(dr_ND: Tensor, p_NH: Tensor, table_CD: Tensor, tiles: Tiles | None = None, splits: int | None = None) -> Tensor:
    """dL [N, H] in float32 from dr and the centred table, both of one type, and p = sigmoid(logits) in float32; H from 8 to 31.

    Rows of dr and of the table must be multiples of 16 bytes. `tiles` and `splits` (programs that share a tile of tokens, each with its
    part of the codes, a power of two) are chosen by shape unless given.
    """
    tiles = tiles or choose_tiles(dr_ND.shape[1])
    return launch(_aligned(dr_ND), _aligned(table_CD), p_NH, tiles, splits, p_NH.new_empty(0))


def logit_gradient_in_8_bits(dr_ND: Tensor, p_NH: Tensor, table_CD: Tensor, common_D: Tensor) -> Tensor:
    """The same from numbers of any type and a table that is not centred, by a product in e4m3."""
    table8_CD, table_scale_C = in_8_bits(table_CD, common_D)
    dr8_ND, scale_N = in_8_bits(dr_ND, torch.zeros_like(common_D))
    return launch(dr8_ND, table8_CD, p_NH, IN_8_BITS, None, table_scale_C) * scale_N[:, None]


def covariance(s_NC: Tensor, p_NH: Tensor, tiles: Tiles = GIVEN, splits: int | None = GIVEN_SPLITS) -> Tensor:
    """The same from s in memory."""
    s_NC = _aligned(s_NC)
    return launch(s_NC, None, p_NH, tiles, splits, p_NH.new_empty(0))


def launch(dr_ND: Tensor, table_CD: Tensor | None, p_NH: Tensor, tiles: Tiles, splits: int | None, table_scale_C: Tensor) -> Tensor:
    """table_CD: None where the first argument is s. table_scale_C: of the table's rows; empty: 1."""
    (tokens, bits), width = p_NH.shape, dr_ND.shape[1]
    low = min(tiles.low, bits - 1)
    p_NH = p_NH.contiguous()
    highs, grid_m = 2 ** (bits - low), triton.cdiv(tokens, tiles.tokens)
    splits = min(splits, highs) if splits else _splits(grid_m, highs, dr_ND.device)
    sums = 16 if bits <= 16 else 32
    mid = (bits - low) // 2
    rows = 2**mid + highs // 2**mid
    factors_RN = p_NH.new_empty(rows, tokens)
    _factors[(triton.cdiv(tokens, 128), triton.cdiv(rows, 16))](p_NH, factors_RN, tokens, rows, bits, low, mid, 128, 16)
    parts_SPNQ = p_NH.new_empty(splits, 2, tokens, sums)
    columns = tiles.columns if table_CD is not None else 2**low
    of_dr = TensorDescriptor.from_tensor(dr_ND, [tiles.tokens, columns])
    _sums[(grid_m, splits)](
        of_dr,
        of_dr if table_CD is None else TensorDescriptor.from_tensor(table_CD, [2**low, columns]),
        p_NH,
        factors_RN,
        table_scale_C,
        parts_SPNQ,
        tokens,
        highs // splits,
        bits,
        width,
        low,
        mid,
        tiles.tokens,
        columns,
        sums,
        tiles.resident,
        table_CD is None,
        len(table_scale_C) > 0,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    signed_NQ, total_NQ = parts_SPNQ.sum(0).unbind(0)
    return torch.addcmul(signed_NQ[:, :bits], 1 - 2 * p_NH, total_NQ[:, -1:]) / 2  # the last column is never one of low


def _aligned(x: Tensor) -> Tensor:
    """Contiguous from a multiple of 16 bytes on, as the hardware's block loads want it."""
    x = x.contiguous()
    return x if x.data_ptr() % 16 == 0 else x.clone()


def _splits(grid_m: int, highs: int, device: torch.device) -> int:
    """The fewest parts of the codes, a power of two, that come within 3 % of the best use of the GPU's multiprocessors."""
    if device.type != "cuda":
        return 1
    units = torch.cuda.get_device_properties(device).multi_processor_count
    use = {n: grid_m * n / (triton.cdiv(grid_m * n, units) * units) for n in (1, 2, 4, 8, 16) if n <= highs}
    return min(n for n, share in use.items() if share >= max(use.values()) - 0.03)


def centred(table_CD: Tensor, common_D: Tensor) -> Tensor:
    """The table less what its rows have in common, in bfloat16, in one pass; PyTorch's own reads and writes a number at a time here."""
    out_CD = torch.empty_like(table_CD, dtype=torch.bfloat16, memory_format=torch.contiguous_format)
    (codes, width), columns = table_CD.shape, triton.next_power_of_2(table_CD.shape[1])
    rows = max(1, 4096 // columns)
    _centred[(triton.cdiv(codes, rows),)](table_CD.contiguous(), common_D, out_CD, codes, width, rows, columns)
    return out_CD


@triton.jit
def _centred(table, common, out, codes, width, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    rows, columns = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    at = rows[:, None] * width + columns[None, :]
    inside = (rows < codes)[:, None] & (columns < width)[None, :]
    mean = tl.load(common + columns, mask=columns < width, other=0.0)
    tl.store(out + at, (tl.load(table + at, mask=inside) - mean[None, :]).to(tl.bfloat16), mask=inside)


def in_8_bits(x_ND: Tensor, common_D: Tensor) -> tuple[Tensor, Tensor]:
    """Rows less what they have in common, in e4m3, and what to multiply each by, [N] float32: its largest number is 448."""
    (rows, width), columns = x_ND.shape, triton.next_power_of_2(x_ND.shape[1])
    out_ND = torch.empty_like(x_ND, dtype=torch.float8_e4m3fn, memory_format=torch.contiguous_format)
    scale_N = x_ND.new_empty(rows, dtype=torch.float32)
    at_once = max(1, 4096 // columns)
    _in_8_bits[(triton.cdiv(rows, at_once),)](x_ND.contiguous(), common_D, out_ND, scale_N, rows, width, at_once, columns)
    return out_ND, scale_N


@triton.jit
def _in_8_bits(x, common, out, scales, N, width, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    rows, columns = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    at = rows[:, None] * width + columns[None, :]
    inside = (rows < N)[:, None] & (columns < width)[None, :]
    mean = tl.load(common + columns, mask=columns < width, other=0.0).to(tl.float32)
    centred = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) - mean[None, :]
    scale = tl.maximum(tl.max(tl.where(inside, tl.abs(centred), 0.0), 1), 1e-30) / 448
    tl.store(scales + rows, scale, mask=rows < N)
    tl.store(out + at, (centred / scale[:, None]).to(tl.float8e4nv), mask=inside)


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
    dr_ND,
    table_CD,
    p_NH,
    factors_RN,
    table_scale_C,
    parts_SPNQ,
    N,
    J: tl.constexpr,
    H: tl.constexpr,
    D: tl.constexpr,
    LOW: tl.constexpr,
    MID: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    Q: tl.constexpr,
    RESIDENT: tl.constexpr,
    GIVEN: tl.constexpr,
    SCALED: tl.constexpr,
):
    """signed and total of a tile of tokens, over this program's J of the j's. GIVEN: dr_ND is s, [N, C]."""
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
