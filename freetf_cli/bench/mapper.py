"""Times and errors of the mapper's gradient on random numbers: as training computes it, and with s = W · dr in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from freetf_cli.bench.timing import Effort, machine, replayed, timed
from freetf_cli.kernels import logit_gradient, runs_kernels
from freetf_cli.kernels.mapper import logit_gradient_in_chunks
from freetf_cli.records.bench import MapperBench, MapperRow, Timing

CHECKED = 64  # tokens whose gradient is also computed in float64


def bench_mapper(
    tokens: int, width: int, bits: int, device: torch.device, effort: Effort, done: Callable[[], None] = lambda: None
) -> MapperBench:
    """Measure each way to the gradient for dr [tokens, width] and H = bits. Ratios are to the product W · dr alone."""
    here = machine(device, "auto", effort)
    dtype = getattr(torch, here.precision)
    dr_ND = torch.randn(tokens, width, device=device, dtype=dtype)
    logits_NH = torch.randn(tokens, bits, device=device, dtype=dtype)
    table_CD = torch.randn(2**bits, width, device=device)
    exact_KH = logit_gradient(dr_ND[:CHECKED].double(), logits_NH[:CHECKED].double(), table_CD.double())
    work_flops = 2.0 * tokens * 2**bits * width
    rows: list[MapperRow] = []
    product: Timing | None = None
    for name, work in _ways(dr_ND, logits_NH, table_CD):
        took = timed(replayed(work, device), effort)
        product = product or took
        flops, ratio = work_flops / took.median, took.median / product.median
        rows.append(MapperRow(name, took, flops, flops / here.ceiling, _error(work(), exact_KH), ratio))
        done()
    return MapperBench(here, tokens, width, bits, rows)


def _ways(dr_ND: Tensor, logits_NH: Tensor, table_CD: Tensor) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    chunk = max(1, (1 << 28) // len(table_CD))
    w_DC = table_CD.to(dr_ND.dtype).T

    def product() -> Tensor:
        for start in range(0, len(dr_ND), chunk):
            s_NC = dr_ND[start : start + chunk] @ w_DC
        return s_NC

    yield "product W · dr alone, in chunks", product
    yield "through memory, in chunks", lambda: logit_gradient_in_chunks(dr_ND, logits_NH, table_CD, dr_ND.dtype)
    yield "as in training", lambda: logit_gradient(dr_ND, logits_NH, table_CD)
    if runs_kernels(dr_ND.device):
        yield "with latent.numerics.float8", lambda: logit_gradient(dr_ND, logits_NH, table_CD, True)


def _error(computed_NH: Tensor, exact_KH: Tensor) -> float | None:
    """Relative error in norm; None for the product, which is no gradient."""
    if computed_NH.shape[1:] != exact_KH.shape[1:]:
        return None
    return float((computed_NH[:CHECKED].double() - exact_KH).norm() / exact_KH.norm())
