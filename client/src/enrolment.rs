//! The node's certificate: how it comes, and how the next one comes before it expires.
//!
//! The key was made by `join` and never changes or leaves; what is asked for and written is public.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::link::Revoked;
use anyhow::{Context as _, anyhow, ensure};
use comity_certs::{
    CertificateFacts, Clock, Invitation, MemberKey, Seen, check_own, explain, explain_joining,
    joining_config, read_key_pem, renewing_config, replace,
};
use comity_proto::transport::{ConnectError, Dial, connect_over, fraction};
use comity_proto::v1::enrolment_client::EnrolmentClient;
use comity_proto::v1::join_reply::Outcome;
use comity_proto::v1::{AwaitingApproval, Enrolled, JoinRequest, RenewRequest};
use tonic::Status;
use tracing::{debug, info, warn};

/// First and longest pause after a renewal that failed.
const RENEWAL_BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(1800));
/// How often a node looks at the date: a wall clock can be set, and a machine can sleep.
const LOOK_PAUSE: Duration = Duration::from_secs(600);

/// What the coordinator answers to a request to join.
pub(crate) enum Joined {
    /// It is in.
    Enrolled(Box<Enrolled>),
    /// A second operator has to approve.
    Awaiting(AwaitingApproval),
}

/// Shows `invitation` to its coordinator, with the public part of `key`.
pub(crate) async fn ask_to_join(
    network: &dyn Dial,
    invitation: &Invitation,
    key: &MemberKey,
    clock: &Clock,
) -> anyhow::Result<Joined> {
    let tls = joining_config(invitation.root, Arc::new(clock.clone()))?;
    let channel = connect_over(network, &invitation.url, tls).await.map_err(|e| match e {
        ConnectError::Refused { source, .. } => {
            anyhow!(explain_joining(&source, invitation, clock))
        }
        other => anyhow!(other),
    })?;
    let request = JoinRequest {
        secret: invitation.secret.to_vec().into(),
        csr_der: key.signing_request()?.into(),
        software: concat!("comity-client ", env!("CARGO_PKG_VERSION")).to_owned(),
    };
    let reply = EnrolmentClient::new(channel).join(request).await.map_err(said)?;
    let outcome = reply.into_inner().outcome.context("the coordinator gave an empty answer")?;
    Ok(match outcome {
        Outcome::Enrolled(enrolled) => Joined::Enrolled(Box::new(enrolled)),
        Outcome::Awaiting(waiting) => Joined::Awaiting(waiting),
    })
}

/// A refusal, in the coordinator's words.
fn said(status: Status) -> anyhow::Error {
    anyhow!("{}", status.message())
}

/// A node's certificate and where it is renewed.
#[derive(Clone)]
pub(crate) struct Renewal {
    /// Folder with `certificate.pem`, `key.pem` and `root.pem`.
    pub(crate) certificates: PathBuf,
    /// `https://HOST:PORT`.
    pub(crate) url: String,
    pub(crate) clock: Clock,
    pub(crate) network: Arc<dyn Dial>,
}

impl Renewal {
    /// Asks for the next certificate and puts it in the place of the latest, in one step each: whoever connects
    /// meanwhile finds the old or the new.
    pub(crate) async fn renew(&self) -> anyhow::Result<CertificateFacts> {
        let file = |name: &str| self.certificates.join(name);
        let latest = certified(&self.certificates)?;
        let root = std::fs::read_to_string(file("root.pem"))
            .with_context(|| format!("{} cannot be read", file("root.pem").display()))?;
        let key = MemberKey::read(&file("key.pem"))?;
        let tls = renewing_config(&root, Arc::new(self.clock.clone()))?;
        let channel = connect_over(&*self.network, &self.url, tls).await.map_err(|e| match e {
            ConnectError::Refused { ref source, .. } => {
                let seen = Seen::ByClient { own: None, server: &self.url, now: self.clock.date() };
                anyhow!(explain(source, &seen))
            }
            other => anyhow!(other),
        })?;
        let request = RenewRequest { csr_der: key.signing_request()?.into() };
        let renewed = EnrolmentClient::new(channel).renew(request).await.map_err(said)?;
        let Enrolled { certificate_pem, root_pem, .. } = renewed.into_inner();
        let key_pem = read_key_pem(&file("key.pem"))?;
        // The connection led to the root that was trusted so far, and so does what comes over it.
        let summary = check_own(&certificate_pem, &key_pem, &root_pem, self.clock.date())?;
        ensure!(summary.identity == latest.identity, "the new certificate is another member's");
        replace(&file("root.pem"), &root_pem)?;
        replace(&file("certificate.pem"), &certificate_pem)?;
        Ok(CertificateFacts::of_pem(&certificate_pem)?)
    }

    /// What a person is told of a connection that did not come about: if the certificate was revoked, also why,
    /// which the coordinator says where certificates are renewed.
    pub(crate) async fn explain(&self, error: &anyhow::Error) -> String {
        if error.downcast_ref::<Revoked>().is_none() {
            return format!("{error:#}");
        }
        match self.renew().await {
            Ok(_) => format!("{error:#}; there is a new one now"),
            Err(why) => format!("{why:#}"),
        }
    }

    /// Renews whenever two thirds of the certificate's life are over, for ever; a failure is tried again, later
    /// each time.
    pub(crate) async fn run(self) {
        let (mut pause, mut n_failed) = (RENEWAL_BACKOFF.0, 0u64);
        loop {
            let due = match certified(&self.certificates) {
                Ok(latest) => latest.renews_at(),
                Err(error) => {
                    debug!(error = format!("{error:#}"), "no certificate to renew");
                    tokio::time::sleep(LOOK_PAUSE).await;
                    continue;
                }
            };
            let left = Duration::try_from(due - self.clock.date()).unwrap_or_default();
            if !left.is_zero() {
                tokio::time::sleep(left.min(LOOK_PAUSE)).await;
                continue;
            }
            match self.renew().await {
                Ok(renewed) => {
                    info!(until = %renewed.not_after, "certificate renewed");
                    (pause, n_failed) = (RENEWAL_BACKOFF.0, 0);
                    // However short its life: never without a breath.
                    tokio::time::sleep(pause).await;
                }
                Err(error) => {
                    // A node that is off line for a month says so once.
                    if n_failed == 0 {
                        warn!(error = format!("{error:#}"), "certificate not renewed; tried again");
                    }
                    n_failed += 1;
                    let part = 1.0 - fraction(&(&self.url, n_failed)) / 2.0;
                    tokio::time::sleep(pause.mul_f64(part)).await;
                    pause = (pause * 2).min(RENEWAL_BACKOFF.1);
                }
            }
        }
    }
}

/// The certificate in `dir`.
pub(crate) fn certified(dir: &Path) -> anyhow::Result<CertificateFacts> {
    let path = dir.join("certificate.pem");
    let pem = std::fs::read_to_string(&path)
        .with_context(|| format!("{} cannot be read; join first", path.display()))?;
    Ok(CertificateFacts::of_pem(&pem)?)
}
