#!/bin/sh
# Recomputes the epsilons of the ledgers that the tests exported, with an implementation of somebody
# else's: Google's dp-accounting, from the Python package index, in an environment of its own.
set -eu
cd "$(dirname "$0")/.."
environment=target/dp-accounting
if ! python3 -c 'import venv, ensurepip' >/dev/null 2>&1; then
    .ci/setup.sh python
fi
if [ ! -x "$environment/bin/python" ]; then
    python3 -m venv "$environment"
    "$environment/bin/pip" install --quiet --disable-pip-version-check dp-accounting==0.6.0
fi
exec "$environment/bin/python" tests/verify_ledger.py target/ledgers/*.json
