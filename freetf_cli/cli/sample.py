"""`freetf sample`."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator
from itertools import chain, groupby
from typing import TYPE_CHECKING, Annotated, BinaryIO, Literal

import typer

from freetf_cli.cli.options import DeviceOption, JsonOption, RunArgument, SeedOption
from freetf_cli.errors import InputError

if TYPE_CHECKING:
    from freetf_cli.records.samples import Sample
    from freetf_cli.runs.checkpoint import Checkpoint

PromptOption = Annotated[
    list[str] | None,
    typer.Option("--prompt", metavar="TEXT|-", help="Text to continue; -: one prompt for each line of stdin. May be repeated."),
]
CountOption = Annotated[int, typer.Option("--count", "-n", min=1, help="Sequences in each group.")]
ZOption = Annotated[
    str,
    typer.Option(
        "--z", metavar="independent|shared|FILE", help="One Z for each sequence, one for each group, or the Zs of a JSONL file (-: stdin)."
    ),
]
GroupsOption = Annotated[int, typer.Option("--groups", "-g", min=1, help="Groups for each prompt.")]
PromptZOption = Annotated[
    Literal["posterior", "prior"],
    typer.Option("--prompt-z", metavar="posterior|prior", help="The prompt's own Z: inferred by the encoder, or drawn."),
]
TemperatureOption = Annotated[float, typer.Option("--temperature", min=0, help="0: always take the likeliest token.")]
TopKOption = Annotated[int, typer.Option("--top-k", min=0, help="Only the k likeliest tokens; 0: all.")]
TopPOption = Annotated[float, typer.Option("--top-p", min=0, max=1, help="Only the likeliest tokens that make up this share.")]
PrecisionOption = Annotated[
    Literal["fp32", "bf16"],
    typer.Option(
        "--precision",
        metavar="fp32|bf16",
        help="Precision of the weights; bf16 halves the memory to read. A replay with --z needs the same precision.",
    ),
]
MaxTokensOption = Annotated[
    int | None, typer.Option("--max-tokens", min=1, help="Tokens to generate; default: up to the data's row length.")
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
    """Generate sequences: groups × count rows for each prompt, group by group.

    Without --prompt the data's own prompt is used. --json writes one record a line with its Z; --z FILE replays each of them.

    $ freetf sample runs/letters-free --prompt 'K>' --z shared --groups 3 --count 8
    $ freetf sample runs/letters-free --count 4 --json > z.jsonl
    $ freetf sample runs/letters-free --count 4 --z z.jsonl
    $ freetf sample runs/books-free --prompt 'Once upon a time' --max-tokens 500 --precision bf16
    """
    from freetf_cli.device import resolve_device
    from freetf_cli.generation.replay import read_z_file
    from freetf_cli.generation.sampling import SampleSpec, check_prompts, generate
    from freetf_cli.report.console import hint, warn
    from freetf_cli.runs.checkpoint import open_model

    for name, value in (("--temperature", temperature), ("--top-p", top_p)):
        if not math.isfinite(value):
            raise InputError(f"{name} {value}: not a finite number")
    checkpoint, model = open_model(run, resolve_device(device), warn)
    shared, given = z == "shared", None
    if model.latent is None:
        if z != "independent":
            raise InputError(f"--z {z}: this run is a baseline, it has no Z", str(run))
    elif z not in ("independent", "shared"):
        if z == "-" and "-" in (prompt or []):
            raise InputError("--prompt - and --z - cannot both read stdin")
        given = read_z_file(z, model.latent)
    elif (window := model.latent.window) is not None and prompt_z == "posterior":
        hint(f"Z of the first {window} positions decides the rest, and the prompt's Z is inferred; --prompt-z prior draws it")
    spec = SampleSpec(
        total=(checkpoint.recipe.model.context or 1) + 1,
        new_tokens=max_tokens,
        count=count,
        groups=groups,
        z="shared" if shared else "independent",
        given_z=given,
        prompt_z=prompt_z,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
    )
    if precision == "bf16":
        model.bfloat16()
    prompts, tokenizer = read_prompts(prompt, checkpoint, seed), checkpoint.tokenizer()
    if isinstance(prompts, list):
        check_prompts(tokenizer, prompts, spec)
    records = generate(model, tokenizer, prompts, spec, together=isinstance(prompts, list))
    show_samples(records, checkpoint, shared=shared, json=json)


def read_prompts(given: list[str] | None, checkpoint: Checkpoint, seed: int) -> Iterable[str]:
    """Prompts from the command line and, for `-`, the lines of stdin as they arrive; without any, the task's own (none for text)."""
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
    """JSON lines; plain lines in a pipe; on a terminal the boxes of Figure 4 where rows show their factors, else running text."""
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
    """Whether the factors of the run's data can be seen in a row."""
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
