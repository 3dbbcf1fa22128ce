#!/bin/sh
# One simulated round of the benchmark CNN, all clients in each: ours, pfl-research and Flower, one after the other.
#
#   benches/simulation/run.sh [CLIENTS...]      default 10 100 1000; needs target/debug/comity-sim
#
# The peers are installed from the Python package index into target/simulation-peers (several GB). Each prints its own
# JSON; before it stand elapsed seconds, processor seconds and peak memory of the whole process tree's largest process.
set -eu
cd "$(dirname "$0")/../.."
data=${DATA:-/usr/share/datasets/fashion-mnist}
peers=${PEERS:-target/simulation-peers}
if [ ! -x "$peers/bin/python" ]; then
    python3 -m venv "$peers"
    "$peers/bin/pip" install --quiet --disable-pip-version-check -r benches/peers/requirements-simulation.txt
fi
measured() {
    /usr/bin/time -f "%e s elapsed, %U + %S s of processors, %M kB" "$@" 2>&1 | grep -E '^\{|elapsed'
}
mkdir -p target/simulation-bench
for n in ${*:-10 100 1000}; do
    plan=target/simulation-bench/cnn-$n.toml
    sed "s/n = 1000/n = $n/; s/records = 60/records = $((60000 / n))/" benches/simulation/cnn.toml > "$plan"
    echo "== $n clients"
    echo "comity-sim"
    measured target/debug/comity-sim run "$plan" --world benches/simulation/world.toml --data "$data" --json |
        grep elapsed
    target/debug/comity-sim run "$plan" --world benches/simulation/world.toml --data "$data" 2>&1 | grep '^round'
    echo "pfl-research"
    measured "$peers/bin/python" -m torch.distributed.run --nproc-per-node 2 \
        benches/peers/pfl_simulation.py "$data" "$n" 3
    echo "Flower"
    measured "$peers/bin/python" benches/peers/flower_simulation.py "$data" "$n" 3
done
