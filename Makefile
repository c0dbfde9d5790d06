# make run    start the host on the embedded offline model (or on your key) and say how to talk to it
# make test   everything that proves the project
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.stamp
POSTGRES_TESTS := tests/contract tests/cluster
HTTP_TESTS := $(addprefix tests/http/test_,chat.py tasks.py)
LOCK := requirements/dev.lock
EXTRAS := --extra telegram --extra postgres --extra otel --extra image
COMPILE := --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate -q \
  pyproject.toml --custom-compile-command "make lock"

.PHONY: run setup test test-postgres test-http-postgres chaos attack chaos-cluster agents schema check lint types supply sbom audit image-test bench lock format clean

run: setup
	@$(VENV)/bin/picoclaw dev

setup: $(STAMP)

# One environment from the pinned, hashed lock file: uv when it is there, else venv and pip.
$(STAMP): $(LOCK) pyproject.toml
	@echo "Setting up $(VENV) from $(LOCK) (once; a minute or two with pip, seconds with uv)"
	@if command -v uv >/dev/null; then \
	  uv venv --quiet --allow-existing --python "$(PYTHON)" $(VENV) && \
	  uv pip install --quiet --python $(PY) --require-hashes -r $(LOCK) && \
	  uv pip install --quiet --python $(PY) --no-deps --no-build-isolation -e . ; \
	else \
	  $(PYTHON) -m venv $(VENV) && \
	  $(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r $(LOCK) && \
	  $(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e . ; \
	fi
	@$(PY) -m compileall -q host mcp_server shared
	@touch $(STAMP)

# The sandbox's own tests go first, alone: they count the processes that are left. The others in the order of
# their folders: the long ones are not the last.
APART := tests/attack tests/sandbox
test: setup
	$(PY) -m pytest -m "not slow" $(APART)
	$(PY) -m pytest -m "not slow" -n 3 --dist loadfile --no-loadscope-reorder $(APART:%=--ignore %)

# The tests that want PostgreSQL (the others run on SQLite), on a server that is thrown away afterwards.
test-postgres: setup
	@directory=$$(mktemp -d /tmp/postgres-for-tests-XXXXXX); trap ".ci/postgres remove $$directory" EXIT; \
	PICOCLAW_TEST_DATABASE_URL=$$(.ci/postgres start $$directory) $(PY) -m pytest $(POSTGRES_TESTS)

# Hosts on PostgreSQL answer as hosts on SQLite do; wants PICOCLAW_TEST_DATABASE_URL.
test-http-postgres: setup
	PICOCLAW_TEST_ENGINE=postgres $(PY) -m pytest -n 2 --dist loadfile $(HTTP_TESTS)

# Three hosts on one PostgreSQL: killed and frozen every few seconds for five minutes, the database crashed once.
chaos-cluster: setup
	@directory=$$(mktemp -d /tmp/postgres-for-tests-XXXXXX); trap ".ci/postgres remove $$directory" EXIT; \
	PICOCLAW_TEST_DATABASE_URL=$$(.ci/postgres start $$directory) CHAOS_SECONDS=300 \
	$(PY) -m pytest -s tests/cluster/test_chaos.py

# Kills the whole tree at random, hundreds of times, and compares what clients were told with what is there;
# then damages volumes and lets calls fail, two thousand times.
chaos: setup
	$(PY) -m pytest -m slow tests/chaos

# Every attempt of the corpora against every way to run, about 20 minutes.
attack: setup
	$(PY) -m pytest -m "slow or not slow" tests/attack

# Requests made from the OpenAPI document against a live host, some two minutes.
schema: setup
	$(PY) -m pytest -m slow tests/http/test_schemathesis.py

# Claude Code and Codex by the blocks of docs/mcp.md; npm brings them (0.8 GB).
agents: setup
	$(PY) -m pytest -m slow tests/mcp

check: lint types supply

# What of the supply chain can be checked offline: locks, hashes, licences, that the SBOM can be made.
supply: setup
	$(PY) -m pytest -q tests/deploy/test_supply.py

# What the image is made of, as CycloneDX 1.6.
sbom: setup
	@mkdir -p dist
	$(VENV)/bin/cyclonedx-py requirements requirements/runtime.lock --pyproject pyproject.toml \
	  --output-reproducible --of JSON -o dist/sbom.cdx.json 2>/dev/null
	@echo dist/sbom.cdx.json

# Known faults of what is locked; asks the package index.
audit: setup
	$(VENV)/bin/pip-audit --requirement requirements/runtime.lock --disable-pip --progress-spinner off

# Builds the Dockerfile from nothing (debootstrap, buildah; root) and tests what it made.
image-test: setup
	deploy/image/test.sh $(ARGUMENTS)

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: setup
	$(VENV)/bin/mypy

format: setup
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

bench: setup
	$(PY) -m benchmarks

lock:
	uv pip compile $(COMPILE) $(EXTRAS) -o requirements/runtime.lock
	uv pip compile $(COMPILE) $(EXTRAS) --extra dev -o requirements/dev.lock
	uv pip compile $(filter-out pyproject.toml,$(COMPILE)) requirements/build.in -o requirements/build.lock

clean:
	rm -rf $(VENV) .run
