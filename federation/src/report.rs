//! What a run looks like from outside: for `run show`, `run list`, dashboards and reports.

use comity_privacy::Estimate;
use serde::{Deserialize, Serialize};

use crate::{ClientId, ModelDigest, PlanDigest, Receipt, RunId, Time, UpdateDigest};

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunStatus {
    /// Waiting for the named clients to agree to the plan.
    Gathering,
    /// A round is open.
    Training,
    /// A round's updates are being summed.
    Aggregating,
    /// All rounds are done.
    Finished,
    /// Ended early; the reason is in the report.
    Aborted,
}

impl RunStatus {
    /// Whether nothing more will happen.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Finished | Self::Aborted)
    }

    /// The status as one word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gathering => "gathering",
            Self::Training => "training",
            Self::Aggregating => "aggregating",
            Self::Finished => "finished",
            Self::Aborted => "aborted",
        }
    }
}

/// How far a named client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientStanding {
    /// The plan names it; it has not answered.
    #[serde(alias = "absent")]
    Registered,
    /// Agreed to the plan, and is asked for nothing at the moment.
    #[serde(alias = "present")]
    Configured,
    /// Was asked for an update, which has not come.
    Training,
    /// Its update of the open round is here.
    Contributed,
    /// Its update did not come before its round closed.
    Late,
    /// Declined the plan; the note says why.
    Declined,
    /// The operator excluded it; the note says why.
    Excluded,
}

impl ClientStanding {
    /// The standing as one word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Registered => "registered",
            Self::Configured => "configured",
            Self::Training => "training",
            Self::Contributed => "contributed",
            Self::Late => "late",
            Self::Declined => "declined",
            Self::Excluded => "excluded",
        }
    }
}

/// One named client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientReport {
    /// Who.
    pub client: ClientId,
    /// How far it is.
    pub standing: ClientStanding,
    /// Why it declined, was excluded, or did not contribute.
    pub note: Option<String>,
    /// Whether a connection of it is open; `None` where nobody can tell, as in a simulation.
    #[serde(default)]
    pub connected: Option<bool>,
}

/// One accepted contribution.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContributionReport {
    /// Who.
    pub client: ClientId,
    /// Weight in the mean, public by plan.
    pub weight: u64,
    /// Bytes of the update on the wire, without framing.
    pub bytes: u64,
    /// Digest of the update.
    pub update: UpdateDigest,
    /// Released (noisy) number of the client's own records that the round's starting model
    /// classifies correctly; local DP, paid from the client's budget.
    pub n_correct: Option<i64>,
    /// Released (noisy) sum of those records' losses, in units of 2^-10 nats.
    #[serde(default)]
    pub loss_sum: Option<i64>,
    /// When it was accepted.
    pub at: Time,
    /// How many rounds older than this one the round is for which it was trained.
    #[serde(default)]
    pub staleness: u32,
}

impl ContributionReport {
    /// The receipt for this contribution, which counts in round `counts_in` of `run`.
    #[must_use]
    pub fn receipt(
        &self,
        federation: &str,
        run: &RunId,
        plan: PlanDigest,
        counts_in: u32,
    ) -> Receipt {
        Receipt {
            federation: federation.to_owned(),
            run: run.clone(),
            round: counts_in.saturating_sub(self.staleness),
            plan,
            client: self.client.clone(),
            update: self.update,
            weight: self.weight,
            accepted: self.at,
        }
    }
}

/// One round.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoundReport {
    /// Counted from 1; 0 released statistics before training.
    pub round: u32,
    /// When its clients were invited.
    pub opened: Time,
    /// When its model was published.
    pub closed: Option<Time>,
    /// Model from which the round started.
    pub base: ModelDigest,
    /// Model that the round produced.
    pub model: Option<ModelDigest>,
    /// Who was invited.
    pub cohort: Vec<ClientId>,
    /// Who contributed what.
    pub contributions: Vec<ContributionReport>,
    /// Who was invited and is not in the sum, and why.
    pub missing: Vec<(ClientId, String)>,
}

impl RoundReport {
    /// Whether the contribution of `client` whose delta is `update` counts in this round.
    #[must_use]
    pub fn counts(&self, client: &ClientId, update: UpdateDigest) -> bool {
        self.contributions.iter().any(|c| c.client == *client && c.update == update)
    }
}

/// A whole run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunReport {
    /// Which run.
    pub run: RunId,
    /// The plan's name.
    pub name: String,
    /// Digest of the plan.
    pub plan: PlanDigest,
    /// Where it stands.
    pub status: RunStatus,
    /// Why it was aborted.
    pub reason: Option<String>,
    /// Open round, or the last one; 0 while gathering.
    pub round: u32,
    /// Rounds in the plan.
    pub rounds: u32,
    /// When it was launched.
    pub started: Time,
    /// When it ended.
    pub ended: Option<Time>,
    /// Latest model.
    pub model: ModelDigest,
    /// The named clients.
    pub clients: Vec<ClientReport>,
    /// The rounds so far, oldest first.
    pub history: Vec<RoundReport>,
    /// What the clients' statistics say together, in the order of the plan's queries; noisy, each
    /// client's by itself (local DP).
    #[serde(default)]
    pub statistics: Option<Vec<Estimate>>,
}
