"""Render the HTML page."""

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from pipeline.report.evaluated_run import EvaluatedRun, compare_runs_pairwise
from pipeline.report.figures import confusion_matrix
from pipeline.report.hover_map import hover_map, map_script
from pipeline.report.plots import PALETTE, inline_svg
from pipeline.report.summary import format_p_value, format_percent, summary, verdict
from pipeline.report.tables import score_title, shown_scores, side_by_side
from pipeline.report.thumbnails import small_thumbnails, thumbnail
from stages.evaluation.explore import Exploration
from stages.evaluation.knn import nearest_rows
from stages.evaluation.metrics import METRICS
from stages.records import Split

SHOWN = 24  # images in a gallery


WORST = 30  # classes in the table before the fold


def render_page(
    comparisons: Sequence[EvaluatedRun],
    explored: Exploration | None,
    drawn: Sequence[Mapping[str, Any]],
    *,
    pooled: bool = False,
) -> str:
    """`report.html`: one file that needs no network. Class and file names are untrusted, so escaping is on.

    The pictures of images are the first run's: all of them would make the page large, and one run is enough to look at.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {
        "sort_keys": False
    }  # Bokeh's references point backwards
    first = comparisons[0]
    names, rows = side_by_side(comparisons, pooled=pooled)
    return environment.get_template("report.html").render(
        runs=[
            _view(one, figures, str(place))
            for place, (one, figures) in enumerate(zip(comparisons, drawn, strict=True))
        ],
        summary=summary(comparisons, pooled=pooled),
        names=names,
        rows=rows,
        between=[] if pooled else compare_runs_pairwise(comparisons)[0],
        titles={name: metric.title for name, metric in METRICS.items()},
        title=score_title,
        percent=format_percent,
        points=lambda share: f"{100 * share:+.2f}".replace("-", "\u2212"),
        p_value=format_p_value,
        galleries=_galleries(first, explored),
        map=_map(first, explored) if explored else None,
        legend=list(zip(first.test.classes, PALETTE, strict=False))
        if len(first.test.classes) <= len(PALETTE)
        else [],
        map_count=len(explored.mapped) if explored else 0,
        map_script=Markup(map_script()),  # Bokeh's own, nothing of the user's in it
    )


def _view(comparison: EvaluatedRun, figures: Mapping[str, Any], place: str) -> dict[str, Any]:
    """What the page says of one run."""
    test, prediction = comparison.images, comparison.evaluation.prediction
    labels, confusion = test.labels.numpy(), confusion_matrix(comparison)
    confused = sorted(
        (
            (-int(confusion[a, b]), a, b)
            for a, b in zip(*np.nonzero(confusion), strict=True)
            if a != b
        )
    )
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
                "triplet": float(triplets.mean())
                if count and not np.isnan(triplets).any()
                else None,
            }
        )
    if len(classes) > WORST:  # the worst first, those without a test image last
        classes.sort(key=lambda row: (row["classifier"] is None, row["classifier"]))
    svg = {
        name: Markup(
            inline_svg(figure, f"{name}-{place}", name.replace("-", " "))
        )  # matplotlib escapes its texts
        for name, figure in figures.items()
        if name not in ("map", "comparison")
    }
    return {
        "name": comparison.run,
        "findings": verdict(comparison),
        "scores": shown_scores(comparison.evaluation),
        "paired": [
            paired for paired in comparison.evaluation.paired_tests if paired.split == "test"
        ],
        "cards": [
            comparison.evaluation.score(f"{name}_accuracy")
            for name in ("classification", "knn", "triplet")
        ],
        "svg": svg,
        "classes": classes,
        "worst": WORST,
        "confused": [(-count, test.classes[a], test.classes[b]) for count, a, b in confused[:12]],
        "embedding": comparison.embedding,
        "classifier": comparison.classifier,
        "notes": comparison.data.notes,
        "leaked": len(comparison.evaluation.leaked),
        "folds": [fold.run for fold in comparison.folds],
        "repeats": comparison.repeats,
    }


def _galleries(comparison: EvaluatedRun, explored: Exploration | None) -> dict[str, Any]:
    """Errors with their nearest training images, disagreements, and the worst triplets; of folds those of the first repeat."""
    test, prediction = comparison.images, comparison.evaluation.prediction
    once = len(test) // comparison.repeats
    labels, names = test.labels.numpy()[:once], test.classes
    home = [
        (one, row) for one in comparison.folds or (comparison,) for row in range(len(one.images))
    ]  # where an image was tested

    def picture(split: Split, row: int) -> dict[str, Any]:
        name = names[int(split.labels[row])]
        return {
            "image": thumbnail(split.take(slice(row, row + 1))[0]),
            "id": split.ids[row],
            "label": name,
        }

    def neighbours(row: int) -> list[dict[str, Any]]:
        one, place = home[row]
        return [
            picture(one.data.train, int(near))
            for near in nearest_rows(one.test.vectors[[place]], one.gallery.vectors, count=4)[0]
        ]

    def judged(row: int) -> dict[str, Any]:
        return {
            **picture(test, row),
            "classifier": names[prediction.classifier[row]],
            "probability": format_percent(float(prediction.probability[row])),
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
            {
                "images": [picture(test, int(row)) for row in three],
                "near": float(near),
                "far": float(far),
            }
            for three, (far, near) in (
                zip(explored.triplets, explored.sides, strict=True) if explored else ()
            )
        ],
    }


def _map(comparison: EvaluatedRun, explored: Exploration) -> Any:
    test, prediction = comparison.images, comparison.evaluation.prediction
    shown, names = explored.mapped, test.classes
    lines = [
        (
            test.ids[row],
            f"is {names[int(test.labels[row])]}",
            f"classifier: {names[prediction.classifier[row]]}",
            f"kNN: {names[voted]}",
        )
        for row, voted in zip(shown, prediction.knn[shown], strict=True)
    ]
    thumbnails = small_thumbnails([test.take(slice(int(row), int(row) + 1))[0] for row in shown])
    return hover_map(
        explored.points, colours=test.labels[shown].tolist(), thumbnails=thumbnails, lines=lines
    )
