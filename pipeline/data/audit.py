"""What is wrong with a source, before an hour is spent on it."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.data.dataset import SPLITS, Dataset, Skipped, Source, natural_key
from pipeline.data.duplicates import equal_groups, near_duplicates
from pipeline.data.splits import assign_splits, split_source
from pipeline.progress import Progress
from stages.embedding.sampler import BatchPlan, plan_batches
from stages.errors import PipelineError

Groups = tuple[tuple[str, ...], ...]


@dataclass(frozen=True, eq=False)
class Audit:
    """What `pipeline data` says of a source. Groups hold ids, in the source's order.

    images: readable ones. counts: class -> part -> images, as they would be trained and judged on. given: the parts that the
    source itself gives. exact_duplicates: images with the same pixels, whatever the file; of these, leaks stand in more
    than one given part, and label_conflicts under more than one label. group_crossings: groups that stand in more
    than one part, by name. near_duplicates: look alike without being exact; None if that was not asked for.
    batches: None if no triplet can be drawn. problems: what keeps the source from being trained on.
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
    group_crossings: tuple[str, ...]
    near_duplicates: Groups | None
    batches: BatchPlan | None
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def audit_source(
    source: Source,
    *,
    dataset: Dataset | None = None,
    near: bool = False,
    progress: Progress | None = None,
) -> Audit:
    """Look a decoded source through.

    dataset: the source's split, if it has been made. near: look for near duplicates too, in O(M^2) time, 10,000 images in
    about a second.
    """
    entries = source.entries
    problems = []
    plan = None
    parts: Sequence[str] = dataset.parts if dataset else assign_splits(source)
    if source.unreadable > source.read.max_unreadable:
        problems.append(
            f"{source.unreadable:.0%} of the images are unreadable; --max-unreadable allows {source.read.max_unreadable:.0%}"
        )
    try:
        plan = plan_batches((dataset or split_source(source)).train.labels)
    except PipelineError as error:
        problems.append(str(error))
    counts: dict[str, dict[str, int]] = {}
    for label in sorted({entry.label for entry in entries}, key=natural_key):
        counts[label] = dict.fromkeys(SPLITS, 0)
    for entry, part in zip(entries, parts, strict=True):
        counts[entry.label][part] += 1
    given = tuple(name for name in SPLITS if name in {entry.part for entry in entries})
    same = equal_groups(source.facts["pixels"].tolist())
    crossing = equal_groups([entry.group or None for entry in entries])
    facts = source.facts
    sizes = Counter(
        f"{width}x{height}"
        for width, height in zip(facts["width"].tolist(), facts["height"].tolist(), strict=True)
    )
    return Audit(
        source.name,
        len(entries),
        counts,
        given,
        dict(sizes.most_common()),
        dict(Counter(mode.decode() for mode in facts["mode"].tolist()).most_common()),
        f"{source.read.size} x {source.read.size}, {'grey' if source.read.channels == 1 else 'colour'}, {source.read.resize}",
        source.skipped,
        _names(source, same),
        _names(source, [rows for rows in same if len({entries[row].part for row in rows}) > 1]),
        _names(source, [rows for rows in same if len({entries[row].label for row in rows}) > 1]),
        tuple(entries[rows[0]].group for rows in crossing if len({parts[row] for row in rows}) > 1),
        _names(source, near_duplicates(source, progress=progress)) if near else None,
        plan,
        tuple(problems),
        source.notes,
    )


def _names(source: Source, groups: Iterable[Sequence[int]]) -> Groups:
    return tuple(tuple(source.entries[row].id for row in rows) for rows in groups)


def audit_warnings(audit: Audit) -> list[str]:
    """What should be known before training, one sentence each; empty if all is well."""
    found = []
    told = {*audit.leaks, *audit.label_conflicts}
    for what, groups in (
        ("the same image in more than one given part", audit.leaks),
        ("the same image under more than one label", audit.label_conflicts),
        (
            "the same image more than once in a part",
            [group for group in audit.exact_duplicates if group not in told],
        ),
        ("a group in more than one part", [(group,) for group in audit.group_crossings]),
    ):
        if groups:
            found.append(f"{what}: {len(groups)}, such as {' = '.join(groups[0][:2])}")
    return found


def as_json(audit: Audit) -> dict[str, Any]:
    """For programs: JSON-ready, the fields of `Audit`, `counts` under the name `classes`."""
    plain = {
        name: value
        for name, value in vars(audit).items()
        if name not in ("counts", "unreadable", "batches")
    }
    return {
        **plain,
        "classes": audit.counts,
        "unreadable": [skipped._asdict() for skipped in audit.unreadable],
        "batches": audit.batches and audit.batches._asdict(),
    }


def as_text(audit: Audit) -> str:
    """For people."""
    totals = [sum(counts[part] for counts in audit.counts.values()) for part in SPLITS]
    width = max(map(len, (*audit.counts, "class")))
    lines = [
        f"{audit.source}: {audit.images} images of {len(audit.counts)} classes, read as {audit.read_as}",
        "",
    ]
    lines += [f"{'class':<{width}}" + "".join(f"{part:>8}" for part in SPLITS)]
    rows = [(label, list(counts.values())) for label, counts in audit.counts.items()]
    shown = rows if len(rows) <= 40 else rows[:30]
    lines += [
        f"{label:<{width}}" + "".join(f"{count:>8}" for count in counts) for label, counts in shown
    ]
    if len(rows) > len(shown):
        lines.append(f"... and {len(rows) - len(shown)} more classes (--json has them all)")
    lines += [f"{'total':<{width}}" + "".join(f"{count:>8}" for count in totals)]
    split = ", ".join(audit.given)
    lines += [
        "",
        f"parts given: {split}; the rest split off the training part"
        if audit.given
        else "parts: none given, all split here",
    ]
    lines += [f"sizes: {_top(audit.sizes)}", f"modes: {_top(audit.modes)}"]
    if audit.batches:
        p, k, per_epoch = audit.batches
        lines.append(f"batches: {p} classes x {k} images, {per_epoch} an epoch")
    sections = (
        ("unreadable", [(f"{path}: {reason}",) for path, reason in audit.unreadable]),
        ("exact duplicates (the same pixels)", audit.exact_duplicates),
        ("leaks (the same pixels in more than one given part)", audit.leaks),
        ("label conflicts (the same pixels under more than one label)", audit.label_conflicts),
        ("groups that cross parts", [(group,) for group in audit.group_crossings]),
        ("near duplicates (look alike)", audit.near_duplicates),
    )
    for title, groups in sections:
        if groups is not None:
            lines.append(f"{title}: {len(groups) or 'none'}")
            lines += [
                f"  {' = '.join(group[:4])}{' ...' if len(group) > 4 else ''}"
                for group in groups[:5]
            ]
            lines += (
                [f"  ... and {len(groups) - 5} more (--json has them all)"]
                if len(groups) > 5
                else []
            )
    lines += [f"note: {note}" for note in audit.notes] + [
        f"problem: {problem}" for problem in audit.problems
    ]
    # Names of files need not be text, nor fit on a line.
    return "\n".join(
        "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
        for line in lines
    )


def _top(counts: dict[str, int]) -> str:
    shown = ", ".join(f"{name} ({count})" for name, count in list(counts.items())[:6])
    return shown + (f" and {len(counts) - 6} more" if len(counts) > 6 else "")
