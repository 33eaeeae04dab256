# `make help` lists everything. On a fresh machine `make demo` and `make test` set up what they need.
VENV ?= .venv
PYTHON ?= python3
ROUNDS ?= 30
SCHEME ?= kahe
SECONDS ?= 600
KILLS ?= 200
N ?= 10000
BIN = $(VENV)/bin
EXTRAS ?= dev
# More workers than cores: some tests wait for deadlines. In collection order: the slow files are not the last.
PYTEST = $(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder
# The security-critical packages, and the tests that cover them; under the others the tracer would only cost time.
COVERED = he_protocol he_party.files he_party.keyfile he_authority he_holder
COVERING = tests/protocol tests/party tests/property tests/vectors tests/authority tests/holder tests/security/attacks \
  tests/server/test_results.py tests/server/test_choosing.py
# What needs neither a database nor another process: `make test-fast`.
FAST = tests/protocol tests/property
# The tests of one package: `make test PKG=he_holder`.
ALSO_he_protocol = tests/property tests/vectors tests/fuzz/test_parsers.py tests/fuzz/test_targets.py
ALSO_he_server = tests/migrations tests/fuzz/test_http.py tests/fuzz/test_openapi.py
ALSO_he_holder = tests/security/attacks
OWN = $(or $(wildcard tests/$(PKG:he_%=%)),$(error no tests of a package $(PKG)))
TESTS = $(if $(PKG),$(OWN) $(ALSO_$(PKG)),tests)
# The Pythons of `make test-matrix`: those of them that this machine has.
PYTHONS ?= 3.11 3.12 3.13

# Compiled modules are kept: tests start hundreds of processes, and each would compile the project's modules again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo fmt check lint types contracts test test-fast test-long test-matrix test-extras coverage defences soak mutants \
  crash fuzz docs clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

# torch first and pinned: anything newer, or without the pin, pulls gigabytes of CUDA.
$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable '.[$(EXTRAS)]'
	touch $@

$(VENV)/.warm: $(VENV)/.ready
	$(BIN)/python -m tests.warm
	touch $@

demo: $(VENV)/.ready ## 24 phones train under DP and encryption; writes demo-report.json and .png (ROUNDS, SCHEME)
	$(BIN)/python -m examples.har --rounds $(ROUNDS) --scheme $(SCHEME)

fmt: $(VENV)/.ready ## put the code into its format, and mend what can be mended by itself
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: lint types contracts ## style, types, import contracts

lint: $(VENV)/.ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.ready
	$(BIN)/mypy

contracts: $(VENV)/.ready
	$(BIN)/lint-imports

test: $(VENV)/.warm ## all that guards correctness, on SQLite and PostgreSQL; with PKG=he_holder one package's tests
	$(PYTEST) -m 'not long' $(TESTS)

test-fast: $(VENV)/.warm ## what needs no database and no other process, in less than a minute
	$(PYTEST) -m 'not long' $(FAST)

test-long: $(VENV)/.warm coverage ## what `make test` leaves out, bounded, for CI
	$(PYTEST) -m long tests $(COVERING:%=--ignore=%)
	$(BIN)/python -m tests.simulation.soak 250 --seconds 30
	$(BIN)/python -m tests.simulation.mutants --sample 2
	$(BIN)/python -m tests.security.defences --sample 10
	$(BIN)/python -m tests.fuzz --seconds 60

coverage: $(VENV)/.warm ## coverage of the security-critical packages by their tests, long ones too: at least 95 %
	$(PYTEST) $(COVERING) $(COVERED:%=--cov=%) --cov-fail-under=95 --cov-report=term:skip-covered

test-extras: $(VENV)/.ready ## the wheel in empty environments: each extra, and a first round with one's own model
	$(BIN)/python .ci/extras

# Without atheris: it has no wheels for some of them, and the tests that need it are left out.
test-matrix: ## make test on every Python of PYTHONS that this machine has, each in an environment of its own
	@for version in $(PYTHONS); do \
	  python=$$(.ci/python $$version) || { echo "Python $$version: not on this machine"; continue; }; \
	  echo "Python $$version: $$python"; \
	  $(MAKE) --no-print-directory test VENV=$(VENV)-$$version PYTHON="$$python" EXTRAS=demo,tools || exit 1; \
	done

defences: $(VENV)/.ready ## every defence of the threat model switched off in turn: a test of its row must fail (WORDS)
	$(BIN)/python -m tests.security.defences $(WORDS)

soak: $(VENV)/.ready ## N simulated schedules of the whole system: crashes, power cuts, lost connections, a lying server
	$(BIN)/python -m tests.simulation.soak $(N)

mutants: $(VENV)/.ready ## planted bugs that the simulation must find
	$(BIN)/python -m tests.simulation.mutants

crash: $(VENV)/.ready ## kill -9 at random moments on SQLite and PostgreSQL (KILLS), then an account of every update
	$(BIN)/python -m tests.crash --kills $(KILLS)

fuzz: $(VENV)/.ready ## many generated requests and messages, then SECONDS of coverage-guided search over all formats
	HUSHSUM_FUZZ_EXAMPLES=1000 $(BIN)/python -m pytest tests/fuzz
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS)

docs: $(VENV)/.ready ## the documentation site, in build/site/html
	$(BIN)/pip install --quiet --editable '.[docs]'
	$(BIN)/python -m docs.site

clean: ## remove environments and what the demo wrote
	rm -rf $(VENV) $(PYTHONS:%=$(VENV)-%) demo-run demo-report.json demo-report.png
