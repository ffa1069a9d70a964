"""Findings about enrolled images."""

from pipeline.enrolments import describe_enrolments
from pipeline.numbers import count_of
from pipeline.report.evaluated_run import EvaluatedRun
from pipeline.report.finding import Finding
from pipeline.report.formats import format_interval, format_percent
from stages.evaluation.results import ENROLLED


def enrolled_findings(run: EvaluatedRun) -> list[Finding]:
    """Return what was enrolled, and how well the test images of these classes are classified."""
    if not run.enrolled:
        return []
    text = f"Enrolled after training: {'; '.join(describe_enrolments(run.classifier))}."
    evaluation = run.evaluation
    if evaluation.enrolled is not None:
        accuracy = evaluation.score("classification_accuracy", ENROLLED)
        knn = evaluation.score("knn_accuracy", ENROLLED)
        text += (
            f" On {count_of(accuracy.count, 'test image')} of enrolled classes, "
            f"classification accuracy is {format_percent(accuracy.value)} "
            f"(95% CI {format_interval(accuracy)}) and kNN accuracy {format_percent(knn.value)} "
            f"({format_interval(knn)})."
        )
    findings = [Finding("note", text)]
    if count := evaluation.enrolled_copies:
        verb = "is a copy of an enrolled image" if count == 1 else "are copies of enrolled images"
        effect = (
            "so the scores of enrolled classes are too optimistic, and those of unknown images too "
            "low where the class names differ"
        )
        images = count_of(count, "test image")
        text = f"{images} of classes that were not trained on {verb}, {effect}."
        findings.append(Finding("warning", text))
    return findings
