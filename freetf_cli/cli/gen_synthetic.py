"""`freetf gen-synthetic`."""

from __future__ import annotations

import json as json_text
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from freetf_cli.cli.options import JsonOption, QuietOption, SeedOption
from freetf_cli.cli.output import show
from freetf_cli.errors import InputError
from freetf_cli.tasks import describe, task_names

if TYPE_CHECKING:
    from freetf_cli.tasks.base import Task

CHUNK = 1024  # rows generated at a time


def _complete_task(incomplete: str) -> list[str]:
    return [name for name in task_names() if name.startswith(incomplete)]


TaskArgument = Annotated[str, typer.Argument(metavar="TASK", help=f"One of {', '.join(task_names())}.", autocompletion=_complete_task)]
OutOption = Annotated[str, typer.Option("--out", "-o", metavar="DIR|-", help="A new folder, or - for JSON lines on stdout.")]
CountOption = Annotated[int, typer.Option("--count", min=1, help="Rows to generate; a smaller count yields a prefix.")]
ParamOption = Annotated[
    list[str] | None, typer.Option("--param", metavar="NAME=VALUE", help="Set a parameter of the task. May be repeated.")
]
SplitOption = Annotated[
    str | None,
    typer.Option("--split", metavar="NAME=SHARE,…", help="Shares that sum to 1, or numbers of rows. Default: train=0.9,val=0.1."),
]


def gen_synthetic(
    task: TaskArgument,
    out: OutOption,
    count: CountOption = 10_000,
    seed: SeedOption = 0,
    param: ParamOption = None,
    split: SplitOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Generate a synthetic data set with known factors.

    {tasks}

    $ freetf gen-synthetic letters -o data/letters --count 10000
    $ freetf gen-synthetic coins -o - --count 5 --param flip=1/8
    """
    from freetf_cli.tasks import make_task

    chosen = make_task(task, parse_params(param or []))
    if out == "-":
        if split is not None:
            raise InputError("--split needs a folder: a stream has no splits")
        stream(chosen, count, seed)
    else:
        _write(chosen, out, count, seed, split, json, quiet)


def _task_help(name: str) -> str:
    summary, params = describe(name)
    return f"{summary.rstrip('.')}; " + (f"--param {', '.join(params)}." if params else "no parameters.")


gen_synthetic.__doc__ = str(gen_synthetic.__doc__).replace("{tasks}", "\n\n    ".join(map(_task_help, task_names())))


def parse_params(items: list[str]) -> dict[str, Any]:
    """`["noise=1/16"]` as `{"noise": "1/16"}`. The task checks the values."""
    params: dict[str, Any] = {}
    for item in items:
        name, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not name or name in params:
            what = "is given twice" if name in params else "is not NAME=VALUE"
            raise InputError(f"--param {item} {what}", hint="for example --param noise=1/16")
        params[name] = value
    return params


def stream(task: Task, count: int, seed: int) -> None:
    """Write rows to stdout as JSON lines, as they are generated."""
    for start in range(0, count, CHUNK):
        for example in task.examples(seed, start, min(CHUNK, count - start)):
            record = {"text": example.text, "factors": example.factors}
            sys.stdout.write(json_text.dumps(record, ensure_ascii=False) + "\n")


def _write(task: Task, out: str, count: int, seed: int, split: str | None, json: bool, quiet: bool) -> None:
    from pathlib import Path

    from freetf_cli.data.prepare import write_task
    from freetf_cli.data.splits import DEFAULT_SPLIT, parse_split
    from freetf_cli.report.progress import counter

    shares = DEFAULT_SPLIT if split is None else parse_split(split, count)
    with counter("rows", total=count, quiet=quiet or json) as advance:
        summary = write_task(task, Path(out), count=count, seed=seed, split=shares, progress=advance)
    show(summary, json=json)
