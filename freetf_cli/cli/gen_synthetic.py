"""`freetf gen-synthetic`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from freetf_cli.cli.options import SeedOption, completer
from freetf_cli.cli.output import Described
from freetf_cli.errors import InputError
from freetf_cli.tasks import describe, task_names

TaskArgument = Annotated[
    str, typer.Argument(metavar="TASK", help=f"One of {', '.join(task_names())}.", autocompletion=completer(task_names()))
]


def gen_synthetic(
    task: TaskArgument,
    out: Annotated[str, typer.Option("--out", "-o", metavar="DIR|-", help="A new folder, or - for JSON lines on stdout.")],
    count: Annotated[int, typer.Option(min=1, help="Rows to generate; a smaller count yields a prefix.")] = 10_000,
    seed: SeedOption = 0,
    param: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="Set a parameter of the task. May be repeated.")] = None,
    split: Annotated[
        str | None,
        typer.Option(metavar="NAME=SHARE,…", help="Shares that sum to 1, or numbers of rows. Default: train=0.9,val=0.1."),
    ] = None,
) -> Described | None:
    """Generate a synthetic data set with known factors.

    {tasks}

    $ freetf gen-synthetic letters -o data/letters --count 10000
    $ freetf gen-synthetic coins -o - --count 5 --param flip=1/8
    """
    from freetf_cli.data.prepare import write_task
    from freetf_cli.data.splits import DEFAULT_SPLIT, parse_split
    from freetf_cli.report.progress import counter
    from freetf_cli.tasks import make_task
    from freetf_cli.training.signals import stop_at_once

    chosen = make_task(task, parse_params(param or []))
    if out != "-":
        shares = DEFAULT_SPLIT if split is None else parse_split(split, count)
        with stop_at_once(), counter("rows", total=count) as advance:
            return write_task(chosen, Path(out), count=count, seed=seed, split=shares, progress=advance)
    if split is not None:
        raise InputError("--split needs a folder: a stream has no splits")
    with stop_at_once():
        for example in chosen.stream(seed, 0, count):
            record = {"text": example.text, "factors": example.factors}
            sys.stdout.write(json.dumps(record, ensure_ascii=False) + "\n")
    return None


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
