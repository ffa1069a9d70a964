"""Read a CSV manifest of image paths and labels."""

import csv
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.data.decoding_pool import file_state
from pipeline.data.entries import SPLITS, Entry, SourceFile
from stages.errors import DataError

COLUMNS = ("path", "label", "split", "group", "role")
ROLES = ("query", "gallery")
MAX_BYTES = 2**30  # a million rows take some 50 MB
ADVICE = "give a UTF-8 CSV file with the columns path,label and optionally split,group,role"


def list_manifest(path: Path) -> list[SourceFile]:
    """List the image files of a CSV manifest.

    Args:
        path: CSV file in UTF-8 with the columns ``path`` and ``label``, and optionally ``split``
            (``train``, ``val``, ``test`` or empty), ``group`` and ``role`` (``query`` or
            ``gallery``; for all test images or none). Image paths are relative to the manifest.
            Other columns and empty rows are ignored. Spaces around values are ignored, except in
            a path that exists with them. An image may occur in several rows.

    Returns:
        One file per row, in the order of the rows.

    Raises:
        DataError: If the file is no such table, has no rows, or a row is invalid.
    """
    records = _records(path)
    _, header = next(records, (1, []))
    columns = _find_columns(path, header)
    files: list[SourceFile] = []
    lines: list[int] = []
    for line, values in records:
        if any(value.strip() for value in values[len(header) :]):
            raise DataError(
                f"{path}: line {line} has {len(values)} values for {len(header)} columns; "
                "put a value that contains a comma in quotes"
            )
        values += [""] * (len(header) - len(values))
        row = {name: values[column] for name, column in columns.items()}
        files.append(_source_file(path, line, row))
        lines.append(line)
    if not files:
        raise DataError(f"{path}: no row below the header; add one row per image")
    _check_roles(path, lines, [file.entry for file in files])
    return files


def _check_roles(manifest: Path, lines: list[int], entries: list[Entry]) -> None:
    """Raise DataError if only some test images have a role, or all have the same."""
    roles = {entry.role for entry in entries} - {""}
    if not roles:
        return
    for line, entry in zip(lines, entries, strict=True):
        if entry.part == "test" and not entry.role:
            raise DataError(
                f"{manifest}: line {line} has no role, but other test images have one; "
                "use query or gallery for each test image, or leave all roles empty"
            )
    for role in ROLES:
        if role not in roles:
            raise DataError(
                f"{manifest}: no test image has the role {role}; use query and gallery, or leave "
                "all roles empty"
            )


def _source_file(manifest: Path, line: int, row: dict[str, str]) -> SourceFile:
    name = row["path"]
    label, split, group, role = (row.get(column, "").strip() for column in COLUMNS[1:])
    if not name.strip() or not label:
        column = "label" if name.strip() else "path"
        raise DataError(f"{manifest}: line {line} has no {column}; fill it in or remove the row")
    if split.lower() not in ("", *SPLITS):
        raise DataError(
            f"{manifest}: line {line} has the split {split[:100]!r}; use train, val or test, "
            "or leave it empty"
        )
    if role.lower() not in ("", *ROLES):
        raise DataError(
            f"{manifest}: line {line} has the role {role[:100]!r}; use query or gallery, or leave "
            "it empty"
        )
    if role and split.lower() != "test":
        raise DataError(
            f"{manifest}: line {line} has the role {role.lower()} in the split "
            f"{split.lower() or 'train'}; give a role to test images only"
        )
    path = os.path.join(manifest.parent, name)
    state = file_state(path)
    if state is None:
        name = name.strip()
        path = os.path.join(manifest.parent, name)
        state = file_state(path)
    if state is None and "\\" in name:  # written on Windows
        path = os.path.join(manifest.parent, name.replace("\\", "/"))
        state = file_state(path)
    entry = Entry(id=name, label=label, part=split.lower(), group=group, role=role.lower())
    return SourceFile(path, state, entry)


def _find_columns(path: Path, header: Sequence[str]) -> dict[str, int]:
    """Return the position of each known column."""
    names = [name.strip().lower() for name in header]
    listed = ", ".join(names)[:200] or "nothing"
    for name in COLUMNS:
        if names.count(name) > 1:
            raise DataError(
                f"{path}: several columns {name} in line 1 ({listed}); keep one of them"
            )
    for name in ("path", "label"):
        if name in names:
            continue
        if len(names) == 1 and (separator := _other_separator(names[0])):
            raise DataError(
                f"{path}: no column {name} in line 1 ({listed}), which has {separator} instead of "
                "commas; separate the columns with commas"
            )
        raise DataError(f"{path}: no column {name} in line 1 ({listed}); {ADVICE}")
    return {name: names.index(name) for name in COLUMNS if name in names}


def _other_separator(header: str) -> str:
    separators = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
    return next((name for separator, name in separators.items() if separator in header), "")


def _records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the first line and the values of each record that is not empty."""
    reader = csv.reader(io.StringIO(_read_text(path), newline=""), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"{path}: not a table that can be read (the record that starts in line {line}: "
                f"{error}); check its quotes, and {ADVICE}"
            ) from error
        if any(value.strip() for value in values):
            yield line, values


def _read_text(path: Path) -> str:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise DataError(f"{path}: {size / 1e9:.1f} GB, more than a table takes; {ADVICE}")
        content = path.read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"{path}: cannot be read ({reason}); give a file that you may read") from (
            error
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}: line {line} is not in UTF-8 (byte {content[error.start]:#x}); "
            "save the table as UTF-8"
        ) from error
