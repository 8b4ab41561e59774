# demo: set everything up and look at it; test, check, bench: for those who change it.
PYTHON ?= python3
VENV := .venv
READERS := .venv-readers
AIRFLOW := .venv-airflow
PEERS := .venv-peers
RUN := $(VENV)/bin/

.PHONY: demo test test-all check bench clean

demo: $(VENV)/installed
	$(RUN)pipeline augment --out augmented/digits
	$(RUN)pipeline verify augmented/digits --deep
	$(RUN)pipeline preview augmented/digits --out augmented/digits.png

test: $(VENV)/dev $(READERS)/installed
	$(RUN)pytest

test-all: $(VENV)/dev $(READERS)/installed $(AIRFLOW)/installed
	$(RUN)pytest -m ""

check: $(VENV)/dev
	$(RUN)ruff format --check .
	$(RUN)ruff check .
	$(RUN)mypy
	$(RUN)lint-imports

# benchmarks/chaos.py runs separately: it takes about 50 minutes.
bench: $(VENV)/dev $(PEERS)/installed
	$(RUN)python benchmarks/startup.py
	$(RUN)python benchmarks/offline.py photos
	$(RUN)python benchmarks/offline.py cifar10 $(if $(PIPELINE_DATA),--data-dir $(PIPELINE_DATA))
	$(RUN)python benchmarks/online.py $(if $(PIPELINE_DATA),--data-dir $(PIPELINE_DATA)) $(if $(PIPELINE_PHOTOS),--photos $(PIPELINE_PHOTOS))
	$(RUN)python benchmarks/online_memory.py $(if $(PIPELINE_DATA),--data-dir $(PIPELINE_DATA))
	$(RUN)python benchmarks/features.py $(if $(PIPELINE_DATA),--data-dir $(PIPELINE_DATA)) $(if $(PIPELINE_WEIGHTS),--weights $(PIPELINE_WEIGHTS))
	$(RUN)python benchmarks/incremental.py $(if $(PIPELINE_PHOTOS),--photos $(PIPELINE_PHOTOS))
	$(RUN)python benchmarks/memory.py $(if $(PIPELINE_DATA),--data-dir $(PIPELINE_DATA))
	$(RUN)python benchmarks/flat.py $(if $(PIPELINE_DATA),--data-dir $(PIPELINE_DATA))
	$(RUN)python benchmarks/workers.py $(if $(PIPELINE_DATA),--data-dir $(PIPELINE_DATA)) $(if $(PIPELINE_PHOTOS),--photos $(PIPELINE_PHOTOS))

clean:
	rm -rf $(VENV) $(READERS) $(AIRFLOW) $(PEERS) augmented compare features runs

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN)pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

# All at once, and no second look at what is installed. Compiled once: where PYTHONDONTWRITEBYTECODE is
# set, each of a thousand processes would do it.
$(VENV)/dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN)pip install --quiet --disable-pip-version-check -c constraints.txt -e .[dev]
	$(RUN)python -m compileall -q cli.py datasets pipeline trainers
	touch $(VENV)/installed $@

# Other people's readers, in an environment of their own: Hugging Face's package has our name.
$(READERS)/installed: tests/readers/requirements.txt
	$(PYTHON) -m venv $(READERS)
	$(READERS)/bin/pip install --quiet --disable-pip-version-check -r $<
	touch $@

# For the DAG in deploy/: a hundred packages, which only `make test-all` waits for.
$(AIRFLOW)/installed: deploy/airflow-requirements.txt
	$(PYTHON) -m venv $(AIRFLOW)
	$(AIRFLOW)/bin/pip install --quiet --disable-pip-version-check -r $<
	touch $@

$(PEERS)/installed: benchmarks/requirements.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install --quiet --disable-pip-version-check -r $<
	touch $@
