"""`freetf sample`."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import chain, groupby, islice
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from freetf_cli.cli.options import DeviceOption, JsonOption, RunArgument
from freetf_cli.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from freetf_cli.data.tokenizer import Tokenizer
    from freetf_cli.generation.replay import ZFile
    from freetf_cli.generation.sampling import SampleSpec
    from freetf_cli.model.decoder import Decoder
    from freetf_cli.model.latent import Latent
    from freetf_cli.records import DataFacts
    from freetf_cli.records.samples import Sample, SampleGroups
    from freetf_cli.runs.checkpoint import Checkpoint
    from freetf_cli.tasks.base import Task

Settings = dict[str, Any]
DEFAULTS: Settings = {"seed": 0, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_tokens": None, "precision": "fp32"}
CHOSEN = {"prompt", "prompt_index", "group", "index", "length of z"}  # may differ from a record only because of options
CHECKED = 10_000  # records of a file that are checked before the first is replayed, so that a bad one is refused early
BOXED = 1024  # sequences for one prompt; more are printed line by line as they are generated, not in boxes


def sample(
    run: RunArgument,
    prompt: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT|-", help="Text to continue, or - for one prompt per line of stdin. May be repeated."),
    ] = None,
    count: Annotated[int | None, typer.Option("--count", "-n", min=1, help="Sequences per group. Default: 1.")] = None,
    z: Annotated[
        str,
        typer.Option(metavar="independent|shared|FILE", help="One Z per sequence, one per group, or the Zs of a JSONL file (-: stdin)."),
    ] = "independent",
    z_from: Annotated[
        str | None,
        typer.Option(metavar="TEXT|FILE", help="Infer Z from this example, or the one in a file; beyond its end, draw Z from the prior."),
    ] = None,
    groups: Annotated[int | None, typer.Option("--groups", "-g", min=1, help="Groups per prompt. Default: 1.")] = None,
    prompt_z: Annotated[
        Literal["posterior", "prior"] | None,
        typer.Option(
            metavar="posterior|prior",
            help="Infer the prompt's Z with the encoder, or draw it from the prior. Default: posterior; with --z shared, prior.",
        ),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="Divide the logits by this; 0 takes the most likely token. Default: 1.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(min=0, help="Sample from the k most likely tokens; 0, the default: from all.")] = None,
    top_p: Annotated[
        float | None, typer.Option(min=0, max=1, help="Sample from the most likely tokens with this total probability. Default: 1.")
    ] = None,
    interactive: Annotated[
        bool,
        typer.Option("--interactive", "-i", help="Read commands that change the prompt, Z or the tokens one at a time and keep the rest."),
    ] = False,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens to generate; default: until the data's row length.")] = None,
    precision: Annotated[
        Literal["fp32", "bf16"] | None, typer.Option(metavar="fp32|bf16", help="Precision of the weights. Default: fp32.")
    ] = None,
    device: DeviceOption = "auto",
    seed: Annotated[int | None, typer.Option(min=0, max=2**32 - 1, help="Seed of every random draw. Default: 0.")] = None,
    json: JsonOption = False,
) -> None:
    """Generate sequences: groups × count for each prompt, group by group.

    The default prompt is the task's. --json writes one record per line with its Z and its settings. --z FILE alone replays the records;
    with --prompt, --count or --groups it gives their Zs to other sequences. Settings that are left out are then the first record's.

    $ freetf sample runs/letters-free --prompt 'K>' --z shared --groups 3 --count 8
    $ freetf sample runs/letters-free --count 4 --json > z.jsonl
    $ freetf sample runs/letters-free --z z.jsonl
    $ freetf sample runs/reviews-free --z-from 'A dull film.' --prompt 'I saw ' --count 4
    $ freetf sample runs/letters-free --prompt 'K>' --count 4 --interactive
    $ freetf sample runs/books-free --prompt 'Once upon a time' --max-tokens 500 --precision bf16
    """
    from freetf_cli.device import resolve_device
    from freetf_cli.generation.sampling import SampleSpec, check_prompts, generate
    from freetf_cli.records import DataFacts
    from freetf_cli.report.console import warn
    from freetf_cli.runs.checkpoint import open_model

    if interactive and (z != "independent" or z_from is not None or groups or prompt_z or len(prompt or []) > 1 or "-" in (prompt or [])):
        raise InputError("--interactive has one prompt and one Z of its own", hint="leave out --z, --z-from, --groups and --prompt-z")
    asked = _asked(seed=seed, temperature=temperature, top_k=top_k, top_p=top_p, max_tokens=max_tokens, precision=precision)
    checkpoint, model = open_model(run, resolve_device(device), warn)
    records, tokenizer, task = _z_file(z, prompt or [], model.latent, run), checkpoint.tokenizer(), _task(checkpoint)
    settings = DEFAULTS | (records.first.settings() if records else {}) | asked
    if settings["precision"] == "bf16":
        model.bfloat16()
    _check_memory(model, settings["max_tokens"])
    row = (checkpoint.recipe.model.context or 1) + 1
    spec = _with_settings(
        SampleSpec(row, None, count or 1, groups or 1, "shared" if z == "shared" else "independent", records, prompt_z), settings
    )
    if z_from is not None:
        _check_z_from(z, prompt_z, model.latent, run)
        spec = _like(model, tokenizer, _example(z_from), spec)
    facts = {"precision": settings["precision"], "checkpoint": checkpoint.weights_sha256}
    given = None if records is None else records.first.prompt
    default = given if given is not None else task.prompt(spec.seed, 0) if task else ""
    if interactive:
        from freetf_cli.cli.interactive import run_session
        from freetf_cli.generation.session import Session

        session = Session(model, tokenizer, prompt[0] if prompt else default, spec, cache(warn))
        run_session(session, DataFacts.read(checkpoint.state["data"]), facts, json=json)
        return
    if records is not None and prompt is None and count is None and groups is None:
        samples = _replayed(model, tokenizer, records, spec, asked, default)
    else:
        prompts = read_prompts(prompt or [default])
        if isinstance(prompts, list):
            check_prompts(tokenizer, prompts, spec)
        samples = generate(model, tokenizer, prompts, spec, together=isinstance(prompts, list), warn=cache(warn))
    named = 0 if prompt is None or "-" in prompt or count or groups else len(prompt)
    _give_hints(spec, model.latent, records, named)
    show_samples(_compared(samples, records.name if records else "", asked, facts), checkpoint, task, spec, json=json)


def _asked(**given: float | str | None) -> Settings:
    """The settings that the command line gives."""
    for name, value in given.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"--{name.replace('_', '-')} {value}: not a finite number")
    return {name: value for name, value in given.items() if value is not None}


def _z_file(z: str, prompts: list[str], latent: Latent | None, run: Path) -> ZFile | None:
    """The records of a file, or None if --z names no file; InputError for a baseline."""
    from freetf_cli.generation.replay import ZFile

    if latent is None and z != "independent":
        raise InputError(f"--z {z}: this run is a baseline, it has no Z", str(run))
    if latent is None or z in ("independent", "shared"):
        return None
    if z == "-" and "-" in prompts:
        raise InputError("--prompt - and --z - cannot both read stdin")
    return ZFile(z, latent)


def _check_z_from(z: str, prompt_z: str | None, latent: Latent | None, run: Path) -> None:
    if latent is None:
        raise InputError("--z-from: this run is a baseline, it has no Z", str(run))
    if z not in ("independent", "shared"):
        raise InputError(f"--z-from and --z {z} both give Z", hint="give only one of them")
    if prompt_z is not None:
        raise InputError(f"--z-from gives the prompt's Z too, not --prompt-z {prompt_z}", hint="give only one of them")


def _example(text_or_file: str) -> str:
    """The text of an existing file of this name, without its last line end; otherwise the text itself."""
    import os
    from pathlib import Path

    from freetf_cli.durable import read_small
    from freetf_cli.report.console import note

    if not os.path.isfile(text_or_file):  # noqa: PTH113 (pathlib raises an error for a text that is too long for a path)
        return text_or_file
    try:
        text = read_small(Path(text_or_file)).decode("utf-8-sig").removesuffix("\n")
    except UnicodeDecodeError:
        raise InputError("not UTF-8 text", text_or_file) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", text_or_file) from None
    note(f"Z is inferred from the text of the file {text_or_file}")
    return text


def _like(model: Decoder, tokenizer: Tokenizer, example: str, spec: SampleSpec) -> SampleSpec:
    """The settings with Zs inferred from an example: one per sequence, or one per group with --z shared."""
    from freetf_cli.generation.example import infer_z

    shared = spec.z == "shared"
    keys = [(group, 0 if shared else index) for group in range(spec.groups) for index in range(1 if shared else spec.count)]
    found = infer_z(model, tokenizer, example, spec.total - 1 + (spec.new_tokens or 0), spec.seed, keys)
    return replace(spec, given_z=[z for z in found for _ in range(spec.count if shared else 1)])


def _give_hints(spec: SampleSpec, latent: Latent | None, records: ZFile | None, prompts: int) -> None:
    """Print hints where the effect of Z may be unexpected. prompts: the number of --prompt options if each gets one sequence, else 0."""
    from freetf_cli.report.console import hint

    if records is None and latent is not None and latent.window and spec.source == "posterior":
        hint(f"Z of the first {latent.window} positions decides the rest, and the prompt's Z is inferred; --prompt-z prior draws it")
    if records is not None and spec.prompt_z is not None:
        hint(f"--prompt-z {spec.prompt_z} changes nothing: {records.name} gives the prompt's Z too")
    if records is not None and prompts and (records.count(prompts + 1) or 0) > prompts:
        hint(f"{records.name} has more records than one for each prompt; --count says how many to use")


def _check_memory(model: Decoder, tokens: int | None) -> None:
    """Raise InputError if one sequence with this many new tokens needs more memory than the device has."""
    from freetf_cli.generation.batch import row_bytes
    from freetf_cli.report.units import size
    from freetf_cli.training.memory import device_memory

    device = model.embedding.weight.device
    needed, (_, total) = row_bytes(model, tokens or 1), device_memory(device)
    if needed > total:
        what = f"--max-tokens {tokens} needs {size(needed)} of memory for one sequence, and {device.type} has {size(total)}"
        raise InputError(what, hint=f"the model's context is {model.config.context} tokens")


def _replayed(model: Decoder, tokenizer: Tokenizer, records: ZFile, spec: SampleSpec, asked: Settings, prompt: str) -> Iterator[Sample]:
    """The sequence of each record, with the record's settings unless the command line overrides them."""
    from freetf_cli.generation.sampling import replay
    from freetf_cli.report.console import warn

    records.count(CHECKED)
    warn_once = cache(warn)
    for chosen, same in groupby(records, key=lambda record: DEFAULTS | record.settings() | asked):
        yield from replay(model, tokenizer, same, _with_settings(spec, chosen), prompt, warn=warn_once)


def _with_settings(spec: SampleSpec, settings: Settings) -> SampleSpec:
    choice = {name: settings[name] for name in ("temperature", "top_k", "top_p", "seed")}
    return replace(spec, new_tokens=settings["max_tokens"], **choice)


def _compared(samples: Iterator[Sample], source: str, asked: Settings, facts: Settings) -> Iterator[Sample]:
    """The samples, with these facts added. Prints a line on stderr for the first that differs from its record in `source`, if any."""
    from freetf_cli.report.console import hint, warn

    told = not source
    for sample in samples:
        sample = replace(sample, **facts)
        if sample.given is not None and not told and (unlike := sample.given.unlike(sample)):
            told = True
            say = hint if unlike.keys() <= CHOSEN | asked.keys() else warn
            shown = [[name, *(repr(each[:16] if isinstance(each, str) else each) for each in pair)] for name, pair in unlike.items()]
            say(f"not a replay of {source}: " + ", ".join(f"{name} {now}, not {was}" for name, now, was in shown))
        yield sample


def read_prompts(given: list[str]) -> Iterable[str]:
    """The prompts of the command line, with the lines of stdin for `-` as they arrive."""
    from freetf_cli.generation.replay import text_lines
    from freetf_cli.report.console import warn

    def lines() -> Iterator[str]:
        line = None
        for _, line in text_lines(sys.stdin.buffer, "stdin"):
            yield line
        if line is None:
            warn("no prompts read: stdin is empty")

    read = lines()  # stdin is read once, even if - is given several times
    return chain.from_iterable(read if text == "-" else [text] for text in given) if "-" in given else given


def _task(checkpoint: Checkpoint) -> Task | None:
    """The task that generated the run's data; None for text."""
    from freetf_cli.tasks import make_task

    facts = checkpoint.state["data"]
    return make_task(facts["task"], facts["params"]) if facts.get("task") else None


def show_samples(samples: Iterator[Sample], checkpoint: Checkpoint, task: Task | None, spec: SampleSpec, *, json: bool) -> None:
    """Print samples as JSON lines, as lines of text, or, on a terminal, groups and data with known factors as the boxes of Figure 4."""
    from freetf_cli.evaluation.probe.agreement import group_agreement
    from freetf_cli.records import DataFacts, to_json
    from freetf_cli.records.samples import agreement_table, line_spans
    from freetf_cli.report import terminal
    from freetf_cli.tasks import spans_by_text

    facts, shared = DataFacts.read(checkpoint.state["data"]), spec.z == "shared"
    rows = spec.groups * spec.count if spec.given_z is None else BOXED
    if json:
        for sample in samples:
            typer.echo(to_json(sample))
        return
    is_boxed = sys.stdout.isatty() and rows <= BOXED and bool(shared or spec.groups > 1 or (task and task.factors))
    if is_boxed and spec.given_z is not None:  # how many rows there are is not known before they are made
        first = list(islice(samples, BOXED + 1))
        is_boxed, samples = len(first) <= BOXED, chain(first, samples)
    if is_boxed:
        while some := list(islice(samples, rows)):
            for _, of_prompt in groupby(some, key=lambda one: (one.prompt_index, one.prompt)):
                shown = list(of_prompt)
                groups = figure4(shown, facts, shared=shared or (spec.given_z is not None and _share_z(shown)))
                found = group_agreement(groups.groups, facts) if groups.shared else []
                terminal.show_blocks([groups.block(latent=checkpoint.recipe.latent is not None), agreement_table(found)])
    else:
        for sample in samples:
            terminal.show_line(line_spans(sample.text, sample.prompt, spans_by_text(facts.task, facts.params, [sample.text])))


def _share_z(samples: Sequence[Sample]) -> bool:
    """Whether the sequences of each group share one Z; of two lengths, the shorter is compared."""
    first: dict[int, list[Any]] = {}
    pairs = (zip(first.setdefault(one.group, one.z or []), one.z or [], strict=False) for one in samples)
    return all(a == b for pair in pairs for a, b in pair) and len(first) < len(samples)


def figure4(samples: Sequence[Sample], facts: DataFacts, *, shared: bool) -> SampleGroups:
    """The samples of one prompt by group, as in the paper's Figure 4."""
    from freetf_cli.records.samples import SampleGroups
    from freetf_cli.tasks import spans_by_text

    groups = [[sample.text for sample in group] for _, group in groupby(samples, key=lambda one: one.group)]
    spans = spans_by_text(facts.task, facts.params, chain.from_iterable(groups))
    return SampleGroups("", shared, groups, samples[0].prompt, spans)
