PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test test-slow test-all test-hostile check docs bench clean

# Install, then train both stages and write the report on the bundled digits.
run: .venv/installed
	$(BIN)/pipeline run

# Install, then run the fast tests; test-all also runs the slow ones.
test: .venv/installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-slow: .venv/installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m slow

test-all: test test-slow

# Thousands of random damages to files, kills and simultaneous runs; `make test` tries a few.
test-hostile: .venv/installed-test
	HOSTILE=full $(BIN)/python -m pytest tests/hostile

# Lint, docstrings, types, import layers, file and function length.
check: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_import_layers.py tests/test_code_size.py

# Build the documentation site in docs/_build/html; warnings are errors.
docs: .venv/installed-docs
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

# Compare with the peers. Some programs also need Debian packages; see their help.
bench: .venv/installed-bench
	for file in $(filter-out %/defaults.py %/characters.py %/open_set.py %/data_sources.py %/coverage.py %/photos.py %/photo_sets.py %/imbalance.py %/reduced_photos.py %/gpu.py,$(wildcard benchmarks/*.py)); do $(BIN)/python $$file || exit 1; done

clean:
	rm -rf .venv build docs/_build *.egg-info

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: setup.cfg pyproject.toml | .venv/bin/python
	$(BIN)/pip install --quiet --editable .
	touch $@

.venv/installed-%: .venv/installed
	$(BIN)/pip install --quiet --editable ".[$*]"
	touch $@
