//! The fold of ledger entries into what is spent. It knows no limit and no store.

use std::collections::BTreeMap;

use super::{LedgerEntry, ReservationKey};
use crate::{
    accountant::{Accountant, Mechanism},
    error::PrivacyError,
};

/// One debit and what became of it.
#[derive(Debug, Clone)]
pub(super) struct Charge {
    pub(super) mechanisms: Vec<Mechanism>,
    pub(super) plan: [u8; 32],
    pub(super) release: Option<[u8; 32]>,
}

#[derive(Debug, Clone)]
pub(super) struct Book {
    entries: Vec<LedgerEntry>,
    charges: BTreeMap<ReservationKey, Charge>,
    all: Accountant,
    private: Accountant,
}

impl Book {
    pub(super) fn new() -> Self {
        Self {
            entries: Vec::new(),
            charges: BTreeMap::new(),
            all: Accountant::new(),
            private: Accountant::new(),
        }
    }

    pub(super) fn entries(&self) -> &[LedgerEntry] {
        &self.entries
    }

    pub(super) fn charge(&self, key: &ReservationKey) -> Option<&Charge> {
        self.charges.get(key)
    }

    pub(super) fn charges(&self) -> impl Iterator<Item = (&ReservationKey, &Charge)> {
        self.charges.iter()
    }

    /// The cost of everything, exempt releases included.
    pub(super) fn all(&self) -> &Accountant {
        &self.all
    }

    /// The cost of the differentially private releases alone.
    pub(super) fn private(&self) -> &Accountant {
        &self.private
    }

    /// Whether a ledger can have written `entry` next.
    pub(super) fn check(&self, entry: &LedgerEntry) -> Result<(), PrivacyError> {
        let reason = match entry {
            LedgerEntry::Reserved { key, mechanisms, .. } => {
                if self.charges.contains_key(key) {
                    Some("it reserves a round that is already reserved")
                } else if mechanisms.iter().any(|mechanism| mechanism.validate().is_err()) {
                    Some("it reserves a mechanism whose parameters mean nothing")
                } else {
                    None
                }
            }
            LedgerEntry::Committed { key, .. } => match self.charges.get(key) {
                None => Some("it commits a round that was never reserved"),
                Some(Charge { release: Some(_), .. }) => Some("it commits a round a second time"),
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
            LedgerEntry::Reserved { key, mechanisms, plan } => {
                for mechanism in mechanisms {
                    self.all.charge(mechanism);
                    if *mechanism != Mechanism::Exempt {
                        self.private.charge(mechanism);
                    }
                }
                let charge = Charge { mechanisms: mechanisms.clone(), plan: *plan, release: None };
                self.charges.insert(key.clone(), charge);
            }
            LedgerEntry::Committed { key, release } => {
                if let Some(charge) = self.charges.get_mut(key) {
                    charge.release = Some(*release);
                }
            }
        }
        self.entries.push(entry);
    }
}
