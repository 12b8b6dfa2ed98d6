"""The product of one row with a weight in Triton: generation of one sequence reads every weight once a token, and does little else.

A library's product is cut for many rows, and reads the weight at half the speed that memory has. Here a program reads some rows of the
weight in long pieces, enough of them on the way at once.

Shapes: I inputs, O outputs; BO of them and BI inputs at a time.
"""

import triton
import triton.language as tl
from torch import Tensor


def row_product(x_I: Tensor, weight_OI: Tensor) -> Tensor:
    """weight · x, [O], in x's type, summed in float32."""
    outputs, inputs = weight_OI.shape
    out_O = x_I.new_empty(outputs)
    rows = 8 if outputs >= 8192 else 2  # programs for every multiprocessor
    columns = min(4096 // rows, triton.next_power_of_2(inputs))
    _row_product[(triton.cdiv(outputs, rows),)](x_I, weight_OI, out_O, outputs, weight_OI.stride(0), inputs, rows, columns, num_warps=4)
    return out_O


@triton.jit
def _row_product(x_I, weight_OI, out_O, O, stride, I: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr):  # noqa: E741
    o = tl.program_id(0) * BO + tl.arange(0, BO)
    i = tl.arange(0, BI)
    row_O1 = weight_OI + o.to(tl.int64)[:, None] * stride
    sums_OI = tl.zeros((BO, BI), tl.float32)
    for start in range(0, I, BI):
        inside = start + i < I
        x = tl.load(x_I + start + i, mask=inside, other=0.0).to(tl.float32)
        w = tl.load(row_O1 + start + i[None, :], mask=(o < O)[:, None] & inside[None, :], other=0.0).to(tl.float32)
        sums_OI += w * x[None, :]
    tl.store(out_O + o, tl.sum(sums_OI, 1).to(out_O.dtype.element_ty), mask=o < O)
