//! Rooms 2 to 4 on the way of an update: train from the round's model, take the difference in
//! fixed point, and let it out by the one door.  Shared by client and simulator, so that what is
//! simulated is what is deployed.

use std::num::NonZero;

use comity_datasets::{Dataset, Normalise};
use comity_federation::{
    ClientId, ClientState, Delta, FixedPoint, FixedPointError, Parameters, Plan, PlanDigest,
    PlanError, RoundOutput, Rounding,
};
use comity_privacy::{PrivacyError, PrivacyPlan, Randomness, Released, Reservation};

use crate::contract::plan_units;
use crate::evaluate::losses;
use crate::own::Own;
use crate::{Device, TrainError, TrainingTask, normalisation, train_plain, train_private};

/// Records that are classified at once when the round's model is scored.
const EVALUATION_BATCH: usize = 512;

/// One client's part of one round.
#[derive(Clone, Copy, Debug)]
pub struct LocalRound<'a> {
    /// The plan that was agreed to.
    pub plan: &'a Plan,
    /// Its digest: to work it out anew for each of many clients would cost more than a small round.
    pub plan_digest: PlanDigest,
    /// Counted from 1; 0 asks for statistics.
    pub round: u32,
    /// Who trains; with the plan's seed and the round it orders the batches where there is no DP.
    pub client: &'a ClientId,
    /// The round's model with what the server remembers, as [`Plan::manifest`] lays it out.
    pub base: &'a Parameters,
    /// The client's records.
    pub dataset: &'a Dataset,
    /// Where to compute.
    pub device: &'a Device,
    /// On how many cores, where the device is the CPU; the result does not depend on it.
    pub n_threads: NonZero<usize>,
}

/// Why a round cannot be trained.  Never holds rows, weights or gradients.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RoundError {
    /// Training or evaluation cannot go on.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// The ledger or the privacy plan refused.
    #[error(transparent)]
    Privacy(#[from] PrivacyError),
    /// The change does not fit the plan's fixed point.
    #[error(transparent)]
    FixedPoint(#[from] FixedPointError),
    /// The plan was not validated.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The round's model is of another plan.
    #[error("the round's model has {got} values, the plan wants {expected}; fetch it again")]
    Base {
        /// By the plan.
        expected: usize,
        /// Given.
        got: usize,
    },
    /// What the client keeps is of another plan.
    #[error(
        "what this client keeps of the run has {got} values, the plan wants {expected}; put the node's \
         state back from a backup"
    )]
    State {
        /// By the plan.
        expected: usize,
        /// Given.
        got: usize,
    },
}

/// What a round leaves with its client, and what may leave it.
#[derive(Debug)]
pub struct LocalResult {
    /// What goes out by the door.
    pub release: Released<RoundOutput>,
    /// What the client keeps for its next round, in place of what it kept before: stored no later than the
    /// release is recorded, and never sent.  `None` where the plan keeps nothing.
    pub state: Option<ClientState>,
}

/// The result of a round after which the client keeps nothing.
impl From<Released<RoundOutput>> for LocalResult {
    fn from(release: Released<RoundOutput>) -> Self {
        Self { release, state: None }
    }
}

/// Trains one round, or in round 0 asks the plan's statistics, and releases what it gives; `reservation` was debited before.
///
/// `privacy` is the client's plan with the round's randomness, or `None` where the plan trains
/// without DP; then the reservation must be exempt.  `state` is what the client kept after its round
/// before, `None` in its first one.  `progress` is told the steps done and their
/// number, both of which are public.
///
/// # Errors
/// [`RoundError`]; nothing is released then, though what was reserved remains debited.
pub fn local_round(
    task: &LocalRound<'_>,
    state: Option<&ClientState>,
    privacy: Option<(&PrivacyPlan, Randomness)>,
    reservation: Reservation,
    progress: &mut dyn FnMut(u32, u32),
) -> Result<LocalResult, RoundError> {
    let own = Own::of(task.plan, task.base, state)?;
    let start = own.start();
    let correction = own.correction();
    let dataset = plan_units(task.plan, task.dataset)?;
    let dataset = dataset.as_ref();
    let normalise = normalisation(&task.plan.data);
    let training = TrainingTask {
        spec: &task.plan.model,
        start: &start,
        dataset,
        normalise,
        training: &task.plan.training,
        n_steps: declared_steps(task),
        correction: correction.as_ref(),
        device: task.device,
        n_threads: task.n_threads,
    };
    let grid = FixedPoint::new(task.plan.aggregation.fixed_point_bits).ok_or_else(|| {
        PlanError::Invalid {
            key: "aggregation.fixed_point_bits",
            reason: format!("use 0 to {}", FixedPoint::BITS_MAX),
        }
    })?;
    let Some((plan, randomness)) = privacy else {
        let after = train_plain(&training, batch_seed(task), progress)?;
        let delta = own.delta(grid, &after)?;
        let state = own.next(&after, &delta, grid, (task.round, rounding(task)));
        let output = RoundOutput { delta, n_correct: None, loss_sum: None };
        return Ok(LocalResult { release: reservation.release_exempt(output)?, state });
    };
    if task.round == 0 {
        let release = statistics(dataset, normalise, plan, randomness, reservation)?;
        // Nothing was trained, so what is kept stays.
        return Ok(LocalResult { release, state: state.cloned() });
    }
    let mut session = plan.session(reservation, randomness)?;
    let asks_count = plan.metrics_rho_per_round() > 0.0;
    let (mut n_correct, mut loss_sum) = (None, None);
    if asks_count || plan.loss().is_some() {
        // The true figures live only here; what leaves is noisy. No record at all counts 0: an error
        // would tell that there is none.
        let (count, each) = if dataset.is_empty() {
            (0, Vec::new())
        } else {
            let (spec, device, n_threads) = (&task.plan.model, task.device, task.n_threads);
            losses(spec, &start, dataset, normalise, device, EVALUATION_BATCH, n_threads)?
        };
        if asks_count {
            n_correct = Some(session.release_count(count as u64)?);
        }
        if plan.loss().is_some() {
            loss_sum = Some(session.release_loss_sum(&each)?);
        }
    }
    let after = train_private(&training, &mut session, progress)?;
    let delta = own.delta(grid, &after)?;
    let state = own.next(&after, &delta, grid, (task.round, rounding(task)));
    Ok(LocalResult { release: session.finish(RoundOutput { delta, n_correct, loss_sum }), state })
}

/// Round 0: what the plan asks of the data before training.
fn statistics(
    dataset: &Dataset,
    normalise: Normalise,
    plan: &PrivacyPlan,
    randomness: Randomness,
    reservation: Reservation,
) -> Result<Released<RoundOutput>, RoundError> {
    let mut tally = plan.tally()?;
    let n_features: usize = dataset.shape().iter().product();
    let rows: Vec<usize> = (0..dataset.len()).collect();
    for rows in rows.chunks(EVALUATION_BATCH) {
        let batch = dataset.batch(rows, normalise);
        for (features, label) in batch.features.chunks(n_features).zip(&batch.labels) {
            tally.add(features, *label)?;
        }
    }
    Ok(plan.release_statistics(reservation, randomness, tally, |sums| RoundOutput {
        delta: Delta::new(sums),
        n_correct: None,
        loss_sum: None,
    })?)
}

/// The number of steps that follows from what the client declares, where the plan counts by it.
fn declared_steps(task: &LocalRound<'_>) -> Option<u32> {
    let named = || task.plan.client(task.client);
    let counts = task.plan.aggregation.strategy.counts_declared_steps();
    counts.then(named).flatten().map(|named| task.plan.steps_per_round(named))
}

/// How the update's encoding rounds.
fn rounding<'a>(task: &LocalRound<'a>) -> Rounding<'a> {
    Rounding { plan: task.plan_digest, round: task.round, client: task.client }
}

/// Seeds the order of batches where there is no DP: the same in simulation and deployment.
fn batch_seed(task: &LocalRound<'_>) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("comity batch order v1");
    hasher.update(&task.plan_digest.0);
    hasher.update(format!("{} {}", task.client, task.round).as_bytes());
    *hasher.finalize().as_bytes()
}
