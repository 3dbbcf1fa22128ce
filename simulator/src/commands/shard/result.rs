//! What a cell comes to, in a store.
//!
//! ```text
//! results/PLAN/CELL/ATTEMPT/NAME     the files of one run's folder
//! results/PLAN/CELL/result.json      which attempt counts, and what is the same on every machine
//! results/PLAN/CELL/differs-ATTEMPT.json    a later result with other bits
//! ```
//!
//! Files first, `result.json` last and create-only: whoever is first counts, with all of its files.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, bail};
use comity_simulator::results::folder::{FILES, SUMMARY, write_whole};
use comity_simulator::store::{Creation, Store};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::output;

/// What `result.json` holds.
#[derive(Serialize, Deserialize)]
struct CellResult {
    /// The summary without what differs from machine to machine.
    outcome: Value,
    /// Under which its files stand.
    attempt: String,
    /// BLAKE3 of each of its files.
    files: BTreeMap<String, String>,
}

/// What became of a result that was to be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Given {
    /// It counts.
    Done,
    /// Another one with the same bits counts.
    SameBits,
}

/// Where the result of `cell` stands.
pub(super) fn key_of(plan: &str, cell: &str) -> String {
    format!("results/{plan}/{cell}/result.json")
}

/// How many results of `cell` have other bits than the one that counts.
pub(super) fn conflicts(keys: &[String], plan: &str, cell: &str) -> usize {
    let beginning = format!("results/{plan}/{cell}/differs-");
    keys.iter().filter(|key| key.starts_with(&beginning)).count()
}

/// Puts the run in `dir` into the store as the result of `cell`.
///
/// # Errors
/// What the store refuses, and a result there with other bits.
pub(super) fn put(store: &Store, plan: &str, cell: &str, dir: &Path) -> anyhow::Result<Given> {
    let mut contents = Vec::new();
    for name in FILES {
        let path = dir.join(name);
        if path.exists() {
            let bytes =
                fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            contents.push((name, bytes));
        }
    }
    let digest = |bytes: &[u8]| blake3::hash(bytes).to_hex().to_string();
    let files: BTreeMap<String, String> =
        contents.iter().map(|(name, bytes)| ((*name).to_owned(), digest(bytes))).collect();
    let attempt = digest(&serde_json::to_vec(&files)?)[..16].to_owned();
    let summary = contents.iter().find(|(name, _)| *name == SUMMARY).context("no summary")?;
    let outcome = outcome(serde_json::from_slice(&summary.1)?);
    let keys: Vec<String> = contents
        .iter()
        .map(|(name, _)| format!("results/{plan}/{cell}/{attempt}/{name}"))
        .collect();
    for (key, (_, bytes)) in keys.iter().zip(&contents) {
        store.create(key, bytes)?;
    }
    let result = CellResult { outcome, attempt, files };
    let json = output::json(&result)?;
    let key = key_of(plan, cell);
    if store.create(&key, json.as_bytes())? == Creation::Created {
        return Ok(Given::Done);
    }
    let there = store.get(&key)?.with_context(|| format!("{key} is gone"))?;
    let there: CellResult = serde_json::from_slice(&there).with_context(|| key.clone())?;
    if there.attempt != result.attempt {
        // Ours count for nothing, and nobody refers to them.
        for key in &keys {
            store.remove(key)?;
        }
    }
    if there.outcome == result.outcome {
        return Ok(Given::SameBits);
    }
    let differs = format!("results/{plan}/{cell}/differs-{}.json", result.attempt);
    store.create(&differs, json.as_bytes())?;
    bail!(
        "the store holds a result with other bits: model {} there, {} here; {differs} has this one",
        there.outcome["model"],
        result.outcome["model"]
    )
}

/// `summary` without wall-clock times.
fn outcome(mut summary: Value) -> Value {
    let forget = |value: &mut Value| value.as_object_mut().and_then(|o| o.remove("seconds"));
    forget(&mut summary);
    if let Some(history) = summary.get_mut("history").and_then(Value::as_array_mut) {
        history.iter_mut().for_each(|round| drop(forget(round)));
    }
    summary
}

/// Fetches the result of `cell` into `dir`, its summary last.
///
/// # Errors
/// A file that is missing, or not the one that was put there.
pub(super) fn fetch(store: &Store, plan: &str, cell: &str, dir: &Path) -> anyhow::Result<()> {
    let key = key_of(plan, cell);
    let bytes = store.get(&key)?.with_context(|| format!("{key} is gone"))?;
    let result: CellResult = serde_json::from_slice(&bytes).with_context(|| key.clone())?;
    output::make_dir(dir)?;
    let (last, others): (Vec<_>, Vec<_>) =
        result.files.iter().partition(|(name, _)| *name == SUMMARY);
    for (name, digest) in others.into_iter().chain(last) {
        // A store is other people's: only names that a run writes become files.
        if !FILES.contains(&name.as_str()) {
            bail!("{key} names {name}, which no run writes");
        }
        let key = format!("results/{plan}/{cell}/{}/{name}", result.attempt);
        let bytes = store.get(&key)?.with_context(|| format!("{key} is missing"))?;
        if blake3::hash(&bytes).to_hex().as_str() != digest {
            bail!("{key} is not the file that was put there");
        }
        write_whole(&dir.join(name), &bytes)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(dir: &Path, model: &str, seconds: f64) {
        let summary = serde_json::json!({
            "model": model,
            "seconds": seconds,
            "history": [{ "round": 1, "seconds": seconds }],
        });
        fs::write(dir.join(SUMMARY), summary.to_string()).unwrap();
        fs::write(dir.join("rounds.csv"), format!("seconds\n{seconds}\n")).unwrap();
    }

    #[test]
    fn the_first_result_counts_and_other_bits_are_reported() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(&path).unwrap();
            path
        };
        let store = Store::open(at("store").to_str().unwrap()).unwrap();
        run(&at("a"), "m", 1.0);
        run(&at("b"), "m", 2.0);
        run(&at("c"), "other", 1.0);
        assert_eq!(put(&store, "p", "cell", &at("a")).unwrap(), Given::Done);
        assert_eq!(put(&store, "p", "cell", &at("a")).unwrap(), Given::SameBits);
        let keys = store.list("results").unwrap();
        assert_eq!(put(&store, "p", "cell", &at("b")).unwrap(), Given::SameBits);
        assert_eq!(store.list("results").unwrap(), keys, "only the first one's files stay");
        let error = put(&store, "p", "cell", &at("c")).unwrap_err().to_string();
        assert!(error.contains("other bits"), "{error}");
        let keys = store.list("results").unwrap();
        assert_eq!(conflicts(&keys, "p", "cell"), 1);

        fetch(&store, "p", "cell", &at("fetched")).unwrap();
        for name in [SUMMARY, "rounds.csv"] {
            let [put, got] = ["a", "fetched"].map(|d| fs::read(at(d).join(name)).unwrap());
            assert_eq!(put, got, "{name}");
        }
        let damaged = keys.iter().find(|key| key.ends_with("rounds.csv")).unwrap();
        fs::write(at("store").join(damaged), "x").unwrap();
        let error = fetch(&store, "p", "cell", &at("again")).unwrap_err().to_string();
        assert!(error.contains("not the file"), "{error}");
        assert!(!at("again").join(SUMMARY).exists());
    }

    #[test]
    fn of_two_at_once_one_counts() {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("store");
        let given: Vec<Given> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..6)
                .map(|i| {
                    let from = dir.path().join(i.to_string());
                    fs::create_dir_all(&from).unwrap();
                    run(&from, "m", f64::from(i));
                    let store = store.to_str().unwrap();
                    scope.spawn(move || {
                        let store = Store::open(store).unwrap();
                        put(&store, "p", "cell", &from).unwrap()
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(given.iter().filter(|given| **given == Given::Done).count(), 1);
        let store = Store::open(store.to_str().unwrap()).unwrap();
        assert_eq!(store.list("results").unwrap().len(), 3, "one result with its two files");
        fetch(&store, "p", "cell", &dir.path().join("fetched")).unwrap();
    }
}
