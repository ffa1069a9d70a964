"""Enrolment: class weights, k and leave-one-out, compared with slow loops."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from factories import random_embeddings

from stages.classifier.enrolment import (
    EnrolledGallery,
    choose_enrolled_k,
    largest_k,
    leave_out,
    left_out_fits,
    train_enrolled,
)
from stages.classifier.head_loss import class_weights
from stages.classifier.train import train_classifier
from stages.evaluation.knn import knn
from stages.records import Embeddings
from stages.settings import ClassifySettings

CPU = torch.device("cpu")
SETTINGS = ClassifySettings()


def make_gallery(
    old: int = 60, new: tuple[int, ...] = (4,), *, known: int = 0, noise: float = 0.5
) -> EnrolledGallery:
    """Return three old classes, and the given number of images of each new class."""
    pool = random_embeddings(400, 3 + len(new), seed=2, noise=noise)
    rows = [(pool.labels < 3).nonzero().flatten()[: old + known]]
    rows += [(pool.labels == 3 + i).nonzero().flatten()[:n] for i, n in enumerate(new)]
    chosen = torch.cat(rows)
    added = sum(new) + known
    # The last old images count as enrolled ones of known classes.
    return EnrolledGallery(
        embeddings=Embeddings(pool.vectors[chosen], pool.labels[chosen], pool.classes),
        enrolled=added,
        added=added,
        new_classes=tuple(range(3, 3 + len(new))),
    )


def make_validation(classes: tuple[str, ...], count: int = 60, *, noise: float = 0.5) -> Embeddings:
    """Return images of the three old classes."""
    pool = random_embeddings(400, len(classes), seed=5, noise=noise)
    rows = (pool.labels < 3).nonzero().flatten()[:count]
    return Embeddings(pool.vectors[rows], pool.labels[rows], classes)


def test_new_classes_weigh_as_much_as_the_mean_old_class():
    gallery = make_gallery(60, (1, 4))
    labels = gallery.embeddings.labels
    weights = gallery.weights(labels, SETTINGS)
    assert weights[:3].tolist() == [1, 1, 1]
    totals = weights[3:] * torch.bincount(labels)[3:]
    torch.testing.assert_close(totals, torch.full((2,), 20.0))  # 60 images of three classes
    balanced = gallery.weights(labels, ClassifySettings(balance=True))
    assert torch.equal(balanced, class_weights(labels, 5))


def test_large_new_classes_and_known_classes_have_weight_one():
    large = make_gallery(9, (40,))
    assert large.weights(large.embeddings.labels, SETTINGS).tolist() == [1] * 4
    known = make_gallery(60, (), known=3)
    assert known.weights(known.embeddings.labels, SETTINGS).tolist() == [1] * 3


def test_one_new_image_changes_the_prediction_only_with_weights():
    """Few images among many: without weights the class is never predicted."""
    gallery = make_gallery(150, (2,), noise=0.3)
    pool = random_embeddings(400, 4, seed=9, noise=0.3)
    test = pool.vectors[pool.labels == 3]
    recalls = []
    for is_new in (True, False):
        weighted = gallery if is_new else replace(gallery, new_classes=())
        head = train_enrolled(weighted, None, SETTINGS, device=CPU).head
        with torch.inference_mode():
            recalls.append(float((head(test).argmax(1) == 3).float().mean()))
    assert recalls[0] > recalls[1] + 0.3


@pytest.mark.parametrize("size", range(1, 12))
def test_largest_k_lets_a_class_win_without_one_of_its_images(size):
    """All images of the class are nearest; the rest of the voters are of one other class."""
    kept = max(1, size - 1)
    angles = torch.cat([torch.linspace(0, 0.1, kept), torch.linspace(1, 1.1, 3 * size)])
    gallery = torch.stack([angles.cos(), angles.sin()], 1)
    labels = torch.tensor([1] * kept + [0] * 3 * size)
    query = gallery[:1]
    k = largest_k(size)
    assert k % 2 == 1
    assert knn(query, gallery, labels, k=k).labels.tolist() == [1]
    if size > 1:  # and no larger odd k does
        assert knn(query, gallery, labels, k=k + 2).labels.tolist() == [0]


@pytest.mark.parametrize("new, largest", [((1,), 1), ((2, 9), 1), ((3,), 3), ((9, 12), 15)])
@pytest.mark.parametrize("validated", [False, True])
def test_k_equals_a_slow_choice(new, largest, validated):
    gallery = make_gallery(60, new)
    stored = gallery.embeddings
    validation = make_validation(stored.classes) if validated else None
    sizes = torch.bincount(stored.labels)
    scores = {}
    default = min(5, largest)
    for k in {1, 5, 20, default, largest}:
        if k > largest:
            continue
        hits: dict[int, list[bool]] = {}
        for row in range(len(stored) - gallery.enrolled, len(stored)):
            label = int(stored.labels[row])
            if sizes[label] >= 2:
                others = torch.arange(len(stored)) != row
                predicted = knn(
                    stored.vectors[[row]], stored.vectors[others], stored.labels[others], k=k
                ).labels[0]
                hits.setdefault(label, []).append(predicted == label)
        for vector, label in zip(
            validation.vectors if validation else [],
            validation.labels.tolist() if validation else [],
            strict=True,
        ):
            predicted = knn(vector[None], stored.vectors, stored.labels, k=k).labels[0]
            hits.setdefault(label, []).append(predicted == label)
        mean = np.mean([np.mean(values) for values in hits.values()]) if hits else 0
        scores[k] = (round(float(mean), 9), -abs(k - default), -k)
    assert choose_enrolled_k(gallery, validation) == max(scores, key=scores.get)


def test_leave_one_out_equals_fits_without_each_image(monkeypatch):
    """Fit a new head from zero weights without each image."""
    monkeypatch.setattr("stages.classifier.head_loss.TOLERANCE", 1e-6)
    settings = ClassifySettings(dropout=0)
    gallery = make_gallery(30, (3, 1), known=2)
    stored = gallery.embeddings
    trained = train_enrolled(gallery, make_validation(stored.classes), settings, device=CPU)
    fits: list[None] = []
    left_out = leave_out(gallery, trained, settings, device=CPU, on_fit=lambda: fits.append(None))
    assert len(fits) == left_out_fits(gallery) == left_out.fits
    decay = trained.history[trained.epoch - 1].weight_decay
    monkeypatch.setattr("stages.classifier.train.STRONG_DECAY", decay)
    rows = range(len(stored) - 6, len(stored) - 1)  # without the only image of the last class
    assert (left_out.fits, left_out.labels.tolist()) == (5, stored.labels[list(rows)].tolist())
    for position, row in enumerate(rows):
        others = torch.arange(len(stored)) != row
        kept = Embeddings(stored.vectors[others], stored.labels[others], stored.classes)
        single = replace(gallery, embeddings=kept)
        head = train_enrolled(single, None, settings, device=CPU).head
        query = stored.vectors[[row]]
        with torch.inference_mode():
            probability = (head(query) / trained.temperature).softmax(1)[0]
        assert left_out.classifier[position] == int(probability.argmax())
        np.testing.assert_allclose(left_out.probability[position], probability.max(), atol=2e-3)
        nearest = knn(query, kept.vectors, kept.labels, k=trained.k)
        assert left_out.knn[position] == nearest.labels[0]
    whole = trained.head(stored.vectors[list(rows)]) / trained.temperature
    assert abs(left_out.probability - whole.softmax(1).amax(1).detach().numpy()).max() > 0.01


def test_many_images_are_left_out_in_groups(monkeypatch):
    monkeypatch.setattr("stages.classifier.enrolment.FOLDS", 4)
    gallery = make_gallery(60, (2, 9))
    seen = []
    weights = EnrolledGallery.weights

    def record(self, labels, settings):
        seen.append(torch.bincount(labels, minlength=5)[3:].tolist())
        return weights(self, labels, settings)

    trained = train_enrolled(gallery, None, SETTINGS, device=CPU)
    monkeypatch.setattr(EnrolledGallery, "weights", record)
    left_out = leave_out(gallery, trained, SETTINGS, device=CPU)
    assert left_out.fits == 4 and len(left_out.labels) == 11
    assert seen[0] == [2, 9]  # all images: where the fits start
    assert sum(2 - first for first, _ in seen[1:]) == 2
    assert sum(9 - second for _, second in seen[1:]) == 9
    assert min(first for first, _ in seen) == 1  # a class keeps an image


def test_nothing_to_leave_out():
    gallery = make_gallery(60, (1, 1))
    trained = train_enrolled(gallery, None, SETTINGS, device=CPU)
    left_out = leave_out(gallery, trained, SETTINGS, device=CPU)
    assert left_out.fits == 0 and all(len(values) == 0 for values in left_out[:4])
    assert trained.k == 1


def test_old_classes_keep_their_accuracy():
    gallery = make_gallery(200, (1, 5), noise=0.3)
    stored = gallery.embeddings
    validation = make_validation(stored.classes, 150, noise=0.3)
    old = Embeddings(stored.vectors[:200], stored.labels[:200], stored.classes)
    accuracies = []
    for trained in (
        train_classifier(old, validation, SETTINGS, device=CPU),
        train_enrolled(gallery, validation, SETTINGS, device=CPU),
    ):
        with torch.inference_mode():
            correct = trained.head(validation.vectors).argmax(1) == validation.labels
        accuracies.append(float(correct.float().mean()))
        assert trained.calibrated
    assert accuracies[0] > 0.95 and accuracies[1] > accuracies[0] - 0.05
