# `make demo` and `make test` do all their own set-up on a machine with Python >= 3.11 and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
DEMO_DIR ?= demo-study

.PHONY: demo test check test-vllm bench clean

demo: .venv/.installed ## A crash-aware tuning study on a simulated GPU, with a report at the end
	rm -rf $(DEMO_DIR)
	$(BIN)/sloguard tune --engine sim --gpu A100-40GB --model Qwen/Qwen2-1.5B --optimizer tba-tpe --budget 20 \
	  --seed 42 --slo-ttft-p99 500 --slo-itl-p99 100 --out $(DEMO_DIR)

test: check ## Lint, types and every test that needs no vLLM
	$(BIN)/python -m pytest -n auto -m "not vllm"

check: .venv/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv .venv-vllm models $(DEMO_DIR) build dist
