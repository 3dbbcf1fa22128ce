//! Who takes part in a run, as a plan names them.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{check, clients};
use crate::accumulator::WEIGHT_TOTAL_MAX;
use crate::{ClientId, PlanError};

/// Most clients in a plan.
pub(super) const N_CLIENTS_MAX: usize = 10_000;

/// Most rounds by which an update may be older than the round in which it counts.
pub(super) const STALENESS_MAX: u32 = 100;

/// Who takes part, and how many must.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CohortPlan {
    /// Fewest contributions that close a round.
    pub min_clients: u32,
    /// Fewest countries among them.
    pub min_countries: u32,
    /// Least share of the weight of all named clients that contributions must have together, in
    /// (0, 1], to the millionth.  Absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_weight_share: Option<f64>,
    /// How long the run waits for clients to agree to the plan.
    #[serde(with = "humantime_serde")]
    pub gathering_deadline: Duration,
    /// How long a round waits for updates.
    #[serde(with = "humantime_serde")]
    pub round_deadline: Duration,
    /// What becomes of an update that arrives after its round has closed.  Absent: it is rejected.
    #[serde(default, skip_serializing_if = "LatePolicy::is_reject")]
    pub late: LatePolicy,
    /// How many clients a round asks.  Absent: everybody who is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<Sample>,
    /// How contributions are weighted.
    pub weights: WeightRule,
    /// The clients, by name; or, for a federation of many that are alike, `{ n, countries, records }`.
    #[serde(deserialize_with = "clients::named_or_many")]
    pub clients: Vec<NamedClient>,
}

/// What becomes of an update that arrives after its round has closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum LatePolicy {
    /// It is not wanted any more.
    #[default]
    Reject,
    /// It counts, with its whole weight, in the round that is open when it arrives; its client is asked
    /// for no other until then.
    Carry {
        /// How many rounds later it may still count, at least 1.
        rounds_max: u32,
    },
}

impl LatePolicy {
    fn is_reject(&self) -> bool {
        *self == Self::Reject
    }
}

/// How many clients a round asks: a sample of those who are there, drawn anew for each round from the
/// plan's seed.  No privacy is claimed from it: everybody can compute it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    /// The round closes with the first so many contributions.
    pub clients: u32,
    /// So many more are asked, for those who will be slow (over-selection, Bonawitz et al. 2019,
    /// section 2.2).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub over_selection: u32,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// How contributions are weighted; never by a private count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightRule {
    /// Every client counts the same.
    Uniform,
    /// By the declared number of records.
    Declared,
}

/// One client that the plan names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedClient {
    /// Such as `KR/seoul-lab`.
    pub id: ClientId,
    /// Number of records that the institution declares in public, rounded; sets the sampling rate
    /// where records are protected.
    pub records: u64,
    /// Number of persons that the institution declares in public, rounded; sets the sampling rate
    /// where persons are protected, and is needed only then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persons: Option<u64>,
}

impl CohortPlan {
    /// The weight of a client's contribution.
    #[must_use]
    pub fn weight(&self, client: &NamedClient) -> u64 {
        match self.weights {
            WeightRule::Uniform => 1,
            WeightRule::Declared => client.records,
        }
    }

    /// Checks every key.
    pub(super) fn validate(&self) -> Result<(), PlanError> {
        check(
            (1..=N_CLIENTS_MAX).contains(&self.clients.len()),
            "cohort.clients",
            "name 1 to 10000 clients",
        )?;
        let ids: BTreeSet<_> = self.clients.iter().map(|c| &c.id).collect();
        let countries: BTreeSet<_> = ids.iter().map(|id| id.country()).collect();
        check(ids.len() == self.clients.len(), "cohort.clients", "a client is named twice")?;
        check(
            (1..=ids.len()).contains(&(self.min_clients as usize)),
            "cohort.min_clients",
            "use 1 to the number of named clients",
        )?;
        check(
            (1..=countries.len()).contains(&(self.min_countries as usize)),
            "cohort.min_countries",
            "use 1 to the number of named countries",
        )?;
        if let Some(share) = self.min_weight_share {
            check(
                (super::MILLIONTH..=1.0).contains(&share),
                "cohort.min_weight_share",
                "use a number in (0, 1], or leave it out",
            )?;
        }
        if let LatePolicy::Carry { rounds_max } = self.late {
            check(
                (1..=STALENESS_MAX).contains(&rounds_max),
                "cohort.late.carry.rounds_max",
                "use 1 to 100, or late = \"reject\"",
            )?;
        }
        if let Some(sample) = self.sample {
            check(
                sample.clients >= self.min_clients && sample.clients as usize <= ids.len(),
                "cohort.sample.clients",
                "use cohort.min_clients to the number of named clients",
            )?;
            check(
                sample.over_selection as usize <= ids.len() - sample.clients as usize,
                "cohort.sample.over_selection",
                "clients and over_selection together pass the number of named clients",
            )?;
        }
        let second = Duration::from_secs(1);
        check(self.gathering_deadline >= second, "cohort.gathering_deadline", "use at least 1s")?;
        check(self.round_deadline >= second, "cohort.round_deadline", "use at least 1s")?;
        check(
            self.clients.iter().all(|c| (1..=1 << 40).contains(&c.records)),
            "cohort.clients.records",
            "declare 1 to 2^40 records",
        )?;
        let weight_total =
            self.clients.iter().try_fold(0u64, |sum, c| sum.checked_add(self.weight(c)));
        check(
            weight_total.is_some_and(|total| total <= WEIGHT_TOTAL_MAX),
            "cohort.clients.records",
            "the declared records of all clients together pass 2^32; use weights = \"uniform\"",
        )
    }
}
