//! Real certificates, real TLS, real gRPC, on loopback: who gets in, and what the others learn.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use comity_certs::{
    Authority, CertificateSummary, Identity, Issued, Role, Seen, client_config, explain,
    server_config,
};
use comity_proto::limits::MESSAGE_BYTES_MAX;
use comity_proto::transport::{ConnectError, PeerCertificates, connect, incoming, server_builder};
use comity_proto::v1::federation_client::FederationClient;
use comity_proto::v1::federation_server::{Federation, FederationServer};
use comity_proto::{PROTOCOL, v1};
use time::OffsetDateTime;
use tokio::io::AsyncReadExt as _;
use tokio_stream::Stream;
use tonic::codec::CompressionEncoding;
use tonic::{Code, Request, Response, Status, Streaming};

/// Says hello, and sends a plan that is nothing but zeros and too long.
struct Greeter;

type Sending<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Federation for Greeter {
    async fn hello(
        &self,
        request: Request<v1::HelloRequest>,
    ) -> Result<Response<v1::HelloReply>, Status> {
        let peer = request.extensions().get::<PeerCertificates>().expect("mTLS only");
        let identity = Identity::of_certificate(&peer.chain[0]).expect("it was verified");
        Ok(Response::new(v1::HelloReply {
            protocol: PROTOCOL,
            software: "test".to_owned(),
            federation: identity.federation,
            you: identity.role.to_string(),
            now_ms: 0,
        }))
    }
    type FollowStream = Sending<v1::Assignment>;
    async fn follow(
        &self,
        _: Request<v1::FollowRequest>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let plan_json = vec![0; 16 * MESSAGE_BYTES_MAX].into();
        let offer = v1::Offer { plan_json, ..v1::Offer::default() };
        let what = Some(v1::assignment::What::Offer(offer));
        let bomb = v1::Assignment { run_id: "bomb-1".to_owned(), what };
        Ok(Response::new(Box::pin(tokio_stream::once(Ok(bomb)))))
    }
    async fn check_in(
        &self,
        _: Request<v1::CheckInRequest>,
    ) -> Result<Response<v1::CheckInReply>, Status> {
        Err(Status::unimplemented("test"))
    }
    async fn decline(
        &self,
        _: Request<v1::DeclineRequest>,
    ) -> Result<Response<v1::DeclineReply>, Status> {
        Err(Status::unimplemented("test"))
    }
    async fn withdraw(
        &self,
        _: Request<v1::WithdrawRequest>,
    ) -> Result<Response<v1::WithdrawReply>, Status> {
        Err(Status::unimplemented("test"))
    }
    type FetchModelStream = Sending<v1::Chunk>;
    async fn fetch_model(
        &self,
        _: Request<v1::FetchModelRequest>,
    ) -> Result<Response<Self::FetchModelStream>, Status> {
        Err(Status::unimplemented("test"))
    }
    async fn upload_offset(
        &self,
        _: Request<v1::UpdateHeader>,
    ) -> Result<Response<v1::UploadOffsetReply>, Status> {
        Err(Status::unimplemented("test"))
    }
    async fn countersign(
        &self,
        _: Request<v1::CountersignRequest>,
    ) -> Result<Response<v1::CountersignReply>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn submit_update(
        &self,
        _: Request<Streaming<v1::UpdatePart>>,
    ) -> Result<Response<v1::SubmitReply>, Status> {
        Err(Status::unimplemented("test"))
    }
}

fn authority(dir: &Path) -> Authority {
    let names = ["127.0.0.1".to_owned()];
    Authority::init(dir, "test", &names, OffsetDateTime::now_utc()).unwrap()
}

/// Serves on a free port and returns `https://…`.
async fn serve(dir: &Path, handshake_timeout: Duration) -> String {
    let pem = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
    let tls = server_config(&pem("coordinator.pem"), &pem("coordinator.key"), &pem("root.pem"));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let tls = Arc::new(ArcSwap::from(tls.unwrap()));
    let who = |certificate: &[u8]| Identity::of_certificate(certificate).unwrap().role.to_string();
    let connections = incoming(listener, tls, handshake_timeout, who);
    let greeter = FederationServer::new(Greeter).send_compressed(CompressionEncoding::Zstd);
    let server = server_builder().add_service(greeter);
    tokio::spawn(server.serve_with_incoming(connections));
    format!("https://{address}")
}

fn client_role() -> Role {
    Role::Client("KR/seoul-lab".parse().unwrap())
}

fn issued(authority: &Authority) -> Issued {
    authority.issue(&client_role(), 1, OffsetDateTime::now_utc()).unwrap()
}

fn tls(issued: &Issued, root: &str) -> Arc<rustls::ClientConfig> {
    client_config(&issued.certificate_pem, &issued.key_pem, root).unwrap()
}

/// The sentence that the refused client's user reads.
async fn refusal(url: &str, tls: Arc<rustls::ClientConfig>, own: Option<&Issued>) -> String {
    let summary = own.map(|own| CertificateSummary::of_pem(&own.certificate_pem).unwrap());
    match connect(url, tls).await {
        Err(ConnectError::Refused { source, .. }) => explain(
            &source,
            &Seen::ByClient { own: summary.as_ref(), server: url, now: OffsetDateTime::now_utc() },
        ),
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_is_let_in_and_known_by_its_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(dir.path());
    let url = serve(dir.path(), Duration::from_secs(10)).await;
    let own = issued(&authority);
    let channel = connect(&url, tls(&own, &own.root_pem)).await.unwrap();
    let hello = v1::HelloRequest { protocol: PROTOCOL, software: String::new() };
    let reply = FederationClient::new(channel).hello(hello).await.unwrap().into_inner();
    assert_eq!((reply.federation.as_str(), reply.you.as_str()), ("test", "KR/seoul-lab"));
}

/// In TLS 1.3 the refusal races with the first request; ten tries each show that it is always seen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_without_a_certificate_with_anothers_or_with_an_expired_one_learns_why() {
    let (dir, other_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (authority, other) = (authority(dir.path()), authority(other_dir.path()));
    let url = serve(dir.path(), Duration::from_secs(10)).await;
    let root = authority.root_pem().to_owned();
    let now = OffsetDateTime::now_utc();
    let day = time::Duration::days(1);
    let expired = authority.issue_between(&client_role(), now - day * 2, now - day).unwrap();
    let stranger = issued(&other);
    for _ in 0..10 {
        let none = without_certificate(&root);
        let said = refusal(&url, none, None).await;
        assert!(said.contains("certificate") && said.contains("no "), "{said}");
        let said = refusal(&url, tls(&stranger, &root), Some(&stranger)).await;
        assert!(said.contains("authority") || said.contains("federation"), "{said}");
        let said = refusal(&url, tls(&expired, &root), Some(&expired)).await;
        assert!(said.contains("expired"), "{said}");
    }
    // The other way round: a coordinator of another federation is not believed.
    let said = refusal(&url, tls(&stranger, &stranger.root_pem), Some(&stranger)).await;
    assert!(said.contains("root.pem"), "{said}");
}

fn without_certificate(root_pem: &str) -> Arc<rustls::ClientConfig> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject as _;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(root_pem.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_open_handshake_is_dropped_and_disturbs_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(dir.path());
    let url = serve(dir.path(), Duration::from_millis(200)).await;
    let address = url.strip_prefix("https://").unwrap();
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(tokio::net::TcpStream::connect(address).await.unwrap());
    }
    let own = issued(&authority);
    connect(&url, tls(&own, &own.root_pem)).await.unwrap();
    let mut byte = [0];
    let dropped = tokio::time::timeout(Duration::from_secs(20), silent[0].read(&mut byte)).await;
    assert!(matches!(dropped.expect("it was dropped in time"), Ok(0) | Err(_)));
}

// BAD_INPUTS 23
#[tokio::test]
async fn a_compressed_message_is_no_longer_than_another_once_it_is_unpacked() {
    let dir = tempfile::tempdir().unwrap();
    let own = issued(&authority(dir.path()));
    let url = serve(dir.path(), Duration::from_secs(5)).await;
    let channel = connect(&url, tls(&own, &own.root_pem)).await.unwrap();
    let mut client = FederationClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .accept_compressed(CompressionEncoding::Zstd);
    let mut assignments = client.follow(v1::FollowRequest::default()).await.unwrap();
    assert_eq!(assignments.metadata().get("grpc-encoding").unwrap(), "zstd");
    let refused = assignments.get_mut().message().await.unwrap_err();
    assert!(matches!(refused.code(), Code::OutOfRange | Code::ResourceExhausted), "{refused}");
}

#[tokio::test]
async fn addresses_that_lead_nowhere_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let own = issued(&authority(dir.path()));
    let tls = tls(&own, &own.root_pem);
    for bad in ["http://127.0.0.1:1", "127.0.0.1:1", "https://127.0.0.1", "https://127.0.0.1:x"] {
        let error = connect(bad, tls.clone()).await.unwrap_err();
        assert!(matches!(error, ConnectError::BadUrl(_)), "{bad}: {error}");
    }
    // A port that was free a moment ago.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = listener.local_addr().unwrap();
    drop(listener);
    let error = connect(&format!("https://{closed}"), tls).await.unwrap_err();
    assert!(matches!(error, ConnectError::Unreachable { .. }), "{error}");
}
