# Everything a developer does here. `make` lists the targets.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Options for pytest in `make test`, for example: make test PYTEST_ARGS="-n 0 -x tests/unit"
PYTEST_ARGS ?= -n auto

# Without compiled files every worker of pytest would compile every test anew, and every process of a test what it imports.
unexport PYTHONDONTWRITEBYTECODE
# Where pytest believes itself in a CI, a failed comparison of megabytes is written out until the test's time is up.
unexport CI BUILD_NUMBER

.PHONY: help venv docker runner-image demo cluster-demo test soak check format doctor bench bench-check bench-peers bench-queue bench-reliability clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-20s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml scripts/make-venv.sh
	@scripts/make-venv.sh
	@touch $@

venv: $(STAMP) ## make .venv with this project and its tools

docker: ## see to a Docker engine: use one that answers, or install and start it
	@scripts/ensure-docker.sh

runner-image: docker ## see to a Docker engine and build the runner image if it is missing
	@runner/build.sh

demo: $(STAMP) runner-image ## test a sample project with everything real, from nothing to its verdict
	@$(BIN)/python scripts/demo.py

cluster-demo: $(STAMP) runner-image ## as root: 60 jobs through PostgreSQL, two servers, a controller and three agents, on this machine
	@scripts/ensure-test-tools.sh
	@$(BIN)/python -m scripts.cluster_demo $(CLUSTER_ARGS)

test: $(STAMP) runner-image ## run the whole suite (PYTEST_ARGS="…" replaces its options)
	@scripts/ensure-test-tools.sh
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

soak: export CI_SOAK := 1
soak: $(STAMP) runner-image ## the long tests (CI_SOAK_MINUTES=30 for each, CI_SOAK_SEEDS=… worlds at most)
	@$(BIN)/python -m pytest -n 0 -o timeout=0 tests/soak tests/unit/test_repository_machine.py tests/unit/test_agent_histories.py tests/unit/test_postgres_losses.py tests/unit/test_api_fuzz.py tests/unit/test_controller_leaks.py tests/e2e/test_controller_kill.py tests/e2e/test_real_projects.py tests/integration/test_pytest_ahead.py tests/faults/test_engine_gone.py tests/faults/test_engine_faults.py tests/unit/test_server_process.py tests/sandbox/test_probes.py tests/unit/test_planner.py tests/unit/test_harness.py tests/unit/test_harness_ahead.py tests/integration/test_harness_docker.py tests/integration/test_container_manager.py tests/cluster/test_cluster_faults.py tests/unit/test_blobs.py tests/unit/test_upgrade.py $(SOAK_ARGS)

check: $(STAMP) ## lint, formatting, types, documentation and architecture
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright
	@$(BIN)/python scripts/generate_docs.py --check
	@$(BIN)/python -m pytest -n 0 -q tests/unit/test_architecture.py tests/unit/test_docs.py

format: $(STAMP) ## format the code, sort imports, rewrite the generated tables of the docs
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@$(BIN)/python scripts/generate_docs.py

doctor: $(STAMP) ## say what is missing on this machine
	@$(BIN)/ci-admin doctor

bench-reliability: $(STAMP) runner-image ## measure recovery: take-over, cancel, what is lost (BENCH_ARGS="--rounds 7")
	@$(BIN)/python -m bench.reliability $(BENCH_ARGS)

bench: $(STAMP) runner-image ## measure each number beside its floor, in one run (BENCH_ARGS="--quick", or names)
	@$(BIN)/python -m bench.run $(BENCH_ARGS)

bench-check: bench ## the same, then compare its ratios with the committed ones; fails on a regression
	@$(BIN)/python -m bench.check

bench-peers: $(STAMP) ## install what can be had of the CI systems that `make bench` compares with
	@$(BIN)/python -m bench.peers

bench-queue: $(STAMP) ## our queue beside procrastinate, pgqueuer and huey (BENCH_ARGS="--rounds 5"); no Docker, some minutes
	@$(BIN)/python -m bench.queue_peers $(BENCH_ARGS)

clean: ## remove what was built here (the engine and the runner image stay)
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
