"""Compares two checkpoints on the same held-out rows: which is better, by how much, and how certain that is.

A Free model's nll is an upper bound, a baseline's is exact. A posterior CE is never compared with a baseline's CE, because its Z was
inferred from the sequence itself.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from freetf_cli.config.files import differences
from freetf_cli.data.batches import DataSource
from freetf_cli.errors import InputError
from freetf_cli.evaluation import Advance, Stage
from freetf_cli.evaluation.checks import Check, check_kinds
from freetf_cli.evaluation.likelihood import RowCosts, row_costs
from freetf_cli.evaluation.run_data import check_split, open_run_data
from freetf_cli.evaluation.statistics import bootstrap, check_enough
from freetf_cli.evaluation.weights import compare_weights
from freetf_cli.generation.sampling import SampleSpec, check_prompts, generate, prompt_tokens
from freetf_cli.records import LN2
from freetf_cli.records.compare import Comparison, LatentUse, SamplePair, Side
from freetf_cli.records.paired import METRICS, Difference, MetricPair, Positions
from freetf_cli.records.recipes import Setting
from freetf_cli.runs.checkpoint import Checkpoint, size_of
from freetf_cli.runs.folder import RunFolder
from freetf_cli.runs.plan import plan_run
from freetf_cli.tasks import spans_by_text

MOST_NEW_TOKENS = 256  # of a sample, so that two fit side by side


@dataclass(frozen=True)
class Candidate:
    """A model to compare: the name that the user gave, and the checkpoint."""

    name: str
    checkpoint: Checkpoint


@dataclass(frozen=True)
class Settings:
    """How to compare. data: a folder instead of the runs' own data. draws: of Z, for the importance bound. count: samples to show."""

    data: Path | None = None
    split: str = "val"
    sequences: int = 256
    draws: int = 16
    count: int = 4
    prompt: str | None = None
    seed: int = 0
    checks: Sequence[Check] = ()


def compare(a: Candidate, b: Candidate, settings: Settings, *, device: torch.device, stage: Stage) -> Comparison:
    """Compare B with A. The models are on `device` one at a time; equal models are not built.

    InputError if they cannot be compared: different tokenizers, data or lengths of rows, or a check that a baseline does not have.
    """
    check_kinds(settings.checks, a.checkpoint.recipe.kind, b.checkpoint.recipe.kind)
    recipe = [Setting(*row) for row in differences(a.checkpoint.recipe, b.checkpoint.recipe)]
    side_a, side_b = _side(a), _side(b)
    if same_model(a.checkpoint, b.checkpoint):
        return Comparison(side_a, side_b, equal=True, recipe=recipe, checks=[check.decide(None) for check in settings.checks])
    source = common_data(a, b, settings.data)
    check_split(source, settings.split)
    settings = replace(settings, sequences=min(settings.sequences, source.rows.size(settings.split) or settings.sequences))
    check_enough(settings.sequences, "sequences", f"--sequences, or more data in split '{settings.split}'")
    prompt = source.prompt(settings.seed, 0) if settings.prompt is None else settings.prompt
    sampling = _sampling(source, settings, prompt)
    with stage("tensors", None) as advance:
        weights = compare_weights(a.checkpoint.weights, b.checkpoint.weights, advance)
    with stage("sequences", 2 * settings.sequences) as advance:
        (side_a, costs_a, samples_a), (side_b, costs_b, samples_b) = (
            _measure(one, side, source, settings, prompt, sampling, device, advance) for one, side in ((a, side_a), (b, side_b))
        )
    metrics, facts = pairs(costs_a, costs_b), source.facts
    spans = spans_by_text(facts.task, facts.params, [*samples_a, *samples_b])
    return Comparison(
        side_a,
        side_b,
        equal=False,
        recipe=recipe,
        checks=[check.decide(metrics[check.metric]) for check in settings.checks],
        facts=facts,
        split=settings.split,
        sequences=len(costs_a.targets),
        tokens=int(costs_a.targets.sum()),
        importance_samples=settings.draws,
        seed=settings.seed,
        floor_bits=facts.floor_bits,
        weights=weights,
        metrics=metrics,
        by_position=positions(costs_a, costs_b),
        samples=SamplePair(prompt, settings.seed, samples_a, samples_b, spans) if sampling else None,
    )


def same_model(a: Checkpoint, b: Checkpoint) -> bool:
    """Whether weights, tokenizer and architecture are equal, by the hashes that were verified when the checkpoints were opened."""
    same = a.weights_sha256 == b.weights_sha256 and a.tokenizer().sha256 == b.tokenizer().sha256
    return same and a.recipe.architecture == b.recipe.architecture


def common_data(a: Candidate, b: Candidate, folder: Path | None) -> DataSource:
    """The data to measure both on: their common training data, or a folder that fits both."""
    one, other = a.checkpoint, b.checkpoint
    names = f"{a.name} and {b.name}"
    if one.tokenizer().sha256 != other.tokenizer().sha256:
        raise InputError("the tokenizers differ (by SHA-256): metrics of the two cannot be compared", names)
    if folder is None and one.state["data"]["sha256"] != other.state["data"]["sha256"]:
        raise InputError("the two were trained on different data (by SHA-256)", names, "name the data to measure both on with --data DIR")
    if _row_kind(one) != _row_kind(other):
        what = f"rows of the data differ: {_row_kind(one)} for A, {_row_kind(other)} for B (data.rows)"
        raise InputError(what, names, "compare models with the same data.rows")
    context = _context(one, other, names)
    source = open_run_data(one, folder, context)
    if folder is not None:
        open_run_data(other, folder, context)  # raises if it does not fit B
    return source


def _measure(
    one: Candidate,
    side: Side,
    source: DataSource,
    settings: Settings,
    prompt: str,
    sampling: SampleSpec | None,
    device: torch.device,
    advance: Advance,
) -> tuple[Side, RowCosts, list[str]]:
    """Everything that needs the model: its side completed, its costs and its samples. The model is freed on return."""
    model, split, seed = one.checkpoint.model(device), settings.split, settings.seed
    costs = row_costs(model, source, split=split, sequences=settings.sequences, draws=(settings.draws,), seed=seed, advance=advance)
    plan = plan_run(one.checkpoint.recipe, one.name, bf16=False)
    side = replace(
        side,
        parameters=plan.parameters,
        train_flops_per_token=plan.train_flops_per_token,
        evaluation_seconds=costs.seconds,
        latent=None if model.latent is None else _latent_use(costs, model.latent.kappa),
    )
    samples = generate(model, source.tokenizer, [prompt], sampling) if sampling else ()
    return side, costs, [sample.text for sample in samples]


def _latent_use(costs: RowCosts, kappa: float) -> LatentUse:
    assert costs.above_kappa is not None
    saved_bits = (costs.nats["ce_prior"] - costs.nats["ce_posterior"]) / LN2
    saved = bootstrap(saved_bits, costs.targets, clusters=costs.documents, seed=costs.seed)
    return LatentUse(costs.cost(costs.nats["kl"]), costs.above_kappa, kappa, saved)


def pairs(a: RowCosts, b: RowCosts) -> dict[str, MetricPair]:
    """Each metric of A and of B, and B − A with its paired 95 % interval if both have it. A and B must have the same rows."""
    return {name: _pair(name, a, b) for name in METRICS}


def _pair(name: str, a: RowCosts, b: RowCosts) -> MetricPair:
    first, second = (one.cost(one.nats[name]) if name in one.nats else None for one in (a, b))
    if first is None or second is None:
        return MetricPair(first, second, difference=None, relative_percent=None)
    apart = a.cost(b.nats[name] - a.nats[name])
    difference = Difference(**asdict(apart), excludes_zero=apart.low > 0 or apart.high < 0)
    return MetricPair(first, second, difference, relative_percent(float(a.nats[name].sum()), float(b.nats[name].sum())))


def relative_percent(a: float, b: float) -> float:
    """100 (B − A) / |A|; 0 if both are zero, infinite if only A is."""
    if a == 0:
        return 0.0 if b == 0 else math.copysign(math.inf, b)
    return 100 * (b - a) / abs(a)


def positions(a: RowCosts, b: RowCosts) -> Positions:
    """CE + KL (a baseline's CE) at each position, in bits per token; NaN where no target is counted."""
    counted = np.where(a.position_targets, a.position_targets, np.nan)
    means_a, means_b = ((one.position_nats / (counted * LN2)).tolist() for one in (a, b))
    return Positions(means_a, means_b, a.position_targets.tolist())


def _sampling(source: DataSource, settings: Settings, prompt: str) -> SampleSpec | None:
    """How to sample; None for no samples. InputError, before the long part, if the models cannot continue the prompt."""
    if not settings.count:
        return None
    total = source.context + 1
    long = total - len(prompt_tokens(source.tokenizer, prompt)) > MOST_NEW_TOKENS
    new_tokens = MOST_NEW_TOKENS if long else None
    spec = SampleSpec(total=total, new_tokens=new_tokens, count=settings.count, prompt_z="prior", seed=settings.seed)
    check_prompts(source.tokenizer, [prompt], spec)
    return spec


def _side(one: Candidate) -> Side:
    """Everything that is known without building the model."""
    checkpoint = one.checkpoint
    home = checkpoint.folder.resolve().parent
    run = RunFolder(home.parent) if home.name == "checkpoints" and (home.parent / "recipe.toml").is_file() else None
    return Side(
        run=one.name,
        checkpoint=str(checkpoint.folder),
        kind=checkpoint.recipe.kind,
        step=checkpoint.step,
        sha256=checkpoint.weights_sha256,
        checkpoint_bytes=size_of(checkpoint.folder),
        train_tokens_per_second=_speed(run.timing_file) if run else None,
        curve=run.metrics() if run else [],
    )


def _speed(timing: Path) -> float | None:
    """The median rate in a run's timing.jsonl, tokens per second. Damaged lines are skipped: no result depends on this file."""
    rates = []
    for line in timing.read_text(encoding="utf-8", errors="replace").splitlines() if timing.is_file() else []:
        try:
            rates.append(float(json.loads(line)["tokens_per_second"]))
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
    return statistics.median(rates) if rates else None


def _row_kind(checkpoint: Checkpoint) -> str:
    """How rows are formed, `documents` or `packed`; `auto` means packed for text."""
    rows = checkpoint.recipe.data.rows
    return rows if rows != "auto" else "packed" if checkpoint.state["data"].get("task") is None else "documents"


def _context(a: Checkpoint, b: Checkpoint, names: str) -> int | None:
    """Positions T of a row. Packed rows can be cut to the shorter model's; documents cannot."""
    ours, theirs = a.recipe.model.context, b.recipe.model.context
    if ours == theirs or ours is None or theirs is None:
        return ours or theirs
    if _row_kind(a) != "packed":
        what = f"rows have {ours} positions for A, {theirs} for B (model.context), and documents cannot be cut"
        raise InputError(what, names, "compare models of the same model.context")
    return min(ours, theirs)
