# Two commands do everything: `make demo` (the journey) and `make test` (what CI runs).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint docs install clean

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

docs: install
	$(BIN)/mkdocs build --strict

test: lint
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

clean:
	rm -rf $(VENV) demo dist build
