"""Findings that several runs have in common."""

from pipeline.report.finding import Finding
from pipeline.report.shared_findings import separate_shared_findings

WORSE = "No significant improvement over kNN on raw pixels"


def worse(values: str) -> Finding:
    return Finding("warning", f"{WORSE} ({values}).", WORSE, values)


def test_a_finding_of_all_runs_is_shown_once_without_names():
    note, own = Finding("note", "No image can be rejected."), Finding("answer", "93%.")
    shared, others = separate_shared_findings("ab", [[own, note], [note]])
    assert shared == [note] and others == [[own], []]


def test_a_finding_of_some_runs_names_them():
    note = Finding("note", "No image can be rejected.")
    shared, others = separate_shared_findings("abc", [[note], [], [note]])
    assert shared == [Finding("note", "a and c: No image can be rejected.")]
    assert others == [[], [], []]


def test_the_same_statement_with_other_values_is_merged_after_the_notes():
    note = Finding("note", "No image can be rejected.")
    findings = [[worse("40%, p = 0.2"), note], [worse("41%, p = 0.3"), note], [note]]
    shared, others = separate_shared_findings("abc", findings)
    text = f"{WORSE}: a (40%, p = 0.2) and b (41%, p = 0.3)."
    assert shared == [note, Finding("warning", text)] and others == [[], [], []]


def test_the_same_statement_with_the_same_values_is_not_listed_twice():
    shared, _ = separate_shared_findings("abc", [[worse("40%")], [worse("40%")], []])
    assert shared == [Finding("warning", f"a and b: {WORSE} (40%).")]


def test_a_single_run_keeps_its_findings_in_their_order():
    findings = [Finding("answer", "93%."), worse("40%"), Finding("note", "No image.")]
    assert separate_shared_findings("a", [findings]) == ([], [findings])


def test_an_answer_and_a_warning_with_the_same_text_are_different():
    findings = [[Finding("answer", "x")], [Finding("warning", "x")]]
    assert separate_shared_findings("ab", findings) == ([], findings)
