//! The fold of ledger entries into what is spent. It knows no store.

use std::collections::{BTreeMap, BTreeSet};

use super::{Charge, LedgerEntry, Limit, ReservationKey};
use crate::{
    accountant::{Accountant, EpsilonReport, Mechanism, epsilon},
    error::PrivacyError,
    plan::PrivacyPlan,
    schedule::FixedSchedule,
    unit::Relation,
};

/// Covers the rounding of adding up a schedule's ρ round by round.
const RHO_SLACK: f64 = 1e-9;

/// One debit and what became of it.
#[derive(Debug, Clone)]
pub(super) struct Debit {
    pub(super) mechanisms: Vec<Mechanism>,
    pub(super) release: Option<[u8; 32]>,
}

/// One run and what it has used.
#[derive(Debug, Clone)]
pub(super) struct RunRecord {
    pub(super) schedule: Vec<Mechanism>,
    pub(super) plan: [u8; 32],
    pub(super) terms: Option<Box<PrivacyPlan>>,
    pub(super) closed: bool,
    pub(super) used: Vec<Mechanism>,
}

#[derive(Debug, Clone)]
pub(super) struct Book {
    entries: Vec<LedgerEntry>,
    runs: BTreeMap<String, RunRecord>,
    debits: BTreeMap<ReservationKey, Debit>,
    randomness: BTreeSet<[u8; 32]>,
    all: Accountant,
}

impl Book {
    pub(super) fn new() -> Self {
        Self {
            entries: Vec::new(),
            runs: BTreeMap::new(),
            debits: BTreeMap::new(),
            randomness: BTreeSet::new(),
            all: Accountant::new(),
        }
    }

    pub(super) fn entries(&self) -> &[LedgerEntry] {
        &self.entries
    }

    pub(super) fn charge(&self, key: &ReservationKey) -> Option<&Debit> {
        self.debits.get(key)
    }

    pub(super) fn run(&self, run: &str) -> Option<&RunRecord> {
        self.runs.get(run)
    }

    pub(super) fn runs(&self) -> impl Iterator<Item = (&str, &RunRecord)> {
        self.runs.iter().map(|(run, record)| (run.as_str(), record))
    }

    /// Whether keys of this name were recorded before.
    pub(super) fn knows_randomness(&self, id: &[u8; 32]) -> bool {
        self.randomness.contains(id)
    }

    pub(super) fn n_keys(&self) -> u64 {
        self.randomness.len() as u64
    }

    /// How many rounds of `run` were debited, and how many of them were committed.
    pub(super) fn n_rounds(&self, run: &str) -> (u32, u32) {
        let of_run = || self.debits.iter().filter(|(key, _)| key.run == run);
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let n_released = of_run().filter(|(_, debit)| debit.release.is_some()).count();
        (count(of_run().count()), count(n_released))
    }

    /// The cost of everything debited, exempt releases included. A run that is the only one has a
    /// schedule fixed in advance, so every bound applies to it.
    pub(super) fn spent(&self, delta: f64) -> EpsilonReport {
        let mut runs = self.runs.values();
        match (runs.next(), runs.next()) {
            (Some(only), None) => of_one_run(&only.used, delta),
            _ => self.all.report(delta),
        }
    }

    /// Whether the run's schedule has room for one more round like this.
    pub(super) fn fits_schedule(&self, run: &str, charge: &Charge) -> bool {
        let used = self.run(run).map_or(&[][..], |run| &run.used);
        let total: Vec<Mechanism> = used.iter().chain(&charge.mechanisms).copied().collect();
        is_within(&total, &charge.schedule)
    }

    /// What counts against `limit`, with one more run of this schedule, of those runs for which
    /// `is_counted` says so.
    pub(super) fn counted(
        &self,
        is_counted: impl Fn(&str) -> bool,
        schedule: &[Mechanism],
        limit: Limit,
    ) -> EpsilonReport {
        let counts =
            |mechanism: &&Mechanism| !limit.exempt_allowed || **mechanism != Mechanism::Exempt;
        let others: Vec<(&str, &RunRecord)> = self
            .runs()
            .filter(|(name, record)| is_counted(name) && record.schedule.iter().any(|m| counts(&m)))
            .collect();
        let asked: Vec<Mechanism> = schedule.iter().filter(counts).copied().collect();
        if others.is_empty() {
            return of_one_run(&asked, limit.delta());
        }
        if let ([(_, only)], []) = (&others[..], &asked[..]) {
            let of_run: Vec<Mechanism> =
                only.counted(limit).iter().filter(counts).copied().collect();
            return of_one_run(&of_run, limit.delta());
        }
        let mut accountant = Accountant::new();
        for (_, record) in others {
            record.counted(limit).iter().filter(counts).for_each(|m| accountant.charge(m));
        }
        asked.iter().for_each(|mechanism| accountant.charge(mechanism));
        accountant.report(limit.delta())
    }

    /// Whether a ledger can have written `entry` next.
    pub(super) fn check(&self, entry: &LedgerEntry) -> Result<(), PrivacyError> {
        let means_nothing = |mechanisms: &[Mechanism]| {
            mechanisms.iter().any(|mechanism| mechanism.validate().is_err())
        };
        let repeats = |randomness: &Option<[u8; 32]>| {
            randomness.is_some_and(|id| self.randomness.contains(&id))
        };
        let reason = match entry {
            LedgerEntry::Opened { run, schedule, plan, terms } => {
                if self.runs.contains_key(run) {
                    Some("it opens a run that is already open")
                } else if means_nothing(schedule) {
                    Some("it opens a run with a mechanism whose parameters mean nothing")
                } else if terms.as_ref().is_some_and(|terms| {
                    terms.digest() != *plan || terms.schedule().mechanisms() != schedule
                }) {
                    Some("it opens a run whose plan is not the one of its digest and schedule")
                } else {
                    None
                }
            }
            LedgerEntry::Reserved { key, mechanisms, randomness } => {
                let within = self.runs.get(&key.run).map(|run| {
                    let total: Vec<_> = run.used.iter().chain(mechanisms).copied().collect();
                    is_within(&total, &run.schedule)
                });
                if self.debits.contains_key(key) {
                    Some("it reserves a round that is already reserved")
                } else if means_nothing(mechanisms) {
                    Some("it reserves a mechanism whose parameters mean nothing")
                } else if repeats(randomness) {
                    Some("it uses keys of noise a second time")
                } else {
                    match within {
                        None => Some("it reserves a round of a run that was never opened"),
                        Some(false) => Some("it reserves more than its run may use"),
                        Some(true) => None,
                    }
                }
            }
            LedgerEntry::Reopened { key, randomness } => match self.debits.get(key) {
                None => Some("it opens again a round that was never reserved"),
                Some(Debit { release: Some(_), .. }) => {
                    Some("it opens again a round that was committed")
                }
                Some(_) if repeats(randomness) => Some("it uses keys of noise a second time"),
                Some(_) => None,
            },
            LedgerEntry::Committed { key, .. } => match self.debits.get(key) {
                None => Some("it commits a round that was never reserved"),
                Some(Debit { release: Some(_), .. }) => Some("it commits a round a second time"),
                Some(_) => None,
            },
            LedgerEntry::Closed { run } => match self.runs.get(run) {
                None => Some("it closes a run that was never opened"),
                Some(_) => None,
            },
        };
        match reason {
            Some(reason) => Err(PrivacyError::LedgerInvalid { entry: self.entries.len(), reason }),
            None => Ok(()),
        }
    }

    /// Takes in an entry that is durable and that [`Book::check`] accepts.
    pub(super) fn record(&mut self, entry: LedgerEntry) {
        match &entry {
            LedgerEntry::Opened { run, schedule, plan, terms } => {
                let record = RunRecord {
                    schedule: schedule.clone(),
                    plan: *plan,
                    terms: terms.clone(),
                    closed: false,
                    used: Vec::new(),
                };
                self.runs.insert(run.clone(), record);
            }
            LedgerEntry::Reserved { key, mechanisms, randomness } => {
                mechanisms.iter().for_each(|mechanism| self.all.charge(mechanism));
                if let Some(run) = self.runs.get_mut(&key.run) {
                    run.used.extend(mechanisms);
                }
                let debit = Debit { mechanisms: mechanisms.clone(), release: None };
                self.debits.insert(key.clone(), debit);
                self.randomness.extend(randomness);
            }
            LedgerEntry::Reopened { randomness, .. } => self.randomness.extend(randomness),
            LedgerEntry::Committed { key, release } => {
                if let Some(debit) = self.debits.get_mut(key) {
                    debit.release = Some(*release);
                }
            }
            LedgerEntry::Closed { run } => {
                if let Some(run) = self.runs.get_mut(run) {
                    run.closed = true;
                }
            }
        }
        self.entries.push(entry);
    }
}

impl RunRecord {
    /// What of this run counts against `limit`: see the text of the parent module.
    fn counted(&self, limit: Limit) -> &[Mechanism] {
        let admitted_by_filters = limit.budget.is_none_or(|budget| {
            let mut accountant = Accountant::new();
            self.schedule.iter().for_each(|mechanism| accountant.charge(mechanism));
            accountant.report(budget.delta.get()).epsilon <= budget.epsilon.get()
        });
        if self.closed && admitted_by_filters { &self.used } else { &self.schedule }
    }
}

/// The cost of one run, whose plan fixed all its releases in advance.
pub(super) fn of_one_run(mechanisms: &[Mechanism], delta: f64) -> EpsilonReport {
    let schedule = FixedSchedule::declared(mechanisms.to_vec());
    epsilon(&schedule, Relation::AddOrRemoveOne, delta)
}

/// Whether `used` is no more than `schedule`, kind by kind.
fn is_within(used: &[Mechanism], schedule: &[Mechanism]) -> bool {
    let steps = |list: &[Mechanism], q: f64, sigma: f64| -> u64 {
        list.iter()
            .filter_map(|mechanism| match *mechanism {
                Mechanism::SampledGaussian { q: other_q, sigma: other_sigma, steps }
                    if (other_q, other_sigma) == (q, sigma) =>
                {
                    Some(steps)
                }
                _ => None,
            })
            .fold(0, u64::saturating_add)
    };
    let rho = |list: &[Mechanism]| -> f64 {
        list.iter()
            .map(|mechanism| if let Mechanism::Zcdp { rho } = mechanism { *rho } else { 0.0 })
            .sum()
    };
    used.iter().all(|mechanism| match *mechanism {
        Mechanism::SampledGaussian { q, sigma, .. } => {
            steps(used, q, sigma) <= steps(schedule, q, sigma)
        }
        Mechanism::Zcdp { .. } => rho(used) <= rho(schedule) * (1.0 + RHO_SLACK),
        Mechanism::Exempt => schedule.contains(&Mechanism::Exempt),
    })
}
