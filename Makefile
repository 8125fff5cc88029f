# The commands of this project; `make help` lists them. Each one prepares .venv first if it is not ready.
# Another interpreter: make test PYTHON=/path/to/python3.12. Another folder: VENV=.venv312.
# The oldest dependencies: make test VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt.

PYTHONS := 3.11 3.12 3.13 3.14
PYTHON ?=
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# one thread a process: the test processes share the cores, and tiny tensors lose time to thread hand-over;
# worksteal: slow tests lie side by side, and one process would be left with them
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help demo test test-full check bench gpu mutants lock audit dist clean

help:  ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY)  ## make data, train a small detector, evaluate it, draw what it found
	$(BIN)/msdeform demo

test: $(READY)  ## quick tests; GPU tests too where there is a GPU
	@echo "== tests, and kernels compiled ahead of time"
	env -u TRITON_INTERPRET $(PYTEST) -m "not interpreter and not slow"
	@echo "== kernels run by Triton's interpreter (it cannot share a process with compilation)"
	TRITON_INTERPRET=1 $(PYTEST) -m "interpreter and not slow"

test-full: $(READY)  ## every test, the slow ones included
	@echo "== tests, and kernels compiled ahead of time"
	env -u TRITON_INTERPRET $(PYTEST) -m "not interpreter"
	@echo "== kernels run by Triton's interpreter (it cannot share a process with compilation)"
	TRITON_INTERPRET=1 $(PYTEST) -m interpreter

# types are checked on a fresh installed copy: checkers don't follow the bridge, and an old copy is silently reused
check: $(READY)  ## lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@rm -rf build/types build/lib build/bdist.*
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --target build/types .
	cd build/types && $(abspath $(BIN))/python -m mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache -p msdeform

bench: $(READY)  ## time operator and module on every backend that runs here
	$(BIN)/python -m msdeform.bench

gpu: $(READY)  ## on a GPU machine: correctness first, then a quick benchmark (reduced on a CPU)
	$(BIN)/python -m msdeform.bench.gpu

mutants: $(READY)  ## break the code in each listed way and see the tests go red
	$(BIN)/python tests/mutants/run.py

# from nothing each time: uv would keep what an older file says of a version
lock: $(READY)  ## write constraints-hashes.txt: the hashes of all files of the pinned versions
	@{ echo "# The versions of constraints.txt with the SHA-256 of each of their files. Written by: make lock"; \
	   $(BIN)/uv pip compile --quiet --no-config --universal --no-deps --generate-hashes --no-header --no-annotate \
	      --python-version $(firstword $(PYTHONS)) constraints.txt; } > constraints-hashes.txt.new \
	   || { rm constraints-hashes.txt.new; exit 1; }
	@mv constraints-hashes.txt.new constraints-hashes.txt

# --strict: pip-audit otherwise skips the packages that its service does not answer for, and exits with 0
audit: $(READY)  ## ask PyPI for known vulnerabilities of the pinned versions
	@mkdir -p build; \
	found=$$($(BIN)/pip-audit --strict --no-deps --disable-pip --progress-spinner off -r constraints-hashes.txt \
		2>build/audit.log) && { tail -n 1 build/audit.log; exit 0; }; \
	if [ -n "$$found" ]; then echo "$$found"; \
	else echo "make: the vulnerability service gave no answer, nothing was audited: $$(tail -n 1 build/audit.log)" >&2; fi; \
	exit 1

dist: $(READY)  ## build wheel, source archive and bill of materials of the last commit, and check them
	@$(BIN)/python -m tests.house.supply.dist

clean:  ## remove the environment and everything built; keeps data and runs
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks

# uv installs in a fraction of pip's time; the environment holds pip in any case, which `make check` and tests call
$(READY): pyproject.toml $(CONSTRAINTS)
	@set -e; \
	for python in $(or $(PYTHON),python3 $(PYTHONS:%=python%)); do \
		version=$$($$python -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) \
			|| { seen="$$seen $$python does not run;"; continue; }; \
		case " $(PYTHONS) " in *" $$version "*) found=$$python; break;; *) seen="$$seen $$python is $$version;"; esac; \
	done; \
	if [ -z "$$found" ]; then \
		echo "make: this project needs Python $(firstword $(PYTHONS)) to $(lastword $(PYTHONS)); tried:$$seen name one with PYTHON=/path/to/python3.12" >&2; \
		exit 1; \
	fi; \
	if command -v uv >/dev/null; then name=uv installer="uv pip install --python $(BIN)/python"; \
	else name=pip installer="$(BIN)/python -m pip install --disable-pip-version-check"; fi; \
	echo "== making $(VENV) with $$found (Python $$version) and $$name; the first time downloads PyTorch and takes some minutes"; \
	$$found -m venv $(VENV); \
	PYTHONWARNINGS=ignore $$installer --quiet -c $(CONSTRAINTS) -e '.[train,dev]'; \
	touch $@
