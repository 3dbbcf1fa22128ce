//! The gRPC services: authenticate, convert, ask the driver, answer.  No rule of a run is here.

mod control;
mod crowd;
mod federation;
mod identity;
mod uploads;

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

/// Disk work off the network's threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, comity_journal::BlobError> + Send + 'static,
) -> Result<T, Status> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Status::internal(e.to_string()))?.map_err(
        |error| match error {
            comity_journal::BlobError::DigestMismatch { .. } => {
                Status::data_loss(error.to_string())
            }
            other => Status::internal(other.to_string()),
        },
    )
}
