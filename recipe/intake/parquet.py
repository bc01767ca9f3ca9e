"""Opens Parquet files; records.py reads conversations from them, tables.py plain columns."""

from pathlib import Path
from typing import Any, Iterator, Tuple

from recipe.intake.cells import UnreadableFile


def open_parquet(path: Path) -> Any:
    """pyarrow's ParquetFile. Raises UnreadableFile."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(str(path))
    except (ArrowException, OSError, ValueError) as error:
        raise UnreadableFile(f"it is not a Parquet file ({_first_line(error)})") from None


def batches(file: Any) -> Iterator[Tuple[int, Any]]:
    """(rows before it, record batch) of a ParquetFile. Raises UnreadableFile where it is damaged."""
    from pyarrow import ArrowException

    rows = 0
    try:
        for batch in file.iter_batches(batch_size=1024):
            yield rows, batch
            rows += len(batch)
    except (ArrowException, OSError, ValueError) as error:
        raise UnreadableFile(f"it is damaged after row {rows} ({_first_line(error)})") from None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
