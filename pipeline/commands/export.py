"""`pipeline export`: a classifier with its embedding network as ONNX files."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipeline.checkpoint import load_classifier
from pipeline.context import RunContext
from pipeline.data.decode import decode_files, read_image
from pipeline.data.folder import find_image_files
from pipeline.data.image_paths import GivenImages
from pipeline.data.resizing import RESIZES_ROWS_FIRST, fit_to_square, to_channels
from pipeline.device import restore_torch_settings
from pipeline.files import write_atomically
from pipeline.numbers import count_of
from pipeline.onnx_file import make_metadata, require_onnx, to_onnx
from pipeline.onnx_parity import (
    BATCH_SIZES,
    Parity,
    compare_batches,
    compare_photos,
    run_onnx,
)
from pipeline.outputs import refuse_existing, reserve_outputs
from pipeline.processes import world_size_of_torchrun
from stages.checkpoints import ClassifierCheckpoint
from stages.errors import PipelineError
from stages.network.classifier_graph import OUTPUTS, AnySizeGraph, ClassifierGraph
from stages.network.square_graph import SquareGraph

BLOCK = BATCH_SIZES[-1]  # images per block of the comparison
MAX_COMPARED_PIXELS = 25_000_000  # any-size files need 35 bytes per pixel and more


@restore_torch_settings()
def export(
    classifier: Path,
    images: Sequence[Path] = (),
    *,
    out: Path,
    context: RunContext,
    force: bool = False,
    any_size: Path | None = None,
) -> str:
    """Write a classifier with its embedding network as an ONNX file.

    Before it is written, onnxruntime runs it on images, and the results are compared with those of
    `pipeline predict`. Everything is computed on the CPU.

    Args:
        classifier: Checkpoint of stage two. No other file is needed.
        images: Files and folders of images for the comparison; ``-`` stands for paths on standard
            input, one per line. Empty: parts of the two photographs that scikit-learn contains.
        out: ONNX file to write. Its input is a batch of square images.
        context: Output options.
        force: Replace existing files.
        any_size: Second ONNX file to write. Its input is one image of any size.

    Returns:
        Description of the result, for the terminal.

    Raises:
        CheckpointError: If the checkpoint cannot be used.
        DataError: If a file in ``images`` is missing or unreadable, or no image can be read.
        PipelineError: If an optional package is missing, an output exists or cannot be written, the
            network cannot be translated, or onnxruntime computes other results. Nothing is written.

    Example:
        >>> print(export(
        ...     Path("classifier.safetensors"), out=Path("model.onnx"), context=RunContext()
        ... ))  # doctest: +SKIP
        classes: 10; training images: 1,259
        ...
    """
    require_onnx()
    if world_size_of_torchrun() > 1:
        raise PipelineError("export: runs in one process; start it without torchrun")
    replace(context, device="cpu").start()
    files = [out] if any_size is None else [out, any_size]
    with reserve_outputs(files, inputs=[classifier, *images]):
        for file in files:
            refuse_existing(file, force, alternative="another path")
        checkpoint = load_classifier(classifier)
        blocks = _blocks(images, checkpoint, context)
        blocks = chain([next(blocks)], blocks)  # finds unreadable images before the long work
        graph = ClassifierGraph(checkpoint)
        results = [_export_squares(graph, checkpoint, blocks)]
        if any_size is not None:
            results.append(_export_any_size(graph, checkpoint, images))
        for file, (content, _) in zip(files, results, strict=True):
            write_atomically(file, content)
    classes, vectors = len(checkpoint.classes), len(checkpoint.gallery)
    lines = [f"classes: {classes:,}; training images: {vectors:,}"]
    for file, (content, description) in zip(files, results, strict=True):
        lines.append(f"{file}: {len(content) / 1e6:,.1f} MB; {description}")
    return "\n".join(lines)


def _export_squares(
    graph: ClassifierGraph, checkpoint: ClassifierCheckpoint, blocks: Iterator[np.ndarray]
) -> tuple[bytes, str]:
    """Return the ONNX file for batches of squares, and the result of its comparison."""
    read = checkpoint.record["read"]
    # An example of two: a dimension of 1 would be taken for a constant.
    example = torch.zeros(2, read["channels"], read["size"], read["size"], dtype=torch.uint8)
    content = to_onnx(
        graph,
        example,
        dynamic={0: "batch"},
        names=("images", OUTPUTS),
        metadata=make_metadata(checkpoint),
    )
    parity = compare_batches(run_onnx(content, "images"), checkpoint, blocks)
    parity.check()
    return content, _describe(parity, f" in batches of {', '.join(map(str, BATCH_SIZES))}")


def _export_any_size(
    graph: ClassifierGraph, checkpoint: ClassifierCheckpoint, images: Sequence[Path]
) -> tuple[bytes, str]:
    """Return the ONNX file for an image of any size, and the result of its comparison."""
    read = checkpoint.record["read"]
    square = SquareGraph(
        read["size"], read["channels"], read["resize"], rows_first=RESIZES_ROWS_FIRST
    )
    content = to_onnx(
        AnySizeGraph(square, graph),
        torch.zeros(40, 30, 3, dtype=torch.uint8),
        dynamic={0: "height", 1: "width"},
        names=("image", OUTPUTS),
        metadata=make_metadata(checkpoint),
    )
    photos = ((np.array(photo.convert("RGB")), _fit(photo, read)) for photo in _photos(images))
    parity = compare_photos(run_onnx(content, "image"), checkpoint, square, photos)
    pixels = f"pixels that differ by up to {parity.levels} of 255"
    detail = f" with {pixels if parity.levels else 'equal pixels'}"
    if images and read["jpeg"] == "reduced":
        detail += ", decoded in full"
    return content, _describe(parity, detail)


def _describe(parity: Parity, detail: str) -> str:
    images = count_of(parity.images, "image")
    return f"compared with `pipeline predict` on {images}{detail}: {parity.describe()}"


def _blocks(
    images: Sequence[Path], checkpoint: ClassifierCheckpoint, context: RunContext
) -> Iterator[np.ndarray]:
    """Yield blocks of up to 64 square images, uint8 (b, C, S, S), for the comparison.

    Without images, yield those of :func:`sample_photos`.
    """
    read = checkpoint.record["read"]
    if not images:
        yield np.stack([_fit(photo, read) for photo in sample_photos()])
        return
    given, effect = GivenImages(images, context.say), "and nothing was written"
    for batch in given.batches():
        while paths := list(islice(batch, BLOCK)):
            outcomes = decode_files(
                paths,
                size=read["size"],
                channels=read["channels"],
                resize=read["resize"],
                jpeg=read["jpeg"],
            )
            squares = []
            for path, outcome in zip(paths, outcomes, strict=True):
                if isinstance(outcome, str):
                    given.count(path, outcome)
                else:
                    given.count(path, "")
                    squares.append(np.frombuffer(outcome.pixels, np.uint8).reshape(outcome.shape))
            if squares:
                given.require_readable(effect)
                yield np.stack(squares)
    given.require_readable(effect)


def _photos(images: Sequence[Path]) -> Iterator[Image.Image]:
    """Yield up to 64 readable images in their size, one at a time.

    Without one of at most ``MAX_COMPARED_PIXELS``, yield those of :func:`sample_photos`.
    """
    number = 0
    for file in (file for path in images for file in find_image_files(path)):
        photo = read_image(str(file))
        if isinstance(photo, str) or photo.width * photo.height > MAX_COMPARED_PIXELS:
            continue
        yield photo
        number += 1
        if number == BLOCK:
            return
    if not number:
        yield from sample_photos()


def sample_photos() -> list[Image.Image]:
    """Return 64 parts of scikit-learn's two photographs, of many sizes and shapes, in colour."""
    from sklearn.datasets import load_sample_images

    photos = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    generator = np.random.default_rng(0)
    parts = []
    for number in range(BLOCK):
        photo = photos[number % len(photos)]
        width, height = (int(generator.integers(20, side + 1)) for side in photo.size)
        left = int(generator.integers(photo.width - width + 1))
        top = int(generator.integers(photo.height - height + 1))
        parts.append(photo.crop((left, top, left + width, top + height)))
    return parts


def _fit(photo: Image.Image, read: dict[str, Any]) -> np.ndarray:
    """Return a photograph as a square, uint8 (C, S, S)."""
    return to_channels(fit_to_square(photo, read["size"], read["resize"]), read["channels"])
