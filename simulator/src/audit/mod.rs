//! Audits of the promise: what the code that is deployed really does, looked at from outside.
//!
//! - [`replay`]: two runs whose data differ in one record, with the same batches and the same
//!   released history. What the record changes before the noise must be within the clipping norm,
//!   and nothing else may change.
//! - [`canary`]: whether one released model tells which of many canaries were in, more than ε allows.
//! - [`noise`]: whether the noise that a session adds is distributed as accounted, and independent.
//!
//! An audit finds defects; it proves nothing. Each says what it looked at, and PASS is said only
//! where a defect would have been seen. Its data are generated or public and its budget is its own:
//! no institution's ledger is touched.

pub mod canary;
pub mod noise;
pub mod replay;
mod tape;

use serde::Serialize;

/// What an audit came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verdict {
    /// Nothing speaks against the promise, and a defect would have been seen.
    Pass,
    /// Nothing speaks against the promise, but a defect might not have been seen either.
    Inconclusive,
    /// The promise does not hold.
    Broken,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Pass => "PASS",
            Self::Inconclusive => "INCONCLUSIVE",
            Self::Broken => "BROKEN",
        })
    }
}
