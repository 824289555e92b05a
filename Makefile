# Two commands: `make quickstart` trains on real digits and shows samples; `make test` runs the tests.
VENV ?= .venv
WORKDIR ?= runs/digits
ARGS ?=
PYTHON ?= python3

# The first Python on this machine that is 3.11 or newer and can make virtual environments.
FIND_PYTHON = for p in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
	if $$p -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo $$p; break; fi; done
RUN = $(VENV)/bin/python -m

.PHONY: quickstart text-to-image test test-slow test-tpu lint types docs pages site notebooks install install-dev clean help

help:  ## print this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

quickstart: install  ## train on real digits, no download; ends with a picture and a report
	$(RUN) experiments.train --config=configs/digits_unet.py --workdir=$(WORKDIR) $(ARGS)

text-to-image: install  ## draw coloured shapes from words, in the latents of an autoencoder that it trains first; ends with a report
	$(RUN) experiments.train --config=configs/scenes_autoencoder.py:small --workdir=runs/scenes_autoencoder
	$(RUN) experiments.prepare_latents --first_stage=runs/scenes_autoencoder --splits=train,validation --out=data/scenes_latents
	$(RUN) experiments.train --config=configs/scenes_text_to_image.py:latents --workdir=runs/scenes $(ARGS)

test: install-dev  ## run the default test suite
	$(RUN) pytest $(ARGS)

test-slow: install-dev  ## run the long tests, including those of Ray and Slurm
	$(RUN) pip install --quiet --disable-pip-version-check -e '.[dev,ray,slurm]'
	$(RUN) pytest -m slow -n 0 $(ARGS)

test-tpu:  ## compile configs with the TPU compiler, in a separate environment; needs no TPU
	@$(MAKE) --no-print-directory $(VENV)-tpu/installed-tpu VENV=$(VENV)-tpu
	JAX_PLATFORMS=cpu $(VENV)-tpu/bin/python -m pytest tests/parallel/test_tpu_compile.py $(ARGS)

lint: install-dev  ## check the code style
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .

types: install-dev  ## run the type checker on diffusion_jax/
	$(RUN) mypy

docs: pages site  ## write the pages that come from the code, and build the site of all pages in site/

pages: install  ## write the pages that come from the code: the fields of a config, and changes since the results
	$(RUN) experiments.params --fields && $(RUN) experiments.results

site: $(VENV)/installed-docs  ## build the site of docs/ with a reference from the docstrings, in site/; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --strict $(ARGS)

notebooks: $(VENV)/installed-notebooks  ## run docs/notebooks, each from its first cell to its last, and save their output
	$(VENV)/bin/jupyter-execute --inplace docs/notebooks/*.ipynb

install: $(VENV)/installed  ## create the virtual environment in $(VENV)
install-dev: $(VENV)/installed-dev

$(VENV)/bin/python:
	@python="$$($(FIND_PYTHON))"; \
	if [ -z "$$python" ]; then \
		echo "error: needs Python >= 3.11 with the venv module (Debian: apt install python3-venv); or make PYTHON=..." >&2; exit 2; \
	fi; \
	"$$python" -m venv $(VENV)

$(VENV)/installed: setup.py pyproject.toml | $(VENV)/bin/python
	$(RUN) pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/installed-dev: setup.py pyproject.toml | $(VENV)/bin/python
	$(RUN) pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@ $(VENV)/installed

$(VENV)/installed-docs $(VENV)/installed-notebooks: $(VENV)/installed-%: setup.py pyproject.toml | $(VENV)/bin/python
	$(RUN) pip install --quiet --disable-pip-version-check -e '.[$*]'
	@touch $@ $(VENV)/installed

$(VENV)/installed-tpu: setup.py pyproject.toml | $(VENV)/bin/python
	$(RUN) pip install --quiet --disable-pip-version-check -e '.[dev,tpu]'
	@touch $@

clean:  ## remove the virtual environment and caches, not data or runs
	rm -rf $(VENV) $(VENV)-tpu build site *.egg-info .pytest_cache .ruff_cache
