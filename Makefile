PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SENTENCE := "There is a strong chance it will happen once more."
AUDIO ?= $(wildcard tests/data/*.flac tests/data/*.opus)

.PHONY: demo test lint bench train serve clients speedrun clean

demo: $(VENV)/run  ## transcribe the bundled recordings, or AUDIO=path; speak in two voices; answer a recording
	$(BIN)/tristep transcribe $(AUDIO)
	mkdir -p runs/demo
	$(BIN)/tristep speak $(SENTENCE) --voice kathleen --out runs/demo/kathleen.wav
	$(BIN)/tristep speak $(SENTENCE) --voice heart --out runs/demo/heart.wav
	$(BIN)/tristep transcribe runs/demo/kathleen.wav runs/demo/heart.wav
	$(BIN)/tristep converse tests/data/jfk.flac --persona "A cheerful history teacher." --out runs/demo/answer.wav
	@echo "Sound is in runs/demo. make serve starts the server, and a page to talk to it: http://127.0.0.1:8000"

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

clients: $(VENV)/serve  ## unmodified clients of other projects talk to the server: make clients ARGS="pipecat page"
	$(BIN)/python clients/run.py $(ARGS)

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
	rm -rf $(VENV) runs build dist clients/.venvs clients/node_modules
