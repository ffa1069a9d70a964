"""Baselines of the report: other vectors of the same images."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from pipeline.commands.inputs import choose_k_for
from pipeline.context import RunContext
from pipeline.data.dataset import Dataset
from pipeline.weights import load_weights
from stages.checkpoints import EmbeddingCheckpoint
from stages.errors import CheckpointError, PipelineError
from stages.evaluation.baselines import Baseline, raw_pixels
from stages.evaluation.trunk_baselines import TrunkBaselines, logistic_regression
from stages.network.embedding_net import EmbeddingNet, to_device, unit_rows
from stages.network.inference import BLOCK_SIZE, embed_images, embed_split, trunk_features
from stages.network.initialization import new_network, with_new_projection
from stages.network.pretrained import PretrainedWeights
from stages.records import Split
from stages.settings import EmbedSettings


@dataclass(frozen=True, eq=False)
class Baselines:
    """Baselines for the test images.

    Attributes:
        pixels: Raw pixels.
        untrained: The network before training; None if its weights are not available.
        trunk: The pretrained trunk; None without pretrained weights.
        unseen: Vectors of the test images of unseen classes by the name of the baseline, ``pixel``,
            ``untrained`` and ``trunk``; None where not available. Empty without such images.
    """

    pixels: Baseline
    untrained: Baseline | None
    trunk: TrunkBaselines | None
    unseen: dict[str, Tensor | None]


def compute_baselines(
    data: Dataset,
    embedded: EmbeddingCheckpoint,
    device: torch.device,
    context: RunContext,
    pretrained: PretrainedWeights | None = None,
) -> Baselines:
    """Compute the vectors of all baselines.

    Args:
        data: Images, read and split.
        embedded: Checkpoint of stage one, with its network on ``device``.
        device: Device to compute on.
        context: Output options.
        pretrained: Initial weights of the trunk, if they are already loaded.
    """
    initial = _initial_network(data, embedded, device, context, pretrained)
    has_weights = bool(embedded.record.get("weights"))
    names = ("pixel", "untrained", "trunk") if has_weights else ("pixel", "untrained")
    unseen: dict[str, Tensor | None] = dict.fromkeys(names) if data.unseen else {}
    if data.unseen:
        unseen["pixel"] = raw_pixels(data.unseen).float()
    untrained, trunk = None, None
    if initial is not None and has_weights:
        untrained, trunk, vectors = _trunk_baselines(data, initial, device)
        unseen |= vectors
    elif initial is not None:
        untrained = _baseline(
            data, lambda split: embed_split(initial, split, device=device).vectors
        )
        if data.unseen:
            unseen["untrained"] = embed_split(initial, data.unseen, device=device).vectors
    return Baselines(_baseline(data, raw_pixels), untrained, trunk, unseen)


def _baseline(data: Dataset, vectors: Callable[[Split], Tensor]) -> Baseline:
    """Return other vectors of the same images, with their k chosen on validation."""
    gallery = vectors(data.train)
    validation = vectors(data.validation) if data.validation else None
    k = choose_k_for(validation, gallery, data)
    return Baseline(vectors(data.test) if data.test else gallery[:0], gallery, k)


def _trunk_baselines(
    data: Dataset, network: EmbeddingNet, device: torch.device
) -> tuple[Baseline, TrunkBaselines, dict[str, Tensor]]:
    """Return kNN with the network before training, and the baselines on its pretrained trunk.

    The last item has their vectors of unseen classes, if there are any.
    """

    @cache  # the trunk is by far the slowest part
    def features(split: Split) -> Tensor:
        return trunk_features(network, split, device=device)

    def embed(split: Split) -> Tensor:
        return embed_images(network, features(split).split(BLOCK_SIZE), device=device)

    unseen = {}
    if data.unseen:
        unseen = {"untrained": embed(data.unseen), "trunk": unit_rows(features(data.unseen))}
    validation = None
    if data.validation:
        validation = features(data.validation), data.validation.labels
    train = features(data.train)
    queries = features(data.test) if data.test else train[:0]
    trunk = TrunkBaselines(
        knn=_baseline(data, lambda split: unit_rows(features(split))),
        logistic=logistic_regression(queries, train, data.train.labels, validation=validation),
    )
    return _baseline(data, embed), trunk, unseen


def _initial_network(
    data: Dataset,
    embedded: EmbeddingCheckpoint,
    device: torch.device,
    context: RunContext,
    pretrained: PretrainedWeights | None = None,
) -> EmbeddingNet | None:
    """Return the network before training, or None with a note if its weights are unavailable.

    A frozen trunk is still in the checkpoint; one that was trained needs its initial weights.
    """
    settings = EmbedSettings(**embedded.record["settings"])
    if settings.trunk == "frozen":
        network = to_device(embedded.network, device)
        return with_new_projection(network, data.embedding_train, settings.seed, device=device)
    try:
        weights = _initial_weights(embedded.record, settings, pretrained)
    except PipelineError as error:
        context.say(
            f"note: untrained baseline skipped: its initial weights are unavailable ({error})"
        )
        return None
    return new_network(data.embedding_train, settings, weights).to(device)


def _initial_weights(
    record: Mapping[str, Any], settings: EmbedSettings, pretrained: PretrainedWeights | None
) -> PretrainedWeights | None:
    """Return the weights that the trunk started from; None for random weights."""
    recorded = record.get("weights")
    if not recorded:
        return None
    weights = pretrained or load_weights(replace(settings, weights=recorded["origin"]))
    if weights and weights.digest != recorded["digest"]:
        raise CheckpointError(
            f"--weights {weights.origin}: not the weights that stage one started from; "
            "restore the original file"
        )
    return weights
