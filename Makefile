# Everything a developer runs. Environments are made on first use, outside the sources (SHADOWSERVE_HOME).
.DEFAULT_GOAL := help
PYTHON ?= python3
ARGS ?=
LAB := PYTHONPATH=e2e_tests $(PYTHON) -m shadowserve_lab
DEV := $(LAB) run --with dev
# the longest first
API_STORIES := namespaces operator_killed operator_faults cert_manager operator cli operator_restarts \
  crds rights rendered admission manifests scale
# starting and stopping test beds comes first: the other stories share one that stays up to the end
CLUSTER_STORIES := e2e_tests/test_e2e_cluster_bed.py $(filter-out %_bed.py,$(sort $(wildcard e2e_tests/test_e2e_cluster_*.py)))
CLUSTER := $(LAB) run --with dev --with engine --with model
STACK := $(LAB) run --with store --with dev --with engine --with model
RIVALS := --with lmcache --with mooncake --with nixl
# many tests wait, for stores and time limits; files that are named run alone, so that what they print stays readable
SIDE_BY_SIDE := $(if $(findstring .py,$(ARGS)),,--numprocesses 3 --dist loadfile)
BENCH := python dataplane_image/bench/run.py

.PHONY: help setup check test unit fuzz engine-test cluster-test image-test e2e soak demo-local demo demo-clean generate format bench bench-quick bench-capacity bench-capacity-calibration bench-capacity-prefetch bench-capacity-engine bench-operator bench-webhook clean

help: ## List these commands
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Make all environments, the model and a store server (once; a few minutes)
	@$(LAB) setup

check: ## Lint, types, import contracts, generated code: what CI runs first, under a minute
	@$(DEV) ruff check .
	@$(DEV) ruff format --check --quiet .
	@$(DEV) lint-imports
	@$(DEV) python -m shadowserve_dataplane.fetch.generate --check
	@$(DEV) python -m shadowserve_crds.generate --check
	@$(DEV) python -m shadowserve_operator.install --check
	@$(DEV) mypy

test: check unit engine-test cluster-test image-test e2e ## Everything, on a fresh machine too: checks, unit tests, stories

unit: ## Tests that need no engine: formats, store, pipeline, data plane, sidecar
	@$(LAB) run --with store --with dev python -m pytest -m "not engine" $(SIDE_BY_SIDE) $(ARGS)

fuzz: ## Every property with twenty times the examples, others at each run (ARGS="path::test" for one of them)
	@$(DEV) python -m pytest -m "hypothesis and not engine" --hypothesis-profile fuzz --timeout 3600 $(ARGS)

engine-test: ## Tests inside the engine's environment, then stories with real vLLM engines
	@$(STACK) sh -c '"$$SHADOWSERVE_LAB_ENGINE/bin/python" -m pytest -m engine dataplane_image/tests $(ARGS)'
	@$(STACK) python -m pytest --timeout 600 e2e_tests/test_e2e_hits.py e2e_tests/test_e2e_faults.py e2e_tests/test_e2e_demo.py $(ARGS)

cluster-test: ## Stories with a real API server, built from Go modules on first use (ten minutes)
	@$(DEV) python -m shadowserve_testbed.cli build --api-stories
	@$(DEV) python -m pytest $(SIDE_BY_SIDE) $(if $(SIDE_BY_SIDE),--no-loadscope-reorder) $(API_STORIES:%=e2e_tests/test_e2e_%.py) $(ARGS)

image-test: ## The test bed's images start; the arm64 data plane, emulated, makes the same bytes; Dockerfiles (root)
	@$(DEV) python -m pytest e2e_tests/test_e2e_images.py e2e_tests/test_e2e_arm64.py e2e_tests/test_e2e_dockerfiles.py $(ARGS)

e2e: ## Stories on a cluster with nodes (PROVIDER=native): install, hits through a card, everything that can break
	@$(CLUSTER) python -m pytest --timeout 900 $(CLUSTER_STORIES) $(ARGS)

soak: ## 1000 requests through two engines and a store that is too small
	@$(STACK) python -m shadowserve_lab.soak $(ARGS)

demo-local: ## Two vLLM engines, one cache: the second answers a long prompt from what the first computed
	@$(STACK) python -m shadowserve_lab.demo $(ARGS)

demo: ## A Kubernetes on this machine: B answers from what A computed, restored on a card; then its node dies (PROVIDER=)
	@$(CLUSTER) python -m shadowserve_testbed.demo $(ARGS)

demo-clean: ## Remove the demo's Kubernetes with all that runs on it
	@$(DEV) python -m shadowserve_testbed.demo --clean

generate: ## Write the generated code, custom resource definitions and reference
	@$(DEV) python -m shadowserve_dataplane.fetch.generate
	@$(DEV) python -m shadowserve_crds.generate
	@$(DEV) python -m shadowserve_operator.install

format: ## Fix what ruff can fix
	@$(DEV) ruff check --fix .
	@$(DEV) ruff format .

bench: ## All benchmarks of the data plane: a table of ratios and goals, every figure in bench-results.jsonl
	@$(STACK) --with kv $(RIVALS) $(BENCH) $(ARGS)

bench-quick: ## The same with fewer samples, in under ten minutes
	@$(STACK) --with kv $(RIVALS) $(BENCH) --quick $(ARGS)

bench-%: ## One of them: make bench-pipeline, bench-codec, ... ARGS="-- --help" shows its options
	@$(STACK) --with kv $(if $(filter rivals codec,$*),$(RIVALS)) $(BENCH) $* $(ARGS)

bench-capacity: ## Prefetching: the paper's table in simulated time, and real processes on the cores there are
	@$(DEV) python operator/bench/prefetch.py $(ARGS)

bench-capacity-calibration: ## Is the capacity model as often right as it says? A hundred fits of pools with known parameters
	@$(DEV) python operator/bench/capacity_calibration.py $(ARGS)

bench-capacity-prefetch: ## The capacity model's simulated likelihood: prefetching by two processes against serial
	@$(DEV) python operator/bench/capacity_prefetch.py $(ARGS)

bench-capacity-engine: ## Real vLLM engines under many loads; the capacity model predicts those that it did not see
	@$(STACK) python e2e_tests/bench_capacity_engine.py $(ARGS)

bench-operator: ## Two hundred pools on a real API server: until they are settled, memory, writes in 5 minutes after
	@$(DEV) python e2e_tests/bench_operator_pools.py $(ARGS)

bench-webhook: ## What the admission webhook costs a pod, on a real API server
	@$(DEV) python e2e_tests/bench_webhook.py $(ARGS)

clean: ## Remove caches in the sources (environments stay: delete SHADOWSERVE_HOME yourself)
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
