# Two commands do everything on a fresh machine: make demo, make test.
VENV ?= .venv
PYTHON ?= python3
ROUNDS ?= 30
SCHEME ?= kahe
SECONDS ?= 600
KILLS ?= 200
N ?= 10000
BIN = $(VENV)/bin
# More workers than cores: some tests wait for deadlines. In collection order: the slow files are not the last.
PYTEST = $(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder
# What covers the security-critical packages; under the others the tracer would only cost time.
COVERING = tests/unit tests/property tests/vectors tests/keys tests/hostile

.PHONY: docs demo test defences soak mutants crash fuzz lint clean

# torch first and pinned: anything newer, or without the pin, pulls gigabytes of CUDA.
$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

demo: $(VENV)/.ready ## 24 phones train under DP and encryption; writes demo-report.json and .png
	$(BIN)/python -m examples.har --rounds $(ROUNDS) --scheme $(SCHEME)

test: $(VENV)/.ready ## all tests, on SQLite and PostgreSQL; simulated schedules; coverage of the security-critical packages
	$(PYTEST) tests $(COVERING:%=--ignore=%)
	$(BIN)/python -m tests.simulation.soak 2000 --seconds 150
	$(PYTEST) $(COVERING) --cov=he_protocol --cov=he_party.files --cov=he_party.keyfile --cov=he_authority --cov=he_holder --cov-fail-under=95 --cov-report=term:skip-covered

defences: $(VENV)/.ready ## every defence of the threat model switched off in turn: a test of its row must fail
	$(BIN)/python -m tests.defences $(WORDS)

crash: $(VENV)/.ready ## kill -9 at random moments on SQLite and PostgreSQL, then an account of every update
	$(BIN)/python -m tests.crash --kills $(KILLS)

soak: $(VENV)/.ready ## N simulated schedules of the whole system: crashes, power cuts, lost connections, a lying server
	$(BIN)/python -m tests.simulation.soak $(N)

mutants: $(VENV)/.ready ## planted bugs that the simulation must find
	$(BIN)/python -m tests.simulation.mutants

fuzz: $(VENV)/.ready ## many generated requests and messages, then SECONDS of coverage-guided search over all formats
	HUSHSUM_FUZZ_EXAMPLES=1000 $(BIN)/python -m pytest tests/fuzz
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS)

lint: $(VENV)/.ready ## style, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.ready ## the documentation site, in build/site/html
	$(BIN)/pip install --quiet --editable '.[docs]'
	$(BIN)/python -m docs.site

clean:
	rm -rf $(VENV) demo-run demo-report.json demo-report.png
