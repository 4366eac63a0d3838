# From a fresh clone, with python3 (3.11 or newer) and make: `make demo` or `make test`. Both install what they need
# into .venv once, and again whenever pyproject.toml or constraints.txt change.

VENV ?= .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
DEMO_OUTPUT ?= demo-output
PYTEST_ARGS ?=
SEARCH ?= 20

.DEFAULT_GOAL := help
.PHONY: help install demo test search test-triton36 test-emulated-gpu lint clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' Makefile

install: $(INSTALLED) ## create .venv and install unit_fast with everything its development needs

demo: $(INSTALLED) ## backdoor a small network, sanitise it, export it: under 3 minutes on a CPU
	@$(VENV)/bin/unit-fast demo --output $(DEMO_OUTPUT)

lint: $(INSTALLED) ## ruff (style and format) and mypy --strict
	@echo "ruff"; $(VENV)/bin/ruff check --quiet . && $(VENV)/bin/ruff format --check --quiet --diff .
	@echo "mypy"; $(VENV)/bin/mypy

# One thread a worker: workers that each start a thread a core slow each other down many times over.
test: lint ## lint, then every test, a worker a core; PYTEST_ARGS="-k cli" runs some
	@OMP_NUM_THREADS=1 $(PY) -m pytest -q -n logical --maxprocesses 8 --dist worksteal $(PYTEST_ARGS)

# What it finds is a defect: mend it, and keep the example in the test that found it.
search: $(INSTALLED) ## the property tests with SEARCH (20) times their examples, at random: new ones in every run
	@SEARCH=$(SEARCH) OMP_NUM_THREADS=1 $(PY) -m pytest -q -m hypothesis --timeout 0 -n logical --maxprocesses 8 \
	    --dist worksteal $(PYTEST_ARGS)

# The oldest Triton that is supported; its interpreter does not know numpy 2.4.
test-triton36: ## the kernels' tests with Triton 3.6, in an environment of their own
	@[ -d .venv36 ] || $(PY) -m venv .venv36
	@.venv36/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt torch
	@.venv36/bin/python -m pip install -qq --disable-pip-version-check triton==3.6.0 'numpy<2.4' pytest pytest-timeout hypothesis
	@PYTHONPATH=. .venv36/bin/python -m pytest -q tests/kernels $(PYTEST_ARGS)

# In one process: the device takes the place of torch's own before anything imports torch.
test-emulated-gpu: $(INSTALLED) ## sanitize's tests for a GPU, on one emulated on the CPU; needs g++; 3 minutes
	@OMP_NUM_THREADS=1 $(PY) -m pytest -q -p no:xdist -p tests.emulated_gpu.plugin tests/runtime/test_on_gpu.py $(PYTEST_ARGS)

clean: ## remove .venv, build folders and caches
	rm -rf $(VENV) .venv36 build dist *.egg-info demo-output .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first and by its pinned version: a bare `pip install torch` may choose a build that brings gigabytes
# of CUDA libraries. Which build serves the pin (CPU or CUDA) is for pip's own configuration to say.
$(INSTALLED): pyproject.toml constraints.txt
	@if [ ! -x $(PY) ]; then \
	    for python in "$${PYTHON:-python3}" python3.14 python3.13 python3.12 python3.11; do \
	        "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && found="$$python" && break; \
	    done; \
	    if [ -z "$$found" ]; then \
	        echo "unit_fast needs Python 3.11 or newer; found: $$(python3 --version 2>&1). Name one: make PYTHON=/path/to/python3.11" >&2; \
	        exit 1; \
	    fi; \
	    echo "creating $(VENV) with $$("$$found" --version)"; \
	    "$$found" -m venv $(VENV) || { rm -rf $(VENV); \
	        echo "Python cannot create virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }; \
	fi
	@echo "installing torch, then unit_fast and its tools, into $(VENV) (once; minutes on a slow line)"
	@$(PY) -m pip install -qq --disable-pip-version-check -c constraints.txt torch
	@$(PY) -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@
