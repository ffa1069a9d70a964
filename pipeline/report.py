"""The comparison as files: CSVs for programs, a page for people."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

from pipeline import plots
from pipeline.checkpoint import write_atomically
from pipeline.data import Dataset
from pipeline.table import safe_cell
from stages.records import Embeddings, Paired, Score, Scored, Split
from stages.score import CLEAN, Exploration, compare_runs, explore, nearest, pool_runs, reliability

TITLES = {
    "knn_accuracy": "kNN accuracy",
    "triplet_accuracy": "Triplet accuracy",
    "classification_accuracy": "Classification accuracy",
    "precision_at_1": "Precision@1",
    "r_precision": "R-precision",
    "map_at_r": "MAP@R",
    "mean_average_precision": "Mean average precision",
    "majority_accuracy": "Baseline: most frequent class",
    "pixel_knn_accuracy": "Baseline: kNN on raw pixels",
    "untrained_knn_accuracy": "Baseline: kNN, network untrained",
    "calibration_error": "Calibration error (low is good)",
    "calibration_error_uncalibrated": "The same before temperature",
}
SCORE_COLUMNS = ("run", "metric", "split", "value", "ci_low", "ci_high", "count", "definition")
PAIRED_COLUMNS = (
    "run_a metric_a run_b metric_b split difference ci_low ci_high p_value count test".split()  # noqa: SIM905  # as the contract has it
)
COLLAPSED = 0.05  # root mean square distance of two test images below which nearly all lie on one point
SHOWN = 24  # images in a gallery
WORST = 30  # classes in the table before the fold


@dataclass(frozen=True, eq=False)
class Comparison:
    """One run, scored: its name, both checkpoints' records, the images it was judged on, their vectors and the figures.

    folds: the runs that it pools, repeat after repeat, and then deviation: of each figure over repeats, or else over folds.
    """

    run: str
    embedding: Mapping[str, Any]
    classifier: Mapping[str, Any]
    data: Dataset
    test: Embeddings
    gallery: Embeddings
    gallery_ids: tuple[str, ...]
    scored: Scored
    folds: tuple["Comparison", ...] = ()
    deviation: tuple[Score, ...] = ()

    @property
    def images(self) -> Split:
        assert self.data.test is not None  # or there had been nothing to score
        return self.data.test

    @property
    def repeats(self) -> int:
        """How often each image was predicted."""
        return len(self.images) // self.scored.score("knn_accuracy").count


class Finding(NamedTuple):
    """A sentence of the verdict. kind: `answer`, `note`, or `warning` where the figures alone would mislead."""

    kind: str
    text: str


class Between(NamedTuple):
    """A paired comparison and the runs that it is of."""

    run_a: str
    run_b: str
    paired: Paired


def write_report(folder: Path, comparisons: Sequence[Comparison], *, figures: Path | None = None, pooled: bool = False) -> None:
    """Write the CSVs and `report.html` below the folder, each whole or not at all, and the first run's figures below `figures`.

    pooled: the runs are repetitions of one, so that their mean and deviation mean something.
    """
    explored = None if comparisons[0].folds else explore(comparisons[0].test)  # folds share no space
    drawn = [draw_figures(comparison, explored if place == 0 else None) for place, comparison in enumerate(comparisons)]
    for name, content in (
        ("accuracy.csv", accuracy_table(comparisons, pooled=pooled).to_csv(index=False)),
        ("comparisons.csv", comparison_table(comparisons, pooled=pooled).to_csv(index=False)),
        ("predictions.csv", pd.concat([prediction_table(fold) for one in comparisons for fold in one.folds or (one,)]).to_csv(index=False)),
        ("report.html", render_page(comparisons, explored, drawn, pooled=pooled)),
    ):
        write_atomically(folder / name, content.encode("utf-8", "surrogateescape"))
    if figures:
        for name, figure in drawn[0].items():
            write_atomically(figures / f"{name}.svg", plots.to_svg(figure, name))
            write_atomically(figures / f"{name}.png", plots.to_png(figure))


# Tables


def accuracy_table(comparisons: Sequence[Comparison], *, pooled: bool = False) -> pd.DataFrame:
    """One row a run and figure, with the contract's columns; pooled, the runs `mean` and `std` too; of folds, each and `std`."""
    runs = [(run.run, run.scored.scores) for one in comparisons for run in (*one.folds, one)]
    runs += [("std", one.deviation) for one in comparisons if one.folds]
    if pooled:
        runs += zip(("mean", "std"), pool_runs([one.scored for one in comparisons]), strict=True)
    rows = [
        (safe_cell(run), s.metric, s.split, _digits(s.value), _digits(s.low), _digits(s.high), s.count, s.definition)
        for run, scores in runs
        for s in scores
    ]
    return pd.DataFrame(rows, columns=list(SCORE_COLUMNS))


def comparison_table(comparisons: Sequence[Comparison], *, pooled: bool = False) -> pd.DataFrame:
    """One row a paired test, within each run and between runs on the same images, with the contract's columns."""
    within = [Between(one.run, one.run, paired) for one in comparisons for paired in one.scored.comparisons]
    between = [] if pooled else compare_all(comparisons)[0]
    rows = [
        (
            *(safe_cell(run_a), p.metric_a, safe_cell(run_b), p.metric_b, p.split),
            *(_digits(p.difference), _digits(p.low), _digits(p.high), "" if p.p_value is None else f"{p.p_value:.6g}"),
            *(p.count, p.test),
        )
        for run_a, run_b, p in (*within, *between)
    ]
    return pd.DataFrame(rows, columns=list(PAIRED_COLUMNS))


def compare_all(comparisons: Sequence[Comparison]) -> tuple[list[Between], list[str]]:
    """Each run against each later one, and in words which pairs were judged on different images."""
    between, refused = [], []
    for a, b in combinations(comparisons, 2):
        prints = [str(one.embedding["fingerprint"])[:12] for one in (a, b)]
        if a.embedding["fingerprint"] == b.embedding["fingerprint"] and a.images.ids == b.images.ids:
            between += [Between(a.run, b.run, paired) for paired in compare_runs(a.scored, b.scored)]
        else:
            refused.append(
                f"{a.run} and {b.run} can't be compared image by image: they were judged on different splits "
                f"(fingerprints {prints[0]} and {prints[1]}); train both on the same source with the same --split-seed"
            )
    return between, refused


def _digits(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"


def prediction_table(comparison: Comparison) -> pd.DataFrame:
    """One row a test image, with the contract's columns."""
    test, prediction = comparison.images, comparison.scored.prediction
    names = np.array([safe_cell(name) for name in test.classes], dtype=object)
    triplet = [("" if math.isnan(value) else f"{value:.6f}") for value in prediction.triplet_accuracy]
    return pd.DataFrame(
        {
            "run": safe_cell(comparison.run),
            "id": [safe_cell(name) for name in test.ids],
            "label": names[test.labels.numpy()],
            "knn_label": names[prediction.knn],
            "classifier_label": names[prediction.classifier],
            "classifier_probability": [f"{value:.6f}" for value in prediction.probability],
            "triplet_accuracy": triplet,
            "nearest_id": [safe_cell(comparison.gallery_ids[row]) for row in prediction.nearest],
        }
    )


def text_table(comparisons: Sequence[Comparison], *, pooled: bool = False) -> str:
    """The comparison for a terminal: one run with its intervals, several side by side."""
    if len(comparisons) == 1:
        lines = [f"{'':34}{'value':>8}   {'95 % interval':<18}{'counted':>14}"]
        for score in _shown(comparisons[0].scored):
            value = "-" if score.value is None else f"{score.value:.4f}"
            interval = "" if score.low is None or score.high is None else f"{score.low:.4f} to {score.high:.4f}"
            unit = "triplets" if score.metric == "triplet_accuracy" else "images"
            lines.append(f"{_title(score):34}{value:>8}   {interval:<18}{score.count:>14,} {unit}")
        return "\n".join(lines)
    names, rows = _side_by_side(comparisons, pooled=pooled)
    widths = [max(8, len(name)) + 2 for name in names]
    lines = [" " * 34 + "".join(f"{name:>{width}}" for name, width in zip(names, widths, strict=True))]
    for title, scores in rows:
        cells = ("-" if score.value is None else f"{score.value:.4f}" for score in scores)
        lines.append(f"{title:34}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)))
    return "\n".join(lines)


def _shown(scored: Scored) -> list[Score]:
    """The figures that people see: those without duplicates only where there are duplicates."""
    both = zip(*([score for score in scored.scores if score.split == split] for split in ("test", CLEAN)), strict=True)
    return [score for pair in both for score in (pair if scored.leaked else pair[:1])]


def _title(score: Score) -> str:
    return TITLES[score.metric] + (", no copies" if score.split == CLEAN else "")


def _side_by_side(comparisons: Sequence[Comparison], *, pooled: bool) -> tuple[list[str], list[tuple[str, list[Score]]]]:
    runs = [(one.run, one.scored.scores) for one in comparisons]
    if pooled:
        runs += zip(("mean", "std"), pool_runs([one.scored for one in comparisons]), strict=True)
    leaked = any(one.scored.leaked for one in comparisons)
    rows = [(_title(same[0]), list(same)) for same in zip(*(scores for _, scores in runs), strict=True)]
    rows.sort(key=lambda row: list(TITLES).index(row[1][0].metric))  # with copies and without, side by side
    return [name for name, _ in runs], [row for row in rows if leaked or row[1][0].split == "test"]


# The verdict


def verdicts(comparisons: Sequence[Comparison], *, pooled: bool = False) -> list[str]:
    """The verdict of every run, and of all together, for a terminal."""
    several = len(comparisons) > 1
    lines = [finding.text for finding in summary(comparisons, pooled=pooled)]
    for one in comparisons:
        found = [finding.text for finding in verdict(one)]
        lines += [f"{one.run}: {found[0]}", *found[1:]] if several else found
    return lines


def summary(comparisons: Sequence[Comparison], *, pooled: bool = False) -> list[Finding]:
    """What several runs say together; nothing for one."""
    if pooled and len(comparisons) > 1:
        means, deviations = pool_runs([one.scored for one in comparisons])
        told = [
            f"{TITLES[mean.metric]} {_percent(mean.value)} \u00b1 {100 * (deviation.value or 0):.1f}"
            for mean, deviation in zip(means, deviations, strict=True)
            if mean.metric in ("classification_accuracy", "knn_accuracy", "triplet_accuracy") and mean.split == "test"
        ]
        text = f"Over {len(comparisons)} runs on the same split, mean and standard deviation: {', '.join(told)}."
        return [Finding("answer", text)]
    between, refused = ([], []) if pooled else compare_all(comparisons)
    findings = [
        Finding("answer", f"{TITLES[p.metric_a]}, {run_a} against {run_b}: {_difference(p)}.")
        for run_a, run_b, p in between
        if p.metric_a in ("classification_accuracy", "knn_accuracy", "triplet_accuracy")
    ]
    return findings + [Finding("warning", f"{words}.") for words in refused]


def verdict(comparison: Comparison) -> list[Finding]:
    """The answer in a few sentences: how accurate, by which measure, and what speaks against believing it."""
    scored, classes = comparison.scored, comparison.test.classes
    right, known, raw, fresh, common = (
        scored.score(f"{name}_accuracy") for name in ("classification", "knn", "pixel_knn", "untrained_knn", "majority")
    )
    versus = scored.paired("classification_accuracy", "knn_accuracy")
    head = (
        f"The classifier is right on {_percent(right.value)} of {right.count:,} unseen images "
        f"({_percent(right.low)[:-2]}\u2013{_percent(right.high)}); kNN on {_percent(known.value)}; {_chance(versus)}. "
        f"Raw pixels reach {_percent(raw.value)}."
    )
    findings = [Finding("answer", head)]
    if comparison.folds:
        alone = len(comparison.folds) == right.count  # folds of one image: their shares are 0 or 1
        moved = None if alone else next(score.value for score in comparison.deviation if score.metric == right.metric)
        where = "repeat to repeat" if comparison.repeats > 1 else "fold to fold"
        findings.append(
            Finding(
                "note",
                f"Each image was tested by models that never saw it. Of {right.count:,} images, {_percent(right.value)} right means: of "
                f"new images of this kind somewhere between {_percent(right.low)} and {_percent(right.high)}. One image more or less is "
                f"{100 / right.count:.2g} points{f'; from {where} the share moves by {100 * moved:.1f}' if moved is not None else ''}.",
            )
        )
    warnings = []
    if scored.leaked:
        count, total = len(scored.leaked), right.count
        left = scored.score("classification_accuracy", CLEAN)
        warnings.append(
            f"{count:,} of the {total:,} test images ({_percent(count / total)}) {'stands' if count == 1 else 'stand'} in the training or "
            "validation part too, so the figures flatter. "
            + (
                f"Without {'it' if count == 1 else 'them'} the classifier is right on {_percent(left.value)}, "
                f"kNN on {_percent(scored.score('knn_accuracy', CLEAN).value)}."
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
        warnings.append(f"kNN on the embedding is not shown to be better than always answering {most} ({_percent(common.value)}).")
    for name, reached in (
        ("untrained", f"the same network, untrained, reaches {_percent(fresh.value)}"),
        ("pixel", f"raw pixels reach {_percent(raw.value)}"),
    ):
        paired = scored.paired("knn_accuracy", f"{name}_knn_accuracy")
        if _beats(scored, f"{name}_knn_accuracy") or paired.count == 0:
            continue
        worse = paired.p_value is not None and paired.p_value < 0.05
        what = {
            "untrained": ("Training has done harm", "Training is not shown to help"),
            "pixel": ("The embedding does harm", "The embedding is not shown to beat raw pixels"),
        }[name][0 if worse else 1]
        warnings.append(f"{what}: {reached} by kNN, the embedding {_percent(known.value)}; {_chance(paired)}.")
    return [*findings, *(Finding("warning", text) for text in warnings)]


def _beats(scored: Scored, baseline: str) -> bool:
    """Whether kNN on the embedding is better than a baseline, by more than chance."""
    paired = scored.paired("knn_accuracy", baseline)
    return paired.p_value is not None and paired.p_value < 0.05 and (paired.difference or 0) > 0


def _chance(paired: Paired) -> str:
    if paired.p_value is None or paired.p_value >= 0.05:
        return "the difference is within chance"
    return f"the difference is more than chance (p {_p_value(paired.p_value)})"


def _difference(paired: Paired) -> str:
    if paired.difference is None or paired.low is None or paired.high is None:
        return "not defined"
    bounds = f"{100 * paired.low:+.1f} to {100 * paired.high:+.1f}"
    return f"{100 * paired.difference:+.1f} points ({bounds}); {_chance(paired)}".replace("-", "\u2212")


def _p_value(value: float | None) -> str:
    return "\u2013" if value is None else ("< 0.001" if value < 0.001 else f"= {value:.3f}")


def _percent(value: float | None) -> str:
    """One decimal, or more where it would round to a perfection that isn't there."""
    if value is None or math.isnan(value):
        return "\u2013"
    for decimals in (1, 2, 3, 4):
        text = f"{100 * value:.{decimals}f}"
        if float(text) not in (0, 100) or value in (0, 1):
            break
    return f"{text} %"


# The page


def draw_figures(comparison: Comparison, explored: Exploration | None) -> dict[str, Any]:
    """The figures of a run by name; those of distances and the map only where it was explored."""
    scored, labels = comparison.scored, comparison.test.labels.numpy()
    right, prediction = scored.right["classification_accuracy"], scored.prediction
    errors = [scored.score(name).value or 0 for name in ("calibration_error_uncalibrated", "calibration_error")]
    lines = [
        (f"{when} temperature, error {_percent(error)}", reliability(confidence, right))
        for when, error, confidence in zip(("before", "after"), errors, (prediction.uncalibrated, prediction.probability), strict=True)
    ]
    shown = [s for s in scored.scores if s.split == "test" and s.value is not None and not s.metric.startswith("calibration")]
    figures = {
        "comparison": plots.draw_scores([(_title(s), s.value or 0.0, s.low, s.high) for s in shown]),
        **plots.draw_curves(comparison.embedding["history"], comparison.embedding["epoch"]),
        "reliability": plots.draw_reliability(lines),
        "confusion": plots.draw_confusion(_confusion(comparison), comparison.test.classes),
    }
    if explored:
        figures["distances"] = plots.draw_distances(explored.positives, explored.negatives)
        figures["map"] = plots.draw_map(explored.points, labels[explored.mapped], comparison.test.classes)
    return figures


def _confusion(comparison: Comparison) -> np.ndarray:
    size = len(comparison.test.classes)
    confusion = np.zeros((size, size), dtype=int)
    np.add.at(confusion, (comparison.test.labels.numpy(), comparison.scored.prediction.classifier), 1)
    return confusion


def render_page(
    comparisons: Sequence[Comparison], explored: Exploration | None, drawn: Sequence[Mapping[str, Any]], *, pooled: bool = False
) -> str:
    """`report.html`: one file that needs no network. Class and file names are untrusted, so escaping is on.

    The pictures of images are the first run's: all of them would make the page large, and one run is enough to look at.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline", "templates"), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}  # Bokeh's references point backwards
    first = comparisons[0]
    names, rows = _side_by_side(comparisons, pooled=pooled)
    return environment.get_template("report.html").render(
        runs=[_view(one, figures, str(place)) for place, (one, figures) in enumerate(zip(comparisons, drawn, strict=True))],
        summary=summary(comparisons, pooled=pooled),
        names=names,
        rows=rows,
        between=[] if pooled else compare_all(comparisons)[0],
        titles=TITLES,
        title=_title,
        percent=_percent,
        points=lambda share: f"{100 * share:+.2f}".replace("-", "\u2212"),
        p_value=_p_value,
        galleries=_galleries(first, explored),
        map=_map(first, explored) if explored else None,
        legend=list(zip(first.test.classes, plots.PALETTE, strict=False)) if len(first.test.classes) <= len(plots.PALETTE) else [],
        map_count=len(explored.mapped) if explored else 0,
        map_script=Markup(plots.map_script()),  # Bokeh's own, nothing of the user's in it
    )


def _view(comparison: Comparison, figures: Mapping[str, Any], place: str) -> dict[str, Any]:
    """What the page says of one run."""
    test, prediction = comparison.images, comparison.scored.prediction
    labels, confusion = test.labels.numpy(), _confusion(comparison)
    confused = sorted(((-int(confusion[a, b]), a, b) for a, b in zip(*np.nonzero(confusion), strict=True) if a != b))
    classes = []
    for c, name in enumerate(test.classes):
        mine, count = labels == c, int(confusion[c].sum())  # predictions
        triplets = prediction.triplet_accuracy[mine]
        classes.append(
            {
                "name": name,
                "count": count // comparison.repeats,
                "classifier": confusion[c, c] / count if count else None,
                "knn": float((prediction.knn[mine] == c).mean()) if count else None,
                "triplet": float(triplets.mean()) if count and not np.isnan(triplets).any() else None,
            }
        )
    if len(classes) > WORST:  # the worst first, those without a test image last
        classes.sort(key=lambda row: (row["classifier"] is None, row["classifier"]))
    svg = {
        name: Markup(plots.inline_svg(figure, f"{name}-{place}", name.replace("-", " ")))  # matplotlib escapes its texts
        for name, figure in figures.items()
        if name not in ("map", "comparison")
    }
    return {
        "name": comparison.run,
        "findings": verdict(comparison),
        "scores": _shown(comparison.scored),
        "paired": [paired for paired in comparison.scored.comparisons if paired.split == "test"],
        "cards": [comparison.scored.score(f"{name}_accuracy") for name in ("classification", "knn", "triplet")],
        "svg": svg,
        "classes": classes,
        "worst": WORST,
        "confused": [(-count, test.classes[a], test.classes[b]) for count, a, b in confused[:12]],
        "embedding": comparison.embedding,
        "classifier": comparison.classifier,
        "notes": comparison.data.notes,
        "leaked": len(comparison.scored.leaked),
        "folds": [fold.run for fold in comparison.folds],
        "repeats": comparison.repeats,
    }


def _galleries(comparison: Comparison, explored: Exploration | None) -> dict[str, Any]:
    """Errors with their nearest training images, disagreements, and the worst triplets; of folds those of the first repeat."""
    test, prediction = comparison.images, comparison.scored.prediction
    once = len(test) // comparison.repeats
    labels, names = test.labels.numpy()[:once], test.classes
    home = [(one, row) for one in comparison.folds or (comparison,) for row in range(len(one.images))]  # where an image was tested

    def picture(split: Split, row: int) -> dict[str, Any]:
        name = names[int(split.labels[row])]
        return {"image": plots.thumbnail(split.take(slice(row, row + 1))[0]), "id": split.ids[row], "label": name}

    def neighbours(row: int) -> list[dict[str, Any]]:
        one, place = home[row]
        return [picture(one.data.train, int(near)) for near in nearest(one.test.vectors[[place]], one.gallery.vectors, count=4)[0]]

    def judged(row: int) -> dict[str, Any]:
        return {
            **picture(test, row),
            "classifier": names[prediction.classifier[row]],
            "probability": _percent(float(prediction.probability[row])),
            "knn": names[prediction.knn[row]],
        }

    wrong = np.flatnonzero(prediction.classifier[:once] != labels)
    surest = wrong[np.argsort(-prediction.probability[wrong], kind="stable")][:SHOWN]
    split = np.flatnonzero(prediction.classifier[:once] != prediction.knn[:once])
    return {
        "wrong": len(wrong),
        "errors": [{**judged(int(row)), "nearest": neighbours(int(row))} for row in surest],
        "disagree": len(split),
        "disagreements": [judged(int(row)) for row in split[:SHOWN]],
        "triplets": [
            {"images": [picture(test, int(row)) for row in three], "near": float(near), "far": float(far)}
            for three, (far, near) in (zip(explored.triplets, explored.sides, strict=True) if explored else ())
        ],
    }


def _map(comparison: Comparison, explored: Exploration) -> Any:
    test, prediction = comparison.images, comparison.scored.prediction
    shown, names = explored.mapped, test.classes
    lines = [
        (test.ids[row], f"is {names[int(test.labels[row])]}", f"classifier: {names[prediction.classifier[row]]}", f"kNN: {names[voted]}")
        for row, voted in zip(shown, prediction.knn[shown], strict=True)
    ]
    thumbnails = plots.small_thumbnails([test.take(slice(int(row), int(row) + 1))[0] for row in shown])
    return plots.hover_map(explored.points, colours=test.labels[shown].tolist(), thumbnails=thumbnails, lines=lines)
