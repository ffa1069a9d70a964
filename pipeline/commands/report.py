"""`pipeline report`: evaluate checkpoints on the test split."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.checkpoint import load_classifier, load_embedding
from pipeline.commands.baselines import compute_baselines
from pipeline.commands.enrolled_tests import enrolled_copies, enrolled_labels, leaked_images
from pipeline.commands.inputs import add_trunk_features, reload_dataset
from pipeline.context import RunContext
from pipeline.data.dataset import Dataset
from pipeline.device import restore_torch_settings
from pipeline.outputs import reserve_outputs
from pipeline.processes import main_process_only
from pipeline.report.evaluated_run import EvaluatedRun
from pipeline.report.write import (
    figure_files,
    refuse_to_replace_folds,
    report_files,
    write_report,
)
from pipeline.tensor_files import read_header
from stages.checkpoints import ClassifierCheckpoint, EmbeddingCheckpoint
from stages.errors import CheckpointError, DataError, SettingsError
from stages.evaluation.open_set import add_unseen
from stages.evaluation.query_sample import QuerySample, draw_queries
from stages.evaluation.results import Evaluation
from stages.evaluation.scores import evaluate_split
from stages.evaluation.typicality import rejection_distance
from stages.network.embedding_net import EmbeddingNet, to_device
from stages.network.inference import embed_split
from stages.network.pretrained import PretrainedWeights
from stages.records import Embeddings, Split


@restore_torch_settings()
def report(
    embeddings: Path | Sequence[Path],
    classifiers: Path | Sequence[Path],
    *,
    out: Path,
    context: RunContext,
    source: str | Dataset | None = None,
    figures: Path | None = None,
    force: bool = False,
    queries: int | None = None,
) -> tuple[EvaluatedRun, ...]:
    """Evaluate embeddings and classifiers on the test split and write the report.

    Args:
        embeddings: Checkpoint of stage one, or several.
        classifiers: Checkpoint of stage two, one per embedding, in the same order.
        out: Folder for the report.
        context: Device, output and cache options.
        source: Source of the images. Needed only if they have moved since stage one.
        figures: Folder for the figures as PNG and SVG files.
        force: Replace a report on cross-validation, which cannot be written again.
        queries: Largest number of test images to evaluate, drawn at random. None: all.

    Returns:
        One evaluated run per embedding.

    Raises:
        CheckpointError: If a classifier was trained on another embedding.
        DataError: If there are no test images, or the images are not those of stage one.
        SettingsError: If the numbers of embeddings and classifiers differ.

    Example:
        >>> runs = report(
        ...     Path("embedding.safetensors"), Path("classifier.safetensors"),
        ...     out=Path("reports"), context=RunContext(),
        ... )  # doctest: +SKIP
    """
    embeddings = [embeddings] if isinstance(embeddings, Path) else list(embeddings)
    classifiers = [classifiers] if isinstance(classifiers, Path) else list(classifiers)
    if len(embeddings) != len(classifiers):
        raise SettingsError(
            "classifier",
            None,
            f"{len(classifiers)} given for {len(embeddings)} of --embedding; give one per "
            "embedding, in the same order",
        )
    context.start()
    with reserve_report(out, figures, force, inputs=[*embeddings, *classifiers]):
        runs: list[EvaluatedRun] = []
        for name, embedding, classifier in zip(
            _run_names(embeddings), embeddings, classifiers, strict=True
        ):
            data = source or _data_already_read(runs, embedding)
            run = evaluate_run(
                name, embedding, classifier, context=context, source=data, queries=queries
            )
            runs.append(run)
        main_process_only(lambda: write_report(out, runs, figures=figures))
    return tuple(runs)


@contextmanager
def reserve_report(
    out: Path, figures: Path | None, force: bool, *, inputs: Sequence[Path] = ()
) -> Iterator[None]:
    """Reserve the files of a report; see :func:`pipeline.outputs.reserve_outputs`.

    Args:
        out: Folder of the report.
        figures: Folder for the figures, if they are written.
        force: Replace a report on cross-validation.
        inputs: Files that are read for the report.

    Raises:
        PipelineError: If the report cannot be written, or would replace one on cross-validation.
    """
    files = report_files(out, compared=True)  # a replaced comparison has one file more
    if figures:
        files += figure_files(figures)
    folders = [out, figures] if figures else [out]
    with reserve_outputs(files, folders=folders, inputs=inputs):
        main_process_only(lambda: refuse_to_replace_folds(out, force))
        yield


@restore_torch_settings()
def evaluate_run(
    name: str,
    embedding: Path,
    classifier: Path,
    *,
    context: RunContext,
    source: str | Dataset | None = None,
    within: bool = True,
    pretrained: PretrainedWeights | None = None,
    queries: int | None = None,
) -> EvaluatedRun:
    """Evaluate one run on the test split without writing a report.

    Args:
        name: Name of the run in the report.
        embedding: Checkpoint of stage one.
        classifier: Checkpoint of stage two.
        context: Device, output and cache options.
        source: Source of the images. Needed only if they have moved since stage one.
        within: As for :func:`stages.evaluation.scores.evaluate_split`.
        pretrained: Initial weights of the trunk, if they are already loaded.
        queries: As for :func:`report`.

    Returns:
        The evaluated run.

    Raises:
        CheckpointError: If the classifier was trained on another embedding.
        DataError: If there are no test images, or the images are not those of stage one.
    """
    device = context.start()
    embedded, classified = _load_both(embedding, classifier)
    data = reload_dataset(embedded.record, source, context).with_classes(embedded.classes)
    network = to_device(embedded.network, device)
    data = add_trunk_features(data, network, device, context)
    if data.test is None and data.unseen is None:
        raise DataError(
            f"{data.source}: no test images of training classes; add a folder test/, or enough "
            "images to split some off (--test, --split-seed)"
        )
    whole, rows = data, _drawn_rows(data, queries)
    if rows is not None:
        data = _with_test_images(data, rows)
    has_weights = bool(embedded.record.get("weights"))
    baselines = compute_baselines(data, embedded, device, context, pretrained)
    data = data.with_classes(classified.classes)  # predictions may be enrolled classes
    test, sample = _embed_test(data, whole, rows, network, classified, device)
    evaluation = evaluate_split(
        test,
        classified,
        pixels=baselines.pixels,
        untrained=baselines.untrained,
        leaked=leaked_images(data, test, classified),
        validated=data.validation is not None,
        within=within,
        queries=data.test.queries if data.test else None,
        sample=sample,
        pretrained=has_weights,
        trunk=baselines.trunk,
        device=device,
    )
    if data.unseen:
        evaluation = _with_unseen(
            evaluation, data.unseen, network, classified, baselines.unseen, has_weights
        )
    return EvaluatedRun(
        run=name,
        embedding=embedded.record,
        classifier=classified.record,
        data=data,
        test=test,
        gallery=classified.gallery,
        gallery_ids=classified.gallery_ids,
        evaluation=evaluation,
        validation=classified.validation,
        rejection_distance=rejection_distance(classified.validation_distances.numpy()),
        whole=whole if sample else None,
    )


def _drawn_rows(data: Dataset, queries: int | None) -> Tensor | None:
    """Return the positions of the test images to evaluate, or None if it is all of them."""
    if queries is None or data.test is None:
        return None
    count = len(data.test)
    rows = draw_queries(count, queries, queries=data.test.queries)
    available = count if data.test.queries is None else int(data.test.queries.sum())
    return rows if len(rows) < available else None


def _with_test_images(data: Dataset, rows: Tensor) -> Dataset:
    """Return the data set with some of its test images, which are all queries."""
    assert data.test is not None
    test = replace(data.test.select(rows), queries=None)
    leaked = np.flatnonzero(np.isin(rows.numpy(), np.asarray(data.leaked, np.int64)))
    return replace(data, test=test, leaked=tuple(leaked.tolist()))


def _embed_test(
    data: Dataset,
    whole: Dataset,
    rows: Tensor | None,
    network: EmbeddingNet,
    classifier: ClassifierCheckpoint,
    device: torch.device,
) -> tuple[Embeddings, QuerySample | None]:
    """Embed the test images of known classes; there may be none.

    Args:
        data: Data set with the test images to evaluate.
        whole: Data set with all test images.
        rows: Positions of the images to evaluate among all of them; None: they are the same.
        network: Network of stage one.
        classifier: Classifier of the run.
        device: Device of the network.

    Returns:
        Embeddings of the images to evaluate, and the sample that they are, if they are one.
    """
    gallery = classifier.gallery
    if data.test is None or whole.test is None:
        return Embeddings(gallery.vectors[:0], gallery.labels[:0], gallery.classes), None
    if rows is None:
        return embed_split(network, data.test, device=device), None
    whole = whole.with_classes(classifier.classes)
    assert whole.test is not None
    images = embed_split(network, whole.test, device=device)
    leaked = leaked_images(whole, images, classifier)
    test = Embeddings(images.vectors[rows], images.labels[rows], images.classes)
    return test, QuerySample(images, rows, whole.test.queries, leaked)


def _with_unseen(
    evaluation: Evaluation,
    images: Split,
    network: EmbeddingNet,
    classifier: ClassifierCheckpoint,
    baselines: Mapping[str, Tensor | None],
    has_weights: bool,
) -> Evaluation:
    """Add the scores of the test images of unseen classes."""
    unseen = embed_split(network, images, device=next(network.parameters()).device)
    return add_unseen(
        evaluation,
        unseen,
        classifier,
        baselines=baselines,
        queries=images.queries,
        pretrained=has_weights,
        enrolled=enrolled_labels(unseen, classifier),
        enrolled_copies=len(enrolled_copies(unseen.vectors, classifier)),
    )


def _load_both(
    embedding: Path, classifier: Path
) -> tuple[EmbeddingCheckpoint, ClassifierCheckpoint]:
    if classifier.exists() and not embedding.exists():
        raise CheckpointError(
            f"{embedding}: no such file; give the embedding that {classifier} was trained on with "
            "--embedding"
        )
    embedded, classified = load_embedding(embedding), load_classifier(classifier)
    if classified.embedding_digest != embedded.digest:
        advice = "give the embedding that it was trained on with --embedding"
        if not classified.record.get("enrolled"):
            advice += (
                ", or train a classifier for this one: "
                f"`pipeline classify --embedding {embedding} --out NEW_FILE`"
            )
        raise CheckpointError(
            f"{classifier}: trained on the embedding {classified.embedding_digest[:12]}, but "
            f"{embedding} holds {embedded.digest[:12]}; {advice}"
        )
    return embedded, classified


def _run_names(embeddings: Sequence[Path]) -> list[str]:
    """Return a distinct name per run: the file's stem, if needed with its folder or a number."""
    names = [path.stem for path in embeddings]
    if len(set(names)) < len(names):
        names = [f"{path.absolute().parent.name}/{path.stem}" for path in embeddings]
    return [
        name if names.count(name) == 1 else f"{name} {number}"
        for number, name in enumerate(names, 1)
    ]


def _data_already_read(runs: Sequence[EvaluatedRun], embedding: Path) -> Dataset | None:
    """Return the data of the first run on the same images and split, if there is one."""
    for run in runs:
        record = read_header(embedding).record
        if all(
            record.get(name) == run.embedding[name] for name in ("source", "fingerprint", "read")
        ):
            return run.whole or run.data
    return None
