//! How members get their certificates, on a port of its own where they need none yet.
//!
//! Anybody can call here, so calls of each address are counted: an honest one makes a few a day.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, PoisonError};

use comity_certs::{Invitation, SigningRequest};
use comity_proto::limits::{
    ENROLMENT_ADDRESSES_MAX, ENROLMENT_CALLS_MAX, ENROLMENT_FAILURES_MAX, ENROLMENT_PERIOD,
};
use comity_proto::transport::PeerCertificates;
use comity_proto::v1::enrolment_server::Enrolment;
use comity_proto::v1::{self, join_reply::Outcome};
use tokio::time::Instant;
use tonic::{Code, Request, Response, Status};
use tracing::warn;

use super::status;
use crate::driver::DriverHandle;
use crate::membership::{Answer, Ask, Asked, Enrolled};

/// The service; cheap to clone.
#[derive(Clone)]
pub(crate) struct EnrolmentService {
    driver: DriverHandle,
    /// `https://HOST:PORT` at which members are served.
    url: String,
    attempts: Attempts,
}

impl EnrolmentService {
    pub(crate) fn new(driver: DriverHandle, url: String) -> Self {
        Self { driver, url, attempts: Attempts::default() }
    }

    async fn ask(&self, from: IpAddr, what: Asked) -> Result<Answer, Status> {
        let ask = Ask { what, by: String::new(), why: String::new() };
        match self.driver.membership(ask).await {
            Ok((answer, _)) => Ok(answer),
            Err(error) => {
                let refused = status(error);
                let is_theirs = !matches!(refused.code(), Code::Internal | Code::Unavailable);
                if is_theirs {
                    warn!(%from, reason = refused.message(), "enrolment refused");
                    self.attempts.failed(from);
                }
                Err(refused)
            }
        }
    }

    fn reply(&self, enrolled: Enrolled) -> v1::Enrolled {
        let Enrolled { identity, certificate_pem, root_pem } = enrolled;
        v1::Enrolled { certificate_pem, root_pem, identity, coordinator_url: self.url.clone() }
    }

    fn request(&self, from: IpAddr, der: &[u8]) -> Result<SigningRequest, Status> {
        SigningRequest::of_der(der).map_err(|error| {
            self.attempts.failed(from);
            Status::invalid_argument(error.to_string())
        })
    }
}

type Reply<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Enrolment for EnrolmentService {
    async fn join(&self, request: Request<v1::JoinRequest>) -> Reply<v1::JoinReply> {
        let from = self.attempts.admit(&request)?;
        let request = request.into_inner();
        let secret: &[u8; 32] = request.secret[..].try_into().map_err(|_| {
            self.attempts.failed(from);
            Status::invalid_argument("an invitation's secret has 32 bytes")
        })?;
        let secret_sha256 = hexadecimal(&Invitation::secret_digest(secret));
        let request = self.request(from, &request.csr_der)?;
        let outcome = match self.ask(from, Asked::Join { secret_sha256, request }).await? {
            Answer::Enrolled(enrolled) => Outcome::Enrolled(self.reply(enrolled)),
            Answer::Awaiting { approvals, needed } => {
                let approvals_needed = needed;
                Outcome::Awaiting(v1::AwaitingApproval { approvals, approvals_needed })
            }
            _ => return Err(Status::internal("another answer than to joining")),
        };
        Ok(Response::new(v1::JoinReply { outcome: Some(outcome) }))
    }

    async fn renew(&self, request: Request<v1::RenewRequest>) -> Reply<v1::Enrolled> {
        let from = self.attempts.admit(&request)?;
        let request = self.request(from, &request.get_ref().csr_der)?;
        match self.ask(from, Asked::Renew { request }).await? {
            Answer::Enrolled(enrolled) => Ok(Response::new(self.reply(enrolled))),
            _ => Err(Status::internal("another answer than to renewing")),
        }
    }
}

/// `bytes` as the registry names a secret.
pub(super) fn hexadecimal(bytes: &[u8; 32]) -> String {
    comity_federation::KeyFingerprint(*bytes).to_string()
}

/// Calls of each address in the current period.
#[derive(Clone, Default)]
struct Attempts(Arc<Mutex<Period>>);

#[derive(Default)]
struct Period {
    began: Option<Instant>,
    /// Calls, and those that were refused.
    of_each: BTreeMap<IpAddr, (u32, u32)>,
}

impl Attempts {
    /// Counts a call, and says from where it comes.
    fn admit<T>(&self, request: &Request<T>) -> Result<IpAddr, Status> {
        let peer = request.extensions().get::<PeerCertificates>();
        let from = peer.and_then(|peer| peer.address).map(|address| address.ip());
        let from = from.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        if peer.is_some_and(|peer| peer.crowded) {
            return Err(too_many());
        }
        self.count(from, Instant::now()).map(|()| from)
    }

    fn count(&self, from: IpAddr, now: Instant) -> Result<(), Status> {
        let mut period = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if period.began.is_none_or(|began| now.duration_since(began) >= ENROLMENT_PERIOD) {
            *period = Period { began: Some(now), of_each: BTreeMap::new() };
        }
        let is_new = !period.of_each.contains_key(&from);
        if is_new && period.of_each.len() >= ENROLMENT_ADDRESSES_MAX {
            return Err(too_many());
        }
        let (calls, failures) = period.of_each.entry(from).or_default();
        *calls += 1;
        if *calls > ENROLMENT_CALLS_MAX || *failures >= ENROLMENT_FAILURES_MAX {
            return Err(too_many());
        }
        Ok(())
    }

    fn failed(&self, from: IpAddr) {
        let mut period = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        period.of_each.entry(from).or_default().1 += 1;
    }
}

fn too_many() -> Status {
    Status::resource_exhausted(format!(
        "too many attempts to join from this address; try again in {} s",
        ENROLMENT_PERIOD.as_secs()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_address_that_guesses_is_stopped_and_another_is_not() {
        let attempts = Attempts::default();
        let (a, b): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        for _ in 0..ENROLMENT_FAILURES_MAX {
            attempts.count(a, Instant::now()).unwrap();
            attempts.failed(a);
        }
        let refused = attempts.count(a, Instant::now()).unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted);
        for _ in 0..ENROLMENT_CALLS_MAX {
            attempts.count(b, Instant::now()).unwrap();
        }
        assert!(attempts.count(b, Instant::now()).is_err());
        let later = Instant::now() + ENROLMENT_PERIOD;
        assert!(attempts.count(a, later).is_ok() && attempts.count(b, later).is_ok());
    }
}
