# make run    sets up .venv and starts gateway, neuron and the demo model on this machine (ARGS='--model …')
# make test   sets up .venv with the test extras and runs every test (ARGS='-k rings')
# make lint   formatter and linter, as CI runs them

PYTHON ?= python3
VENV := .venv
PIP_INPUTS := pyproject.toml setup.cfg constraints.txt

.PHONY: run test lint

run: $(VENV)/installed-run
	@$(VENV)/bin/cortex up $(ARGS)

test: $(VENV)/installed-test
	$(VENV)/bin/python -m pytest $(ARGS)

lint: $(VENV)/installed-test
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .

# The stamps are newer than what pip read, so that it runs again only when that changes.
$(VENV)/installed-run: extras := neuron
$(VENV)/installed-test: extras := test
$(VENV)/installed-%: $(PIP_INPUTS) | $(VENV)/bin/pip
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(extras)]'
	@touch $@

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "cortex needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + ". Name another one: make PYTHON=python3.12 …")'
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments. On Debian: apt install python3-venv" >&2; exit 1; }
	@echo "making $(VENV) and installing what cortex needs; the first time takes some minutes"
	$(PYTHON) -m venv $(VENV)
