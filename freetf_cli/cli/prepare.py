"""`freetf prepare`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from freetf_cli.cli.options import SeedOption
from freetf_cli.cli.output import Described
from freetf_cli.errors import InputError

ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}


def prepare(
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH", help="Files, folders, .gz, .bz2, .zst, .zip, .jsonl, .parquet, hf:NAME, or - for stdin.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="A new folder.")],
    tokenizer: Annotated[
        str, typer.Option(metavar="bytes|bpe:SIZE|FILE", help="Use bytes, train BPE on this text, or read a tokenizer.json.")
    ] = "bytes",
    separator_token: Annotated[
        str | None,
        typer.Option(metavar="TOKEN", help="The special token of a tokenizer.json that separates documents; default: <|endoftext|>."),
    ] = None,
    split: Annotated[str, typer.Option(metavar="NAME=SHARE,…", help="Shares of the documents; they sum to 1.")] = "train=0.9,val=0.1",
    field: Annotated[
        str | None, typer.Option(help="The text's field in JSON records, or its column in Parquet files; default: text, if there is one.")
    ] = None,
    label_field: Annotated[
        str | None, typer.Option(metavar="FIELD", help="The label's field in JSON records; default: folders label documents.")
    ] = None,
    separator: Annotated[
        str | None, typer.Option("--document-separator", metavar="TEXT", help=r"Split files into documents at this text, such as '\n\n'.")
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option(
            metavar="megatron|datatrove|nanogpt|datasets",
            help="PATH names token files of this kind, to be used in place without a copy; see docs/data.md.",
        ),
    ] = None,
    dedup: Annotated[bool, typer.Option("--dedup", help="Leave out documents that are exact copies of earlier ones.")] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Number of threads that tokenize; default: one per core. The result is the same.")
    ] = None,
    seed: SeedOption = 0,
) -> Described:
    """Tokenize text into shards for training, split by document.

    A document's label is the name of its folder, if that has siblings, such as pos/ and neg/, or a field of its record (--label-field).

    $ freetf prepare reviews.zip -o data/reviews
    $ freetf prepare reviews.jsonl -o data/labelled --field text --label-field sentiment
    $ freetf prepare books.jsonl.gz -o data/books --field text --tokenizer bpe:8192
    $ freetf prepare shards/ -o data/web --tokens datatrove --tokenizer tokenizer.json
    """
    if str(out) == "-":
        raise InputError("prepared data is a folder and cannot go to stdout", hint="name a folder: -o DIR")
    from freetf_cli.data.prepare import prepare_text
    from freetf_cli.data.refer import refer_to_tokens
    from freetf_cli.data.splits import parse_split
    from freetf_cli.report.progress import counter
    from freetf_cli.training.signals import stop_at_once

    shares = parse_split(split)
    if tokens is not None:
        _refuse({"--document-separator": separator, "--dedup": dedup, "--threads": threads, "--seed": seed}, tokens)
        _refuse({"--label-field": label_field}, tokens)
        _refuse({} if tokens == "datasets" else {"--field": field}, tokens)
        with stop_at_once(), counter("files") as advance:
            return refer_to_tokens(
                paths,
                out,
                kind=tokens,
                tokenizer=tokenizer,
                separator_token=separator_token,
                split=shares,
                column=field,
                progress=advance,
            )
    with stop_at_once(), counter("documents") as advance:
        return prepare_text(
            paths,
            out,
            tokenizer=tokenizer,
            separator_token=separator_token,
            split=shares,
            seed=seed,
            field=field,
            label_field=label_field,
            document_separator=None if separator is None else re.sub(r"\\([nrt\\])", lambda found: ESCAPES[found[1]], separator),
            dedup=dedup,
            threads=threads,
            progress=advance,
        )


def _refuse(options: dict[str, object], kind: str) -> None:
    """Refuse options that `--tokens` ignores."""
    for option in (name for name, value in options.items() if value):
        raise InputError(f"{option} is for text, and --tokens {kind} reads tokens")
