# make demo   installs into .venv and runs the main job on the built-in data
# make test   installs into .venv and runs every test

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint clean

demo: .venv
	$(BIN)/ciod demo out=demo

test: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# torch and torchvision first and together, so that pip picks a pair that fits.
.venv: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch torchvision
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch .venv

.venv/dev: .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch .venv/dev

clean:
	rm -rf .venv demo runs
