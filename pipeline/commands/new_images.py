"""Read the new images of `pipeline enroll`: their vectors and classes, without copies."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipeline.context import RunContext
from pipeline.data.class_names import match_class_names
from pipeline.data.dataset import natural_key
from pipeline.data.entries import Skipped, SourceFile
from pipeline.data.folder import list_folder
from pipeline.data.manifest import list_manifest
from pipeline.image_vectors import embed_files
from pipeline.numbers import count_of
from stages.checkpoints import ClassifierCheckpoint
from stages.classifier.copies import SAME_IMAGE, find_copies
from stages.distance import exact_distances
from stages.errors import DataError
from stages.records import Embeddings


@dataclass(frozen=True, eq=False)
class NewImages:
    """Images to enrol.

    Attributes:
        embeddings: Vectors and labels of the N images without copies. Their classes are those of
            the classifier and then the new ones.
        paths: Paths of the images, as given.
        skipped: Images that cannot be read.
        repeated: Number of images left out because they are copies of another new image.
        known: Number of images left out because the classifier has them already, in its gallery
            or among its validation images.
    """

    embeddings: Embeddings
    paths: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    repeated: int
    known: int


def read_new_images(
    source: str, classifier: ClassifierCheckpoint, *, device: torch.device, context: RunContext
) -> NewImages:
    """Read and embed the images of a source, and leave out copies.

    Args:
        source: Folder or CSV file. Splits in it are ignored.
        classifier: Classifier whose network is on ``device``.
        device: Device to compute on.
        context: Output options.

    Raises:
        DataError: If the source is malformed, no image can be read, an image contradicts another
            one, or all images are copies.
    """
    files = _list_files(source, context)
    labels = [file.entry.label for file in files]
    names, notes = match_class_names(source, labels, classifier.classes)
    for note in notes:
        context.say(f"note: {note}")
    vectors = []
    skipped: list[Skipped] = []
    with context.bar("embedding the images", len(files)) as bar:
        for block in embed_files([file.path for file in files], classifier, device=device):
            vectors.append(block.vectors)
            skipped += block.skipped
            bar.update(len(block.paths))
    for path, reason in skipped:
        context.say(f"skipped: {path}: {reason}")
    unreadable = {path for path, _ in skipped}
    readable = [file for file in files if file.path not in unreadable]
    if not readable:
        raise DataError(
            f"{source}: none of the {count_of(len(files), 'image')} can be read, such as "
            f"{skipped[0].path} ({skipped[0].reason}); give images that can be read"
        )
    of_image = [names[file.entry.label] for file in readable]
    new_classes = sorted(set(of_image) - set(classifier.classes), key=natural_key)
    classes = (*classifier.classes, *new_classes)
    index = {name: label for label, name in enumerate(classes)}
    images = Embeddings(
        torch.cat(vectors), torch.tensor([index[name] for name in of_image]), classes
    )
    paths = [file.path for file in readable]
    return _without_copies(source, images, paths, tuple(skipped), classifier)


def _list_files(source: str, context: RunContext) -> list[SourceFile]:
    """List the images of a folder or a CSV file, and show the notes on it."""
    notes: list[str] = []
    if os.path.isdir(source):
        files, notes = list_folder(Path(source))
    elif os.path.isfile(source) and source.lower().endswith(".csv"):
        files = list_manifest(Path(source))
    else:
        problem = "a file, but not a .csv" if os.path.isfile(source) else "no such folder or file"
        raise DataError(
            f"{source}: {problem}; give a folder with one subfolder per class, or a .csv file "
            "with the columns path and label"
        )
    if any(file.entry.part for file in files):
        notes = [*notes, "the splits of the source are ignored: all its images are enrolled"]
    for note in notes:
        context.say(f"note: {note}")
    return files


def _without_copies(
    source: str,
    images: Embeddings,
    paths: Sequence[str],
    skipped: tuple[Skipped, ...],
    classifier: ClassifierCheckpoint,
) -> NewImages:
    """Leave out copies of other images.

    A validation image that was enrolled would be its own nearest neighbour: it could choose nothing
    and measure nothing any more.
    """
    within = find_copies(images, images, only_earlier_rows=True)
    for row in (within.other_class >= 0).nonzero()[0][:1].tolist():
        raise _contradiction(images, paths, row, int(within.other_class[row]))
    stored = [(classifier.gallery, classifier.gallery_ids)]
    if classifier.validation:
        stored.append((classifier.validation, ("a validation image",) * len(classifier.validation)))
    known = np.zeros(len(images), bool)
    for embeddings, ids in stored:
        old = Embeddings(embeddings.vectors, embeddings.labels, images.classes)
        copies = find_copies(images, old)
        for row in (copies.other_class >= 0).nonzero()[0][:1].tolist():
            other = int(copies.other_class[row])
            raise _stored_contradiction(images, paths[row], row, old, ids[other], other)
        known |= copies.same_class >= 0
    repeated = within.same_class >= 0
    kept = torch.from_numpy(~(known | repeated)).nonzero().flatten()
    if len(kept) == 0:
        raise DataError(
            f"{source}: nothing to enrol: the classifier has {count_of(len(images), 'image')} of "
            "it already, all that can be read; give other images"
        )
    return NewImages(
        embeddings=Embeddings(images.vectors[kept], images.labels[kept], images.classes),
        paths=tuple(paths[row] for row in kept.tolist()),
        skipped=skipped,
        repeated=int((repeated & ~known).sum()),
        known=int(known.sum()),
    )


def _contradiction(images: Embeddings, paths: Sequence[str], row: int, other: int) -> DataError:
    """Return the error for two new images that are the same under two classes."""
    first, second = (images.classes[int(images.labels[index])] for index in (other, row))
    return DataError(
        f"{paths[row]}: the same image as {paths[other]}, but the classes are {second} and "
        f"{first}; remove one of the two"
    )


def _stored_contradiction(
    images: Embeddings, path: str, row: int, stored: Embeddings, stored_id: str, other: int
) -> DataError:
    """Return the error for a new image that the classifier has under another class."""
    vector = images.vectors[[row]]
    close = (exact_distances(vector, stored.vectors) <= SAME_IMAGE)[0]
    classes = [images.classes[label] for label in stored.labels[close].unique().tolist()]
    if len(classes) > 1:
        return DataError(
            f"{path}: its vector is that of images of several classes ({', '.join(classes[:5])}), "
            "so the embedding cannot tell them apart: it has collapsed, or an image has several "
            "labels; train the embedding again, or remove the image"
        )
    label = images.classes[int(images.labels[row])]
    return DataError(
        f"{path}: the same image as {stored_id} of the classifier, but the classes are {label} and "
        f"{images.classes[int(stored.labels[other])]}; correct the class or remove the image"
    )
