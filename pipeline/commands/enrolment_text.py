"""The output of `pipeline enroll`: the enrolled images, and the accuracy before and after."""

from collections import Counter

import numpy as np
import torch

from pipeline.commands.new_images import NewImages
from pipeline.enrolments import describe_images, list_first
from pipeline.numbers import count_of, format_share
from pipeline.report.formats import format_difference
from stages.checkpoints import ClassifierCheckpoint
from stages.classifier.enrolled_typicality import enrolled_distances, left_out_typicality
from stages.classifier.enrolment import EnrolledGallery, LeftOut, enrolled_k_limit
from stages.classifier.train import TrainedClassifier
from stages.evaluation.knn import knn, nearest_distances
from stages.evaluation.paired_tests import mcnemar_test
from stages.evaluation.statistics import wilson_interval
from stages.evaluation.typicality import smallest_typicality
from stages.records import Embeddings
from stages.settings import REJECT

METHODS = ("classifier", "kNN")


def describe_enrolment(
    before: ClassifierCheckpoint,
    images: NewImages,
    gallery: EnrolledGallery,
    trained: TrainedClassifier,
    left_out: LeftOut,
) -> str:
    """Return the text for a terminal.

    Args:
        before: Classifier before the enrolment.
        images: Enrolled images.
        gallery: Old and enrolled embeddings.
        trained: Classifier after the enrolment.
        left_out: Predictions for the enrolled images by classifiers without them.
    """
    lines = _enrolled(before, images)
    if before.k != trained.k:
        lines.append(_changed_k(before, gallery, trained))
    lines += _old_classes(before, gallery, trained)
    limit, _ = enrolled_k_limit(gallery)
    lines += _new_images(images, left_out, chose_k=limit > 1)
    return "\n".join(lines + _rejected_images(before, gallery))


def _changed_k(
    before: ClassifierCheckpoint, gallery: EnrolledGallery, trained: TrainedClassifier
) -> str:
    """Say why k is another one than before: its limit, or the accuracy."""
    limit, smallest = enrolled_k_limit(gallery)
    if trained.k == limit < before.k:
        reason = (
            f"the largest possible one, since the smallest class with enrolled images has "
            f"{count_of(smallest, 'image')}"
        )
    else:
        queries = "validation images and " if before.validation else ""
        reason = f"the most accurate one on {queries}enrolled images that are left out"
    return f"k of kNN is {trained.k} instead of {before.k}: {reason}"


def _enrolled(before: ClassifierCheckpoint, images: NewImages) -> list[str]:
    """Say which images were enrolled and which were left out."""
    new = images.embeddings
    counts = Counter(new.labels.tolist())
    lines = []
    for kind, is_new in (("new", True), ("known", False)):
        labels = [label for label in sorted(counts) if (label >= len(before.classes)) == is_new]
        if not labels:
            continue
        sizes = {new.classes[label]: counts[label] for label in labels}
        listed = list_first(f"{name} ({count:,})" for name, count in sizes.items())
        lines.append(f"enrolled {describe_images(sizes, kind)}: {listed}")
    for count, reason in (
        (images.known, "of images that the classifier has already"),
        (images.repeated, "of other new images"),
    ):
        if count:
            lines.append(f"left out {_plural(count, 'copy', 'copies')} {reason}")
    if images.skipped:
        lines.append(f"skipped {count_of(len(images.skipped), 'image')} that cannot be read")
    return lines


def _plural(count: int, singular: str, plural: str) -> str:
    return f"{count:,} {singular if count == 1 else plural}"


def _old_classes(
    before: ClassifierCheckpoint, gallery: EnrolledGallery, trained: TrainedClassifier
) -> list[str]:
    """Compare the accuracy on the validation images before and after."""
    validation = before.validation
    if validation is None:
        return ["the cost for the old classes is unknown: the classifier has no validation images"]
    labels = validation.labels.numpy()
    stored = gallery.embeddings
    correct = [
        _correct(before.head, before.gallery, before.k, validation),
        _correct(trained.head, stored, trained.k, validation),
    ]
    lines = [
        f"accuracy on {count_of(len(labels), 'validation image')} of the old classes (95% CI):"
    ]
    for position, method in enumerate(METHODS):
        old, new = correct[0][position], correct[1][position]
        metric = ("classification_accuracy", "knn_accuracy")[position]
        paired = mcnemar_test(metric, metric, "val", new, old)
        change = "no image changes" if np.array_equal(old, new) else format_difference(paired)
        lines.append(f"  {method:10} {_share(old)} before, {_share(new)} after: {change}")
    return lines


def _correct(
    head: torch.nn.Module, gallery: Embeddings, k: int, validation: Embeddings
) -> tuple[np.ndarray, np.ndarray]:
    """Return where the classifier and kNN are correct, bool (V,) each."""
    with torch.inference_mode():
        predicted = head(validation.vectors).argmax(1)
    neighbours = knn(validation.vectors, gallery.vectors, gallery.labels, k=k)
    labels = validation.labels
    return (predicted == labels).numpy(), neighbours.labels == labels.numpy()


def _share(correct: np.ndarray) -> str:
    """Return an accuracy with its Wilson interval."""
    share = float(correct.mean())
    low, high = wilson_interval(share, len(correct))
    bounds = f"{format_share(low, 4)}\u2013{format_share(high, 4)}"
    return f"{format_share(share, 4)} ({bounds})"


def _new_images(images: NewImages, left_out: LeftOut, *, chose_k: bool) -> list[str]:
    """Say how well the new images are classified by classifiers without them.

    Args:
        images: Enrolled images.
        left_out: Their predictions.
        chose_k: True if k was chosen from several values, on these images among others.
    """
    total, count = len(images.embeddings), len(left_out.labels)
    lines = []
    if count:
        how = "each left out"
        if left_out.fits < count:
            how = f"each left out for kNN, and in {left_out.fits} groups for the classifier"
        lines.append(f"accuracy on {count_of(count, 'new image')}, {how} (95% CI):")
        correct = left_out.classifier == left_out.labels
        probability = format_share(float(left_out.probability.mean()), 4)
        lines.append(
            f"  {'classifier':10} {_share(correct)}; mean probability of the prediction "
            f"{probability}"
        )
        note = "; these images also chose k" if chose_k else ""
        lines.append(f"  {'kNN':10} {_share(left_out.knn == left_out.labels)}{note}")
    if total > count:
        single = total - count
        lines.append(
            f"accuracy unknown for {count_of(single, 'new image')}: "
            f"{'it is' if single == 1 else 'each is'} the only one of its class"
        )
    return lines


def _rejected_images(before: ClassifierCheckpoint, gallery: EnrolledGallery) -> list[str]:
    """Say how many of the new images would be rejected as unknown, if any can be."""
    if before.validation is None:
        return []
    validation = nearest_distances(before.validation.vectors, gallery.embeddings.vectors)
    others = len(enrolled_distances(gallery)[0]) - 1  # without the image itself
    values = left_out_typicality(gallery, validation)
    if len(values) == 0 or smallest_typicality(max(len(validation), others)) >= REJECT:
        return []
    rejected = values < REJECT
    return [
        f"rejected as unknown (typicality below {REJECT:g}), each left out (95% CI):",
        f"  {_share(rejected)}: {int(rejected.sum()):,} of {count_of(len(values), 'new image')}",
    ]
