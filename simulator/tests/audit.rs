//! The audits on the code as it is. Some of these tests are the ones that planted defects have to
//! fail (`tests/mutants`).

use comity_federation::{Plan, PrivacyTerms};
use comity_simulator::SimulationError;
use comity_simulator::audit::Verdict;
use comity_simulator::audit::canary::audit_canary;
use comity_simulator::audit::noise::{N_VALUES_MIN, audit_noise};
use comity_simulator::audit::replay::{ReplayReport, audit_replay, default_plans};

fn replayed(plan: &Plan) -> ReplayReport {
    let report = audit_replay(plan, 1).unwrap();
    let problems: Vec<_> = report.cases.iter().filter(|case| !case.problems.is_empty()).collect();
    assert_eq!(report.verdict, Verdict::Pass, "{problems:#?} {:?}", report.problems);
    report
}

/// False-alarm rate 1e-9, of the measured noise; everything else is deterministic.
#[test]
fn replay_finds_no_defect_in_dense_layers() {
    let [plan, _] = default_plans();
    let report = replayed(&plan);
    assert!(report.cases.len() >= 20, "{}", report.cases.len());
    // A clipped record uses its whole clipping norm, and the noise is measured within 2 %.
    let largest = report.cases.iter().map(|case| case.difference).fold(0.0, f64::max);
    assert!(largest > 0.999, "{largest}");
    assert!((report.measured / report.accounted - 1.0).abs() < 0.02, "{}", report.measured);
    // A record that is not finite contributes nothing at all.
    let spoilt = report.cases.iter().find(|case| case.name.starts_with("all the largest"));
    assert_eq!(spoilt.unwrap().difference, 0.0);
}

/// False-alarm rate 1e-9, as above.
#[test]
fn replay_finds_no_defect_in_convolutions() {
    let [_, plan] = default_plans();
    replayed(&plan);
}

#[test]
fn a_plan_without_privacy_has_nothing_to_replay() {
    let [mut plan, _] = default_plans();
    plan.privacy = PrivacyTerms::None;
    let error = audit_replay(&plan, 1).unwrap_err();
    assert!(matches!(error, SimulationError::Audit { .. }), "{error}");
}

/// False-alarm rate 2e-6: two kinds of noise.
#[test]
fn noise_is_distributed_as_accounted() {
    let audit = audit_noise(N_VALUES_MIN).unwrap();
    let failures: Vec<_> = audit.kinds.iter().flat_map(|kind| kind.report.failures()).collect();
    assert_eq!(audit.verdict, Verdict::Pass, "{failures:#?}");
    assert!(audit.kinds.iter().all(|kind| kind.report.n_values >= N_VALUES_MIN));
    assert!(audit_noise(N_VALUES_MIN - 1).is_err());
}

/// The bounds promise to hold in 95 % of runs; with this noise they lie far below what is claimed.
#[test]
fn canaries_do_not_show_more_than_is_claimed_and_would_have() {
    let canary = audit_canary(1000, 4.0, 1e-5, 1).unwrap();
    assert_eq!(canary.verdict, Verdict::Pass, "{canary:?}");
    assert!(canary.claimed_epsilon <= 4.0 && canary.n_controls_found >= 4, "{canary:?}");
    assert!(canary.audit.epsilon() > 0.0 && canary.audit.tpr_at_fpr_0_01 > 0.01, "{canary:?}");
    // A hundred canaries cannot refute anything.
    let few = audit_canary(100, 0.2, 1e-5, 1).unwrap();
    assert_eq!(few.verdict, Verdict::Inconclusive, "{few:?}");
    assert!(audit_canary(99, 4.0, 1e-5, 1).is_err());
}
