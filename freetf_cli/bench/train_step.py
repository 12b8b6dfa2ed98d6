"""The training step of recipes, on random tokens: a Free model beside its baseline, and what its encoder and mapper take by themselves."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from freetf_cli.bench.products import products_of, seconds_of
from freetf_cli.bench.timing import WARM_UP, Effort, machine, replayed, timed
from freetf_cli.config.recipe import Recipe
from freetf_cli.device import autocast_dtype
from freetf_cli.kernels import logit_gradient
from freetf_cli.latent.binary import BinaryDistribution, BinaryLatent
from freetf_cli.latent.build import build_model, initialise_model
from freetf_cli.model.attention.materialised import set_attention_checkpointing
from freetf_cli.model.decoder import Decoder
from freetf_cli.records.bench import PartRow, StepRow, Timing, TrainBench
from freetf_cli.training.float8 import check_float8, use_float8
from freetf_cli.training.memory import plan_on
from freetf_cli.training.optimizer import make_optimizer
from freetf_cli.training.prefetch import HostBatch
from freetf_cli.training.schedule import objective_weights
from freetf_cli.training.step import TrainStep, autocast, compiled


class Variant(NamedTuple):
    """A recipe under a name; model.vocab and model.context are known."""

    name: str
    recipe: Recipe


def with_baselines(variants: Sequence[Variant]) -> list[Variant]:
    """One Free recipe alone comes after its baseline twin: the same recipe without its latent."""
    if len(variants) == 1 and (recipe := variants[0].recipe).latent is not None:
        return [Variant(f"{variants[0].name} without Z", recipe.model_copy(update={"latent": None})), *variants]
    return list(variants)


def bench_train(variants: Sequence[Variant], device: torch.device, effort: Effort, done: Callable[[], None] = lambda: None) -> TrainBench:
    """Time of a step, memory, FLOP/s; ratios are to the first. done: called after each variant. parts: of the last Free one."""
    first = variants[0].recipe
    here = machine(device, first.train.precision, effort)
    rows: list[StepRow] = []
    for variant in variants:
        rows.append(_step_row(variant, device, effort, here.ceiling, rows[0].time if rows else None))
        done()
    parts: list[PartRow] = []
    for variant, row in zip(variants, rows, strict=True):
        if variant.recipe.latent is not None:
            parts = [
                PartRow(variant.name, part, took, took.median / row.time.median) for part, took in _parts(variant.recipe, device, effort)
            ]
    return TrainBench(here, rows, parts)


def _step_row(variant: Variant, device: torch.device, effort: Effort, ceiling: float, reference: Timing | None) -> StepRow:
    recipe, cuda = variant.recipe, device.type == "cuda"
    began = time.perf_counter()
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    step = made_step(recipe, device)
    for _ in range(WARM_UP):
        step()
    _wait(device)
    warm_up = time.perf_counter() - began
    peak = torch.cuda.max_memory_allocated(device) if cuda else None  # a replayed graph allocates no more
    took = timed(step, effort)
    del step
    release(device)
    tokens = recipe.train.batch * (recipe.model.context or 1)
    plan = plan_on(recipe, device)
    flops = plan.train_flops_per_token * tokens / took.median
    ratio = took.median / (reference or took).median
    products = _products(recipe, device, effort)
    rate = tokens / took.median
    return StepRow(
        variant.name, recipe.kind, took, warm_up, tokens, rate, flops, flops / ceiling, peak, plan.memory["total"], ratio, products
    )


def _products(recipe: Recipe, device: torch.device, effort: Effort) -> float:
    """Seconds of the matrix products of a step, as one that is neither compiled nor a graph asks for them."""
    plain = recipe.train.model_copy(update={"compile": "off", "cuda_graph": "off"})
    found = products_of(made_step(recipe.model_copy(update={"train": plain}), device))
    release(device)
    return seconds_of(found, device, effort)


def made_step(recipe: Recipe, device: torch.device) -> Callable[[], None]:
    """A training step that can be called again and again, on the same random tokens."""
    config, context = recipe.train, recipe.model.context or 1
    model = _model(recipe, device)
    update = TrainStep(model, make_optimizer(model, config, device), config, device, (config.batch, context))
    random = torch.Generator().manual_seed(config.seed)
    rows = torch.randint(recipe.model.vocab or 2, (config.batch, context + 1), generator=random)
    inputs, targets = (_pinned(part.contiguous(), device) for part in (rows[:, :-1], rows[:, 1:]))
    batch = HostBatch(inputs, targets, config.batch * context)
    update.noise.uniform_()
    weights = objective_weights(config.steps, recipe.latent, config.steps)
    return lambda: update(0, batch, config.lr, weights)


def _parts(recipe: Recipe, device: torch.device, effort: Effort) -> Iterator[tuple[str, Timing]]:
    """Encoder and mapper of a Free model, each by itself, with the shapes of a whole step: the parts of a batch one after another."""
    assert recipe.latent is not None
    model = _model(recipe, device)
    latent = model.latent
    assert isinstance(latent, BinaryLatent)
    dtype = autocast_dtype(recipe.train.precision, device) or torch.float32
    float8 = recipe.latent.float8
    rows, context, width = recipe.rows_at_once, recipe.model.context or 1, recipe.model.width
    x_BTD = torch.randn(rows, context, width, device=device, requires_grad=True)
    tokens_BT = torch.randint(recipe.model.vocab or 2, (rows, context), device=device)
    codes_N = torch.randint(2**recipe.latent.bits, (rows * context,), device=device)
    dl_BTH = torch.randn(rows, context, recipe.latent.bits, device=device, dtype=dtype)
    dr_ND, logits_NH = x_BTD.detach().flatten(0, 1).to(dtype), dl_BTH.flatten(0, 1)
    table_CD = latent.post_sampler.weight
    infer = compiled(lambda x_BTD: (_bit_logits(model, x_BTD, tokens_BT),), recipe.train, device)

    def encoder() -> None:
        with autocast(recipe.train, device):
            (bit_logits_BTH,) = infer(x_BTD)
        torch.autograd.grad(bit_logits_BTH, [x_BTD, *latent.encoder.parameters()], dl_BTH.to(bit_logits_BTH.dtype))

    def table() -> None:
        torch.autograd.grad(F.embedding(codes_N, table_CD), table_CD, dr_ND.to(table_CD.dtype))

    optimizer = make_optimizer(latent.post_sampler, recipe.train, device)
    table_CD.grad = torch.zeros_like(table_CD)
    for group in optimizer.param_groups:
        group["capturable"] = device.type == "cuda"
    w_DC = table_CD.detach().to(dtype).T
    parts: list[tuple[str, Callable[[], object]]] = [
        ("encoder, forward and backward", encoder),
        ("mapper: gradient of the bits' logits", lambda: logit_gradient(dr_ND, logits_NH, table_CD.detach(), float8)),
        ("mapper: its product W · dr alone", lambda: dr_ND @ w_DC),
        ("mapper: gradient of the table", table),
        ("AdamW of the table", optimizer.step),
    ]
    times = recipe.train.grad_accum_steps
    for name, work in parts:
        took = timed(replayed(work, device), effort)
        factor = 1 if name.startswith("AdamW") else times
        yield name, Timing(took.median * factor, took.least * factor, took.most * factor, took.steps, took.repeats)
    release(device)


def _bit_logits(model: Decoder, x_BTD: Tensor, tokens_BT: Tensor) -> Tensor:
    posterior = model.infer_latent(x_BTD, tokens_BT, model.context(tokens_BT))
    assert isinstance(posterior, BinaryDistribution)
    return posterior.bit_logits


def _model(recipe: Recipe, device: torch.device) -> Decoder:
    model = build_model(recipe.model, recipe.latent)
    initialise_model(model, recipe.train.seed)
    if recipe.train.float8:
        check_float8(recipe, device)
        use_float8(model)
    set_attention_checkpointing(model, recipe.train.attention_checkpointing)
    return model.to(device).train()


def _pinned(rows: Tensor, device: torch.device) -> Tensor:
    return rows.pin_memory() if device.type == "cuda" else rows


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def release(device: torch.device) -> None:
    """Give back what the last variant held, its graph and its compiled code too."""
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
