# `make quickstart` and `make test` are all that a fresh clone needs: Python 3.11 or 3.12, git and make.
# Every target first makes .venv, and brings it up to date when pyproject.toml or a lock file has changed.

PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3,$(shell $(p) -c \
	'import ensurepip, sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null && echo $(p))))
PIP := .venv/bin/python -m pip --disable-pip-version-check install --quiet
TORCH := $(shell grep '^torch==' requirements/cpu.lock)

# A .venv is made for cpu, or for gpu with `make install GPU=1`, and stays so; the empty file .venv/.ready-cpu says which.
READY := $(or $(if $(filter 1,$(GPU)),.venv/.ready-gpu),$(wildcard .venv/.ready-*),.venv/.ready-cpu)

.PHONY: help install quickstart test test-all test-gpu core newest lint format clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s%s\n", $$1, $$2}' Makefile

install:  ## make or mend .venv: verl, Ray and vLLM for CPU, from requirements/*.lock (GPU=1: for NVIDIA GPUs)
	@rm -f $(READY) && $(MAKE) --no-print-directory $(READY)

quickstart: $(READY)  ## the whole path on the bundled model, then a page to open
	.venv/bin/segrl quickstart

test: $(READY)  ## the core tests, then verl's trainers end to end
	.venv/bin/pytest -m "not slow and not gpu"

test-all: $(READY)  ## also the tests that take long
	.venv/bin/pytest -m "not gpu"

test-gpu: $(READY)  ## the tests that need a GPU
	.venv/bin/pytest -m gpu

core: $(READY)  ## the core tests alone
	.venv/bin/pytest -m "not slow and not gpu and not e2e"

newest:  ## the core tests on the newest releases pip finds of all but torch, without verl, in .venv-newest
	$(PYTHON) -m venv --clear .venv-newest
	.venv-newest/bin/python -m pip install --quiet $(TORCH)
	.venv-newest/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager '.[dev]' peft $(TORCH)
	.venv-newest/bin/python -m pytest -m "not slow and not gpu and not e2e"

lint: $(READY)  ## ruff and mypy
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

format: $(READY)  ## what ruff can repair by itself
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

clean:  ## remove .venv and the caches
	rm -rf .venv .venv-newest .pytest_cache .ruff_cache .mypy_cache .hypothesis

.venv/.ready-cpu: pyproject.toml requirements/cpu.lock requirements/dev.lock
	$(call make_venv,2 to 4 minutes and 3.5 GB of disk)
	$(PIP) --no-deps $(TORCH) || $(PIP) --no-deps $(TORCH) --index-url https://download.pytorch.org/whl/cpu
	$(PIP) --no-deps -r requirements/cpu.lock -r requirements/dev.lock
	$(PIP) --no-deps --editable .
	@rm -f .venv/.half-made && touch $@

.venv/.ready-gpu: pyproject.toml
	$(call make_venv,10 minutes and 12 GB of disk)
	$(PIP) --editable '.[gpu,dev]'
	@rm -f .venv/.half-made && touch $@

# A .venv whose making was interrupted is made again; any other is kept and only added to.
define make_venv
@test -n "$(PYTHON)" || { echo "segrl's .venv takes Python 3.11 or 3.12 with the venv module; found neither among \
python3.11, python3.12 and python3. Name one: make PYTHON=/path/to/python3.11" >&2; exit 2; }
@if [ -e .venv/.ready-cpu ] && [ $@ = .venv/.ready-gpu ]; then \
	echo "This .venv holds the CPU stack, whose vllm and torch clash with the GPU's: run 'make clean' first." >&2; exit 2; fi
@if [ -e .venv/.half-made ]; then rm -rf .venv; fi
@if [ -d .venv ]; then echo "Bringing .venv up to date."; else \
	echo "Making .venv with $(PYTHON): about $(1), once."; \
	mkdir .venv && touch .venv/.half-made && $(PYTHON) -m venv .venv; fi
endef
