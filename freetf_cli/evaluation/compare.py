"""Compares two checkpoints on the same held-out rows: which is better, by how much, and with what certainty.

Every difference B − A is paired by sequence: the difficulty of a sequence cancels, so the interval is much narrower than those of A and B.
A Free model's nll is an upper bound, a baseline's is exact. A posterior CE is never compared with a baseline's CE, because its Z was
inferred from the sequence itself.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from freetf_cli.config.files import differences
from freetf_cli.data.batches import DataSource
from freetf_cli.errors import InputError
from freetf_cli.evaluation.checks import Check, check_kinds
from freetf_cli.evaluation.likelihood import RowCosts, row_costs
from freetf_cli.evaluation.paired import pairs, positions
from freetf_cli.evaluation.posterior import latent_of
from freetf_cli.evaluation.run_data import check_split, open_run_data
from freetf_cli.evaluation.statistics import bootstrap, check_enough
from freetf_cli.evaluation.weights import compare_weights
from freetf_cli.generation.sampling import SampleSpec, check_prompts, generate, prompt_tokens
from freetf_cli.model.decoder import Decoder
from freetf_cli.records import LN2
from freetf_cli.records.compare import Comparison, LatentUse, SamplePair, Side
from freetf_cli.records.recipes import Setting
from freetf_cli.runs.checkpoint import MANIFEST, Checkpoint
from freetf_cli.runs.folder import RunFolder
from freetf_cli.training.plan import plan_run

MOST_NEW_TOKENS = 256  # of a sample, so that two fit side by side

Advance = Callable[[int], None]
Watch = Callable[[str, int | None], AbstractContextManager[Advance]]


@contextmanager
def unwatched(what: str, total: int | None) -> Iterator[Advance]:
    """Show no progress."""
    yield lambda _: None


@dataclass(frozen=True)
class Candidate:
    """A model to compare: the name that the user gave, and the checkpoint."""

    name: str
    checkpoint: Checkpoint


@dataclass(frozen=True)
class Settings:
    """How to compare. data: a folder instead of the runs' own data. samples: draws of the importance bound. count: shown samples."""

    data: Path | None = None
    split: str = "val"
    sequences: int = 256
    samples: int = 16
    count: int = 4
    prompt: str | None = None
    seed: int = 0
    checks: Sequence[Check] = ()


def compare(a: Candidate, b: Candidate, settings: Settings, *, device: torch.device, watch: Watch = unwatched) -> Comparison:
    """Compare B with A. The models are on `device` one at a time; equal models are not built.

    InputError if they cannot be compared: different tokenizers, data or lengths of rows, or a check that a baseline does not have.
    """
    check_kinds(settings.checks, a.checkpoint.recipe.kind, b.checkpoint.recipe.kind)
    recipe = [Setting(*row) for row in differences(a.checkpoint.recipe, b.checkpoint.recipe)]
    side_a, side_b = _side(a), _side(b)
    if same_model(a.checkpoint, b.checkpoint):
        return Comparison(side_a, side_b, equal=True, recipe=recipe, checks=[check.decide(None) for check in settings.checks])
    source = common_data(a, b, settings.data)
    check_split(source, settings.split, a.checkpoint)
    settings = replace(settings, sequences=_sequences(source, settings), prompt=_prompt(source, settings))
    with watch("tensors", None) as advance:
        weights = compare_weights(_weights(a), _weights(b), advance)
    with watch("sequences", 2 * settings.sequences) as advance:
        found_a, found_b = (_measure(one, source, settings, device, advance) for one in (a, b))
    metrics = pairs(found_a.costs, found_b.costs, source.bytes_per_token.get(settings.split), settings.seed)
    return Comparison(
        _with_measured(side_a, a, found_a),
        _with_measured(side_b, b, found_b),
        equal=False,
        recipe=recipe,
        checks=[check.decide(metrics[check.metric]) for check in settings.checks],
        facts=source.facts,
        split=settings.split,
        sequences=len(found_a.costs.tokens),
        tokens=int(found_a.costs.tokens.sum()),
        importance_samples=settings.samples,
        seed=settings.seed,
        floor_bits=source.facts.floor_bits,
        weights=weights,
        metrics=metrics,
        by_position=positions(found_a.costs, found_b.costs),
        samples=SamplePair(settings.prompt or "", settings.seed, found_a.samples, found_b.samples) if settings.count else None,
    )


def same_model(a: Checkpoint, b: Checkpoint) -> bool:
    """Whether weights, tokenizer and architecture are equal, by the hashes that were verified when the checkpoints were opened."""
    ours, theirs = _hashes(a), _hashes(b)
    same = all(ours[name] == theirs[name] for name in ("model.safetensors", "tokenizer.json"))
    return same and a.recipe.architecture == b.recipe.architecture


def common_data(a: Candidate, b: Candidate, folder: Path | None) -> DataSource:
    """The data to measure both on: their common training data, or a folder that fits both."""
    one, other = a.checkpoint, b.checkpoint
    names = f"{a.name} and {b.name}"
    if one.tokenizer().sha256 != other.tokenizer().sha256:
        raise InputError("the tokenizers differ (by SHA-256): metrics of the two cannot be compared", names)
    if folder is None and one.state["data"]["sha256"] != other.state["data"]["sha256"]:
        raise InputError("the two were trained on different data (by SHA-256)", names, "name the data to measure both on with --data DIR")
    if _rows(one) != _rows(other):
        what = f"rows of the data differ: {_rows(one)} for A, {_rows(other)} for B (data.rows)"
        raise InputError(what, names, "compare models with the same data.rows")
    context = _context(one, other, names)
    source = open_run_data(one, folder, context)
    if folder is not None:
        open_run_data(other, folder, context)  # raises if it does not fit B
    return source


@dataclass(frozen=True, eq=False)
class _Measured:
    costs: RowCosts
    latent: LatentUse | None
    samples: list[str]


def _measure(one: Candidate, source: DataSource, settings: Settings, device: torch.device, advance: Advance) -> _Measured:
    """Measure everything that needs the model. The model is freed on return."""
    model = one.checkpoint.model(device)
    costs = row_costs(
        model,
        source,
        split=settings.split,
        sequences=settings.sequences,
        samples=(settings.samples,),
        seed=settings.seed,
        advance=advance,
    )
    latent = _latent_use(model, costs, source, settings) if model.latent is not None else None
    if not settings.count:
        return _Measured(costs, latent, [])
    spec = _sample_spec(source, settings)
    return _Measured(costs, latent, [sample.text for sample in generate(model, source.tokenizer, [settings.prompt or ""], spec)])


def _sample_spec(source: DataSource, settings: Settings) -> SampleSpec:
    total = source.context + 1
    room = total - len(prompt_tokens(source.tokenizer, settings.prompt or ""))
    new = MOST_NEW_TOKENS if room > MOST_NEW_TOKENS else None
    return SampleSpec(total=total, new_tokens=new, count=settings.count, prompt_z="prior", seed=settings.seed)


def _prompt(source: DataSource, settings: Settings) -> str:
    """The user's prompt, or the task's. InputError, before the long part, if the models cannot continue it."""
    prompt = source.prompt(settings.seed, 0) if settings.prompt is None else settings.prompt
    if settings.count:
        check_prompts(source.tokenizer, [prompt], _sample_spec(source, replace(settings, prompt=prompt)))
    return prompt


def _sequences(source: DataSource, settings: Settings) -> int:
    """The requested number of sequences, or all if there are fewer."""
    available = source.rows.size(settings.split)
    count = settings.sequences if available is None else min(settings.sequences, available)
    check_enough(count, "sequences", f"--sequences, or more data in split '{settings.split}'")
    return count


def _latent_use(model: Decoder, costs: RowCosts, source: DataSource, settings: Settings) -> LatentUse:
    kl, prior, posterior, above = costs.kl, costs.ce_prior, costs.ce_posterior, costs.above_kappa
    assert kl is not None and prior is not None and posterior is not None and above is not None
    saved = bootstrap((prior - posterior) / LN2, costs.tokens, clusters=costs.documents, seed=settings.seed)
    ratio = source.bytes_per_token.get(settings.split)
    return LatentUse(costs.cost(kl, ratio, settings.seed), above, latent_of(model).kappa, saved)


def _weights(one: Candidate) -> Path:
    return one.checkpoint.folder / "model.safetensors"


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
        sha256=_hashes(checkpoint)["model.safetensors"],
        checkpoint_bytes=sum(file.stat().st_size for file in checkpoint.folder.iterdir()),
        train_tokens_per_second=_speed(run.timing_file) if run else None,
        curve=run.metrics() if run else [],
    )


def _with_measured(side: Side, one: Candidate, found: _Measured) -> Side:
    plan = plan_run(one.checkpoint.recipe, one.name, bf16=False)
    return replace(
        side,
        parameters=plan.parameters,
        train_flops_per_token=plan.train_flops_per_token,
        evaluation_seconds=found.costs.seconds,
        latent=found.latent,
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


def _hashes(checkpoint: Checkpoint) -> dict[str, str]:
    lines = (checkpoint.folder / MANIFEST).read_text(encoding="utf-8").splitlines()
    return {name: digest for digest, name in (line.split("  ", 1) for line in lines)}


def _rows(checkpoint: Checkpoint) -> str:
    """How rows are formed, `documents` or `packed`. `auto` means packed for text."""
    rows = checkpoint.recipe.data.rows
    return rows if rows != "auto" else "packed" if checkpoint.state["data"].get("task") is None else "documents"


def _context(a: Checkpoint, b: Checkpoint, names: str) -> int | None:
    """Positions T of a row. Packed rows can be cut to the shorter model's; documents cannot."""
    ours, theirs = a.recipe.model.context, b.recipe.model.context
    if ours == theirs or ours is None or theirs is None:
        return ours or theirs
    if _rows(a) != "packed":
        what = f"rows have {ours} positions for A, {theirs} for B (model.context), and documents cannot be cut"
        raise InputError(what, names, "compare models of the same model.context")
    return min(ours, theirs)
