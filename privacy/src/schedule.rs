//! A schedule that was fixed before its first release.

use serde::{Deserialize, Serialize};

use crate::accountant::Mechanism;

/// Releases whose number and noise were all fixed before the first of them was made.
///
/// Numerical composition of privacy losses holds for such schedules only, so it takes this type and
/// no other. Where a later release may be chosen after seeing an earlier one, only filters on Rényi
/// and Gaussian divergences are sound ([`adaptive_epsilon`](crate::accountant::adaptive_epsilon)).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FixedSchedule(Vec<Mechanism>);

impl FixedSchedule {
    /// The caller declares that all of `mechanisms` were fixed before the first of them ran. A
    /// [`PrivacyPlan`](crate::plan::PrivacyPlan) brings its own.
    pub fn declared(mechanisms: Vec<Mechanism>) -> Self {
        Self(mechanisms)
    }

    /// The releases, in any order.
    pub fn mechanisms(&self) -> &[Mechanism] {
        &self.0
    }
}
