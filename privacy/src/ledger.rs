//! What this institution has spent, and the refusal to spend more.
//!
//! ```text
//!  (none) --reserve: debited, durable--> reserved --commit--> committed
//!                                          |  ^                  |
//!                      crash, replay,      |  |                  +-- reserve: refused
//!                      reserve again       +--+                  +-- commit, same bytes: nothing
//!                      (no second charge)                        +-- commit, other bytes: refused
//! ```
//!
//! A release is debited before its noise is drawn, and committed before its bytes leave: the caller
//! sends nothing whose [`Ledger::commit`] has not returned `Ok`. A key that is reserved but not
//! committed is therefore one of which nobody outside has seen anything, and opening it again
//! without a second charge is sound: at most one release per key can ever be committed, and it was
//! paid for.
//!
//! A run's plan fixes all of its rounds before the first, so the budget is asked for the whole run
//! when its first round is reserved: a run that the budget cannot carry to its end is refused at its
//! start. While it is open its whole schedule counts; once it is closed, the rounds that it made.
//!
//! What counts is bounded as follows, which is sound because each case is known before any output
//! (docs/privacy.md, section 6): a run that is the only one has a schedule fixed in advance, so every
//! bound applies to it, numerical composition included. As soon as there are several, the later ones
//! may have been chosen after seeing the earlier, and only Rényi and Gaussian filters apply. A closed
//! run that those filters alone would not have admitted goes on counting in full.
//!
//! The ledger does not know files. A [`LedgerStore`] makes entries durable and [`Ledger::replay`]
//! folds them back. After a failed write nobody knows what is on the disk, so the ledger then
//! refuses everything until it is replayed.

mod book;

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use self::book::{Book, of_one_run};
use crate::{
    accountant::{EpsilonReport, Mechanism},
    budget::Budget,
    error::PrivacyError,
    plan::PrivacyPlan,
    release::{Receipt, Released},
};

/// The δ of reports where no budget names one.
const DELTA_WITHOUT_BUDGET: f64 = 1e-6;

/// What a release is for: one round of one run. Each is released at most once.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReservationKey {
    /// The run's id.
    pub run: String,
    /// The round, from the run's first.
    pub round: u32,
}

impl fmt::Display for ReservationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "round {} of run {}", self.round, self.run)
    }
}

/// One line of the ledger.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum LedgerEntry {
    /// A run was admitted with all that its plan will ever release.
    Opened {
        /// The run's id.
        run: String,
        /// What the whole run costs at most.
        schedule: Vec<Mechanism>,
        /// The digest of the plan.
        #[serde(with = "crate::hex")]
        plan: [u8; 32],
        /// The plan itself, where there is differential privacy.
        terms: Option<Box<PrivacyPlan>>,
    },
    /// A release was debited; its noise may be drawn.
    Reserved {
        /// What it is for.
        key: ReservationKey,
        /// What was debited.
        mechanisms: Vec<Mechanism>,
        /// Names the keys of its batches and noise.
        #[serde(with = "crate::hex::optional")]
        randomness: Option<[u8; 32]>,
    },
    /// A release that was debited, but not committed, is made again, under other keys.
    Reopened {
        /// What it is for.
        key: ReservationKey,
        /// Names the keys of its batches and noise.
        #[serde(with = "crate::hex::optional")]
        randomness: Option<[u8; 32]>,
    },
    /// A release is final; its bytes may leave.
    Committed {
        /// What it is for.
        key: ReservationKey,
        /// The digest of the bytes.
        #[serde(with = "crate::hex")]
        release: [u8; 32],
    },
    /// A run is over: what it did not use is free again.
    Closed {
        /// The run's id.
        run: String,
    },
}

/// What a round is debited, and the run to which it belongs.
#[derive(Debug, Clone, PartialEq)]
pub struct Charge {
    /// This release.
    pub(crate) mechanisms: Vec<Mechanism>,
    /// All releases of the run, this one included.
    pub(crate) schedule: Vec<Mechanism>,
    pub(crate) plan: [u8; 32],
    pub(crate) terms: Option<Box<PrivacyPlan>>,
    pub(crate) randomness: Option<[u8; 32]>,
}

impl Charge {
    /// A run without differential privacy, under the plan of this digest.
    pub fn exempt(plan: [u8; 32]) -> Self {
        Self::single(vec![Mechanism::Exempt], plan, None)
    }

    /// Whether the release is without differential privacy.
    #[must_use]
    pub fn is_exempt(&self) -> bool {
        self.mechanisms.contains(&Mechanism::Exempt)
    }

    /// A release that is not part of a [`PrivacyPlan`] and stands alone in its run. `randomness`
    /// names the keys of its noise.
    pub fn single(
        mechanisms: Vec<Mechanism>,
        plan: [u8; 32],
        randomness: Option<[u8; 32]>,
    ) -> Self {
        Self { schedule: mechanisms.clone(), mechanisms, plan, terms: None, randomness }
    }
}

/// Where ledger entries are made durable.
pub trait LedgerStore {
    /// Appends an entry. `Ok` means that it survives a crash of the machine.
    ///
    /// # Errors
    /// The store's own words. The entry may or may not be durable then.
    fn append(&mut self, entry: &LedgerEntry) -> Result<(), String>;
}

/// Durable for as long as the process lives: for tests and the simulator.
impl LedgerStore for Vec<LedgerEntry> {
    fn append(&mut self, entry: &LedgerEntry) -> Result<(), String> {
        self.push(entry.clone());
        Ok(())
    }
}

/// What the institution allows in all.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limit {
    /// The most that differentially private releases may cost together. Without one they are
    /// allowed only where exempt ones are, which cost more than any.
    pub budget: Option<Budget>,
    /// Whether data may be released without differential privacy. Where it may, the budget counts
    /// only the private releases.
    pub exempt_allowed: bool,
}

impl Limit {
    /// The δ at which this limit reckons: the budget's, 1e-6 without one.
    pub fn delta(&self) -> f64 {
        self.budget.map_or(DELTA_WITHOUT_BUDGET, |budget| budget.delta.get())
    }
}

/// One run, as the ledger knows it.
#[derive(Debug, Clone, Copy)]
pub struct RunSummary<'a> {
    /// The run's id.
    pub name: &'a str,
    /// The digest of its plan.
    pub plan: [u8; 32],
    /// The privacy plan; `None` without differential privacy.
    pub terms: Option<&'a PrivacyPlan>,
    /// Everything debited.
    pub used: &'a [Mechanism],
    /// Whether it is over.
    pub closed: bool,
    /// Rounds that were debited.
    pub rounds_reserved: u32,
    /// Rounds that were committed.
    pub rounds_released: u32,
}

/// The privacy that one data set has spent, across runs and coordinators.
#[derive(Debug, Clone)]
pub struct Ledger {
    limit: Limit,
    book: Book,
    /// The run that was admitted last and the number of runs then: while nothing else was opened or
    /// closed, its further rounds need no new reckoning.
    admitted: Option<(String, usize)>,
    store_failed: bool,
}

impl Ledger {
    /// A ledger that has spent nothing.
    pub fn new(limit: Limit) -> Self {
        Self { limit, book: Book::new(), admitted: None, store_failed: false }
    }

    /// The ledger that wrote `entries`, under `limit`, which may since have become stricter: what
    /// is spent stays spent.
    ///
    /// # Errors
    /// [`PrivacyError::LedgerInvalid`] if the entries cannot have been written by a ledger.
    pub fn replay(
        limit: Limit,
        entries: impl IntoIterator<Item = LedgerEntry>,
    ) -> Result<Self, PrivacyError> {
        let mut ledger = Self::new(limit);
        for entry in entries {
            ledger.book.check(&entry)?;
            ledger.book.record(entry);
        }
        Ok(ledger)
    }

    /// Debits a release durably and hands out the right to make it.
    ///
    /// A key that is already reserved for the same mechanisms under the same plan, and not
    /// committed, is opened again without a second charge (see the module's text).
    ///
    /// # Errors
    /// Nothing is debited by any of [`PrivacyError::AlreadyReleased`],
    /// [`PrivacyError::ReservationConflict`], [`PrivacyError::ExemptNotAllowed`],
    /// [`PrivacyError::NoBudget`], [`PrivacyError::BudgetExceeded`],
    /// [`PrivacyError::OutOfRange`] (a mechanism without a meaning),
    /// [`PrivacyError::RandomnessReused`] and [`PrivacyError::RunOver`].
    /// [`PrivacyError::LedgerStore`] if the entry could not be made durable; the ledger then has to
    /// be replayed.
    pub fn reserve(
        &mut self,
        store: &mut dyn LedgerStore,
        key: ReservationKey,
        charge: Charge,
    ) -> Result<Reservation, PrivacyError> {
        self.refuse_after_failed_write()?;
        for mechanism in charge.mechanisms.iter().chain(&charge.schedule) {
            mechanism.validate()?;
        }
        if charge.is_exempt() && !self.limit.exempt_allowed {
            return Err(PrivacyError::ExemptNotAllowed { key });
        }
        if charge.randomness.is_some_and(|id| self.book.knows_randomness(&id)) {
            return Err(PrivacyError::RandomnessReused { key });
        }
        let known = self.book.run(&key.run);
        if known.is_some_and(|run| run.plan != charge.plan || run.schedule != charge.schedule) {
            return Err(PrivacyError::ReservationConflict { key });
        }
        if let Some(known) = self.book.charge(&key) {
            if known.release.is_some() {
                return Err(PrivacyError::AlreadyReleased { key });
            }
            if known.mechanisms != charge.mechanisms {
                return Err(PrivacyError::ReservationConflict { key });
            }
            let entry = LedgerEntry::Reopened { key: key.clone(), randomness: charge.randomness };
            self.append(store, entry)?;
        } else {
            if known.is_some_and(|run| run.closed) {
                return Err(PrivacyError::RunOver { key });
            }
            if !self.book.fits_schedule(&key.run, &charge) {
                return Err(PrivacyError::ReservationConflict { key });
            }
            let n_others = self.book.runs().filter(|(run, _)| *run != key.run).count();
            let admitted = Some((key.run.clone(), n_others));
            if self.admitted != admitted {
                self.refuse_past_budget(&key, &charge.schedule)?;
                self.admitted = admitted;
            }
            if self.book.run(&key.run).is_none() {
                let entry = LedgerEntry::Opened {
                    run: key.run.clone(),
                    schedule: charge.schedule.clone(),
                    plan: charge.plan,
                    terms: charge.terms.clone(),
                };
                self.append(store, entry)?;
            }
            let entry = LedgerEntry::Reserved {
                key: key.clone(),
                mechanisms: charge.mechanisms.clone(),
                randomness: charge.randomness,
            };
            self.append(store, entry)?;
        }
        let receipt = Receipt::new(key, charge.mechanisms, charge.plan);
        Ok(Reservation { receipt, randomness: charge.randomness })
    }

    /// Notes that a run is over, so that only the rounds that it made go on counting. The caller's
    /// own record of the run's end makes it durable: a crash before leaves the run open.
    pub fn close(&mut self, run: &str) {
        if self.book.run(run).is_some_and(|run| !run.closed) {
            self.book.record(LedgerEntry::Closed { run: run.to_owned() });
        }
    }

    /// What the budget would say to one more run with this schedule: its cost together with what
    /// counts already, at the budget's δ (1e-6 without a budget). Nothing is debited.
    pub fn forecast(&self, schedule: &[Mechanism]) -> EpsilonReport {
        self.forecast_among(|_| true, schedule)
    }

    /// As [`forecast`](Self::forecast), of those runs alone for which `is_counted` says so, such as a
    /// year's.
    pub fn forecast_among(
        &self,
        is_counted: impl Fn(&str) -> bool,
        schedule: &[Mechanism],
    ) -> EpsilonReport {
        self.book.counted(is_counted, schedule, self.limit)
    }

    /// Makes a release final. Nothing may leave before this returns `Ok`.
    ///
    /// Committing the same bytes again changes nothing and succeeds.
    ///
    /// # Errors
    /// [`PrivacyError::NotReserved`] if this ledger never debited it,
    /// [`PrivacyError::AlreadyReleased`] if other bytes were committed for the key,
    /// [`PrivacyError::LedgerStore`] if the entry could not be made durable.
    pub fn commit(
        &mut self,
        store: &mut dyn LedgerStore,
        receipt: &Receipt,
        release_digest: [u8; 32],
    ) -> Result<(), PrivacyError> {
        self.refuse_after_failed_write()?;
        let key = receipt.key().clone();
        let plan = self.book.run(&key.run).map(|run| run.plan);
        let charge = self.book.charge(&key).filter(|charge| {
            charge.mechanisms == receipt.mechanisms() && plan == Some(receipt.plan_digest())
        });
        match charge.map(|charge| charge.release) {
            None => Err(PrivacyError::NotReserved { key }),
            Some(Some(release)) if release == release_digest => Ok(()),
            Some(Some(_)) => Err(PrivacyError::AlreadyReleased { key }),
            Some(None) => {
                self.append(store, LedgerEntry::Committed { key, release: release_digest })
            }
        }
    }

    /// Everything debited so far, at the budget's δ (1e-6 without a budget).
    pub fn spent(&self) -> EpsilonReport {
        self.spent_at(self.delta())
    }

    /// Everything debited so far, at `delta`.
    pub fn spent_at(&self, delta: f64) -> EpsilonReport {
        self.book.spent(delta)
    }

    /// What each run was debited, at `delta`.
    pub fn spent_by_run(&self, delta: f64) -> BTreeMap<String, EpsilonReport> {
        let runs = self.book.runs();
        runs.map(|(run, record)| (run.to_owned(), of_one_run(&record.used, delta))).collect()
    }

    /// What one run was debited, at `delta`; nothing for a run that is not known.
    pub fn spent_by(&self, run: &str, delta: f64) -> EpsilonReport {
        let used = self.book.run(run).map_or(&[][..], |run| &run.used);
        of_one_run(used, delta)
    }

    /// All runs, by name.
    pub fn runs(&self) -> impl Iterator<Item = RunSummary<'_>> {
        self.book.runs().map(|(name, run)| {
            let (rounds_reserved, rounds_released) = self.book.n_rounds(name);
            RunSummary {
                name,
                plan: run.plan,
                terms: run.terms.as_deref(),
                used: &run.used,
                closed: run.closed,
                rounds_reserved,
                rounds_released,
            }
        })
    }

    /// Whether a round of `run` was ever debited.
    pub fn knows(&self, run: &str) -> bool {
        self.book.run(run).is_some()
    }

    /// Attempts at rounds, each of which had keys of its own.
    pub fn n_keys(&self) -> u64 {
        self.book.n_keys()
    }

    /// All entries, in the order in which they were made durable.
    pub fn entries(&self) -> &[LedgerEntry] {
        self.book.entries()
    }

    /// What the institution allows.
    pub fn limit(&self) -> Limit {
        self.limit
    }

    fn delta(&self) -> f64 {
        self.limit.delta()
    }

    fn refuse_past_budget(
        &self,
        key: &ReservationKey,
        schedule: &[Mechanism],
    ) -> Result<(), PrivacyError> {
        let Some(budget) = self.limit.budget else {
            return if self.limit.exempt_allowed {
                Ok(())
            } else {
                Err(PrivacyError::NoBudget { key: key.clone() })
            };
        };
        let others = |run: &str| run != key.run;
        let asked = self.book.counted(others, schedule, self.limit).epsilon;
        let (largest, delta) = (budget.epsilon.get(), budget.delta.get());
        // Not `asked > largest`: a NaN is refused too.
        if asked <= largest {
            return Ok(());
        }
        let spent = self.book.counted(others, &[], self.limit).epsilon;
        Err(PrivacyError::BudgetExceeded { key: key.clone(), spent, asked, budget: largest, delta })
    }

    fn refuse_after_failed_write(&self) -> Result<(), PrivacyError> {
        if self.store_failed {
            let reason = "an earlier write failed; restart to replay the ledger".to_owned();
            return Err(PrivacyError::LedgerStore { reason });
        }
        Ok(())
    }

    fn append(
        &mut self,
        store: &mut dyn LedgerStore,
        entry: LedgerEntry,
    ) -> Result<(), PrivacyError> {
        if let Err(reason) = store.append(&entry) {
            self.store_failed = true;
            return Err(PrivacyError::LedgerStore { reason });
        }
        self.book.record(entry);
        Ok(())
    }
}

/// The right, paid for, to make one release. It is used up by making it.
#[derive(Debug)]
#[must_use = "its privacy is already paid for"]
pub struct Reservation {
    receipt: Receipt,
    randomness: Option<[u8; 32]>,
}

impl Reservation {
    /// The run and round that it is for.
    pub fn key(&self) -> &ReservationKey {
        self.receipt.key()
    }

    /// What was debited.
    pub fn mechanisms(&self) -> &[Mechanism] {
        self.receipt.mechanisms()
    }

    /// The digest of the plan that it is for.
    pub fn plan_digest(&self) -> [u8; 32] {
        self.receipt.plan_digest()
    }

    /// The name of the keys that the ledger has recorded for it.
    pub fn randomness(&self) -> Option<[u8; 32]> {
        self.randomness
    }

    /// Releases a value without differential privacy.
    ///
    /// # Errors
    /// [`PrivacyError::ReservationMismatch`] unless exactly [`Mechanism::Exempt`] was reserved.
    pub fn release_exempt<T>(self, value: T) -> Result<Released<T>, PrivacyError> {
        if self.mechanisms() == [Mechanism::Exempt] {
            Ok(self.release(value))
        } else {
            Err(self.mismatch("an exempt release"))
        }
    }

    pub(crate) fn release<T>(self, value: T) -> Released<T> {
        Released::new(value, self.receipt)
    }

    pub(crate) fn mismatch(&self, wanted: &'static str) -> PrivacyError {
        PrivacyError::ReservationMismatch { key: self.key().clone(), wanted }
    }
}

#[cfg(test)]
mod tests;
