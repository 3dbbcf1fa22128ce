//! Whole federations on a simulated network and clock: one real coordinator and three to five real nodes,
//! with real tonic, rustls, journals and blobs, under faults that a seed draws.
//!
//! A seed says everything: the plan, who is slow, and which faults happen when (lost, late and cut
//! connections, a flipped byte, crashes of either side, clocks that jump, a certificate that expires in
//! the middle of a round). Time is virtual, so a seed costs a fraction of a second. What each client
//! contributes is a unit vector of its own for every round, so the model's coefficients tell who was counted
//! how often: see [`oracle`].
//!
//! Only the training is a stand-in ([`trainer`]), and it too can let out nothing that its reservation
//! does not pay for. Threads of the disk are real and time stands still while they work, so a seed plays
//! the same faults every time, though not always the same interleaving to the last message.
//!
//! `COMITY_SEED=n` plays one seed and prints its log; `COMITY_SEEDS=n` is how many are played.

mod aging;
mod faults;
mod network;
mod oracle;
mod reproductions;
mod site;
mod trainer;
mod witness;
mod world;

use std::sync::atomic::{AtomicU64, Ordering};

use faults::Faults;
use world::{Outcome, simulate};

/// Seeds of `make test`; `make chaos` plays more.
const SEEDS: u64 = 40;

/// Plays `faults`, prints the log if it was asked for, and says what was wrong and how to repeat it.
fn check(seed: u64, faults: &Faults) -> Outcome {
    let mut outcome = simulate(seed, faults);
    if std::env::var_os("COMITY_SEED").is_some() {
        eprintln!("{faults:#?}\n{}", outcome.log.join("\n"));
    }
    for wrong in &mut outcome.wrongs {
        *wrong = format!(
            "{wrong}\n    COMITY_SEED={seed} cargo nextest run --workspace --no-capture -E \
             'test(every_seed_ends_with_each_update_counted_once)'"
        );
    }
    outcome
}

/// Fails with everything that was wrong.
#[track_caller]
fn assert_right(outcome: &Outcome) {
    let wrongs = &outcome.wrongs;
    assert!(wrongs.is_empty(), "{} wrongs\n{}", wrongs.len(), wrongs.join("\n"));
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|e| panic!("{name}: {e}")))
}

#[test]
fn without_faults_everybody_is_counted_in_every_round() {
    let outcome = check(1, &Faults::none(4, 3));
    assert_right(&outcome);
    assert_eq!((outcome.n_finished, outcome.n_counted), (1, 12));
}

#[test]
fn every_seed_ends_with_each_update_counted_once() {
    if let Some(seed) = number("COMITY_SEED") {
        assert_right(&check(seed, &Faults::drawn(seed)));
        return;
    }
    let n_seeds = number("COMITY_SEEDS").unwrap_or(SEEDS);
    let next = AtomicU64::new(0);
    let n_threads = std::thread::available_parallelism().map_or(1, usize::from);
    let started = std::time::Instant::now();
    let totals = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..n_threads)
            .map(|_| {
                scope.spawn(|| {
                    let mut total = Outcome::default();
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= n_seeds {
                            return total;
                        }
                        total.add(check(seed, &Faults::drawn(seed)));
                    }
                })
            })
            .collect();
        let mut total = Outcome::default();
        for worker in workers {
            match worker.join() {
                Ok(outcome) => total.add(outcome),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        total
    });
    println!(
        "simulated federations: {n_seeds} seeds in {:.0} s; {totals}",
        started.elapsed().as_secs_f64()
    );
    assert_right(&totals);
    assert!(totals.n_faults > n_seeds, "too few faults to mean anything: {totals}");
    assert!(totals.n_finished > n_seeds / 4, "too few runs finished to mean anything: {totals}");
    assert!(totals.n_counted > n_seeds, "too few updates were counted: {totals}");
}
