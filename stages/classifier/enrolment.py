"""Enrolment: add images to a trained classifier without training the embedding.

Everything is computed from stored vectors; the images of the first training are not needed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stages.classifier.choose_k import K_CANDIDATES, MAX_K_QUERIES
from stages.classifier.cross_fit import REPLICAS
from stages.classifier.head_loss import class_weights_for, dropout_replicas, fit_weighted
from stages.classifier.standardisation import Standardisation
from stages.classifier.train import TrainedClassifier, train_classifier
from stages.evaluation.knn import classify_left_out, default_k, knn
from stages.network.head import Head, probabilities
from stages.records import Embeddings, HeadLog
from stages.settings import ClassifySettings
from stages.subset import evenly_spaced

FOLDS = 50  # fits of the head to estimate its accuracy on the new images


@dataclass(frozen=True, eq=False)
class EnrolledGallery:
    """Gallery whose last rows are enrolled images.

    Attributes:
        embeddings: Embeddings of all G images.
        enrolled: Number of enrolled images, E, those of earlier enrolments included.
        added: Number of images that are enrolled now, the last ones.
        new_classes: Indices of the classes without an image in the first training.
    """

    embeddings: Embeddings
    enrolled: int
    added: int
    new_classes: tuple[int, ...]

    @property
    def class_sizes(self) -> Tensor:
        """Number of images per class, int64, shape (C,)."""
        return torch.bincount(self.embeddings.labels, minlength=len(self.embeddings.classes))

    def repeated_rows(self, count: int) -> Tensor:
        """Return those of the last ``count`` rows whose class has at least two images, int64."""
        rows = torch.arange(len(self.embeddings) - count, len(self.embeddings))
        return rows[self.class_sizes[self.embeddings.labels[rows]] >= 2]

    def weights(self, labels: Tensor, settings: ClassifySettings) -> Tensor:
        """Return class weights for some of the images, float32, shape (C,).

        Unless ``settings.balance`` weights all classes, only new classes are weighted: one that has
        fewer images than the mean old class has weighs as much as that class. Without weights, the
        head would hardly ever predict a class with few images.

        Args:
            labels: Class indices of the images, int64, shape (N,).
            settings: Settings of stage two.
        """
        classes = len(self.embeddings.classes)
        weights = class_weights_for(labels, classes, balance=settings.balance)
        is_old = torch.ones(classes, dtype=torch.bool)
        is_old[list(self.new_classes)] = False
        sizes = torch.bincount(labels, minlength=classes)
        old_sizes = sizes[is_old & (sizes > 0)]
        if settings.balance or len(old_sizes) == 0:
            return weights
        new_weights = (old_sizes.float().mean() / sizes.clamp(min=1)).clamp(min=1)
        return torch.where(is_old, weights, new_weights)


def train_enrolled(
    gallery: EnrolledGallery,
    validation: Embeddings | None,
    settings: ClassifySettings,
    *,
    device: torch.device,
    on_epoch: Callable[[HeadLog], None] | None = None,
) -> TrainedClassifier:
    """Train the head on old and enrolled vectors, and choose the k of kNN.

    Weight decay and temperature are chosen on the validation images, which have no image of a new
    class. With new classes the weight decay is the strongest, up to 0.1, whose validation accuracy
    is within one standard error of the best. With ``settings.balance`` the accuracy is weighted by
    class, and the standard error is that of the unweighted accuracy.

    Args:
        gallery: Old and enrolled embeddings.
        validation: Validation embeddings of the old classes, if there are any.
        settings: Settings of stage two.
        device: Device to train on.
        on_epoch: Called with the log of each weight decay.
    """
    return train_classifier(
        gallery.embeddings,
        validation,
        settings,
        device=device,
        k=choose_enrolled_k(gallery, validation),
        weight_per_class=gallery.weights(gallery.embeddings.labels, settings),
        one_standard_error=len(gallery.new_classes) > 0,
        on_epoch=on_epoch,
    )


def largest_k(class_size: int) -> int:
    """Return the largest k with which a class can win without one of its images.

    The other n - 1 images have the majority of 2 n - 3 votes.

    Example:
        >>> largest_k(1), largest_k(2), largest_k(5)
        (1, 1, 7)
    """
    return max(1, 2 * class_size - 3)


def enrolled_k_limit(gallery: EnrolledGallery) -> tuple[int, int]:
    """Return the largest k with which each class with enrolled images can win.

    Returns:
        The largest k, and the size of the smallest class with enrolled images.
    """
    stored = gallery.embeddings
    sizes = gallery.class_sizes[stored.labels[len(stored) - gallery.enrolled :]]
    smallest = int(sizes.min())
    return largest_k(smallest), smallest


def choose_enrolled_k(gallery: EnrolledGallery, validation: Embeddings | None) -> int:
    """Choose the k that classifies most images correctly, where each class weighs the same.

    The images are those of validation, and enrolled images that are left out of the gallery. So
    that the smallest class with enrolled images can win a vote, k is at most
    :func:`enrolled_k_limit`. Ties are resolved in favour of the k nearest to the
    default, then of the smaller k.

    Args:
        gallery: Old and enrolled embeddings.
        validation: Validation embeddings of the old classes, if there are any.
    """
    stored = gallery.embeddings
    limit, _ = enrolled_k_limit(gallery)
    default = min(default_k(stored.labels), limit)
    rows = gallery.repeated_rows(gallery.enrolled)
    rows = rows[evenly_spaced(len(rows), MAX_K_QUERIES)]
    vectors, labels = stored.vectors[:0], stored.labels[rows]
    if validation:
        chosen = evenly_spaced(len(validation), MAX_K_QUERIES)
        vectors = validation.vectors[chosen]
        labels = torch.cat([labels, validation.labels[chosen]])
    if len(labels) == 0:
        return default
    true_labels = labels.numpy()
    best: tuple[float, int, int] | None = None
    for k in sorted({k for k in (*K_CANDIDATES, default, limit) if k <= limit}):
        predicted = [classify_left_out(stored.vectors, stored.labels, rows, k=k)]
        if len(vectors):
            predicted.append(knn(vectors, stored.vectors, stored.labels, k=k).labels)
        correct = np.concatenate(predicted) == true_labels
        # Rounded, so that the order of a sum decides nothing.
        score = round(_mean_over_classes(correct, true_labels), 9)
        best = max(best or (-1.0, 0, 0), (score, -abs(k - default), -k))
    assert best is not None
    return -best[2]


def _mean_over_classes(correct: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean over classes of the share of correct images."""
    sizes = np.bincount(labels)
    hits = np.bincount(labels, correct, minlength=len(sizes))
    return float((hits[sizes > 0] / sizes[sizes > 0]).mean())


class LeftOut(NamedTuple):
    """Predictions for enrolled images that are left out.

    Attributes:
        labels: True classes of the images, int64, shape (R,).
        knn: Classes predicted by kNN, int64, shape (R,).
        classifier: Classes predicted by the classifier, int64, shape (R,).
        probability: Their probabilities, float32, shape (R,).
        fits: Number of heads that were fitted; one per image is exact leave-one-out.
    """

    labels: np.ndarray
    knn: np.ndarray
    classifier: np.ndarray
    probability: np.ndarray
    fits: int


def left_out_fits(gallery: EnrolledGallery) -> int:
    """Return the number of heads that :func:`leave_out` fits without some of the images."""
    return min(len(gallery.repeated_rows(gallery.added)), FOLDS)


def leave_out(
    gallery: EnrolledGallery,
    trained: TrainedClassifier,
    settings: ClassifySettings,
    *,
    device: torch.device,
    on_fit: Callable[[], object] | None = None,
) -> LeftOut:
    """Predict the added images by classifiers without them.

    kNN leaves out one image at a time. The head is fitted again without one image, or, with more
    than 50, without one of 50 groups of images that share no more of a class than necessary.
    Weight decay, temperature and k stay.

    Args:
        gallery: Old and enrolled embeddings.
        trained: Classifier of all of them.
        settings: Settings of stage two.
        device: Device to train on.
        on_fit: Called after each of the :func:`left_out_fits` fits.

    Returns:
        The predictions for the added images of classes with at least two images.
    """
    stored = gallery.embeddings
    rows = gallery.repeated_rows(gallery.added)
    labels = stored.labels[rows]
    fits = left_out_fits(gallery)
    # Images of one class are in consecutive folds, so that each fold keeps images of the class.
    folds = torch.empty_like(rows)
    folds[labels.argsort(stable=True)] = torch.arange(len(rows)) % max(1, fits)
    predicted = torch.zeros(len(rows), len(stored.classes))
    left_out = [rows[folds == fold] for fold in range(fits)]
    for fold, head in enumerate(_heads_without(gallery, left_out, trained, settings, device)):
        predicted[folds == fold] = probabilities(
            head, stored.vectors[left_out[fold]], temperature=trained.temperature
        )
        if on_fit:
            on_fit()
    probability, classifier = predicted.max(dim=1)
    return LeftOut(
        labels=labels.numpy(),
        knn=classify_left_out(stored.vectors, stored.labels, rows, k=trained.k),
        classifier=classifier.numpy(),
        probability=probability.numpy(),
        fits=fits,
    )


def _heads_without(
    gallery: EnrolledGallery,
    left_out: Sequence[Tensor],
    trained: TrainedClassifier,
    settings: ClassifySettings,
    device: torch.device,
) -> Iterator[Head]:
    """Yield a head for unit vectors per group of rows that it is not trained on."""
    stored = gallery.embeddings
    standardisation = Standardisation.of(stored.vectors)
    decay = trained.history[trained.epoch - 1].weight_decay
    vectors, labels = dropout_replicas(stored, settings.dropout, settings.seed, standardisation)
    vectors, labels = vectors[: REPLICAS * len(stored)], labels[: REPLICAS * len(stored)]

    def fit(without: Tensor, start: Head | None) -> Head:
        kept = torch.ones(len(stored), dtype=torch.bool)
        kept[without] = False
        weights = gallery.weights(stored.labels[kept], settings)
        kept = kept.repeat(len(labels) // len(stored))
        return fit_weighted(
            vectors[kept],
            labels[kept],
            weights,
            decay,
            settings.max_iter,
            device=device,
            start=start,
        )

    start = fit(torch.empty(0, dtype=torch.int64), None)  # near all the others
    for rows in left_out:
        head = fit(rows, start).cpu()
        standardisation.fold_into(head)
        yield head
