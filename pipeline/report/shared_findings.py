"""Findings that several runs have in common, so that each is shown once."""

from collections.abc import Sequence

from pipeline.report.finding import Finding
from pipeline.report.formats import listed


def separate_shared_findings(
    names: Sequence[str], findings_of_runs: Sequence[Sequence[Finding]]
) -> tuple[list[Finding], list[list[Finding]]]:
    """Merge findings that make the same statement about two or more runs.

    Args:
        names: Names of the runs.
        findings_of_runs: Findings of each run.

    Returns:
        The merged findings, which name their runs unless all have them, and each run's others.
    """
    groups: dict[tuple[str, str], list[tuple[str, Finding]]] = {}
    for name, findings in zip(names, findings_of_runs, strict=True):
        for finding in findings:
            key = (finding.kind, finding.statement or finding.text)
            groups.setdefault(key, []).append((name, finding))
    repeated = {key: group for key, group in groups.items() if len(group) > 1}
    shared = [_merge(group, len(names)) for group in repeated.values()]
    shared.sort(key=lambda finding: finding.kind == "warning")  # after the notes
    own = [
        [item for item in findings if (item.kind, item.statement or item.text) not in repeated]
        for findings in findings_of_runs
    ]
    return shared, own


def _merge(group: Sequence[tuple[str, Finding]], runs: int) -> Finding:
    names = [name for name, _ in group]
    kind, text, statement, _ = group[0][1]
    if len({finding.text for _, finding in group}) > 1:
        values = [f"{name} ({finding.values})" for name, finding in group]
        return Finding(kind, f"{statement}: {listed(values)}.")
    return Finding(kind, text if len(group) == runs else f"{listed(names)}: {text}")
