"""Render the HTML page."""

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from pipeline.escape import printable
from pipeline.report.class_table import MANY_CLASSES, class_rows
from pipeline.report.comparison import Comparison
from pipeline.report.comparison_plots import COMPARISON_FIGURES
from pipeline.report.comparison_text import comparison_rows
from pipeline.report.comparison_verdict import comparison_findings
from pipeline.report.evaluated_run import EvaluatedRun, RunComparison
from pipeline.report.figures import MATRIX_CLASSES, count_predictions
from pipeline.report.finding import Finding
from pipeline.report.formats import (
    format_interval,
    format_p_value,
    format_percent,
    format_points,
)
from pipeline.report.galleries import build_galleries
from pipeline.report.hover_map import map_of_run, map_script
from pipeline.report.open_set import unknown_view, unseen_view
from pipeline.report.plots import PALETTE, inline_svg
from pipeline.report.shared_findings import separate_shared_findings
from pipeline.report.shown_settings import separate_shared_rows, setting_rows
from pipeline.report.summary import MAIN_METRICS, summary, verdict
from pipeline.report.suspect_gallery import build_suspect_gallery
from pipeline.report.tables import score_title, shown_scores, side_by_side
from stages.evaluation.explore import Exploration
from stages.evaluation.metric_definitions import METRICS

CONFUSED_PAIRS = 12


def render_page(
    runs: Sequence[EvaluatedRun],
    exploration: Exploration | None,
    figures: Sequence[Mapping[str, Any]],
    *,
    comparisons: Sequence[RunComparison],
    pooled: bool = False,
    comparison: Comparison | None = None,
) -> str:
    """Return the page ``report.html``: one self-contained file.

    Class and file names are untrusted, so the template escapes them. Control
    characters, and bytes of a file name that are not UTF-8, are shown as escapes. Only the first
    run's images are shown, to keep the page small.

    Args:
        runs: Evaluated runs.
        exploration: Distances and map of the first run, if there are any.
        figures: Matplotlib figures by name, for each run.
        comparisons: Paired tests between the runs.
        pooled: True if the runs repeat one experiment with different seeds.
        comparison: Result of `pipeline compare` with these runs.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
    )
    once = _Once()
    # Bokeh's objects refer to earlier ones, so their order matters.
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    views = [_run_view(run, figures[index], str(index)) for index, run in enumerate(runs)]
    shared_settings, own_settings = separate_shared_rows([setting_rows(run) for run in runs])
    shared_findings, own_findings = separate_shared_findings(
        [run.run for run in runs], [_findings(run) for run in runs]
    )
    for view, rows, findings in zip(views, own_settings, own_findings, strict=True):
        view |= {"settings": rows, "findings": findings}
    names, score_rows = side_by_side(runs, pooled=pooled)
    first = runs[0]
    colours = list(zip(first.test.classes, PALETTE, strict=False))
    return environment.get_template("report.html").render(
        runs=views,
        summary=comparison_findings(comparison) if comparison else summary(runs, pooled=pooled),
        compared=comparison and _comparison_view(comparison, figures[0]),
        names=names,
        rows=score_rows,
        shared_findings=shared_findings,
        shared_settings=shared_settings,
        comparisons=comparisons,
        is_new=once.is_new,
        once=once.show,
        metrics=METRICS,
        main_metrics=MAIN_METRICS,
        title=score_title,
        percent=format_percent,
        interval=format_interval,
        points=format_points,
        p_value=format_p_value,
        galleries=build_galleries(first, exploration),
        suspects=build_suspect_gallery(first),
        map=map_of_run(first, exploration) if exploration else None,
        legend=colours if len(first.test.classes) <= len(PALETTE) else [],
        map_count=len(exploration.mapped) if exploration else 0,
        map_script=Markup(map_script()),  # Bokeh's code: no user input in it
    )


class _Once:
    """Explanations that the page shows for the first run only, unless they differ."""

    def __init__(self) -> None:
        self.shown: set[str] = set()

    def is_new(self, text: str) -> bool:
        """Return True the first time that a text is passed."""
        is_new = text not in self.shown
        self.shown.add(text)
        return is_new

    def show(self, text: str) -> str:
        """Return the text the first time that it is passed, else nothing."""
        return text if self.is_new(text) else ""


def _findings(run: EvaluatedRun) -> list[Finding]:
    """Return the findings about one run, with the network that ``auto`` stands for."""
    findings = verdict(run)
    choice = run.embedding.get("network_choice")
    notes = [Finding("note", f"Network chosen by auto: {choice}.")] if choice else []
    return [*findings[:1], *notes, *findings[1:]]


def _printable(value: Any) -> Any:
    """Escape control characters in a text that the template prints."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _comparison_view(comparison: Comparison, figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return the template's variables for the section of a comparison."""
    return {
        "nouns": comparison.nouns,
        "folds": comparison.folds,
        "pairs": comparison.pairs,
        "rows": [row | {"name": _breakable(row["name"])} for row in comparison_rows(comparison)],
        "failed": comparison.failed,
        "svg": [
            Markup(inline_svg(figures[name], name, name.replace("-", " ")))
            for name in COMPARISON_FIGURES
            if name in figures
        ],
    }


def _breakable(name: str) -> Markup:
    """Return a name such as ``timm:resnet18`` that can be broken after the colon."""
    return Markup(":<wbr>").join(printable(name).split(":"))


def _run_view(run: EvaluatedRun, figures: Mapping[str, Any], suffix: str) -> dict[str, Any]:
    """Return the template's variables for one run. The suffix keeps the figures' names unique."""
    svg = {
        name: Markup(inline_svg(figure, f"{name}-{suffix}", name.replace("-", " ")))
        for name, figure in figures.items()  # matplotlib escapes their texts
        if name not in ("map", "comparison", *COMPARISON_FIGURES)
    }
    evaluation = run.evaluation
    return {
        "name": run.run,
        "tested": len(run.test) > 0,
        "scores": shown_scores(evaluation),
        "paired_tests": [paired for paired in evaluation.paired_tests if paired.split == "test"],
        "cards": [evaluation.score(metric) for metric in MAIN_METRICS],
        "svg": svg,
        "classes": class_rows(run),
        "many_classes": MANY_CLASSES,
        "class_count": len(run.images.classes),
        "matrix_classes": MATRIX_CLASSES,
        "confused": _confused_pairs(run),
        "embedding": run.embedding,
        "classifier": run.classifier,
        "calibrated": run.calibrated,
        "unseen": unseen_view(run),
        "unknown": unknown_view(run),
        "folds": [fold.run for fold in run.folds],
        "repeats": run.repeats,
    }


def _confused_pairs(run: EvaluatedRun) -> list[tuple[int, str, str]]:
    """Return count, true class and predicted class of the most frequent errors."""
    classes = run.test.classes
    true, predicted, counts = (values.tolist() for values in count_predictions(run))
    errors = [
        (count, classes[row], classes[column])
        for row, column, count in zip(true, predicted, counts, strict=True)
        if row != column
    ]
    return sorted(errors, key=lambda error: -error[0])[:CONFUSED_PAIRS]
