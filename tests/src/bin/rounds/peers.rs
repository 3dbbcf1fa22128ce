//! What others make of the same work: Python programs under `benches/peers`, in a virtual environment
//! that `.ci/peers.sh` makes.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The folder of everything that is built; what a bench writes goes there too, since it is on a disk.
pub(crate) fn target() -> PathBuf {
    root().join("target")
}

/// Runs `script` with `args` and returns its JSON.
pub(crate) fn run(script: &str, args: &[&str]) -> anyhow::Result<Value> {
    let python = target().join("peers/bin/python");
    ensure!(python.exists(), "{} is missing; run `.ci/peers.sh`", python.display());
    let output = Command::new(python)
        .arg(root().join("benches/peers").join(script))
        .args(args)
        .stderr(std::process::Stdio::inherit())
        .output()?;
    ensure!(output.status.success(), "{script} ended with {}", output.status);
    serde_json::from_slice(&output.stdout).with_context(|| format!("{script} printed no JSON"))
}

/// The numbers under `key`.
pub(crate) fn rates(found: &Value, key: &str) -> anyhow::Result<Vec<f64>> {
    let rates: Option<Vec<f64>> =
        found[key].as_array().map(|rates| rates.iter().filter_map(Value::as_f64).collect());
    rates.filter(|rates| !rates.is_empty()).with_context(|| format!("no {key}"))
}
