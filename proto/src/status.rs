//! The one place where a refusal by the rules becomes a gRPC status.

use comity_federation::Rejection;
use tonic::Status;

/// The status that carries `rejection`, with its sentence as the message.
#[must_use]
pub fn status_of_rejection(rejection: &Rejection) -> Status {
    let message = rejection.to_string();
    match rejection {
        Rejection::NotInPlan(_) | Rejection::NotInvited { .. } | Rejection::Excluded { .. } => {
            Status::permission_denied(message)
        }
        Rejection::Ended(_)
        | Rejection::RoundNotOpen { .. }
        | Rejection::OlderRound { .. }
        | Rejection::Refused { .. }
        | Rejection::OutOfPlace(_) => Status::failed_precondition(message),
        Rejection::OtherPlan { .. }
        | Rejection::OtherBase { .. }
        | Rejection::WrongSize { .. }
        | Rejection::OtherEncoding { .. }
        | Rejection::Copied
        | Rejection::NormPassed { .. } => Status::invalid_argument(message),
        Rejection::AlreadyContributed(_) => Status::already_exists(message),
    }
}
