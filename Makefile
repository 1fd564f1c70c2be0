# Every target sets up what it needs. PYTHON=python3.12 picks an interpreter, DATA=DIR the folder of the data sets.
PYTHON ?= python3
DATA ?= data
BIN := .venv/bin
RUNS ?= runs/*
THREAT ?= standard
OUT ?= report
ARGS ?=

.PHONY: help install quickstart train evaluate sweep report diagnose bench study robustness estimators convolutional recurrent figures docs overview lint hooks test mutation clean
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: .venv/installed ## create .venv and install the package with its development tools

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev,tensorboard]"
	touch $@

.venv/docs-installed: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[docs]"
	touch $@

quickstart: install ## train without backprop and with it on digits, test both, report (under 2 minutes after the install)
	rm -rf runs/quickstart
	$(BIN)/glr-train experiment=lrtz run_dir=runs/quickstart/lrtz
	$(BIN)/glr-train experiment=bp run_dir=runs/quickstart/bp
	$(BIN)/glr-evaluate "run=runs/quickstart/*" threat=standard > /dev/null
	$(BIN)/glr-report "runs=runs/quickstart/*" out=runs/quickstart/report

train: install ## train one network: make train ARGS="experiment=lrtz data=mnist data.root=DIR"
	$(BIN)/glr-train $(ARGS)

evaluate: install ## test trained runs: make evaluate RUNS="runs/*" THREAT=corruptions
	$(BIN)/glr-evaluate "run=$(RUNS)" threat=$(THREAT) $(ARGS)

sweep: install ## loss x activation x noise scale on digits: make sweep ARGS="data=mnist data.root=DIR"
	$(BIN)/glr-train --multirun experiment=lrs,lrt,lrsz,lrtz sigma=0.5,1.0 run_dir=runs/sweep-$$(date +%Y%m%d-%H%M%S) $(ARGS)

report: install ## tables and figures from many runs: make report RUNS="runs/*" OUT=report
	$(BIN)/glr-report "runs=$(RUNS)" out=$(OUT)

diagnose: install ## bias, variance and cost of the estimators: make diagnose ARGS="run=runs/NAME"
	$(BIN)/glr-diagnose $(or $(ARGS),experiment=lrt)

bench: install ## every step, command and epoch beside its bar (3 minutes): make bench [DATA=DIR] [ARGS="--rows deep"]
	$(BIN)/python experiments/benchmark/bench.py $(if $(wildcard $(DATA)/MNIST),--data $(DATA)) $(ARGS)

study: install ## paper 1's protocol, its settings and ours on real MNIST (half an hour): make study DATA=DIR
	DATA=$(DATA) BIN=$(BIN) sh experiments/mnist/run.sh

robustness: install ## what an honest attacker leaves of seven networks on real MNIST (20 minutes): make robustness DATA=DIR
	DATA=$(DATA) BIN=$(BIN) sh experiments/robustness/run.sh

estimators: install ## which estimator has the least variance x time, and what it reaches (an hour): make estimators DATA=DIR
	DATA=$(DATA) BIN=$(BIN) sh experiments/estimators/accuracy.sh
	DATA=$(DATA) BIN=$(BIN) sh experiments/estimators/diagnose.sh

convolutional: install ## networks on images up to Tiny-ImageNet, trained without backpropagation (two hours): make convolutional DATA=DIR
	DATA=$(DATA) BIN=$(BIN) sh experiments/convolutional/run.sh

recurrent: install ## a recurrent network from loss values, beside backpropagation through time (half an hour): make recurrent DATA=DIR
	DATA=$(DATA) BIN=$(BIN) sh experiments/recurrent/run.sh

figures: install ## the figures of the studies from their committed results: make figures [STUDY=experiments/mnist]
	$(BIN)/python experiments/figures.py $(STUDY)

docs: .venv/docs-installed ## the documentation, into site/index.html; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

overview: install ## the figure of the README from the committed results
	$(BIN)/python docs/overview.py

lint: install ## ruff, mypy and codespell
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

hooks: install ## run the same checks before every commit
	$(BIN)/pre-commit install

test: install ## the whole test suite, a process per core (under 6 minutes on 2)
	$(BIN)/python -m pytest -n auto --dist worksteal

mutation: install ## plant 91 factors of two in the formulas, one by one: does the suite turn red? (an hour)
	$(BIN)/python tests/mutation/run.py $(ARGS)

clean: ## remove the environment, caches and build results; runs and data stay
	rm -rf .venv build dist site .pytest_cache .mypy_cache .ruff_cache src/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
