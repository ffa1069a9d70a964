"""The rows that `pipeline predict` writes."""

import csv
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TextIO

from pipeline.data.dataset import Skipped
from pipeline.escape import escape_formula, printable
from pipeline.files import is_special
from pipeline.numbers import format_share
from stages.errors import PipelineError


class Predicted(NamedTuple):
    """Prediction for one image.

    Attributes:
        path: Path of the image.
        label: Class predicted by the classifier.
        probability: Probability of that class; calibrated if the classifier is.
        knn_label: Class predicted by kNN.
        nearest_id: Id of the nearest training image.
        nearest_distance: Euclidean distance to it, in [0, 2].
        typicality: How usual this distance is, in (0, 1]; see
            :func:`stages.evaluation.typicality.typicality`. None if the classifier was trained
            without validation images.
        known: False if the image is rejected: it is probably of no known class.
    """

    path: str
    label: str
    probability: float
    knn_label: str
    nearest_id: str
    nearest_distance: float
    typicality: float | None
    known: bool


def write_predictions(
    blocks: Iterable[list[Predicted | Skipped]], out: Path | None, *, as_json: bool
) -> None:
    """Write predictions as they arrive.

    Numbers have 6 decimals. In CSV, text that a spreadsheet would run as a formula is escaped by
    an apostrophe; in JSON it is unchanged. For an image that cannot be read all columns but the
    path are empty.

    Args:
        blocks: Blocks of predictions.
        out: File to write, replaced only when it is complete. None: standard output.
        as_json: Write one JSON object per line instead of CSV.

    Raises:
        PipelineError: If the file cannot be written. The rows so far are kept next to it.
    """
    # A file name with an escape code must not control the terminal; in a file it is data.
    shown = printable if out is None and sys.stdout.isatty() else str
    with _destination(out) as file:
        table = csv.writer(file, lineterminator="\n")
        if not as_json:
            table.writerow(Predicted._fields)
        for block in blocks:
            for row in block:
                if as_json:
                    file.write(_json_line(row))
                else:
                    table.writerow([shown(cell) for cell in _csv_cells(row)])
            file.flush()


def _json_line(row: Predicted | Skipped) -> str:
    values: dict[str, object] = dict.fromkeys(Predicted._fields)
    values["path"] = row.path
    if isinstance(row, Predicted):
        values |= row._asdict()
        values["probability"] = float(format_share(row.probability, 6))
        values["nearest_distance"] = round(row.nearest_distance, 6)
        if row.typicality is not None:
            values["typicality"] = float(format_share(row.typicality, 6))
    return json.dumps(values) + "\n"


def _csv_cells(row: Predicted | Skipped) -> list[str]:
    path = escape_formula(row.path)
    if isinstance(row, Skipped):
        return [path] + [""] * (len(Predicted._fields) - 1)
    return [
        *(path, escape_formula(row.label), format_share(row.probability, 6)),
        *(escape_formula(row.knn_label), escape_formula(row.nearest_id)),
        f"{row.nearest_distance:.6f}",
        "" if row.typicality is None else format_share(row.typicality, 6),
        "true" if row.known else "false",
    ]


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
