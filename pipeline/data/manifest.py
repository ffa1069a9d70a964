"""Read a CSV manifest of image paths and labels."""

import os
import warnings
from pathlib import Path

from pipeline.data.dataset import SPLITS, Entry
from pipeline.data.decoding_pool import file_state
from pipeline.data.source_files import SourceFile
from stages.errors import DataError


def list_manifest(path: Path) -> list[SourceFile]:
    import pandas as pd  # slow to import, and only a manifest needs it

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # pandas only warns of rows longer than the header
            table = pd.read_csv(
                path, dtype=str, na_filter=False, encoding="utf-8-sig", index_col=False
            )
    except (OSError, ValueError, Warning) as error:
        text = " ".join(str(error).split())
        raise DataError(
            f"{path}: not a table that can be read ({text}); give a UTF-8 CSV file with the columns path,label"
        ) from error
    table.columns = [str(name).strip().lower() for name in table.columns]
    missing = [name for name in ("path", "label") if list(table.columns).count(name) != 1]
    if missing:
        found = ", ".join(table.columns)[:200]
        raise DataError(
            f"{path}: no column {missing[0]} in its first line, or two ({found}); name the columns path,label and perhaps split,group"
        )
    empty = [""] * len(table)
    columns = [
        table[name].str.strip().tolist() if name in table else empty
        for name in ("label", "split", "group")
    ]
    files = []
    for line, (name, label, part, group) in enumerate(
        zip(table["path"].tolist(), *columns, strict=True), start=2
    ):
        part = part.lower()
        if not name.strip() or not label:
            raise DataError(
                f"{path}: row {line} has no {'label' if name.strip() else 'path'}; fill it in, or remove the row"
            )
        if part not in ("", *SPLITS):
            raise DataError(
                f"{path}: row {line} has the split {part!r}; use train, val, test, or leave it empty"
            )
        full = os.path.join(path.parent, name)
        files.append(SourceFile(full, file_state(full), Entry(name, label, part, group)))
    if not files:
        raise DataError(f"{path}: no row below its first line; give one row an image")
    return files
