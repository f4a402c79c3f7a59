# Every target works in a fresh clone: each makes what it needs first. `make help` lists them.
#
# PYTHON: the interpreter to make the environment with. VENV: where the environment lies.

PYTHON ?= python3
VENV ?= .venv

PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
STAMPS := $(VENV)/.stamps

# A directory under platforms/ with a pyproject.toml is a platform; a new one joins by being there.
PLATFORMS := $(patsubst %/pyproject.toml,%,$(sort $(wildcard platforms/*/pyproject.toml)))
PLATFORM_SOURCES := $(wildcard $(addsuffix /src,$(PLATFORMS)))
BENCHMARKS := $(filter-out benchmarks/_%,$(sort $(wildcard benchmarks/*.py)))

# Settings of the user's that would send the environment's packages elsewhere, or have every process
# that a test starts compile all of core's modules again.
unexport PYTHONPATH PYTHONHOME PIP_TARGET PIP_PREFIX PIP_USER PIP_REQUIRE_VIRTUALENV
unexport PYTHONDONTWRITEBYTECODE

.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help check setup demo serve-demo test lint bench sweep fuzz mutants matrix vendors vllm vision wheels wheel-test clean

help: ## list the targets
	@echo 'usage: make TARGET [PYTHON=python3.12] [VENV=.venv]'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' Makefile | while IFS='|' read -r name text; do \
	    printf '  %-10s %s\n' $$name "$$text"; done

setup: $(STAMPS)/piecewise ## make .venv with piecewise and all it is developed with

demo: setup ## MiniLM on text of varying size: eager, torch.compile and piecewise
	$(PY) examples/minilm.py

serve-demo: setup ## a model behind HTTP: 20,000 requests from 8 threads, every answer checked, then SIGTERM
	$(PY) examples/server/loadtest.py

test: setup ## every test but the slow ones (those: pytest -m slow)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist worksteal

lint: setup ## format, lint, duplicates, types, import order, and that the docs name everything
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	@# These two take half a minute each, on one core each.
	$(PY) -m pylint piecewise_core $(wildcard $(addsuffix /piecewise_*,$(PLATFORM_SOURCES) integrations/vllm/src)) & beside=$$!; \
	    $(PY) -m mypy --strict piecewise_core $(PLATFORM_SOURCES) integrations/vllm/src; types=$$?; \
	    wait $$beside && exit $$types
	$(PY) -m pytest -q tests/unit/test_imports.py tests/unit/test_sizes.py tests/unit/test_docs_complete.py

bench: setup ## every benchmark in turn
	@set -e; for file in $(BENCHMARKS); do echo "== $$file"; $(PY) $$file; done

sweep: setup ## torch's operators and model families in every way against eager; hours, goes on where it stopped
	PYTHONPATH=tests/kit $(PY) -m sweeps --out build/sweep

N ?= 2000
fuzz: setup ## N random programs through every front against eager: make fuzz N=20000
	PIECEWISE_CACHE_MODE=off PYTHONPATH=tests/kit $(PY) tests/kit/fuzz.py $(N)

mutants: setup ## programs and platform parts that are silently wrong: check="verify" finds each
	PYTHONPATH=tests/kit $(PY) -m silent

TORCH ?=
TESTS ?= tests
matrix: setup ## the tests on every torch from 2.11 on, each in its own environment: make matrix TORCH=2.14 TESTS=tests/unit
	PYTHONPATH=tests/kit $(PY) tests/kit/matrix.py $(if $(TORCH),--only $(TORCH)) --tests $(TESTS)

vendors: setup ## examples/vendors with OpenVINO and ONNX Runtime: the kit, and MiniLM; installs them into build/vendors
	$(PY) examples/vendors/check.py

vllm: setup ## vLLM's CPU wheel with the plugin and without it: tokens, counts, seconds; installs it into build/vllm
	$(PY) integrations/vllm/check.py

# Not in the environment: transformers import a torchvision that they find, and PyPI's fits one build
# of torch only. No model that is tried calls its operators.
VISION ?= timm==1.0.31 torchvision==0.28.0
vision: setup ## models of timm and torchvision in every way against eager; installs both into build/vision
	$(PIP) install --quiet --upgrade --no-deps --target build/vision $(VISION)
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -m 'slow or not slow' tests/integration/test_libraries_vision.py

wheels: setup ## wheel and source archive of core and every platform, into dist/
	rm -rf dist
	@set -e; for project in . $(PLATFORMS); do \
	    echo "== $$project"; $(PY) -m build --no-isolation --outdir dist $$project; done
	$(PY) -m twine check --strict dist/*

wheel-test: wheels ## core and the cpu wheel as users install them: empty environment, example, bundle, uninstall
	$(PY) tests/kit/installed_wheels.py

clean: ## remove what was built and cached; the environment stays
	rm -rf dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name .venv -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +

# The environment, one stamp a step ------------------------------------------------------------

check:
	@command -v '$(PYTHON)' >/dev/null || { \
	    echo 'make: no $(PYTHON) found. Install Python 3.10 or later, or name one: make PYTHON=/path/to/python3' >&2; \
	    exit 1; }
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo "make: $$('$(PYTHON)' -V 2>&1) is too old. Install Python 3.10 or later, or name one: make PYTHON=/path/to/python3" >&2; \
	    exit 1; }
	@'$(PYTHON)' -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo 'make: $(PYTHON) has no venv module. Debian, Ubuntu: apt-get install python3-venv' >&2; \
	    exit 1; }
	@for name in $$CXX c++ g++ clang++; do command -v $$name >/dev/null && exit 0; done; { \
	    echo 'make: no C++ compiler (c++, g++ or clang++); models are compiled to C++. Debian, Ubuntu: apt-get install g++; Fedora: dnf install gcc-c++; macOS: xcode-select --install' >&2; \
	    exit 1; }
	@'$(PYTHON)' -c 'import os, sys, sysconfig as s; sys.exit(not os.path.exists(s.get_path("include") + "/Python.h"))' || { \
	    echo 'make: $(PYTHON) has no C headers (Python.h); compiled models include them. Debian, Ubuntu: apt-get install python3-dev; Fedora: dnf install python3-devel' >&2; \
	    exit 1; }

$(STAMPS)/venv: | check
	@echo '== 1 of 4: environment in $(VENV)'
	'$(PYTHON)' -m venv '$(VENV)'
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/torch: constraints.txt $(STAMPS)/venv
	@echo '== 2 of 4: torch (the largest download)'
	$(PIP) install -c constraints.txt torch
	@touch $@

$(STAMPS)/tools: constraints.txt $(STAMPS)/torch
	@echo '== 3 of 4: what builds the wheels'
	$(PIP) install -c constraints.txt hatchling editables
	@touch $@

$(STAMPS)/piecewise: pyproject.toml constraints.txt $(addsuffix /pyproject.toml,$(PLATFORMS)) $(STAMPS)/tools
	@echo '== 4 of 4: piecewise, its platforms ($(notdir $(PLATFORMS))) and all they need'
	$(PIP) install -c constraints.txt --no-build-isolation -e '.[demo,dev,libraries,testing,toml]' $(addprefix -e ,$(PLATFORMS))
	@touch $@
