# Everything sets itself up: `make demo` shows the main job on a real checkpoint, `make test` runs the tests.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
DEMO ?= demo-output

.PHONY: demo figures test lint format bench clean
.DELETE_ON_ERROR:

demo: $(VENV)/ready
	$(RUN) -m layerstats demo --out $(DEMO)

# The pictures in figures/ are the demo's.
figures: demo
	cp $(DEMO)/*.png figures/

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

# pip 25.1 is the first to know dependency groups; constraints.txt fixes every version, torch's CPU build among them.
$(VENV)/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "layerstats needs Python 3.11 or later; set PYTHON=/path/to/it" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check "pip==25.3"
	$(RUN) -m pip install --quiet -c constraints.txt -e . --group dev
	@touch $@

clean:
	rm -rf $(VENV) $(DEMO)
