"""`freetf prepare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from freetf_cli.cli.options import JsonOption, QuietOption, SeedOption
from freetf_cli.cli.output import show

PathsArgument = Annotated[list[str], typer.Argument(metavar="PATH", help="Files, folders, .gz, .bz2, .zip, .jsonl, or - for stdin.")]
OutOption = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="A new folder.")]
TokenizerOption = Annotated[
    str, typer.Option("--tokenizer", metavar="bytes|bpe:SIZE|FILE", help="Use bytes, train BPE on this text, or read a tokenizer.json.")
]
SplitOption = Annotated[str, typer.Option("--split", metavar="NAME=SHARE,…", help="Shares of the documents; they sum to 1.")]
FieldOption = Annotated[str | None, typer.Option("--field", help="The text's field in JSON records.")]
SeparatorOption = Annotated[
    str | None, typer.Option("--document-separator", metavar="TEXT", help="Split each file into documents at this text.")
]


def prepare(
    paths: PathsArgument,
    out: OutOption,
    tokenizer: TokenizerOption = "bytes",
    split: SplitOption = "train=0.9,val=0.1",
    field: FieldOption = None,
    document_separator: SeparatorOption = None,
    seed: SeedOption = 0,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Tokenize text into shards for training, split by document.

    A document's label is the name of its folder, if that has siblings, such as pos/ and neg/.

    $ freetf prepare reviews.zip -o data/reviews
    $ freetf prepare books.jsonl.gz -o data/books --field text --tokenizer bpe:8192
    """
    from freetf_cli.data.prepare import prepare_text
    from freetf_cli.data.splits import parse_split
    from freetf_cli.report.progress import counter

    with counter("documents", quiet=quiet or json) as advance:
        summary = prepare_text(
            paths,
            out,
            tokenizer=tokenizer,
            split=parse_split(split),
            seed=seed,
            field=field,
            document_separator=document_separator,
            progress=advance,
        )
    show(summary, json=json)
