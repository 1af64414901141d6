# Everything people and CI run. `make` alone lists it.
PYTHON ?= python3
BIN = .venv/bin
ifeq ($(OS),Windows_NT)
BIN = .venv/Scripts
endif
INSTALLED = .venv/.installed

.PHONY: help install demo test test-all check lab wheels clean

help:
	@echo "make install   make .venv with everything (Python >= 3.11)"
	@echo "make demo      convert, push over SSH, run: the whole way on this machine, no board needed"
	@echo "make test      the tests, without those marked slow or lab"
	@echo "make test-all  the tests and the slow ones"
	@echo "make lab       arm64 boards with systemd and SSH, under emulation; faults (root, Debian; docs/lab.md)"
	@echo "make check     ruff, mypy, import-linter"
	@echo "make bench-X   run bench/X.py, e.g. make bench-startup"
	@echo "make wheels    build the wheels into dist/"
	@echo "make clean     remove .venv and what was built"

install: $(INSTALLED)

# Made again whenever a pyproject.toml changes.
$(INSTALLED): pyproject.toml runtime/pyproject.toml converter/pyproject.toml deploy/pyproject.toml
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("edgeferry needs Python 3.11 or newer on a workstation, this is " + sys.version.split()[0] + "; say which: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ./runtime[litert,camera,view] -e ./converter -e ./deploy[demo] -e .[dev]
	@touch $(INSTALLED)

demo: install
	$(BIN)/edgeferry demo --output demo-out

test: install
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not slow and not lab"

test-all: install
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not lab"

lab: install
	$(BIN)/python -m pytest -m lab

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench-%: install
	$(BIN)/python bench/$*.py

wheels: install
	$(BIN)/python -m build --wheel --outdir dist runtime
	$(BIN)/python -m build --wheel --outdir dist converter
	$(BIN)/python -m build --wheel --outdir dist deploy
	$(BIN)/python -m build --wheel --outdir dist .

clean:
	rm -rf .venv dist build demo-out
