"""Read the text column of a Parquet file as a stream.

    for number, text in column_texts(file, "text"):
        number, text                # 1, "the text of the first row"

Only the current pages of one column and ROWS texts are in memory, however large the file or its row groups are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from freetf_cli.data.files import CHUNK, File, import_pyarrow
from freetf_cli.data.hub import FIELD
from freetf_cli.errors import InputError, nearest

ROWS = 64  # texts in memory at a time


def column_texts(file: File, column: str | None) -> Iterator[tuple[int, str]]:
    """The number of each row, from 1, and its text; a null is an empty text.

    InputError if the file is damaged or in an archive, and if the column is missing or not text.
    """
    if file.path is None:
        raise InputError("a Parquet file inside an archive cannot be read", file.place, "unpack it and give the folder")
    arrow = import_pyarrow("Parquet files")
    from pyarrow import parquet

    try:
        # With its defaults, pyarrow reads the column in a whole row group at once, and keeps it until the last row of the file.
        with parquet.ParquetFile(file.path, buffer_size=CHUNK, pre_buffer=False, page_checksum_verification=True) as opened:
            column = _column(arrow, opened.schema_arrow, column, file.place)
            number = 0
            for batch in opened.iter_batches(ROWS, columns=[column], use_threads=False):
                for value in batch.column(0):
                    number += 1
                    yield number, value.as_py() or ""
    except UnicodeDecodeError:
        raise InputError("not UTF-8 text", f"{file.place}, row {number}") from None
    except (arrow.ArrowException, OSError) as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise
        raise InputError(f"the Parquet file is damaged: {str(error)[:120]}", file.place) from None


def _column(arrow: Any, schema: Any, column: str | None, place: str) -> str:
    """The name of the text's column. InputError if it is missing or holds no text."""
    types = {field.name: field.type for field in schema}
    kinds = {name: kind.value_type if arrow.types.is_dictionary(kind) else kind for name, kind in types.items()}
    texts = [name for name, kind in kinds.items() if kind in (arrow.string(), arrow.large_string(), arrow.string_view())]
    if column is None and FIELD in texts:
        return FIELD
    if column is None:
        raise InputError("which column of the Parquet file is the text?", place, f"give --field: {', '.join(texts)}")
    if column not in types:
        raise InputError(f"the Parquet file has no column '{column}'", place, nearest(column, texts))
    if column not in texts:
        raise InputError(f"column '{column}' is not text but {types[column]}", place, nearest(column, texts))
    return column
