"""`pipeline report`: evaluate checkpoints on the test split."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.checkpoint import load_classifier, load_embedding, read_header
from pipeline.commands.inputs import add_trunk_features, choose_k_for, reload_dataset
from pipeline.context import RunContext
from pipeline.data.dataset import Dataset
from pipeline.processes import main_process_only
from pipeline.report.evaluated_run import EvaluatedRun
from pipeline.report.write import write_report
from pipeline.weights import load_weights
from stages.errors import CheckpointError, DataError, PipelineError, SettingsError
from stages.evaluation.baselines import Baseline, raw_pixels
from stages.evaluation.scores import evaluate_split
from stages.network.embedding_net import EmbeddingNet, to_device
from stages.network.inference import embed_split
from stages.network.initialization import new_network, with_new_projection
from stages.records import EmbeddingCheckpoint, Split
from stages.settings import EmbedSettings


def report(
    embeddings: Path | Sequence[Path],
    classifiers: Path | Sequence[Path],
    *,
    out: Path,
    context: RunContext,
    source: str | Dataset | None = None,
    figures: Path | None = None,
) -> tuple[EvaluatedRun, ...]:
    """The comparison on the test part, opened only here; written below the folder `out`, its figures below `figures`.

    Several runs: as many classifiers as embeddings, in the same order.
    Raises CheckpointError if a classifier was trained on another embedding, DataError if there is no test image.
    """
    embeddings, classifiers = (
        [paths] if isinstance(paths, Path) else list(paths) for paths in (embeddings, classifiers)
    )
    if len(embeddings) != len(classifiers):
        raise SettingsError(
            "classifier",
            None,
            f"{len(classifiers)} given for {len(embeddings)} of --embedding; give one for each, in the same order",
        )
    names = _run_names(embeddings)
    comparisons: list[EvaluatedRun] = []
    for name, embedding, classifier in zip(names, embeddings, classifiers, strict=True):
        known = source or next(
            (c.data for c in comparisons if _same_data(c.embedding, embedding)), None
        )
        comparisons.append(evaluate_run(name, embedding, classifier, context=context, source=known))
    main_process_only(lambda: write_report(out, comparisons, figures=figures))
    return tuple(comparisons)


def evaluate_run(
    name: str,
    embedding: Path,
    classifier: Path,
    *,
    context: RunContext,
    source: str | Dataset | None = None,
    within: bool = True,
) -> EvaluatedRun:
    """One run of the report, scored and not yet written; within: as in `score_split`. Raises as `report` does."""
    device = context.start()
    embedded, classified = load_embedding(embedding), load_classifier(classifier)
    if classified.embedding_digest != embedded.digest:
        raise CheckpointError(
            f"{classifier}: trained on embedding {classified.embedding_digest[:12]}, but {embedding} holds {embedded.digest[:12]}; "
            f"run `pipeline classify --embedding {embedding} --out {classifier} --force`"
        )
    data = reload_dataset(embedded.record, source, context)
    network = to_device(embedded.network, device)
    data = add_trunk_features(data, network, device, context)
    if data.test is None:
        raise DataError(
            f"{data.source}: no test image; add a test/ folder, or images enough to split some off (--test, --split-seed)"
        )
    fresh = _untrained(data, embedded, device, context)
    test = embed_split(network, data.test, device=device)
    scored = evaluate_split(
        test,
        classified,
        pixels=_baseline(data, raw_pixels),
        untrained=_baseline(data, lambda part: embed_split(fresh, part, device=device).vectors)
        if fresh
        else None,
        leaked=data.leaked,
        validated=data.validation is not None,
        within=within,
    )
    return EvaluatedRun(
        name,
        embedded.record,
        classified.record,
        data,
        test,
        classified.gallery,
        classified.gallery_ids,
        scored,
    )


def _untrained(
    data: Dataset, embedded: EmbeddingCheckpoint, device: torch.device, context: RunContext
) -> EmbeddingNet | None:
    """The network as stage one started it. None, and a note, if that takes a file of weights that is gone: a trunk that was
    trained isn't kept as it was before, a frozen one is.
    """
    record, pretrained = embedded.record, None
    settings = EmbedSettings(**record["settings"])
    if settings.trunk == "frozen":
        return with_new_projection(to_device(embedded.network, device), settings.seed).to(device)
    if record.get("weights"):
        try:
            pretrained = load_weights(replace(settings, weights=record["weights"]["origin"]))
            if pretrained and pretrained.digest != record["weights"]["digest"]:
                raise CheckpointError(
                    f"--weights {pretrained.origin}: not what stage one started from; put that back"
                )
        except PipelineError as error:
            context.say(
                f"note: the report leaves out the network before training, which its weights are needed for: {error}"
            )
            return None
    return new_network(data.train, settings, pretrained).to(device)


def _baseline(data: Dataset, vectors: Callable[[Split], Tensor]) -> Baseline:
    """Another space over the same images, with a k of its own that validation chose."""
    assert data.test is not None
    gallery = vectors(data.train)
    return Baseline(
        vectors(data.test),
        gallery,
        choose_k_for(vectors(data.validation) if data.validation else None, gallery, data),
    )


def _run_names(embeddings: Sequence[Path]) -> list[str]:
    """File names without their endings; with their folder where they would be the same."""
    names = [path.stem for path in embeddings]
    if len(set(names)) < len(names):
        names = [f"{path.absolute().parent.name}/{path.stem}" for path in embeddings]
    return [
        name if names.count(name) == 1 else f"{name} {place}" for place, name in enumerate(names, 1)
    ]


def _same_data(record: Mapping[str, Any], embedding: Path) -> bool:
    other = read_header(embedding).record
    return all(other.get(name) == record[name] for name in ("source", "fingerprint", "read"))
