"""`pipeline enroll`: add images and classes to a classifier without training the embedding."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pipeline.checkpoint import load_classifier, save_classifier
from pipeline.commands.enrolment_text import describe_enrolment
from pipeline.commands.inputs import source_files
from pipeline.commands.new_images import NewImages, read_new_images
from pipeline.context import RunContext
from pipeline.device import package_versions, restore_torch_settings
from pipeline.enrolments import enrolled_count, image_count
from pipeline.outputs import refuse_existing, reserve_outputs
from pipeline.processes import main_process_only
from stages.checkpoints import ClassifierCheckpoint
from stages.classifier.enrolled_typicality import enrolled_distances
from stages.classifier.enrolment import (
    EnrolledGallery,
    leave_out,
    left_out_fits,
    train_enrolled,
)
from stages.classifier.train import DECAYS, TrainedClassifier
from stages.network.embedding_net import to_device
from stages.records import Embeddings
from stages.settings import ClassifySettings


@restore_torch_settings()
def enroll(
    source: str, classifier: Path, *, out: Path, context: RunContext, force: bool = False
) -> str:
    """Add new classes, or more images of known ones, to a classifier.

    The embedding does not change. The new images join the gallery, and the head is trained again on
    the stored vectors; the images that the classifier was trained on are not needed.

    Args:
        source: Folder with one subfolder per class, or CSV file with the columns path and label.
        classifier: Checkpoint of stage two.
        out: Checkpoint to write.
        context: Device and output options.
        force: Replace an existing file.

    Returns:
        What was enrolled, and what it costs, as text for a terminal.

    Raises:
        CheckpointError: If the classifier cannot be used.
        DataError: If the images cannot be used, or contradict each other or the classifier.
        PipelineError: If ``out`` exists or cannot be written.

    Example:
        >>> text = enroll(
        ...     "new-species", Path("classifier.safetensors"),
        ...     out=Path("enrolled.safetensors"), context=RunContext(),
        ... )  # doctest: +SKIP
    """
    device = context.start()
    with reserve_outputs([out], inputs=[classifier, *source_files(source)]):
        refuse_existing(out, force)
        return _enroll(source, classifier, device, out, context)


def _enroll(
    source: str, classifier: Path, device: torch.device, out: Path, context: RunContext
) -> str:
    """Enrol the images and save the result to a reserved file."""
    before = load_classifier(classifier)
    to_device(before.network, device)
    images = read_new_images(source, before, device=device, context=context)
    gallery = _join(before, images)
    validation = before.validation and Embeddings(
        before.validation.vectors, before.validation.labels, gallery.embeddings.classes
    )
    settings = ClassifySettings(**before.record["settings"])
    with context.bar("training the classifier", len(DECAYS)) as bar:
        trained = train_enrolled(
            gallery, validation, settings, device=device, on_epoch=lambda _: bar.update()
        )
    if not trained.history[trained.epoch - 1].converged:
        context.say(
            "warning: the classifier has not converged: it was trained with "
            f"--max-iter {settings.max_iter}; train it again with more, then enrol"
        )
    with context.bar("measuring the accuracy", left_out_fits(gallery)) as bar:
        left_out = leave_out(gallery, trained, settings, device=device, on_fit=bar.update)
    distances, rows = enrolled_distances(gallery)
    record = _new_record(before, images, source, gallery, trained, rows)
    main_process_only(
        lambda: save_classifier(
            out,
            before.network,
            trained.head,
            gallery.embeddings,
            record,
            validation=validation,
            enrolled_distances=distances,
        )
    )
    return describe_enrolment(before, images, gallery, trained, left_out)


def _join(before: ClassifierCheckpoint, images: NewImages) -> EnrolledGallery:
    """Add the new images to the gallery of a classifier."""
    classes, new = images.embeddings.classes, images.embeddings
    earlier = before.record.get("enrolled", ())
    names = {name for enrolment in earlier for name in enrolment["new_classes"]}
    names |= set(classes[len(before.classes) :])
    return EnrolledGallery(
        embeddings=Embeddings(
            torch.cat([before.gallery.vectors, new.vectors]),
            torch.cat([before.gallery.labels, new.labels]),
            classes,
        ),
        enrolled=enrolled_count(before.record) + len(new),
        added=len(new),
        new_classes=tuple(label for label, name in enumerate(classes) if name in names),
    )


def _new_record(
    before: ClassifierCheckpoint,
    images: NewImages,
    source: str,
    gallery: EnrolledGallery,
    trained: TrainedClassifier,
    distance_rows: torch.Tensor,
) -> dict[str, Any]:
    """Return the record of the new classifier."""
    classes = images.embeddings.classes
    counts = Counter(classes[label] for label in images.embeddings.labels.tolist())
    enrolment = {
        "source": str(Path(source).resolve()),
        "classifier_digest": before.digest,
        "images": dict(counts),
        "new_classes": list(classes[len(before.classes) :]),
        "copies": images.repeated + images.known,
        "skipped": [skipped._asdict() for skipped in images.skipped],
    }
    enrolments = [*before.record.get("enrolled", ()), enrolment]
    first = len(gallery.embeddings) - gallery.enrolled
    return {
        **before.record,
        "classes": list(classes),
        "gallery_ids": [*before.gallery_ids, *images.paths],
        "k": trained.k,
        "temperature": trained.temperature,
        "calibrated": trained.calibrated,
        "epoch": trained.epoch,
        "history": [asdict(log) for log in trained.history],
        "versions": package_versions(),
        "enrolled": _with_distances(enrolments, distance_rows - first),
    }


def _with_distances(
    enrolments: Sequence[dict[str, Any]], rows: torch.Tensor
) -> list[dict[str, Any]]:
    """Add to each enrolment the number of its images that have a distance.

    Earlier enrolments can have more than before: an image has one if its class has two images now.

    Args:
        enrolments: The enrolments, oldest first.
        rows: Positions of the images with a distance among all enrolled images, int64, shape (R,).
    """
    result = []
    start = 0
    for enrolment in enrolments:
        end = start + image_count(enrolment)
        count = int(((rows >= start) & (rows < end)).sum())
        result.append({**enrolment, "distances": count})
        start = end
    return result
