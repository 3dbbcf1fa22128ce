//! How long a connection lives, in virtual time.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use comity_certs::{Authority, Role, client_config, server_config};
use comity_proto::limits::{CONNECTION_AGE_GRACE, CONNECTION_AGE_MAX, HANDSHAKE_TIMEOUT};
use comity_proto::transport::{Listen, incoming};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt as _, DuplexStream};
use tokio_stream::StreamExt as _;
use tonic::transport::server::Connected as _;

/// Gives one connection, then waits.
struct Once(Option<DuplexStream>);

impl Listen for Once {
    type Stream = DuplexStream;

    async fn accept(&mut self) -> std::io::Result<(DuplexStream, SocketAddr)> {
        match self.0.take() {
            Some(stream) => Ok((stream, (Ipv4Addr::LOCALHOST, 1).into())),
            None => std::future::pending().await,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_old_connection_is_asked_to_end_and_cut_in_the_end_whatever_it_carries() {
    let dir = tempfile::tempdir().unwrap();
    let now = OffsetDateTime::now_utc();
    let authority = Authority::init(dir.path(), "aging", &["127.0.0.1".to_owned()], now).unwrap();
    let own = authority.issue(&Role::Client("KR/a".parse().unwrap()), 1, now).unwrap();
    let tls = client_config(&own.certificate_pem, &own.key_pem, &own.root_pem).unwrap();
    let pem = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
    let server = server_config(&pem("coordinator.pem"), &pem("coordinator.key"), &pem("root.pem"));
    let server = Arc::new(ArcSwap::from(server.unwrap()));
    let (near, far) = tokio::io::duplex(1 << 16);
    let mut connections = incoming(
        Once(Some(near)),
        server,
        HANDSHAKE_TIMEOUT,
        |_: &[Vec<u8>]| String::new(),
        ToString::to_string,
    );
    let connector = tokio_rustls::TlsConnector::from(tls);
    let name = rustls::pki_types::ServerName::try_from("127.0.0.1").unwrap();
    let (client, accepted) = tokio::join!(connector.connect(name, far), connections.next());
    let (_client, mut accepted) = (client.unwrap(), accepted.unwrap().unwrap());
    let began = tokio::time::Instant::now();
    let ages = accepted.connect_info().ages - began;
    let most = CONNECTION_AGE_MAX;
    assert!(ages <= most && ages >= most.mul_f64(0.9) - Duration::from_secs(1), "{ages:?}");
    // Nothing is sent, so virtual time goes on to the next thing that happens.
    let error = accepted.read(&mut [0]).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionAborted);
    let cut = began.elapsed();
    assert!(cut >= ages + CONNECTION_AGE_GRACE - Duration::from_secs(1), "{cut:?}");
    assert!(cut <= most + CONNECTION_AGE_GRACE, "{cut:?}");
}
