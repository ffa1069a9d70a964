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
# Training images that their kNN searches: about so many, but at least so many of each class, or all
# if a class has fewer. With fewer per class, kNN would miss the classes with few images.
GALLERY, GALLERY_PER_CLASS = 1000, 10


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


def gallery_subset(split: Split, count: int, per_class: int) -> Split:
    """Return a subset in which every class keeps its share, but has some images at least.

    Args:
        split: Training images.
        count: Number of images to choose.
        per_class: Smallest number of images of a class; a smaller class keeps all of its images.

    Returns:
        The split itself if it is small enough, else the chosen images sorted by class.

    Example:
        >>> labels = torch.tensor([0, 0, 0, 0, 0, 0, 0, 1])
        >>> store = torch.zeros(8, 1, 4, 4, dtype=torch.uint8)
        >>> split = Split(store, torch.arange(8), labels, ("cat", "dog"), tuple("abcdefgh"))
        >>> gallery_subset(split, 4, 2).ids
        ('a', 'c', 'e', 'g', 'h')
    """
    if len(split) <= count:
        return split
    chosen: list[Tensor] = []
    sizes: list[int] = torch.bincount(split.labels).tolist()
    for members in split.labels.argsort(stable=True).split(sizes):
        share = math.ceil(len(members) * count / len(split))
        chosen.append(members[evenly_spaced(len(members), max(share, per_class))])
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
    triplets = triplet_accuracy(measure_split(queries.vectors, queries.labels, device=device))[0]
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
    hits = measure_split(embedded.vectors, embedded.labels, device=device).precision_at_1
    hits = hits[~np.isnan(hits)]
    return float(hits.mean()) if len(hits) else None
