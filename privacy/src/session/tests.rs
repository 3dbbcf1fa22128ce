use super::*;
use crate::{
    ledger::{Ledger, Limit, ReservationKey},
    plan::{PrivacyRequest, tests::request},
};

fn session(request: &PrivacyRequest, seed: u8) -> Session {
    let plan = PrivacyPlan::calibrate(request).unwrap();
    let limit = Limit { budget: Some(plan.budget()), exempt_allowed: false };
    let key = ReservationKey { run: "a".to_owned(), round: 1 };
    let reservation = Ledger::new(limit)
        .reserve(&mut Vec::new(), key, plan.round_mechanisms(), plan.digest())
        .unwrap();
    plan.session(reservation, Randomness::seeded(seed)).unwrap()
}

#[test]
fn an_extra_step_is_refused() {
    let mut session = session(&request(), 1);
    let zeros = vec![0.0; 1000];
    for left in (0..5).rev() {
        session.next_batch(2000).unwrap();
        assert_eq!(session.steps_left(), left);
        session.privatise(&zeros).unwrap();
    }
    assert_eq!(session.next_batch(2000), Err(PrivacyError::NoStepsLeft { steps: 5 }));
    assert_eq!(session.privatise(&zeros), Err(PrivacyError::NoBatch));
}

#[test]
fn batches_and_sums_alternate() {
    let mut session = session(&request(), 2);
    assert_eq!(session.privatise(&[0.0; 1000]), Err(PrivacyError::NoBatch));
    session.next_batch(2000).unwrap();
    assert_eq!(session.next_batch(2000), Err(PrivacyError::BatchPending));
    session.privatise(&[0.0; 1000]).unwrap();
    assert_eq!(session.privatise(&[0.0; 1000]), Err(PrivacyError::NoBatch));
}

#[test]
fn a_sum_that_is_not_finite_is_refused_before_noise_is_drawn() {
    let mut session = session(&request(), 3);
    session.next_batch(2000).unwrap();
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let mut sum = vec![0.0; 1000];
        sum[7] = bad;
        assert_eq!(session.privatise(&sum), Err(PrivacyError::NotFinite { index: 7 }));
    }
    assert_eq!(
        session.privatise(&[0.0; 999]),
        Err(PrivacyError::WrongLength { expected: 1000, got: 999 })
    );
    assert!(session.privatise(&[0.0; 1000]).is_ok());
}

#[test]
fn an_empty_batch_is_noise_alone() {
    let mut session = session(&request(), 4);
    assert!(session.next_batch(0).unwrap().is_empty());
    let noise = session.privatise(&[0.0; 1000]).unwrap();
    assert!(noise.iter().all(|value| value.is_finite()));
    assert!(noise.iter().any(|value| *value != 0.0));
}

/// The bound is 4.5 standard errors: false-alarm rate 1e-5, spent on choosing the seed.
#[test]
fn the_noise_has_the_scale_that_the_plan_says() {
    let request = PrivacyRequest { n_parameters: 200_000, ..request() };
    let mut session = session(&request, 5);
    session.next_batch(2000).unwrap();
    let noise = session.privatise(&vec![0.0; 200_000]).unwrap();
    let plan = PrivacyPlan::calibrate(&request).unwrap();
    let sigma =
        plan.real_noise_multiplier() * plan.clip_norm_l2() / f64::from(plan.batch_expected());
    assert!(plan.real_noise_multiplier() >= plan.noise_multiplier() * (1.0 + 1.0 / 1024.0));
    let variance = noise.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>() / 200_000.0;
    let relative = variance / (sigma * sigma) - 1.0;
    assert!(relative.abs() < 4.5 * (2.0 / 200_000.0_f64).sqrt(), "{relative}");
}

#[test]
fn the_sum_is_divided_by_the_public_batch() {
    let request = PrivacyRequest { n_parameters: 2, ..request() };
    let mut with = session(&request, 6);
    let mut without = session(&request, 6);
    with.next_batch(2000).unwrap();
    without.next_batch(2000).unwrap();
    let with = with.privatise(&[100.0, -50.0]).unwrap();
    let without = without.privatise(&[0.0, 0.0]).unwrap();
    assert!((with[0] - without[0] - 1.0).abs() < 1e-6);
    assert!((with[1] - without[1] + 0.5).abs() < 1e-6);
}

#[test]
fn an_absurd_sum_saturates() {
    let request = PrivacyRequest { n_parameters: 2, ..request() };
    let mut session = session(&request, 7);
    session.next_batch(2000).unwrap();
    let result = session.privatise(&[f64::MAX, -f64::MAX]).unwrap();
    assert!(result[0] > 0.0 && result[0].is_finite() && result[1] < 0.0);
}

#[test]
fn one_count_a_round_is_released() {
    let mut first = session(&request(), 8);
    let released = first.release_count(500).unwrap();
    // sigma is 71 and the noise OpenDP's: 8 sigmas, false-alarm rate 1e-15.
    assert!((released - 500).abs() < 570, "{released}");
    assert_eq!(first.release_count(500), Err(PrivacyError::MetricAlreadyReleased));
    let mut without = session(&PrivacyRequest { metrics_rho_per_round: 0.0, ..request() }, 8);
    assert_eq!(without.release_count(500), Err(PrivacyError::MetricNotPlanned));
}

#[test]
fn the_release_carries_what_paid_for_it() {
    let plan = PrivacyPlan::calibrate(&request()).unwrap();
    let released = session(&request(), 9).finish(vec![1_i32]);
    assert_eq!(released.receipt().mechanisms(), plan.round_mechanisms());
    assert_eq!(released.receipt().plan_digest(), plan.digest());
    assert_eq!(released.receipt().key().round, 1);
    assert_eq!(released.into_value(), [1]);
}
