//! The noise that a session really adds, in both kinds.
//!
//! Keys, forks, lanes and threads are those of a deployed client: `Randomness::from_os`,
//! [`Session::noise_ahead`](comity_privacy::Session::noise_ahead), one thread a lane, and
//! `privatise` of sums that are all zero. What is tested is every integer that was added
//! ([`test_noise`]), and that what is released has the spread that the plan accounts for.

use std::thread;

use comity_burn_models::RoundError;
use comity_privacy::audit::noise::{FALSE_ALARM_RATE, NoiseReport, NoiseTest, test_noise};
use comity_privacy::audit::normal::two_sided;
use comity_privacy::{
    Budget, EXACT_PARAMETERS_MAX, Ledger, Limit, NoiseKind, PrivacyError, PrivacyPlan,
    PrivacyRequest, PrivacyUnit, Randomness, Relation, ReservationKey, Session, StepNoise,
};
use serde::Serialize;

use super::Verdict;
use super::tape::{TapedNoise, lock};
use crate::SimulationError;

/// Keys, each of which draws half of the values.
const N_KEYS: usize = 2;
/// Threads that draw in turn.
const N_LANES: u32 = 2;
/// Parameters of the model that gets exact noise.
const EXACT_PARAMETERS: u64 = 100_000;
/// Fewest steps, so that a lane's noise can be compared with its next.
const N_STEPS_MIN: u64 = 3;
/// Fewest values: three steps a key of the smallest model that gets noise computed in floats.
pub const N_VALUES_MIN: u64 = N_KEYS as u64 * N_STEPS_MIN * (EXACT_PARAMETERS_MAX + 1);
/// Most values: 800 MB.
pub const N_VALUES_MAX: u64 = 100_000_000;

/// The result for both kinds of noise.
#[derive(Clone, Debug, Serialize)]
pub struct NoiseAudit {
    /// What they come to.
    pub verdict: Verdict,
    /// One for each kind.
    pub kinds: Vec<KindAudit>,
}

/// The result for one kind of noise.
#[derive(Clone, Debug, Serialize)]
pub struct KindAudit {
    /// Which.
    pub kind: NoiseKind,
    /// Parameters of the model.
    pub n_parameters: u64,
    /// Keys of the operating system.
    pub n_keys: usize,
    /// Steps under each key.
    pub n_steps: u32,
    /// Threads that drew them in turn.
    pub n_lanes: u32,
    /// The tests.
    pub report: NoiseReport,
}

/// Draws about `n_values` values of each kind, and tests them.
///
/// # Errors
/// [`SimulationError::Audit`] unless `n_values` is between [`N_VALUES_MIN`] and [`N_VALUES_MAX`];
/// those of the sessions.
pub fn audit_noise(n_values: u64) -> Result<NoiseAudit, SimulationError> {
    if !(N_VALUES_MIN..=N_VALUES_MAX).contains(&n_values) {
        return Err(SimulationError::Audit {
            reason: "the number of values must be 6000006 to 100000000",
        });
    }
    let kinds = [EXACT_PARAMETERS, EXACT_PARAMETERS_MAX + 1]
        .map(|n_parameters| audit_kind(n_parameters, n_values))
        .into_iter()
        .collect::<Result<Vec<_>, PrivacyError>>()
        .map_err(RoundError::from)?;
    let passed = kinds.iter().all(|kind| kind.report.passed());
    let verdict = if passed { Verdict::Pass } else { Verdict::Broken };
    Ok(NoiseAudit { verdict, kinds })
}

fn audit_kind(n_parameters: u64, n_values: u64) -> Result<KindAudit, PrivacyError> {
    let n_steps = n_values.div_ceil(n_parameters * N_KEYS as u64).max(N_STEPS_MIN);
    let n_steps = u32::try_from(n_steps).expect("the number of values is limited");
    let plan = PrivacyPlan::calibrate(&PrivacyRequest {
        unit: PrivacyUnit::Record,
        relation: Relation::AddOrRemoveOne,
        budget: Budget::new(3.0, 1e-6)?,
        units_declared: 10_000,
        batch_expected: 100,
        steps_per_round: n_steps,
        rounds: 1,
        clip_norm_l2: 0.5,
        n_parameters,
        metrics_rho_per_round: 0.0,
        loss: None,
        analytics: None,
    })?;
    let mut released = Spread::default();
    let keys: Vec<Seen> =
        (0..N_KEYS).map(|_| one_key(&plan, &mut released)).collect::<Result<_, _>>()?;
    let log2_sigma = keys[0].log2_sigma;
    let values: Vec<Vec<Vec<i64>>> = keys.into_iter().map(|key| key.steps).collect();
    let mut report = test_noise(&values, log2_sigma, N_LANES as usize);
    report.tests.push(released.test(&plan));
    report.p_value_min = FALSE_ALARM_RATE / report.tests.len() as f64;
    Ok(KindAudit {
        kind: plan.noise(),
        n_parameters,
        n_keys: N_KEYS,
        n_steps,
        n_lanes: N_LANES,
        report,
    })
}

/// What one session added, `[step][coordinate]`.
struct Seen {
    steps: Vec<Vec<i64>>,
    log2_sigma: u32,
}

/// Squares of released values, and how many.
#[derive(Default)]
struct Spread {
    sum_of_squares: f64,
    n: f64,
}

impl Spread {
    /// Whether what is released has the standard deviation σ_real C / B.
    fn test(&self, plan: &PrivacyPlan) -> NoiseTest {
        let sigma =
            plan.real_noise_multiplier() * plan.clip_norm_l2() / f64::from(plan.batch_expected());
        let observed = self.sum_of_squares / self.n / (sigma * sigma);
        NoiseTest {
            name: "variance of what is released".to_owned(),
            observed,
            expected: 1.0,
            p_value: two_sided((observed - 1.0) / (2.0 / self.n).sqrt()),
        }
    }
}

fn one_key(plan: &PrivacyPlan, released: &mut Spread) -> Result<Seen, PrivacyError> {
    let Randomness { sampling, noise, id } = Randomness::from_os()?;
    let (noise, tape) = TapedNoise::over_source(noise);
    let randomness = Randomness { sampling, noise: Box::new(noise), id };
    let limit = Limit { budget: Some(plan.budget()), exempt_allowed: false };
    let key = ReservationKey { run: "audit".to_owned(), round: 1 };
    let reservation = Ledger::new(limit).reserve(&mut Vec::new(), key, plan.charge(&randomness))?;
    let mut session = plan.session(reservation, randomness)?;
    let drawn = draw_in_lanes(&mut session)?;
    let zeros = vec![0.0; usize::try_from(plan.n_parameters()).expect("it fits in memory")];
    let mut steps = Vec::with_capacity(drawn.len());
    for noise in drawn {
        session.next_batch(0)?;
        let gradient = session.privatise(&zeros, noise)?;
        released.sum_of_squares +=
            gradient.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>();
        released.n += gradient.len() as f64;
        steps.extend(lock(&tape).steps.drain(..).map(|step| step.after));
    }
    let log2_sigma = lock(&tape).draws.first().map_or(0, |draw| draw.log2_sigma);
    Ok(Seen { steps, log2_sigma })
}

/// All steps' noise in order, drawn by one thread a lane.
fn draw_in_lanes(session: &mut Session) -> Result<Vec<StepNoise>, PrivacyError> {
    let lanes = session.noise_ahead()?.lanes(N_LANES);
    let drawn: Vec<Vec<Result<StepNoise, PrivacyError>>> = thread::scope(|scope| {
        let threads: Vec<_> =
            lanes.into_iter().map(|lane| scope.spawn(move || lane.collect())).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    let mut lanes: Vec<_> = drawn.into_iter().map(Vec::into_iter).collect();
    let mut steps = Vec::new();
    'all: loop {
        for lane in &mut lanes {
            match lane.next() {
                Some(noise) => steps.push(noise?),
                None => break 'all,
            }
        }
    }
    Ok(steps)
}
