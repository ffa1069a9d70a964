"""Run the table of hostile cases: each ends in one clear error, or is tolerated as described."""

import os
import shutil
import sys
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from hostile.case import Case, Outcome, error, problems, works
from hostile.cases import (
    checkpoints,
    enrolment,
    environments,
    images,
    manifests,
    options,
    outputs,
    records,
    search,
    settings_files,
    sources,
    states,
    vectors,
)
from hostile.workspace import changes, prepare_case, run_here, run_shell, snapshot, write_workspace

TABLE: list[Case] = [
    *options.CASES,
    *settings_files.CASES,
    *sources.CASES,
    *images.CASES,
    *manifests.CASES,
    *checkpoints.CASES,
    *enrolment.CASES,
    *records.CASES,
    *states.CASES,
    *search.CASES,
    *outputs.CASES,
    *vectors.CASES,
]
SHELL_TABLE: list[Case] = [*environments.CASES, *vectors.SHELL_CASES]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="uses Linux's resource limits")


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """Return the folder that every case gets a copy of."""
    folder = tmp_path_factory.mktemp("hostile") / "template"
    write_workspace(folder)
    return folder


@pytest.fixture(scope="session")
def shell_outcomes(request, template, tmp_path_factory) -> dict[str, Future[Outcome]]:
    """Start the selected shell cases, as many at once as there are processors."""
    selected = [
        item.callspec.params.get("shell_case")
        for item in request.session.items
        if hasattr(item, "callspec")
    ]
    pool = ThreadPoolExecutor(os.cpu_count())
    outcomes = {}
    for case in filter(None, selected):
        folder = tmp_path_factory.mktemp("shell") / "case"
        outcomes[case.id] = pool.submit(run_shell, case, prepare_case(case, template, folder))
    return outcomes


def report(case: Case, outcome: Outcome) -> str:
    """Describe what is wrong with an outcome; empty if nothing is."""
    found = problems(case, outcome)
    if not found:
        return ""
    return "\n".join(
        (f"pipeline {case.command!r}", *found, outcome.out[-500:], outcome.err[-3000:])
    )


@pytest.fixture
def folder(tmp_path):
    """Return a new folder that is removed after the case: all of them would take gigabytes."""
    yield tmp_path / "case"
    shutil.rmtree(tmp_path / "case", ignore_errors=True)


@pytest.mark.parametrize("case", TABLE, ids=lambda case: case.id)
def test_case(case, template, folder):
    outcome = run_here(case, prepare_case(case, template, folder))
    message = report(case, outcome)
    assert not message, message


@pytest.mark.parametrize("shell_case", SHELL_TABLE, ids=lambda case: case.id)
def test_shell_case(shell_case, shell_outcomes):
    message = report(shell_case, shell_outcomes[shell_case.id].result())
    assert not message, message


def test_table_is_large_and_without_repetitions():
    names = Counter(case.id for case in TABLE + SHELL_TABLE)
    assert len(names) >= 320
    assert [name for name, count in names.items() if count > 1] == []


GOOD = Outcome(1, "", "note: x\nerror: --dim 0: out of range; use 1\n", frozenset())


@pytest.mark.parametrize(
    ("case", "outcome", "problem"),
    [
        (error("embed", "--dim 0"), GOOD, None),
        (error("embed", "--dim 5"), GOOD, "message without '--dim 5'"),
        (works("embed"), GOOD, "exit status 1"),
        (error("embed"), Outcome(1, "", "Traceback\nerror: a; b\n", frozenset()), "traceback"),
        (error("embed"), Outcome(1, "", "error: a; b\nmore\n", frozenset()), "text after"),
        (error("embed"), Outcome(1, "", "error: bad value\n", frozenset()), "no remedy"),
        (error("embed"), Outcome(1, "", "bad; stop\n", frozenset()), "no error message"),
        (error("embed"), Outcome(1, "", GOOD.err, frozenset({"new"})), "changed: new"),
        (works("embed", writes=("new",)), Outcome(0, "", "", frozenset()), "new not written"),
        (works("embed"), Outcome(0, "\x1b[2J", "", frozenset()), "control character"),
    ],
)
def test_wrong_outcomes_are_found(case, outcome, problem):
    found = problems(case, outcome)
    assert (not found) if problem is None else any(problem in text for text in found)


def test_changed_files_are_found(tmp_path):
    for name in ("kept", "edited", "removed"):
        (tmp_path / name).write_text("1")
    before = snapshot(tmp_path)
    (tmp_path / "edited").write_text("2")
    (tmp_path / "removed").unlink()
    (tmp_path / "cache").mkdir()
    (tmp_path / "new").mkdir()
    assert changes(before, tmp_path) == {"edited", "removed", "new"}
