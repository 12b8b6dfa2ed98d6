"""Stream the text column of a Hugging Face Hub data set through the `datasets` library.

    for number, text in hub_texts("hf:roneneldan/TinyStories::validation", "text"):

The form is hf:NAME, hf:NAME:CONFIGURATION or hf:NAME:CONFIGURATION:SPLIT; NAME may be a local folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from freetf_cli.errors import FreetfError, InputError, nearest

HUB = "hf:"
FIELD = "text"  # the field or column of the text, if there is one and --field names no other


def hub_texts(path: str, column: str | None) -> Iterator[tuple[int, str]]:
    """The number of each row, from 1, and its text; a null is an empty text.

    InputError if there is no such data set, or if the column is missing or not text. FreetfError without a network.
    """
    rows = _open(path)
    number = 0
    try:
        column = FIELD if column is None and FIELD in (rows.column_names or ()) else column
        if column is not None and rows.column_names and column in rows.column_names:
            rows = rows.select_columns([column])  # so that the other columns of a Parquet file are not read
        for number, row in enumerate(rows, start=1):
            column = FIELD if column is None and FIELD in row else column
            yield number, _text(row, column, f"{path}, row {number}")
    except FreetfError:
        raise
    except Exception as error:  # the library reads many formats, each with its own errors
        raise _failure(error, f"{path}, after row {number}") from None


def _open(path: str) -> Any:
    """Open the data set for streaming, without downloading it."""
    name, *others = path.removeprefix(HUB).split(":")
    configuration, split = [*others, "", ""][:2]
    if not name or len(others) > 2:
        raise InputError("a data set of the Hub is named hf:NAME, hf:NAME:CONFIGURATION or hf:NAME:CONFIGURATION:SPLIT", path)
    try:
        import datasets
    except ImportError:
        raise FreetfError("data sets of the Hub need datasets, which is not installed", hint="pip install 'freetf[data]'") from None
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(name, configuration or None, split=split or "train", streaming=True)
    except Exception as error:
        raise _failure(error, path) from None


def _failure(error: Exception, place: str) -> FreetfError:
    what = f"the data set cannot be read: {' '.join(str(error).split())[:200] or type(error).__name__}"
    is_network = isinstance(error, ConnectionError | TimeoutError) or "onnect" in type(error).__name__
    return FreetfError(what, place, "is there a network?") if is_network else InputError(what, place)


def _text(row: dict[str, Any], column: str | None, place: str) -> str:
    words = [name for name, value in row.items() if isinstance(value, str)]
    if column is None:
        raise InputError("which column of the data set is the text?", place, f"give --field: {', '.join(words)}")
    if column not in row:
        raise InputError(f"the data set has no column '{column}'", place, nearest(column, words))
    text = row[column] if row[column] is not None else ""
    if not isinstance(text, str):
        raise InputError(f"column '{column}' is not text", place, nearest(column, words))
    return text
