"""`pipeline classify`: train the classifier on the frozen embedding."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pipeline.checkpoint import load_embedding, save_classifier
from pipeline.commands.inputs import add_trunk_features, choose_k_for, reload_dataset
from pipeline.context import RunContext
from pipeline.data.dataset import Dataset
from pipeline.device import package_versions
from pipeline.identity import classifier_identity, refuse_to_replace
from pipeline.processes import main_process_only
from pipeline.vector_cache import load_vectors, save_vectors
from stages.classifier.frozen_embedding import embed_frozen
from stages.classifier.train import DECAYS, train_classifier
from stages.errors import PipelineError
from stages.network.embedding_net import to_device
from stages.records import EmbeddingCheckpoint, Embeddings
from stages.settings import ClassifySettings


def classify(
    embedding: Path,
    settings: ClassifySettings,
    *,
    out: Path,
    context: RunContext,
    source: str | Dataset | None = None,
    force: bool = False,
) -> Path:
    """Stage two: train the head on the frozen embedding and save both at `out`.

    source: only if the data has moved since stage one. Raises DataError if it isn't the data of stage one.
    """
    device = context.start()
    embedded = load_embedding(embedding)
    identity = classifier_identity(embedded.record, settings)
    refuse_to_replace(out, "classifier", identity, force)
    train, validation, vectors = classifier_inputs(embedding, embedded, source, device, context)
    with context.bar("training the head", len(DECAYS)) as bar:
        trained = train_classifier(
            train,
            validation,
            settings,
            device=device,
            k=vectors["k"],
            on_epoch=lambda _: bar.update(),
        )
    best = trained.history[trained.epoch - 1]
    accuracy = "" if best.val_accuracy is None else f", validation accuracy {best.val_accuracy:.4f}"
    context.say(
        f"head: weight decay {best.weight_decay:g}, {trained.history[-1].epoch} passes{accuracy}; "
        f"temperature {trained.temperature:.2f}; k = {trained.k}"
    )
    if not best.converged:
        context.say(
            f"warning: the head has not converged; give more than --max-iter {settings.max_iter}"
        )
    record = {
        **identity,
        **{
            name: embedded.record[name]
            for name in ("network", "classes", "source", "counts", "skipped")
        },
        "embedding_digest": embedded.digest,
        "gallery_ids": vectors["ids"],
        "temperature": trained.temperature,
        "k": trained.k,
        "epoch": trained.epoch,
        "history": [asdict(log) for log in trained.history],
        "versions": package_versions(),
    }
    main_process_only(lambda: save_classifier(out, embedded.network, trained.head, train, record))
    return out


def classifier_inputs(
    embedding: Path,
    embedded: EmbeddingCheckpoint,
    source: str | Dataset | None,
    device: torch.device,
    context: RunContext,
) -> tuple[Embeddings, Embeddings | None, dict[str, Any]]:
    """What stage two trains on: from the file beside the embedding, or embedded now and left there.

    Images are read only where they must be, or where `source` asks for them to be compared. The record holds the training
    images' `ids` and kNN's `k`, which depends on the vectors alone.
    """
    path = embedding.with_name(f"{embedding.stem}.vectors")
    fingerprint = embedded.record["fingerprint"]
    cached = load_vectors(
        path, embedding_digest=embedded.digest, fingerprint=fingerprint, classes=embedded.classes
    )
    if cached and source is None:
        return cached
    data = reload_dataset(embedded.record, source, context)
    if cached:
        return cached
    data = add_trunk_features(data, to_device(embedded.network, device), device, context)
    train, validation = embed_frozen(embedded.network, data.train, data.validation, device=device)
    k = choose_k_for(validation.vectors if validation else None, train.vectors, data)
    record = {
        "embedding_digest": embedded.digest,
        "fingerprint": fingerprint,
        "ids": data.train.ids,
        "k": k,
    }
    try:
        main_process_only(lambda: save_vectors(path, train, validation, record))
    except PipelineError as error:
        context.say(f"note: {error}; until then each run of stage two embeds again")
    return train, validation, record
