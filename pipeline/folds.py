"""Folds: every image tested by models that never saw it, pooled into one report."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from pipeline import weights
from pipeline.data import Dataset, Source, assign_parts, split_source, units
from pipeline.report import Comparison, write_report
from pipeline.run import Machine, classify, compare, embed
from stages.embed import plan_training
from stages.errors import SettingsError
from stages.processes import place
from stages.records import Embeddings, EpochLog, Scored, Split
from stages.score import pool_folds, pool_runs
from stages.settings import ClassifySettings, EmbedSettings, ReadSettings


@dataclass(frozen=True)
class _Once(Machine):
    """Says what concerns all folds once, and nothing of a single one: a collapse is counted at the end."""

    said: set[str] = field(default_factory=set)

    def say(self, message: str) -> None:
        if message.startswith(("note:", "warning:")) and "collapsed" not in message and message not in self.said:
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
    machine: Machine,
    figures: Path | None = None,
) -> tuple[Comparison]:
    """Both stages once a fold and repeat, and one report of all; the models themselves are not kept.

    Raises SettingsError if there can't be so many folds, or for several processes.
    """
    machine.start()
    if place()[1] > 1:
        raise SettingsError("--folds: one process trains all folds in a row; start it without torchrun")
    data = machine.load(source, weights.fit(read, first))
    notes = list(data.notes)
    if any(entry.part for entry in data.origin.entries):
        notes.append("the parts that the source gives are pooled: folds test every image")
        machine.say(f"note: {notes[-1]}")
    pool = replace(data.origin, entries=tuple(entry._replace(part="") for entry in data.origin.entries))
    plans, remarks = plan_folds(pool, folds, repeats)
    notes += remarks
    for remark in remarks:
        machine.say(f"note: {remark}")
    name, parts = next(iter(plans.items()))
    split = split_source(pool, parts)
    plan, epochs = plan_training(split.train.labels, first)
    counts = Counter(parts)
    machine.say(
        f"{data.source}: {len(pool.entries):,} images of {len(split.train.classes)} classes, {folds} folds"
        + (f" x {repeats} repeats" if repeats > 1 else "")
        + f"\n{name}: {counts['train']} training, {counts['val']} validation and {counts['test']} test images; "
        f"{epochs} epochs of {plan.per_epoch} batches, "
        f"{plan.classes_per_batch} classes x {plan.images_per_class} images"
    )
    once, done = _Once(**vars(machine)), []
    with TemporaryDirectory(prefix="pipeline-folds-") as folder, machine.bar("folds", len(plans)) as bar:
        for name, parts in plans.items():
            paths = Path(folder) / f"{name}.safetensors", Path(folder) / f"{name}.classifier.safetensors"
            split = split_source(pool, parts)
            try:
                embed(split, read, first, out=paths[0], machine=once)
            except KeyboardInterrupt:
                raise KeyboardInterrupt("interrupted; folds keep nothing, start them again") from None
            classify(paths[0], second, out=paths[1], machine=once, source=split)
            done.append(compare(name, *paths, machine=once, source=split, within=False))
            for path in Path(folder).iterdir():
                path.unlink()
            bar.update()
            right = done[-1].scored.score("classification_accuracy")
            machine.say(f"{name}: {round((right.value or 0) * right.count)} of {right.count} right")
    if collapsed := sum(EpochLog(**one.embedding["history"][one.embedding["epoch"] - 1]).collapsed for one in done):
        machine.say(f"warning: in {collapsed} of {len(done)} folds the embedding has collapsed; try a lower --lr")
    pooled = pool_comparisons(done, pool, repeats, notes)
    write_report(out, [pooled], figures=figures)
    return (pooled,)


def divide(source: Source, folds: int, salt: str = "") -> list[int]:
    """Each image's fold, from 0: copies and groups whole, each class and all images as evenly as that allows.

    Large units go first, each to the fold that has fewest of its classes, then fewest images. So without groups a class's
    share of two folds differs by at most one image, and so does their size; as many folds as images leave one out at a time.
    Raises SettingsError for fewer than two folds, or more than there are units.
    """
    entries = source.entries
    together = units(source, range(len(entries)), salt)
    if not 2 <= folds <= len(together):
        kept = "" if len(together) == len(entries) else f", {len(together)} when copies and groups stay together"
        advice = f"use 2 to {len(together)} folds" if len(together) > 1 else "folds need two that may be parted"
        raise SettingsError(f"--folds {folds}: {source.name} has {len(entries)} images{kept}; {advice}")
    chosen, sizes, held = [0] * len(entries), [0] * folds, [Counter[str]() for _ in range(folds)]
    for rows in sorted(together, key=lambda rows: (-len(rows), entries[rows[0]].label)):
        labels = Counter(entries[row].label for row in rows)
        fold = min(range(folds), key=lambda fold: (sum(held[fold][label] * n for label, n in labels.items()), sizes[fold]))
        held[fold] += labels
        sizes[fold] += len(rows)
        for row in rows:
            chosen[row] = fold
    return chosen


def plan_folds(source: Source, folds: int, repeats: int) -> tuple[dict[str, list[str]], list[str]]:
    """Each image's part in every fold by the fold's name, and what should be known about it.

    source: without parts of its own. A fold's validation images come from its training part, by the rule of every split;
    but from none if in some fold most classes are too small to give one up.
    """
    if repeats < 1:
        raise SettingsError(f"--repeats {repeats}: out of range; use at least 1")
    labels = [entry.label for entry in source.entries]
    plans: dict[str, list[str]] = {}
    for repeat in range(1, repeats + 1):
        of = divide(source, folds, f"repeat-{repeat}")
        for fold in range(folds):
            name = f"repeat-{repeat}-fold-{fold + 1}" if repeats > 1 else f"fold-{fold + 1}"
            entries = [entry._replace(part="test" if of[row] == fold else "") for row, entry in enumerate(source.entries)]
            plans[name] = assign_parts(replace(source, entries=tuple(entries)), name)
    remarks, alone, small = [], set(), False
    for name, parts in plans.items():
        held = {part: {label for label, given in zip(labels, parts, strict=True) if given == part} for part in ("train", "val", "test")}
        sizes = Counter(label for label, part in zip(labels, parts, strict=True) if part != "test")
        if len(sizes) < 2 or max(sizes.values()) < 2:
            raise SettingsError(
                f"--folds {folds}: {name} has no two training images of one class beside another class; use more folds, or add images"
            )
        alone |= held["test"] - held["train"]
        small |= 2 * len(held["val"]) < len(held["train"])
    if small:
        plans = {name: ["train" if part == "val" else part for part in parts] for name, parts in plans.items()}
        remarks.append("most classes are too small to give up a validation image: epochs, k and weight decay are fixed, temperature is 1")
    if alone:
        named = ", ".join(sorted(alone)[:5])
        remarks.append(f"{len(alone)} classes ({named}) have a fold with none of their images in training: it can't name them rightly")
    return plans, remarks


def pool_comparisons(folds: Sequence[Comparison], source: Source, repeats: int, notes: Sequence[str]) -> Comparison:
    """All folds as one run, `pooled`, of every image; its records are those of the first fold."""
    one = folds[0]
    rows, labels = torch.cat([fold.images.rows for fold in folds]), torch.cat([fold.images.labels for fold in folds])
    ids = tuple(name for fold in folds for name in fold.images.ids)
    places = [fold.images.rows.numpy() for fold in folds]
    size = len(folds) // repeats

    def pool(begin: int, end: int) -> Scored:
        part = torch.cat([fold.images.labels for fold in folds[begin:end]]).numpy()
        return pool_folds([fold.scored for fold in folds[begin:end]], places[begin:end], part, one.images.classes)

    each = [pool(start, start + size) for start in range(0, len(folds), size)] if repeats > 1 else [fold.scored for fold in folds]
    deviation = pool_runs(each, "repeats" if repeats > 1 else "folds")[1]
    test = Embeddings(torch.cat([fold.test.vectors for fold in folds]), labels, one.images.classes)
    data = replace(one.data, test=Split(source.images, rows, labels, one.images.classes, ids), notes=tuple(notes))
    embedding: Mapping[str, Any] = {**one.embedding, "history": []}
    return Comparison("pooled", embedding, one.classifier, data, test, test, ids, pool(0, len(folds)), tuple(folds), deviation)
