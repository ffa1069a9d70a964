"""What is wrong with a source, before an hour is spent on it."""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.fft import dctn

from pipeline.data import PARTS, Dataset, Skipped, Source, assign_parts, natural, split_source
from pipeline.store import Progress
from stages.errors import PipelineError
from stages.sampler import BatchPlan, plan_batches

ALIKE_BITS = 10  # of 64 that may differ between the hashes of two near duplicates
ALIKE_PIXELS = 0.98  # correlation of their pixels, at the size they are read at

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


def audit_source(source: Source, *, dataset: Dataset | None = None, near: bool = False, progress: Progress | None = None) -> Audit:
    """Look a decoded source through.

    dataset: the source's split, if it has been made. near: look for near duplicates too, in O(M^2) time, 10,000 images in
    about a second.
    """
    entries = source.entries
    problems = []
    plan = None
    parts: Sequence[str] = dataset.parts if dataset else assign_parts(source)
    if source.unreadable > source.read.max_unreadable:
        problems.append(f"{source.unreadable:.0%} of the images are unreadable; --max-unreadable allows {source.read.max_unreadable:.0%}")
    try:
        plan = plan_batches((dataset or split_source(source)).train.labels)
    except PipelineError as error:
        problems.append(str(error))
    counts: dict[str, dict[str, int]] = {}
    for label in sorted({entry.label for entry in entries}, key=natural):
        counts[label] = dict.fromkeys(PARTS, 0)
    for entry, part in zip(entries, parts, strict=True):
        counts[entry.label][part] += 1
    given = tuple(name for name in PARTS if name in {entry.part for entry in entries})
    same = _same(source.facts["pixels"].tolist())
    crossing = _same([entry.group or None for entry in entries])
    facts = source.facts
    sizes = Counter(f"{width}x{height}" for width, height in zip(facts["width"].tolist(), facts["height"].tolist(), strict=True))
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


def _same(keys: Iterable[Hashable]) -> list[list[int]]:
    """Rows that share a key, where at least two do; None is no key."""
    rows: dict[Hashable, list[int]] = {}
    for row, key in enumerate(keys):
        if key is not None:
            rows.setdefault(key, []).append(row)
    return [group for group in rows.values() if len(group) > 1]


def _names(source: Source, groups: Iterable[Sequence[int]]) -> Groups:
    return tuple(tuple(source.entries[row].id for row in rows) for rows in groups)


def perceptual_hash(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """64 bits an image that survive scaling, recompression and a change of brightness.

    The signs of the 64 lowest frequencies of the cosine transform against their median (Zauner 2010, "pHash"), of a
    whole block of images at once, from pixels that are decoded already: the package imagehash opens each again.
    images: uint8 (N, C, S, S). Returns -1 or 1 as float32 (N, 64), whose products count equal bits.
    """
    grey = images.mean(axis=1, dtype=np.float32)
    low = dctn(grey, axes=(1, 2))[:, :8, :8].reshape(len(images), -1)  # (N, up to 64)
    bits = np.full((len(images), 64), -1, np.float32)
    bits[:, : low.shape[1]] = np.where(low > np.median(low[:, 1:], axis=1, keepdims=True), 1, -1)
    return bits


def near_duplicates(source: Source, *, progress: Progress | None = None) -> list[list[int]]:
    """Groups of rows that look alike: close hashes, confirmed by the pixels themselves; chains are joined.

    Rows with the same pixels as an earlier one are left out, and so are flat images, which all look alike.
    """
    show: Progress = progress or (lambda caption, total, items: items)
    _, first = np.unique(source.facts["pixels"], return_index=True)
    rows = np.sort(first)
    images = source.images.numpy()
    bits = np.empty((len(rows), 64), np.float32)
    for start in range(0, len(rows), 1024):
        bits[start : start + 1024] = perceptual_hash(images[rows[start : start + 1024]])
    head = np.arange(len(rows))

    def find(row: int) -> int:
        while head[row] != row:
            head[row] = row = head[head[row]]
        return row

    for start in show("comparing images", -(-len(rows) // 512), range(0, len(rows), 512)):
        near = bits[start : start + 512] @ bits[start:].T >= 64 - 2 * ALIKE_BITS  # (512, rest)
        left, right = np.nonzero(np.triu(near, 1))
        for part in range(0, len(left), 2048):
            one, other = left[part : part + 2048] + start, right[part : part + 2048] + start
            for pair in np.flatnonzero(_correlation(images[rows[one]], images[rows[other]]) >= ALIKE_PIXELS):
                head[find(int(other[pair]))] = find(int(one[pair]))
    return [[int(rows[place]) for place in group] for group in _same([find(place) for place in range(len(rows))])]


def _correlation(one: npt.NDArray[np.uint8], other: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    """Of the pixels of pairs of images, uint8 (N, C, S, S) -> float32 (N,); 0 where an image is flat."""
    a, b = (images.reshape(len(images), -1).astype(np.float32) for images in (one, other))
    a -= a.mean(axis=1, keepdims=True)
    b -= b.mean(axis=1, keepdims=True)
    scale = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    result: npt.NDArray[Any] = np.divide((a * b).sum(axis=1), scale, out=np.zeros_like(scale), where=scale > 0)
    return result


# What it says


def warnings_of(audit: Audit) -> list[str]:
    """What should be known before training, one sentence each; empty if all is well."""
    found = []
    told = {*audit.leaks, *audit.label_conflicts}
    for what, groups in (
        ("the same image in more than one given part", audit.leaks),
        ("the same image under more than one label", audit.label_conflicts),
        ("the same image more than once in a part", [group for group in audit.exact_duplicates if group not in told]),
        ("a group in more than one part", [(group,) for group in audit.group_crossings]),
    ):
        if groups:
            found.append(f"{what}: {len(groups)}, such as {' = '.join(groups[0][:2])}")
    return found


def as_json(audit: Audit) -> dict[str, Any]:
    """For programs: JSON-ready, the fields of `Audit`, `counts` under the name `classes`."""
    plain = {name: value for name, value in vars(audit).items() if name not in ("counts", "unreadable", "batches")}
    return {
        **plain,
        "classes": audit.counts,
        "unreadable": [skipped._asdict() for skipped in audit.unreadable],
        "batches": audit.batches and audit.batches._asdict(),
    }


def as_text(audit: Audit) -> str:
    """For people."""
    totals = [sum(counts[part] for counts in audit.counts.values()) for part in PARTS]
    width = max(map(len, (*audit.counts, "class")))
    lines = [f"{audit.source}: {audit.images} images of {len(audit.counts)} classes, read as {audit.read_as}", ""]
    lines += [f"{'class':<{width}}" + "".join(f"{part:>8}" for part in PARTS)]
    rows = [(label, list(counts.values())) for label, counts in audit.counts.items()]
    shown = rows if len(rows) <= 40 else rows[:30]
    lines += [f"{label:<{width}}" + "".join(f"{count:>8}" for count in counts) for label, counts in shown]
    if len(rows) > len(shown):
        lines.append(f"... and {len(rows) - len(shown)} more classes (--json has them all)")
    lines += [f"{'total':<{width}}" + "".join(f"{count:>8}" for count in totals)]
    split = ", ".join(audit.given)
    lines += ["", f"parts given: {split}; the rest split off the training part" if audit.given else "parts: none given, all split here"]
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
            lines += [f"  {' = '.join(group[:4])}{' ...' if len(group) > 4 else ''}" for group in groups[:5]]
            lines += [f"  ... and {len(groups) - 5} more (--json has them all)"] if len(groups) > 5 else []
    lines += [f"note: {note}" for note in audit.notes] + [f"problem: {problem}" for problem in audit.problems]
    # Names of files need not be text, nor fit on a line.
    return "\n".join("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line) for line in lines)


def _top(counts: dict[str, int]) -> str:
    shown = ", ".join(f"{name} ({count})" for name, count in list(counts.items())[:6])
    return shown + (f" and {len(counts) - 6} more" if len(counts) > 6 else "")
