# Needs git, make and python3 >= 3.11 with venv; everything else is installed into .venv.
#   make demo     the whole loop on the embedded pair, into treeopt-demo/
#   make quick    the inner loop: ruff, and the tests that are not slow; about a minute on two cores
#   make test     all checks: ruff, mypy, import contracts, tests; 20 to 30 minutes on two cores
#   make kernels  the tests of the Triton kernels, in Triton's interpreter where there is no GPU
#   make lint     the checks without the tests
#   make format   rewrite the sources in the project's style
#   make growmaps derive the growmaps in growmaps/ anew from the profiles in growmaps/profiles/
#   make bench    the optimizer's benchmark, into benchmarks/results/

VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
READY := $(VENV)/.ready
LINT := build/lint

# The first Python that is new enough; override with `make PYTHON=/path/to/python3.12 ...`.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	if $$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo $$p; break; fi; done)

# One thread per process: the tests run side by side, and the models in them are tiny.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
OFFLINE := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1
# Tests start many processes, and each would compile the sources anew where the environment forbids Python to keep what it compiled.
COMPILED := PYTHONDONTWRITEBYTECODE=
# The longest test takes 70 s on two idle cores; one that hangs fails after the timeout, with its stack.
PYTEST := $(ONE_THREAD) $(OFFLINE) $(COMPILED) $(BIN)/python -m pytest -n auto --timeout=600

# `make quick` fails a test that takes longer than this and is not marked slow. Unmarked tests take under 3 s on an idle machine.
BUDGET := TREEOPT_TEST_BUDGET_SECONDS=10

.PHONY: demo quick test kernels lint format growmaps bench clean
.DELETE_ON_ERROR:

demo: $(READY)
	$(BIN)/treeopt demo --out treeopt-demo

quick: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BUDGET) $(PYTEST) -m "not slow" --dist worksteal --durations=10

# In the order of the folders: the longest files come early, and the last ones are short, so that no process is alone at the end. Left to itself, xdist
# begins with the files that have the most tests, and a file of few long ones comes last.
test: lint
	$(PYTEST) --dist loadfile --no-loadscope-reorder --durations=25

kernels: $(READY)
	$(PYTEST) -m interpreted --dist worksteal

# mypy and import-linter do not see treeopt.cli in an editable install, so they look at an installed wheel.
lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build
	$(BIN)/python -m pip install --quiet --no-deps --no-index --no-build-isolation --target $(LINT) .
	cp -R benchmarks $(LINT)/benchmarks
	cd $(LINT) && $(BIN)/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache -p treespec -p treeopt -p benchmarks
	cd $(LINT) && $(BIN)/lint-imports --no-cache --config $(CURDIR)/pyproject.toml

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

growmaps: $(READY)
	$(BIN)/python -m treeopt.growmap_library --out growmaps

bench: $(READY)
	mkdir -p benchmarks/results
	$(BIN)/python -m benchmarks.optimizer --out benchmarks/results/optimizer.json

$(READY): pyproject.toml requirements-dev.txt
	@test -n "$(PYTHON)" || { echo "treeopt needs python3 >= 3.11 with venv; none was found (make PYTHON=/path/to/python3.12)" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements-dev.txt
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
