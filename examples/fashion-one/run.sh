#!/bin/sh
# Accuracy on Fashion-MNIST at ε = 1, 2 and 3 (δ = 1e-5), with exact noise, over three first models.
# One line a run: plan, ε, seed, accuracy on the 10,000 public test pictures, seconds.
#   examples/fashion-one/run.sh [DIR with the data]
# Build first: cargo build -p comity-simulator. SIM, PLANS, EPSILONS and SEEDS narrow it down.
set -eu
here=$(dirname "$0")
sim=${SIM:-$here/../../target/debug/comity-sim}
out=$(mktemp)
trap 'rm -f "$out"' EXIT
for plan in ${PLANS:-scatter cnn}; do
    for epsilon in ${EPSILONS:-1 2 3}; do
        for seed in ${SEEDS:-1 2 3}; do
            "$sim" run "$here/$plan.toml" --world "$here/world.toml" ${1:+--data "$1"} \
                --exact-noise --json --set "privacy.epsilon=$epsilon" --set "seed=$seed" >"$out" 2>/dev/null
            accuracy=$(sed -n 's/^ *"accuracy": \([0-9.]*\),*$/\1/p' "$out" | head -n 1)
            seconds=$(sed -n 's/^ *"seconds": \([0-9.]*\),*$/\1/p' "$out" | head -n 1)
            echo "$plan $epsilon $seed $accuracy $seconds"
        done
    done
done
