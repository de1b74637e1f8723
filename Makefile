# make run    sets up .venv and starts gateway, neuron and the demo model on this machine (ARGS='--model …')
# make test   sets up .venv with the test extras and runs every test, five files at once (ARGS='-k rings'); what fails
#             there runs once more by itself, and is named: on a machine that is short of processors that tells a test
#             that did not wait long enough from a fault
# make test-real  fetches two real models and llama.cpp's vocabularies once (480 MB, into ~/.cache/cortex), and runs
#             what applies to them
# make test-clients  installs clients of PyPI and npm, 1.6 GB, and runs sessions of each of them; needs node
# make packages   builds sdist, wheel, .deb and .rpm into dist/, for this machine's processor and Python
# make lint   formatter and linter, as CI runs them
#
# TORCH=cpu, where .venv is made, takes PyTorch's build for the CPU, 1.3 GB with all else (2.0 GB for the tests,
# which need Triton), in place of PyPI's for CUDA, 4.9 GB.

PYTHON ?= python3
TORCH ?= pypi
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
VENV := .venv
PIP = $(VENV)/bin/python -m pip install --disable-pip-version-check -c constraints.txt
PIP_INPUTS := pyproject.toml setup.cfg constraints.txt $(wildcard workers/kernels/*.[ch]) workers/weights/quantise.c

# Tests start hundreds of processes of ours; each would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

PYTEST := $(VENV)/bin/python -m pytest
ALONE := -n 0 -vv --last-failed --last-failed-no-failures none --maxfail 3
tested = $(PYTEST) $(1) || { [ $$? = 1 ] && echo "What failed runs again, alone." && $(PYTEST) $(1) $(ALONE); }

.PHONY: run test test-real test-clients packages lint

run: $(VENV)/installed-run
	@$(VENV)/bin/cortex up $(ARGS)

test: $(VENV)/installed-test
	$(call tested,-n 5 --dist loadfile --no-loadscope-reorder $(ARGS))

test-real: $(VENV)/installed-test
	folder=$$($(VENV)/bin/python tools/fetch_real_models.py) && CORTEX_REAL_MODELS=$$folder $(PYTEST) tests/real $(ARGS)

CLIENTS := .venv-clients
CLIENTS_NODE := tests/clients/node_modules/.package-lock.json

test-clients: $(CLIENTS_NODE) $(VENV)/installed-test $(CLIENTS)/installed
	export CORTEX_CLIENTS=$(abspath $(CLIENTS))/bin/python; \
	$(call tested,-n 2 --dist loadfile tests/clients $(ARGS))

$(CLIENTS)/installed: tests/clients/requirements.txt
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --disable-pip-version-check -r $<
	@touch $@

$(CLIENTS_NODE): tests/clients/package-lock.json
	@command -v npm >/dev/null || { echo "make test-clients needs Node 20 or newer, with npm" >&2; exit 1; }
	npm install --prefix tests/clients --no-save --no-audit --no-fund
	@touch $@

packages: $(VENV)/installed-packages
	$(VENV)/bin/python packaging/build.py dist deb rpm

lint: $(VENV)/installed-test
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .

# The stamps are newer than what pip read, so that it runs again only when that changes.
$(VENV)/installed-run: extras := neuron
$(VENV)/installed-test: extras := test
$(VENV)/installed-packages: extras := packages
$(VENV)/installed-%: $(PIP_INPUTS) | $(VENV)/bin/pip
ifeq ($(TORCH),cpu)
	$(PIP) --no-deps --index-url $(TORCH_CPU_INDEX) torch
endif
	$(PIP) -e '.[$(extras)]'
	@touch $@

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "cortex needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + ". Name another one: make PYTHON=python3.12 …")'
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments. On Debian: apt install python3-venv" >&2; exit 1; }
	@case "$(TORCH)" in pypi|cpu) ;; *) echo "TORCH=$(TORCH): there are pypi (the default) and cpu" >&2; exit 1;; esac
	@echo "making $(VENV) and installing what cortex needs: $(if $(filter cpu,$(TORCH)),1.3 GB (2.0 GB for the tests),4.9 GB), once, in some minutes"
	@test "$(TORCH)" = cpu -o -e /dev/nvidiactl || echo "There is no NVIDIA GPU here, so a smaller PyTorch will do. Ctrl-C, then: make TORCH=cpu …  (1.3 GB)"
	$(PYTHON) -m venv $(VENV)
