//! Real certificates, real TLS, real gRPC, on loopback: who gets in, and what the others learn.

mod served;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use comity_certs::{Authority, server_config};
use comity_proto::limits::MESSAGE_BYTES_MAX;
use comity_proto::transport::{ConnectError, connect};
use comity_proto::v1::federation_client::FederationClient;
use comity_proto::{PROTOCOL, v1};
use served::{client_role, issued, refusal, serve_with, tls, without_certificate};
use time::OffsetDateTime;
use tokio::io::AsyncReadExt as _;
use tonic::Code;
use tonic::codec::CompressionEncoding;

fn authority(dir: &Path) -> Authority {
    let names = ["127.0.0.1".to_owned()];
    Authority::init(dir, "test", &names, OffsetDateTime::now_utc()).unwrap()
}

/// Serves on a free port and returns `https://…`.
async fn serve(dir: &Path, handshake_timeout: Duration) -> String {
    let pem = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
    let tls = server_config(&pem("coordinator.pem"), &pem("coordinator.key"), &pem("root.pem"));
    serve_with(Arc::new(ArcSwap::from(tls.unwrap())), handshake_timeout, served::Log::default())
        .await
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
        let said = refusal(&url, none, None, now).await;
        assert!(said.contains("certificate") && said.contains("no "), "{said}");
        let said = refusal(&url, tls(&stranger, &root), Some(&stranger), now).await;
        assert!(said.contains("authority") || said.contains("federation"), "{said}");
        let said = refusal(&url, tls(&expired, &root), Some(&expired), now).await;
        assert!(said.contains("expired"), "{said}");
    }
    // The other way round: a coordinator of another federation is not believed.
    let said = refusal(&url, tls(&stranger, &stranger.root_pem), Some(&stranger), now).await;
    assert!(said.contains("root.pem"), "{said}");
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
