//! The gRPC services: authenticate, convert, ask the driver, answer.  No rule of a run is here.

mod control;
mod crowd;
mod enrolment;
mod federation;
mod identity;
mod members;
mod papers;
mod uploads;

pub(crate) use control::ControlService;
pub(crate) use enrolment::EnrolmentService;
pub(crate) use federation::FederationService;
pub(crate) use identity::Authenticate;
pub(crate) use members::Inviting;
pub(crate) use uploads::{Uploads, run_of_upload};

use comity_federation::ModelDigest;
use comity_journal::BlobError;
use comity_proto::status_of_rejection;
use tonic::Status;
use tracing::error;

use crate::driver::DriverError;

/// The one place where the driver's refusals become gRPC statuses.
fn status(error: DriverError) -> Status {
    match error {
        DriverError::Rejected(rejection) => status_of_rejection(&rejection),
        DriverError::Order(refusal) => Status::failed_precondition(refusal.to_string()),
        DriverError::Plan(plan) => Status::invalid_argument(plan.to_string()),
        DriverError::UnknownRun(_) | DriverError::NoRecord { .. } => {
            Status::not_found(error.to_string())
        }
        DriverError::Storage(_) => Status::internal(error.to_string()),
        DriverError::Membership(refusal) => (*refusal).into(),
        DriverError::NoCertificate => Status::internal(error.to_string()),
        DriverError::BytesGone(_) | DriverError::Stopping => Status::unavailable(error.to_string()),
    }
}

/// What a peer reads when a blob could not be read or stored; paths are for the log.
fn status_of_blob(error: &BlobError) -> Status {
    match error {
        BlobError::DigestMismatch { .. } => Status::data_loss(error.to_string()),
        BlobError::Missing { digest } => Status::not_found(format!(
            "model {} is no longer kept; an open run goes on from a later one",
            ModelDigest(*digest)
        )),
        full if full.is_full() => {
            error!(%error, "the disk is full: updates are refused until there is room");
            Status::resource_exhausted(
                "the coordinator's disk is full; the update is tried again until its operator has \
                 made room",
            )
        }
        BlobError::Io { .. } | BlobError::Corrupt { .. } => {
            error!(%error, "a blob cannot be used");
            Status::internal(
                "the coordinator's disk failed; its operator sees the reason in its log",
            )
        }
    }
}

/// Disk work off the network's threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BlobError> + Send + 'static,
) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| Status::internal(e.to_string()))?.map_err(|error| status_of_blob(&error))
}
