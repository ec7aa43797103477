# Everything runs in a virtual environment of its own; PYTHON picks the interpreter it is made with.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo fuzz test

demo: $(VENV)/installed
	rm -rf runs/demo
	$(BIN)/python train.py --config=configs/projection_only.py:demo --workdir=runs/demo

test: $(VENV)/installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

# Damaged files of every kind: FUZZ="--seed=7 --count=100 --target=trials" repeats or narrows a run.
fuzz: $(VENV)/installed-test
	$(BIN)/python tests/fuzz/fuzz.py $(FUZZ)

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@
