#!/bin/sh
# Runs all tests but doc tests: with cargo-nextest where it is installed, else with cargo test.
set -eu
if cargo nextest --version >/dev/null 2>&1; then
    exec cargo nextest run --locked --workspace --no-fail-fast
fi
exec cargo test --locked --workspace --lib --bins --tests --no-fail-fast
