# make demo   a fresh machine to results: environment, data, three models, table, report
# make results   after it: settings tuned on validation songs, the tables of docs/results.md
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

DATA ?= runs/demo/data
MODELS ?= runs/demo/models
OUT ?= runs/demo/ablation

.PHONY: demo results test check clean

demo: $(READY)
	$(BIN)/python -m scripts.demo --output runs/demo

# Tuning is kept with the models: a second data set (DATA=..., OUT=...) is scored as the first.
results: $(READY)
	test "$(DATA)" != runs/demo/data || $(MAKE) demo
	test -f $(MODELS)/tuned/hybrid.json || $(BIN)/python -m scripts.tune --models $(MODELS) --data $(DATA) --method hybrid --chunks 18 --budget 5
	test -f $(MODELS)/tuned/lass.json || $(BIN)/python -m scripts.tune --models $(MODELS) --data $(DATA) --method lass --chunks 12 --budget 3
	test -f $(MODELS)/tuned/lqvae.json || $(BIN)/python -m scripts.tune --models $(MODELS) --data $(DATA) --method lqvae --chunks 12 --budget 4
	$(BIN)/python -m scripts.score_likelihood --models $(MODELS) --data runs/demo/data --strengths 1 3 10
	$(BIN)/python -m scripts.ablate --models $(MODELS) --data $(DATA) --output $(OUT) --candidates 32

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
