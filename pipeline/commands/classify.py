"""`pipeline classify`: train the classifier on the frozen embedding."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pipeline.checkpoint import load_embedding, save_classifier
from pipeline.commands.inputs import add_trunk_features, choose_k_for, reload_dataset
from pipeline.context import RunContext
from pipeline.data.dataset import Dataset
from pipeline.device import package_versions, restore_torch_settings
from pipeline.identity import classifier_identity, refuse_to_replace
from pipeline.monitor import embedding_files, vectors_path
from pipeline.numbers import count_of, format_share
from pipeline.outputs import reserve_outputs
from pipeline.processes import main_process_only
from pipeline.vector_cache import load_vectors, save_vectors
from stages.checkpoints import EmbeddingCheckpoint
from stages.classifier.frozen_embedding import embed_frozen
from stages.classifier.train import DECAYS, TrainedClassifier, train_classifier
from stages.errors import CheckpointError, PipelineError
from stages.network.embedding_net import to_device
from stages.records import Embeddings
from stages.settings import ClassifySettings


@restore_torch_settings()
def classify(
    embedding: Path,
    settings: ClassifySettings,
    *,
    out: Path,
    context: RunContext,
    source: str | Dataset | None = None,
    force: bool = False,
) -> Path:
    """Train the classifier on the frozen embedding and save both: stage two.

    Args:
        embedding: Checkpoint of stage one.
        settings: Settings of stage two.
        out: Checkpoint to write.
        context: Device, output and cache options.
        source: Source of the images. Needed only if they have moved since stage one.
        force: Replace a checkpoint of another run.

    Returns:
        The path ``out``.

    Raises:
        CheckpointError: If ``embedding`` is no embedding, or ``out`` holds another run.
        DataError: If the images are not those of stage one.

    Example:
        >>> classify(
        ...     Path("embedding.safetensors"), ClassifySettings(),
        ...     out=Path("classifier.safetensors"), context=RunContext(),
        ... )  # doctest: +SKIP
        PosixPath('classifier.safetensors')
    """
    device = context.start()
    with reserve_outputs([out], inputs=[embedding, *embedding_files(embedding)]):
        return _classify(embedding, settings, device, out, context, source=source, force=force)


def _classify(
    embedding: Path,
    settings: ClassifySettings,
    device: torch.device,
    out: Path,
    context: RunContext,
    *,
    source: str | Dataset | None,
    force: bool,
) -> Path:
    """Train the classifier and save it to a reserved file."""
    embedded = load_embedding(embedding)
    identity = classifier_identity(embedded.record, settings)
    refuse_to_replace(out, "classifier", identity, force)
    train, validation, vectors = classifier_inputs(embedding, embedded, source, device, context)
    with context.bar("training the classifier", len(DECAYS)) as bar:
        trained = train_classifier(
            train,
            validation,
            settings,
            device=device,
            k=vectors["k"],
            on_epoch=lambda _: bar.update(),
        )
    _announce(trained, validation, settings, context)
    copied = ("network", "classes", "source", "counts", "skipped", "unseen")
    record = {
        **identity,
        **{name: embedded.record[name] for name in copied},
        "embedding_digest": embedded.digest,
        "gallery_ids": vectors["ids"],
        "temperature": trained.temperature,
        "calibrated": trained.calibrated,
        "k": trained.k,
        "epoch": trained.epoch,
        "history": [asdict(log) for log in trained.history],
        "versions": package_versions(),
    }
    main_process_only(
        lambda: save_classifier(
            out, embedded.network, trained.head, train, record, validation=validation
        )
    )
    return out


def _announce(
    trained: TrainedClassifier,
    validation: Embeddings | None,
    settings: ClassifySettings,
    context: RunContext,
) -> None:
    """Say which classifier validation has chosen, and whether it is calibrated and converged."""
    best = trained.history[trained.epoch - 1]
    accuracy = ""
    if best.val_accuracy is not None:
        accuracy = f", validation accuracy {format_share(best.val_accuracy, 4)}"
    calibration = "uncalibrated: too few validation images"
    if trained.calibrated and validation is not None:
        images = count_of(len(validation), "validation image")
        calibration = f"temperature {trained.temperature:.2f}, fitted on {images}"
    context.say(
        f"classifier: weight decay {best.weight_decay:g}, {trained.history[-1].epoch} passes"
        f"{accuracy}; {calibration}; k = {trained.k}"
    )
    if not best.converged:
        context.say(
            "warning: the classifier has not converged; "
            f"use more iterations than --max-iter {settings.max_iter}"
        )


def classifier_inputs(
    embedding: Path,
    embedded: EmbeddingCheckpoint,
    source: str | Dataset | None,
    device: torch.device,
    context: RunContext,
) -> tuple[Embeddings, Embeddings | None, dict[str, Any]]:
    """Return the frozen embeddings of the training and validation images.

    They come from the cache next to the embedding. If it is missing, the images are embedded and
    the cache is written. With a cache, images are read only if ``source`` is given, to check them.

    Args:
        embedding: Checkpoint of stage one.
        embedded: Its content.
        source: Source of the images, if they have moved.
        device: Device to embed on.
        context: Output and cache options.

    Returns:
        Training embeddings, validation embeddings if there are any, and a record with the training
        images' ``ids`` and kNN's ``k``, which depends on the embeddings alone.

    Raises:
        DataError: If the images are not those of stage one.
    """
    path = vectors_path(embedding)
    fingerprint = embedded.record["fingerprint"]
    cached = load_vectors(
        path, embedding_digest=embedded.digest, fingerprint=fingerprint, classes=embedded.classes
    )
    if cached and source is None:
        return cached
    data = reload_dataset(embedded.record, source, context)
    if data.train.classes != embedded.classes:
        raise CheckpointError(
            f"{embedding}: its classes are not those of the images; create the file again"
        )
    if cached:
        return cached
    data = add_trunk_features(data, to_device(embedded.network, device), device, context)
    train, validation = embed_frozen(embedded.network, data.train, data.validation, device=device)
    record = {
        "embedding_digest": embedded.digest,
        "fingerprint": fingerprint,
        "ids": data.train.ids,
        "k": choose_k_for(validation.vectors if validation else None, train.vectors, data),
    }
    try:
        main_process_only(lambda: save_vectors(path, train, validation, record))
    except PipelineError as error:
        context.say(f"note: {error}; each `classify` will recompute the embeddings")
    return train, validation, record
