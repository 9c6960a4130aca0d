# The two commands: `make demo` and `make test`. `make help` lists the rest.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?=

.PHONY: help demo test check unit lint soak bench clean lock generated

help: ## list what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/runtime.stamp ## serve a real model and answer once; ARGS=-d leaves it running
	@$(BIN)/pilotage up $(ARGS) --ask "In one sentence: what is a lighthouse for?" examples/smollm2.yaml

test: $(VENV)/dev.stamp lint ## everything: lint, types, contracts, all tests with the real parts
	@$(BIN)/python -m tests.real_parts
	@$(BIN)/coverage erase
	@$(BIN)/coverage run -m pytest $(ARGS)
	@$(BIN)/coverage combine -q && $(BIN)/coverage report --sort=cover | tail -n 25

check: $(VENV)/dev.stamp lint unit ## the fast loop: lint, types, import contracts, unit tests

unit: $(VENV)/dev.stamp
	@$(BIN)/pytest -m "not envoy and not engine and not cluster and not local and not sources" --durations=5 $(ARGS)

lint: $(VENV)/dev.stamp
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/python tools/generate.py --check

soak: $(VENV)/dev.stamp ## the faults under load, ten times as long
	@PILOTAGE_FIRE_REQUESTS=10000 $(BIN)/pytest tests/with_envoy/test_fire.py tests/local/test_fire.py $(ARGS)

bench: $(VENV)/dev.stamp ## the benchmarks; each prints its table
	@for script in benchmarks/*/run.py; do echo "== $$script"; $(BIN)/python $$script $(ARGS) || exit 1; done

generated: $(VENV)/dev.stamp ## write the CRDs, the JSON Schema and the reference anew
	@$(BIN)/python tools/generate.py

lock: $(VENV)/dev.stamp ## resolve all dependencies anew
	@tools/lock.sh

clean: ## remove what was built here; caches of weights and of real parts stay
	rm -rf $(VENV) dist .coverage* .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/runtime.stamp: requirements.lock pyproject.toml tools/setup.sh
	@PYTHON=$(PYTHON) tools/setup.sh $(VENV) requirements.lock
	@touch $@

$(VENV)/dev.stamp: requirements-dev.lock pyproject.toml tools/setup.sh
	@PYTHON=$(PYTHON) tools/setup.sh $(VENV) requirements-dev.lock
	@touch $@ $(VENV)/runtime.stamp
