//! Every certificate that a peer can show, over real sockets: accepted or refused, the sentence that the person
//! reads, and the one in the coordinator's log.  docs/tls.md is the table of it.

mod served;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use comity_certs::{
    Authority, CertificateSummary, Clock, Issued, Reason, RevokedCertificate, Role, Seen, Serial,
    explain, server_config_at, server_config_with_crls,
};
use comity_proto::PROTOCOL;
use comity_proto::transport::{ConnectError, connect};
use comity_proto::v1;
use comity_proto::v1::federation_client::FederationClient;
use rcgen::{
    CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer,
    KeyPair, SanType,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use served::{Log, client_role, issued, refusal, serve_with, tls, without_certificate};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use x509_parser::prelude::{FromDer, X509Certificate};

const DAY: time::Duration = time::Duration::days(1);

/// A coordinator's authority and socket, and its clock.
struct World {
    dir: tempfile::TempDir,
    authority: Authority,
    /// When it began.
    now: OffsetDateTime,
    /// Seconds that have passed since then, on the coordinator's clock.
    passed: Arc<AtomicI64>,
    tls: Arc<ArcSwap<rustls::ServerConfig>>,
    log: Log,
    url: String,
}

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let now = OffsetDateTime::now_utc();
        let authority =
            Authority::init(dir.path(), "test", &["127.0.0.1".to_owned()], now).unwrap();
        let passed = Arc::new(AtomicI64::new(0));
        let lists = authority.load_crls().unwrap();
        let tls = Arc::new(ArcSwap::from(config(&dir, lists, clock(&passed))));
        let log = Log::default();
        let url = serve_with(Arc::clone(&tls), Duration::from_secs(10), Arc::clone(&log)).await;
        Self { dir, authority, now, passed, tls, log, url }
    }

    /// Somebody who serves with these certificates; the URL.
    async fn serving(issued: &Issued) -> String {
        let Issued { certificate_pem, key_pem, root_pem } = issued;
        let clock = Arc::new(Clock::system());
        let tls = server_config_at(certificate_pem, key_pem, root_pem, clock).unwrap();
        let tls = Arc::new(ArcSwap::from(tls));
        serve_with(tls, Duration::from_secs(10), Log::default()).await
    }

    fn pem(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(name)).unwrap()
    }

    /// A client with a certificate for a day.
    fn member(&self) -> Issued {
        let member = issued(&self.authority);
        self.reload();
        member
    }

    fn date(&self) -> OffsetDateTime {
        self.now + time::Duration::seconds(self.passed.load(Ordering::SeqCst))
    }

    /// Moves the coordinator's clock.
    fn pass(&self, time: time::Duration) {
        self.passed.fetch_add(time.whole_seconds(), Ordering::SeqCst);
    }

    /// Moves the coordinator's clock to `date`; it has signed its lists anew by then.
    fn at(&self, date: OffsetDateTime) {
        self.pass(date - self.date());
        self.authority.crls(&[], date).unwrap();
        self.authority.refresh_root_crl(None, date).unwrap();
        self.reload();
    }

    /// What the coordinator does when its files have changed.
    fn reload(&self) {
        self.reload_with(self.authority.load_crls().unwrap());
    }

    fn reload_with(&self, lists: Vec<CertificateRevocationListDer<'static>>) {
        self.tls.store(config(&self.dir, lists, clock(&self.passed)));
    }

    /// Trusts one more root, and looks at no list.
    fn trust_without_lists(&self, root: &str) {
        let roots = self.pem("root.pem") + root;
        let (certificate, key) = (self.pem("coordinator.pem"), self.pem("coordinator.key"));
        let clock = Arc::new(clock(&self.passed));
        self.tls.store(server_config_at(&certificate, &key, &roots, clock).unwrap());
    }

    /// The next line of the coordinator's log about a handshake that failed.
    async fn logged(&self) -> String {
        for _ in 0..2_000 {
            {
                let mut log = self.log.lock().unwrap();
                if !log.is_empty() {
                    return log.remove(0);
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("nothing was logged");
    }
}

fn clock(passed: &Arc<AtomicI64>) -> Clock {
    let passed = Arc::clone(passed);
    Clock::from_fn(move || {
        let seconds = u64::try_from(passed.load(Ordering::SeqCst)).unwrap();
        SystemTime::now() + Duration::from_secs(seconds)
    })
}

fn config(
    dir: &tempfile::TempDir,
    lists: Vec<CertificateRevocationListDer<'static>>,
    clock: Clock,
) -> Arc<rustls::ServerConfig> {
    let pem = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
    let (certificate, key) = (pem("coordinator.pem"), pem("coordinator.key"));
    server_config_with_crls(&certificate, &key, &pem("root.pem"), lists, Arc::new(clock)).unwrap()
}

/// A key of the authority that somebody stole.
fn stolen(world: &World, name: &str) -> (Issuer<'static, KeyPair>, String) {
    let pem = world.pem(&format!("ca-1/{name}.pem"));
    let key = KeyPair::from_pem(&world.pem(&format!("ca-1/{name}.key"))).unwrap();
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    (Issuer::from_ca_cert_der(&der, key).unwrap(), pem)
}

/// What a client's certificate is, to be altered.
fn client_params(world: &World) -> CertificateParams {
    let host = "seoul-lab.kr.test.comity.internal".to_owned();
    let mut params = CertificateParams::new(vec![host]).unwrap();
    params
        .subject_alt_names
        .push(SanType::URI("comity://test/client/KR/seoul-lab".try_into().unwrap()));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    (params.not_before, params.not_after) = (world.now - DAY, world.now + DAY);
    params
}

fn forged(world: &World, params: &CertificateParams, ca: &str) -> Issued {
    let (issuer, ca_pem) = stolen(world, ca);
    let key = KeyPair::generate().unwrap();
    let certificate_pem = params.signed_by(&key, &issuer).unwrap().pem() + &ca_pem;
    let key_pem = key.serialize_pem().into();
    Issued { certificate_pem, key_pem, root_pem: world.authority.root_pem().to_owned() }
}

/// Whether `issued` is let in, and what is said on both sides if it is not.
async fn shown(world: &World, issued: &Issued) -> Result<(), [String; 2]> {
    let config = tls(issued, world.authority.root_pem());
    let own = CertificateSummary::of_pem(&issued.certificate_pem).unwrap();
    match connect(&world.url, config).await {
        Ok(_) => Ok(()),
        Err(ConnectError::Refused { source, .. }) => {
            let seen = Seen::ByClient { own: Some(&own), server: "127.0.0.1", now: world.date() };
            Err([explain(&source, &seen), world.logged().await])
        }
        Err(other) => panic!("{other}"),
    }
}

/// Refused, with these words for the person and in the log.
async fn is_refused(world: &World, issued: &Issued, person: &str, log: &str) {
    let [said, logged] = shown(world, issued).await.expect_err(person);
    assert!(said.contains(person), "the person reads: {said}");
    assert!(logged.contains(log), "the log says: {logged}");
}

/// What a call is answered on a connection that TLS let in.
async fn hello(world: &World, issued: &Issued) -> Result<String, String> {
    let channel = connect(&world.url, tls(issued, world.authority.root_pem())).await.unwrap();
    let hello = v1::HelloRequest { protocol: PROTOCOL, software: String::new() };
    match FederationClient::new(channel).hello(hello).await {
        Ok(reply) => Ok(reply.into_inner().you),
        Err(status) => Err(status.message().to_owned()),
    }
}

// BAD_INPUTS 1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_without_a_certificate_is_told_to_get_one() {
    let world = World::new().await;
    let said =
        refusal(&world.url, without_certificate(world.authority.root_pem()), None, world.now).await;
    assert!(said.contains("no client certificate was presented"), "{said}");
    assert!(world.logged().await.contains("presented no client certificate"));
}

// BAD_INPUTS 2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authority_with_the_same_names_and_another_key_signs_for_nobody() {
    let world = World::new().await;
    world.member();
    let (person, log) = ("signature does not hold", "another authority");
    // A certificate as ours would be, with our issuing CA's name and another's key.
    let real =
        CertificateDer::from_pem_slice(world.pem("ca-1/countries/KR.pem").as_bytes()).unwrap();
    let key = KeyPair::generate().unwrap();
    let impostor_key = KeyPair::generate().unwrap();
    let impostor = Issuer::from_ca_cert_der(&real, &impostor_key).unwrap();
    let leaf = client_params(&world).signed_by(&key, &impostor).unwrap().pem();
    let mut shown = Issued {
        certificate_pem: leaf.clone() + &world.pem("ca-1/countries/KR.pem"),
        key_pem: key.serialize_pem().into(),
        root_pem: world.authority.root_pem().to_owned(),
    };
    is_refused(&world, &shown, person, log).await;
    // The same with a certificate of that CA, of the same name too.
    let (_, x509) = X509Certificate::from_der(&real).unwrap();
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    let text = |value: &x509_parser::prelude::AttributeTypeAndValue<'_>| {
        value.as_str().unwrap().to_owned()
    };
    let country = text(x509.subject().iter_country().next().unwrap());
    let country = rcgen::DnValue::PrintableString(country.as_str().try_into().unwrap());
    name.push(DnType::CountryName, country);
    name.push(DnType::OrganizationName, text(x509.subject().iter_organization().next().unwrap()));
    name.push(DnType::CommonName, text(x509.subject().iter_common_name().next().unwrap()));
    params.distinguished_name = name;
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    let other_root = Authority::init(
        world.dir.path().join("other"),
        "test",
        &["127.0.0.1".to_owned()],
        world.now,
    );
    drop(other_root.unwrap());
    let root = CertificateDer::from_pem_slice(world.pem("ca-1/root.pem").as_bytes()).unwrap();
    let root_key = KeyPair::from_pem(&world.pem("other/ca-1/root.key")).unwrap();
    let root = Issuer::from_ca_cert_der(&root, root_key).unwrap();
    shown.certificate_pem = leaf + &params.signed_by(&impostor_key, &root).unwrap().pem();
    is_refused(&world, &shown, person, log).await;
    // Another federation's own, with other names.
    let other = Authority::open(world.dir.path().join("other")).unwrap();
    let stranger = issued(&other);
    is_refused(&world, &stranger, "issued by another authority", log).await;
}

// BAD_INPUTS 3, 4
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_and_a_future_certificate_are_told_apart() {
    let world = World::new().await;
    let between = |from: i32, to: i32| {
        let (from, to) = (world.now + DAY * from, world.now + DAY * to);
        world.authority.issue_between(&client_role(), from, to).unwrap()
    };
    is_refused(&world, &between(-3, -1), "KR/seoul-lab: it expired on", "expired on").await;
    is_refused(&world, &between(1, 3), "not valid before", "not valid before").await;
}

// BAD_INPUTS 5, 6
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_certificate_outlives_its_issuing_ca_or_that_its_root() {
    let world = World::new().await;
    world.member();
    // With the stolen key of the issuing CA, one that says that it lasts for 30 years.
    let mut params = client_params(&world);
    params.not_after = world.now + DAY * 365 * 30;
    let long = forged(&world, &params, "countries/KR");
    assert!(shown(&world, &long).await.is_ok());
    world.at(world.now + DAY * (5 * 365 + 1));
    is_refused(&world, &long, "or the issuing CA's has expired", "expired on").await;
    // The root ends later, and whatever it signs ends no later than it does.
    let late = world.now + DAY * 365 * 19;
    world.authority.add_country("TH".parse().unwrap(), None, late).unwrap();
    let (role, end) = (Role::Client("TH/a".parse().unwrap()), world.now + DAY * 20 * 365);
    assert!(world.authority.issue_between(&role, late, end + DAY).is_err());
    let thai = world.authority.issue_between(&role, late, end - DAY).unwrap();
    world.at(end - DAY * 2);
    assert!(shown(&world, &thai).await.is_ok());
    world.at(end + DAY);
    is_refused(&world, &thai, "expired", "expired on").await;
}

// BAD_INPUTS 7, 8
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_servers_certificate_is_no_clients_and_a_clients_no_servers() {
    let world = World::new().await;
    let names = ["127.0.0.1".to_owned()];
    let server = world.authority.issue_server(&names, world.now - DAY, world.now + DAY).unwrap();
    is_refused(&world, &server, "not for client use", "not for client use").await;
    // A member that poses as the coordinator.
    let member = world.member();
    let fake = World::serving(&member).await;
    let said =
        refusal(&fake, tls(&member, world.authority.root_pem()), Some(&member), world.now).await;
    assert!(said.contains("not for server use: another member poses as the coordinator"), "{said}");
    // With the key of its country's issuing CA it does not get further.
    let mut params = CertificateParams::new(names.to_vec()).unwrap();
    params.subject_alt_names.push(SanType::URI("comity://test/coordinator".try_into().unwrap()));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    (params.not_before, params.not_after) = (world.now - DAY, world.now + DAY);
    let forged = forged(&world, &params, "countries/KR");
    let fake = World::serving(&forged).await;
    let said =
        refusal(&fake, tls(&member, world.authority.root_pem()), Some(&member), world.now).await;
    assert!(said.contains("tell the operator"), "{said}");
}

// BAD_INPUTS 9
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_name_of_the_coordinator_is_answered_with_the_right_ones() {
    let world = World::new().await;
    let member = world.member();
    let url = world.url.replace("127.0.0.1", "localhost");
    let said =
        refusal(&url, tls(&member, world.authority.root_pem()), Some(&member), world.now).await;
    assert!(said.contains("not for localhost, only for"), "{said}");
    assert!(said.contains("127.0.0.1"), "{said}");
    assert!(world.logged().await.contains("the client refused this coordinator's certificate"));
}

// BAD_INPUTS 10, 12
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_certificate_and_all_of_a_revoked_issuing_ca_are_out_and_others_stay() {
    let world = World::new().await;
    let (out, stays) = (world.member(), world.member());
    let japan = Role::Client("JP/osaka".parse().unwrap());
    let japan = world.authority.issue(&japan, 1, world.now).unwrap();
    let der = CertificateDer::from_pem_slice(out.certificate_pem.as_bytes()).unwrap();
    let revoked = RevokedCertificate {
        issuer: "KR".parse().unwrap(),
        serial: Serial::of_certificate(&der).unwrap(),
        at: world.now,
        reason: Reason::KeyCompromise,
    };
    world.authority.crls(&[revoked], world.now).unwrap();
    world.reload();
    is_refused(&world, &out, "it was revoked; ask the operator why", "was revoked").await;
    assert!(shown(&world, &stays).await.is_ok());
    let korea = "KR".parse().unwrap();
    world.authority.revoke_country(korea, None, Reason::KeyCompromise, world.now).unwrap();
    world.reload();
    is_refused(&world, &stays, "it was revoked", "or the issuing CA that signed it, was revoked")
        .await;
    assert!(shown(&world, &japan).await.is_ok());
}

// BAD_INPUTS 13, 14
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_valid_list_of_its_authority_nobody_is_let_in_and_it_is_not_their_fault() {
    let world = World::new().await;
    let year = Role::Client("KR/seoul-lab".parse().unwrap());
    let member = world.authority.issue(&year, 365, world.now).unwrap();
    world.reload();
    assert!(shown(&world, &member).await.is_ok());
    world.pass(DAY * 8);
    let person = "cannot tell whether the certificate of KR/seoul-lab was revoked";
    is_refused(
        &world,
        &member,
        person,
        "the revocation list of an authority of the client's certificate expired on",
    )
    .await;
    world.authority.crls(&[], world.now + DAY * 8).unwrap();
    world.reload();
    assert!(shown(&world, &member).await.is_ok());
    // Lists of another authority say nothing of ours, whoever put them there.
    let other = World::new().await;
    other.member();
    world.reload_with(other.authority.load_crls().unwrap());
    is_refused(&world, &member, person, "no revocation list of the authority").await;
}

/// Alternative names as they stand in a certificate, DER: `(tag, bytes)` of each.
fn names(names: &[(u8, &[u8])]) -> CustomExtension {
    let mut list = Vec::new();
    for (tag, bytes) in names {
        list.extend([*tag, u8::try_from(bytes.len()).unwrap()]);
        list.extend(*bytes);
    }
    let mut der = vec![0x30, u8::try_from(list.len()).unwrap()];
    assert!(list.len() < 128);
    der.extend(list);
    CustomExtension::from_oid_content(&[2, 5, 29, 17], der)
}

// BAD_INPUTS 16
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_is_not_exactly_ours_is_refused_even_if_our_own_key_signed_it() {
    let world = World::new().await;
    world.member();
    let (uri, dns) = (0x86, 0x82);
    let host: (u8, &[u8]) = (dns, b"seoul-lab.kr.test.comity.internal");
    let good: (u8, &[u8]) = (uri, b"comity://test/client/KR/seoul-lab");
    let with = |list: &[(u8, &[u8])]| {
        let mut params = client_params(&world);
        params.subject_alt_names.clear();
        if !list.is_empty() {
            params.custom_extensions = vec![names(list)];
        }
        forged(&world, &params, "countries/KR")
    };
    assert_eq!(hello(&world, &with(&[good, host])).await.unwrap(), "KR/seoul-lab");
    for (list, word) in [
        (&[][..], "0 URI names"),
        (&[host], "0 URI names"),
        (&[good], "other names do not agree"),
        (&[good, good, host], "2 URI names"),
        (&[(uri, b"comity://test/client/KR/seoul\0lab"), host], "no client of the form"),
        (&[(uri, b"comity://test/client/KR/seoul-lab\0"), host], "no client of the form"),
        (&[(uri, "comity://test/client/KR/s\u{435}oul-lab".as_bytes()), host], ""),
        (&[(uri, b"comity://test/client/KR/../JP/x"), host], "no client of the form"),
        (&[(uri, b"comity://test/client/JP/osaka"), host], "signed by the issuing CA of KR"),
        (&[(uri, b"comity://test/operator/operator"), host], "of operators and the coordinator"),
        (&[(uri, b"comity://test/operator/operator")], "of operators and the coordinator"),
        (&[(uri, b"comity://other/client/KR/seoul-lab"), host], "federation"),
    ] {
        let refused = hello(&world, &with(list)).await.unwrap_err();
        assert!(refused.contains(word), "{list:?}: {refused}");
    }
    // A DNS name of another country is refused by TLS itself.
    let japan =
        with(&[(uri, b"comity://test/client/JP/osaka"), (dns, b"osaka.jp.test.comity.internal")]);
    is_refused(&world, &japan, "may not sign these names", "names that the issuing CA").await;
}

/// Shows a chain without having its key; the chain is looked at first.
#[derive(Debug)]
struct Showing(Arc<rustls::sign::CertifiedKey>);

impl rustls::client::ResolvesClientCert for Showing {
    fn resolve(
        &self,
        _: &[&[u8]],
        _: &[rustls::SignatureScheme],
    ) -> Option<Arc<rustls::sign::CertifiedKey>> {
        Some(self.0.clone())
    }
    fn has_certs(&self) -> bool {
        true
    }
}

// BAD_INPUTS 17
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rsa_of_1024_bits_and_sha_1_are_refused_even_below_a_root_that_is_trusted() {
    let world = World::new().await;
    let fixture = |name: &str| {
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        std::fs::read_to_string(dir.join(name)).unwrap()
    };
    let member = world.member();
    let refused_for = ["not secure", "another authority"];
    for (root, leaf) in [
        ("rsa-root.pem", "rsa-1024-sha1.pem"),
        ("rsa-root.pem", "rsa-1024-sha256.pem"),
        ("ecdsa-root.pem", "ecdsa-sha1.pem"),
    ] {
        world.trust_without_lists(&fixture(root));
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let key =
            rustls::pki_types::PrivateKeyDer::from_pem_slice(member.key_pem.as_bytes()).unwrap();
        let key = provider.key_provider.load_private_key(key).unwrap();
        let chain = vec![CertificateDer::from_pem_slice(fixture(leaf).as_bytes()).unwrap()];
        let shown = Arc::new(rustls::sign::CertifiedKey::new(chain, key));
        let mut config = (*tls(&member, world.authority.root_pem())).clone();
        config.client_auth_cert_resolver = Arc::new(Showing(shown));
        let said = refusal(&world.url, Arc::new(config), None, world.now).await;
        assert!(said.contains("RSA below 2048 bits, SHA-1"), "{leaf}: {said}");
        let logged = world.logged().await;
        assert!(refused_for.iter().any(|word| logged.contains(word)), "{logged}");
    }
}

/// The first message of a client that knows TLS 1.2 and nothing newer.
fn hello_of_tls_1_2() -> Vec<u8> {
    let mut hello = vec![3, 3];
    hello.extend([7; 32]);
    // No session; ECDHE with AES-GCM; no compression.
    hello.extend([0, 0, 4, 0xc0, 0x2b, 0xc0, 0x2f, 1, 0]);
    let extensions = [
        // Groups: P-256. Formats: uncompressed. Signatures: ECDSA P-256 with SHA-256.
        &[0, 10, 0, 4, 0, 2, 0, 23][..],
        &[0, 11, 0, 2, 1, 0],
        &[0, 13, 0, 4, 0, 2, 4, 3],
    ]
    .concat();
    hello.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
    hello.extend(extensions);
    let n = u16::try_from(hello.len()).unwrap();
    let mut record = vec![22, 3, 1];
    record.extend((n + 4).to_be_bytes());
    record.extend([1, 0]);
    record.extend(n.to_be_bytes());
    record.extend(hello);
    record
}

/// What the coordinator answers to `bytes` until it closes the connection.
async fn answer(world: &World, bytes: &[u8]) -> Vec<u8> {
    let address = world.url.strip_prefix("https://").unwrap();
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut said = Vec::new();
    let read = stream.read_to_end(&mut said);
    let _ = tokio::time::timeout(Duration::from_secs(20), read).await.expect("it is answered");
    said
}

/// A server that answers the first bytes of each connection with `says`.
async fn imposter(says: &'static [u8]) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut hello = [0; 1024];
            let _ = stream.read(&mut hello).await;
            let _ = stream.write_all(says).await;
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
    });
    url
}

// BAD_INPUTS 18
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_that_speak_an_older_tls_or_plain_http_are_told_what_they_are() {
    let world = World::new().await;
    // Alert: fatal, protocol_version.
    assert!(answer(&world, &hello_of_tls_1_2()).await.ends_with(&[2, 70]));
    assert!(world.logged().await.contains("speaks no TLS 1.3"));
    let http = b"GET / HTTP/1.1\r\nHost: coordinator\r\n\r\n";
    assert_eq!(answer(&world, http).await.first(), Some(&21), "an alert, and no page");
    assert!(world.logged().await.contains("does not speak TLS"));
    let member = world.member();
    for (says, word) in [
        (&[21, 3, 3, 0, 2, 2, 70][..], "speaks no TLS 1.3"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak TLS"),
    ] {
        let url = imposter(says).await;
        let said =
            refusal(&url, tls(&member, world.authority.root_pem()), Some(&member), world.now).await;
        assert!(said.contains(word), "{said}");
    }
}

// BAD_INPUTS 19
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_half_handshakes_keep_nobody_out() {
    let world = World::new().await;
    let member = world.member();
    let address = world.url.strip_prefix("https://").unwrap();
    let half = hello_of_tls_1_2();
    let mut silent = Vec::new();
    for i in 0..500 {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        // Some say nothing, some half of what they have to say.
        if i % 2 == 0 {
            stream.write_all(&half[..half.len() / 2]).await.unwrap();
        }
        silent.push(stream);
    }
    for _ in 0..3 {
        connect(&world.url, tls(&member, world.authority.root_pem())).await.unwrap();
    }
    let mut byte = [0];
    let dropped = tokio::time::timeout(Duration::from_secs(20), silent[0].read(&mut byte)).await;
    assert!(matches!(dropped.expect("it was dropped in time"), Ok(0) | Err(_)));
}

// BAD_INPUTS 20
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_ends_during_an_upload_lets_it_end_and_a_renewed_one_comes_in() {
    let world = World::new().await;
    let member = world.member();
    let channel = connect(&world.url, tls(&member, world.authority.root_pem())).await.unwrap();
    let (sender, parts) = tokio::sync::mpsc::channel(1);
    let upload = tokio::spawn(async move {
        let parts = tokio_stream::wrappers::ReceiverStream::new(parts);
        FederationClient::new(channel).submit_update(parts).await
    });
    let part = || v1::UpdatePart { part: None };
    sender.send(part()).await.unwrap();
    // Its day ends, and the coordinator's own certificate is another by then.
    world.pass(DAY * 2);
    let names = ["127.0.0.1".to_owned()];
    world.authority.renew_coordinator(&names, world.now).unwrap();
    world.reload();
    is_refused(&world, &member, "KR/seoul-lab: it expired on", "expired on").await;
    sender.send(part()).await.unwrap();
    let renewed = world.authority.issue(&client_role(), 3, world.now).unwrap();
    assert_eq!(hello(&world, &renewed).await.unwrap(), "KR/seoul-lab");
    sender.send(part()).await.unwrap();
    drop(sender);
    assert!(upload.await.unwrap().is_ok());
}
