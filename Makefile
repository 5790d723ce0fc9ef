# `make quickstart` and `make test` do all the set-up on a machine with Python 3.11+, a C++ compiler and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml setup.py CMakeLists.txt constraints.txt $(shell find csrc -type f 2>/dev/null)
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: native quickstart test test-all lint format install dev bench clean help

help:
	@echo "make quickstart   install, train a small reasoning model, evaluate it, write runs/quickstart/report.html"
	@echo "make test         install, run linters and the fast tests (what CI runs)"
	@echo "make test-all     the slow tests too"
	@echo "make native       rebuild the native library after a change in csrc/"
	@echo "make format       rewrite the sources in the project's style"
	@echo "make clean        remove the environment and build products"

$(VENV)/.python:
	$(PYTHON) -m venv $(VENV)
	@touch $@

# PIP_CONSTRAINT pins the build tools of the isolated build environment as well.
$(VENV)/.installed: $(VENV)/.python $(SOURCES)
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(INSTALL) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.python $(SOURCES)
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(INSTALL) -e ".[dev]"
	@touch $(VENV)/.installed $@

install: $(VENV)/.installed

dev: $(VENV)/.dev

quickstart: $(VENV)/.installed
	$(BIN)/seedthink quickstart

# Rebuilds seedthink._C alone, with the tools of .venv; the cache forgets a ninja that pip has thrown away.
native: $(VENV)/.dev
	rm -f build/native/CMakeCache.txt
	$(BIN)/cmake -S . -B build/native -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
		-DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python -DCMAKE_LIBRARY_OUTPUT_DIRECTORY=$(CURDIR)/seedthink
	$(BIN)/cmake --build build/native

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p seedthink

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: lint
	$(BIN)/python -m pytest -m "not slow"

test-all: lint
	$(BIN)/python -m pytest

clean:
	rm -rf $(VENV) build dist *.egg-info seedthink/_C*.so
