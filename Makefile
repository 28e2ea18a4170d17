# Each target sets up everything it needs: a virtual environment in .venv with the package and its extras.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow check bench results clean

$(VENV)/.test: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed, found " + sys.version.split()[0] if sys.version_info < (3, 10) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing onnx_hyvit and its dependencies into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test]"
	@touch $@

$(VENV)/.dev: $(VENV)/.test
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test,dev]"
	@touch $@

## Quantize a shipped model with shipped images, compare, and show the result.
demo: $(VENV)/.test
	@$(BIN)/onnx-hyvit demo

## The test suite.
test: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 --dist loadscope $(PYTEST_ARGS)

## Everything, the slow sweeps over the whole corpus included (about an hour on two cores).
test-slow: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 --dist loadscope -m "slow or not slow" $(PYTEST_ARGS)

## Lint, formatting and types.
check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
