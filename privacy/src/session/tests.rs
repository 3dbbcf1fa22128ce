use super::*;
use crate::{
    ledger::{Ledger, Limit, ReservationKey},
    noise::EXACT_PARAMETERS_MAX,
    plan::{PrivacyRequest, tests::request},
    step_noise::NoiseLane,
};

fn session(request: &PrivacyRequest, seed: u8) -> Session {
    let plan = PrivacyPlan::calibrate(request).unwrap();
    let limit = Limit { budget: Some(plan.budget()), exempt_allowed: false };
    let key = ReservationKey { run: "a".to_owned(), round: 1 };
    let randomness = Randomness::seeded(seed);
    let reservation =
        Ledger::new(limit).reserve(&mut Vec::new(), key, plan.charge(&randomness)).unwrap();
    plan.session(reservation, randomness).unwrap()
}

/// A session with the noise of its steps.
struct Steps {
    session: Session,
    noise: NoiseLane,
}

impl Steps {
    fn open(request: &PrivacyRequest, seed: u8) -> Self {
        let mut session = session(request, seed);
        let noise = session.noise_ahead().unwrap().lanes(1).remove(0);
        Self { session, noise }
    }

    fn privatise(&mut self, sum: &[f64]) -> Result<Vec<f32>, PrivacyError> {
        self.session.privatise(sum, self.noise.next().unwrap().unwrap())
    }
}

#[test]
fn an_extra_step_is_refused() {
    let mut steps = Steps::open(&request(), 1);
    let zeros = vec![0.0; 1000];
    for left in (0..5).rev() {
        steps.session.next_batch(2000).unwrap();
        assert_eq!(steps.session.steps_left(), left);
        steps.privatise(&zeros).unwrap();
    }
    assert_eq!(steps.session.next_batch(2000), Err(PrivacyError::NoStepsLeft { steps: 5 }));
    assert!(steps.noise.next().is_none());
}

#[test]
fn batches_and_sums_alternate() {
    let zeros = vec![0.0; 1000];
    let mut steps = Steps::open(&request(), 2);
    assert_eq!(steps.privatise(&zeros), Err(PrivacyError::NoBatch));
    let mut steps = Steps::open(&request(), 2);
    steps.session.next_batch(2000).unwrap();
    assert_eq!(steps.session.next_batch(2000), Err(PrivacyError::BatchPending));
    steps.privatise(&zeros).unwrap();
    assert_eq!(steps.privatise(&zeros), Err(PrivacyError::NoBatch));
}

#[test]
fn noise_is_for_one_step_of_one_session() {
    let zeros = vec![0.0; 1000];
    let (mut steps, mut other) = (Steps::open(&request(), 3), Steps::open(&request(), 4));
    assert_eq!(steps.session.noise_ahead().err(), Some(PrivacyError::NoiseTaken));
    steps.session.next_batch(2000).unwrap();
    let of_another = other.noise.next().unwrap().unwrap();
    let refused = Err(PrivacyError::OtherStepsNoise { step: 0 });
    assert_eq!(steps.session.privatise(&zeros, of_another), refused);
    let first = steps.noise.next().unwrap().unwrap();
    assert_eq!(steps.privatise(&zeros), refused);
    assert!(steps.session.privatise(&zeros, first).is_ok());
}

#[test]
fn a_sum_that_is_not_finite_is_refused() {
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let mut steps = Steps::open(&request(), 3);
        steps.session.next_batch(2000).unwrap();
        let mut sum = vec![0.0; 1000];
        sum[7] = bad;
        assert_eq!(steps.privatise(&sum), Err(PrivacyError::NotFinite { index: 7 }));
    }
    let mut steps = Steps::open(&request(), 3);
    steps.session.next_batch(2000).unwrap();
    assert_eq!(
        steps.privatise(&[0.0; 999]),
        Err(PrivacyError::WrongLength { expected: 1000, got: 999 })
    );
}

#[test]
fn an_empty_batch_is_noise_alone() {
    let mut steps = Steps::open(&request(), 4);
    assert!(steps.session.next_batch(0).unwrap().is_empty());
    let noise = steps.privatise(&[0.0; 1000]).unwrap();
    assert!(noise.iter().all(|value| value.is_finite()));
    assert!(noise.iter().any(|value| *value != 0.0));
}

/// The bound is 4.5 standard errors: false-alarm rate 1e-5, spent on choosing the seed. Both kinds
/// of noise: the second model is above the limit of the exact one.
#[test]
fn the_noise_has_the_scale_that_the_plan_says() {
    for n_parameters in [200_000, EXACT_PARAMETERS_MAX + 1] {
        let request = PrivacyRequest { n_parameters, ..request() };
        let n = n_parameters as usize;
        let mut steps = Steps::open(&request, 5);
        steps.session.next_batch(2000).unwrap();
        let noise = steps.privatise(&vec![0.0; n]).unwrap();
        let plan = PrivacyPlan::calibrate(&request).unwrap();
        let sigma =
            plan.real_noise_multiplier() * plan.clip_norm_l2() / f64::from(plan.batch_expected());
        assert!(plan.real_noise_multiplier() >= plan.noise_multiplier() * (1.0 + 1.0 / 1024.0));
        let variance = noise.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>() / n as f64;
        let relative = variance / (sigma * sigma) - 1.0;
        assert!(relative.abs() < 4.5 * (2.0 / n as f64).sqrt(), "{n}: {relative}");
    }
}

#[test]
fn the_sum_is_divided_by_the_public_batch() {
    let request = PrivacyRequest { n_parameters: 2, ..request() };
    let of_sum = |sum: &[f64]| {
        let mut steps = Steps::open(&request, 6);
        steps.session.next_batch(2000).unwrap();
        steps.privatise(sum).unwrap()
    };
    let (with, without) = (of_sum(&[100.0, -50.0]), of_sum(&[0.0, 0.0]));
    assert!((with[0] - without[0] - 1.0).abs() < 1e-6);
    assert!((with[1] - without[1] + 0.5).abs() < 1e-6);
}

#[test]
fn an_absurd_sum_saturates() {
    let request = PrivacyRequest { n_parameters: 2, ..request() };
    let mut steps = Steps::open(&request, 7);
    steps.session.next_batch(2000).unwrap();
    let result = steps.privatise(&[f64::MAX, -f64::MAX]).unwrap();
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
