# make run      run the main job on the built-in corpus, in a virtual environment of its own
# make test     run the linter, the type checker and all tests, in the same environment
# make fast     the same without the slow tests: under a minute
# make lowest   run the fast tests of what other packages do for us with the lowest releases that pyproject.toml declares
# make docs     build the documentation site into build/site; a warning or a broken link is an error
# make release  build the source archive and the wheel, check both, and run what the wheel installs
PYTHON ?= python3
VENV ?= .venv
LOWEST ?= .venv-lowest
PIP = -m pip install --quiet --disable-pip-version-check
INSTALL = $(VENV)/bin/python $(PIP) -c constraints.txt
# Several processes take the tests by turns; `make test JOBS=0` runs them in one.
JOBS ?= auto
PYTEST = -m pytest --numprocesses $(JOBS) --maxprocesses 4 --dist worksteal
FAST = -m "not slow" --hypothesis-profile=fast
# `make lowest` leaves these out: the arithmetic of orders, ranks and mixtures, what becomes of files and folders, and
# rules of the project. They call other packages as the tests that stay do.
LEFT_OUT = bad_data division docs executor folder imports layout locate lookahead mix mix_stages mix_states order \
	parts plan project prove restart resume row_groups scoring selection show shuffled signals simulate small_files \
	streaming summary trust verify virtual_windows

SITE = -m sphinx -c docs -b html -W --keep-going -q -d build/doctrees .

.PHONY: run test tests fast lowest docs release lint style types clean
run: $(VENV)/.run
	$(VENV)/bin/python -m pipeline

test: style
	$(MAKE) -j 2 types tests

tests: $(VENV)/.test
	$(VENV)/bin/python $(PYTEST)

fast: lint
	$(VENV)/bin/python $(PYTEST) $(FAST)

lowest: $(LOWEST)/.test
	$(LOWEST)/bin/python $(PYTEST) $(FAST) $(LEFT_OUT:%=--ignore=tests/test_%.py) -p no:cacheprovider

docs: $(VENV)/.test
	$(VENV)/bin/python $(SITE) build/site
	@echo the site is in build/site/index.html

release: $(VENV)/.test
	rm -rf dist build/release
	$(INSTALL) twine
	$(VENV)/bin/python -m build
	$(VENV)/bin/python -m twine check --strict dist/*
	$(PYTHON) -m venv build/release
	build/release/bin/python $(PIP) -c constraints.txt "$$(echo dist/*.whl)[fast]"
	mkdir build/release/empty
	cd build/release/empty && ../bin/stridemill --version && ../bin/stridemill

lint: style types

style: $(VENV)/.test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/.test
	$(VENV)/bin/mypy

$(VENV)/.run: pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) -e '.[fast]'
	touch $@

# Python's own pip may take three times as long as a new one to choose releases of 200 packages.
$(VENV)/.test: pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python $(PIP) --upgrade pip
	$(INSTALL) -e '.[fast,huggingface,remote,dev]'
	touch $(VENV)/.run $@

$(LOWEST)/.test: pyproject.toml constraints-lowest.txt
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python $(PIP) --upgrade pip
	$(LOWEST)/bin/python $(PIP) -c constraints-lowest.txt -e '.[fast,huggingface,remote,parallel,test]'
	touch $@

clean:
	rm -rf $(VENV) $(LOWEST) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
