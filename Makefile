# `make demo` is the journey, `make install` what users need, `make test` what a change needs.
# CI runs `make test` with the cases of `make test-thorough` in the same run of pytest, and `make audit`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder
# Secrets are found by their form and by names that hold them; random-looking strings are hashes here.
NO_GUESSES := --no-verify --disable-plugin Base64HighEntropyString --disable-plugin HexHighEntropyString

.PHONY: demo test test-thorough lint audit docs install clean

# Three sizes of one environment: the package alone, what its users need, and all that its tests need.
install: $(VENV)/.installed

# torch first and exactly as pinned, so that nothing else chooses a larger build
$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) pip
	$(PIP) torch torchvision
	touch $@

$(VENV)/.alone: $(VENV)/.torch pyproject.toml
	$(PIP) --editable .
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	$(PIP) --editable '.[all]'
	touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(PIP) --editable '.[dev]'
	touch $@

# Two processes of one thread are faster than one of two; glibc must not hand memory back at every step.
demo: $(VENV)/.alone
	MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_MMAP_THRESHOLD_=100000000000 OMP_NUM_THREADS=1 \
	$(BIN)/torchrun --nproc-per-node 2 -m -- collectionlora demo --out demo

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	git ls-files -z | xargs -0 $(BIN)/detect-secrets-hook $(NO_GUESSES)

# Known vulnerabilities of the pinned versions; skipped by name where the advisory database is out of reach.
audit: $(VENV)/.dev
	$(BIN)/python scripts/audit.py

docs: $(VENV)/.dev
	$(BIN)/mkdocs build --strict

test: lint
	$(PYTEST)

test-thorough: $(VENV)/.dev
	$(PYTEST) -m 'thorough and not slow'

clean:
	rm -rf $(VENV) demo dist build
