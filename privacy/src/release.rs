//! The one door: a type that can only be made by paying.

use serde::Serialize;

use crate::{accountant::Mechanism, ledger::ReservationKey};

/// A value that may leave the institution, with proof of what paid for it.
///
/// Only this crate makes one, out of a [`Reservation`](crate::ledger::Reservation), and it cannot
/// be deserialised. Whatever is computed from it alone is as private as it is.
///
/// ```compile_fail,E0451
/// use comity_privacy::{Receipt, Released};
/// fn smuggle(rows: Vec<f32>, receipt: Receipt) -> Released<Vec<f32>> {
///     Released { value: rows, receipt }
/// }
/// ```
///
/// ```compile_fail,E0277
/// use comity_privacy::Released;
/// fn read(text: &str) -> Released<Vec<f32>> {
///     serde_json::from_str(text).unwrap()
/// }
/// ```
#[derive(Debug)]
#[must_use = "its privacy is already paid for"]
pub struct Released<T> {
    value: T,
    receipt: Receipt,
}

impl<T> Released<T> {
    pub(crate) fn new(value: T, receipt: Receipt) -> Self {
        Self { value, receipt }
    }

    /// The released value.
    pub fn value(&self) -> &T {
        &self.value
    }

    /// The released value, without its receipt.
    pub fn into_value(self) -> T {
        self.value
    }

    /// What paid for it.
    pub fn receipt(&self) -> &Receipt {
        &self.receipt
    }
}

/// What paid for a release. Only this crate makes one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Receipt {
    key: ReservationKey,
    mechanisms: Vec<Mechanism>,
    #[serde(with = "crate::hex")]
    plan: [u8; 32],
}

impl Receipt {
    pub(crate) fn new(key: ReservationKey, mechanisms: Vec<Mechanism>, plan: [u8; 32]) -> Self {
        Self { key, mechanisms, plan }
    }

    /// The run and round that it was for.
    pub fn key(&self) -> &ReservationKey {
        &self.key
    }

    /// What was debited.
    pub fn mechanisms(&self) -> &[Mechanism] {
        &self.mechanisms
    }

    /// The digest of the plan that it was for.
    pub fn plan_digest(&self) -> [u8; 32] {
        self.plan
    }
}
