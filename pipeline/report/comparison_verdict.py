"""The verdict of a comparison in words."""

from collections.abc import Sequence

from pipeline.numbers import count_of
from pipeline.report.comparison import MAIN, RANDOM, ComparedRun, Comparison
from pipeline.report.finding import Finding
from pipeline.report.formats import (
    format_interval,
    format_percent,
    format_points,
    listed,
    p_equals,
)

HEADLINE_NAMES = 2  # more of the other runs are counted instead
SAME_SPEED = 1.2  # times are called the same below this ratio: a busy machine varies as much


def comparison_findings(comparison: Comparison) -> list[Finding]:
    """Return the findings at the top of the page: the verdict, its details and the failures.

    Args:
        comparison: Result of the comparison, with at least one evaluated run.
    """
    findings = [Finding("answer", headline_of_comparison(comparison))]
    details = details_of_comparison(comparison)
    if details:
        findings.append(Finding("note", details))
    if comparison.failed:
        names = listed([entry.name for entry in comparison.failed])
        text = f"{names} could not be evaluated; the table shows why."
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
        text = f"Only one {noun} could be evaluated: {best.title} has a classification accuracy of "
        return f"{text}{format_percent(accuracy.value)} ({_interval(best)}) on {images}."
    equal, worse = _sort_others(comparison, best, others)
    clauses = []
    if worse:
        clauses.append(_better(comparison, best, worse, images))
    if equal:
        clauses.append(_not_distinguishable(comparison, best, equal, "" if worse else images))
        clauses.append(_fastest(comparison, [best, *equal]))
    return "; ".join(filter(None, clauses)) + "."


def headline_of_comparison(comparison: Comparison) -> str:
    """Return the verdict without numbers, short enough for a headline.

    Args:
        comparison: Result of the comparison, with at least one evaluated run.
    """
    best = comparison.best
    others = [entry for entry in comparison.finished if entry is not best]
    if best is None or not others:
        return verdict_of_comparison(comparison)
    where = f"on {count_of(best.score(MAIN).count, 'image')}"
    equal, worse = _sort_others(comparison, best, others)
    if worse:
        text = f"{best.title} is better than {_named_or_counted(comparison, worse)} {where}"
        if equal:
            text += f", and not distinguishable from {_named_or_counted(comparison, equal)}"
        return f"{text}."
    group = [best, *equal]
    if _better_pairs(comparison, equal):
        counted = _named_or_counted(comparison, equal)
        text = f"{best.title} is not distinguishable from {counted} {where}"
    elif len(group) > HEADLINE_NAMES + 1:
        text = f"The {len(group)} {comparison.nouns[1]} are not distinguishable {where}"
    else:
        names = listed([entry.title for entry in group])
        text = f"{names} are not distinguishable {where}"
    return "; ".join(filter(None, [text, _fastest(comparison, group, short=True)])) + "."


def _named_or_counted(comparison: Comparison, entries: Sequence[ComparedRun]) -> str:
    """Return some of the runs that are not the best one for a headline."""
    if len(entries) <= HEADLINE_NAMES:
        return listed([entry.title for entry in entries])
    others = len(comparison.finished) - 1
    text = f"the {others} other {comparison.nouns[1]}"
    return text if len(entries) == others else f"{len(entries)} of {text}"


def details_of_comparison(comparison: Comparison) -> str:
    """Return the numbers behind the headline in a few sentences; empty if there are none.

    Args:
        comparison: Result of the comparison, with at least one evaluated run.
    """
    best = comparison.best
    others = [entry for entry in comparison.finished if entry is not best]
    if best is None or not others:
        return ""
    equal, worse = _sort_others(comparison, best, others)
    sentences = []
    if worse:
        next_best = ", the next best" if len(worse) > 1 else ""
        sentences.append(
            f"Classification accuracy is {format_percent(best.score(MAIN).value)} for {best.name} "
            f"and {format_percent(worse[0].score(MAIN).value)} for {worse[0].name}{next_best}: "
            f"a difference of {_in_a_sentence(comparison, best, worse[0])}."
        )
    if len(equal) == 1:
        described = _in_a_sentence(comparison, best, equal[0])
        sentences.append(f"The difference between {best.name} and {equal[0].name} is {described}.")
    elif equal:
        which = f" among the {comparison.nouns[1]} that are not distinguishable" if worse else ""
        sentences.append(
            f"The largest difference{which}, between {best.name} and {equal[-1].name}, is "
            f"{_in_a_sentence(comparison, best, equal[-1])}."
        )
    better = _better_pairs(comparison, equal)
    if better:
        sentences.append(f"However, {listed(better)}.")
    if worse and equal:
        fastest = _fastest(comparison, [best, *equal])
        if fastest:
            # A name keeps its first letter.
            sentences.append(
                f"They{fastest[4:]}." if fastest.startswith("they ") else f"{fastest}."
            )
    headline = headline_of_comparison(comparison)
    random = [entry.name for entry in comparison.finished if entry.starts_random]
    unmarked = [name for name in random if f"{name} ({RANDOM})" not in headline]
    if unmarked:
        verb = "has" if len(unmarked) == 1 else "have"
        sentences.append(f"{listed(unmarked)} {verb} {RANDOM}.")
    return " ".join(sentences)


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
    accuracy, next_best = (format_percent(entry.score(MAIN).value) for entry in (best, closest))
    is_next = f" for {closest.name}, the next best" if len(worse) > 1 else ""
    points, uncertainty = _described(comparison, best, closest)
    return (
        f"{best.title} is better than {listed([entry.title for entry in worse])} on {images} "
        f"(classification accuracy {accuracy} compared with {next_best}{is_next}; "
        f"difference {points}, {uncertainty})"
    )


def _not_distinguishable(
    comparison: Comparison, best: ComparedRun, equal: Sequence[ComparedRun], images: str
) -> str:
    where = f" on {images}" if images else ""
    farthest = equal[-1]
    described = ", ".join(filter(None, _described(comparison, best, farthest)))
    better = _better_pairs(comparison, equal)
    names = [entry.title for entry in equal]
    if better:
        return (
            f"{listed(names)} are not distinguishable from {best.title}{where} (largest "
            f"difference, to {farthest.name}: {described}), although {listed(better)}"
        )
    text = f"{listed([best.title, *names])} are not distinguishable{where}"
    if len(equal) == 1:
        return f"{text} (difference {described})"
    return f"{text} (largest difference, between {best.name} and {farthest.name}: {described})"


def _better_pairs(comparison: Comparison, equal: Sequence[ComparedRun]) -> list[str]:
    """Return the significant differences among the runs that do not differ from the best one."""
    return [
        f"{a.name} is better than {b.name}"
        for row, a in enumerate(equal)
        for b in equal[row + 1 :]
        if (paired := comparison.difference(a, b)) and paired.significant
    ]


def _described(comparison: Comparison, best: ComparedRun, other: ComparedRun) -> tuple[str, str]:
    """Return the difference to the best run, and its interval and p-value."""
    difference = comparison.difference(best, other)
    if difference is None:
        return "no test", ""
    points = format_points(difference.value, decimals=1).removeprefix("+")
    low, high = (
        format_points(bound, decimals=1).removeprefix("+")
        for bound in (difference.low, difference.high)
    )
    p = p_equals(difference.p_holm)
    adjusted = "adjusted " if comparison.pairs > 1 else ""
    return f"{points} points", f"95% interval {low} to {high}, {adjusted}{p}"


def _in_a_sentence(comparison: Comparison, best: ComparedRun, other: ComparedRun) -> str:
    points, uncertainty = _described(comparison, best, other)
    return f"{points} ({uncertainty})" if uncertainty else "unknown"


def _fastest(comparison: Comparison, group: Sequence[ComparedRun], *, short: bool = False) -> str:
    """Return which of several equally good networks is the fastest, if the times differ.

    Args:
        comparison: Result of the comparison.
        group: The best run, and those that are not distinguishable from it.
        short: Leave out the run with which the fastest one is compared.
    """
    if comparison.field != "network":  # losses and mining modes train the same network
        return ""
    timed = [(entry.seconds_per_image, entry.name) for entry in group if entry.seconds_per_image]
    if len(timed) < len(group):
        return ""
    (fastest, name), (second, other) = sorted(timed)[:2]
    if len(group) == 2:
        if second < SAME_SPEED * fastest:
            return "they are about equally fast"
        text = f"{name} is {_times(second / fastest)} as fast"
        return text if short else f"{text} as {other}"
    best_seconds, best_name = timed[0]
    slower = second if name == best_name else best_seconds
    if slower < SAME_SPEED * fastest:
        return ""
    if short:
        return f"{name} is the fastest"
    if name == best_name:
        return f"{name} is also the fastest of them"
    return f"{name} is the fastest of them, {_times(best_seconds / fastest)} as fast as {best_name}"


def _times(ratio: float) -> str:
    return f"{ratio:.1f} times" if ratio < 10 else f"{ratio:.0f} times"


def _interval(entry: ComparedRun) -> str:
    return f"95% CI {format_interval(entry.score(MAIN))}"
