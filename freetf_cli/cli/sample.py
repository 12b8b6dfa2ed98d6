"""`freetf sample`."""

from __future__ import annotations

import json as json_text
import math
import sys
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
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
    from freetf_cli.generation.sampling import SampleSpec, check_prompts, generate
    from freetf_cli.model.free_transformer import FreeTransformer
    from freetf_cli.report.console import hint, warn
    from freetf_cli.runs.checkpoint import open_model

    for name, value in (("--temperature", temperature), ("--top-p", top_p)):
        if not math.isfinite(value):
            raise InputError(f"{name} {value}: not a finite number")
    checkpoint, model = open_model(run, resolve_device(device), warn)
    shared, given = z == "shared", None
    if not isinstance(model, FreeTransformer):
        if z != "independent":
            raise InputError(f"--z {z}: this run is a baseline, it has no Z", str(run))
    elif z not in ("independent", "shared"):
        if z == "-" and "-" in (prompt or []):
            raise InputError("--prompt - and --z - cannot both read stdin")
        given = read_codes(z, model.latent.bits)
    elif model.latent.window is not None and prompt_z == "posterior":
        hint(f"Z of the first {model.latent.window} positions decides the rest, and the prompt's Z is inferred; --prompt-z prior draws it")
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
    return (line for _, line in _lines(file, "stdin"))


def read_codes(source: str, bits: int) -> list[list[int]]:
    """Z records of a JSONL file as `sample --json` writes it: each line is an object with `z`, or a list of codes."""
    path = Path(source)
    if source == "-":
        found = _all_codes(sys.stdin.buffer, bits, "stdin")
    else:
        try:
            with path.open("rb") as file:
                found = _all_codes(file, bits, source)
        except OSError as error:
            raise InputError(
                f"--z: the file cannot be read: {error.strerror}", source, "independent and shared are the other choices"
            ) from None
    if not found:
        raise InputError("--z: the file holds no record", source)
    return found


def _all_codes(file: BinaryIO, bits: int, where: str) -> list[list[int]]:
    return [_codes(line, bits, f"{where}, line {number}") for number, line in _lines(file, where)]


def _codes(line: str, bits: int, where: str) -> list[int]:
    try:
        record = json_text.loads(line)
    except (ValueError, RecursionError):
        raise InputError("--z: not a line of JSON", where) from None
    codes = record.get("z") if isinstance(record, dict) else record
    if not isinstance(codes, list) or not codes or any(type(code) is not int for code in codes):
        raise InputError("--z: a record needs a list of whole numbers named 'z'", where)
    wrong = next((code for code in codes if not 0 <= code < 2**bits), None)
    if wrong is not None:
        raise InputError(f"--z: code {str(wrong)[:30]} is outside 0 … {2**bits - 1}", where, f"this model has {bits} bits of Z a token")
    return codes


def _lines(file: BinaryIO, where: str) -> Iterator[tuple[int, str]]:
    """Numbered lines of UTF-8 text without their ends; a byte order mark and empty lines are skipped."""
    for number, raw in enumerate(file, start=1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            raise InputError("not UTF-8 text", f"{where}, line {number}") from None
        if line:
            yield number, line


def show_samples(records: Iterator[Sample], checkpoint: Checkpoint, *, shared: bool, json: bool) -> None:
    """JSON lines; plain lines in a pipe; on a terminal the boxes of Figure 4 for letters, else running text."""
    from freetf_cli.records import to_json
    from freetf_cli.records.samples import line_spans
    from freetf_cli.report import terminal

    if json:
        for record in records:
            typer.echo(to_json(record))
    elif sys.stdout.isatty() and checkpoint.state["data"].get("task") == "letters":
        _show_boxes(list(records), checkpoint, shared=shared)
    else:
        for record in records:
            terminal.show_line(line_spans(record.text, record.prompt))


def _show_boxes(records: list[Sample], checkpoint: Checkpoint, *, shared: bool) -> None:
    from freetf_cli.evaluation.probe.agreement import letters_agreement
    from freetf_cli.records import DataFacts
    from freetf_cli.records.samples import SampleGroups, agreement_table
    from freetf_cli.report import terminal

    for prompt, rows in groupby(records, key=lambda record: record.prompt):
        groups = [[row.text for row in group] for _, group in groupby(rows, key=lambda row: row.group)]
        found = letters_agreement(groups, DataFacts(**checkpoint.state["data"])) if shared else []
        boxes = SampleGroups("", shared, groups, prompt).block(latent=checkpoint.recipe.latent is not None)
        terminal.show_blocks([boxes, agreement_table(found)])
