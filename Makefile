# Two commands do everything on a fresh machine: `make run` and `make test`.
# They need Python 3.11 or newer with venv and pip; all else goes into .venv or is skipped in plain words.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PYTEST := $(BIN)/coverage run -m pytest -q
SAY    := printf '\n== %s\n'
FUZZ_S ?= 60
DEBIAN_POSTGRES ?= /usr/lib/postgresql/15/bin

export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PYRIGHT_PYTHON_IGNORE_WARNINGS = 1

# What `make test` runs after `make check`, the longest first.
GROUPS := integration crash oldest shown quick
AT_A_TIME ?= 2
SEVERAL := $(if $(filter output-sync,$(.FEATURES)),--jobs=$(AT_A_TIME) --output-sync=target)

.DEFAULT_GOAL := help
.PHONY: help run test check unit $(GROUPS) $(GROUPS:%=group-%) bench fuzz docs build clean

help: ## say what there is
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(VENV)/.run ## the service: http://127.0.0.1:8080, a database of its own, mails caught; ARGS="--port 9000"
	@exec $(BIN)/python run.py $(ARGS)

test: $(VENV)/.dev ## every check and test, on every PostgreSQL at hand, with the wheel and the README
	@rm -rf .coverage .coverage.* .logs
	@$(MAKE) --no-print-directory check
	@$(SAY) "$(GROUPS): each is shown as it ends"
	@mkdir -p .logs && $(MAKE) --no-print-directory $(SEVERAL) $(GROUPS:%=group-%) || { cat .logs/*.failed; exit 2; }
	@$(SAY) "coverage"
	@$(BIN)/coverage combine --quiet && $(BIN)/coverage report

check: $(VENV)/.dev ## what a change must pass first: format, lint, types, arrows, house rules, unit tests
	@$(SAY) "format, lint, types, arrows"
	@$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/pyright --pythonpath $(BIN)/python && $(BIN)/lint-imports --no-cache
	@$(SAY) "house rules and unit tests"
	@$(PYTEST) tests/test_tidy.py tests/unit

unit: $(VENV)/.dev ## the unit tests alone
	@$(BIN)/python -m pytest -q tests/unit

crash: $(VENV)/.dev ## kill processes, cut connections, restart PostgreSQL; nothing may be lost
	@$(SAY) "crash tests"
	@$(PYTEST) tests/crash

integration: $(VENV)/.dev ## integration and contract tests on the embedded PostgreSQL
	@$(SAY) "integration and contract tests, embedded PostgreSQL"
	@$(PYTEST) -m 'not bench' tests/integration tests/contract

oldest: $(VENV)/.dev ## the same on the oldest PostgreSQL supported, but for mail, the embedded server and the default port
	@if [ -x $(DEBIAN_POSTGRES)/postgres ]; then \
	   $(SAY) "integration and contract tests, $$($(DEBIAN_POSTGRES)/postgres --version)" && \
	   TASKQ_TEST_PG_BIN=$(DEBIAN_POSTGRES) $(PYTEST) -m 'not bench' tests/integration tests/contract --ignore-glob='*/test_mail_*' --ignore-glob='*/test_post*' \
	     --deselect tests/integration/test_service.py::test_second_instance_joins_on_another_port_when_none_was_asked_for; \
	 else \
	   $(SAY) "SKIPPED: no PostgreSQL 15 in $(DEBIAN_POSTGRES), the oldest supported"; \
	 fi

quick: $(VENV)/.dev ## one short round of every benchmark
	@$(SAY) "one short round of every benchmark"
	@$(BIN)/python -m pytest -q -m bench tests/integration

shown: $(VENV)/.dev ## what README and docs show, and the wheel
	@$(SAY) "README and docs, wheel"
	@$(BIN)/python -m pytest -q tests/test_docs.py tests/test_wheel.py

bench: $(VENV)/.run ## measure this machine; ARGS=... for one benchmark
	@exec $(BIN)/taskq bench $(ARGS)

fuzz: $(VENV)/.dev ## let coverage choose what the mail modules' properties are tried with, FUZZ_S=60 seconds each
	@$(BIN)/pip install --quiet --editable '.[dev,fuzz]'
	@failed=; for name in address mailbox headers compose; do \
	   $(SAY) "$$name" && PYTHONPATH=tests $(BIN)/python tests/fuzz/fuzz_mail.py $$name -verbosity=0 -max_total_time=$(FUZZ_S) || failed="$$failed $$name"; \
	 done; [ -z "$$failed" ] || { echo "broken:$$failed"; exit 1; }

docs: $(VENV)/.run ## write docs/settings.md anew from the settings
	@$(BIN)/taskq config --markdown > docs/settings.md

build: $(VENV)/.dev ## the wheel and the source archive, into dist/
	@$(BIN)/hatchling build

clean: ## remove what these commands made; no data of the service
	@rm -rf $(VENV) dist build .logs .coverage .coverage.* .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -prune -exec rm -rf {} +

# A group within `make test`.  One that fails is shown by `test` itself, after all others.

$(GROUPS:%=group-%): group-%:
	@$(MAKE) --no-print-directory $* > .logs/$* 2>&1 || { mv .logs/$* .logs/$*.failed; exit 1; }
	@cat .logs/$*

# The virtual environment: made once, brought up to date when pyproject.toml changes.

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	   { echo "$(PYTHON) is $$($(PYTHON) --version 2>&1): taskq needs Python 3.11 or newer; name one with make PYTHON=..."; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "No venv here: on Debian and Ubuntu install python3-venv"; exit 2; }

$(VENV)/.run: pyproject.toml | $(BIN)/python
	@echo "installing what taskq needs into $(VENV)"
	@$(BIN)/pip install --quiet --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	@echo "installing what taskq and its tests need into $(VENV)"
	@$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.run
