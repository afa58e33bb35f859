# rankfold: train small, fold exactly, prove on the board that it got faster.
# Every target makes the virtual environment if it is missing. `make` alone prints the targets.

PYTHON ?= python3
VENV ?= .venv
RECIPE ?= glyphs-dec3-compact
DATA ?=
WEIGHTS ?=
DEVICE ?= host
SEED ?= 0
THREADS ?= 1
PAIRS ?=
CHARS ?=
QUICK ?=
OUT ?= runs/$(notdir $(basename $(RECIPE)))-$(SEED)

READY := $(VENV)/.ready
RANKFOLD := $(VENV)/bin/rankfold
COMPARE := $(VENV)/bin/python -m rankfold.benchmarks.compare
PEERS := PYTHONPATH=build/peers $(VENV)/bin/python -m rankfold.benchmarks.peers
QUICKLY := $(if $(QUICK),--quick)
RECIPE_FILE := $(firstword $(wildcard $(RECIPE) train/recipes/$(RECIPE).toml))
RECIPES = $(basename $(notdir $(wildcard train/recipes/*.toml)))
DATA_OPTION := $(if $(DATA),--data $(DATA))

# a process a core, four at most; a file's tests stay together, the longest files first (tests/conftest.py).
# `soak` measures, so it runs alone.
SIDE_BY_SIDE := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

export ORT_DISABLE_TELEMETRY := 1
export OPENBLAS_NUM_THREADS := 1
# torch asks for huge pages: fewer page faults (docs/training.md)
export THP_MEM_ALLOC_ENABLE := 1
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types check soak format train export evaluate bench report arm chars74k ablation evidence choosing planted counted promised rounding stability peers clean

help: ## print the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  variables: RECIPE=$(RECIPE) DATA=$(DATA) DEVICE=$(DEVICE) OUT=$(OUT) SEED=$(SEED) THREADS=$(THREADS) PAIRS=$(PAIRS)"

setup: $(READY) ## make the virtual environment with the tested versions

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rankfold needs Python 3.11 or newer, found %d.%d; set PYTHON=" % sys.version_info[:2])'
	@echo "making $(VENV): some 1.5 GB with torch, a few minutes"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[train,report,dev]'
	@mkdir -p $(VENV)/types && ln -sfn $(CURDIR) $(VENV)/types/rankfold
	@touch $@

# --- the main job: recipe → checkpoint → small graph → measured → report -----------------------------------

demo: $(READY) ## train six small networks on built-in data, measure them together, report (under 8 minutes)
	$(COMPARE) demo --out runs/demo

train: $(OUT)/train.json ## train RECIPE into OUT (goes on where it was killed)
export: $(OUT)/plan.json ## write OUT/dense.onnx and OUT/compact.onnx
evaluate: $(OUT)/evaluation.json ## score both on the test split
bench: $(OUT)/bench.json ## measure both on DEVICE
report: $(OUT)/report.html ## write OUT/report.html

# A record is written last by its stage, so it stands for all the stage leaves. A checkpoint that is newer than the
# recipe is of a training that was killed: it goes on; any other training begins anew.
$(OUT)/train.json: $(RECIPE_FILE) | $(READY)
	$(if $(RECIPE_FILE),,$(error rankfold: no recipe $(RECIPE); give RECIPE=file.toml or one of: $(RECIPES)))
	$(RANKFOLD) train $(RECIPE) $(DATA_OPTION) --seed $(SEED) --out $(OUT) \
	  $$(test $(OUT)/checkpoint.safetensors -nt $(RECIPE_FILE) && echo --resume)

$(OUT)/plan.json: $(OUT)/train.json
	$(RANKFOLD) export $(OUT)

$(OUT)/evaluation.json: $(OUT)/plan.json
	$(RANKFOLD) evaluate $(OUT) $(DATA_OPTION)

# What was measured on another device does not count for this one.
$(OUT)/%.device:
	@mkdir -p $(@D) && rm -f $(@D)/*.device && touch $@

$(OUT)/bench.json: $(OUT)/plan.json $(OUT)/$(DEVICE).device
	$(RANKFOLD) bench $(OUT) --device $(DEVICE) --threads $(THREADS) $(if $(PAIRS),--pairs $(PAIRS)) -o $@

$(OUT)/report.html: $(OUT)/bench.json $(OUT)/evaluation.json
	$(RANKFOLD) report $(OUT) -o $@

arm: $(READY) ## make the aarch64 userland that --device qemu-… runs in (a minute; needs QEMU and Debian's apt)
	$(RANKFOLD) devices setup qemu-cortex-a72

# --- measured results: docs/results.md ----------------------------------------------------------------------

chars74k: $(READY) ## accuracy against latency on Chars74K, 3 seeds (hours): DATA=chars74k36.npz
	@test -n "$(DATA)" || { echo "rankfold: make chars74k needs DATA=chars74k36.npz" >&2; exit 2; }
	$(COMPARE) chars74k --out runs/chars74k --seeds 0 1 2 --data $(DATA) --results docs/results/chars74k.jsonl
	$(VENV)/bin/python -m rankfold.benchmarks.curves docs/results/chars74k.jsonl

ablation: $(READY) ## what each part of the training is worth on Chars74K, 5 seeds (hours; goes on): DATA=chars74k36.npz
	@test -n "$(DATA)" || { echo "rankfold: make ablation needs DATA=chars74k36.npz" >&2; exit 2; }
	$(VENV)/bin/python -m rankfold.benchmarks.ablation run $(DATA) --work runs/ablation
	$(VENV)/bin/python -m rankfold.benchmarks.ablation time --work runs/ablation
	$(VENV)/bin/python -m rankfold.benchmarks.ablation show

evidence: $(READY) ## compare files of known ratio some 1,000 times: does the interval cover it (hours; goes on where it was)
	$(VENV)/bin/python -m rankfold.benchmarks.evidence run

choosing: $(READY) ## is choosing by measured latency worth it (hours; goes on): WEIGHTS=folder DATA=cifar10.npz
	@test -n "$(DATA)" -a -n "$(WEIGHTS)" || \
	  { echo "rankfold: make choosing needs WEIGHTS=folder of resnet20*.th, resnet56*.th and DATA=cifar10.npz" >&2; exit 2; }
	for what in budget fill predicted in-place neighbours rivals; do \
	  $(VENV)/bin/python -m rankfold.benchmarks.choosing run $$what --weights $(WEIGHTS) --data $(DATA) \
	    --threads $(THREADS) || exit $$?; done

planted: $(READY) ## does `rankfold explain` name the planted cause of 20 networks (minutes; goes on where it was)
	$(VENV)/bin/python -m rankfold.benchmarks.planted run

counted: $(READY) ## do instructions on an emulated board rank 20 convolutions as time here does (minutes; after make arm)
	$(VENV)/bin/python -m rankfold.benchmarks.counted

promised: build/peers/.ready ## does the gain arrive that `rankfold explain` promises (minutes): WEIGHTS=folder of resnet20*.th
	@test -n "$(WEIGHTS)" || { echo "rankfold: make promised needs WEIGHTS=folder of resnet20*.th" >&2; exit 2; }
	PYTHONPATH=build/peers $(VENV)/bin/python -m rankfold.benchmarks.promised run --weights $(WEIGHTS)/resnet20*.th

# Third parties' packages lie beside the environment; a tool whose package cannot be had is named as missing.
build/peers/.ready: benchmarks/peers/requirements.txt $(READY)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --upgrade \
	  --target build/peers -r benchmarks/peers/requirements.txt && touch $@ || \
	  echo "rankfold: goes on without third parties' packages; the tables name what is missing" >&2

rounding: build/peers/.ready ## what do widths off the tile cost a MobileNetV2, at equal MACs (minutes; goes on where it was)
	PYTHONPATH=build/peers $(VENV)/bin/python -m rankfold.benchmarks.rounding run

peers: build/peers/.ready ## what users would pick instead (6 hours; goes on; QUICK=1: minutes): WEIGHTS=folder DATA=cifar10.npz CHARS=chars74k36.npz
	@test -n "$(WEIGHTS)" -a -n "$(DATA)" -a -n "$(CHARS)" || \
	  { echo "rankfold: make peers needs WEIGHTS=folder of resnet20*.th, DATA=cifar10.npz, CHARS=chars74k36.npz" >&2; exit 2; }
	for what in run time; do \
	  $(PEERS) $$what --weights $(WEIGHTS) --data $(DATA) --chars $(CHARS) --work runs/peers $(QUICKLY) || exit $$?; done
	$(PEERS) show $(QUICKLY)

stability: $(READY) ## which proximal step collapses under which strength (hours; goes on): DATA=chars74k36.npz
	@test -n "$(DATA)" || { echo "rankfold: make stability needs DATA=chars74k36.npz" >&2; exit 2; }
	$(VENV)/bin/python -m rankfold.benchmarks.stability run chars74k-dec3 --data $(DATA) --work runs/stability \
	  --set optimizer.epochs=8

# --- the project itself -------------------------------------------------------------------------------------

test: $(READY) ## run the tests
	$(VENV)/bin/python -m pytest -q $(SIDE_BY_SIDE)

lint: $(READY) ## check format and lint
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .

types: $(READY) ## check types
	$(VENV)/bin/basedpyright --level error

check: lint ## what CI runs: format, lint, types, tests (import direction is one of them)
	@$(MAKE) --no-print-directory types & types=$$!; \
	  $(MAKE) --no-print-directory test || { kill $$types 2>/dev/null; exit 1; }; wait $$types

soak: $(READY) ## the same tests at full counts (under an hour)
	RANKFOLD_SOAK=1 $(VENV)/bin/python -m pytest -q

format: $(READY) ## format and mend what can be mended
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

clean: ## remove the virtual environment and all runs
	rm -rf $(VENV) runs build *.egg-info
