//! Joining and renewing: TLS in which only the coordinator shows a certificate, and what is checked of the
//! certificates that come back.
//!
//! Whoever joins has no root yet, only the fingerprint in its invitation: the coordinator sends its root
//! along, and the one with that fingerprint is believed, and nothing else.

use std::sync::Arc;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use comity_federation::{KeyFingerprint, Time};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::time_provider::TimeProvider;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig,
    SignatureScheme,
};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use crate::ca::CLOCK_SKEW;
use crate::key::{fingerprint_of_certificate, sha256};
use crate::tls::{ALPN, certificates, key, key_mismatch, provider, roots};
use crate::{
    CertError, CertificateSummary, Clock, Identity, Invitation, Seen, check_own, date_of, explain,
    time_of,
};

/// Where `join` finds its token if no argument says.
const TOKEN_VARIABLE: &str = "COMITY_JOIN_TOKEN";

/// A one-time secret of an invitation, from the operating system's randomness.
///
/// # Errors
/// [`CertError::Randomness`] if there is none.
pub fn new_secret() -> Result<Zeroizing<[u8; 32]>, CertError> {
    let mut secret = Zeroizing::new([0; 32]);
    SystemRandom::new().fill(&mut *secret).map_err(|_| CertError::Randomness)?;
    Ok(secret)
}

/// The token that a person gave: as an argument, on stdin for `-`, or else in `COMITY_JOIN_TOKEN`; the last two
/// are seen in no list of processes.
///
/// # Errors
/// [`CertError::Token`] if there is none.
pub fn token_given(argument: Option<String>) -> Result<Zeroizing<String>, CertError> {
    let none = |reason: &str| CertError::Token { reason: reason.to_owned() };
    match argument.map(Zeroizing::new) {
        Some(dash) if *dash == "-" => {
            let mut line = Zeroizing::new(String::new());
            std::io::stdin()
                .read_line(&mut line)
                .map_err(|error| none(&format!("stdin cannot be read ({error})")))?;
            Ok(line)
        }
        Some(token) => Ok(token),
        None => std::env::var(TOKEN_VARIABLE).map(Zeroizing::new).map_err(|_| {
            none("there is none; give `-` and the token on stdin, or set COMITY_JOIN_TOKEN")
        }),
    }
}

/// Whether two digests of secrets are the same, in a time that does not tell where they differ.
#[must_use]
pub fn same_secret(a: &[u8], b: &[u8]) -> bool {
    verify_slices_are_equal(a, b).is_ok()
}

/// SHA-256 of the first certificate in `root_pem`, DER: by this an invitation names the root.
///
/// # Errors
/// [`CertError::Pem`] if there is none.
pub fn root_fingerprint(root_pem: &str) -> Result<[u8; 32], CertError> {
    Ok(sha256(&certificates(root_pem, "root")?[0]))
}

/// The configuration of the port where members join: the coordinator shows its certificate and sends the
/// root along, and asks for none.
///
/// # Errors
/// [`CertError`] if a text is not PEM or the key belongs to another certificate.
pub fn enrolment_config(
    chain_pem: &str,
    key_pem: &str,
    root_pem: &str,
    clock: Arc<dyn TimeProvider>,
) -> Result<Arc<ServerConfig>, CertError> {
    let mut chain = certificates(chain_pem, "certificate")?;
    chain.extend(certificates(root_pem, "root")?);
    let mut config = ServerConfig::builder_with_details(provider(), clock)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, key(key_pem)?)
        .map_err(key_mismatch)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(Arc::new(config))
}

/// The configuration of whoever joins: the server's certificate has to lead to the root that it sends along
/// and whose SHA-256 is `root`.
///
/// # Errors
/// [`CertError::Tls`] if TLS cannot be set up.
pub fn joining_config(
    root: [u8; 32],
    clock: Arc<dyn TimeProvider>,
) -> Result<Arc<ClientConfig>, CertError> {
    let provider = provider();
    let verifier = Arc::new(Pinned { root, provider: Arc::clone(&provider) });
    let mut config = ClientConfig::builder_with_details(provider, clock)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// The configuration of a member that asks for its next certificate; its latest may have expired, so it
/// shows none.
///
/// # Errors
/// [`CertError`] if `root_pem` is not PEM.
pub fn renewing_config(
    root_pem: &str,
    clock: Arc<dyn TimeProvider>,
) -> Result<Arc<ClientConfig>, CertError> {
    let mut config = ClientConfig::builder_with_details(provider(), clock)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots(root_pem)?)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// Believes one root, wherever it comes from.
#[derive(Debug)]
struct Pinned {
    root: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let root = intermediates.iter().find(|certificate| sha256(certificate) == self.root);
        let root = root.ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(root.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
            .build()
            .map_err(|error| Error::General(error.to_string()))?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("only TLS 1.3 is spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// What a person who joins reads when TLS fails with whatever answers at the invitation's address.
#[must_use]
pub fn explain_joining(error: &Error, invitation: &Invitation, clock: &Clock) -> String {
    let Invitation { url, .. } = invitation;
    let shows = date_of(clock.now());
    match error {
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => format!(
            "what answers at {url} is not the coordinator of this invitation: its root is another one. Either the \
             federation was set up anew, or something between intercepts TLS; ask the operator for a new token, \
             by a way that you trust"
        ),
        Error::InvalidCertificate(CertificateError::NotValidYetContext { not_before, .. }) => {
            format!(
                "the coordinator's certificate is valid only from {}, and this machine's clock shows {shows}; set the \
             clock, by NTP best, and run the same command again",
                date_of(Time(not_before.as_secs() * 1000))
            )
        }
        Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. }) => format!(
            "the coordinator's certificate expired on {}, by this machine's clock, which shows {shows}; if that is \
             right, the operator has to renew it, otherwise set the clock and run the same command again",
            date_of(Time(not_after.as_secs() * 1000))
        ),
        other => explain(other, &Seen::ByClient { own: None, server: url, now: clock.date() }),
    }
}

impl Invitation {
    /// Whether it still holds, by this machine's clock.
    ///
    /// # Errors
    /// [`CertError::Invitation`] with the date and what the clock shows.
    pub fn check_time(&self, clock: &Clock) -> Result<(), CertError> {
        if clock.now() <= self.expires {
            return Ok(());
        }
        Err(CertError::Invitation {
            identity: self.identity.role.to_string(),
            expired: date_of(self.expires),
            now: date_of(clock.now()),
        })
    }

    /// Whether what the coordinator answered is what this invitation promised: a certificate of the invited
    /// for the key, which leads to the root that the invitation names.
    ///
    /// # Errors
    /// [`CertError`] says what does not fit; [`CertError::Clock`] if the two clocks differ too much.
    pub fn check_enrolled(
        &self,
        certificate_pem: &str,
        key_pem: &str,
        root_pem: &str,
        clock: &Clock,
    ) -> Result<CertificateSummary, CertError> {
        let identity = self.identity.role.to_string();
        if !certificates(root_pem, "root")?.iter().any(|root| sha256(root) == self.root) {
            let reason = "the root is not the one that the invitation names".to_owned();
            return Err(CertError::Chain { identity, reason });
        }
        let certified = CertificateFacts::of_pem(certificate_pem)?;
        if certified.identity != self.identity {
            let reason = format!("it names {} instead of {identity}", certified.identity.role);
            return Err(CertError::Identity { reason });
        }
        check_own(certificate_pem, key_pem, root_pem, clock.date()).map_err(|error| match error {
            CertError::Expired { .. } | CertError::NotYetValid { .. } => CertError::Clock {
                from: date_of(time_of(certified.not_before)),
                until: date_of(time_of(certified.not_after)),
                now: date_of(clock.now()),
            },
            other => other,
        })
    }
}

/// What a registry keeps of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFacts {
    /// Whose it is.
    pub identity: Identity,
    /// The key that it is for.
    pub key: KeyFingerprint,
    /// Its serial number, in hexadecimal digits.
    pub serial: String,
    /// First instant at which it is valid.
    pub not_before: OffsetDateTime,
    /// Last instant at which it is valid.
    pub not_after: OffsetDateTime,
}

impl CertificateFacts {
    /// Reads the first certificate in `pem`, which is not verified here.
    ///
    /// # Errors
    /// [`CertError`] if it cannot be read or does not name a member of a federation.
    pub fn of_pem(pem: &str) -> Result<Self, CertError> {
        let der = certificates(pem, "certificate")?.remove(0);
        let identity = Identity::of_certificate(&der)?;
        let (_, certificate) = X509Certificate::from_der(&der)
            .map_err(|error| CertError::Pem { what: "certificate", reason: error.to_string() })?;
        let serial = certificate.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self {
            identity,
            key: fingerprint_of_certificate(&der)?,
            serial,
            not_before: certificate.validity().not_before.to_datetime(),
            not_after: certificate.validity().not_after.to_datetime(),
        })
    }

    /// When two thirds of its life are over: the time to ask for the next one.
    #[must_use]
    pub fn renews_at(&self) -> OffsetDateTime {
        // It begins some minutes before it was made, for clocks that are behind.
        let made = (self.not_before + CLOCK_SKEW).min(self.not_after);
        made + (self.not_after - made) * 2 / 3
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Authority, MemberKey, Role, SigningRequest, fixed_time};
    use rustls::{ClientConnection, ServerConnection};
    use time::Duration;

    fn authority(name: &str) -> (tempfile::TempDir, Authority) {
        let dir = tempfile::tempdir().unwrap();
        let now = OffsetDateTime::now_utc();
        let authority = Authority::init(dir.path(), name, &["localhost".to_owned()], now).unwrap();
        (dir, authority)
    }

    fn server(dir: &tempfile::TempDir) -> ServerConnection {
        let pem = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        let clock = Arc::new(rustls::time_provider::DefaultTimeProvider);
        let config = enrolment_config(
            &pem("coordinator.pem"),
            &pem("coordinator.key"),
            &pem("root.pem"),
            clock,
        );
        ServerConnection::new(config.unwrap()).unwrap()
    }

    /// How a handshake ends at the client.
    fn shake(config: Arc<ClientConfig>, mut server: ServerConnection) -> Result<(), Error> {
        let mut client = ClientConnection::new(config, "localhost".try_into().unwrap()).unwrap();
        for _ in 0..4 {
            let mut wire = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut wire).unwrap();
            }
            server.read_tls(&mut &wire[..]).unwrap();
            let _ = server.process_new_packets();
            let mut wire = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut wire).unwrap();
            }
            let mut wire = &wire[..];
            while !wire.is_empty() {
                client.read_tls(&mut wire).unwrap();
                client.process_new_packets()?;
            }
        }
        assert!(!client.is_handshaking());
        Ok(())
    }

    #[test]
    fn only_the_root_of_the_invitation_is_believed() {
        let ((ours, authority), (others, _)) = (authority("ours"), authority("ours"));
        let root = root_fingerprint(authority.root_pem()).unwrap();
        let now = OffsetDateTime::now_utc();
        let joining = |at| joining_config(root, fixed_time(at)).unwrap();
        assert_eq!(shake(joining(now), server(&ours)), Ok(()));
        let refused = shake(joining(now), server(&others)).unwrap_err();
        assert_eq!(refused, Error::InvalidCertificate(CertificateError::UnknownIssuer));
        // And what it signed is looked at as always.
        let refused = shake(joining(now + Duration::days(400)), server(&ours)).unwrap_err();
        assert!(matches!(
            refused,
            Error::InvalidCertificate(CertificateError::ExpiredContext { .. })
        ));
        let renewing =
            |authority: &Authority| renewing_config(authority.root_pem(), fixed_time(now)).unwrap();
        assert_eq!(shake(renewing(&authority), server(&ours)), Ok(()));
        assert!(shake(renewing(&authority), server(&others)).is_err());
    }

    #[test]
    fn what_is_certified_is_the_key_that_asked() {
        let (_dir, authority) = authority("demo");
        let key = MemberKey::generate().unwrap();
        let request = SigningRequest::of_der(&key.signing_request().unwrap()).unwrap();
        let role = Role::Client("KR/a".parse().unwrap());
        let now = OffsetDateTime::now_utc();
        let pem =
            authority.sign(&request, &role, Duration::hours(24), now).unwrap().certificate_pem;
        let certified = CertificateFacts::of_pem(&pem).unwrap();
        assert_eq!((certified.key, &certified.identity.role), (key.fingerprint(), &role));
        assert!(certified.serial.len() >= 16 && certified.not_after > now);
        let left = certified.renews_at() - now;
        assert!(left > Duration::hours(15) && left < Duration::hours(17), "{left}");
    }

    #[test]
    fn secrets_differ_and_are_compared_whole() {
        let (a, b) = (new_secret().unwrap(), new_secret().unwrap());
        assert!(!same_secret(&*a, &*b) && same_secret(&*a, &*a) && !same_secret(&*a, &a[..31]));
    }
}
