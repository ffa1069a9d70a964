"""Check a data set without training."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.data.dataset import Dataset, Source, describe_unseen, folded_name, natural_key
from pipeline.data.duplicates import equal_groups, near_duplicates
from pipeline.data.entries import SPLITS, Skipped
from pipeline.data.splits import assign_splits, split_source
from pipeline.escape import printable
from pipeline.progress import Progress
from stages.embedding.sampler import BatchPlan, plan_batches
from stages.errors import PipelineError

Groups = tuple[tuple[str, ...], ...]

SIMILAR_CLASSES = "classes that differ only by case or Unicode form"


@dataclass(frozen=True, eq=False)
class Audit:
    """Result of ``pipeline data``. Groups hold image ids, in the order of the source.

    Attributes:
        source: Name of the source.
        images: Number of readable images.
        counts: Class -> split -> number of images, with the splits that training would use.
        given: Splits that the source assigns itself.
        sizes: Width x height -> number of images, the most common first.
        modes: Colour mode -> number of images, the most common first.
        read_as: Size, colours and resizing of the decoded images.
        unreadable: Images that cannot be read.
        exact_duplicates: Images with the same pixels, in whatever files.
        leaks: Exact duplicates in more than one of the given splits.
        label_conflicts: Exact duplicates with more than one label.
        similar_classes: Classes that differ only by case or Unicode form.
        group_crossings: Names of groups with images in more than one split.
        near_duplicates: Similar images that are not identical; ``None`` if not searched.
        batches: Batches of an epoch; ``None`` if no triplet can be formed.
        problems: Reasons why the source cannot be trained on.
        notes: One sentence for each kind of ignored file.
        unseen_classes: Classes that are tested but not trained on.
        held_out_classes: Training classes on which stage one does not train.
        remarks: One line each on the unseen and the held-out classes.
        network: Network that ``--network auto`` stands for, if that was asked.
        network_choice: The network and why it was chosen.
    """

    source: str
    images: int
    counts: dict[str, dict[str, int]]
    given: tuple[str, ...]
    sizes: dict[str, int]
    modes: dict[str, int]
    read_as: str
    unreadable: tuple[Skipped, ...]
    exact_duplicates: Groups
    leaks: Groups
    label_conflicts: Groups
    similar_classes: Groups
    group_crossings: tuple[str, ...]
    near_duplicates: Groups | None
    batches: BatchPlan | None
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    unseen_classes: tuple[str, ...]
    held_out_classes: tuple[str, ...]
    remarks: tuple[str, ...]
    network: str = ""
    network_choice: str = ""


def audit_source(
    source: Source,
    *,
    dataset: Dataset | None = None,
    near: bool = False,
    progress: Progress | None = None,
) -> Audit:
    """Check a decoded source.

    Args:
        source: Decoded source.
        dataset: The split source, if it exists already.
        near: Search for near duplicates too. This takes time quadratic in the number of images,
            about a second for 10,000 images.
        progress: Progress display.

    Returns:
        The audit.
    """
    entries, facts, read = source.entries, source.facts, source.read
    dataset, batches, problems = _plan_batches(source, dataset)
    if dataset:
        splits: Sequence[str] = dataset.parts
    else:
        splits = assign_splits(replace(source, read=replace(read, unseen_classes=0)))
    given = {entry.part for entry in entries}
    widths, heights = facts["width"].tolist(), facts["height"].tolist()
    sizes = Counter(f"{width}x{height}" for width, height in zip(widths, heights, strict=True))
    modes = Counter(mode.decode() for mode in facts["mode"].tolist())
    colours = "grey" if read.channels == 1 else "colour"
    copies = equal_groups(facts["pixels"].tolist())
    copies_across_splits = [rows for rows in copies if len({entries[row].part for row in rows}) > 1]
    copies_across_labels = [
        rows for rows in copies if len({entries[row].label for row in rows}) > 1
    ]
    groups = equal_groups(entry.group or None for entry in entries)
    crossings = [rows for rows in groups if len({splits[row] for row in rows}) > 1]
    return Audit(
        source=source.name,
        images=len(entries),
        counts=_count_images(source, splits),
        given=tuple(split for split in SPLITS if split in given),
        sizes=dict(sizes.most_common()),
        modes=dict(modes.most_common()),
        read_as=f"{read.size} x {read.size}, {colours}, {read.resize}",
        unreadable=source.skipped,
        exact_duplicates=_ids(source, copies),
        leaks=_ids(source, copies_across_splits),
        label_conflicts=_ids(source, copies_across_labels),
        similar_classes=_similar_classes(entry.label for entry in entries),
        group_crossings=tuple(entries[rows[0]].group for rows in crossings),
        near_duplicates=_ids(source, near_duplicates(source, progress=progress)) if near else None,
        batches=batches,
        problems=problems,
        notes=source.notes,
        unseen_classes=dataset.unseen.classes if dataset and dataset.unseen else (),
        held_out_classes=dataset.held_out_classes if dataset else (),
        remarks=tuple(describe_unseen(dataset)) if dataset else (),
    )


def _plan_batches(
    source: Source, dataset: Dataset | None
) -> tuple[Dataset | None, BatchPlan | None, tuple[str, ...]]:
    """Return the split source, the batches of an epoch, and what prevents training."""
    problems = []
    batches = None
    if source.unreadable > source.read.max_unreadable:
        problems.append(
            f"{source.unreadable:.0%} of the images are unreadable; "
            f"--max-unreadable allows {source.read.max_unreadable:.0%}"
        )
    try:
        dataset = dataset or split_source(source)
        batches = plan_batches(dataset.embedding_train.labels)
    except PipelineError as error:
        problems.append(str(error))
    return dataset, batches, tuple(problems)


def _similar_classes(labels: Iterable[str]) -> Groups:
    """Group the classes that differ only by case or Unicode form."""
    classes = sorted(set(labels))
    names = [folded_name(label) for label in classes]
    return tuple(tuple(classes[row] for row in rows) for rows in equal_groups(names))


def _count_images(source: Source, splits: Sequence[str]) -> dict[str, dict[str, int]]:
    counts = {}
    for label in sorted({entry.label for entry in source.entries}, key=natural_key):
        counts[label] = dict.fromkeys(SPLITS, 0)
    for entry, split in zip(source.entries, splits, strict=True):
        counts[entry.label][split] += 1
    return counts


def _ids(source: Source, groups: Iterable[Sequence[int]]) -> Groups:
    return tuple(tuple(source.entries[row].id for row in rows) for rows in groups)


def audit_warnings(audit: Audit) -> list[str]:
    """Return what the user should know before training, one sentence each."""
    listed = {*audit.leaks, *audit.label_conflicts}
    harmless = [group for group in audit.exact_duplicates if group not in listed]
    crossings = [(group,) for group in audit.group_crossings]
    findings: list[tuple[str, Sequence[tuple[str, ...]]]] = [
        ("identical images in more than one given split", audit.leaks),
        ("identical images with different labels", audit.label_conflicts),
        ("identical images in one split", harmless),
        ("groups in more than one split", crossings),
        (SIMILAR_CLASSES, audit.similar_classes),
    ]
    return [
        f"{finding}: {len(groups)}, such as {' = '.join(groups[0][:2])}"
        for finding, groups in findings
        if groups
    ]


def as_json(audit: Audit) -> dict[str, Any]:
    """Return the audit as a JSON-ready dictionary.

    Keys are the attributes of :class:`Audit` without ``remarks``. ``counts`` is called ``classes``.
    """
    renamed = ("counts", "unreadable", "batches", "remarks")
    return {
        **{name: value for name, value in vars(audit).items() if name not in renamed},
        "classes": audit.counts,
        "unreadable": [skipped._asdict() for skipped in audit.unreadable],
        "batches": audit.batches and audit.batches._asdict(),
    }


def as_text(audit: Audit) -> str:
    """Return the audit as text for the terminal."""
    totals = [sum(counts[split] for counts in audit.counts.values()) for split in SPLITS]
    lines = [
        f"{audit.source}: {audit.images:,} images of {len(audit.counts)} classes, "
        f"read as {audit.read_as}",
        f"{totals[0]:,} training, {totals[1]:,} validation, {totals[2]:,} test images; "
        f"{len(audit.unreadable):,} skipped",
        "",
        *_class_table(audit, totals),
        "",
        *audit.remarks,
        *_image_lines(audit),
        *_finding_lines(audit),
        *[f"note: {note}" for note in audit.notes],
        *[f"problem: {problem}" for problem in audit.problems],
    ]
    return "\n".join(printable(line.replace("\n", "\\n")) for line in lines)


def _class_table(audit: Audit, totals: list[int]) -> list[str]:
    width = max(map(len, (*audit.counts, "class")))
    rows = [(label, list(counts.values())) for label, counts in audit.counts.items()]
    shown = rows if len(rows) <= 40 else rows[:30]
    lines = [f"{'class':<{width}}" + "".join(f"{split:>8}" for split in SPLITS)]
    for label, counts in shown:
        lines.append(f"{label:<{width}}" + "".join(f"{count:>8}" for count in counts))
    if len(rows) > len(shown):
        lines.append(f"... and {len(rows) - len(shown)} more classes (--json has them all)")
    lines.append(f"{'total':<{width}}" + "".join(f"{count:>8}" for count in totals))
    return lines


def _image_lines(audit: Audit) -> list[str]:
    given = "none; all images are split here"
    if audit.given:
        given = f"{', '.join(audit.given)}; missing splits are taken from the training split"
    lines = [
        f"splits given: {given}",
        f"sizes: {_most_common(audit.sizes)}",
        f"modes: {_most_common(audit.modes)}",
    ]
    if audit.batches:
        classes, images, per_epoch = audit.batches
        lines.append(f"batches: {classes} classes x {images} images, {per_epoch} per epoch")
    if audit.network_choice:
        lines.append(f"network auto: {audit.network_choice}")
    return lines


def _finding_lines(audit: Audit) -> list[str]:
    findings: list[tuple[str, Sequence[tuple[str, ...]] | None]] = [
        ("unreadable", [(f"{path}: {reason}",) for path, reason in audit.unreadable]),
        ("exact duplicates (the same pixels)", audit.exact_duplicates),
        ("leaks (the same pixels in more than one given split)", audit.leaks),
        ("label conflicts (the same pixels with different labels)", audit.label_conflicts),
        ("groups in more than one split", [(group,) for group in audit.group_crossings]),
        (SIMILAR_CLASSES, audit.similar_classes),
        ("near duplicates (similar pixels)", audit.near_duplicates),
    ]
    lines = []
    for title, groups in findings:
        if groups is None:
            continue
        lines.append(f"{title}: {len(groups) or 'none'}")
        for group in groups[:5]:
            lines.append(f"  {' = '.join(group[:4])}{' ...' if len(group) > 4 else ''}")
        if len(groups) > 5:
            lines.append(f"  ... and {len(groups) - 5} more (--json has them all)")
    return lines


def _most_common(counts: dict[str, int]) -> str:
    shown = ", ".join(f"{name} ({count})" for name, count in list(counts.items())[:6])
    return shown + (f" and {len(counts) - 6} more" if len(counts) > 6 else "")
