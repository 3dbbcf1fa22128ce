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
//! The ledger does not know files. A [`LedgerStore`] makes entries durable and [`Ledger::replay`]
//! folds them back. After a failed write nobody knows what is on the disk, so the ledger then
//! refuses everything until it is replayed.

mod book;

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use self::book::Book;
use crate::{
    accountant::{Accountant, EpsilonReport, Mechanism},
    budget::Budget,
    error::PrivacyError,
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
    /// A release was debited; its noise may be drawn.
    Reserved {
        /// What it is for.
        key: ReservationKey,
        /// What was debited.
        mechanisms: Vec<Mechanism>,
        /// The digest of the plan.
        #[serde(with = "crate::hex")]
        plan: [u8; 32],
    },
    /// A release is final; its bytes may leave.
    Committed {
        /// What it is for.
        key: ReservationKey,
        /// The digest of the bytes.
        #[serde(with = "crate::hex")]
        release: [u8; 32],
    },
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

/// The privacy that one data set has spent, across runs and coordinators.
#[derive(Debug, Clone)]
pub struct Ledger {
    limit: Limit,
    book: Book,
    store_failed: bool,
}

impl Ledger {
    /// A ledger that has spent nothing.
    pub fn new(limit: Limit) -> Self {
        Self { limit, book: Book::new(), store_failed: false }
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
    /// [`PrivacyError::NoBudget`], [`PrivacyError::BudgetExceeded`] and
    /// [`PrivacyError::OutOfRange`] (a mechanism without a meaning).
    /// [`PrivacyError::LedgerStore`] if the entry could not be made durable; the ledger then has to
    /// be replayed.
    pub fn reserve(
        &mut self,
        store: &mut dyn LedgerStore,
        key: ReservationKey,
        mechanisms: Vec<Mechanism>,
        plan_digest: [u8; 32],
    ) -> Result<Reservation, PrivacyError> {
        self.refuse_after_failed_write()?;
        for mechanism in &mechanisms {
            mechanism.validate()?;
        }
        let exempt = mechanisms.contains(&Mechanism::Exempt);
        if exempt && !self.limit.exempt_allowed {
            return Err(PrivacyError::ExemptNotAllowed { key });
        }
        if let Some(charge) = self.book.charge(&key) {
            if charge.release.is_some() {
                return Err(PrivacyError::AlreadyReleased { key });
            }
            if charge.mechanisms != mechanisms || charge.plan != plan_digest {
                return Err(PrivacyError::ReservationConflict { key });
            }
        } else {
            self.refuse_past_budget(&key, &mechanisms)?;
            let entry = LedgerEntry::Reserved {
                key: key.clone(),
                mechanisms: mechanisms.clone(),
                plan: plan_digest,
            };
            self.append(store, entry)?;
        }
        Ok(Reservation { receipt: Receipt::new(key, mechanisms, plan_digest) })
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
        let charge = self.book.charge(&key).filter(|charge| {
            charge.mechanisms == receipt.mechanisms() && charge.plan == receipt.plan_digest()
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
        self.book.all().report(delta)
    }

    /// What each run was debited, at `delta`.
    pub fn spent_by_run(&self, delta: f64) -> BTreeMap<String, EpsilonReport> {
        let mut accountants: BTreeMap<&str, Accountant> = BTreeMap::new();
        for (key, charge) in self.book.charges() {
            let accountant = accountants.entry(&key.run).or_insert_with(Accountant::new);
            charge.mechanisms.iter().for_each(|mechanism| accountant.charge(mechanism));
        }
        accountants.into_iter().map(|(run, a)| (run.to_owned(), a.report(delta))).collect()
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
        self.limit.budget.map_or(DELTA_WITHOUT_BUDGET, |budget| budget.delta.get())
    }

    fn refuse_past_budget(
        &self,
        key: &ReservationKey,
        mechanisms: &[Mechanism],
    ) -> Result<(), PrivacyError> {
        let private = mechanisms.iter().filter(|mechanism| **mechanism != Mechanism::Exempt);
        let Some(budget) = self.limit.budget else {
            return if self.limit.exempt_allowed {
                Ok(())
            } else {
                Err(PrivacyError::NoBudget { key: key.clone() })
            };
        };
        let counted = if self.limit.exempt_allowed { self.book.private() } else { self.book.all() };
        let mut asked = counted.clone();
        private.for_each(|mechanism| asked.charge(mechanism));
        let (epsilon, delta) = (budget.epsilon.get(), budget.delta.get());
        let asked = asked.report(delta).epsilon;
        // Not `asked > epsilon`: a NaN is refused too.
        if asked <= epsilon {
            return Ok(());
        }
        let spent = counted.report(delta).epsilon;
        Err(PrivacyError::BudgetExceeded { key: key.clone(), spent, asked, budget: epsilon, delta })
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
