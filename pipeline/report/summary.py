"""The findings of a report in sentences."""

from collections.abc import Sequence

import numpy as np

from pipeline.numbers import count_of
from pipeline.report.enrolled_findings import enrolled_findings
from pipeline.report.evaluated_run import EvaluatedRun, compare_runs_pairwise
from pipeline.report.finding import Finding
from pipeline.report.formats import (
    format_difference,
    format_interval,
    format_percent,
    is_significant,
    p_equals,
)
from pipeline.report.tables import score_title
from stages.evaluation.metric_definitions import METRICS, initial_network
from stages.evaluation.pooling import pool_runs
from stages.evaluation.results import UNSEEN, Score
from stages.evaluation.scores import WITHOUT_DUPLICATES
from stages.evaluation.typicality import smallest_typicality
from stages.records import COLLAPSED
from stages.settings import REJECT

UNSEEN_RECALL = ("precision_at_1", UNSEEN)
MAIN_METRICS = ("classification_accuracy", "knn_accuracy", "triplet_accuracy")


def verdicts(runs: Sequence[EvaluatedRun], *, pooled: bool = False) -> list[str]:
    """Return the findings of all runs as lines for a terminal.

    Args:
        runs: Evaluated runs.
        pooled: True if the runs repeat one experiment with different seeds.
    """
    lines = [finding.text for finding in summary(runs, pooled=pooled)]
    for run in runs:
        texts = [finding.text for finding in verdict(run)]
        if len(runs) > 1:
            texts[0] = f"{run.run}: {texts[0]}"
        lines += texts
    return lines


def summary(runs: Sequence[EvaluatedRun], *, pooled: bool = False) -> list[Finding]:
    """Return the findings about several runs together. A single run has none.

    Args:
        runs: Evaluated runs.
        pooled: True if the runs repeat one experiment with different seeds. Their mean and
            standard deviation then replace the tests between runs.
    """
    if pooled:
        return _mean_scores(runs) if len(runs) > 1 else []
    comparisons, messages = compare_runs_pairwise(runs)
    findings = []
    for run_a, run_b, paired, _ in comparisons:
        if paired.metric_a in MAIN_METRICS and paired.count:
            title = METRICS[paired.metric_a].title
            text = f"{title} of {run_a} compared with {run_b}: {format_difference(paired)}."
            findings.append(Finding("answer", text))
    return findings + [Finding("warning", f"{message}.") for message in messages]


def verdict(run: EvaluatedRun) -> list[Finding]:
    """Return the findings about one run.

    The answer comes first: how accurate the run is. Notes and warnings follow.
    """
    findings = [
        _accuracy(run) if run.images else None,
        _sample(run),
        *enrolled_findings(run),
        _unseen_classes(run),
        _unknown_images(run),
        *_precision_of_folds(run),
        _duplicates(run),
        _duplicates_of_unseen(run),
        _collapse(run),
        *_baselines(run),
    ]
    return [finding for finding in findings if finding is not None]


def _mean_scores(runs: Sequence[EvaluatedRun]) -> list[Finding]:
    means, deviations = pool_runs([run.evaluation for run in runs])
    texts = []
    for mean, deviation in zip(means, deviations, strict=True):
        shown = mean.split == "test" and mean.metric in MAIN_METRICS
        shown = shown or (mean.metric, mean.split) == UNSEEN_RECALL
        if shown and deviation.count:
            value = format_percent(mean.value).removesuffix("%")
            spread = format_percent(deviation.value)
            texts.append(f"{score_title(mean)} {value} \u00b1 {spread}")
    text = f"Mean and standard deviation over {len(runs)} runs on the same split: "
    return [Finding("answer", f"{text}{'; '.join(texts)}.")] if texts else []


def _accuracy(run: EvaluatedRun) -> Finding:
    evaluation = run.evaluation
    accuracy = evaluation.score("classification_accuracy")
    knn = evaluation.score("knn_accuracy")
    pixels = evaluation.score("pixel_knn_accuracy")
    paired = evaluation.paired_test("classification_accuracy", "knn_accuracy")
    negation = "" if is_significant(paired) else "not "
    return Finding(
        "answer",
        f"Classification accuracy is {format_percent(accuracy.value)} on {accuracy.count:,} "
        f"test image{_plural(accuracy.count)} (95% CI {format_interval(accuracy)}). "
        f"kNN accuracy is {format_percent(knn.value)}; the difference is {negation}significant "
        f"({p_equals(paired.p_value)}). "
        f"kNN accuracy on raw pixels is {format_percent(pixels.value)}.",
    )


def _sample(run: EvaluatedRun) -> Finding | None:
    """Return a note if only a sample of the test images is evaluated."""
    if run.whole is None or run.whole.test is None:
        return None
    text = f"These are {len(run.images):,} of {len(run.whole.test):,} test images, drawn at random"
    return Finding("note", f"{text}; they query all of them, and intervals are those of a sample.")


def _unseen_classes(run: EvaluatedRun) -> Finding | None:
    """Return how well images of classes that were not trained on are found."""
    unseen, images = run.evaluation.unseen, run.data.unseen
    if unseen is None or images is None:
        return None
    recall, auc = unseen.score("precision_at_1"), unseen.score("verification_auc")
    classes = len(images.classes)
    where = f"{len(images):,} image{_plural(len(images))} of {classes} class"
    where += "es" if classes > 1 else ""
    if not recall.count or not auc.count:
        needed = "two classes, and two images of one of them"
        if images.queries is not None:
            needed = "gallery images of the class of a query and of another class"
        text = f"Retrieval cannot be measured on the {where} that were not trained on: it needs "
        return Finding("note", f"{text}{needed}.")
    interval = f"95% CI over classes {format_interval(recall)}"
    if recall.low is None:
        interval = "no interval: that needs three classes"
    if images.queries is not None:
        where = f"{recall.count:,} quer{'y' if recall.count == 1 else 'ies'} among {where}"
    baselines = [
        ("on raw pixels", "pixel_precision_at_1"),
        (f"with the {initial_network(pretrained=run.pretrained)}", "untrained_precision_at_1"),
    ]
    if run.pretrained:
        baselines.append(("on the features of the pretrained trunk", "trunk_precision_at_1"))
    texts = []
    for name, metric in baselines:
        baseline = unseen.score(metric)
        if baseline.count:
            texts.append(f"{format_percent(baseline.value)} {name}")
    return Finding(
        "answer",
        f"On {where} that were not trained on, recall@1 is {format_percent(recall.value)} "
        f"({interval}), compared with {' and '.join(texts)}. "
        f"Verification AUC is {format_percent(auc.value)}.",
    )


def _unknown_images(run: EvaluatedRun) -> Finding | None:
    """Return how many known and unknown images are rejected, and how well they are separated."""
    if run.evaluation.unknown_prediction is None:
        can_reject = smallest_typicality(run.calibration_count) < REJECT
        return None if can_reject else Finding("note", _no_rejection(run))
    known = run.evaluation.score("rejection_rate_known")
    unknown = run.evaluation.score("rejection_rate_unknown", UNSEEN)
    auroc = run.evaluation.score("unknown_auroc", UNSEEN)
    probability = run.evaluation.score("unknown_auroc_max_probability", UNSEEN)
    text = _rejected_shares(unknown, known, run)
    if auroc.count:
        text += (
            " The distance to the nearest training image separates images of unseen classes from "
            f"the others with an AUROC of {format_percent(auroc.value)}, the probability of the "
            f"predicted class with {format_percent(probability.value)}."
        )
    return Finding("note", text)


def _no_rejection(run: EvaluatedRun) -> str:
    images = count_of(run.calibration_count, "validation image")
    enrolled = run.enrolled_calibration_count or 0
    near = ""
    if run.calibration_count and smallest_typicality(enrolled) < REJECT:
        near = " near a class that was trained on"
    return f"No image{near} can be rejected as unknown with {images}: that needs {1 / REJECT:.0f}."


def _rejected_shares(unknown: Score, known: Score, run: EvaluatedRun) -> str:
    if smallest_typicality(run.calibration_count) >= REJECT:
        return _no_rejection(run)
    text = f"{format_percent(unknown.value)} of the images of unseen classes are rejected"
    if known.count:
        text += f", and {format_percent(known.value)} of the others"
        text += f" ({format_percent(REJECT)} expected)"
    return f"{text}."


def _precision_of_folds(run: EvaluatedRun) -> list[Finding]:
    """Return how precise a pooled accuracy is: its step, interval and deviation."""
    if not run.folds:
        return []
    accuracy = run.evaluation.score("classification_accuracy")
    step = (
        "Each image was tested by models that were not trained on it. "
        f"One image changes the accuracy by {100 / accuracy.count:.2g} points."
    )
    text = f"Accuracy on new images of this kind is likely to be {format_interval(accuracy)}."
    # The accuracy of a fold with one image is 0 or 1: its deviation says nothing.
    if len(run.folds) != accuracy.count:
        deviation = next(score for score in run.deviation if score.metric == accuracy.metric)
        unit = "repeats" if run.repeats > 1 else "folds"
        points = format_percent(deviation.value).removesuffix("%")
        text += f" The standard deviation over {unit} is {points} points."
    return [Finding("note", step), Finding("note", text)]


def _duplicates(run: EvaluatedRun) -> Finding | None:
    evaluation = run.evaluation
    count = len(evaluation.leaked)
    if not count:
        return None
    total = evaluation.score("classification_accuracy").count
    accuracy = evaluation.score("classification_accuracy", WITHOUT_DUPLICATES)
    knn = evaluation.score("knn_accuracy", WITHOUT_DUPLICATES)
    text = (
        f"{count:,} of the {total:,} test image{_plural(total)} "
        f"({format_percent(count / total)}) also occur{'s' if count == 1 else ''} "
        f"in the training or validation split{_or_enrolled(run)}, so the scores are too "
        "optimistic. "
    )
    if accuracy.count:
        text += (
            f"Without duplicates, classification accuracy is {format_percent(accuracy.value)} "
            f"and kNN accuracy is {format_percent(knn.value)}."
        )
    else:
        text += "Without duplicates, no test image remains."
    return Finding("warning", text)


def _or_enrolled(run: EvaluatedRun) -> str:
    return " or among the enrolled images" if run.enrolled else ""


def _duplicates_of_unseen(run: EvaluatedRun) -> Finding | None:
    """Return a warning if images of unseen classes are known after all, under other labels."""
    count = len(run.data.leaked_unseen)
    if not count:
        return None
    verb = "occurs" if count == 1 else "occur"
    return Finding(
        "warning",
        f"{count_of(count, 'image')} of unseen classes also {verb} in the training or validation "
        "split, with another label. Such images look known, so the scores of unknown images are "
        "too low.",
    )


def _collapse(run: EvaluatedRun) -> Finding | None:
    spread = run.evaluation.spread
    if spread >= COLLAPSED:
        return None
    return Finding(
        "warning",
        f"The embedding has collapsed: the root mean square distance between test images is "
        f"{spread:.3f}, and distances can be as large as 2. Train again with a lower --lr, or "
        "with more classes and images per batch.",
    )


def _baselines(run: EvaluatedRun) -> list[Finding]:
    """Return a warning per baseline that ours is not significantly better than."""
    initial = initial_network(pretrained=run.pretrained)
    features = "features of the pretrained trunk"
    baselines: list[tuple[str, str, str, str]] = []  # ours, baseline, split, description
    if run.test:
        majority = run.test.classes[int(np.bincount(run.training.labels.numpy()).argmax())]
        baselines += [
            ("knn_accuracy", "majority_accuracy", "test", f"always predicting {majority}"),
            ("knn_accuracy", "untrained_knn_accuracy", "test", f"kNN on the {initial}"),
            ("knn_accuracy", "pixel_knn_accuracy", "test", "kNN on raw pixels"),
        ]
    if run.test and run.pretrained:
        logistic = f"logistic regression on the {features}"
        baselines += [
            ("knn_accuracy", "trunk_knn_accuracy", "test", f"kNN on the {features}"),
            ("classification_accuracy", "trunk_logistic_accuracy", "test", logistic),
        ]
    if run.evaluation.unseen:
        names = {"pixel": "raw pixels", "untrained": f"the {initial}", "trunk": f"the {features}"}
        for prefix, name in names.items():
            if prefix != "trunk" or run.pretrained:
                description = f"recall@1 on {name}"
                metric = f"{prefix}_precision_at_1"
                baselines.append(("precision_at_1", metric, UNSEEN, description))
    findings = [_compare_with_baseline(run, *baseline) for baseline in baselines]
    return [finding for finding in findings if finding is not None]


def _compare_with_baseline(
    run: EvaluatedRun, ours: str, baseline: str, split: str, description: str
) -> Finding | None:
    paired = run.evaluation.paired_test(ours, baseline, split)
    if paired.difference is None and split == UNSEEN:
        return _compare_untested(run, ours, baseline, description)
    if paired.difference is None or (is_significant(paired) and paired.difference > 0):
        return None
    method, of_method = {
        "knn_accuracy": ("kNN on the embedding", ""),
        "classification_accuracy": ("The classifier", "of the classifier "),
        "precision_at_1": ("On unseen classes, recall@1", "on unseen classes "),
    }[ours]
    if is_significant(paired):
        problem = f"{method} is significantly worse than"
    else:
        problem = f"No significant improvement {of_method}over"
    value = format_percent(run.evaluation.score(baseline, split).value)
    statement, values = f"{problem} {description}", f"{value}, {p_equals(paired.p_value)}"
    return Finding("warning", f"{statement} ({values}).", statement, values)


def _compare_untested(
    run: EvaluatedRun, ours: str, baseline: str, description: str
) -> Finding | None:
    """Return a warning if there are too few classes for a test and a baseline is as good."""
    value = run.evaluation.score(ours, UNSEEN).value
    other = run.evaluation.score(baseline, UNSEEN).value
    if value is None or other is None or value > other:
        return None
    text = f"On unseen classes, recall@1 is no higher than {description} ({format_percent(other)})"
    return Finding("warning", f"{text}; with fewer than three classes this cannot be tested.")


def _plural(count: int) -> str:
    return "" if count == 1 else "s"
