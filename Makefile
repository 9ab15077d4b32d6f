# make demo   installs into .venv and runs the main job on the built-in data
# make test   installs into .venv and runs every test; an error or sentence for people that none reaches fails it
# make test-mmdet   installs MMDetection into .venv-mmdet, compiling its operators once, and runs the tests with it
# make test-label-studio   runs the example of a backend for Label Studio against its package, which pip refuses to install
# make coverage   runs every test and writes which lines and branches none reaches into htmlcov/
# make wheel   builds the wheel and trains with it in an environment that holds only what it requires
# make docs   builds the documentation site into site/; a broken link or anchor fails it

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-mmdet test-label-studio coverage lint wheel docs clean

demo: .venv
	$(BIN)/ciod demo out=demo

# worksteal: neighbouring tests share a process, and so what a module trains once.
test: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -p tests.reached -rs

# WHEELS keeps what was compiled; with another PyTorch it must be compiled again.
MMDET := .venv-mmdet
WHEELS ?= .wheels
PIP := $(MMDET)/bin/python -m pip --disable-pip-version-check

test-mmdet: $(MMDET)/ready
	OMP_NUM_THREADS=1 $(MMDET)/bin/python -m pytest -p tests.reached --reached \
		detectors/mmdet/,detectors/files/mmdet_files.py,exporters/mmdet_file.py \
		tests/mmdet tests/exporters/test_mmdet_file.py

$(MMDET)/ready: pyproject.toml scripts/mmcv_cxx
	test -x $(MMDET)/bin/python || $(PYTHON) -m venv $(MMDET)
	$(PIP) install --quiet torch torchvision setuptools wheel ninja packaging
	ls $(WHEELS)/onedl_mmcv-*.whl 2> /dev/null || CXX=$(CURDIR)/scripts/mmcv_cxx MMCV_CXX_CACHE=$(CURDIR)/$(MMDET)/headers \
		MMCV_WITH_OPS=1 MAX_JOBS=2 $(PIP) wheel --quiet --no-build-isolation --no-deps --no-cache-dir -w $(WHEELS) onedl-mmcv
	$(PIP) install --quiet --no-build-isolation --find-links $(WHEELS) onedl-mmcv onedl-mmengine onedl-mmdetection
	$(PIP) install --quiet -e ".[dev,mmdet]"
	rm -rf $(MMDET)/headers
	@touch $(MMDET)/ready

# Its release asks for a package that is gone and for a Flask of 2020; it works with today's.
STUDIO := .venv-label-studio
test-label-studio: .venv/dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --no-deps --target $(STUDIO) label-studio-ml==1.0.9 \
		label-studio-tools redis rq croniter colorama appdirs lxml flask werkzeug itsdangerous blinker
	OMP_NUM_THREADS=1 PYTHONPATH=$(STUDIO) $(BIN)/python -m pytest -rs tests/test_examples.py

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

coverage: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --cov --cov-report=term --cov-report=html

wheel: .venv/dev
	$(BIN)/python scripts/check_wheel.py dist

docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "The site is in site/; $(BIN)/mkdocs serve shows it with search"

# torch and torchvision first and together, so that pip picks a pair that fits.
.venv: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch torchvision
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch .venv

.venv/dev: .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch .venv/dev

.venv/docs: .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[docs]"
	@touch .venv/docs

clean:
	rm -rf .venv .venv-mmdet .venv-label-studio demo runs site dist htmlcov
