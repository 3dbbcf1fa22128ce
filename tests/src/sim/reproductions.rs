//! Bugs that seeds found, each as the shortest federation that shows it. `docs/reliability.md` lists them.

use super::faults::{Fault, Faults};
use super::{assert_right, check};

/// Seed 115 of the first thousand. The node wrote the release of a round that had closed into its journal,
/// and could never replay it: the institution was locked out, its ledger with it.
#[test]
fn an_update_trained_too_late_does_not_lock_its_node_out() {
    let mut faults = Faults::none(3, 3);
    faults.min_clients = 2;
    // Longer than a round's deadline: the next round is assigned before the training ends.
    faults.training_ms[1] = 25_000;
    let outcome = check(1, &faults);
    assert_right(&outcome);
    assert_eq!((outcome.n_finished, outcome.n_counted), (1, 6));
}

/// Seed 7. Deadlines followed the wall clock: set back by a day, a round waited a day longer.
#[test]
fn a_clock_set_back_by_a_day_does_not_stretch_a_round() {
    let mut faults = Faults::none(3, 2);
    faults.min_clients = 2;
    faults.faults = vec![
        (0, Fault::CrashClient { client: 2, ms: 50_000 }),
        (100, Fault::JumpCoordinator { by_ms: -86_400_000 }),
    ];
    let outcome = check(1, &faults);
    assert_right(&outcome);
    assert_eq!(outcome.n_finished, 1);
}

/// And one set forward by a day closed a round on clients at work.
#[test]
fn a_clock_set_forward_by_a_day_does_not_cut_a_round() {
    let mut faults = Faults::none(3, 2);
    faults.faults = vec![(700, Fault::JumpCoordinator { by_ms: 86_400_000 })];
    let outcome = check(1, &faults);
    assert_right(&outcome);
    assert_eq!((outcome.n_finished, outcome.n_counted), (1, 6));
}

/// A coordinator that comes back with its clock four minutes behind goes on from its journal's time. (By a day
/// it would refuse certificates as not yet valid, and rightly.)
#[test]
fn a_coordinator_restarted_with_its_clock_behind_goes_on_from_its_journal() {
    let mut faults = Faults::none(3, 2);
    faults.min_clients = 2;
    faults.faults = vec![
        (0, Fault::CrashClient { client: 0, ms: 50_000 }),
        (600, Fault::JumpCoordinator { by_ms: -240_000 }),
        (650, Fault::CrashCoordinator { ms: 2_000 }),
    ];
    let outcome = check(1, &faults);
    assert_right(&outcome);
    assert_eq!(outcome.n_finished, 1);
}
