"""Write rows of results as they arrive, for `pipeline predict` and `pipeline search`."""

import csv
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TextIO

from pipeline.data.image_paths import protected_paths
from pipeline.escape import escape_formula, printable
from pipeline.files import check_output_file, is_special
from pipeline.outputs import reserve_outputs
from stages.errors import PipelineError


class Row(NamedTuple):
    """One row of a table.

    Attributes:
        cells: Text of each column in CSV. Text from untrusted sources is escaped by
            :func:`pipeline.escape.escape_formula`.
        values: Value of each column in JSON.
    """

    cells: Sequence[str]
    values: Mapping[str, object]


def empty_row(columns: Sequence[str], path: str) -> Row:
    """Return the row of an image that cannot be read: only the first column has a value.

    Args:
        columns: Names of the columns.
        path: Path of the image.
    """
    values: dict[str, object] = dict.fromkeys(columns)
    values[columns[0]] = path
    return Row([escape_formula(path)] + [""] * (len(columns) - 1), values)


@contextmanager
def reserved_output(
    out: Path | None, images: Sequence[Path], inputs: Sequence[Path]
) -> Iterator[None]:
    """Check the output before the first image, and reserve it unless it is a device or a pipe.

    Args:
        out: File to write. None: standard output.
        images: Image files and folders that the command reads.
        inputs: Other files that it reads.
    """
    if out is not None and is_special(out):
        check_output_file(out, allow_special=True)
    if out is None or is_special(out):
        yield
        return
    with reserve_outputs([out], inputs=[*inputs, *protected_paths(images, out)]):
        yield


class RowWriter:
    """Writes rows to an open file.

    Args:
        file: The file.
        columns: Names of the columns.
        as_json: Write one JSON object per line instead of CSV.
        on_terminal: Escape control characters in CSV.
    """

    def __init__(
        self, file: TextIO, columns: Sequence[str], *, as_json: bool, on_terminal: bool
    ) -> None:
        self._file = file
        self._as_json = as_json
        self._table = csv.writer(file, lineterminator="\n")
        # Before Python 3.13, a lone carriage return gets quotes only if all cells get them.
        self._quoted = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
        # A file name with an escape code must not control the terminal; in a file it is data.
        self._shown = printable if on_terminal else str
        if not as_json:
            self._table.writerow(columns)

    def write(self, rows: Iterable[Row]) -> None:
        """Write a block of rows and flush it."""
        for row in rows:
            if self._as_json:
                self._file.write(json.dumps(row.values) + "\n")
            else:
                cells = [self._shown(cell) for cell in row.cells]
                has_return = any("\r" in cell for cell in cells)
                (self._quoted if has_return else self._table).writerow(cells)
        self._file.flush()


@contextmanager
def open_rows(columns: Sequence[str], out: Path | None, *, as_json: bool) -> Iterator[RowWriter]:
    """Open the output for rows.

    Args:
        columns: Names of the columns, written as the first row of CSV.
        out: File to write, replaced only when it is complete. None: standard output.
        as_json: Write one JSON object per line instead of CSV.

    Yields:
        The writer.

    Raises:
        PipelineError: If the file cannot be written. The rows so far are kept next to it.
    """
    on_terminal = out is None and sys.stdout.isatty()
    with _destination(out) as file:
        yield RowWriter(file, columns, as_json=as_json, on_terminal=on_terminal)


@contextmanager
def _destination(out: Path | None) -> Iterator[TextIO]:
    """Open the output for text. File names need not be valid text, hence surrogateescape."""
    if out is None:
        yield sys.stdout
        return
    target = Path(os.path.realpath(out))
    partial = target if is_special(target) else target.with_name(f"{target.name}.partial")
    try:
        with partial.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            yield file
    except OSError as error:
        reason = error.strerror or error
        advice = f"free some space or use another path{_describe_kept(partial)}"
        raise PipelineError(f"{out}: cannot be written to ({reason}); {advice}") from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted{_describe_kept(partial)}") from None
    except PipelineError as error:  # of the images
        raise PipelineError(f"{error}{_describe_kept(partial)}") from error
    if partial != target:
        os.replace(partial, target)


def _describe_kept(partial: Path) -> str:
    """Say where the rows so far are; an empty file is removed."""
    if not partial.is_file():
        return ""
    if partial.stat().st_size == 0:
        partial.unlink()
        return ""
    return f"; the rows so far are in {partial}"
