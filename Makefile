# The front door. `make help` lists the targets; each calls one command.
.DEFAULT_GOAL := help
.PHONY: help setup demo test check faults test-cluster images lint fmt robustness mutants bench clean
PYTHON ?=
export PYTHON

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
setup: ## make .venv with every service and build the web page
	@scripts/setup.sh run
demo: setup ## five simulated machines, live in the browser (ARGS="--machines 20 --hz 10")
	@.venv/bin/cncmon demo $(ARGS)
test: ## run the tests on real parts (ARGS="tests/e2e -k wall")
	@scripts/test.sh $(ARGS)
check: ## lint what changed against main and run the tests nearest to it, within a minute and a half
	@scripts/check.sh
faults: ## break a running plant in every way, briefly: the short round (ARGS="-k database")
	@scripts/test.sh --dist worksteal tests/robustness/scenarios $(ARGS)
test-cluster: ## run the tests on a real Kubernetes (KUBECONFIG=... for an API of yours; ARGS="-k columns")
	@scripts/test-cluster.sh $(ARGS)
images: ## build the container images into build/images.tar (ARGS="--arch arm64", ARGS="--push registry.example/cnc")
	@scripts/images.sh $(ARGS)
lint: ## ruff, mypy --strict, import-linter, TypeScript
	@scripts/setup.sh dev && scripts/lint.sh
fmt: ## format the Python code
	@scripts/setup.sh dev && .venv/bin/ruff check --fix-only --quiet . ; .venv/bin/ruff format .
robustness: ## the long round: millions of samples under every fault (ARGS="--markdown table.md -k outage")
	@scripts/robustness.sh $(ARGS)
mutants: ## break the code on purpose: the tests must fail on each change (ARGS="-k leader --jobs 2 --resume")
	@scripts/mutants.sh $(ARGS)
bench: ## measure against limits of the same run (ARGS=--quick)
	@scripts/bench.sh $(ARGS)
clean: ## remove everything that setup and tests made
	@git clean -fdXq
