//! Who takes part in a run, as a plan names them.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{check, clients};
use crate::accumulator::WEIGHT_TOTAL_MAX;
use crate::{ClientId, PlanError};

/// Most clients in a plan.
pub(super) const N_CLIENTS_MAX: usize = 10_000;

/// Who takes part, and how many must.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CohortPlan {
    /// Fewest contributions that close a round.
    pub min_clients: u32,
    /// Fewest countries among them.
    pub min_countries: u32,
    /// How long the run waits for clients to agree to the plan.
    #[serde(with = "humantime_serde")]
    pub gathering_deadline: Duration,
    /// How long a round waits for updates.
    #[serde(with = "humantime_serde")]
    pub round_deadline: Duration,
    /// How contributions are weighted.
    pub weights: WeightRule,
    /// The clients, by name; or, for a federation of many that are alike, `{ n, countries, records }`.
    #[serde(deserialize_with = "clients::named_or_many")]
    pub clients: Vec<NamedClient>,
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
