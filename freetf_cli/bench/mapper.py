"""Times and errors of the mapper's gradient on random numbers: as training computes it, and with s = W · dr in memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from freetf_cli.bench.timing import Effort, machine, replayed, timed
from freetf_cli.kernels import logit_gradient, runs_kernels
from freetf_cli.kernels.mapper import logit_gradient_in_chunks
from freetf_cli.records.bench import MapperBench, MapperRow

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
    w_DC, chunk, work_flops = table_CD.to(dtype).T, max(1, (1 << 28) >> bits), 2.0 * tokens * 2**bits * width

    def product() -> None:
        for dr_nD in torch.split(dr_ND, chunk):
            dr_nD @ w_DC

    alone = timed(replayed(product, device), effort)
    flops = work_flops / alone.median
    rows = [MapperRow("product W · dr alone, in chunks", alone, flops, flops / here.ceiling, None, 1.0)]
    done()
    ways: dict[str, Callable[[], Tensor]] = {
        "through memory, in chunks": lambda: logit_gradient_in_chunks(dr_ND, logits_NH, table_CD, dtype),
        "as in training": lambda: logit_gradient(dr_ND, logits_NH, table_CD),
    }
    if runs_kernels(device):
        ways["with latent.numerics.float8"] = lambda: logit_gradient(dr_ND, logits_NH, table_CD, True)
    for name, work in ways.items():
        took = timed(replayed(work, device), effort)
        flops, error = work_flops / took.median, (work()[:CHECKED].double() - exact_KH).norm() / exact_KH.norm()
        rows.append(MapperRow(name, took, flops, flops / here.ceiling, float(error), took.median / alone.median))
        done()
    return MapperBench(here, tokens, width, bits, rows)
