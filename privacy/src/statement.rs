//! What an institution tells its regulator: everything that has been spent on one data set, by whom,
//! how, and what the figures do not cover.
//!
//! A statement is computed from a [`Ledger`] alone, so whoever holds the ledger's entries can compute
//! it again and compare.

use serde::{Deserialize, Serialize};

use crate::{
    accountant::{self, EpsilonReport, Mechanism},
    ledger::Ledger,
    noise::NoiseKind,
    schedule::FixedSchedule,
    unit::{PrivacyUnit, Relation},
};

/// The two δ at which every statement gives ε; the third is 1 / (10 N).
const DELTAS: [f64; 2] = [1e-5, 1e-6];

/// How batches are drawn, in every run under differential privacy.
const SAMPLER: &str =
    "Poisson: each unit is in each batch independently, with the run's sampling rate";
/// Where randomness comes from.
const RANDOMNESS: &str = "ChaCha20 under a key of the operating system, fresh for each attempt at a round and never saved";
/// What the figures do not cover.
const EXCLUSIONS: [&str; 6] = [
    "that the institution takes part, in which rounds, and that a round failed or was withdrawn",
    "the schedule: rounds, steps, sampling rate, clipping norm and noise are public by plan",
    "the declared number of records or persons, and constants written into plans",
    "how long a round took",
    "what the institution does with its own data on its own machines",
    "what a model teaches about a population: one unit more or less changes little",
];

/// What the figures do not cover where institutions are the unit.
const EXCLUSIONS_OF_INSTITUTIONS: [&str; 4] = [
    "whoever adds the noise and those who see its memory: they see each institution's change in clear",
    "the schedule: rounds, expected cohort, clipping norm and noise are public by plan",
    "the number of institutions, and constants written into plans",
    "what a model teaches about a population: one institution more or less changes little",
];

/// What one data set has spent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statement {
    /// The number of privacy units that the institution declares in public.
    pub units_declared: u64,
    /// Whom the promise protects, if every run protects the same.
    pub unit: Option<PrivacyUnit>,
    /// How neighbouring data sets differ in the promise; each figure is also given for replacing one.
    pub relation: Relation,
    /// Everything together, at each δ.
    pub total: Vec<Figures>,
    /// Each run.
    pub runs: Vec<RunStatement>,
    /// How batches are drawn.
    pub sampler: String,
    /// Where randomness comes from.
    pub randomness: String,
    /// Attempts at rounds, each of which had keys of its own.
    pub n_keys: u64,
    /// What the figures do not cover.
    pub exclusions: Vec<String>,
}

/// ε at one δ. In JSON an infinite ε is `null`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figures {
    /// The δ.
    pub delta: f64,
    /// Each bound, and the smallest that is sound here.
    pub epsilon: EpsilonReport,
    /// The same releases, had they all been fixed in advance, where neighbours differ in one unit that
    /// is another in each.
    pub replace_one: EpsilonReport,
}

/// One run's part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunStatement {
    /// The run's id.
    pub run: String,
    /// The digest of its privacy plan, or of the whole plan where there is no privacy.
    #[serde(with = "crate::hex")]
    pub plan: [u8; 32],
    /// Whether it is over.
    pub closed: bool,
    /// Rounds that were debited.
    pub rounds_reserved: u32,
    /// Rounds whose bytes were allowed to leave.
    pub rounds_released: u32,
    /// Everything debited.
    pub mechanisms: Vec<Mechanism>,
    /// Whom the run protects; `None` without differential privacy.
    pub unit: Option<PrivacyUnit>,
    /// How gradients are noised; `None` without differential privacy.
    pub noise: Option<NoiseKind>,
    /// This run alone, at each δ.
    pub spent: Vec<Figures>,
}

impl Statement {
    /// The statement of `ledger` for a data set of `units_declared` privacy units (at least 1).
    pub fn new(ledger: &Ledger, units_declared: u64) -> Self {
        let small = 1.0 / (10.0 * units_declared.max(1) as f64);
        let deltas = [DELTAS[0], DELTAS[1], small];
        let runs: Vec<RunStatement> = ledger
            .runs()
            .map(|run| RunStatement {
                run: run.name.to_owned(),
                plan: run.plan,
                closed: run.closed,
                rounds_reserved: run.rounds_reserved,
                rounds_released: run.rounds_released,
                mechanisms: merged(run.used),
                unit: run.terms.map(|terms| terms.unit()),
                noise: run.terms.map(|terms| terms.noise()),
                spent: deltas
                    .iter()
                    .map(|&delta| Figures::new(delta, ledger.spent_by(run.name, delta), run.used))
                    .collect(),
            })
            .collect();
        let everything: Vec<Mechanism> =
            ledger.runs().flat_map(|run| run.used.iter().copied()).collect();
        let mut units = runs.iter().filter_map(|run| run.unit);
        let first = units.next();
        let unit = first.filter(|unit| units.all(|other| other == *unit));
        Self {
            units_declared,
            unit,
            relation: Relation::AddOrRemoveOne,
            total: deltas
                .iter()
                .map(|&delta| Figures::new(delta, ledger.spent_at(delta), &everything))
                .collect(),
            runs,
            sampler: SAMPLER.to_owned(),
            randomness: RANDOMNESS.to_owned(),
            n_keys: ledger.n_keys(),
            exclusions: match unit {
                Some(PrivacyUnit::Institution) => {
                    EXCLUSIONS_OF_INSTITUTIONS.map(str::to_owned).to_vec()
                }
                _ => EXCLUSIONS.map(str::to_owned).to_vec(),
            },
        }
    }
}

impl Figures {
    fn new(delta: f64, epsilon: EpsilonReport, mechanisms: &[Mechanism]) -> Self {
        let schedule = FixedSchedule::declared(merged(mechanisms));
        let replace_one = accountant::epsilon(&schedule, Relation::ReplaceOne, delta);
        Self { delta, epsilon, replace_one }
    }
}

/// The same releases with those of one kind together.
fn merged(mechanisms: &[Mechanism]) -> Vec<Mechanism> {
    let mut merged: Vec<Mechanism> = Vec::new();
    for mechanism in mechanisms {
        let joined = merged.iter_mut().any(|known| match (known, mechanism) {
            (
                Mechanism::SampledGaussian { q, sigma, steps },
                Mechanism::SampledGaussian { q: other_q, sigma: other_sigma, steps: more },
            ) if (*q, *sigma) == (*other_q, *other_sigma) => {
                *steps = steps.saturating_add(*more);
                true
            }
            (Mechanism::Zcdp { rho }, Mechanism::Zcdp { rho: more }) => {
                *rho += more;
                true
            }
            (Mechanism::Exempt, Mechanism::Exempt) => true,
            _ => false,
        });
        if !joined {
            merged.push(*mechanism);
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        accountant::BoundKind,
        ledger::{Charge, Limit, ReservationKey},
        plan::{PrivacyPlan, tests::request},
        randomness::Randomness,
    };

    #[test]
    fn a_statement_says_what_was_spent_on_whom_and_how() {
        let plan = PrivacyPlan::calibrate(&request()).unwrap();
        let limit = Limit { budget: Some(plan.budget()), exempt_allowed: true };
        let (mut ledger, mut store) = (Ledger::new(limit), Vec::new());
        for round in 1..=3 {
            let key = ReservationKey { run: "a".to_owned(), round };
            let charge = plan.charge(&Randomness::seeded(round as u8));
            let paid = ledger.reserve(&mut store, key, charge).unwrap();
            if round < 3 {
                ledger.commit(&mut store, paid.release(()).receipt(), [1; 32]).unwrap();
            }
        }
        let statement = Statement::new(&ledger, 2000);
        assert_eq!(statement.unit, Some(PrivacyUnit::Record));
        assert_eq!(statement.n_keys, 3);
        let run = &statement.runs[0];
        assert_eq!((run.rounds_reserved, run.rounds_released), (3, 2));
        assert_eq!(run.noise, Some(NoiseKind::DiscreteGaussian));
        assert_eq!(run.mechanisms.len(), 2);
        assert!(
            matches!(run.mechanisms[0], Mechanism::SampledGaussian { steps: 15, .. }),
            "{run:?}"
        );
        let deltas: Vec<f64> = statement.total.iter().map(|figures| figures.delta).collect();
        assert_eq!(deltas, [1e-5, 1e-6, 5e-5]);
        let after = plan.epsilon_after(3).epsilon;
        assert!((statement.total[0].epsilon.epsilon / after - 1.0).abs() < 1e-9);

        assert_eq!(statement.total[0].epsilon.bound, BoundKind::Pld);
        let replace_one = statement.total[0].replace_one.epsilon;
        assert!(replace_one > after && replace_one < 3.0 * after, "{replace_one}");

        let text = serde_json::to_string(&statement).unwrap();
        assert_eq!(serde_json::from_str::<Statement>(&text).unwrap(), statement);

        let key = ReservationKey { run: "b".to_owned(), round: 1 };
        let _open = ledger.reserve(&mut store, key, Charge::exempt([0; 32])).unwrap();
        let open = Statement::new(&ledger, 2000);
        assert_eq!(open.total[0].epsilon.epsilon, f64::INFINITY);
        assert_eq!(open.runs[1].noise, None);
    }
}
