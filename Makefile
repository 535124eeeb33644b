# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TESTS ?= tests src
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)

.PHONY: install demo test quick check bench docs evidence clean

install: $(STAMP)

# uv is several times faster than pip and reads the same wheels; the constraints pin one torch build.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q uv
	$(BIN)/uv pip install -q --compile-bytecode -p $(BIN)/python -c constraints.txt -e '.[all,dev,parity]'
	touch $@

demo: install
	$(BIN)/protea compare digits --budget 90s --out runs/demo

test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile $(TESTS)

quick: install
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" $(TESTS)

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest tests/laws/test_architecture.py

bench: install
	for script in benchmarks/bench_*.py; do $(BIN)/python $$script || exit 1; done

# docs/evidence.md is generated from what the tests record, never typed.
evidence: install
	rm -rf build/evidence
	PROTEA_EVIDENCE=build/evidence $(BIN)/python -m pytest -n 2 --dist loadfile $(TESTS)
	$(BIN)/python -m dev.evidence build/evidence docs/evidence.md

docs: evidence

clean:
	rm -rf build dist .pytest_cache .ruff_cache
