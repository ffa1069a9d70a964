"""Image files of a source: list them, and decode them into a store. It imports no torch."""

import os
from collections.abc import Sequence
from pathlib import Path

from pipeline.data.decoding_pool import file_decoder
from pipeline.data.entries import SourceFile
from pipeline.data.folder import list_folder
from pipeline.data.image_store import Store, file_signature, open_store
from pipeline.data.manifest import list_manifest
from pipeline.progress import Progress
from stages.errors import DataError
from stages.settings import ReadSettings


def list_files(source: str) -> tuple[list[SourceFile], list[str]]:
    """List the image files of a folder or a manifest.

    Args:
        source: A folder or a CSV file, as for :func:`pipeline.data.sources.read_source`.

    Returns:
        The files, and one sentence for each kind of ignored file.

    Raises:
        DataError: If the source is missing or malformed.
    """
    if os.path.isdir(source):
        return list_folder(Path(source))
    if os.path.isfile(source) and source.lower().endswith(".csv"):
        return list_manifest(Path(source)), []
    problem = "a file, but not a .csv" if os.path.isfile(source) else "no such folder or file"
    raise DataError(
        f"{source}: {problem}; "
        "give `digits`, a folder with one subfolder per class, a .csv file or torchvision:NAME"
    )


def decode_files(
    files: Sequence[SourceFile], read: ReadSettings, cache: Path, show: Progress
) -> Store:
    """Decode image files into a store, or open the store if they have been decoded before.

    Args:
        files: Files of a source.
        read: Settings of the decoder.
        cache: Folder of decoded images.
        show: Progress display.

    Raises:
        DataError: As :func:`pipeline.data.image_store.open_store`.
    """
    paths_and_states = [(file.path, file.state) for file in files]
    signature = file_signature(paths_and_states)
    with file_decoder(paths_and_states, read.resize, read.jpeg) as decoder:
        return open_store(cache, signature, decoder, len(files), read, show)
