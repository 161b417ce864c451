"""The text column of a parquet file, row group by row group, in bounded memory."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from bushcraft.errors import DataError

if TYPE_CHECKING:
    import pyarrow.parquet

ROWS_A_BATCH = 256
READ_BUFFER = 1 << 20


def row_group_bytes(path: str, column: str) -> list[int]:
    """Uncompressed bytes of `column` in each row group. Errors: `DataError`."""
    with _open(path) as file:
        index = _column_index(path, file, column)
        groups = range(file.metadata.num_row_groups)
        return [file.metadata.row_group(i).column(index).total_uncompressed_size for i in groups]


def rows(path: str, column: str, first_group: int, last_group: int) -> Iterator[tuple[int, bytes | None]]:
    """(row number in the file, UTF-8 text or None where it is null) of the row groups [first, last).

    Errors: `DataError` where the file is damaged, or has no such column of text.
    """
    with _open(path) as file:
        _column_index(path, file, column)
        groups = range(first_group, last_group)
        row = sum(file.metadata.row_group(i).num_rows for i in range(first_group))
        for batch in file.iter_batches(ROWS_A_BATCH, row_groups=list(groups), columns=[column], use_threads=False):
            for text in batch.column(0).to_pylist():
                yield row, None if text is None else text.encode()
                row += 1


@contextlib.contextmanager
def _open(path: str) -> Iterator["pyarrow.parquet.ParquetFile"]:
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError:
        raise DataError(f"{path} needs pyarrow", "Install it: pip install 'bushcraft[parquet]'") from None
    try:
        with parquet.ParquetFile(path, buffer_size=READ_BUFFER, pre_buffer=False) as file:
            yield file
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{path} is truncated or corrupted: {reason}", "Fetch the file again, or leave it out: --on-bad skip"
        ) from error


def _column_index(path: str, file: "pyarrow.parquet.ParquetFile", column: str) -> int:
    names = file.schema_arrow.names
    if column not in names:
        raise DataError(f"{path} has no column {column!r} (it has {', '.join(map(repr, names))})", "Name it: --column")
    kind = str(file.schema_arrow.field(column).type)
    if kind not in ("string", "large_string", "string_view", "dictionary<values=string, indices=int32, ordered=0>"):
        raise DataError(f"{path}: column {column!r} is {kind}, not text", "Name a column of text by --column")
    leaves = [file.metadata.schema.column(i).path for i in range(file.metadata.num_columns)]
    return leaves.index(column)
