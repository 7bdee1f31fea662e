# Two commands do everything: `make demo` and `make test`. Both make the virtual environment first.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
# The suite runs two processes side by side; threads within each would only get in each other's way.
TEST_ENV := OMP_NUM_THREADS=1 MPLBACKEND=Agg DWAVE_CACHE_ENABLED=false

# Scripts for networks of other packages; one says so and ends where its package is missing.
examples: install
	for script in examples/*.py; do echo "== $$script"; $(TEST_ENV) $(RUN) $$script || exit 1; done

.PHONY: examples install demo docs wheel test stress lint types check clean

install: $(VENV)/.compiled

# Python compiles what is imported when it is imported, in as many processes as there are; pip would compile all of it in one.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --no-compile --constraint constraints.txt "torch==2.13.0"
	$(RUN) -m pip install --quiet --no-compile --constraint constraints.txt --editable ".[dev]"
	touch $@

# The solvers' inner loops, once; checks that run none of them need not wait for it.
$(VENV)/.compiled: $(VENV)/.installed
	$(RUN) -m qubo_compress.warm_up
	touch $@

# One thread: on a loaded machine two wait for each other, and this small network gains nothing.
demo: install
	@echo "importing torch ..."
	OMP_NUM_THREADS=1 $(RUN) -m benchmarks.demo

# What a stranger installs: the wheel, in a fresh environment with only what it requires.
wheel: $(VENV)/.installed
	$(RUN) -m tests.wheel

# The site, with the notebooks' outputs, in out/site; then a browser follows every link, if there is a Chromium in /usr/bin.
docs: install
	$(TEST_ENV) NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --quiet --strict
	$(TEST_ENV) $(RUN) -m pytest tests/site -o addopts="-q --import-mode=importlib"

test: install
	$(TEST_ENV) $(RUN) -m pytest

# The suite in four processes beside four busy loops, which takes half an hour or more: what passes must pass on a loaded machine. Not in CI.
stress: install
	$(TEST_ENV) $(RUN) -m tests.stress

lint: $(VENV)/.installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(VENV)/bin/lint-imports --no-cache
	$(VENV)/bin/codespell
	$(VENV)/bin/towncrier build --draft --version next > /dev/null

types: $(VENV)/.installed
	$(RUN) -m mypy

check: lint types test

clean:
	rm -rf $(VENV) out .mypy_cache .ruff_cache .pytest_cache .hypothesis
