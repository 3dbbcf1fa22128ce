#!/usr/bin/env python3
"""Recomputes what a client's ledger says it has spent, with Google's dp-accounting.

    pip install dp-accounting==0.6.0
    comity-client ledger show --json > ledger.json
    python3 tests/verify_ledger.py ledger.json

A second implementation that shares no code with Comity: it folds the ledger's entries itself, refuses
what no ledger can have written, and compares every epsilon, run by run and in all, within 0.5 %.
"""

import json
import sys

import dp_accounting as dp
from dp_accounting import pld, rdp

TOLERANCE = 0.005
ORDERS = [1 + k / 10 for k in range(1, 100)] + list(range(11, 64)) + [128, 256, 512, 1024]


def fail(text):
    sys.exit(f"error: {text}")


def fold(entries):
    """Mechanisms debited by each run, after checking that the entries follow from one another."""
    runs, reserved, committed, keys = {}, set(), set(), set()
    for number, entry in enumerate(entries):
        kind, where = entry["kind"], f"entry {number}"
        if kind in ("opened", "closed"):
            if (entry["run"] in runs) == (kind == "opened"):
                fail(f"{where}: run {entry['run']} is {kind} out of turn")
            runs.setdefault(entry["run"], [])
            continue
        key = (entry["key"]["run"], entry["key"]["round"])
        if kind in ("reserved", "reopened"):
            if (key in reserved) != (kind == "reopened") or key in committed:
                fail(f"{where}: {key} is {kind} out of turn")
            if entry["randomness"] in keys:
                fail(f"{where}: keys of noise are used a second time")
            if entry["randomness"] is not None:
                keys.add(entry["randomness"])
            if kind == "reserved":
                if key[0] not in runs:
                    fail(f"{where}: run {key[0]} was never opened")
                reserved.add(key)
                runs[key[0]] += entry["mechanisms"]
        elif kind == "committed":
            if key not in reserved or key in committed:
                fail(f"{where}: {key} is committed out of turn")
            committed.add(key)
        else:
            fail(f"{where}: unknown kind {kind}")
    return runs, len(reserved), len(committed), len(keys)


def merge(mechanisms):
    steps, rho = {}, 0.0
    for m in mechanisms:
        if m["kind"] == "sampled_gaussian":
            key = (m["q"], m["sigma"])
            steps[key] = steps.get(key, 0) + m["steps"]
        elif m["kind"] == "zcdp":
            rho += m["rho"]
        else:
            return None
    return steps, rho


def gaussian(q, sigma):
    event = dp.GaussianDpEvent(sigma)
    return event if q == 1 else dp.PoissonSampledDpEvent(q, event)


def epsilons(mechanisms, delta):
    """(RDP, PLD) epsilon; PLD is None where a zCDP release keeps it from applying."""
    merged = merge(mechanisms)
    if merged is None:
        return float("inf"), None
    steps, rho = merged
    accountant = rdp.RdpAccountant(ORDERS)
    for (q, sigma), n in steps.items():
        accountant.compose(gaussian(q, sigma), n)
    if rho:
        accountant.compose(dp.ZCDpEvent(rho))
    if rho or not steps:
        return accountant.get_epsilon(delta), None
    numerical = pld.PLDAccountant(value_discretization_interval=1e-4)
    for (q, sigma), n in steps.items():
        numerical.compose(gaussian(q, sigma), n)
    return accountant.get_epsilon(delta), numerical.get_epsilon(delta)


def compare(what, claimed, mechanisms, delta):
    by_rdp, by_pld = epsilons(mechanisms, delta)
    for name, ours, theirs in [
        ("RDP", claimed["rdp_epsilon"], by_rdp),
        ("PLD", claimed.get("pld_epsilon"), by_pld),
    ]:
        if ours is None or theirs is None:
            continue
        difference = ours / theirs - 1 if theirs else ours
        print(f"{what}: {name} epsilon {ours:.6f}, recomputed {theirs:.6f} ({difference:+.3%})")
        if abs(difference) > TOLERANCE:
            fail(f"{what}: {name} differs by more than {TOLERANCE:.1%}")


def main(paths):
    if not paths:
        fail("give files written by `comity-client ledger show --json`")
    for path in paths:
        with open(path, encoding="utf-8") as file:
            ledger = json.load(file)
        runs, n_reserved, n_committed, n_keys = fold(ledger["entries"])
        print(f"{path}: {n_reserved} rounds debited, {n_committed} committed, {n_keys} keys, each used once")
        for claimed in ledger["runs"]:
            compare(f"run {claimed['run']}", claimed["epsilon"], runs[claimed["run"]], ledger["delta"])
        everything = [m for mechanisms in runs.values() for m in mechanisms]
        compare("all runs", ledger["spent"], everything, ledger["delta"])
    print("the ledger's figures are confirmed")


if __name__ == "__main__":
    main(sys.argv[1:])
