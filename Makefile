# Two commands do everything: `make demo` (the journey) and `make test`. CI also runs `make test-thorough` and `make audit`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder
# Secrets are found by their form and by names that hold them; random-looking strings are hashes here.
NO_GUESSES := --no-verify --disable-plugin Base64HighEntropyString --disable-plugin HexHighEntropyString

.PHONY: demo test test-thorough lint audit docs install clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt pip
	# torch first and exactly as pinned, so that nothing else chooses a larger build
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch torchvision
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# Two processes of one thread are faster than one of two; glibc must not hand memory back at every step.
demo: install
	MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_MMAP_THRESHOLD_=100000000000 OMP_NUM_THREADS=1 \
	$(BIN)/torchrun --nproc-per-node 2 -m -- collectionlora demo --out demo

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	git ls-files -z | xargs -0 $(BIN)/detect-secrets-hook $(NO_GUESSES)

# Known vulnerabilities of the pinned versions; skipped by name where the advisory database is out of reach.
audit: install
	$(BIN)/python scripts/audit.py

docs: install
	$(BIN)/mkdocs build --strict

test: lint
	$(PYTEST)

test-thorough: install
	$(PYTEST) -m thorough

clean:
	rm -rf $(VENV) demo dist build
