PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test test-slow test-all check bench clean

# Sets up, then the main job: both stages and the report, on the bundled digits.
run: .venv/installed
	$(BIN)/pipeline run

# Sets up, then the tests; test-all adds the slow ones.
test: .venv/installed-test
	$(BIN)/python -m pytest -m "not slow"

test-slow: .venv/installed-test
	$(BIN)/python -m pytest -m slow

test-all: test test-slow

# Style and types.
check: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Our figures beside the peers'; two more studies need Debian's packages and say so.
bench: .venv/installed-bench
	for file in $(filter-out %/defaults.py %/characters.py,$(wildcard benchmarks/*.py)); do $(BIN)/python $$file || exit 1; done

clean:
	rm -rf .venv build *.egg-info

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: setup.cfg pyproject.toml | .venv/bin/python
	$(BIN)/pip install --quiet --editable .
	touch $@

.venv/installed-%: .venv/installed
	$(BIN)/pip install --quiet --editable ".[$*]"
	touch $@
