# One command per job, the same in CI. PYTHON chooses the interpreter (3.10 or newer), ARGS goes to the command.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
RUN := $(BIN)/python -m

.PHONY: help demo study test compiled versions e2e peers backends fetch docs lint format bench lock clean

help:
	@echo "make demo      ask a small real model and see the joules of each call (ARGS=--help for more)"
	@echo "make study     collect 200 calls of a small real model, report, learn a forecast, print its error"
	@echo "make test      all tests that need no compiled back end"
	@echo "make compiled  a wheel with the ledger as machine code, and its tests, in build/compiled; benchmarks run there, too"
	@echo "make versions  the tests of the client wrappers on the oldest and newest libraries and Pythons"
	@echo "make e2e       the tests against Ollama, Collector, Jaeger, Tempo and Prometheus, got once into the cache"
	@echo "make peers     the tests beside other people's instrumentations, in environments of their own"
	@echo "make docs      the documentation as a site, in build/site"
	@echo "make lint      ruff, mypy, import-linter; make format puts right what ruff can"
	@echo "make bench     a benchmark: make bench ARGS=accuracy; without ARGS it lists them"
	@echo "make backends  only build the back ends; make fetch only fetches the model, Scaphandre and Prometheus"
	@echo "make lock      resolve requirements-dev.txt anew (needs uv)"

demo: $(VENV)/demo.stamp
	@$(BIN)/otel-llm-energy demo $(ARGS)

# Four workers at most, however many cores: some tests start a model server or several processes of their own.
IN_PARALLEL := -n logical --maxprocesses 4

test: fetch
	$(RUN) pytest $(IN_PARALLEL) -m "not e2e and not suite" $(ARGS)

# Away from the checkout, whose Python files would be imported instead.
compiled: $(VENV)/dev.stamp
	rm -rf build/compiled && mkdir -p build/compiled
	OTEL_LLM_ENERGY_COMPILE=1 $(RUN) pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation \
	  --wheel-dir build/compiled .
	cp -r tests benchmarks tools pyproject.toml build/compiled
	cd build/compiled && $(abspath $(BIN))/python -m zipfile -e otel_llm_energy-*.whl . \
	  && OTEL_LLM_ENERGY_COMPILE=1 $(abspath $(BIN))/python -m pytest $(IN_PARALLEL) tests/ledger tests/tracing $(ARGS)

versions: fetch
	$(RUN) tools.versions $(ARGS)

# Examples with LangChain run in the environment of the peers.
e2e: fetch backends .venv-peers/stamp
	$(RUN) pytest -m e2e $(ARGS)

# Each row: the environment's requirements, and whose instrumentations are tested in it.
peers: fetch .venv-peers/stamp .venv-peers-openlit/stamp
	OTEL_LLM_ENERGY_TEST_PEERS="genai-openai genai-langchain openllmetry-openai openllmetry-ollama \
	  openllmetry-langchain openinference-openai openinference-ollama openinference-langchain logfire" \
	  .venv-peers/bin/python -m pytest tests/peers $(ARGS)
	OTEL_LLM_ENERGY_TEST_PEERS="openlit-openai openlit-ollama" \
	  .venv-peers-openlit/bin/python -m pytest tests/peers/test_foreign_spans.py $(ARGS)

.venv-%/stamp: requirements-%.txt pyproject.toml
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-$*.txt
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

backends: $(VENV)/dev.stamp
	$(RUN) tools.backends

# Where there is no package of one of the two the tests that need it say so themselves.
fetch: $(VENV)/dev.stamp
	$(RUN) tools.fetch_model
	-$(RUN) tools.backends scaphandre prometheus

docs: $(VENV)-docs/stamp
	NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/mkdocs build --strict

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(RUN) mypy
	$(RUN) mypy tools tests/support tests/e2e tests/conftest.py
	$(BIN)/lint-imports

format: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: fetch
	$(RUN) benchmarks $(ARGS)

LOCK := uv pip compile --universal --python-version 3.10 --generate-hashes \
  --no-header --no-annotate --no-emit-index-url --quiet

study: fetch
	$(RUN) benchmarks study $(ARGS)

lock:
	$(LOCK) pyproject.toml --group dev --extra demo --extra ollama --extra nvidia --extra study -o requirements-dev.txt
	$(LOCK) --group docs -o requirements-docs.txt
	$(LOCK) pyproject.toml --group peers --extra demo --extra ollama --extra langchain -o requirements-peers.txt
	$(LOCK) pyproject.toml --group peers-openlit --extra demo --extra ollama -o requirements-peers-openlit.txt

clean:
	rm -rf $(VENV) $(VENV)-docs .venv-peers .venv-peers-openlit dist build
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "Python 3.10 or newer is needed: make PYTHON=python3.11 ..." >&2; exit 1; }
	@echo "Setting up $(VENV), once: some 20 seconds" >&2
	@$(PYTHON) -m venv $(VENV)

# The demo takes what a user's pip would take; the tests take what was pinned, which includes the demo's.
$(VENV)/demo.stamp: pyproject.toml | $(BIN)/python
	@$(RUN) pip install --quiet --disable-pip-version-check --editable '.[demo]'
	@touch $@

$(VENV)/dev.stamp: requirements-dev.txt pyproject.toml | $(BIN)/python
	@$(RUN) pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	@$(RUN) pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@ $(VENV)/demo.stamp

# Of its own, since what builds the documentation pins other versions than the tests do.
$(VENV)-docs/stamp: requirements-docs.txt | $(BIN)/python
	@$(RUN) venv $(VENV)-docs
	@$(VENV)-docs/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-docs.txt
	@touch $@
