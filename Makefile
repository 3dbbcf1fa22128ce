# The two commands of the README, and what they share.
#
#   make demo [DATA=dir]   the main job: three countries train one model on this machine
#   make test              everything that continuous integration checks
#   make bench             the benches, with the same optimised dependencies

.PHONY: help demo test build setup-rust setup-data bench
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
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo build --locked --workspace
	@.ci/test.sh
	cargo test --locked --workspace --doc
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps

bench: setup-rust
	cargo bench --locked --profile dev --workspace --bench noise --bench accountant --bench dp_step
