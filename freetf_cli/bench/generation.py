"""Generation from recipes' models with random weights, at some batch sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from freetf_cli.bench.timing import Effort, machine, timed
from freetf_cli.bench.train_step import Variant, release
from freetf_cli.device import autocast_dtype
from freetf_cli.generation.sampling import SampleSpec, continue_tokens
from freetf_cli.latent.build import build_model, initialise_model
from freetf_cli.model.decoder import Decoder
from freetf_cli.records.bench import SampleBench, SampleRow, Timing


def bench_sample(
    variants: Sequence[Variant],
    batches: Sequence[int],
    prompt: int,
    new_tokens: int,
    device: torch.device,
    effort: Effort,
    done: Callable[[], None] = lambda: None,
) -> SampleBench:
    """Tokens a second, the reading of a prompt of `prompt` random tokens among the time; Z from the prior. Weights are in the type that
    the first recipe trains in. Ratios are to the first variant at the same batch."""
    precision = variants[0].recipe.train.precision
    here = machine(device, precision, effort)
    rows: list[SampleRow] = []
    for variant in variants:
        model = build_model(variant.recipe.model, variant.recipe.latent)
        initialise_model(model, variant.recipe.train.seed)
        model = model.to(device, autocast_dtype(precision, device) or torch.float32).eval()
        for batch in batches:
            took = _measured(model, batch, prompt, new_tokens, effort)
            first = next((row.time for row in rows if row.batch == batch), took)
            rate, size = batch * new_tokens / took.median, _read_bytes(model)
            reached = size * new_tokens / took.median / here.bandwidth
            rows.append(
                SampleRow(variant.name, variant.recipe.kind, batch, new_tokens, took, rate, size, reached, took.median / first.median)
            )
            done()
        del model
        release(device)
    return SampleBench(here, rows)


def _measured(model: Decoder, batch: int, prompt: int, new_tokens: int, effort: Effort) -> Timing:
    random = torch.Generator().manual_seed(0)
    prompts = torch.randint(model.config.vocab or 2, (batch, prompt), generator=random).tolist()
    spec = SampleSpec(total=prompt + new_tokens, prompt_z="prior")
    continue_tokens(model, prompts, spec)
    return timed(lambda: continue_tokens(model, prompts, spec), effort)


def _read_bytes(model: Decoder) -> int:
    """Bytes of the weights that a token must read: not the encoder's, and of a table that only gives rows one, which is nothing."""
    left_out = ("latent.", *(("embedding.",) if model.lm_head is not None else ()))
    return sum(w.numel() * w.element_size() for name, w in model.named_parameters() if not name.startswith(left_out))
