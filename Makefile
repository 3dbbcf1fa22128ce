# The two commands of the README, and what they share.
#
#   make demo [DATA=dir]   the main job: three countries train one model on this machine
#   make test              everything that continuous integration checks
#   make ledgers           the tests' privacy ledgers, recomputed with dp-accounting (Python)
#   make mutants           plants defects of privacy; each must be caught by the test that it names
#   make kills             1,000 kills of a client at work; the ledger forgets nothing
#   make chaos              2,000 simulated federations under faults; every update counted once or not at all;
#                          and 300 kills of real processes, 240 damaged files (make chaos-disk: only these two)
#   make bench             the benches, with the same optimised dependencies
#   make bench-rounds      what rounds cost in memory and time, beside gRPC and numpy; 10 minutes, 12 GB of disk

.PHONY: help demo test ledgers mutants kills chaos chaos-disk build setup-rust setup-data bench bench-rounds
.DEFAULT_GOAL := help

PACKAGE_DIR := /usr/share/datasets/fashion-mnist
DATA ?= $(PACKAGE_DIR)

help:
	@sed -n 's/^#   //p' Makefile

setup-rust:
	@.ci/setup.sh rust

setup-data:
	@.ci/setup.sh data "$(DATA)"

build: setup-rust
	cargo build --locked --workspace

demo: setup-rust setup-data
	cargo build --locked --workspace
	target/debug/comity-demo "$(DATA)"

test: setup-rust
	@.ci/setup.sh data "$(DATA)"
	@.ci/setup.sh browser
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo build --locked --workspace
	@.ci/test.sh
	cargo test --locked --workspace --doc
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps
	target/debug/comity-mutants

ledgers:
	@.ci/ledger.sh

mutants: setup-rust
	cargo build --locked --workspace
	target/debug/comity-mutants

kills: setup-rust
	cargo build --locked --workspace
	COMITY_KILLS=1000 cargo test --locked --workspace --lib killed_at_random -- --nocapture

chaos-disk: setup-rust
	cargo build --locked --workspace --all-targets
	COMITY_LOOPS=300 COMITY_CASES=240 cargo test --locked --workspace --lib -- --nocapture --test-threads 1 killed_over_and_over every_state_file

chaos: setup-rust chaos-disk
	COMITY_FUZZ=200000 cargo test --locked --workspace --lib -- --nocapture do_no_harm
	COMITY_SEEDS=2000 cargo test --locked --workspace --lib -- --nocapture --test-threads 1 with_each_update_counted_once over_bad_links

bench: setup-rust
	cargo bench --locked --profile dev --workspace --bench noise --bench accountant --bench dp_step --bench local_training

OUT ?= target/bench-rounds.md
bench-rounds: setup-rust
	cargo build --locked --workspace
	@.ci/peers.sh
	target/debug/comity-bench-rounds --out $(OUT)
