# One command each. They make .venv and install the pinned requirements; nothing but Python 3.11 and pip is needed.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
STUBS := clients/python/termwise/v1
# The encoder's kernel: compiled while the package is installed.
KERNEL := service/termwise/server/inference/native/kernel
# Benchmarks share what tests share.
BENCH := PYTHONPATH=tests/fixtures $(BIN)/python tests/bench
PORTIONS := -p termwise.server -p termwise.storage -p termwise.client -p termwise.cli
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo serve test test-slow lint format proto proto-check proto-baseline eval lock clean \
	bench bench-report bench-encode bench-drift bench-search bench-storage bench-ingest bench-overhead bench-start

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

# --- environments: one for running, the same with tools on top for developing

.venv/.server: requirements/server.txt pyproject.toml hatch_build.py $(wildcard $(KERNEL)/*)
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q -r requirements/server.txt
	$(BIN)/pip install -q 'hatchling==1.33.0' 'editables==0.6'
	$(BIN)/pip install -q --no-deps --no-build-isolation -e .
	@touch $@

.venv/.dev: requirements/dev.txt .venv/.server
	$(BIN)/pip install -q -r requirements/dev.txt
	@touch $@

# What benchmarks measure beside: Lucene with a Java runtime among them.
.venv/.bench: requirements/bench.txt .venv/.dev
	$(BIN)/pip install -q -r requirements/bench.txt
	@touch $@

build/googleapis/google/rpc/status.proto: .venv/.server
	@mkdir -p $(@D)
	@cp $$($(BIN)/python -c 'import google.rpc, os; print(os.path.dirname(google.rpc.__path__[0]))')/rpc/status.proto $@

# --- using it

demo: .venv/.server ## From a bare clone to search results on the standard library's documentation
	$(BIN)/termwise demo $(ARGS)

serve: .venv/.server ## A server on 127.0.0.1:50051 with its data in ./data
	$(BIN)/termwise serve --data ./data --host 127.0.0.1 --port 50051 $(ARGS)

eval: .venv/.server ## NDCG@10 of a BEIR folder: make eval ARGS=path/to/folder
	$(BIN)/termwise eval $(ARGS)

# --- developing it

test: lint ## Lint and every test but the slow ones
	$(BIN)/pytest -m "not slow" $(ARGS)

test-slow: .venv/.dev ## The slow tests
	$(BIN)/pytest -m slow --timeout 1800 $(ARGS)

lint: .venv/.dev proto-check ## Style, types, layers, protos
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy $(PORTIONS)
	$(BIN)/lint-imports
	$(BIN)/buf lint
	$(BIN)/buf format protos --diff --exit-code
	$(BIN)/buf breaking protos --against protos/baseline.binpb --exclude-imports
	$(BIN)/hadolint docker/Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker/compose.yaml

format: .venv/.dev ## Put the code in its form
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/buf format -w protos

proto: .venv/.dev build/googleapis/google/rpc/status.proto ## Regenerate the stubs from protos/
	$(call generate,clients/python)

# The committed stubs must be what the protos give.
proto-check: .venv/.dev build/googleapis/google/rpc/status.proto
	@rm -rf build/stubs && mkdir -p build/stubs
	$(call generate,build/stubs)
	@diff -rq -x __pycache__ -x __init__.py -x py.typed build/stubs/termwise/v1 $(STUBS) \
		|| { echo 'The stubs are not those of the protos: run make proto.' >&2; exit 1; }

proto-baseline: .venv/.dev build/googleapis/google/rpc/status.proto ## Take today's protos as what later ones must not break
	$(BIN)/buf build --exclude-source-info -o protos/baseline.binpb

lock: .venv/.dev ## Pin what .venv holds
	$(BIN)/python requirements/lock.py

# --- measuring it

bench: .venv/.bench ## Every benchmark, 75 minutes at the most; writes docs/performance.md and docs/scaling.md
	@$(BENCH)/report.py $(ARGS)

bench-report: .venv/.bench ## Those pages again, from the figures that are kept
	@$(BENCH)/report.py --render $(ARGS)

bench-encode: .venv/.bench ## Encoder beside sentence-transformers, ONNX Runtime and OpenVINO
	@$(BENCH)/bench_encode.py $(ARGS)

bench-drift: .venv/.bench ## What faster arithmetic costs in quality: ARGS="path/to/collection ..."
	@$(BENCH)/bench_drift.py $(ARGS)

bench-search: .venv/.bench ## Sparse search over 100,000 passages beside scipy, Lucene, Seismic, BMP, ...
	@$(BENCH)/bench_search.py $(ARGS)

bench-storage: .venv/.dev ## The tantivy backend alone: writing, ranking, opening
	@$(BENCH)/bench_storage.py $(ARGS)

bench-ingest: .venv/.dev ## Passages through a pipeline, beside the encoder alone
	@$(BENCH)/bench_ingest.py $(ARGS)

bench-overhead: .venv/.dev ## What the service adds to encoding and retrieval, many callers, and health under load
	@$(BENCH)/bench_overhead.py $(ARGS)

bench-start: .venv/.dev ## From a restart to ready, beside importing torch and transformers alone
	@$(BENCH)/bench_start.py $(ARGS)

clean: ## Remove what was built, .venv included
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

define generate
	@$(BIN)/python -m grpc_tools.protoc -I protos -I build/googleapis \
		--plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc \
		--python_out=$(1) --grpc_python_out=$(1) --mypy_out=quiet:$(1) --mypy_grpc_out=quiet:$(1) protos/termwise/v1/*.proto
endef
