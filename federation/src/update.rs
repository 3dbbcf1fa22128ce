//! What leaves a client (an update), and the same thing once it has arrived (a contribution).

use comity_privacy::Released;
use serde::{Deserialize, Serialize};

use crate::{
    ClientId, ModelDigest, Plan, PlanDigest, Rounding, RunId, Task, UpdateDigest, UpdateEncoding,
};

/// A model's change in fixed point, `[n_parameters]`; see [`FixedPoint`](crate::FixedPoint).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta(Vec<i32>);

impl Delta {
    /// Wraps `values`, `[n_parameters]`.
    #[must_use]
    pub fn new(values: Vec<i32>) -> Self {
        Self(values)
    }

    /// The values, `[n_parameters]`.
    #[must_use]
    pub fn values(&self) -> &[i32] {
        &self.0
    }
}

/// What one round of a client lets out of the country, and nothing else: a [`Released`] delta
/// and, where the plan asks for it, released metrics.
#[derive(Debug)]
pub struct Update {
    /// For which run.
    pub run: RunId,
    /// The released change and its receipt.
    pub release: Released<RoundOutput>,
    bytes: Vec<u8>,
    contribution: Contribution,
}

/// What leaves through the door in one round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoundOutput {
    /// The model's change, or in round 0 the noisy sums of the statistics.
    pub delta: Delta,
    /// Noisy count of own records that the starting model classified correctly.
    pub n_correct: Option<i64>,
    /// Noisy sum of the own records' losses under the starting model, in units of 2^-10 nats.
    pub loss_sum: Option<i64>,
}

impl Update {
    /// The update with which `client` answers `task` under `plan`.
    #[must_use]
    pub fn new(
        task: &Task,
        plan: &Plan,
        client: &ClientId,
        release: Released<RoundOutput>,
    ) -> Self {
        let RoundOutput { delta, n_correct, loss_sum } = release.value();
        let encoding = plan.update_encoding(task.round);
        let rounding = Rounding { plan: task.plan, round: task.round, client };
        let bytes = encoding.encode(delta.values(), rounding);
        let contribution = Contribution {
            round: task.round,
            plan: task.plan,
            base: task.model,
            update: UpdateDigest(*blake3::hash(&bytes).as_bytes()),
            n_parameters: delta.values().len() as u64,
            encoding,
            n_correct: *n_correct,
            loss_sum: *loss_sum,
        };
        Self { run: task.run.clone(), release, bytes, contribution }
    }

    /// The delta's bytes, which are sent and stored under the digest of [`contribution`](Self::contribution).
    #[must_use]
    pub fn delta_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The header that travels before the delta's bytes.
    #[must_use]
    pub fn contribution(&self) -> &Contribution {
        &self.contribution
    }
}

/// What an update claims to be when it arrives; its delta lies in the blob named by `update`.
///
/// It is another type than [`Update`] on purpose: a patched client can lie, so everything here
/// is only a claim until [`Run::step`](crate::Run::step) has checked it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contribution {
    /// For which round, counted from 1; 0 for statistics before training.
    pub round: u32,
    /// Under which plan.
    pub plan: PlanDigest,
    /// The model from which training started.
    pub base: ModelDigest,
    /// BLAKE3 of the delta's bytes.
    pub update: UpdateDigest,
    /// Number of values in the delta.
    pub n_parameters: u64,
    /// How they lie in its bytes.
    #[serde(default, skip_serializing_if = "UpdateEncoding::is_exact")]
    pub encoding: UpdateEncoding,
    /// Noisy count of own records classified correctly.
    pub n_correct: Option<i64>,
    /// Noisy sum of own records' losses, in units of 2^-10 nats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_sum: Option<i64>,
}

impl Contribution {
    /// Length of the delta's bytes.
    #[must_use]
    pub fn delta_bytes(&self) -> u64 {
        self.encoding.bytes(self.n_parameters)
    }
}
