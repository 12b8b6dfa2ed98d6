"""Time and error of the attention kernel for short sequences on a GPU, beside PyTorch's attention.

    python scripts/attention_time.py ATTENTION.json

Microseconds of one call, out of a CUDA graph of ten that is replayed fifty times. Errors are relative to float64: of the output, of dq, dk
and dv. PyTorch's is attention alone, without the rotation and the changes of layout that the kernel does too.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from freetf_cli.kernels import rotary_tables, rotate
from freetf_cli.kernels.attention_triton import attend, attend_backward

# sequences, positions, heads, head width
SHAPES = ((256, 65, 8, 32), (256, 65, 4, 64), (128, 65, 4, 32), (256, 64, 8, 32), (128, 128, 8, 32), (128, 128, 4, 64))


def microseconds(call: Callable[[], Any]) -> float:
    for _ in range(5):
        call()
    graph, begin, end = torch.cuda.CUDAGraph(), torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    with torch.cuda.graph(graph):
        for _ in range(10):
            call()
    graph.replay()
    begin.record()
    for _ in range(50):
        graph.replay()
    end.record()
    torch.cuda.synchronize()
    return round(1e3 * begin.elapsed_time(end) / 500, 1)


def reference(parts: tuple[Tensor, ...], dy: Tensor, shape: tuple[int, int, int, int], causal: bool) -> list[Tensor]:
    """Output and gradients in float64."""
    sequences, length, heads, width = shape
    wide = [part.double().requires_grad_() for part in parts]
    cos, sin = (table.double() for table in rotary_tables(torch.arange(length, device=dy.device), width, 1e4))
    q, k, v = (part.view(sequences, length, heads, width) for part in wide)
    q, k, v = (part.transpose(1, 2) for part in (rotate(q, (cos, sin)), rotate(k, (cos, sin)), v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2)
    out.backward(dy.double())
    return [out.detach(), *(part.grad for part in wide)]  # type: ignore[list-item]


def measure(shape: tuple[int, int, int, int], causal: bool) -> dict[str, Any]:
    sequences, length, heads, width = shape
    torch.manual_seed(0)
    packed = torch.randn(sequences, length, 3 * heads * width, device="cuda", dtype=torch.bfloat16)
    dy = torch.randn(sequences, length, heads * width, device="cuda", dtype=torch.bfloat16)
    cos, sin = rotary_tables(torch.arange(length, device="cuda"), width, 1e4)
    want = reference(packed.chunk(3, -1), dy, shape, causal)
    got = attend(packed, None, cos, sin, heads, causal), *attend_backward(dy, packed, None, cos, sin, heads, causal)[0].chunk(3, -1)
    q, k, v = (part.reshape(sequences, length, heads, width).transpose(1, 2).contiguous() for part in packed.chunk(3, -1))
    return {
        "shape": shape,
        "causal": causal,
        "forward": microseconds(lambda: attend(packed, None, cos, sin, heads, causal)),
        "backward": microseconds(lambda: attend_backward(dy, packed, None, cos, sin, heads, causal)),
        "sdpa_forward": microseconds(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=causal)),
        "errors": [float((ours.double() - theirs).norm() / theirs.norm()) for ours, theirs in zip(got, want, strict=True)],
    }


def main(target: str) -> None:
    rows = []
    for shape in SHAPES:
        for causal in (True, False):
            rows.append(measure(shape, causal))
            print(rows[-1], flush=True)
    about = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "rows": rows}
    Path(target).write_text(json.dumps(about, indent=0), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
