"""Runs all measurements of `probe-latent` on one run (docs/probing.md)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from freetf_cli.data.batches import DataSource
from freetf_cli.data.rows import Factors
from freetf_cli.errors import InputError
from freetf_cli.evaluation import Stage
from freetf_cli.evaluation.posterior import latent_of
from freetf_cli.evaluation.probe.decoding import HiddenFeatures, decode
from freetf_cli.evaluation.probe.factors import factor_reader, row_texts
from freetf_cli.evaluation.probe.intervention import Generator, intervene, latent_swap
from freetf_cli.evaluation.probe.rate import latent_ablation, rate, read_posterior
from freetf_cli.evaluation.probe.verdict import verdict
from freetf_cli.evaluation.statistics import LEAST, check_enough
from freetf_cli.generation.sampling import SampleSpec, prompt_tokens
from freetf_cli.model.decoder import Decoder
from freetf_cli.records.intervention import Intervention
from freetf_cli.records.probe import Decoding, ProbeResult
from freetf_cli.runs.checkpoint import Checkpoint
from freetf_cli.tasks.factors import RowReader

LONGEST = 256  # default limit on the tokens of a generated sequence
SWAPPED = {"cpu": 256, "cuda": 1024}  # sequences of the latent swap
GROUPS, COUNT = {"cpu": 128, "cuda": 1024}, {"cpu": 64, "cuda": 128}  # Zs of the intervention, and sequences for each


@dataclass(frozen=True)
class ProbeSpec:
    """What to measure. The defaults for None are the device's GROUPS and COUNT, and the task's prompt.

    tokens: the most that a generated sequence has, its separator and prompt included.
    """

    split: str
    sequences: int = 2048
    groups: int | None = None
    count: int | None = None
    prompt: str | None = None
    seed: int = 0
    tokens: int = LONGEST


def probe_latent(checkpoint: Checkpoint, model: Decoder, source: DataSource, spec: ProbeSpec, *, run: str, stage: Stage) -> ProbeResult:
    """Measure rate, latent ablation, intervention, latent swap and decoding, and give a verdict.

    InputError if an interval would need more sequences or groups.
    """
    started, seed, kind = time.perf_counter(), spec.seed, model.embedding.weight.device.type
    groups, count = spec.groups or GROUPS.get(kind, 128), spec.count or COUNT.get(kind, 64)
    check_enough(groups, "groups", "raise --groups")
    length = min(source.context + 1, spec.tokens)
    prompt = _prompt(source, spec, length)
    total = min(spec.sequences, source.rows.size(spec.split) or spec.sequences)
    reader = factor_reader(source, spec.split, spec.sequences, length)
    with stage("reading sequences", 2 * total) as advance:
        posterior = read_posterior(model, source, spec.split, spec.sequences, seed, HiddenFeatures(), advance)
    rows = source.held_out_factors(spec.split, spec.sequences)
    latent = latent_of(model)
    found = rate(posterior, latent.kappa, source.facts.floor_bits, seed)
    ablated = latent_ablation(posterior, seed)
    intervention, taken, decoded = None, [], []
    if reader is None:
        hint = "" if source.facts.task else "; labels of documents are read where the run was trained with data.rows = 'documents'"
        notes = [f"this data has no known factors: only rate and latent ablation were measured{hint}"]
    else:
        generator = Generator(model, source.tokenizer, reader, stage)
        intervention = intervene(generator, prompt, SampleSpec(total=length, groups=groups, count=count, seed=seed))
        taken = latent_swap(generator, posterior, rows, SampleSpec(total=length, count=SWAPPED.get(kind, 256), seed=seed))
        numbers, texts = latent.numbers(posterior.z), row_texts(source, spec.split, spec.sequences)
        decoded = decode(posterior, numbers, reader, rows, texts, seed, stage)
        notes = list(_notes(reader, rows, intervention, decoded))
    return ProbeResult(
        run=run,
        step=checkpoint.step,
        facts=source.facts,
        bits=None if found.by_bit is None else len(found.by_bit),
        kappa=latent.kappa,
        split=spec.split,
        seed=seed,
        rate=found,
        latent_ablation=ablated,
        intervention=intervention,
        latent_swap=taken,
        decoding=decoded,
        verdict=verdict(found, ablated, intervention, decoded),
        notes=notes,
        seconds=time.perf_counter() - started,
        dims=None if found.by_dim is None else len(found.by_dim),
        every=latent.every,
    )


def _notes(reader: RowReader, rows: Sequence[Factors], intervention: Intervention, decoded: Sequence[Decoding]) -> Iterator[str]:
    """What was left out, and what cannot be trusted."""
    if unknown := sum(not row for row in rows):
        yield f"{unknown} of {len(rows)} sequences contain parts of several documents and have no label"
    if not decoded:
        yield "too few sequences with known factors for the decoding probes: at least 80 are needed (--sequences)"
    measured = {one.factor for one in intervention.factors}
    for name in (one.name for one in reader.factors if len(one.values) > 1 and one.name not in measured):
        yield f"{name} could be read from the outputs of too few Zs: at least {LEAST} are needed for I(Z; {name})"
    for one in intervention.factors:
        if not one.shuffled.low - 0.01 <= 0 <= one.shuffled.high + 0.01:
            yield f"the shuffled control of {one.factor} is not zero: do not trust its row; raise --groups and --count"


def _prompt(source: DataSource, spec: ProbeSpec, length: int) -> str:
    """The prompt of the intervention; InputError if the tokenizer cannot encode it, or if it fills the whole sequence."""
    prompt = source.prompt(0, 0) if spec.prompt is None else spec.prompt
    if source.task is not None:
        source.task.check_prompt(prompt)
    if len(prompt_tokens(source.tokenizer, prompt)) >= length:
        raise InputError("the prompt is as long as a sequence", f"prompt {prompt[:40]!r}")
    return prompt
