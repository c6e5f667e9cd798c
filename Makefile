# Needs Python 3.11 to 3.14, make and git. Everything else goes into .venv, from constraints.txt.
PYTHON ?= python3
EXTRAS := lab,sd,train,test,book
VENV   := .venv
PY     := $(VENV)/bin/python
# Two tests at a time, half of the cores each (tests/conftest.py).
PYTEST := MPLBACKEND=Agg $(PY) -m pytest -n 2 --dist worksteal
NOTEBOOKS := tests/browser/test_notebooks_run.py
# Written last, so a broken-off install is taken up again. The folder is part of the name: an environment
# that was moved or copied would still import the package from its old place.
STAMP  := $(VENV)/installed-$(shell pwd | cksum | cut -d ' ' -f 1)
# A browser is opened only where somebody sits in front of it.
BROWSER := $(shell if [ -n "$$SSH_CONNECTION" ]; then echo --no-browser; \
    elif [ "$$(uname)" != Darwin ] && [ -z "$$DISPLAY$$WAYLAND_DISPLAY" ]; then echo --no-browser; fi)
ROOT    := $(shell [ "$$(id -u)" != 0 ] || echo --allow-root)
WELCOME := --LabApp.default_url=/lab/tree/welcome.md

.PHONY: help install lab test test-full test-package test-notebooks quick lint book book-pdf clean
.NOTPARALLEL:
.DEFAULT_GOAL := help

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## */  make \1|/p' Makefile | while IFS='|' read -r name text; do \
	    printf '%-22s %s\n' "$$name" "$$text"; done
	@echo; echo "Another Python: make lab PYTHON=python3.12 (after make clean). Options for JupyterLab: make lab ARGS=--port=9000"

install: $(STAMP)  ## make .venv and install the pinned environment (lab and test do this themselves)

lab: $(STAMP)  ## open the notebooks in JupyterLab; with no display, print the address
	@echo "Starting JupyterLab on notebooks/. Control-C, twice, stops it."
	@$(PY) -m jupyterlab $(BROWSER) $(ROOT) $(WELCOME) --ServerApp.log_level=ERROR --LabApp.log_level=ERROR $(ARGS) notebooks

test: $(STAMP)  ## run every test and, once each, every notebook
	$(PYTEST) -m "not full" $(ARGS)

test-full: $(STAMP)  ## the same, and full-size models, very large files, compilers
	$(PYTEST) $(ARGS)

test-package: $(STAMP)  ## run the tests of the package only
	$(PYTEST) -m "not full" --ignore $(NOTEBOOKS) $(ARGS)

test-notebooks: $(STAMP)  ## run the notebooks only, with seconds and memory; ARGS=03 runs one
	$(PYTEST) $(NOTEBOOKS) $(if $(ARGS),-k "$(ARGS)_")

quick: $(STAMP)  ## run the tests that are not marked slow
	$(PYTEST) -m "not slow and not full" $(ARGS)

lint: $(STAMP)  ## ruff: faults, import order, lines of at most 100 columns, format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

book: $(STAMP)  ## build the course as a web book, offline: book/_build/html/index.html
	@$(PY) book/build.py $(ARGS)

book-pdf: $(STAMP)  ## the same, and all of it as one PDF (needs chromium)
	@$(PY) book/build.py --pdf $(ARGS)

clean:  ## remove the environment and what the tests left
	rm -rf $(VENV) .pytest_cache .ruff_cache build *.egg-info book/_build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt Makefile
	@rm -f $(VENV)/installed-*
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' || { \
	    echo "ddpm_edu needs Python 3.11 to 3.14 (the pinned torch has no wheels for others)," \
	         "but '$(PYTHON)' is: $$($(PYTHON) --version 2>&1 | tail -n 1)"; \
	    echo "Install one of these, or name the one you have: make lab PYTHON=python3.12"; exit 1; }
	@$(PY) -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || { \
	    rm -rf $(VENV); \
	    echo "'$(PYTHON)' cannot make virtual environments. On Debian or Ubuntu: sudo apt install python3-venv"; exit 1; }
	$(PY) -m pip install --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]"
	@# kernels whose PyTorch threads soon sleep when they wait: threads that spin stop whatever else runs
	@$(PY) -m ipykernel install --sys-prefix --env GOMP_SPINCOUNT 500 > /dev/null
	@# no pop-up about news, no request for them
	@$(PY) -m jupyterlab.labextensions disable --log-level=ERROR "@jupyterlab/apputils-extension:announcements"
	@# markdown opens as a page, not as its source: the welcome page is one
	@mkdir -p $(VENV)/etc/jupyter/labconfig
	@echo '{"@jupyterlab/docmanager-extension:plugin": {"defaultViewers": {"markdown": "Markdown Preview"}}}' \
	    > $(VENV)/etc/jupyter/labconfig/default_setting_overrides.json
	@# what the book needs from npm, so that it builds without network; without npm it says so later
	@$(PY) -m ddpm_edu.files.npm > /dev/null 2>&1 || true
	@touch $@
