"""`pipeline search`: find the most similar images of a file of vectors or a classifier."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.commands.row_writer import Row, empty_row, open_rows, reserved_output
from pipeline.context import RunContext
from pipeline.data.image_paths import GivenImages
from pipeline.device import restore_torch_settings
from pipeline.escape import escape_formula
from pipeline.image_vectors import ImageBlock, embed_given
from pipeline.open_gallery import open_gallery
from stages.errors import SettingsError
from stages.gallery import Gallery
from stages.network.embedding_net import to_device
from stages.search import Matches
from stages.search import search as find_nearest

COLUMNS = ("query", "rank", "id", "label", "distance")


@restore_torch_settings()
def search(
    images: Sequence[Path],
    within: Path,
    *,
    embedding: Path | None = None,
    k: int = 10,
    as_json: bool = False,
    out: Path | None = None,
    context: RunContext,
) -> int:
    """Find the most similar images of a file of vectors, or of a classifier's training images.

    Results are exact. Equal distances are ordered by the row in the file. A query that is itself in
    the file is found at distance 0. The file is read once per block of up to 128 queries.

    Args:
        images: Files and folders; ``-`` stands for paths on standard input, one per line.
        within: File of `pipeline vectors`, or a classifier.
        embedding: Checkpoint that computed the vectors, for a file that does not contain it.
        k: Number of results per query; fewer if the file has fewer vectors.
        as_json: Write one JSON object per line instead of CSV.
        out: File to write. None: standard output.
        context: Device and output options.

    Returns:
        The number of images that were searched for.

    Raises:
        DataError: If a file in ``images`` is missing or unreadable, or no image can be read. All
            rows are written before. Also if ``within`` is damaged or is of another embedding.
        PipelineError: If the output cannot be written.
        CheckpointError: If a checkpoint cannot be used.
        SettingsError: If ``k`` is below 1.

    Example:
        >>> search(
        ...     [Path("new.jpg")], Path("photos.safetensors"), k=5, context=RunContext()
        ... )  # doctest: +SKIP
        1
    """
    if k < 1:
        raise SettingsError("k", k, "out of range; use a whole number of at least 1")
    device = context.start()
    with reserved_output(out, images, [within, *([embedding] if embedding else [])]):
        gallery, embedder = open_gallery(within, embedding)
        to_device(embedder.network, device)
        given = GivenImages(images, context.say)
        with open_rows(COLUMNS, out, as_json=as_json) as writer:
            for block in embed_given(given, embedder, device=device):
                matches = find_nearest(block.vectors, gallery, k=k)
                writer.write(_rows(block, matches, gallery))
    given.require_readable("their rows are empty")
    return given.readable


def _rows(block: ImageBlock, matches: Matches, gallery: Gallery) -> Iterator[Row]:
    """Yield the results of a block of queries; one empty row for an unreadable image."""
    results = zip(matches.rows, matches.distances, strict=True)
    for path, reason in zip(block.paths, block.reasons, strict=True):
        if reason:
            yield empty_row(COLUMNS, path)
            continue
        rows, distances = next(results)
        pairs = zip(rows.tolist(), distances.tolist(), strict=True)
        for rank, (row, distance) in enumerate(pairs, 1):
            yield _result(path, rank, gallery.ids[row], gallery.class_name(row), distance)


def _result(query: str, rank: int, image: str, label: str, distance: float) -> Row:
    texts = (query, str(rank), image, label, f"{distance:.6f}")
    values = (query, rank, image, label or None, round(distance, 6))
    return Row([escape_formula(text) for text in texts], dict(zip(COLUMNS, values, strict=True)))
