"""Opens Parquet files; record_files.py reads conversations from them, tables.py plain columns."""

from pathlib import Path
from typing import Any, Iterator, List, Tuple

from recipe.core.translation import _
from recipe.intake.cells import UnreadableFile


def open_parquet(path: Path) -> Any:
    """pyarrow's ParquetFile. Raises UnreadableFile."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(str(path))
    except (ArrowException, OSError, ValueError) as error:
        raise UnreadableFile(_("it is not a Parquet file ({error})", error=_first_line(error))) from None


def batches(file: Any) -> Iterator[Tuple[int, Any]]:
    """(rows before it, record batch) of a ParquetFile. Raises UnreadableFile where it is damaged."""
    from pyarrow import ArrowException

    rows = 0
    try:
        for batch in file.iter_batches(batch_size=1024):
            yield rows, batch
            rows += len(batch)
    except (ArrowException, OSError, ValueError) as error:
        raise UnreadableFile(_("it is damaged after row {row} ({error})", row=rows, error=_first_line(error))) from None


def values(column: Any, rows: int) -> List[Any]:
    """The Python values of a column or batch behind `rows` rows. Raises UnreadableFile for a text that is not UTF-8."""
    try:
        found: List[Any] = column.to_pylist()
    except UnicodeDecodeError as error:
        raise UnreadableFile(
            _("it is damaged after row {row} (a text is not UTF-8: {error})", row=rows, error=error.reason)
        ) from None
    return found


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
