# Two commands do it all: `make book` and `make test`. `make help` lists the rest.
PYTHON ?= python3
STUDY ?= fashion_mnist_quick
# The book and the tests see no user's own packages and no display.
export PYTHONNOUSERSITE = 1
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# A copy of this folder, .venv and all, runs its own code.
export PYTHONPATH := $(CURDIR):$(CURDIR)/book
READ = .venv-read
# These build a whole book and take half the time of all tests, so that they run beside the others.
BOOK_TESTS = tests/test_pipeline.py tests/test_locked.py tests/test_profiles.py tests/test_site.py
# All of this machine's cores, or what profiles/$(PROFILE) says.
WHERE = $(if $(PROFILE),--profile profiles/$(PROFILE),--cores all)
SNAKEMAKE = pipeline/locked.py python -m snakemake --nolock $(WHERE) --rerun-incomplete --quiet rules host reason

# The library and the book's package are imported from this folder, without an installation.
on_path = printf '%s\n%s\n' "$$(pwd)" "$$(pwd)/book" > "$$($1/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/advlib.pth"

.DEFAULT_GOAL := help
.PHONY: help book audit read test test-gpu bench lint lab setup plan publish restore lock clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-9s %s\n", $$1, $$2}' Makefile
	@echo "  STUDY=<id or file> chooses the study, PYTHON=<interpreter> the Python (3.11 or newer),"
	@echo "  PROFILE=<folder in profiles/> where the jobs run, CONFIG=\"devices=2 ...\" how,"
	@echo "  BENCH=\"--quick ...\" the options of the benchmark."

book: setup  ## run a study (default: 15 minutes on a laptop) and build the book
	@python $(SNAKEMAKE) --config study="$(STUDY)" $(CONFIG)

audit: setup  ## also run the study's audit (default: an hour on two cores), and build the book
	@python $(SNAKEMAKE) --config mode=audit study="$(STUDY)" $(CONFIG)

read:  ## build the book from the committed tables, without torch
	@$(PYTHON) pipeline/preflight.py read
	@$(MAKE) --no-print-directory $(READ)/installed
	@PATH="$$(pwd)/$(READ)/bin:$$PATH" python $(SNAKEMAKE) --config mode=read

test: setup  ## run the whole test suite
	@$(MAKE) --no-print-directory .venv/bench-installed
	@log=$$(mktemp); python -m pytest -q -p no:cacheprovider $(BOOK_TESTS) > $$log 2>&1 & \
	  book=$$!; trap 'kill $$book' INT TERM; \
	  python -m pytest $(BOOK_TESTS:%=--ignore=%); failed=$$?; \
	  wait $$book || failed=1; echo "$(BOOK_TESTS), beside these:"; cat $$log; rm $$log; exit $$failed

test-gpu: setup  ## run the tests that need a GPU, and those of two processes where there are two
	@python -m pytest -rs tests/test_gpu.py \
	  $$(python -c 'import torch; print("tests/test_distributed.py" * (torch.cuda.device_count() > 1))')

bench: setup  ## compare the speed with torchattacks and foolbox (45 minutes on two cores)
	@$(MAKE) --no-print-directory .venv/bench-installed
	@python benchmarks/speed.py $(BENCH)

lint: setup  ## check style and undefined names
	@python -m ruff check . && python -m ruff format --check .
	@lint-imports --no-cache

lab: setup  ## open JupyterLab with the notebooks, LAB="--port=8899 ..." its options
	@ADVLIB_LAB=1 python -m jupyterlab --notebook-dir=notebooks \
	  --ContentsManager.pre_save_hook=pipeline.lab.without_outputs $(LAB)

setup:  ## create .venv and install the pinned requirements
	@$(PYTHON) pipeline/preflight.py book
	@$(MAKE) --no-print-directory .venv/installed

.venv/installed: requirements.txt pyproject.toml
	@echo "Installing the pinned requirements into .venv (a few minutes)"
	@$(PYTHON) -m venv .venv
	@start=$$(date +%s) && .venv/bin/python -m pip install -q --disable-pip-version-check -r requirements.txt \
	  && echo $$(( $$(date +%s) - start )) > .venv/install-seconds
	@# With it, every process that imports jsonschema first builds grammars for more than a second.
	@.venv/bin/python -m pip uninstall -q --disable-pip-version-check -y rfc3987-syntax
	@$(call on_path,.venv)
	@touch $@

.venv/bench-installed: requirements-bench.txt .venv/installed
	@.venv/bin/python -m pip install -q --disable-pip-version-check -r requirements-bench.txt
	@touch $@

$(READ)/installed: requirements-read.txt pyproject.toml
	@echo "Installing what reading needs into .venv-read"
	@$(PYTHON) -m venv $(READ)
	@start=$$(date +%s) && $(READ)/bin/python -m pip install -q --disable-pip-version-check -r requirements-read.txt \
	  && echo $$(( $$(date +%s) - start )) > $(READ)/install-seconds
	@$(call on_path,$(READ))
	@touch $@

plan: setup  ## predict hours, memory and disk of a study on this machine, by a probe of a minute
	@python -m advbook plan "$(STUDY)"

publish: setup  ## copy a study's fresh tables and small weights to results/, to be committed
	@python -m advbook.build.publish publish "$(STUDY)"

restore: setup  ## put a study's published weights among its runs, as if trained here
	@python -m advbook.build.publish restore "$(STUDY)"

lock: setup  ## compile the pinned requirements from the *.in files
	@python -m pip install -q uv==0.13.8
	@python -m uv pip compile -q --universal --python-version 3.11 --no-annotate --no-header requirements-read.in -o requirements-read.txt
	@python -m uv pip compile -q --universal --python-version 3.11 --no-annotate --no-header -c requirements-read.txt requirements.in \
	  | grep -vE '^(nvidia|cuda|triton)' > requirements.txt
	@python -m uv pip compile -q --universal --python-version 3.11 --no-annotate --no-header -c requirements.txt requirements-bench.in -o requirements-bench.txt

clean:  ## remove the built book, but no run
	@rm -rf _build book/generated
