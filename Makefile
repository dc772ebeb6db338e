# make demo   a fresh machine to results: environment, data, three models, table, report
# make test   environment and the whole test suite
#
# PYTHON=python3.12 picks the interpreter; PIP_FLAGS adds to every `pip install`, for example
# an index with CPU-only builds of torch.
PYTHON ?= python3
VENV ?= .venv
PIP_FLAGS ?=
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip install --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt

.PHONY: demo test check clean

demo: $(READY)
	$(BIN)/python -m scripts.demo --output runs/demo

test: check
	$(BIN)/python -m pytest -n auto

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(READY): pyproject.toml constraints.txt requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --quiet --upgrade pip
	@echo "Installing the environment into $(VENV) (a minute or two)"
	$(PIP) --quiet torch
	$(PIP) --quiet -e ".[dev]"
	$(PIP) --quiet --no-deps tinysoundfont
	@touch $(READY)

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache *.egg-info
