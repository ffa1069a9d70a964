"""`pipeline run --folds`: cross-validation."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from pipeline.commands.classify import classify
from pipeline.commands.embed import embed
from pipeline.commands.inputs import load_data, say_network_notes, with_audit
from pipeline.commands.report import evaluate_run, reserve_report
from pipeline.context import RunContext
from pipeline.data.dataset import Dataset, Source
from pipeline.data.folds import plan_folds
from pipeline.data.splits import split_source
from pipeline.device import restore_torch_settings
from pipeline.network_choice import choose_network
from pipeline.numbers import count_of
from pipeline.report.evaluated_run import POOLED, EvaluatedRun
from pipeline.report.write import write_report
from pipeline.weights import load_weights, with_pretrained_size
from stages.distributed import rank_and_world_size
from stages.embedding.schedule import plan_training
from stages.errors import SettingsError
from stages.evaluation.pooling import pool_folds, pool_runs
from stages.evaluation.results import Evaluation
from stages.network.pretrained import PretrainedWeights
from stages.records import Embeddings, EpochLog, Split
from stages.settings import ClassifySettings, EmbedSettings, ReadSettings

# Called with the checkpoint of a trained embedding and the seconds of training.
OnTrained = Callable[[Path, float], None]


@dataclass(frozen=True)
class FoldContext(RunContext):
    """Context of the folds: shows each note and warning once and no other message.

    Warnings about a collapsed embedding are left to the end of the run, where they are counted.

    Attributes:
        shown: Messages that were shown.
    """

    shown: set[str] = field(default_factory=set)

    def say(self, message: str) -> None:
        """Print a note or a warning that was not shown before.

        Args:
            message: One or more lines.
        """
        is_remark = message.startswith(("note:", "warning:")) and "collapsed" not in message
        if is_remark and message not in self.shown:
            self.shown.add(message)
            super().say(message)


@restore_torch_settings()
def run_folds(
    source: str | Dataset,
    read: ReadSettings,
    embed_settings: EmbedSettings,
    classify_settings: ClassifySettings,
    *,
    folds: int,
    repeats: int = 1,
    out: Path,
    context: RunContext,
    figures: Path | None = None,
    force: bool = False,
) -> tuple[EvaluatedRun]:
    """Cross-validate both stages and write one report. No model is kept.

    Every image is tested once per repeat, by models that were not trained on it.

    Args:
        source: Source of the images, or a data set that is already read. Its own splits are
            ignored.
        read: How to read the source. Ignored if the source is already read.
        embed_settings: Settings of stage one.
        classify_settings: Settings of stage two.
        folds: Number of folds.
        repeats: Number of times that all folds are repeated with other splits.
        out: Folder for the report.
        context: Device, output and cache options.
        figures: Folder for the figures as PNG and SVG files.
        force: Replace an earlier report on cross-validation.

    Returns:
        One evaluated run, ``pooled``, with the folds in it.

    Raises:
        SettingsError: If the images cannot be divided into so many folds, or several processes
            were started.
        KeyboardInterrupt: After a signal.

    Example:
        >>> runs = run_folds(
        ...     "photos/", ReadSettings(), EmbedSettings(), ClassifySettings(),
        ...     folds=5, out=Path("reports"), context=RunContext(),
        ... )  # doctest: +SKIP
    """
    context.start()
    if rank_and_world_size()[1] > 1:
        raise SettingsError(
            "folds", None, "a single process trains all folds in sequence; start without torchrun"
        )
    unseen = (source.read if isinstance(source, Dataset) else read).unseen_classes
    if unseen:
        problem = "folds pool the images of all classes; use 0, or leave out the folds"
        raise SettingsError("unseen_classes", unseen, problem)
    read, embed_settings, reason = choose_network(source, read, embed_settings, context)
    settings = (embed_settings, classify_settings)
    with reserve_report(out, figures, force):
        pooled = _run_folds(source, read, settings, folds, repeats, context)
        if reason:
            pooled = replace(pooled, embedding={**pooled.embedding, "network_choice": reason})
        write_report(out, [pooled], figures=figures)
    return (pooled,)


def _run_folds(
    source: str | Dataset,
    read: ReadSettings,
    settings: tuple[EmbedSettings, ClassifySettings],
    folds: int,
    repeats: int,
    context: RunContext,
) -> EvaluatedRun:
    """Train and evaluate all folds, and pool them into one run."""
    embed_settings = settings[0]
    data = load_data(source, with_pretrained_size(read, embed_settings), context)
    say_network_notes(embed_settings, data, context)
    pretrained = load_weights(embed_settings)
    pool, notes = pool_splits(data, context)
    plans, remarks = plan_folds(pool, folds, repeats)
    for remark in remarks:
        context.say(f"note: {remark}")
    _announce(pool, plans, embed_settings, context, folds=folds, repeats=repeats)
    pooled = cross_validate(
        pool, plans, pretrained, settings, context, repeats=repeats, notes=[*notes, *remarks]
    )
    warn_of_collapse(pooled.folds, context)
    return pooled


def cross_validate(
    pool: Source,
    plans: Mapping[str, Sequence[str]],
    pretrained: PretrainedWeights | None,
    settings: tuple[EmbedSettings, ClassifySettings],
    context: RunContext,
    *,
    repeats: int,
    notes: Sequence[str],
    name: str = "",
    on_trained: OnTrained | None = None,
) -> EvaluatedRun:
    """Train and evaluate planned folds, and pool them into one run.

    Args:
        pool: Source of the images, without splits of its own.
        plans: Split of each image by the name of the fold.
        pretrained: Initial weights of the trunk, if they are not random.
        settings: Settings of both stages.
        context: Device, output and cache options, already started.
        repeats: Number of repeats in ``plans``.
        notes: Notes for the report.
        name: Name of the run, which also begins those of its folds. Default: ``pooled``, and folds
            without such a beginning.
        on_trained: Called after each fold with its embedding and the seconds of training.
    """
    runs = []
    fold_context = FoldContext(**vars(context))
    with context.bar("folds", len(plans)) as bar:
        for fold, splits in plans.items():
            run = run_fold(
                f"{name}/{fold}" if name else fold,
                split_source(pool, splits),
                pretrained,
                settings,
                fold_context,
                on_trained=on_trained,
            )
            runs.append(run)
            bar.update()
            score = run.evaluation.score("classification_accuracy")
            correct = round((score.value or 0) * score.count)
            context.say(f"{fold}: {correct} of {score.count} test images classified correctly")
    return replace(pool_comparisons(runs, pool, repeats, notes), run=name or POOLED)


def pool_splits(data: Dataset, context: RunContext) -> tuple[Source, list[str]]:
    """Return the source without its own splits and roles, and the notes about the data."""
    entries = data.origin.entries
    notes = list(data.notes)
    if any(entry.part for entry in entries):
        notes.append("the source's own splits are pooled: cross-validation tests every image")
        context.say(f"note: {notes[-1]}")
    if any(entry.role for entry in entries):
        notes.append("roles are ignored: in cross-validation every test image is a query")
        context.say(f"note: {notes[-1]}")
    pooled = tuple(entry._replace(part="", role="") for entry in entries)
    return replace(data.origin, entries=pooled), notes


def _announce(
    pool: Source,
    plans: Mapping[str, Sequence[str]],
    settings: EmbedSettings,
    context: RunContext,
    *,
    folds: int,
    repeats: int,
) -> None:
    """Say how many folds there are, and what the first one trains on."""
    name, splits = next(iter(plans.items()))
    train = split_source(pool, splits).train
    plan, epochs = plan_training(train.labels, settings)
    counts = Counter(splits)
    context.say(
        f"{pool.name}: {len(pool.entries):,} images of {len(train.classes)} classes, {folds} folds"
        + (f" x {repeats} repeats" if repeats > 1 else "")
    )
    context.say(
        f"{name}: {counts['train']:,} training, {counts['val']:,} validation, "
        f"{counts['test']:,} test images; {count_of(epochs, 'epoch')} of {plan.per_epoch} batches, "
        f"{plan.classes_per_batch} classes x {plan.images_per_class} images"
    )


def run_fold(
    name: str,
    split: Dataset,
    pretrained: PretrainedWeights | None,
    settings: tuple[EmbedSettings, ClassifySettings],
    context: RunContext,
    *,
    within: bool = False,
    on_trained: OnTrained | None = None,
) -> EvaluatedRun:
    """Train and evaluate both stages in a temporary folder. No model is kept.

    Args:
        name: Name of the run in the report.
        split: Images, read and split.
        pretrained: Initial weights of the trunk, if they are not random.
        settings: Settings of both stages.
        context: Device, output and cache options, already started.
        within: As for :func:`stages.evaluation.scores.evaluate_split`; False for folds.
        on_trained: Called after training with the embedding's checkpoint and the seconds that
            both stages have taken.
    """
    embed_settings, classify_settings = settings
    with TemporaryDirectory(prefix="pipeline-folds-") as folder:
        embedding = Path(folder) / "embedding.safetensors"
        classifier = Path(folder) / "classifier.safetensors"
        inputs = with_audit(split, pretrained)
        start = time.monotonic()
        try:
            embed(inputs, split.read, embed_settings, out=embedding, context=context)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                "interrupted; cross-validation saves no state, start it again"
            ) from None
        classify(embedding, classify_settings, out=classifier, context=context, source=split)
        if on_trained:
            on_trained(embedding, time.monotonic() - start)
        return evaluate_run(
            name,
            embedding,
            classifier,
            context=context,
            source=split,
            within=within,
            pretrained=pretrained,
        )


def warn_of_collapse(runs: Sequence[EvaluatedRun], context: RunContext, *, name: str = "") -> None:
    """Say in how many folds, or in which run of a comparison, the embedding has collapsed."""
    collapsed = 0
    for run in runs:
        log = run.embedding["history"][run.embedding["epoch"] - 1]
        collapsed += EpochLog(**log).collapsed(run.embedding["settings"]["distance"])
    if collapsed:
        where = f" of {name}" if name else ""
        folds = f" in {collapsed} of {len(runs)} folds" if len(runs) > 1 else ""
        context.say(f"warning: the embedding{where} has collapsed{folds}; try a lower --lr")


def pool_comparisons(
    folds: Sequence[EvaluatedRun], source: Source, repeats: int, notes: Sequence[str]
) -> EvaluatedRun:
    """Pool the folds into one run over all images.

    Args:
        folds: Evaluated folds, repeat after repeat.
        source: Source of the images.
        repeats: Number of repeats.
        notes: Notes for the report.

    Returns:
        The run ``pooled``, with the records of the first fold.
    """
    first = folds[0]
    classes = first.images.classes
    per_repeat = len(folds) // repeats

    def pool(part: Sequence[EvaluatedRun]) -> Evaluation:
        test_indices = [fold.images.rows.numpy() for fold in part]
        labels = torch.cat([fold.images.labels for fold in part]).numpy()
        evaluations = [fold.evaluation for fold in part]
        pretrained = part[0].pretrained
        return pool_folds(evaluations, test_indices, labels, classes, pretrained=pretrained)

    if repeats > 1:
        starts = range(0, len(folds), per_repeat)
        evaluations = [pool(folds[start : start + per_repeat]) for start in starts]
        _, deviation = pool_runs(evaluations, "repeats")
    else:
        _, deviation = pool_runs([fold.evaluation for fold in folds], "folds")
    labels = torch.cat([fold.images.labels for fold in folds])
    ids = tuple(name for fold in folds for name in fold.images.ids)
    test = Embeddings(torch.cat([fold.test.vectors for fold in folds]), labels, classes)
    images = Split(
        store=source.images,
        rows=torch.cat([fold.images.rows for fold in folds]),
        labels=labels,
        classes=classes,
        ids=ids,
    )
    return EvaluatedRun(
        run=POOLED,
        embedding={**first.embedding, "history": []},
        classifier=first.classifier,
        data=replace(first.data, test=images, notes=tuple(notes)),
        test=test,
        gallery=test,
        gallery_ids=ids,
        evaluation=pool(folds),
        folds=tuple(folds),
        deviation=deviation,
    )
