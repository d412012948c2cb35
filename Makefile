# Every target sets up .venv by itself when it is missing or stale.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PLUGINS := $(sort $(wildcard plugins/*)) examples/sfm_matching
PIP := $(BIN)/python -m pip --disable-pip-version-check
NATIVE := $(shell find native CMakeLists.txt -type f \( -name '*.hpp' -o -name '*.cpp' -o -name '*.inl' -o -name '*.cu' -o -name '*.cuh' -o -name 'CMakeLists.txt' \) 2>/dev/null)

.PHONY: demo test test-real test-real-short test-lowest bench lint wheels docs clean help
.DEFAULT_GOAL := help

help:
	@echo "make demo       set up, map the embedded room, localize its test path, write a report"
	@echo "make test       all tests that need no data (about 25 minutes on two cores)"
	@echo "make test-real  map and localize the real scenes in RELOC_DATA (default ../shared/data)"
	@echo "make test-lowest  the core's tests with the lowest versions of all dependencies, on Python 3.10 if there is one"
	@echo "make test-real-short  the quicker of these"
	@echo "make bench      maps and localizes every place in RELOC_DATA, beside classical matching"
	@echo "make lint       ruff, mypy, import-linter, import cycles, clang-format"
	@echo "make wheels     wheels of reloc and all plugins in dist/"
	@echo "make docs       HTML documentation in docs/_build/html"
	@echo "make clean      remove everything that make made"

# The native module is rebuilt when its sources change; Python sources are installed in place.
$(VENV)/.installed: pyproject.toml constraints.txt $(wildcard plugins/*/pyproject.toml examples/*/pyproject.toml) $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import sys; sys.exit("reloc needs Python 3.10 or newer") if sys.version_info < (3, 10) else 0'
	$(PIP) install -q -c constraints.txt torch 'hatchling>=1.24,<2' editables
	$(PIP) install -q -c constraints.txt -e '.[test,serve,sweep]'
	@# With the builder that is there now: an environment of its own for each would take a minute in all.
	$(PIP) install -q -c constraints.txt --no-build-isolation $(foreach p,$(PLUGINS),-e $(p))
	touch $@

# The packages of an extra alone: installing `.[lint]` would build the native module once more.
$(VENV)/.%: $(VENV)/.installed
	$(BIN)/python scripts/requirements_of.py $* > $(VENV)/$*.txt
	$(PIP) install -q -c constraints.txt -r $(VENV)/$*.txt
	touch $@

demo: $(VENV)/.installed
	$(BIN)/reloc demo

test: $(VENV)/.installed $(VENV)/.view $(VENV)/.tensorboard
	@# One process a core; threads within them would only stand in each other's way.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not real and not long" -n auto --dist loadfile

RELOC_DATA ?= ../shared/data
test-real: $(VENV)/.installed
	RELOC_DATA=$(RELOC_DATA) $(BIN)/python -m pytest -m "real or long" -s

test-real-short: $(VENV)/.installed
	RELOC_DATA=$(RELOC_DATA) $(BIN)/python -m pytest -m "real and not long" -s

test-lowest:
	scripts/test_lowest.sh

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/places.py --data $(RELOC_DATA) --json build/bench.json

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/import_cycles.py
	$(BIN)/clang-format --dry-run --Werror $(filter-out CMakeLists.txt,$(NATIVE))

wheels: $(VENV)/.installed
	rm -rf dist
	$(PIP) wheel -q --no-deps -w dist . $(foreach p,$(PLUGINS),./$(p))
	@ls dist

docs: $(VENV)/.docs
	$(BIN)/sphinx-build -q -W -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

clean:
	rm -rf $(VENV) .venv-lowest build dist docs/_build outputs multirun .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
