# make run    start the host on the embedded offline model (or on your key) and say how to talk to it
# make test   everything that proves the project
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
# What `make run` needs is in place; what everything else here needs is in place.
READY := $(VENV)/.ready
STAMP := $(VENV)/.stamp
DIST := dist
DOCS_VENV := .venv-docs
POSTGRES_TESTS := tests/contract tests/cluster
HTTP_TESTS := $(addprefix tests/http/test_,chat.py tasks.py responses.py)
RUN_LOCKS := requirements/runtime.lock requirements/build.lock
DEV_LOCK := requirements/dev.lock
# What tests start imports the same modules every time.
unexport PYTHONDONTWRITEBYTECODE
EXTRAS := --extra telegram --extra postgres --extra otel --extra image
COMPILE := --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate -q \
  pyproject.toml --custom-compile-command "make lock"

.PHONY: run setup quick fuzz test test-again newcomer long flaky mutants screenshots test-helm dist test-postgres test-http-postgres chaos attack chaos-cluster agents schema check lint types supply sbom audit image-test bench soak lock format clean docs reference

run: $(READY)
	@$(VENV)/bin/picoclaw dev

setup: $(STAMP)

# One environment, from pinned and hashed locks: what running needs first (240 MB), the rest for who develops
# (970 MB). uv where it is there, else venv and pip. What would stop it is one sentence. $(call install,LOCK...)
define install
	@stop() { echo "picoclaw: $$1" >&2; exit 2; }; \
	test -w . || stop "this folder cannot be written by uid $$(id -u); copy it to a folder of yours"; \
	command -v "$(PYTHON)" >/dev/null || stop "there is no $(PYTHON); install Python 3.11 or newer"; \
	"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  stop "$(PYTHON) is older than 3.11; install a newer one and name it: make run PYTHON=python3.12"; \
	command -v uv >/dev/null || "$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || \
	  stop "$(PYTHON) has no venv module; install it (Debian, Ubuntu: apt install python3-venv)"
	@if command -v uv >/dev/null; then \
	  uv venv --quiet --allow-existing --python "$(PYTHON)" $(VENV) && \
	  uv pip install --quiet --compile-bytecode --python $(PY) --require-hashes $(1:%=-r %) && \
	  uv pip install --quiet --python $(PY) --no-deps --no-build-isolation -e . ; \
	else \
	  $(PYTHON) -m venv $(VENV) && \
	  $(PY) -m pip install --quiet --disable-pip-version-check --require-hashes $(1:%=-r %) && \
	  $(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e . ; \
	fi
	@$(PY) -m compileall -q host mcp_server shared
endef

# What one target alone wants, from a lock of its own: $(call also,NAME)
define also
if command -v uv >/dev/null; then uv pip install --quiet --python $(PY) --require-hashes -r requirements/$(1).lock; \
else $(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/$(1).lock; fi
endef

$(READY): $(RUN_LOCKS) pyproject.toml
	@echo "Setting up $(VENV) (once; a minute with pip, seconds with uv)"
	$(call install,$(RUN_LOCKS))
	@touch $@

$(STAMP): $(DEV_LOCK) pyproject.toml
	@echo "Setting up $(VENV) for development (once; a minute or two with pip, seconds with uv)"
	$(call install,$(DEV_LOCK))
	@touch $@ $(READY)

# More workers than processors: many tests wait for what they started.
WORKERS ?= 4
SPREAD := -n $(WORKERS) --dist loadfile --no-loadscope-reorder
test: setup
	$(PY) -m pytest -m "not slow" $(SPREAD)

# Those that failed in the last `make test`, one after the other; five at most, more are no accident.
test-again: setup
	$(PY) -c 'import json, sys; sys.exit(len(json.load(open(".pytest_cache/v/cache/lastfailed"))) > 5)'
	$(PY) -m pytest -m "not slow" --last-failed --last-failed-no-failures none

# In a minute, what starts next to nothing. The tests of HTTP talk to the application in their process; files lie in
# memory, where nobody waits for a disk.
QUICK := $(addprefix tests/,agent channels contract house http models redact runs settings skills tasks \
  sandbox/test_guard.py test_jsons.py) --ignore tests/models/test_remote_model.py
quick: setup
	@directory=$$(mktemp -d -p $(firstword $(wildcard /dev/shm) /tmp)); trap "rm -rf $$directory" EXIT; \
	PYTEST_DEBUG_TEMPROOT=$$directory TEST_EXAMPLES=0.2 \
	$(PY) -m pytest -q -rfE -m "not slow" --quick -n 2 --dist loadfile --no-loadscope-reorder $(QUICK)

TEST_EXAMPLES ?= 50
# The tests that make their own examples, with fifty times as many.
fuzz: setup
	TEST_EXAMPLES=$(TEST_EXAMPLES) $(PY) -m pytest -m "not slow and hypothesis" $(SPREAD)

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
	$(PY) -m pytest -s -m "slow or not slow" tests/cluster/test_chaos.py tests/cluster/test_approvals.py

# Kills the whole tree at random, hundreds of times, and compares what clients were told with what is there;
# then damages volumes and lets calls fail, two thousand times.
chaos: setup
	$(PY) -m pytest -m slow tests/chaos

# Every attempt of the corpora against every way to run.
attack: setup
	$(PY) -m pytest -m "slow or not slow" $(SPREAD) tests/attack

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
	@mkdir -p $(DIST)
	$(VENV)/bin/cyclonedx-py requirements requirements/runtime.lock --pyproject pyproject.toml \
	  --output-reproducible --of JSON -o $(DIST)/sbom.cdx.json 2>/dev/null
	@echo $(DIST)/sbom.cdx.json

RELEASE := $(addprefix $(DIST)/,*.whl *.tar.gz *.json SHA256SUMS)
# What a release is: wheel, sdist, the SBOM and their checksums. The same commit makes the same bytes.
dist: setup
	@rm -f $(RELEASE)
	@SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct 2>/dev/null || echo 1577836800) $(PY) -m hatchling build -d $(DIST) >/dev/null
	@$(MAKE) --no-print-directory sbom
	@cd $(DIST) && sha256sum -- *.whl *.tar.gz *.json >SHA256SUMS && sha256sum --check SHA256SUMS

# Known faults of what is locked; asks the package index.
audit: setup
	$(VENV)/bin/pip-audit --requirement requirements/runtime.lock --disable-pip --progress-spinner off

# What the README says, by a newcomer with nothing but this tree: as root and as uid 1000, with time and megabytes.
newcomer:
	tests/newcomer

# What .ci/run leaves out, within 90 minutes, with a figure each: before the store, runs, sandbox or image change a lot.
long: setup
	tests/long $(ARGUMENTS)

# The suite again and again at twice the load: tests that end differently, or badly, are named. Hours, or a part:
# make flaky ARGUMENTS="--times 3 tests/runs"
flaky: setup
	tests/flaky $(ARGUMENTS)

# Small faults in the core, one at a time: which of them no test notices. By seed, as many as there is time, in a copy
# of the tree; which test runs what is measured once for a source (half an hour) and kept. Wants root, and PostgreSQL:
# make mutants ARGUMENTS="--seed 2 --minutes 30 runs store"
mutants:
	@copy=$$(mktemp -d /tmp/mutants-XXXXXX); chmod 755 $$copy; directory=$$(mktemp -d /tmp/postgres-for-tests-XXXXXX); \
	trap "$(CURDIR)/.ci/postgres remove $$directory; rm -rf $$copy" EXIT; \
	git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t $$copy && cd $$copy && \
	make --no-print-directory setup && { $(call also,mutants); } && \
	PICOCLAW_TEST_DATABASE_URL=$$(.ci/postgres start $$directory) TEST_EXAMPLES=0.2 \
	$(PY) -m tests.mutants --kept $(CURDIR)/.run/mutants.jsonl $(ARGUMENTS)

# The pictures in the docs, taken from the console in Chromium.
screenshots: setup
	$(PY) -m pytest -m slow tests/console/test_screenshots.py

# Helm's own library lints and renders the chart (a download of 90 MB, so not part of the set-up).
test-helm: setup
	@$(call also,helm)
	$(PY) -m pytest tests/deploy/test_helm.py

# The docs as a site in dist/docs: links and anchors checked, with search, llms.txt and llms-full.txt. MkDocs has an
# environment of its own (130 MB), so that tests don't wait for it.
docs: $(DOCS_VENV)/.ready
	@NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --quiet --strict
	@echo $(DIST)/docs/index.html

# The pages of the docs that are made from the program.
reference: setup
	$(PY) -m tests.docs.settings_page docs/configuration.md
	$(PY) -m tests.docs.api_page docs/api.md
	$(PY) -m tests.docs.cli_page docs/cli.md

$(DOCS_VENV)/.ready: requirements/docs.lock
	@if command -v uv >/dev/null; then \
	  uv venv --quiet --allow-existing --python "$(PYTHON)" $(DOCS_VENV) && \
	  uv pip install --quiet --python $(DOCS_VENV)/bin/python --require-hashes -r $<; \
	else \
	  $(PYTHON) -m venv $(DOCS_VENV) && \
	  $(DOCS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<; \
	fi
	@touch $@

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

# Hours: 100,000 turns in 2,000 conversations of 50 principals, a kill and a check of the store every 1,000 turns.
soak: setup
	$(PY) -m benchmarks.soak --turns 100000 --conversations 2000 --principals 50 --kill-every 1000 $(ARGUMENTS)

lock:
	uv pip compile $(COMPILE) $(EXTRAS) --extra dev -o $(DEV_LOCK)
	uv pip compile $(COMPILE) $(EXTRAS) --constraint $(DEV_LOCK) -o requirements/runtime.lock
	uv pip compile $(filter-out pyproject.toml,$(COMPILE)) --constraint $(DEV_LOCK) requirements/build.in -o requirements/build.lock
	uv pip compile $(filter-out pyproject.toml,$(COMPILE)) requirements/helm.in -o requirements/helm.lock
	uv pip compile $(filter-out pyproject.toml,$(COMPILE)) --constraint $(DEV_LOCK) requirements/mutants.in -o requirements/mutants.lock
	uv pip compile $(filter-out pyproject.toml,$(COMPILE)) requirements/docs.in -o requirements/docs.lock

clean:
	rm -rf $(VENV) $(DOCS_VENV) .run
