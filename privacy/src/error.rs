//! Everything that this crate refuses, and why.

use crate::ledger::ReservationKey;

/// A refusal: what happened, to what, and what to do next. It never holds private rows, weights or
/// noise.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PrivacyError {
    /// A setting lies outside the range in which it means anything.
    #[error("{what} is {value}; give a value that is {allowed}")]
    OutOfRange {
        /// The setting's name.
        what: &'static str,
        /// The value given.
        value: f64,
        /// The allowed range, in words.
        allowed: &'static str,
    },

    /// The expected batch is larger than the declared data set.
    #[error(
        "an expected batch of {batch_expected} from {units_declared} declared privacy units needs a \
         sampling rate above 1; lower batch_expected or correct units_declared"
    )]
    SamplingRateAboveOne {
        /// The plan's public expected batch.
        batch_expected: u32,
        /// The plan's public number of privacy units.
        units_declared: u64,
    },

    /// A delta so large that publishing one whole unit would satisfy it.
    #[error(
        "delta {delta} is not below 1/{units_declared}, so it would allow publishing all about one \
         privacy unit; choose a smaller delta"
    )]
    DeltaNotBelowOneUnit {
        /// The delta asked for.
        delta: f64,
        /// The plan's public number of privacy units.
        units_declared: u64,
    },

    /// The releases that are fixed already cost more than the whole budget.
    #[error(
        "the fixed releases alone cost epsilon {fixed_epsilon:.4} at delta {delta}, above the \
         budget of {epsilon}; give metrics less or raise the budget"
    )]
    FixedPartExceedsBudget {
        /// The budget's epsilon.
        epsilon: f64,
        /// The budget's delta.
        delta: f64,
        /// What the fixed releases cost without any training.
        fixed_epsilon: f64,
    },

    /// No amount of noise that this crate offers reaches the budget.
    #[error(
        "no noise multiplier up to {noise_multiplier_max} reaches epsilon {epsilon} at delta \
         {delta}; use fewer steps, a lower sampling rate or a larger epsilon"
    )]
    TargetOutOfReach {
        /// The budget's epsilon.
        epsilon: f64,
        /// The budget's delta.
        delta: f64,
        /// The largest noise multiplier that was tried.
        noise_multiplier_max: f64,
    },

    /// Plans are calibrated for one relation only.
    #[error(
        "plans are calibrated for \"add or remove one\"; the statement gives \"replace one\" too"
    )]
    RelationNotPlanned,

    /// Counts of rows have no bound where whole institutions are protected.
    #[error(
        "where institutions are protected no count, loss or statistic of rows is released: one \
         institution can bring any number of rows"
    )]
    CountsOfInstitutions,

    /// A recorded plan's figures do not follow from one another.
    #[error("the recorded privacy plan contradicts itself: its noise is not what it asks for")]
    PlanInconsistent,

    /// Rounding to the noise grid would cost too much at this size.
    #[error(
        "a noise multiplier of {noise_multiplier} over {n_parameters} parameters is too coarse for \
         the noise grid; train fewer parameters or use less noise"
    )]
    GridTooCoarse {
        /// The accounted noise multiplier.
        noise_multiplier: f64,
        /// The number of trained parameters.
        n_parameters: u64,
    },

    /// A coordinate is NaN or infinite; nothing was changed and no noise was drawn.
    #[error(
        "coordinate {index} is not finite; drop examples whose norm is not finite before the sum"
    )]
    NotFinite {
        /// Position of the first such coordinate.
        index: usize,
    },

    /// A vector does not have the plan's number of parameters.
    #[error("got {got} coordinates where the plan has {expected}; train the plan's own model")]
    WrongLength {
        /// The plan's number of parameters.
        expected: u64,
        /// The number received.
        got: usize,
    },

    /// The questions asked before training mean nothing.
    #[error("analytics: {reason}")]
    Analytics {
        /// What to change.
        reason: &'static str,
    },

    /// The plan asks nothing before training.
    #[error("the plan asks no statistics; start with its first round")]
    AnalyticsNotPlanned,

    /// The round's steps have all been taken.
    #[error("all {steps} steps of this round are taken; finish the session")]
    NoStepsLeft {
        /// The plan's steps per round.
        steps: u32,
    },

    /// A batch was asked for while the last one is still waiting to be privatised.
    #[error("the last batch was not privatised yet; call privatise before next_batch")]
    BatchPending,

    /// A sum was handed in without a batch having been drawn for it.
    #[error("no batch was drawn for this sum; call next_batch before privatise")]
    NoBatch,

    /// The session's noise was asked for a second time.
    #[error("this session's noise was handed out already; each step's is drawn once")]
    NoiseTaken,

    /// The noise handed in is not the one of the step.
    #[error("the noise is not that of step {step} of this session; take them in order")]
    OtherStepsNoise {
        /// The step that waits, from 0.
        step: u32,
    },

    /// The plan reserves no metric.
    #[error("the plan has no budget for metrics; set metrics_rho_per_round above 0")]
    MetricNotPlanned,

    /// The round's one metric has been released.
    #[error("this round's metric is already released; wait for the next round")]
    MetricAlreadyReleased,

    /// A reservation does not pay for what it is used for.
    #[error("the reservation for {key} does not pay for this release; reserve {wanted}")]
    ReservationMismatch {
        /// The reservation's key.
        key: ReservationKey,
        /// What should have been reserved.
        wanted: &'static str,
    },

    /// The budget does not stretch to this release.
    #[error(
        "{key} refused: epsilon {spent:.4} is spent and would become {asked:.4}, above the budget \
         of {budget} at delta {delta}; ask the data steward, or run a cheaper plan"
    )]
    BudgetExceeded {
        /// The release asked for.
        key: ReservationKey,
        /// Epsilon spent so far.
        spent: f64,
        /// Epsilon if the release were allowed.
        asked: f64,
        /// The budget's epsilon.
        budget: f64,
        /// The budget's delta.
        delta: f64,
    },

    /// Keys of batches and noise were about to be used a second time.
    #[error("{key} refused: its keys of noise were used before; draw fresh ones")]
    RandomnessReused {
        /// The release asked for.
        key: ReservationKey,
    },

    /// The run has ended here, so nothing more is released for it.
    #[error("{key} refused: the run is over in this ledger")]
    RunOver {
        /// The release asked for.
        key: ReservationKey,
    },

    /// The institution has set no budget, so nothing may be debited.
    #[error("{key} refused: no privacy budget is set; the data steward has to set one")]
    NoBudget {
        /// The release asked for.
        key: ReservationKey,
    },

    /// A release without differential privacy, where the institution does not allow any.
    #[error(
        "{key} refused: it would be released without differential privacy, which this \
         institution's policy does not allow; use a private plan"
    )]
    ExemptNotAllowed {
        /// The release asked for.
        key: ReservationKey,
    },

    /// This round has been released; a second release would be paid by nobody.
    #[error("{key} is already released; send the stored release again instead of making a new one")]
    AlreadyReleased {
        /// The release asked for.
        key: ReservationKey,
    },

    /// This round is reserved for something else.
    #[error("{key} is reserved under another plan or for other mechanisms; use a new run id")]
    ReservationConflict {
        /// The release asked for.
        key: ReservationKey,
    },

    /// A commit came for a release that was never reserved here.
    #[error("{key} was never reserved in this ledger; nothing may leave for it")]
    NotReserved {
        /// The release in question.
        key: ReservationKey,
    },

    /// The ledger could not be written; nothing was reserved.
    #[error("the privacy ledger could not be written: {reason}; nothing was released")]
    LedgerStore {
        /// The store's own words.
        reason: String,
    },

    /// The stored ledger contradicts itself.
    #[error("entry {entry} of the privacy ledger is invalid: {reason}; restore it from a backup")]
    LedgerInvalid {
        /// Position of the entry, from 0.
        entry: usize,
        /// What is wrong with it.
        reason: &'static str,
    },

    /// The operating system gave no randomness.
    #[error("the operating system gave no randomness: {reason}; nothing was released")]
    NoRandomness {
        /// The system's own words.
        reason: String,
    },

    /// The noise mechanism failed.
    #[error("noise could not be drawn: {reason}; nothing was released")]
    Noise {
        /// The mechanism's own words.
        reason: String,
    },
}
