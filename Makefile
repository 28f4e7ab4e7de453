# Every task of the project. CI runs `make test`, nothing else.
# A fresh machine needs Python >= 3.11, Rust (rustup), and this file.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := Cargo.toml Cargo.lock pyproject.toml README.md $(shell find rust python kernels -type f \
	-not -name '*.so' -not -path '*/__pycache__/*')

.PHONY: demo test test-rust test-python lint bench bench-gpu aot aot-write aot36 aot36-write wheel clean

demo: $(VENV)/.demo  ## build into .venv and let the starter model speak
	$(BIN)/pyrite generate "What is 27 + 15?"
	$(BIN)/pyrite generate --raw "Once upon a time"

test: lint test-rust test-python  ## everything that CI runs

lint: $(VENV)/.wheel  ## formats, lints, types, and the stub against the built module
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m mypy.stubtest pyrite._core

test-rust:  ## needs no Python
	cargo test

test-python: $(VENV)/.wheel  ## pytest against the installed wheel
	$(BIN)/python -m pytest

bench: $(VENV)/.wheel  ## microbenchmarks; end-to-end ones are described in bench/README.md
	$(BIN)/python -m pytest bench --benchmark-json bench/results/local.json

bench-gpu: $(VENV)/.wheel  ## is every kernel right on this GPU, and how fast; see bench/README.md
	$(BIN)/python bench/gpu_suite.py

aot: $(VENV)/.wheel  ## compiles every kernel for every part and compares with the table; needs no GPU
	$(BIN)/python -m pyrite_kernels.aot --table tests/kernels/aot_table.json

aot-write: $(VENV)/.wheel  ## the same, and renews the table; reasons for spills are kept
	$(BIN)/python -m pyrite_kernels.aot --table tests/kernels/aot_table.json --write

aot36: $(VENV)36/.ready  ## `make aot` with the oldest Triton that is supported and a table of its own; tests in its interpreter
	PYTHONPATH=kernels $(VENV)36/bin/python -m pytest -p no:cacheprovider tests/kernels \
		--ignore tests/kernels/test_aot.py --ignore tests/kernels/test_quantized.py
	PYTHONPATH=kernels $(VENV)36/bin/python -m pyrite_kernels.aot --table tests/kernels/aot_table_36.json

aot36-write: $(VENV)36/.ready  ## the same, and renews its table
	PYTHONPATH=kernels $(VENV)36/bin/python -m pyrite_kernels.aot --table tests/kernels/aot_table_36.json --write

wheel: $(VENV)/.dev  ## a manylinux_2_28 wheel and the sdist, in dist/
	$(BIN)/uv pip install -q --python $(BIN)/python 'maturin[zig]>=1.12.1,<2'
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/maturin build --release --zig --compatibility manylinux_2_28 --out dist
	$(BIN)/maturin sdist --out dist

clean:
	rm -rf $(VENV) $(VENV)36 dist target

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q uv

# The wheel alone, as a user installs it.
$(VENV)/.demo: $(BIN)/python $(SOURCES)
	$(BIN)/uv pip install -q --python $(BIN)/python --reinstall-package pyrite .
	touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml
	$(BIN)/uv pip install -q --python $(BIN)/python --group dev
	touch $@

# What the tests import: the built wheel, never the source folder.
$(VENV)/.wheel: $(VENV)/.dev $(SOURCES)
	rm -rf dist/test
	$(BIN)/maturin build --release --out dist/test
	$(BIN)/uv pip install -q --python $(BIN)/python --reinstall-package pyrite dist/test/*.whl
	touch $@ $(VENV)/.demo

# Triton 3.6.0 beside torch, which asks for a newer one. Its interpreter does not run with NumPy 2.4.
$(VENV)36/.ready: $(BIN)/python
	$(BIN)/uv venv -q --clear --python $(BIN)/python $(VENV)36
	echo 'triton==3.6.0' > $(VENV)36/overrides.txt
	$(BIN)/uv pip install -q --python $(VENV)36/bin/python --override $(VENV)36/overrides.txt \
		'torch>=2.10' 'numpy<2.4' triton pytest hypothesis
	touch $@
