# One line a habit. `make run` and `make test` set up everything they need; as root on Debian they install it
# themselves, otherwise they say the one line to type.
CARGO ?= cargo
RUN_ARGS ?=

.PHONY: run test check sbom bench cluster cluster-stop chaos chaos-planted schemas fmt setup setup-test setup-cluster setup-bench
built = $$($(CARGO) metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')

run: setup            ## builds the shop and opens it on http://127.0.0.1:8080
	$(CARGO) build --release --locked -p tidemark
	exec $(built)/release/tidemark up $(RUN_ARGS)

test: setup-test setup-cluster  ## every test, on real components, the API against its document, the short form of chaos
	$(CARGO) test --workspace --locked --all-features
	scripts/logs-check $(built)/tmp/shop
	$(CARGO) build --workspace --locked --all-features
	scripts/schemathesis $(built)/debug/tidemark $(SCHEMATHESIS_ARGS)
	$(built)/debug/tidemark-chaos --seconds 60 --patience 4

check:                ## form, lints, documentation, dependencies, deployment
	$(CARGO) fmt --all -- --check
	$(CARGO) clippy --workspace --locked --all-targets --all-features -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --locked --no-deps --all-features --quiet
	scripts/dependencies
	scripts/deploy-check

sbom: setup           ## what the program is made of, as CycloneDX, in target/tidemark-sbom.json
	scripts/sbom $(built)/tidemark-sbom.json

bench: setup setup-bench  ## figures as ratios to limits of the same run; BENCH_ARGS="--data DIR" adds the import
	$(CARGO) run --release --locked -p tidemark-bench -- $(BENCH_ARGS)

cluster: setup-cluster   ## the shop as many processes, with Kafka and nginx, on http://127.0.0.1:8080
	$(CARGO) build --release --locked -p tidemark
	scripts/cluster start $(built)/release/tidemark

cluster-stop:         ## ends it
	scripts/cluster stop

chaos: setup-cluster  ## kills every part of a cluster under load, fills its disk, cuts its power, and checks what is left; CHAOS_ARGS="--seed N"
	$(CARGO) build --release --locked -p tidemark -p tidemark-chaos
	$(built)/release/tidemark-chaos --long $(CHAOS_ARGS)

chaos-planted: setup-cluster  ## plants bugs, one at a time, and has each found
	$(CARGO) build --locked -p tidemark -p tidemark-chaos --features tidemark/planted
	$(built)/debug/tidemark-chaos --planted

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
