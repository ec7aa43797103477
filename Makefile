# Everything runs in a virtual environment of its own; PYTHON picks the interpreter it is made with.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PYTEST = $(BIN)/python -m pytest -n auto --dist worksteal

.PHONY: demo lint check test coverage docs fuzz page

# Train a Matryoshka projection on a small backbone with synthetic voices, and evaluate it: results in runs/demo.
demo: $(VENV)/installed
	rm -rf runs/demo
	$(BIN)/python train.py --config=configs/projection_only.py:demo --workdir=runs/demo

lint: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/basedpyright

# What to run before a commit. Compiled programs stay in .cache for the next time.
check: export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax
check: lint
	$(PYTEST) -m "not slow"

test: $(VENV)/installed-dev
	$(PYTEST)

# All tests with the lines they miss.
coverage: $(VENV)/installed-dev
	$(PYTEST) --cov --cov-report=term-missing:skip-covered

docs: $(VENV)/installed-dev
	$(BIN)/mkdocs build --strict --quiet

# The page that compares two recordings in a browser, in examples/browser/dist; it needs Node.js.
page: $(VENV)/installed-dev
	cd examples/browser && npm install && PYTHON=$(abspath $(BIN)/python) npm run build

# Read damaged files of every kind: FUZZ="--seed=7 --count=100 --target=trials" repeats or narrows a run.
fuzz: $(VENV)/installed-dev
	$(BIN)/python tests/fuzz/fuzz.py $(FUZZ)

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[train]'
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@
