"""`freetf sample`."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator
from itertools import chain, groupby
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Literal

import typer

from freetf_cli.cli.options import DeviceOption, JsonOption, RunArgument, SeedOption
from freetf_cli.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from freetf_cli.model.latent import Latent
    from freetf_cli.records.samples import Sample
    from freetf_cli.runs.checkpoint import Checkpoint

PromptOption = Annotated[
    list[str] | None,
    typer.Option("--prompt", metavar="TEXT|-", help="Text to continue, or - for one prompt per line of stdin. May be repeated."),
]
CountOption = Annotated[int, typer.Option("--count", "-n", min=1, help="Sequences per group.")]
ZOption = Annotated[
    str,
    typer.Option(
        "--z", metavar="independent|shared|FILE", help="Use one Z per sequence, one per group, or the Zs of a JSONL file (-: stdin)."
    ),
]
GroupsOption = Annotated[int, typer.Option("--groups", "-g", min=1, help="Groups per prompt.")]
PromptZOption = Annotated[
    Literal["posterior", "prior"],
    typer.Option("--prompt-z", metavar="posterior|prior", help="Infer the prompt's Z with the encoder, or draw it from the prior."),
]
TemperatureOption = Annotated[float, typer.Option("--temperature", min=0, help="Divide the logits by this; 0 takes the most likely token.")]
TopKOption = Annotated[int, typer.Option("--top-k", min=0, help="Sample from the k most likely tokens; 0: all.")]
TopPOption = Annotated[float, typer.Option("--top-p", min=0, max=1, help="Sample from the most likely tokens with this total probability.")]
PrecisionOption = Annotated[
    Literal["fp32", "bf16"],
    typer.Option(
        "--precision",
        metavar="fp32|bf16",
        help="Precision of the weights. bf16 halves their memory traffic. A replay with --z needs the same precision.",
    ),
]
MaxTokensOption = Annotated[
    int | None, typer.Option("--max-tokens", min=1, help="Tokens to generate; default: until the data's row length.")
]


def sample(
    run: RunArgument,
    prompt: PromptOption = None,
    count: CountOption = 1,
    z: ZOption = "independent",
    groups: GroupsOption = 1,
    prompt_z: PromptZOption = "posterior",
    temperature: TemperatureOption = 1.0,
    top_k: TopKOption = 0,
    top_p: TopPOption = 1.0,
    max_tokens: MaxTokensOption = None,
    precision: PrecisionOption = "fp32",
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
    from freetf_cli.report.console import warn
    from freetf_cli.runs.checkpoint import open_model

    for name, value in (("--temperature", temperature), ("--top-p", top_p)):
        if not math.isfinite(value):
            raise InputError(f"{name} {value}: not a finite number")
    checkpoint, model = open_model(run, resolve_device(device), warn)
    given, shared = _given_z(z, prompt or [], model.latent, run), z == "shared"
    if given is None and prompt_z == "posterior":
        _hint_prompt_z(model.latent)
    sharing: Literal["independent", "shared"] = "shared" if shared else "independent"
    total = (checkpoint.recipe.model.context or 1) + 1
    spec = SampleSpec(total, max_tokens, count, groups, sharing, given, prompt_z, temperature, top_k, top_p, seed)
    if precision == "bf16":
        model.bfloat16()
    prompts, tokenizer = read_prompts(prompt, checkpoint, seed), checkpoint.tokenizer()
    if isinstance(prompts, list):
        check_prompts(tokenizer, prompts, spec)
    records = generate(model, tokenizer, prompts, spec, together=isinstance(prompts, list))
    show_samples(records, checkpoint, shared=shared, json=json)


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


def _hint_prompt_z(latent: Latent | None) -> None:
    """Print a hint for a latent with a window, whose prompt may decide the whole sequence."""
    from freetf_cli.report.console import hint

    if latent is not None and latent.window is not None:
        hint(f"Z of the first {latent.window} positions decides the rest, and the prompt's Z is inferred; --prompt-z prior draws it")


def read_prompts(given: list[str] | None, checkpoint: Checkpoint, seed: int) -> Iterable[str]:
    """The prompts of the command line, with the lines of stdin for `-` as they arrive. The default is the task's prompt, or "" for text."""
    from freetf_cli.tasks import make_task

    if given is None:
        facts = checkpoint.state["data"]
        return [make_task(facts["task"], facts["params"]).prompt(seed, 0) if facts.get("task") else ""]
    if "-" not in given:
        return given
    return (prompt for text in given for prompt in (_texts(sys.stdin.buffer) if text == "-" else [text]))


def _texts(file: BinaryIO) -> Iterator[str]:
    from freetf_cli.generation.replay import text_lines

    return (line for _, line in text_lines(file, "stdin"))


def show_samples(records: Iterator[Sample], checkpoint: Checkpoint, *, shared: bool, json: bool) -> None:
    """Print samples as JSON lines, as lines of text, or, on a terminal and for data with known factors, as the boxes of Figure 4."""
    from freetf_cli.records import to_json
    from freetf_cli.records.samples import line_spans
    from freetf_cli.report import terminal
    from freetf_cli.tasks import spans_by_text

    if json:
        for record in records:
            typer.echo(to_json(record))
    elif sys.stdout.isatty() and _shows_factors(checkpoint):
        _show_boxes(list(records), checkpoint, shared=shared)
    else:
        facts = checkpoint.state["data"]
        for record in records:
            terminal.show_line(line_spans(record.text, record.prompt, spans_by_text(facts.get("task"), facts["params"], [record.text])))


def _shows_factors(checkpoint: Checkpoint) -> bool:
    """Whether the factors of the run's data can be read from a row."""
    from freetf_cli.tasks import make_task

    facts = checkpoint.state["data"]
    return bool(facts.get("task") and make_task(facts["task"], facts["params"]).factors)


def _show_boxes(records: list[Sample], checkpoint: Checkpoint, *, shared: bool) -> None:
    from freetf_cli.evaluation.probe.agreement import group_agreement
    from freetf_cli.records import DataFacts
    from freetf_cli.records.samples import SampleGroups, agreement_table
    from freetf_cli.report import terminal
    from freetf_cli.tasks import spans_by_text

    facts = DataFacts(**checkpoint.state["data"])
    for prompt, rows in groupby(records, key=lambda record: record.prompt):
        groups = [[row.text for row in group] for _, group in groupby(rows, key=lambda row: row.group)]
        found = group_agreement(groups, facts) if shared else []
        spans = spans_by_text(facts.task, facts.params, chain.from_iterable(groups))
        boxes = SampleGroups("", shared, groups, prompt, spans).block(latent=checkpoint.recipe.latent is not None)
        terminal.show_blocks([boxes, agreement_table(found)])
