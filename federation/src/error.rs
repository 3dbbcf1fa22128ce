//! What the rules refuse, and why.

use crate::{ClientId, ModelDigest, PlanDigest, UpdateEncoding};

/// Why a plan cannot be run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The text is not a plan: wrong syntax, a missing or an unknown key.
    #[error("the plan cannot be read: {0}")]
    Syntax(String),
    /// A key's value is outside of its range, or does not go with another.
    #[error("plan key `{key}`: {reason}")]
    Invalid {
        /// Dotted path of the key.
        key: &'static str,
        /// What is wrong and what to write instead.
        reason: String,
    },
    /// A layer does not fit the one before it.
    #[error(
        "plan key `model.layers`: layer {index} does not fit an input of shape {input:?}: {reason}"
    )]
    Layer {
        /// Zero-based position in the list.
        index: usize,
        /// Shape that arrives at the layer.
        input: Vec<usize>,
        /// What is wrong and what to write instead.
        reason: String,
    },
    /// The privacy target cannot be reached.
    #[error("plan key `privacy`, for {client}: {reason}")]
    Privacy {
        /// For which client.
        client: ClientId,
        /// From the calibration.
        reason: String,
    },
}

impl PlanError {
    pub(crate) fn invalid(key: &'static str, reason: String) -> Self {
        Self::Invalid { key, reason }
    }
}

/// Why an event was refused; the state is then unchanged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The plan does not name this client.
    #[error("{0} is not named in the plan of this run; ask the operator to add it")]
    NotInPlan(ClientId),
    /// The client agreed to another plan.
    #[error("the plan's digest is {expected}, not {got}; fetch the plan again")]
    OtherPlan {
        /// Of the run.
        expected: PlanDigest,
        /// Of the message.
        got: PlanDigest,
    },
    /// The run has ended.
    #[error("the run has ended ({0}); nothing more is needed")]
    Ended(String),
    /// The client was not invited to this round.
    #[error("{client} was not invited to round {round}")]
    NotInvited {
        /// Who.
        client: ClientId,
        /// Which round.
        round: u32,
    },
    /// The round is closed, or has not begun.
    #[error("round {got} is not open; the run is at round {open}")]
    RoundNotOpen {
        /// Of the message.
        got: u32,
        /// Of the run.
        open: u32,
    },
    /// The update starts from another model.
    #[error(
        "the update starts from model {got}, the round from {expected}; fetch the round's model"
    )]
    OtherBase {
        /// Of the round.
        expected: ModelDigest,
        /// Of the update.
        got: ModelDigest,
    },
    /// The update has the wrong number of parameters.
    #[error("the update has {got} parameters, the model {expected}")]
    WrongSize {
        /// Of the model.
        expected: u64,
        /// Of the update.
        got: u64,
    },
    /// The update's bytes are laid out otherwise than the plan says.
    #[error("the update is encoded as {got:?}, the plan says {expected:?}; update this software")]
    OtherEncoding {
        /// Of the plan.
        expected: UpdateEncoding,
        /// Of the update.
        got: UpdateEncoding,
    },
    /// A second, different update for the same round.
    #[error("{0} already contributed a different update to this round; only the first counts")]
    AlreadyContributed(ClientId),
    /// Byte for byte what another client contributed: a copy, since no two trainings end in the same bits.
    #[error(
        "this update is, byte for byte, another client's of the same round; each client contributes its own"
    )]
    Copied,
    /// The update is longer than the plan allows.
    #[error(
        "the update's L2 norm {norm} passes {norm_max}, the plan's aggregation.update_norm_max_l2"
    )]
    NormPassed {
        /// Of the update.
        norm: String,
        /// Of the plan.
        norm_max: String,
    },
    /// An update of this client was looked at and not accepted.
    #[error("{client} has nothing more to contribute to this round: {reason}")]
    Refused {
        /// Who.
        client: ClientId,
        /// Why the first one was not accepted.
        reason: String,
    },
    /// The operator excluded the client from the run.
    #[error("the operator excluded {client} from this run: {reason}")]
    Excluded {
        /// Who.
        client: ClientId,
        /// Why.
        reason: String,
    },
    /// The task is older than one that was already done: a rollback, or a mix-up.
    #[error("round {got} is older than round {done}, which this client has already served")]
    OlderRound {
        /// Of the task.
        got: u32,
        /// Last served.
        done: u32,
    },
    /// The event does not go with the present phase.
    #[error("{0}")]
    OutOfPlace(&'static str),
}
