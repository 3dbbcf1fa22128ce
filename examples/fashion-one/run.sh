#!/bin/sh
# Accuracy on Fashion-MNIST at ε = 1, 2 and 3 (δ = 1e-5), with exact noise, from three first models.
# One line a run: plan, ε, seed, accuracy on the 10,000 public test pictures, seconds.
#   examples/fashion-one/run.sh [DIR with the data]
# Build first: cargo build --workspace. SIM, PLANS, EPSILONS and SEEDS in the environment narrow it down.
set -eu
here=$(dirname "$0")
sim=${SIM:-$here/../../target/debug/comity-sim}
out=$(mktemp)
trap 'rm -f "$out"' EXIT

# With less budget: fewer passes over the data from pixels, smaller steps on features.
settings() {
    case $1-$2 in
    cnn-1) echo training.local_epochs=7 ;;
    cnn-2) echo training.local_epochs=12 ;;
    scatter-1) echo training.optimizer.learning_rate=4 ;;
    scatter-2) echo training.optimizer.learning_rate=6 ;;
    *) echo "privacy.epsilon=$2" ;;
    esac
}

for plan in ${PLANS:-scatter cnn}; do
    for epsilon in ${EPSILONS:-1 2 3}; do
        for seed in ${SEEDS:-1 2 3}; do
            "$sim" run "$here/$plan.toml" --world "$here/world.toml" ${1:+--data "$1"} \
                --exact-noise --json --set "$(settings "$plan" "$epsilon")" \
                --set "privacy.epsilon=$epsilon" --set "seed=$seed" >"$out" 2>/dev/null
            figure() { sed -n "s/^ *\"$1\": \([0-9.]*\),*\$/\1/p" "$out" | head -n 1; }
            echo "$plan $epsilon $seed $(figure accuracy) $(figure seconds)"
        done
    done
done
