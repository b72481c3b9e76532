# COMFYUI_PATH=/some/ComfyUI makes every target use that checkout instead of the one in .host/.

PYTHON ?= python3
# What to install as torch, index options included: TORCH="torch torchvision --index-url https://…"
TORCH ?= torch torchvision
# The port of `make serve`.
PORT ?= 8188
# More arguments for pytest: make test ARGS="tests/e2e -k nf4"
ARGS ?=
# Processes that share the tests, file by file in their order, so that the pictures, which take longest, are not left to
# one of them at the end; each with one thread. On a GPU, whose memory is measured: make test JOBS=0
JOBS ?= 2

BIN := .venv/bin

.PHONY: help setup test lint demo serve dist clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */make \1\t/' | expand -t 14

setup: .venv/.installed  ## make .venv/ (torch and everything else) and .host/ComfyUI
	@$(BIN)/python tools/setup_host.py

.venv/.installed: requirements.txt requirements-dev.txt pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "quantflux needs Python 3.10 or newer, but $(PYTHON) is " + sys.version.split()[0] + ": set PYTHON=/path/to/python3")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -r requirements-dev.txt -e .
	@touch $@

test: export OMP_NUM_THREADS ?= 1
test: lint  ## set up, lint, run every test (ARGS="…" goes to pytest)
	$(BIN)/pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

lint: setup  ## set up and run ruff
	$(BIN)/ruff check .

demo: setup  ## draw the same prompts at 16-bit, NF4, FP4 and int8, side by side
	@$(BIN)/python tools/demo.py

serve: setup  ## ComfyUI with its canvas and this pack on 127.0.0.1:PORT (8188)
	@$(BIN)/python tools/serve.py --port $(PORT)

dist: setup  ## the archive that the Comfy Registry publishes → dist/
	@$(BIN)/python tools/build_archive.py

clean:  ## remove all that the other targets made
	rm -rf .venv .host output build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
