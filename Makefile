# What people do with this checkout. `make` lists it.
#
# Needed: make, git, and a Python from 3.11 to 3.14. `make PYTHON=/path/to/python …` chooses one for a new venv;
# a venv that works is kept, until `make clean`.

VENV := .venv
BIN := $(VENV)/bin
# Of `make test`. Two cores are busy with three: tests wait for servers, and for time to pass.
WORKERS ?= 3

# What the machine's owner has set for other projects must not reach into this one. Without byte code each program that
# the tests start would compile all that it imports.
unexport PYTHONPATH
unexport PYTHONHOME
unexport PYTHONDONTWRITEBYTECODE

# The lock names every package, so pip need not resolve anything, and every hash, so nothing else gets in. Wheels
# only: a source package would be built with tools that no lock holds. Byte code is left to the first import, because
# compiling all that is never imported takes longer than installing it.
PIP_INSTALL = $(BIN)/python -m pip --disable-pip-version-check --no-input install --quiet \
	--no-deps --no-compile --only-binary :all: --require-hashes

# What an installation depends on. A copy of it is kept in the venv; one that differs, or is missing, means: install.
# Contents, not times, because git gives old files new times. The place counts, because the editable install names it.
RUNTIME_STATE = { pwd; cat requirements.txt; }
DEV_STATE = { pwd; cat requirements.txt requirements-dev.txt pyproject.toml; }

.DEFAULT_GOAL := help
.PHONY: help demo test check bench soak lock reference clean venv runtime dev guard-locks

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.* ## \(.*\)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) | \
		while IFS='|' read -r target text; do printf '%-14s%s\n' "$$target" "$$text"; done

# The project is not installed for it, only found by PYTHONPATH: installing needs its build backend, which is not in
# the runtime lock, and which pip would otherwise fetch without a hash.
demo: runtime ## run examples/demo.py with the runtime dependencies only
	@PYTHONPATH='$(CURDIR)' $(BIN)/python examples/demo.py

# The tests bring their own Postgres and Redis, from wheels. TEST_SERVERS=system takes the machine's, PG_DSN and REDIS_URL
# name servers that run already (tests/servers/binaries.py). They write in memory where it has the room (tests/scratch.py).
# Who has nothing left to do takes tests from the others: some take a thousand times as long as most.
test: check ## check, then every test but the soak tests
	@TMPDIR="$$($(BIN)/python -m tests.scratch)" \
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m "not soak" $(ARGS)

check: dev guard-locks ## formatting, lint, both type checkers, import contracts, lock files
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy
	$(BIN)/python -m basedpyright --pythonpath $(BIN)/python
	$(BIN)/python -c 'from importlinter.cli import lint_imports_command as run; run()'

bench: dev ## measure, and print the ratios
	@$(BIN)/python -m benchmarks $(ARGS)

soak: dev ## the long runs that `make test` leaves out
	@$(BIN)/python -m pytest -m soak $(ARGS)

# Everything is resolved anew, to the newest versions that pyproject.toml allows. uv is needed for this alone, so it
# lives in a venv that is thrown away; uv.lock would carry addresses, so it goes too.
lock: venv ## pin the dependencies anew (requirements.txt, requirements-dev.txt)
	@tools=$$(mktemp -d) && trap 'rm -rf "$$tools" uv.lock' EXIT && rm -f uv.lock && \
	$(BIN)/python -m venv "$$tools" && \
	"$$tools/bin/python" -m pip --disable-pip-version-check install --quiet uv && \
	set -- "$$tools/bin/uv" export --quiet --python $(BIN)/python --no-emit-project --no-annotate --no-header && \
	"$$@" --output-file requirements.txt >/dev/null && \
	"$$@" --all-extras --output-file requirements-dev.txt >/dev/null
	@$(MAKE) --no-print-directory guard-locks

reference: dev ## make the reference in docs/cli.md anew from the commands
	$(BIN)/python -m eventstore.cli.reference docs/cli.md

clean: ## remove the venv, caches and everything built
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache demo-data
	find . -name .git -prune -o -type d -name __pycache__ -exec rm -rf {} +

# A lock with an address in it works only where that address does.
guard-locks:
	@if grep -n '://' requirements.txt requirements-dev.txt; then \
		echo 'the lock files hold the addresses above: make them again with `make lock`' >&2; exit 1; \
	fi

# The first interpreter that runs, is of the right version and can make a venv: pyenv leaves shims that fail when
# they are run, and Debian has ensurepip in a package of its own.
venv:
	@if $(BIN)/python -c 'import sys, pip; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' >/dev/null 2>&1; \
	then exit 0; fi; \
	unable=; \
	for name in $(or $(PYTHON),python3.11 python3.12 python3.13 python3.14 python3); do \
		IFS=:; for place in $(if $(findstring /,$(PYTHON)),'',$$PATH); do \
			python="$${place:+$$place/}$$name"; \
			"$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' >/dev/null 2>&1 || continue; \
			if "$$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then \
				echo "making $(VENV) with $$python"; \
				exec "$$python" -m venv --clear $(VENV); \
			fi; \
			unable="$$python"; \
		done; unset IFS; \
	done; \
	if [ -n "$$unable" ]; then \
		version=$$("$$unable" -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
		echo "$$unable cannot make a virtual environment: it lacks ensurepip." >&2; \
		echo "Install it (Debian, Ubuntu: apt install python$$version-venv), or choose another: make PYTHON=/path/to/python" >&2; \
	else \
		echo "No Python from 3.11 to 3.14 that runs was found$(if $(PYTHON), as $(PYTHON))." >&2; \
		echo "Install one (Debian, Ubuntu: apt install python3.11 python3.11-venv), or choose one: make PYTHON=/path/to/python" >&2; \
	fi; \
	exit 1

runtime: venv guard-locks
	@if ! $(RUNTIME_STATE) | cmp -s - $(VENV)/runtime.state; then \
		echo 'installing requirements.txt' && rm -f $(VENV)/runtime.state && \
		$(PIP_INSTALL) -r requirements.txt && \
		$(RUNTIME_STATE) > $(VENV)/runtime.state; \
	fi

# The development lock holds all of the runtime lock (tests/test_project.py), so it serves the demo too.
dev: venv guard-locks
	@if ! $(DEV_STATE) | cmp -s - $(VENV)/dev.state; then \
		echo 'installing requirements-dev.txt' && rm -f $(VENV)/dev.state $(VENV)/runtime.state && \
		$(PIP_INSTALL) -r requirements-dev.txt && \
		$(BIN)/python -m pip --disable-pip-version-check install --quiet --no-deps --no-build-isolation --editable . && \
		$(RUNTIME_STATE) > $(VENV)/runtime.state && \
		$(DEV_STATE) > $(VENV)/dev.state; \
	fi
