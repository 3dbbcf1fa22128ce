//! The mechanism as its users meet it, against what the accountant assumes of it. Each of these
//! tests is the one that a planted defect has to fail (`tests/mutants`).
//!
//! Keys are the operating system's, so each can fail by chance; each states how often.

use comity_privacy::{
    Budget, Charge, Ledger, Limit, Mechanism, PrivacyPlan, PrivacyRequest, PrivacyUnit, Randomness,
    Relation, ReservationKey, Session, release_histogram,
};

const N_PARAMETERS: usize = 40_000;
const RHO: f64 = 1e-3;

fn plan(steps_per_round: u32, n_parameters: usize) -> PrivacyPlan {
    PrivacyPlan::calibrate(&PrivacyRequest {
        unit: PrivacyUnit::Record,
        relation: Relation::AddOrRemoveOne,
        budget: Budget::new(3.0, 1e-6).unwrap(),
        units_declared: 1000,
        batch_expected: 250,
        steps_per_round,
        rounds: 1,
        clip_norm_l2: 0.7,
        n_parameters: n_parameters as u64,
        metrics_rho_per_round: RHO,
        loss: None,
        analytics: None,
    })
    .unwrap()
}

fn session(plan: &PrivacyPlan) -> Session {
    let randomness = Randomness::from_os().unwrap();
    let limit = Limit { budget: Some(plan.budget()), exempt_allowed: false };
    let key = ReservationKey { run: "mechanism".to_owned(), round: 1 };
    let reservation =
        Ledger::new(limit).reserve(&mut Vec::new(), key, plan.charge(&randomness)).unwrap();
    plan.session(reservation, randomness).unwrap()
}

/// What a session without data releases, `[step][parameter]`.
fn noise_released(plan: &PrivacyPlan) -> Vec<Vec<f32>> {
    let mut session = session(plan);
    let zeros = vec![0.0; usize::try_from(plan.n_parameters()).unwrap()];
    let lane = session.noise_ahead().unwrap().lanes(1).remove(0);
    lane.map(|noise| {
        session.next_batch(0).unwrap();
        session.privatise(&zeros, noise.unwrap()).unwrap()
    })
    .collect()
}

/// Six standard errors: false-alarm rate 2e-9.
#[test]
fn released_noise_has_the_spread_that_is_accounted() {
    let plan = plan(5, N_PARAMETERS);
    let noise = noise_released(&plan).concat();
    let n = noise.len() as f64;
    let accounted =
        plan.noise_multiplier() * plan.clip_norm_l2() / f64::from(plan.batch_expected());
    let variance = noise.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>() / n;
    let ratio = variance / (accounted * accounted);
    let slack = (plan.real_noise_multiplier() / plan.noise_multiplier()).powi(2);
    let error = 6.0 * (2.0 / n).sqrt();
    assert!(ratio > slack - error && ratio < slack + error, "{ratio} of what is accounted");
}

/// Bounds of six standard errors: false-alarm rate 4e-9.
#[test]
fn batch_sizes_vary_as_independent_records_make_them() {
    let (n_records, n_steps) = (1000, 2000);
    let plan = plan(n_steps, 1);
    let mut session = session(&plan);
    let lane = session.noise_ahead().unwrap().lanes(1).remove(0);
    let mut sizes = Vec::new();
    for noise in lane {
        sizes.push(session.next_batch(n_records).unwrap().len() as f64);
        session.privatise(&[0.0], noise.unwrap()).unwrap();
    }
    let (n, q) = (sizes.len() as f64, plan.sampling_rate());
    let (mean, variance) = (n_records as f64 * q, n_records as f64 * q * (1.0 - q));
    let observed_mean = sizes.iter().sum::<f64>() / n;
    let observed = sizes.iter().map(|size| (size - mean).powi(2)).sum::<f64>() / n;
    assert!((observed_mean - mean).abs() < 6.0 * (variance / n).sqrt(), "{observed_mean} {mean}");
    assert!((observed / variance - 1.0).abs() < 6.0 * (2.0 / n).sqrt(), "{observed} {variance}");
}

/// Two equal values of 24 bits are rare but possible: 1,000 of 40,000 have a rate far below 1e-100.
#[test]
fn no_two_sessions_share_noise_or_batches() {
    let plan = plan(1, N_PARAMETERS);
    let (first, second) = (noise_released(&plan).concat(), noise_released(&plan).concat());
    let n_equal = first.iter().zip(&second).filter(|(a, b)| a == b).count();
    assert!(n_equal < 1000, "{n_equal} of {N_PARAMETERS} released values are equal");
    let batch = || session(&plan).next_batch(1000).unwrap();
    assert_ne!(batch(), batch(), "two rounds drew the same batch");
    assert_ne!(Randomness::from_os().unwrap().id, Randomness::from_os().unwrap().id);
}

/// The mean square of 60 counts against its expectation: chi-square, false-alarm rate below 1e-7.
#[test]
fn a_count_leaves_with_the_noise_that_is_charged() {
    let plan = plan(1, 1);
    let n = 60;
    let squares: f64 =
        (0..n).map(|_| (session(&plan).release_count(500).unwrap() as f64 - 500.0).powi(2)).sum();
    let ratio = squares / f64::from(n) * 2.0 * RHO;
    assert!(ratio > 0.3 && ratio < 2.5, "{ratio} times the variance that is charged");
}

/// The mean square of 200 counts lies within a factor of 2: false-alarm rate below 1e-7.
#[test]
fn a_histogram_leaves_with_the_noise_that_is_charged() {
    let counts = [700_u64; 200];
    let paid = vec![Mechanism::Zcdp { rho: RHO }];
    let limit = Limit { budget: Some(Budget::new(3.0, 1e-6).unwrap()), exempt_allowed: false };
    let key = ReservationKey { run: "histogram".to_owned(), round: 0 };
    let randomness = Randomness::from_os().unwrap();
    let charge = Charge::single(paid, [0; 32], Some(randomness.id));
    let reservation = Ledger::new(limit).reserve(&mut Vec::new(), key, charge).unwrap();
    let mut noise = randomness.noise;
    let released = release_histogram(reservation, &mut *noise, &counts).unwrap().into_value();
    let squares: f64 = released.iter().map(|count| (*count as f64 - 700.0).powi(2)).sum();
    let ratio = squares / counts.len() as f64 * 2.0 * RHO;
    assert!(ratio > 0.5 && ratio < 2.0, "{ratio} times the variance that is charged");
}
