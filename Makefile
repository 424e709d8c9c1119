# Two commands are enough: `make run` and `make test`. Both set up .venv by themselves.
PYTHON ?= python3
BIN := .venv/bin

NOT_COVERED := e2e deployed simulation fuzz traffic local deploy simulator

.PHONY: help setup run test check e2e aws-proof simulate mutants fuzz coverage format clean

help:  ## what there is
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | expand -t 12

setup: .venv/.installed  ## the virtual environment, with everything that the other commands need

.venv/.installed: requirements.txt requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Spillway needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing into .venv (once; a minute or two) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

run: setup  ## the whole system on this machine, without an AWS account
	@$(BIN)/spillway run $(ARGS)

test: setup check  ## everything that CI checks
	@$(BIN)/python -m pytest $(ARGS)

# (The overlays infra/app.yaml and validation.yaml are no templates by themselves: tests/test_package.py
# lints them as they are packaged.)
check: setup  ## ruff, mypy, cfn-lint
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/cfn-lint infra/data.yaml infra/account.yaml

simulate: setup  ## every kind of fault at every call: SEEDS=10000 FROM=0, or REPLAY=17
	@$(BIN)/python -m tests.simulation.run $(if $(REPLAY),--replay $(REPLAY),--seeds $(or $(SEEDS),1000) --from $(or $(FROM),0)) $(ARGS)

mutants: setup  ## does the simulation find bugs? it is given some hundreds, one at a time
	@$(BIN)/python -m tests.simulation.mutants $(ARGS)

fuzz: setup  ## the property tests, a hundred times as long
	@FUZZ_EXAMPLES=100 $(BIN)/python -m pytest tests/fuzz $(ARGS)

e2e: setup  ## real processes: the local stack, and the deployed app in an emulated account
	@$(BIN)/python -m pytest tests/e2e tests/deployed $(ARGS)

aws-proof: setup  ## the deployed app in the AWS account of your environment: STAGE=proof
	@test -n "$(STAGE)" || { echo "Name a stage that is nobody's: make aws-proof STAGE=proof"; exit 1; }
	@$(BIN)/python -m pytest -n 0 -v -s tests/deployed --stage $(STAGE) $(ARGS)

# (By the unit tests alone: under a tracer greenlets, and so the simulation, are slow.)
coverage: setup  ## which lines and branches of the functions the tests reach
	@rm -rf build/coverage && mkdir -p build/coverage
	@$(BIN)/coverage run -m pytest $(foreach one,$(NOT_COVERED),--ignore tests/$(one)) $(ARGS)
	@$(BIN)/coverage combine -q && $(BIN)/coverage report

format: setup  ## let ruff write the layout
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean:  ## remove what the other commands made
	rm -rf .venv .spillway build .mypy_cache .ruff_cache .pytest_cache .hypothesis
