# The project's commands. `make` alone lists them; each target installs what it needs first.

# Which Python makes the virtual environment (3.11 or newer), and what else a command is given:
#   make run PYTHON=python3.12        make test ARGS="-k sse -x"
PYTHON ?= python3
ARGS ?=
# How many processes share the tests; `make test TEST_WORKERS=0` runs them in one.
TEST_WORKERS ?= 2
# A file's tests stay together, and the long files of tests/faults come first.
SHARED := -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder
SOAK_SECONDS ?= 3600
SOAK_SEED ?= 1
SOAK := tests/faults/test_soak.py::test_faults_at_random_lose_and_double_nothing

VENV := .venv
BIN := $(VENV)/bin
RUN_STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
TYPES := build/types/open_llm_proxy
# What most changes break first: pure functions, and the relay and the queue within one process.
QUICK := $(addprefix tests/test_,config.py settings.py routing.py command_line.py \
    client_request.py question.py capture.py json_text.py json_size.py sse.py transcript.py \
    redact.py stream_error.py held_end.py cors.py queue_batches.py queue_store.py queue_drain.py \
    queue_log_queue.py upstream_connect.py upstream_lookups.py upstream_pool.py relay_requests.py \
    relay_answers.py relay_order.py relay_retries.py relay_client_gone.py)
BENCHMARKS := $(addprefix benchmarks/,upstream_client.py relay_memory.py queue_writer.py replay.py \
    redaction.py line_bytes.py entries.py hostile.py archive.py)
RECORDS := build/performance

.DEFAULT_GOAL := help
.PHONY: help run test test-quick test-long test-duckdb test-agent-versions test-clients test-faults durability soak lint types bench bench-peers bench-parts check clean lock test-cluster test-openai test-image

help: ## list the targets
	@echo "usage: make TARGET [PYTHON=python3.12] [ARGS='...']"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-19s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# `exec` leaves no shell between make and the program: on Ctrl-C its own exit status decides. In
# `test` the trap keeps make from calling an interrupted run an error; make itself still ends by
# the signal, so nobody takes it for a success.
run: $(RUN_STAMP) ## install, then run the demo: provider, proxy and log in one process (Ctrl-C ends it)
	@exec $(BIN)/open-llm-proxy demo $(ARGS)

test: $(DEV_STAMP) ## install, then run the tests
	@trap 'exit 0' INT; $(BIN)/python -m pytest $(SHARED) $(ARGS)

test-quick: $(DEV_STAMP) ## run the tests that say most in a minute
	@trap 'exit 0' INT; $(BIN)/python -m pytest $(SHARED) $(QUICK) $(ARGS)

test-long: $(DEV_STAMP) ## run the long forms of the tests (many seeds, big backlogs)
	@trap 'exit 0' INT; $(BIN)/python -m pytest -m "long and not cluster and not openai_suite" $(ARGS)

# What KUBECONFIG must name and which variables there are: tests/cluster/cluster.py.
test-cluster: $(DEV_STAMP) ## run the rollouts on the Kubernetes cluster that KUBECONFIG names
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check kubernetes-validate
	@trap 'exit 0' INT; $(BIN)/python -m pytest -m cluster tests/cluster $(ARGS)

# Debian's buildah, podman, netavark, runc and mmdebstrap as root; no registry is asked.
test-image: $(DEV_STAMP) ## build the image and run it (root; skipped where no container runs)
	@trap 'exit 0' INT; $(BIN)/python -m pytest -m image tests/image $(ARGS)

# Old ones and the newest, each in an environment of its own below build/duckdb/, made by pip.
test-duckdb: $(DEV_STAMP) ## read the log with DuckDB 1.0, 1.1, 1.5 and 2.0, Polars, pandas and Dask
	@trap 'exit 0' INT; $(BIN)/python -m pytest -m "not cluster" tests/test_log_versions.py \
	    tests/test_log_table_readers.py $(ARGS)

# Needs Node, PyPI and npm once; what it downloads stays below build/openai-suite/.
test-openai: $(DEV_STAMP) ## run openai-python's own tests with and without the proxy, and compare
	@trap 'exit 0' INT; $(BIN)/python -m pytest -m openai_suite tests/openai_suite $(ARGS)

# What pip and npm install stays below build/clients/; the browser is Debian's.
test-clients: $(DEV_STAMP) ## run real clients directly and through the proxy, for docs/clients.md
	@rm -rf build/clients/results
	@trap 'exit 0' INT; $(BIN)/python -m pytest -m clients tests/clients $(ARGS)
	@$(BIN)/python tools/render_clients.py

# Each in an environment of its own below build/agent/, made by pip.
test-agent-versions: $(DEV_STAMP) ## run the agent with the oldest and the newest openai and mcp
	@trap 'exit 0' INT; $(BIN)/python -m pytest -m long tests/test_agent_versions.py $(ARGS)

test-faults: $(DEV_STAMP) ## run the fault tests alone: kills, power cuts, full disks, broken stores (root)
	@trap 'exit 0' INT; $(BIN)/python -m pytest $(SHARED) tests/faults $(ARGS)

# docs/durability.md is made from what these two write below build/durability/.
durability: $(DEV_STAMP) ## run the fault tests and the queue's benchmarks for docs/durability.md (root)
	@rm -rf build/durability && mkdir -p build/durability
	@FAULT_RECORD=$(CURDIR)/build/durability/faults.jsonl \
	    $(BIN)/python -m pytest $(SHARED) tests/faults $(ARGS)
	@$(BIN)/python benchmarks/queue_writer.py --json build/durability/writer.json
	@$(BIN)/python benchmarks/queue_backlog.py --json build/durability/backlog.json
	@$(BIN)/python tools/render_durability.py

soak: $(DEV_STAMP) ## run random faults under load for SOAK_SECONDS=3600, for docs/durability.md (root)
	@rm -rf build/durability && mkdir -p build/durability
	@SOAK_SECONDS=$(SOAK_SECONDS) SOAK_SEED=$(SOAK_SEED) SOAK_RECORD=$(CURDIR)/build/durability/soak.json \
	    $(BIN)/python -m pytest -m long $(SOAK) $(ARGS)
	@$(BIN)/python tools/render_durability.py

lint: $(DEV_STAMP) ## check style and formatting (ruff; shell syntax)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@bash -n .ci/run && bash -n tests/rgw.sh

# The links give mypy the installed names without an installation that it can follow.
types: $(DEV_STAMP) ## check the product's types (mypy, strict)
	@mkdir -p $(TYPES)
	@ln -sfn ../../../server $(TYPES)/server
	@ln -sfn ../../../queue $(TYPES)/queue
	@ln -sfn ../../../archive $(TYPES)/archive
	@ln -sfn ../../../tools/agent $(TYPES)/agent
	@$(BIN)/mypy $(TYPES)/server $(TYPES)/queue $(TYPES)/archive $(TYPES)/agent

# docs/performance.md is made from what these two write below build/performance/. ROUNDS=3 is quicker.
ROUNDS ?= 5
bench: $(DEV_STAMP) ## measure the proxy beside a bare relay, for docs/performance.md (10 minutes, alone)
	@mkdir -p $(RECORDS)
	@$(BIN)/python benchmarks/relay_throughput.py --rounds $(ROUNDS) --json $(RECORDS)/throughput.json
	@$(BIN)/python benchmarks/relay_streams.py --json $(RECORDS)/streams.json
	@$(BIN)/python benchmarks/long_prompt.py --json $(RECORDS)/long_prompt.json
	@$(BIN)/python benchmarks/relay_starts.py --json $(RECORDS)/starts.json
	@$(BIN)/python benchmarks/queue_backlog.py --json $(RECORDS)/backlog.json
	@$(BIN)/python benchmarks/profile_areas.py --json $(RECORDS)/profile.json \
	    --flame $(RECORDS)/flame.txt
	@$(BIN)/python tools/render_performance.py

bench-peers: $(DEV_STAMP) build/peers/.installed ## the same load beside LiteLLM and Portkey
	@mkdir -p $(RECORDS)
	@$(BIN)/python benchmarks/peers.py --rounds $(ROUNDS) --json $(RECORDS)/peers.json
	@$(BIN)/python tools/render_performance.py

bench-parts: $(DEV_STAMP) ## measure single parts one by one; one of them: BENCHMARKS=benchmarks/...
	@set -e; for file in $(BENCHMARKS); do echo "== $$file"; $(BIN)/python "$$file" $(ARGS); done

build/peers/.installed:
	@command -v npm >/dev/null || { echo "Portkey needs node and npm" >&2; exit 1; }
	@echo "Installing LiteLLM and Portkey into build/peers"
	@"$(PYTHON)" -m venv build/peers/venv
	@build/peers/venv/bin/pip install --quiet --disable-pip-version-check "litellm[proxy]"
	@npm install --silent --no-audit --no-fund --prefix build/peers @portkey-ai/gateway
	@touch $@

# Hashes of every file of every version, for the image. The tool has a virtual environment of its
# own, as it asks for a pip of its own.
lock: ## renew requirements.lock, from which the image installs
	@"$(PYTHON)" -m venv build/lock
	@build/lock/bin/python -m pip install --quiet --disable-pip-version-check pip-tools
	@build/lock/bin/pip-compile --quiet --upgrade --all-build-deps --allow-unsafe --generate-hashes \
	    --strip-extras --no-header --no-emit-index-url --no-emit-trusted-host --no-emit-find-links \
	    --no-emit-options --extra tables --output-file requirements.lock setup.py

check: lint types test ## all that a change must pass: lint, types, test

clean: ## remove what make made; logs/ and log-queue/ stay, they may hold entries
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps make the second run quick; a change of setup.py installs again.
$(RUN_STAMP): setup.py | $(BIN)/pip
	@echo "Installing open-llm-proxy into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[archive]"
	@touch $@

$(DEV_STAMP): setup.py | $(BIN)/pip
	@echo "Installing open-llm-proxy and its development tools into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $@ $(RUN_STAMP)

# venv writes bin/pip near its end: where it is missing, an interrupted creation starts again.
$(BIN)/pip:
	@command -v "$(PYTHON)" >/dev/null || { \
	    echo "There is no $(PYTHON) here: install Python 3.11 or newer, or name one with PYTHON=..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "$(PYTHON) is $$("$(PYTHON)" --version 2>&1), and open-llm-proxy needs 3.11 or newer: name one with PYTHON=..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "$(PYTHON) cannot make virtual environments; on Debian or Ubuntu: apt-get install $$("$(PYTHON)" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')" >&2; exit 1; }
	@"$(PYTHON)" -m venv $(VENV)
