# `make run` and `make test` work from a fresh clone: each makes .venv where there is none.

PYTHON := .venv/bin/python
# Prints the path of the first Python on the path that TensorFlow supports.
FIND_PYTHON := for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& command -v $$python && exit; done; \
	echo 'tfbp needs Python 3.11, 3.12 or 3.13 on the path.' >&2; exit 1
# A .venv that works is kept; a half-made one is made anew.
MAKE_VENV := $(PYTHON) -m pip --version >/dev/null 2>&1 \
	|| { python=$$($(FIND_PYTHON)) && $$python -m venv --clear .venv; }

.PHONY: run test test-slow docs bench soak clean

run: .venv/run.stamp
	$(PYTHON) walkthrough.py

test: .venv/test.stamp
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(PYTHON) -m pytest -n 2 --dist=worksteal -m 'not slow'

# The tests that are long and rare.
test-slow: .venv/test.stamp
	$(PYTHON) -m pytest -n 2 --dist=worksteal -m slow

# The pages of docs/, from build/docs/index.html on. A link that leads nowhere is an error.
docs: .venv/docs.stamp
	$(PYTHON) -m zensical build --clean --strict

# Long trials: runs that are killed 50 times, three workers that are lost and cut off, the server
# under load, and 10,000 malformed requests.
soak: .venv/test.stamp
	$(PYTHON) benchmarks/kills.py --kills=50
	$(PYTHON) benchmarks/lost_workers.py --losses=6 --cuts=2
	$(PYTHON) benchmarks/serving.py --seconds=10
	$(PYTHON) -m pytest --hypothesis-profile=soak tests/serving/test_limits.py -k answered_500

# Speed against every peer, written to benchmarks/RESULTS.md; on a machine that does nothing else.
# Flags: make bench BENCH='--data=folder:PATH --weights=FILE'
bench: .venv/bench.stamp
	$(PYTHON) benchmarks/results.py $(BENCH)

clean:
	rm -rf .venv build *.egg-info .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis

# A stamp says that what setup.cfg asks for is there: a second call installs nothing.
.venv/run.stamp: setup.cfg pyproject.toml
	@$(MAKE_VENV)
	$(PYTHON) -m pip install --quiet --editable '.[recipes]'
	@touch $@

.venv/test.stamp: setup.cfg pyproject.toml
	@$(MAKE_VENV)
	$(PYTHON) -m pip install --quiet --editable '.[recipes,serving,test]'
	@touch .venv/run.stamp $@

.venv/docs.stamp: setup.cfg pyproject.toml
	@$(MAKE_VENV)
	$(PYTHON) -m pip install --quiet --editable '.[docs]'
	@touch $@

.venv/bench.stamp: setup.cfg pyproject.toml
	@$(MAKE_VENV)
	$(PYTHON) -m pip install --quiet --editable '.[recipes,bench]'
	@touch .venv/run.stamp $@
