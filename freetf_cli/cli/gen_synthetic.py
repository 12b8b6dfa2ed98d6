"""`freetf gen-synthetic`."""

from __future__ import annotations

import json as json_text
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from freetf_cli.cli.options import JsonOption, QuietOption, SeedOption
from freetf_cli.cli.output import show
from freetf_cli.errors import InputError

if TYPE_CHECKING:
    from freetf_cli.tasks.base import Task

CHUNK = 1024  # rows made at a time

TaskArgument = Annotated[str, typer.Argument(metavar="TASK", help="letters, coins, reviews or blocks.")]
OutOption = Annotated[str, typer.Option("--out", "-o", metavar="DIR|-", help="A new folder; - streams JSON lines to stdout.")]
CountOption = Annotated[int, typer.Option("--count", min=1, help="Rows to make; a smaller count yields a prefix.")]
ParamOption = Annotated[list[str] | None, typer.Option("--param", metavar="NAME=VALUE", help="A task's parameter. May be repeated.")]
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
    """Make a synthetic data set whose hidden factors are known.

    letters: a run of a letter in a noisy line; --param length, target, noise, letters.

    coins: noisy copies of one hidden coin; --param length, flip.

    reviews: short positive and negative film reviews; no parameters.

    blocks: find the block that holds the question's letters; --param n, query, which, blocks.

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


def parse_params(items: list[str]) -> dict[str, Any]:
    """`["noise=1/16"]` as `{"noise": "1/16"}`; the task checks the values."""
    params: dict[str, Any] = {}
    for item in items:
        name, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not name or name in params:
            what = "is given twice" if name in params else "is not NAME=VALUE"
            raise InputError(f"--param {item} {what}", hint="for example --param noise=1/16")
        params[name] = value
    return params


def stream(task: Task, count: int, seed: int) -> None:
    """JSON lines on stdout, as they are made."""
    for start in range(0, count, CHUNK):
        for example in task.examples(seed, start, min(CHUNK, count - start)):
            record = {"text": example.text, "factors": example.factors}
            sys.stdout.write(json_text.dumps(record, ensure_ascii=False) + "\n")


def _write(task: Task, out: str, count: int, seed: int, split: str | None, json: bool, quiet: bool) -> None:
    from pathlib import Path

    from freetf_cli.data.prepare import DEFAULT_SPLIT, parse_split, write_task
    from freetf_cli.report.progress import counter

    shares = DEFAULT_SPLIT if split is None else parse_split(split, count)
    with counter("rows", total=count, quiet=quiet or json) as advance:
        summary = write_task(task, Path(out), count=count, seed=seed, split=shares, progress=advance)
    show(summary, json=json)
