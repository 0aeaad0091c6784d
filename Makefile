# `make demo` and `make test` each work alone on a fresh clone, in either order. Everything is installed into .venv.
SHELL := /bin/bash
VENV := .venv
PYTHON := $(VENV)/bin/python
PIP := $(PYTHON) -m pip --disable-pip-version-check
# classic or today: what fits the Python of the environment.
STACK ?= $(shell bash conf/find_stack.sh $(VENV))
EXTRA_classic := classic,java
EXTRA_today := fit,connect
CONSTRAINTS_classic := conf/constraints.txt
CONSTRAINTS_today := conf/constraints-today.txt
CONSTRAINTS := $(CONSTRAINTS_$(STACK))
DEMO_OUTPUT := output/demo
# Tests wait for a JVM or another process: three workers keep two cores busy.
# The tests of a file stay together, since they share what they build.
WORKERS ?= 3
PYSPARK4 := 4.0.5
# Bytecode is kept even where the environment says not to: tests start the package in dozens of processes.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test stack test-slow test-fast test-cluster test-faults test-airflow test-dbr test-matrix test-today test-spark4 test-embed docs test-r dist lint format hooks clean

help:  ## show this list
	@awk 'BEGIN {FS = ":.*## "} /^##@ / {print "\n" substr($$0, 5)} /^[a-z0-9-]+:.*## / {printf "  %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

##@ Try it
demo: | stack $(VENV)/.demo  ## embed scikit-learn's handwritten digits: all stages, a minute or two
	$(VENV)/bin/ivis-spark demo --output $(DEMO_OUTPUT)

##@ While you work
test-fast: $(VENV)/.dev  ## the tests that start neither Spark nor TensorFlow
	$(PYTHON) -m pytest -m "not spark and not tf and not slow and not cluster"

lint: $(VENV)/.dev  ## ruff, codespell and mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/codespell
	$(VENV)/bin/mypy
	! command -v node >/dev/null || node --check ivis_spark/report/explorer.js

format: $(VENV)/.dev  ## fix what ruff can fix
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

hooks: $(VENV)/.dev  ## run lint on what you commit, and mypy before you push
	$(VENV)/bin/pre-commit install --hook-type pre-commit --hook-type pre-push

##@ Before you merge
test: stack lint $(VENV)/.horovod  ## everything that CI runs: lint, types and all tests but those of test-cluster
	$(PYTHON) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

stack:
	@echo "Versions: $(STACK) ($(CONSTRAINTS))"

##@ Longer tests, each for what it names
test-slow: $(VENV)/.dev  ## what the experiments' notebooks claim, with the epochs that it takes
	$(PYTHON) -m pytest -m claims

test-cluster: $(VENV)/.horovod  ## Spark clusters started here, ranks and executors killed; half an hour
	$(PYTHON) -m pytest -m cluster

test-faults: $(VENV)/.horovod  ## faults and attacks; prints a table of what was tried and what survived
	$(PYTHON) -m pytest -m faults

test-airflow: $(VENV)/.dev build/venv-airflow/.installed  ## the DAG under a real Airflow, in an environment of its own
	AIRFLOW_PYTHON=build/venv-airflow/bin/python $(PYTHON) -m pytest -m cluster tests/cluster/test_airflow.py

test-dbr:  ## the fast tests and one run end to end with the versions of Databricks Runtime 15.4 LTS ML; needs CPython 3.11
	@PYTHON_FOR_VENV=python3.11 $(MAKE) --no-print-directory VENV=build/venv-dbr CONSTRAINTS=conf/constraints-dbr-15.4.txt build/venv-dbr/.dev
	build/venv-dbr/bin/python -m pytest -m "(not spark and not slow and not cluster) or end_to_end"

test-matrix: $(VENV)/.dev  ## the tests that start Spark: as installed (Spark 3.5, pyarrow 14), on Spark 4.0, and on the newest packages
	$(PYTHON) -m pytest -m "spark and not cluster"
	@$(MAKE) --no-print-directory test-spark4
	@$(MAKE) --no-print-directory test-today

test-today:  ## all tests but those of test-cluster on the newest packages, in an environment of their own; needs CPython 3.13 and a full Java 17 or 21
	@bash conf/find_java.sh
	@PYTHON_FOR_VENV=$${PYTHON_FOR_VENV:-python3.13} $(MAKE) --no-print-directory VENV=build/venv-today STACK=today build/venv-today/.dev
	build/venv-today/bin/python -m pytest

test-spark4:  ## the Spark tests on PySpark 4.0, in an environment of their own; needs a full Java 17 or 21
	@bash conf/find_java.sh
	@$(MAKE) --no-print-directory VENV=build/venv-spark4 CONSTRAINTS=build/constraints-spark4.txt build/venv-spark4/.dev
	build/venv-spark4/bin/python -m pytest -m "spark and not cluster"

test-embed: | $(VENV)/.created  ## embedding alone, with only ivis_spark[spark], on the newest PySpark and pyarrow there are; needs a full Java 17
	@bash conf/find_java.sh
	@test -x build/venv-embed/bin/python || $(PYTHON) -m venv build/venv-embed
	build/venv-embed/bin/python -m pip --disable-pip-version-check install -q -U -e '.[spark]' pytest pytest-timeout
	build/venv-embed/bin/python -m pytest tests/serving/test_alone.py

##@ Build
docs: $(VENV)/.dev  ## build/docs/index.html; warnings are errors
	$(PYTHON) docs/write_reference.py
	$(PYTHON) -m sphinx -q -W --keep-going -b html docs build/docs

test-r: $(VENV)/.dev  ## R CMD check of the R package; needs R with reticulate, testthat, knitr, rmarkdown and generics
	@command -v R >/dev/null || { echo "make test-r needs R (Debian: apt-get install r-base-core r-cran-reticulate r-cran-testthat r-cran-knitr r-cran-rmarkdown r-cran-generics)" >&2; exit 1; }
	@mkdir -p build/r && cd build/r && R CMD build ../../R-package
	cd build/r && RETICULATE_PYTHON=$(abspath $(PYTHON)) R CMD check --no-manual ivisspark_*.tar.gz

dist: $(VENV)/.dev  ## wheel, source archive and SBOM (CycloneDX) in dist/
	@$(PIP) install -q build 'cyclonedx-bom>=4'
	@rm -rf dist
	$(PYTHON) -m build --outdir dist .
	@$(PYTHON) -m venv --clear build/venv-sbom
	@build/venv-sbom/bin/python -m pip --disable-pip-version-check install -q -c $(CONSTRAINTS) "$$(ls dist/*.whl)[cpu]"
	$(PYTHON) -m cyclonedx_py environment build/venv-sbom --of JSON -o dist/sbom.json

##@ Tidy up
clean:  ## remove the environment, outputs and caches
	rm -rf $(VENV) output build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# An interrupted install leaves no stamp and is done again.
$(VENV)/.demo: setup.cfg $(CONSTRAINTS) | $(VENV)/.created
	$(PIP) install -q -c $(CONSTRAINTS) -e '.[$(EXTRA_$(STACK)),demo]'
	@touch $@

$(VENV)/.dev: setup.cfg $(CONSTRAINTS) | $(VENV)/.created
	$(PIP) install -q -c $(CONSTRAINTS) -e '.[dev,$(EXTRA_$(STACK))]'
	@touch $@ $(VENV)/.demo

# Compiled for the TensorFlow that .dev installed; the wheel stays in .cache, so only the first time takes minutes.
# Today's versions have no Horovod: TensorFlow 2.19 and later are not what it compiles with.
$(VENV)/.horovod: $(VENV)/.dev conf/install_horovod.sh
	@if [ $(STACK) = classic ]; then bash conf/install_horovod.sh $(PYTHON) $(CONSTRAINTS); fi
	@touch $@

$(VENV)/.created:
	@if [ $(STACK) = today ]; then bash conf/find_java.sh; fi
	@python=$$(bash conf/find_python.sh) && "$$python" -m venv --clear $(VENV)
	@$(PIP) install -q 'pip>=23.2' $$(test $(STACK) = classic && echo 'setuptools<70' || echo setuptools) wheel
	@touch $@

# Not the newest Python: the list is for one, and Airflow's own dependencies are many.
build/venv-airflow/.installed: conf/requirements-airflow.txt
	@python3.11 -m venv --clear build/venv-airflow
	@build/venv-airflow/bin/python -m pip --disable-pip-version-check install -q --no-deps -r $<
	@touch $@

build/constraints-spark4.txt: conf/constraints.txt Makefile
	@mkdir -p $(@D)
	@sed 's/^pyspark==.*/pyspark==$(PYSPARK4)/' $< > $@
