# make demo            from nothing to results: data, models, table, report
# make results         after `make demo`: the tables of docs/results.md (hours)
# make slakh SLAKH=DIR scores the models that ship, or MODELS, on Slakh2100
# make slakh SLAKH=DIR TRAIN=1
#                      the reference report's experiment: trains models on it
# make separate FILE=song.mp3
#                      its stems, by the models that ship
# make pretrained      trains those of bass and drums and replaces them (an hour
#                      or two; GROOVE=DIR: with human drum parts)
# make test            the whole test suite
# make pythons PYTHONS="python3.10 python3.12"
#                      a part of the tests in an environment for each
# make coverage        the suite again: lines and branches that it runs
# make mutants         mistakes in the code, one at a time: do tests notice?
# make sweep           every flag with nonsense values (an hour or so)
# make fuzz            damaged files and commands for all that reads them
# make lock            the newest versions that fit, with digests
# make docs            the documents as a site, in build/site
#
# Each makes the environment first. PYTHON=python3.12 picks the interpreter;
# PIP_FLAGS adds to every `pip install`, for example an index with CPU-only
# builds of torch. LOCK=requirements.lock installs exactly the versions and files
# that were locked; on Linux with PyPI's torch also those of CUDA:
# LOCK="requirements.lock requirements-cuda.lock".
PYTHON ?= python3
VENV ?= .venv
PIP_FLAGS ?=
BIN := $(VENV)/bin
RUNS := $(VENV)/.runs
READY := $(VENV)/.ready
LOCK ?=
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet $(PIP_FLAGS)
PIP := $(INSTALL) -c constraints.txt

DATA ?= runs/demo/data
MODELS ?= runs/demo/models
OUT ?= runs/demo/ablation
# Of every method: validation chunks, draws of candidates on them (a minute or two each of one core).
TUNE_CHUNKS ?= 12
TUNE_BUDGET ?= 8
TUNE_CANDIDATES ?= 16
# A folder of MIDI songs: a second test set, rendered with other programs than theirs.
MIDI ?=

# A variable as one word of the shell, whatever is in it.
quoted = '$(subst ','\'',$(value $(1)))'

# The folder of Slakh2100; with TRAIN=1 it trains models of size PRESET on it.
SLAKH ?=
TRAIN ?=
PRESET ?= small
# The models that ship, or MODELS if it is given.
SCORED := $(if $(filter file,$(origin MODELS)),,$(if $(MODELS),--models $(call quoted,MODELS)))

# A song to separate, and the folder of its stems.
FILE ?=
STEMS ?= stems

# Interpreters of `make pythons`; of the tests that are not slow it runs every EVERYth, in JOBS
# processes.
PYTHONS ?= python3.10 python3.11 python3.12 python3.13
EVERY ?= 4
JOBS ?= auto

# More flags of scripts.demo.
DEMO ?=

# The Groove MIDI Dataset.
GROOVE ?=

.PHONY: help demo separate separate_file pretrained results slakh slakh_folder test part pythons coverage mutants check sweep fuzz lock docs clean

help:
	@sed -n '/^#/!q; s/^# //p' Makefile

demo: $(READY)
	$(BIN)/python -m scripts.demo --output runs/demo $(DEMO)

separate: separate_file $(RUNS)
	$(BIN)/python -m scripts.separate --output $(call quoted,STEMS) -- $(call quoted,FILE)

separate_file:
	@test -e $(call quoted,FILE) || { printf "error: FILE is '%s', expected an audio file: make separate FILE=song.mp3\n" $(call quoted,FILE) >&2; exit 1; }

pretrained: $(READY)
	$(BIN)/python -m scripts.pretrain --output runs/pretrained $(if $(GROOVE),--groove $(call quoted,GROOVE))

# What tuning depends on; the demo makes its own, and leaves what is done as it is.
ifeq ($(MODELS),runs/demo/models)
PARTS := $(addprefix $(MODELS)/linearisation/,counts.safetensors sums.safetensors calibration.safetensors)
PARTS += $(addprefix $(MODELS)/reconstruction/,counts.safetensors calibration.safetensors)
PARTS += $(MODELS)/linearisation/neural_likelihood/weights.safetensors $(MODELS)/mask_network/hybrid-neural/weights.safetensors
PARTS += $(foreach family,linearisation reconstruction,$(foreach run,vqvae prior_bass prior_drums,$(MODELS)/$(family)/$(run)/weights.safetensors))
$(PARTS): demo ;
else
PARTS := $(wildcard $(MODELS)/*/*.safetensors $(MODELS)/*/*/weights.safetensors)
endif

# A neural likelihood is tuned where there is one.
TUNED := $(if $(filter %/linearisation/neural_likelihood/weights.safetensors,$(PARTS)),hybrid-neural) hybrid lass lqvae

results: $(READY) $(TUNED:%=$(MODELS)/tuned/%.json)
	$(BIN)/python -m scripts.score_likelihood --models $(MODELS) --data $(DATA) --smoothings 3 10 --sigmas 0.3 0.4 --output $(OUT)/likelihood.json
	$(BIN)/python -m scripts.ablate --models $(MODELS) --data $(DATA) --output $(OUT) --candidates 32
	test -d $(OUT)/fresh || $(BIN)/python -m scripts.make_synthetic --output $(OUT)/fresh --tracks 60 --seconds 20 --parts bass drums --seed 1 --split 0 0 1
	test -d $(OUT)/fresh_data || $(BIN)/python -m scripts.prepare_slakh --slakh $(OUT)/fresh --output $(OUT)/fresh_data
	$(BIN)/python -m scripts.ablate --models $(MODELS) --data $(OUT)/fresh_data --output $(OUT)/confirmation --candidates 32 --no-parts
ifneq ($(MIDI),)
	test -d $(OUT)/midi || $(BIN)/python -m scripts.make_synthetic --midi-dir $(MIDI) --output $(OUT)/midi --reprogram --seconds 20 --parts bass drums --split 0 0 1
	test -d $(OUT)/midi_data || $(BIN)/python -m scripts.prepare_slakh --slakh $(OUT)/midi --output $(OUT)/midi_data
	$(BIN)/python -m scripts.ablate --models $(MODELS) --data $(OUT)/midi_data --output $(OUT)/second --candidates 32 --no-parts --seeds 1
endif

slakh: slakh_folder $(READY)
	$(BIN)/python -m scripts.slakh_benchmark --slakh $(call quoted,SLAKH) $(if $(filter 1,$(TRAIN)),--train --preset $(PRESET),$(SCORED))

slakh_folder:
	@test -d $(call quoted,SLAKH) || { printf "error: SLAKH is '%s', expected a folder of Slakh2100: make slakh SLAKH=DIR\n" $(call quoted,SLAKH) >&2; exit 1; }

$(MODELS)/tuned/%.json: $(PARTS) | $(READY)
	$(BIN)/python -m scripts.tune --models $(MODELS) --data $(DATA) --method $* --chunks $(TUNE_CHUNKS) --budget $(TUNE_BUDGET) --candidates $(TUNE_CANDIDATES)

test: check
	$(BIN)/python -m pytest -n auto --dist worksteal

part: $(READY)
	$(BIN)/python -m pytest -m "not slow" --every $(EVERY) -n $(JOBS)

pythons:
	set -e; for python in $(PYTHONS); do \
	    name=$$("$$python" -c "import sys; print(sys.implementation.cache_tag)"); \
	    $(MAKE) part PYTHON="$$python" VENV="build/$$name"; \
	done

coverage: $(READY)
	$(BIN)/python -m coverage erase
	-$(BIN)/python -m coverage run -m pytest -n auto
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

mutants: $(READY)
	$(BIN)/python -m tests.mutants

sweep: $(READY)
	$(BIN)/python -m tests.sweep_flags

fuzz: $(READY)
	$(BIN)/python -m tests.fuzz

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --config-file docs/site/mkdocs.yml
	@echo "build/site/index.html; with search: python -m http.server -d build/site"

# What the programs need; then what composing songs and the tests need. A lock has all of it.
$(RUNS): pyproject.toml constraints.txt requirements.txt $(LOCK)
	$(PYTHON) -m venv $(VENV)
	@echo "Installing the environment into $(VENV) (a minute or two)"
ifeq ($(LOCK),)
	$(PIP) --upgrade pip
	$(PIP) torch
	$(PIP) -e .
else
	$(INSTALL) --require-hashes --no-deps $(LOCK:%=-r %)
	$(INSTALL) --no-deps --no-build-isolation -e .
endif
	@touch $(RUNS)

$(READY): $(RUNS)
ifeq ($(LOCK),)
	$(PIP) -e ".[dev]"
	$(PIP) --no-deps tinysoundfont
endif
	@touch $(READY)

lock:
	PIP_FLAGS=$(call quoted,PIP_FLAGS) $(PYTHON) .ci/lock.py

clean:
	rm -rf $(VENV) .coverage* build runs .pytest_cache .mypy_cache .ruff_cache *.egg-info
