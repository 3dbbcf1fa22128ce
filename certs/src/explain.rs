//! What a refused certificate or handshake means, and what to do: one sentence each.

use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{AlertDescription, CertificateError, Error, RootCertStore};
use std::sync::Arc;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::tls::{RevocationUnknown, certificates, key, key_mismatch, provider, roots, unix_time};
use crate::{CertError, Identity, Role};

/// What a person wants to know of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateSummary {
    /// Whose it is.
    pub identity: Identity,
    /// First instant at which it is valid.
    pub not_before: OffsetDateTime,
    /// Last instant at which it is valid.
    pub not_after: OffsetDateTime,
    /// Who signed it.
    pub issuer: String,
}

impl CertificateSummary {
    /// Summarises the first certificate in `pem`, which is not verified: see [`check_own`].
    ///
    /// # Errors
    /// [`CertError`] if it cannot be read or does not name a member of a federation.
    pub fn of_pem(pem: &str) -> Result<Self, CertError> {
        let der = certificates(pem, "certificate")?.remove(0);
        let identity = Identity::of_certificate(&der)?;
        let (_, certificate) = X509Certificate::from_der(&der)
            .map_err(|error| CertError::Pem { what: "certificate", reason: error.to_string() })?;
        let validity = certificate.validity();
        Ok(Self {
            identity,
            not_before: validity.not_before.to_datetime(),
            not_after: validity.not_after.to_datetime(),
            issuer: certificate.issuer().to_string(),
        })
    }

    /// Whole days of validity that are left at `now`; negative once expired.
    #[must_use]
    pub fn days_left(&self, now: OffsetDateTime) -> i64 {
        (self.not_after - now).whole_days()
    }
}

/// Checks a member's own certificate, key and root at `now`, as the other side will.
///
/// # Errors
/// [`CertError`] says which of them does not fit and what to do.
pub fn check_own(
    cert_pem: &str,
    key_pem: &str,
    root_pem: &str,
    now: OffsetDateTime,
) -> Result<CertificateSummary, CertError> {
    let summary = CertificateSummary::of_pem(cert_pem)?;
    let chain = certificates(cert_pem, "certificate")?;
    let provider = provider();
    rustls::sign::CertifiedKey::from_der(chain.clone(), key(key_pem)?, &provider)
        .map_err(key_mismatch)?;

    verify_chain(&summary.identity, &chain, roots(root_pem)?, now)?;
    Ok(summary)
}

/// Checks that `chain`, the certificate of `identity` first, led to one of `roots` at `at`, for the use
/// that its role has.
pub(crate) fn verify_chain(
    identity: &Identity,
    chain: &[CertificateDer<'_>],
    roots: RootCertStore,
    at: OffsetDateTime,
) -> Result<(), CertError> {
    let (leaf, intermediates) = chain.split_first().expect("there is a certificate");
    let (_, certificate) = X509Certificate::from_der(leaf)
        .map_err(|error| CertError::Pem { what: "certificate", reason: error.to_string() })?;
    let who = identity.role.to_string();
    let validity = certificate.validity();
    let (not_before, not_after) =
        (validity.not_before.to_datetime(), validity.not_after.to_datetime());
    if at > not_after {
        return Err(CertError::Expired { identity: who, date: not_after.date().to_string() });
    }
    if at < not_before {
        return Err(CertError::NotYetValid { identity: who, date: instant(not_before) });
    }
    let (provider, at) = (provider(), unix_time(at));
    let verified = match identity.role {
        Role::Coordinator => rustls::client::verify_server_cert_signed_by_trust_anchor(
            &rustls::server::ParsedCertificate::try_from(leaf)?,
            &roots,
            intermediates,
            at,
            provider.signature_verification_algorithms.all,
        ),
        Role::Client(_) | Role::Operator(_) => {
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|error| CertError::Pem { what: "root", reason: error.to_string() })?
                .verify_client_cert(leaf, intermediates, at)
                .map(|_| ())
        }
    };
    verified.map_err(|error| CertError::Chain { identity: who, reason: error.to_string() })?;
    Identity::of_chain(chain).map(|_| ())
}

/// From where a TLS error was seen.
#[derive(Clone, Copy, Debug)]
pub enum Seen<'a> {
    /// By a client or an operator that connected.
    ByClient {
        /// Its own certificate, if it could be read.
        own: Option<&'a CertificateSummary>,
        /// The address or name to which it connected.
        server: &'a str,
        /// The time on its clock.
        now: OffsetDateTime,
    },
    /// By the coordinator that was connected to.
    ByServer,
}

/// One sentence or two on what happened and what to do.
#[must_use]
pub fn explain(error: &Error, seen: &Seen<'_>) -> String {
    match seen {
        Seen::ByClient { own, server, now } => match error {
            Error::AlertReceived(alert) => refused_by_server(*alert, *own, *now),
            Error::InvalidCertificate(reason) => server_not_trusted(reason, server),
            other => not_tls(other, &format!("what answers at {server}"), "check host and port"),
        },
        Seen::ByServer => match error {
            Error::NoCertificatesPresented => {
                "the peer presented no client certificate; it needs one issued by this federation"
                    .to_owned()
            }
            Error::InvalidCertificate(reason) => client_not_trusted(reason),
            Error::AlertReceived(alert) => format!(
                "the client refused this coordinator's certificate ({alert:?}); its root.pem, its clock, or the names in coordinator.pem do not fit"
            ),
            other => not_tls(other, "the peer", "it is probably not a Comity program"),
        },
    }
}

/// The server verified our certificate and sent an alert.
fn refused_by_server(
    alert: AlertDescription,
    own: Option<&CertificateSummary>,
    now: OffsetDateTime,
) -> String {
    let mine = own.map_or("this node's certificate".to_owned(), |own| {
        format!("the certificate of {}", own.identity.role)
    });
    match alert {
        AlertDescription::CertificateRequired => {
            "the coordinator requires a certificate and no client certificate was presented; set certificate and key in the configuration, or ask the operator for them".to_owned()
        }
        AlertDescription::CertificateExpired => match own {
            Some(own) if now < own.not_before => format!(
                "the coordinator refused {mine}: it is not valid before {}; check the clocks of both machines",
                instant(own.not_before)
            ),
            Some(own) if now > own.not_after => format!(
                "the coordinator refused {mine}: it expired on {}; ask the operator for a new one",
                own.not_after.date()
            ),
            Some(own) => format!(
                "the coordinator refused {mine} as expired or not yet valid, though here it is valid until {}; the two clocks differ (set both by NTP), or the issuing CA's has expired (ask the operator)",
                own.not_after.date()
            ),
            None => format!("the coordinator refused {mine}: it expired or is not yet valid; ask the operator for a new one and check the clock"),
        },
        AlertDescription::UnknownCA => format!(
            "the coordinator refused {mine}: it was issued by another authority than the coordinator's, or by one that was replaced since; ask this federation's operator for a new invitation"
        ),
        AlertDescription::DecryptError => format!(
            "the coordinator refused {mine}: its signature does not hold, because another authority made it or in a way that is not secure (RSA below 2048 bits, SHA-1); ask this federation's operator for a new invitation"
        ),
        AlertDescription::UnsupportedCertificate => format!(
            "the coordinator refused {mine}: it is not for client use; use the certificate.pem issued for this node, not coordinator.pem"
        ),
        AlertDescription::CertificateRevoked => format!(
            "the coordinator refused {mine}: it was revoked; ask the operator why, and for a new one"
        ),
        AlertDescription::AccessDenied => format!(
            "the coordinator refused {mine}: the issuing CA that signed it may not sign these names, for instance those of another country; ask the operator for a new invitation"
        ),
        AlertDescription::CertificateUnknown => format!(
            "the coordinator cannot tell whether {mine} was revoked, because a revocation list on its side has expired or is missing; nothing is wrong here: tell the operator and try again later"
        ),
        AlertDescription::BadCertificate => format!(
            "the coordinator refused {mine}: it is malformed; use the certificate.pem as it was issued, or ask the operator for a new invitation"
        ),
        AlertDescription::ProtocolVersion | AlertDescription::HandshakeFailure => {
            "the coordinator speaks no TLS 1.3 with this program; use matching releases on both sides, and no proxy that ends TLS between them".to_owned()
        }
        AlertDescription::NoApplicationProtocol => {
            "the server speaks no HTTP/2; the port is probably another service's".to_owned()
        }
        other => format!(
            "the coordinator refused {mine} ({other:?}); run `comity-client check`, and ask the operator for the reason in its log"
        ),
    }
}

/// We verified the server's certificate and refused it.
fn server_not_trusted(reason: &CertificateError, server: &str) -> String {
    match reason {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => format!(
            "the certificate of {server} was not issued under this node's root.pem; either this is another federation's coordinator or something between intercepts TLS: compare the root's fingerprint with the operator"
        ),
        CertificateError::ExpiredContext { not_after, .. } => format!(
            "the coordinator's certificate expired on {} (by this machine's clock); the operator must renew it",
            date(*not_after)
        ),
        CertificateError::NotValidYetContext { not_before, .. } => format!(
            "the coordinator's certificate is not valid before {} (by this machine's clock); set the clock by NTP",
            date(*not_before)
        ),
        CertificateError::NotValidForNameContext { expected, presented } => format!(
            "the coordinator's certificate is not for {}, only for {}; connect by that name, or have the operator add yours",
            expected.to_str(),
            presented.join(", ")
        ),
        CertificateError::NotValidForName => format!(
            "the coordinator's certificate is not for {server}; connect by the name the operator gave you"
        ),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            format!(
                "the certificate of {server} is not for server use: another member poses as the coordinator, or it was started with the wrong file; tell the operator"
            )
        }
        CertificateError::Revoked => {
            "the coordinator's certificate was revoked; do not connect, ask the operator".to_owned()
        }
        other => {
            format!("the certificate of {server} is not acceptable ({other}); tell the operator")
        }
    }
}

/// We are the server, verified a client's certificate and refused it.
fn client_not_trusted(reason: &CertificateError) -> String {
    match reason {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "the client's certificate was issued by another authority; it needs one of this federation".to_owned()
        }
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("the client's certificate expired on {}; issue a new one", date(*not_after))
        }
        CertificateError::NotValidYetContext { not_before, .. } => format!(
            "the client's certificate is not valid before {}; check the clocks",
            date(*not_before)
        ),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "the client's certificate is not for client use; it probably uses coordinator.pem".to_owned()
        }
        CertificateError::Revoked => "the client's certificate, or the issuing CA that signed it, was revoked".to_owned(),
        CertificateError::ApplicationVerificationFailure => {
            "the client's certificate has names that the issuing CA which signed it may not give, for instance those of another country".to_owned()
        }
        CertificateError::BadEncoding => "the client's certificate is malformed".to_owned(),
        CertificateError::UnsupportedSignatureAlgorithmContext { .. }
        | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            "the client's certificate was signed in a way that is not secure, such as with RSA below 2048 bits or SHA-1".to_owned()
        }
        CertificateError::Other(other) if other.0.is::<RevocationUnknown>() => {
            format!("{other}, so nobody can tell whether it was revoked; `comity-coordinator certs status` says what to do")
        }
        other => format!("the client's certificate is not acceptable ({other})"),
    }
}

fn not_tls(error: &Error, who: &str, advice: &str) -> String {
    match error {
        Error::InvalidMessage(_) | Error::InappropriateMessage { .. } => {
            format!("{who} does not speak TLS; {advice}")
        }
        Error::PeerIncompatible(_) => {
            format!("{who} speaks no TLS 1.3; {advice}, and use matching releases on both sides")
        }
        Error::NoApplicationProtocol => format!("{who} speaks no HTTP/2; {advice}"),
        other => format!("TLS with {who} failed ({other}); {advice}"),
    }
}

/// An instant as a person reads it, to the minute.
#[must_use]
pub fn instant(at: OffsetDateTime) -> String {
    format!("{} {:02}:{:02} UTC", at.date(), at.hour(), at.minute())
}

pub(crate) fn date(at: UnixTime) -> String {
    i64::try_from(at.as_secs())
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .map_or_else(|| "an unknown date".to_owned(), |at| at.date().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Authority, Issued};
    use time::Duration;

    fn authority(now: OffsetDateTime) -> (tempfile::TempDir, Authority) {
        let dir = tempfile::tempdir().unwrap();
        let authority =
            Authority::init(dir.path(), "demo", &["localhost".to_owned()], now).unwrap();
        (dir, authority)
    }

    fn check(issued: &Issued, now: OffsetDateTime) -> Result<CertificateSummary, CertError> {
        check_own(&issued.certificate_pem, &issued.key_pem, &issued.root_pem, now)
    }

    #[test]
    fn own_certificates_are_summarised() {
        let now = OffsetDateTime::now_utc();
        let (dir, authority) = authority(now);
        let issued = authority.issue(&Role::Client("KE/knh".parse().unwrap()), 30, now).unwrap();
        let summary = check(&issued, now).unwrap();
        assert_eq!(summary.identity.role.to_string(), "KE/knh");
        assert!((29..=30).contains(&summary.days_left(now)));
        for name in ["coordinator", "operator"] {
            let read = |ending: &str| {
                std::fs::read_to_string(dir.path().join(format!("{name}.{ending}"))).unwrap()
            };
            check_own(&read("pem"), &read("key"), authority.root_pem(), now).unwrap();
        }
    }

    #[test]
    fn each_fault_of_an_own_certificate_is_named() {
        let now = OffsetDateTime::now_utc();
        let ((_a, ours), (_b, other)) = (authority(now), authority(now));
        let role = Role::Client("KE/knh".parse().unwrap());
        let issued = ours.issue(&role, 30, now).unwrap();

        let text = check(&issued, now + Duration::days(31)).unwrap_err().to_string();
        assert!(text.contains("KE/knh expired on"), "{text}");
        let error = check(&issued, now - Duration::days(1)).unwrap_err();
        assert!(matches!(error, CertError::NotYetValid { .. }), "{error}");

        let another = ours.issue(&role, 30, now).unwrap();
        let mixed = Issued { key_pem: another.key_pem, ..issued.clone() };
        assert!(matches!(check(&mixed, now), Err(CertError::KeyMismatch)));

        let mixed = Issued { root_pem: other.root_pem().to_owned(), ..issued.clone() };
        assert!(matches!(check(&mixed, now), Err(CertError::Chain { .. })));

        // The issuing CA's certificate was left out.
        let end = issued.certificate_pem.find("-----END CERTIFICATE-----\n").unwrap() + 26;
        let mut alone = issued.clone();
        alone.certificate_pem.truncate(end);
        assert!(matches!(check(&alone, now), Err(CertError::Chain { .. })));
    }

    #[test]
    fn something_else_than_tls_is_recognised() {
        let error = Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType);
        let seen = Seen::ByClient { own: None, server: "host:80", now: OffsetDateTime::now_utc() };
        let text = explain(&error, &seen);
        assert!(text.contains("host:80 does not speak TLS"), "{text}");
        assert!(explain(&error, &Seen::ByServer).contains("does not speak TLS"));
    }
}
