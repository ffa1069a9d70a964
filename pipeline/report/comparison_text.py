"""The verdict of a comparison in words, and its table for a terminal."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.numbers import count_of
from pipeline.report.comparison import MAIN, METRICS, ComparedRun, Comparison, Difference
from pipeline.report.finding import Finding
from pipeline.report.formats import (
    UNDEFINED,
    format_interval,
    format_p_value,
    format_percent,
    format_points,
    p_equals,
)
from stages.settings import AUTO

SAME_SPEED = 1.2  # times are called the same below this ratio: a busy machine varies as much


def comparison_findings(comparison: Comparison) -> list[Finding]:
    """Return the verdict, and a warning per network that could not be evaluated.

    Args:
        comparison: Result of the comparison, with at least one evaluated run.
    """
    findings = [Finding("answer", verdict_of_comparison(comparison))]
    noun = comparison.nouns[0]
    for entry in comparison.failed:
        text = f"The {noun} {entry.name} could not be evaluated: {entry.error}."
        findings.append(Finding("warning", text))
    return findings


def verdict_of_comparison(comparison: Comparison) -> str:
    """Return one sentence: which network is best, by how much, and what cannot be decided.

    The paired tests of classification accuracy decide, after Holm's correction. Two runs are
    called not distinguishable if their adjusted p-value is 0.05 or more.

    Args:
        comparison: Result of the comparison, with at least one evaluated run.
    """
    best = comparison.best
    noun, nouns = comparison.nouns
    if best is None:
        return f"The {nouns} cannot be compared: there are no test images of known classes."
    accuracy = best.score(MAIN)
    images = count_of(accuracy.count, "image")
    others = [entry for entry in comparison.finished if entry is not best]
    if not others:
        text = f"Only one {noun} could be evaluated: {best.name} has a classification accuracy of "
        return f"{text}{format_percent(accuracy.value)} ({_interval(best)}) on {images}."
    equal, worse = _sort_others(comparison, best, others)
    clauses = []
    if worse:
        clauses.append(_better(comparison, best, worse, images))
    if equal:
        clauses.append(_not_distinguishable(comparison, best, equal, "" if worse else images))
        clauses += _fastest(comparison, [best, *equal])
    return "; ".join(clauses) + "."


def _sort_others(
    comparison: Comparison, best: ComparedRun, others: Sequence[ComparedRun]
) -> tuple[list[ComparedRun], list[ComparedRun]]:
    """Return the runs that are not distinguishable from the best one, and those that are worse."""
    equal: list[ComparedRun] = []
    worse: list[ComparedRun] = []
    for entry in sorted(others, key=lambda entry: -(entry.score(MAIN).value or 0)):
        difference = comparison.difference(best, entry)
        is_worse = difference is not None and difference.significant
        (worse if is_worse else equal).append(entry)
    return equal, worse


def _better(
    comparison: Comparison, best: ComparedRun, worse: Sequence[ComparedRun], images: str
) -> str:
    closest = worse[0]
    difference = comparison.difference(best, closest)
    assert difference is not None  # it is significant
    accuracy, next_best = (format_percent(entry.score(MAIN).value) for entry in (best, closest))
    is_next = f" for {closest.name}, the next best of these" if len(worse) > 1 else ""
    return (
        f"{best.name} is better than {listed([entry.name for entry in worse])} on {images} "
        f"(classification accuracy {accuracy} compared with {next_best}{is_next}; "
        f"difference {_described(comparison, difference)})"
    )


def _not_distinguishable(
    comparison: Comparison, best: ComparedRun, equal: Sequence[ComparedRun], images: str
) -> str:
    where = f" on {images}" if images else ""
    farthest = equal[-1]
    difference = comparison.difference(best, farthest)
    described = "no test" if difference is None else _described(comparison, difference)
    # Two runs can differ significantly although neither differs from the best one.
    better = [
        f"{a.name} is better than {b.name}"
        for row, a in enumerate(equal)
        for b in equal[row + 1 :]
        if (paired := comparison.difference(a, b)) and paired.significant
    ]
    names = [entry.name for entry in equal]
    if better:
        return (
            f"{listed(names)} are not distinguishable from {best.name}{where} (largest difference, "
            f"to {farthest.name}: {described}), although {listed(better)}"
        )
    text = f"{listed([best.name, *names])} are not distinguishable{where}"
    if len(equal) == 1:
        return f"{text} (difference {described})"
    return f"{text} (largest difference, between {best.name} and {farthest.name}: {described})"


def _described(comparison: Comparison, difference: Difference) -> str:
    """Return a difference of the best run with its interval and p-value."""
    points = format_points(difference.value, decimals=1).removeprefix("+")
    low, high = (
        format_points(bound, decimals=1).removeprefix("+")
        for bound in (difference.low, difference.high)
    )
    p = p_equals(difference.p_holm)
    adjusted = "adjusted " if comparison.pairs > 1 else ""
    return f"{points} points, 95% interval {low} to {high}, {adjusted}{p}"


def _fastest(comparison: Comparison, group: Sequence[ComparedRun]) -> list[str]:
    """Return which of several equally good networks is the fastest, if the times differ."""
    if comparison.field != "network":  # losses and mining modes train the same network
        return []
    timed = [(entry.seconds_per_image, entry.name) for entry in group if entry.seconds_per_image]
    if len(timed) < len(group):
        return []
    (fastest, name), (second, other) = sorted(timed)[:2]
    if len(group) == 2:
        if second < SAME_SPEED * fastest:
            return ["they are about equally fast"]
        return [f"{name} is {_times(second / fastest)} as fast as {other}"]
    best_seconds, best_name = timed[0]
    if name == best_name:
        return [f"{name} is also the fastest of them"] if second >= SAME_SPEED * fastest else []
    if best_seconds < SAME_SPEED * fastest:
        return []
    return [
        f"{name} is the fastest of them, {_times(best_seconds / fastest)} as fast as {best_name}"
    ]


def _times(ratio: float) -> str:
    return f"{ratio:.1f} times" if ratio < 10 else f"{ratio:.0f} times"


def listed(names: Sequence[str]) -> str:
    """Return names as in a sentence.

    Example:
        >>> listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])
        ('a', 'a and b', 'a, b and c')
    """
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _interval(entry: ComparedRun) -> str:
    return f"95% CI {format_interval(entry.score(MAIN))}"


def comparison_rows(comparison: Comparison) -> list[dict[str, str]]:
    """Return the formatted cells of the table of evaluated runs, best first.

    Args:
        comparison: Result of the comparison.
    """
    best = comparison.best
    entries = list(comparison.finished)
    entries.sort(key=lambda entry: -(entry.score(MAIN).value or 0))
    rows = []
    for entry in entries:
        name = entry.name
        if name == AUTO and entry.settings:
            name = f"{AUTO} ({entry.settings.network})"
        row = {"name": name, "size": str(entry.size), "is_best": "yes" * (entry is best)}
        for metric in METRICS:
            score = entry.score(metric)
            row[metric] = format_percent(score.value)
            row[f"{metric}_interval"] = format_interval(score)
        difference = comparison.difference(entry, best) if best and entry is not best else None
        row["difference"] = row["difference_interval"] = row["p_holm"] = ""
        if difference:
            row["difference"] = format_points(difference.value, decimals=1)
            low, high = (format_points(x, decimals=1) for x in (difference.low, difference.high))
            row["difference_interval"] = f"{low} to {high}"
            row["p_holm"] = format_p_value(difference.p_holm)
        seconds, memory, training = (
            entry.seconds_per_image,
            entry.memory,
            entry.training_seconds,
        )
        row["milliseconds"] = UNDEFINED if seconds is None else f"{1000 * seconds:.3g}"
        row["memory"] = UNDEFINED if memory is None else f"{memory / 2**20:,.0f}"
        row["training"] = UNDEFINED if training is None else f"{training:,.0f}"
        rows.append(row)
    return rows


def comparison_text(comparison: Comparison, files: Sequence[Path]) -> str:
    """Return the table for a terminal, the written files, and at last the verdict.

    Args:
        comparison: Result of the comparison.
        files: Files that were written.
    """
    header = (
        comparison.nouns[0],
        *("accuracy", "95% CI", "kNN", "MAP@R", "difference", "95% CI", "p (Holm)"),
        *("ms/image", "MiB", "training s"),
    )
    cells: list[tuple[str, ...]] = [header]
    for row in comparison_rows(comparison):
        names = (
            *("name", MAIN, f"{MAIN}_interval", "knn_accuracy", "map_at_r"),
            *("difference", "difference_interval", "p_holm"),
            *("milliseconds", "memory", "training"),
        )
        cells.append(tuple(row[name] for name in names))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for line in cells:
        first = f"{line[0]:<{widths[0]}}"
        texts = [f"{text:>{width}}" for text, width in zip(line[1:], widths[1:], strict=True)]
        lines.append("  ".join([first, *texts]).rstrip())
    findings = comparison_findings(comparison)
    lines += ["", *(finding.text for finding in findings[1:])]
    lines += [str(file) for file in files]
    return "\n".join([*lines, "", findings[0].text])
