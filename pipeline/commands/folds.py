"""`pipeline run --folds`: cross-validation."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from pipeline.commands.classify import classify
from pipeline.commands.embed import embed
from pipeline.commands.inputs import load_data
from pipeline.commands.report import evaluate_run
from pipeline.context import RunContext
from pipeline.data.dataset import Dataset, Source
from pipeline.data.folds import plan_folds
from pipeline.data.splits import split_source
from pipeline.report.evaluated_run import EvaluatedRun
from pipeline.report.write import write_report
from pipeline.weights import with_pretrained_size
from stages.distributed import rank_and_world_size
from stages.embedding.schedule import plan_training
from stages.errors import SettingsError
from stages.evaluation.pooling import pool_folds, pool_runs
from stages.evaluation.results import Evaluation
from stages.records import Embeddings, EpochLog, Split
from stages.settings import ClassifySettings, EmbedSettings, ReadSettings


@dataclass(frozen=True)
class _Once(RunContext):
    """Says what concerns all folds once, and nothing of a single one: a collapse is counted at the end."""

    said: set[str] = field(default_factory=set)

    def say(self, message: str) -> None:
        if (
            message.startswith(("note:", "warning:"))
            and "collapsed" not in message
            and message not in self.said
        ):
            self.said.add(message)
            super().say(message)


def run_folds(
    source: str | Dataset,
    read: ReadSettings,
    first: EmbedSettings,
    second: ClassifySettings,
    *,
    folds: int,
    repeats: int = 1,
    out: Path,
    context: RunContext,
    figures: Path | None = None,
) -> tuple[EvaluatedRun]:
    """Both stages once a fold and repeat, and one report of all; the models themselves are not kept.

    Raises SettingsError if there can't be so many folds, or for several processes.
    """
    context.start()
    if rank_and_world_size()[1] > 1:
        raise SettingsError(
            "folds", None, "one process trains all folds in a row; start it without torchrun"
        )
    data = load_data(source, with_pretrained_size(read, first), context)
    notes = list(data.notes)
    if any(entry.part for entry in data.origin.entries):
        notes.append("the parts that the source gives are pooled: folds test every image")
        context.say(f"note: {notes[-1]}")
    pool = replace(
        data.origin, entries=tuple(entry._replace(part="") for entry in data.origin.entries)
    )
    plans, remarks = plan_folds(pool, folds, repeats)
    notes += remarks
    for remark in remarks:
        context.say(f"note: {remark}")
    name, parts = next(iter(plans.items()))
    split = split_source(pool, parts)
    plan, epochs = plan_training(split.train.labels, first)
    counts = Counter(parts)
    context.say(
        f"{data.source}: {len(pool.entries):,} images of {len(split.train.classes)} classes, {folds} folds"
        + (f" x {repeats} repeats" if repeats > 1 else "")
        + f"\n{name}: {counts['train']} training, {counts['val']} validation and {counts['test']} test images; "
        f"{epochs} epochs of {plan.per_epoch} batches, "
        f"{plan.classes_per_batch} classes x {plan.images_per_class} images"
    )
    once, done = _Once(**vars(context)), []
    with (
        TemporaryDirectory(prefix="pipeline-folds-") as folder,
        context.bar("folds", len(plans)) as bar,
    ):
        for name, parts in plans.items():
            paths = (
                Path(folder) / f"{name}.safetensors",
                Path(folder) / f"{name}.classifier.safetensors",
            )
            split = split_source(pool, parts)
            try:
                embed(split, read, first, out=paths[0], context=once)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(
                    "interrupted; folds keep nothing, start them again"
                ) from None
            classify(paths[0], second, out=paths[1], context=once, source=split)
            done.append(evaluate_run(name, *paths, context=once, source=split, within=False))
            for path in Path(folder).iterdir():
                path.unlink()
            bar.update()
            right = done[-1].evaluation.score("classification_accuracy")
            context.say(f"{name}: {round((right.value or 0) * right.count)} of {right.count} right")
    if collapsed := sum(
        EpochLog(**one.embedding["history"][one.embedding["epoch"] - 1]).collapsed for one in done
    ):
        context.say(
            f"warning: in {collapsed} of {len(done)} folds the embedding has collapsed; try a lower --lr"
        )
    pooled = pool_comparisons(done, pool, repeats, notes)
    write_report(out, [pooled], figures=figures)
    return (pooled,)


def pool_comparisons(
    folds: Sequence[EvaluatedRun], source: Source, repeats: int, notes: Sequence[str]
) -> EvaluatedRun:
    """All folds as one run, `pooled`, of every image; its records are those of the first fold."""
    one = folds[0]
    rows, labels = (
        torch.cat([fold.images.rows for fold in folds]),
        torch.cat([fold.images.labels for fold in folds]),
    )
    ids = tuple(name for fold in folds for name in fold.images.ids)
    places = [fold.images.rows.numpy() for fold in folds]
    size = len(folds) // repeats

    def pool(begin: int, end: int) -> Evaluation:
        part = torch.cat([fold.images.labels for fold in folds[begin:end]]).numpy()
        return pool_folds(
            [fold.evaluation for fold in folds[begin:end]],
            places[begin:end],
            part,
            one.images.classes,
        )

    each = (
        [pool(start, start + size) for start in range(0, len(folds), size)]
        if repeats > 1
        else [fold.evaluation for fold in folds]
    )
    deviation = pool_runs(each, "repeats" if repeats > 1 else "folds")[1]
    test = Embeddings(torch.cat([fold.test.vectors for fold in folds]), labels, one.images.classes)
    data = replace(
        one.data,
        test=Split(source.images, rows, labels, one.images.classes, ids),
        notes=tuple(notes),
    )
    embedding: Mapping[str, Any] = {**one.embedding, "history": []}
    return EvaluatedRun(
        "pooled",
        embedding,
        one.classifier,
        data,
        test,
        test,
        ids,
        pool(0, len(folds)),
        tuple(folds),
        deviation,
    )
