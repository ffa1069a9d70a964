"""The rows that `pipeline predict` writes."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pipeline.commands.row_writer import Row, empty_row, open_rows
from pipeline.data.entries import Skipped
from pipeline.escape import escape_formula
from pipeline.numbers import format_share


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
    with open_rows(Predicted._fields, out, as_json=as_json) as writer:
        for block in blocks:
            rows = []
            for image in block:
                if isinstance(image, Skipped):
                    rows.append(empty_row(Predicted._fields, image.path))
                else:
                    rows.append(_row(image))
            writer.write(rows)


def _row(image: Predicted) -> Row:
    typical = None if image.typicality is None else format_share(image.typicality, 6)
    probability = format_share(image.probability, 6)
    cells = [
        *(escape_formula(image.path), escape_formula(image.label), probability),
        *(escape_formula(image.knn_label), escape_formula(image.nearest_id)),
        f"{image.nearest_distance:.6f}",
        typical or "",
        "true" if image.known else "false",
    ]
    values: dict[str, object] = image._asdict()
    values["probability"] = float(probability)
    values["nearest_distance"] = round(image.nearest_distance, 6)
    values["typicality"] = None if typical is None else float(typical)
    return Row(cells, values)
