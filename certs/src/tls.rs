//! TLS configurations: 1.3 only, a certificate on both sides, aws-lc-rs.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientCertVerifierBuilder, WebPkiClientVerifier};
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig,
    SignatureScheme,
};
use time::OffsetDateTime;

use crate::CertError;

pub(crate) const ALPN: &[u8] = b"h2";

/// The coordinator's configuration: whoever connects needs a certificate that leads to `root_pem`.
///
/// All arguments are PEM text; `chain_pem` is the certificate followed by the issuing CA's.
///
/// # Errors
/// [`CertError`] if a text is not PEM or the key belongs to another certificate.
pub fn server_config(
    chain_pem: &str,
    key_pem: &str,
    root_pem: &str,
) -> Result<Arc<ServerConfig>, CertError> {
    server_config_at(chain_pem, key_pem, root_pem, Arc::new(DefaultTimeProvider))
}

/// [`server_config`] with a clock of its own, for tests.
///
/// # Errors
/// As [`server_config`].
pub fn server_config_at(
    chain_pem: &str,
    key_pem: &str,
    root_pem: &str,
    clock: Arc<dyn TimeProvider>,
) -> Result<Arc<ServerConfig>, CertError> {
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots(root_pem)?), provider());
    server_config_of(chain_pem, key_pem, verifier, clock)
}

/// [`server_config_at`] that also refuses whom one of `crls` names, and everybody for whom there is no list
/// or only one whose time is over: `Authority::load_crls` has them.
///
/// # Errors
/// As [`server_config`], and [`CertError::NoCrl`] if there is no list at all.
pub fn server_config_with_crls(
    chain_pem: &str,
    key_pem: &str,
    root_pem: &str,
    crls: Vec<CertificateRevocationListDer<'static>>,
    clock: Arc<dyn TimeProvider>,
) -> Result<Arc<ServerConfig>, CertError> {
    if crls.is_empty() {
        return Err(CertError::NoCrl);
    }
    // The whole chain is looked at, and an unknown status is a refusal; both are rustls's defaults.
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots(root_pem)?), provider())
            .with_crls(crls)
            .enforce_revocation_expiration();
    server_config_of(chain_pem, key_pem, verifier, clock)
}

fn server_config_of(
    chain_pem: &str,
    key_pem: &str,
    verifier: ClientCertVerifierBuilder,
    clock: Arc<dyn TimeProvider>,
) -> Result<Arc<ServerConfig>, CertError> {
    let verifier = verifier
        .build()
        .map_err(|error| CertError::Pem { what: "root", reason: error.to_string() })?;
    let mut config = ServerConfig::builder_with_details(provider(), clock)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(MemberVerifier(verifier)))
        .with_single_cert(certificates(chain_pem, "certificate")?, key(key_pem)?)
        .map_err(key_mismatch)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // A resumed session would not verify the client's certificate again.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(Arc::new(config))
}

/// Verifies as rustls does. A peer learns of a refusal only by the number of an alert, and the same one stands
/// for another authority's certificate and for our own list that has expired: here each reason for which it
/// has to do something else gets a number of its own, which [`explain`](crate::explain) knows.
#[derive(Debug)]
struct MemberVerifier(Arc<dyn ClientCertVerifier>);

/// Whether a certificate was revoked cannot be told: the reason of the `CertificateUnknown` alert.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct RevocationUnknown(pub(crate) String);

fn with_an_alert_of_its_own(error: rustls::Error) -> rustls::Error {
    use rustls::CertificateError as E;
    let unknown =
        |what: String| E::Other(rustls::OtherError(Arc::new(RevocationUnknown(what)))).into();
    match error {
        rustls::Error::InvalidCertificate(E::UnknownRevocationStatus) => unknown(
            "there is no revocation list of the authority that signed the client's certificate"
                .to_owned(),
        ),
        rustls::Error::InvalidCertificate(E::ExpiredRevocationListContext {
            next_update, ..
        }) => unknown(format!(
            "the revocation list of an authority of the client's certificate expired on {}",
            crate::explain::date(next_update)
        )),
        rustls::Error::InvalidCertRevocationList(error) => {
            unknown(format!("a revocation list cannot be used ({error:?})"))
        }
        rustls::Error::InvalidCertificate(E::Other(_)) => E::ApplicationVerificationFailure.into(),
        other => other,
    }
}

impl ClientCertVerifier for MemberVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.0.verify_client_cert(end_entity, intermediates, now).map_err(with_an_alert_of_its_own)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// A client's or operator's configuration: the server needs a certificate that leads to `root_pem`.
///
/// All arguments are PEM text; `chain_pem` is the certificate followed by the issuing CA's.
///
/// # Errors
/// [`CertError`] if a text is not PEM or the key belongs to another certificate.
pub fn client_config(
    chain_pem: &str,
    key_pem: &str,
    root_pem: &str,
) -> Result<Arc<ClientConfig>, CertError> {
    client_config_at(chain_pem, key_pem, root_pem, Arc::new(DefaultTimeProvider))
}

/// [`client_config`] with a clock of its own, for tests.
///
/// # Errors
/// As [`client_config`].
pub fn client_config_at(
    chain_pem: &str,
    key_pem: &str,
    root_pem: &str,
    clock: Arc<dyn TimeProvider>,
) -> Result<Arc<ClientConfig>, CertError> {
    let mut config = ClientConfig::builder_with_details(provider(), clock)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots(root_pem)?)
        .with_client_auth_cert(certificates(chain_pem, "certificate")?, key(key_pem)?)
        .map_err(key_mismatch)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// A clock that stands still, for tests.
#[must_use]
pub fn fixed_time(at: OffsetDateTime) -> Arc<dyn TimeProvider> {
    Arc::new(FixedTime(unix_time(at)))
}

#[derive(Debug)]
struct FixedTime(UnixTime);

impl TimeProvider for FixedTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(self.0)
    }
}

pub(crate) fn unix_time(at: OffsetDateTime) -> UnixTime {
    let seconds = u64::try_from(at.unix_timestamp()).unwrap_or(0);
    UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds))
}

/// Named here, so that no program needs a process-wide default.
pub(crate) fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// At least one certificate.
pub(crate) fn certificates(
    pem: &str,
    what: &'static str,
) -> Result<Vec<CertificateDer<'static>>, CertError> {
    let certificates = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(CertError::pem(what))?;
    if certificates.is_empty() {
        return Err(CertError::Pem { what, reason: "there is no certificate in it".to_owned() });
    }
    Ok(certificates)
}

pub(crate) fn key(pem: &str) -> Result<PrivateKeyDer<'static>, CertError> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(CertError::pem("private key"))
}

pub(crate) fn roots(pem: &str) -> Result<RootCertStore, CertError> {
    let mut roots = RootCertStore::empty();
    for root in certificates(pem, "root")? {
        roots.add(root)?;
    }
    Ok(roots)
}

pub(crate) fn key_mismatch(error: rustls::Error) -> CertError {
    match error {
        rustls::Error::InconsistentKeys(_) => CertError::KeyMismatch,
        other => CertError::Tls(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Authority, Issued, Role, Seen, explain};
    use rustls::{ClientConnection, ServerConnection};
    use time::Duration;

    struct Federation {
        authority: Authority,
        server: Issued,
        now: OffsetDateTime,
        _dir: tempfile::TempDir,
    }

    impl Federation {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let now = OffsetDateTime::now_utc();
            let authority =
                Authority::init(dir.path(), "demo", &["localhost".to_owned()], now).unwrap();
            let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
            let server = Issued {
                certificate_pem: read("coordinator.pem"),
                key_pem: read("coordinator.key").into(),
                root_pem: read("root.pem"),
            };
            Self { authority, server, now, _dir: dir }
        }

        fn client(&self) -> Issued {
            self.authority.issue(&role(), 30, self.now).unwrap()
        }

        fn client_between(&self, from: i64, to: i64) -> Issued {
            let day = |n| self.now + Duration::days(n);
            self.authority.issue_between(&role(), day(from), day(to)).unwrap()
        }
    }

    fn role() -> Role {
        Role::Client("KR/seoul-lab".parse().unwrap())
    }

    fn client(issued: &Issued) -> ClientConnection {
        let config =
            client_config(&issued.certificate_pem, &issued.key_pem, &issued.root_pem).unwrap();
        ClientConnection::new(config, "localhost".try_into().unwrap()).unwrap()
    }

    fn server(issued: &Issued) -> ServerConnection {
        let config =
            server_config(&issued.certificate_pem, &issued.key_pem, &issued.root_pem).unwrap();
        ServerConnection::new(config).unwrap()
    }

    /// Both sides' errors after everything either side says was delivered.
    fn shake(
        client: &mut ClientConnection,
        server: &mut ServerConnection,
    ) -> (Option<rustls::Error>, Option<rustls::Error>) {
        let (mut of_client, mut of_server) = (None, None);
        for _ in 0..8 {
            let mut wire = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut wire).unwrap();
            }
            let mut wire = &wire[..];
            while !wire.is_empty() && of_server.is_none() {
                server.read_tls(&mut wire).unwrap();
                of_server = server.process_new_packets().err();
            }
            let mut wire = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut wire).unwrap();
            }
            let mut wire = &wire[..];
            while !wire.is_empty() && of_client.is_none() {
                client.read_tls(&mut wire).unwrap();
                of_client = client.process_new_packets().err();
            }
        }
        (of_client, of_server)
    }

    fn as_client(error: &rustls::Error) -> String {
        explain(
            error,
            &Seen::ByClient { own: None, server: "localhost", now: OffsetDateTime::now_utc() },
        )
    }

    #[test]
    fn good_certificates_shake_hands_over_tls_1_3_and_h2() {
        let federation = Federation::new();
        let (mut c, mut s) = (client(&federation.client()), server(&federation.server));
        assert_eq!(shake(&mut c, &mut s), (None, None));
        assert!(!c.is_handshaking() && !s.is_handshaking());
        assert_eq!(c.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
        assert_eq!(c.alpn_protocol(), Some(ALPN));
        let identity = crate::Identity::of_certificate(&s.peer_certificates().unwrap()[0]).unwrap();
        assert_eq!(identity.to_string(), "comity://demo/client/KR/seoul-lab");
    }

    #[test]
    fn client_without_a_certificate_is_refused() {
        let federation = Federation::new();
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots(&federation.server.root_pem).unwrap())
            .with_no_client_auth();
        let mut c =
            ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
        let (of_client, of_server) = shake(&mut c, &mut server(&federation.server));
        assert!(as_client(&of_client.unwrap()).contains("no client certificate"));
        assert!(explain(&of_server.unwrap(), &Seen::ByServer).contains("no client certificate"));
    }

    #[test]
    fn client_of_another_authority_with_the_same_names_is_refused() {
        let (federation, other) = (Federation::new(), Federation::new());
        let mut issued = other.client();
        issued.root_pem.clone_from(&federation.server.root_pem);
        let (of_client, of_server) = shake(&mut client(&issued), &mut server(&federation.server));
        assert!(as_client(&of_client.unwrap()).contains("another"));
        assert!(explain(&of_server.unwrap(), &Seen::ByServer).contains("another"));
    }

    #[test]
    fn server_of_another_authority_is_refused_by_the_client() {
        let (federation, other) = (Federation::new(), Federation::new());
        let (of_client, of_server) =
            shake(&mut client(&federation.client()), &mut server(&other.server));
        assert!(as_client(&of_client.unwrap()).contains("root"));
        assert!(explain(&of_server.unwrap(), &Seen::ByServer).contains("client refused"));
    }

    #[test]
    fn expired_and_future_certificates_are_refused() {
        let federation = Federation::new();
        for (from, to, word) in [(-20, -1, "expired on"), (1, 20, "not valid before")] {
            let issued = federation.client_between(from, to);
            let (of_client, of_server) =
                shake(&mut client(&issued), &mut server(&federation.server));
            let own = crate::CertificateSummary::of_pem(&issued.certificate_pem).unwrap();
            let seen = Seen::ByClient { own: Some(&own), server: "localhost", now: federation.now };
            let text = explain(&of_client.unwrap(), &seen);
            assert!(text.contains(word) && text.contains("KR/seoul-lab"), "{text}");
            let text = explain(&of_server.unwrap(), &Seen::ByServer);
            assert!(text.contains(word), "{text}");
        }
    }

    #[test]
    fn a_clock_in_the_future_sees_an_expired_server() {
        let federation = Federation::new();
        let issued = federation.client();
        let later = fixed_time(federation.now + Duration::days(400));
        let config =
            client_config_at(&issued.certificate_pem, &issued.key_pem, &issued.root_pem, later)
                .unwrap();
        let mut c = ClientConnection::new(config, "localhost".try_into().unwrap()).unwrap();
        let (of_client, _) = shake(&mut c, &mut server(&federation.server));
        let text = as_client(&of_client.unwrap());
        assert!(text.contains("coordinator's certificate expired on"), "{text}");
    }

    #[test]
    fn certificates_do_not_serve_the_other_side() {
        let federation = Federation::new();
        let (of_client, of_server) =
            shake(&mut client(&federation.server), &mut server(&federation.server));
        assert!(as_client(&of_client.unwrap()).contains("coordinator.pem"));
        assert!(explain(&of_server.unwrap(), &Seen::ByServer).contains("not for client use"));
        let (of_client, of_server) =
            shake(&mut client(&federation.client()), &mut server(&federation.client()));
        let text = as_client(&of_client.unwrap());
        assert!(text.contains("not for server use"), "{text}");
        assert!(of_server.is_some());
    }

    #[test]
    fn wrong_server_name_lists_the_right_ones() {
        let federation = Federation::new();
        let issued = federation.client();
        let config =
            client_config(&issued.certificate_pem, &issued.key_pem, &issued.root_pem).unwrap();
        let mut c = ClientConnection::new(config, "elsewhere.example".try_into().unwrap()).unwrap();
        let (of_client, _) = shake(&mut c, &mut server(&federation.server));
        let text = as_client(&of_client.unwrap());
        assert!(text.contains("localhost"), "{text}");
    }

    #[test]
    fn key_of_another_certificate_is_refused() {
        let federation = Federation::new();
        let (a, b) = (federation.client(), federation.client());
        for error in [
            client_config(&a.certificate_pem, &b.key_pem, &a.root_pem).unwrap_err(),
            server_config(&a.certificate_pem, &b.key_pem, &a.root_pem).unwrap_err(),
        ] {
            assert!(matches!(error, CertError::KeyMismatch), "{error}");
        }
        assert!(client_config("", &a.key_pem, &a.root_pem).is_err());
        assert!(client_config(&a.certificate_pem, "x", &a.root_pem).is_err());
        assert!(client_config(&a.certificate_pem, &a.key_pem, "x").is_err());
    }
}
