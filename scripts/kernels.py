"""Time the operations of freetf_cli/kernels beside what PyTorch has for the same, forward and backward, with each one's error.

    python scripts/kernels.py OUT.json            # on a GPU, about 3 minutes
    python scripts/kernels.py OUT.json --smoke    # tiny shapes on a CPU: a test of this script

The first way of a case is what the model takes; a ratio is its time over that of another way, so that 1.02 and less speaks for ours. The
ways of a case take turns, each as a CUDA graph. Errors are ‖x − exact‖ / ‖exact‖ with `exact` in float64: of the output, and the largest
of the gradients. A way that this torch lacks, or that fails, is listed with the reason. Results are in docs/performance.md.
"""

from __future__ import annotations

import argparse
import gc
import inspect
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from speed_worker import timed
from torch import Tensor

from freetf_cli import kernels
from freetf_cli.kernels.attention import reference_short_attention
from freetf_cli.kernels.convolution import reference_convolution
from freetf_cli.kernels.embedding import embed_one_hot
from freetf_cli.kernels.head_mix import reference_mix
from freetf_cli.kernels.rotary import reference_tables, rotate
from freetf_cli.model.context import document_block_mask

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
ROUNDS = 7
ROUND_SECONDS = 0.05
IGNORE = -100

Inputs = list[Tensor]
Function = Callable[..., Tensor]  # of the inputs


class AbsentError(Exception):
    """This torch, or this device, has no such way."""


@dataclass
class Case:
    """One operation at one shape.

    sets: inputs of equal shapes, used in turn, so that they do not all stay in the cache; the first `learned` of a set need a gradient.
    ways: functions of the inputs; the first is the model's. exact: the same by plain PyTorch, called with float64.
    """

    name: str
    sets: list[Inputs]
    learned: int
    ways: dict[str, Callable[[], Function]]
    exact: Function
    notes: dict[str, Any] = field(default_factory=dict)


def compiled(function: Function) -> Function:
    return torch.compile(function, dynamic=False, fullgraph=True) if CUDA else function


def drawn(*shape: int, dtype: torch.dtype = torch.bfloat16, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, device=DEVICE) * scale).to(dtype)


# Cross-entropy of a linear layer


def cross_entropy_cases(smoke: bool) -> Iterator[Case]:
    for tokens, width, vocabulary in [(64, 16, 50)] if smoke else [(8192, 1536, 131_072), (16_384, 768, 50_304)]:
        hidden = drawn(tokens, width, dtype=torch.float32)
        weight = drawn(vocabulary, width, dtype=torch.float32, scale=width**-0.5)
        targets = torch.randint(vocabulary, (tokens,), device=DEVICE)
        yield Case(
            f"cross-entropy {tokens:,} × {width} × {vocabulary:,}",
            [[hidden, weight, targets]],
            2,
            {
                "ours": lambda: autocast(lambda h, w, t: kernels.linear_cross_entropy(h, w, t, IGNORE)),
                "F.linear, F.cross_entropy compiled": lambda: autocast(plain_cross_entropy),
                "F.linear_cross_entropy compiled": lambda: autocast(library_cross_entropy(False)),
                "F.linear_cross_entropy in chunks": lambda: autocast(library_cross_entropy(True), compile_it=False),
            },
            plain_cross_entropy,
        )


def plain_cross_entropy(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    logits_NV = F.linear(hidden_ND, weight_VD)
    wide = torch.promote_types(logits_NV.dtype, torch.float32)
    return F.cross_entropy(logits_NV.to(wide), targets_N, ignore_index=IGNORE, reduction="sum")


def library_cross_entropy(in_chunks: bool) -> Function:
    if not hasattr(F, "linear_cross_entropy"):
        raise AbsentError(f"torch {torch.__version__} has no F.linear_cross_entropy")
    options = torch.nn.LinearCrossEntropyOptions() if in_chunks else None

    def run(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
        if in_chunks and hidden_ND.dtype == torch.float32:  # autocast does not reach into the operator
            hidden_ND, weight_VD = hidden_ND.bfloat16(), weight_VD.bfloat16()
        return F.linear_cross_entropy(hidden_ND, weight_VD, targets_N, reduction="sum", ignore_index=IGNORE, options=options)

    return run


def autocast(function: Function, compile_it: bool = True) -> Function:
    def run(*inputs: Tensor) -> Tensor:
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
            return function(*inputs)

    return compiled(run) if compile_it else run


# Rotary attention over short sequences


def short_attention_cases(smoke: bool) -> Iterator[Case]:
    shapes = [(2, 17, 2, 32)] if smoke else [(256, 65, 8, 32), (256, 65, 4, 64)]
    for sequences, length, heads, width in shapes:
        full = heads * width
        for causal in (True, False):
            rotary = reference_tables(torch.arange(length, device=DEVICE), width, 10_000.0)
            sets = [[drawn(sequences, length, 3 * full)] for _ in range(1 if smoke else 4)]
            shape = f"{sequences} × {length}, {heads} heads of {width}{', causal' if causal else ''}"
            yield Case(f"attention {shape}", sets, 1, short_ways(heads, causal, rotary), short_reference(heads, causal, rotary))


def short_ways(heads: int, causal: bool, rotary: kernels.Rotary) -> dict[str, Callable[[], Function]]:
    def ours(packed_BTP: Tensor) -> Tensor:
        return kernels.short_attention(packed_BTP, None, rotary, heads, causal)

    def on_heads(attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Function:
        """From the projections to what the output product reads, as ours; attend: of [B, M, T, E]."""

        def run(packed_BTP: Tensor) -> Tensor:
            q, k, v = (part.unflatten(-1, (heads, -1)) for part in packed_BTP.chunk(3, -1))
            return attend(*(x.transpose(1, 2) for x in (rotate(q, rotary), rotate(k, rotary), v))).transpose(1, 2).flatten(2)

        return compiled(run)

    def flex() -> Function:
        length = len(rotary[0])
        mask = block_mask(lambda b, h, q, k: q >= k, None, length) if causal else None
        return on_heads(lambda q, k, v: flex_attention()(q, k, v, block_mask=mask))

    return {
        "ours": lambda: ours if kernels.runs_kernels(DEVICE) else short_reference(heads, causal, rotary),
        "SDPA compiled": lambda: on_heads(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=causal)),
        "FlexAttention compiled": flex,
        "varlen_attn compiled": lambda: compiled(short_varlen(heads, causal, rotary)),
    }


def short_reference(heads: int, causal: bool, rotary: kernels.Rotary) -> Function:
    def run(packed_BTP: Tensor) -> Tensor:
        tables = tuple(table.to(packed_BTP.dtype) for table in rotary) if packed_BTP.dtype == torch.float64 else rotary
        return reference_short_attention(packed_BTP, None, (tables[0], tables[1]), heads, causal)

    return run


def short_varlen(heads: int, causal: bool, rotary: kernels.Rotary) -> Function:
    attend, length = varlen_attention(causal), len(rotary[0])

    def run(packed_BTP: Tensor) -> Tensor:
        ends = torch.arange(0, (len(packed_BTP) + 1) * length, length, device=DEVICE, dtype=torch.int32)
        q, k, v = (part.unflatten(-1, (heads, -1)) for part in packed_BTP.chunk(3, -1))
        flat = (x.flatten(0, 1) for x in (rotate(q, rotary), rotate(k, rotary), v))
        return attend(*flat, ends, length).view(len(packed_BTP), length, -1)

    return run


def varlen_attention(causal: bool, grouped: bool = False) -> Function:
    """(q, k, v [N, M, E], ends [sequences + 1], longest) → [N, M, E]; its arguments differ between versions of torch."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        raise AbsentError(f"torch {torch.__version__} has no varlen_attn") from None
    if not CUDA:
        raise AbsentError("varlen_attn needs CUDA")
    known = inspect.signature(varlen_attn).parameters
    named: dict[str, Any] = {"window_size": (-1, 0) if causal else (-1, -1)} if "window_size" in known else {"is_causal": causal}
    if "enable_gqa" in known:
        named["enable_gqa"] = grouped
    return lambda q, k, v, ends, longest: varlen_attn(q, k, v, ends, ends, longest, longest, **named)


def flex_attention() -> Function:
    if not CUDA:
        raise AbsentError("FlexAttention has no backward on a CPU")
    from torch.nn.attention.flex_attention import flex_attention as attend

    return attend


def block_mask(sees: Callable[..., Tensor], sequences: int | None, length: int) -> Any:
    flex_attention()
    from torch.nn.attention.flex_attention import create_block_mask

    return create_block_mask(sees, sequences, None, length, length, device=DEVICE)


# Attention within documents


def document_cases(smoke: bool) -> Iterator[Case]:
    """FlexAttention is what the model takes on CUDA, but for the last shape: in float32 it takes the dense mask."""
    shapes = [(4, 2048, 16, 16, 128), (4, 2048, 12, 12, 64), (4, 2048, 12, 2, 128), (64, 256, 8, 8, 32), (4, 2048, 12, 12, 64)]
    kinds = [*[torch.bfloat16] * 4, torch.float32]
    make_block_mask = compiled(block_lists)
    for (sequences, length, heads, key_heads, width), dtype in zip([(1, 64, 2, 2, 16)] if smoke else shapes, kinds, strict=False):
        begins_BT = torch.rand(sequences, length, device=DEVICE) < 4 / length  # five documents a row on average
        begins_BT[:, 0] = True
        ids_BT = begins_BT.cumsum(-1)
        sets = [[drawn(sequences, n, length, width, dtype=dtype) for n in (heads, key_heads, key_heads)]]
        case = Case(
            f"documents {sequences} × {length}, {heads} heads on {key_heads} of {width}{', float32' if dtype == torch.float32 else ''}",
            sets,
            3,
            document_ways(ids_BT, begins_BT, heads != key_heads),
            dense_attention(ids_BT, heads != key_heads),
        )
        case.notes["mask, ms"] = {
            "block": 1e3 * seconds(replayed(lambda ids=ids_BT: make_block_mask(ids))) if CUDA else None,
            "dense": 1e3 * seconds(lambda ids=ids_BT: dense_mask(ids)),
        }
        yield case


def document_ways(ids_BT: Tensor, begins_BT: Tensor, grouped: bool) -> dict[str, Callable[[], Function]]:
    def flex() -> Function:
        attend, mask = flex_attention(), document_block_mask(ids_BT, causal=True)
        return compiled(lambda q, k, v: attend(q, k, v, block_mask=mask, enable_gqa=grouped))

    def varlen() -> Function:
        attend = varlen_attention(causal=True, grouped=grouped)
        starts = begins_BT.flatten().nonzero()[:, 0]
        ends = torch.cat((starts, starts.new_tensor([begins_BT.numel()]))).int()
        longest = int(ends.diff().max())

        def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            flat = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))
            return attend(*flat, ends, longest).view(len(q), q.shape[2], q.shape[1], -1).transpose(1, 2)

        return run

    def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)

    return {
        "FlexAttention compiled": flex,
        "SDPA, dense mask": lambda: dense_attention(ids_BT, grouped),
        "varlen_attn": varlen,
        "SDPA, causal only (another result)": lambda: causal,
    }


def dense_attention(ids_BT: Tensor, grouped: bool) -> Function:
    mask = dense_mask(ids_BT)
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)


def dense_mask(ids_BT: Tensor) -> Tensor:
    length = ids_BT.shape[1]
    seen_TT = torch.ones(length, length, dtype=torch.bool, device=DEVICE).tril()
    return seen_TT & (ids_BT[:, None, :, None] == ids_BT[:, None, None])


def block_lists(ids_BT: Tensor) -> list[Tensor]:
    """What FlexAttention's kernels read of the model's block mask."""
    return [each for each in document_block_mask(ids_BT, causal=True).as_tuple() if isinstance(each, Tensor)]


# Attention weights, and a small embedding table


def other_cases(smoke: bool) -> Iterator[Case]:
    length = 33 if smoke else 1024
    x = drawn(1, 16, length, length).tril()
    kernel = drawn(16, 1, 6, 11, dtype=torch.float32)
    seen = torch.ones(length, length, dtype=torch.bool, device=DEVICE).tril()

    def convolved(x: Tensor, kernel: Tensor) -> Tensor:
        return reference_convolution(x * seen, kernel.to(x.dtype), 5) * seen

    ways: dict[str, Callable[[], Function]] = {
        "ours": lambda: lambda x, w: kernels.convolve_weights(x * seen, w.to(x.dtype), 5, True) * seen,
        "F.conv2d": lambda: convolved,
    }
    yield Case(f"convolution of 16 × {length}² by 6 × 11", [[x, kernel]], 2, ways, convolved)
    mix = drawn(1, 16, 16, dtype=torch.float32)

    def mixed(x: Tensor, mix: Tensor) -> Tensor:
        return reference_mix(x, mix.to(x.dtype)) * seen

    ways = {"ours": lambda: lambda x, w: kernels.mix_heads(x, w.to(x.dtype), True) * seen, "matmul": lambda: mixed}
    yield Case(f"mix of 16 heads, {length}²", [[x, mix]], 2, ways, mixed)
    tokens = torch.randint(29, (8, 5) if smoke else (256, 65), device=DEVICE)
    table = drawn(29, 256, dtype=torch.float32)
    ways = {"ours": lambda: embed_one_hot, "F.embedding": lambda: lambda w, t: F.embedding(t, w)}
    yield Case(f"embedding of {tokens.numel():,} tokens, 29 × 256", [[table, tokens]], 1, ways, lambda w, t: F.embedding(t, w))


# Measurement


def measure(case: Case) -> dict[str, Any]:
    """Times and errors of every way of a case."""
    torch.compiler.reset()
    dy = torch.randn_like(case.exact(*case.sets[0]).detach().float())
    exact = outcome(case.exact, [x.double() if x.is_floating_point() else x for x in case.sets[0]], case.learned, dy)
    if CUDA:
        torch.cuda.empty_cache()  # for the graphs, whose memory is their own
    rows: dict[str, dict[str, Any]] = {}
    calls: dict[str, Callable[[], object]] = {}
    for name, make in case.ways.items():
        try:
            function = make()
            got = outcome(function, case.sets[0], case.learned, dy)
            errors = [relative(ours, theirs) for ours, theirs in zip(got, exact, strict=True)]
            rows[name] = {"output_error": errors[0], "gradient_error": max(errors[1:])}
            calls[name] = replayed(lambda function=function: [outcome(function, each, case.learned, dy) for each in case.sets])
        except AbsentError as error:
            rows[name] = {"absent": str(error)}
        except Exception as error:  # a way that fails must not hide the others
            rows[name] = {"absent": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]}
    times = in_turns(calls)
    first = next(iter(case.ways))
    for name, rounds in times.items():
        ms = [1e3 * each / len(case.sets) for each in rounds]
        rows[name] |= {"median_ms": median(ms), "least_ms": min(ms), "most_ms": max(ms)}
        if first in times:
            rows[name]["ratio"] = median(ours / theirs for ours, theirs in zip(times[first], rounds, strict=True))
    return {"case": case.name, "ways": rows, **case.notes}


def outcome(function: Function, inputs: Inputs, learned: int, dy: Tensor) -> list[Tensor]:
    """The output and the gradients of the first inputs."""
    given = [x.detach().requires_grad_() if place < learned else x for place, x in enumerate(inputs)]
    y = function(*given)
    return [y.detach(), *torch.autograd.grad(y, given[:learned], dy.to(y.dtype))]


def relative(ours: Tensor, exact: Tensor) -> float:
    return float((ours.double() - exact).norm() / exact.norm())


def replayed(call: Callable[[], object]) -> Callable[[], object]:
    """The call as a CUDA graph; itself on a CPU, and where it cannot be captured."""
    for _ in range(3):
        call()
    if not CUDA:
        return call
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call()
    except RuntimeError as error:
        print("not captured:", str(error).splitlines()[0], file=sys.stderr)
        torch.cuda.synchronize()
        return call

    def replay(kept: Callable[[], object] = call) -> None:
        """kept: what the call closes over (a block mask) must outlive it, for the graph reads it."""
        graph.replay()

    return replay


def in_turns(calls: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Seconds of a call, a round of each way after the other."""
    repeats = {name: max(1, min(200, int(ROUND_SECONDS / max(1e-6, seconds(call))))) if CUDA else 1 for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS if CUDA else 2):
        for name, call in calls.items():
            times[name].append(seconds(call, repeats[name]))
    return times


def seconds(call: Callable[[], object], repeats: int = 1) -> float:
    """Mean seconds of a call after one that does not count."""
    call()
    return timed(call, repeats)


def lines(row: dict[str, Any]) -> Iterator[str]:
    yield row["case"] + (f"   mask: {row['mask, ms']}" if "mask, ms" in row else "")
    for name, way in row["ways"].items():
        if "absent" in way:
            yield f"  {name:36} {way['absent'][:90]}"
        else:
            ratio = f"{way['ratio']:7.3f}" if "ratio" in way else " " * 7
            yield f"  {name:36} {way['median_ms']:9.4f} {ratio} {way['output_error']:9.1e} {way['gradient_error']:9.1e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="JSON file")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--minutes", type=float, default=4.0, help="start no case after this time")
    parser.add_argument("--case", default="", help="measure this case alone, in this process")
    chosen = parser.parse_args()
    if chosen.case:
        case = next(case for case in all_cases(chosen.smoke) if case.name == chosen.case)
        chosen.out.write_text(json.dumps(measure(case), indent=1) + "\n")
        return
    begun = time.monotonic()
    name = torch.cuda.get_device_name() if CUDA else "cpu"
    found: dict[str, Any] = {"device": name, "torch": torch.__version__, "rows": []}
    for case_name in [case.name for case in all_cases(chosen.smoke) if chosen.only in case.name]:
        if time.monotonic() - begun < 60 * chosen.minutes:
            found["rows"].append(apart(case_name, smoke=chosen.smoke))
            chosen.out.write_text(json.dumps(found, indent=1) + "\n")
            print(f"{time.monotonic() - begun:4.0f} s  {case_name}", file=sys.stderr, flush=True)
    print(f"{'':38} {'ms':>9} {'ours/it':>7} {'error':>9} {'gradient':>9}")
    for row in found["rows"]:
        print("\n".join(lines(row)))


def all_cases(smoke: bool) -> Iterator[Case]:
    for cases in (short_attention_cases, document_cases, cross_entropy_cases, other_cases):
        torch.manual_seed(0)
        for case in cases(smoke):
            yield case
            del case
            gc.collect()


def apart(name: str, *, smoke: bool) -> dict[str, Any]:
    """Measure a case in a process of its own: a way that breaks the CUDA context must not end the others."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "case.json"
        command = [sys.executable, __file__, str(out), "--case", name, *(["--smoke"] if smoke else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            row: dict[str, Any] = json.loads(out.read_text())
            return row
        said = [line for line in done.stderr.splitlines() if "rror" in line] or ["no message"]
        return {"case": name, "ways": {"all": {"absent": said[-1][:200]}}}


if __name__ == "__main__":
    main()
