# make run    set everything up and serve on https://localhost:8443
# make test   set everything up and run the unit and server tests
# make check  all tests on one Python: also networks, other programs, documents and faults
# make bench  measure this server and others that do the same job: docs/benchmarks.md
# make soak   minutes of load and faults, and a judge: docs/soak.md (SOAK_SECONDS=300)
# make failover  minutes of PostgreSQL failovers, with figures: docs/high-availability.md
# make scan   look at a running server's TLS with sslyze and testssl.sh
# make audit  ask for known vulnerabilities of the locked dependencies
# make docs   check the prose, and build the documentation site in site/
# make release VERSION=x.y.z  check, build and tag a release: CONTRIBUTING.md
# Others: lint, test-all (unit and server tests on every other installed Python), lock, clean

TESTED := 3.13 3.12 3.11
# test-all runs the tests on it if it is installed.
UNTESTED := 3.14
VENV := .venv
BIN := $(VENV)/bin
SCAN := .venv-scan
LOCKS := requirements

# The newest tested Python that can make virtual environments. Or: make run PYTHON=/path/to/python3
PYTHON ?= $(shell for v in $(TESTED); do for p in python$$v python3 python; do \
	command -v $$p >/dev/null 2>&1 && $$p -c "import ensurepip, sys, venv; \
	sys.exit('%d.%d' % sys.version_info[:2] != '$$v')" 2>/dev/null && echo $$p && exit; \
	done; done)

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: run test check check-rest bench soak failover scan audit docs test-all lint lock release clean

run: $(VENV)/.run
	@$(BIN)/python -c "import sys; v = '%d.%d' % sys.version_info[:2]; \
	v in '$(TESTED)'.split() or print('Python', v, 'is not tested; tested: $(TESTED)', file=sys.stderr)"
	@$(BIN)/python -m certs_gen --if-missing
	@exec $(BIN)/python -m tornado_status --config config.yaml

# A test that fails beside others and passes alone is named as flaky; more than three fail the run.
test: $(VENV)/.dev
	$(BIN)/python -m tests.support.run_tests $(PYTEST_FLAGS) tests/unit tests/server

check: test check-rest

check-rest: $(VENV)/.dev
	$(BIN)/python -m tests.support.run_tests $(PYTEST_FLAGS) \
		tests/network tests/system tests/docs tests/faults tests/abuse

bench: $(VENV)/.run
	$(BIN)/python -m benchmarks $(BENCH_FLAGS)

soak: $(VENV)/.dev
	$(BIN)/python -m tests.support.faults.soak

failover: $(VENV)/.dev
	$(BIN)/python -m tests.support.faults.failover_campaign

scan: $(VENV)/.dev $(SCAN)/.scan
	$(BIN)/python -m tests.support.scan

# Strict: a dependency of which nothing could be asked fails, too.
audit: $(SCAN)/.scan
	for locked in $(LOCKS)/*.txt benchmarks/requirements.txt; do \
		$(SCAN)/bin/pip-audit --strict --disable-pip --require-hashes --requirement $$locked \
		|| exit 1; done

# Strict by mkdocs.yml: a page that is not in the nav, or a link that leads nowhere, fails. Never with
# --quiet: MkDocs then does not count its warnings.
docs: $(VENV)/.docs
	$(BIN)/python -m docs_site.prose
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

test-all: $(VENV)/.dev
	tests/on_each_python.sh $(UNTESTED) $(TESTED)

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "No Python that this was tested with ($(TESTED)) and that has" \
		"venv; install one (Debian: python3-venv), or: make PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(VENV)/bin/python $(LOCKS)/run.txt pyproject.toml
	$(BIN)/python -m pip install --quiet --require-hashes --requirement $(LOCKS)/run.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.run $(LOCKS)/dev.txt
	$(BIN)/python -m pip install --quiet --require-hashes --requirement $(LOCKS)/dev.txt
	@touch $@

$(VENV)/.docs: $(VENV)/.run $(LOCKS)/docs.txt
	$(BIN)/python -m pip install --quiet --require-hashes --requirement $(LOCKS)/docs.txt
	@touch $@

# An environment of its own: sslyze wants an older cryptography than we do.
$(SCAN)/.scan: $(LOCKS)/scan.txt
	@test -n "$(PYTHON)" || { echo "No Python that this was tested with ($(TESTED))" >&2; exit 2; }
	$(PYTHON) -m venv $(SCAN)
	$(SCAN)/bin/python -m pip install --quiet --require-hashes --requirement $(LOCKS)/scan.txt
	@touch $@

# New versions of everything, with the hashes of every file: then run the tests.
# make lock UPGRADE= keeps the versions that still fit.
lock: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet uv
	$(COMPILE) --group build --extra board --extra embedded pyproject.toml -o $(LOCKS)/run.txt
	$(COMPILE) -c $(LOCKS)/run.txt --extra nats pyproject.toml -o $(LOCKS)/image.txt
	$(COMPILE) -c $(LOCKS)/run.txt --extra nats --extra otel pyproject.toml -o $(LOCKS)/otel.txt
	$(COMPILE) -c $(LOCKS)/run.txt -c $(LOCKS)/otel.txt --all-extras --group build --group dev \
		pyproject.toml -o $(LOCKS)/dev.txt
	for group in docs kubernetes openapi; do \
		$(COMPILE) -c $(LOCKS)/dev.txt --group $$group -o $(LOCKS)/$$group.txt || exit 1; done
	for group in image-build scan; do \
		$(COMPILE) --group $$group -o $(LOCKS)/$$group.txt || exit 1; done
	$(COMPILE) benchmarks/requirements.in -o benchmarks/requirements.txt

COMPILE = $(BIN)/uv pip compile --quiet $(UPGRADE) $(LOCK_FLAGS)
UPGRADE := --upgrade
LOCK_FLAGS := --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	--no-emit-index-url --no-emit-find-links

release: $(VENV)/.dev
	tools/release.sh "$(VERSION)"

clean:
	rm -rf $(VENV) $(SCAN) site benchmarks/.build build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
