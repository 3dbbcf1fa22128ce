#!/bin/sh
# Fed-Heart-Disease: every strategy, both baselines and the curve over ε, each over five seeds, beside what was published.
#   examples/heart/run.sh [--data DIR with the four files]
# Prints a table in Markdown: the mean over the four centres, and over the seeds; ± one standard deviation over the seeds.
# Build first: cargo build --workspace. SIM, METHODS and SEEDS in the environment narrow it down; RUNS=FILE keeps each run's line.
set -eu
here=$(dirname "$0")
sim=${SIM:-$here/../../target/debug/comity-sim}
world=$here/world.toml
[ "${1:-}" != --data ] || world="$world --data $2"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The settings of the benchmark's own configuration.  Its model has one output, ours two, whose difference takes both outputs'
# steps: learning rates, those of the server too, are halved, tau as well, and mu is doubled (README.md).
sgd() { echo "training.optimizer={type=\"sgd\",learning_rate=$1}"; }
# One centre, or all rows in one place: 50 epochs of Adam at half of 0.001, in one round.
alone='training={optimizer={type="adam",learning_rate=0.0005},batch=4,local_epochs=50,microbatch=4}'
# A head of each centre's own behind the shared layer, which calibrates to how common the disease is there.
head='model.layers=[{type="linear",out=2},{type="local",layers=[{type="linear",out=2}]}]'

# train METHOD SEED: leaves the model in $work/out and the summary in $work/run.
train() {
    method=$1
    set -- --set "seed=$2" --world-seed "$2"
    case $method in
    fedavg) ;;
    fedprox) set -- "$@" --set 'aggregation.strategy={fedprox={mu=0.02}}' ;;
    scaffold) set -- "$@" --set aggregation.strategy=scaffold ;;
    fedadam)
        set -- "$@" --set 'aggregation.strategy={fedadam={beta2=0.999,tau=5e-9}}' \
            --set aggregation.server_learning_rate=0.005 --set "$(sgd 0.005)"
        ;;
    fedadagrad)
        set -- "$@" --set 'aggregation.strategy={fedadagrad={beta1=0.9,tau=5e-9}}' \
            --set aggregation.server_learning_rate=0.158114 --set "$(sgd 0.001581)"
        ;;
    fedyogi)
        set -- "$@" --set 'aggregation.strategy={fedyogi={beta2=0.999,tau=5e-9}}' \
            --set aggregation.server_learning_rate=0.005 --set "$(sgd 0.001581)"
        ;;
    fedper) set -- "$@" --set "$(sgd 0.005)" --set "$head" ;;
    pooled) set -- "$@" --baseline pooled --set rounds=1 --set "$alone" ;;
    alone:*) set -- "$@" --baseline "${method#alone:}" --set rounds=1 --set "$alone" ;;
    # Fewer, larger and longer steps, and a clipping norm that most gradients pass: chosen on seeds 101 to 103.
    dp:*)
        privacy="mode=\"dp_sgd\",unit=\"record\",epsilon=${method#dp:},delta=1e-4,clip_norm_l2=1.0"
        set -- "$@" --set "privacy={$privacy}" --set training.batch=15 --set training.local_steps=5 \
            --set "$(sgd 0.05)"
        ;;
    *)
        echo "error: no method $method" >&2
        exit 1
        ;;
    esac
    rm -rf "$work/out"
    # shellcheck disable=SC2086 # the world comes with its --data
    "$sim" run "$here/plan.toml" --world $world --out "$work/out" --json "$@" >"$work/run" 2>"$work/err" || {
        cat "$work/err" >&2
        exit 1
    }
}

# The accuracy at each centre, and their mean: of one model for all; of each centre's own, only the mean.
score() {
    if [ "$1" = fedper ]; then
        sed -n '/"fairness"/,/}/s/^ *"mean": \([0-9.]*\),*$/\1/p' "$work/run" | tail -n 1 |
            sed 's/^/- - - - /'
    else
        # shellcheck disable=SC2086 # as above
        "$sim" evaluate "$work/out/model.safetensors" --plan "$here/plan.toml" --world $world \
            --world-seed "$2" --json |
            sed -n '/"clients"/,$s/^ *"\(accuracy\|clients_mean\)": \([0-9.]*\),*$/\2/p' | tr '\n' ' '
    fi
}

all="fedavg fedprox scaffold fedadam fedadagrad fedyogi fedper pooled
    alone:US/cleveland alone:HU/budapest alone:CH/zurich-basel alone:US/long-beach dp:50 dp:5 dp:1 dp:0.1"
runs=${RUNS:-$work/runs}
: >"$runs"
for method in ${METHODS:-$all}; do
    for seed in ${SEEDS:-1 2 3 4 5}; do
        train "$method" "$seed"
        echo "$method $seed $(score "$method" "$seed")" >>"$runs"
    done
done

awk '
function published(method) {
    if (method == "fedavg") return ".6850"
    if (method == "fedprox") return ".6850"
    if (method == "scaffold") return ".6840"
    if (method == "fedadam") return ".7255"
    if (method == "fedadagrad" || method == "fedyogi") return ".7314"
    if (method == "pooled") return ".7353"
    if (method == "alone:US/cleveland") return ".722"
    if (method == "alone:HU/budapest") return ".629"
    if (method == "alone:CH/zurich-basel") return ".567"
    if (method == "alone:US/long-beach") return ".637"
    if (method == "dp:1") return ".6853"
    if (method == "dp:0.1") return ".6056"
    return ""
}
function mean(method, column) {
    return filled[method, column] ? sprintf("%.3f", sum[method, column] / n[method]) : "–"
}
BEGIN {
    print "| method | seeds | mean of centres | published | Cleveland | Budapest | Zurich, Basel | Long Beach |"
    print "|---|---|---|---|---|---|---|---|"
}
{
    if (!n[$1]++) order[++n_methods] = $1
    for (column = 3; column <= 7; column++) {
        sum[$1, column] += $column
        filled[$1, column] = $column != "-"
    }
    squares[$1] += $7 * $7
}
END {
    for (m = 1; m <= n_methods; m++) {
        method = order[m]
        centre = sum[method, 7] / n[method]
        spread = n[method] > 1 ? sqrt((squares[method] - n[method] * centre * centre) / (n[method] - 1)) : 0
        row = sprintf("| %s | %d | %.4f ± %.3f | %s |", method, n[method], centre, spread, published(method))
        for (column = 3; column <= 6; column++) row = row " " mean(method, column) " |"
        print row
    }
}' "$runs"
