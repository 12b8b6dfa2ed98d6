"""Sizes without a device: parameters by part, FLOPs per token, and the memory that training will want.

Counted on the meta device, so that an 8B model costs nothing to ask about. A multiply-add is two FLOPs.
"""

from __future__ import annotations

import torch
from torch import nn

from freetf_cli.config.recipe import ModelConfig, Recipe
from freetf_cli.kernels.cross_entropy import FEW_LOGITS, most_logits
from freetf_cli.kernels.mapper import CHUNK_ELEMENTS, WIDEST_FUSED
from freetf_cli.latent.build import build_model
from freetf_cli.model.attention.differential import Differential
from freetf_cli.model.attention.materialised import MaterialisedAttention, recomputes
from freetf_cli.model.attention.registry import make_attention
from freetf_cli.model.attention.softmax import Attention
from freetf_cli.records.plan import PartCost, Plan

MAPS = "attention maps (estimated)"  # a plan's memory, where a kind of attention makes them


def plan_run(recipe: Recipe, name: str, bf16: bool, device_type: str | None = None) -> Plan:
    """What training a recipe takes. model.vocab and model.context must be resolved. bf16: activations under autocast.

    device_type: where, as torch names it; unless it is known CUDA for bf16, else a CPU.
    """
    context = recipe.model.context or 1
    parts = part_costs(recipe.model, recipe)
    train_flops = _train_flops(recipe, parts)
    baseline = recipe.model_copy(update={"latent": None})
    base_parts = part_costs(recipe.model, baseline)
    parameters, base_parameters = (sum(part.parameters for part in group) for group in (parts, base_parts))
    free = recipe.latent is not None
    return Plan(
        recipe=name,
        kind=recipe.kind,
        parts=parts,
        parameters=parameters,
        train_flops_per_token=train_flops,
        overhead_compute=train_flops / _train_flops(baseline, base_parts) - 1 if free else None,
        overhead_compute_paper=1 / recipe.model.layers if free else None,
        overhead_parameters=parameters / base_parameters - 1 if free else None,
        memory=_memory(recipe, parameters, bf16, device_type or ("cuda" if bf16 else "cpu")),
        steps=recipe.train.steps,
        tokens=recipe.train.steps * recipe.train.batch * context,
        precision="bf16" if bf16 else "fp32",
        processes=recipe.parallel.processes,
    )


def part_costs(config: ModelConfig, recipe: Recipe) -> list[PartCost]:
    """Parameters and forward FLOPs per token of each part, in the order of Algorithm 2."""
    with torch.device("meta"):
        model = build_model(config, recipe.latent)
    context = config.context or 1
    blocks = _linear_flops(model.blocks) + sum(_own_flops(attention, config, context) for attention in model.attentions())
    parts = [
        PartCost("embedding" + (" (tied with lm_head)" if config.tie_embeddings else ""), model.embedding.weight.numel(), 0.0),
        PartCost(f"blocks × {config.layers}", _count(model.blocks), blocks),
    ]
    for name, module in ({} if model.latent is None else model.latent.parts()).items():
        attentions_within = sum(isinstance(child, Attention) for child in module.modules())
        parts.append(PartCost(name, _count(module), _linear_flops(module) + attentions_within * _attention_flops(config, context)))
    head = 0 if model.lm_head is None else model.lm_head.weight.numel()
    parts.append(PartCost("norm and lm_head", head + _count(model.norm), 2.0 * model.lm_head_weight.numel()))
    return parts


def _train_flops(recipe: Recipe, parts: list[PartCost]) -> float:
    """Forward and backward (twice the forward), and the mapper's product W · dr, which only the backward has."""
    mapper = 2.0 * 2**recipe.latent.bits * recipe.model.width if recipe.latent else 0.0
    return 3 * sum(part.flops for part in parts) + mapper


def _linear_flops(module: nn.Module) -> float:
    return float(sum(2 * layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear)))


def _attention_flops(config: ModelConfig, keys: float) -> float:
    """Scores and weighted values over `keys` keys; half the context on average when causal."""
    return 4.0 * config.heads * config.head_width * keys


def _own_flops(attention: Attention, config: ModelConfig, context: int) -> float:
    """Of a decoder block's kind of attention. Maps that are mixed are made in full, and each number of a kernel or a mix is a multiply-add
    in every cell of one. Where no map is made, what is mixed has the heads of a group side by side; differential attention reads values of
    twice the width."""
    if isinstance(attention, MaterialisedAttention) and attention.is_fused:
        return _attention_flops(config, context / 2) * attention.fused_heads
    if isinstance(attention, MaterialisedAttention):
        return _attention_flops(config, context) + 2.0 * context * sum(operator.numel() for operator in _operators(attention))
    return _attention_flops(config, context / 2) * (1.5 if isinstance(attention, Differential) else 1)


def _operators(attention: MaterialisedAttention) -> list[nn.Parameter]:
    """Kernels and mixes: what has more dimensions than a matrix."""
    return [parameter for parameter in attention.parameters() if parameter.dim() > 2]


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _memory(recipe: Recipe, parameters: int, bf16: bool, device_type: str) -> dict[str, float]:
    """Bytes: parameters, gradients and AdamW's two moments in float32, and what a step wants beyond them, estimated.

    Most is wanted either where the forward ends and no gradient is there yet, or where the backward ends and all of them are: gradients
    come as activations go. A batch in parts keeps the gradients of the first while it goes through the next.
    """
    states = 16.0 * parameters
    gradients = 4.0 * parameters
    maps = _map_bytes(recipe, 2 if bf16 else 4)
    forward = _activations(recipe, bf16, device_type) + maps + (gradients if recipe.train.grad_accum_steps > 1 else 0.0)
    beyond = max(forward - gradients, _mapper_bytes(recipe, bf16, device_type))
    maps = min(maps, beyond)
    parts = {
        "parameters": gradients,
        "gradients": gradients,
        "optimizer": 2 * gradients,
        "activations (estimated)": beyond - maps,
    }
    if maps:
        parts[MAPS] = maps
    return {**parts, "total": states + beyond}


def _activations(recipe: Recipe, bf16: bool, device_type: str) -> float:
    """Bytes at the end of the forward: what blocks keep for the backward, and the read-out's logits with what their gradients want."""
    config, number = recipe.model, 2 if bf16 else 4
    tokens, vocabulary = recipe.rows_at_once * (config.context or 1), config.vocab or 0
    attention = (2 * config.heads + 2 * config.key_heads) * config.head_width
    block = 3 * 4 * config.width + number * (2 * config.width + attention + 3 * config.hidden)
    blocks = config.layers + (1 if recipe.latent else 0)
    injection = (2 * 4 + number) * config.width if recipe.latent else 0
    logits = tokens * vocabulary
    if logits <= FEW_LOGITS.get(device_type, FEW_LOGITS["cpu"]):
        readout = logits * (number + 2 * 4)
    else:
        copies = 1 if bf16 and device_type == "cuda" else 3  # on a GPU the gradient takes the place of the logits
        readout = copies * number * min(logits, most_logits(device_type)) + (2 * number + 2 * 4) * vocabulary * config.width
    return float(tokens * (blocks * block + injection) + readout + _pairs(recipe))


def _mapper_bytes(recipe: Recipe, bf16: bool, device_type: str) -> float:
    """Of the mapper's gradient: a centred copy of the table, and some tokens' s = W · dr where it goes through memory."""
    if recipe.latent is None:
        return 0.0
    codes, width = 2**recipe.latent.bits, recipe.model.width
    fused = bf16 and device_type == "cuda" and width <= WIDEST_FUSED
    at_once = CHUNK_ELEMENTS.get(device_type, CHUNK_ELEMENTS["cpu"])
    s = 0 if fused else min(recipe.rows_at_once * (recipe.model.context or 1) * codes, at_once)
    return float((2 if bf16 else 4) * (codes * width + s))


def _map_bytes(recipe: Recipe, number: int) -> float:
    """Bytes of the maps kept for the backward: softmax's in float32, what reads the values, and what each kernel and mix reads. Maps that
    are made once more in the backward are there of one block at a time. Where none is made: the heads of groups side by side."""
    config = recipe.model
    with torch.device("meta"):
        kinds = [make_attention(config, index) for index in range(config.layers)]
    numbers = recipe.rows_at_once * config.heads * (config.context or 1) ** 2
    mapping = [kind for kind in kinds if isinstance(kind, MaterialisedAttention)]
    makers = [kind for kind in mapping if not kind.is_fused]
    each = [_maps_kept(kind, recipe, number) for kind in makers]
    kept = max(each, default=0) if recomputes(recipe.train.attention_checkpointing, len(makers) * numbers) else sum(each)
    if number == 4:  # CPUs have no kernel for values wider than keys; softmax itself is kept
        kept += number * sum(isinstance(kind, Differential) for kind in kinds)
    heads = number * recipe.rows_at_once * (config.context or 1) * config.heads * config.head_width
    wide = heads * sum(4 * kind.fused_heads for kind in mapping if kind.is_fused and kind.fused_heads > 1)
    return float(numbers * kept + wide)


def _maps_kept(attention: MaterialisedAttention, recipe: Recipe, number: int) -> int:
    """Bytes a cell: softmax's, what reads the values, and what each kernel and mix reads; a kernel that is applied a row at a time, as with
    `exact` and between documents, reads a copy for each row."""
    packed = recipe.model.separator is not None or (recipe.data.dir is not None and recipe.data.rows != "documents")  # as far as is known
    apart = recipe.model.masks_documents and packed
    copies = 0
    for name, operator in attention.named_parameters():
        if operator.dim() > 2:
            exact = recipe.model.multi_token is not None and recipe.model.multi_token.mask == "exact" and name.startswith("pre.")
            copies += 1 + operator.shape[2] if operator.dim() == 4 and (apart or exact) else 1
    return 4 + number * (1 + copies)


def _pairs(recipe: Recipe) -> int:
    """Bytes of `latent.aggregate_mismatch`: three float32 tensors over the pairs of sequences, where a recipe has it."""
    latent = recipe.latent
    if latent is None or not latent.objective.has_mismatch:
        return 0
    half, context = recipe.rows_at_once // 2, recipe.model.context or 1
    return 3 * 4 * half**2 * min(latent.window or context, context) * latent.bits
