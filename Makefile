# Everything a person does with this repository, as targets. `make` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: cluster cluster-down cluster-status cluster-kubeconfig help setup bpf lint format test unit live e2e e2e-operator kernels images demo demo-host bench bench-cluster clean

PYTHON := .venv/bin/python
export PYTHONDONTWRITEBYTECODE ?=

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Install what is missing and build everything (Debian 12+, Ubuntu 24.04+)
	@tools/bootstrap.sh

bpf: ## Build the BPF object
	@tools/bootstrap.sh bpf

lint: setup ## Check style, types, module borders and that generated files are fresh
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports
	$(PYTHON) -m vedette_events.generate --check
	@bash -n tools/bootstrap.sh

format: setup ## Bring the style in order
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

test: lint unit live e2e ## Run every test (live and e2e ones need root and a kernel with BTF)

unit: setup ## Run the tests that need no root and no network
	$(PYTHON) -m pytest tests/unit

live: setup ## Run the tests that load real BPF programs into this kernel (root)
	@if [[ $$(id -u) -ne 0 && -z $${CI-} ]]; then \
	  echo 'live tests: skipped, they load BPF programs and need root (sudo make live)' >&2; \
	else \
	  tools/bootstrap.sh cluster; \
	  tools/bootstrap.sh images; \
	  $(PYTHON) -m tools.localcluster build --kwok; \
	  $(PYTHON) -m pytest tests/live; \
	fi

e2e: setup ## Run the tests in a Kubernetes with Vedette in it, made for them here (root; CLUSTER=kind or current: elsewhere)
	@if [[ $$(id -u) -ne 0 && -z $${CI-} && $${CLUSTER:-local} == local ]]; then \
	  echo 'e2e tests: skipped, they start a Kubernetes node and load BPF programs and need root (sudo make e2e)' >&2; \
	else \
	  tools/bootstrap.sh cluster; \
	  tools/bootstrap.sh images; \
	  $(PYTHON) -m pytest tests/e2e --ignore=tests/e2e/test_operator.py $(ARGS); \
	fi

e2e-operator: setup ## Run the operator's tests in a Kubernetes made for them here (root)
	@tools/bootstrap.sh cluster
	@tools/bootstrap.sh images
	@VEDETTE_E2E_NAME=e2e-op $(PYTHON) -m pytest tests/e2e/test_operator.py $(ARGS)

kernels: setup ## Load the programs into other kernels, 5.10 to the newest, in virtual machines (qemu, mmdebstrap)
	$(PYTHON) -m pytest tests/kernel $(ARGS)

images: setup ## Build the container images into build/images (docker, podman or buildah)
	@tools/bootstrap.sh images
	@$(PYTHON) -m tools.images $(ARGS)

cluster: setup ## Bring up a real Kubernetes on this machine (root; the first time compiles it, ten minutes)
	@tools/bootstrap.sh cluster
	@$(PYTHON) -m tools.localcluster up $(ARGS)

cluster-down: setup ## Take it down; nothing is left on the machine
	@$(PYTHON) -m tools.localcluster down $(ARGS)

cluster-status: setup ## What of it runs, and how much memory it takes
	@$(PYTHON) -m tools.localcluster status $(ARGS)

cluster-kubeconfig: setup ## Print the path of its kubeconfig (make -s)
	@$(PYTHON) -m tools.localcluster kubeconfig $(ARGS)

demo: setup ## Start a Kubernetes here, install Vedette, attack from pods, see the findings, take all down (root)
	@tools/bootstrap.sh cluster
	@tools/bootstrap.sh images
	@$(PYTHON) tools/demo/in_cluster.py $(ARGS)

demo-host: setup ## The same without Kubernetes: attack this machine harmlessly, a dozen ways (root)
	@$(PYTHON) tools/demo/host.py $(ARGS)

bench: setup ## Measure; prints each figure beside the machine's load, writes build/bench.json (root)
	@$(PYTHON) benchmarks/run.py $(ARGS)

bench-cluster: setup ## Measure in a Kubernetes made for it; writes build/bench-cluster.json (root)
	@tools/bootstrap.sh cluster
	@tools/bootstrap.sh images
	@$(PYTHON) benchmarks/cluster.py $(ARGS)

clean: ## Remove what was built (not the Python environment)
	rm -rf build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find agent events -name '*.o' -delete
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
