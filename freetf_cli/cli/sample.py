"""`freetf sample`."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from freetf_cli.cli.options import DeviceOption, JsonOption, RunArgument, SeedOption
from freetf_cli.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from freetf_cli.model.latent import Latent
    from freetf_cli.records import DataFacts
    from freetf_cli.records.samples import Sample, SampleGroups
    from freetf_cli.runs.checkpoint import Checkpoint
    from freetf_cli.tasks.base import Task


def sample(
    run: RunArgument,
    prompt: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT|-", help="Text to continue, or - for one prompt per line of stdin. May be repeated."),
    ] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Sequences per group.")] = 1,
    z: Annotated[
        str,
        typer.Option(metavar="independent|shared|FILE", help="One Z per sequence, one per group, or the Zs of a JSONL file (-: stdin)."),
    ] = "independent",
    groups: Annotated[int, typer.Option("--groups", "-g", min=1, help="Groups per prompt.")] = 1,
    prompt_z: Annotated[
        Literal["posterior", "prior"],
        typer.Option(metavar="posterior|prior", help="Infer the prompt's Z with the encoder, or draw it from the prior."),
    ] = "posterior",
    temperature: Annotated[float, typer.Option(min=0, help="Divide the logits by this; 0 takes the most likely token.")] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Sample from the k most likely tokens; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Sample from the most likely tokens with this total probability.")] = 1.0,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens to generate; default: until the data's row length.")] = None,
    precision: Annotated[
        Literal["fp32", "bf16"],
        typer.Option(metavar="fp32|bf16", help="Precision of the weights. A replay with --z needs the same one."),
    ] = "fp32",
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    json: JsonOption = False,
) -> None:
    """Generate sequences: groups × count for each prompt, group by group.

    The default prompt is the task's. --json writes one record per line with its Z, and --z FILE replays these records.

    $ freetf sample runs/letters-free --prompt 'K>' --z shared --groups 3 --count 8
    $ freetf sample runs/letters-free --count 4 --json > z.jsonl
    $ freetf sample runs/letters-free --count 4 --z z.jsonl
    $ freetf sample runs/books-free --prompt 'Once upon a time' --max-tokens 500 --precision bf16
    """
    from freetf_cli.device import resolve_device
    from freetf_cli.generation.sampling import SampleSpec, check_prompts, generate
    from freetf_cli.report.console import hint, warn
    from freetf_cli.runs.checkpoint import open_model

    for name, value in (("--temperature", temperature), ("--top-p", top_p)):
        if not math.isfinite(value):
            raise InputError(f"{name} {value}: not a finite number")
    checkpoint, model = open_model(run, resolve_device(device), warn)
    given, tokenizer = _given_z(z, prompt or [], model.latent, run), checkpoint.tokenizer()
    if given is None and prompt_z == "posterior" and model.latent is not None and (window := model.latent.window):
        hint(f"Z of the first {window} positions decides the rest, and the prompt's Z is inferred; --prompt-z prior draws it")
    total, shared = (checkpoint.recipe.model.context or 1) + 1, z == "shared"
    sharing: Literal["independent", "shared"] = "shared" if shared else "independent"
    spec = SampleSpec(total, max_tokens, count, groups, sharing, given, prompt_z, temperature, top_k, top_p, seed)
    if precision == "bf16":
        model.bfloat16()
    prompts = read_prompts(prompt, checkpoint, seed)
    if isinstance(prompts, list):
        check_prompts(tokenizer, prompts, spec)
    samples = generate(model, tokenizer, prompts, spec, together=isinstance(prompts, list))
    show_samples(samples, checkpoint, shared=shared, json=json)


def _given_z(z: str, prompts: list[str], latent: Latent | None, run: Path) -> list[list[Any]] | None:
    """The Zs of a file, or None if --z names no file; InputError for a baseline."""
    from freetf_cli.generation.replay import read_z_file

    if latent is None and z != "independent":
        raise InputError(f"--z {z}: this run is a baseline, it has no Z", str(run))
    if latent is None or z in ("independent", "shared"):
        return None
    if z == "-" and "-" in prompts:
        raise InputError("--prompt - and --z - cannot both read stdin")
    return read_z_file(z, latent)


def read_prompts(given: list[str] | None, checkpoint: Checkpoint, seed: int) -> Iterable[str]:
    """The prompts of the command line, with the lines of stdin for `-` as they arrive. The default is the task's prompt, or "" for text."""
    from freetf_cli.generation.replay import text_lines

    if given is None:
        task = _task(checkpoint)
        return [task.prompt(seed, 0) if task else ""]
    if "-" not in given:
        return given
    lines = (line for _, line in text_lines(sys.stdin.buffer, "stdin"))
    return chain.from_iterable(lines if text == "-" else [text] for text in given)


def _task(checkpoint: Checkpoint) -> Task | None:
    """The task that generated the run's data; None for text."""
    from freetf_cli.tasks import make_task

    facts = checkpoint.state["data"]
    return make_task(facts["task"], facts["params"]) if facts.get("task") else None


def show_samples(samples: Iterator[Sample], checkpoint: Checkpoint, *, shared: bool, json: bool) -> None:
    """Print samples as JSON lines, as lines of text, or, on a terminal and for data with known factors, as the boxes of Figure 4."""
    from freetf_cli.evaluation.probe.agreement import group_agreement
    from freetf_cli.records import DataFacts, to_json
    from freetf_cli.records.samples import agreement_table, line_spans
    from freetf_cli.report import terminal
    from freetf_cli.tasks import spans_by_text

    facts = DataFacts.read(checkpoint.state["data"])
    if json:
        for sample in samples:
            typer.echo(to_json(sample))
    elif sys.stdout.isatty() and (task := _task(checkpoint)) and task.factors:
        for _, rows in groupby(list(samples), key=lambda one: one.prompt):
            groups = figure4(list(rows), facts, shared=shared)
            found = group_agreement(groups.groups, facts) if shared else []
            terminal.show_blocks([groups.block(latent=checkpoint.recipe.latent is not None), agreement_table(found)])
    else:
        for sample in samples:
            terminal.show_line(line_spans(sample.text, sample.prompt, spans_by_text(facts.task, facts.params, [sample.text])))


def figure4(samples: Sequence[Sample], facts: DataFacts, *, shared: bool) -> SampleGroups:
    """The samples of one prompt by group, as in the paper's Figure 4."""
    from freetf_cli.records.samples import SampleGroups
    from freetf_cli.tasks import spans_by_text

    groups = [[sample.text for sample in group] for _, group in groupby(samples, key=lambda one: one.group)]
    spans = spans_by_text(facts.task, facts.params, chain.from_iterable(groups))
    return SampleGroups("", shared, groups, samples[0].prompt, spans)
