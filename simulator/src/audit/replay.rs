//! Replay: one record more or less, everything else the same.
//!
//! ```text
//! records + one --batches--> local_round --noise, recorded--> release
//!       |          the same       |         its history is       |  must be equal
//! records -------batches--> local_round --given to the second--> release
//! ```
//!
//! Both runs go through the deployed path ([`local_round`]: session, clipped sums, noise, optimiser,
//! fixed point). The second run is given what the first released, so that both see the same model at
//! each step; the difference of the two sums before noise is then exactly what one record can do, and
//! everything that leaves must be equal to the bit. The differing record is in every batch.
//!
//! Found so: missing or wrong clipping, records that are not finite, a count or a divisor taken from
//! the data, noise too small for the sensitivity, a control flow that depends on a record. Not found:
//! wrong sampling and dependent noise (see [`noise`](super::noise)), and what only rare data trigger.

use comity_burn_models::{Device, LocalRound, RoundError, all_cores, local_round};
use comity_datasets::{Contract, Dataset, Scale};
use comity_federation::{ClientId, NamedClient, Parameters, Plan, PrivacyTerms, RoundOutput};
use comity_privacy::{Ledger, Limit, PrivacyPlan, PrivacyUnit, ReservationKey};
use rand_core::{Rng, SeedableRng};
use serde::Serialize;

use super::Verdict;
use super::tape::{SharedBatches, Tape, TapedNoise, lock, randomness};
use crate::SimulationError;

/// Records besides the one that differs.
const N_RECORDS: usize = 64;
/// Expected batch: half of the records, so that each step's batch has others too.
const BATCH: u32 = 32;
/// Passes over the records; with the two above, six steps.
const LOCAL_EPOCHS: u32 = 3;
/// Examples at once: several microbatches a step.
const MICROBATCH_MAX: u32 = 16;
/// Standard errors that the measured noise may lack; false-alarm rate 1e-9.
const NOISE_STANDARD_ERRORS: f64 = 6.0;
/// The largest difference must come this close to the clipping norm, or nothing was put to the test.
const DIFFERENCE_SEEN_MIN: f64 = 0.9;

/// What one pair of runs came to.
#[derive(Clone, Debug, Serialize)]
pub struct ReplayCase {
    /// The record in question, and how the data differ.
    pub name: String,
    /// The largest difference of a step's sums before noise, over the clipping norm.
    pub difference: f64,
    /// What the accounting allows: 1, or 2 for a replaced record, and the plan's room for rounding.
    pub allowed: f64,
    /// Steps that were compared.
    pub n_steps: usize,
    /// What differed that must not; empty if nothing.
    pub problems: Vec<String>,
}

/// All pairs of runs of one plan.
#[derive(Clone, Debug, Serialize)]
pub struct ReplayReport {
    /// What they come to.
    pub verdict: Verdict,
    /// The plan's name.
    pub plan: String,
    /// Trained parameters.
    pub n_parameters: u64,
    /// The noise multiplier that is accounted.
    pub accounted: f64,
    /// The standard deviation of the noise that was added over the largest difference that one
    /// record made: what the noise multiplier really was.
    pub measured: f64,
    /// One standard error of it.
    pub standard_error: f64,
    /// The cases.
    pub cases: Vec<ReplayCase>,
    /// What is wrong with all of them together; empty if nothing.
    pub problems: Vec<String>,
}

/// Two small plans that together have what clipping has to get right: dense layers and a count that
/// leaves; convolutions and pooling. ReLU because it, unlike tanh, lets numbers that are not finite
/// through.
#[must_use]
pub fn default_plans() -> [Plan; 2] {
    [include_str!("plans/dense.toml"), include_str!("plans/convolution.toml")]
        .map(|text| Plan::from_toml(text).expect("a test parses them"))
}

/// Replays `plan`'s model, training and privacy on generated records with each adversarial record.
///
/// Of the plan, the number of records, the batch and the passes over the data are replaced by the
/// audit's own small ones. `seed` makes records and batches; noise is the operating system's.
///
/// # Errors
/// [`SimulationError::Audit`] for a plan without differential privacy, and those of a plan that
/// cannot be run at all.
pub fn audit_replay(plan: &Plan, seed: u64) -> Result<ReplayReport, SimulationError> {
    let audit = Audit::new(plan, seed)?;
    let mut cases = Vec::new();
    let mut noise = NoiseSeen::default();
    for record in audit.records() {
        let with = audit.data(&[&record.features], &[record.label])?;
        let without = audit.data(&[], &[])?;
        let name = format!("{}, removed or added", record.name);
        cases.push(audit.compare(name, &with, &without, 1.0, &mut noise)?);
        if record.replaced {
            let zero = vec![0.0; audit.contract.n_features()?];
            let other = audit.data(&[&zero], &[0])?;
            let name = format!("{}, replaced by zeros", record.name);
            cases.push(audit.compare(name, &with, &other, 2.0, &mut noise)?);
        }
    }
    let ordinary = audit.ordinary(u64::MAX);
    let alone = Dataset::from_reals(&audit.contract, ordinary, vec![0])?;
    let none = alone.subset(&[]);
    let name = "the only record, removed or added".to_owned();
    cases.push(audit.compare(name, &alone, &none, 1.0, &mut noise)?);
    cases.push(audit.infinite()?);
    Ok(audit.report(plan.name.clone(), cases, &noise))
}

/// A record that somebody may have.
struct Record {
    name: &'static str,
    features: Vec<f32>,
    label: u32,
    /// Whether it is also tried in the place of another.
    replaced: bool,
}

/// Squares of what was added to the sums.
#[derive(Default)]
struct NoiseSeen {
    sum_of_squares: f64,
    n: f64,
    /// In grid units.
    difference_max: f64,
}

struct Audit {
    plan: Plan,
    client: ClientId,
    privacy: PrivacyPlan,
    contract: Contract,
    start: Parameters,
    base: Vec<f32>,
    labels: Vec<u32>,
    seed: [u8; 32],
    device: Device,
}

/// One of the two runs: what it released, or why not, and what its noise saw.
struct Replayed {
    released: Result<RoundOutput, RoundError>,
    progress: Vec<(u32, u32)>,
    tape: Tape,
}

impl Audit {
    fn new(plan: &Plan, seed: u64) -> Result<Self, SimulationError> {
        let client: ClientId = "ZZ/audit".parse().expect("a fixed name");
        let mut plan = plan.clone();
        let PrivacyTerms::DpSgd { unit, .. } = &mut plan.privacy else {
            return Err(SimulationError::Audit {
                reason: "the plan trains without differential privacy; give one with \
                         privacy.mode = \"dp_sgd\"",
            });
        };
        *unit = PrivacyUnit::Record;
        let named = NamedClient { id: client.clone(), records: N_RECORDS as u64, persons: None };
        plan.cohort.clients = vec![named.clone()];
        plan.training.batch = BATCH;
        plan.training.local_epochs = Some(LOCAL_EPOCHS);
        plan.training.local_steps = None;
        plan.training.microbatch = plan.training.microbatch.clamp(1, MICROBATCH_MAX);
        let privacy = plan.privacy_plan(&named)?.expect("the plan has differential privacy");
        let contract = Contract {
            shape: plan.data.shape.clone(),
            n_classes: plan.data.classes,
            scale: Scale::Real,
        };
        let start = plan.manifest()?.initial_parameters(plan.seed);
        let seed = blake3::derive_key("comity audit records v1", &seed.to_le_bytes());
        let mut audit = Self {
            plan,
            client,
            privacy,
            contract,
            start,
            base: Vec::new(),
            labels: Vec::new(),
            seed,
            device: Device::flex(),
        };
        audit.base = (0..N_RECORDS as u64).flat_map(|record| audit.ordinary(record)).collect();
        let n_classes = audit.contract.n_classes;
        audit.labels = (0..N_RECORDS).map(|record| (record % n_classes) as u32).collect();
        Ok(audit)
    }

    /// A record of numbers between 0 and 1.
    fn ordinary(&self, index: u64) -> Vec<f32> {
        let mut hasher = blake3::Hasher::new_keyed(&self.seed);
        hasher.update(&index.to_le_bytes());
        let mut rng = chacha20::ChaCha20Rng::from_seed(*hasher.finalize().as_bytes());
        let n_features: usize = self.contract.shape.iter().product();
        (0..n_features).map(|_| rng.next_u32() as f32 / u32::MAX as f32).collect()
    }

    /// What somebody may have who wants to be noticed, or whose file is spoilt.
    fn records(&self) -> Vec<Record> {
        let last = (self.contract.n_classes - 1) as u32;
        let ordinary = self.ordinary(u64::MAX);
        let filled = |value: f32| vec![value; ordinary.len()];
        let one = |value: f32| {
            let mut features = ordinary.clone();
            features[0] = value;
            features
        };
        let record = |name, features, label| Record { name, features, label, replaced: false };
        let also_replaced =
            |name, features, label| Record { name, features, label, replaced: true };
        vec![
            also_replaced("ordinary", ordinary.clone(), 0),
            record("ordinary, last class", ordinary.clone(), last),
            record("all zeros", filled(0.0), last),
            record("all missing (NaN)", filled(f32::NAN), 0),
            record("one missing (NaN)", one(f32::NAN), last),
            also_replaced("all 1e4", filled(1e4), 0),
            record("all 1e4, last class", filled(1e4), last),
            record("all -1e4", filled(-1e4), last),
            record("one 1e15", one(1e15), 0),
            also_replaced("all 1e30", filled(1e30), 0),
            record("all 1e30, last class", filled(1e30), last),
            record("one 1e30", one(1e30), last),
            record("all -1e30", filled(-1e30), last),
            record("all the largest float", filled(f32::MAX), 0),
            record("one the lowest float", one(f32::MIN), last),
            record("all subnormal", filled(1e-40), last),
        ]
    }

    /// The audit's records and then `features` with `labels`.
    fn data(&self, features: &[&[f32]], labels: &[u32]) -> Result<Dataset, SimulationError> {
        let mut all = self.base.clone();
        features.iter().for_each(|record| all.extend_from_slice(record));
        let labels = [&self.labels, labels].concat();
        Ok(Dataset::from_reals(&self.contract, all, labels)?)
    }

    /// An infinite feature must not get past the gate, where it would be refused as a file is.
    fn infinite(&self) -> Result<ReplayCase, SimulationError> {
        let mut problems = Vec::new();
        for value in [f32::INFINITY, f32::NEG_INFINITY] {
            let mut features = self.ordinary(0);
            features[0] = value;
            if self.data(&[&features], &[0]).is_ok() {
                problems.push(format!("a record with a feature of {value} was taken"));
            }
        }
        let name = "infinite: refused before training".to_owned();
        Ok(ReplayCase { name, difference: 0.0, allowed: 0.0, n_steps: 0, problems })
    }

    fn run(&self, data: &Dataset, first: Option<&Tape>) -> Result<Replayed, SimulationError> {
        let noise = first.map_or_else(TapedNoise::recording, TapedNoise::replaying);
        let (noise, tape) = noise.map_err(RoundError::from)?;
        let always = data.len().saturating_sub(1).min(N_RECORDS);
        let always = if data.len() > N_RECORDS || data.len() == 1 { always } else { usize::MAX };
        let batches = SharedBatches::new(self.seed, data.len(), always);
        let randomness = randomness(noise, batches, [u8::from(first.is_some()); 32]);
        let limit = Limit { budget: Some(self.privacy.budget()), exempt_allowed: false };
        let key = ReservationKey { run: "audit".to_owned(), round: 1 };
        let reservation = Ledger::new(limit)
            .reserve(&mut Vec::new(), key, self.privacy.charge(&randomness))
            .map_err(RoundError::from)?;
        let round = LocalRound {
            plan: &self.plan,
            plan_digest: self.plan.digest(),
            round: 1,
            client: &self.client,
            base: &self.start,
            dataset: data,
            device: &self.device,
            n_threads: all_cores(),
        };
        let mut progress = Vec::new();
        let released = local_round(
            &round,
            None,
            Some((&self.privacy, randomness)),
            reservation,
            &mut |step, n_steps| progress.push((step, n_steps)),
        );
        let released = released.map(|trained| trained.release.into_value());
        let mut tape = lock(&tape).clone();
        // Threads draw ahead, so the order of drawing says nothing.
        tape.draws.sort_unstable();
        Ok(Replayed { released, progress, tape })
    }

    fn compare(
        &self,
        name: String,
        with: &Dataset,
        without: &Dataset,
        sensitivity: f64,
        noise: &mut NoiseSeen,
    ) -> Result<ReplayCase, SimulationError> {
        let first = self.run(with, None)?;
        let second = self.run(without, Some(&first.tape))?;
        let grid = 2.0_f64.powi(first.tape.draws.first().map_or(0, |d| d.log2_sigma as i32));
        let mut difference = 0.0_f64;
        for (a, b) in first.tape.steps.iter().zip(&second.tape.steps) {
            let squared: f64 =
                a.before.iter().zip(&b.before).map(|(a, b)| (a.abs_diff(*b) as f64).powi(2)).sum();
            difference = difference.max(squared.sqrt());
            for (before, after) in a.before.iter().zip(&a.after) {
                noise.sum_of_squares += ((after - before) as f64).powi(2);
                noise.n += 1.0;
            }
        }
        if sensitivity == 1.0 {
            noise.difference_max = noise.difference_max.max(difference);
        }
        let allowed =
            sensitivity * self.privacy.real_noise_multiplier() / self.privacy.noise_multiplier();
        // One grid unit is γ = σ_real C / 2^m.
        let difference = difference * self.privacy.real_noise_multiplier() / grid;
        let mut problems = self.differences(&first, &second);
        if difference > allowed {
            problems.push(format!(
                "a step's sum changes by {difference:.4} clipping norms, {allowed:.4} are allowed"
            ));
        }
        Ok(ReplayCase { name, difference, allowed, n_steps: first.tape.steps.len(), problems })
    }

    /// What tells the two runs apart, though it must not.
    fn differences(&self, first: &Replayed, second: &Replayed) -> Vec<String> {
        let mut problems = Vec::new();
        let mut check = |same: bool, what: &str| {
            if !same {
                problems.push(what.to_owned());
            }
        };
        match (&first.released, &second.released) {
            (Ok(a), Ok(b)) => {
                let bytes = |output: &RoundOutput| 4 * output.delta.values().len();
                check(bytes(a) == bytes(b), "the sizes of what leaves differ");
                check(a.delta == b.delta, "what leaves differs though all released sums are equal");
                check(
                    (a.n_correct, a.loss_sum) == (b.n_correct, b.loss_sum),
                    "a figure leaves without noise",
                );
            }
            (Err(a), Err(b)) => check(false, &format!("both runs failed: {a}; {b}")),
            (Err(error), Ok(_)) => check(false, &format!("only the run with it failed: {error}")),
            (Ok(_), Err(error)) => check(false, &format!("only the run without failed: {error}")),
        }
        let (a, b) = (&first.tape, &second.tape);
        check(first.progress == second.progress, "the steps that were told of differ");
        check(a.draws == b.draws, "the noise that was asked for differs in kind, number or scale");
        check(a.steps.len() == b.steps.len(), "the numbers of steps with noise differ");
        let planned = self.privacy.steps_per_round() as usize;
        check(a.steps.len() == planned, "not every planned step had noise added");
        let full = a.draws.len() == planned
            && a.draws.iter().all(|d| d.n_values as u64 == self.privacy.n_parameters());
        check(full, "not every parameter of every step had noise drawn");
        let count = Some(self.privacy.metrics_rho_per_round()).filter(|rho| *rho > 0.0);
        let planned: Vec<f64> =
            count.into_iter().chain(self.privacy.loss().map(|loss| loss.rho_per_round)).collect();
        check(
            a.counts.len() == planned.len() && b.counts.len() == planned.len(),
            "a figure left without noise, or noise was drawn for none",
        );
        for ((a, b), rho) in a.counts.iter().zip(&b.counts).zip(planned) {
            check(a.sigma == b.sigma, "the noise of a figure differs in scale");
            // ρ-zCDP at sensitivity Δ takes σ = Δ / √(2ρ).
            let covered = a.sigma * (2.0 * rho).sqrt();
            check(
                a.before.abs_diff(b.before) as f64 <= covered,
                "one record changes a figure by more than its noise covers",
            );
        }
        problems
    }

    fn report(&self, plan: String, cases: Vec<ReplayCase>, noise: &NoiseSeen) -> ReplayReport {
        let accounted = self.privacy.noise_multiplier();
        // Measured in grid units on both sides, so that nothing depends on what a unit is.
        let measured = (noise.sum_of_squares / noise.n).sqrt() / noise.difference_max;
        let standard_error = measured / (2.0 * noise.n).sqrt();
        let mut problems = Vec::new();
        if measured.is_nan() || measured + NOISE_STANDARD_ERRORS * standard_error < accounted {
            problems.push(format!(
                "the noise is {measured:.4} times what one record can change, {accounted:.4} are \
                 accounted"
            ));
        }
        let broken = !problems.is_empty() || cases.iter().any(|case| !case.problems.is_empty());
        let seen = cases.iter().any(|case| case.difference >= DIFFERENCE_SEEN_MIN);
        let verdict = match (broken, seen) {
            (true, _) => Verdict::Broken,
            (false, true) => Verdict::Pass,
            (false, false) => Verdict::Inconclusive,
        };
        ReplayReport {
            verdict,
            plan,
            n_parameters: self.privacy.n_parameters(),
            accounted,
            measured,
            standard_error,
            cases,
            problems,
        }
    }
}
