# Every target does its own set-up: a virtual environment in .venv with exactly what requirements.lock names.
# ARGS goes to the command behind a target:  make test ARGS="-m 'not real'"

PYTHON ?= python3
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint lab notebooks bench organism reproduce contest clean

PY := .venv/bin/python
# -q -q keeps errors and drops warnings: pip prints one for every package and package folder that it did not need.
PIP := $(PY) -m pip -q -q --disable-pip-version-check
# The stamp's name holds the lock's hash: another lock is another stamp, so set-up runs again.
LOCK_HASH := $(shell $(PYTHON) -c "import hashlib; print(hashlib.sha256(open('requirements.lock', 'rb').read()).hexdigest()[:16])")
STAMP := .venv/.setup-$(LOCK_HASH)
# Training allocates and frees large buffers at every step; kept by malloc and not mapped anew (each page a fault), it
# ran 1.5 times as fast on two cores. Only glibc reads these.
MALLOC := MALLOC_ARENA_MAX=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=268435456
# Debian's, where it may be installed; without one, tests in a browser are skipped with a word, and fail where CI is set.
CHROMIUM := { [ "$$(id -u)" = 0 ] && apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends chromium fonts-liberation; } >/dev/null 2>&1 || true
AS_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'

setup: $(STAMP)  ## install the locked packages into .venv (about 3 minutes, once)

demo: $(STAMP)  ## the whole loop on SmolLM2-135M: rank, edit, retrain, prove; writes runs/demo/report.html
	@$(MALLOC) $(PY) -m benchmarks.demo $(ARGS)

test: $(STAMP)  ## all tests, the examples in the docstrings and the notebooks
	@command -v chromium >/dev/null || $(CHROMIUM)
	@$(PY) -m pytest $(ARGS)

lint: $(STAMP)  ## ruff and mypy
	@$(PY) -m ruff check .
	@$(PY) -m mypy

lab: $(STAMP)  ## JupyterLab in notebooks/
	@$(PY) -m jupyterlab $(AS_ROOT) --notebook-dir=notebooks $(ARGS)

MODEL ?= tiny
notebooks: $(STAMP)  ## run the notebooks on MODEL (tiny or smollm2) and write them as HTML to runs/notebooks
	@$(MALLOC) $(PY) -m benchmarks.notebooks --model $(MODEL) $(ARGS)

bench: $(STAMP)  ## time the engine against the usual way, side by side; writes benchmarks/bench.json
	@$(MALLOC) $(PY) -m benchmarks.bench $(ARGS)

organism: $(STAMP)  ## rebuild the model organism in data/ from its recipe
	@$(MALLOC) $(PY) -m benchmarks.organism $(ARGS)

reproduce: $(STAMP)  ## every arm and control over all seeds (hours; continues where it stopped)
	@$(MALLOC) $(PY) -m benchmarks.reproduce $(ARGS)

contest: $(STAMP)  ## rank by every tracer and retrain without what each finds (many hours; continues where it stopped)
	@$(PY) -m benchmarks.contest --rank $(ARGS)  # LESS on SmolLM2 takes 5 GB, and all there is with those settings
	@$(MALLOC) $(PY) -m benchmarks.contest $(ARGS)

clean:  ## remove .venv and the tools' caches; keeps runs/ and the downloaded wheels
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
	find probekit tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

$(STAMP):
	@$(PYTHON) -c "import sys; sys.version_info >= (3, 11) or sys.exit('probekit needs Python 3.11 or newer and $(PYTHON) is ' + sys.version.split()[0] + ': name another one with make PYTHON=python3.11')"
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv .venv
	@echo "setup: installing the $$(grep -c == requirements.lock) packages of requirements.lock into .venv (about 3 minutes, once)"
	@rm -f .venv/.setup-*
	@$(PIP) install --only-binary :all: -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@
	@echo "setup: done"
