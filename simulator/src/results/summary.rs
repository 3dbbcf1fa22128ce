//! How a run ended, in one small file.

use std::collections::BTreeMap;

use comity_federation::{Country, ModelDigest, Plan, PlanDigest, PrivacyTerms, RunStatus};
use comity_privacy::{Estimate, PrivacyUnit};
use serde::Serialize;

use crate::{Fairness, NoiseMode, RoundScore, SimulationError, SimulationResult};

/// What `summary.json` holds; the first keys are those of the demo's.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Rounds that were finished.
    pub rounds: usize,
    /// Of the last model on the public test set.
    pub accuracy: Option<f64>,
    /// By country: the largest among its clients; `null` without DP.
    pub epsilon: BTreeMap<Country, Option<f64>>,
    /// The plan's δ; `null` without DP.
    pub delta: Option<f64>,
    /// Whom ε protects; `null` without DP.
    pub unit: Option<PrivacyUnit>,
    /// Wall-clock time of the whole run.
    pub seconds: f64,
    /// SHA-256 of the bytes of model.safetensors; `null` where none was written.
    pub model_sha256: Option<String>,
    /// Finished or aborted.
    pub status: RunStatus,
    /// Why it was aborted.
    pub reason: Option<String>,
    /// Where the noise came from.
    pub noise: &'static str,
    /// Digest of the plan.
    pub plan: PlanDigest,
    /// Digest of the last model.
    pub model: ModelDigest,
    /// What the clients' statistics say together, in the order of the plan's queries; noisy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub statistics: Option<Vec<Estimate>>,
    /// How the last model does at each client after fine-tuning there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fine_tuned: Option<Fairness>,
    /// A score a round.
    pub history: Vec<RoundScore>,
}

impl Summary {
    /// Of `result`, which took `seconds`.
    ///
    /// # Errors
    /// [`SimulationError::Plan`] if the plan's budget means nothing, which a validated plan's does not.
    pub fn of(
        plan: &Plan,
        result: &SimulationResult,
        noise: NoiseMode,
        seconds: f64,
    ) -> Result<Self, SimulationError> {
        Ok(Self {
            rounds: result.rounds.len(),
            accuracy: result.rounds.last().map(|score| score.accuracy),
            epsilon: result.rounds.last().map(|score| score.epsilon.clone()).unwrap_or_default(),
            unit: plan.unit(),
            delta: plan.budget()?.map(|budget| budget.delta.get()),
            seconds,
            model_sha256: None,
            status: result.report.status,
            reason: result.report.reason.clone(),
            noise: noise_label(plan, noise),
            plan: result.report.plan,
            model: result.report.model,
            statistics: result.report.statistics.clone(),
            fine_tuned: result.fine_tuned,
            history: result.rounds.clone(),
        })
    }
}

/// How a report names the noise of a run of `plan`.
#[must_use]
pub fn noise_label(plan: &Plan, noise: NoiseMode) -> &'static str {
    match plan.privacy {
        PrivacyTerms::DpSgd { .. } | PrivacyTerms::DpFedavg { .. } => noise.label(),
        PrivacyTerms::None => "no differential privacy",
    }
}
