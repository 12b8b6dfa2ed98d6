"""What training needs on each of N GPUs, for each way of spreading it over them: memory, bytes sent, and how much of that can be hidden.

    none    one GPU has everything
    ddp     every GPU has everything; gradients are summed by an all-reduce in the last part's backward
    fsdp    parameters, gradients and optimizer state are sharded over all GPUs (FSDP2): a unit's parameters are all-gathered before the
            unit computes, its gradients reduce-scattered after
    hsdp    fsdp within a node of 8 GPUs, an all-reduce of each shard's gradients across nodes

A unit is a block or several small ones, the encoder, the post-sampler's table, or the root: embedding, norm and lm_head. Master weights,
gradients and AdamW's two moments are float32. P is the number of parameters, U those of the root, which are gathered in float32, s the
bytes of another gathered parameter (2 in bf16, else 4), S the GPUs that share one copy, R the copies, and K `train.grad_accum_steps`, the
parts of a batch.

Memory, in bytes. States take 16 P / S. fsdp gathers the root, which stays gathered from a forward to the end of its backward, and two
other units, one of them in advance; without resharding after the forward, all P. Unsharded gradients, in float32, are those of two units.
Where K > 1 FSDP2 sums the gradients of the parts before it reduces them: they are a whole float32 copy, 4 P. DDP's buckets hold its
gradients, and exist in the forward too. With CPU offload the states are in host memory.

Bytes that each GPU sends in a step, by ring algorithms:

    all-gather or reduce-scatter of b bytes over S GPUs    (S − 1) / S · b
    all-reduce of b bytes over R GPUs                      2 (R − 1) / R · b

    ddp     all-reduce of 4 P over N
    fsdp    K times an all-gather of 4 U + s (P − U) (forward) and of s (P − U) (backward, none without resharding); a reduce-scatter of 4 P
    hsdp    the same over the S GPUs of a node, and an all-reduce of 4 P / S over the R nodes

CPU offload copies the float32 shard to the GPU before each all-gather, and the gradients' shard back.

Time. Within a node a ring runs at the speed of NVLink. A ring through several nodes enters each of them once, and NCCL makes as many
rings as a node has network cards, one for each GPU: together they run at g times a card's speed, where the ring has g GPUs in each node.
Latency is not counted. A collective is hidden as far as it takes no longer than the pass that it overlaps: the forward or the backward of
a part.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import nlargest
from typing import Literal

import torch
from torch import nn

from freetf_cli.config.recipe import Recipe
from freetf_cli.errors import InputError
from freetf_cli.latent.build import build_model
from freetf_cli.model.decoder import Decoder
from freetf_cli.records.plan import Plan, Spread, SpreadRow
from freetf_cli.runs.plan import Checkpointing, beyond_gradients, checkpointing_of, count

NODE = 8  # GPUs
UNIT = 150_000_000  # parameters: smaller blocks are gathered together until they have as many (docs/distributed.md)
H200_MEMORY = 141e9  # bytes
H200_PEAK = {"bf16": 989e12, "fp32": 67e12}  # FLOP/s, dense
PEAK_SHARE = 0.6  # that a step is assumed to reach
NVLINK, INFINIBAND, PCIE = 450e9, 50e9, 64e9  # bytes per second and GPU, in one direction: NVLink 4, 400 Gb/s, PCIe 5.0 × 16
UNITS = {"MB": 1e6, "GB": 1e9, "TB": 1e12, "MIB": 2.0**20, "GIB": 2.0**30, "TIB": 2.0**40}


@dataclass(frozen=True)
class Way:
    """A way of spreading the work: `replicas` copies of the states, each sharded over `shards` GPUs."""

    mode: Literal["none", "ddp", "fsdp", "hsdp"]
    shards: int = 1
    replicas: int = 1
    reshard: bool = True
    offload: bool = False

    @property
    def gathers(self) -> bool:
        return self.mode in ("fsdp", "hsdp")


@dataclass(frozen=True)
class Transfer:
    """Bytes that a GPU sends, at a rate in bytes per second."""

    size: float
    rate: float
    to_host: bool = False


@dataclass(frozen=True)
class Pass:
    """A forward or backward pass of one part of the batch: how often a step has it, and how long it takes in seconds."""

    times: int
    computation: float
    transfers: Sequence[Transfer]

    @property
    def communication(self) -> float:
        return sum(one.size / one.rate for one in self.transfers)


def spread(
    recipe: Recipe,
    plan: Plan,
    gpus: int,
    gpu_memory: float = H200_MEMORY,
    checkpointing: Sequence[Checkpointing] = ("none", "full"),
) -> Spread:
    """Every way of spreading a planned run over GPUs. model.vocab and model.context must be resolved.

    gpu_memory: bytes of a GPU. checkpointing: kinds of activation checkpointing that may be used, the preferred one first. Raises
    InputError if the batch cannot be divided among the GPUs.
    """
    _check_batch(recipe, gpus)
    root, units = unit_sizes(recipe)
    rows = [_row(way, recipe, plan, root, units, gpu_memory, checkpointing) for way in ways(gpus)]
    links = {"NVLink": NVLINK, "InfiniBand": INFINIBAND, "PCIe": PCIE}
    used = [name for name in links if gpus > {"NVLink": 1, "InfiniBand": NODE, "PCIe": 0}[name]]
    return Spread(gpus, gpu_memory, {name: links[name] for name in used}, H200_PEAK[plan.precision], PEAK_SHARE, rows)


def ways(gpus: int) -> list[Way]:
    """The ways that make sense for a number of GPUs."""
    sharded = [Way("fsdp", gpus), Way("fsdp", gpus, reshard=False)] if gpus > 1 else []
    plain = Way("ddp", replicas=gpus) if gpus > 1 else Way("none")
    nodes = [Way("hsdp", NODE, gpus // NODE)] if gpus > NODE and gpus % NODE == 0 else []
    return [plain, *sharded, *nodes, Way("fsdp", gpus, offload=True)]


def memory_of(recipe: Recipe, plan: Plan) -> dict[str, float]:
    """Bytes on each GPU of a planned run with the settings of its `[parallel]` and `[train]`, by part."""
    config, processes = recipe.parallel, recipe.parallel.processes
    shards = config.shards(processes)
    way = Way(config.engine, shards, processes // shards, config.reshard_after_forward, config.cpu_offload)
    return _memory(way, recipe, plan.precision == "bf16", *unit_sizes(recipe), checkpointing_of(recipe))


def unit_sizes(recipe: Recipe) -> tuple[int, list[int]]:
    """Parameters of the root unit, and of each other unit."""
    with torch.device("meta"):
        model = build_model(recipe.model, recipe.latent)
    sizes = [sum(map(count, unit)) for unit in gathered_units(model)]
    return count(model) - sum(sizes), sizes


def gathered_units(model: Decoder) -> list[list[nn.Module]]:
    """The units of a model beside the root: adjacent blocks of together at least UNIT parameters, and each part of the latent."""
    units: list[list[nn.Module]] = [[]]
    for block in model.blocks:
        if sum(map(count, units[-1])) >= UNIT:
            units.append([])
        units[-1].append(block)
    return units + [[part] for part in (() if model.latent is None else model.latent.children())]


def memory_size(text: str) -> float:
    """The bytes of `80GB`, `80GiB` or `1.5 TB`. Raises InputError for anything else, and for zero."""
    found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?) ?([MGT]i?B)", text.strip(), re.IGNORECASE | re.ASCII)
    value = float(found[1]) * UNITS[found[2].upper()] if found else 0.0
    if not value:
        raise InputError(f"--gpu-memory = {text!r} is not a size", hint="give a number and a unit: 80GB, 80GiB, 141GB")
    return value


def _check_batch(recipe: Recipe, gpus: int) -> None:
    batch = recipe.train.batch
    if batch < gpus:
        hint = f"raise it: --set train.batch={gpus}"
        raise InputError(f"train.batch = {batch} is too small for {gpus} GPUs: each needs a sequence of its own", hint=hint)
    if batch % gpus:
        hint = f"choose a multiple: --set train.batch={batch // gpus * gpus}"
        raise InputError(f"train.batch = {batch} cannot be divided among {gpus} GPUs", hint=hint)


def _row(
    way: Way, recipe: Recipe, plan: Plan, root: int, units: list[int], gpu_memory: float, checkpointing: Sequence[Checkpointing]
) -> SpreadRow:
    """The first setting that fits: the preferred checkpointing, then the fewest parts. If none does, the one that needs least."""
    settings = [(kind, divided) for kind in checkpointing for divided in _divided(recipe, way.shards * way.replicas)]
    found = [(_memory(way, divided, plan.precision == "bf16", root, units, kind), kind, divided) for kind, divided in settings]
    least = min(found, key=lambda one: one[0]["total"])
    memory, kind, divided = next((one for one in found if one[0]["total"] <= gpu_memory), least)
    passes = _passes(way, divided, plan, root, kind)
    transfers = [(one.times * each.size, each.to_host) for one in passes for each in one.transfers]
    communication = sum(one.times * one.communication for one in passes)
    hidden = sum(one.times * min(one.communication, one.computation) for one in passes)
    return SpreadRow(
        mode=way.mode,
        shards=way.shards,
        replicas=way.replicas,
        reshard_after_forward=way.reshard,
        cpu_offload=way.offload,
        grad_accum_steps=divided.train.grad_accum_steps,
        sequences=divided.rows_at_once,
        activation_checkpointing=kind,
        memory=memory,
        host_memory=16.0 * plan.parameters / way.shards if way.offload else 0.0,
        fits=memory["total"] <= gpu_memory,
        sent=sum((size for size, to_host in transfers if not to_host), 0.0),
        host_traffic=sum((size for size, to_host in transfers if to_host), 0.0),
        communication_seconds=communication,
        compute_seconds=sum(one.times * one.computation for one in passes),
        hidden=hidden / communication if communication else None,
    )


def _divided(recipe: Recipe, gpus: int) -> Iterator[Recipe]:
    """The recipe on these GPUs, with each possible number of parts of the batch, from one on."""
    rows = recipe.train.batch // gpus
    parallel = recipe.parallel.model_copy(update={"processes": gpus})
    compares = recipe.latent is not None and recipe.latent.objective.has_mismatch  # two sequences of a part
    small = [divisor for divisor in range(1, math.isqrt(rows) + 1) if rows % divisor == 0]
    for parts in sorted({*small, *(rows // divisor for divisor in small)}):
        if parts < recipe.train.batch or not compares:
            train = recipe.train.model_copy(update={"grad_accum_steps": parts})
            yield recipe.model_copy(update={"train": train, "parallel": parallel})


def _memory(way: Way, recipe: Recipe, bf16: bool, root: int, units: list[int], checkpointing: Checkpointing) -> dict[str, float]:
    """Bytes on a GPU at the peak, by part.

    `activations` is what comes on top of the gradients (`beyond_gradients`). DDP's buckets are there beside all activations.
    """
    parameters, parts, size = root + sum(units), recipe.train.grad_accum_steps, 2 if bf16 else 4
    on_gpu = 0.0 if way.offload else 4.0 * parameters / way.shards
    gathered = unsharded = 0.0
    if way.gathers:
        gathered = 4.0 * root + size * float(sum(nlargest(2, units) if way.reshard else units))
        unsharded = 4.0 * parameters - on_gpu if parts > 1 else 4.0 * sum(nlargest(2, [root, *units]))
    replacing = 0.0 if way.mode == "ddp" else on_gpu + unsharded
    memory = {
        "parameters": on_gpu,
        "gathered": gathered,
        "gradients": on_gpu,
        "unsharded": unsharded,
        "optimizer": 2 * on_gpu,
        "activations": beyond_gradients(recipe, bf16, "cuda", checkpointing, replacing),
    }
    return {**memory, "total": sum(memory.values())}


def _passes(way: Way, recipe: Recipe, plan: Plan, root: int, checkpointing: Checkpointing) -> list[Pass]:
    """The forward and backward passes of one step on one GPU. Gradients are reduced in the last backward pass."""
    parts, parameters, size = recipe.train.grad_accum_steps, plan.parameters, 2 if plan.precision == "bf16" else 4
    rate = H200_PEAK[plan.precision] * PEAK_SHARE / (recipe.rows_at_once * (recipe.model.context or 1))  # of FLOPs per token
    forward = sum(part.flops for part in plan.parts)
    recomputed = sum(part.flops for part in plan.parts[1:-1]) if checkpointing == "full" else 0.0  # all but embedding and lm_head
    seconds, backward_seconds = forward / rate, (plan.train_flops_per_token - forward + recomputed) / rate
    if not way.gathers:
        gathers: list[Transfer] = []
        again, reduces = gathers, [_over(way.replicas, 2 * _ring(4.0 * parameters, way.replicas))]
    else:
        copy = [Transfer(4.0 * parameters / way.shards, PCIE, to_host=True)] if way.offload else []
        gathers = [_over(way.shards, _ring(4.0 * root + size * (parameters - root), way.shards)), *copy]
        again = [_over(way.shards, _ring(size * (parameters - root), way.shards)), *copy] if way.reshard else []
        across = Transfer(2 * _ring(4.0 * parameters / way.shards, way.replicas), INFINIBAND)  # a GPU of each node
        reduces = [_over(way.shards, _ring(4.0 * parameters, way.shards)), across, *copy]
    return [Pass(parts, seconds, gathers), Pass(parts - 1, backward_seconds, again), Pass(1, backward_seconds, [*again, *reduces])]


def _ring(size: float, gpus: int) -> float:
    """Bytes that each GPU sends in a ring all-gather or reduce-scatter of `size` bytes."""
    return (gpus - 1) / gpus * size


def _over(gpus: int, size: float) -> Transfer:
    """A transfer in a ring of GPUs on as few nodes as possible, the same number on each. size: bytes that each GPU sends."""
    nodes = -(-gpus // NODE)
    return Transfer(size, NVLINK if nodes == 1 else min(NVLINK, gpus // nodes * INFINIBAND))
