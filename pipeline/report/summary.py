"""The verdict in sentences."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipeline.report.evaluated_run import EvaluatedRun, compare_runs_pairwise
from stages.evaluation.metrics import METRICS
from stages.evaluation.pooling import pool_runs
from stages.evaluation.results import Evaluation, PairedTest
from stages.evaluation.scores import WITHOUT_DUPLICATES

COLLAPSED = (
    0.05  # root mean square distance of two test images below which nearly all lie on one point
)


class Finding(NamedTuple):
    """A sentence of the verdict. kind: `answer`, `note`, or `warning` where the figures alone would mislead."""

    kind: str
    text: str


def verdicts(comparisons: Sequence[EvaluatedRun], *, pooled: bool = False) -> list[str]:
    """The verdict of every run, and of all together, for a terminal."""
    several = len(comparisons) > 1
    lines = [finding.text for finding in summary(comparisons, pooled=pooled)]
    for one in comparisons:
        found = [finding.text for finding in verdict(one)]
        lines += [f"{one.run}: {found[0]}", *found[1:]] if several else found
    return lines


def summary(comparisons: Sequence[EvaluatedRun], *, pooled: bool = False) -> list[Finding]:
    """What several runs say together; nothing for one."""
    if pooled and len(comparisons) > 1:
        means, deviations = pool_runs([one.evaluation for one in comparisons])
        told = [
            f"{METRICS[mean.metric].title} {format_percent(mean.value)} \u00b1 {100 * (deviation.value or 0):.1f}"
            for mean, deviation in zip(means, deviations, strict=True)
            if mean.metric in ("classification_accuracy", "knn_accuracy", "triplet_accuracy")
            and mean.split == "test"
        ]
        text = f"Over {len(comparisons)} runs on the same split, mean and standard deviation: {', '.join(told)}."
        return [Finding("answer", text)]
    between, refused = ([], []) if pooled else compare_runs_pairwise(comparisons)
    findings = [
        Finding(
            "answer",
            f"{METRICS[p.metric_a].title}, {run_a} against {run_b}: {format_difference(p)}.",
        )
        for run_a, run_b, p in between
        if p.metric_a in ("classification_accuracy", "knn_accuracy", "triplet_accuracy")
    ]
    return findings + [Finding("warning", f"{words}.") for words in refused]


def verdict(comparison: EvaluatedRun) -> list[Finding]:
    """The answer in a few sentences: how accurate, by which measure, and what speaks against believing it."""
    scored, classes = comparison.evaluation, comparison.test.classes
    right, known, raw, fresh, common = (
        scored.score(f"{name}_accuracy")
        for name in ("classification", "knn", "pixel_knn", "untrained_knn", "majority")
    )
    versus = scored.paired_test("classification_accuracy", "knn_accuracy")
    head = (
        f"The classifier is right on {format_percent(right.value)} of {right.count:,} unseen images "
        f"({format_percent(right.low)[:-2]}\u2013{format_percent(right.high)}); kNN on {format_percent(known.value)}; {describe_significance(versus)}. "
        f"Raw pixels reach {format_percent(raw.value)}."
    )
    findings = [Finding("answer", head)]
    if comparison.folds:
        alone = len(comparison.folds) == right.count  # folds of one image: their shares are 0 or 1
        moved = (
            None
            if alone
            else next(score.value for score in comparison.deviation if score.metric == right.metric)
        )
        where = "repeat to repeat" if comparison.repeats > 1 else "fold to fold"
        findings.append(
            Finding(
                "note",
                f"Each image was tested by models that never saw it. Of {right.count:,} images, {format_percent(right.value)} right means: of "
                f"new images of this kind somewhere between {format_percent(right.low)} and {format_percent(right.high)}. One image more or less is "
                f"{100 / right.count:.2g} points{f'; from {where} the share moves by {100 * moved:.1f}' if moved is not None else ''}.",
            )
        )
    warnings = []
    if scored.leaked:
        count, total = len(scored.leaked), right.count
        left = scored.score("classification_accuracy", WITHOUT_DUPLICATES)
        warnings.append(
            f"{count:,} of the {total:,} test images ({format_percent(count / total)}) {'stands' if count == 1 else 'stand'} in the training or "
            "validation part too, so the figures flatter. "
            + (
                f"Without {'it' if count == 1 else 'them'} the classifier is right on {format_percent(left.value)}, "
                f"kNN on {format_percent(scored.score('knn_accuracy', WITHOUT_DUPLICATES).value)}."
                if left.count
                else "None is left without them."
            )
        )
    if scored.spread < COLLAPSED:
        warnings.append(
            f"The embedding has collapsed: two test images lie {scored.spread:.3f} apart where up to 2 is possible, so nearly all look "
            "alike to it. Train it with a lower --lr, or more classes and images in a batch."
        )
    if not _beats(scored, "majority_accuracy"):
        most = classes[int(np.bincount(comparison.gallery.labels.numpy()).argmax())]
        warnings.append(
            f"kNN on the embedding is not shown to be better than always answering {most} ({format_percent(common.value)})."
        )
    for name, reached in (
        ("untrained", f"the same network, untrained, reaches {format_percent(fresh.value)}"),
        ("pixel", f"raw pixels reach {format_percent(raw.value)}"),
    ):
        paired = scored.paired_test("knn_accuracy", f"{name}_knn_accuracy")
        if _beats(scored, f"{name}_knn_accuracy") or paired.count == 0:
            continue
        worse = paired.p_value is not None and paired.p_value < 0.05
        what = {
            "untrained": ("Training has done harm", "Training is not shown to help"),
            "pixel": ("The embedding does harm", "The embedding is not shown to beat raw pixels"),
        }[name][0 if worse else 1]
        warnings.append(
            f"{what}: {reached} by kNN, the embedding {format_percent(known.value)}; {describe_significance(paired)}."
        )
    return [*findings, *(Finding("warning", text) for text in warnings)]


def _beats(scored: Evaluation, baseline: str) -> bool:
    """Whether kNN on the embedding is better than a baseline, by more than chance."""
    paired = scored.paired_test("knn_accuracy", baseline)
    return paired.p_value is not None and paired.p_value < 0.05 and (paired.difference or 0) > 0


def describe_significance(paired: PairedTest) -> str:
    if paired.p_value is None or paired.p_value >= 0.05:
        return "the difference is within chance"
    return f"the difference is more than chance (p {format_p_value(paired.p_value)})"


def format_difference(paired: PairedTest) -> str:
    if paired.difference is None or paired.low is None or paired.high is None:
        return "not defined"
    bounds = f"{100 * paired.low:+.1f} to {100 * paired.high:+.1f}"
    return f"{100 * paired.difference:+.1f} points ({bounds}); {describe_significance(paired)}".replace(
        "-", "\u2212"
    )


def format_p_value(value: float | None) -> str:
    return "\u2013" if value is None else ("< 0.001" if value < 0.001 else f"= {value:.3f}")


def format_percent(value: float | None) -> str:
    """One decimal, or more where it would round to a perfection that isn't there."""
    if value is None or math.isnan(value):
        return "\u2013"
    for decimals in (1, 2, 3, 4):
        text = f"{100 * value:.{decimals}f}"
        if float(text) not in (0, 100) or value in (0, 1):
            break
    return f"{text} %"
