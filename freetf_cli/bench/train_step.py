"""Times of training steps on random tokens: a Free model beside its baseline, and the encoder and mapper alone."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from freetf_cli.bench.products import products_of, seconds_of
from freetf_cli.bench.timing import WARM_UP, Effort, machine, replayed, timed
from freetf_cli.config.recipe import Recipe
from freetf_cli.data.batches import Batch
from freetf_cli.device import autocast_dtype
from freetf_cli.kernels import logit_gradient
from freetf_cli.latent.binary import BinaryLatent, PostSampler, bit_logits
from freetf_cli.model.decoder import Decoder
from freetf_cli.records.bench import PartRow, StepRow, Timing, TrainBench
from freetf_cli.training.float8 import check_float8, use_float8
from freetf_cli.training.memory import plan_on
from freetf_cli.training.optimizer import make_optimizer, make_optimizers
from freetf_cli.training.parallel import Engine, compiled
from freetf_cli.training.prefetch import host_batch
from freetf_cli.training.schedule import objective_weights
from freetf_cli.training.start import make_model
from freetf_cli.training.step import TrainStep, autocast


class Variant(NamedTuple):
    """A recipe under a name; model.vocab and model.context are known."""

    name: str
    recipe: Recipe


def with_baselines(variants: Sequence[Variant]) -> list[Variant]:
    """The variants; a single Free recipe comes after its baseline twin, the same recipe without its latent."""
    if len(variants) == 1 and (recipe := variants[0].recipe).latent is not None:
        return [Variant(f"{variants[0].name} without Z", recipe.model_copy(update={"latent": None})), *variants]
    return list(variants)


def bench_train(variants: Sequence[Variant], device: torch.device, effort: Effort, done: Callable[[], None] = lambda: None) -> TrainBench:
    """Measure the step of each variant, with ratios to the first, and the parts of the last Free one. done: called after each variant."""
    here = machine(device, variants[0].recipe.train.precision, effort)
    rows: list[StepRow] = []
    for variant in variants:
        rows.append(_step_row(variant, device, effort, here.ceiling, rows[0].time if rows else None))
        done()
    free = [(name, recipe, row.time) for (name, recipe), row in zip(variants, rows, strict=True) if recipe.latent is not None]
    parts = [
        PartRow(name, part, took, took.median / whole.median)
        for name, recipe, whole in free[-1:]
        for part, took in _parts(recipe, device, effort)
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
    if cuda:
        torch.cuda.synchronize(device)
    warm_up = time.perf_counter() - began
    peak = torch.cuda.max_memory_allocated(device) if cuda else None  # a replayed graph allocates no more
    took = timed(step, effort)
    del step
    release(device)
    tokens, plan = recipe.train.batch * (recipe.model.context or 1), plan_on(recipe, device)
    rate, flops = tokens / took.median, plan.train_flops_per_token * tokens / took.median
    ratio, memory = took.median / (reference or took).median, plan.memory["total"]
    products = _products(recipe, device, effort)
    return StepRow(variant.name, recipe.kind, took, warm_up, tokens, rate, flops, flops / ceiling, peak, memory, ratio, products)


def _products(recipe: Recipe, device: torch.device, effort: Effort) -> float:
    """Seconds of a step's matrix products, as a step that is neither compiled nor captured makes them."""
    plain = recipe.train.model_copy(update={"compile": "off", "cuda_graph": "off"})
    found = products_of(made_step(recipe.model_copy(update={"train": plain}), device))
    release(device)
    return seconds_of(found, device, effort)


def made_step(recipe: Recipe, device: torch.device) -> Callable[[], None]:
    """A training step that can be called repeatedly, on the same random tokens."""
    config, context = recipe.train, recipe.model.context or 1
    model = _model(recipe, device)
    update = TrainStep(Engine(model, config, device), make_optimizers(model, config, device), config, device, (config.batch, context))
    generator = torch.Generator().manual_seed(config.seed)
    rows = torch.randint(recipe.model.vocab or 2, (config.batch, context + 1), generator=generator).numpy()
    batch = host_batch(Batch(rows[:, :-1], rows[:, 1:]), pinned=device.type == "cuda")
    update.noise.uniform_()
    weights = objective_weights(config.steps, recipe.latent, config.steps)
    return lambda: update(0, batch, batch.count, config.lr, weights)


def _parts(recipe: Recipe, device: torch.device, effort: Effort) -> Iterator[tuple[str, Timing]]:
    """Times of a Free model's encoder and mapper alone, for as many tokens as a step has."""
    for name, work, times in _works(recipe, device):
        took = timed(replayed(work, device), effort)
        yield name, Timing(took.median * times, took.least * times, took.most * times, took.steps, took.repeats)
    release(device)


def _works(recipe: Recipe, device: torch.device) -> Iterator[tuple[str, Callable[[], object], int]]:
    """Name, work, and how often a step does it: once for each accumulated part of a batch, or once."""
    model = _model(recipe, device)
    latent, config, times = model.latent, recipe.train, recipe.train.grad_accum_steps
    if not isinstance(latent, BinaryLatent):  # the parts are those of the paper's mapper
        return
    dtype = autocast_dtype(config.precision, device) or torch.float32
    x_BTD = torch.randn(recipe.rows_at_once, recipe.model.context or 1, recipe.model.width, device=device, requires_grad=True)
    dr_ND, bits = x_BTD.detach().flatten(0, 1).to(dtype), latent.bits
    tokens_BT = torch.randint(recipe.model.vocab or 2, x_BTD.shape[:2], device=device)
    dl_BTH = torch.randn(*x_BTD.shape[:2], bits, device=device, dtype=dtype)
    infer = compiled(lambda x_BTD: bit_logits(model.infer_latent(x_BTD, tokens_BT, model.context(tokens_BT))), config, device)

    def encoder() -> None:
        with autocast(config, device):
            bit_logits_BTH = infer(x_BTD)
        torch.autograd.grad(bit_logits_BTH, [x_BTD, *latent.encoder.parameters()], dl_BTH.to(bit_logits_BTH.dtype))

    yield "encoder, forward and backward", encoder, times
    if not isinstance(latent.post_sampler, PostSampler):  # a table of low order has no products with all codes
        return
    table_CD = latent.post_sampler.weight
    w_DC, codes_N = table_CD.detach().to(dtype).T, torch.randint(2**bits, (len(dr_ND),), device=device)
    float8 = latent.post_sampler.float8
    yield "mapper: gradient of the bits' logits", lambda: logit_gradient(dr_ND, dl_BTH.flatten(0, 1), table_CD.detach(), float8), times
    yield "mapper: its product W · dr alone", lambda: dr_ND @ w_DC, times

    def table() -> None:
        torch.autograd.grad(F.embedding(codes_N, table_CD), table_CD, dr_ND.to(table_CD.dtype))

    yield "mapper: gradient of the table", table, times
    optimizer = make_optimizer(latent.post_sampler, config, device)
    table_CD.grad = torch.zeros_like(table_CD)
    for group in optimizer.param_groups:
        group["capturable"] = device.type == "cuda"
    yield "AdamW of the table", optimizer.step, 1


def _model(recipe: Recipe, device: torch.device) -> Decoder:
    model = make_model(recipe, device, None, None)
    check_float8(recipe, device)
    use_float8(model, recipe.train.float8)
    return model


def release(device: torch.device) -> None:
    """Free the memory of the last variant, including its CUDA graph and compiled code."""
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
