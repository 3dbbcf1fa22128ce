//! From what is asked for to what will run: one immutable value that fixes sampling rate, clipping
//! norm, noise and schedule, and from which the ε is derived.
//!
//! Nobody types a sensitivity or a noise multiplier. The request names a budget, the plan is
//! calibrated to it, and both the [`Session`] that runs a round and the mechanisms that the ledger
//! is debited come out of the same plan, so they cannot disagree.

use serde::{Deserialize, Serialize};

use crate::{
    accountant::{EpsilonReport, Mechanism, epsilon},
    analytics::{AnalyticsRequest, Tally},
    budget::Budget,
    calibrate::calibrate_noise_multiplier,
    error::PrivacyError,
    ledger::{Charge, Reservation},
    metrics::LossRequest,
    noise::NoiseKind,
    randomness::Randomness,
    release::Released,
    schedule::FixedSchedule,
    session::Session,
    unit::{PrivacyUnit, Relation},
};

/// `log2` of the noise's standard deviation in grid units.
pub(crate) const GRID_BITS: u32 = 30;
/// What the sums of f32 in which clipped gradients are accumulated may add to their sensitivity,
/// relative to the clipping norm.
const FLOAT_SLACK: f64 = 1.0 / 1024.0;
/// The most that rounding to the grid may add to the noise.
const GRID_INFLATION_MAX: f64 = 1.0 / 16.0;
const DIGEST_DOMAIN: &[u8] = b"comity/privacy-plan/v1\0";

/// What a run asks for. Every field is public knowledge: none may be computed from the data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrivacyRequest {
    /// Whom the promise protects.
    pub unit: PrivacyUnit,
    /// How neighbouring data sets differ.
    pub relation: Relation,
    /// What the whole run may cost.
    pub budget: Budget,
    /// The number of privacy units that the institution declares in public, rounded as it likes.
    pub units_declared: u64,
    /// The expected number of privacy units in a batch.
    pub batch_expected: u32,
    /// DP-SGD steps in each round.
    pub steps_per_round: u32,
    /// Rounds in the run.
    pub rounds: u32,
    /// The L2 norm to which each unit's gradient is clipped.
    pub clip_norm_l2: f64,
    /// Trained parameters.
    pub n_parameters: u64,
    /// zCDP spent in each round on one count; 0 for none.
    pub metrics_rho_per_round: f64,
    /// The sum of losses that is released in each round, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<LossRequest>,
    /// What is asked once, before training, if anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub analytics: Option<AnalyticsRequest>,
}

/// What will run, calibrated and immutable.
///
/// It can be read back from where it was recorded, but only if its noise is what its own figures ask
/// for; that it also keeps within its budget is what [`PrivacyPlan::epsilon_total`] says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "PlanRecord")]
pub struct PrivacyPlan {
    request: PrivacyRequest,
    sampling_rate: f64,
    noise_multiplier: f64,
    real_noise_multiplier: f64,
    noise: NoiseKind,
}

/// A plan as it was recorded, not yet checked.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PlanRecord {
    request: PrivacyRequest,
    sampling_rate: f64,
    noise_multiplier: f64,
    real_noise_multiplier: f64,
    noise: NoiseKind,
}

impl TryFrom<PlanRecord> for PrivacyPlan {
    type Error = PrivacyError;

    fn try_from(record: PlanRecord) -> Result<Self, PrivacyError> {
        validate(&record.request)?;
        let plan = Self::with_noise(&record.request, record.noise_multiplier)?;
        let recorded = Self {
            request: record.request,
            sampling_rate: record.sampling_rate,
            noise_multiplier: record.noise_multiplier,
            real_noise_multiplier: record.real_noise_multiplier,
            noise: record.noise,
        };
        if plan == recorded { Ok(plan) } else { Err(PrivacyError::PlanInconsistent) }
    }
}

impl PrivacyPlan {
    /// The plan with the least noise that keeps `request` within its budget.
    ///
    /// The calibrated noise multiplier σ is the one that is *accounted*. The noise that is drawn is
    /// larger, σ_real = σ (1 + slack), because the real sensitivity exceeds the clipping norm C in
    /// two ways: sums of f32 are inexact (taken as C · 2⁻¹⁰), and rounding a sum to the grid
    /// γ = σ_real C / 2³⁰ can move each of d coordinates by one more unit (γ √d). With
    ///
    /// ```text
    /// 1 + slack = (1 + 2^-10) / (1 - σ √d / 2^30)
    /// ```
    ///
    /// σ_real C = σ (C + C · 2⁻¹⁰ + γ √d), so what is accounted holds for what runs.
    ///
    /// # Errors
    /// [`PrivacyError::OutOfRange`] for a zero count, a clipping norm that is not positive and
    /// finite, or a negative or infinite metrics ρ; [`PrivacyError::SamplingRateAboveOne`];
    /// [`PrivacyError::DeltaNotBelowOneUnit`]; [`PrivacyError::GridTooCoarse`]; and those of
    /// [`calibrate_noise_multiplier`] for a budget that cannot be met.
    pub fn calibrate(request: &PrivacyRequest) -> Result<Self, PrivacyError> {
        validate(request)?;
        let sampling_rate = f64::from(request.batch_expected) / request.units_declared as f64;
        let steps = u64::from(request.steps_per_round) * u64::from(request.rounds);
        let others: Vec<Mechanism> = metrics_mechanism(request, request.rounds)
            .into_iter()
            .chain(analytics_mechanism(request))
            .collect();
        let noise_multiplier =
            calibrate_noise_multiplier(request.budget, sampling_rate, steps, &others)?;
        Self::with_noise(request, noise_multiplier)
    }

    fn with_noise(request: &PrivacyRequest, noise_multiplier: f64) -> Result<Self, PrivacyError> {
        let sampling_rate = f64::from(request.batch_expected) / request.units_declared as f64;
        let grid = noise_multiplier * (request.n_parameters as f64).sqrt()
            / 2.0_f64.powi(GRID_BITS as i32);
        if grid > GRID_INFLATION_MAX {
            return Err(PrivacyError::GridTooCoarse {
                noise_multiplier,
                n_parameters: request.n_parameters,
            });
        }
        let real_noise_multiplier = noise_multiplier * (1.0 + FLOAT_SLACK) / (1.0 - grid);
        Ok(Self {
            request: request.clone(),
            sampling_rate,
            noise_multiplier,
            real_noise_multiplier,
            noise: NoiseKind::for_parameters(request.n_parameters),
        })
    }

    /// What was asked for.
    pub fn request(&self) -> &PrivacyRequest {
        &self.request
    }

    /// The probability with which each privacy unit is in a batch.
    pub fn sampling_rate(&self) -> f64 {
        self.sampling_rate
    }

    /// The accounted noise multiplier σ.
    pub fn noise_multiplier(&self) -> f64 {
        self.noise_multiplier
    }

    /// The noise multiplier of the noise that is drawn; see [`PrivacyPlan::calibrate`].
    pub fn real_noise_multiplier(&self) -> f64 {
        self.real_noise_multiplier
    }

    /// How the noise of gradients is made.
    pub fn noise(&self) -> NoiseKind {
        self.noise
    }

    /// The public number by which a sum of gradients is divided.
    pub fn batch_expected(&self) -> u32 {
        self.request.batch_expected
    }

    /// The L2 norm to which each unit's gradient is clipped.
    pub fn clip_norm_l2(&self) -> f64 {
        self.request.clip_norm_l2
    }

    /// DP-SGD steps in each round.
    pub fn steps_per_round(&self) -> u32 {
        self.request.steps_per_round
    }

    /// Rounds in the run.
    pub fn rounds(&self) -> u32 {
        self.request.rounds
    }

    /// Trained parameters.
    pub fn n_parameters(&self) -> u64 {
        self.request.n_parameters
    }

    /// zCDP spent in each round on one count; 0 for none.
    pub fn metrics_rho_per_round(&self) -> f64 {
        self.request.metrics_rho_per_round
    }

    /// The sum of losses that is released in each round, if any.
    pub fn loss(&self) -> Option<LossRequest> {
        self.request.loss
    }

    /// What is asked once, before training, if anything.
    pub fn analytics(&self) -> Option<&AnalyticsRequest> {
        self.request.analytics.as_ref()
    }

    /// Whom the promise protects.
    pub fn unit(&self) -> PrivacyUnit {
        self.request.unit
    }

    /// How neighbouring data sets differ.
    pub fn relation(&self) -> Relation {
        self.request.relation
    }

    /// What the whole run may cost.
    pub fn budget(&self) -> Budget {
        self.request.budget
    }

    /// What the whole run costs, at the budget's δ.
    pub fn epsilon_total(&self) -> EpsilonReport {
        self.epsilon_after(self.request.rounds)
    }

    /// What the statistics and the first `rounds` rounds cost, at the budget's δ.
    pub fn epsilon_after(&self, rounds: u32) -> EpsilonReport {
        let schedule = FixedSchedule::declared(self.until(rounds));
        epsilon(&schedule, self.request.relation, self.request.budget.delta.get())
    }

    /// What one round has to be debited.
    pub fn round_mechanisms(&self) -> Vec<Mechanism> {
        self.mechanisms(1)
    }

    /// Everything that the whole run releases, fixed before its first round.
    pub fn schedule(&self) -> FixedSchedule {
        FixedSchedule::declared(self.until(self.request.rounds))
    }

    /// What the ledger is to be debited for one round that uses `randomness`.
    pub fn charge(&self, randomness: &Randomness) -> Charge {
        self.charge_of(self.round_mechanisms(), randomness)
    }

    /// What the ledger is to be debited for the statistics, released with `randomness`.
    ///
    /// # Errors
    /// [`PrivacyError::AnalyticsNotPlanned`].
    pub fn analytics_charge(&self, randomness: &Randomness) -> Result<Charge, PrivacyError> {
        let mechanism =
            analytics_mechanism(&self.request).ok_or(PrivacyError::AnalyticsNotPlanned)?;
        Ok(self.charge_of(vec![mechanism], randomness))
    }

    fn charge_of(&self, mechanisms: Vec<Mechanism>, randomness: &Randomness) -> Charge {
        Charge {
            mechanisms,
            schedule: self.until(self.request.rounds),
            plan: self.digest(),
            terms: Some(Box::new(self.clone())),
            randomness: Some(randomness.id),
        }
    }

    /// BLAKE3 of the plan, so that two parties know that they hold the same one.
    pub fn digest(&self) -> [u8; 32] {
        // Canonical: fields in the order of the type, floats in their shortest exact form.
        let json = serde_json::to_vec(self).expect("a plan holds only finite numbers and names");
        let mut hasher = blake3::Hasher::new();
        hasher.update(DIGEST_DOMAIN).update(&json);
        *hasher.finalize().as_bytes()
    }

    /// Opens the round that `reservation` paid for.
    ///
    /// # Errors
    /// [`PrivacyError::ReservationMismatch`] unless the reservation is for this very plan, one of
    /// its rounds, and this randomness.
    pub fn session(
        &self,
        reservation: Reservation,
        randomness: Randomness,
    ) -> Result<Session, PrivacyError> {
        if reservation.plan_digest() != self.digest()
            || reservation.mechanisms() != self.round_mechanisms()
            || reservation.randomness() != Some(randomness.id)
        {
            return Err(reservation.mismatch("one round of this plan with this randomness"));
        }
        Session::open(self.clone(), reservation, randomness)
    }

    /// Empty sums for what is asked before training.
    ///
    /// # Errors
    /// [`PrivacyError::AnalyticsNotPlanned`].
    pub fn tally(&self) -> Result<Tally, PrivacyError> {
        let request = self.request.analytics.clone().ok_or(PrivacyError::AnalyticsNotPlanned)?;
        Ok(Tally::new(request))
    }

    /// Releases the statistics that `reservation` paid for, `[n_values]`, each within the range of an
    /// `i32`, as `wrap` presents them.
    ///
    /// # Errors
    /// [`PrivacyError::ReservationMismatch`] unless the reservation is for this very plan's statistics
    /// and this randomness, and `tally` is this plan's; and those of the noise.
    pub fn release_statistics<T>(
        &self,
        reservation: Reservation,
        mut randomness: Randomness,
        tally: Tally,
        wrap: impl FnOnce(Vec<i32>) -> T,
    ) -> Result<Released<T>, PrivacyError> {
        let mechanism =
            analytics_mechanism(&self.request).ok_or(PrivacyError::AnalyticsNotPlanned)?;
        if reservation.plan_digest() != self.digest()
            || reservation.mechanisms() != [mechanism]
            || reservation.randomness() != Some(randomness.id)
            || self.request.analytics.as_ref() != Some(tally.request())
        {
            return Err(reservation.mismatch("this plan's statistics with this randomness"));
        }
        let released = tally.privatise(&mut *randomness.noise, self.request.unit)?;
        Ok(reservation.release(wrap(released)))
    }

    /// Everything until the end of round `rounds`.
    fn until(&self, rounds: u32) -> Vec<Mechanism> {
        let mut mechanisms = self.mechanisms(rounds);
        mechanisms.extend(analytics_mechanism(&self.request));
        mechanisms
    }

    /// `rounds` rounds of training.
    fn mechanisms(&self, rounds: u32) -> Vec<Mechanism> {
        let mut mechanisms = vec![Mechanism::SampledGaussian {
            q: self.sampling_rate,
            sigma: self.noise_multiplier,
            steps: u64::from(self.request.steps_per_round) * u64::from(rounds),
        }];
        mechanisms.extend(metrics_mechanism(&self.request, rounds));
        mechanisms
    }
}

fn metrics_mechanism(request: &PrivacyRequest, rounds: u32) -> Option<Mechanism> {
    let loss = request.loss.map_or(0.0, |loss| loss.rho_per_round);
    let rho = (request.metrics_rho_per_round + loss) * f64::from(rounds);
    (rho > 0.0).then_some(Mechanism::Zcdp { rho })
}

fn analytics_mechanism(request: &PrivacyRequest) -> Option<Mechanism> {
    request.analytics.as_ref().map(|analytics| Mechanism::Zcdp { rho: analytics.rho })
}

fn validate(request: &PrivacyRequest) -> Result<(), PrivacyError> {
    for (what, value) in [
        ("units_declared", request.units_declared),
        ("batch_expected", u64::from(request.batch_expected)),
        ("steps_per_round", u64::from(request.steps_per_round)),
        ("rounds", u64::from(request.rounds)),
        ("n_parameters", request.n_parameters),
        ("unit.person.records_max", u64::from(request.unit.records_max())),
    ] {
        if value == 0 {
            return Err(PrivacyError::OutOfRange { what, value: 0.0, allowed: "at least 1" });
        }
    }
    let clip_norm_l2 = request.clip_norm_l2;
    if !(clip_norm_l2 > 0.0 && clip_norm_l2.is_finite()) {
        return Err(PrivacyError::OutOfRange {
            what: "clip_norm_l2",
            value: clip_norm_l2,
            allowed: "positive and finite",
        });
    }
    Mechanism::Zcdp { rho: request.metrics_rho_per_round }.validate()?;
    if let Some(loss) = &request.loss {
        loss.validate()?;
    }
    if let Some(analytics) = &request.analytics {
        analytics.validate()?;
    }
    if request.relation != Relation::AddOrRemoveOne {
        return Err(PrivacyError::RelationNotPlanned);
    }
    let counts_rows = request.metrics_rho_per_round > 0.0
        || request.loss.is_some()
        || request.analytics.is_some();
    if request.unit == PrivacyUnit::Institution && counts_rows {
        return Err(PrivacyError::CountsOfInstitutions);
    }
    if u64::from(request.batch_expected) > request.units_declared {
        return Err(PrivacyError::SamplingRateAboveOne {
            batch_expected: request.batch_expected,
            units_declared: request.units_declared,
        });
    }
    let delta = request.budget.delta.get();
    if delta * request.units_declared as f64 >= 1.0 {
        return Err(PrivacyError::DeltaNotBelowOneUnit {
            delta,
            units_declared: request.units_declared,
        });
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests;
