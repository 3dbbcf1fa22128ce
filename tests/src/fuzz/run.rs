//! The run of every target with the stable toolchain: its seeds as they are, then mutated.
//!
//! `COMITY_FUZZ=n` plays `n` mutations a target; without it a short while each.  A target that panics,
//! hangs or takes much memory fails with the seed of the mutation, and leaves its input in a file.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::mutate::mutated;
use super::{TARGETS, Target};
use crate::draws::Draws;

/// Without `COMITY_FUZZ`, the most mutations of a target, and how long they may take together.
const SHORT: (u64, Duration) = (20_000, Duration::from_millis(1_200));
/// How long one input may take, on a machine that has much else to do.
const INPUT_TIMEOUT: Duration = Duration::from_secs(60);
/// By how much the most memory that was ever held may grow, whatever an input claims.
const MEMORY_GROWTH_MAX: u64 = 256 << 20;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

/// The inputs in the corpus of `target`, by name.
fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let dir = folder().join("corpus").join(target);
    let mut seeds: Vec<(String, Vec<u8>)> = fs::read_dir(&dir)
        .unwrap_or_else(|error| panic!("{}: {error}", dir.display()))
        .map(|entry| entry.unwrap())
        .map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap()))
        .collect();
    seeds.sort();
    assert!(!seeds.is_empty(), "{} holds no seed", dir.display());
    seeds
}

/// The most memory that this process has held, where the system tells.
fn memory_peak_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

/// Runs `target` on `bytes`, and returns whether it understood them; `what` says where they come from.
fn feed((name, target): Target, bytes: &[u8], what: &str) -> bool {
    catch_unwind(AssertUnwindSafe(|| target(bytes))).unwrap_or_else(|_| {
        let path = std::env::temp_dir().join(format!("comity-fuzz-{name}"));
        fs::write(&path, bytes).unwrap();
        panic!("{name} panicked on {what}; the input is in {}", path.display());
    })
}

/// Plays the corpus of `target`, then mutations.
fn play(target: Target) {
    let (name, _) = target;
    let (n_max, time_max) = match std::env::var("COMITY_FUZZ") {
        Ok(n) => (n.parse().expect("COMITY_FUZZ is a number of mutations"), Duration::MAX),
        Err(_) => SHORT,
    };
    let seeds = seeds(name);
    let understood = seeds.iter().filter(|(seed, bytes)| feed(target, bytes, seed)).count();
    assert!(understood > 0, "no seed of {name} gets past its first check");
    let before = memory_peak_bytes();
    let seeds: Vec<Vec<u8>> = seeds.into_iter().map(|(_, bytes)| bytes).collect();
    let (sender, progress) = channel();
    let worker = std::thread::spawn(move || {
        let (began, mut n_understood) = (Instant::now(), 0);
        for mutation in 0..n_max {
            if began.elapsed() > time_max {
                break;
            }
            let bytes = mutated(&mut Draws::new(mutation), &seeds);
            let _ = sender.send(bytes.clone());
            n_understood += u64::from(feed(target, &bytes, &format!("mutation {mutation}")));
        }
        n_understood
    });
    let (mut n, mut last) = (0, Vec::new());
    loop {
        match progress.recv_timeout(INPUT_TIMEOUT) {
            Ok(bytes) => (n, last) = (n + 1, bytes),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                let path = std::env::temp_dir().join(format!("comity-fuzz-{name}"));
                fs::write(&path, last).unwrap();
                panic!("{name} hangs; the input is in {}", path.display());
            }
        }
    }
    let understood = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    if let (Some(before), Some(after)) = (before, memory_peak_bytes()) {
        let growth = after.saturating_sub(before);
        assert!(growth <= MEMORY_GROWTH_MAX, "{name} took {growth} bytes of memory");
    }
    println!("{name}: {n} mutations, {understood} of them understood, none did harm");
    assert!(n > 0, "{name} was not played");
}

/// One test a target, so that they run beside one another.
macro_rules! targets {
    ($($test:ident: $target:ident,)*) => {
        $(#[test]
        fn $test() {
            play((stringify!($target), super::$target));
        })*

        #[test]
        fn every_target_is_played() {
            let played = [$(stringify!($target)),*];
            assert_eq!(played, TARGETS.map(|(name, _)| name));
        }
    };
}

targets! {
    arbitrary_certificates_do_no_harm: certificates,
    arbitrary_chunks_do_no_harm: chunk_stream,
    arbitrary_client_configurations_do_no_harm: client_toml,
    arbitrary_coordinator_configurations_do_no_harm: coordinator_toml,
    arbitrary_tables_do_no_harm: csv,
    arbitrary_first_bytes_do_no_harm: first_bytes,
    arbitrary_idx_files_do_no_harm: idx,
    arbitrary_journals_do_no_harm: journal,
    arbitrary_ledger_lines_do_no_harm: ledger_lines,
    arbitrary_names_do_no_harm: names,
    arbitrary_plans_on_the_wire_do_no_harm: plan_json,
    arbitrary_plans_of_an_operator_do_no_harm: plan_toml,
    arbitrary_models_do_no_harm: safetensors,
    arbitrary_messages_do_no_harm: wire_messages,
}

#[test]
fn every_target_has_its_file_and_its_line_for_cargo_fuzz() {
    let manifest: toml::Table =
        fs::read_to_string(folder().join("Cargo.toml")).unwrap().parse().unwrap();
    let bins = manifest["bin"].as_array().unwrap();
    assert_eq!(bins.len(), TARGETS.len());
    for ((name, _), bin) in TARGETS.iter().zip(bins) {
        let path = format!("fuzz_targets/{name}.rs");
        assert_eq!(bin["name"].as_str(), Some(*name));
        assert_eq!(bin["path"].as_str(), Some(path.as_str()));
        let text = fs::read_to_string(folder().join(&path)).unwrap();
        let call = format!("comity_tests::fuzz::{name}(bytes);");
        assert!(text.contains(&call), "{path} does not feed {name}");
    }
}
