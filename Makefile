# One target per task; CI runs the same targets. `make` without a target prints them.
#
# All builds use one optimised profile, so that nothing is compiled twice. Builds without `-p` cover the
# default members: the product and its tests. The simulator is always built by a separate invocation,
# because cargo unifies features per invocation and the simulator turns the features for known bugs on.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

CARGO ?= cargo
# The seeds of `make etcd-diff`: SEEDS, if it is given.
ETCD_SEEDS := $(or $(SEEDS),0..20)
# The simulator's seeds for `make sim`, and the fixed ones of `make test`.
SEEDS ?= 0..1000
TEST_SEEDS ?= 0..1000
# `make demo INPUT=file.tsv` imports `key<TAB>value` lines instead of this machine's package list.
INPUT ?=
# Seconds for each point of `make bench`.
BENCH_SECONDS ?= 5
# Sizes of the shards that `make bench` moves under load: MOVE_SIZES=1MB is a quick run.
MOVE_SIZES ?= 1MB,100MB,1GB
# Random histories of `make test-etcd`.
HISTORIES ?= 4
# Outages of each test of `make test-power`, and the seed that draws them.
OUTAGES ?= 100
SEED ?= 1
# The crate whose mutants `make mutants` tries, and the part of them: K/N, with K from 0.
CRATE ?= raft
SHARD ?= 0/40
# The store of the Kubernetes of `make test-api` and `make kube-up`: etcd or shardkv.
STORE ?= etcd
# Seconds for each fuzz target of `make fuzz`.
SECONDS ?= 60

# Public documentation may link to private items: it is built with them.
RUSTDOC_CHECKS := -D warnings -A rustdoc::private_intra_doc_links

bin := $(or $(CARGO_TARGET_DIR),target)/release

.PHONY: help
help: ## Print this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: deps
deps: ## Install the Debian packages that the build needs (does nothing if all are installed)
	@.ci/deps

.PHONY: fresh
fresh: ## Prove the README's commands in minimal roots of Debian bookworm and trixie (about an hour; ARGS=--quick: minutes); needs root
	@.ci/fresh $(ARGS)

.PHONY: build
build: deps ## Build the node and the CLI, optimised
	@echo "Building: 3 to 6 minutes on two cores, and 10 to 20 more the first time, for RocksDB (C++; ccache keeps its objects)."
	@.ci/build $(CARGO) build --release

.PHONY: test
test: test-fast test-operator test-api test-etcd test-keyspaces test-suites test-sim test-processes test-power ## Run all tests: fast ones, goldens, conformance, a real API server, a real etcd, simulator seeds, processes, power cuts

.PHONY: test-fast
test-fast: deps ## Run unit tests, goldens, paper tests and store conformance
	@.ci/build $(CARGO) test --release

.PHONY: test-operator
test-operator: ## Run the operator's tests, and check that crds/ matches the code
	$(CARGO) test --release -p shardkv-operator

.PHONY: test-api
test-api: deps $(if $(filter shardkv,$(STORE)),build) ## Run the operator against a real API server and etcd (built the first time: about 6 minutes; STORE=shardkv: on a keyspace)
	deploy/kube/build etcd kube-apiserver
	@$(if $(filter shardkv,$(STORE)),SHARDKV_API_STORE="$$(.ci/shim "$(bin)")") $(CARGO) test --release -p shardkv-operator --test api

.PHONY: test-etcd
test-etcd: deps ## Compare keyspaces with a real etcd, every answer and event of HISTORIES=4 random histories (etcd is built the first time: a minute)
	deploy/kube/build etcd
	$(CARGO) build --release -p shardkv-keyspace --example history
	@. deploy/kube/lib.sh && cd .ci/etcd && go run ./histories "$$cache/bin/etcd" "$(abspath $(bin))/examples/history" "$(HISTORIES)" 3000
	@. deploy/kube/lib.sh && cd .ci/etcd && ETCD="$$cache/bin/etcd" go test -count=1 ./...

.PHONY: etcd-diff
etcd-diff: build ## Send the same random calls to a real etcd and to a keyspace, and compare each answer, error and event (SEEDS=0..20: two minutes)
	deploy/kube/build etcd
	@. deploy/kube/lib.sh && cd .ci/etcd && go run ./diff -etcd "$$cache/bin/etcd" -bin "$(abspath $(bin))" -seeds "$(ETCD_SEEDS)"

.PHONY: etcd-suite
etcd-suite: build ## Run etcd's own `common` tests against nodes of ours, those that can't apply, too (6 minutes)
	@.ci/etcd-suite "$(bin)" $(ARGS)

.PHONY: etcd-robustness
etcd-robustness: build ## Run etcd's robustness tests, its traffic and its checks, on groups of three nodes that are killed and frozen (2 minutes; ARGS="-rounds 10")
	$(CARGO) build --release -p shardkv-server --example applied
	@.ci/robustness "$(bin)" $(ARGS)

.PHONY: kube-storage
kube-storage: build ## Run the tests of the API server's storage, and of its watch cache, on keyspaces (5 minutes; ARGS=etcd3: 1)
	@.ci/kube-storage "$(bin)" $(or $(ARGS),etcd3 cacher)

.PHONY: test-suites
test-suites: build ## Run etcd's and Kubernetes' own tests of their store on keyspaces, without those that can't apply (3 minutes, and 5 more to compile them once)
	@.ci/etcd-suite "$(bin)" -listed=false -skip /NoTLS
	@.ci/kube-storage "$(bin)" etcd3

.PHONY: bench-etcd
bench-etcd: build ## Measure a keyspace and a real etcd with the same load, three members each (ARGS: -seconds 5 -rounds 2 -only put|event|memory)
	deploy/kube/build etcd
	@. deploy/kube/lib.sh && cd .ci/etcd && go run ./load -etcd "$$cache/bin/etcd" -bin "$(abspath $(bin))" $(ARGS)

.PHONY: test-keyspaces
test-keyspaces: build ## Use keyspaces of real nodes by etcd's own client, and hold them against a real etcd for eight seeds
	cd .ci/etcd && SHARDKV_BIN="$(abspath $(bin))" go test -count=1 ./clients
	@$(MAKE) etcd-diff SEEDS=0..8

.PHONY: test-sim
test-sim: ## Run the simulator's tests, the MIT 6.5840 scenarios and TEST_SEEDS=0..1000
	$(CARGO) test --release -p shardkv-sim
	@$(MAKE) sim SEEDS=$(TEST_SEEDS)

.PHONY: test-processes
test-processes: deps checker ## Run the tests that kill, stop and starve real node processes
	SHARDKV_CHECKER="$(abspath $(bin))/shardkv-porcupine" \
		$(CARGO) test --release --test processes -- --test-threads=2

.PHONY: test-power
test-power: deps checker ## Cut the power of real nodes OUTAGES=100 times, and kill as many (OUTAGES=500: some 5 minutes; SEED=1); needs root
	$(CARGO) test --release -p shardkv-powercut
	SHARDKV_CHECKER="$(abspath $(bin))/shardkv-porcupine" SHARDKV_OUTAGES="$(OUTAGES)" SHARDKV_SEED="$(SEED)" \
		$(CARGO) test --release --test processes -- --ignored --nocapture power::

.PHONY: checker
checker: ## Build and test the linearizability checker (porcupine, in Go)
	cd node/server/tests/porcupine && go test ./...
	mkdir -p $(bin)
	cd node/server/tests/porcupine && go build -o "$(abspath $(bin))/shardkv-porcupine" .

.PHONY: lint
lint: deps ## Check formatting, clippy and documentation (warnings are errors), scripts, links of documents, the compose file, purity, and dependencies if cargo-deny is here
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --all-targets -- -D warnings
	$(CARGO) clippy --release -p shardkv-sim --all-targets -- -D warnings
	$(CARGO) clippy --release -p shardkv-operator -p shardkv-example --all-targets -- -D warnings
	$(CARGO) clippy --release -p shardkv-operator --test api --test e2e -- -D warnings
	$(CARGO) clippy --release --test processes -- -D warnings
	$(CARGO) clippy --release -p shardkv-powercut --all-targets -- -D warnings
	@$(MAKE) doc
	cd node/server/tests/porcupine && test -z "$$(gofmt -l .)" && go vet ./...
	cd .ci/etcd && test -z "$$(gofmt -l . ../etcd-robustness)" && go vet ./...
	cd deploy/examples/election-go && test -z "$$(gofmt -l .)" && go vet ./...
	$(CARGO) fmt --check --manifest-path deploy/examples/election-rust/Cargo.toml
	cd .ci/compose && test -z "$$(gofmt -l .)" && go vet ./... && go run . "$(abspath deploy/compose.yaml)"
	cd .ci/links && test -z "$$(gofmt -l .)" && go vet ./... && go test ./... && go run . "$(abspath .)"
	@.ci/purity
	grep -rlI --exclude-dir=target --exclude-dir=.git '^#!.*bash' . | xargs shellcheck -x -P SCRIPTDIR
	@if command -v cargo-deny >/dev/null; then $(MAKE) deny; else echo "cargo-deny is not installed: \`make deny\` installs it"; fi

.PHONY: deny
deny: ## Check licences, sources and duplicates of dependencies; installs cargo-deny (minutes) if missing
	@command -v cargo-deny >/dev/null || { echo "Compiling cargo-deny: some minutes, once."; $(CARGO) install --locked --debug cargo-deny; }
	$(CARGO) deny --log-level error check bans licenses sources

.PHONY: advisories
advisories: deps ## Check dependencies for known vulnerabilities (fetches the RustSec database)
	$(CARGO) deny check advisories

.PHONY: demo
demo: build checker ## Show groups that join and leave under load, and a killed leader, without a lost write
	@PATH="$(abspath $(bin)):$$PATH" INPUT="$(INPUT)" deploy/demo.sh

.PHONY: bench
bench: build ## Measure puts and gets, one to three groups, and moves of shards, compared with the limits of disk and network
	$(CARGO) build --release -p shardctrler --example rebalance
	@PATH="$(abspath $(bin)):$$PATH" SECONDS_EACH="$(BENCH_SECONDS)" MOVE_SIZES="$(MOVE_SIZES)" BENCH_JSON="$(abspath $(bin)/../bench.jsonl)" \
		REBALANCE="$(abspath $(bin))/examples/rebalance" deploy/bench.sh

.PHONY: scale
scale: build checker ## Grow from two groups to five and back with 3 GB under load (SCALE_MB=100: quick), and check that nothing is lost
	@PATH="$(abspath $(bin)):$$PATH" deploy/scale.sh

.PHONY: bench-micro
bench-micro: deps ## Measure single functions with criterion: codecs, apply, rebalance (minutes; ARGS=codec/put: those that match)
	@.ci/build $(CARGO) bench --bench '*' -- $(ARGS)

.PHONY: fuzz
fuzz: deps ## Fuzz each decoder for SECONDS=60; installs cargo-fuzz (a minute) if missing
	@CARGO="$(CARGO)" .ci/fuzz "$(SECONDS)"

.PHONY: mutants
mutants: deps ## Show what tests and simulator miss: try mutants of CRATE=raft, part SHARD=0/40 (minutes; installs cargo-mutants if missing)
	@command -v cargo-mutants >/dev/null || { echo "Compiling cargo-mutants: some minutes, once."; $(CARGO) install --locked --debug cargo-mutants; }
	@CARGO="$(CARGO)" .ci/mutants "$(CRATE)" "$(SHARD)"

.PHONY: doc
doc: deps ## Build the documentation of all crates; broken links are errors
	RUSTDOCFLAGS="$(RUSTDOC_CHECKS)" $(CARGO) doc --release --no-deps --document-private-items
	RUSTDOCFLAGS="$(RUSTDOC_CHECKS)" $(CARGO) doc --release --no-deps --document-private-items -p shardkv-sim
	RUSTDOCFLAGS="$(RUSTDOC_CHECKS)" $(CARGO) doc --release --no-deps --document-private-items -p shardkv-operator -p shardkv-example
	RUSTDOCFLAGS="$(RUSTDOC_CHECKS)" $(CARGO) doc --release --no-deps --document-private-items -p shardkv-powercut

.PHONY: example-python
example-python: build ## Run the plain gRPC client in Python against a playground of two groups
	@PATH="$(abspath $(bin)):$$PATH" VENV="$(abspath $(bin)/../python)" deploy/examples/playground.sh deploy/examples/python/run.sh

.PHONY: example-rust
example-rust: build ## Run the Rust application against a playground of two groups
	$(CARGO) build --release -p shardkv-example
	@PATH="$(abspath $(bin)):$$PATH" deploy/examples/playground.sh shardkv-example

.PHONY: example-elections
example-elections: build ## Run applications with leader election in Go, Python and Rust (etcd-client) on keyspaces of playgrounds, and kill their leaders
	@.ci/examples-deps
	$(CARGO) build --locked --manifest-path deploy/examples/election-rust/Cargo.toml --target-dir "$(abspath $(bin)/../election-rust)"
	cd deploy/examples/election-go && go build -trimpath -o "$(abspath $(bin)/../election-go)" .
	@VENV="$(abspath $(bin)/../election-python)" deploy/examples/election-python/run.sh install
	@for program in "$(abspath $(bin)/../election-go)" "$(abspath $(bin)/../election-rust/debug/shardkv-election)" deploy/examples/election-python/run.sh; do \
		printf '%s\n' "$$program"; \
		PATH="$(abspath $(bin)):$$PATH" VENV="$(abspath $(bin)/../election-python)" deploy/examples/playground.sh deploy/examples/election.sh "$$program" || exit 1; \
	done

.PHONY: kube-up
kube-up: $(if $(filter shardkv,$(STORE)),build) ## Start a Kubernetes of three nodes on this machine (the first time it compiles it, about 13 minutes; STORE=shardkv: on a keyspace); needs root
	@STORE="$(STORE)" deploy/kube/up

.PHONY: images
images: build ## Make the images of node, operator and examples, and load them into the Kubernetes of `make kube-up` if it is up
	$(CARGO) build --release -p shardkv-operator -p shardkv-example
	@deploy/kube/images

.PHONY: kube-down
kube-down: ## Stop the Kubernetes of `make kube-up`, and remove its data; programs and images stay in the cache
	@deploy/kube/down

.PHONY: kube-demo
kube-demo: images checker ## Show the same on Kubernetes: helm install, kubectl scale, and a killed machine; uses the cluster of KUBECONFIG if set
	@PATH="$(abspath $(bin)):$$PATH" INPUT="$(INPUT)" deploy/kube-demo.sh

.PHONY: tenants-demo
tenants-demo: images ## Show ten keyspaces as the stores of ten kube-apiservers, under load while a group joins and a leader dies (TENANTS=10 OBJECTS=100); uses the cluster of KUBECONFIG if set
	@TENANTS="$(TENANTS)" OBJECTS="$(OBJECTS)" deploy/tenants-demo.sh

.PHONY: e2e
e2e: images checker ## Run the end-to-end tests on Kubernetes (about 12 minutes); uses the cluster of KUBECONFIG if set
	@SHARDKV_CHECKER="$(abspath $(bin))/shardkv-porcupine" CARGO="$(CARGO)" operator/tests/e2e/run.sh

.PHONY: charts
charts: ## Check charts/ and the manifests in deploy/: fresh, well formed, tested (builds helm and kubectl once, 3 minutes)
	@deploy/kube/build helm helm-unittest kubectl
	@.ci/charts/run

.PHONY: manifests
manifests: ## Generate crds/, the charts' copies of it, the schema of charts/shardkv, and deploy/operator.yaml
	$(CARGO) run --release -p shardkv-operator --bin crdgen
	@deploy/kube/build helm
	@.ci/charts/generate

.PHONY: sim
sim: ## Simulate disasters: make sim SEEDS=0..1000
	$(CARGO) run --release -p shardkv-sim -- run --seeds $(SEEDS)

.PHONY: sim-bugs
sim-bugs: ## Turn known bugs on, one at a time, and show that the simulator finds each
	$(CARGO) run --release -p shardkv-sim -- bugs

.PHONY: clean-free
clean-free: ## Free disk space: delete the workspace's build results, keep those of dependencies (RocksDB)
	$(CARGO) clean --workspace
