# Everything sets itself up: `make demo` shows the main job on a real checkpoint, `make test` runs the tests.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
DEMO ?= demo-output

.PHONY: demo figures test lint format bench docs clean
.DELETE_ON_ERROR:

demo: $(VENV)/ready
	$(RUN) -m layerstats demo --out $(DEMO)

# Every picture in figures/: the demo's, then the analyses', then the table of claims. Training runs are kept in
# the cache (LAYERSTATS_CACHE_DIR), go on where they were stopped and are not repeated.
ANALYSES := lisa_convergence owlore_fig2_lod_alpha sampling_laws alpha_fragility lod_anatomy owlore_table2_memory \
	loss_curves owlore_table1_lisa_d owlore_table3_methods lisa_fig2_weight_norms lisa_theory_probabilities \
	owlore_appendix_m owlore_appendix_gamma iteration_time memory_of_methods

figures: demo
	cp $(DEMO)/*.png figures/
	for name in $(ANALYSES); do $(RUN) -m analyses.$$name || exit 1; done
	$(RUN) -m analyses.claims

test: $(VENV)/ready
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile

lint: $(VENV)/ready
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: $(VENV)/ready
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

bench: $(VENV)/ready
	$(RUN) -m benchmarks

# The pages that docstrings, --help and registries give are made on the way; a warning is an error.
docs: $(VENV)/ready-docs
	OMP_NUM_THREADS=1 $(RUN) -m sphinx -W --keep-going -n -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

# pip 25.1 is the first to know dependency groups; constraints.txt fixes every version, torch's CPU build among them.
$(VENV)/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "layerstats needs Python 3.11 or later; set PYTHON=/path/to/it" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check "pip==25.3"
	$(RUN) -m pip install --quiet -c constraints.txt -e . --group dev
	@touch $@

$(VENV)/ready-docs: $(VENV)/ready
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt --group docs
	@touch $@

clean:
	rm -rf $(VENV) $(DEMO) docs/_build docs/generated
