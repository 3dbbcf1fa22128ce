//! The rules of a run, as values and pure functions.
//!
//! Coordinator, client, simulator and tests drive the very same [`Run`] and [`Participant`]:
//! nothing here reads a clock, a socket, a disk or a random number generator.  Time is an
//! argument, randomness comes from the plan's seed, and what must happen outside is returned as
//! an effect.
//!
//! Deliberately not here: bytes on the wire (`proto`), files (`journal`), tensors
//! (`burn-models`), noise and budgets (`privacy`).

mod accumulator;
mod certificate;
mod client_state;
mod encoding;
mod error;
mod fixed;
mod ids;
mod model;
mod norm;
mod order;
mod parameters;
mod participant;
mod plan;
mod policy;
mod record;
mod report;
mod run;
mod signature;
mod strategy;
mod time;
mod update;
mod weights;

pub use accumulator::Accumulator;
pub use certificate::{
    CertificateFile, CertifiedClient, CertifiedRound, CertifiedTensor, Evaluation, Facts, Launched,
    ModelCertificate, ModelFile, NoisyCorrect,
};
pub use client_state::ClientState;
pub use encoding::{Rounding, UpdateEncoding};
pub use error::{PlanError, Rejection};
pub use fixed::{FixedPoint, FixedPointError};
pub use ids::{
    ClientId, Country, IdError, KeyFingerprint, ModelDigest, PlanDigest, RecordDigest, RunId,
    StateDigest, UpdateDigest,
};
pub use model::{Layer, Lora, Manifest, ModelSpec, START_VALUES_MAX, Start, TensorSpec};
pub use norm::SquareSum;
pub use order::{CLOCK_SKEW_MAX, Consent, Order, OrderRefusal, SignedConsent, SignedOrder};
pub use parameters::Parameters;
pub use participant::{Participant, ParticipantEffect, ParticipantEvent, Task};
pub use plan::{
    Aggregation, Analytics, ClipAdaptive, CohortPlan, DataContract, DpMetrics, LatePolicy,
    NamedClient, Normalise, Optimizer, Plan, PrivacyTerms, SERVER_STATE, Sample, ServerStep,
    Strategy, Training, WeightRule,
};
pub use policy::{
    Approval, Circumstances, Finding, Hours, ModelFamily, PinnedOperator, Policy, PolicyRefusal,
    SecureAggregation, UnitKind, n_countries,
};
pub use record::{
    Breach, Comparison, Counted, Countersignature, Difference, Export, PaperError, Receipt,
    RecordBook, RoundRecord, SignedReceipt, SignedRecord, Standing, Terms, WrongTask, first_model,
};
pub use report::{
    ClientReport, ClientStanding, ContributionReport, RoundReport, RunReport, RunStatus,
};
pub use run::{Admission, Command, Effect, Event, Outcome, Run};
pub use signature::Signature;
pub use strategy::{Base, Encoded, Fold, Updates};
pub use time::Time;
pub use update::{Contribution, Delta, RoundOutput, Update};
