# make setup, make demo, make test. Needs GNU make and Python 3.11 or newer; everything else goes into .venv.
PYTHON ?= python3
TORCH ?= cpu
# A further package index to find torch's +cpu builds in; empty: only the configured ones.
TORCH_INDEX ?=

# figure4: the folder of its runs, and more options for its two commands.
RUNS ?= runs
TRAIN ?=
PROBE ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready-$(TORCH)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

.DEFAULT_GOAL := help
.PHONY: help setup demo figure4 figure4-mini cuda-only test soak lint format docs wheel clean

help: ## show this
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14
	@echo 'variables: PYTHON=python3.12  TORCH=cpu|cuda  TORCH_INDEX=URL  RUNS=folder'

setup: $(STAMP) ## create .venv with everything that constraints/ pins

$(STAMP): pyproject.toml constraints/common.txt constraints/cpu.txt constraints/cuda.txt
	@case '$(TORCH)' in cpu|cuda) ;; *) echo 'make: TORCH must be cpu or cuda, not $(TORCH)' >&2; exit 2;; esac
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo 'make: $(PYTHON) is missing or older than Python 3.11; name a newer one: make setup PYTHON=python3.12' >&2; exit 2; }
	@test -x $(BIN)/python || { echo 'making $(VENV)'; $(PYTHON) -m venv $(VENV); }
	@echo 'installing (torch: $(TORCH)); the first time takes some minutes'
	@pins=$(TORCH); build=$$(sed -n 's/^\(torch==[^ ]*+cpu\).*/\1/p' constraints/cpu.txt); \
	if [ $$pins = cpu ] && [ "$$(uname -s)" = Linux ] && ! $(PIP) --dry-run --no-deps "$$build" >/dev/null 2>&1; then \
	  echo "no $$build in the configured package indexes: taking the default build, a download of some GB."; \
	  echo '(For the small one: make setup TORCH_INDEX=URL, with the URL of the index that has it.)'; pins=cuda; \
	fi; $(PIP) --no-compile -c constraints/$$pins.txt -e '.[dev]'
	@# pip compiles on one core, and everything. Other packages' tests and other people's models are not imported, or compile when they are.
	@$(BIN)/python -m compileall -qq -j 0 -x '/tests/|/transformers/models/' $(VENV)/lib || true
	@rm -f $(VENV)/.ready-*; touch $@
	@echo 'ready: $(BIN)/freetf --help'

demo: setup ## train a small Free Transformer and show what its latent decides
	@$(BIN)/freetf demo $(if $(filter cuda,$(TORCH)),--device auto)

# Train all recipes of a sweep, $(2) at a time, then measure what Z encodes in each. A second call resumes what a first one left. $(1): the sweep
define sweep
	@$(BIN)/freetf sweep $(1) -o '$(RUNS)/$(1)' --run $(2) $(TRAIN)
	@$(BIN)/freetf probe-latent '$(RUNS)/$(1)'/*/ --sweep --figure '$(RUNS)/$(1).svg' --report '$(RUNS)/$(1).html' $(PROBE)
endef

figure4: cuda-only setup ## the paper's Figure 4 with measured bits: train at its four κ, probe, draw (one GPU; TORCH=cuda)
	$(call sweep,figure4,6)

cuda-only:
	@test '$(TORCH)' = cuda || { echo 'make figure4 needs a GPU: make figure4 TORCH=cuda (on a CPU: make figure4-mini)' >&2; exit 2; }

figure4-mini: setup ## the same on shorter lines, in eight minutes on two CPU cores
	$(call sweep,figure4-mini,2)
figure4-mini: export OMP_NUM_THREADS = 1

test: lint ## everything that continuous integration checks
	@PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal -m 'not network'

soak: setup ## the trials of docs/reliability.md in full; 15 minutes
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.reliability.soak

lint: setup ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: setup ## format the sources
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: setup ## regenerate docs/cli.md and the tables of docs/recipes.md
	@$(BIN)/python scripts/reference.py

wheel: setup ## build dist/*.whl and the source archive
	@$(BIN)/python -m build --no-isolation

clean: ## remove .venv, dist and caches; runs and data stay
	@rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
