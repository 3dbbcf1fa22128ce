//! What a client's institution allows.  The plan proposes, the institution disposes.
//!
//! A [`Policy`] is looked at rule by rule: [`Policy::findings`] says for each whether a plan holds to it and
//! what would happen, and [`Policy::review`] is its first refusal.  Both are one list of rules, so what a
//! steward is shown beforehand is what the node does.
//!
//! Deliberately not here: the steward's file (the client reads it), who signed an order (`order` and `certs`),
//! what earlier runs have spent (the ledger; it comes in as [`Circumstances`]).

mod family;
mod hours;
mod refusal;

use std::collections::BTreeSet;
use std::time::Duration;

use comity_privacy::{Budget, PrivacyUnit};
use serde::{Deserialize, Serialize};

pub use family::ModelFamily;
pub use hours::Hours;
pub use refusal::PolicyRefusal;

use crate::{ClientId, Country, KeyFingerprint, NamedClient, Plan, PrivacyTerms};

/// An operator whose orders an institution takes, by name and key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PinnedOperator {
    /// As in the operator's certificate.
    pub name: String,
    /// SHA-256 of the operator's public key.
    pub key: KeyFingerprint,
}

/// Whom a plan has to protect, without its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnitKind {
    /// Single records.
    Record,
    /// Persons with all their records.
    Person,
}

impl UnitKind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Record => "record",
            Self::Person => "person",
        }
    }
}

/// Whether updates must be hidden from the coordinator by secure aggregation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecureAggregation {
    /// Every plan without it is declined.
    Required,
    /// Plans without it may run.
    NotRequired,
}

/// Who agrees to a plan that the policy allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Approval {
    /// The node, at once.
    Auto,
    /// The steward, run by run.
    Ask,
}

/// The institution's own limits; no plan can pass them.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Whose orders are taken.
    pub operators: Vec<PinnedOperator>,
    /// Purposes that are allowed; `*` stands for any text.
    pub purposes: Vec<String>,
    /// Families of models that are allowed.
    pub models: BTreeSet<ModelFamily>,
    /// Most parameters of a model, frozen ones included.
    pub parameters_max: u64,
    /// Whom a private run may protect.
    pub units: BTreeSet<UnitKind>,
    /// Budget of the data set over all runs; `None` if no run with DP is allowed.
    pub budget: Option<Budget>,
    /// Largest ε of one run.
    pub epsilon_run_max: f64,
    /// Largest ε of all runs that were opened in a year, together.
    pub epsilon_year_max: f64,
    /// Whether runs without differential privacy may train on these data.
    pub without_dp_allowed: bool,
    /// Fewest contributions with which a round may close.
    pub clients_min: u32,
    /// Fewest countries among them.
    pub countries_min: u32,
    /// Whether updates must be hidden from the coordinator.
    pub secure_aggregation: SecureAggregation,
    /// When rounds may begin; `None`: at any time.
    pub hours: Option<Hours>,
    /// Most bytes of updates that may leave in a round.
    pub bytes_out_round_max: u64,
    /// How old an operator's order, or another institution's consent, may be.
    pub order_age_max: Duration,
    /// How many countries' institutions must have signed the plan.
    pub consents_countries_min: u32,
    /// Who agrees.
    pub approval: Approval,
    /// The number of records that the institution has made public.
    pub records_declared: u64,
    /// The number of persons that the institution has made public, if it has.
    pub persons_declared: Option<u64>,
}

/// What a review cannot know from plan and policy.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Circumstances {
    /// ε of the runs that were opened in the last year and of this one together, at the budget's δ; `None`:
    /// there was no other, and this one costs what its plan says.
    pub epsilon_year: Option<f64>,
}

/// One rule of a policy, looked at for one plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The policy's key, or what else the rule is about.
    pub rule: &'static str,
    /// Whether the plan holds to it.
    pub holds: bool,
    /// What would happen, or why the plan is declined.
    pub says: String,
}

/// What a rule says of a plan: a sentence, or the refusal.
type Verdict = Result<String, PolicyRefusal>;

impl Policy {
    /// A policy that allows just what `plan` asks of `client`, and any operator's order: for simulated
    /// institutions.
    #[must_use]
    pub fn of_plan(plan: &Plan, client: &NamedClient, budget: Option<Budget>) -> Self {
        Self {
            operators: Vec::new(),
            purposes: vec!["*".to_owned()],
            models: [ModelFamily::Dense, ModelFamily::Convolution, ModelFamily::Transformer].into(),
            parameters_max: u64::MAX,
            units: [UnitKind::Record, UnitKind::Person].into(),
            budget,
            epsilon_run_max: f64::INFINITY,
            epsilon_year_max: f64::INFINITY,
            without_dp_allowed: plan.privacy == PrivacyTerms::None,
            clients_min: 1,
            countries_min: 1,
            secure_aggregation: SecureAggregation::NotRequired,
            hours: None,
            bytes_out_round_max: u64::MAX,
            order_age_max: Duration::MAX,
            consents_countries_min: 0,
            approval: Approval::Auto,
            records_declared: client.records,
            persons_declared: client.persons,
        }
    }

    /// Whether `client` may take part in `plan`.  Whether the budget has room for it is the ledger's
    /// concern.
    ///
    /// # Errors
    /// [`PolicyRefusal`] says what the institution does not allow.
    pub fn review(
        &self,
        plan: &Plan,
        client: &ClientId,
        circumstances: Circumstances,
    ) -> Result<(), PolicyRefusal> {
        self.rules(plan, client, circumstances).into_iter().try_for_each(|(_, said)| said.map(drop))
    }

    /// What each rule says of `plan`, in the order in which they are looked at.
    #[must_use]
    pub fn findings(
        &self,
        plan: &Plan,
        client: &ClientId,
        circumstances: Circumstances,
    ) -> Vec<Finding> {
        let rules = self.rules(plan, client, circumstances).into_iter();
        rules
            .map(|(rule, said)| match said {
                Ok(says) => Finding { rule, holds: true, says },
                Err(refusal) => Finding { rule, holds: false, says: refusal.to_string() },
            })
            .collect()
    }

    fn rules(
        &self,
        plan: &Plan,
        client: &ClientId,
        circumstances: Circumstances,
    ) -> Vec<(&'static str, Verdict)> {
        let named = plan.client(client);
        let mut rules = vec![("named", named_in_plan(named, client))];
        if let Some(named) = named {
            rules.push(("records", self.records(named)));
            rules.push(("persons", self.persons(plan, named)));
        }
        rules.extend([
            ("purposes", self.purpose(plan)),
            ("models", self.model(plan)),
            ("parameters_max", self.parameters(plan)),
            ("without_dp", self.privacy(plan)),
            ("units", self.unit(plan)),
            ("epsilon", self.epsilon(plan)),
            ("epsilon_run_max", self.epsilon_run(plan)),
            ("epsilon_year_max", self.epsilon_year(plan, circumstances)),
            ("clients_min", self.clients(plan)),
            ("countries_min", self.countries(plan)),
            ("secure_aggregation", self.aggregation()),
            ("bytes_out_round_max", self.bytes_out(plan)),
            ("keeps", Ok(says_keeps(plan))),
            ("operators", Ok(self.says_operators())),
            ("consents_countries_min", Ok(self.says_consents())),
            ("hours", Ok(self.says_hours())),
            ("approval", Ok(self.says_approval())),
        ]);
        rules
    }

    fn records(&self, named: &NamedClient) -> Verdict {
        if named.records == self.records_declared {
            return Ok(format!(
                "the plan declares {} records, as this institution does",
                named.records
            ));
        }
        Err(PolicyRefusal::Records {
            client: named.id.clone(),
            planned: named.records,
            declared: self.records_declared,
        })
    }

    fn persons(&self, plan: &Plan, named: &NamedClient) -> Verdict {
        let Some(PrivacyUnit::Person { .. }) = plan.unit() else {
            return Ok("the plan does not ask how many persons there are".to_owned());
        };
        let planned = plan.units_declared(named);
        if self.persons_declared == Some(planned) {
            return Ok(format!("the plan declares {planned} persons, as this institution does"));
        }
        let (client, declared) = (named.id.clone(), self.persons_declared);
        Err(PolicyRefusal::Persons { client, planned, declared })
    }

    fn purpose(&self, plan: &Plan) -> Verdict {
        match self.purposes.iter().find(|pattern| fits(pattern, &plan.purpose)) {
            Some(pattern) => Ok(format!("{:?} fits {pattern:?}", plan.purpose)),
            None => Err(PolicyRefusal::Purpose { purpose: plan.purpose.clone() }),
        }
    }

    fn model(&self, plan: &Plan) -> Verdict {
        let family = plan.model.family();
        if self.models.contains(&family) {
            return Ok(format!("the model is of the family {family}"));
        }
        let allowed = self.models.iter().map(ToString::to_string).collect();
        Err(PolicyRefusal::Model { family, allowed })
    }

    fn parameters(&self, plan: &Plan) -> Verdict {
        // A validated plan's layers fit; one that is not has no model of an allowed size.
        let n = plan.model_manifest().map_or(u64::MAX, |manifest| manifest.n_parameters() as u64);
        if n <= self.parameters_max {
            return Ok(format!("the model has {n} parameters, at most {}", self.parameters_max));
        }
        Err(PolicyRefusal::Parameters { n, max: self.parameters_max })
    }

    fn privacy(&self, plan: &Plan) -> Verdict {
        match &plan.privacy {
            PrivacyTerms::None if self.without_dp_allowed => {
                Ok("the plan trains without differential privacy, which is allowed here".to_owned())
            }
            PrivacyTerms::None => Err(PolicyRefusal::WithoutDp),
            PrivacyTerms::DpFedavg { .. } => Err(PolicyRefusal::NoiseElsewhere),
            PrivacyTerms::DpSgd { .. } => {
                Ok("the plan trains with differential privacy at this node".to_owned())
            }
        }
    }

    fn unit(&self, plan: &Plan) -> Verdict {
        let kind = match plan.unit() {
            Some(PrivacyUnit::Record) => UnitKind::Record,
            Some(PrivacyUnit::Person { .. }) => UnitKind::Person,
            _ => return Ok("the plan protects nobody by itself".to_owned()),
        };
        if self.units.contains(&kind) {
            return Ok(format!("the plan protects each {}", kind.as_str()));
        }
        let allowed = self.units.iter().map(|unit| unit.as_str().to_owned()).collect();
        Err(PolicyRefusal::Unit { unit: kind.as_str(), allowed })
    }

    fn epsilon(&self, plan: &Plan) -> Verdict {
        let PrivacyTerms::DpSgd { epsilon, delta, .. } = &plan.privacy else {
            return Ok(NO_EPSILON.to_owned());
        };
        let Some(budget) = &self.budget else { return Err(PolicyRefusal::NoBudget) };
        let (epsilon_max, delta_max) = (budget.epsilon.get(), budget.delta.get());
        if *epsilon > epsilon_max || *delta > delta_max {
            let (epsilon, delta) = (*epsilon, *delta);
            return Err(PolicyRefusal::Budget { epsilon, delta, epsilon_max, delta_max });
        }
        Ok(format!(
            "the plan asks for epsilon {epsilon} at delta {delta}, within {epsilon_max} at {delta_max} for this \
             data set"
        ))
    }

    fn epsilon_run(&self, plan: &Plan) -> Verdict {
        let PrivacyTerms::DpSgd { epsilon, .. } = &plan.privacy else {
            return Ok(NO_EPSILON.to_owned());
        };
        let (epsilon, max) = (*epsilon, self.epsilon_run_max);
        if epsilon <= max {
            return Ok(format!("the run costs epsilon {epsilon}, at most {max}"));
        }
        Err(PolicyRefusal::EpsilonRun { epsilon, max })
    }

    fn epsilon_year(&self, plan: &Plan, circumstances: Circumstances) -> Verdict {
        let PrivacyTerms::DpSgd { epsilon, .. } = &plan.privacy else {
            return Ok(NO_EPSILON.to_owned());
        };
        let (epsilon, max) =
            (circumstances.epsilon_year.unwrap_or(*epsilon), self.epsilon_year_max);
        // Not `epsilon > max`: a NaN is refused too.
        if epsilon <= max {
            return Ok(format!(
                "with the runs of the last 365 days, epsilon {epsilon:.3} of {max}"
            ));
        }
        Err(PolicyRefusal::EpsilonYear { epsilon, max })
    }

    fn clients(&self, plan: &Plan) -> Verdict {
        let (planned, min) = (plan.cohort.min_clients, self.clients_min);
        if planned >= min {
            return Ok(format!("a round counts at least {planned} institutions' updates"));
        }
        Err(PolicyRefusal::Clients { planned, min })
    }

    fn countries(&self, plan: &Plan) -> Verdict {
        let (planned, min) = (plan.cohort.min_countries, self.countries_min);
        if planned >= min {
            return Ok(format!("a round counts updates from at least {planned} countries"));
        }
        Err(PolicyRefusal::Countries { planned, min })
    }

    fn aggregation(&self) -> Verdict {
        match self.secure_aggregation {
            SecureAggregation::Required => Err(PolicyRefusal::SecureAggregation),
            SecureAggregation::NotRequired => {
                Ok("the coordinator sees this institution's update, as noised".to_owned())
            }
        }
    }

    fn bytes_out(&self, plan: &Plan) -> Verdict {
        let (bytes, max) = (plan.bytes_out_round().unwrap_or(u64::MAX), self.bytes_out_round_max);
        if bytes <= max {
            return Ok(format!("{bytes} bytes leave in a round, at most {max}"));
        }
        Err(PolicyRefusal::BytesOut { bytes, max })
    }

    fn says_operators(&self) -> String {
        match &self.operators[..] {
            [] => "any operator may launch it".to_owned(),
            pinned => {
                let names: Vec<&str> = pinned.iter().map(|operator| &operator.name[..]).collect();
                format!(
                    "its order has to be signed by {}, with the key that is pinned",
                    names.join(" or ")
                )
            }
        }
    }

    fn says_consents(&self) -> String {
        match self.consents_countries_min {
            0 => "no other country has to have signed it".to_owned(),
            n => format!("institutions of {n} countries have to have signed it"),
        }
    }

    fn says_hours(&self) -> String {
        match self.hours {
            None => "rounds begin at any time".to_owned(),
            Some(hours) => {
                format!("rounds begin from {hours}; one that closes before then is left out")
            }
        }
    }

    fn says_approval(&self) -> String {
        match self.approval {
            Approval::Auto => "the node agrees by itself".to_owned(),
            Approval::Ask => {
                "it waits for the steward: `comity-client run approve` or `run refuse`".to_owned()
            }
        }
    }

    /// The operator whose key is pinned, if it is.
    #[must_use]
    pub fn pins(&self, name: &str, key: KeyFingerprint) -> bool {
        self.operators.iter().any(|operator| operator.name == name && operator.key == key)
    }
}

const NO_EPSILON: &str = "the plan has no epsilon";

fn named_in_plan(named: Option<&NamedClient>, client: &ClientId) -> Verdict {
    match named {
        Some(_) => Ok(format!("the plan names {client}")),
        None => Err(PolicyRefusal::NotNamed(client.clone())),
    }
}

/// How many different countries `clients` are of.
#[must_use]
pub fn n_countries<'a>(clients: impl IntoIterator<Item = &'a ClientId>) -> usize {
    clients.into_iter().map(ClientId::country).collect::<BTreeSet<Country>>().len()
}

/// What a round brings to the node and what stays there: no rule, but what a steward wants to know.
fn says_keeps(plan: &Plan) -> String {
    let n_state = plan.client_state_len().unwrap_or(0);
    let n_server = plan.manifest().map_or(0, |manifest| manifest.n_parameters())
        - plan.model_manifest().map_or(0, |manifest| manifest.n_parameters());
    let own = match n_state {
        0 => "the node keeps nothing of its own between rounds".to_owned(),
        n => format!("the node keeps {n} values of its own between rounds, which never leave it"),
    };
    match n_server {
        0 => own,
        n => format!("{own}; with each model come {n} values that the server remembers"),
    }
}

/// Whether `text` fits `pattern`, in which each `*` stands for any text, none included.
fn fits(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut left) = text.strip_prefix(first) else { return false };
    let (middle, last) = rest.rsplit_once('*').unwrap_or(("", rest));
    // The earliest place of each part leaves the most room for the others.
    for part in middle.split('*') {
        match left.find(part) {
            Some(at) => left = &left[at + part.len()..],
            None => return false,
        }
    }
    left.ends_with(last)
}

#[cfg(test)]
mod tests;
