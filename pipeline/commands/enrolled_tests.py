"""Test images of a classifier with enrolled images."""

import torch
from torch import Tensor

from pipeline.data.dataset import Dataset, folded_name
from pipeline.enrolments import enrolled_count
from stages.checkpoints import ClassifierCheckpoint
from stages.classifier.copies import find_copies
from stages.records import Embeddings


def enrolled_labels(unseen: Embeddings, classifier: ClassifierCheckpoint) -> Tensor | None:
    """Return the class of test images of unseen classes, for a classifier that knows some of them.

    Differences of case and Unicode form do not count: such names are of one class.

    Args:
        unseen: Embeddings of U test images of classes that were not trained on.
        classifier: Classifier, possibly with enrolled classes.

    Returns:
        Indices of the classifier's classes, int64, shape (U,), -1 where it has no such class. None
        without enrolled images.
    """
    if not enrolled_count(classifier.record):
        return None
    index = {folded_name(name): label for label, name in enumerate(classifier.classes)}
    of_class = torch.tensor([index.get(folded_name(name), -1) for name in unseen.classes])
    return of_class[unseen.labels]


def enrolled_copies(vectors: Tensor, classifier: ClassifierCheckpoint) -> Tensor:
    """Return the rows of the images that are copies of enrolled images, int64.

    Args:
        vectors: Unit vectors, float32, shape (N, D).
        classifier: Classifier, possibly with enrolled images.
    """
    gallery, count = classifier.gallery, enrolled_count(classifier.record)
    first = len(gallery) - count
    enrolled = Embeddings(gallery.vectors[first:], gallery.labels[first:], gallery.classes)
    labels = torch.zeros(len(vectors), dtype=torch.int64)
    copies = find_copies(Embeddings(vectors, labels, gallery.classes), enrolled)
    is_copy = (copies.same_class >= 0) | (copies.other_class >= 0)
    return torch.from_numpy(is_copy).nonzero().flatten()


def leaked_images(
    data: Dataset, test: Embeddings, classifier: ClassifierCheckpoint
) -> tuple[int, ...]:
    """Return the test images that also occur in training, in validation or among enrolled images.

    Args:
        data: Data set of the run.
        test: Embeddings of its test images of known classes.
        classifier: Classifier, possibly with enrolled images.
    """
    copies = enrolled_copies(test.vectors, classifier).tolist()
    return tuple(sorted({*data.leaked, *copies}))
