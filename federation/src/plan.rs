//! The plan of a run: data, never code.  Parsed from TOML, validated whole, named by a digest.

mod aggregation;
mod clients;
mod cohort;
mod server_step;
mod strategy;
mod training;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use comity_privacy::{
    AnalyticsRequest, Budget, Estimate, LossRequest, PrivacyPlan, PrivacyRequest, PrivacyUnit,
    Query, Relation,
};
use serde::{Deserialize, Serialize};

pub use aggregation::Aggregation;
pub use cohort::{CohortPlan, LatePolicy, NamedClient, Sample, WeightRule};
pub use server_step::ServerStep;
pub use strategy::Strategy;
pub use training::{Optimizer, Training};

use crate::{
    ClientId, Layer, Manifest, ModelSpec, Parameters, PlanDigest, PlanError, TensorSpec,
    UpdateEncoding,
};

/// The tensor of means with which a model begins that standardises features; the one of standard
/// deviations follows it.
pub(crate) const STANDARDISE_MEAN: &str = "layers.0.mean";
/// How the names of tensors begin that the strategy remembers.
pub const SERVER_STATE: &str = "server.";
/// Most rounds in a run.
const ROUNDS_MAX: u32 = 100_000;
/// Most values in one example.
const EXAMPLE_VALUES_MAX: usize = 1 << 26;

/// Everything that a run does, and to which every client agrees by its [`PlanDigest`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Short name, `a-z`, `0-9` and `-`.
    pub name: String,
    /// What the model is for, in a sentence that a data steward reads.
    pub purpose: String,
    /// Seeds the initial model, and the order of batches where there is no DP.
    pub seed: u64,
    /// Number of rounds.
    pub rounds: u32,
    /// What every client's data must look like.
    pub data: DataContract,
    /// The model, layer by layer.
    pub model: ModelSpec,
    /// What a client does in a round.
    pub training: Training,
    /// What protects the people in the data.
    pub privacy: PrivacyTerms,
    /// What is asked of the data once, before training; absent: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub analytics: Option<Analytics>,
    /// Who takes part, and how many must.
    pub cohort: CohortPlan,
    /// The server's step.
    pub aggregation: Aggregation,
}

/// What every client's data must look like.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataContract {
    /// Shape of one example: `[features]` or `[channels, height, width]`.
    pub shape: Vec<usize>,
    /// Number of classes; labels are `0..classes`.
    pub classes: usize,
    /// Public constants that normalise every value.
    pub normalise: Normalise,
}

/// `(value - mean) / std`, with constants that are public by plan; bytes are first divided by 255.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Normalise {
    /// Subtracted.
    pub mean: f64,
    /// Divided by; positive.
    pub std: f64,
}

/// What protects the people in the data.  There is no default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "snake_case", deny_unknown_fields)]
pub enum PrivacyTerms {
    /// Ordinary training.  A client takes part only if its institution allows it.
    None,
    /// DP-SGD at every client (Abadi et al. 2016), true Poisson sampling, exact noise.
    DpSgd {
        /// Who is protected.
        unit: PrivacyUnit,
        /// Everything that a client sends in the whole run is (epsilon, delta)-DP.
        epsilon: f64,
        /// See `epsilon`.
        delta: f64,
        /// Bound on one unit's gradient, L2.
        clip_norm_l2: f64,
        /// What else may leave, paid from the same budget; absent: nothing.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        metrics: Option<DpMetrics>,
    },
    /// Noise on the sum of whole institutions' clipped changes (McMahan et al. 2018, "Learning
    /// differentially private recurrent language models"), for simulated federations of many: the one
    /// that adds the noise sees each change in clear, so deployed clients decline it.
    DpFedavg {
        /// The models of the whole run are (epsilon, delta)-DP for each institution.
        epsilon: f64,
        /// See `epsilon`.
        delta: f64,
        /// Bound on one institution's change of a round's model, L2; with `clip_adaptive`, the first one.
        clip_norm_l2: f64,
        /// Lets the bound follow the changes' norms (Andrew et al. 2021); absent: it stays.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        clip_adaptive: Option<ClipAdaptive>,
        /// Expected number of institutions in a round: each takes part with the same probability,
        /// independently of the others.
        cohort_expected: u32,
    },
}

/// A clipping norm that follows a quantile of the institutions' norms (Andrew et al. 2021, "Differentially private
/// learning with adaptive clipping", <https://arxiv.org/abs/1905.03871>), at no further cost: the noisy count of
/// those below the bound shares the noise of their changes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipAdaptive {
    /// Share of the institutions whose changes are not to be clipped, in (0, 1).
    pub quantile: f64,
    /// How fast the bound follows, positive; the paper's is 0.2.
    pub learning_rate: f64,
    /// Standard deviation of the noise in the count, which has to be more than half the noise multiplier;
    /// absent: a twentieth of the expected cohort, as in the paper.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count_noise_std: Option<f64>,
}

impl ClipAdaptive {
    /// Standard deviation of the noise in the count of a cohort of so many.
    #[must_use]
    pub fn count_noise_std(&self, cohort_expected: u32) -> f64 {
        self.count_noise_std.unwrap_or(f64::from(cohort_expected) / 20.0)
    }
}

/// Metrics of the round's model on a client's own records, which leave it with noise.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DpMetrics {
    /// zCDP cost a round of the number of own records that the round's model gets right; absent: it
    /// does not leave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy_rho_per_round: Option<f64>,
    /// The sum of the records' losses; absent: it does not leave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<LossRequest>,
}

/// Statistics that every client releases with noise before the first round, paid from the run's budget.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Analytics {
    /// zCDP cost of all queries together.
    pub rho: f64,
    /// What is asked, of features as the plan's constants normalise them.
    pub queries: Vec<Query>,
}

/// `value` in millionths, in which shares are compared without rounding.
pub(crate) fn millionths(value: f64) -> u64 {
    (value / MILLIONTH).round() as u64
}

/// One of [`millionths`].
const MILLIONTH: f64 = 1e-6;

fn check(holds: bool, key: &'static str, reason: &str) -> Result<(), PlanError> {
    if holds { Ok(()) } else { Err(PlanError::invalid(key, reason.to_owned())) }
}

fn positive(value: f64) -> bool {
    value.is_finite() && value > 0.0
}

impl Plan {
    /// Reads a plan from TOML and validates it whole.
    ///
    /// # Errors
    /// [`PlanError`] names the key and what to write instead.
    pub fn from_toml(text: &str) -> Result<Self, PlanError> {
        let plan: Self =
            toml::from_str(text).map_err(|e| PlanError::Syntax(e.to_string().trim().to_owned()))?;
        plan.validate()?;
        Ok(plan)
    }

    /// Reads a plan from the canonical JSON in which it travels, and validates it whole.
    ///
    /// # Errors
    /// [`PlanError`] names the key and what to write instead.
    pub fn from_json(bytes: &[u8]) -> Result<Self, PlanError> {
        let plan: Self =
            serde_json::from_slice(bytes).map_err(|e| PlanError::Syntax(e.to_string()))?;
        plan.validate()?;
        Ok(plan)
    }

    /// Canonical JSON: keys in the order of declaration, floats in their shortest exact form.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a plan has only string keys and finite numbers")
    }

    /// What clients agree to: BLAKE3 of the canonical JSON.
    #[must_use]
    pub fn digest(&self) -> PlanDigest {
        let mut hasher = blake3::Hasher::new_derive_key("comity plan v1");
        hasher.update(&self.to_json());
        PlanDigest(*hasher.finalize().as_bytes())
    }

    /// The tensors of what a round calls its model: those of the [model](Self::model_manifest), and behind
    /// them what the strategy remembers, such as `server.momentum.layers.0.weight`, in the shapes of the
    /// shared parameters.
    ///
    /// It is one blob with one digest, so that whoever has a round's updates can check the server's step,
    /// and nothing besides it has to survive a crash.
    ///
    /// # Errors
    /// [`PlanError::Layer`] if the layers do not fit the data or one another.
    pub fn manifest(&self) -> Result<Manifest, PlanError> {
        let mut manifest = self.model_manifest()?;
        let shared: Vec<TensorSpec> =
            manifest.tensors.iter().filter(|tensor| tensor.is_shared()).cloned().collect();
        for (name, start) in self.aggregation.strategy.server_state() {
            manifest.tensors.extend(shared.iter().map(|tensor| TensorSpec {
                name: format!("{SERVER_STATE}{name}.{}", tensor.name),
                trainable: false,
                start,
                ..tensor.clone()
            }));
        }
        Ok(manifest)
    }

    /// The tensors of the model itself.
    ///
    /// # Errors
    /// As [`manifest`](Self::manifest).
    pub fn model_manifest(&self) -> Result<Manifest, PlanError> {
        self.model.manifest(&self.data.shape, self.data.classes)
    }

    /// The parameters of the model itself, which are the first ones of a round's `model`.
    ///
    /// # Errors
    /// As [`manifest`](Self::manifest).
    ///
    /// # Panics
    /// If `model` is shorter than the model of this plan.
    pub fn model_of<'a>(&self, model: &'a Parameters) -> Result<Cow<'a, Parameters>, PlanError> {
        let n = self.model_manifest()?.n_parameters();
        let values = model.values();
        Ok(match values.len() {
            all if all == n => Cow::Borrowed(model),
            _ => Cow::Owned(Parameters::new(values[..n].to_vec())),
        })
    }

    /// What the plan says of `client`, if it names it.
    #[must_use]
    pub fn client(&self, client: &ClientId) -> Option<&NamedClient> {
        self.cohort.clients.iter().find(|named| named.id == *client)
    }

    /// The weight of a client's contribution.
    #[must_use]
    pub fn weight(&self, client: &NamedClient) -> u64 {
        self.cohort.weight(client)
    }

    /// The privacy unit; `None` where the plan trains without DP.
    #[must_use]
    pub fn unit(&self) -> Option<PrivacyUnit> {
        match &self.privacy {
            PrivacyTerms::None => None,
            PrivacyTerms::DpSgd { unit, .. } => Some(*unit),
            PrivacyTerms::DpFedavg { .. } => Some(PrivacyUnit::Institution),
        }
    }

    /// The ε and δ that the plan promises; `None` where it trains without DP.
    ///
    /// # Errors
    /// [`PlanError::Invalid`] if they mean nothing, which a validated plan's do not.
    pub fn budget(&self) -> Result<Option<Budget>, PlanError> {
        match &self.privacy {
            PrivacyTerms::None => Ok(None),
            PrivacyTerms::DpSgd { epsilon, delta, .. }
            | PrivacyTerms::DpFedavg { epsilon, delta, .. } => Budget::new(*epsilon, *delta)
                .map(Some)
                .map_err(|e| PlanError::invalid("privacy", e.to_string())),
        }
    }

    /// Whether institutions can be asked to agree to the plan: not where they would have to hand out
    /// what only others noise.
    ///
    /// # Errors
    /// [`PlanError::Invalid`] says what to write instead.
    pub fn check_deployable(&self) -> Result<(), PlanError> {
        if !self.draws_in_secret() {
            return Ok(());
        }
        Err(PlanError::invalid(
            "privacy.mode",
            "dp_fedavg is for simulations (comity-sim run): a coordinator would see each institution's \
             change in clear, and clients decline it; use dp_sgd"
                .to_owned(),
        ))
    }

    /// Whether each round's cohort is drawn in secret by the one that adds the noise.
    #[must_use]
    pub fn draws_in_secret(&self) -> bool {
        matches!(self.privacy, PrivacyTerms::DpFedavg { .. })
    }

    /// How many rounds older than the round in which it counts an update may be.
    #[must_use]
    pub fn staleness_max(&self) -> u32 {
        match (self.aggregation.strategy, self.cohort.late) {
            (Strategy::Fedbuff { staleness_max, .. }, _) => staleness_max,
            (_, LatePolicy::Carry { rounds_max }) => rounds_max,
            (_, LatePolicy::Reject) => 0,
        }
    }

    /// Whether a round's updates can be summed as they arrive: all that counts is their sum, each with the
    /// weight that its client's declaration gives it.
    #[must_use]
    pub fn sums_on_arrival(&self) -> bool {
        self.aggregation.strategy.is_of_the_sum()
            && self.aggregation.country_weight_max.is_none()
            && self.staleness_max() == 0
            && !self.draws_in_secret()
    }

    /// How many contributions close a round before its deadline; `None`: those of everybody who was asked.
    #[must_use]
    pub fn contributions_wanted(&self) -> Option<u32> {
        match self.aggregation.strategy {
            Strategy::Fedbuff { buffer, .. } => Some(buffer),
            _ => self.cohort.sample.map(|sample| sample.clients),
        }
    }

    /// How the updates of `round` travel: statistics are exact.
    #[must_use]
    pub fn update_encoding(&self, round: u32) -> UpdateEncoding {
        if round == 0 { UpdateEncoding::Int32 } else { self.aggregation.update_encoding }
    }

    /// Most bytes of updates or statistics that a client sends in one round, headers not counted.
    ///
    /// # Errors
    /// As [`manifest`](Self::manifest).
    pub fn bytes_out_round(&self) -> Result<u64, PlanError> {
        let n_shared = self.model_manifest()?.n_shared() as u64;
        let statistics = self.analytics_request().map_or(0, |request| request.n_values());
        Ok(self.update_encoding(1).bytes(n_shared).max(UpdateEncoding::Int32.bytes(statistics)))
    }

    /// How many values a client keeps of its own between the rounds; 0 where it keeps none.
    ///
    /// # Errors
    /// As [`manifest`](Self::manifest).
    pub fn client_state_len(&self) -> Result<usize, PlanError> {
        let manifest = self.model_manifest()?;
        let control = match self.aggregation.strategy {
            Strategy::Scaffold => manifest.n_shared(),
            _ => 0,
        };
        Ok(manifest.n_local() + control)
    }

    /// How many privacy units `client` declares: persons where they are protected, else records.
    #[must_use]
    pub fn units_declared(&self, client: &NamedClient) -> u64 {
        match self.unit() {
            Some(PrivacyUnit::Person { .. }) => client.persons.unwrap_or(client.records),
            _ => client.records,
        }
    }

    /// Local steps a round of `client`: as many as the plan says, or as its declared privacy units take to
    /// come up `local_epochs` times, in expectation.
    #[must_use]
    pub fn steps_per_round(&self, client: &NamedClient) -> u32 {
        self.training.n_steps(self.units_declared(client))
    }

    /// The privacy plan of `client`, calibrated from the terms and its declared records; `None`
    /// where the plan trains without DP.
    ///
    /// # Errors
    /// [`PlanError::Privacy`] if the target cannot be reached.
    pub fn privacy_plan(&self, client: &NamedClient) -> Result<Option<PrivacyPlan>, PlanError> {
        let calibrate = |request| {
            PrivacyPlan::calibrate(&request).map_err(|e| PlanError::Privacy {
                client: client.id.clone(),
                reason: e.to_string(),
            })
        };
        self.privacy_request(client)?.map(calibrate).transpose()
    }

    /// The privacy plans of all clients, in the plan's order; those that declare the same number of
    /// units share one calibration.
    ///
    /// # Errors
    /// As [`privacy_plan`](Self::privacy_plan), for the first client whose target cannot be reached.
    pub fn privacy_plans(&self) -> Result<Vec<Option<PrivacyPlan>>, PlanError> {
        let mut known = BTreeMap::new();
        let mut plans = Vec::with_capacity(self.cohort.clients.len());
        for client in &self.cohort.clients {
            let units = self.units_declared(client);
            let plan = match known.entry(units) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(unknown) => unknown.insert(self.privacy_plan(client)?),
            };
            plans.push(plan.clone());
        }
        Ok(plans)
    }

    /// The privacy plan of the one that adds the noise, with institutions as its units: one step a
    /// round. `None` unless [`draws_in_secret`](Self::draws_in_secret).
    ///
    /// # Errors
    /// [`PlanError::Invalid`] if the target cannot be reached.
    pub fn institutions_plan(&self) -> Result<Option<PrivacyPlan>, PlanError> {
        let PrivacyTerms::DpFedavg { clip_norm_l2, cohort_expected, clip_adaptive, .. } =
            &self.privacy
        else {
            return Ok(None);
        };
        // Where the bound is adapted, changes are scaled to it first, and one coordinate more counts them: the
        // joint Gaussian of theorem 1 of Andrew et al. 2021.
        let (clip_norm_l2, n_more) = match clip_adaptive {
            None => (*clip_norm_l2, 0),
            Some(_) => (1.0, 1),
        };
        let request = PrivacyRequest {
            unit: PrivacyUnit::Institution,
            relation: Relation::AddOrRemoveOne,
            budget: self.budget()?.expect("the plan has differential privacy"),
            units_declared: self.cohort.clients.len() as u64,
            batch_expected: *cohort_expected,
            steps_per_round: 1,
            rounds: self.rounds,
            clip_norm_l2,
            n_parameters: self.model_manifest()?.n_shared() as u64 + n_more,
            metrics_rho_per_round: 0.0,
            loss: None,
            analytics: None,
        };
        let plan = PrivacyPlan::calibrate(&request)
            .map_err(|e| PlanError::invalid("privacy", e.to_string()))?;
        if let Some(adaptive) = clip_adaptive {
            let least = plan.real_noise_multiplier() / 2.0;
            if adaptive.count_noise_std(*cohort_expected) <= least {
                let reason = format!(
                    "must be more than half the noise multiplier, {least:.3} here: write a larger one, or raise \
                     privacy.cohort_expected"
                );
                return Err(PlanError::invalid("privacy.clip_adaptive.count_noise_std", reason));
            }
        }
        Ok(Some(plan))
    }

    /// What the terms ask of `client`; `None` where it trains without DP of its own.
    ///
    /// # Errors
    /// As [`budget`](Self::budget).
    pub fn privacy_request(
        &self,
        client: &NamedClient,
    ) -> Result<Option<PrivacyRequest>, PlanError> {
        let PrivacyTerms::DpSgd { unit, clip_norm_l2, metrics, .. } = &self.privacy else {
            return Ok(None);
        };
        Ok(Some(PrivacyRequest {
            unit: *unit,
            relation: Relation::AddOrRemoveOne,
            budget: self.budget()?.expect("the plan has differential privacy"),
            units_declared: self.units_declared(client),
            batch_expected: self.training.batch,
            steps_per_round: self.steps_per_round(client),
            rounds: self.rounds,
            clip_norm_l2: *clip_norm_l2,
            n_parameters: self.model_manifest()?.n_trainable() as u64,
            metrics_rho_per_round: metrics.and_then(|m| m.accuracy_rho_per_round).unwrap_or(0.0),
            loss: metrics.and_then(|m| m.loss),
            analytics: self.analytics_request(),
        }))
    }

    /// What is asked before the first round, if anything: the same of every client.
    #[must_use]
    pub fn analytics_request(&self) -> Option<AnalyticsRequest> {
        let analytics = self.analytics.as_ref()?;
        let records_max = self.cohort.clients.iter().map(|c| c.records).max().unwrap_or(1);
        // A client's sums stay below 2^29 at its declared number of records: four times that, and
        // their noise, fit the 32 bits in which they travel.
        let bits = 29u32.saturating_sub(records_max.next_power_of_two().ilog2()).clamp(2, 16);
        Some(AnalyticsRequest {
            rho: analytics.rho,
            queries: analytics.queries.clone(),
            n_channels: self.data.shape.first().copied().unwrap_or(0) as u64,
            n_classes: self.data.classes as u64,
            bits,
        })
    }

    /// The round that a run begins with: 0 where statistics are released first, else 1.
    #[must_use]
    pub fn first_round(&self) -> u32 {
        u32::from(self.analytics.is_none())
    }

    /// What the noisy `sums`, `[n_values]`, of all clients together say.
    ///
    /// # Errors
    /// [`PlanError::Invalid`] if the plan asks for nothing, or for another number of values.
    pub fn estimates(&self, sums: &[i64]) -> Result<Vec<Estimate>, PlanError> {
        let invalid = |reason: String| PlanError::invalid("analytics", reason);
        let request =
            self.analytics_request().ok_or_else(|| invalid("nothing was asked".to_owned()))?;
        request.estimate(sums).map_err(|e| invalid(e.to_string()))
    }

    /// What the noisy `sums` of all clients change in the first model: values of its parameters from an
    /// index on; `None` if the model does not begin by standardising features.
    ///
    /// # Errors
    /// As [`estimates`](Self::estimates).
    pub fn standardisation(&self, sums: &[i64]) -> Result<Option<(usize, Vec<f32>)>, PlanError> {
        let estimates = self.estimates(sums)?;
        let manifest = self.manifest()?;
        let mut start = 0;
        for tensor in &manifest.tensors {
            if tensor.name == STANDARDISE_MEAN {
                let moments = estimates.iter().find_map(|estimate| match estimate {
                    Estimate::Moments { mean, std } => Some((mean, std)),
                    _ => None,
                });
                return Ok(moments.map(|(mean, std)| {
                    let values = mean.iter().chain(std).map(|value| *value as f32);
                    (start, values.collect())
                }));
            }
            start += tensor.n_elements();
        }
        Ok(None)
    }

    /// Checks every key; the calibration of privacy is left to [`privacy_plan`](Self::privacy_plan).
    fn validate(&self) -> Result<(), PlanError> {
        check(crate::ids::is_name(&self.name), "name", "use 1 to 64 of a-z, 0-9 and '-'")?;
        check(self.purpose.len() <= 2000, "purpose", "use at most 2000 bytes")?;
        check((1..=ROUNDS_MAX).contains(&self.rounds), "rounds", "use 1 to 100000")?;

        let values = self
            .data
            .shape
            .iter()
            .try_fold(1usize, |product, side| product.checked_mul(*side))
            .filter(|n| (1..=EXAMPLE_VALUES_MAX).contains(n));
        check(
            matches!(self.data.shape.len(), 1 | 3) && values.is_some(),
            "data.shape",
            "use [features] or [channels, height, width], at most 2^26 values",
        )?;
        check((2..=1 << 20).contains(&self.data.classes), "data.classes", "use 2 to 1048576")?;
        check(
            self.data.normalise.mean.is_finite() && positive(self.data.normalise.std),
            "data.normalise",
            "mean must be finite and std positive",
        )?;
        self.manifest()?;
        check(
            self.model.vocabulary().is_none()
                || self.data.normalise == Normalise { mean: 0.0, std: 1.0 },
            "data.normalise",
            "an embedding reads tokens as they are; use mean = 0.0 and std = 1.0",
        )?;

        let training = &self.training;
        training.validate()?;

        let cohort = &self.cohort;
        cohort.validate()?;

        self.budget()?;
        if let PrivacyTerms::DpFedavg {
            delta, clip_norm_l2, cohort_expected, clip_adaptive, ..
        } = &self.privacy
        {
            check(
                clip_adaptive.is_none_or(|c| c.quantile > 0.0 && c.quantile < 1.0),
                "privacy.clip_adaptive.quantile",
                "use a number between 0 and 1; 0.5 is the median",
            )?;
            check(
                clip_adaptive.is_none_or(|c| {
                    positive(c.learning_rate) && c.count_noise_std.is_none_or(positive)
                }),
                "privacy.clip_adaptive",
                "learning_rate and count_noise_std must be positive; leave out count_noise_std for a twentieth of \
                 the expected cohort",
            )?;
            check(positive(*clip_norm_l2), "privacy.clip_norm_l2", "use a positive number")?;
            check(
                (1..=cohort.clients.len()).contains(&(*cohort_expected as usize)),
                "privacy.cohort_expected",
                "use 1 to the number of named clients",
            )?;
            check(
                *delta * (cohort.clients.len() as f64) < 1.0,
                "privacy.delta",
                "must be smaller than one divided by the number of named clients",
            )?;
            check(
                cohort.weights == WeightRule::Uniform,
                "cohort.weights",
                "where institutions are protected they count the same: use \"uniform\"",
            )?;
            check(
                self.aggregation.country_weight_max.is_none(),
                "aggregation.country_weight_max",
                "where institutions are protected they count the same; leave it out",
            )?;
            check(
                self.staleness_max() == 0
                    && cohort.sample.is_none()
                    && cohort.min_weight_share.is_none()
                    && self.aggregation.update_norm_max_l2.is_none()
                    && self.aggregation.update_encoding.is_exact(),
                "cohort",
                "where institutions are protected the cohort is drawn in secret and nobody is refused for \
                 what it sends: leave out late, sample, min_weight_share, aggregation.update_norm_max_l2 and \
                 aggregation.update_encoding",
            )?;
        }
        if let PrivacyTerms::DpSgd { unit, clip_norm_l2, metrics, .. } = &self.privacy {
            if let PrivacyUnit::Person { records_max } = unit {
                check(
                    (1..=training.microbatch).contains(records_max),
                    "privacy.unit.person.records_max",
                    "use 1 to training.microbatch: a person's records are differentiated together",
                )?;
                check(
                    cohort.clients.iter().all(|c| {
                        c.persons.is_some_and(|persons| (1..=c.records).contains(&persons))
                    }),
                    "cohort.clients.persons",
                    "where persons are protected each client declares 1 to its number of records",
                )?;
            }
            check(
                *unit != PrivacyUnit::Institution,
                "privacy.unit",
                "whole institutions are protected by privacy.mode = \"dp_fedavg\", in simulations",
            )?;
            check(positive(*clip_norm_l2), "privacy.clip_norm_l2", "use a positive number")?;
            check(
                metrics.is_none_or(|m| m.accuracy_rho_per_round.is_none_or(positive)),
                "privacy.metrics.accuracy_rho_per_round",
                "use a positive number, or leave it out",
            )?;
            check(
                metrics.is_none_or(|m| {
                    m.loss.is_none_or(|l| {
                        positive(l.rho_per_round) && (1e-3..=1e4).contains(&l.upper)
                    })
                }),
                "privacy.metrics.loss",
                "rho_per_round must be positive and upper 0.001 to 10000, or leave it out",
            )?;
            check(
                metrics.is_none_or(|m| m.accuracy_rho_per_round.is_some() || m.loss.is_some()),
                "privacy.metrics",
                "name a metric, or leave privacy.metrics out",
            )?;
            check(
                cohort.clients.iter().all(|c| u64::from(training.batch) <= self.units_declared(c)),
                "training.batch",
                "a client declares fewer records or persons than the expected batch: lower it",
            )?;
        }

        let asks_moments = |analytics: &Analytics| {
            analytics.queries.iter().any(|query| matches!(query, Query::Moments { .. }))
        };
        check(
            self.model.layers.first() != Some(&Layer::Standardise)
                || self.analytics.as_ref().is_some_and(asks_moments),
            "model.layers",
            "standardise needs means and standard deviations: ask for moments in [analytics]",
        )?;
        if let Some(request) = self.analytics_request() {
            check(
                matches!(self.privacy, PrivacyTerms::DpSgd { .. }),
                "analytics",
                "statistics leave only under differential privacy: use privacy.mode = \"dp_sgd\"",
            )?;
            check(
                cohort.clients.iter().all(|c| c.records <= 1 << 26),
                "cohort.clients.records",
                "statistics are asked of at most 2^26 records a client",
            )?;
            request.validate().map_err(|e| PlanError::invalid("analytics", e.to_string()))?;
        }

        self.aggregation.validate(cohort)?;
        self.validate_strategy()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const SAMPLE: &str = r#"
name = "sample"
purpose = "A test."
seed = 1
rounds = 2
[data]
shape = [4]
classes = 3
normalise = { mean = 0.0, std = 1.0 }
[[model.layers]]
type = "linear"
out = 3
[training]
optimizer = { type = "sgd", learning_rate = 0.1 }
batch = 10
local_epochs = 1
microbatch = 8
[privacy]
mode = "dp_sgd"
unit = "record"
epsilon = 8.0
delta = 1e-5
clip_norm_l2 = 1.0
[cohort]
min_clients = 2
min_countries = 2
gathering_deadline = "1m"
round_deadline = "2m"
weights = "declared"
clients = [{ id = "KR/a", records = 1000 }, { id = "JP/b", records = 500 }, { id = "VN/c", records = 500 }]
[aggregation]
strategy = "fedavg"
server_learning_rate = 1.0
fixed_point_bits = 22
"#;

    pub(crate) fn sample() -> Plan {
        Plan::from_toml(SAMPLE).unwrap()
    }

    #[test]
    fn a_plan_keeps_its_digest_through_json() {
        let plan = sample();
        let again = Plan::from_json(&plan.to_json()).unwrap();
        assert_eq!(again, plan);
        assert_eq!(again.digest(), plan.digest());
    }

    #[test]
    fn every_bad_key_is_refused_by_name() {
        for (from, to, expected) in [
            ("min_clients = 2", "min_clients = 2\nmin_weight_share = 1.5", "min_weight_share"),
            ("min_clients = 2", "min_clients = 2\nsample = { clients = 1 }", "sample.clients"),
            (
                "min_clients = 2",
                "min_clients = 2\nsample = { clients = 2, over_selection = 2 }",
                "over_selection",
            ),
            ("min_clients = 2", "min_clients = 2\nlate = \"never\"", "never"),
            (
                "min_clients = 2",
                "min_clients = 2\nlate = { carry = { rounds_max = 0 } }",
                "rounds_max",
            ),
            ("\"fedavg\"", "{ fedbuff = { buffer = 1, staleness_max = 1 } }", "buffer"),
            ("\"fedavg\"", "{ fedbuff = { buffer = 2, staleness_max = 101 } }", "staleness_max"),
            ("bits = 22", "bits = 22\nupdate_norm_max_l2 = 0.0", "update_norm_max_l2"),
            ("seed = 1", "seed = 1\nsneed = 2", "sneed"),
            ("rounds = 2", "rounds = 0", "rounds"),
            ("rounds = 2", "rounds = 99999999999999999999", "rounds"),
            ("name = \"sample\"", "name = \"../x\"", "name"),
            ("shape = [4]", "shape = [4, 4]", "data.shape"),
            ("classes = 3", "classes = 4", "4 classes"),
            ("std = 1.0", "std = 0.0", "data.normalise"),
            ("learning_rate = 0.1", "learning_rate = nan", "learning_rate"),
            ("local_epochs = 1", "", "training.local_epochs"),
            ("local_epochs = 1", "local_epochs = 1\nlocal_steps = 1", "not both"),
            ("local_epochs = 1", "local_epochs = 0", "training.local_epochs"),
            ("local_epochs = 1", "local_steps = 0", "training.local_steps"),
            ("microbatch = 8", "microbatch = 8\nema_decay = 1.0", "training.ema_decay"),
            ("mode = \"dp_sgd\"", "mode = \"dp-lite\"", "dp-lite"),
            ("epsilon = 8.0", "epsilon = -1.0", "privacy"),
            ("delta = 1e-5", "delta = 1.0", "privacy"),
            ("clip_norm_l2 = 1.0", "clip_norm_l2 = inf", "privacy.clip_norm_l2"),
            ("unit = \"record\"", "unit = \"family\"", "family"),
            ("min_clients = 2", "min_clients = 4", "cohort.min_clients"),
            ("min_countries = 2", "min_countries = 4", "cohort.min_countries"),
            ("\"2m\"", "\"2 lightyears\"", "round_deadline"),
            ("JP/b", "KR/a", "named twice"),
            ("records = 500", "records = 5", "training.batch"),
            ("fixed_point_bits = 22", "fixed_point_bits = 31", "fixed_point_bits"),
            ("strategy = \"fedavg\"", "strategy = \"fedmagic\"", "fedmagic"),
            ("strategy = \"fedavg\"", "strategy = \"median\"", "cohort.weights"),
            (
                "strategy = \"fedavg\"",
                "strategy = { norm_capped_mean = { norm_max_l2 = 0.0 } }",
                "norm_max_l2",
            ),
            ("strategy = \"fedavg\"", "strategy = { krum = { f = 1 } }", "keys in table: f"),
            ("bits = 22", "bits = 22\ncountry_weight_max = 1.1", "in (0, 1]"),
            ("bits = 22", "bits = 22\ncountry_weight_max = 0.4", "cohort.min_countries"),
        ] {
            assert!(SAMPLE.contains(from), "{from}");
            let error = Plan::from_toml(&SAMPLE.replacen(from, to, 1)).unwrap_err().to_string();
            assert!(error.contains(expected), "{from} -> {to}: {error}");
        }
    }

    #[test]
    fn a_robust_strategy_needs_enough_contributions() {
        let uniform = SAMPLE.replace("\"declared\"", "\"uniform\"");
        let five = uniform.replace("min_clients = 2", "min_clients = 5").replace(
            "clients = [",
            "clients = [{ id = \"TH/d\", records = 500 }, { id = \"LA/e\", records = 500 }, ",
        );
        for (text, strategy, expected) in [
            (&uniform, "\"median\"", None),
            (&uniform, "{ trimmed_mean = { trim = 0 } }", None),
            (&uniform, "{ trimmed_mean = { trim = 1 } }", Some("2 * trim")),
            (&five, "{ trimmed_mean = { trim = 2 } }", None),
            (&uniform, "{ krum = { byzantine = 0 } }", Some("2 * byzantine + 3")),
            (&five, "{ krum = { byzantine = 1 } }", None),
            (&five, "{ krum = { byzantine = 2 } }", Some("cohort.min_clients")),
            (&five, "{ multi_krum = { byzantine = 1, keep = 2 } }", None),
            (&five, "{ multi_krum = { byzantine = 1, keep = 3 } }", Some("keep 1 to")),
            (&five, "{ multi_krum = { byzantine = 1, keep = 0 } }", Some("keep 1 to")),
            (&five, "\"median\"\ncountry_weight_max = 0.5", Some("one vote")),
        ] {
            let text = text.replace("\"fedavg\"", strategy);
            let plan = Plan::from_toml(&text);
            match expected {
                None => {
                    let plan = plan.unwrap();
                    assert_eq!(Plan::from_json(&plan.to_json()).unwrap(), plan);
                }
                Some(expected) => {
                    let error = plan.unwrap_err().to_string();
                    assert!(error.contains(expected), "{strategy}: {error}");
                }
            }
        }
    }

    #[test]
    fn a_plan_without_the_new_keys_keeps_the_digest_it_had() {
        let digest = sample().digest().to_string();
        assert_eq!(digest, "46369485a66eaa57d0a2a366aa0ac3a9d35fe3abe8296b05d15d54afe3937747");
    }

    #[test]
    fn a_plan_can_say_the_number_of_local_steps() {
        let plan = Plan::from_toml(&SAMPLE.replace("local_epochs = 1", "local_steps = 7")).unwrap();
        let steps = plan.cohort.clients.iter().map(|client| plan.steps_per_round(client));
        assert_eq!(steps.collect::<Vec<_>>(), [7, 7, 7]);
        let request = plan.privacy_request(&plan.cohort.clients[1]).unwrap().unwrap();
        assert_eq!(request.steps_per_round, 7);
        assert_eq!(Plan::from_json(&plan.to_json()).unwrap(), plan);
        let by_epochs = sample();
        assert_eq!(by_epochs.steps_per_round(&by_epochs.cohort.clients[0]), 100);
    }

    #[test]
    fn the_sample_of_a_governed_plan_reads() {
        let plan = Plan::from_toml(include_str!("../../docs/samples/governed.toml")).unwrap();
        assert_eq!((plan.staleness_max(), plan.contributions_wanted()), (2, Some(3)));
    }

    #[test]
    fn the_sample_that_protects_persons_parses() {
        let plan = Plan::from_toml(include_str!("../../docs/samples/persons.toml")).unwrap();
        assert_eq!(plan.unit(), Some(PrivacyUnit::Person { records_max: 8 }));
        assert_eq!(plan.first_round(), 0);
        for client in &plan.cohort.clients {
            let privacy = plan.privacy_plan(client).unwrap().unwrap();
            assert!((0.2..10.0).contains(&privacy.noise_multiplier()), "{privacy:?}");
        }
    }

    #[test]
    fn institutions_are_protected_in_simulations_only_and_all_alike() {
        let start = SAMPLE.find("mode =").unwrap();
        let end = SAMPLE.find("[cohort]").unwrap();
        let terms = "mode = \"dp_fedavg\"\nepsilon = 8.0\ndelta = 1e-4\nclip_norm_l2 = 1.0\n\
                     cohort_expected = 50\n";
        let list =
            &SAMPLE[SAMPLE.find("clients = [").unwrap()..SAMPLE.find("[aggregation]").unwrap()];
        let many = "clients = { n = 1000, countries = [\"KR\", \"VN\"], records = 60 }\n";
        let text = SAMPLE
            .replace(&SAMPLE[start..end], terms)
            .replace(list, many)
            .replace("weights = \"declared\"", "weights = \"uniform\"");
        let plan = Plan::from_toml(&text).unwrap();
        assert_eq!(plan.unit(), Some(PrivacyUnit::Institution));
        let privacy = plan.institutions_plan().unwrap().unwrap();
        assert_eq!((privacy.sampling_rate(), privacy.steps_per_round()), (0.05, 1));
        assert!(privacy.epsilon_total().epsilon <= 8.0);
        // Nothing is added at a client, which is why no deployed one agrees.
        assert_eq!(plan.privacy_plan(&plan.cohort.clients[0]).unwrap(), None);
        assert!(plan.check_deployable().unwrap_err().to_string().contains("comity-sim"));
        assert_eq!(sample().check_deployable(), Ok(()));
        assert_eq!(sample().institutions_plan(), Ok(None));
        let ids: Vec<String> =
            plan.cohort.clients[..2].iter().map(|client| client.id.to_string()).collect();
        assert_eq!(
            (ids, plan.cohort.clients.len()),
            (vec!["KR/site-00001".into(), "VN/site-00002".into()], 1000)
        );
        assert_eq!(Plan::from_json(&plan.to_json()).unwrap(), plan);
        // An adaptive bound costs nothing: the same noise multiplier, over one coordinate more.
        let adaptive = "cohort_expected = 50\nclip_adaptive = { quantile = 0.5, learning_rate = 0.2, \
                        count_noise_std = 5.0 }";
        let adapted = Plan::from_toml(&text.replace("cohort_expected = 50", adaptive)).unwrap();
        assert_eq!(Plan::from_json(&adapted.to_json()).unwrap(), adapted);
        let of_adapted = adapted.institutions_plan().unwrap().unwrap();
        assert_eq!(of_adapted.noise_multiplier(), privacy.noise_multiplier());
        assert_eq!(of_adapted.epsilon_total(), privacy.epsilon_total());
        assert_eq!(of_adapted.n_parameters(), privacy.n_parameters() + 1);
        assert_eq!(of_adapted.clip_norm_l2(), 1.0);
        let loud =
            Plan::from_toml(&text.replace("cohort_expected = 50", &adaptive.replace("5.0", "0.1")));
        let error = loud.unwrap().institutions_plan().unwrap_err().to_string();
        assert!(error.contains("half the noise multiplier"), "{error}");
        // The server's step is post-processing of the noised mean, if it is a function of it.
        let with = |strategy: &str| Plan::from_toml(&text.replace("\"fedavg\"", strategy));
        assert!(with("{ fedadam = {} }").is_ok() && with("{ fedprox = { mu = 0.1 } }").is_ok());
        for strategy in ["{ fednova = {} }", "\"median\""] {
            let error = with(strategy).unwrap_err().to_string();
            assert!(error.contains("their mean is what is accounted for"), "{error}");
        }
        for (from, to, expected) in [
            (
                "cohort_expected = 50",
                "cohort_expected = 50\nclip_adaptive = { quantile = 1.0, learning_rate = 0.2 }",
                "privacy.clip_adaptive.quantile",
            ),
            (
                "cohort_expected = 50",
                "cohort_expected = 50\nclip_adaptive = { quantile = 0.5, learning_rate = 0.0 }",
                "privacy.clip_adaptive",
            ),
            ("cohort_expected = 50", "cohort_expected = 1001", "privacy.cohort_expected"),
            ("cohort_expected = 50", "cohort_expected = 0", "privacy.cohort_expected"),
            ("clip_norm_l2 = 1.0", "clip_norm_l2 = 0.0", "privacy.clip_norm_l2"),
            ("delta = 1e-4", "delta = 1e-3", "privacy.delta"),
            ("\"uniform\"", "\"declared\"", "cohort.weights"),
            ("n = 1000", "n = 10001", "cohort.clients"),
            ("countries = [\"KR\", \"VN\"]", "countries = []", "cohort.clients"),
            ("records = 60", "records = 60, rows = 1", "rows"),
        ] {
            assert!(text.contains(from), "{from}");
            let error = Plan::from_toml(&text.replacen(from, to, 1)).unwrap_err().to_string();
            assert!(error.contains(expected), "{from} -> {to}: {error}");
        }
        let as_record = SAMPLE.replace("unit = \"record\"", "unit = \"institution\"");
        let error = Plan::from_toml(&as_record).unwrap_err().to_string();
        assert!(error.contains("dp_fedavg"), "{error}");
    }

    #[test]
    fn clients_that_declare_the_same_share_a_privacy_plan() {
        let plan = sample();
        let plans = plan.privacy_plans().unwrap();
        let alone: Vec<_> =
            plan.cohort.clients.iter().map(|c| plan.privacy_plan(c).unwrap()).collect();
        assert_eq!(plans, alone);
        assert!(plans[0] != plans[1] && plans[1] == plans[2]);
    }

    #[test]
    fn persons_are_declared_where_they_are_protected() {
        let persons = SAMPLE
            .replace("unit = \"record\"", "unit = { person = { records_max = 8 } }")
            .replace("records = 1000 }", "records = 1000, persons = 200 }")
            .replace("records = 500 }", "records = 500, persons = 100 }");
        let plan = Plan::from_toml(&persons).unwrap();
        let client = &plan.cohort.clients[0];
        assert_eq!((plan.units_declared(client), plan.steps_per_round(client)), (200, 20));
        assert_eq!(plan.weight(client), 1000);
        let request = plan.privacy_request(client).unwrap().unwrap();
        assert_eq!(request.units_declared, 200);
        assert_eq!(request.unit, PrivacyUnit::Person { records_max: 8 });
        assert_eq!(Plan::from_json(&plan.to_json()).unwrap(), plan);
        for (from, to, expected) in [
            (", persons = 200", "", "cohort.clients.persons"),
            ("persons = 200", "persons = 0", "cohort.clients.persons"),
            ("persons = 200", "persons = 1001", "cohort.clients.persons"),
            ("persons = 200", "persons = 9", "training.batch"),
            ("records_max = 8", "records_max = 0", "records_max"),
            ("records_max = 8", "records_max = 9", "records_max"),
            ("records_max = 8", "records_max = 8, x = 1", "x"),
        ] {
            assert!(persons.contains(from), "{from}");
            let error = Plan::from_toml(&persons.replacen(from, to, 1)).unwrap_err().to_string();
            assert!(error.contains(expected), "{from} -> {to}: {error}");
        }
        // The sample without persons declares records, and its digest is unchanged by the new key.
        assert!(!String::from_utf8(sample().to_json()).unwrap().contains("persons"));
    }

    #[test]
    fn what_is_asked_before_training_is_checked_and_paid_for() {
        let analytics = "[analytics]\nrho = 0.01\nqueries = [{ type = \"count\" }, \
                         { type = \"moments\", lower = -1.0, upper = 1.0 }]\n[cohort]";
        let text = SAMPLE.replace("[cohort]", analytics);
        let plan = Plan::from_toml(&text).unwrap();
        let request = plan.analytics_request().unwrap();
        assert_eq!((plan.first_round(), request.n_values()), (0, 1 + 9));
        assert_eq!((request.n_channels, request.n_classes, request.bits), (4, 3, 16));
        let request_half = 1_i64 << 15;
        let asked = plan.privacy_request(&plan.cohort.clients[0]).unwrap().unwrap();
        assert_eq!(asked.analytics, Some(request));
        assert_eq!(Plan::from_json(&plan.to_json()).unwrap(), plan);
        assert_eq!(plan.estimates(&[0; 10]).unwrap().len(), 2);
        assert!(plan.estimates(&[0; 9]).is_err() && sample().estimates(&[]).is_err());
        assert_eq!((sample().first_round(), sample().analytics_request()), (1, None));

        // What they say becomes the first model's frozen tensors, behind the trained ones.
        let first = "[[model.layers]]\ntype = \"standardise\"\n[[model.layers]]";
        let standardised = Plan::from_toml(&text.replace("[[model.layers]]", first)).unwrap();
        let n = 200 * request_half;
        let sums = [600, n, n / 2, n / 4, 0, n / 8, -n, n / 2, 0, n / 2];
        let (start, values) = standardised.standardisation(&sums).unwrap().unwrap();
        let manifest = standardised.manifest().unwrap();
        assert_eq!((start, manifest.n_parameters()), (15, 15 + 8));
        assert_eq!(manifest.n_trainable(), 15);
        assert_eq!(values[..4], [0.5, 0.0, -1.0, 0.0]);
        let std = [0.5_f32, 0.5, 0.002, 1.0];
        for (std, expected) in values[4..].iter().zip(std) {
            assert!((std - expected).abs() < 1e-5, "{values:?}");
        }
        assert_eq!(plan.standardisation(&sums), Ok(None));
        let unasked = SAMPLE.replace("[[model.layers]]", first);
        let error = Plan::from_toml(&unasked).unwrap_err().to_string();
        assert!(error.contains("ask for moments"), "{error}");
        let late =
            text.replace("[training]", "[[model.layers]]\ntype = \"standardise\"\n[training]");
        assert!(Plan::from_toml(&late).unwrap_err().to_string().contains("put it first"));
        for (from, to, expected) in [
            ("rho = 0.01", "rho = 0.0", "analytics"),
            ("upper = 1.0", "upper = -1.0", "analytics"),
            ("type = \"count\"", "type = \"rows\"", "rows"),
            ("records = 1000", "records = 100000000", "2^26"),
        ] {
            assert!(text.contains(from), "{from}");
            let error = Plan::from_toml(&text.replacen(from, to, 1)).unwrap_err().to_string();
            assert!(error.contains(expected), "{from} -> {to}: {error}");
        }
        let terms = &text[text.find("mode =").unwrap()..text.find("[analytics]").unwrap()];
        let open = Plan::from_toml(&text.replace(terms, "mode = \"none\"\n")).unwrap_err();
        assert!(open.to_string().contains("only under differential privacy"), "{open}");
    }

    #[test]
    fn an_impossible_privacy_target_names_the_client() {
        let mut plan = sample();
        plan.privacy = PrivacyTerms::DpSgd {
            unit: PrivacyUnit::Record,
            epsilon: 0.01,
            delta: 1e-5,
            clip_norm_l2: 1.0,
            metrics: Some(DpMetrics { accuracy_rho_per_round: Some(10.0), loss: None }),
        };
        let error = plan.privacy_plan(&plan.cohort.clients[1]).unwrap_err().to_string();
        assert!(error.contains("JP/b"), "{error}");
    }
}
