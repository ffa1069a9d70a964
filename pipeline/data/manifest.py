"""Read a CSV manifest of image paths and labels."""

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.data.dataset import SPLITS, Entry
from pipeline.data.decoding_pool import file_state
from pipeline.data.readable_images import SourceFile
from stages.errors import DataError

if TYPE_CHECKING:
    import pandas as pd


def list_manifest(path: Path) -> list[SourceFile]:
    """List the image files of a CSV manifest.

    Args:
        path: CSV file in UTF-8 with the columns ``path`` and ``label``, and optionally ``split``
            (``train``, ``val``, ``test`` or empty) and ``group``. Image paths are relative to the
            manifest. Other columns are ignored.

    Returns:
        One file per row, in the order of the rows.

    Raises:
        DataError: If the file is no such table, has no rows, or a row is invalid.
    """
    table = _read_table(path)
    empty = [""] * len(table)
    columns = [table["path"].tolist()]
    for name in ("label", "split", "group"):
        columns.append(table[name].str.strip().tolist() if name in table else empty)
    files = []
    for row, (name, label, split, group) in enumerate(zip(*columns, strict=True), start=2):
        split = split.lower()
        if not name.strip() or not label:
            column = "label" if name.strip() else "path"
            raise DataError(f"{path}: row {row} has no {column}; fill it in or remove the row")
        if split not in ("", *SPLITS):
            raise DataError(
                f"{path}: row {row} has the split {split!r}; use train, val or test, "
                "or leave it empty"
            )
        full_path = os.path.join(path.parent, name)
        entry = Entry(id=name, label=label, part=split, group=group)
        files.append(SourceFile(full_path, file_state(full_path), entry))
    if not files:
        raise DataError(f"{path}: no row below the header; add one row per image")
    return files


def _read_table(path: Path) -> "pd.DataFrame":
    import pandas as pd  # slow to import, and only manifests need it

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # pandas only warns of rows longer than the header
            table = pd.read_csv(
                path, dtype=str, na_filter=False, encoding="utf-8-sig", index_col=False
            )
    except (OSError, ValueError, Warning) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{path}: not a table that can be read ({reason}); "
            "give a UTF-8 CSV file with the columns path,label"
        ) from error
    table.columns = [str(name).strip().lower() for name in table.columns]
    names = list(table.columns)
    for required in ("path", "label"):
        if names.count(required) != 1:
            raise DataError(
                f"{path}: no column {required} in the header, or several "
                f"({', '.join(names)[:200]}); "
                "name the columns path,label and optionally split,group"
            )
    return table
