"""Validation scores during stage one."""

import math

import torch
from torch import nn

from stages.evaluation.knn import default_k, knn
from stages.evaluation.retrieval import measure_split
from stages.evaluation.statistics import triplet_accuracy
from stages.network.inference import embed_split
from stages.records import Split

QUERIES, GALLERY = (
    2000,
    1000,
)  # validation images at most, and training images that their kNN searches


def evenly_spaced_subset(split: Split, most: int) -> Split:
    """The split if it has no more than `most` images, else evenly spaced ones of each class."""
    if len(split) <= most:
        return split
    by_class = split.labels.argsort(stable=True)
    return split.select(by_class[torch.linspace(0, len(split) - 1, most).round().long()])


def validate(
    network: nn.Module, gallery: Split, validation: Split | None, *, device: torch.device
) -> tuple[float | None, float | None]:
    """kNN accuracy of the validation images in the gallery, and triplet accuracy among them."""
    if validation is None:
        return None, None
    queries, known = (embed_split(network, part, device=device) for part in (validation, gallery))
    votes = knn(queries.vectors, known.vectors, known.labels, k=default_k(known.labels)).labels
    triplets = triplet_accuracy(measure_split(queries.vectors, queries.labels))[0]
    return float((votes == validation.labels.numpy()).mean()), None if math.isnan(
        triplets
    ) else triplets
