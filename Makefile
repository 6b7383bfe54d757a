PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
AUDIO ?= $(wildcard tests/data/*.flac tests/data/*.opus)

.PHONY: demo test lint bench train serve speedrun clean

demo: $(VENV)/run  ## transcribe the bundled recordings, or AUDIO=path
	$(BIN)/tristep transcribe $(AUDIO)

test: $(VENV)/dev lint  ## everything that CI checks
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest

lint: $(VENV)/dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

bench: $(VENV)/dev  ## accuracy and speed beside a peer: make bench ARGS="--help"
	$(BIN)/python benchmarks/asr_accuracy.py $(ARGS)

train: $(VENV)/dev  ## make train RECIPE=recipes/nano/3_sft.toml OUT=runs/sft
	$(BIN)/tristep train $(RECIPE) --out $(OUT)

speedrun: $(VENV)/dev  ## nothing -> data -> training -> RLHF -> a spoken exchange, at toy size
	bash recipes/speedrun.sh runs/speedrun

serve: $(VENV)/serve  ## an OpenAI-compatible server on this machine
	$(BIN)/tristep serve

$(VENV)/run: pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/serve: $(VENV)/run
	$(BIN)/pip install -q -c constraints.txt -e ".[serve]"
	touch $@

$(VENV)/dev: $(VENV)/run
	$(BIN)/pip install -q -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) runs build dist
