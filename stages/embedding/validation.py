"""Validation scores during stage one."""

import math

import numpy as np
import torch
from torch import Tensor, nn

from stages.evaluation.knn import default_k, knn
from stages.evaluation.statistics import triplet_accuracy
from stages.evaluation.triplets_and_rankings import measure_split
from stages.network.inference import embed_split
from stages.records import Split
from stages.subset import evenly_spaced

QUERIES = 2000  # largest number of validation images
# Training images that their kNN searches, unless there are more classes than that.
GALLERY = 1000


def evenly_spaced_subset(split: Split, most: int) -> Split:
    """Return a subset in which every class keeps its share of the images.

    Args:
        split: Images to choose from.
        most: Largest number of images.

    Returns:
        The split itself if it is small enough, else ``most`` images sorted by class.
    """
    if len(split) <= most:
        return split
    by_class = split.labels.argsort(stable=True)
    return split.select(by_class[evenly_spaced(len(split), most)])


def gallery_subset(split: Split, most: int) -> Split:
    """Return a subset that contains every class, so that kNN can find the class of any query.

    Args:
        split: Training images.
        most: Largest number of images, unless there are more classes.

    Returns:
        The images of :func:`evenly_spaced_subset` if they contain every class. Otherwise about
        equally many images of each class, at least one.

    Example:
        >>> labels = torch.tensor([0, 0, 0, 0, 0, 0, 0, 1])
        >>> store = torch.zeros(8, 1, 4, 4, dtype=torch.uint8)
        >>> split = Split(store, torch.arange(8), labels, ("cat", "dog"), tuple("abcdefgh"))
        >>> gallery_subset(split, 2).ids
        ('a', 'h')
    """
    subset = evenly_spaced_subset(split, most)
    sizes = torch.bincount(split.labels)
    class_count = int(sizes.count_nonzero())
    if len(subset.labels.unique()) == class_count:
        return subset
    per_class = max(1, most // class_count)
    chosen: list[Tensor] = []
    for members in split.labels.argsort(stable=True).split(sizes.tolist()):
        chosen.append(members[evenly_spaced(len(members), per_class)])
    return split.select(torch.cat(chosen))


def validate(
    network: nn.Module, gallery: Split, validation: Split | None, *, device: torch.device
) -> tuple[float | None, float | None]:
    """Compute kNN and triplet accuracy on validation images.

    Args:
        network: Embedding network.
        gallery: Training images, searched by kNN.
        validation: Validation images, or None.
        device: Device of the network.

    Returns:
        Share of validation images that kNN classifies correctly, and share of correctly ordered
        triplets among the validation images. None for a score that is undefined: both without
        validation images, the second without triplets.
    """
    if validation is None:
        return None, None
    queries = embed_split(network, validation, device=device)
    known = embed_split(network, gallery, device=device)
    predicted = knn(queries.vectors, known.vectors, known.labels, k=default_k(known.labels)).labels
    accuracy = float((predicted == validation.labels.numpy()).mean())
    triplets = triplet_accuracy(measure_split(queries.vectors, queries.labels))[0]
    return accuracy, None if math.isnan(triplets) else triplets


def validate_held_out(
    network: nn.Module, held_out: Split | None, *, device: torch.device
) -> float | None:
    """Compute recall@1 on images of held-out classes.

    Each image queries all others.

    Args:
        network: Embedding network.
        held_out: Images of classes that are not trained on, or None.
        device: Device of the network.

    Returns:
        Share of images whose nearest image is of the same class. An image without another one of
        its class is no query. None if there is no query.
    """
    if held_out is None:
        return None
    embedded = embed_split(network, held_out, device=device)
    hits = measure_split(embedded.vectors, embedded.labels).precision_at_1
    hits = hits[~np.isnan(hits)]
    return float(hits.mean()) if len(hits) else None
