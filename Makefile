# make run   the main job on the embedded corpus, in a virtual environment of its own
# make test  the linter, the type checker and all tests, in the same environment
# make fast  the same without the slow tests: under a minute
PYTHON ?= python3
VENV ?= .venv
INSTALL = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: run test fast lint clean
run: $(VENV)/.run
	$(VENV)/bin/python -m pipeline

test: lint
	$(VENV)/bin/python -m pytest

fast: lint
	$(VENV)/bin/python -m pytest -m "not slow" --hypothesis-profile=fast

lint: $(VENV)/.test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

$(VENV)/.run: pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) -e '.[fast]'
	touch $@

$(VENV)/.test: $(VENV)/.run
	$(INSTALL) -e '.[fast,huggingface,dev]'
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
