//! Why training or evaluation cannot go on.

use comity_federation::PlanError;
use comity_privacy::PrivacyError;

/// Why training or evaluation cannot go on. Never holds rows, weights or gradients.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The layers do not fit each other or the data.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The ledger or the privacy plan refused.
    #[error(transparent)]
    Privacy(#[from] PrivacyError),
    /// The parameters are of another model.
    #[error(
        "the model has {expected} parameters but {got} were given; fetch the round's model again"
    )]
    Parameters {
        /// Of the model.
        expected: usize,
        /// Given.
        got: usize,
    },
    /// The model expects examples of another shape.
    #[error(
        "the model takes {expected} features an example, the data have {got}; check the client's data source against the plan"
    )]
    Features {
        /// Of the model.
        expected: usize,
        /// Of the data.
        got: usize,
    },
    /// A token that the embedding does not have.
    #[error(
        "the data hold a token that is not a whole number below {vocabulary}; check the client's tokenizer against the plan's vocabulary"
    )]
    Token {
        /// Number of tokens of the model.
        vocabulary: usize,
    },
    /// The settings cannot be used.
    #[error("plan key `{key}`: {reason}")]
    Setting {
        /// Dotted path in the plan.
        key: &'static str,
        /// What is wrong.
        reason: &'static str,
    },
    /// Nothing to learn from or to measure.
    #[error("the data set is empty; check the client's data source")]
    NoData,
    /// The plan protects persons, and the data do not tell them apart.
    #[error(
        "the plan protects persons, and the data do not say whose row is whose; name the column \
         of their ids as `person` in the client's data source"
    )]
    NoPersons,
    /// More rows of one person than the privacy unit allows.
    #[error("a person has more than {records_max} rows; cap the data first")]
    PersonPastCap {
        /// The unit's cap.
        records_max: u32,
    },
    /// Training ran away.
    #[error("training gave parameters that are not finite; lower the plan's learning rate")]
    NotFinite,
}
