# make demo: environment, installation, and the main job on real data.   make test: environment, installation, tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint docs bench clean

$(VENV)/core: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e .
	@touch $@

$(VENV)/dev: $(VENV)/core
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(VENV)/core
	$(BIN)/legato compare

test: $(VENV)/dev
	$(BIN)/python -m pytest -n 2

lint: $(VENV)/dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/dev
	$(BIN)/pip install --quiet -c constraints.txt -e '.[docs]'
	$(BIN)/zensical build --clean --strict

bench: $(VENV)/core
	$(BIN)/legato bench losses --out runs/bench-losses.json

clean:
	rm -rf $(VENV) runs dist build
