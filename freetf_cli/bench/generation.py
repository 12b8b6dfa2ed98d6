"""Times of generation with random weights, at some batch sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from freetf_cli.bench.timing import Effort, machine, timed
from freetf_cli.bench.train_step import Variant, release
from freetf_cli.device import autocast_dtype
from freetf_cli.generation.sampling import SampleSpec, continue_tokens
from freetf_cli.model.decoder import Decoder
from freetf_cli.records.bench import SampleBench, SampleRow, Timing
from freetf_cli.training.start import make_model


def bench_sample(
    variants: Sequence[Variant],
    batches: Sequence[int],
    prompt: int,
    new_tokens: int,
    device: torch.device,
    effort: Effort,
    done: Callable[[], None] = lambda: None,
) -> SampleBench:
    """Measure generation of `new_tokens` after `prompt` random tokens, reading the prompt included; Z is from the prior.

    Weights have the dtype that the first recipe trains in. Ratios are to the first variant at the same batch size.
    """
    precision = variants[0].recipe.train.precision
    here = machine(device, precision, effort)
    rows: list[SampleRow] = []
    for name, recipe in variants:
        model = make_model(recipe, device, None, None).to(autocast_dtype(precision, device) or torch.float32).eval()
        for batch in batches:
            took = _measured(model, batch, prompt, new_tokens, effort)
            first = next((row.time for row in rows if row.batch == batch), took)
            rate, size = batch * new_tokens / took.median, read_bytes(model)
            share, ratio = size * new_tokens / took.median / here.bandwidth, took.median / first.median
            rows.append(SampleRow(name, recipe.kind, batch, new_tokens, took, rate, size, share, ratio))
            done()
        del model
        release(device)
    return SampleBench(here, rows)


def _measured(model: Decoder, batch: int, prompt: int, new_tokens: int, effort: Effort) -> Timing:
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(model.config.vocab or 2, (batch, prompt), generator=generator).tolist()
    spec = SampleSpec(total=prompt + new_tokens, prompt_z="prior")
    continue_tokens(model, prompts, spec)
    return timed(lambda: continue_tokens(model, prompts, spec), effort)


def read_bytes(model: Decoder) -> int:
    """Bytes of weights read for each token, without the latent's and without an embedding table that is not also the output layer."""
    left_out = ("latent.", *(("embedding.",) if model.lm_head is not None else ()))
    return sum(w.numel() * w.element_size() for name, w in model.named_parameters() if not name.startswith(left_out))
