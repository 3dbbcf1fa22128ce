//! Canaries: does one released model tell which of many records were in?
//!
//! Each of m canaries is put into a data set of nothing else with probability 1/2, a round is trained
//! and released through the deployed path ([`local_round`]) with noise of the operating system's, and
//! each canary is scored by the released change alone. [`audit_scores`] then bounds ε from below.
//!
//! Canaries are built to be seen as well as any record can be (Dirac canaries, Nasr et al. 2023): a
//! canary has one feature of its own, so its clipped gradient is alone in its coordinates. Records of
//! real data share theirs, and an audit with them has no power in a short run.
//!
//! **PASS is said only with power.** The same canaries are trained again with a third of the noise;
//! unless at least 80 % of those controls are found out, the verdict is INCONCLUSIVE. A defect that
//! weakens the noise by less, by half say, is below what one run can show: see
//! [`replay`](super::replay) and [`noise`](super::noise).

use comity_burn_models::{Device, LocalRound, RoundError, all_cores, local_round};
use comity_datasets::{Contract, Dataset, Scale};
use comity_federation::{ClientId, Parameters, Plan};
use comity_privacy::audit::one_run::{OneRunAudit, audit_scores};
use comity_privacy::{
    Ledger, Limit, Noise, NoiseKind, PrivacyError, PrivacyPlan, Randomness, ReservationKey,
};
use rand_core::{Rng, SeedableRng};
use serde::Serialize;

use super::Verdict;
use crate::SimulationError;

/// How much of the noise the controls have.
const CONTROL_NOISE: i64 = 3;
/// Controls that are trained.
const N_CONTROLS: usize = 5;
/// Controls that have to be found out, or a clean result says nothing.
const CONTROLS_FOUND_MIN: usize = 4;
/// With this confidence both bounds hold together.
const CONFIDENCE: f64 = 0.95;
/// A canary's own feature: its gradient is far above the clipping norm, its logits stay small.
const FEATURE: f32 = 30.0;
/// The plan, but for the number of canaries, half of it, and the budget.
const PLAN: &str = include_str!("plans/canary.toml");

/// What one run with canaries came to.
#[derive(Clone, Debug, Serialize)]
pub struct CanaryAudit {
    /// What it comes to.
    pub verdict: Verdict,
    /// The ε that the plan accounts for, at `audit.delta`.
    pub claimed_epsilon: f64,
    /// The sampling rate.
    pub sampling_rate: f64,
    /// Steps of DP-SGD.
    pub n_steps: u32,
    /// Canaries.
    pub n_canaries: usize,
    /// What the released model shows.
    pub audit: OneRunAudit,
    /// Controls with a third of the noise.
    pub n_controls: usize,
    /// Those of them that were found out.
    pub n_controls_found: usize,
}

/// Trains a sandbox model on `n_canaries` canaries under (`epsilon`, `delta`) and audits its release.
///
/// `seed` makes labels and decides which canaries are in; noise and batches are the operating
/// system's. Of correct code, at most one run in 20 is called BROKEN, in practice far fewer.
///
/// # Errors
/// [`SimulationError::Audit`] unless `n_canaries` is 100 to 5,000; those of a budget that cannot be
/// met.
pub fn audit_canary(
    n_canaries: usize,
    epsilon: f64,
    delta: f64,
    seed: u64,
) -> Result<CanaryAudit, SimulationError> {
    if !(100..=5000).contains(&n_canaries) {
        return Err(SimulationError::Audit {
            reason: "the number of canaries must be 100 to 5000",
        });
    }
    let sandbox = Sandbox::new(n_canaries, epsilon, delta, seed)?;
    let claimed_epsilon = sandbox.privacy.epsilon_total().epsilon;
    let audit = sandbox.audit(delta, 1)?;
    let mut n_controls_found = 0;
    for _ in 0..N_CONTROLS {
        let control = sandbox.audit(delta, CONTROL_NOISE)?;
        n_controls_found += usize::from(control.epsilon() > claimed_epsilon);
    }
    let verdict = if audit.epsilon() > claimed_epsilon {
        Verdict::Broken
    } else if n_controls_found >= CONTROLS_FOUND_MIN {
        Verdict::Pass
    } else {
        Verdict::Inconclusive
    };
    Ok(CanaryAudit {
        verdict,
        claimed_epsilon,
        sampling_rate: sandbox.privacy.sampling_rate(),
        n_steps: sandbox.privacy.steps_per_round(),
        n_canaries,
        audit,
        n_controls: N_CONTROLS,
        n_controls_found,
    })
}

/// The canaries, and a plan that trains on those that are in.
struct Sandbox {
    plan: Plan,
    privacy: PrivacyPlan,
    client: ClientId,
    start: Parameters,
    data: Dataset,
    /// Label of each canary, and whether it is in.
    canaries: Vec<(u32, bool)>,
    device: Device,
}

impl Sandbox {
    fn new(n: usize, epsilon: f64, delta: f64, seed: u64) -> Result<Self, SimulationError> {
        let text = PLAN
            .replace("N_CANARIES", &n.to_string())
            .replace("N_BATCH", &(n / 2).to_string())
            .replace("EPSILON", &format!("{epsilon:?}"))
            .replace("DELTA", &format!("{delta:?}"));
        let plan = Plan::from_toml(&text)?;
        let named = plan.cohort.clients[0].clone();
        let privacy = plan.privacy_plan(&named)?.expect("the plan has differential privacy");
        let seed = blake3::derive_key("comity audit canaries v1", &seed.to_le_bytes());
        let mut rng = chacha20::ChaCha20Rng::from_seed(seed);
        let canaries: Vec<(u32, bool)> =
            (0..n).map(|_| (rng.next_u32() & 1, rng.next_u32() & 1 == 1)).collect();
        let (mut features, mut labels) = (Vec::new(), Vec::new());
        for (index, (label, _)) in canaries.iter().enumerate().filter(|(_, (_, is_in))| *is_in) {
            let mut own = vec![0.0; n];
            own[index] = FEATURE;
            features.extend(own);
            labels.push(*label);
        }
        let contract = Contract { shape: vec![n], n_classes: 2, scale: Scale::Real };
        Ok(Self {
            start: plan.manifest()?.initial_parameters(plan.seed),
            plan,
            privacy,
            client: named.id,
            data: Dataset::from_reals(&contract, features, labels)?,
            canaries,
            device: Device::flex(),
        })
    }

    /// Trains with noise divided by `divisor` and bounds ε by what is released.
    fn audit(&self, delta: f64, divisor: i64) -> Result<OneRunAudit, SimulationError> {
        let Randomness { sampling, noise, id } = Randomness::from_os().map_err(RoundError::from)?;
        let noise: Box<dyn Noise> =
            if divisor == 1 { noise } else { Box::new(Weakened { inner: noise, divisor }) };
        let randomness = Randomness { sampling, noise, id };
        let limit = Limit { budget: Some(self.privacy.budget()), exempt_allowed: false };
        let key = ReservationKey { run: "canary".to_owned(), round: 1 };
        let reservation = Ledger::new(limit)
            .reserve(&mut Vec::new(), key, self.privacy.charge(&randomness))
            .map_err(RoundError::from)?;
        let round = LocalRound {
            plan: &self.plan,
            plan_digest: self.plan.digest(),
            round: 1,
            client: &self.client,
            base: &self.start,
            dataset: &self.data,
            device: &self.device,
            n_threads: all_cores(),
        };
        let privacy = Some((&self.privacy, randomness));
        let trained = local_round(&round, None, privacy, reservation, &mut |_, _| {})?;
        let released = trained.release.into_value();
        // Weights are [class, feature]: a canary's steps raise its own class against the other.
        let (change, n) = (released.delta.values(), self.canaries.len());
        let scores: Vec<(f64, bool)> = self
            .canaries
            .iter()
            .enumerate()
            .map(|(index, (label, is_in))| {
                let of_class = |class: u32| f64::from(change[class as usize * n + index]);
                (of_class(*label) - of_class(1 - *label), *is_in)
            })
            .collect();
        Ok(audit_scores(&scores, delta, CONFIDENCE))
    }
}

/// Noise as it must not be, for the controls.
struct Weakened {
    inner: Box<dyn Noise>,
    divisor: i64,
}

impl Noise for Weakened {
    fn fork(&self, index: u64) -> Box<dyn Noise> {
        Box::new(Self { inner: self.inner.fork(index), divisor: self.divisor })
    }

    fn draw(
        &mut self,
        kind: NoiseKind,
        log2_sigma: u32,
        values: &mut [i64],
    ) -> Result<(), PrivacyError> {
        self.inner.draw(kind, log2_sigma, values)?;
        values.iter_mut().for_each(|value| *value /= self.divisor);
        Ok(())
    }

    fn release_integer(&mut self, value: i64, sigma: f64) -> Result<i64, PrivacyError> {
        self.inner.release_integer(value, sigma)
    }
}
