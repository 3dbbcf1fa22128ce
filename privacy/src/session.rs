//! One round: the only thing that draws batches and noise, and the only way to a release.
//!
//! ```text
//! open --next_batch--> batch drawn --privatise--> open      at most steps_per_round times
//!  |                                                        noise_ahead at any time, once
//!  |                                                        release_count, release_loss_sum
//!  |                                                        at any time, once each
//!  +--finish--> Released
//! ```
//!
//! What a session is *not*: it does not compute gradients. Its caller sums the gradients of the
//! batch's units, each scaled by [`clip_factor`](crate::clip::clip_factor) at
//! [`Session::clip_norm_l2`], and computes what it hands to [`Session::finish`] from the results of
//! the session alone (post-processing).

use std::fmt;

use crate::{
    error::PrivacyError,
    ledger::Reservation,
    metrics::count_sigma,
    noise::Noise,
    plan::{GRID_BITS, PrivacyPlan},
    randomness::Randomness,
    release::Released,
    sampler::PoissonSampler,
    step_noise::{NoiseAhead, StepNoise},
    unit::PrivacyUnit,
};

/// Quantised sums are held within ±2⁶¹, so that adding noise can never overflow.
const QUANTISED_MAX: f64 = (1_u64 << 61) as f64;

/// A round in progress.
pub struct Session {
    plan: PrivacyPlan,
    reservation: Reservation,
    sampler: PoissonSampler,
    noise: Box<dyn Noise>,
    randomness: [u8; 32],
    noise_taken: bool,
    steps_left: u32,
    batch_pending: bool,
    metric_released: bool,
    loss_released: bool,
}

impl Session {
    pub(crate) fn open(
        plan: PrivacyPlan,
        reservation: Reservation,
        randomness: Randomness,
    ) -> Result<Self, PrivacyError> {
        Ok(Self {
            sampler: PoissonSampler::new(plan.sampling_rate(), randomness.sampling)?,
            noise: randomness.noise,
            randomness: randomness.id,
            noise_taken: false,
            steps_left: plan.steps_per_round(),
            plan,
            reservation,
            batch_pending: false,
            metric_released: false,
            loss_released: false,
        })
    }

    /// The positions, ascending, of the privacy units in the next step's batch; none is a valid
    /// batch.
    ///
    /// `n_units` is the real number of units (records or persons), which may differ from the
    /// declared one: each unit's probability does not depend on it.
    ///
    /// # Errors
    /// [`PrivacyError::BatchPending`] if the last batch was not privatised,
    /// [`PrivacyError::NoStepsLeft`] after the plan's last step.
    pub fn next_batch(&mut self, n_units: usize) -> Result<Vec<usize>, PrivacyError> {
        if self.batch_pending {
            return Err(PrivacyError::BatchPending);
        }
        if self.steps_left == 0 {
            return Err(PrivacyError::NoStepsLeft { steps: self.plan.steps_per_round() });
        }
        self.steps_left -= 1;
        self.batch_pending = true;
        Ok(self.sampler.sample(n_units))
    }

    /// The noise of all steps, to be drawn before their data are touched, on any thread.
    ///
    /// # Errors
    /// [`PrivacyError::NoiseTaken`] the second time.
    pub fn noise_ahead(&mut self) -> Result<NoiseAhead, PrivacyError> {
        if self.noise_taken {
            return Err(PrivacyError::NoiseTaken);
        }
        self.noise_taken = true;
        Ok(NoiseAhead::new(
            self.noise.fork(0),
            self.randomness,
            self.plan.noise(),
            usize::try_from(self.plan.n_parameters()).expect("the parameters fit in memory"),
            self.plan.steps_per_round(),
        ))
    }

    /// Whose records [`Session::next_batch`] draws together.
    pub fn unit(&self) -> PrivacyUnit {
        self.plan.unit()
    }

    /// The L2 norm to which each unit's gradient has to be clipped.
    pub fn clip_norm_l2(&self) -> f64 {
        self.plan.clip_norm_l2()
    }

    /// Batches that may still be drawn.
    pub fn steps_left(&self) -> u32 {
        self.steps_left
    }

    /// Turns a batch's sum of clipped gradients into a private mean gradient.
    ///
    /// `clipped_sum`: `[n_parameters]`, the *sum*, all zeros for an empty batch. It is rounded to
    /// the grid γ = σ_real C / 2³⁰ (and held within ±2⁶¹ γ, which can only reduce its sensitivity),
    /// `noise`, Gaussian of 2³⁰ grid units, is added to every coordinate, and the result is divided
    /// by the public expected batch, never by the batch's own size.
    ///
    /// `noise`: this step's, from [`Session::noise_ahead`]; it is used up, also by an error.
    ///
    /// # Errors
    /// [`PrivacyError::NoBatch`] if no batch is waiting, [`PrivacyError::WrongLength`],
    /// [`PrivacyError::NotFinite`] if a coordinate is NaN or infinite,
    /// [`PrivacyError::OtherStepsNoise`] if `noise` is another step's or another session's.
    pub fn privatise(
        &mut self,
        clipped_sum: &[f64],
        noise: StepNoise,
    ) -> Result<Vec<f32>, PrivacyError> {
        if !self.batch_pending {
            return Err(PrivacyError::NoBatch);
        }
        if clipped_sum.len() as u64 != self.plan.n_parameters() {
            return Err(PrivacyError::WrongLength {
                expected: self.plan.n_parameters(),
                got: clipped_sum.len(),
            });
        }
        if let Some(index) = clipped_sum.iter().position(|value| !value.is_finite()) {
            return Err(PrivacyError::NotFinite { index });
        }
        let step = self.plan.steps_per_round() - self.steps_left - 1;
        if noise.session != self.randomness || noise.step != step {
            return Err(PrivacyError::OtherStepsNoise { step });
        }
        let gamma = self.plan.real_noise_multiplier() * self.plan.clip_norm_l2()
            / 2.0_f64.powi(GRID_BITS as i32);
        let mut values: Vec<i64> = clipped_sum
            .iter()
            .map(|value| (value / gamma).round().clamp(-QUANTISED_MAX, QUANTISED_MAX) as i64)
            .collect();
        self.noise.add(&noise.values, &mut values);
        self.batch_pending = false;
        let scale = gamma / f64::from(self.plan.batch_expected());
        Ok(values.into_iter().map(|value| (value as f64 * scale) as f32).collect())
    }

    /// Releases the round's one count, to which each record may add at most 1.
    ///
    /// The result may be negative; its noise has σ = m/√(2ρ), where m is the largest number of
    /// records of one unit.
    ///
    /// # Errors
    /// [`PrivacyError::MetricNotPlanned`] if the plan has no ρ for it,
    /// [`PrivacyError::MetricAlreadyReleased`] the second time, and those of the noise.
    pub fn release_count(&mut self, value: u64) -> Result<i64, PrivacyError> {
        let rho = self.plan.metrics_rho_per_round();
        if rho == 0.0 {
            return Err(PrivacyError::MetricNotPlanned);
        }
        if self.metric_released {
            return Err(PrivacyError::MetricAlreadyReleased);
        }
        self.metric_released = true;
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        self.noise.release_integer(value, count_sigma(rho, self.plan.unit()))
    }

    /// Releases the round's one sum of losses, in units of [`LossRequest::UNIT`]; may be negative.
    ///
    /// `losses`: one of each record, in nats.
    ///
    /// # Errors
    /// [`PrivacyError::MetricNotPlanned`] if the plan asks for none,
    /// [`PrivacyError::MetricAlreadyReleased`] the second time, and those of the noise.
    ///
    /// [`LossRequest::UNIT`]: crate::LossRequest::UNIT
    pub fn release_loss_sum(&mut self, losses: &[f32]) -> Result<i64, PrivacyError> {
        let request = self.plan.loss().ok_or(PrivacyError::MetricNotPlanned)?;
        if self.loss_released {
            return Err(PrivacyError::MetricAlreadyReleased);
        }
        self.loss_released = true;
        self.noise.release_integer(request.sum(losses), request.sigma(self.plan.unit()))
    }

    /// Ends the round: `value`, computed from the session's results alone, may leave.
    ///
    /// Steps that were not taken are paid for all the same.
    pub fn finish<T>(self, value: T) -> Released<T> {
        self.reservation.release(value)
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("key", self.reservation.key())
            .field("steps_left", &self.steps_left)
            .field("batch_pending", &self.batch_pending)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
