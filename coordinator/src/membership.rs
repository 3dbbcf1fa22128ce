//! Who belongs here, at work: the driver's part that decides with the [`Registry`], signs certificates, makes
//! each change durable before anybody hears of it, and shows the services what holds now.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use comity_certs::{
    Authority, CertError, CertificateFacts, Clock, IssuingCa, Reason, RevokedCertificate,
    SigningRequest, time_of,
};
use comity_federation::{KeyFingerprint, Time};
use comity_journal::failpoint;
use comity_proto::transport::Connections;
use time::OffsetDateTime;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::config::EnrolmentConfig;
use crate::credentials::Credentials;
use crate::driver::DriverError;
use crate::registry::{Change, Joining, MemberName, OperatorRole, Refusal, Registry};
use crate::store::{Entry, Store};

/// How often the revocation lists are signed anew; each is valid for a week.
const LISTS_PAUSE: Duration = Duration::from_secs(24 * 3600);

/// Who belongs here now, for whoever asks; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Members(Arc<ArcSwap<Registry>>);

impl Members {
    /// The registry as it is.
    pub(crate) fn now(&self) -> Arc<Registry> {
        self.0.load_full()
    }
}

/// What is asked of the registry, in whose name and why.
pub(crate) struct Ask {
    pub(crate) what: Asked,
    pub(crate) by: String,
    pub(crate) why: String,
}

pub(crate) enum Asked {
    Invite {
        who: MemberName,
        title: String,
        role: Option<OperatorRole>,
        secret_sha256: String,
        expires_in: Duration,
    },
    Join {
        secret_sha256: String,
        request: SigningRequest,
    },
    Renew {
        request: SigningRequest,
    },
    Decide {
        who: MemberName,
        key: KeyFingerprint,
        approved: bool,
    },
    Revoke {
        who: MemberName,
    },
    SetRole {
        who: MemberName,
        role: OperatorRole,
    },
}

/// What came of it.
pub(crate) enum Answer {
    Done,
    Invited { expires: Time },
    Enrolled(Enrolled),
    Awaiting { approvals: u32, needed: u32 },
}

/// A certificate that was made.
pub(crate) struct Enrolled {
    pub(crate) identity: String,
    pub(crate) certificate_pem: String,
    pub(crate) root_pem: String,
}

/// The registry, and what it needs to act.
pub(crate) struct Membership {
    registry: Registry,
    shown: Members,
    /// Where the authority lies; it is opened anew for each certificate, because it changes.
    authority: PathBuf,
    clock: Clock,
    settings: EnrolmentConfig,
    connections: Connections,
    /// To be told of new revocation lists.
    credentials: Credentials,
    /// When the lists were signed last.
    lists_at: Option<Instant>,
}

impl Membership {
    pub(crate) fn new(
        registry: Registry,
        authority: PathBuf,
        clock: Clock,
        settings: EnrolmentConfig,
        connections: Connections,
        credentials: Credentials,
    ) -> Self {
        let shown = Members(Arc::new(ArcSwap::from_pointee(registry.clone())));
        let lists_at = None;
        Self { registry, shown, authority, clock, settings, connections, credentials, lists_at }
    }

    /// Signs the revocation lists anew, if that was not done for a day.
    pub(crate) fn keep_lists(&mut self, now: Time) {
        if self.lists_at.is_none_or(|at| at.elapsed() >= LISTS_PAUSE) {
            self.sign_lists(now);
        }
    }

    /// Signs the revocation lists of what the registry says, for whoever connects from now on.
    fn sign_lists(&mut self, now: Time) {
        self.lists_at = Some(Instant::now());
        let date = |at: Time| {
            let seconds = i64::try_from(at.0 / 1000).unwrap_or(i64::MAX);
            OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
        };
        let revoked: Vec<RevokedCertificate> = self
            .registry
            .revoked_serials(now)
            .filter_map(|revoked| {
                Some(RevokedCertificate {
                    issuer: IssuingCa::of(&revoked.who.role()),
                    serial: revoked.serial.parse().ok()?,
                    at: date(revoked.at),
                    reason: match revoked.is_superseded {
                        true => Reason::Superseded,
                        false => Reason::PrivilegeWithdrawn,
                    },
                })
            })
            .collect();
        let signed = Authority::open(&self.authority).and_then(|authority| {
            authority.crls(&revoked, self.clock.date())?;
            authority.crl_health()
        });
        match signed {
            Ok(lists) => {
                for warning in lists.iter().filter_map(|list| list.warning(self.clock.date())) {
                    warn!("{warning}");
                }
            }
            // The registry refuses whoever was revoked all the same, call by call.
            Err(error) => warn!(%error, "the revocation lists could not be signed anew"),
        }
        self.reload();
    }

    /// Has new revocation lists taken at once, before whom they are about can connect.
    fn reload(&self) {
        if let Err(error) = self.credentials.reload() {
            warn!(
                error = format!("{error:#}"),
                "new certificates refused; those before stay in use"
            );
        }
    }

    /// For the services.
    pub(crate) fn members(&self) -> Members {
        self.shown.clone()
    }

    /// Answers `ask` at `now`; the outer error is of the disk and fatal, the inner one the partner's.
    pub(crate) fn answer(
        &mut self,
        store: &mut Store,
        now: Time,
        ask: Ask,
    ) -> anyhow::Result<Result<Answer, DriverError>> {
        let Ask { what, by, why } = ask;
        let answer = match what {
            Asked::Invite { who, title, role, secret_sha256, expires_in } => {
                if let Err(refusal) = self.registry.invite() {
                    return Ok(Err(refusal.into()));
                }
                let expires = now.after(expires_in);
                info!(%who, by, why, "invited");
                let change = Change::Invited { who, title, role, secret_sha256, expires };
                self.record(store, now, change, by, why)?;
                Answer::Invited { expires }
            }
            Asked::Join { secret_sha256, request } => {
                return self.join(store, now, &secret_sha256, &request);
            }
            Asked::Renew { request } => {
                let grace = u64::try_from(self.settings.renewal_grace.as_millis());
                let key = request.fingerprint();
                let who = match self.registry.renew(&key, now, grace.unwrap_or(u64::MAX)) {
                    Ok(who) => who,
                    Err(refusal) => return Ok(Err(refusal.into())),
                };
                return self.again(store, now, who, &request, "its certificate grows old");
            }
            Asked::Decide { who, key, approved } => {
                if let Err(refusal) = self.registry.decide(&who, &key, approved, &by) {
                    return Ok(Err(refusal.into()));
                }
                info!(%who, %key, approved, by, why, "request to join decided");
                let change = match approved {
                    true => Change::Approved { who, key },
                    false => Change::RefusedJoin { who, key },
                };
                self.record(store, now, change, by, why)?;
                Answer::Done
            }
            Asked::Revoke { who } => {
                if let Err(refusal) = self.registry.revoke(&who) {
                    return Ok(Err(refusal.into()));
                }
                warn!(%who, by, why, "revoked");
                self.record(store, now, Change::Revoked { who: who.clone() }, by, why)?;
                failpoint::reach("coordinator::after_revocation");
                self.connections.end(&who.role().to_string());
                self.sign_lists(now);
                Answer::Done
            }
            Asked::SetRole { who, role } => {
                if let Err(refusal) = self.registry.set_role(&who, role) {
                    return Ok(Err(refusal.into()));
                }
                info!(%who, %role, by, why, "role set");
                self.record(store, now, Change::RoleSet { who, role }, by, why)?;
                Answer::Done
            }
        };
        Ok(Ok(answer))
    }

    fn join(
        &mut self,
        store: &mut Store,
        now: Time,
        secret_sha256: &str,
        request: &SigningRequest,
    ) -> anyhow::Result<Result<Answer, DriverError>> {
        let key = request.fingerprint();
        let needed = self.settings.approvals;
        let who = match self.registry.join(secret_sha256, &key, now, needed) {
            Ok(Joining::Enrol(who)) => who,
            Ok(Joining::Again(who)) => {
                return self.again(store, now, who, request, "it asked again");
            }
            Ok(Joining::Ask(who)) => {
                info!(%who, %key, "asks to join and waits for approval");
                let change = Change::Asked { who: who.clone(), key };
                self.record(store, now, change, who.to_string(), String::new())?;
                match self.registry.join(secret_sha256, &key, now, needed) {
                    Ok(Joining::Await { approvals, needed }) => {
                        return Ok(Ok(Answer::Awaiting { approvals, needed }));
                    }
                    Ok(_) => return Ok(Ok(Answer::Awaiting { approvals: 0, needed })),
                    Err(refusal) => return Ok(Err(refusal.into())),
                }
            }
            Ok(Joining::Await { approvals, needed }) => {
                return Ok(Ok(Answer::Awaiting { approvals, needed }));
            }
            Err(refusal) => return Ok(Err(refusal.into())),
        };
        let (enrolled, certified) = match self.certify(&who, request) {
            Ok(made) => made,
            Err(error) => return Ok(Err(unmade(&who, &error))),
        };
        let (by, why) = match self.registry.invitation(&who) {
            Some(invited) => {
                (self.registry.approvals(invited).join(", "), invited.from.why.clone())
            }
            None => (who.to_string(), String::new()),
        };
        info!(%who, %key, serial = certified.serial, by, "enrolled");
        let not_after = time_of(certified.not_after);
        failpoint::reach("coordinator::before_enrolment");
        let change = Change::Enrolled { who, key, serial: certified.serial, not_after };
        self.record(store, now, change, by, why)?;
        failpoint::reach("coordinator::after_enrolment");
        Ok(Ok(Answer::Enrolled(enrolled)))
    }

    /// Another certificate for the key that `who` is enrolled with.
    fn again(
        &mut self,
        store: &mut Store,
        now: Time,
        who: MemberName,
        request: &SigningRequest,
        why: &str,
    ) -> anyhow::Result<Result<Answer, DriverError>> {
        let (enrolled, certified) = match self.certify(&who, request) {
            Ok(made) => made,
            Err(error) => return Ok(Err(unmade(&who, &error))),
        };
        info!(%who, serial = certified.serial, "certificate renewed");
        let by = who.to_string();
        let not_after = time_of(certified.not_after);
        let change = Change::Renewed { who, serial: certified.serial, not_after };
        self.record(store, now, change, by, why.to_owned())?;
        Ok(Ok(Answer::Enrolled(enrolled)))
    }

    fn certify(
        &self,
        who: &MemberName,
        request: &SigningRequest,
    ) -> Result<(Enrolled, CertificateFacts), CertError> {
        let authority = Authority::open(&self.authority)?;
        let lifetime = time::Duration::try_from(self.settings.certificate_lifetime)
            .unwrap_or(time::Duration::days(1));
        let made = authority.sign(request, &who.role(), lifetime, self.clock.date())?;
        let certificate_pem = made.certificate_pem;
        // The first of a country came with an issuing CA, whose list has to be known when it connects.
        self.reload();
        let certified = CertificateFacts::of_pem(&certificate_pem)?;
        let identity = certified.identity.to_string();
        let root_pem = authority.root_pem().to_owned();
        Ok((Enrolled { identity, certificate_pem, root_pem }, certified))
    }

    /// Makes `change` durable, takes it, and shows it.
    fn record(
        &mut self,
        store: &mut Store,
        now: Time,
        change: Change,
        by: String,
        why: String,
    ) -> anyhow::Result<()> {
        let mut next = self.registry.clone();
        next.apply(&change, now, &by, &why)
            .expect("the rules allowed the change, so it follows from those before");
        store.append_marked(&Entry::Membership { change, now, by, why })?;
        self.registry = next;
        self.shown.0.store(Arc::new(self.registry.clone()));
        Ok(())
    }
}

fn unmade(who: &MemberName, error: &CertError) -> DriverError {
    warn!(%who, %error, "no certificate could be made");
    DriverError::NoCertificate
}

impl From<Refusal> for DriverError {
    fn from(refusal: Refusal) -> Self {
        Self::Membership(Box::new(refusal))
    }
}
