//! What a coordinator puts its signature under: the receipt of an update, and the record of a round.
//!
//! A record is the coordinator's last word on a round: from which model it started, who was asked, whose
//! update counted with which weight, who is missing and why, and which model came out. Each names the
//! digest of the record before, so that a run's records are a chain that nobody can change in the middle;
//! clients countersign the very same bytes. A receipt is what a client holds against a record that leaves
//! its update out.
//!
//! What a client checks is in `book`, the file that one side gives to another in `export`, signatures are
//! checked in `certs`, which knows keys. Deliberately not here: who signs when, and where it is kept.

mod book;
mod export;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use book::{Breach, RecordBook, Standing, Terms, WrongTask, first_model};
pub use export::{Comparison, Difference, Export};

use crate::{
    ClientId, ModelDigest, PlanDigest, RecordDigest, RoundReport, RunId, Signature, Time,
    UpdateDigest,
};

/// Why bytes are not the paper that they are taken for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PaperError {
    /// The text is no JSON of it.
    #[error("this is not {what} of this version: {reason}")]
    Unreadable {
        /// Which paper.
        what: &'static str,
        /// From the parser.
        reason: String,
    },
    /// It can be read, but is not written as we write it: it was altered, if only in a blank.
    #[error("this {what} is not written as it was made; it was altered after that")]
    Altered {
        /// Which paper.
        what: &'static str,
    },
}

/// Reads a paper from the bytes of its canonical JSON, and only from those.
pub(crate) fn read<T: Serialize + DeserializeOwned>(
    what: &'static str,
    bytes: &[u8],
) -> Result<T, PaperError> {
    let paper: T = serde_json::from_slice(bytes)
        .map_err(|error| PaperError::Unreadable { what, reason: error.to_string() })?;
    if write(&paper) == bytes { Ok(paper) } else { Err(PaperError::Altered { what }) }
}

/// A paper's canonical JSON: compact, keys in the order of declaration.
pub(crate) fn write<T: Serialize>(paper: &T) -> Vec<u8> {
    serde_json::to_vec(paper).expect("a paper holds nothing but text and finite numbers")
}

/// What the coordinator says when it has taken an update, signed at once.
///
/// Everything in it follows from the run's state, so the coordinator makes it again whenever it is asked:
/// its journal holds the step that accepted the update, and no second copy of the same facts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// Name of the federation.
    pub federation: String,
    /// For which run.
    pub run: RunId,
    /// For which round the update was trained.
    pub round: u32,
    /// Under which plan.
    pub plan: PlanDigest,
    /// Whose it is.
    pub client: ClientId,
    /// BLAKE3 of its bytes.
    pub update: UpdateDigest,
    /// With which weight it counts, by the plan.
    pub weight: u64,
    /// When it was accepted, by the coordinator's clock.
    pub accepted: Time,
}

impl Receipt {
    /// The bytes under the signature.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        write(self)
    }

    /// Reads a receipt from [`to_json`](Self::to_json).
    ///
    /// # Errors
    /// [`PaperError`] if the bytes are anything else.
    pub fn from_json(bytes: &[u8]) -> Result<Self, PaperError> {
        read("a receipt", bytes)
    }
}

/// A receipt and the coordinator's signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedReceipt {
    /// What is signed.
    pub receipt: Receipt,
    /// The coordinator's.
    pub signature: Signature,
}

/// One contribution in a record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counted {
    /// Whose.
    pub client: ClientId,
    /// BLAKE3 of the update's bytes.
    pub update: UpdateDigest,
    /// Its weight by the plan, before ages and caps on a country, which follow from plan and record.
    pub weight: u64,
    /// How many rounds older than this one the round is for which it was trained.
    pub staleness: u32,
}

/// What the coordinator says that happened in a round.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoundRecord {
    /// Name of the federation.
    pub federation: String,
    /// Of which run.
    pub run: RunId,
    /// Under which plan.
    pub plan: PlanDigest,
    /// Counted from 1; 0 released statistics.
    pub round: u32,
    /// The record before; none in the run's first.
    pub previous: Option<RecordDigest>,
    /// When its clients were invited.
    pub opened: Time,
    /// When its model was there.
    pub closed: Time,
    /// The model from which it started.
    pub base: ModelDigest,
    /// The model that it produced.
    pub model: ModelDigest,
    /// Who was asked.
    pub cohort: Vec<ClientId>,
    /// Whose updates count.
    pub contributions: Vec<Counted>,
    /// Who was asked and is not in the sum, and why.
    pub missing: Vec<(ClientId, String)>,
}

impl RoundRecord {
    /// The record of a round of `run`, once it has its model.
    #[must_use]
    pub fn of(
        federation: &str,
        run: &RunId,
        plan: PlanDigest,
        previous: Option<RecordDigest>,
        round: &RoundReport,
    ) -> Option<Self> {
        Some(Self {
            federation: federation.to_owned(),
            run: run.clone(),
            plan,
            round: round.round,
            previous,
            opened: round.opened,
            closed: round.closed?,
            base: round.base,
            model: round.model?,
            cohort: round.cohort.clone(),
            contributions: round
                .contributions
                .iter()
                .map(|c| Counted {
                    client: c.client.clone(),
                    update: c.update,
                    weight: c.weight,
                    staleness: c.staleness,
                })
                .collect(),
            missing: round.missing.clone(),
        })
    }

    /// The bytes under the signatures.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        write(self)
    }

    /// Reads a record from [`to_json`](Self::to_json).
    ///
    /// # Errors
    /// [`PaperError`] if the bytes are anything else.
    pub fn from_json(bytes: &[u8]) -> Result<Self, PaperError> {
        read("a round's record", bytes)
    }

    /// What the next record names.
    #[must_use]
    pub fn digest(&self) -> RecordDigest {
        RecordDigest(blake3::derive_key("comity record v1", &self.to_json()))
    }
}

/// A client's signature under a record that stands beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Countersignature {
    /// Whose.
    pub client: ClientId,
    /// Under the same bytes as the coordinator's.
    pub signature: Signature,
}

/// A record with the coordinator's signature, and those of clients that checked it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedRecord {
    /// What is signed.
    pub record: RoundRecord,
    /// The coordinator's.
    pub signature: Signature,
    /// Clients'.
    pub countersignatures: Vec<Countersignature>,
}

#[cfg(test)]
mod tests;
