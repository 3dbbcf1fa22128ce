#!/bin/sh
# The peers of `make bench-rounds`: gRPC's C++ core and numpy, from the Python package index, in an
# environment of their own.
set -eu
cd "$(dirname "$0")/.."
environment=target/peers
if ! python3 -c 'import venv, ensurepip' >/dev/null 2>&1; then
    .ci/setup.sh python
fi
if [ ! -x "$environment/bin/pip" ]; then
    python3 -m venv "$environment"
fi
"$environment/bin/pip" install --quiet --disable-pip-version-check -r benches/peers/requirements.txt
