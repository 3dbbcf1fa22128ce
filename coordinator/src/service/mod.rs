//! The gRPC services: authenticate, convert, ask the driver, answer.  No rule of a run is here.

mod control;
mod federation;
mod identity;

pub(crate) use control::ControlService;
pub(crate) use federation::FederationService;
pub(crate) use identity::Authenticate;

use comity_proto::status_of_rejection;
use tonic::Status;

use crate::driver::DriverError;

/// The one place where the driver's refusals become gRPC statuses.
fn status(error: DriverError) -> Status {
    match error {
        DriverError::Rejected(rejection) => status_of_rejection(&rejection),
        DriverError::Plan(plan) => Status::invalid_argument(plan.to_string()),
        DriverError::UnknownRun(_) => Status::not_found(error.to_string()),
        DriverError::Storage(_) => Status::internal(error.to_string()),
        DriverError::Stopping => Status::unavailable(error.to_string()),
    }
}
