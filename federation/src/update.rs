//! What leaves a client (an update), and the same thing once it has arrived (a contribution).

use comity_privacy::Released;
use serde::{Deserialize, Serialize};

use crate::{ModelDigest, PlanDigest, RunId, UpdateDigest};

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

    /// Little-endian bytes, four a parameter: what is stored, sent and hashed.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|v| v.to_le_bytes()).collect()
    }
}

/// What one round of a client lets out of the country, and nothing else: a [`Released`] delta
/// and, where the plan asks for it, a released count.
#[derive(Debug)]
pub struct Update {
    /// For which run.
    pub run: RunId,
    /// For which round, counted from 1; 0 for statistics before training.
    pub round: u32,
    /// Under which plan.
    pub plan: PlanDigest,
    /// The model from which training started.
    pub base: ModelDigest,
    /// The released change and its receipt.
    pub release: Released<RoundOutput>,
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
    /// The delta's bytes, which are sent and stored under the digest of [`contribution`](Self::contribution).
    #[must_use]
    pub fn delta_bytes(&self) -> Vec<u8> {
        self.release.value().delta.to_bytes()
    }

    /// The header that travels before the delta's bytes.
    #[must_use]
    pub fn contribution(&self) -> Contribution {
        let bytes = self.delta_bytes();
        Contribution {
            round: self.round,
            plan: self.plan,
            base: self.base,
            update: UpdateDigest(*blake3::hash(&bytes).as_bytes()),
            n_parameters: self.release.value().delta.values().len() as u64,
            n_correct: self.release.value().n_correct,
            loss_sum: self.release.value().loss_sum,
        }
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
        self.n_parameters.saturating_mul(4)
    }
}
