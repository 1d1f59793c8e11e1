# One line a habit. `make run` and `make test` set up everything they need; as root on Debian they install it
# themselves, otherwise they say the one line to type.
CARGO ?= cargo
RUN_ARGS ?=

.PHONY: run test check bench cluster cluster-stop schemas fmt setup setup-test setup-cluster setup-bench

run: setup            ## builds the shop and opens it on http://127.0.0.1:8080
	$(CARGO) build --release --locked -p tidemark
	exec $$($(CARGO) metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/release/tidemark up $(RUN_ARGS)

test: setup-test      ## every test, on real components
	$(CARGO) test --workspace --locked --all-features

check:                ## form, lints, documentation, dependencies, deployment
	$(CARGO) fmt --all -- --check
	$(CARGO) clippy --workspace --locked --all-targets --all-features -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --locked --no-deps --all-features --quiet
	scripts/dependencies
	scripts/deploy-check

bench: setup setup-bench  ## figures as ratios to limits of the same run; BENCH_ARGS="--data DIR" adds the import
	$(CARGO) run --release --locked -p tidemark-bench -- $(BENCH_ARGS)

cluster: setup-cluster   ## the shop as many processes, with Kafka and nginx, on http://127.0.0.1:8080
	$(CARGO) build --release --locked -p tidemark
	scripts/cluster start $$($(CARGO) metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/release/tidemark

cluster-stop:         ## ends it
	scripts/cluster stop

schemas:              ## writes the events' JSON Schemas and the topics' AsyncAPI document anew after a compatible change
	TIDEMARK_WRITE_SCHEMAS=1 $(CARGO) test --locked -p tidemark-events -p tidemark-kafka --test schemas --test asyncapi

fmt:                  ## puts the code in form
	$(CARGO) fmt --all

setup:
	@scripts/setup

setup-test:
	@scripts/setup test

setup-cluster:
	@scripts/setup cluster

setup-bench:
	@scripts/setup bench
