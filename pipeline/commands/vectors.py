"""`pipeline vectors`: write the embedding vectors of images to a file."""

import hashlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from pipeline.checkpoint import load_embedder
from pipeline.context import RunContext
from pipeline.data.image_paths import GivenImages
from pipeline.device import restore_torch_settings
from pipeline.image_vectors import embed_files
from pipeline.outputs import refuse_existing, reserve_outputs
from pipeline.processes import assert_equal_across_ranks, is_main_process, main_process_only
from pipeline.vector_files import VectorRows, check_format, check_ids, write_vectors
from stages.checkpoints import EmbeddingCheckpoint
from stages.network.embedding_net import to_device


@restore_torch_settings()
def vectors(
    images: Sequence[Path],
    checkpoint: Path,
    *,
    out: Path,
    context: RunContext,
    force: bool = False,
) -> int:
    """Write the vectors of image files, and of the image files in folders and their subfolders.

    The label of an image in a folder is the name of the first subfolder in its path, where
    ``train/``, ``val/`` and ``test/`` do not count. Other images have no label. Images that cannot
    be read are left out and reported.

    Args:
        images: Files and folders; ``-`` stands for paths on standard input, one per line.
        checkpoint: Embedding, or classifier with its embedding.
        out: File to write, complete or not at all: ``.safetensors``, ``.npz``, ``.csv`` or
            ``.parquet``.
        context: Device and output options.
        force: Replace an existing file.

    Returns:
        The number of vectors.

    Raises:
        DataError: If a file in ``images`` is missing or unreadable, or no image can be read. The
            vectors of the other images are written before.
        PipelineError: If the output exists, cannot be written, or has an unknown format.
        CheckpointError: If the checkpoint cannot be used.

    Example:
        >>> vectors(
        ...     [Path("photos")], Path("embedding.safetensors"),
        ...     out=Path("photos.npz"), context=RunContext(),
        ... )  # doctest: +SKIP
        24
    """
    device = context.start()
    check_format(out)
    given = GivenImages(images, context.say)
    with reserve_outputs([out], inputs=[checkpoint, *images]):
        refuse_existing(out, force)
        embedder = load_embedder(checkpoint)
        to_device(embedder.network, device)
        paths, labels = _find_images(given)
        check_ids(out, paths)

        def rows() -> Iterator[VectorRows]:
            remaining = iter(labels)
            with context.bar("embedding", len(paths), unit="image") as bar:
                for block in embed_files(paths, embedder, device=device):
                    for path, reason in zip(block.paths, block.reasons, strict=True):
                        given.count(path, reason)
                    own_labels = islice(remaining, len(block.paths))
                    outcomes = zip(own_labels, block.reasons, strict=True)
                    readable = [label for label, reason in outcomes if not reason]
                    yield VectorRows(block.readable, readable, block.vectors)
                    bar.update(len(block.paths))
            if not given.readable:  # an error in here leaves no file behind
                given.require_readable("no file was written")

        count = _write(out, rows(), embedder)
    given.require_readable(f"{out} is written without them")
    return count


def _find_images(given: GivenImages) -> tuple[list[str], list[str]]:
    """Return the paths of all image files, and their labels, empty if unknown."""
    paths: list[str] = []
    labels: list[str] = []
    digest = hashlib.sha256()
    for path, label in given.labelled():
        paths.append(path)
        labels.append(sys.intern(label))  # one text per class, not per image
        digest.update(f"{path}\0".encode(errors="backslashreplace"))
    listing = f"{len(paths)} files, {digest.hexdigest()[:12]}"
    assert_equal_across_ranks("images", listing, "give every machine the same images")
    return paths, labels


def _write(out: Path, blocks: Iterable[VectorRows], embedder: EmbeddingCheckpoint) -> int:
    """Write the vectors in the main process; the other processes compute their share."""
    if is_main_process():
        count = write_vectors(out, blocks, embedder)
    else:
        count = sum(len(rows.ids) for rows in blocks)
    main_process_only(lambda: None)  # the other processes wait for the file
    return count
