"""The cost of training a recipe, without a device: parameters by part, FLOPs per token, and estimated memory.

Everything is counted on the meta device, so that an 8B model allocates nothing. A multiply-add is two FLOPs.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from freetf_cli.config.recipe import LatentConfig, Recipe
from freetf_cli.kernels.cross_entropy import FEW_LOGITS, most_logits
from freetf_cli.kernels.mapper import CHUNK_ELEMENTS, WIDEST_FUSED
from freetf_cli.latent.build import build_model
from freetf_cli.latent.low_order import count_sets
from freetf_cli.model.attention.materialised import recomputes
from freetf_cli.model.attention.registry import make_attention
from freetf_cli.model.attention.softmax import Attention
from freetf_cli.records.plan import PartCost, Plan

Checkpointing = Literal["none", "full"]  # of activations: what the backward pass recomputes
ATTENTION_WEIGHTS = "attention weights (estimated)"  # in a plan's memory if a kind of attention materialises them


def plan_run(recipe: Recipe, name: str, bf16: bool, device_type: str | None = None) -> Plan:
    """What training a recipe costs. model.vocab and model.context must be resolved. bf16: activations under autocast.

    device_type: torch's name of the device; by default CUDA with bf16, else CPU.
    """
    baseline = recipe.model_copy(update={"latent": None})
    parts, base_parts = part_costs(recipe), part_costs(baseline)
    parameters, base_parameters = (sum(part.parameters for part in group) for group in (parts, base_parts))
    train_flops, free = _train_flops(recipe, parts), recipe.latent is not None
    return Plan(
        recipe=name,
        kind=recipe.kind,
        parts=parts,
        parameters=parameters,
        train_flops_per_token=train_flops,
        overhead_compute=train_flops / _train_flops(baseline, base_parts) - 1 if free else None,
        overhead_compute_paper=_encoder_blocks(recipe) / recipe.model.layers if free else None,
        overhead_parameters=parameters / base_parameters - 1 if free else None,
        memory=_memory(recipe, parameters, bf16, device_type or ("cuda" if bf16 else "cpu")),
        steps=recipe.train.steps,
        tokens=recipe.train.steps * recipe.train.batch * (recipe.model.context or 1),
        precision="bf16" if bf16 else "fp32",
        processes=recipe.parallel.processes,
        turns=_turns(recipe),
        lagging=recipe.train.encoder.turns == "lagging",
    )


def part_costs(recipe: Recipe) -> list[PartCost]:
    """Parameters and forward FLOPs per token of each part, in the order of Algorithm 2."""
    config, context = recipe.model, recipe.model.context or 1
    with torch.device("meta"):
        model = build_model(config, recipe.latent)
    blocks = _linear_flops(model.blocks) + sum(attention.flops(context) for attention in model.attentions())
    parts = [
        PartCost("embedding" + (" (tied with lm_head)" if config.tie_embeddings else ""), model.embedding.weight.numel(), 0.0),
        PartCost(f"blocks × {config.layers}", count(model.blocks), blocks),
    ]
    for name, module in ({} if model.latent is None else model.latent.parts()).items():
        attention = sum(child.flops(context, causal=False) for child in module.modules() if isinstance(child, Attention))
        parts.append(PartCost(name, count(module), _linear_flops(module) + attention))
    head = 0 if model.lm_head is None else model.lm_head.weight.numel()
    parts.append(PartCost("norm and lm_head", head + count(model.norm), 2.0 * model.lm_head_weight.numel()))
    return parts


def _turns(recipe: Recipe) -> dict[str, int] | None:
    """Updates of encoder and decoder where they take turns; the encoder lags to the end if it lags. A step costs the same in all turns."""
    config, steps = recipe.train.encoder, recipe.train.steps
    if recipe.latent is None or config.turns == "together":
        return None
    decoder = steps // (config.steps + 1)
    return {"encoder": steps - decoder, "decoder": decoder}


def _encoder_blocks(recipe: Recipe) -> int:
    """Blocks that run in training only: one in the encoder, and with `latent.encoder = "full"` another for each lower block."""
    latent = recipe.latent
    if latent is None:
        return 0
    return 1 + (recipe.architecture["latent"]["depth"] if latent.encoder == "full" else 0)


def _train_flops(recipe: Recipe, parts: list[PartCost]) -> float:
    """Forward and backward (twice the forward), and the binary mapper's product W · dr, which only the backward has.

    Each Z that is inferred is mapped once. A table of low order has a product in the forward too, for every Z: that of the sets' signs with
    their vectors.
    """
    mapper = 0.0
    if recipe.latent is not None and recipe.latent.has_bits:
        product, order = 2.0 * table_rows(recipe.latent) * recipe.model.width, recipe.latent.table.order
        mapped, drawn = zs(recipe)
        mapper = product * (mapped if order is None else 3 * drawn) / (recipe.model.context or 1)  # a plan's own table: a row's one product
    return 3 * sum(part.flops for part in parts) + mapper


def zs(recipe: Recipe) -> tuple[int, int]:
    """How many Zs of a row are inferred, those of `latent.window`, and how many it has: one for `latent.every` tokens."""
    latent, context = recipe.latent, recipe.model.context or 1
    assert latent is not None
    each = context if latent.every == "sequence" else latent.every
    return len(range(0, min(latent.window or context, context), each)), len(range(0, context, each))


def table_rows(latent: LatentConfig) -> int:
    """The vectors of the post-sampler: one for each code, or for each set of bits."""
    order = latent.table.order
    return 2**latent.bits if order is None else count_sets(latent.bits, order)


def _linear_flops(module: nn.Module) -> float:
    return float(sum(2 * layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear)))


def count(module: nn.Module) -> int:
    """The number of parameters of a module; a parameter that two parts share counts once."""
    return sum(parameter.numel() for parameter in module.parameters())


def _memory(recipe: Recipe, parameters: int, bf16: bool, device_type: str) -> dict[str, float]:
    """Bytes of parameters, gradients and AdamW's two moments in float32, and an estimate of what a step needs beyond them."""
    gradients, kind = 4.0 * parameters, checkpointing_of(recipe)
    beyond = beyond_gradients(recipe, bf16, device_type, kind, gradients)
    weights = min(attention_weight_bytes(recipe, bf16, kind), beyond)
    parts = {"parameters": gradients, "gradients": gradients, "optimizer": 2 * gradients, "activations (estimated)": beyond - weights}
    return {**parts, **({ATTENTION_WEIGHTS: weights} if weights else {}), "total": 4 * gradients + beyond}


def checkpointing_of(recipe: Recipe) -> Checkpointing:
    """What the estimates know of `train.activation_checkpointing`: "selective" and "budget" count as "none", which needs more."""
    return "full" if recipe.train.activation_checkpointing == "full" else "none"


def beyond_gradients(recipe: Recipe, bf16: bool, device_type: str, checkpointing: Checkpointing, gradients: float) -> float:
    """Bytes at the peak beside parameters, optimizer state and all gradients, on one device or on each of several. Estimated.

    The peak is at the end of the forward, when there are no gradients yet, or at the end of the backward, when all of them exist:
    gradients replace activations one by one. gradients: bytes that do so; with gradient accumulation none do, because the gradients of the
    first part are there in later forwards.
    """
    activations = activation_bytes(recipe, bf16, device_type, checkpointing) + attention_weight_bytes(recipe, bf16, checkpointing)
    replaced = gradients if recipe.train.grad_accum_steps == 1 else 0.0
    return max(activations - replaced, mapper_bytes(recipe, bf16, device_type))


def activation_bytes(recipe: Recipe, bf16: bool, device_type: str, checkpointing: Checkpointing = "none") -> float:
    """At the end of the forward: what blocks keep for the backward, and the logits with what their gradients need. Estimated.

    With "full" a block keeps only its input, in float32; the backward has all activations of one block at a time.
    """
    config, size = recipe.model, 2 if bf16 else 4
    tokens, vocabulary = recipe.rows_at_once * (config.context or 1), config.vocab or 0
    attention = (2 * config.heads + 2 * config.key_heads) * config.head_width
    block = 3 * 4 * config.width + size * (2 * config.width + attention + 3 * config.hidden)
    blocks = config.layers + _encoder_blocks(recipe)
    kept = blocks * block if checkpointing == "none" else blocks * 4 * config.width + block
    injection = (2 * 4 + size) * config.width if recipe.latent else 0
    logits = tokens * vocabulary
    if logits <= FEW_LOGITS.get(device_type, FEW_LOGITS["cpu"]):
        head = logits * (size + 2 * 4)
    else:
        copies = 1 if bf16 and device_type == "cuda" else 3  # on a GPU the gradient overwrites the logits
        head = copies * size * min(logits, most_logits(device_type)) + (2 * size + 2 * 4) * vocabulary * config.width
    return float(tokens * (kept + injection) + head + _mismatch_bytes(recipe))


def mapper_bytes(recipe: Recipe, bf16: bool, device_type: str) -> float:
    """The mapper's gradient: a centred copy of the table, and s = W · dr of some tokens unless a kernel fuses it. Low order: features."""
    if recipe.latent is None or not recipe.latent.has_bits:
        return 0.0
    mapped, drawn = zs(recipe)
    if recipe.latent.table.order is not None:
        return 3.0 * 4 * recipe.rows_at_once * drawn * table_rows(recipe.latent)
    codes, width = 2**recipe.latent.bits, recipe.model.width
    fused = bf16 and device_type == "cuda" and width <= WIDEST_FUSED
    at_once = CHUNK_ELEMENTS.get(device_type, CHUNK_ELEMENTS["cpu"])
    s = 0 if fused else min(recipe.rows_at_once * mapped * codes, at_once)
    return float((2 if bf16 else 4) * (codes * width + s))


def attention_weight_bytes(recipe: Recipe, bf16: bool, checkpointing: Checkpointing = "none") -> float:
    """What attention keeps for the backward beside its inputs and output; with activation checkpointing, weights of one block at a time."""
    config, train, context, size = recipe.model, recipe.train, recipe.model.context or 1, 2 if bf16 else 4
    packed = config.separator is not None or (recipe.data.dir is not None and recipe.data.rows != "documents")  # as far as is known
    with torch.device("meta"):
        kinds = [make_attention(config, index) for index in range(config.layers)]
    kept = {kind: kind.kept_bytes(recipe.rows_at_once, context, size, config.masks_documents and packed) for kind in kinds}
    if checkpointing == "full":
        return max(kept.values())
    materialised = [kept.pop(kind) for kind in kinds if kind.materialises]
    if recomputes(train.attention_checkpointing, len(materialised) * recipe.rows_at_once * config.heads * context**2):
        materialised = [max(materialised, default=0.0)]
    return sum(materialised) + sum(kept.values())


def _mismatch_bytes(recipe: Recipe) -> int:
    """`latent.mismatch`: three float32 tensors over the pairs of sequences, if the recipe uses it."""
    latent = recipe.latent
    if latent is None or not latent.objective.has_mismatch:
        return 0
    half, context = recipe.rows_at_once // 2, recipe.model.context or 1
    return 3 * 4 * half**2 * min(latent.window or context, context) * latent.bits
